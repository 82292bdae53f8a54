//! ReplicaSet: so many pods of one template.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;

use super::{Start, pods_of};
use crate::cluster::{Cluster, controller_of, is_finished, is_ready, now};
use crate::informer::{Informer, Key};
use crate::queue::{self, Queue};

/// Annotation that says which pods are cheaper to delete; higher costs stay longer.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// Most pods made or deleted in one look, as in Kubernetes; the next look follows at once.
const BURST: usize = 500;

/// ReplicaSets are independent, so several may be looked at together; more would only wait for the API.
const WORKERS: usize = 4;

/// Adds listeners.
pub(super) fn prepare(cluster: &Arc<Cluster>) -> Start {
    let queue = Queue::new();
    listen(&queue, &cluster.replica_sets);
    let (for_pods, sets) = (Arc::clone(&queue), Arc::clone(&cluster.replica_sets));
    cluster.pods.listen(move |old, new| {
        for pod in [old, new].into_iter().flatten() {
            match controller_of(&pod.metadata) {
                Some(owner) if owner.kind == "ReplicaSet" => {
                    for_pods.add(Key::new(
                        pod.metadata.namespace.clone().unwrap_or_default(),
                        &owner.name,
                    ));
                }
                Some(_) => {}
                // An orphan may be one of any ReplicaSet of its namespace.
                None => {
                    for set in sets.in_namespace(pod.metadata.namespace.as_deref().unwrap_or_default()) {
                        let selector = set.spec.as_ref().map(|spec| &spec.selector);
                        if selector
                            .is_some_and(|it| crate::cluster::selects(it, pod.metadata.labels.as_ref()))
                        {
                            for_pods.add(Key::of(&*set));
                        }
                    }
                }
            }
        }
    });
    let cluster = Arc::clone(cluster);
    Box::new(move |tasks, shutdown| {
        tasks.spawn(queue::work(
            "replicaset",
            queue,
            WORKERS,
            shutdown.clone(),
            move |key| {
                let cluster = Arc::clone(&cluster);
                async move { reconcile(&cluster, &key).await }
            },
        ));
    })
}

/// Has each changed object looked at.
pub(super) fn listen<K>(queue: &Arc<Queue>, informer: &Informer<K>)
where
    K: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + Sync + 'static,
{
    let queue = Arc::clone(queue);
    informer.listen(move |_, new| {
        if let Some(new) = new {
            queue.add(Key::of(new));
        }
    });
}

async fn reconcile(cluster: &Cluster, key: &Key) -> Result<Option<Duration>, kube::Error> {
    let Some(set) = cluster.replica_sets.get(key) else {
        return Ok(None);
    };
    let Some(spec) = &set.spec else { return Ok(None) };
    let pods = pods_of::claim(cluster, &*set, &spec.selector).await?;
    let active: Vec<&Arc<Pod>> = pods
        .iter()
        .filter(|pod| pod.metadata.deletion_timestamp.is_none() && !is_finished(pod))
        .collect();
    let mut failure = None;
    if set.metadata.deletion_timestamp.is_none() {
        failure = scale(cluster, &set, &active).await;
    }
    let failed = failure.is_some();
    let next = write_status(cluster, key, failure).await?;
    // A refused pod is tried again, less and less often: an error does that.
    if failed {
        return Err(kube::Error::Api(Box::new(kube::core::Status::failure(
            "pods were refused",
            "FailedCreate",
        ))));
    }
    Ok(next)
}

/// Makes or deletes pods; the message of what was refused.
async fn scale(cluster: &Cluster, set: &ReplicaSet, active: &[&Arc<Pod>]) -> Option<(&'static str, String)> {
    let wanted = usize::try_from(set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)).unwrap_or(0);
    if active.len() < wanted {
        let missing = (wanted - active.len()).min(BURST);
        return create(cluster, set, missing)
            .await
            .map(|message| ("FailedCreate", message));
    }
    let surplus = (active.len() - wanted).min(BURST);
    let mut ranked: Vec<&Pod> = active.iter().map(|pod| &***pod).collect();
    ranked.sort_by_key(|pod| deletion_rank(pod));
    let results = join_all(
        ranked
            .into_iter()
            .take(surplus)
            .map(|pod| pods_of::delete(cluster, pod)),
    )
    .await;
    let error = results.into_iter().find_map(Result::err)?;
    Some(("FailedDelete", error.to_string()))
}

/// Makes pods: one, then twice as many each time, so that a template the API refuses costs one request, not hundreds.
async fn create(cluster: &Cluster, set: &ReplicaSet, mut missing: usize) -> Option<String> {
    let namespace = set.metadata.namespace.clone().unwrap_or_default();
    let pods = cluster.api::<Pod>(&namespace);
    let Some(template) = set.spec.as_ref().and_then(|spec| spec.template.as_ref()) else {
        return Some("the ReplicaSet has no template".to_owned());
    };
    let mut pod = pods_of::from_template(set, template);
    pod.metadata.generate_name = Some(format!("{}-", set.metadata.name.clone().unwrap_or_default()));
    let mut batch = 1;
    while missing > 0 {
        let size = batch.min(missing);
        let params = PostParams::default();
        let results = join_all((0..size).map(|_| pods.create(&params, &pod))).await;
        let mut refused = None;
        for result in results {
            match result {
                Ok(pod) => {
                    let message = format!(
                        "Created pod: {}",
                        pod.metadata.name.as_deref().unwrap_or_default()
                    );
                    cluster.pods.observe(pod);
                    cluster
                        .event(set, false, "SuccessfulCreate", &message, "replicaset-controller")
                        .await;
                }
                Err(error) => refused = Some(error.to_string()),
            }
        }
        if let Some(message) = refused {
            let said = format!("Error creating: {message}");
            cluster
                .event(set, true, "FailedCreate", &said, "replicaset-controller")
                .await;
            return Some(message);
        }
        missing -= size;
        batch *= 2;
    }
    None
}

/// Which pods go first, as in Kubernetes: not running, not ready, cheap, young.
fn deletion_rank(
    pod: &Pod,
) -> (
    bool,
    u8,
    bool,
    i64,
    std::cmp::Reverse<jiff::Timestamp>,
    std::cmp::Reverse<jiff::Timestamp>,
) {
    let phase = match pod.status.as_ref().and_then(|status| status.phase.as_deref()) {
        Some("Running") => 2,
        Some("Unknown") => 1,
        _ => 0,
    };
    let cost = pod
        .metadata
        .annotations
        .iter()
        .flatten()
        .find(|(key, _)| *key == DELETION_COST);
    let cost = cost.and_then(|(_, value)| value.parse().ok()).unwrap_or(0);
    let ready_since = pod
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten())
        .find(|condition| condition.type_ == "Ready")
        .and_then(|condition| condition.last_transition_time.as_ref())
        .map_or(jiff::Timestamp::MAX, |time| time.0);
    let created = pod
        .metadata
        .creation_timestamp
        .as_ref()
        .map_or(jiff::Timestamp::MAX, |time| time.0);
    let assigned = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
    (
        assigned,
        phase,
        is_ready(pod),
        cost,
        std::cmp::Reverse(ready_since),
        std::cmp::Reverse(created),
    )
}

/// Writes the status when it changed; when to look again.
async fn write_status(
    cluster: &Cluster,
    key: &Key,
    failure: Option<(&'static str, String)>,
) -> Result<Option<Duration>, kube::Error> {
    let Some(set) = cluster.replica_sets.get(key) else {
        return Ok(None);
    };
    let Some(spec) = &set.spec else { return Ok(None) };
    let pods = cluster.pods.in_namespace(&key.namespace);
    let mine: Vec<&Pod> = pods
        .iter()
        .map(|pod| &**pod)
        .filter(|pod| {
            crate::cluster::is_controlled_by(&pod.metadata, set.metadata.uid.as_ref()) && !is_finished(pod)
        })
        .collect();
    let counts = pods_of::count(mine.iter().copied(), spec.min_ready_seconds.unwrap_or(0));
    let template_labels = spec
        .template
        .as_ref()
        .and_then(|it| it.metadata.as_ref())
        .and_then(|it| it.labels.clone());
    let labelled = mine.iter().filter(|pod| {
        pod.metadata.deletion_timestamp.is_none()
            && template_labels.iter().flatten().all(|(key, value)| {
                pod.metadata.labels.as_ref().and_then(|labels| labels.get(key)) == Some(value)
            })
    });
    let old = set.status.clone().unwrap_or_default();
    let mut new = old.clone();
    new.replicas = counts.all;
    new.fully_labeled_replicas = Some(i32::try_from(labelled.count()).unwrap_or(i32::MAX));
    new.ready_replicas = Some(counts.ready);
    new.available_replicas = Some(counts.available);
    new.terminating_replicas = Some(counts.terminating);
    new.observed_generation = set.metadata.generation;
    new.conditions = failure_condition(old.conditions.clone(), failure);
    if new != old {
        // A number that is 0 is left out by typed writers and readers alike; null would not be.
        let patch = json!({ "metadata": { "uid": set.metadata.uid }, "status": new });
        let api = cluster.api::<ReplicaSet>(&key.namespace);
        let patched = api
            .patch_status(&key.name, &PatchParams::default(), &Patch::Merge(patch))
            .await?;
        cluster.replica_sets.observe(patched);
    }
    Ok(counts.next)
}

/// Sets or removes the condition `ReplicaFailure`.
fn failure_condition(
    conditions: Option<Vec<ReplicaSetCondition>>,
    failure: Option<(&'static str, String)>,
) -> Option<Vec<ReplicaSetCondition>> {
    let had = conditions.is_some();
    let mut conditions = conditions.unwrap_or_default();
    match failure {
        None => conditions.retain(|it| it.type_ != "ReplicaFailure"),
        Some((reason, message)) => {
            if !conditions
                .iter()
                .any(|it| it.type_ == "ReplicaFailure" && it.message.as_ref() == Some(&message))
            {
                conditions.retain(|it| it.type_ != "ReplicaFailure");
                conditions.push(ReplicaSetCondition {
                    type_: "ReplicaFailure".to_owned(),
                    status: "True".to_owned(),
                    reason: Some(reason.to_owned()),
                    message: Some(message),
                    last_transition_time: Some(now()),
                });
            }
        }
    }
    // An empty list, not an absent one: in a merge patch only the former takes the condition away.
    (had || !conditions.is_empty()).then_some(conditions)
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{PodCondition, PodSpec, PodStatus};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use kube::core::ObjectMeta;

    fn pod(name: &str, phase: &str, ready: bool, cost: Option<&str>, created: i64) -> Pod {
        Pod {
            metadata: ObjectMeta {
                name: Some(name.into()),
                annotations: cost.map(|cost| [(DELETION_COST.to_owned(), cost.to_owned())].into()),
                creation_timestamp: jiff::Timestamp::from_second(created).ok().map(Time),
                ..Default::default()
            },
            spec: Some(PodSpec {
                node_name: Some("local".into()),
                ..Default::default()
            }),
            status: Some(PodStatus {
                phase: Some(phase.into()),
                conditions: Some(vec![PodCondition {
                    type_: "Ready".into(),
                    status: if ready { "True" } else { "False" }.into(),
                    ..Default::default()
                }]),
                ..Default::default()
            }),
        }
    }

    #[test]
    fn pods_go_in_the_order_of_kubernetes() {
        let mut pods = [
            pod("old ready", "Running", true, None, 1),
            pod("young ready", "Running", true, None, 9),
            pod("dear", "Running", true, Some("10"), 9),
            pod("cheap", "Running", true, Some("-5"), 1),
            pod("unready", "Running", false, Some("99"), 1),
            pod("pending", "Pending", false, Some("99"), 1),
        ];
        pods.sort_by_key(deletion_rank);
        let names: Vec<&str> = pods
            .iter()
            .filter_map(|pod| pod.metadata.name.as_deref())
            .collect();
        assert_eq!(
            names,
            ["pending", "unready", "cheap", "young ready", "old ready", "dear"]
        );
    }
}
