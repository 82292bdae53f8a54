//! What the tables are asked.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crds::report::PoolKey;
use crds::route::{Route, Workload, WorkloadKind};

use super::super::slice::{Role, SliceFacts};
use super::super::slim::{HpaFacts, Labels, ServiceFacts, WorkloadFacts};
use super::{Key, Tables, bucket, named_bucket};

impl Tables {
    pub(in crate::watch) fn service(&self, key: &Key) -> Option<Arc<ServiceFacts>> {
        self.services.get(key).map(|served| Arc::clone(&served.facts))
    }

    pub(in crate::watch) fn private(&self, key: &Key) -> Option<Arc<ServiceFacts>> {
        self.privates.get(key).cloned()
    }

    pub(in crate::watch) fn namespace(&self, name: &str) -> Arc<Labels> {
        self.namespaces.get(name).cloned().unwrap_or_default()
    }

    pub(in crate::watch) fn route(&self, key: &Key) -> Option<Arc<Route>> {
        self.routes.get(key).cloned()
    }

    pub(in crate::watch) fn routes(&self) -> Vec<(Key, Arc<Route>)> {
        self.routes
            .iter()
            .map(|(key, route)| (key.clone(), Arc::clone(route)))
            .collect()
    }

    pub(in crate::watch) fn workload(
        &self,
        namespace: &str,
        workload: &Workload,
    ) -> Option<Arc<WorkloadFacts>> {
        self.workloads
            .get(&(namespace.to_owned(), workload.clone()))
            .cloned()
    }

    pub(in crate::watch) fn workloads_with_original(&self) -> Vec<Arc<WorkloadFacts>> {
        self.workloads
            .values()
            .filter(|workload| workload.original_replicas.is_some())
            .cloned()
            .collect()
    }

    pub(in crate::watch) fn workloads_opted_in(&self) -> Vec<Arc<WorkloadFacts>> {
        let opted = format!("{}scale-to-zero", crds::annotation::PREFIX);
        self.workloads
            .values()
            .filter(|workload| workload.annotations.contains_key(&opted))
            .cloned()
            .collect()
    }

    pub(in crate::watch) fn hpa_of(&self, namespace: &str, workload: &Workload) -> Vec<Arc<HpaFacts>> {
        let names = self.hpas_of.get(&(namespace.to_owned(), workload.clone()));
        let get = |name: &String| {
            self.hpas
                .get(&Key {
                    namespace: namespace.to_owned(),
                    name: name.clone(),
                })
                .cloned()
        };
        names.into_iter().flatten().filter_map(get).collect()
    }

    /// All slices for a Service.
    pub(in crate::watch) fn slices_of(&self, service: &Key) -> Vec<Arc<SliceFacts>> {
        self.slices_named(&service.namespace, self.slices_of.get(service))
    }

    /// The slices of a pool's private Service.
    pub(in crate::watch) fn slices_of_pool(&self, pool: &PoolKey) -> Vec<Arc<SliceFacts>> {
        self.slices_named(&pool.namespace, self.slices_of_pool.get(pool))
    }

    fn slices_named(&self, namespace: &str, names: Option<&BTreeSet<String>>) -> Vec<Arc<SliceFacts>> {
        let get = |name: &String| {
            self.slices
                .get(&Key {
                    namespace: namespace.to_owned(),
                    name: name.clone(),
                })
                .cloned()
        };
        names.into_iter().flatten().filter_map(get).collect()
    }

    pub(in crate::watch) fn activator_slices(&self) -> Vec<Arc<SliceFacts>> {
        let service = Key {
            namespace: self.system.clone(),
            name: crds::names::ACTIVATOR_SERVICE.to_owned(),
        };
        let mut slices = self.slices_of(&service);
        slices.retain(|slice| slice.role == Role::Activators);
        slices
    }

    /// Services that are opted in, carry our key, or have a Route; also Routes whose Service is gone.
    pub(in crate::watch) fn relevant(&self) -> BTreeSet<Key> {
        let services = self
            .services
            .iter()
            .filter(|(key, served)| self.is_relevant(key, served));
        services
            .map(|(key, _)| key)
            .chain(self.routes.keys())
            .cloned()
            .collect()
    }

    /// The workloads that a Service means: the one it names, or those whose pods its own selector selects.
    pub(in crate::watch) fn workloads_of(&self, service: &Key) -> Vec<Arc<WorkloadFacts>> {
        let Some(served) = self.services.get(service) else {
            return Vec::new();
        };
        if let Some(named) = &served.named {
            return self.workload(&service.namespace, named).into_iter().collect();
        }
        let pairs = served
            .facts
            .selector
            .iter()
            .filter(|(key, _)| *key != crds::names::CAPTURED_SELECTOR_KEY);
        let found = pairs.map(|(key, value)| {
            self.workloads_by_pair
                .get(&bucket(&service.namespace, key, value))
        });
        // A pair that no workload has: none can match.
        let Some(smallest) = found
            .map(|set| set.map_or((0, None), |set| (set.len(), Some(set))))
            .min_by_key(|(len, _)| *len)
        else {
            return Vec::new();
        };
        let get = |key| self.workloads.get(key);
        let matches = |workload: &&Arc<WorkloadFacts>| {
            // The pools of a workload's revisions carry its labels too.
            workload.revision.is_none()
                && workload.namespace == service.namespace
                && served.facts.selects(&workload.template_labels)
        };
        smallest
            .1
            .into_iter()
            .flatten()
            .filter_map(get)
            .filter(matches)
            .cloned()
            .collect()
    }

    /// The opted-in or captured Services that mean a workload.
    pub(in crate::watch) fn services_of(&self, workload: &WorkloadFacts) -> BTreeSet<Key> {
        self.services_on(workload, true)
    }

    /// The Services that mean a workload, either those that are opted in or captured, or those that are not.
    pub(in crate::watch) fn services_on(&self, workload: &WorkloadFacts, relevant: bool) -> BTreeSet<Key> {
        let namespace = workload.namespace.as_str();
        let labels = workload
            .template_labels
            .iter()
            .map(|(key, value)| bucket(namespace, key, value));
        let buckets = labels.chain([named_bucket(namespace, &workload.workload)]);
        let candidates = buckets
            .filter_map(|bucket| self.services_by_pair.get(&bucket))
            .flatten();
        let means = |key: &&Key| {
            key.namespace == namespace
                && self.services.get(key).is_some_and(|served| {
                    let found = match &served.named {
                        Some(named) => *named == workload.workload,
                        None => served.facts.selects(&workload.template_labels),
                    };
                    found && self.is_relevant(key, served) == relevant
                })
        };
        candidates.filter(means).cloned().collect()
    }

    // Names of what there is, for the reset after a new list.

    pub(in crate::watch) fn namespace_keys(&self) -> Vec<String> {
        self.namespaces.keys().cloned().collect()
    }

    pub(in crate::watch) fn service_keys(&self) -> Vec<Key> {
        self.services
            .keys()
            .chain(self.privates.keys())
            .cloned()
            .collect()
    }

    pub(in crate::watch) fn workload_keys(&self, kind: WorkloadKind) -> Vec<Key> {
        let of_kind = self
            .workloads
            .keys()
            .filter(|(_, workload)| workload.kind == kind);
        of_kind
            .map(|(namespace, workload)| Key {
                namespace: namespace.clone(),
                name: workload.name.clone(),
            })
            .collect()
    }

    pub(in crate::watch) fn route_keys(&self) -> Vec<Key> {
        self.routes.keys().cloned().collect()
    }

    pub(in crate::watch) fn hpa_keys(&self) -> Vec<Key> {
        self.hpas.keys().cloned().collect()
    }

    pub(in crate::watch) fn slice_keys(&self) -> Vec<Key> {
        self.slices.keys().cloned().collect()
    }

    /// How many things of ours stand in users' namespaces: Routes, selector keys, slices, private Services, notes of replicas.
    pub(in crate::watch) fn holds(&self) -> usize {
        let keys = self.services.values().filter(|served| served.facts.has_key());
        let slices = self.slices.values().filter(|slice| slice.role == Role::Ours);
        self.routes.len()
            + self.privates.len()
            + keys.count()
            + slices.count()
            + self.workloads_with_original().len()
    }

    /// How many objects of each kind are held, for the dump of the admin port.
    pub(in crate::watch) fn sizes(&self) -> BTreeMap<&'static str, usize> {
        BTreeMap::from([
            ("namespaces", self.namespaces.len()),
            ("services", self.services.len()),
            ("privateServices", self.privates.len()),
            ("workloads", self.workloads.len()),
            ("routes", self.routes.len()),
            ("horizontalPodAutoscalers", self.hpas.len()),
            ("endpointSlices", self.slices.len()),
        ])
    }
}
