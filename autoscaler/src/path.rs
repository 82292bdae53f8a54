//! Who is in the data path: the capture controller.
//!
//! Each opted-in Service is looked at when something about it changed or when its own time has come: gather what the
//! cluster shows, ask [`dormouse_core::capture`] for the next safe step, carry it out, publish an [`Entry`](crate::state::Entry) for the scale
//! side, and sleep until then. One look at a Service at a time, [`AT_ONCE`] Services at once; a captured Service at rest
//! has no timer. Only a leader looks; a new one continues from what the cluster shows.

mod gather;
mod perform;
mod schedule;
mod show;
mod want;

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crds::report::PoolKey;
use crds::{Route, Settings};
use dormouse_core::Time;
use dormouse_core::capture::{self, Stage, State, Waits};
use dormouse_core::ports::{Held, Ports};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::clock::Clock;
use crate::cluster::{Cluster, Error};
use crate::ingest::{Ack, Fleet, Live, Probe};
use crate::state::{Dirty, Divisions, Registry, RouteKey};
use crate::watch::Index;
use crate::watch::slice::Role;

/// Services that are looked at side by side: most of a look is waiting for the API server.
const AT_ONCE: usize = 64;
/// How long a listening port rests after its Route is gone: longer than nodes may still send connections to it.
const PORT_RESTS: Duration = Duration::from_secs(60);
/// How long NetworkPolicies that were read stay good enough for a warning.
const POLICIES_KEPT: Duration = Duration::from_secs(300);
/// How long pods are waited for when we are being removed. A ServiceAccount that is being deleted is honoured for a minute:
/// the selector keys have to go well within it, or a Service whose pods become ready later would stay without them.
const LAST_PATIENCE: Duration = Duration::from_secs(25);
/// First and longest wait after a write that failed.
const AGAIN: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// Conflicts in a row that are no news: others write to the same objects too.
const CONFLICTS: u32 = 3;
/// How long a Service may be without a workload before that is called a refusal: manifests are applied one after the
/// other, and a Service often comes first.
const WORKLOAD_MAY_COME: Duration = Duration::from_secs(3);

/// What capture needs of the activators' streams. The second implementation is the tests'.
pub(crate) trait Activators: Send + Sync + 'static {
    /// The activators whose streams are live.
    fn live(&self) -> Vec<Live>;
    /// What live activators last said of a Route.
    fn acks(&self, route: &RouteKey) -> Vec<Ack>;
    /// Has an activator connect to an address.
    fn probe(&self, route: &RouteKey, address: &str, tries: u32) -> impl Future<Output = Probe> + Send;
    /// Routes whose acknowledgements changed.
    fn acked(&self) -> Arc<Dirty<RouteKey>>;
    /// Counts changes of [`Activators::live`].
    fn changes(&self) -> watch::Receiver<u64>;
    /// Tells all activators that the candidate of a Route's attempt is out; `None`: nobody needs to know any more.
    fn take_out(&self, route: &RouteKey, attempt: Option<&str>);
}

impl Activators for Fleet {
    fn live(&self) -> Vec<Live> {
        Fleet::live(self)
    }
    fn acks(&self, route: &RouteKey) -> Vec<Ack> {
        Fleet::acks(self, route)
    }
    async fn probe(&self, route: &RouteKey, address: &str, tries: u32) -> Probe {
        Fleet::probe(self, route, address, tries).await
    }
    fn acked(&self) -> Arc<Dirty<RouteKey>> {
        Fleet::acked(self)
    }
    fn changes(&self) -> watch::Receiver<u64> {
        Fleet::changes(self)
    }
    fn take_out(&self, route: &RouteKey, attempt: Option<&str>) {
        Fleet::take_out(self, route, attempt);
    }
}

/// How many requests of a pool are held and in flight at activators.
pub(crate) type Busy = Arc<dyn Fn(&PoolKey) -> u32 + Send + Sync>;

/// The NetworkPolicies of a namespace.
type Policies = Arc<Vec<NetworkPolicy>>;
/// The id of a self-probe, and what happened instead when it did not land.
type Outcome = (u64, Result<(), String>);
/// A port of a Service: what a listening port is given to.
type PortKey = (RouteKey, String);

/// Captures Services and gives them back.
pub(crate) struct Capture<A> {
    clock: Clock,
    waits: Waits,
    /// We are about to go: nobody will be here to wait for pods that do not become ready.
    hurries: AtomicBool,
    index: Arc<Index>,
    cluster: Arc<Cluster>,
    fleet: Arc<A>,
    registry: Arc<Registry>,
    busy: Busy,
    release_all: watch::Receiver<bool>,
    divisions: Arc<Divisions>,
    ports: Mutex<Ports<PortKey>>,
    policies: Mutex<HashMap<String, (Instant, Policies)>>,
    /// Services to look at, besides those that the index marks.
    again: Arc<Dirty<RouteKey>>,
    /// Since when this process leads: streams need a moment to be dialled before their absence means something.
    leads_since: Mutex<Option<Instant>>,
}

/// What is remembered of one Service from look to look.
#[derive(Default)]
struct Unit {
    /// What the state machine remembers; `None` before the first look.
    state: Option<State>,
    /// uid of the Service that it is about.
    uid: String,
    /// The last good settings.
    settings: Option<Arc<Settings>>,
    /// What they were read from.
    last_good: String,
    /// The Route as it was last seen with ports. Whoever deletes it, as the deletion of the CRD does, takes from the activators
    /// nothing for a while: they serve it on, and are listed on.
    route: Option<Arc<crds::Route>>,
    stage: Stage,
    /// The last self-probe that ended: its id and outcome.
    probe: Arc<Mutex<Option<Outcome>>>,
    /// Since when activators are listed beside pods, after a failure.
    returned: Option<Time>,
    /// Since when the workload of a Service that was never captured has been missing.
    missing: Option<Time>,
    /// Since when some live activator has not acknowledged the Route.
    pending: Option<Time>,
    /// Pools that the Route has left, and since when: activators may still be on their way out of them.
    left: HashMap<PoolKey, Time>,
    conditions: Vec<Condition>,
    /// What users were told last, by reason.
    told: HashMap<&'static str, String>,
    failures: u32,
}

impl Unit {
    /// Until when to say nothing of a workload that is missing; `None`: it is there, or has been missing for too long.
    fn patience(&mut self, now: Time, seen: &gather::Seen) -> Option<Time> {
        use crds::condition::reason::WORKLOAD_NOT_FOUND;
        let missing = seen.route.is_none()
            && seen
                .refusal
                .as_ref()
                .is_some_and(|refusal| refusal.reason == WORKLOAD_NOT_FOUND);
        if !missing {
            self.missing = None;
            return None;
        }
        let until = *self.missing.get_or_insert(now) + WORKLOAD_MAY_COME;
        (now < until).then_some(until)
    }
}

impl<A: Activators> Capture<A> {
    /// A controller that has looked at nothing yet.
    #[allow(
        clippy::too_many_arguments,
        reason = "the wiring of one long-lived task, called once"
    )]
    pub(crate) fn new(
        clock: Clock,
        settle: Duration,
        index: Arc<Index>,
        cluster: Arc<Cluster>,
        fleet: Arc<A>,
        registry: Arc<Registry>,
        busy: Busy,
        release_all: watch::Receiver<bool>,
        divisions: Arc<Divisions>,
    ) -> Arc<Self> {
        let (first, last) = (crds::names::FIRST_LISTEN_PORT, crds::names::LAST_LISTEN_PORT);
        Arc::new(Self {
            clock,
            waits: Waits {
                settle,
                ..Waits::default()
            },
            hurries: AtomicBool::new(false),
            index,
            cluster,
            fleet,
            registry,
            busy,
            release_all,
            divisions,
            ports: Mutex::new(Ports::new(first, last, PORT_RESTS)),
            policies: Mutex::default(),
            again: Dirty::new(),
            leads_since: Mutex::default(),
        })
    }

    /// From now on pods are waited for no longer than the last of our permissions lasts.
    pub(crate) fn hurry(&self) {
        self.hurries.store(true, Ordering::Release);
    }

    fn waits(&self) -> Waits {
        let mut waits = self.waits;
        if self.hurries.load(Ordering::Acquire) {
            waits.patience = waits.patience.min(LAST_PATIENCE);
        }
        waits
    }

    fn now(&self) -> Time {
        Time::from_epoch(self.clock.at(Instant::now()))
    }

    /// Takes in the listening ports that Routes have; a Route that lost one to an older Route gets another at its look.
    fn adopt_ports(&self) {
        let held = self.index.routes().into_iter().flat_map(|(key, route)| {
            let created = route.metadata.creation_timestamp.as_ref();
            let seconds = created
                .and_then(|time| u64::try_from(time.0.as_second()).ok())
                .unwrap_or(0);
            let ports: Vec<_> = route
                .spec
                .ports
                .iter()
                .map(|port| Held {
                    key: (key.clone(), port.name.clone()),
                    port: port.listen,
                    created: Time::from_secs(seconds),
                })
                .collect();
            ports
        });
        let losers = self.ports.lock().adopt(held.collect::<Vec<_>>());
        for (key, port) in losers {
            tracing::warn!(route = %key, port, "its listening port is another Route's: it gets a new one");
        }
    }

    /// Frees the listening ports of a Service that keeps only those named.
    fn free_ports(&self, key: &RouteKey, keep: &[&str]) {
        let mut ports = self.ports.lock();
        let gone: Vec<PortKey> = ports
            .keys()
            .filter(|(owner, name)| owner == key && !keep.contains(&name.as_str()))
            .cloned()
            .collect();
        for port in gone {
            ports.release(self.now(), &port);
        }
    }

    /// One look at a Service: what it shows, the next safe step, and when to look again. `None` in the second place:
    /// nothing is to be remembered of it.
    async fn look(self: &Arc<Self>, key: &RouteKey, mut unit: Unit) -> (Option<Unit>, Option<Instant>) {
        let now = self.now();
        let Some(seen) = self.gather(key, &mut unit, now).await else {
            return self.gone(key, unit).await;
        };
        if let Some(until) = unit.patience(now, &seen) {
            return (Some(unit), Some(self.clock.instant(until.since_epoch())));
        }
        let state = unit.state.take().unwrap_or_else(|| match seen.was_captured() {
            true => State::inherited(&seen.facts),
            false => State::default(),
        });
        let step = capture::step(now, &self.waits(), &state, &seen.facts);
        unit.state = Some(step.state.clone());
        let wake_at = gather::earliest(step.wake_at, seen.wake_at);
        self.publish(key, &mut unit, &seen, &step);
        let done = self.carry_out(key, &mut unit, &seen, &step).await;
        unit.stage = step.stage;
        let wake_at = gather::earliest(wake_at, self.tidy_at(&unit));
        let mut wake = wake_at.map(|at| self.clock.instant(at.since_epoch()));
        match done {
            Ok(()) => unit.failures = 0,
            Err(error) => {
                let wait = AGAIN.0.saturating_mul(1 << unit.failures.min(10)).min(AGAIN.1);
                unit.failures = unit.failures.saturating_add(1);
                match &error {
                    // The index was behind, and is about to be told: ordinary, unless it goes on.
                    crate::cluster::Error::Conflict(..) if unit.failures <= CONFLICTS => {
                        tracing::debug!(route = %key, %error, again_in = ?wait, "capture");
                    }
                    _ => tracing::warn!(route = %key, %error, again_in = ?wait, "capture"),
                }
                wake = Some(after_failure(wake, wait, Instant::now()));
            }
        }
        // The last of it is gone with this look: nothing would mark this Service again.
        let over = !seen.wanted && step.stage == Stage::Outside && unit.failures == 0;
        if over && seen.refusal.is_none() && seen.route.is_none() {
            self.registry.set(key, None);
            self.free_ports(key, &[]);
            return (None, None);
        }
        (Some(unit), wake)
    }

    /// The Service is gone, or going: garbage collection takes what it owned, and the scale side wakes its workload.
    async fn gone(self: &Arc<Self>, key: &RouteKey, unit: Unit) -> (Option<Unit>, Option<Instant>) {
        self.registry.set(key, None);
        let route = self.index.route(key);
        if let Err(error) = self.take_orphans(key, &unit, route.as_deref()).await {
            tracing::warn!(route = %key, %error, "removing what a Service that is gone has left");
            return (Some(unit), Some(Instant::now() + AGAIN.1));
        }
        if route.is_none() && self.index.service(key).is_none() {
            self.free_ports(key, &[]);
            return (None, None);
        }
        (Some(unit), None)
    }

    /// Deleted with its dependents orphaned, a Service would leave them for ever.
    async fn take_orphans(&self, key: &RouteKey, unit: &Unit, route: Option<&Route>) -> Result<(), Error> {
        for slice in self.index.slices_of(key) {
            if slice.role == Role::Ours && slice.owner.is_none() {
                self.cluster.delete_slice(&slice.namespace, &slice.name).await?;
            }
        }
        let pools = unit.route.iter().flat_map(|route| &route.spec.pools);
        for pool in pools.map(|pool| PoolKey {
            namespace: key.namespace.clone(),
            pool: pool.name.clone(),
        }) {
            let private = self.index.private_service(&pool);
            if private.is_some_and(|private| private.owners.is_empty()) {
                self.cluster
                    .delete_private_service(&pool.namespace, &pool.pool)
                    .await?;
            }
        }
        let uid = route.and_then(|route| route.metadata.uid.as_deref());
        match uid {
            Some(uid) => self.cluster.delete_route(key, uid).await,
            None => Ok(()),
        }
    }
}

/// When to look again after a write that failed. What was due by now was due for this look: it waits as long as the rest,
/// or a write that goes on failing would be tried without a pause.
fn after_failure(planned: Option<Instant>, wait: Duration, now: Instant) -> Instant {
    let at = now + wait;
    planned
        .filter(|planned| *planned > now)
        .map_or(at, |planned| planned.min(at))
}

#[cfg(test)]
pub(crate) mod tests;
