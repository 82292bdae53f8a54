//! StatefulSet, the part a stateless service needs: ordered names, ordered or parallel starts, rolling updates from
//! the highest ordinal down to the partition. Volumes are ignored: processes use the machine's own disk.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;

use super::{Start, pods_of};
use crate::cluster::{Cluster, controller_of, is_conflict, is_finished, until_available};
use crate::informer::Key;
use crate::queue::{self, Queue};

const REVISION_LABEL: &str = "controller-revision-hash";
const POD_NAME_LABEL: &str = "statefulset.kubernetes.io/pod-name";
const INDEX_LABEL: &str = "apps.kubernetes.io/pod-index";
const SOURCE: &str = "statefulset-controller";

/// Adds listeners.
pub(super) fn prepare(cluster: &Arc<Cluster>) -> Start {
    let queue = Queue::new();
    super::replicaset::listen(&queue, &cluster.stateful_sets);
    let for_pods = Arc::clone(&queue);
    cluster.pods.listen(move |old, new| {
        for pod in [old, new].into_iter().flatten() {
            if let Some(owner) = controller_of(&pod.metadata).filter(|owner| owner.kind == "StatefulSet") {
                for_pods.add(Key::new(
                    pod.metadata.namespace.clone().unwrap_or_default(),
                    &owner.name,
                ));
            }
        }
    });
    let cluster = Arc::clone(cluster);
    Box::new(move |tasks, shutdown| {
        tasks.spawn(queue::work(
            "statefulset",
            queue,
            1,
            shutdown.clone(),
            move |key| {
                let cluster = Arc::clone(&cluster);
                async move { reconcile(&cluster, &key).await }
            },
        ));
    })
}

async fn reconcile(cluster: &Cluster, key: &Key) -> Result<Option<Duration>, kube::Error> {
    let Some(set) = cluster.stateful_sets.get(key) else {
        return Ok(None);
    };
    let Some(spec) = &set.spec else { return Ok(None) };
    let revision = revision(&set, spec);
    let pods = pods_of::claim(cluster, &*set, &spec.selector).await?;
    let by_ordinal: BTreeMap<i32, Arc<Pod>> = pods
        .into_iter()
        .filter_map(|pod| Some((ordinal(&set, &pod)?, pod)))
        .collect();
    if set.metadata.deletion_timestamp.is_none() {
        step(cluster, &set, spec, &revision, &by_ordinal).await?;
    }
    write_status(cluster, &set, spec, &revision).await
}

/// A name for the template; pods carry it in a label, so an update is seen by comparing.
fn revision(set: &StatefulSet, spec: &StatefulSetSpec) -> String {
    let text = serde_json::to_string(&spec.template).unwrap_or_default();
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!(
        "{}-{:010x}",
        set.metadata.name.as_deref().unwrap_or_default(),
        hash & 0xff_ffff_ffff
    )
}

fn ordinal(set: &StatefulSet, pod: &Pod) -> Option<i32> {
    let name = pod.metadata.name.as_deref()?;
    name.strip_prefix(set.metadata.name.as_deref()?)?
        .strip_prefix('-')?
        .parse()
        .ok()
}

/// The ordinals that should have a pod.
fn ordinals(spec: &StatefulSetSpec) -> std::ops::Range<i32> {
    let start = spec.ordinals.as_ref().and_then(|it| it.start).unwrap_or(0);
    start..start + spec.replicas.unwrap_or(1).max(0)
}

fn is_available(pod: &Pod, spec: &StatefulSetSpec) -> bool {
    pod.metadata.deletion_timestamp.is_none()
        && until_available(pod, spec.min_ready_seconds.unwrap_or(0)).is_some_and(|wait| wait.is_zero())
}

/// Makes the next change that the order allows.
async fn step(
    cluster: &Cluster,
    set: &StatefulSet,
    spec: &StatefulSetSpec,
    revision: &str,
    pods: &BTreeMap<i32, Arc<Pod>>,
) -> Result<(), kube::Error> {
    let parallel = spec.pod_management_policy.as_deref() == Some("Parallel");
    let wanted = ordinals(spec);
    for at in wanted.clone() {
        match pods.get(&at) {
            None => make(cluster, set, spec, revision, at).await?,
            // A pod that has ended for good is replaced under its own name.
            Some(pod) if is_finished(pod) && pod.metadata.deletion_timestamp.is_none() => {
                pods_of::delete(cluster, pod).await?;
            }
            Some(pod) if is_available(pod, spec) => continue,
            Some(_) => {}
        }
        if !parallel {
            return Ok(());
        }
    }
    for (_, pod) in pods.iter().rev().filter(|(at, _)| !wanted.contains(at)) {
        if pod.metadata.deletion_timestamp.is_none() {
            pods_of::delete(cluster, pod).await?;
        }
        if !parallel {
            return Ok(());
        }
    }
    update(cluster, spec, revision, pods).await
}

/// Replaces the highest pod of another template, one at a time.
async fn update(
    cluster: &Cluster,
    spec: &StatefulSetSpec,
    revision: &str,
    pods: &BTreeMap<i32, Arc<Pod>>,
) -> Result<(), kube::Error> {
    let strategy = spec.update_strategy.as_ref();
    if strategy.and_then(|it| it.type_.as_deref()) == Some("OnDelete") {
        return Ok(());
    }
    let partition = strategy
        .and_then(|it| it.rolling_update.as_ref())
        .and_then(|it| it.partition)
        .unwrap_or(0);
    for (_, pod) in pods.iter().rev().filter(|(at, _)| **at >= partition) {
        if pod.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        if revision_of(pod) != Some(revision) {
            return pods_of::delete(cluster, pod).await;
        }
        if !is_available(pod, spec) {
            return Ok(());
        }
    }
    Ok(())
}

fn revision_of(pod: &Pod) -> Option<&str> {
    pod.metadata
        .labels
        .as_ref()?
        .get(REVISION_LABEL)
        .map(String::as_str)
}

async fn make(
    cluster: &Cluster,
    set: &StatefulSet,
    spec: &StatefulSetSpec,
    revision: &str,
    at: i32,
) -> Result<(), kube::Error> {
    let namespace = set.metadata.namespace.clone().unwrap_or_default();
    let name = format!("{}-{at}", set.metadata.name.as_deref().unwrap_or_default());
    let mut pod = pods_of::from_template(set, &spec.template);
    pod.metadata.name = Some(name.clone());
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(REVISION_LABEL.to_owned(), revision.to_owned());
    labels.insert(POD_NAME_LABEL.to_owned(), name.clone());
    labels.insert(INDEX_LABEL.to_owned(), at.to_string());
    if let Some(pod_spec) = &mut pod.spec {
        pod_spec.hostname = Some(name.clone());
        pod_spec.subdomain = spec.service_name.clone().filter(|it| !it.is_empty());
    }
    match cluster
        .api::<Pod>(&namespace)
        .create(&PostParams::default(), &pod)
        .await
    {
        Ok(made) => {
            cluster.pods.observe(made);
            let message = format!("create Pod {name} in StatefulSet successful");
            cluster
                .event(set, false, "SuccessfulCreate", &message, SOURCE)
                .await;
            Ok(())
        }
        Err(error) => {
            if !is_conflict(&error) {
                let message = format!("create Pod {name} in StatefulSet failed error: {error}");
                cluster.event(set, true, "FailedCreate", &message, SOURCE).await;
            }
            Err(error)
        }
    }
}

async fn write_status(
    cluster: &Cluster,
    set: &StatefulSet,
    spec: &StatefulSetSpec,
    revision: &str,
) -> Result<Option<Duration>, kube::Error> {
    let namespace = set.metadata.namespace.clone().unwrap_or_default();
    let pods = cluster.pods.in_namespace(&namespace);
    let mine: Vec<&Pod> = pods
        .iter()
        .map(|pod| &**pod)
        .filter(|pod| {
            crate::cluster::is_controlled_by(&pod.metadata, set.metadata.uid.as_ref()) && !is_finished(pod)
        })
        .collect();
    let counts = pods_of::count(mine.iter().copied(), spec.min_ready_seconds.unwrap_or(0));
    let updated = mine
        .iter()
        .filter(|pod| revision_of(pod) == Some(revision))
        .count();
    let updated = i32::try_from(updated).unwrap_or(i32::MAX);
    let old = set.status.clone().unwrap_or_default();
    let mut new = old.clone();
    new.replicas = counts.all + counts.terminating;
    new.ready_replicas = Some(counts.ready);
    new.available_replicas = Some(counts.available);
    new.updated_replicas = Some(updated);
    new.observed_generation = set.metadata.generation;
    new.update_revision = Some(revision.to_owned());
    // The update is over when every pod has the new template; until then the old one is the present one.
    if updated == new.replicas && counts.ready == new.replicas || old.current_revision.is_none() {
        new.current_revision = Some(revision.to_owned());
    }
    let current = mine
        .iter()
        .filter(|pod| revision_of(pod) == new.current_revision.as_deref())
        .count();
    new.current_replicas = Some(i32::try_from(current).unwrap_or(i32::MAX));
    if new != old {
        let patch = json!({ "metadata": { "uid": set.metadata.uid }, "status": new });
        let api = cluster.api::<StatefulSet>(&namespace);
        let name = set.metadata.name.clone().unwrap_or_default();
        let patched = api
            .patch_status(&name, &PatchParams::default(), &Patch::Merge(patch))
            .await?;
        cluster.stateful_sets.observe(patched);
    }
    Ok(counts.next)
}
