//! What there should be of ours for one Service, and how what there is compares with it. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crds::Settings;
use crds::report::PoolKey;
use crds::route::{
    FULL_WEIGHT, ProbeKind, Protocol, Route, RoutePool, RoutePort, RouteRollout, RouteSpec, Workload,
    WorkloadKind,
};

use crate::cluster::{PrivateService, SliceEndpoint, SliceSpec, address_type, slice_name};
use crate::examine::{ServiceFacts, ServicePort, Target, WorkloadFacts, probe_with_port};
use crate::ingest::Live;
use crate::state::{Division, RouteKey};
use crate::watch::{Index, Role, SliceFacts};

/// The spec of a captured Service's Route. `listen` gives each port its listening port.
pub(super) fn route(
    settings: &Settings,
    service: &ServiceFacts,
    workload: &WorkloadFacts,
    listen: impl Fn(&ServicePort) -> Option<u16>,
) -> RouteSpec {
    let millis = |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let ports = service.ports.iter().filter_map(|port| {
        let (protocol, h2c) = spoken(settings, port.app_protocol.as_deref());
        Some(RoutePort {
            name: port.name.clone(),
            port: port.port,
            listen: listen(port)?,
            protocol,
            h2c,
            app_protocol: port.app_protocol.clone(),
        })
    });
    RouteSpec {
        ports: ports.collect(),
        pools: vec![RoutePool {
            name: workload.workload.name.clone(),
            workload: workload.workload.clone(),
            weight: FULL_WEIGHT,
            container_concurrency: settings.container_concurrency,
            probe: probe_with_port(workload).0,
        }],
        queue_limit: settings.queue_limit,
        cold_start_timeout_ms: millis(settings.cold_start_timeout),
        queue_timeout_ms: millis(settings.queue_timeout),
        response_start_timeout_ms: millis(settings.response_start_timeout),
        request_timeout_ms: millis(settings.request_timeout),
        stream_idle_timeout_ms: millis(settings.stream_idle_timeout),
        waiting_page: settings.waiting_page.clone(),
        proxy_protocol: settings.proxy_protocol,
        ignore: settings.ignore.clone(),
        rollout: None,
    }
}

/// How a Service's traffic is divided among pools.
pub(super) struct Split {
    /// The user's own workload; `None`: not known yet.
    pub(super) target: Option<Workload>,
    pools: Vec<RoutePool>,
    rollout: Option<RouteRollout>,
    needs: BTreeMap<String, (u32, String)>,
    stays: Option<(String, String)>,
    others: BTreeSet<String>,
}

impl Split {
    /// As the rollout side says.
    pub(super) fn of(index: &Index, key: &RouteKey, division: &Division) -> Self {
        let deployment = |name: &String| Workload {
            kind: WorkloadKind::Deployment,
            name: name.clone(),
        };
        let pool = |(name, weight): (&String, &u32)| {
            let workload = deployment(name);
            let facts = index.workload(&key.namespace, &workload);
            RoutePool {
                name: name.clone(),
                workload,
                weight: *weight,
                container_concurrency: 0,
                probe: facts.map(|facts| probe_with_port(&facts).0).unwrap_or_default(),
            }
        };
        Self {
            target: Some(division.target.clone()),
            pools: division.weights.iter().map(pool).collect(),
            rollout: division.rollout.clone(),
            needs: division.needs.clone(),
            stays: division.stays.clone(),
            others: division.others.clone(),
        }
    }

    /// As the Route says. Which pools have to be ready for what is not known, so none gets smaller meanwhile.
    pub(super) fn kept(index: &Index, key: &RouteKey, route: &Route) -> Self {
        let need = |pool: &RoutePool| {
            let there = index.workload(&key.namespace, &pool.workload)?;
            let why = "how the traffic is divided is not known yet".to_owned();
            (there.replicas > 0).then(|| (pool.name.clone(), (there.replicas, why)))
        };
        Self {
            target: None,
            pools: route.spec.pools.clone(),
            rollout: route.spec.rollout.clone(),
            needs: route.spec.pools.iter().filter_map(need).collect(),
            stays: None,
            others: BTreeSet::new(),
        }
    }

    /// The workloads of its pools.
    pub(super) fn workloads(&self) -> impl Iterator<Item = &Workload> {
        self.pools.iter().map(|pool| &pool.workload)
    }

    /// Pools that get no requests.
    pub(super) fn idle(&self, namespace: &str) -> BTreeSet<PoolKey> {
        let silent = self.pools.iter().filter(|pool| pool.weight == 0);
        let names = silent.map(|pool| &pool.name).chain(&self.others);
        let key = |name: &String| PoolKey {
            namespace: namespace.to_owned(),
            pool: name.clone(),
        };
        names.map(key).collect()
    }

    /// The pool that does not go to zero, and why.
    pub(super) fn stays(&self, namespace: &str) -> Option<(PoolKey, String)> {
        let (pool, why) = self.stays.clone()?;
        let namespace = namespace.to_owned();
        Some((PoolKey { namespace, pool }, why))
    }

    /// Pods that pools need at least.
    pub(super) fn needs(&self, namespace: &str) -> BTreeMap<PoolKey, (u32, String)> {
        let key = |name: &String| PoolKey {
            namespace: namespace.to_owned(),
            pool: name.clone(),
        };
        self.needs
            .iter()
            .map(|(name, need)| (key(name), need.clone()))
            .collect()
    }
}

/// A Route's spec with its traffic divided.
pub(super) fn divided(mut spec: RouteSpec, split: Option<&Split>) -> RouteSpec {
    let Some(split) = split.filter(|split| !split.pools.is_empty()) else {
        return spec;
    };
    let limit = spec.pools.first().map_or(0, |pool| pool.container_concurrency);
    spec.pools = split.pools.clone();
    for pool in &mut spec.pools {
        pool.container_concurrency = limit;
    }
    spec.rollout = split.rollout.clone();
    spec
}

/// All pools of a Service, the one with most of its requests first.
pub(super) fn pools(
    key: &RouteKey,
    pool: &Option<PoolKey>,
    workload: Option<&WorkloadFacts>,
    split: Option<&Split>,
) -> Vec<(PoolKey, Workload)> {
    let Some(split) = split.filter(|split| !split.pools.is_empty()) else {
        let whole = pool.clone().zip(workload);
        return whole
            .map(|(pool, workload)| (pool, workload.workload.clone()))
            .into_iter()
            .collect();
    };
    let of = |name: &String, workload: Workload| {
        let pool = PoolKey {
            namespace: key.namespace.clone(),
            pool: name.clone(),
        };
        (pool, workload)
    };
    let mut routed: Vec<&RoutePool> = split.pools.iter().collect();
    routed.sort_by_key(|each| std::cmp::Reverse(each.weight));
    let routed = routed
        .into_iter()
        .map(|each| of(&each.name, each.workload.clone()));
    let others = split.others.iter().map(|name| {
        let workload = Workload {
            kind: WorkloadKind::Deployment,
            name: name.clone(),
        };
        of(name, workload)
    });
    routed.chain(others).collect()
}

/// The private Service of a revision's pool: it has the requests of one Service.
pub(super) fn revision_service(
    index: &Index,
    key: &RouteKey,
    service: &ServiceFacts,
    spec: &RouteSpec,
    workload: &Workload,
) -> PrivateService {
    let ports = spec.ports.iter().map(|port| {
        let target = service.ports.iter().find(|each| each.name == port.name);
        let target = target.map_or(Target::Number(port.port), |each| each.target.clone());
        (port.listen, target)
    });
    let mut selector = service.real_selector();
    selector.insert(crds::names::REVISION_LABEL.to_owned(), workload.name.clone());
    let facts = index.workload(&key.namespace, workload);
    let probe = facts.as_ref().map(|facts| probe_with_port(facts));
    let mut ports: Vec<(u16, Target)> = ports.collect();
    ports.sort_by_key(|(listen, _)| *listen);
    PrivateService {
        pool: PoolKey {
            namespace: key.namespace.clone(),
            pool: workload.name.clone(),
        },
        selector,
        ports,
        probe: probe.and_then(|(probe, target)| target.filter(|_| probe.kind != ProbeKind::Kubernetes)),
        owners: vec![(service.name.clone(), service.uid.clone())],
    }
}

/// What is spoken on a port, and whether pods speak HTTP/2 on it: the annotation, else `appProtocol` (the names of
/// Kubernetes' own table and IANA's), else HTTP.
fn spoken(settings: &Settings, app: Option<&str>) -> (Protocol, bool) {
    let (by_name, h2c) = match app.map(str::to_ascii_lowercase).as_deref() {
        None | Some("" | "http" | "http1" | "kubernetes.io/ws" | "ws") => (Protocol::Http, false),
        Some("kubernetes.io/h2c" | "h2c" | "http2" | "grpc") => (Protocol::Http, true),
        Some(_) => (Protocol::Tcp, false),
    };
    let protocol = settings.protocol.unwrap_or(by_name);
    (protocol, h2c && protocol == Protocol::Http)
}

/// The private Service of a pool: the ports of every Route on it, `own` in place of what is there for `key`
/// (`None`: this Service leaves the pool).
pub(super) fn private_service(
    index: &Index,
    pool: &PoolKey,
    workload: &WorkloadFacts,
    key: &RouteKey,
    own: Option<&RouteSpec>,
) -> PrivateService {
    let mut members: BTreeMap<String, (Arc<ServiceFacts>, RouteSpec)> = BTreeMap::new();
    for other in index.services_of(workload) {
        let Some(service) = index.service(&other) else {
            continue;
        };
        let spec = if other == *key {
            own.cloned()
        } else {
            index.route(&other).map(|route| route.spec.clone())
        };
        if let Some(spec) = spec.filter(|spec| spec.pools.iter().any(|each| each.name == pool.pool)) {
            members.insert(other.name, (service, spec));
        }
    }
    if let (Some(spec), Some(service)) = (own, index.service(key)) {
        members.entry(key.name.clone()).or_insert((service, spec.clone()));
    }
    let mut ports = BTreeMap::new();
    for (service, spec) in members.values() {
        for port in &spec.ports {
            let target = service
                .ports
                .iter()
                .find(|each| each.name == port.name)
                .map(|each| each.target.clone());
            ports.insert(port.listen, target.unwrap_or(Target::Number(port.port)));
        }
    }
    let (probe, target) = probe_with_port(workload);
    PrivateService {
        pool: pool.clone(),
        selector: members
            .values()
            .next()
            .map(|(service, _)| service.real_selector())
            .unwrap_or_default(),
        ports: ports.into_iter().collect(),
        probe: target.filter(|_| probe.kind != ProbeKind::Kubernetes),
        owners: members
            .values()
            .map(|(service, _)| (service.name.clone(), service.uid.clone()))
            .collect(),
    }
}

/// Whether a private Service is as it should be.
pub(super) fn is_private(there: &ServiceFacts, wanted: &PrivateService) -> bool {
    let mut ports: BTreeMap<String, Target> = wanted
        .ports
        .iter()
        .map(|(listen, target)| (crds::names::pool_port_name(*listen), target.clone()))
        .collect();
    if let Some(probe) = &wanted.probe {
        ports.insert(crds::names::PROBE_PORT_NAME.to_owned(), probe.clone());
    }
    let owners: BTreeSet<&String> = wanted.owners.iter().map(|(_, uid)| uid).collect();
    there.publishes_not_ready
        && there.selector == wanted.selector
        && there
            .ports
            .iter()
            .map(|port| (port.name.clone(), port.target.clone()))
            .collect::<BTreeMap<_, _>>()
            == ports
        && there.owners.iter().collect::<BTreeSet<_>>() == owners
}

/// Our slices on a Service.
#[derive(Clone, Debug, Default)]
pub(super) struct Ours {
    /// Those that list activators.
    pub(super) activators: Vec<Arc<SliceFacts>>,
    /// Those that list pods.
    pub(super) pods: Vec<Arc<SliceFacts>>,
    /// Ready endpoints in slices that are not ours.
    pub(super) built_in: u32,
}

impl Ours {
    /// Sorts the slices of a Service.
    pub(super) fn of(service: &str, slices: Vec<Arc<SliceFacts>>) -> Self {
        let names = ["IPv4", "IPv6"].map(|family| slice_name(service, ACTIVATORS, family));
        let mut ours = Self::default();
        for slice in slices {
            if slice.role != Role::Ours {
                ours.built_in = ours.built_in.saturating_add(slice.ready);
            } else if names.contains(&slice.name) {
                ours.activators.push(slice);
            } else {
                ours.pods.push(slice);
            }
        }
        ours
    }

    /// Addresses of activators that are listed.
    pub(super) fn listed(&self) -> BTreeSet<&str> {
        self.activators
            .iter()
            .flat_map(|slice| &slice.endpoints)
            .map(|each| each.address.as_str())
            .collect()
    }

    /// Names of the activators that are listed; one that is not live is named by its address.
    pub(super) fn names(&self, live: &[Live]) -> BTreeSet<String> {
        let name = |address: &str| {
            let known = live.iter().find(|live| live.address == address);
            known.map_or_else(|| address.to_owned(), |live| live.name.clone())
        };
        self.listed().into_iter().map(name).collect()
    }

    /// Whether the listed ports are those of the Route, by number: who listened for them listens for these.
    pub(super) fn same_listens(&self, route: &Route) -> bool {
        let wanted: BTreeSet<u16> = route.spec.ports.iter().map(|port| port.listen).collect();
        let listed: BTreeSet<u16> = self
            .activators
            .iter()
            .flat_map(|slice| &slice.ports)
            .map(|(_, port)| *port)
            .collect();
        wanted.is_subset(&listed)
    }
}

/// Part of the name of the slices that list activators.
const ACTIVATORS: &str = "activators";

/// The slices that list these activators for a Route: one for each address family.
pub(super) fn activator_slices(service: &ServiceFacts, route: &Route, activators: &[Live]) -> Vec<SliceSpec> {
    let ports: Vec<_> = route
        .spec
        .ports
        .iter()
        .map(|port| (port.name.clone(), port.listen, port.app_protocol.clone()))
        .collect();
    let mut families: BTreeMap<&str, BTreeSet<SliceEndpoint>> = BTreeMap::new();
    for activator in activators {
        let Some(family) = address_type(&activator.address).filter(|family| serves(service, family)) else {
            continue;
        };
        families.entry(family).or_default().insert(SliceEndpoint {
            address: activator.address.clone(),
            node: activator.node.clone(),
            zone: activator.zone.clone(),
        });
    }
    families
        .into_iter()
        .map(|(family, endpoints)| SliceSpec {
            service: service.clone(),
            name: slice_name(&service.name, ACTIVATORS, family),
            address_type: family.to_owned(),
            endpoints: endpoints.into_iter().collect(),
            ports: ports.clone(),
        })
        .collect()
}

/// Whether the Service has addresses of this family.
fn serves(service: &ServiceFacts, family: &str) -> bool {
    service.ip_families.is_empty() || service.ip_families.iter().any(|each| each == family)
}

/// The slices that list a pool's pods themselves: one for each address family and set of ports.
pub(super) fn pod_slices(service: &ServiceFacts, route: &Route, pool: &[Arc<SliceFacts>]) -> Vec<SliceSpec> {
    type Ports = Vec<(String, u16, Option<String>)>;
    let mut groups: BTreeMap<(String, Ports), BTreeSet<SliceEndpoint>> = BTreeMap::new();
    for slice in pool.iter().filter(|slice| serves(service, &slice.address_type)) {
        let number = |listen: u16| {
            let name = crds::names::pool_port_name(listen);
            slice
                .ports
                .iter()
                .find(|(port, _)| *port == name)
                .map(|(_, number)| *number)
        };
        let resolved = route.spec.ports.iter();
        let ports: Ports = resolved
            .filter_map(|port| Some((port.name.clone(), number(port.listen)?, port.app_protocol.clone())))
            .collect();
        let usable = slice.endpoints.iter().filter(|endpoint| endpoint.usable());
        let endpoints: Vec<_> = usable
            .map(|each| SliceEndpoint {
                address: each.address.clone(),
                node: each.node.clone(),
                zone: each.zone.clone(),
            })
            .collect();
        if !ports.is_empty() && !endpoints.is_empty() {
            groups
                .entry((slice.address_type.clone(), ports))
                .or_default()
                .extend(endpoints);
        }
    }
    let groups = groups.into_iter().enumerate();
    groups
        .map(|(number, ((family, ports), endpoints))| SliceSpec {
            service: service.clone(),
            name: slice_name(&service.name, &format!("pods{number}"), &family),
            address_type: family,
            endpoints: endpoints.into_iter().collect(),
            ports,
        })
        .collect()
}

/// Whether the slices that are there are just those that should be.
pub(super) fn are(there: &[Arc<SliceFacts>], wanted: &[SliceSpec]) -> bool {
    let same = |slice: &Arc<SliceFacts>| wanted.iter().any(|each| is_slice(slice, each));
    there.len() == wanted.len() && there.iter().all(same)
}

/// Whether a slice is as it should be.
pub(super) fn is_slice(there: &SliceFacts, wanted: &SliceSpec) -> bool {
    let endpoints: BTreeSet<SliceEndpoint> = there
        .endpoints
        .iter()
        .map(|each| SliceEndpoint {
            address: each.address.clone(),
            node: each.node.clone(),
            zone: each.zone.clone(),
        })
        .collect();
    let ports: BTreeSet<(&str, u16)> = there
        .ports
        .iter()
        .map(|(name, port)| (name.as_str(), *port))
        .collect();
    there.name == wanted.name
        && there.owner.as_deref() == Some(wanted.service.uid.as_str())
        && endpoints == wanted.endpoints.iter().cloned().collect()
        && ports
            == wanted
                .ports
                .iter()
                .map(|(name, port, _)| (name.as_str(), *port))
                .collect()
}

/// Whether a Route is as it should be, and owned by this very Service.
pub(super) fn is_route(there: &Route, service: &ServiceFacts, wanted: &RouteSpec, annotations: &str) -> bool {
    let mut owners = there.metadata.owner_references.iter().flatten();
    let kept = there
        .metadata
        .annotations
        .as_ref()
        .and_then(|all| all.get(crds::names::LAST_GOOD_ANNOTATION));
    there.spec == *wanted
        && owners.any(|owner| owner.uid == service.uid)
        && kept.map(String::as_str).unwrap_or_default() == annotations
}

/// What was last accepted of a Service's and its Namespace's annotations, as kept on the Route.
pub(super) fn to_last_good(
    namespace: &BTreeMap<String, String>,
    service: &BTreeMap<String, String>,
) -> String {
    serde_json::json!([namespace, service]).to_string()
}

/// The settings kept on a Route by an earlier leader.
pub(super) fn from_last_good(route: &Route) -> Option<Settings> {
    let text = route
        .metadata
        .annotations
        .as_ref()?
        .get(crds::names::LAST_GOOD_ANNOTATION)?;
    let [namespace, service]: [BTreeMap<String, String>; 2] = serde_json::from_str(text).ok()?;
    let parsed = crds::annotation::parse(&namespace, &service);
    parsed.invalid.is_empty().then_some(parsed.settings)
}
