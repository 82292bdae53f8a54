//! Writes: everything that the autoscaler changes in the cluster, one typed function per kind, all of them here but the Lease
//! (`lease`) and what the last one does on its way out (`farewell`).
//!
//! Only a leader writes; every write has a time limit and is counted by how it ended. No write is repeated here: the
//! caller looks at the cluster again and decides anew. Fields are owned under the managers of [`crds::names`].

mod events;
mod objects;
pub(crate) mod ownership;
mod rollouts;

use std::future::Future;
use std::time::Duration;

use crds::names::{
    AUTOSCALER_MANAGER, CAPTURED_SELECTOR_KEY, CAPTURED_SELECTOR_VALUE, ORIGINAL_REPLICAS_ANNOTATION,
    SCALE_MANAGER,
};
use crds::route::{Route, RouteSpec, Workload, WorkloadKind};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::autoscaling::v1::Scale;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, Preconditions};
use kube::core::Status;
use kube::core::request::Error as RequestError;
use kube::{Api, Client, Resource};
use prometheus::{IntCounterVec, Opts, Registry};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::lease::Term;
use crate::state::RouteKey;
use crate::watch::slim::{Labels, ServiceFacts};

pub(crate) use events::{EventWriter, Notice, Subject};
pub(crate) use objects::{PrivateService, SliceEndpoint, SliceSpec, address_type, slice_name};

/// Longest time for one request. A write that takes longer is most likely lost; the next look tells.
const LIMIT: Duration = Duration::from_secs(5);
/// Pods read to tell why a workload is not ready: the first few say it.
const PODS_READ: u32 = 50;

/// Why a write did not happen, or may not have.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Another autoscaler leads.
    #[error("{0}: not the leader")]
    NotLeader(&'static str),
    /// It may or may not have happened.
    #[error("{0}: no answer within {limit} s", limit = LIMIT.as_secs())]
    Timeout(&'static str),
    /// The object is not as it was when this was decided: look again.
    #[error("{0}: {1}")]
    Conflict(&'static str, String),
    /// The object is gone.
    #[error("{0}: not found")]
    Gone(&'static str),
    /// The API server refused it, or could not be reached.
    #[error("{0}: {1}")]
    Failed(&'static str, #[source] Box<kube::Error>),
}

impl Error {
    /// What the API server has against it, in its words. `None`: it was not asked, has not answered, or may say otherwise soon.
    pub(crate) fn refusal(&self) -> Option<&str> {
        let status = self.status()?;
        let is_final = matches!(status.code, 400..=499) && status.code != 429;
        is_final.then_some(status.message.as_str())
    }

    /// Whether a permission is missing.
    pub(crate) fn is_forbidden(&self) -> bool {
        self.status().is_some_and(|status| status.code == 403)
    }

    /// Whether a write may have happened although it failed: there was no answer, or none about the write.
    pub(crate) fn may_have_happened(&self) -> bool {
        match self {
            Self::Timeout(_) => true,
            Self::Failed(..) => self.status().is_none_or(|status| status.code >= 500),
            Self::NotLeader(_) | Self::Conflict(..) | Self::Gone(_) => false,
        }
    }

    /// Whether the same may succeed a little later: the API server is away, or busy.
    fn may_pass(&self) -> bool {
        match self {
            Self::Timeout(_) => true,
            Self::Failed(..) => self.refusal().is_none(),
            Self::NotLeader(_) | Self::Conflict(..) | Self::Gone(_) => false,
        }
    }

    /// What the API server has answered.
    fn status(&self) -> Option<&Status> {
        match self {
            Self::Failed(_, error) => match error.as_ref() {
                kube::Error::Api(status) => Some(status),
                _ => None,
            },
            _ => None,
        }
    }
}

/// The cluster, for writing.
#[derive(Clone)]
pub(crate) struct Cluster {
    client: Client,
    term: Term,
    writes: IntCounterVec,
    events: events::Sender,
}

impl Cluster {
    /// A writer that writes as long as `term` lasts, and the task that writes its Events.
    pub(crate) fn new(client: Client, term: Term, name: &str, registry: &Registry) -> (Self, EventWriter) {
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let counters = IntCounterVec::new(Opts::new(name, help), labels).expect("a valid metric name");
            // A second cluster on one registry (tests) counts by itself.
            let _ = registry.register(Box::new(counters.clone()));
            counters
        };
        let writes = counters(
            "autoscaler_cluster_writes_total",
            "Requests that change the cluster, by what they write and how they ended.",
            &["write", "result"],
        );
        let dropped = counters(
            "autoscaler_cluster_events_total",
            "Kubernetes Events by how they ended: written, repeated, dropped, failed; and tries that were not the first.",
            &["result"],
        );
        let (events, writer) = events::channel(client.clone(), term.clone(), name, dropped);
        (
            Self {
                client,
                term,
                writes,
                events,
            },
            writer,
        )
    }

    /// Whether this process may write.
    pub(crate) fn leads(&self) -> bool {
        self.term.lasts()
    }

    /// Tells users something. Never waits: when too many are waiting, this one is dropped and counted.
    pub(crate) fn event(&self, notice: Notice) {
        self.events.send(notice);
    }

    // Workloads.

    /// Sets the replicas of a workload through its scale subresource.
    pub(crate) async fn scale(
        &self,
        namespace: &str,
        workload: &Workload,
        replicas: u32,
    ) -> Result<(), Error> {
        let body = json!({ "spec": { "replicas": replicas } });
        let path = self.path_of(namespace, workload, "/scale");
        self.patch::<Scale>("scale", &path, SCALE_MANAGER, MERGE, &body)
            .await
            .map(drop)
    }

    /// Gives up owning the replicas of a workload, where we do: nobody's later apply may fail because of us.
    pub(crate) async fn disown_replicas(&self, namespace: &str, workload: &Workload) -> Result<(), Error> {
        self.disown_fields(namespace, workload, SCALE_MANAGER, &[ownership::REPLICAS])
            .await
    }

    /// Gives up owning what we have changed of a user's Deployment for its rollout.
    pub(crate) async fn disown_spec(&self, namespace: &str, workload: &Workload) -> Result<(), Error> {
        self.disown_fields(namespace, workload, AUTOSCALER_MANAGER, &ownership::ROLLED_OUT)
            .await
    }

    async fn disown_fields(
        &self,
        namespace: &str,
        workload: &Workload,
        manager: &str,
        fields: &[&str],
    ) -> Result<(), Error> {
        let one = ListParams::default().fields(&format!("metadata.name={}", workload.name));
        // Listing is granted for the watch; so is no `get`.
        let found = match workload.kind {
            WorkloadKind::Deployment => self.metadata::<Deployment>(namespace, &one).await,
            WorkloadKind::StatefulSet => self.metadata::<StatefulSet>(namespace, &one).await,
        };
        let Some(body) = found?.and_then(|metadata| ownership::disown(&metadata, Some(manager), fields))
        else {
            return Ok(());
        };
        let path = self.path_of(namespace, workload, "");
        self.patch::<Value>("workload_disown", &path, AUTOSCALER_MANAGER, JSON, &body)
            .await
            .map(drop)
    }

    async fn metadata<K>(&self, namespace: &str, one: &ListParams) -> Result<Option<ObjectMeta>, Error>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + std::fmt::Debug,
    {
        let api = Api::<K>::namespaced(self.client.clone(), namespace);
        let found = self.count("workload_read", api.list_metadata(one)).await?;
        Ok(found.items.into_iter().next().map(|object| object.metadata))
    }

    /// Notes on a workload how many replicas it had before capture, or removes the note.
    pub(crate) async fn note_original(
        &self,
        namespace: &str,
        workload: &Workload,
        replicas: Option<u32>,
    ) -> Result<(), Error> {
        let value = replicas.map_or(Value::Null, |replicas| Value::String(replicas.to_string()));
        let body = json!({ "metadata": { "annotations": { ORIGINAL_REPLICAS_ANNOTATION: value } } });
        let path = self.path_of(namespace, workload, "");
        self.patch::<Value>("original_replicas", &path, AUTOSCALER_MANAGER, MERGE, &body)
            .await
            .map(drop)
    }

    fn path_of(&self, namespace: &str, workload: &Workload, subresource: &str) -> String {
        let base = match workload.kind {
            WorkloadKind::Deployment => Deployment::url_path(&(), Some(namespace)),
            WorkloadKind::StatefulSet => StatefulSet::url_path(&(), Some(namespace)),
        };
        format!("{base}/{}{subresource}", workload.name)
    }

    // Routes.

    /// Creates or updates the Route of a Service, and returns it as it now is. `last_good`: what
    /// [`crds::names::LAST_GOOD_ANNOTATION`] says.
    pub(crate) async fn apply_route(
        &self,
        service: &ServiceFacts,
        spec: &RouteSpec,
        last_good: &str,
    ) -> Result<Route, Error> {
        let body = objects::route(service, spec, last_good);
        self.apply("route", &service.namespace, &service.name, &body)
            .await
    }

    /// Deletes a Route, if it still is the one with this uid.
    pub(crate) async fn delete_route(&self, key: &RouteKey, uid: &str) -> Result<(), Error> {
        self.delete::<Route>("route_delete", &key.namespace, &key.name, Some(uid))
            .await
    }

    /// Merges `status` into the status of a Route: `null` clears a field.
    pub(crate) async fn patch_route_status(&self, key: &RouteKey, status: Value) -> Result<(), Error> {
        let path = format!(
            "{}/{}/status",
            Route::url_path(&(), Some(&key.namespace)),
            key.name
        );
        let body = json!({ "status": status });
        self.patch::<Value>("route_status", &path, AUTOSCALER_MANAGER, MERGE, &body)
            .await
            .map(drop)
    }

    // Private Services and slices.

    /// Creates or updates the private headless Service of a pool.
    pub(crate) async fn apply_private_service(&self, wanted: &PrivateService) -> Result<(), Error> {
        let body = objects::private_service(wanted);
        let name = crds::names::private_service_name(&wanted.pool.pool);
        self.apply::<Service>("private_service", &wanted.pool.namespace, &name, &body)
            .await
            .map(drop)
    }

    /// Deletes the private Service of a pool.
    pub(crate) async fn delete_private_service(&self, namespace: &str, pool: &str) -> Result<(), Error> {
        let name = crds::names::private_service_name(pool);
        self.delete::<Service>("private_service_delete", namespace, &name, None)
            .await
    }

    /// Creates or updates one of our slices on a user's Service.
    pub(crate) async fn apply_slice(&self, wanted: &SliceSpec) -> Result<(), Error> {
        let body = objects::slice(wanted);
        self.apply::<EndpointSlice>("slice", &wanted.service.namespace, &wanted.name, &body)
            .await
            .map(drop)
    }

    /// Deletes one of our slices.
    pub(crate) async fn delete_slice(&self, namespace: &str, name: &str) -> Result<(), Error> {
        self.delete::<EndpointSlice>("slice_delete", namespace, name, None)
            .await
    }

    // The selector key.

    /// Adds our key to a Service's selector, and gives up owning the selector.
    ///
    /// # Errors
    /// [`Error::Conflict`] when the Service is another by now or has lost its selector. An error in giving up ownership
    /// leaves the key in place: [`Cluster::disown_selector`] is then still to be done.
    pub(crate) async fn add_key(&self, service: &ServiceFacts) -> Result<(), Error> {
        let body = json!([
            { "op": "test", "path": "/metadata/uid", "value": service.uid },
            { "op": "add", "path": key_path(), "value": CAPTURED_SELECTOR_VALUE },
        ]);
        self.change_selector("key_add", service, &body).await
    }

    /// Takes our key out of a Service's selector, and gives up owning the selector.
    ///
    /// # Errors
    /// As [`Cluster::add_key`].
    pub(crate) async fn remove_key(&self, service: &ServiceFacts) -> Result<(), Error> {
        let body = json!([
            { "op": "test", "path": "/metadata/uid", "value": service.uid },
            { "op": "remove", "path": key_path() },
        ]);
        self.change_selector("key_remove", service, &body).await
    }

    async fn change_selector(
        &self,
        what: &'static str,
        service: &ServiceFacts,
        body: &Value,
    ) -> Result<(), Error> {
        let path = service_path(&service.namespace, &service.name);
        let changed = self
            .patch::<Service>(what, &path, AUTOSCALER_MANAGER, JSON, body)
            .await?;
        match self.disown(&changed, Some(AUTOSCALER_MANAGER)).await {
            // Somebody has written in between: at once again, from what stands now, because every moment counts in which
            // another manager's apply would differ from ours.
            Err(Error::Conflict(..)) => {
                self.disown_selector(&service.namespace, &service.name, Some(AUTOSCALER_MANAGER))
                    .await
            }
            done => done,
        }
    }

    /// Takes `spec.selector` of a Service out of what `manager` (`None`: anybody) owns: nobody's later apply may fail because
    /// of us.
    pub(crate) async fn disown_selector(
        &self,
        namespace: &str,
        name: &str,
        manager: Option<&str>,
    ) -> Result<(), Error> {
        let api = Api::<Service>::namespaced(self.client.clone(), namespace);
        let service = self.count("service_read", api.get(name)).await?;
        self.disown(&service, manager).await
    }

    async fn disown(&self, service: &Service, manager: Option<&str>) -> Result<(), Error> {
        let what = "selector_disown";
        let Some(body) = ownership::disown(&service.metadata, manager, &[ownership::SELECTOR]) else {
            return Ok(());
        };
        let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
        let path = service_path(namespace, service.metadata.name.as_deref().unwrap_or_default());
        self.patch::<Service>(what, &path, AUTOSCALER_MANAGER, JSON, &body)
            .await
            .map(drop)
    }

    // Live reads, for what is too rare or too large to watch.

    /// The first pods with these labels, to tell why a workload is not ready.
    pub(crate) async fn pods(&self, namespace: &str, labels: &Labels) -> Result<Vec<Pod>, Error> {
        let selector: Vec<_> = labels
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        let params = ListParams::default().labels(&selector.join(",")).limit(PODS_READ);
        let api = Api::<Pod>::namespaced(self.client.clone(), namespace);
        answered("pods_read", api.list(&params))
            .await
            .map(|list| list.items)
    }

    /// The NetworkPolicies of a namespace.
    pub(crate) async fn network_policies(&self, namespace: &str) -> Result<Vec<NetworkPolicy>, Error> {
        let api = Api::<NetworkPolicy>::namespaced(self.client.clone(), namespace);
        let params = ListParams::default();
        answered("policies_read", api.list(&params))
            .await
            .map(|list| list.items)
    }

    // The gate.

    async fn apply<K>(
        &self,
        what: &'static str,
        namespace: &str,
        name: &str,
        body: &Value,
    ) -> Result<K, Error>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + std::fmt::Debug,
    {
        let api = Api::<K>::namespaced(self.client.clone(), namespace);
        let params = PatchParams::apply(AUTOSCALER_MANAGER).force();
        let patch = Patch::Apply(body);
        self.gate(what, api.patch(name, &params, &patch)).await
    }

    /// A patch by its own media type: with the field manager, which a JSON patch has too.
    async fn patch<K: DeserializeOwned>(
        &self,
        what: &'static str,
        path: &str,
        manager: &str,
        media: &str,
        body: &Value,
    ) -> Result<K, Error> {
        let request = http::Request::patch(format!("{path}?fieldManager={manager}"))
            .header(http::header::ACCEPT, "application/json")
            .header(http::header::CONTENT_TYPE, media)
            .body(body.to_string().into_bytes())
            .map_err(|error| failed(what, kube::Error::BuildRequest(RequestError::BuildRequest(error))))?;
        self.gate(what, self.client.request::<K>(request)).await
    }

    async fn delete<K>(
        &self,
        what: &'static str,
        namespace: &str,
        name: &str,
        uid: Option<&str>,
    ) -> Result<(), Error>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + std::fmt::Debug,
    {
        let api = Api::<K>::namespaced(self.client.clone(), namespace);
        let preconditions = uid.map(|uid| Preconditions {
            uid: Some(uid.to_owned()),
            resource_version: None,
        });
        let params = DeleteParams {
            preconditions,
            ..DeleteParams::background()
        };
        match self.gate(what, api.delete(name, &params)).await {
            Ok(_) | Err(Error::Gone(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn gate<T>(
        &self,
        what: &'static str,
        request: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, Error> {
        if !self.leads() {
            self.writes.with_label_values(&[what, "not_leader"]).inc();
            return Err(Error::NotLeader(what));
        }
        self.count(what, request).await
    }

    async fn count<T>(
        &self,
        what: &'static str,
        request: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, Error> {
        let result = answered(what, request).await;
        let label = match &result {
            Ok(_) => "ok",
            Err(Error::Timeout(_)) => "timed_out",
            Err(Error::Conflict(..)) => "conflict",
            Err(Error::Gone(_)) => "gone",
            Err(Error::Failed(..) | Error::NotLeader(_)) => "failed",
        };
        self.writes.with_label_values(&[what, label]).inc();
        result
    }
}

/// What the API server answers within the limit.
async fn answered<T>(
    what: &'static str,
    request: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, Error> {
    match tokio::time::timeout(LIMIT, request).await {
        Err(_) => Err(Error::Timeout(what)),
        Ok(Ok(done)) => Ok(done),
        Ok(Err(kube::Error::Api(status))) if status.code == 404 => Err(Error::Gone(what)),
        Ok(Err(kube::Error::Api(status))) if is_stale(&status) => Err(Error::Conflict(what, status.message)),
        Ok(Err(error)) => Err(failed(what, error)),
    }
}

/// Whether a refusal says that the object is not as it was thought to be. 422 is also said of a JSON patch whose test or path
/// does not hold any more; one that says which fields are wrong is about what was written.
fn is_stale(status: &Status) -> bool {
    let names_fields = status
        .details
        .as_ref()
        .is_some_and(|details| !details.causes.is_empty());
    status.code == 409 || (status.code == 422 && !names_fields)
}

/// JSON merge patch, RFC 7396.
const MERGE: &str = "application/merge-patch+json";
/// JSON patch, RFC 6902: the one that can test before it changes.
const JSON: &str = "application/json-patch+json";

fn failed(what: &'static str, error: kube::Error) -> Error {
    Error::Failed(what, Box::new(error))
}

fn service_path(namespace: &str, name: &str) -> String {
    format!("{}/{name}", Service::url_path(&(), Some(namespace)))
}

/// The JSON pointer to our key in the selector.
fn key_path() -> String {
    format!(
        "/spec/selector/{}",
        CAPTURED_SELECTOR_KEY.replace('~', "~0").replace('/', "~1")
    )
}

#[cfg(test)]
mod tests;
