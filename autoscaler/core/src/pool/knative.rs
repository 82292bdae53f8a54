//! Knative's autoscaler in a pool: fed with activators' totals, decided on its tick.

use super::{Facts, Sample, Wanted};
use crate::kpa::{self, Averages, Decision, Kpa, Observation};
use crate::reason::Cause;
use crate::{Policy, Time};

/// Knative's autoscaler with its averages and its tick.
#[derive(Clone, Debug)]
pub(super) struct Knative {
    pub(super) averages: Averages,
    /// Made at the first decision: it depends on the pods there are then.
    kpa: Option<Kpa>,
    decided: Option<Time>,
    last: (Decision, Observation),
}

impl Knative {
    /// One without data.
    pub(super) fn new(policy: &Policy) -> Self {
        let nothing = Observation {
            stable: 0.0,
            panic: 0.0,
            ready: 0,
        };
        Self {
            averages: Averages::new(policy),
            kpa: None,
            decided: None,
            last: (Decision::NoData, nothing),
        }
    }
}

impl Knative {
    /// When it decides next.
    pub(super) fn tick(&self, now: Time) -> Time {
        self.decided.unwrap_or(now) + kpa::TICK
    }

    /// The pool is at zero: what comes next starts without a panic, and at once.
    pub(super) fn slept(&mut self) {
        (self.kpa, self.decided) = (None, None);
    }

    /// How many pods the averages want; decided anew at each tick.
    pub(super) fn wanted(
        &mut self,
        now: Time,
        policy: &Policy,
        sample: &Sample,
        facts: &Facts,
        numbers: &mut Vec<(&'static str, f64)>,
    ) -> Wanted {
        let due = self.decided.is_none_or(|then| now >= then + kpa::TICK);
        if due {
            let kpa = self.kpa.get_or_insert_with(|| Kpa::new(now, facts.ready));
            let observed = self.averages.read(now, policy, facts.ready);
            let decision = kpa.decide(now, policy, facts.reachable, observed);
            self.last = (decision, observed.unwrap_or(self.last.1));
            self.decided = Some(now);
        }
        let (decision, Observation { stable, panic, ready }) = self.last;
        *numbers = vec![
            ("stable", stable),
            ("panic", panic),
            ("ready", f64::from(ready)),
            ("target", policy.target()),
        ];
        let busy = sample.held > 0 || sample.in_flight > 0;
        let (pods, cause) = match decision {
            Decision::NoData => (facts.replicas, Cause::NoData),
            // A request between two ticks holds the last pod, whatever the averages still say.
            Decision::Scale { pods, panicking, .. } => {
                let target = policy.target();
                let cause = Cause::Window {
                    stable,
                    panic,
                    target,
                    panicking,
                };
                (pods.max(u32::from(busy)), cause)
            }
        };
        let cause = if pods == facts.replicas {
            Cause::Steady
        } else {
            cause
        };
        Wanted {
            pods,
            cause,
            plan: None,
        }
    }
}
