//! The watches themselves: list in pages, watch, back off, list again.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use crds::route::{Route, Workload, WorkloadKind};
use futures::StreamExt;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::watcher::{self, Event, watcher};
use kube::runtime::{WatchStreamExt, utils::Backoff};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use super::Index;
use super::slice::SliceFacts;
use super::slim::{HpaFacts, ServiceFacts, WorkloadFacts, namespace_annotations};
use super::tables::{Key, Marks, Tables};

/// Objects in one page of a list: as kubectl asks for.
const PAGE: u32 = 500;
/// First and longest wait after a failed list or watch.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Which part of the cluster is looked at.
#[derive(Clone, Debug)]
pub(crate) struct Scope {
    /// Only this namespace; `None`: all.
    pub(crate) namespace: Option<String>,
    /// The namespace of the activators.
    pub(crate) system: String,
}

/// A kind that the index holds.
pub(crate) trait Kept: Resource<DynamicType = ()> {
    /// Puts the slim copy into its table.
    fn put(&self, tables: &mut Tables, marks: &mut Marks);
    /// Takes it out.
    fn remove(tables: &mut Tables, key: &Key, marks: &mut Marks);
    /// What the table holds.
    fn held(tables: &Tables) -> Vec<Key>;
}

/// Namespace (empty when it has none) and name.
pub(super) fn key_of<K: Resource>(object: &K) -> Key {
    Key {
        namespace: object.namespace().unwrap_or_default(),
        name: object.name_any(),
    }
}

impl Kept for Namespace {
    fn put(&self, tables: &mut Tables, marks: &mut Marks) {
        if self.name_any() == tables.system {
            tables.is_system_going = self.metadata.deletion_timestamp.is_some();
        }
        tables.set_namespace(&self.name_any(), Some(namespace_annotations(self)), marks);
    }
    fn remove(tables: &mut Tables, key: &Key, marks: &mut Marks) {
        tables.set_namespace(&key.name, None, marks);
    }
    fn held(tables: &Tables) -> Vec<Key> {
        let names = tables.namespace_keys().into_iter();
        names
            .map(|name| Key {
                namespace: String::new(),
                name,
            })
            .collect()
    }
}

impl Kept for Service {
    fn put(&self, tables: &mut Tables, marks: &mut Marks) {
        tables.set_service(&key_of(self), Some(ServiceFacts::from(self)), marks);
    }
    fn remove(tables: &mut Tables, key: &Key, marks: &mut Marks) {
        tables.set_service(key, None, marks);
    }
    fn held(tables: &Tables) -> Vec<Key> {
        tables.service_keys()
    }
}

fn workload(kind: WorkloadKind, key: &Key) -> Workload {
    Workload {
        kind,
        name: key.name.clone(),
    }
}

impl Kept for Deployment {
    fn put(&self, tables: &mut Tables, marks: &mut Marks) {
        let key = key_of(self);
        let facts = Some(WorkloadFacts::from(self));
        tables.set_workload(
            &key.namespace,
            &workload(WorkloadKind::Deployment, &key),
            facts,
            marks,
        );
    }
    fn remove(tables: &mut Tables, key: &Key, marks: &mut Marks) {
        tables.set_workload(
            &key.namespace,
            &workload(WorkloadKind::Deployment, key),
            None,
            marks,
        );
    }
    fn held(tables: &Tables) -> Vec<Key> {
        tables.workload_keys(WorkloadKind::Deployment)
    }
}

impl Kept for StatefulSet {
    fn put(&self, tables: &mut Tables, marks: &mut Marks) {
        let key = key_of(self);
        let facts = Some(WorkloadFacts::from(self));
        tables.set_workload(
            &key.namespace,
            &workload(WorkloadKind::StatefulSet, &key),
            facts,
            marks,
        );
    }
    fn remove(tables: &mut Tables, key: &Key, marks: &mut Marks) {
        tables.set_workload(
            &key.namespace,
            &workload(WorkloadKind::StatefulSet, key),
            None,
            marks,
        );
    }
    fn held(tables: &Tables) -> Vec<Key> {
        tables.workload_keys(WorkloadKind::StatefulSet)
    }
}

impl Kept for Route {
    fn put(&self, tables: &mut Tables, marks: &mut Marks) {
        let mut route = self.clone();
        route.metadata.managed_fields = None;
        tables.set_route(&key_of(self), Some(route), marks);
    }
    fn remove(tables: &mut Tables, key: &Key, marks: &mut Marks) {
        tables.set_route(key, None, marks);
    }
    fn held(tables: &Tables) -> Vec<Key> {
        tables.route_keys()
    }
}

impl Kept for HorizontalPodAutoscaler {
    fn put(&self, tables: &mut Tables, marks: &mut Marks) {
        tables.set_hpa(&key_of(self), Some(HpaFacts::from(self)), marks);
    }
    fn remove(tables: &mut Tables, key: &Key, marks: &mut Marks) {
        tables.set_hpa(key, None, marks);
    }
    fn held(tables: &Tables) -> Vec<Key> {
        tables.hpa_keys()
    }
}

impl Kept for EndpointSlice {
    fn put(&self, tables: &mut Tables, marks: &mut Marks) {
        let facts = SliceFacts::read(self, &tables.system);
        tables.set_slice(&key_of(self), Some(facts), marks);
    }
    fn remove(tables: &mut Tables, key: &Key, marks: &mut Marks) {
        tables.set_slice(key, None, marks);
    }
    fn held(tables: &Tables) -> Vec<Key> {
        tables.slice_keys()
    }
}

/// Fills the index until `stop`, and says when all first lists are in.
///
/// # Cancel safety
/// Dropping it ends all watches; the index keeps what it has.
pub(crate) async fn run(index: Arc<Index>, client: Client, scope: Scope, stop: CancellationToken) {
    let (listed, mut lists) = tokio::sync::mpsc::channel::<()>(16);
    let feed = Feed {
        index: Arc::clone(&index),
        client,
        scope,
        stop: stop.clone(),
    };
    let synced = async {
        // Each watch drops its sender with its first complete list.
        while lists.recv().await.is_some() {}
        if !stop.is_cancelled() {
            index.set_synced();
        }
    };
    tokio::join!(
        feed.namespaces(listed.clone()),
        feed.follow::<Service>(listed.clone()),
        feed.follow::<Deployment>(listed.clone()),
        feed.follow::<StatefulSet>(listed.clone()),
        feed.follow::<Route>(listed.clone()),
        feed.follow::<HorizontalPodAutoscaler>(listed.clone()),
        feed.follow::<EndpointSlice>(listed.clone()),
        feed.activators(listed),
        synced,
    );
}

type Listed = tokio::sync::mpsc::Sender<()>;

struct Feed {
    index: Arc<Index>,
    client: Client,
    scope: Scope,
    stop: CancellationToken,
}

impl Feed {
    async fn namespaces(&self, listed: Listed) {
        let config = watcher::Config::default().page_size(PAGE);
        let config = match &self.scope.namespace {
            Some(name) => config.fields(&format!("metadata.name={name}")),
            None => config,
        };
        self.keep::<Namespace>(Api::all(self.client.clone()), config, true, listed)
            .await;
    }

    async fn follow<K>(&self, listed: Listed)
    where
        K: Kept
            + Resource<Scope = NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + std::fmt::Debug
            + Send
            + 'static,
    {
        let api = match &self.scope.namespace {
            Some(namespace) => Api::<K>::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        };
        // With two watches of slices, neither may take out what the other listed.
        let whole = !(self.scope.apart() && K::kind(&()) == EndpointSlice::kind(&()));
        self.keep(api, watcher::Config::default().page_size(PAGE), whole, listed)
            .await;
    }

    /// The slices that list the activators, where those are outside the namespace that is looked at.
    async fn activators(&self, listed: Listed) {
        if !self.scope.apart() {
            return;
        }
        let api = Api::<EndpointSlice>::namespaced(self.client.clone(), &self.scope.system);
        let service = crds::names::ACTIVATOR_SERVICE;
        let selector = format!("{}={service}", crds::names::SLICE_SERVICE_LABEL);
        self.keep(
            api,
            watcher::Config::default().page_size(PAGE).labels(&selector),
            false,
            listed,
        )
        .await;
    }

    /// Applies one watch to the index. `whole`: its list names all objects of the kind, in all namespaces looked at.
    async fn keep<K>(&self, api: Api<K>, config: watcher::Config, whole: bool, listed: Listed)
    where
        K: Kept + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
    {
        let kind = K::kind(&());
        let mut events = std::pin::pin!(watcher(api, config).backoff(Waits::default()));
        let mut listed = Some(listed);
        let mut seen = HashSet::new();
        let mut before = HashSet::new();
        loop {
            let event = tokio::select! {
                () = self.stop.cancelled() => return,
                event = events.next() => event,
            };
            match event {
                None => return,
                Some(Ok(Event::Init)) => {
                    before.extend(std::mem::take(&mut seen));
                }
                Some(Ok(Event::InitApply(object))) => {
                    seen.insert(key_of(&object));
                    self.index.apply(&object);
                }
                Some(Ok(Event::InitDone)) => {
                    if whole {
                        self.index.keep_only::<K>(&seen);
                        seen = HashSet::new();
                    } else {
                        self.index.forget::<K>(before.difference(&seen));
                    }
                    before.clear();
                    listed = None;
                }
                Some(Ok(Event::Apply(object))) => {
                    if !whole {
                        seen.insert(key_of(&object));
                    }
                    self.index.apply(&object);
                }
                Some(Ok(Event::Delete(object))) => {
                    seen.remove(&key_of(&object));
                    self.index.delete(&object);
                }
                Some(Err(error)) => {
                    let first = listed.is_some();
                    tracing::warn!(%kind, %error, first, "watch");
                }
            }
        }
    }
}

impl Scope {
    /// Whether the activators are outside the namespace that is looked at.
    fn apart(&self) -> bool {
        self.namespace
            .as_ref()
            .is_some_and(|namespace| *namespace != self.system)
    }
}

/// Doubling waits with a little chance, reset by success: an API server that restarts is back within seconds, and an
/// autoscaler that waits half a minute for it would be blind for that long.
#[derive(Default)]
struct Waits {
    failures: u32,
}

impl Iterator for Waits {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let wait = BACK_OFF
            .0
            .saturating_mul(1 << self.failures.min(10))
            .min(BACK_OFF.1);
        self.failures = self.failures.saturating_add(1);
        Some(wait.mul_f64(0.75 + fastrand::f64() / 2.0))
    }
}

impl Backoff for Waits {
    fn reset(&mut self) {
        self.failures = 0;
    }
}
