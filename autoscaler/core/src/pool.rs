//! One pool's decisions: traffic in, replicas and a reason out.
//!
//! [`Pool::observe`] takes in what activators have counted, [`Pool::step`] decides. Both may be called at any time and any
//! number of times; a step is due when a report arrives, when a fact changes, and at [`Step::wake_at`].

use std::time::Duration;

use crate::reason::{Cause, Plan, Reason};
use crate::{Policy, Time};

/// What all activators together have counted for one pool. Totals only grow; the caller takes care of instances that come
/// and go.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sample {
    /// Requests that arrived and count as use.
    pub arrivals: u64,
    /// Requests that ended.
    pub completions: u64,
    /// Integral of requests in flight, in request-seconds.
    pub in_flight_seconds: f64,
    /// Integral of requests held, in request-seconds.
    pub held_seconds: f64,
    /// Sum of the service times of ended requests, in seconds.
    pub service_seconds: f64,
    /// Requests in flight now.
    pub in_flight: u32,
    /// Requests held now.
    pub held: u32,
    /// How long ago a request that counts was last seen. `None`: never.
    pub idle: Option<Duration>,
    /// Some activator that should report does not: the numbers may be too small.
    pub stale: bool,
}

/// What the cluster shows of one pool, and what others ask of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// `spec.replicas` of the workload, with our own writes in place of what is late to show.
    pub replicas: u32,
    /// Pods that somebody sees answering.
    pub ready: u32,
    /// Ages of pods that were asked for and are not ready yet.
    pub starting: Vec<Duration>,
    /// How long pods that have become ready since the last step took to start.
    pub started: Vec<Duration>,
    /// Whether it may go to zero; else why not: a sentence.
    pub may_sleep: Result<(), String>,
    /// Replicas to keep at least, whatever the bounds say, and why.
    pub at_least: Option<(u32, String)>,
    /// `hpa/NAME` of the HorizontalPodAutoscaler that decides beyond the first pod.
    pub scaled_by: Option<String>,
    /// What a user asks for, in this step only.
    pub command: Option<Command>,
    /// A change of replicas by somebody else since the last step.
    pub foreign: Option<Foreign>,
    /// Whether traffic can reach the pool. An unreachable one ignores `min-scale`, retention and scale-down delay.
    pub reachable: bool,
}

impl Default for Facts {
    fn default() -> Self {
        Self {
            replicas: 0,
            ready: 0,
            starting: Vec::new(),
            started: Vec::new(),
            may_sleep: Ok(()),
            at_least: None,
            scaled_by: None,
            command: None,
            foreign: None,
            reachable: true,
        }
    }
}

/// What a user asks of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Command {
    /// Have a pod, now.
    Wake,
    /// Go to zero, now.
    Sleep,
}

/// Somebody else changed the replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// What we had left.
    pub from: u32,
    /// The field manager.
    pub manager: String,
}

/// Where a pool stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// No pods wanted.
    Asleep,
    /// Pods wanted, none ready.
    Waking,
    /// At least one pod ready.
    Awake,
}

/// A decision.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// What to write. `None`: leave it as it is.
    pub replicas: Option<u32>,
    /// Where the pool stands once that is written.
    pub phase: Phase,
    /// Why.
    pub reason: Reason,
    /// What comes next if nothing happens before.
    pub next: Option<Plan>,
    /// When to step again if nothing happens before. `None`: only when something happens.
    pub wake_at: Option<Time>,
}

/// The decider of one pool.
#[derive(Clone, Debug)]
pub struct Pool {
    policy: Policy,
    born: Time,
    used: Time,
    sample: Sample,
}

impl Pool {
    /// A pool that was just met.
    #[must_use]
    pub fn new(policy: Policy, now: Time) -> Self {
        Self {
            policy,
            born: now,
            used: now,
            sample: Sample::default(),
        }
    }

    /// Its workload has just been captured for the first time: `initial-scale` counts until it has been reached once.
    pub fn begin_at_initial_scale(&mut self) {}

    /// The user changed the knobs. What has been measured stays.
    pub fn update_policy(&mut self, policy: Policy, now: Time) {
        self.policy = policy;
        self.born = now;
    }

    /// Takes in what activators have counted by `now`.
    pub fn observe(&mut self, now: Time, sample: &Sample) {
        if sample.in_flight > 0 || sample.held > 0 {
            self.used = now;
        }
        self.used = self.used.max(sample.idle.map_or(Time::EPOCH, |idle| now - idle));
        self.sample = *sample;
    }

    /// Decides.
    pub fn step(&mut self, now: Time, facts: &Facts) -> Step {
        let idle = now.since(self.used);
        let keep_alive = self.policy.keep_alive();
        let (to, cause) = if self.sample.held > 0 && facts.replicas == 0 {
            let held = self.sample.held;
            (self.policy.bounded(1), Cause::FirstRequest { held })
        } else if facts.replicas > 0 && facts.may_sleep.is_ok() && idle >= keep_alive {
            (self.policy.bounded(0), Cause::Idle { idle, keep_alive })
        } else {
            (facts.replicas, Cause::Steady)
        };
        let sleep = (to > 0 && idle < keep_alive).then(|| keep_alive.saturating_sub(idle));
        Step {
            replicas: (to != facts.replicas).then_some(to),
            phase: phase(to, facts.ready),
            reason: Reason {
                from: facts.replicas,
                to,
                cause,
            },
            next: sleep.map(|after| Plan::Sleep { after }),
            wake_at: sleep.map(|after| now + after),
        }
    }

    /// Who else writes replicas: how often within ten minutes, the field manager, and whether we have stopped.
    #[must_use]
    pub fn conflict(&self, now: Time) -> Option<(usize, &str, bool)> {
        let _ = now;
        None
    }

    /// The numbers behind the last decision, by name, for the debug dump.
    #[must_use]
    pub fn numbers(&self) -> Vec<(&'static str, f64)> {
        vec![
            ("held", f64::from(self.sample.held)),
            ("in_flight", f64::from(self.sample.in_flight)),
        ]
    }
}

fn phase(wanted: u32, ready: u32) -> Phase {
    match (wanted, ready) {
        (0, _) => Phase::Asleep,
        (_, 0) => Phase::Waking,
        _ => Phase::Awake,
    }
}
