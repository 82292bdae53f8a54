//! Rollouts on a cluster: facts in, one pure step, the status first, then what follows.
//!
//! ```text
//! Rollout, template, pools, Route, reports ─▶ facts ─▶ core: rollout::step ─▶ status ─▶ pools, division ─▶ Route
//! ```
//!
//! Each Rollout has a task of its own, so that a write that hangs holds up nobody else. A look gathers what the cluster and
//! the activators show, asks [`dormouse_core::rollout::step`], stores the status (only if nobody else has meanwhile) and
//! only then acts. Actions have deterministic names and do no harm when they are done twice, and all that is known is in the
//! status: a process that ends anywhere is carried on by the next one.
//!
//! The Route is not written here. A [`Division`](crate::state::Division) says how the traffic is divided, and capture,
//! which has the only pen for Routes, writes it.

mod alert;
mod claims;
mod config;
mod configs;
mod conflicts;
pub(crate) mod counts;
mod facts;
mod inquiry;
mod look;
mod measure;
mod objects;
pub(crate) mod outside;
mod outward;
mod perform;
mod plan;
mod prometheus;
mod question;
mod revision;
mod see;
mod standing;
mod status;
mod watched;
mod web;
mod webhook;
mod window;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use crds::names::SERVICE_LABEL;
use crds::report::PoolKey;
use crds::rollout::StrategyKind;
use crds::route::WorkloadKind;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::cluster::Cluster;
use crate::lease::Leadership;
use crate::path::Activators;
use crate::state::{Divisions, Registry, RouteKey};
use crate::watch::Index;
use counts::Counts;
use look::Unit;
use outside::Outside;
use watched::Objects;

/// How often a Rollout with a candidate is looked at, when nothing is heard before: a weight is taken back within a second
/// of the evidence.
const ACTIVE: Duration = Duration::from_millis(200);
/// How often any other one is: its template is read from memory.
const RESTING: Duration = Duration::from_secs(1);
/// News that come together are one look.
const COALESCE: Duration = Duration::from_millis(20);

/// Whether a spec can be carried out.
pub(crate) fn check(spec: &crds::RolloutSpec) -> Result<(), String> {
    plan::read(spec).map(drop)
}

/// What a condition says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Said {
    kind: &'static str,
    holds: bool,
    reason: &'static str,
    message: String,
}

/// The traffic of a pool.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Flow {
    /// Requests held and in flight now.
    pub(crate) load: u32,
    /// Pods that an activator sees answering.
    pub(crate) ready: u32,
    /// It would have no pods but for what its rollout says of it.
    pub(crate) rests: bool,
    /// When a request that counts was last seen.
    pub(crate) last_request: Option<Instant>,
}

/// Tells the traffic of a pool.
pub(crate) type Traffic = Arc<dyn Fn(&PoolKey) -> Flow + Send + Sync>;

/// Lets revisions in and takes them out.
pub(crate) struct Rollouts<A> {
    clock: Clock,
    index: Arc<Index>,
    cluster: Arc<Cluster>,
    fleet: Arc<A>,
    registry: Arc<Registry>,
    divisions: Arc<Divisions>,
    counts: Arc<Counts>,
    traffic: Traffic,
    release_all: watch::Receiver<bool>,
    objects: Objects,
    outside: Arc<Outside>,
}

impl<A: Activators> Rollouts<A> {
    /// A controller that has looked at nothing yet.
    #[allow(
        clippy::too_many_arguments,
        reason = "the wiring of one long-lived task, called once"
    )]
    pub(crate) fn new(
        clock: Clock,
        index: Arc<Index>,
        cluster: Arc<Cluster>,
        fleet: Arc<A>,
        registry: Arc<Registry>,
        divisions: Arc<Divisions>,
        counts: Arc<Counts>,
        traffic: Traffic,
        release_all: watch::Receiver<bool>,
        outside: Arc<Outside>,
    ) -> Arc<Self> {
        Arc::new(Self {
            clock,
            index,
            cluster,
            fleet,
            registry,
            divisions,
            counts,
            traffic,
            release_all,
            objects: Objects::new(),
            outside,
        })
    }

    /// Rolls out, while this process leads, until `stop`; then the looks under way end. `namespace`: only there.
    pub(crate) async fn run(
        self: Arc<Self>,
        client: kube::Client,
        namespace: Option<String>,
        mut leading: watch::Receiver<Leadership>,
        stop: CancellationToken,
    ) {
        let watches = self.objects.follow(client, namespace, stop.clone());
        let lead = async {
            let mut synced = self.index.synced();
            let mut listed = self.objects.listed();
            for first in [&mut synced, &mut listed] {
                let there = tokio::select! {
                    () = stop.cancelled() => false,
                    waited = first.wait_for(|it| *it) => waited.is_ok(),
                };
                if !there {
                    stop.cancelled().await;
                    return;
                }
            }
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    leader = leading.wait_for(|now| now.leader) => if leader.is_err() { return },
                }
                self.lead(&mut leading, &stop).await;
                self.divisions.set_known(false);
                self.divisions.forget_claims();
                for key in self.objects.services() {
                    self.divisions.set(&key, None);
                }
            }
        };
        tokio::join!(watches, lead);
        self.outside.end().await;
    }

    /// One term as leader, from an empty memory.
    async fn lead(self: &Arc<Self>, leading: &mut watch::Receiver<Leadership>, stop: &CancellationToken) {
        let over = stop.child_token();
        let mut tasks = JoinSet::new();
        let mut running: HashSet<RouteKey> = HashSet::new();
        // Before each Rollout has been looked at once, a Service without a division may only seem to have none.
        let mut unseen: HashSet<RouteKey> = self.objects.keys().into_iter().collect();
        // Bounded by the Rollouts there are: each says it once.
        let (seen, mut firsts) = tokio::sync::mpsc::unbounded_channel();
        self.divisions.set_known(unseen.is_empty());
        let mut news = self.objects.news();
        loop {
            for key in self.objects.keys() {
                if running.insert(key.clone()) {
                    let (this, over, seen) = (Arc::clone(self), over.clone(), seen.clone());
                    tasks.spawn(async move {
                        this.keep(&key, over, seen).await;
                        key
                    });
                }
            }
            let due = tokio::select! {
                () = stop.cancelled() => break,
                lost = leading.wait_for(|now| !now.leader) => { drop(lost); break }
                Some(ended) = tasks.join_next(), if !tasks.is_empty() => match ended {
                    Ok(key) => {
                        running.remove(&key);
                        false
                    }
                    Err(error) => {
                        tracing::error!(%error, "a look at a Rollout failed");
                        break;
                    }
                },
                Some(key) = firsts.recv() => {
                    unseen.remove(&key);
                    if unseen.is_empty() {
                        self.divisions.set_known(true);
                    }
                    false
                }
                Ok(()) = news.changed() => false,
                () = sleep(RESTING) => true,
            };
            if due {
                self.annotated().await;
            }
        }
        over.cancel();
        // Every write is bounded: let looks end rather than cut them in two.
        while tasks.join_next().await.is_some() {}
    }

    /// Looks at one Rollout until it is gone, or until `over`.
    async fn keep(
        self: Arc<Self>,
        key: &RouteKey,
        over: CancellationToken,
        seen: tokio::sync::mpsc::UnboundedSender<RouteKey>,
    ) {
        let (mut unit, mut seen) = (Unit::default(), Some(seen));
        let (mut objects, mut live) = (self.objects.news(), self.fleet.changes());
        let mut counted = self.counts.news();
        loop {
            objects.mark_unchanged();
            live.mark_unchanged();
            counted.mark_unchanged();
            let again = self.look(key, &mut unit).await;
            // Until one look has come to its end, a Service without a division only seems to have none.
            if let Some(seen) = seen.take_if(|_| unit.has_looked || again.is_none()) {
                let _ = seen.send(key.clone());
            }
            let Some(again) = again else { return };
            let at = Instant::now() + again;
            tokio::select! {
                () = over.cancelled() => return,
                () = tokio::time::sleep_until(at) => continue,
                Ok(()) = objects.changed() => {}
                Ok(()) = live.changed() => {}
                Ok(()) = counted.changed(), if again <= ACTIVE => {}
            }
            sleep(COALESCE).await;
        }
    }

    /// Makes the Rollouts that annotations ask for, and deletes those that none asks for any more.
    async fn annotated(&self) {
        let by_service: BTreeMap<RouteKey, _> = self.objects.by_service();
        // Few of all Services: the others cost a look and no copy.
        let concerned = self
            .registry
            .those(|key, entry| entry.settings.rollout.is_some() || by_service.contains_key(key));
        for (key, entry) in concerned {
            let wish = entry.settings.rollout.as_deref();
            let wish = wish.filter(|wish| ["canary", "blue-green"].contains(wish) && entry.settings.enabled);
            let there = by_service.get(&key);
            let ours = there.is_some_and(|rollout| {
                let labels = rollout.metadata.labels.as_ref();
                labels.and_then(|labels| labels.get(SERVICE_LABEL)) == Some(&key.name)
            });
            let wanted = match wish {
                Some("blue-green") => StrategyKind::BlueGreen,
                _ => StrategyKind::Canary,
            };
            let result = match (wish, there) {
                (Some(wish), there)
                    if there.is_none()
                        || (ours && there.is_some_and(|it| it.spec.strategy.kind != wanted)) =>
                {
                    let service = self.index.service(&key);
                    let workload = entry.pools.first().map(|(_, workload)| workload);
                    let workload = workload.filter(|workload| workload.kind == WorkloadKind::Deployment);
                    match (
                        service,
                        there
                            .map(|it| it.spec.target_ref.name.clone())
                            .or(workload.map(|it| it.name.clone())),
                    ) {
                        (Some(service), Some(target)) => {
                            let body = objects::annotated(&service, &target, wish);
                            self.cluster.apply_rollout(&key, &body).await
                        }
                        _ => Ok(()),
                    }
                }
                (None, Some(rollout)) if ours && rollout.metadata.deletion_timestamp.is_none() => {
                    let uid = rollout.metadata.uid.clone().unwrap_or_default();
                    let name = rollout.metadata.name.clone().unwrap_or_default();
                    let own = RouteKey { name, ..key.clone() };
                    self.cluster.delete_rollout(&own, &uid).await
                }
                _ => Ok(()),
            };
            if let Err(error) = result {
                tracing::warn!(service = %key, %error, "the Rollout of an annotation");
            }
        }
    }
}

#[cfg(test)]
mod tests;
