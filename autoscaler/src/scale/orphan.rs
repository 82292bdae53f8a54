//! Workloads that carry our note of their original replicas but belong to no Service of ours any more: the Service was
//! deleted, or the annotation taken away, while nobody released them. They get their replicas back.

use std::collections::HashMap;
use std::time::Duration;

use crds::route::Workload;
use tokio::time::Instant;

use super::{Scaler, carry};
use crate::cluster::Notice;
use crate::state::RouteKey;
use crate::watch::slim::WorkloadFacts;

/// How long a workload must have been an orphan: watches of different kinds are not in step with each other.
const AFTER: Duration = Duration::from_secs(2);

/// Those seen, and since when.
#[derive(Default)]
pub(super) struct Orphans(HashMap<(String, Workload), Instant>);

impl Orphans {
    /// Looks for orphans, and gives back those that have been orphans for long enough.
    pub(super) async fn look(&mut self, scaler: &Scaler) {
        let now = Instant::now();
        let mut orphans = scaler.index.orphans();
        // A worker has no Service, and is nobody's orphan.
        orphans.retain(|facts| {
            let key = RouteKey::worker(&facts.namespace, &facts.workload);
            scaler.registry.get(&key).is_none()
        });
        let key = |facts: &WorkloadFacts| (facts.namespace.clone(), facts.workload.clone());
        self.0
            .retain(|known, _| orphans.iter().any(|facts| key(facts) == *known));
        for facts in orphans {
            let since = *self.0.entry(key(&facts)).or_insert(now);
            if now.duration_since(since) >= AFTER {
                restore(scaler, &facts).await;
            }
        }
    }
}

/// Gives a workload its replicas back. The note goes last, so that a crash in between loses nothing.
async fn restore(scaler: &Scaler, facts: &WorkloadFacts) {
    let Some(original) = facts.original_replicas else {
        return;
    };
    let (namespace, workload) = (&facts.namespace, &facts.workload);
    let result = async {
        // More than before is somebody's wish by now, and stays.
        if facts.replicas < original {
            scaler.cluster.scale(namespace, workload, original).await?;
            scaler.metrics.decision("orphan");
        }
        scaler.cluster.note_original(namespace, workload, None).await
    };
    match result.await {
        Ok(()) => {
            let note = format!(
                "no opted-in Service leads to it, and it is not opted in itself: back to {} replicas",
                original.max(facts.replicas)
            );
            tracing::info!(%namespace, %workload, original, "given back");
            scaler.cluster.event(Notice {
                subject: carry::subject(facts),
                warning: false,
                reason: "Released",
                action: "Release",
                note,
            });
        }
        Err(error) => tracing::warn!(%namespace, %workload, %error, "not given back yet"),
    }
}
