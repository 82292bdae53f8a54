//! Pools that wake and sleep together: names into members, and for each namespace that has any the graph of them.
//!
//! [`dormouse_core::group`] decides; here is what it decides from. A namespace without `group` and `depends-on` costs
//! nothing but the names of its Services.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use crds::condition::reason;
use crds::report::PoolKey;
use crds::route::{Workload, WorkloadKind};
use dormouse_core::Time;
use dormouse_core::group::{Company, Declared, Graph, Standing, Trouble, Waiting};
use tokio::time::Instant;

use super::Scaler;
use crate::state::{Entry, RouteKey};

/// How long something must have been wrong before it is said: manifests are applied one after the other, and a Service
/// often comes before what it depends on.
const MAY_COME: Duration = Duration::from_secs(3);

/// All namespaces.
#[derive(Default)]
pub(super) struct Together {
    namespaces: HashMap<String, Namespace>,
}

#[derive(Default)]
struct Namespace {
    /// What each Service and worker has written.
    entries: BTreeMap<String, Joined>,
    keys: Vec<PoolKey>,
    members: HashMap<PoolKey, usize>,
    declared: Vec<Declared>,
    graph: Graph,
    standing: Vec<Standing>,
    companies: Vec<Company>,
    /// The graph is new, and nothing has been made of it yet.
    stale: bool,
    waiting: Waiting,
    /// Since when something has been wrong.
    wrong: HashMap<(PoolKey, Trouble), Instant>,
    /// What of it has been told.
    told: HashSet<(PoolKey, Trouble)>,
}

/// One Service or worker.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Joined {
    /// Where its requests go first.
    pool: PoolKey,
    group: Option<String>,
    depends_on: Vec<String>,
    is_worker: bool,
}

impl Joined {
    fn of(route: &RouteKey, entry: &Entry) -> Option<Self> {
        let (pool, _) = entry.pools.first().filter(|_| entry.settings.enabled)?;
        Some(Self {
            pool: pool.clone(),
            group: entry.settings.group.clone(),
            depends_on: entry.settings.depends_on.clone(),
            is_worker: route.is_worker(),
        })
    }

    fn is_alone(&self) -> bool {
        self.group.is_none() && self.depends_on.is_empty()
    }
}

impl Together {
    /// Takes in what capture says of a Service now. Returns the pools to decide on again.
    pub(super) fn enter(&mut self, route: &RouteKey, entry: Option<&Entry>) -> Vec<PoolKey> {
        let joined = entry.and_then(|entry| Joined::of(route, entry));
        let namespace = match (self.namespaces.get_mut(&route.namespace), &joined) {
            (None, None) => return Vec::new(),
            (Some(namespace), _) => namespace,
            (None, Some(_)) => self.namespaces.entry(route.namespace.clone()).or_default(),
        };
        if namespace.entries.get(&route.name) == joined.as_ref() {
            return Vec::new();
        }
        match joined {
            Some(joined) => namespace.entries.insert(route.name.clone(), joined),
            None => namespace.entries.remove(&route.name),
        };
        let concerned = namespace.rebuild();
        if namespace.entries.is_empty() {
            self.namespaces.remove(&route.namespace);
        }
        concerned
    }

    /// How a pool stands now. Returns what the others mean for it, and the pools for which they mean something else now.
    pub(super) fn observe(
        &mut self,
        now: Time,
        key: &PoolKey,
        standing: Standing,
    ) -> (Company, Vec<PoolKey>) {
        let Some(namespace) = self.namespaces.get_mut(&key.namespace) else {
            return (Company::Free, Vec::new());
        };
        let Some(member) = namespace.members.get(key).copied() else {
            return (Company::Free, Vec::new());
        };
        let due = matches!(&namespace.companies[member], Company::Waits { until, .. } if *until <= now);
        let news = namespace.stale || due || !namespace.standing[member].is_like(&standing);
        namespace.standing[member] = standing;
        let concerned = if news {
            namespace.step(now, member)
        } else {
            Vec::new()
        };
        (namespace.companies[member].clone(), concerned)
    }

    /// The pools of a pool's group, itself included.
    pub(super) fn group_of(&self, key: &PoolKey) -> Vec<PoolKey> {
        let mates = self.namespaces.get(&key.namespace).and_then(|namespace| {
            let member = namespace.members.get(key)?;
            let mates = namespace.graph.group_of(*member);
            Some(mates.map(|mate| namespace.keys[mate].clone()).collect())
        });
        mates.unwrap_or_else(|| vec![key.clone()])
    }

    /// What is wrong, and has been for long enough that it is told now.
    fn news(&mut self, now: Instant) -> Vec<(PoolKey, Trouble)> {
        let namespaces = self.namespaces.values_mut();
        namespaces.flat_map(|namespace| namespace.news(now)).collect()
    }

    /// What has been told of a pool and still holds.
    pub(super) fn troubles(&self, key: &PoolKey) -> Vec<Trouble> {
        let told = self
            .namespaces
            .get(&key.namespace)
            .map(|namespace| &namespace.told);
        let of = told.into_iter().flatten().filter(|(pool, _)| pool == key);
        let mut troubles: Vec<Trouble> = of.map(|(_, trouble)| trouble.clone()).collect();
        troubles.sort();
        troubles
    }
}

impl Namespace {
    /// Makes the graph anew. Returns all that are or were members.
    fn rebuild(&mut self) -> Vec<PoolKey> {
        let mut pools: BTreeMap<PoolKey, Declared> = BTreeMap::new();
        let named: BTreeSet<&str> = self
            .entries
            .values()
            .flat_map(|joined| &joined.depends_on)
            .map(String::as_str)
            .collect();
        for (name, joined) in &self.entries {
            let name = if joined.is_worker { &joined.pool.pool } else { name };
            if joined.is_alone() && !joined.is_worker && !named.contains(name.as_str()) {
                continue;
            }
            let declared = pools.entry(joined.pool.clone()).or_default();
            declared.names.push(name.clone());
            declared.reachable |= !joined.is_worker;
            declared.group = declared.group.take().or_else(|| joined.group.clone());
            for need in &joined.depends_on {
                if !declared.depends_on.contains(need) {
                    declared.depends_on.push(need.clone());
                }
            }
        }
        let standing: Vec<Standing> = pools
            .keys()
            .map(|key| {
                self.members
                    .get(key)
                    .map_or_else(Standing::default, |old| self.standing[*old])
            })
            .collect();
        let (keys, declared): (Vec<_>, Vec<_>) = pools.into_iter().unzip();
        if self.declared == declared && self.keys == keys {
            return Vec::new();
        }
        let mut concerned: BTreeSet<PoolKey> = self.keys.drain(..).collect();
        concerned.extend(keys.iter().cloned());
        self.graph = Graph::new(&declared);
        self.members = keys.iter().cloned().zip(0..).collect();
        self.companies = vec![Company::Free; keys.len()];
        self.standing = standing;
        self.stale = true;
        (self.keys, self.declared) = (keys, declared);
        concerned.into_iter().collect()
    }

    fn step(&mut self, now: Time, member: usize) -> Vec<PoolKey> {
        self.stale = false;
        let companies = self.graph.step(now, &self.standing, &mut self.waiting);
        let old = std::mem::replace(&mut self.companies, companies);
        let changed = |other: &usize| *other != member && old[*other] != self.companies[*other];
        (0..self.keys.len())
            .filter(changed)
            .map(|other| self.keys[other].clone())
            .collect()
    }

    fn news(&mut self, now: Instant) -> Vec<(PoolKey, Trouble)> {
        let troubles = self.graph.troubles().iter();
        let there: HashSet<(PoolKey, Trouble)> = troubles
            .map(|(member, trouble)| (self.keys[*member].clone(), trouble.clone()))
            .collect();
        self.wrong.retain(|known, _| there.contains(known));
        let gone: Vec<_> = self.told.extract_if(|known| !there.contains(known)).collect();
        let mut news = gone;
        for trouble in there {
            let since = *self.wrong.entry(trouble.clone()).or_insert(now);
            if now.duration_since(since) >= MAY_COME && self.told.insert(trouble.clone()) {
                news.push(trouble);
            }
        }
        news
    }
}

impl Scaler {
    /// Tells users of Services whose `depends-on` cannot be obeyed as written.
    pub(super) fn tell_troubles(&self) {
        let mut state = self.state.lock();
        let news = state.together.news(Instant::now());
        for (key, trouble) in news {
            let Some(unit) = state.units.get(&key) else {
                continue;
            };
            if state.together.troubles(&key).contains(&trouble) {
                let (reason, note) = self.explain_trouble(&key, &trouble);
                tracing::warn!(pool = %key, reason, "{note}");
                self.tell(unit, true, reason, "Group", note);
            }
            self.shown.mark(unit.routes.keys().cloned());
        }
    }

    /// The reason and the sentence of something that is wrong, with the fix.
    pub(super) fn explain_trouble(&self, key: &PoolKey, trouble: &Trouble) -> (&'static str, String) {
        match trouble {
            Trouble::Missing { name } => self.missing(&key.namespace, name),
            Trouble::Circle { path } => (
                reason::DEPENDENCY_CYCLE,
                format!(
                    "depends-on goes in a circle, {}: these wake together and in no order; take one of them out.",
                    path.join(" to ")
                ),
            ),
            Trouble::OtherGroup { name, theirs, ours } => (
                reason::DEPENDENCY_IN_OTHER_GROUP,
                format!(
                    "depends-on names {name}, which is in group {theirs} and not in {ours}: a wake of this one wakes all of {theirs}; put both in one group, or take {name} out of its own."
                ),
            ),
        }
    }

    fn missing(&self, namespace: &str, name: &str) -> (&'static str, String) {
        let namespace = namespace.to_owned();
        let key = RouteKey {
            namespace,
            name: name.to_owned(),
        };
        let end = "until then it is neither woken nor waited for";
        if self.index.service(&key).is_some() {
            let refused = self.registry.get(&key).is_some();
            let what = if refused {
                format!("Service {name}, which cannot be captured: see the condition Captured of its Route")
            } else {
                format!(
                    "Service {name}, which is not opted in: annotate it with dormouse.dev/scale-to-zero: \"true\", or take it out"
                )
            };
            return (
                reason::DEPENDENCY_NOT_CAPTURED,
                format!("depends-on names {what}; {end}."),
            );
        }
        let kinds = [WorkloadKind::Deployment, WorkloadKind::StatefulSet];
        let workload = kinds
            .map(|kind| Workload {
                kind,
                name: name.to_owned(),
            })
            .into_iter()
            .find(|workload| self.index.workload(&key.namespace, workload).is_some());
        match workload {
            Some(workload) => (
                reason::DEPENDENCY_NOT_CAPTURED,
                format!(
                    "depends-on names {workload}, which has no Service and is not opted in itself: annotate it with dormouse.dev/scale-to-zero: \"true\", or name its Service; {end}."
                ),
            ),
            None => (
                reason::DEPENDENCY_NOT_FOUND,
                format!(
                    "depends-on names {name}, and this namespace has no Service or worker of that name; correct the name, or create it; {end}."
                ),
            ),
        }
    }
}
