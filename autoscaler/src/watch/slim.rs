//! What is kept of each object: a few hundred bytes in place of kilobytes. Everything is read once, on arrival.

use std::collections::BTreeMap;

use crds::names::{
    AUTOSCALER_MANAGER, CAPTURED_SELECTOR_KEY, GROUP, ORIGINAL_REPLICAS_ANNOTATION, PAUSED_ANNOTATION,
    POOL_LABEL, REVISION_LABEL,
};
use crds::route::{Workload, WorkloadKind};
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{Container, Namespace, PodTemplateSpec, Probe, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::cluster::ownership;

/// The prefix of Knative's autoscaling annotations, whose spellings we accept.
const KNATIVE_PREFIX: &str = "autoscaling.knative.dev/";

/// Labels, annotations or a selector.
pub type Labels = BTreeMap<String, String>;

/// A Service, as far as capture needs it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServiceFacts {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// The object's uid: a Service deleted and made anew is another.
    pub uid: String,
    /// The resourceVersion, for the one write that must not race: giving up ownership of the selector.
    pub resource_version: String,
    /// Only annotations under our prefix and Knative's.
    pub annotations: Labels,
    /// `spec.type`; empty: ClusterIP.
    pub kind: String,
    /// `spec.clusterIP`; empty or `None` when it has none.
    pub cluster_ip: String,
    /// `spec.ipFamilies`.
    pub ip_families: Vec<String>,
    /// `spec.selector` as it stands, with our key when it is there.
    pub selector: Labels,
    /// `spec.ports`.
    pub ports: Vec<ServicePort>,
    /// `spec.publishNotReadyAddresses`.
    pub publishes_not_ready: bool,
    /// `spec.externalTrafficPolicy: Local`.
    pub external_local: bool,
    /// `spec.internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// `spec.sessionAffinity: ClientIP`.
    pub client_ip_affinity: bool,
    /// Field managers, other than ours, that own `spec.selector`, the last to write first.
    pub selector_managers: Vec<String>,
    /// Whether one of our entries in `managedFields` owns `spec.selector`.
    pub we_own_selector: bool,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// The pool whose private Service it is; `None` for a user's Service.
    pub pool: Option<String>,
    /// uids of its owners.
    pub owners: Vec<String>,
}

impl ServiceFacts {
    /// Whether our key is in the selector.
    #[must_use]
    pub fn has_key(&self) -> bool {
        self.selector.contains_key(CAPTURED_SELECTOR_KEY)
    }

    /// The user's selector: what stands there without our key.
    #[must_use]
    pub fn real_selector(&self) -> Labels {
        let mut selector = self.selector.clone();
        selector.remove(CAPTURED_SELECTOR_KEY);
        selector
    }

    /// Whether the user's selector selects pods with these labels. An empty selector selects none.
    #[must_use]
    pub fn selects(&self, labels: &Labels) -> bool {
        let mut keys = 0;
        let all = self
            .selector
            .iter()
            .filter(|(key, _)| *key != CAPTURED_SELECTOR_KEY)
            .all(|(key, value)| {
                keys += 1;
                labels.get(key) == Some(value)
            });
        all && keys > 0
    }
}

/// One port of a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServicePort {
    /// Name; empty when the Service has one unnamed port.
    pub name: String,
    /// Number.
    pub port: u16,
    /// Where it leads in a pod.
    pub target: Target,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// `appProtocol`.
    pub app_protocol: Option<String>,
}

/// A port of a pod: by number, or by the name that its container gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Number.
    Number(u16),
    /// Name.
    Name(String),
}

impl Default for Target {
    fn default() -> Self {
        Self::Number(0)
    }
}

impl Target {
    fn from_kubernetes(target: &IntOrString) -> Self {
        match target {
            IntOrString::Int(number) => Self::Number(u16::try_from(*number).unwrap_or(0)),
            IntOrString::String(name) => name
                .parse()
                .map_or_else(|_| Self::Name(name.clone()), Self::Number),
        }
    }

    /// As Kubernetes writes it.
    #[must_use]
    pub fn to_kubernetes(&self) -> IntOrString {
        match self {
            Self::Number(number) => IntOrString::Int(i32::from(*number)),
            Self::Name(name) => IntOrString::String(name.clone()),
        }
    }
}

/// A Deployment or StatefulSet.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WorkloadFacts {
    /// Namespace.
    pub namespace: String,
    /// Kind and name.
    pub workload: Workload,
    /// The object's uid.
    pub uid: String,
    /// `metadata.generation`.
    pub generation: i64,
    /// `status.observedGeneration`.
    pub observed_generation: i64,
    /// `spec.replicas`.
    pub replicas: u32,
    /// `status.replicas`.
    pub current_replicas: u32,
    /// `status.updatedReplicas`: pods of the present template.
    pub updated_replicas: u32,
    /// `status.readyReplicas`.
    pub ready_replicas: u32,
    /// `spec.paused`.
    pub paused: bool,
    /// `spec.selector.matchLabels`.
    pub match_labels: Labels,
    /// Labels of its pods.
    pub template_labels: Labels,
    /// Its pods' containers.
    pub containers: Vec<ContainerFacts>,
    /// Whether a pod has conditions of its own to be ready, or a sidecar among the init containers with a readiness probe.
    pub readiness_gated: bool,
    /// The conditions that are not as they should be, and all others: type, status, reason, message.
    pub conditions: Vec<[String; 4]>,
    /// The replicas noted at capture.
    pub original_replicas: Option<u32>,
    /// Who owns `spec.replicas`, ourselves included, the last to write first.
    pub replicas_managers: Vec<String>,
    /// Whether one of our entries in `managedFields` owns its template or whether it is paused.
    pub we_own_spec: bool,
    /// `automountServiceAccountToken` of its pods.
    pub automount_token: Option<bool>,
    /// The pods' annotation `linkerd.io/inject`.
    pub linkerd: Option<String>,
    /// When its pods were last asked to be made anew, as `kubectl rollout restart` writes it.
    pub restarted_at: Option<String>,
    /// The revision whose pool it is; `None`: it is a user's own.
    pub revision: Option<String>,
    /// Its own annotations under our prefix and Knative's: of a workload without a Service they count.
    pub annotations: Labels,
    /// Whether it is being deleted.
    pub deleting: bool,
}

/// A container of a workload's pods.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ContainerFacts {
    /// Name.
    pub name: String,
    /// Its ports: name (may be empty) and number.
    pub ports: Vec<(String, u16)>,
    /// Readiness probe.
    pub readiness: Option<Probe>,
    /// Startup probe.
    pub startup: Option<Probe>,
    /// Limit of CPU as written, such as `500m`.
    pub cpu_limit: Option<String>,
}

/// A HorizontalPodAutoscaler.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HpaFacts {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// What it scales; `None` when that is neither Deployment nor StatefulSet.
    pub target: Option<Workload>,
    /// Name of the KEDA ScaledObject that owns it.
    pub scaled_object: Option<String>,
}

/// The annotations of a Namespace that can be defaults for its Services, and Linkerd's.
#[must_use]
pub(crate) fn namespace_annotations(namespace: &Namespace) -> Labels {
    let mut kept = own_annotations(&namespace.metadata);
    if let Some(value) = annotation(&namespace.metadata, LINKERD) {
        kept.insert(LINKERD.to_owned(), value);
    }
    kept
}

/// Linkerd's annotation for injection of its proxy.
pub(crate) const LINKERD: &str = "linkerd.io/inject";

fn annotation(metadata: &ObjectMeta, key: &str) -> Option<String> {
    metadata.annotations.as_ref()?.get(key).cloned()
}

fn own_annotations(metadata: &ObjectMeta) -> Labels {
    let ours = |key: &str| key.strip_prefix(GROUP).is_some_and(|rest| rest.starts_with('/'));
    let all = metadata.annotations.iter().flatten();
    all.filter(|(key, _)| ours(key) || key.starts_with(KNATIVE_PREFIX))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

/// The entries of `managedFields` that own `path`, the last to write first.
fn owners_of<'a>(metadata: &'a ObjectMeta, path: [&str; 2]) -> Vec<&'a ManagedFieldsEntry> {
    let owns = |entry: &&ManagedFieldsEntry| {
        entry.fields_v1.as_ref().is_some_and(|fields| {
            fields
                .0
                .get(path[0])
                .is_some_and(|in_it| in_it.get(path[1]).is_some())
        })
    };
    let mut owners: Vec<_> = metadata.managed_fields.iter().flatten().filter(owns).collect();
    owners.sort_by(|a, b| b.time.cmp(&a.time));
    owners
}

fn managers(owners: &[&ManagedFieldsEntry]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for entry in owners {
        let name = entry.manager.clone().unwrap_or_else(|| "unknown".to_owned());
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

impl From<&Service> for ServiceFacts {
    fn from(service: &Service) -> Self {
        let metadata = &service.metadata;
        let spec = service.spec.clone().unwrap_or_default();
        let is_ours = |manager: &Option<String>| manager.as_deref() == Some(crds::names::AUTOSCALER_MANAGER);
        let (ours, others): (Vec<_>, Vec<_>) = owners_of(metadata, ["f:spec", ownership::SELECTOR])
            .into_iter()
            .partition(|entry| is_ours(&entry.manager));
        let local = |policy: Option<String>| policy.as_deref() == Some("Local");
        Self {
            namespace: metadata.namespace.clone().unwrap_or_default(),
            name: metadata.name.clone().unwrap_or_default(),
            uid: metadata.uid.clone().unwrap_or_default(),
            resource_version: metadata.resource_version.clone().unwrap_or_default(),
            annotations: own_annotations(metadata),
            kind: spec.type_.unwrap_or_default(),
            cluster_ip: spec.cluster_ip.unwrap_or_default(),
            ip_families: spec.ip_families.unwrap_or_default(),
            selector: spec.selector.unwrap_or_default(),
            ports: spec.ports.iter().flatten().map(service_port).collect(),
            publishes_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
            external_local: local(spec.external_traffic_policy),
            internal_local: local(spec.internal_traffic_policy),
            client_ip_affinity: spec.session_affinity.as_deref() == Some("ClientIP"),
            selector_managers: managers(&others),
            we_own_selector: !ours.is_empty(),
            deleting: metadata.deletion_timestamp.is_some(),
            pool: metadata
                .labels
                .as_ref()
                .and_then(|labels| labels.get(POOL_LABEL).cloned()),
            owners: metadata
                .owner_references
                .iter()
                .flatten()
                .map(|owner| owner.uid.clone())
                .collect(),
        }
    }
}

fn service_port(port: &k8s_openapi::api::core::v1::ServicePort) -> ServicePort {
    let number = u16::try_from(port.port).unwrap_or(0);
    ServicePort {
        name: port.name.clone().unwrap_or_default(),
        port: number,
        target: port
            .target_port
            .as_ref()
            .map_or(Target::Number(number), Target::from_kubernetes),
        protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
        app_protocol: port.app_protocol.clone(),
    }
}

impl From<&Deployment> for WorkloadFacts {
    fn from(deployment: &Deployment) -> Self {
        let spec = deployment.spec.clone().unwrap_or_default();
        let status = deployment.status.clone().unwrap_or_default();
        let conditions = status.conditions.into_iter().flatten();
        Self {
            observed_generation: status.observed_generation.unwrap_or(0),
            replicas: count(Some(spec.replicas.unwrap_or(1))),
            current_replicas: count(status.replicas),
            updated_replicas: count(status.updated_replicas),
            ready_replicas: count(status.ready_replicas),
            paused: spec.paused.unwrap_or(false),
            match_labels: spec.selector.match_labels.unwrap_or_default(),
            conditions: conditions
                .map(|c| {
                    [
                        c.type_,
                        c.status,
                        c.reason.unwrap_or_default(),
                        c.message.unwrap_or_default(),
                    ]
                })
                .collect(),
            ..Self::common(WorkloadKind::Deployment, &deployment.metadata, &spec.template)
        }
    }
}

impl From<&StatefulSet> for WorkloadFacts {
    fn from(set: &StatefulSet) -> Self {
        let spec = set.spec.clone().unwrap_or_default();
        let status = set.status.clone().unwrap_or_default();
        let conditions = status.conditions.into_iter().flatten();
        Self {
            observed_generation: status.observed_generation.unwrap_or(0),
            replicas: count(Some(spec.replicas.unwrap_or(1))),
            current_replicas: count(Some(status.replicas)),
            ready_replicas: count(status.ready_replicas),
            match_labels: spec.selector.match_labels.unwrap_or_default(),
            conditions: conditions
                .map(|c| {
                    [
                        c.type_,
                        c.status,
                        c.reason.unwrap_or_default(),
                        c.message.unwrap_or_default(),
                    ]
                })
                .collect(),
            ..Self::common(WorkloadKind::StatefulSet, &set.metadata, &spec.template)
        }
    }
}

fn count(value: Option<i32>) -> u32 {
    u32::try_from(value.unwrap_or(0)).unwrap_or(0)
}

impl WorkloadFacts {
    /// Whether we have paused it.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.paused && self.annotations.contains_key(PAUSED_ANNOTATION)
    }

    fn common(kind: WorkloadKind, metadata: &ObjectMeta, template: &PodTemplateSpec) -> Self {
        let pod = template.spec.clone().unwrap_or_default();
        let template_metadata = template.metadata.clone().unwrap_or_default();
        let sidecar_probes = pod
            .init_containers
            .iter()
            .flatten()
            .any(|init| init.readiness_probe.is_some());
        let gates = pod
            .readiness_gates
            .as_ref()
            .is_some_and(|gates| !gates.is_empty());
        Self {
            namespace: metadata.namespace.clone().unwrap_or_default(),
            workload: Workload {
                kind,
                name: metadata.name.clone().unwrap_or_default(),
            },
            uid: metadata.uid.clone().unwrap_or_default(),
            generation: metadata.generation.unwrap_or(0),
            linkerd: annotation(&template_metadata, LINKERD),
            restarted_at: annotation(&template_metadata, "kubectl.kubernetes.io/restartedAt"),
            template_labels: template_metadata.labels.unwrap_or_default(),
            containers: pod.containers.iter().map(ContainerFacts::from).collect(),
            readiness_gated: gates || sidecar_probes,
            original_replicas: annotation(metadata, ORIGINAL_REPLICAS_ANNOTATION)
                .and_then(|text| text.parse().ok()),
            replicas_managers: managers(&owners_of(metadata, ["f:spec", ownership::REPLICAS])),
            we_own_spec: ownership::ROLLED_OUT.iter().any(|field| {
                let owners = owners_of(metadata, ["f:spec", field]);
                let is_ours =
                    |entry: &&ManagedFieldsEntry| entry.manager.as_deref() == Some(AUTOSCALER_MANAGER);
                owners.iter().any(is_ours)
            }),
            automount_token: pod.automount_service_account_token,
            annotations: own_annotations(metadata),
            revision: metadata
                .labels
                .as_ref()
                .and_then(|labels| labels.get(REVISION_LABEL).cloned()),
            deleting: metadata.deletion_timestamp.is_some(),
            ..Self::default()
        }
    }

    /// The one of its containers that serves `target`; the first one when none declares it.
    #[must_use]
    pub fn container_for(&self, target: &Target) -> Option<&ContainerFacts> {
        let serves = |container: &&ContainerFacts| {
            container.ports.iter().any(|(name, number)| match target {
                Target::Number(wanted) => wanted == number,
                Target::Name(wanted) => wanted == name,
            })
        };
        self.containers
            .iter()
            .find(serves)
            .or_else(|| self.containers.first())
    }
}

impl From<&Container> for ContainerFacts {
    fn from(container: &Container) -> Self {
        let limits = container
            .resources
            .as_ref()
            .and_then(|resources| resources.limits.as_ref());
        Self {
            name: container.name.clone(),
            ports: container
                .ports
                .iter()
                .flatten()
                .map(|port| {
                    (
                        port.name.clone().unwrap_or_default(),
                        u16::try_from(port.container_port).unwrap_or(0),
                    )
                })
                .collect(),
            readiness: container.readiness_probe.clone(),
            startup: container.startup_probe.clone(),
            cpu_limit: limits
                .and_then(|limits| limits.get("cpu"))
                .map(|quantity| quantity.0.clone()),
        }
    }
}

impl From<&HorizontalPodAutoscaler> for HpaFacts {
    fn from(hpa: &HorizontalPodAutoscaler) -> Self {
        let target = hpa.spec.as_ref().map(|spec| &spec.scale_target_ref);
        let kind = |kind: &str| match kind {
            "Deployment" => Some(WorkloadKind::Deployment),
            "StatefulSet" => Some(WorkloadKind::StatefulSet),
            _ => None,
        };
        let keda = |owner: &&OwnerReference| owner.kind == "ScaledObject";
        Self {
            namespace: hpa.metadata.namespace.clone().unwrap_or_default(),
            name: hpa.metadata.name.clone().unwrap_or_default(),
            target: target.and_then(|target| {
                Some(Workload {
                    kind: kind(&target.kind)?,
                    name: target.name.clone(),
                })
            }),
            scaled_object: hpa
                .metadata
                .owner_references
                .iter()
                .flatten()
                .find(keda)
                .map(|owner| owner.name.clone()),
        }
    }
}
