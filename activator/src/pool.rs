//! The pods of one revision as this activator sees them: who can answer, who has room, who waits.
//!
//! Where no limit is set, a request reads an immutable [`View`] and counts itself with one atomic: no lock. With a limit,
//! admission and the choice of a pod are one fact, so both happen under the pool's lock. Control tasks change the pods
//! under the same lock, swap the view, and hand out what became free: nobody is left waiting beside a free place.
//!
//! View and settings are swapped, not locked: whoever reads them keeps nobody waiting, whatever lock they take meanwhile.
//!
//! In reading order: `endpoint` (where requests go), `entering` (how they get a place and give it back), `peers` (places
//! that other activators own), `pods` (what Kubernetes says), `outlier` and `failing` (pods that fail requests),
//! `probing`, `waking`, `reporting`.

mod endpoint;
mod entering;
mod failing;
mod outlier;
mod peers;
mod pods;
mod probing;
mod reporting;
mod waking;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use crds::report::PoolKey;
use crds::route::{Probe, Wake, Workload};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::budget::Budget;
use crate::cluster::ACKNOWLEDGED;
use crate::hub::Hub;
use crate::meter::Tally;
use crate::reject::PoolNow;
use crate::throttle::Throttle;
use crate::wake::WakeClock;

pub(crate) use endpoint::Endpoint;
pub(crate) use entering::{Enter, Held, Slot};
pub(crate) use outlier::Failure;
pub(crate) use pods::Published;

use entering::Place;
use peers::Ask;
use pods::Pod;
use waking::PageWake;

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
    /// Longest a request waits in line while pods are ready; zero: as `cold_start_timeout`.
    pub(crate) queue_timeout: Duration,
    /// How to see that a pod answers.
    pub(crate) probe: Probe,
}

/// What requests read.
#[derive(Debug, Default)]
struct View {
    limit: u32,
    /// Pods that new requests may go to.
    pods: Vec<Arc<Endpoint>>,
    /// With a limit: peers that own pods, with how many.
    peers: Vec<(Arc<Endpoint>, u32)>,
    /// Pods that answer, whoever owns them.
    ready: usize,
    /// Since when there are any.
    ready_since: Option<Duration>,
    /// Pods that exist.
    known: usize,
    /// Of these, pods that are passed over because they fail requests.
    ejected: usize,
    /// A port by which peers know the pool.
    door: Option<u16>,
}

/// A pool.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) key: PoolKey,
    hub: Arc<Hub>,
    settings: ArcSwap<Settings>,
    view: ArcSwap<View>,
    state: Mutex<State>,
    /// `state.throttle.waiting()`, readable without the lock.
    held: AtomicU32,
    /// One for each worker.
    pub(crate) tallies: Box<[Mutex<Tally>]>,
    /// Whether it is in the list of pools that changed.
    is_dirty: AtomicBool,
    pub(crate) budget: Budget,
    /// The wake for those who look at the waiting page.
    page: Mutex<PageWake>,
    /// Told when the first pod answers.
    became_ready: Notify,
}

#[derive(Debug, Default)]
struct State {
    throttle: Throttle<Place>,
    pods: BTreeMap<IpAddr, Pod>,
    /// Peer activators that own pods of this pool, or did.
    peers: BTreeMap<IpAddr, Arc<Endpoint>>,
    /// Places asked for at peers.
    asks: Vec<Ask>,
    /// Places kept for peers that asked, by the number they were told.
    kept: HashMap<u64, Slot>,
    waking: Option<WakeClock>,
    /// When a leader last said that it wakes this pool.
    acknowledged: Option<Duration>,
    wakes: Vec<Wake>,
}

impl State {
    /// The pod that an endpoint is of; `None`: it is gone, or another has its address.
    fn pod_of(&mut self, endpoint: &Arc<Endpoint>) -> Option<&mut Pod> {
        self.pods
            .get_mut(&endpoint.address)
            .filter(|pod| Arc::ptr_eq(&pod.endpoint, endpoint))
    }
}

impl Pool {
    pub(crate) fn new(key: PoolKey, hub: Arc<Hub>) -> Arc<Self> {
        let workers = hub.config.workers;
        Arc::new(Self {
            key,
            hub,
            settings: ArcSwap::default(),
            view: ArcSwap::default(),
            state: Mutex::default(),
            held: AtomicU32::new(0),
            tallies: (0..workers).map(|_| Mutex::default()).collect(),
            is_dirty: AtomicBool::new(false),
            budget: Budget::default(),
            page: Mutex::default(),
            became_ready: Notify::new(),
        })
    }

    /// The settings in force.
    pub(crate) fn settings(&self) -> Arc<Settings> {
        self.settings.load_full()
    }

    /// Pods that answer.
    pub(crate) fn ready(&self) -> usize {
        self.view.load().ready
    }

    /// Pods that are passed over because they fail requests.
    pub(crate) fn ejected(&self) -> usize {
        self.view.load().ejected
    }

    /// Whether a request that uses only pods of our own would have a place at once.
    pub(crate) fn has_room(&self) -> bool {
        let view = self.view.load();
        let is_free =
            |pod: &Arc<Endpoint>| view.limit == 0 || pod.in_flight.load(Ordering::Acquire) < view.limit;
        self.held() == 0 && view.pods.iter().any(is_free)
    }

    /// Since when pods answer; `None`: none does.
    pub(crate) fn ready_since(&self) -> Option<Duration> {
        self.view.load().ready_since
    }

    /// Requests that wait.
    pub(crate) fn held(&self) -> u32 {
        self.held.load(Ordering::Acquire)
    }

    /// The pool as a refusal describes it.
    pub(crate) fn describe(&self) -> PoolNow {
        let view = self.view.load();
        PoolNow {
            service: self.settings.load().service.clone(),
            ready: view.ready,
            pods: view.known,
            held: self.held(),
            waking: self
                .state
                .lock()
                .is_acknowledged(self.hub.now().saturating_sub(ACKNOWLEDGED)),
        }
    }

    /// Closes connections to pods and peers that nobody has used since the last time. Returns how many.
    pub(crate) fn close_unused(&self) -> usize {
        let state = self.state.lock();
        let pods = state.pods.values().map(|pod| &pod.endpoint);
        let all: Vec<Arc<Endpoint>> = pods.chain(state.peers.values()).cloned().collect();
        drop(state);
        all.iter().map(|endpoint| endpoint.close_unused()).sum()
    }
}

#[cfg(test)]
mod tests;
