//! What ReplicaSets and StatefulSets share: the pods of an owner.

use std::fmt::Debug;
use std::sync::Arc;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::Resource;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::core::ObjectMeta;
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::cluster::{
    Cluster, controller_of, is_controlled_by, is_finished, is_not_found, owned_by, selects,
};

/// The pods that `owner` manages and that have not ended for good. Those that match and have no owner are taken over.
pub(super) async fn claim<K>(
    cluster: &Cluster,
    owner: &K,
    selector: &LabelSelector,
) -> Result<Vec<Arc<Pod>>, kube::Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
{
    let namespace = owner.meta().namespace.clone().unwrap_or_default();
    let mut claimed = Vec::new();
    for pod in cluster.pods.in_namespace(&namespace) {
        let matches = selects(selector, pod.metadata.labels.as_ref());
        if is_controlled_by(&pod.metadata, owner.meta().uid.as_ref()) {
            if matches {
                claimed.push(pod);
            } else {
                release(cluster, owner, &pod).await?;
            }
        } else if matches
            && controller_of(&pod.metadata).is_none()
            && pod.metadata.deletion_timestamp.is_none()
            && owner.meta().deletion_timestamp.is_none()
            && !is_finished(&pod)
            && may_adopt(cluster, owner).await?
        {
            adopt(cluster, owner, &pod).await?;
        }
    }
    Ok(claimed)
}

/// Whether an owner is still the one that was seen, and not about to go. Asked of the API, as Kubernetes does it: what an owner
/// deleted with `--cascade=orphan` has just let go would be taken back by a look at how things were.
pub(super) async fn may_adopt<K>(cluster: &Cluster, owner: &K) -> Result<bool, kube::Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
{
    let meta = owner.meta();
    let api = cluster.api::<K>(meta.namespace.as_deref().unwrap_or_default());
    let now = api.get_opt(meta.name.as_deref().unwrap_or_default()).await?;
    Ok(now.is_some_and(|now| now.meta().uid == meta.uid && now.meta().deletion_timestamp.is_none()))
}

/// Adds `owner` to a pod that matches its selector. The pod counts from its next change on.
async fn adopt<K: Resource<DynamicType = ()>>(
    cluster: &Cluster,
    owner: &K,
    pod: &Pod,
) -> Result<(), kube::Error> {
    let mut owners = pod.metadata.owner_references.clone().unwrap_or_default();
    owners.push(owned_by(owner));
    write_owners(cluster, pod, json!(owners)).await
}

/// Lets go of a pod whose labels no longer match.
async fn release<K: Resource<DynamicType = ()>>(
    cluster: &Cluster,
    owner: &K,
    pod: &Pod,
) -> Result<(), kube::Error> {
    let mut owners = pod.metadata.owner_references.clone().unwrap_or_default();
    owners.retain(|it| Some(&it.uid) != owner.meta().uid.as_ref());
    write_owners(cluster, pod, json!(owners)).await
}

async fn write_owners(cluster: &Cluster, pod: &Pod, owners: serde_json::Value) -> Result<(), kube::Error> {
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let name = pod.metadata.name.clone().unwrap_or_default();
    let patch = json!({ "metadata": { "uid": pod.metadata.uid, "ownerReferences": owners } });
    let pods = cluster.api::<Pod>(&namespace);
    match pods
        .patch(&name, &PatchParams::default(), &Patch::Merge(patch))
        .await
    {
        Ok(pod) => cluster.pods.observe(pod),
        Err(error) if is_not_found(&error) => {}
        Err(error) => return Err(error),
    }
    Ok(())
}

/// A pod from a template; the caller names it.
pub(super) fn from_template<K: Resource<DynamicType = ()>>(owner: &K, template: &PodTemplateSpec) -> Pod {
    let meta = template.metadata.clone().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            namespace: owner.meta().namespace.clone(),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![owned_by(owner)]),
            ..Default::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// Deletes exactly this pod.
pub(super) async fn delete(cluster: &Cluster, pod: &Pod) -> Result<(), kube::Error> {
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let name = pod.metadata.name.clone().unwrap_or_default();
    let same = Preconditions {
        uid: pod.metadata.uid.clone(),
        resource_version: None,
    };
    let params = DeleteParams {
        preconditions: Some(same),
        ..DeleteParams::background()
    };
    let pods = cluster.api::<Pod>(&namespace);
    match pods.delete(&name, &params).await {
        // A pod that ends gracefully is answered with its deletion time; the next look must see it.
        Ok(either) => {
            if let Some(pod) = either.left()
                && pod.metadata.deletion_timestamp.is_some()
            {
                cluster.pods.observe(pod);
            }
        }
        Err(error) if is_not_found(&error) => {}
        Err(error) => return Err(error),
    }
    Ok(())
}

/// The state of an owner's pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) all: i32,
    pub(super) ready: i32,
    pub(super) available: i32,
    pub(super) terminating: i32,
    /// When the next ready pod becomes available.
    pub(super) next: Option<std::time::Duration>,
}

/// Counts pods. Those being deleted count as `terminating` only.
pub(super) fn count<'a>(pods: impl Iterator<Item = &'a Pod>, min_ready_seconds: i32) -> Counts {
    let mut counts = Counts::default();
    for pod in pods {
        if pod.metadata.deletion_timestamp.is_some() {
            counts.terminating += 1;
            continue;
        }
        counts.all += 1;
        match crate::cluster::until_available(pod, min_ready_seconds) {
            None => {}
            Some(wait) if wait.is_zero() => {
                counts.ready += 1;
                counts.available += 1;
            }
            Some(wait) => {
                counts.ready += 1;
                counts.next = Some(counts.next.map_or(wait, |next| next.min(wait)));
            }
        }
    }
    counts
}
