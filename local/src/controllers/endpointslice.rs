//! EndpointSlices: where a Service's pods are.
//!
//! As Kubernetes: one set of slices for each set of port numbers that the Service's target ports resolve to, at most
//! [`MOST_ENDPOINTS`] endpoints in each, and an empty slice as a placeholder when there is nothing to say. Slices
//! managed by others are never touched.
//!
//! One thing differs, by design: a process cannot have the port it likes, so a pod's first declared port stands for
//! the port it was given (see [`port_on`]). Pods of one Service therefore usually have different port sets.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::core::ObjectMeta;
use serde_json::json;

use super::Start;
use crate::cluster::{
    Cluster, PORT_ANNOTATION, PORTS_ANNOTATION, is_finished, is_not_found, is_ready, owned_by,
};
use crate::informer::Key;
use crate::queue::{self, Queue};

/// Most endpoints in one slice, Kubernetes' default.
const MOST_ENDPOINTS: usize = 100;

const MANAGER: &str = "endpointslice-controller.k8s.io";
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";

/// Services are independent, so several may be looked at together; more would only wait for the API.
const WORKERS: usize = 4;

/// Adds listeners.
pub(super) fn prepare(cluster: &Arc<Cluster>) -> Start {
    let queue = Queue::new();
    super::replicaset::listen(&queue, &cluster.services);
    let (for_pods, services) = (Arc::clone(&queue), Arc::clone(&cluster.services));
    cluster.pods.listen(move |old, new| {
        let pods: Vec<&Pod> = [old, new].into_iter().flatten().collect();
        let namespace = pods
            .first()
            .and_then(|pod| pod.metadata.namespace.clone())
            .unwrap_or_default();
        for service in services.in_namespace(&namespace) {
            if pods.iter().any(|pod| matches(&service, pod)) {
                for_pods.add(Key::of(&*service));
            }
        }
    });
    let for_slices = Arc::clone(&queue);
    cluster.slices.listen(move |old, new| {
        if let Some(slice) = new.or(old)
            && is_ours(slice)
            && let Some(service) = service_of(slice)
        {
            for_slices.add(Key::new(
                slice.metadata.namespace.clone().unwrap_or_default(),
                service,
            ));
        }
    });
    let cluster = Arc::clone(cluster);
    Box::new(move |tasks, shutdown| {
        tasks.spawn(queue::work(
            "endpointslice",
            queue,
            WORKERS,
            shutdown.clone(),
            move |key| {
                let cluster = Arc::clone(&cluster);
                async move { reconcile(&cluster, &key).await }
            },
        ));
    })
}

/// The Service that a slice belongs to.
pub(crate) fn service_of(slice: &EndpointSlice) -> Option<&String> {
    slice
        .metadata
        .labels
        .as_ref()?
        .get(crds::names::SLICE_SERVICE_LABEL)
}

fn is_ours(slice: &EndpointSlice) -> bool {
    let labels = slice.metadata.labels.as_ref();
    labels
        .and_then(|labels| labels.get(crds::names::SLICE_MANAGED_BY_LABEL))
        .is_some_and(|it| it == MANAGER)
}

/// Whether a Service selects a pod. One without a selector selects nothing.
fn matches(service: &Service, pod: &Pod) -> bool {
    let Some(selector) = service.spec.as_ref().and_then(|spec| spec.selector.as_ref()) else {
        return false;
    };
    let labels = pod.metadata.labels.as_ref();
    !selector.is_empty()
        && selector
            .iter()
            .all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
}

async fn reconcile(cluster: &Cluster, key: &Key) -> Result<Option<Duration>, kube::Error> {
    let Some(service) = cluster.services.get(key) else {
        return Ok(None);
    };
    let Some(spec) = &service.spec else {
        return Ok(None);
    };
    let selectorless = spec.selector.as_ref().is_none_or(BTreeMap::is_empty);
    if selectorless
        || spec.type_.as_deref() == Some("ExternalName")
        || service.metadata.deletion_timestamp.is_some()
    {
        return Ok(None);
    }
    let pods = cluster.pods.in_namespace(&key.namespace);
    let wanted = wanted(&service, pods.iter().map(|pod| &**pod));
    let have: Vec<Arc<EndpointSlice>> = cluster
        .slices
        .in_namespace(&key.namespace)
        .into_iter()
        .filter(|slice| is_ours(slice) && service_of(slice) == Some(&key.name))
        .filter(|slice| slice.metadata.deletion_timestamp.is_none())
        .collect();
    let plan = plan(&wanted, &have, &labels(&service));
    carry_out(cluster, &service, plan).await?;
    Ok(None)
}

/// Port sets, each with the endpoints that have it.
type Wanted = BTreeMap<PortSet, Vec<Endpoint>>;

/// Ports by (name, number, protocol, appProtocol), in the Service's order.
type PortSet = Vec<(String, i32, String, Option<String>)>;

fn wanted<'a>(service: &Service, pods: impl Iterator<Item = &'a Pod>) -> Wanted {
    let mut wanted = Wanted::new();
    let ports = service
        .spec
        .as_ref()
        .and_then(|spec| spec.ports.as_deref())
        .unwrap_or_default();
    for pod in pods.filter(|pod| matches(service, pod) && !is_finished(pod)) {
        let Some(endpoint) = endpoint(service, pod) else {
            continue;
        };
        let set: PortSet = ports
            .iter()
            .filter_map(|port| {
                let number = port_on(pod, port)?;
                let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
                Some((
                    port.name.clone().unwrap_or_default(),
                    number,
                    protocol,
                    port.app_protocol.clone(),
                ))
            })
            .collect();
        // None of the Service's ports exists on this pod: it is no endpoint of it.
        if set.is_empty() && !ports.is_empty() {
            continue;
        }
        wanted.entry(set).or_default().push(endpoint);
    }
    wanted
}

fn endpoint(service: &Service, pod: &Pod) -> Option<Endpoint> {
    let address = pod.status.as_ref()?.pod_ip.clone().filter(|it| !it.is_empty())?;
    let spec = service.spec.as_ref()?;
    let serving = is_ready(pod);
    let terminating = pod.metadata.deletion_timestamp.is_some();
    let unready_too = spec.publish_not_ready_addresses == Some(true);
    let pod_spec = pod.spec.as_ref()?;
    let hostname = pod_spec.hostname.clone().filter(|it| !it.is_empty());
    Some(Endpoint {
        addresses: vec![address],
        conditions: Some(EndpointConditions {
            ready: Some(unready_too || (serving && !terminating)),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: hostname.filter(|_| pod_spec.subdomain == service.metadata.name),
        node_name: pod_spec.node_name.clone(),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            ..Default::default()
        }),
        ..Default::default()
    })
}

/// The number of a Service's port on a pod. `None`: the pod has no such named port.
///
/// The target port is resolved as Kubernetes does. If it is then the pod's first declared port, or the pod declares
/// none, the port that the pod was given in `PORT` stands in its place, unless the pod says `as-declared`.
pub(crate) fn port_on(pod: &Pod, port: &ServicePort) -> Option<i32> {
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    let declared = match &port.target_port {
        None => port.port,
        Some(IntOrString::Int(number)) => *number,
        Some(IntOrString::String(name)) => named_port(pod, name, protocol)?,
    };
    Some(given_port(pod, declared))
}

fn named_port(pod: &Pod, name: &str, protocol: &str) -> Option<i32> {
    let spec = pod.spec.as_ref()?;
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|it| it.restart_policy.as_deref() == Some("Always"));
    spec.containers
        .iter()
        .chain(sidecars)
        .flat_map(|container| container.ports.iter().flatten())
        .find(|it| it.name.as_deref() == Some(name) && it.protocol.as_deref().unwrap_or("TCP") == protocol)
        .map(|it| it.container_port)
}

/// What a declared port number means on this machine: the port given in `PORT` for the first one, itself for others.
pub(crate) fn given_port(pod: &Pod, declared: i32) -> i32 {
    let annotation = |key: &str| pod.metadata.annotations.as_ref().and_then(|it| it.get(key));
    if annotation(PORTS_ANNOTATION).is_some_and(|it| it == "as-declared") {
        return declared;
    }
    let containers: &[Container] = pod.spec.as_ref().map_or(&[], |spec| &spec.containers);
    let first = containers
        .iter()
        .flat_map(|container| container.ports.iter().flatten())
        .next();
    if first.is_some_and(|it| it.container_port != declared) {
        return declared;
    }
    annotation(PORT_ANNOTATION)
        .and_then(|it| it.parse().ok())
        .unwrap_or(declared)
}

/// The Service's own labels, and those that make a slice the Service's.
fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(
        crds::names::SLICE_SERVICE_LABEL.to_owned(),
        service.metadata.name.clone().unwrap_or_default(),
    );
    labels.insert(crds::names::SLICE_MANAGED_BY_LABEL.to_owned(), MANAGER.to_owned());
    labels.remove(HEADLESS_LABEL);
    let address = service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref());
    if matches!(address, None | Some("" | "None")) {
        labels.insert(HEADLESS_LABEL.to_owned(), String::new());
    }
    labels
}

/// What to write.
#[derive(Debug, Default)]
struct Plan {
    /// Slices to make: ports and endpoints.
    create: Vec<(PortSet, Vec<Endpoint>)>,
    /// Slices to write: name, ports and endpoints.
    update: Vec<(Arc<EndpointSlice>, PortSet, Vec<Endpoint>)>,
    delete: Vec<Arc<EndpointSlice>>,
    labels: BTreeMap<String, String>,
}

/// Changes as few slices as possible: an endpoint stays in the slice it is in, new ones fill what has room.
fn plan(wanted: &Wanted, have: &[Arc<EndpointSlice>], labels: &BTreeMap<String, String>) -> Plan {
    let mut plan = Plan {
        labels: labels.clone(),
        ..Default::default()
    };
    let mut kept = 0;
    let mut spare: Vec<Arc<EndpointSlice>> = have
        .iter()
        .filter(|it| !wanted.contains_key(&ports_of(it)))
        .cloned()
        .collect();
    for (set, endpoints) in wanted {
        let mut left: BTreeMap<&str, &Endpoint> = endpoints
            .iter()
            .map(|it| (it.addresses[0].as_str(), it))
            .collect();
        let mut filled: Vec<(Arc<EndpointSlice>, Vec<Endpoint>)> = Vec::new();
        for slice in have.iter().filter(|slice| ports_of(slice) == *set) {
            let present: Vec<Endpoint> = slice
                .endpoints
                .iter()
                .filter_map(|old| left.remove(old.addresses.first()?.as_str()).cloned())
                .collect();
            filled.push((Arc::clone(slice), present));
        }
        for (_, present) in &mut filled {
            while present.len() < MOST_ENDPOINTS
                && let Some((_, endpoint)) = left.pop_first()
            {
                present.push(endpoint.clone());
            }
        }
        for (slice, present) in filled {
            if present.is_empty() {
                plan.delete.push(slice);
                continue;
            }
            kept += 1;
            if slice.endpoints != present || slice.metadata.labels.as_ref() != Some(labels) {
                plan.update.push((slice, set.clone(), present));
            }
        }
        let rest: Vec<Endpoint> = left.into_values().cloned().collect();
        for chunk in rest.chunks(MOST_ENDPOINTS) {
            kept += 1;
            // A slice of a port set that nobody has any more is used again before a new one is made.
            match spare.pop() {
                Some(slice) => plan.update.push((slice, set.clone(), chunk.to_vec())),
                None => plan.create.push((set.clone(), chunk.to_vec())),
            }
        }
    }
    plan.delete.append(&mut spare);
    if kept == 0 {
        placeholder(&mut plan, labels);
    }
    plan
}

/// With nothing to say, one slice without ports and endpoints says so.
fn placeholder(plan: &mut Plan, labels: &BTreeMap<String, String>) {
    let Some(slice) = plan.delete.pop() else {
        plan.create.push((PortSet::new(), Vec::new()));
        return;
    };
    let is_empty = slice.endpoints.is_empty() && ports_of(&slice).is_empty();
    if !is_empty || slice.metadata.labels.as_ref() != Some(labels) {
        plan.update.push((slice, PortSet::new(), Vec::new()));
    }
}

fn ports_of(slice: &EndpointSlice) -> PortSet {
    let ports = slice.ports.as_deref().unwrap_or_default();
    ports
        .iter()
        .map(|port| {
            let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
            (
                port.name.clone().unwrap_or_default(),
                port.port.unwrap_or(0),
                protocol,
                port.app_protocol.clone(),
            )
        })
        .collect()
}

fn endpoint_ports(set: &PortSet) -> Vec<EndpointPort> {
    set.iter()
        .map(|(name, port, protocol, app_protocol)| EndpointPort {
            name: Some(name.clone()),
            port: Some(*port),
            protocol: Some(protocol.clone()),
            app_protocol: app_protocol.clone(),
        })
        .collect()
}

async fn carry_out(cluster: &Cluster, service: &Service, plan: Plan) -> Result<(), kube::Error> {
    let namespace = service.metadata.namespace.clone().unwrap_or_default();
    let api = cluster.api::<EndpointSlice>(&namespace);
    for (set, endpoints) in plan.create {
        let slice = EndpointSlice {
            metadata: ObjectMeta {
                generate_name: Some(format!(
                    "{}-",
                    service.metadata.name.as_deref().unwrap_or_default()
                )),
                namespace: Some(namespace.clone()),
                labels: Some(plan.labels.clone()),
                owner_references: Some(vec![owned_by(service)]),
                ..Default::default()
            },
            address_type: "IPv4".to_owned(),
            endpoints,
            ports: Some(endpoint_ports(&set)),
        };
        let made = api.create(&PostParams::default(), &slice).await?;
        cluster.slices.observe(made);
    }
    for (slice, set, endpoints) in plan.update {
        let patch = json!({
            "metadata": { "uid": slice.metadata.uid, "labels": replaced(slice.metadata.labels.as_ref(), &plan.labels) },
            "endpoints": endpoints,
            "ports": endpoint_ports(&set),
        });
        let name = slice.metadata.name.clone().unwrap_or_default();
        match api
            .patch(&name, &PatchParams::default(), &Patch::Merge(patch))
            .await
        {
            Ok(written) => cluster.slices.observe(written),
            Err(error) if is_not_found(&error) => {}
            Err(error) => return Err(error),
        }
    }
    for slice in plan.delete {
        let name = slice.metadata.name.clone().unwrap_or_default();
        match api.delete(&name, &DeleteParams::background()).await {
            Err(error) if !is_not_found(&error) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// The labels as a merge patch that also takes away those that the Service no longer has.
fn replaced(old: Option<&BTreeMap<String, String>>, new: &BTreeMap<String, String>) -> serde_json::Value {
    let keys: BTreeSet<&String> = old
        .into_iter()
        .flatten()
        .map(|(key, _)| key)
        .chain(new.keys())
        .collect();
    keys.into_iter()
        .map(|key| (key.clone(), json!(new.get(key))))
        .collect::<serde_json::Map<_, _>>()
        .into()
}
