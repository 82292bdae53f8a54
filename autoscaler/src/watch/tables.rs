//! The tables of the index, and who has to be told when one of them changes. No lock, no clock, no I/O.

mod read;

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::Arc;

use crds::report::PoolKey;
use crds::route::{Route, Workload, WorkloadKind};

use super::slice::{Role, SliceFacts};
use super::slim::{HpaFacts, Labels, ServiceFacts, WorkloadFacts};
use crate::state::RouteKey;

/// A namespace and a name.
pub(super) type Key = RouteKey;
/// A namespace and a workload in it.
type WorkloadKey = (String, Workload);

/// Who has to look again.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Marks {
    /// Services whose capture may have something to do.
    pub(super) services: BTreeSet<Key>,
    /// Pools of which replicas, readiness or scaler changed.
    pub(super) pools: BTreeSet<PoolKey>,
    /// Routes that changed in any way, status included.
    pub(super) routes: BTreeSet<Key>,
    /// The list of activators may have changed.
    pub(super) activators: bool,
}

/// A Service, what it is set to, and under which bucket it can be found from a workload.
#[derive(Debug)]
struct Served {
    facts: Arc<ServiceFacts>,
    enabled: bool,
    /// The workload it names; `None`: found by selector.
    named: Option<Workload>,
    bucket: Option<u64>,
}

/// Everything that is watched, slim.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    pub(super) system: String,
    /// The system namespace is being deleted.
    pub(super) is_system_going: bool,
    namespaces: HashMap<String, Arc<Labels>>,
    services: HashMap<Key, Served>,
    /// Private Services of pools, by their own name.
    privates: HashMap<Key, Arc<ServiceFacts>>,
    workloads: HashMap<WorkloadKey, Arc<WorkloadFacts>>,
    routes: HashMap<Key, Arc<Route>>,
    hpas: HashMap<Key, Arc<HpaFacts>>,
    slices: HashMap<Key, Arc<SliceFacts>>,
    /// Slices by the Service they are for.
    slices_of: HashMap<Key, BTreeSet<String>>,
    /// Slices of private Services by pool.
    slices_of_pool: HashMap<PoolKey, BTreeSet<String>>,
    /// Services by one pair of their selector, or by the workload they name.
    /// A workload finds its Services here without a look at each Service of its namespace.
    services_by_pair: HashMap<u64, BTreeSet<Key>>,
    /// Workloads by each label of their pods.
    workloads_by_pair: HashMap<u64, BTreeSet<WorkloadKey>>,
    /// HPAs by what they scale.
    hpas_of: HashMap<WorkloadKey, BTreeSet<String>>,
}

/// A bucket's number. A collision is harmless: whatever is found in a bucket is checked in full.
fn bucket(namespace: &str, key: &str, value: &str) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one((namespace, key, value))
}

fn named_bucket(namespace: &str, workload: &Workload) -> u64 {
    bucket(namespace, "\0workload", &workload.to_string())
}

fn take_out<K: std::hash::Hash + Eq, V: Ord>(map: &mut HashMap<K, BTreeSet<V>>, key: &K, value: &V) {
    if let Some(set) = map.get_mut(key) {
        set.remove(value);
        if set.is_empty() {
            map.remove(key);
        }
    }
}

impl Tables {
    /// Empty tables; `system` is the namespace of the activators.
    pub(super) fn new(system: &str) -> Self {
        Self {
            system: system.to_owned(),
            ..Self::default()
        }
    }

    fn is_relevant(&self, key: &Key, served: &Served) -> bool {
        served.enabled || served.facts.has_key() || self.routes.contains_key(key)
    }

    // Marks.

    fn mark_service(&self, key: &Key, marks: &mut Marks) {
        let relevant = self
            .services
            .get(key)
            .is_some_and(|served| self.is_relevant(key, served));
        if relevant || self.routes.contains_key(key) {
            marks.services.insert(key.clone());
        }
    }

    /// Marks the Services that share a workload with this one: what one is set to is another's refusal.
    fn mark_mates(&self, key: &Key, marks: &mut Marks) {
        for workload in self.workloads_of(key) {
            marks.services.extend(self.services_of(&workload));
        }
    }

    fn mark_workload(&self, workload: &WorkloadFacts, marks: &mut Marks) {
        marks.pools.insert(pool_of(workload));
        marks.services.extend(self.services_of(workload));
    }

    fn mark_pool(&self, pool: &PoolKey, marks: &mut Marks) {
        marks.pools.insert(pool.clone());
        for kind in [WorkloadKind::Deployment, WorkloadKind::StatefulSet] {
            let workload = Workload {
                kind,
                name: pool.pool.clone(),
            };
            if let Some(workload) = self.workload(&pool.namespace, &workload) {
                marks.services.extend(self.services_of(&workload));
            }
        }
    }

    fn mark_hpa(&self, hpa: &HpaFacts, marks: &mut Marks) {
        let Some(target) = &hpa.target else { return };
        if let Some(workload) = self.workload(&hpa.namespace, target) {
            self.mark_workload(&workload, marks);
        }
    }

    // Writes: each takes the new object, or `None` when it is gone.

    pub(super) fn set_namespace(&mut self, name: &str, annotations: Option<Labels>, marks: &mut Marks) {
        let annotations = annotations
            .filter(|annotations| !annotations.is_empty())
            .map(Arc::new);
        if self.namespaces.get(name) == annotations.as_ref() {
            return;
        }
        match annotations {
            Some(annotations) => self.namespaces.insert(name.to_owned(), annotations),
            None => self.namespaces.remove(name),
        };
        let inside: Vec<Key> = self
            .services
            .keys()
            .filter(|key| key.namespace == name)
            .cloned()
            .collect();
        for key in inside {
            let facts = self.services.get(&key).map(|served| Arc::clone(&served.facts));
            self.mark_service(&key, marks);
            self.file_service(&key, facts);
            self.mark_service(&key, marks);
        }
    }

    pub(super) fn set_service(&mut self, key: &Key, facts: Option<ServiceFacts>, marks: &mut Marks) {
        if facts
            .as_ref()
            .map_or_else(|| self.privates.contains_key(key), |facts| facts.pool.is_some())
        {
            return self.set_private(key, facts, marks);
        }
        if self.privates.contains_key(key) {
            self.set_private(key, None, marks);
        }
        let same = |old: &ServiceFacts, new: &ServiceFacts| {
            let new = ServiceFacts {
                resource_version: old.resource_version.clone(),
                ..new.clone()
            };
            *old == new
        };
        let old = self.services.get(key).map(|served| Arc::clone(&served.facts));
        let unchanged = matches!((&old, &facts), (Some(old), Some(new)) if same(old, new));
        let marking = !unchanged && (old.is_some() || facts.is_some());
        if marking {
            self.mark_service(key, marks);
            self.mark_mates(key, marks);
        }
        self.file_service(key, facts.map(Arc::new));
        if marking {
            self.mark_service(key, marks);
            self.mark_mates(key, marks);
        }
    }

    fn set_private(&mut self, key: &Key, facts: Option<ServiceFacts>, marks: &mut Marks) {
        let old = match &facts {
            Some(facts) => self.privates.insert(key.clone(), Arc::new(facts.clone())),
            None => self.privates.remove(key),
        };
        for pool in old
            .iter()
            .map(|old| &old.pool)
            .chain([&facts.and_then(|facts| facts.pool)])
            .flatten()
        {
            let pool = PoolKey {
                namespace: key.namespace.clone(),
                pool: pool.clone(),
            };
            self.mark_pool(&pool, marks);
        }
    }

    /// Files a Service anew under the bucket by which its workload finds it.
    fn file_service(&mut self, key: &Key, facts: Option<Arc<ServiceFacts>>) {
        if let Some(bucket) = self.services.get(key).and_then(|served| served.bucket) {
            take_out(&mut self.services_by_pair, &bucket, key);
        }
        let Some(facts) = facts else {
            self.services.remove(key);
            return;
        };
        let settings = crds::annotation::parse(&self.namespace(&key.namespace), &facts.annotations).settings;
        let mut served = Served {
            facts,
            enabled: settings.enabled,
            named: settings.workload,
            bucket: None,
        };
        served.bucket = match &served.named {
            Some(named) => Some(named_bucket(&key.namespace, named)),
            None => self.emptiest_bucket(&served.facts),
        };
        if let Some(bucket) = served.bucket {
            self.services_by_pair
                .entry(bucket)
                .or_default()
                .insert(key.clone());
        }
        self.services.insert(key.clone(), served);
    }

    /// Of a selector's pairs, the one that fewest Services are filed under: a label common to a whole namespace fills last.
    fn emptiest_bucket(&self, facts: &ServiceFacts) -> Option<u64> {
        let pairs = facts
            .selector
            .iter()
            .filter(|(key, _)| *key != crds::names::CAPTURED_SELECTOR_KEY);
        pairs
            .map(|(key, value)| bucket(&facts.namespace, key, value))
            .min_by_key(|bucket| self.services_by_pair.get(bucket).map_or(0, BTreeSet::len))
    }

    pub(super) fn set_workload(
        &mut self,
        namespace: &str,
        workload: &Workload,
        facts: Option<WorkloadFacts>,
        marks: &mut Marks,
    ) {
        let key = (namespace.to_owned(), workload.clone());
        let old = self.workloads.get(&key).cloned();
        if old.as_deref() == facts.as_ref() {
            return;
        }
        if let Some(old) = &old {
            self.mark_workload(old, marks);
            for (label, value) in &old.template_labels {
                take_out(
                    &mut self.workloads_by_pair,
                    &bucket(namespace, label, value),
                    &key,
                );
            }
        }
        let Some(facts) = facts else {
            self.workloads.remove(&key);
            return;
        };
        for (label, value) in &facts.template_labels {
            self.workloads_by_pair
                .entry(bucket(namespace, label, value))
                .or_default()
                .insert(key.clone());
        }
        self.mark_workload(&facts, marks);
        self.workloads.insert(key, Arc::new(facts));
    }

    pub(super) fn set_route(&mut self, key: &Key, route: Option<Route>, marks: &mut Marks) {
        let old = self.routes.get(key).cloned();
        if old.as_deref() == route.as_ref() {
            return;
        }
        let capture_cares = match (old.as_deref(), route.as_ref()) {
            (Some(old), Some(new)) => !is_same_but_for_status(old, new),
            _ => true,
        };
        marks.routes.insert(key.clone());
        if capture_cares {
            marks.services.insert(key.clone());
        }
        match route {
            Some(route) => self.routes.insert(key.clone(), Arc::new(route)),
            None => self.routes.remove(key),
        };
    }

    pub(super) fn set_hpa(&mut self, key: &Key, hpa: Option<HpaFacts>, marks: &mut Marks) {
        let old = self.hpas.get(key).cloned();
        if old.as_deref() == hpa.as_ref() {
            return;
        }
        if let Some(old) = &old {
            self.mark_hpa(old, marks);
            if let Some(target) = &old.target {
                take_out(
                    &mut self.hpas_of,
                    &(key.namespace.clone(), target.clone()),
                    &key.name,
                );
            }
        }
        let Some(hpa) = hpa else {
            self.hpas.remove(key);
            return;
        };
        if let Some(target) = &hpa.target {
            self.hpas_of
                .entry((key.namespace.clone(), target.clone()))
                .or_default()
                .insert(key.name.clone());
        }
        self.mark_hpa(&hpa, marks);
        self.hpas.insert(key.clone(), Arc::new(hpa));
    }

    pub(super) fn set_slice(&mut self, key: &Key, slice: Option<SliceFacts>, marks: &mut Marks) {
        let old = self.slices.get(key).cloned();
        if old.as_deref() == slice.as_ref() {
            return;
        }
        if let Some(old) = &old {
            self.mark_slice(old, marks);
            take_out(&mut self.slices_of, &of_service(old), &key.name);
            if let Some(pool) = of_pool(old) {
                take_out(&mut self.slices_of_pool, &pool, &key.name);
            }
        }
        let Some(slice) = slice else {
            self.slices.remove(key);
            return;
        };
        self.slices_of
            .entry(of_service(&slice))
            .or_default()
            .insert(key.name.clone());
        if let Some(pool) = of_pool(&slice) {
            self.slices_of_pool
                .entry(pool)
                .or_default()
                .insert(key.name.clone());
        }
        self.mark_slice(&slice, marks);
        self.slices.insert(key.clone(), Arc::new(slice));
    }

    fn mark_slice(&self, slice: &SliceFacts, marks: &mut Marks) {
        match (&slice.role, of_pool(slice)) {
            (Role::Activators, _) => marks.activators = true,
            (_, Some(pool)) => self.mark_pool(&pool, marks),
            _ => self.mark_service(&of_service(slice), marks),
        }
    }
}

/// Whether all that capture reads of a Route is the same: its own writes are the only other cause of a look, so what is not
/// compared here is never looked at.
fn is_same_but_for_status(old: &Route, new: &Route) -> bool {
    let (one, other) = (&old.metadata, &new.metadata);
    (&one.uid, one.generation, &one.annotations, &one.owner_references)
        == (
            &other.uid,
            other.generation,
            &other.annotations,
            &other.owner_references,
        )
        && one.deletion_timestamp.is_some() == other.deletion_timestamp.is_some()
}

/// The pool that is a workload's: it has its name.
fn pool_of(workload: &WorkloadFacts) -> PoolKey {
    PoolKey {
        namespace: workload.namespace.clone(),
        pool: workload.workload.name.clone(),
    }
}

fn of_service(slice: &SliceFacts) -> Key {
    Key {
        namespace: slice.namespace.clone(),
        name: slice.service.clone(),
    }
}

fn of_pool(slice: &SliceFacts) -> Option<PoolKey> {
    match &slice.role {
        Role::Pool(pool) => Some(PoolKey {
            namespace: slice.namespace.clone(),
            pool: pool.clone(),
        }),
        _ => None,
    }
}
