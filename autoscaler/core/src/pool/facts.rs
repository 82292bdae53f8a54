//! The words of a pool: what a step is made from and what it says.

use std::time::Duration;

use crate::Time;
use crate::reason::{Cause, Plan, Reason};

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

/// Half a decision: what a pool would do if it were alone.
#[derive(Clone, Debug, PartialEq)]
pub struct Draft {
    pub(super) to: u32,
    pub(super) cause: Cause,
    pub(super) plan: Option<(Time, Plan)>,
    pub(super) wake_at: Option<Time>,
}

impl Draft {
    /// Whether it is wanted by its own traffic, keep-alive, bounds or user. What only may not sleep just now is not.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        let stuck = matches!(
            self.cause,
            Cause::MayNotSleep { .. } | Cause::Stale | Cause::JustWoken { .. }
        );
        self.to > 0 && !stuck
    }
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
