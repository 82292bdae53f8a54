//! The way to the pure core: facts in its terms, and what it answers in ours.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::unit::Unit;
use crate::clock::Clock;
use crate::ledger::Traffic;
use crate::watch::slim::WorkloadFacts;

/// What a user asks of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// Have a pod, now.
    Wake,
    /// Go to zero, now.
    Sleep,
}

impl Command {
    /// Reads `wake@NONCE` or `sleep@NONCE`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        match text.split_once('@') {
            Some(("wake", _)) => Some(Self::Wake),
            Some(("sleep", _)) => Some(Self::Sleep),
            _ => None,
        }
    }
}

/// All that bears on a decision at one moment.
pub(super) struct Situation<'a> {
    pub(super) now: Instant,
    pub(super) traffic: &'a Traffic,
    pub(super) workload: &'a WorkloadFacts,
    /// Pods that somebody sees answering.
    pub(super) ready: u32,
    /// What we had left, and who has changed it.
    pub(super) foreign: Option<(u32, String)>,
    /// How long pods that have just become ready took to start.
    pub(super) started: &'a [Duration],
    /// Every expected activator has told its totals.
    pub(super) complete: bool,
    pub(super) command: Option<Command>,
}

/// What a decision comes to.
pub(super) struct Outcome {
    pub(super) replicas: u32,
    /// Label of the metric.
    pub(super) label: &'static str,
    /// The sentence.
    pub(super) why: String,
    /// When to decide again, if nothing happens before.
    pub(super) wake_at: Option<Instant>,
    /// Whether what is shown of it changed.
    pub(super) changed: bool,
}

impl Unit {
    pub(super) fn step(&mut self, clock: &Clock, situation: &Situation) -> Outcome {
        let _ = clock;
        let current = self.replicas.unwrap_or(0);
        let traffic = situation.traffic;
        let busy = traffic.held > 0 || traffic.in_flight > 0;
        let idle = traffic.last_request.map(|at| situation.now.duration_since(at));
        let keep = Duration::from_secs(60);
        let (replicas, label, why, wake_at) = if busy && current == 0 {
            (1, "wake", format!("{} held", traffic.held), None)
        } else if !busy
            && current > 0
            && situation.complete
            && self.kept_awake().is_none()
            && idle.is_none_or(|idle| idle >= keep)
        {
            (0, "idle", "idle for 60 s".to_owned(), None)
        } else {
            let at = (current > 0).then(|| situation.now + keep.saturating_sub(idle.unwrap_or_default()));
            (current, "none", self.why.clone(), at)
        };
        Outcome {
            replicas,
            label,
            why,
            wake_at,
            changed: false,
        }
    }

    pub(super) fn conflict(&self) -> Option<String> {
        None
    }

    pub(super) fn numbers(&self) -> Value {
        json!({})
    }
}
