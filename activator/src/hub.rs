//! What all parts of one activator share: its clock, its name, its metrics, who its peers are, and what has changed
//! since the last report line.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crds::report::{Peer, SILENCE_MS};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::balance::Shares;
use crate::cluster::Cluster;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::mirror::COPIES;
use crate::page::Themes;
use crate::pool::Pool;
use crate::rollout::{Attempt, News};

/// Shared by all parts. One for each activator in a process.
pub(crate) struct Hub {
    pub(crate) config: Config,
    /// 128 random bits in hex.
    pub(crate) instance: String,
    start: Instant,
    /// The runtime of control tasks, for what worker threads start on it.
    pub(crate) control: tokio::runtime::Handle,
    pub(crate) metrics: Metrics,
    pub(crate) cluster: Cluster,
    pub(crate) themes: Themes,
    shares: RwLock<Shares>,
    peers: RwLock<HashMap<String, IpAddr>>,
    /// When a leader spoke last.
    led: Mutex<Option<Instant>>,
    changes: Changes,
    /// Requests that are being handled, noise included: what a drain waits for.
    pub(crate) active: AtomicUsize,
    /// Pods that are being probed, of all pools.
    pub(crate) probed: AtomicUsize,
    /// Room for copies of requests to candidates.
    pub(crate) copies: Arc<Semaphore>,
    /// Cancelled when requests that still wait must be given up.
    pub(crate) give_up: CancellationToken,
}

/// Pools that changed since the last report line.
#[derive(Default)]
struct Changes {
    pools: Mutex<Vec<Arc<Pool>>>,
    attempts: Mutex<Vec<Arc<Attempt>>>,
    urgent: AtomicBool,
    notify: Notify,
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub")
            .field("name", &self.config.name)
            .finish_non_exhaustive()
    }
}

impl Hub {
    /// Must be called on the runtime of control tasks.
    pub(crate) fn new(config: Config, cluster: Cluster) -> Arc<Self> {
        let instance = random_bits();
        Arc::new(Self {
            shares: RwLock::new(Shares::new(&config.name)),
            config,
            instance,
            start: Instant::now(),
            control: tokio::runtime::Handle::current(),
            metrics: Metrics::new(),
            cluster,
            themes: Themes::default(),
            peers: RwLock::default(),
            led: Mutex::default(),
            changes: Changes::default(),
            active: AtomicUsize::new(0),
            probed: AtomicUsize::new(0),
            copies: Arc::new(Semaphore::new(COPIES)),
            give_up: CancellationToken::new(),
        })
    }

    /// The uptime: the clock of everything that is measured.
    pub(crate) fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// The runtime's instant for an uptime.
    pub(crate) fn instant(&self, uptime: Duration) -> Instant {
        self.start + uptime
    }

    /// A pool has changed. `urgent`: a line must go out at once.
    pub(crate) fn changed(&self, pool: Option<&Arc<Pool>>, urgent: bool) {
        if let Some(pool) = pool {
            self.changes.pools.lock().push(Arc::clone(pool));
        }
        if urgent {
            self.changes.urgent.store(true, Ordering::Release);
        }
        self.changes.notify.notify_one();
    }

    /// Waits for [`Hub::changed`]. Cancel safe: a change that came is not lost.
    pub(crate) async fn change(&self) {
        self.changes.notify.notified().await;
    }

    /// Whether a line must go out at once; asked once for each.
    pub(crate) fn take_urgent(&self) -> bool {
        self.changes.urgent.swap(false, Ordering::AcqRel)
    }

    /// The pools that changed since the last call.
    pub(crate) fn take_changed(&self) -> Vec<Arc<Pool>> {
        std::mem::take(&mut *self.changes.pools.lock())
    }

    /// Something was counted for a candidate.
    pub(crate) fn counted(&self, attempt: &Arc<Attempt>, news: &News) {
        if news.is_first {
            self.changes.attempts.lock().push(Arc::clone(attempt));
        }
        if let Some(broken) = &news.broken {
            self.metrics.breaker_trips.inc();
            tracing::warn!(
                route = %attempt.route,
                attempt = attempt.uid,
                evidence = broken.evidence,
                candidate_bad = broken.candidate.0,
                candidate_requests = broken.candidate.1,
                stable_bad = broken.stable.0,
                stable_requests = broken.stable.1,
                "the breaker takes the candidate out: it gets no more requests here until another attempt"
            );
        }
        if news.is_first || news.broken.is_some() {
            self.changed(None, news.broken.is_some());
        }
    }

    /// A leader says that another activator's breaker has taken the candidate out.
    pub(crate) fn told_broken(&self, attempt: &Arc<Attempt>) {
        let Some(news) = attempt.take_out() else { return };
        tracing::warn!(
            route = %attempt.route,
            attempt = attempt.uid,
            "the breaker of another activator has taken the candidate out: it gets no more requests here until another attempt"
        );
        self.counted(attempt, &news);
        self.changed(None, true);
    }

    /// The attempts that changed since the last call.
    pub(crate) fn take_counted(&self) -> Vec<Arc<Attempt>> {
        std::mem::take(&mut *self.changes.attempts.lock())
    }

    /// Reads how limited pools are divided.
    pub(crate) fn shares<T>(&self, read: impl FnOnce(&Shares) -> T) -> T {
        read(&self.shares.read())
    }

    /// A leader has spoken.
    pub(crate) fn heard_leader(&self) {
        let now = Instant::now();
        // Leaders speak every half second, and none settles an epoch without an activator that was there two seconds ago.
        let away = Duration::from_millis(SILENCE_MS / 2);
        if self.led.lock().replace(now).is_some_and(|last| now - last > away) {
            self.was_away();
        }
    }

    /// Epochs may have come and gone of which we know nothing.
    pub(crate) fn was_away(&self) {
        self.shares.write().was_away();
    }

    /// Whether another activator is known to serve. What a leader said once counts only while it goes on speaking.
    pub(crate) fn others_serve(&self) -> bool {
        let silence = Duration::from_millis(SILENCE_MS);
        let is_led = self.led.lock().is_some_and(|at| at.elapsed() < silence);
        is_led && self.shares(Shares::has_others)
    }

    /// How many activators share what all do together, this one included; `None`: no leader that speaks says so.
    pub(crate) fn activators(&self) -> Option<usize> {
        let silence = Duration::from_millis(SILENCE_MS);
        let is_led = self.led.lock().is_some_and(|at| at.elapsed() < silence);
        self.shares(Shares::members).filter(|_| is_led)
    }

    /// Takes over a membership from a leader. Returns whether anything changed.
    pub(crate) fn set_membership(&self, epoch: u64, activators: &[Peer], settled: bool) -> bool {
        {
            let mut peers = self.peers.write();
            let now: HashMap<&str, IpAddr> = activators
                .iter()
                .filter(|peer| peer.name != self.config.name)
                .filter_map(|peer| Some((peer.name.as_str(), peer.address.parse().ok()?)))
                .collect();
            // A peer that only is missing from this epoch may still have requests on the way here.
            for (name, address) in &now {
                peers.insert((*name).to_owned(), *address);
            }
            // Peers come and go with rollouts of the activator: 64 is far above any fleet and bounds what is kept.
            if peers.len() > now.len() + 64 {
                peers.retain(|name, _| now.contains_key(name.as_str()));
            }
        }
        let names = activators.iter().map(|peer| peer.name.clone()).collect();
        self.shares.write().update(epoch, names, settled)
    }

    /// The address from which peers are dialled: they know us by it. `None`: the system chooses.
    pub(crate) fn source(&self) -> Option<IpAddr> {
        Some(self.config.bind).filter(|bind| !bind.is_unspecified())
    }

    /// Where the peer activator of that name listens.
    pub(crate) fn peer(&self, name: &str) -> Option<IpAddr> {
        self.peers.read().get(name).copied()
    }

    /// Whether a peer activator listens at that address.
    pub(crate) fn is_peer(&self, address: IpAddr) -> bool {
        self.peers.read().values().any(|peer| *peer == address)
    }

    /// The peers, for the state dump.
    pub(crate) fn peers(&self) -> Vec<(String, IpAddr)> {
        self.peers
            .read()
            .iter()
            .map(|(name, peer)| (name.clone(), *peer))
            .collect()
    }
}

/// 128 bits in hex that nobody can guess: no application can pretend to be this activator.
pub(crate) fn random_bits() -> String {
    use std::io::Read;
    let mut bits = [0_u8; 16];
    let read = std::fs::File::open("/dev/urandom").and_then(|mut source| source.read_exact(&mut bits));
    if read.is_err() {
        bits = u128::to_be_bytes(fastrand::u128(..));
    }
    format!("{:032x}", u128::from_be_bytes(bits))
}
