//! Reads: every object the control plane looks at but Rollouts and Revisions, as a plain index that watch events are applied to.
//!
//! One watch per kind; objects are cut down to what is needed as they arrive. `apply`, `delete` and `reset` are
//! synchronous, so that tests hand in typed objects and no server is needed. Readers get shared copies under a short lock,
//! and three sets of keys say who has to look again: Services for capture, pools for scaling, Routes for status.

mod run;
pub(crate) mod slice;
pub(crate) mod slim;
mod tables;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use crds::report::PoolKey;
use crds::route::{Route, Workload};
use parking_lot::RwLock;
use tokio::sync::watch;

use crate::ingest::Endpoint;
use crate::state::{Dirty, RouteKey};
use slim::{HpaFacts, Labels, ServiceFacts, WorkloadFacts};
use tables::{Marks, Tables};

pub(crate) use run::{Kept, Scope, run};
pub(crate) use slice::{EndpointFacts, Role, SliceFacts};

/// Everything that is watched.
pub(crate) struct Index {
    tables: RwLock<Tables>,
    services: Arc<Dirty<RouteKey>>,
    pools: Arc<Dirty<PoolKey>>,
    routes: Arc<Dirty<RouteKey>>,
    activators: watch::Sender<Arc<Vec<Endpoint>>>,
    synced: watch::Sender<bool>,
}

impl Index {
    /// An empty index; `system` is the namespace of the activators.
    pub(crate) fn new(system: &str) -> Arc<Self> {
        Arc::new(Self {
            tables: RwLock::new(Tables::new(system)),
            services: Dirty::new(),
            pools: Dirty::new(),
            routes: Dirty::new(),
            activators: watch::Sender::new(Arc::default()),
            synced: watch::Sender::new(false),
        })
    }

    // Events.

    /// An object was added or changed.
    pub(crate) fn apply<K: Kept>(&self, object: &K) {
        let mut marks = Marks::default();
        object.put(&mut self.tables.write(), &mut marks);
        self.tell(marks);
    }

    /// An object is gone.
    pub(crate) fn delete<K: Kept>(&self, object: &K) {
        let mut marks = Marks::default();
        K::remove(&mut self.tables.write(), &run::key_of(object), &mut marks);
        self.tell(marks);
    }

    /// A new list is complete: what it does not name is gone.
    pub(crate) fn keep_only<K: Kept>(&self, listed: &HashSet<RouteKey>) {
        let mut marks = Marks::default();
        let mut tables = self.tables.write();
        for key in K::held(&tables) {
            if !listed.contains(&key) {
                K::remove(&mut tables, &key, &mut marks);
            }
        }
        drop(tables);
        self.tell(marks);
    }

    /// Objects that a new list no longer names.
    fn forget<'a, K: Kept>(&self, keys: impl Iterator<Item = &'a RouteKey>) {
        let mut marks = Marks::default();
        let mut tables = self.tables.write();
        for key in keys {
            K::remove(&mut tables, key, &mut marks);
        }
        drop(tables);
        self.tell(marks);
    }

    /// All objects of a kind, in place of what was there.
    #[cfg(test)]
    pub(crate) fn reset<K: Kept>(&self, objects: &[K]) {
        for object in objects {
            self.apply(object);
        }
        self.keep_only::<K>(&objects.iter().map(run::key_of).collect());
    }

    /// All first lists are in: from now on what is not in the index does not exist.
    pub(crate) fn set_synced(&self) {
        let tables = self.tables.read();
        let services = tables.relevant();
        drop(tables);
        self.services.mark(services);
        self.synced.send_replace(true);
    }

    fn tell(&self, marks: Marks) {
        self.services.mark(marks.services);
        self.pools.mark(marks.pools);
        self.routes.mark(marks.routes);
        if marks.activators {
            let listed = Arc::new(activators(&self.tables.read().activator_slices()));
            self.activators.send_if_modified(|old| {
                let changed = *old != listed;
                *old = listed;
                changed
            });
        }
    }

    // Notifications.

    /// Services whose capture may have something to do. For one taker.
    pub(crate) fn dirty_services(&self) -> Arc<Dirty<RouteKey>> {
        Arc::clone(&self.services)
    }

    /// Pools whose workload, pods or HorizontalPodAutoscaler changed. For one taker.
    pub(crate) fn dirty_pools(&self) -> Arc<Dirty<PoolKey>> {
        Arc::clone(&self.pools)
    }

    /// Routes that changed in any way (commands, status, spec) or are gone. For one taker.
    pub(crate) fn dirty_routes(&self) -> Arc<Dirty<RouteKey>> {
        Arc::clone(&self.routes)
    }

    /// Whether all first lists are in.
    pub(crate) fn synced(&self) -> watch::Receiver<bool> {
        self.synced.subscribe()
    }

    /// The activators that Kubernetes lists, ready or not: whether one is used is for its stream to say.
    pub(crate) fn activators(&self) -> watch::Receiver<Arc<Vec<Endpoint>>> {
        self.activators.subscribe()
    }

    // Reads.

    /// A user's Service.
    pub(crate) fn service(&self, key: &RouteKey) -> Option<Arc<ServiceFacts>> {
        self.tables.read().service(key)
    }

    /// The private Service of a pool.
    pub(crate) fn private_service(&self, pool: &PoolKey) -> Option<Arc<ServiceFacts>> {
        let name = crds::names::private_service_name(&pool.pool);
        self.tables.read().private(&RouteKey {
            namespace: pool.namespace.clone(),
            name,
        })
    }

    /// A Namespace's defaults for its Services.
    pub(crate) fn namespace(&self, name: &str) -> Arc<Labels> {
        self.tables.read().namespace(name)
    }

    /// A Route, without `managedFields`.
    pub(crate) fn route(&self, key: &RouteKey) -> Option<Arc<Route>> {
        self.tables.read().route(key)
    }

    /// All Routes.
    pub(crate) fn routes(&self) -> Vec<(RouteKey, Arc<Route>)> {
        self.tables.read().routes()
    }

    /// A workload.
    pub(crate) fn workload(&self, namespace: &str, workload: &Workload) -> Option<Arc<WorkloadFacts>> {
        self.tables.read().workload(namespace, workload)
    }

    /// The workloads that a Service means: the one it names, or those whose pods its selector selects.
    pub(crate) fn workloads_of(&self, service: &RouteKey) -> Vec<Arc<WorkloadFacts>> {
        self.tables.read().workloads_of(service)
    }

    /// The opted-in or captured Services that mean a workload.
    pub(crate) fn services_of(&self, workload: &WorkloadFacts) -> BTreeSet<RouteKey> {
        self.tables.read().services_of(workload)
    }

    /// The Services on a workload's pods that are neither opted in nor captured.
    pub(crate) fn bystanders_of(&self, workload: &WorkloadFacts) -> BTreeSet<RouteKey> {
        self.tables.read().services_on(workload, false)
    }

    /// The workloads that carry the note of their original replicas and that no Service with a Route or with the
    /// annotation means any more: release never came to them.
    pub(crate) fn orphans(&self) -> Vec<Arc<WorkloadFacts>> {
        let tables = self.tables.read();
        let in_pool: HashSet<(String, Workload)> = tables
            .routes()
            .iter()
            .flat_map(|(key, route)| {
                route
                    .spec
                    .pools
                    .iter()
                    .map(|pool| (key.namespace.clone(), pool.workload.clone()))
            })
            .collect();
        let mut found = tables.workloads_with_original();
        found.retain(|workload| {
            !in_pool.contains(&(workload.namespace.clone(), workload.workload.clone()))
                && tables.services_of(workload).is_empty()
        });
        found
    }

    /// The workloads that are annotated to sleep themselves, and to which no opted-in or captured Service leads.
    pub(crate) fn workers(&self) -> Vec<Arc<WorkloadFacts>> {
        let tables = self.tables.read();
        let mut found = tables.workloads_opted_in();
        found.retain(|workload| !workload.deleting && tables.services_of(workload).is_empty());
        found
    }

    /// The HorizontalPodAutoscalers of a workload.
    pub(crate) fn hpas_of(&self, namespace: &str, workload: &Workload) -> Vec<Arc<HpaFacts>> {
        self.tables.read().hpa_of(namespace, workload)
    }

    /// All slices for a Service: ours and the built-in ones.
    pub(crate) fn slices_of(&self, service: &RouteKey) -> Vec<Arc<SliceFacts>> {
        self.tables.read().slices_of(service)
    }

    /// The slices of a pool's private Service: its pods.
    pub(crate) fn slices_of_pool(&self, pool: &PoolKey) -> Vec<Arc<SliceFacts>> {
        self.tables.read().slices_of_pool(pool)
    }

    /// How many pods of a pool Kubernetes says can serve.
    pub(crate) fn ready_pods(&self, pool: &PoolKey) -> u32 {
        let slices = self.slices_of_pool(pool);
        let usable: BTreeSet<&str> = slices
            .iter()
            .flat_map(|slice| &slice.endpoints)
            .filter(|endpoint| endpoint.usable())
            .map(|endpoint| endpoint.address.as_str())
            .collect();
        u32::try_from(usable.len()).unwrap_or(u32::MAX)
    }

    /// Services that are opted in, carry our key, or have a Route.
    pub(crate) fn relevant(&self) -> BTreeSet<RouteKey> {
        self.tables.read().relevant()
    }

    /// Whether the system namespace is being deleted.
    pub(crate) fn is_system_going(&self) -> bool {
        self.tables.read().is_system_going
    }

    /// How many things of ours stand in users' namespaces: while any does, somebody's traffic may depend on us.
    pub(crate) fn holds(&self) -> usize {
        self.tables.read().holds()
    }

    /// How many objects of each kind are held.
    pub(crate) fn sizes(&self) -> BTreeMap<&'static str, usize> {
        self.tables.read().sizes()
    }
}

/// The activators in their Service's slices, each once.
fn activators(slices: &[Arc<SliceFacts>]) -> Vec<Endpoint> {
    let report = |slice: &SliceFacts| {
        slice
            .ports
            .iter()
            .find(|(name, _)| name == crds::names::REPORT_PORT_NAME)
            .map(|(_, port)| *port)
    };
    let endpoint = |slice: &Arc<SliceFacts>, endpoint: &EndpointFacts| {
        Some(Endpoint {
            address: endpoint.address.clone(),
            port: report(slice)?,
            node: endpoint.node.clone(),
            zone: endpoint.zone.clone(),
        })
    };
    let all: BTreeSet<Endpoint> = slices
        .iter()
        .flat_map(|slice| {
            slice
                .endpoints
                .iter()
                .filter_map(|each| endpoint(slice, each))
                .collect::<Vec<_>>()
        })
        .collect();
    all.into_iter().collect()
}

#[cfg(test)]
mod tests;
