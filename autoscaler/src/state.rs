//! What the two halves of the control plane tell each other.
//!
//! [`path`](crate::path) decides who is in the data path and publishes an [`Entry`] per Route; [`scale`](crate::scale)
//! decides replicas and reads them. In the other direction [`Fleet`](crate::ingest) shows the live activators and the
//! traffic of each pool. Both are plain tables behind a short lock that
//! say which keys need another look.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crds::Settings;
use crds::report::PoolKey;
use crds::route::{Phase, RouteRollout, Workload};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use parking_lot::RwLock;

/// A Route, and the Service of the same name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct RouteKey {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl RouteKey {
    /// The key of a workload that has no Service, and so no Route. No Service has such a name: it has a slash.
    pub(crate) fn worker(namespace: &str, workload: &Workload) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: workload.to_string(),
        }
    }

    /// Whether it stands for a workload without a Service.
    pub(crate) fn is_worker(&self) -> bool {
        self.name.contains('/')
    }
}

impl std::fmt::Display for RouteKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What the capture side says of one opted-in Service, or of a worker.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    /// The last good settings.
    pub(crate) settings: Arc<Settings>,
    /// The pools and their workloads; empty when refused.
    pub(crate) pools: Vec<(PoolKey, Workload)>,
    /// Whether the workload may go to zero; the error is the sentence that says why not.
    pub(crate) may_sleep: Result<(), String>,
    /// Replicas to keep at least, whatever the traffic, and why: during release.
    pub(crate) at_least: Option<(u32, String)>,
    /// Why every pool keeps the pods that it has: some requests reach them past the activators.
    pub(crate) holds: Option<String>,
    /// Pods that single pools need at least, and why: a rollout's.
    pub(crate) needs: BTreeMap<PoolKey, (u32, String)>,
    /// The pool that does not go to zero because its rollout has another one for that, and why.
    pub(crate) stays: Option<(PoolKey, String)>,
    /// Pools that get no requests now: `min-scale` is not for them.
    pub(crate) idle: BTreeSet<PoolKey>,
    /// `hpa/NAME` when a HorizontalPodAutoscaler scales 1→N and we only 0↔1.
    pub(crate) scaled_by: Option<String>,
    /// Phase that capture decides (`Direct`, `FailOpen`, `Refused`); `None`: the scale side decides by pods.
    pub(crate) phase: Option<Phase>,
    /// Names of the activators that listen for the Route's current generation.
    pub(crate) listening: Vec<String>,
    /// Generation of the Route that `listening` refers to.
    pub(crate) generation: Option<i64>,
    /// One sentence that replaces the scaling reason while capture has something more important to say.
    pub(crate) why: Option<String>,
    /// Conditions that the capture side owns: Captured, ConfigurationValid, FullyActive, SelectorConflict, ScaledByHPA,
    /// FailOpen, Warning.
    pub(crate) conditions: Vec<Condition>,
}

/// All entries. The capture side writes, the scale side reads; only a leader fills it.
#[derive(Debug)]
pub(crate) struct Registry {
    entries: RwLock<HashMap<RouteKey, Arc<Entry>>>,
    dirty: Arc<Dirty<RouteKey>>,
}

impl Registry {
    /// An empty registry.
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            entries: RwLock::default(),
            dirty: Dirty::new(),
        })
    }

    /// Publishes `entry`, or takes the Route out with `None`. Tells readers only when something changed.
    pub(crate) fn set(&self, key: &RouteKey, entry: Option<Entry>) {
        let mut entries = self.entries.write();
        let changed = match entry {
            None => entries.remove(key).is_some(),
            Some(entry) if entries.get(key).is_some_and(|old| **old == entry) => false,
            Some(entry) => {
                entries.insert(key.clone(), Arc::new(entry));
                true
            }
        };
        drop(entries);
        if changed {
            self.dirty.mark([key.clone()]);
        }
    }

    /// Routes whose entry changed. For one taker: the scale side.
    pub(crate) fn dirty(&self) -> Arc<Dirty<RouteKey>> {
        Arc::clone(&self.dirty)
    }

    /// The entry of one Route.
    pub(crate) fn get(&self, key: &RouteKey) -> Option<Arc<Entry>> {
        self.entries.read().get(key).cloned()
    }

    /// All entries, cheaply shared.
    pub(crate) fn all(&self) -> Vec<(RouteKey, Arc<Entry>)> {
        self.those(|_, _| true)
    }

    /// The entries that are meant.
    pub(crate) fn those(&self, meant: impl Fn(&RouteKey, &Entry) -> bool) -> Vec<(RouteKey, Arc<Entry>)> {
        let entries = self.entries.read();
        let those = entries.iter().filter(|(key, entry)| meant(key, entry));
        those
            .map(|(key, entry)| (key.clone(), Arc::clone(entry)))
            .collect()
    }
}

/// How a Service's traffic is divided among the pools of its workload's revisions.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Division {
    /// The user's own workload.
    pub(crate) target: Workload,
    /// Pools by name and weight, adding up to all; one with 0 stands by.
    pub(crate) weights: BTreeMap<String, u32>,
    /// What the Route says of the candidate.
    pub(crate) rollout: Option<RouteRollout>,
    /// Pods that pools need at least, and why.
    pub(crate) needs: BTreeMap<String, (u32, String)>,
    /// The pool that does not go to zero, and why.
    pub(crate) stays: Option<(String, String)>,
    /// Pools that get no traffic, and still have to be scaled.
    pub(crate) others: BTreeSet<String>,
}

/// That a workload is rolled out for a Service: no other Service is captured on it, because its pods come and go.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Claim {
    /// The user's own workload, in the Service's namespace.
    pub(crate) target: Workload,
    /// The Rollout's name.
    pub(crate) rollout: String,
}

/// What is known of a Service's division.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Divided {
    /// Not yet: what the Route says stands.
    Unknown,
    /// It has none.
    Whole,
    /// Like this.
    Into(Arc<Division>),
}

/// All divisions. The rollout side writes, the capture side reads.
#[derive(Debug)]
pub(crate) struct Divisions {
    state: RwLock<(bool, HashMap<RouteKey, Arc<Division>>)>,
    /// One for each Rollout at most.
    claims: RwLock<HashMap<RouteKey, Claim>>,
    dirty: Arc<Dirty<RouteKey>>,
}

impl Divisions {
    /// Nothing is known yet.
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            state: RwLock::default(),
            claims: RwLock::default(),
            dirty: Dirty::new(),
        })
    }

    /// Says that a workload is rolled out for a Service, or that none is. Returns which was before.
    pub(crate) fn claim(&self, service: &RouteKey, claim: Option<Claim>) -> Option<Workload> {
        let mut claims = self.claims.write();
        let old = match claim {
            Some(claim) => claims.insert(service.clone(), claim),
            None => claims.remove(service),
        };
        old.map(|old| old.target)
    }

    /// Another process leads: what it knows of Rollouts is not known here.
    pub(crate) fn forget_claims(&self) {
        self.claims.write().clear();
    }

    /// For which other Service a workload is rolled out, and by which Rollout.
    pub(crate) fn claimed(&self, service: &RouteKey, workload: &Workload) -> Option<(String, String)> {
        let claims = self.claims.read();
        let mut others = claims.iter().filter(|(other, claim)| {
            *other != service && other.namespace == service.namespace && claim.target == *workload
        });
        others
            .next()
            .map(|(other, claim)| (other.name.clone(), claim.rollout.clone()))
    }

    /// From now on a Service without a division has none.
    pub(crate) fn set_known(&self, known: bool) {
        let mut state = self.state.write();
        if state.0 != known {
            state.0 = known;
            let keys: Vec<RouteKey> = state.1.keys().cloned().collect();
            drop(state);
            self.dirty.mark(keys);
        }
    }

    /// What is known of a Service.
    pub(crate) fn of(&self, key: &RouteKey) -> Divided {
        let state = self.state.read();
        match state.1.get(key) {
            Some(division) => Divided::Into(Arc::clone(division)),
            None if state.0 => Divided::Whole,
            None => Divided::Unknown,
        }
    }

    /// Publishes a division, or that there is none any more.
    pub(crate) fn set(&self, key: &RouteKey, division: Option<Division>) {
        let mut state = self.state.write();
        let changed = match division {
            None => state.1.remove(key).is_some(),
            Some(division) if state.1.get(key).is_some_and(|old| **old == division) => false,
            Some(division) => {
                state.1.insert(key.clone(), Arc::new(division));
                true
            }
        };
        drop(state);
        if changed {
            self.dirty.mark([key.clone()]);
        }
    }

    /// Services whose division changed. For one taker: the capture side.
    pub(crate) fn dirty(&self) -> Arc<Dirty<RouteKey>> {
        Arc::clone(&self.dirty)
    }
}

/// Keys that need another look. Marking one twice before it is taken counts once, so the set is bounded by what there is.
#[derive(Debug)]
pub(crate) struct Dirty<K> {
    keys: parking_lot::Mutex<std::collections::HashSet<K>>,
    wake: tokio::sync::Notify,
}

impl<K: std::hash::Hash + Eq> Dirty<K> {
    /// An empty set.
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            keys: parking_lot::Mutex::default(),
            wake: tokio::sync::Notify::new(),
        })
    }

    /// Adds keys and wakes the taker.
    pub(crate) fn mark(&self, keys: impl IntoIterator<Item = K>) {
        let mut set = self.keys.lock();
        let before = set.len();
        set.extend(keys);
        let grown = set.len() > before;
        drop(set);
        if grown {
            self.wake.notify_one();
        }
    }

    /// Waits until there are keys and takes them all. For one taker.
    ///
    /// # Cancel safety
    /// Nothing is lost: keys stay until a call returns them.
    pub(crate) async fn take(&self) -> Vec<K> {
        loop {
            let taken: Vec<K> = self.keys.lock().drain().collect();
            if !taken.is_empty() {
                return taken;
            }
            self.wake.notified().await;
        }
    }
}
