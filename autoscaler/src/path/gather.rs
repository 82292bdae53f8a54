//! The facts of one Service: what the index and the streams show, in the terms of the state machine.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use crds::Settings;
use crds::condition::{CAPTURED, reason};
use crds::report::PoolKey;
use crds::route::{Route, RouteSpec, Workload};
use dormouse_core::Time;
use dormouse_core::capture::{Facts, RouteFact, SliceFact, Wanted};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use tokio::time::Instant;

use super::want::{self, Ours, Split};
use super::{Activators, Capture, POLICIES_KEPT, Unit};
use crate::cluster::{PrivateService, SliceSpec};
use crate::examine::{self, Finding, Severity, WorkloadFacts};
use crate::ingest::{Ack, Live};
use crate::state::{Divided, RouteKey};
use crate::watch::slim::{HpaFacts, ServiceFacts};

/// How long after it began to lead a leader's streams may not be dialled yet.
const DIALLING: Duration = Duration::from_secs(3);
/// How long the listing waits for activators that are live and have not acknowledged a Route yet.
const PENDING: Duration = Duration::from_secs(2);

/// Everything that one look sees.
pub(super) struct Seen {
    pub(super) facts: Facts,
    pub(super) service: Arc<ServiceFacts>,
    pub(super) wanted: bool,
    /// Why the Service cannot be captured.
    pub(super) refusal: Option<Finding>,
    /// Everything else worth saying.
    pub(super) findings: Vec<Finding>,
    pub(super) settings: Arc<Settings>,
    pub(super) workload: Option<Arc<WorkloadFacts>>,
    pub(super) pool: Option<PoolKey>,
    /// Other Services have their pods in the pool.
    pub(super) shared: bool,
    /// Another Service has the workload, whose pods are revisions' now.
    pub(super) claimed: bool,
    pub(super) hpa: Option<String>,
    /// The Route as it is.
    pub(super) route: Option<Arc<Route>>,
    /// The Route as it should be.
    pub(super) spec: RouteSpec,
    pub(super) last_good: String,
    /// The private Services of its pools, as they should be.
    pub(super) private: Vec<PrivateService>,
    /// Its pools and their workloads, those included that get no traffic.
    pub(super) pools: Vec<(PoolKey, Workload)>,
    /// Pods that single pools need at least, and why.
    pub(super) needs: BTreeMap<PoolKey, (u32, String)>,
    /// The pool that does not go to zero, and why.
    pub(super) stays: Option<(PoolKey, String)>,
    /// Pools that get no requests.
    pub(super) idle: BTreeSet<PoolKey>,
    /// Pools of the Route as it is that it should not have any more.
    pub(super) left_pools: Vec<PoolKey>,
    pub(super) activators: Vec<SliceSpec>,
    pub(super) pods: Vec<SliceSpec>,
    pub(super) ours: Ours,
    pub(super) acks: Vec<Ack>,
    pub(super) wake_at: Option<Time>,
}

impl<A: Activators> Capture<A> {
    /// Looks at everything; `None`: there is no such Service.
    pub(super) async fn gather(&self, key: &RouteKey, unit: &mut Unit, now: Time) -> Option<Seen> {
        let service = self.index.service(key).filter(|service| !service.deleting)?;
        if unit.uid != service.uid {
            // Another Service of the same name: nothing that was proven holds.
            *unit = Unit {
                uid: service.uid.clone(),
                ..Unit::default()
            };
        }
        let route = self.index.route(key);
        if let Some(route) = route.as_ref().filter(|route| !route.spec.ports.is_empty()) {
            unit.route = Some(Arc::clone(route));
        }
        let policies = self.policies(&key.namespace).await;
        let in_force = |other: &RouteKey| {
            self.registry
                .get(other)
                .map(|entry| entry.settings.as_ref().clone())
        };
        let rolled_out = |workload: &Workload| self.divisions.claimed(key, workload);
        let examined = examine::from_index(&self.index, key, &policies, in_force, rolled_out)?;
        let settings = self.settings(unit, &examined, route.as_deref());
        let examined = examine::Facts {
            parsed: crds::annotation::Parsed {
                settings: settings.as_ref().clone(),
                ..examined.parsed.clone()
            },
            ..examined
        };
        let split = self.split(key, route.as_deref());
        // What is divided is first made whole again.
        let opted_in = split.is_some() || (settings.enabled && !*self.release_all.borrow());
        let mut findings = examine::examine(&examined);
        let refusals: Vec<Finding>;
        (refusals, findings) = findings
            .into_iter()
            .partition(|finding| finding.severity == Severity::Refusal);
        let mut refusal = refusals
            .into_iter()
            .next()
            .filter(|_| opted_in && split.is_none());
        let target = split.as_ref().and_then(|split| split.target.as_ref());
        let target = target.and_then(|target| self.index.workload(&key.namespace, target));
        let workload =
            target.or_else(|| self.workload(key, route.as_deref(), &examined, refusal.is_none() && opted_in));
        let mut spec = RouteSpec::default();
        if opted_in
            && refusal.is_none()
            && let Some(workload) = &workload
        {
            match self.spec(key, &settings, &service, workload, now) {
                Ok(made) => spec = want::divided(made, split.as_ref()),
                Err(finding) => refusal = Some(finding),
            }
        }
        let wanted = opted_in && refusal.is_none();
        let pool = workload.as_ref().map(|workload| PoolKey {
            namespace: key.namespace.clone(),
            pool: workload.workload.name.clone(),
        });
        let mut seen = Seen {
            facts: Facts::untouched(),
            wanted,
            refusal,
            findings,
            settings,
            hpa: self.hpa(key, split.as_ref(), &examined.hpas),
            claimed: examined.rolled_out.is_some(),
            shared: false,
            workload,
            pool,
            spec,
            last_good: unit.last_good.clone(),
            private: Vec::new(),
            pools: Vec::new(),
            needs: BTreeMap::new(),
            stays: None,
            idle: BTreeSet::new(),
            left_pools: Vec::new(),
            activators: Vec::new(),
            pods: Vec::new(),
            ours: Ours::of(&key.name, self.index.slices_of(key)),
            acks: self.fleet.acks(key),
            wake_at: None,
            service,
            route,
        };
        seen.pools = want::pools(key, &seen.pool, seen.workload.as_deref(), split.as_ref());
        if let Some(split) = &split {
            seen.needs = split.needs(&key.namespace);
            seen.stays = split.stays(&key.namespace);
            seen.idle = split.idle(&key.namespace);
        }
        self.private(key, &mut seen);
        self.slices(unit, &mut seen, now);
        self.fill(unit, &mut seen, now);
        Some(seen)
    }

    /// How the Service's traffic is divided, if it is. While that is not known, as the Route says: an autoscaler that has
    /// just begun must not give traffic back to a workload that stands at zero as a template.
    fn split(&self, key: &RouteKey, route: Option<&Route>) -> Option<Split> {
        match self.divisions.of(key) {
            Divided::Whole => None,
            Divided::Into(division) => Some(Split::of(&self.index, key, &division)),
            Divided::Unknown => {
                let route = route?;
                let is_revision = |workload: &Workload| {
                    let facts = self.index.workload(&key.namespace, workload);
                    facts.is_some_and(|facts| facts.revision.is_some())
                };
                let divided = route.spec.pools.iter().any(|pool| is_revision(&pool.workload));
                divided.then(|| Split::kept(&self.index, key, route))
            }
        }
    }

    /// Who scales the pods beyond the first. One on a workload that is only a template does nothing, as it has no pods.
    fn hpa(&self, key: &RouteKey, split: Option<&Split>, of_workload: &[HpaFacts]) -> Option<String> {
        let Some(split) = split else {
            return of_workload.first().map(|hpa| hpa.name.clone());
        };
        let mut pools = split.workloads();
        pools.find_map(|pool| {
            let all = self.index.hpas_of(&key.namespace, pool);
            all.first().map(|hpa| hpa.name.clone())
        })
    }

    /// The settings in force: what is annotated, or the last good ones while something of it is invalid.
    fn settings(&self, unit: &mut Unit, examined: &examine::Facts, route: Option<&Route>) -> Arc<Settings> {
        let parsed = &examined.parsed;
        if parsed.invalid.is_empty() {
            let settings = Arc::new(parsed.settings.clone());
            unit.last_good = want::to_last_good(&examined.namespace, &examined.service.annotations);
            unit.settings = Some(Arc::clone(&settings));
            return settings;
        }
        if unit.settings.is_none()
            && let Some(route) = route
        {
            unit.settings = want::from_last_good(route).map(Arc::new);
            let kept = route.metadata.annotations.as_ref();
            let kept = kept.and_then(|all| all.get(crds::names::LAST_GOOD_ANNOTATION));
            unit.last_good = kept.cloned().unwrap_or_default();
        }
        match &unit.settings {
            Some(settings) => {
                // Whether it is opted in at all is obeyed, unless that is what cannot be read.
                let unreadable = parsed
                    .invalid
                    .iter()
                    .any(|invalid| invalid.key.ends_with("/scale-to-zero"));
                let enabled = if unreadable {
                    settings.enabled
                } else {
                    parsed.settings.enabled
                };
                Arc::new(Settings {
                    enabled,
                    ..settings.as_ref().clone()
                })
            }
            None => Arc::new(parsed.settings.clone()),
        }
    }

    /// The workload: for capture the one that is meant; for release the one that was captured.
    fn workload(
        &self,
        key: &RouteKey,
        route: Option<&Route>,
        examined: &examine::Facts,
        capture: bool,
    ) -> Option<Arc<WorkloadFacts>> {
        let meant = match examined.workloads.as_slice() {
            [one] => self.index.workload(&key.namespace, &one.workload),
            _ => None,
        };
        let routed = || {
            let pool = route?.spec.pools.first()?;
            self.index.workload(&key.namespace, &pool.workload)
        };
        if capture { meant } else { routed().or(meant) }
    }

    /// The Route as it should be, with a listening port for each port.
    fn spec(
        &self,
        key: &RouteKey,
        settings: &Settings,
        service: &ServiceFacts,
        workload: &WorkloadFacts,
        now: Time,
    ) -> Result<RouteSpec, Finding> {
        let mut listen = HashMap::new();
        let mut ports = self.ports.lock();
        for port in &service.ports {
            let number = ports
                .allocate(now, &(key.clone(), port.name.clone()))
                .map_err(|error| Finding {
                    severity: Severity::Refusal,
                    condition: CAPTURED,
                    reason: reason::NO_PORT_LEFT,
                    message: format!("{error}; opt other Services out, or wait a minute."),
                })?;
            listen.insert(port.name.clone(), number);
        }
        drop(ports);
        Ok(want::route(settings, service, workload, |port| {
            listen.get(&port.name).copied()
        }))
    }

    /// The NetworkPolicies of a namespace, read now and then: they only make a warning.
    async fn policies(&self, namespace: &str) -> Arc<Vec<NetworkPolicy>> {
        let now = Instant::now();
        let kept = self.policies.lock().get(namespace).cloned();
        if let Some((_, policies)) = kept.filter(|(read, _)| now.duration_since(*read) < POLICIES_KEPT) {
            return policies;
        }
        let read = self.cluster.network_policies(namespace).await;
        if let Err(error) = &read {
            tracing::debug!(namespace, %error, "reading NetworkPolicies");
        }
        let policies = Arc::new(read.unwrap_or_default());
        self.policies
            .lock()
            .insert(namespace.to_owned(), (now, Arc::clone(&policies)));
        policies
    }

    fn private(&self, key: &RouteKey, seen: &mut Seen) {
        let (Some(pool), Some(workload)) = (&seen.pool, &seen.workload) else {
            return;
        };
        let own = seen.wanted.then_some(&seen.spec);
        let wanted = want::private_service(&self.index, pool, workload, key, own);
        seen.shared = wanted.owners.iter().any(|(name, _)| *name != key.name);
        let named = |name: &str| seen.spec.pools.iter().any(|each| each.name == name);
        let revisions = seen.spec.pools.iter().filter(|each| each.name != pool.pool);
        let revisions = revisions
            .map(|each| want::revision_service(&self.index, key, &seen.service, &seen.spec, &each.workload));
        // The user's own workload may have no traffic while its revisions do.
        let whole = seen.spec.pools.is_empty() || named(&pool.pool) || seen.shared;
        let private: Vec<PrivateService> = whole.then_some(wanted).into_iter().chain(revisions).collect();
        seen.private = private;
        let old = seen.route.iter().flat_map(|route| &route.spec.pools);
        let old = old.map(|each| PoolKey {
            namespace: key.namespace.clone(),
            pool: each.name.clone(),
        });
        let kept = |old: &PoolKey| match seen.spec.pools.is_empty() {
            true => old == pool,
            false => seen.spec.pools.iter().any(|each| each.name == old.pool),
        };
        seen.left_pools = old.filter(|old| !kept(old)).collect();
    }

    /// Our slices as they should be.
    fn slices(&self, unit: &mut Unit, seen: &mut Seen, now: Time) {
        let live: Vec<Live> = self
            .fleet
            .live()
            .into_iter()
            .filter(|live| live.serving)
            .collect();
        seen.facts.live = live.iter().map(|live| live.name.clone()).collect();
        let route = seen.route.clone().or_else(|| unit.route.clone());
        // A Route without ports leads nowhere.
        let Some(route) = route.filter(|route| !route.spec.ports.is_empty()) else {
            return;
        };
        let listing = listing(unit, seen, &route, live, now);
        seen.facts.listening = listing.iter().map(|live| live.name.clone()).collect();
        seen.activators = want::activator_slices(&seen.service, &route, &listing);
        let serving = route.spec.pools.iter().filter(|pool| pool.weight > 0);
        let slices: Vec<_> = serving
            .flat_map(|pool| {
                self.index.slices_of_pool(&PoolKey {
                    namespace: seen.service.namespace.clone(),
                    pool: pool.name.clone(),
                })
            })
            .collect();
        if seen.pool.is_some() {
            seen.pods = want::pod_slices(&seen.service, &route, &slices);
        }
    }

    /// Whether all activators have had time to report.
    fn complete(&self, seen: &mut Seen, now: Time) -> bool {
        let start = *self.leads_since.lock();
        let until = start.map(|at| Time::from_epoch(self.clock.at(at)) + DIALLING);
        let waiting = until.filter(|until| now < *until && seen.facts.listening.is_empty());
        seen.wake_at = earliest(seen.wake_at, waiting);
        waiting.is_none()
    }

    fn fill(&self, unit: &Unit, seen: &mut Seen, now: Time) {
        let complete = self.complete(seen, now);
        let there = seen.route.as_deref();
        let there_is = |wanted: &PrivateService| self.index.private_service(&wanted.pool);
        let is_private = !seen.private.is_empty()
            && seen
                .private
                .iter()
                .all(|wanted| there_is(wanted).is_some_and(|there| want::is_private(&there, wanted)));
        let private = seen.private.iter().any(|wanted| there_is(wanted).is_some());
        let workload = seen.workload.as_deref();
        let noted = workload.and_then(|workload| workload.original_replicas);
        // Pods of a workload that is being scaled down are ready still, and about to go.
        let ready = workload.map_or(0, |workload| workload.ready_replicas.min(workload.replicas));
        let listed: usize = seen.pods.iter().map(|slice| slice.endpoints.len()).sum();
        let listed = u32::try_from(listed).unwrap_or(u32::MAX);
        let (wanted, last, claimed) = (seen.wanted, !seen.shared, seen.claimed);
        // Pods of its workload's revisions do as well.
        let ready = if claimed {
            ready.max(seen.ours.built_in)
        } else {
            ready
        };
        let facts = &mut seen.facts;
        facts.wanted = match (&seen.refusal, wanted) {
            (Some(refusal), _) => Wanted::Refused {
                why: clause(&refusal.message),
            },
            (None, true) => Wanted::Captured,
            (None, false) if seen.settings.enabled => Wanted::Released {
                why: "everything is being released".to_owned(),
            },
            (None, false) => Wanted::Released {
                why: "the annotation was removed".to_owned(),
            },
        };
        facts.complete = complete;
        facts.private_services = is_private;
        // On the way out: what is this Service's alone, or still has its ports.
        facts.any_private_service = private && (last || !is_private);
        facts.route = match there {
            None => RouteFact::Missing,
            Some(route) if route.spec.ports.is_empty() => {
                let shown = want::is_route(route, &seen.service, &RouteSpec::default(), &seen.last_good);
                // One that is not this Service's own is as good as none.
                if wanted || shown || seen.refusal.is_none() {
                    RouteFact::Empty
                } else {
                    RouteFact::Missing
                }
            }
            Some(route) if want::is_route(route, &seen.service, &seen.spec, &seen.last_good) => {
                RouteFact::Current
            }
            Some(_) => RouteFact::Outdated,
        };
        facts.original_recorded = workload.is_none_or(|workload| workload.original_replicas.is_some());
        facts.any_original = last && !claimed && noted.is_some();
        facts.original = noted
            .or(workload.map(|workload| workload.replicas))
            .unwrap_or(1)
            .max(1);
        facts.slice = if !seen.ours.activators.is_empty() {
            SliceFact::Activators {
                names: seen.ours.names(&self.fleet.live()),
                current: want::are(&seen.ours.activators, &seen.activators),
            }
        } else if !seen.ours.pods.is_empty() {
            SliceFact::Pods {
                current: want::are(&seen.ours.pods, &seen.pods),
            }
        } else {
            SliceFact::None
        };
        facts.builtin_ready = seen.ours.built_in;
        facts.key = seen.service.has_key();
        facts.selector_manager = seen.service.selector_managers.first().cloned();
        facts.probed.clone_from(&unit.probe.lock());
        facts.pods_ready = if wanted {
            listed
        } else {
            ready.max(if workload.is_none() { 1 } else { 0 })
        };
        let busy = seen.pools.iter().map(|(pool, _)| (self.busy)(pool));
        facts.in_flight = busy.fold(0, u32::saturating_add);
    }
}

/// Who is listed: every live activator that listens for the Route, once all do or have had time to. Who is listed
/// already and still listens on the same ports stays listed meanwhile.
fn listing(unit: &mut Unit, seen: &mut Seen, route: &Route, live: Vec<Live>, now: Time) -> Vec<Live> {
    let uid = route.metadata.uid.clone().unwrap_or_default();
    let generation = route.metadata.generation.unwrap_or(0);
    let of = |live: &Live| seen.acks.iter().find(|ack| ack.instance == live.instance);
    let acked = |live: &Live| {
        of(live).is_some_and(|ack| ack.uid == uid && ack.generation >= generation && ack.error.is_empty())
    };
    let refuses = |live: &Live| of(live).is_some_and(|ack| !ack.error.is_empty());
    let listed = seen.ours.listed();
    let same = seen.ours.same_listens(route) && !listed.is_empty();
    let (ready, waiting): (Vec<Live>, Vec<Live>) = live.into_iter().partition(acked);
    let kept = waiting
        .iter()
        .filter(|each| same && listed.contains(each.address.as_str()) && !refuses(each));
    let mut listing: Vec<Live> = ready.iter().chain(kept).cloned().collect();
    listing.sort_by(|a, b| a.address.cmp(&b.address));
    let pending = !same && !waiting.iter().all(refuses);
    let since = hold(&mut unit.pending, pending, now);
    let patient = since.map(|since| since + PENDING).filter(|until| now < *until);
    if listed.is_empty() && patient.is_some() && !seen.service.has_key() {
        // Nothing depends on us yet: all are listed at once rather than one by one.
        seen.wake_at = patient;
        return Vec::new();
    }
    listing
}

/// A sentence as a clause.
fn clause(sentence: &str) -> String {
    let mut letters = sentence.trim_end_matches('.').chars();
    letters.next().map_or_else(String::new, |first| {
        format!("{}{}", first.to_lowercase(), letters.as_str())
    })
}

/// The earlier of two moments of which either may be missing.
pub(super) fn earliest(one: Option<Time>, other: Option<Time>) -> Option<Time> {
    one.into_iter().chain(other).min()
}

impl Seen {
    /// An earlier leader proved capture, by the Route's condition.
    pub(super) fn was_captured(&self) -> bool {
        let status = self.route.as_ref().and_then(|route| route.status.as_ref());
        status.is_some_and(|status| crds::condition::is_true(&status.conditions, CAPTURED))
    }

    /// Names of the activators that listen for the Route's generation.
    pub(super) fn listening(&self) -> Vec<String> {
        let Some(route) = &self.route else {
            return Vec::new();
        };
        let uid = route.metadata.uid.as_deref().unwrap_or_default();
        let generation = route.metadata.generation.unwrap_or(0);
        let mut names: Vec<String> = self
            .acks
            .iter()
            .filter(|ack| {
                ack.serving && ack.uid == uid && ack.generation >= generation && ack.error.is_empty()
            })
            .map(|ack| ack.activator.clone())
            .collect();
        names.sort();
        names
    }
}

fn hold(mark: &mut Option<Time>, holds: bool, now: Time) -> Option<Time> {
    if holds {
        return Some(*mark.get_or_insert(now));
    }
    *mark = None;
    None
}
