//! What is kept of an EndpointSlice: whole for pools, ours and the activators', a count for all others.

use crds::names::{
    ACTIVATOR_SERVICE, POOL_LABEL, SLICE_MANAGED_BY_LABEL, SLICE_MANAGER, SLICE_SERVICE_LABEL,
};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

/// An EndpointSlice.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct SliceFacts {
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// The Service it is for.
    pub(crate) service: String,
    pub(crate) role: Role,
    /// `IPv4` or `IPv6`.
    pub(crate) address_type: String,
    /// Endpoints that take new connections.
    pub(crate) ready: u32,
    /// Empty for [`Role::Other`].
    pub(crate) endpoints: Vec<EndpointFacts>,
    /// Name and number; empty for [`Role::Other`].
    pub(crate) ports: Vec<(String, u16)>,
    /// The uid of the Service that owns it.
    pub(crate) owner: Option<String>,
}

/// Whose slice it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Role {
    /// Of the built-in controller, or anyone else's.
    #[default]
    Other,
    /// Published by us on a user's Service.
    Ours,
    /// Of the private Service of the pool of this name.
    Pool(String),
    /// Of the Service that lists the activators.
    Activators,
}

/// One endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct EndpointFacts {
    pub(crate) address: String,
    pub(crate) ready: bool,
    /// Kubernetes says the pod is ready, also while it is ending.
    pub(crate) serving: bool,
    pub(crate) terminating: bool,
    pub(crate) node: Option<String>,
    pub(crate) zone: Option<String>,
}

impl EndpointFacts {
    /// Whether a new connection to the pod can be expected to work.
    pub(crate) fn usable(&self) -> bool {
        self.serving && !self.terminating
    }
}

impl SliceFacts {
    /// Reads a slice; `system` is the namespace of the activators.
    pub(crate) fn read(slice: &EndpointSlice, system: &str) -> Self {
        let metadata = &slice.metadata;
        let label = |key: &str| {
            metadata
                .labels
                .as_ref()
                .and_then(|labels| labels.get(key).cloned())
        };
        let namespace = metadata.namespace.clone().unwrap_or_default();
        let service = label(SLICE_SERVICE_LABEL).unwrap_or_default();
        let role = if label(SLICE_MANAGED_BY_LABEL).as_deref() == Some(SLICE_MANAGER) {
            Role::Ours
        } else if let Some(pool) = label(POOL_LABEL) {
            Role::Pool(pool)
        } else if namespace == system && service == ACTIVATOR_SERVICE {
            Role::Activators
        } else {
            Role::Other
        };
        let ready = slice
            .endpoints
            .iter()
            .filter(|endpoint| takes_connections(endpoint))
            .count();
        let whole = role != Role::Other;
        let ports = slice.ports.iter().flatten().filter(|_| whole);
        Self {
            namespace,
            name: metadata.name.clone().unwrap_or_default(),
            service,
            address_type: slice.address_type.clone(),
            ready: u32::try_from(ready).unwrap_or(u32::MAX),
            endpoints: slice
                .endpoints
                .iter()
                .filter(|_| whole)
                .filter_map(endpoint)
                .collect(),
            ports: ports
                .filter_map(|port| {
                    Some((
                        port.name.clone().unwrap_or_default(),
                        u16::try_from(port.port?).ok()?,
                    ))
                })
                .collect(),
            owner: metadata
                .owner_references
                .iter()
                .flatten()
                .map(|owner| owner.uid.clone())
                .next(),
            role,
        }
    }
}

/// `ready` unset means ready, as the API documents it.
fn takes_connections(endpoint: &Endpoint) -> bool {
    endpoint
        .conditions
        .as_ref()
        .and_then(|conditions| conditions.ready)
        .unwrap_or(true)
}

fn endpoint(endpoint: &Endpoint) -> Option<EndpointFacts> {
    let ready = takes_connections(endpoint);
    let conditions = endpoint.conditions.clone().unwrap_or_default();
    Some(EndpointFacts {
        // The first address is the endpoint; no consumer looks at others.
        address: endpoint.addresses.first()?.clone(),
        ready,
        serving: conditions.serving.unwrap_or(ready),
        terminating: conditions.terminating.unwrap_or(false),
        node: endpoint.node_name.clone(),
        zone: endpoint.zone.clone(),
    })
}
