//! What all controllers share: the client, one picture of each kind, Events.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Event, EventSource, Namespace, ObjectReference, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, OwnerReference, Time};
use kube::api::PostParams;
use kube::core::ObjectMeta;
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::informer::Informer;

/// The one node.
pub const NODE: &str = "local";

/// Annotation on a pod, written when it is bound: the port given to its process in `PORT`.
pub const PORT_ANNOTATION: &str = "dormouse.dev/port";

/// Annotation on a pod that asks for its declared ports to be used as they are (`as-declared`).
pub const PORTS_ANNOTATION: &str = "dormouse.dev/ports";

/// Annotation on a pod: the folder that relative paths in it start from; written by the manifest loader.
pub const FOLDER_ANNOTATION: &str = "dormouse.dev/folder";

/// Client and pictures.
pub(crate) struct Cluster {
    pub(crate) client: Client,
    pub(crate) deployments: Arc<Informer<Deployment>>,
    pub(crate) replica_sets: Arc<Informer<ReplicaSet>>,
    pub(crate) stateful_sets: Arc<Informer<StatefulSet>>,
    pub(crate) pods: Arc<Informer<Pod>>,
    pub(crate) services: Arc<Informer<Service>>,
    pub(crate) slices: Arc<Informer<EndpointSlice>>,
    pub(crate) namespaces: Arc<Informer<Namespace>>,
}

impl Cluster {
    pub(crate) fn new(client: Client) -> Arc<Self> {
        Arc::new(Self {
            client,
            deployments: Informer::new(),
            replica_sets: Informer::new(),
            stateful_sets: Informer::new(),
            pods: Informer::new(),
            services: Informer::new(),
            slices: Informer::new(),
            namespaces: Informer::new(),
        })
    }

    /// The same pictures with another client.
    pub(crate) fn sharing(other: &Self, client: Client) -> Arc<Self> {
        Arc::new(Self {
            client,
            deployments: Arc::clone(&other.deployments),
            replica_sets: Arc::clone(&other.replica_sets),
            stateful_sets: Arc::clone(&other.stateful_sets),
            pods: Arc::clone(&other.pods),
            services: Arc::clone(&other.services),
            slices: Arc::clone(&other.slices),
            namespaces: Arc::clone(&other.namespaces),
        })
    }

    /// Starts all pictures, and waits until each has been listed once. Listeners must have been added before.
    pub(crate) async fn start(&self, tasks: &mut JoinSet<()>, shutdown: &CancellationToken) {
        tasks.spawn(Arc::clone(&self.deployments).run(Api::all(self.client.clone()), shutdown.clone()));
        tasks.spawn(Arc::clone(&self.replica_sets).run(Api::all(self.client.clone()), shutdown.clone()));
        tasks.spawn(Arc::clone(&self.stateful_sets).run(Api::all(self.client.clone()), shutdown.clone()));
        tasks.spawn(Arc::clone(&self.pods).run(Api::all(self.client.clone()), shutdown.clone()));
        tasks.spawn(Arc::clone(&self.services).run(Api::all(self.client.clone()), shutdown.clone()));
        tasks.spawn(Arc::clone(&self.slices).run(Api::all(self.client.clone()), shutdown.clone()));
        tasks.spawn(Arc::clone(&self.namespaces).run(Api::all(self.client.clone()), shutdown.clone()));
        let all = async {
            self.deployments.wait_synced().await;
            self.replica_sets.wait_synced().await;
            self.stateful_sets.wait_synced().await;
            self.pods.wait_synced().await;
            self.services.wait_synced().await;
            self.slices.wait_synced().await;
            self.namespaces.wait_synced().await;
        };
        tokio::select! {
            () = all => {}
            () = shutdown.cancelled() => {}
        }
    }

    /// The namespaced API of a kind.
    pub(crate) fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + DeserializeOwned,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Writes an Event. An Event that cannot be written is not worth failing for.
    pub(crate) async fn event<K>(&self, about: &K, warning: bool, reason: &str, message: &str, source: &str)
    where
        K: Resource<DynamicType = ()>,
    {
        let meta = about.meta();
        let namespace = meta.namespace.clone().unwrap_or_else(|| "default".to_owned());
        let name = meta.name.clone().unwrap_or_default();
        let now = Time(Timestamp::now());
        let event = Event {
            metadata: ObjectMeta {
                // As client-go: the object's name and a number that grows with time.
                name: Some(format!("{name}.{:x}", Timestamp::now().as_nanosecond())),
                namespace: Some(namespace.clone()),
                ..Default::default()
            },
            involved_object: ObjectReference {
                api_version: Some(K::api_version(&()).into_owned()),
                kind: Some(K::kind(&()).into_owned()),
                name: Some(name),
                namespace: meta.namespace.clone(),
                uid: meta.uid.clone(),
                resource_version: meta.resource_version.clone(),
                ..Default::default()
            },
            type_: Some(if warning { "Warning" } else { "Normal" }.to_owned()),
            reason: Some(reason.to_owned()),
            message: Some(message.chars().take(1024).collect()),
            source: Some(EventSource {
                component: Some(source.to_owned()),
                host: None,
            }),
            first_timestamp: Some(now.clone()),
            last_timestamp: Some(now),
            count: Some(1),
            ..Default::default()
        };
        let api: Api<Event> = self.api(&namespace);
        if let Err(error) = api.create(&PostParams::default(), &event).await {
            tracing::debug!(%error, reason, "event not written");
        }
    }
}

/// A list item whose times are now.
pub(crate) fn now() -> Time {
    Time(Timestamp::now())
}

/// Whether labels satisfy a selector. An empty selector selects everything, as in Kubernetes.
pub(crate) fn selects(selector: &LabelSelector, labels: Option<&BTreeMap<String, String>>) -> bool {
    let get = |key: &str| labels.and_then(|labels| labels.get(key));
    let exact = selector
        .match_labels
        .iter()
        .flatten()
        .all(|(key, value)| get(key) == Some(value));
    exact
        && selector.match_expressions.iter().flatten().all(|rule| {
            let values = rule.values.as_deref().unwrap_or_default();
            let found = get(&rule.key);
            match rule.operator.as_str() {
                "In" => found.is_some_and(|value| values.contains(value)),
                "NotIn" => found.is_none_or(|value| !values.contains(value)),
                "Exists" => found.is_some(),
                "DoesNotExist" => found.is_none(),
                _ => false,
            }
        })
}

/// The owner that manages an object.
pub(crate) fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references
        .iter()
        .flatten()
        .find(|owner| owner.controller == Some(true))
}

/// Whether the object with `uid` manages this one.
pub(crate) fn is_controlled_by(meta: &ObjectMeta, uid: Option<&String>) -> bool {
    controller_of(meta).is_some_and(|owner| Some(&owner.uid) == uid)
}

/// The reference with which `owner` manages another object.
pub(crate) fn owned_by<K: Resource<DynamicType = ()>>(owner: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: owner.meta().name.clone().unwrap_or_default(),
        uid: owner.meta().uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// Whether an answer says that there is no such object.
pub(crate) fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// Whether an answer says that somebody else wrote first, or that it exists already.
pub(crate) fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}

/// The value of a pod's condition.
pub(crate) fn pod_condition(pod: &Pod, kind: &str) -> bool {
    pod.status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten())
        .any(|condition| condition.type_ == kind && condition.status == "True")
}

/// Whether a pod is ready.
pub(crate) fn is_ready(pod: &Pod) -> bool {
    pod_condition(pod, "Ready")
}

/// Whether a pod's containers have all ended for good.
pub(crate) fn is_finished(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// How long a ready pod has still to stay so to count as available; `None`: not ready. Zero: available.
pub(crate) fn until_available(pod: &Pod, min_ready_seconds: i32) -> Option<std::time::Duration> {
    let ready = pod
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten())
        .find(|condition| condition.type_ == "Ready" && condition.status == "True")?;
    let Some(since) = &ready.last_transition_time else {
        return Some(std::time::Duration::ZERO);
    };
    let stood = Timestamp::now().duration_since(since.0);
    let wanted = jiff::SignedDuration::from_secs(i64::from(min_ready_seconds));
    Some((wanted - stood).max(jiff::SignedDuration::ZERO).unsigned_abs())
}

/// Seconds of a Kubernetes field, `0..`.
pub(crate) fn seconds(value: i64) -> std::time::Duration {
    std::time::Duration::from_secs(u64::try_from(value).unwrap_or(0))
}
