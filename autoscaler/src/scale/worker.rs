//! Workers: workloads without a Service that are opted in by their own annotations. No request can wake them; they have
//! pods while a member of their group, or what depends on them, is awake.
//!
//! A worker has an [`Entry`] and no Route. Its original replicas are noted on it before it may sleep, as those of captured
//! workloads are; when its entry goes, it is an orphan like any other, and gets them back. So nothing of it lives anywhere
//! but on the workload itself.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use crds::Settings;
use crds::condition::reason;
use crds::names::GROUP;
use crds::report::PoolKey;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::orphan::Orphans;
use super::{Scaler, carry};
use crate::cluster::Notice;
use crate::lease::Leadership;
use crate::state::{Entry, RouteKey};
use crate::watch::slim::WorkloadFacts;

/// How often the index is asked. It answers from memory.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What is remembered from look to look.
#[derive(Default)]
struct Workers {
    /// Those that have an entry.
    known: BTreeSet<RouteKey>,
    /// Why one has none, as it was told.
    refused: HashMap<RouteKey, String>,
}

/// Looks at workers and orphans while this process leads, until `stop`.
pub(super) async fn run(scaler: Arc<Scaler>, leading: watch::Receiver<Leadership>, stop: CancellationToken) {
    let mut synced = scaler.index.synced();
    tokio::select! {
        () = stop.cancelled() => return,
        waited = synced.wait_for(|synced| *synced) => if waited.is_err() { return },
    }
    let (mut workers, mut orphans) = (Workers::default(), Orphans::default());
    loop {
        if leading.borrow().leader {
            workers.look(&scaler).await;
            orphans.look(&scaler).await;
            scaler.tell_troubles();
        } else {
            workers.forget(&scaler);
            orphans = Orphans::default();
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

impl Workers {
    /// Another process leads: its entries count.
    fn forget(&mut self, scaler: &Scaler) {
        for key in std::mem::take(&mut self.known) {
            scaler.registry.set(&key, None);
        }
        self.refused.clear();
    }

    async fn look(&mut self, scaler: &Scaler) {
        let releasing = *scaler.release_all.borrow();
        let (mut seen, mut there) = (BTreeSet::new(), BTreeSet::new());
        for facts in scaler.index.workers() {
            let key = RouteKey::worker(&facts.namespace, &facts.workload);
            seen.insert(key.clone());
            let settings = if releasing {
                None
            } else {
                self.settings(scaler, &key, &facts)
            };
            let Some(settings) = settings else { continue };
            there.insert(key.clone());
            if facts.original_replicas.is_none() {
                let (namespace, workload) = (&facts.namespace, &facts.workload);
                let noted = scaler
                    .cluster
                    .note_original(namespace, workload, Some(facts.replicas));
                if let Err(error) = noted.await {
                    tracing::warn!(worker = %key, %error, "noting its replicas");
                }
            }
            scaler.registry.set(&key, Some(entry(scaler, &facts, settings)));
        }
        for key in self.known.difference(&there) {
            scaler.registry.set(key, None);
        }
        self.known = there;
        self.refused.retain(|key, _| seen.contains(key));
    }

    /// What is configured; `None`: it stays as it is, or gets back what it had.
    fn settings(&mut self, scaler: &Scaler, key: &RouteKey, facts: &WorkloadFacts) -> Option<Arc<Settings>> {
        let namespace = scaler.index.namespace(&facts.namespace);
        let parsed = crds::annotation::parse(&namespace, &facts.annotations);
        let opted = format!("{GROUP}/scale-to-zero");
        let own = parsed.written.iter().any(|written| written.key == opted);
        let invalid = parsed.invalid.first().map(|invalid| format!("{invalid}."));
        if own && !parsed.settings.enabled && invalid.is_none() {
            self.refused.remove(key);
            return None;
        }
        let wrong = invalid.or_else(|| refusal(scaler, facts));
        let Some(wrong) = wrong else {
            self.refused.remove(key);
            // Nothing tells how many pods it needs but what it had.
            let had = facts.original_replicas.unwrap_or(facts.replicas).max(1);
            let settings = Settings {
                activation_scale: parsed.settings.activation_scale.or(Some(had)),
                ..parsed.settings
            };
            return own.then(|| Arc::new(settings));
        };
        if self.refused.get(key) != Some(&wrong) {
            self.refused.insert(key.clone(), wrong.clone());
            tracing::warn!(worker = %key, "{wrong}");
            scaler.cluster.event(Notice {
                subject: carry::subject(facts),
                warning: true,
                reason: reason::WORKER_REFUSED,
                action: "Group",
                note: wrong,
            });
        }
        // An invalid value never changes what runs.
        let last = scaler.registry.get(key).filter(|_| !parsed.invalid.is_empty())?;
        Some(Arc::clone(&last.settings))
    }
}

/// Why a worker cannot sleep.
fn refusal(scaler: &Scaler, facts: &WorkloadFacts) -> Option<String> {
    let workload = &facts.workload;
    if let Some(service) = scaler.index.bystanders_of(facts).into_iter().next() {
        let name = service.name;
        return Some(format!(
            "{workload} is behind the Service {name}: put dormouse.dev/scale-to-zero on the Service, so that a request wakes it."
        ));
    }
    let hpas = scaler.index.hpas_of(&facts.namespace, workload);
    let object = hpas.iter().find_map(|hpa| hpa.scaled_object.as_ref())?;
    Some(format!(
        "{workload} is scaled by the KEDA ScaledObject {object}, which goes to zero by itself; delete the ScaledObject or the annotation."
    ))
}

fn entry(scaler: &Scaler, facts: &WorkloadFacts, settings: Arc<Settings>) -> Entry {
    let namespace = &facts.namespace;
    // A Service that has not been looked at yet may be what it has to be awake for.
    let unseen = scaler
        .index
        .relevant()
        .into_iter()
        .find(|service| service.namespace == *namespace && scaler.registry.get(service).is_none());
    let may_sleep = match (facts.original_replicas, unseen) {
        (None, _) => Err("its replicas are not noted yet".to_owned()),
        (_, Some(service)) => Err(format!("Service {} has not been looked at yet", service.name)),
        _ => Ok(()),
    };
    let pool = PoolKey {
        namespace: namespace.clone(),
        pool: facts.workload.name.clone(),
    };
    let hpas = scaler.index.hpas_of(namespace, &facts.workload);
    Entry {
        settings,
        pools: vec![(pool, facts.workload.clone())],
        may_sleep,
        at_least: None,
        holds: None,
        needs: BTreeMap::new(),
        stays: None,
        idle: BTreeSet::new(),
        scaled_by: hpas.first().map(|hpa| format!("hpa/{}", hpa.name)),
        phase: None,
        listening: Vec::new(),
        generation: None,
        why: None,
        conditions: Vec::new(),
    }
}
