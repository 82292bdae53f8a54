//! The order of capture and release: what the cluster shows, how long it has shown it, what is safe next. Pure.
//!
//! [`Memory`] holds only since when things stand, and what a self-probe proved. A new leader starts with an empty one,
//! waits the settle times anew, and goes on from wherever its predecessor stopped.

use std::time::Duration;

use dormouse_core::Time;
use dormouse_core::capture::{
    Action, Condition, ConditionKind, Facts, RouteFact, SelectorConflict, SliceFact, Stage, Step, Waits,
    Wanted,
};

/// How long activators that listened may be missing before the pods are published. A stream that breaks is dialled anew
/// in less.
const MISSING: Duration = Duration::from_millis(700);
/// First and longest wait before a key that was taken away is put back: the first repair is quick, a conflict that lasts
/// is a person's to solve.
const KEY_AGAIN: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));
/// After this long without a removal, the next counts as the first, and the conflict is no longer shown.
const CALM: Duration = Duration::from_secs(300);
/// First and longest wait before a self-probe that missed is tried again.
const PROBE_AGAIN: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));
/// How long release waits for all pods when some are ready already.
const ALL_PODS: Duration = Duration::from_secs(30);
/// How long release waits for requests in flight through activators.
const DRAIN: Duration = Duration::from_secs(120);

/// Since when things are so.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory {
    /// Our slice lists an activator that listens.
    published: Option<Time>,
    /// The key is in and the built-in slices are empty.
    emptied: Option<Time>,
    /// No activator listens.
    unserved: Option<Time>,
    /// Release began.
    releasing: Option<Time>,
    /// The key is out and the built-in slices are filled.
    filled: Option<Time>,
    /// Our slice is gone.
    withdrawn: Option<Time>,
    /// A self-probe landed, with built-in endpoints beside ours.
    reached: bool,
    /// A self-probe landed, with nobody else in the path.
    proven: bool,
    probe: Probe,
    conflict: Conflict,
}

#[derive(Clone, Debug, Default)]
struct Probe {
    /// The last one that was ordered.
    id: u64,
    ordered: Option<Time>,
    misses: u32,
    /// When its miss was seen.
    missed: Option<Time>,
    error: String,
}

#[derive(Clone, Debug, Default)]
struct Conflict {
    had_key: bool,
    times: u32,
    last: Option<Time>,
    manager: Option<String>,
}

impl Conflict {
    fn back_at(&self) -> Option<Time> {
        Some(self.last? + doubled(KEY_AGAIN, self.times.saturating_sub(1)))
    }

    fn shown(&self, now: Time) -> bool {
        self.last.is_some_and(|last| now.since(last) < CALM)
    }
}

fn doubled((first, longest): (Duration, Duration), times: u32) -> Duration {
    first.saturating_mul(1 << times.min(16)).min(longest)
}

fn hold(mark: &mut Option<Time>, holds: bool, now: Time) {
    if holds {
        mark.get_or_insert(now);
    } else {
        *mark = None;
    }
}

/// A step in the making.
struct Look<'a> {
    now: Time,
    waits: &'a Waits,
    facts: &'a Facts,
    actions: Vec<Action>,
    wake_at: Option<Time>,
}

impl Look<'_> {
    fn wake(&mut self, at: Time) {
        self.wake_at = Some(self.wake_at.map_or(at, |other| other.min(at)));
    }

    /// Whether `mark` is at least `long` ago; else wakes when it is.
    fn stood(&mut self, mark: Option<Time>, long: Duration) -> bool {
        let Some(mark) = mark else { return false };
        let due = mark + long;
        if self.now < due {
            self.wake(due);
        }
        self.now >= due
    }

    fn settled(&mut self, mark: Option<Time>) -> bool {
        self.stood(mark, self.waits.settle)
    }
}

/// Where a step comes to: stage, kind of the condition, its message.
type Standing = (Stage, ConditionKind, String);

/// The next safe step.
pub(super) fn step(now: Time, waits: &Waits, memory: &mut Memory, facts: &Facts) -> Step {
    let mut look = Look {
        now,
        waits,
        facts,
        actions: Vec::new(),
        wake_at: None,
    };
    notice(&look, memory);
    let (stage, kind, message) = match &facts.wanted {
        Wanted::Captured => {
            memory.releasing = None;
            inward(&mut look, memory)
        }
        Wanted::Released { why } => outward(&mut look, memory, why, false),
        Wanted::Refused { why } => outward(&mut look, memory, why, true),
    };
    memory.conflict.had_key = facts.wanted == Wanted::Captured && facts.key;
    let conflict = memory.conflict.shown(now).then(|| SelectorConflict {
        manager: memory.conflict.manager.clone(),
        times: memory.conflict.times,
        back_at: memory.conflict.back_at().filter(|_| !facts.key),
    });
    if conflict.is_some() && facts.wanted == Wanted::Captured {
        // The condition is to be taken back when calm has returned.
        look.stood(memory.conflict.last, CALM);
    }
    Step {
        state: dormouse_core::capture::State::default(),
        may_sleep: may_sleep(stage, facts, &message),
        at_least: at_least(stage, facts),
        actions: look.actions,
        stage,
        condition: Condition { kind, message },
        selector_conflict: conflict,
        wake_at: look.wake_at,
    }
}

fn may_sleep(stage: Stage, facts: &Facts, message: &str) -> Result<(), String> {
    if stage != Stage::Captured {
        return Err(format!("not captured: {message}"));
    }
    match facts.builtin_ready {
        0 => Ok(()),
        ready => Err(format!(
            "{ready} built-in endpoints are still ready, so some traffic goes past the activators"
        )),
    }
}

fn at_least(stage: Stage, facts: &Facts) -> Option<(u32, String)> {
    let going = stage == Stage::Releasing && facts.service;
    going.then(|| {
        (
            facts.original.max(1),
            "the Service is being given back".to_owned(),
        )
    })
}

/// Keeps the times since when things hold.
fn notice(look: &Look<'_>, memory: &mut Memory) {
    let (now, facts) = (look.now, look.facts);
    let lists = matches!(&facts.slice, SliceFact::Activators { names, current: true } if !names.is_empty());
    hold(&mut memory.published, lists, now);
    hold(&mut memory.emptied, facts.key && facts.builtin_ready == 0, now);
    hold(&mut memory.unserved, facts.listening.is_empty(), now);
    hold(
        &mut memory.filled,
        !facts.key && (facts.builtin_ready > 0 || facts.pods_ready == 0),
        now,
    );
    hold(
        &mut memory.withdrawn,
        facts.slice == SliceFact::None && !facts.key,
        now,
    );
    if memory.conflict.had_key && !facts.key && facts.wanted == Wanted::Captured {
        let conflict = &mut memory.conflict;
        if !conflict.shown(now) {
            conflict.times = 0;
        }
        conflict.times = conflict.times.saturating_add(1);
        conflict.last = Some(now);
        conflict.manager.clone_from(&facts.selector_manager);
        // It was removed by somebody who does not know of us: the path through our slice is as proven as before.
    }
}

impl Memory {
    /// What an earlier leader proved, as the Route's condition says, holds while what it proved still stands.
    pub(super) fn inherit(&mut self, facts: &Facts) {
        if facts.key && facts.slice != SliceFact::None {
            self.proven = true;
            self.reached = true;
        }
    }
}

fn inward(look: &mut Look<'_>, memory: &mut Memory) -> Standing {
    let facts = look.facts;
    if !facts.original_recorded {
        look.actions.push(Action::RecordOriginal);
    }
    if !facts.private_services {
        look.actions.push(Action::EnsurePrivateServices);
    }
    if facts.route != RouteFact::Current {
        look.actions.push(Action::EnsureRoute);
    }
    if facts.listening.is_empty() {
        return unserved(look, memory);
    }
    let listed = match &facts.slice {
        SliceFact::Activators { names, current } => *current && *names == facts.listening,
        _ => false,
    };
    if !listed {
        look.actions
            .push(Action::PublishActivators(facts.listening.clone()));
    }
    if facts.key && memory.proven {
        return captured();
    }
    if facts.route != RouteFact::Current || !facts.private_services || !facts.original_recorded {
        return capturing(Stage::Preparing, "Route and private Service are being made.");
    }
    if !look.settled(memory.published) {
        return capturing(
            Stage::Proving,
            "Our endpoints are published; waiting until every node knows them.",
        );
    }
    if facts.key {
        prove(look, memory)
    } else {
        close(look, memory)
    }
}

fn captured() -> Standing {
    let proof = "A self-probe through the Service's own address landed on an activator.";
    (Stage::Captured, ConditionKind::Probed, proof.to_owned())
}

fn capturing(stage: Stage, message: impl Into<String>) -> Standing {
    (stage, ConditionKind::Capturing, message.into())
}

/// No activator listens for this Route.
fn unserved(look: &mut Look<'_>, memory: &mut Memory) -> Standing {
    let facts = look.facts;
    let standing = |stage, message: &str| {
        let kind = if facts.live.is_empty() {
            ConditionKind::NoActivator
        } else {
            ConditionKind::Capturing
        };
        (stage, kind, message.to_owned())
    };
    if facts.slice == SliceFact::None && !facts.key {
        return standing(Stage::Preparing, "No activator listens for the Route yet.");
    }
    if !look.stood(memory.unserved, MISSING) || !facts.complete {
        // For a moment everything stays as it is: an empty list would be no better than this one.
        return match (facts.key, memory.proven) {
            (true, true) => captured(),
            _ => capturing(Stage::Preparing, "The activators are silent for a moment."),
        };
    }
    if !facts.key {
        // The built-in slices carry the traffic; ours would lead half of it nowhere.
        look.actions.push(Action::RemoveSlice);
        return standing(Stage::Preparing, "No activator listens for the Route.");
    }
    if facts.pods_ready > 0 && facts.slice != (SliceFact::Pods { current: true }) {
        look.actions.push(Action::PublishPods);
    }
    let message = "No activator listens; the Service's slices list its ready pods, and nothing sleeps.";
    (Stage::FailOpen, ConditionKind::NoActivator, message.to_owned())
}

/// Our slice stands beside the built-in ones: once the way to an activator is proven, the key goes in.
fn close(look: &mut Look<'_>, memory: &mut Memory) -> Standing {
    if !memory.reached {
        match probe(look, memory) {
            Some(standing) => return standing,
            None => memory.reached = true,
        }
    }
    if let Some(at) = memory.conflict.back_at().filter(|at| look.now < *at) {
        look.wake(at);
        let manager = memory.conflict.manager.as_deref().unwrap_or("Somebody");
        let (times, wait) = (memory.conflict.times, at.since(look.now).as_secs_f64().ceil());
        let message = format!(
            "{manager} took the selector key away, {times} times lately; it is put back in {wait} s."
        );
        return capturing(Stage::Closing, message);
    }
    look.actions.push(Action::AddKey);
    capturing(
        Stage::Closing,
        "A self-probe landed on an activator; the selector key goes in.",
    )
}

/// The key is in: nothing is captured before a self-probe has landed with the built-in slices empty.
fn prove(look: &mut Look<'_>, memory: &mut Memory) -> Standing {
    if memory.emptied.is_none() {
        let ready = look.facts.builtin_ready;
        return capturing(Stage::Closing, format!("{ready} built-in endpoints have to go."));
    }
    if !look.settled(memory.emptied) {
        return capturing(
            Stage::Closing,
            "The built-in endpoints are gone; waiting until every node knows.",
        );
    }
    match probe(look, memory) {
        Some(standing) => standing,
        None => {
            memory.proven = true;
            memory.reached = true;
            captured()
        }
    }
}

/// `None` once a probe of this round has landed; else what is said meanwhile.
fn probe(look: &mut Look<'_>, memory: &mut Memory) -> Option<Standing> {
    let probe = &mut memory.probe;
    let now = look.now;
    let outcome = look
        .facts
        .probed
        .as_ref()
        .filter(|(id, _)| *id == probe.id && probe.ordered.is_some());
    match outcome {
        Some((_, Ok(()))) => {
            *probe = Probe {
                id: probe.id,
                ..Probe::default()
            };
            return None;
        }
        Some((_, Err(error))) => {
            let missed = *probe.missed.get_or_insert(now);
            probe.error.clone_from(error);
            if look.stood(Some(missed), doubled(PROBE_AGAIN, probe.misses)) {
                probe.misses = probe.misses.saturating_add(1);
                order(look, probe);
            }
        }
        // Lost: twice what it may take at the longest.
        None if probe.ordered.is_none() || look.stood(probe.ordered, look.waits.probe * 2) => {
            order(look, probe)
        }
        None => {}
    }
    if probe.error.is_empty() {
        return Some(capturing(
            Stage::Proving,
            "A self-probe through the Service's own address is under way.",
        ));
    }
    let message = format!(
        "The Service's address does not lead to the activators: {}.",
        probe.error
    );
    Some((Stage::Proving, ConditionKind::ProbeFailed, message))
}

fn order(look: &mut Look<'_>, probe: &mut Probe) {
    probe.id += 1;
    probe.ordered = Some(look.now);
    probe.missed = None;
    look.actions.push(Action::Probe { id: probe.id });
}

fn outward(look: &mut Look<'_>, memory: &mut Memory, why: &str, refused: bool) -> Standing {
    let facts = look.facts;
    memory.reached = false;
    memory.probe = Probe {
        id: memory.probe.id,
        ..Probe::default()
    };
    let since = Some(*memory.releasing.get_or_insert(look.now));
    let kind = if refused {
        ConditionKind::Refused
    } else {
        ConditionKind::Releasing
    };
    let releasing = |message: String| (Stage::Releasing, kind, message);
    if facts.key {
        if !pods_ready(look, since) {
            let (ready, wanted) = (facts.pods_ready, facts.original.max(1));
            return releasing(format!(
                "Pods have to be ready before traffic goes to them: {ready} of {wanted} are; {why}."
            ));
        }
        look.actions.push(Action::RemoveKey);
        return releasing(format!("The selector key goes out: {why}."));
    }
    memory.proven = false;
    if facts.slice != SliceFact::None {
        if look.settled(memory.filled) {
            look.actions.push(Action::RemoveSlice);
        }
        return releasing(format!(
            "The built-in endpoints have to stand before ours go: {why}."
        ));
    }
    let served = matches!(facts.route, RouteFact::Outdated | RouteFact::Current);
    if served {
        let settled = look.settled(memory.withdrawn);
        let drained = facts.in_flight == 0 || look.stood(memory.withdrawn, DRAIN.min(look.waits.patience));
        if !settled || !drained {
            if settled {
                let again = look.now + Duration::from_secs(1);
                look.wake(again);
            }
            return releasing(format!("Requests through the activators have to end: {why}."));
        }
    }
    if facts.any_original {
        look.actions.push(Action::ForgetOriginal);
    }
    if facts.any_private_service {
        look.actions.push(Action::RemovePrivateServices);
    }
    match facts.route {
        RouteFact::Missing if refused => look.actions.push(Action::EmptyRoute),
        RouteFact::Outdated | RouteFact::Current if refused => look.actions.push(Action::EmptyRoute),
        RouteFact::Outdated | RouteFact::Current | RouteFact::Empty if !refused => {
            look.actions.push(Action::RemoveRoute);
        }
        _ => {}
    }
    (Stage::Outside, kind, why.to_owned())
}

/// Whether enough pods are ready to take the traffic, or waiting longer would not help.
fn pods_ready(look: &mut Look<'_>, since: Option<Time>) -> bool {
    let facts = look.facts;
    facts.pods_ready >= facts.original.max(1)
        || (facts.pods_ready > 0 && look.stood(since, ALL_PODS))
        || look.stood(since, look.waits.patience)
}

#[cfg(test)]
mod tests;
