//! Carrying a decision out: the write of `/scale`, the look at pods that do not become ready, and telling users.

use std::sync::Arc;
use std::time::Duration;

use crds::names::{ACTIVATOR_MANAGER, AUTOSCALER_MANAGER, SCALE_MANAGER};
use crds::report::PoolKey;
use crds::route::{Workload, WorkloadKind};
use dormouse_core::pool::Foreign;
use tokio::time::Instant;

use super::core::Outcome;
use super::unit::{Seen, Unit};
use super::{Scaler, health};
use crate::cluster::{Error, Notice, Subject};
use crate::watch::slim::WorkloadFacts;

/// A change of replicas that is being written.
struct Change {
    from: u32,
    to: u32,
    label: &'static str,
    why: String,
}

/// A workload as the subject of an Event.
pub(super) fn subject(facts: &WorkloadFacts) -> Subject {
    let kind = match facts.workload.kind {
        WorkloadKind::Deployment => "Deployment",
        WorkloadKind::StatefulSet => "StatefulSet",
    };
    Subject {
        kind,
        namespace: facts.namespace.clone(),
        name: facts.workload.name.clone(),
        uid: facts.uid.clone(),
    }
}

impl Scaler {
    /// Who, other than us, has changed the replicas.
    pub(super) fn foreign(&self, workload: &WorkloadFacts, seen: Seen) -> Option<Foreign> {
        let Seen::Foreign { from } = seen else {
            return None;
        };
        let ours =
            |name: &&String| [SCALE_MANAGER, ACTIVATOR_MANAGER, AUTOSCALER_MANAGER].contains(&name.as_str());
        let last = workload.replicas_managers.first()?;
        // An activator that raised 0→1 itself did our work for us.
        (!ours(&last)).then(|| Foreign {
            from,
            manager: last.clone(),
        })
    }

    pub(super) fn write(self: &Arc<Self>, unit: &mut Unit, outcome: &Outcome, oldest_held: Option<Instant>) {
        let (from, to) = (unit.replicas.unwrap_or(0), outcome.replicas);
        unit.write(to);
        // The sentence stands from the decision on: the cluster may show the new replicas before the write has answered.
        unit.why.clone_from(&outcome.why);
        let this = Arc::clone(self);
        let (key, workload) = (unit.key.clone(), unit.workload.clone());
        let change = Change {
            from,
            to,
            label: outcome.label,
            why: outcome.why.clone(),
        };
        let first_byte = oldest_held.filter(|_| from == 0);
        self.tasks.spawn(async move {
            let _permit = match Arc::clone(&this.writes).try_acquire_owned() {
                Ok(permit) => Some(permit),
                Err(_) => {
                    this.metrics.scale_queued.inc();
                    Arc::clone(&this.writes).acquire_owned().await.ok()
                }
            };
            let signal = first_byte.map(|at| at.elapsed());
            let result = this.cluster.scale(&key.namespace, &workload, to).await;
            this.wrote(&key, &workload, &change, signal, result);
        });
    }

    fn wrote(
        self: &Arc<Self>,
        key: &PoolKey,
        workload: &Workload,
        change: &Change,
        signal: Option<Duration>,
        result: Result<(), Error>,
    ) {
        let Change { from, to, label, why } = change;
        let mut state = self.state.lock();
        self.metrics.scale_write(match &result {
            Ok(()) => "ok",
            Err(Error::Timeout(_)) => "timed_out",
            Err(_) => "failed",
        });
        match &result {
            Ok(()) => {
                tracing::info!(pool = %key, %workload, from, to, reason = label, "scaled: {why}");
                self.metrics.decision(label);
                if let Some(signal) = signal {
                    self.metrics.first_byte_to_scale.observe(signal.as_secs_f64());
                }
            }
            Err(error) => tracing::warn!(pool = %key, %workload, from, to, %error, "not scaled"),
        }
        let Some(unit) = state.units.get_mut(key) else {
            return;
        };
        match result {
            Ok(()) => {
                unit.wrote(*to, Instant::now());
                if let Some(signal) = signal {
                    unit.signal_ms = Some((signal.as_secs_f64() * 1e6).round() / 1e3);
                }
                self.tell(
                    unit,
                    false,
                    if to > from { "ScaledUp" } else { "ScaledDown" },
                    "Scale",
                    why.clone(),
                );
            }
            Err(error) => {
                unit.not_written(Instant::now());
                if !matches!(error, Error::NotLeader(_)) {
                    let note = format!("{workload} could not be scaled to {to}: {error}");
                    unit.why.clone_from(&note);
                    self.tell(unit, true, "ScaleFailed", "Scale", note);
                }
            }
        }
        self.shown.mark(unit.routes.keys().cloned());
        self.decide(&mut state, key, None);
    }

    /// Has pods read when it is time to ask why none is ready.
    pub(super) fn look(self: &Arc<Self>, unit: &mut Unit, workload: &Arc<WorkloadFacts>, now: Instant) {
        if !unit.health.look(now) {
            return;
        }
        let this = Arc::clone(self);
        let (key, workload) = (unit.key.clone(), Arc::clone(workload));
        self.tasks.spawn(async move {
            let _permit = Arc::clone(&this.looks).acquire_owned().await.ok();
            let pods = this.cluster.pods(&key.namespace, &workload.match_labels).await;
            let found = match &pods {
                Ok(pods) => health::diagnose(&workload, pods),
                Err(error) => {
                    tracing::debug!(pool = %key, %error, "pods not read");
                    None
                }
            };
            let mut state = this.state.lock();
            let Some(unit) = state.units.get_mut(&key) else {
                return;
            };
            if let Some(news) = unit.health.looked(found, Instant::now()) {
                tracing::warn!(pool = %key, reason = news.reason, "no pod becomes ready: {}", news.message);
                this.tell(unit, true, news.reason, "Scale", news.message);
            }
            this.shown.mark(unit.routes.keys().cloned());
            this.decide(&mut state, &key, None);
        });
    }

    /// Tells the users of a pool something, on each of its Services.
    pub(super) fn tell(
        &self,
        unit: &Unit,
        warning: bool,
        reason: &'static str,
        action: &'static str,
        note: String,
    ) {
        for key in unit.routes.keys() {
            let subject = match self.index.service(key) {
                Some(service) => Subject {
                    kind: "Service",
                    namespace: key.namespace.clone(),
                    name: key.name.clone(),
                    uid: service.uid.clone(),
                },
                None if key.is_worker() => match self.index.workload(&key.namespace, &unit.workload) {
                    Some(facts) => subject(&facts),
                    None => continue,
                },
                None => continue,
            };
            self.cluster.event(Notice {
                subject,
                warning,
                reason,
                action,
                note: note.clone(),
            });
        }
    }
}
