//! Taking a Service's traffic over, and giving it back, without ever leaving it without endpoints.
//!
//! Each [`step`] compares what is wanted with what the cluster shows and returns the next actions. All that matters is in
//! the cluster: [`State`] holds only waiting times, and a process that starts with an empty one goes on from wherever its
//! predecessor stopped, at worst waiting and probing once more.
//!
//! ```text
//! into capture:  private Service, Route => activators listen => our slice => settle => probe lands => selector key
//!                => built-in slices empty => settle => probe lands => captured
//! out of it:     pods ready => settle => key removed => built-in slices filled => settle => our slice removed => settle,
//!                nothing in flight => Route and private Service removed
//! no activator:  our slice lists the pods (fail open), until an activator listens again
//! ```
//!
//! One rule holds in every state: nothing is taken away before what replaces it has stood for the settle time, because
//! nodes' tables follow the cluster late.

mod facts;
mod release;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub use facts::{
    Action, Condition, ConditionKind, Facts, RouteFact, SelectorConflict, SliceFact, Stage, Step, Waits,
    Wanted,
};

use crate::Time;
use crate::reason::Span;
use crate::time::earliest;

/// What the machine remembers between steps: since when things stand, and what was proven. An empty one is always safe.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Our slice has listed these live, listening activators.
    listed: BTreeMap<String, Time>,
    /// The key has been in, and the built-in slices empty.
    emptied: Option<Time>,
    /// No activator has been listening.
    unserved: Option<Time>,
    /// Release began.
    releasing: Option<Time>,
    /// On the way out, all pods have been ready.
    ready: Option<Time>,
    /// The key has been out, and the built-in slices filled.
    filled: Option<Time>,
    /// Our slice has been gone, and the key out.
    withdrawn: Option<Time>,
    /// Since when the Route is deleted, on the way out.
    unrouted: Option<Time>,
    /// A self-probe has landed while our slice stood, perhaps beside built-in endpoints.
    reached: bool,
    /// A self-probe has landed with nobody else in the path.
    proven: bool,
    probe: Probe,
    taken: Taken,
}

/// The self-probe under way, and those that missed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Probe {
    /// The last one that was ordered.
    id: u64,
    ordered: Option<Time>,
    /// Misses in a row.
    misses: u32,
    missed: Option<Time>,
    error: String,
}

/// Somebody took the key away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Taken {
    times: u32,
    /// How many of them the back-off counts: one less for each [`STOOD`] that the key was in.
    counted: u32,
    last: Option<Time>,
    /// Since when the key has been in; `None`: it was not at the last step, or we were to remove it.
    since: Option<Time>,
    manager: Option<String>,
}

/// How long activators that listened may be missing before the pods are published: a stream that breaks is dialled anew
/// in less.
const MISSING: Duration = Duration::from_millis(700);
/// So many times a key that was taken away is put back at once: each is somebody's apply, and until it is back requests go
/// past the activators, to pods that Kubernetes replaces while its nodes still lead there.
const AT_ONCE: u32 = 5;
/// A key that has stood for so long pays for one time.
const STOOD: Duration = Duration::from_secs(60);
/// First and longest wait after that: a conflict that lasts is for a person to solve.
const KEY_AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));
/// After this long without a removal the next counts as the first, and the conflict is no longer shown.
const CALM: Duration = Duration::from_secs(600);
/// First and longest wait before a self-probe that missed is tried again.
const PROBE_AGAIN: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));

impl State {
    /// For a process that begins: what an earlier leader proved, as the Route's condition says, holds while the key and our
    /// slice still stand.
    #[must_use]
    pub fn inherited(facts: &Facts) -> Self {
        let stands = facts.key && facts.slice != SliceFact::None;
        Self {
            reached: stands,
            proven: stands,
            ..Self::default()
        }
    }

    /// Keeps the times since when things hold.
    fn notice(&mut self, now: Time, facts: &Facts) {
        let empty = BTreeSet::new();
        let names = match &facts.slice {
            SliceFact::Activators { names, current: true } => names,
            _ => &empty,
        };
        // Each for itself: one that is listed only now does not inherit the time of one that has just died.
        self.listed
            .retain(|name, _| names.contains(name) && facts.listening.contains(name));
        for name in names.intersection(&facts.listening) {
            self.listed.entry(name.clone()).or_insert(now);
        }
        hold(&mut self.emptied, facts.key && facts.builtin_ready == 0, now);
        hold(&mut self.unserved, facts.listening.is_empty(), now);
        let wanted = facts.wanted == Wanted::Captured;
        // Only from when release began: what was decided just before may still take a pod away.
        let ready = !wanted && facts.pods_ready >= facts.original.max(1);
        hold(&mut self.ready, ready, now);
        hold(&mut self.filled, !facts.key && facts.builtin_ready > 0, now);
        hold(
            &mut self.withdrawn,
            !facts.key && facts.slice == SliceFact::None,
            now,
        );
        if let Some(since) = self.taken.since.filter(|_| !facts.key && wanted) {
            self.taken
                .again(now, now.since(since), facts.selector_manager.clone());
        }
        hold(&mut self.taken.since, facts.key && wanted, now);
    }
}

impl Taken {
    fn shown(&self, now: Time) -> bool {
        self.last.is_some_and(|last| now.since(last) < CALM)
    }

    /// Once more, after the key had `stood` for so long.
    fn again(&mut self, now: Time, stood: Duration, manager: Option<String>) {
        self.times = match self.shown(now) {
            true => self.times.saturating_add(1),
            false => 1,
        };
        let paid = stood.as_secs() / STOOD.as_secs();
        let left = self
            .counted
            .saturating_sub(u32::try_from(paid).unwrap_or(u32::MAX));
        self.counted = left.saturating_add(1);
        self.last = Some(now);
        self.manager = manager;
    }

    fn back_at(&self) -> Option<Time> {
        let last = self.last?;
        match self.counted.checked_sub(AT_ONCE + 1) {
            None => Some(last),
            Some(times) => Some(last + doubled(KEY_AGAIN, times)),
        }
    }
}

fn hold(mark: &mut Option<Time>, holds: bool, now: Time) {
    match holds {
        true => _ = mark.get_or_insert(now),
        false => *mark = None,
    }
}

fn doubled((first, longest): (Duration, Duration), times: u32) -> Duration {
    first.saturating_mul(1 << times.min(16)).min(longest)
}

/// A step in the making.
struct Look<'a> {
    now: Time,
    waits: &'a Waits,
    facts: &'a Facts,
    state: State,
    actions: Vec<Action>,
    wake_at: Option<Time>,
}

/// Where a step comes to: stage, and the condition.
type Standing = (Stage, ConditionKind, String);

/// Decides what to do next for one Service.
#[must_use]
pub fn step(now: Time, waits: &Waits, state: &State, facts: &Facts) -> Step {
    let mut look = Look {
        now,
        waits,
        facts,
        state: state.clone(),
        actions: Vec::new(),
        wake_at: None,
    };
    look.state.notice(now, facts);
    let (stage, kind, message) = match &facts.wanted {
        _ if !facts.service => {
            look.state = State::default();
            (
                Stage::Outside,
                ConditionKind::Releasing,
                "The Service is gone.".to_owned(),
            )
        }
        Wanted::Captured => look.inward(),
        Wanted::Released { why } => look.outward(why, false),
        Wanted::Refused { why } => look.outward(why, true),
    };
    let taken = &look.state.taken;
    let selector_conflict = taken.shown(now).then(|| SelectorConflict {
        manager: taken.manager.clone(),
        times: taken.times,
        back_at: taken.back_at().filter(|_| !facts.key),
    });
    if let Some(last) = taken.last.filter(|_| selector_conflict.is_some()) {
        // The condition is to be taken back when it is calm.
        look.wake(last + CALM);
    }
    Step {
        may_sleep: may_sleep(stage, facts, &message),
        at_least: at_least(facts),
        holds: holds(stage, facts),
        actions: look.actions,
        stage,
        condition: Condition { kind, message },
        selector_conflict,
        wake_at: look.wake_at,
        state: look.state,
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

/// On the way out the workload gets back what it had, and keeps it to the last step and after.
fn at_least(facts: &Facts) -> Option<(u32, String)> {
    let out = facts.wanted != Wanted::Captured;
    out.then(|| (facts.original, "the Service is being given back".to_owned()))
}

/// On the way in pools keep what they have: traffic that does not pass through activators is not seen, and must not be
/// taken for none.
fn holds(stage: Stage, facts: &Facts) -> Option<String> {
    let inward = matches!(stage, Stage::Preparing | Stage::Proving | Stage::Closing);
    let unseen = inward && (!facts.key || facts.builtin_ready > 0);
    unseen.then(|| "some of its traffic does not pass through the activators yet".to_owned())
}

fn capturing(stage: Stage, message: impl Into<String>) -> Standing {
    (stage, ConditionKind::Capturing, message.into())
}

fn captured() -> Standing {
    let proof = "A self-probe through the Service's own address landed on an activator.";
    (Stage::Captured, ConditionKind::Probed, proof.to_owned())
}

impl Look<'_> {
    fn act(&mut self, action: Action) {
        self.actions.push(action);
    }

    fn wake(&mut self, at: Time) {
        self.wake_at = earliest(self.wake_at, Some(at));
    }

    /// Whether `mark` is at least `long` ago; else wakes when it is.
    fn stood(&mut self, mark: Option<Time>, long: Duration) -> bool {
        let Some(mark) = mark else {
            return false;
        };
        let due = mark + long;
        if self.now < due {
            self.wake(due);
        }
        self.now >= due
    }

    fn settled(&mut self, mark: Option<Time>) -> bool {
        self.stood(mark, self.waits.settle)
    }

    /// `Outside => Preparing => Proving => Closing => Captured`, and `Captured <=> FailOpen`.
    fn inward(&mut self) -> Standing {
        let facts = self.facts;
        self.state.releasing = None;
        if !facts.original_recorded {
            self.act(Action::RecordOriginal);
        }
        if !facts.private_services {
            self.act(Action::EnsurePrivateServices);
        }
        // Before the Route changes: who listens now listens for the Route as it is.
        let unserved = facts.listening.is_empty();
        if !unserved {
            self.publish();
        }
        if facts.route != RouteFact::Current {
            self.act(Action::EnsureRoute);
        }
        if unserved {
            return self.unserved();
        }
        if facts.key && self.state.proven {
            return captured();
        }
        if facts.route != RouteFact::Current || !facts.private_services || !facts.original_recorded {
            return capturing(Stage::Preparing, "Route and private Service are being made.");
        }
        if !self.settled(self.state.listed.values().min().copied()) {
            let message = "Our endpoints are published; waiting until every node knows them.";
            return capturing(Stage::Proving, message);
        }
        if facts.key { self.prove() } else { self.close() }
    }

    /// Lets our slice list those that listen.
    fn publish(&mut self) {
        let listening = &self.facts.listening;
        let listed = match &self.facts.slice {
            SliceFact::Activators { names, current } => *current && names == listening,
            _ => false,
        };
        if !listed {
            self.act(Action::PublishActivators(listening.clone()));
        }
    }

    /// No activator listens for this Route.
    fn unserved(&mut self) -> Standing {
        let facts = self.facts;
        let kind = match facts.live.is_empty() {
            true => ConditionKind::NoActivator,
            false => ConditionKind::Capturing,
        };
        if facts.slice == SliceFact::None && !facts.key {
            let message = "No activator listens for the Route yet.";
            return (Stage::Preparing, kind, message.to_owned());
        }
        if !self.stood(self.state.unserved, MISSING) || !facts.complete {
            // For a moment everything stays as it is: an empty list would be no better than this one.
            return match facts.key && self.state.proven {
                true => captured(),
                false => capturing(Stage::Preparing, "The activators are silent for a moment."),
            };
        }
        if !facts.key {
            // The built-in slices carry the traffic; ours leads half of it nowhere.
            if facts.builtin_ready > 0 && facts.slice != SliceFact::None {
                self.act(Action::RemoveSlice);
            }
            return (
                Stage::Preparing,
                kind,
                "No activator listens for the Route.".to_owned(),
            );
        }
        if facts.pods_ready > 0 && facts.slice != (SliceFact::Pods { current: true }) {
            self.act(Action::PublishPods);
        }
        let message = "No activator listens; the Service's slices list its ready pods, and nothing sleeps.";
        (Stage::FailOpen, ConditionKind::NoActivator, message.to_owned())
    }

    /// Our slice stands beside the built-in ones: once the way to an activator is proven, the key goes in.
    fn close(&mut self) -> Standing {
        if !self.state.reached {
            if let Some(standing) = self.probe() {
                return standing;
            }
            self.state.reached = true;
        }
        // It was taken away by somebody who does not know of us: what was proven with it in is to be proven again.
        self.state.proven = false;
        if let Some(at) = self.state.taken.back_at().filter(|at| self.now < *at) {
            self.wake(at);
            let taken = &self.state.taken;
            let manager = taken.manager.as_deref().unwrap_or("Somebody");
            let (times, wait) = (taken.times, Span(at.since(self.now)));
            let message = format!(
                "{manager} took the selector key away, {times} times lately; it goes back in {wait}."
            );
            return capturing(Stage::Closing, message);
        }
        self.act(Action::AddKey);
        capturing(
            Stage::Closing,
            "A self-probe landed on an activator; the selector key goes in.",
        )
    }

    /// The key is in: it is captured once a self-probe has landed with the built-in slices empty.
    fn prove(&mut self) -> Standing {
        let ready = self.facts.builtin_ready;
        if ready > 0 {
            return capturing(Stage::Closing, format!("{ready} built-in endpoints have to go."));
        }
        if !self.settled(self.state.emptied) {
            let message = "The built-in endpoints are gone; waiting until every node knows.";
            return capturing(Stage::Closing, message);
        }
        if let Some(standing) = self.probe() {
            return standing;
        }
        (self.state.reached, self.state.proven) = (true, true);
        captured()
    }

    /// `None` once a probe of this round has landed; else what is said meanwhile.
    fn probe(&mut self) -> Option<Standing> {
        let probe = &self.state.probe;
        let (id, ordered, misses) = (probe.id, probe.ordered, probe.misses);
        let outcome = self
            .facts
            .probed
            .as_ref()
            .filter(|(of, _)| *of == id && ordered.is_some());
        match outcome {
            Some((_, Ok(()))) => {
                self.state.probe = Probe {
                    id,
                    ..Probe::default()
                };
                return None;
            }
            Some((_, Err(error))) => {
                let missed = *self.state.probe.missed.get_or_insert(self.now);
                self.state.probe.error.clone_from(error);
                if self.stood(Some(missed), doubled(PROBE_AGAIN, misses)) {
                    self.order();
                }
            }
            // Its answer is lost.
            None if ordered.is_none() || self.stood(ordered, self.waits.probe * 2) => self.order(),
            None => {}
        }
        let error = &self.state.probe.error;
        if error.is_empty() {
            let message = "A self-probe through the Service's own address is under way.";
            return Some(capturing(Stage::Proving, message));
        }
        let message = format!("The Service's address does not lead to the activators: {error}.");
        Some((Stage::Proving, ConditionKind::ProbeFailed, message))
    }

    fn order(&mut self) {
        let probe = &mut self.state.probe;
        if probe.missed.take().is_some() {
            probe.misses = probe.misses.saturating_add(1);
        }
        // From the time, so that one ordered before this state began is not taken for it.
        let millis = u64::try_from(self.now.since_epoch().as_millis()).unwrap_or(u64::MAX);
        probe.id = millis.max(probe.id.saturating_add(1));
        probe.ordered = Some(self.now);
        let (id, due) = (probe.id, self.now + self.waits.probe * 2);
        self.wake(due);
        self.act(Action::Probe { id });
    }
}

#[cfg(test)]
mod tests;
