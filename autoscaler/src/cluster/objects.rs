//! The objects that we publish, as server-side apply wants them: only the fields that are ours. Pure.

use std::net::IpAddr;

use crds::names::{
    GROUP, LAST_GOOD_ANNOTATION, POOL_LABEL, PROBE_PORT_NAME, SERVICE_LABEL, SLICE_MANAGED_BY_LABEL,
    SLICE_MANAGER, SLICE_SERVICE_LABEL, VERSION, private_service_name,
};
use crds::report::PoolKey;
use crds::route::RouteSpec;
use serde_json::{Value, json};

use crate::watch::slim::{Labels, ServiceFacts, Target};

/// The private headless Service of a pool.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct PrivateService {
    pub(crate) pool: PoolKey,
    /// The user's own selector.
    pub(crate) selector: Labels,
    /// Listening port and where it leads in a pod: one for each Route port of every Service on the pool.
    pub(crate) ports: Vec<(u16, Target)>,
    /// Where the readiness probe goes, when it can be run from outside.
    pub(crate) probe: Option<Target>,
    /// Name and uid of all Services on the pool: it goes with the last of them.
    pub(crate) owners: Vec<(String, String)>,
}

/// One of our slices on a user's Service.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct SliceSpec {
    pub(crate) service: ServiceFacts,
    /// See [`slice_name`].
    pub(crate) name: String,
    /// `IPv4` or `IPv6`.
    pub(crate) address_type: String,
    pub(crate) endpoints: Vec<SliceEndpoint>,
    /// Service port name, number at the endpoints, appProtocol.
    pub(crate) ports: Vec<(String, u16, Option<String>)>,
}

/// An endpoint of one of our slices: always ready, or it is not listed.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SliceEndpoint {
    pub(crate) address: String,
    pub(crate) node: Option<String>,
    pub(crate) zone: Option<String>,
}

/// `IPv4` or `IPv6`; `None` for what is no address.
pub(crate) fn address_type(address: &str) -> Option<&'static str> {
    Some(match address.parse::<IpAddr>().ok()? {
        IpAddr::V4(_) => "IPv4",
        IpAddr::V6(_) => "IPv6",
    })
}

/// The name of one of our slices: `activators`, or `pods` with a number, for one address family.
pub(crate) fn slice_name(service: &str, what: &str, address_type: &str) -> String {
    // Names of slices are DNS subdomains of at most 253 bytes, and those of Services labels of at most 63.
    format!("{service}-dm-{what}-{}", address_type.to_ascii_lowercase())
}

fn owner(name: &str, uid: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Service", "name": name, "uid": uid, "controller": false, "blockOwnerDeletion": false })
}

/// The Route of a Service.
pub(super) fn route(service: &ServiceFacts, spec: &RouteSpec, last_good: &str) -> Value {
    json!({
        "apiVersion": format!("{GROUP}/{VERSION}"),
        "kind": "Route",
        "metadata": {
            "name": service.name,
            "namespace": service.namespace,
            "labels": { SERVICE_LABEL: service.name },
            "annotations": { LAST_GOOD_ANNOTATION: last_good },
            "ownerReferences": [owner(&service.name, &service.uid)],
        },
        "spec": spec,
    })
}

/// The private Service of a pool.
pub(super) fn private_service(wanted: &PrivateService) -> Value {
    let mut ports: Vec<Value> = wanted
        .ports
        .iter()
        .map(|(listen, target)| {
            json!({
                "name": crds::names::pool_port_name(*listen),
                "port": listen,
                "protocol": "TCP",
                "targetPort": target.to_kubernetes(),
            })
        })
        .collect();
    if let Some(target) = &wanted.probe {
        // Below the listening ports, so that it never meets one of them: ports of a Service are unique by number.
        ports.push(json!({
            "name": PROBE_PORT_NAME, "port": 1, "protocol": "TCP", "targetPort": target.to_kubernetes(),
        }));
    }
    let owners: Vec<Value> = wanted.owners.iter().map(|(name, uid)| owner(name, uid)).collect();
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": private_service_name(&wanted.pool.pool),
            "namespace": wanted.pool.namespace,
            "labels": { POOL_LABEL: wanted.pool.pool },
            "ownerReferences": owners,
        },
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": true,
            "selector": wanted.selector,
            "ports": ports,
        },
    })
}

/// One of our slices.
pub(super) fn slice(wanted: &SliceSpec) -> Value {
    let endpoints: Vec<Value> = wanted.endpoints.iter().map(endpoint).collect();
    let ports: Vec<Value> = wanted
        .ports
        .iter()
        .map(|(name, port, app)| {
            // The name is always set, also when it is empty: consumers dereference it.
            let mut body = json!({ "name": name, "port": port, "protocol": "TCP" });
            if let Some(app) = app {
                body["appProtocol"] = json!(app);
            }
            body
        })
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": wanted.name,
            "namespace": wanted.service.namespace,
            "labels": {
                SLICE_SERVICE_LABEL: wanted.service.name,
                SLICE_MANAGED_BY_LABEL: SLICE_MANAGER,
                SERVICE_LABEL: wanted.service.name,
            },
            "ownerReferences": [owner(&wanted.service.name, &wanted.service.uid)],
        },
        "addressType": wanted.address_type,
        "endpoints": endpoints,
        "ports": ports,
    })
}

fn endpoint(endpoint: &SliceEndpoint) -> Value {
    let mut body = json!({
        "addresses": [endpoint.address],
        // All three are set: consumers differ in what they make of one that is not.
        "conditions": { "ready": true, "serving": true, "terminating": false },
    });
    if let Some(node) = &endpoint.node {
        body["nodeName"] = json!(node);
    }
    if let Some(zone) = &endpoint.zone {
        body["zone"] = json!(zone);
    }
    body
}
