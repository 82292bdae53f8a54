//! The pods of one revision as this activator sees them: who can answer, who has room, who waits.
//!
//! Where no limit is set, a request reads an immutable [`View`] and counts itself with one atomic: no lock. With a limit,
//! admission and the choice of a pod are one fact, so both happen under the pool's lock. Control tasks change the pods
//! under the same lock, swap the view, and hand out what became free: nobody is left waiting beside a free place.

mod probing;
mod reporting;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use crds::report::PoolKey;
use crds::route::{Probe, ProbeKind, Wake, Workload};
use parking_lot::{Mutex, RwLock};
use tokio::sync::oneshot;

use crate::balance;
use crate::budget::Budget;
use crate::forward::Connections;
use crate::hub::Hub;
use crate::meter::Meter;
use crate::reject::PoolNow;
use crate::throttle::{Admit, Kind, Throttle, Ticket};
use crate::wake::WakeClock;

/// Finished wakes kept until a report line carries them. Enough for a stream's absence; older ones go first.
const KEPT_WAKES: usize = 8;

/// `(listening port here, port there)`, ascending.
type Ports = Box<[(u16, u16)]>;

/// Where a request can be sent: a pod or a peer activator.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) address: IpAddr,
    /// A pod's port for each listening port; a peer listens on the listening ports themselves.
    ports: Option<RwLock<Ports>>,
    /// Requests sent there and not ended.
    pub(crate) in_flight: AtomicU32,
    /// Idle connections, for each worker. They close when the endpoint is dropped.
    pub(crate) connections: Box<[Connections]>,
}

impl Endpoint {
    fn pod(address: IpAddr, ports: Ports, workers: usize) -> Self {
        Self {
            ports: Some(RwLock::new(ports)),
            ..Self::peer(address, workers)
        }
    }

    /// A peer activator.
    pub(crate) fn peer(address: IpAddr, workers: usize) -> Self {
        Self {
            address,
            ports: None,
            in_flight: AtomicU32::new(0),
            connections: (0..workers).map(|_| Connections::default()).collect(),
        }
    }

    /// Whether it is a peer activator.
    pub(crate) fn is_peer(&self) -> bool {
        self.ports.is_none()
    }

    /// The port there for what is served here on `listen`.
    pub(crate) fn port(&self, listen: u16) -> Option<u16> {
        match &self.ports {
            None => Some(listen),
            Some(ports) => ports
                .read()
                .iter()
                .find(|(ours, _)| *ours == listen)
                .map(|(_, theirs)| *theirs),
        }
    }
}

/// What Kubernetes publishes of one pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Published {
    /// The pod's ports.
    pub(crate) ports: Ports,
    /// The readiness probe's port, when it has one of its own.
    pub(crate) probe_port: Option<u16>,
    /// Kubernetes says that it is ready.
    pub(crate) serving: bool,
    /// It is being deleted.
    pub(crate) terminating: bool,
}

/// What a pool is, from its Routes.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Settings {
    /// `namespace/name` of the Service.
    pub(crate) service: String,
    /// What has the `/scale`.
    pub(crate) workload: Workload,
    /// Most requests in flight in one pod; 0: no limit.
    pub(crate) limit: u32,
    /// Most requests held.
    pub(crate) queue_limit: u32,
    /// Longest a request is held.
    pub(crate) cold_start_timeout: Duration,
    /// How to see that a pod answers.
    pub(crate) probe: Probe,
}

/// What requests read.
#[derive(Debug, Default)]
struct View {
    limit: u32,
    /// Pods that new requests may go to.
    pods: Vec<Arc<Endpoint>>,
    /// Peers that own pods, with how many, when none of the ready ones is ours.
    peers: Vec<(Arc<Endpoint>, u32)>,
    /// Pods that answer, whoever owns them.
    ready: usize,
    /// Pods that exist.
    known: usize,
}

/// A pool.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) key: PoolKey,
    hub: Arc<Hub>,
    settings: RwLock<Arc<Settings>>,
    view: RwLock<Arc<View>>,
    state: Mutex<State>,
    /// `state.throttle.waiting()`, readable without the lock.
    held: AtomicU32,
    /// One for each worker.
    pub(crate) meters: Box<[Mutex<Meter>]>,
    /// Whether it is in the list of pools that changed.
    is_dirty: AtomicBool,
    pub(crate) budget: Budget,
}

#[derive(Debug, Default)]
struct State {
    throttle: Throttle<Arc<Endpoint>>,
    pods: BTreeMap<IpAddr, Pod>,
    /// Peer activators that this pool has sent requests to.
    peers: BTreeMap<IpAddr, Arc<Endpoint>>,
    waking: Option<WakeClock>,
    /// When a leader last said that it wakes this pool.
    acknowledged: Option<Duration>,
    wakes: Vec<Wake>,
}

#[derive(Debug)]
struct Pod {
    endpoint: Arc<Endpoint>,
    published: Published,
    /// Kubernetes has said once that it serves: from then on its word counts.
    was_serving: bool,
    /// Its probe has succeeded.
    answers: bool,
    /// A connection failed: it must answer a probe before it is used again.
    on_probation: bool,
    /// A task probes it.
    is_probed: bool,
    /// When its last probe that failed was sent.
    failed: Option<Duration>,
    appeared: Duration,
}

impl Pod {
    fn is_usable(&self) -> bool {
        !self.published.terminating
            && !self.on_probation
            && if self.was_serving {
                self.published.serving
            } else {
                self.answers
            }
    }

    /// Whether a probe could make it usable.
    fn wants_probe(&self, kind: ProbeKind) -> bool {
        let waits_for_kubernetes = if self.was_serving {
            !self.published.serving
        } else {
            kind == ProbeKind::Kubernetes
        };
        !self.is_usable() && !self.published.terminating && !waits_for_kubernetes
    }
}

/// How to probe one pod now.
#[derive(Clone, Debug)]
pub(crate) struct ProbeTarget {
    pub(crate) port: u16,
    pub(crate) probe: Probe,
    pub(crate) appeared: Duration,
    /// Whether somebody waits.
    pub(crate) is_awaited: bool,
}

/// The answer to [`Pool::enter`].
pub(crate) enum Enter {
    /// Go on.
    Granted(Slot),
    /// Wait.
    Queued(Held),
    /// Too many wait.
    Full,
}

impl Pool {
    pub(crate) fn new(key: PoolKey, hub: Arc<Hub>) -> Arc<Self> {
        let workers = hub.config.workers;
        Arc::new(Self {
            key,
            hub,
            settings: RwLock::default(),
            view: RwLock::default(),
            state: Mutex::default(),
            held: AtomicU32::new(0),
            meters: (0..workers).map(|_| Mutex::default()).collect(),
            is_dirty: AtomicBool::new(false),
            budget: Budget::default(),
        })
    }

    /// The settings in force.
    pub(crate) fn settings(&self) -> Arc<Settings> {
        Arc::clone(&self.settings.read())
    }

    /// Pods that answer.
    pub(crate) fn ready(&self) -> usize {
        self.view.read().ready
    }

    /// Requests that wait.
    pub(crate) fn held(&self) -> u32 {
        self.held.load(Ordering::Acquire)
    }

    // === requests ===

    /// A request asks for a place. `who` describes it, should it be the one that wakes the pool; noise wakes nothing.
    pub(crate) fn enter(
        self: &Arc<Self>,
        kind: Kind,
        now: Duration,
        random: &mut impl FnMut(u32) -> u32,
        who: Option<impl FnOnce() -> String>,
    ) -> Enter {
        let view = Arc::clone(&self.view.read());
        if view.limit == 0 && self.held() == 0 {
            // The view may be a moment old; a pod that has just gone refuses and the request comes back.
            if let Some(endpoint) = place(&view, kind, random) {
                return Enter::Granted(self.slot(endpoint));
            }
        }
        let mut state = self.state.lock();
        let view = Arc::clone(&self.view.read());
        let limit = self.settings.read().queue_limit as usize;
        let (ticket, line) = match state
            .throttle
            .admit(now, kind, limit, |kind| place(&view, kind, random))
        {
            Admit::Granted(endpoint) => return Enter::Granted(self.slot(endpoint)),
            Admit::Full => return Enter::Full,
            Admit::Queued(ticket, line) => (ticket, line),
        };
        self.count_held(&state);
        self.start_probes(&mut state);
        let wakes = match who {
            Some(who) if view.ready == 0 && state.waking.is_none() => {
                let at = k8s_openapi::jiff::Timestamp::now();
                let mut clock = WakeClock::new(now, at, who());
                if state.pods.values().any(|pod| !pod.published.terminating) {
                    clock.address(now);
                }
                state.waking = Some(clock);
                state.acknowledged = None;
                true
            }
            _ => false,
        };
        drop(state);
        if wakes {
            self.hub.control.spawn(crate::cluster::wake_unless_acknowledged(
                Arc::clone(self),
                Arc::clone(&self.hub),
            ));
        }
        Enter::Queued(Held {
            pool: Arc::clone(self),
            ticket,
            line,
            wakes,
            has_ended: false,
        })
    }

    fn slot(self: &Arc<Self>, endpoint: Arc<Endpoint>) -> Slot {
        Slot {
            pool: Arc::clone(self),
            endpoint,
        }
    }

    fn count_held(&self, state: &State) {
        let held = u32::try_from(state.throttle.waiting()).unwrap_or(u32::MAX);
        self.held.store(held, Ordering::Release);
    }

    /// Gives out every place that is free, in order of arrival.
    fn dispatch(&self, state: &mut State) {
        let view = Arc::clone(&self.view.read());
        let mut random = |below: u32| fastrand::u32(..below);
        state.throttle.dispatch(
            |kind| place(&view, kind, &mut random),
            |endpoint| {
                endpoint.in_flight.fetch_sub(1, Ordering::AcqRel);
            },
        );
        self.count_held(state);
    }

    fn release(&self, endpoint: &Endpoint) {
        endpoint.in_flight.fetch_sub(1, Ordering::AcqRel);
        if self.view.read().limit > 0 || self.held() > 0 {
            self.dispatch(&mut self.state.lock());
        }
    }

    /// A connection to the pod failed: it gets no more requests until it answers a probe.
    pub(crate) fn suspect(self: &Arc<Self>, endpoint: &Arc<Endpoint>) {
        let mut state = self.state.lock();
        let Some(pod) = state.pods.get_mut(&endpoint.address) else {
            return;
        };
        if !Arc::ptr_eq(&pod.endpoint, endpoint) || pod.on_probation {
            return;
        }
        pod.on_probation = true;
        pod.answers = false;
        self.refresh(&mut state);
        drop(state);
        self.touch(true);
    }

    /// The first answer to a request that was held while no pod was ready.
    pub(crate) fn answered(self: &Arc<Self>, now: Duration) {
        let mut state = self.state.lock();
        let Some((wake, parts)) = state
            .waking
            .as_ref()
            .and_then(|clock| clock.finish(now, &self.key.pool))
        else {
            return;
        };
        state.waking = None;
        if state.wakes.len() == KEPT_WAKES {
            state.wakes.remove(0);
        }
        state.wakes.push(wake);
        drop(state);
        self.hub.metrics.wake(&parts);
        self.touch(false);
    }

    /// The pool as a refusal describes it.
    pub(crate) fn describe(&self) -> PoolNow {
        let view = Arc::clone(&self.view.read());
        PoolNow {
            service: self.settings.read().service.clone(),
            ready: view.ready,
            pods: view.known,
            held: self.held(),
            waking: self.state.lock().acknowledged.is_some(),
        }
    }

    // === control ===

    /// Takes over settings from a Route.
    pub(crate) fn configure(self: &Arc<Self>, settings: Settings) {
        if **self.settings.read() == settings {
            return;
        }
        let mut state = self.state.lock();
        *self.settings.write() = Arc::new(settings);
        self.refresh(&mut state);
    }

    /// Takes over what Kubernetes publishes: all pods of the pool.
    pub(crate) fn publish(self: &Arc<Self>, mut published: BTreeMap<IpAddr, Published>) {
        let now = self.hub.now();
        let mut state = self.state.lock();
        state.pods.retain(|address, _| published.contains_key(address));
        for (address, pod) in &mut state.pods {
            let Some(new) = published.remove(address) else {
                continue;
            };
            if let Some(ports) = &pod.endpoint.ports
                && pod.published.ports != new.ports
            {
                *ports.write() = new.ports.clone();
            }
            pod.was_serving |= new.serving;
            pod.published = new;
        }
        for (address, new) in published {
            let endpoint = Endpoint::pod(address, new.ports.clone(), self.hub.config.workers);
            let pod = Pod {
                endpoint: Arc::new(endpoint),
                was_serving: new.serving,
                published: new,
                answers: false,
                on_probation: false,
                is_probed: false,
                failed: None,
                appeared: now,
            };
            state.pods.insert(address, pod);
        }
        let any = state.pods.values().any(|pod| !pod.published.terminating);
        if let Some(clock) = state.waking.as_mut().filter(|_| any) {
            clock.address(now);
        }
        self.refresh(&mut state);
        drop(state);
        self.touch(false);
    }

    /// The division of pods among activators has changed.
    pub(crate) fn reshare(self: &Arc<Self>) {
        if self.view.read().limit > 0 {
            self.refresh(&mut self.state.lock());
        }
    }

    /// Makes the view anew, gives out what became free, and sees to it that pods that should be probed are.
    fn refresh(self: &Arc<Self>, state: &mut State) {
        let limit = self.settings.read().limit;
        let was_ready = self.view.read().ready;
        let usable: Vec<_> = state
            .pods
            .values()
            .filter(|pod| pod.is_usable())
            .map(|pod| &pod.endpoint)
            .collect();
        let mut view = View {
            limit,
            ready: usable.len(),
            ..View::default()
        };
        view.known = state
            .pods
            .values()
            .filter(|pod| !pod.published.terminating)
            .count();
        let mut peers = std::mem::take(&mut state.peers);
        if limit == 0 {
            view.pods = usable.into_iter().cloned().collect();
        } else {
            self.hub.shares(|shares| {
                view.pods = usable
                    .iter()
                    .filter(|pod| shares.may_use(pod.address))
                    .map(|pod| Arc::clone(pod))
                    .collect();
                if view.pods.is_empty() {
                    let mut owners: BTreeMap<&str, u32> = BTreeMap::new();
                    for owner in usable.iter().filter_map(|pod| shares.owner(pod.address)) {
                        *owners.entry(owner).or_default() += 1;
                    }
                    // A pod that is ours, but not yet, has no peer by our name: it is waited for.
                    view.peers = owners
                        .into_iter()
                        .filter_map(|(name, pods)| Some((self.peer(&mut peers, name)?, pods)))
                        .collect();
                }
            });
        }
        let ready = view.ready;
        *self.view.write() = Arc::new(view);
        // Kept are those in the view and those that requests are under way to.
        peers.retain(|_, peer| Arc::strong_count(peer) > 1);
        state.peers = peers;
        if ready > 0 && was_ready == 0 {
            let held = self.held();
            if let Some(clock) = &mut state.waking {
                clock.listening(self.hub.now(), held);
            }
        }
        self.dispatch(state);
        self.start_probes(state);
    }

    /// The peer activator of that name as this pool sees it: its load counts this pool's requests alone.
    fn peer(&self, peers: &mut BTreeMap<IpAddr, Arc<Endpoint>>, name: &str) -> Option<Arc<Endpoint>> {
        let address = self.hub.peer(name)?;
        let peer = || Arc::new(Endpoint::peer(address, self.hub.config.workers));
        Some(Arc::clone(peers.entry(address).or_insert_with(peer)))
    }

    // === wakes ===

    /// A leader says that it wakes the pool.
    pub(crate) fn acknowledge(&self, now: Duration) {
        let mut state = self.state.lock();
        state.acknowledged = Some(now);
        if let Some(clock) = &mut state.waking {
            clock.signalled(now);
        }
    }

    /// This activator wakes the pool itself.
    pub(crate) fn signalled(&self, now: Duration) {
        if let Some(clock) = &mut self.state.lock().waking {
            clock.signalled(now);
        }
    }

    /// Whether requests wait, no pod is there to take them, and no leader has said since `since` that it sees to it.
    pub(crate) fn needs_wake(&self, since: Duration) -> bool {
        let state = self.state.lock();
        state.waking.is_some()
            && state.throttle.waiting() > 0
            && self.view.read().ready == 0
            && state.acknowledged.is_none_or(|at| at < since)
    }

    /// Whether the wake that began has neither ended nor been given up.
    pub(crate) fn is_waking(&self) -> bool {
        self.state.lock().waking.is_some()
    }
}

/// Finds a place and takes it.
fn place(view: &View, kind: Kind, random: &mut impl FnMut(u32) -> u32) -> Option<Arc<Endpoint>> {
    let load = |endpoint: &Endpoint| endpoint.in_flight.load(Ordering::Acquire);
    let endpoint = if let [only] = view.pods.as_slice() {
        (view.limit == 0 || load(only) < view.limit).then_some(only)?
    } else if !view.pods.is_empty() {
        &view.pods[balance::pick(view.pods.iter().map(|pod| load(pod)), view.limit, random)?]
    } else if kind == Kind::Client && !view.peers.is_empty() {
        // No more than the pods a peer owns can take at once: what waits here takes a pod of our own as soon as there is one.
        let room = |(peer, pods): &(Arc<Endpoint>, u32)| {
            let (load, places) = (load(peer), pods.saturating_mul(view.limit));
            // In 65,536ths of its places, so that a peer with more pods gets more.
            if load < places {
                load.saturating_mul(1 << 16) / places
            } else {
                u32::MAX
            }
        };
        &view.peers[balance::pick(view.peers.iter().map(room), u32::MAX, random)?].0
    } else {
        return None;
    };
    endpoint.in_flight.fetch_add(1, Ordering::AcqRel);
    Some(Arc::clone(endpoint))
}

/// A place at a pod or a peer; dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Slot {
    pool: Arc<Pool>,
    pub(crate) endpoint: Arc<Endpoint>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.pool.release(&self.endpoint);
    }
}

/// A place in line; dropping it leaves the line.
#[derive(Debug)]
pub(crate) struct Held {
    pool: Arc<Pool>,
    ticket: Ticket,
    line: oneshot::Receiver<Arc<Endpoint>>,
    /// Whether this request began a wake.
    pub(crate) wakes: bool,
    has_ended: bool,
}

impl Held {
    /// Waits for a place.
    ///
    /// # Cancel safety
    /// May be called again; a place that came meanwhile is not lost.
    pub(crate) async fn place(&mut self) -> Slot {
        match (&mut self.line).await {
            Ok(endpoint) => {
                self.has_ended = true;
                self.pool.slot(endpoint)
            }
            // The sender is dropped only with the pool, which this guard keeps alive.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.has_ended {
            return;
        }
        let mut state = self.pool.state.lock();
        state.throttle.leave(self.ticket);
        self.pool.count_held(&state);
        if state.throttle.waiting() == 0 && self.pool.view.read().ready == 0 {
            // Everybody has gone: what wakes now is not a cold start that anybody waits for.
            state.waking = None;
        }
        drop(state);
        // A place may have been given in the meantime.
        self.line.close();
        if let Ok(endpoint) = self.line.try_recv() {
            self.pool.release(&endpoint);
        }
    }
}

#[cfg(test)]
mod tests;
