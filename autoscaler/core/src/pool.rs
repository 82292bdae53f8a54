//! One pool's decisions: traffic in, replicas and a reason out.
//!
//! [`Pool::observe`] takes in what activators have counted, [`Pool::step`] decides. Both may be called at any time and any
//! number of times; a step is due when a report arrives, when a fact changes, and at [`Step::wake_at`].

mod facts;
mod knative;

use std::time::Duration;

pub use facts::{Command, Draft, Facts, Foreign, Phase, Sample, Step};

use self::knative::Knative;
use crate::adaptive::{self, Adaptive, Pods, Sizing};
use crate::conflict::Conflict;
use crate::group::Company;
use crate::idle::{self, Activity, Gate, Ladder, Rest, Verdict};
use crate::reason::{Cause, Plan, Reason};
use crate::time::earliest;
use crate::{Algorithm, Policy, Time};

/// The decider of one pool.
#[derive(Clone, Debug)]
pub struct Pool {
    policy: Policy,
    sizer: Sizer,
    conflict: Conflict,
    sample: Sample,
    /// When it was last used: by a request that counts, a command, or somebody who woke it.
    used: Time,
    /// Until when somebody asked for pods to which traffic could come: it has its keep-alive from then on.
    kept: Time,
    /// Whether somebody did so the last time.
    needed: bool,
    /// When it last left zero.
    woken: Option<Time>,
    /// When a user last asked it to sleep. That stands until it is used again, also when others keep it awake meanwhile.
    asked: Option<Time>,
    /// It serves no requests: it rises with others, and nothing tells how many pods it needs.
    follows: bool,
    /// `initial-scale` has not been reached yet.
    initial: bool,
    /// How a `kpa` pool stands.
    activity: Option<Activity>,
    numbers: Vec<(&'static str, f64)>,
}

/// What decides beyond the first pod. Boxed, because a pool that sleeps needs neither at hand and there are thousands.
#[derive(Clone, Debug)]
enum Sizer {
    Adaptive(Box<Adaptive>),
    Kpa(Box<Knative>),
}

/// How many pods are wanted by traffic, why, and when that may change by itself.
struct Wanted {
    pods: u32,
    cause: Cause,
    /// When it falls to how many.
    plan: Option<(Time, u32)>,
}

impl Pool {
    /// A pool that was just met. That counts as use: who has just been met is not put to sleep at once.
    #[must_use]
    pub fn new(policy: Policy, now: Time) -> Self {
        Self {
            sizer: sizer(&policy),
            policy,
            conflict: Conflict::default(),
            sample: Sample::default(),
            used: now,
            kept: Time::EPOCH,
            needed: false,
            woken: None,
            asked: None,
            follows: false,
            initial: false,
            activity: None,
            numbers: Vec::new(),
        }
    }

    /// Its workload has just been captured for the first time: `initial-scale` counts until it has been reached once.
    pub fn begin_at_initial_scale(&mut self) {
        self.initial = self.policy.knobs().initial_scale > 1;
    }

    /// It serves no requests and rises only with others: that it has just been met is no use.
    pub fn begin_unused(&mut self) {
        self.used = Time::EPOCH;
        self.follows = true;
    }

    /// The user changed the knobs. What has been measured stays as far as it fits.
    pub fn update_policy(&mut self, policy: Policy, now: Time) {
        match (&mut self.sizer, policy.knobs().algorithm) {
            (Sizer::Adaptive(_), Algorithm::Adaptive) => {}
            (Sizer::Kpa(knative), Algorithm::Kpa) => knative.averages.update(&policy),
            (sizer, _) => {
                *sizer = self::sizer(&policy);
                let sample = self.sample;
                self.observe(now, &sample);
            }
        }
        self.policy = policy;
    }

    /// Takes in what activators have counted by `now`.
    pub fn observe(&mut self, now: Time, sample: &Sample) {
        if sample.in_flight > 0 || sample.held > 0 {
            self.used = self.used.max(now);
        }
        if let Some(idle) = sample.idle {
            self.used = self.used.max(now - idle);
        }
        match &mut self.sizer {
            Sizer::Adaptive(adaptive) => adaptive.observe(now, sample),
            Sizer::Kpa(knative) => knative.averages.observe(now, sample),
        }
        self.sample = *sample;
    }

    /// Decides, for a pool that has no company.
    pub fn step(&mut self, now: Time, facts: &Facts) -> Step {
        let draft = self.draft(now, facts);
        self.conclude(now, facts, draft, &Company::Free)
    }

    /// The first half of a decision: what it would do if it were alone.
    pub fn draft(&mut self, now: Time, facts: &Facts) -> Draft {
        self.take_in(now, facts);
        let wanted = self.wanted(now, facts);
        let shrink = wanted.plan.filter(|(_, to)| (1..facts.replicas).contains(to));
        let mut wake_at = shrink.map(|(at, _)| at);
        let mut plan = shrink.map(|(at, to)| {
            let after = at.since(now);
            (at, Plan::Shrink { after, to })
        });
        let (mut to, mut cause) = (wanted.pods, wanted.cause);
        let asked = facts.command == Some(Command::Sleep);
        if facts.replicas > 0 && asked && self.busy() {
            let Sample { in_flight, held, .. } = self.sample;
            cause = Cause::Busy { in_flight, held };
        } else if facts.replicas > 0 && self.may_rest(to, facts) {
            match self.rest(now, facts) {
                Ladder::Go(why) => (to, cause) = (0, why),
                Ladder::Stay {
                    cause: why,
                    until,
                    sleeps,
                } => {
                    if to <= 1 || self.follows {
                        to = to.max(1);
                        // From more than that, it is the sizing that says why.
                        if to >= facts.replicas || self.follows {
                            cause = why;
                        }
                    }
                    wake_at = earliest(wake_at, until);
                    let sleep = until.filter(|_| sleeps);
                    let sleep = sleep.map(|at| (at, Plan::Sleep { after: at.since(now) }));
                    plan = plan.into_iter().chain(sleep).min_by_key(|(at, _)| *at);
                }
            }
        }
        (to, cause) = self.bound(to, cause, facts);
        Draft {
            to,
            cause,
            plan,
            wake_at,
        }
    }

    /// The second half: what others mean for it.
    pub fn conclude(&mut self, now: Time, facts: &Facts, draft: Draft, company: &Company) -> Step {
        let Draft {
            to,
            cause,
            mut plan,
            mut wake_at,
        } = draft;
        let (to, cause) = self.join(to, cause, facts, company);
        let (to, cause) = self.restrain(now, to, cause, facts);
        if matches!(company, Company::Awake { .. } | Company::Kept { .. }) {
            // It sleeps when the others do.
            plan = plan.filter(|(_, plan)| !matches!(plan, Plan::Sleep { .. }));
        }
        let calm_at = self.conflict.calm_at(now).filter(|_| self.conflict.stopped(now));
        if let Some(at) = calm_at {
            plan = Some((at, Plan::Calm { after: at.since(now) }));
            wake_at = earliest(wake_at, calm_at);
        }
        self.settle(now, to, facts, matches!(cause, Cause::Together { .. }));
        let mut wake_at = self.wake_at(now, to, facts, wake_at);
        if let Company::Waits { until, .. } = company {
            wake_at = earliest(wake_at, Some(*until));
        }
        Step {
            replicas: (to != facts.replicas).then_some(to),
            phase: match to {
                0 if matches!(cause, Cause::Waits { .. }) => Phase::Waking,
                _ => phase(to, facts.ready),
            },
            reason: Reason {
                from: facts.replicas,
                to,
                cause,
            },
            next: plan.filter(|_| to > 0).map(|(_, plan)| plan),
            wake_at,
        }
    }

    /// Who else writes replicas: how often within ten minutes, the field manager, and whether we have stopped.
    #[must_use]
    pub fn conflict(&self, now: Time) -> Option<(usize, &str, bool)> {
        let (times, manager) = self.conflict.with(now)?;
        Some((times, manager, self.conflict.stopped(now)))
    }

    /// The numbers behind the last decision, by name, for the debug dump.
    #[must_use]
    pub fn numbers(&self) -> Vec<(&'static str, f64)> {
        let Sample { held, in_flight, .. } = self.sample;
        let mut numbers = vec![("held", f64::from(held)), ("in_flight", f64::from(in_flight))];
        numbers.extend_from_slice(&self.numbers);
        numbers
    }

    /// What happened since the last step, besides traffic.
    fn take_in(&mut self, now: Time, facts: &Facts) {
        if let Sizer::Adaptive(adaptive) = &mut self.sizer {
            facts.started.iter().for_each(|took| adaptive.booted(*took));
        }
        // Whoever scales beyond the first pod is no foreign writer.
        if let Some(foreign) = facts.foreign.as_ref().filter(|_| facts.scaled_by.is_none()) {
            self.conflict.flipped(now, &foreign.manager);
            if foreign.from == 0 {
                (self.used, self.woken) = (now, Some(now));
            }
        }
        let needed = facts.reachable && facts.at_least.is_some();
        if needed || self.needed {
            self.kept = now;
        }
        self.needed = needed;
        match facts.command {
            Some(Command::Wake) => (self.used, self.asked) = (now, None),
            Some(Command::Sleep) if !self.busy() => self.asked = Some(now),
            _ if facts.replicas == 0 => self.asked = None,
            _ => {}
        }
        if facts.ready >= self.policy.knobs().initial_scale {
            self.initial = false;
        }
    }

    fn busy(&self) -> bool {
        self.sample.held > 0 || self.sample.in_flight > 0
    }

    /// How many pods traffic wants.
    fn wanted(&mut self, now: Time, facts: &Facts) -> Wanted {
        let still = |pods, cause| Wanted {
            pods,
            cause,
            plan: None,
        };
        if facts.replicas == 0 {
            let first = if facts.scaled_by.is_some() {
                1
            } else {
                self.first()
            };
            let held = self.sample.held;
            return match facts.command {
                _ if held > 0 => still(first, Cause::FirstRequest { held }),
                Some(Command::Wake) => still(first, Cause::Wake),
                _ => still(0, Cause::Steady),
            };
        }
        if self.follows {
            return still(facts.replicas, Cause::Steady);
        }
        if let Some(name) = &facts.scaled_by {
            let pods = if self.busy() { facts.replicas } else { 0 };
            return still(pods, Cause::ScaledBy { name: name.clone() });
        }
        let Self {
            policy,
            sizer,
            sample,
            numbers,
            ..
        } = self;
        match sizer {
            Sizer::Adaptive(adaptive) => {
                let pods = Pods {
                    // Those that are on their way out still answer.
                    ready: facts.ready.min(facts.replicas),
                    starting: &facts.starting,
                    asked: facts.replicas,
                };
                let sizing = adaptive.decide(now, policy, pods);
                *numbers = figures(&sizing);
                Wanted {
                    pods: sizing.pods,
                    cause: why(&sizing, facts.replicas),
                    plan: sizing.falls.map(|(at, to)| (at, to.max(1))),
                }
            }
            Sizer::Kpa(knative) => knative.wanted(now, policy, sample, facts, numbers),
        }
    }

    /// How many pods a wake starts.
    fn first(&self) -> u32 {
        let learned = match &self.sizer {
            Sizer::Adaptive(adaptive) => adaptive.first(&self.policy),
            Sizer::Kpa(_) => 1,
        };
        learned.max(self.policy.knobs().activation_scale.unwrap_or(1))
    }

    /// Whether the last pods may be on their way out: without traffic, or when Knative's averages want none.
    fn may_rest(&self, wanted: u32, facts: &Facts) -> bool {
        match self.knatives_rule() && facts.scaled_by.is_none() && facts.command.is_none() {
            true => wanted == 0,
            false => !self.busy(),
        }
    }

    /// Whether Knative's gate stands in for the keep-alive.
    fn knatives_rule(&self) -> bool {
        self.policy.knobs().keep_alive.is_none() && matches!(self.sizer, Sizer::Kpa(_))
    }

    /// The ladder to zero.
    fn rest(&mut self, now: Time, facts: &Facts) -> Ladder {
        let asked = self.asked.is_some_and(|at| self.used <= at);
        let rest = Rest {
            busy: self.busy(),
            used: self.used,
            kept: self.kept,
            woken: self.woken,
            min: self.least(facts),
            reachable: facts.reachable,
            may_sleep: &facts.may_sleep,
            stale: self.sample.stale,
            asked,
        };
        if !self.knatives_rule() || asked || facts.scaled_by.is_some() {
            return match idle::rest(now, &self.policy, &rest) {
                Ladder::Go(Cause::Idle { .. }) if self.used == Time::EPOCH => Ladder::Go(Cause::Unneeded),
                ladder => ladder,
            };
        }
        // All other rungs hold as they do for anyone.
        let ladder = idle::rest(now, &self.policy, &Rest { asked: true, ..rest });
        let Ladder::Go(_) = ladder else {
            return ladder;
        };
        self.gate(now, facts)
    }

    fn gate(&mut self, now: Time, facts: &Facts) -> Ladder {
        let mut activity = self.activity.unwrap_or(Activity::Active { since: now });
        let stay = |until, sleeps| Ladder::Stay {
            cause: Cause::Steady,
            until,
            sleeps,
        };
        loop {
            let gate = Gate {
                activity,
                // Captured: activators are in the path, proven, and have been.
                proxied: Duration::MAX,
                probed: true,
                reachable: facts.reachable,
            };
            match idle::gate(now, &self.policy, &gate) {
                Verdict::MarkInactive => {
                    activity = Activity::Inactive { since: now };
                    self.activity = Some(activity);
                }
                Verdict::Scale(0, _) if matches!(activity, Activity::Activating { .. }) => {
                    let waited = now.since(self.woken.unwrap_or(self.used));
                    return Ladder::Go(Cause::NeverReady { waited });
                }
                Verdict::Scale(0, _) => {
                    let (idle, keep_alive) = (now.since(self.used), self.policy.knobs().window);
                    return Ladder::Go(Cause::Idle { idle, keep_alive });
                }
                Verdict::Scale(_, until) | Verdict::Keep(until) => return stay(until, true),
            }
        }
    }

    /// Replicas that must not be gone below.
    fn least(&self, facts: &Facts) -> u32 {
        let knobs = self.policy.knobs();
        let min = if facts.reachable { knobs.min_scale } else { 0 };
        let initial = if self.initial { knobs.initial_scale } else { 0 };
        let at_least = facts.at_least.as_ref().map_or(0, |(replicas, _)| *replicas);
        min.max(initial).max(at_least)
    }

    /// Between min and max; what others ask for at least comes before both.
    fn bound(&self, to: u32, cause: Cause, facts: &Facts) -> (u32, Cause) {
        let knobs = self.policy.knobs();
        let (mut to, mut cause) = (to, cause);
        if facts.scaled_by.is_none() || facts.replicas == 0 || to < 2 {
            if self.initial && to < knobs.initial_scale {
                to = knobs.initial_scale;
                cause = Cause::Initial { initial: to };
            }
            if facts.reachable && to < knobs.min_scale {
                to = knobs.min_scale;
                cause = Cause::Minimum { min: to };
            }
            if knobs.max_scale > 0 && to > knobs.max_scale {
                let wanted = std::mem::replace(&mut to, knobs.max_scale);
                cause = Cause::Maximum { max: to, wanted };
            }
        }
        let asked = facts.at_least.as_ref();
        // Also told when it is what holds them, rather than what raises them.
        let holds = |replicas: u32| to < replicas || (to == replicas && cause == Cause::Steady && to > 0);
        if let Some((replicas, why)) = asked.filter(|(replicas, _)| holds(*replicas)) {
            to = *replicas;
            let (replicas, why) = (*replicas, why.clone());
            cause = Cause::AtLeast { replicas, why };
        }
        (to, cause)
    }

    /// With others: up for them, not down before them, and not up before what it depends on.
    fn join(&self, to: u32, cause: Cause, facts: &Facts, company: &Company) -> (u32, Cause) {
        match company {
            Company::Waits { why, .. } if facts.replicas == 0 => (0, Cause::Waits { why: why.clone() }),
            Company::Free | Company::Waits { .. } => (to, cause),
            Company::Follows { note } if facts.replicas == 0 && to > 0 => {
                let (cause, note) = (Box::new(cause), note.clone());
                (to, Cause::After { cause, note })
            }
            Company::Follows { .. } => (to, cause),
            Company::Kept { .. } if facts.replicas == 0 => (to, cause),
            Company::Kept { why } | Company::Awake { why } => {
                let rises = facts.replicas == 0 || self.follows;
                let first = if rises && facts.scaled_by.is_none() {
                    self.policy.knobs().activation_scale.unwrap_or(1)
                } else {
                    1
                };
                // Also told when it is what holds the last pod, rather than what raises it.
                if to < first || (to == first && facts.replicas == first && cause == Cause::Steady) {
                    (first, Cause::Together { why: why.clone() })
                } else {
                    (to, cause)
                }
            }
        }
    }

    /// What must not be written now: less while reports are missing, and anything while somebody else fights for it.
    fn restrain(&self, now: Time, to: u32, cause: Cause, facts: &Facts) -> (u32, Cause) {
        let from = facts.replicas;
        if to < from && self.sample.stale {
            return (from, Cause::Stale);
        }
        // An HPA decides beyond the first pod, unless there are none or none are to be.
        if let Some(name) = &facts.scaled_by
            && from > 0
            && to > 0
        {
            return match (&facts.at_least, cause) {
                (Some((replicas, why)), _) if *replicas > from => {
                    let (replicas, why) = (*replicas, why.clone());
                    (replicas, Cause::AtLeast { replicas, why })
                }
                (_, cause @ (Cause::MayNotSleep { .. } | Cause::Stale | Cause::Busy { .. })) => (from, cause),
                _ => (from, Cause::ScaledBy { name: name.clone() }),
            };
        }
        if to != from
            && from > 0
            && self.conflict.stopped(now)
            && let Some((flips, manager)) = self.conflict.with(now)
        {
            let manager = manager.to_owned();
            let stopped = true;
            return (
                from,
                Cause::Conflict {
                    manager,
                    flips,
                    stopped,
                },
            );
        }
        (to, cause)
    }

    /// Remembers what the decision changes. To be woken `for_others` is no use of its own: it would keep these awake in turn.
    fn settle(&mut self, now: Time, to: u32, facts: &Facts, for_others: bool) {
        if facts.replicas == 0 && to > 0 {
            self.woken = Some(now);
            if !for_others {
                self.used = self.used.max(now);
            }
        }
        if to == 0 {
            match &mut self.sizer {
                Sizer::Adaptive(adaptive) => adaptive.slept(),
                Sizer::Kpa(knative) => knative.slept(),
            }
        }
        self.activity = match (to, facts.ready, self.activity) {
            (0, _, _) => None,
            (_, 0, Some(activating @ Activity::Activating { .. })) => Some(activating),
            (_, 0, _) => Some(Activity::Activating { since: now }),
            (_, _, Some(standing @ (Activity::Active { .. } | Activity::Inactive { .. }))) => Some(standing),
            (_, _, None | Some(Activity::Activating { .. })) => Some(Activity::Active { since: now }),
        };
        // Used again: active anew.
        if self.busy() && matches!(self.activity, Some(Activity::Inactive { .. })) {
            self.activity = Some(Activity::Active { since: now });
        }
    }

    /// When to step again: an idle pool at zero never, one with traffic at the sizer's tick.
    fn wake_at(&self, now: Time, to: u32, facts: &Facts, planned: Option<Time>) -> Option<Time> {
        if to == 0 && facts.replicas == 0 {
            return None;
        }
        let tick = match &self.sizer {
            Sizer::Adaptive(_) => self.busy().then(|| now + adaptive::TICK),
            Sizer::Kpa(knative) => Some(knative.tick(now)),
        };
        let tick = tick.filter(|_| facts.scaled_by.is_none());
        earliest(planned, tick).map(|at| at.max(now + Duration::from_millis(1)))
    }
}

fn sizer(policy: &Policy) -> Sizer {
    match policy.knobs().algorithm {
        Algorithm::Adaptive => Sizer::Adaptive(Box::default()),
        Algorithm::Kpa => Sizer::Kpa(Box::new(Knative::new(policy))),
    }
}

/// Why a sizing came to other than there is.
fn why(sizing: &Sizing, replicas: u32) -> Cause {
    let Sizing {
        rate,
        service,
        per_pod,
        held,
        extra,
        drained,
        ..
    } = *sizing;
    if sizing.pods == replicas {
        Cause::Steady
    } else if sizing.pods < replicas {
        Cause::Less {
            calm: sizing.calm,
            rate,
        }
    } else if extra > 0 {
        Cause::Queue {
            held,
            rate,
            service,
            extra,
            drained,
        }
    } else {
        Cause::Load {
            rate,
            service,
            per_pod,
        }
    }
}

fn figures(sizing: &Sizing) -> Vec<(&'static str, f64)> {
    vec![
        ("rate", sizing.rate),
        ("service_seconds", sizing.service.as_secs_f64()),
        ("per_pod", sizing.per_pod),
        ("momentary", f64::from(sizing.momentary)),
        ("extra", f64::from(sizing.extra)),
        ("hysteresis_seconds", sizing.hysteresis.as_secs_f64()),
    ]
}

fn phase(wanted: u32, ready: u32) -> Phase {
    match (wanted, ready) {
        (0, _) => Phase::Asleep,
        (_, 0) => Phase::Waking,
        _ => Phase::Awake,
    }
}

#[cfg(test)]
mod tests;
