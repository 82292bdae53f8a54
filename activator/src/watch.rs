//! The cluster, as events applied to a plain index: Routes become listeners and targets, EndpointSlices become pods.
//!
//! Objects are cut to what is needed as they arrive. While the API server is away the last picture stands.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crds::names::{POOL_LABEL, PROBE_PORT_NAME};
use crds::report::{PoolKey, RouteAck};
use crds::route::{Route, RouteSpec};
use futures::{Stream, StreamExt};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::watcher::{self, Event};
use kube::{Api, ResourceExt};
use tokio::time::Instant;

use crate::directory::Directory;
use crate::hub::Hub;
use crate::pool::{Pool, Published, Settings};
use crate::rollout::Plan;
use crate::route::{RouteKey, Target, Timeouts, WaitingPage};
use crate::server::Server;

/// How often ports that could not be opened are tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Between tries to reach the API server: short, because a pod's address is worth nothing late.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// How long a Route that was deleted is served on while its pods are still published. The autoscaler takes those away before
/// it deletes a Route, so this one was deleted by somebody else (an uninstallation deletes the CRD), and the Service's
/// slices still lead here. Less than the minute that a listening port rests before it is given to another Route.
const DEPARTED: Duration = Duration::from_secs(50);
/// Pools without a Route whose counters are kept, so that a Service opted in again goes on where it was: counters of one
/// instance never go back. Those that went last are kept.
const KEPT_POOLS: usize = 1000;

/// The index.
pub(crate) struct Index {
    hub: Arc<Hub>,
    server: Arc<Server>,
    directory: Arc<Directory>,
    /// Routes that are served on although they were deleted, and since when.
    departed: HashMap<RouteKey, Instant>,
    /// Which Routes use a pool.
    users: HashMap<PoolKey, HashSet<RouteKey>>,
    /// Pools that no Route uses any more, the first that went first.
    retired: VecDeque<Arc<Pool>>,
    /// Pods of each slice, and whose they are.
    slices: HashMap<(String, String), (PoolKey, BTreeMap<IpAddr, Published>)>,
    by_pool: HashMap<PoolKey, BTreeSet<String>>,
}

impl Index {
    pub(crate) fn new(hub: Arc<Hub>, server: Arc<Server>, directory: Arc<Directory>) -> Self {
        Self {
            hub,
            server,
            directory,
            departed: HashMap::new(),
            users: HashMap::new(),
            retired: VecDeque::new(),
            slices: HashMap::new(),
            by_pool: HashMap::new(),
        }
    }

    /// A Route is there, or has changed.
    pub(crate) fn apply_route(&mut self, route: &Route) {
        let Some(key) = route_key(route) else { return };
        self.departed.remove(&key);
        let spec = &route.spec;
        let title = key.to_string();
        let pools: Vec<_> = spec
            .pools
            .iter()
            .map(|pool| {
                let pool_key = PoolKey {
                    namespace: key.namespace.clone(),
                    pool: pool.name.clone(),
                };
                let settings = Settings {
                    service: title.clone(),
                    workload: pool.workload.clone(),
                    limit: pool.container_concurrency,
                    queue_limit: spec.queue_limit,
                    cold_start_timeout: Duration::from_millis(spec.cold_start_timeout_ms),
                    queue_timeout: Duration::from_millis(spec.queue_timeout_ms),
                    probe: pool.probe.clone(),
                };
                (pool.weight, self.use_pool(pool_key, &key, settings))
            })
            .collect();
        let rollout = self.plan(&key, spec, &pools);
        let target = Arc::new(Target {
            title,
            uid: route.metadata.uid.clone().unwrap_or_default(),
            generation: route.metadata.generation.unwrap_or_default(),
            ports: spec.ports.clone(),
            pools,
            ignore: spec.ignore.clone(),
            timeouts: Timeouts::of(spec),
            proxy_protocol: spec.proxy_protocol,
            waiting_page: WaitingPage::of(spec),
            rollout,
            key: key.clone(),
        });
        let old = self.directory.insert_target(&target);
        // First, so that there is room for the new one.
        self.forget_theme(old.as_deref());
        if let Some(WaitingPage::ConfigMap(name)) = &target.waiting_page {
            self.hub
                .themes
                .want(&self.hub, &key.namespace, name, Duration::from_secs(1));
        }
        let ack = self.server.serve(old.as_ref(), Arc::clone(&target));
        self.directory.acknowledge(ack);
        for (_, pool) in old.iter().flat_map(|old| &old.pools) {
            if target.pools.iter().all(|(_, kept)| kept.key != pool.key) {
                self.leave_pool(&pool.key, &key);
            }
        }
        self.hub.changed(None, true);
    }

    /// What a Route says of its candidate. What cannot be followed is logged, and the weights alone decide.
    fn plan(&self, key: &RouteKey, spec: &RouteSpec, pools: &[(u32, Arc<Pool>)]) -> Option<Arc<Plan>> {
        let rollout = spec.rollout.as_ref()?;
        let attempt = self.directory.attempt(key, &rollout.attempt);
        let mut wrong = Vec::new();
        let plan = Plan::of(rollout, pools, attempt.clone(), &mut wrong);
        if let Some(attempt) = attempt.filter(|attempt| self.directory.is_broken(attempt)) {
            self.hub.told_broken(&attempt);
        }
        for why in wrong {
            tracing::warn!(route = %key, why, "a part of the Route's rollout cannot be followed and is left out");
        }
        match plan {
            Ok(plan) => Some(Arc::new(plan)),
            Err(why) => {
                tracing::warn!(route = %key, why, "the Route's rollout cannot be followed; its weights alone decide");
                None
            }
        }
    }

    /// A Route was deleted: it goes once its pods are not published any more, see [`DEPARTED`].
    pub(crate) fn depart(&mut self, key: &RouteKey) {
        if self.is_published(key) {
            self.departed.entry(key.clone()).or_insert_with(Instant::now);
            if let Some(target) = self.directory.target(key) {
                self.server.leave(&target);
            }
        } else {
            self.delete_route(key);
        }
    }

    /// Whether a Route's pods are published still.
    fn is_published(&self, key: &RouteKey) -> bool {
        let target = self.directory.target(key);
        let mut pools = target.iter().flat_map(|target| &target.pools);
        pools.any(|(_, pool)| self.by_pool.contains_key(&pool.key))
    }

    /// Lets go of the deleted Routes whose time has come.
    fn let_departed_go(&mut self) {
        let due: Vec<RouteKey> = self
            .departed
            .iter()
            .filter(|(key, since)| since.elapsed() >= DEPARTED || !self.is_published(key))
            .map(|(key, _)| key.clone())
            .collect();
        for key in due {
            self.delete_route(&key);
        }
    }

    /// A Route has gone.
    pub(crate) fn delete_route(&mut self, key: &RouteKey) {
        self.departed.remove(key);
        let Some(old) = self.directory.remove_target(key) else {
            return;
        };
        self.server.forget(&old);
        self.forget_theme(Some(&old));
        for (_, pool) in &old.pools {
            self.leave_pool(&pool.key, key);
        }
        let gone = RouteAck {
            namespace: key.namespace.clone(),
            name: key.name.clone(),
            uid: old.uid.clone(),
            generation: old.generation,
            error: String::new(),
            gone: true,
        };
        self.directory.acknowledge(gone);
        self.hub.changed(None, true);
    }

    /// Forgets the ConfigMap that a Route named before, unless a Route of the namespace names it still.
    fn forget_theme(&self, old: Option<&Target>) {
        let Some((namespace, Some(page @ WaitingPage::ConfigMap(name)))) =
            old.map(|old| (&old.key.namespace, old.waiting_page.as_ref()))
        else {
            return;
        };
        let names_it = |target: &Arc<Target>| {
            target.key.namespace == *namespace && target.waiting_page.as_ref() == Some(page)
        };
        if !self.directory.targets().iter().any(names_it) {
            self.hub.themes.forget(namespace, name);
        }
    }

    /// Tries again to open ports that could not be opened.
    pub(crate) fn retry(&mut self) {
        for target in self.server.failed() {
            let ack = self.server.serve(None, target);
            if ack.error.is_empty() {
                tracing::info!(namespace = ack.namespace, route = ack.name, "listens now");
                self.hub.changed(None, true);
            }
            self.directory.acknowledge(ack);
        }
    }

    fn use_pool(&mut self, key: PoolKey, route: &RouteKey, settings: Settings) -> Arc<Pool> {
        self.users.entry(key.clone()).or_default().insert(route.clone());
        let known = self.directory.pool(&key);
        let is_known = known.is_some();
        let pool = known
            .or_else(|| self.unretire(&key))
            .unwrap_or_else(|| Pool::new(key.clone(), Arc::clone(&self.hub)));
        pool.configure(settings);
        if !is_known {
            self.directory.insert_pool(&pool);
            self.publish(&key);
        }
        pool
    }

    /// A pool that was used before, with its counters.
    fn unretire(&mut self, key: &PoolKey) -> Option<Arc<Pool>> {
        let at = self.retired.iter().position(|pool| pool.key == *key)?;
        self.retired.remove(at)
    }

    fn leave_pool(&mut self, key: &PoolKey, route: &RouteKey) {
        let Some(users) = self.users.get_mut(key) else {
            return;
        };
        users.remove(route);
        if !users.is_empty() {
            return;
        }
        self.users.remove(key);
        if let Some(pool) = self.directory.remove_pool(key) {
            pool.publish(BTreeMap::new());
            self.retired.push_back(pool);
            if self.retired.len() > KEPT_POOLS && self.retired.pop_front().is_some() {
                self.hub.metrics.pools_forgotten.inc();
            }
        }
    }

    /// A slice is there, or has changed.
    pub(crate) fn apply_slice(&mut self, slice: &EndpointSlice) {
        let (Some(name), Some(namespace)) = (slice.metadata.name.clone(), slice.metadata.namespace.clone())
        else {
            return;
        };
        let Some(pool) = slice.labels().get(POOL_LABEL) else {
            return;
        };
        let key = PoolKey {
            namespace: namespace.clone(),
            pool: pool.clone(),
        };
        let new = (key.clone(), pods_of(slice));
        let id = (namespace, name.clone());
        if self.slices.get(&id) == Some(&new) {
            return;
        }
        if let Some((old, _)) = self.slices.insert(id, new)
            && old != key
        {
            self.unlist(&old, &name);
        }
        self.by_pool.entry(key.clone()).or_default().insert(name);
        self.publish(&key);
    }

    /// A slice has gone.
    pub(crate) fn delete_slice(&mut self, namespace: &str, name: &str) {
        if let Some((key, _)) = self.slices.remove(&(namespace.to_owned(), name.to_owned())) {
            self.unlist(&key, name);
        }
        self.let_departed_go();
    }

    fn unlist(&mut self, key: &PoolKey, slice: &str) {
        if let Some(slices) = self.by_pool.get_mut(key) {
            slices.remove(slice);
            if slices.is_empty() {
                self.by_pool.remove(key);
            }
        }
        self.publish(key);
    }

    /// Tells a pool of its pods, put together from all its slices.
    fn publish(&self, key: &PoolKey) {
        let Some(pool) = self.directory.pool(key) else {
            return;
        };
        let mut pods: BTreeMap<IpAddr, Published> = BTreeMap::new();
        for slice in self.by_pool.get(key).into_iter().flatten() {
            let Some((_, listed)) = self.slices.get(&(key.namespace.clone(), slice.clone())) else {
                continue;
            };
            for (address, pod) in listed {
                match pods.entry(*address) {
                    std::collections::btree_map::Entry::Vacant(entry) => {
                        entry.insert(pod.clone());
                    }
                    // A pod moves from one slice to another: for a moment it is in both.
                    std::collections::btree_map::Entry::Occupied(mut entry) => {
                        let known = entry.get_mut();
                        known.serving |= pod.serving;
                        known.terminating |= pod.terminating;
                        let mut ports = [&known.ports[..], &pod.ports[..]].concat();
                        ports.sort_unstable();
                        ports.dedup();
                        known.ports = ports.into();
                        known.probe_port = known.probe_port.or(pod.probe_port);
                    }
                }
            }
        }
        pool.publish(pods);
    }
}

fn route_key(route: &Route) -> Option<RouteKey> {
    Some(RouteKey {
        namespace: route.metadata.namespace.clone()?,
        name: route.metadata.name.clone()?,
    })
}

/// What is kept of a slice.
fn pods_of(slice: &EndpointSlice) -> BTreeMap<IpAddr, Published> {
    let mut ports = Vec::new();
    let mut probe_port = None;
    for port in slice.ports.iter().flatten() {
        let (Some(name), Some(number)) = (&port.name, port.port.and_then(|port| u16::try_from(port).ok()))
        else {
            continue;
        };
        if name == PROBE_PORT_NAME {
            probe_port = Some(number);
        } else if let Some(listen) = name.strip_prefix('p').and_then(|listen| listen.parse().ok()) {
            ports.push((listen, number));
        }
    }
    ports.sort_unstable();
    let mut pods = BTreeMap::new();
    for endpoint in &slice.endpoints {
        let Some(address) = endpoint
            .addresses
            .first()
            .and_then(|address| address.parse().ok())
        else {
            continue;
        };
        let conditions = endpoint.conditions.as_ref();
        let says = |field: fn(&k8s_openapi::api::discovery::v1::EndpointConditions) -> Option<bool>| {
            conditions.and_then(field).unwrap_or(false)
        };
        let pod = Published {
            ports: ports.clone().into(),
            probe_port,
            // `ready` is always true here, because the private Service publishes addresses that are not.
            serving: says(|conditions| conditions.serving),
            terminating: says(|conditions| conditions.terminating),
        };
        pods.insert(address, pod);
    }
    pods
}

/// Watches Routes and slices for ever.
pub(crate) async fn run(client: kube::Client, mut index: Index) {
    let namespace = index.hub.config.namespace.clone();
    let routes: Api<Route> = match &namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    };
    let slices: Api<EndpointSlice> = match &namespace {
        Some(namespace) => Api::namespaced(client, namespace),
        None => Api::all(client),
    };
    let mut routes = std::pin::pin!(patient(routes, watcher::Config::default()));
    let mut slices = std::pin::pin!(patient(slices, watcher::Config::default().labels(POOL_LABEL)));
    let mut listed_routes: HashSet<RouteKey> = HashSet::new();
    let mut listed_slices: HashSet<(String, String)> = HashSet::new();
    let mut retry = tokio::time::interval(RETRY);
    retry.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            Some(event) = slices.next() => index.slice_event(event, &mut listed_slices),
            Some(event) = routes.next() => index.route_event(event, &mut listed_routes),
            _ = retry.tick(), if !index.departed.is_empty() || !index.server.failed().is_empty() => {
                index.let_departed_go();
                index.retry();
            }
        }
    }
}

/// A watch that never ends and waits between failures.
fn patient<K>(api: Api<K>, config: watcher::Config) -> impl Stream<Item = watcher::Result<Event<K>>>
where
    K: kube::Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    use kube::runtime::WatchStreamExt;
    use kube::runtime::utils::Backoff;

    #[derive(Default)]
    struct Pause(Duration);
    impl Iterator for Pause {
        type Item = Duration;
        fn next(&mut self) -> Option<Duration> {
            self.0 = (self.0 * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
            // Activators that lost one API server together should not come back together.
            Some(self.0.mul_f64(0.5 + fastrand::f64() / 2.0))
        }
    }
    impl Backoff for Pause {
        fn reset(&mut self) {
            self.0 = Duration::ZERO;
        }
    }
    watcher::watcher(api, config).backoff(Pause::default())
}

impl Index {
    fn route_event(&mut self, event: watcher::Result<Event<Route>>, listed: &mut HashSet<RouteKey>) {
        match event {
            Ok(Event::Apply(route)) => self.apply_route(&route),
            Ok(Event::Delete(route)) => {
                if let Some(key) = route_key(&route) {
                    self.depart(&key);
                }
            }
            Ok(Event::Init) => listed.clear(),
            Ok(Event::InitApply(route)) => {
                listed.extend(route_key(&route));
                self.apply_route(&route);
            }
            Ok(Event::InitDone) => {
                for target in self.directory.targets() {
                    if !listed.contains(&target.key) {
                        self.depart(&target.key);
                    }
                }
                *listed = HashSet::new();
                self.directory.routes_are_synced();
            }
            Err(error) => self.watch_failed("Route", &error),
        }
    }

    fn slice_event(
        &mut self,
        event: watcher::Result<Event<EndpointSlice>>,
        listed: &mut HashSet<(String, String)>,
    ) {
        let id = |slice: &EndpointSlice| (slice.namespace().unwrap_or_default(), slice.name_any());
        match event {
            Ok(Event::Apply(slice)) => self.apply_slice(&slice),
            Ok(Event::Delete(slice)) => {
                let (namespace, name) = id(&slice);
                self.delete_slice(&namespace, &name);
            }
            Ok(Event::Init) => listed.clear(),
            Ok(Event::InitApply(slice)) => {
                listed.insert(id(&slice));
                self.apply_slice(&slice);
            }
            Ok(Event::InitDone) => {
                let gone: Vec<_> = self
                    .slices
                    .keys()
                    .filter(|key| !listed.contains(*key))
                    .cloned()
                    .collect();
                for (namespace, name) in &gone {
                    self.delete_slice(namespace, name);
                }
                *listed = HashSet::new();
                self.directory.slices_are_synced();
            }
            Err(error) => self.watch_failed("EndpointSlice", &error),
        }
    }

    fn watch_failed(&self, kind: &str, error: &watcher::Error) {
        self.hub.metrics.watch_errors.with_label_values(&[kind]).inc();
        tracing::warn!(kind, %error, "watch broke; the last picture stands");
    }
}
