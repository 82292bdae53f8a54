//! The way to the pure core: facts in its terms, and what it answers in ours.

use std::sync::Arc;
use std::time::Duration;

use crds::Settings;
use crds::annotation::{Aggregation, KeepAlive, Metric, PolicyKind};
use dormouse_core as core;
use dormouse_core::group::Company;
use dormouse_core::pool::{Facts, Foreign, Pool, Sample};
use dormouse_core::reason::{Cause, Plan, Reason};
use dormouse_core::{Policy, Time};
use serde_json::Value;
use tokio::time::Instant;

use super::unit::Unit;
use crate::clock::Clock;
use crate::ledger::Traffic;
use crate::state::RouteKey;

pub(super) use dormouse_core::pool::Command;

/// All that bears on a decision at one moment.
pub(super) struct Situation<'a> {
    pub(super) now: Instant,
    pub(super) traffic: &'a Traffic,
    /// Pods that somebody sees answering.
    pub(super) ready: u32,
    /// Who has changed the replicas, and what we had left.
    pub(super) foreign: Option<Foreign>,
    /// How long pods that have just become ready took to start.
    pub(super) started: Vec<Duration>,
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
    /// It has no pods because others come first.
    pub(super) waits: bool,
}

/// The pure decider of a unit, and the settings it was made with.
pub(super) struct Decider {
    pool: Pool,
    settings: Arc<Settings>,
}

/// Reads `wake@NONCE` or `sleep@NONCE`.
pub(super) fn command(text: &str) -> Option<Command> {
    match text.split_once('@') {
        Some(("wake", _)) => Some(Command::Wake),
        Some(("sleep", _)) => Some(Command::Sleep),
        _ => None,
    }
}

impl Unit {
    /// Asks the core. `company` is told whether the pool is wanted by itself, and says what others mean for it.
    /// `None`: nobody uses the pool any more.
    pub(super) fn step(
        &mut self,
        clock: &Clock,
        situation: Situation,
        company: impl FnOnce(Time, bool) -> Company,
    ) -> Option<Outcome> {
        let now = Time::from_epoch(clock.at(situation.now));
        self.prepare(now)?;
        let facts = self.facts(&situation);
        let pool = &mut self.decider.as_mut()?.pool;
        pool.observe(now, &sample(&situation));
        let draft = pool.draft(now, &facts);
        let company = company(now, draft.is_wanted());
        let step = pool.conclude(now, &facts, draft, &company);
        self.conflict = pool.conflict(now).map(|(times, manager, stopped)| {
            let end = if stopped {
                "; we have stopped writing until it is calm"
            } else {
                ""
            };
            let times = if times == 1 {
                "once".to_owned()
            } else {
                format!("{times} times")
            };
            format!("{manager} has changed the replicas {times} in 10 min{end}")
        });
        self.rests = match &step.reason.cause {
            Cause::MayNotSleep { why } => situation.complete && self.kept_in_place() == Some(why),
            _ => false,
        };
        let next = step
            .next
            .as_ref()
            .map(|plan| sentence(plan, clock, situation.now))
            .unwrap_or_default();
        let stays = (step.replicas.is_none() && (tells(&step.reason) || self.why.is_empty()))
            .then(|| step.reason.to_string());
        let changed = next != self.next || stays != self.stays;
        (self.next, self.stays) = (next, stays);
        Some(Outcome {
            replicas: step.replicas.unwrap_or(facts.replicas),
            label: step.reason.label(),
            why: step.reason.to_string(),
            wake_at: step.wake_at.map(|at| clock.instant(at.since_epoch())),
            changed,
            waits: matches!(step.reason.cause, Cause::Waits { .. }),
        })
    }

    /// Makes the decider, or tells it of new settings.
    fn prepare(&mut self, now: Time) -> Option<()> {
        let settings = Arc::clone(self.settings()?);
        match &mut self.decider {
            Some(decider) if decider.settings == settings => {}
            Some(decider) => {
                // Settings that contradict each other leave the last good ones in force; capture shows the condition.
                if let Ok(policy) = Policy::new(knobs(&settings)) {
                    decider.pool.update_policy(policy, now);
                }
                decider.settings = settings;
            }
            None => {
                let policy = Policy::new(knobs(&settings)).unwrap_or_else(|error| {
                    tracing::warn!(pool = %self.key, %error, "settings contradict each other: defaults are used");
                    Policy::default()
                });
                let mut pool = Pool::new(policy, now);
                if self.fresh {
                    pool.begin_at_initial_scale();
                }
                if self.routes.keys().all(RouteKey::is_worker) {
                    pool.begin_unused();
                }
                self.decider = Some(Decider { pool, settings });
            }
        }
        Some(())
    }

    fn facts(&self, situation: &Situation) -> Facts {
        let scaled_by = self.scaled_by().map(str::to_owned);
        Facts {
            replicas: self.replicas.unwrap_or(0),
            ready: situation.ready,
            starting: self.starting(situation.now).collect(),
            started: situation.started.clone(),
            may_sleep: self.kept_awake().map_or(Ok(()), |why| Err(why.to_owned())),
            at_least: self.at_least().map(|(replicas, why)| (replicas, why.to_owned())),
            // Whoever scales beyond the first pod is no foreign writer.
            foreign: situation.foreign.clone().filter(|_| scaled_by.is_none()),
            scaled_by,
            command: situation.command,
            reachable: !self.is_idle(),
        }
    }

    /// The numbers behind the last decision.
    pub(super) fn numbers(&self) -> Value {
        let numbers = self.decider.iter().flat_map(|decider| decider.pool.numbers());
        numbers
            .map(|(name, number)| (name.to_owned(), Value::from(number)))
            .collect()
    }
}

fn sample(situation: &Situation) -> Sample {
    let traffic = situation.traffic;
    Sample {
        arrivals: traffic.arrivals,
        completions: traffic.completions,
        in_flight_seconds: traffic.in_flight_seconds,
        held_seconds: traffic.held_seconds,
        service_seconds: traffic.service_seconds,
        in_flight: traffic.in_flight,
        held: traffic.held,
        idle: traffic
            .last_request
            .map(|at| situation.now.saturating_duration_since(at)),
        stale: !situation.complete,
    }
}

/// Whether a decision to leave things as they are says more than the last change did.
fn tells(reason: &Reason) -> bool {
    match &reason.cause {
        Cause::MayNotSleep { .. }
        | Cause::Busy { .. }
        | Cause::Conflict { .. }
        | Cause::NeverReady { .. }
        | Cause::Maximum { .. }
        | Cause::Together { .. }
        | Cause::Waits { .. }
        | Cause::AtLeast { .. } => true,
        Cause::After { cause, .. } => matches!(cause.as_ref(), Cause::AtLeast { .. }),
        Cause::FirstRequest { .. }
        | Cause::Load { .. }
        | Cause::Queue { .. }
        | Cause::Less { .. }
        | Cause::Window { .. }
        | Cause::Idle { .. }
        | Cause::Minimum { .. }
        | Cause::Initial { .. }
        | Cause::Wake
        | Cause::Sleep
        | Cause::Stale
        | Cause::JustWoken { .. }
        | Cause::ScaledBy { .. }
        | Cause::ForeignWake { .. }
        | Cause::Unneeded
        | Cause::Steady
        | Cause::NoData => false,
    }
}

/// A plan with a time of day in place of a duration: a status is read later than it was written.
fn sentence(plan: &Plan, clock: &Clock, now: Instant) -> String {
    let at = clock.timestamp(now + plan.after()).0.strftime("%H:%M:%S UTC");
    match plan {
        Plan::Sleep { .. } => format!("asleep at {at} unless a request arrives"),
        Plan::Shrink { to, .. } => format!("down to {to} at {at} unless load returns"),
        Plan::Calm { .. } => format!("replicas are ours again at {at} if nobody writes them before"),
    }
}

fn knobs(settings: &Settings) -> core::policy::Knobs {
    core::policy::Knobs {
        algorithm: match settings.policy {
            PolicyKind::Adaptive => core::policy::Algorithm::Adaptive,
            PolicyKind::Kpa => core::policy::Algorithm::Kpa,
        },
        metric: match settings.metric {
            Metric::Concurrency => core::policy::Metric::Concurrency,
            Metric::Rps => core::policy::Metric::RequestsPerSecond,
        },
        target: settings.target,
        target_utilization_percentage: settings.target_utilization_percentage,
        target_burst_capacity: settings.target_burst_capacity,
        container_concurrency: settings.container_concurrency,
        min_scale: settings.min_scale,
        max_scale: settings.max_scale,
        initial_scale: settings.initial_scale,
        activation_scale: settings.activation_scale,
        window: settings.window,
        panic_window_percentage: settings.panic_window_percentage,
        panic_threshold_percentage: settings.panic_threshold_percentage,
        max_scale_up_rate: settings.max_scale_up_rate,
        max_scale_down_rate: settings.max_scale_down_rate,
        aggregation: match settings.aggregation {
            Aggregation::Linear => core::policy::Aggregation::Linear,
            Aggregation::WeightedExponential => core::policy::Aggregation::WeightedExponential,
        },
        scale_down_delay: settings.scale_down_delay,
        retention: settings.retention,
        keep_alive: match settings.keep_alive {
            KeepAlive::Adaptive => None,
            KeepAlive::Fixed(time) => Some(time),
        },
        burst: settings.burst,
        ..core::policy::Knobs::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_settings_are_the_cores_default_knobs() {
        assert_eq!(knobs(&Settings::default()), core::policy::Knobs::default());
    }

    #[test]
    fn commands_are_a_word_and_a_nonce() {
        for (text, want) in [
            ("wake@1", Some(Command::Wake)),
            ("sleep@abc", Some(Command::Sleep)),
            ("wake", None),
            ("dance@1", None),
            ("", None),
        ] {
            assert_eq!(command(text), want, "{text}");
        }
    }
}
