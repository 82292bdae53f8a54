//! Workloads that carry our note of their original replicas but belong to no Service of ours any more: the Service was
//! deleted, or the annotation taken away, while nobody released them. They get their replicas back.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crds::route::Workload;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Scaler;
use crate::cluster::{Notice, Subject};
use crate::lease::Leadership;
use crate::watch::slim::WorkloadFacts;

/// How often the index is asked. It answers from memory.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a workload must have been an orphan: watches of different kinds are not in step with each other.
const AFTER: Duration = Duration::from_secs(2);

/// Looks for orphans while this process leads, until `stop`.
pub(super) async fn run(scaler: Arc<Scaler>, leading: watch::Receiver<Leadership>, stop: CancellationToken) {
    let mut synced = scaler.index.synced();
    tokio::select! {
        () = stop.cancelled() => return,
        waited = synced.wait_for(|synced| *synced) => if waited.is_err() { return },
    }
    let mut seen: HashMap<(String, Workload), Instant> = HashMap::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        if !leading.borrow().leader {
            seen.clear();
            continue;
        }
        let now = Instant::now();
        let orphans = scaler.index.orphans();
        let key = |facts: &WorkloadFacts| (facts.namespace.clone(), facts.workload.clone());
        seen.retain(|known, _| orphans.iter().any(|facts| key(facts) == *known));
        for facts in orphans {
            let since = *seen.entry(key(&facts)).or_insert(now);
            if now.duration_since(since) >= AFTER {
                restore(&scaler, &facts).await;
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
                "its Service is gone or no longer opted in: back to {} replicas",
                original.max(facts.replicas)
            );
            tracing::info!(%namespace, %workload, original, "given back");
            let kind = match workload.kind {
                crds::route::WorkloadKind::Deployment => "Deployment",
                crds::route::WorkloadKind::StatefulSet => "StatefulSet",
            };
            let subject = Subject {
                kind,
                namespace: namespace.clone(),
                name: workload.name.clone(),
                uid: facts.uid.clone(),
            };
            scaler.cluster.event(Notice {
                subject,
                warning: false,
                reason: "Released",
                action: "Release",
                note,
            });
        }
        Err(error) => tracing::warn!(%namespace, %workload, %error, "not given back yet"),
    }
}
