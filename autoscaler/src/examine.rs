//! What stands in the way of a Service, and what its owner may want to know. Pure; the controller and `dormouse doctor`
//! ask the same questions of the same [`Facts`], so they never disagree.
//!
//! A [`Severity::Refusal`] keeps a Service from being captured, or has it given back. Everything else stops nothing.
//! Each [`Finding`] is one sentence that says what is wrong and what to do.

mod gather;
mod probe;

use crds::Settings;
use crds::annotation::Parsed;
use crds::condition::{CAPTURED, CONFIGURATION_VALID, FULLY_ACTIVE, REPLICAS_CONFLICT, WARNING, reason};
use crds::names::{ACTIVATOR_MANAGER, AUTOSCALER_MANAGER, CLI_MANAGER, SCALE_MANAGER};
use crds::route::ProbeKind;

pub(crate) use gather::from_index;
pub use gather::{GatherError, gather};
pub use probe::{probe, probe_with_port};

pub use crate::watch::slim::{
    ContainerFacts, HpaFacts, Labels, ServiceFacts, ServicePort, Target, WorkloadFacts,
};

/// A CPU limit below this, in thousandths of a CPU, makes most applications start noticeably slower.
const LOW_CPU_MILLIS: u64 = 250;

/// Everything that is looked at for one Service.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// The Service.
    pub service: ServiceFacts,
    /// The annotations of its Namespace.
    pub namespace: Labels,
    /// What is configured.
    pub parsed: Parsed,
    /// The workloads that it means: exactly one, or it is refused.
    pub workloads: Vec<WorkloadFacts>,
    /// Other opted-in Services on the same workload, by name, with their settings.
    pub sharers: Vec<(String, Settings)>,
    /// For which other Service the workload is rolled out, and by which Rollout.
    pub rolled_out: Option<(String, String)>,
    /// Names of Services on the same workload that are not opted in.
    pub bystanders: Vec<String>,
    /// The HorizontalPodAutoscalers of the workload.
    pub hpas: Vec<HpaFacts>,
    /// Names of NetworkPolicies that select the pods.
    pub policies: Vec<String>,
}

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// The Service is not captured.
    Refusal,
    /// It is captured, but something works less well than its owner may think.
    Warning,
    /// It could be faster.
    Advice,
}

/// Something worth saying about a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How much it matters.
    pub severity: Severity,
    /// The condition type it shows in, of [`crds::condition`].
    pub condition: &'static str,
    /// The reason, of [`crds::condition::reason`].
    pub reason: &'static str,
    /// One sentence with the fix.
    pub message: String,
}

impl Finding {
    fn refusal(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Refusal,
            condition: CAPTURED,
            reason,
            message: message.into(),
        }
    }

    fn warning(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Warning,
            condition: WARNING,
            reason,
            message: message.into(),
        }
    }

    fn advice(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Advice,
            condition: WARNING,
            reason,
            message: message.into(),
        }
    }
}

/// Whether this version can carry out a Rollout.
///
/// # Errors
/// The first field that it cannot, its value and what is allowed.
pub fn rollout(spec: &crds::RolloutSpec) -> Result<(), String> {
    crate::rollout::check(spec)
}

/// All findings on a Service, the gravest first.
#[must_use]
pub fn examine(facts: &Facts) -> Vec<Finding> {
    let mut findings = refusals(facts);
    configuration(&facts.parsed, &mut findings);
    of_service(facts, &mut findings);
    of_workload(facts, &mut findings);
    findings.sort_by_key(|finding| finding.severity);
    findings
}

/// Why the Service cannot be captured; empty: it can.
#[must_use]
pub fn refusals(facts: &Facts) -> Vec<Finding> {
    let service = &facts.service;
    let mut found = Vec::new();
    let mut refuse = |reason, message: String| found.push(Finding::refusal(reason, message));
    if service.kind == "ExternalName" {
        // It has neither addresses nor pods: nothing else about it is worth saying.
        refuse(
            reason::EXTERNAL_NAME,
            "The Service is of type ExternalName, a DNS name without endpoints; annotate the Service it points to.".into(),
        );
        return found;
    }
    if service.cluster_ip == "None" {
        refuse(
            reason::HEADLESS,
            "The Service is headless (clusterIP: None), so clients dial pods directly; give it a ClusterIP."
                .into(),
        );
    }
    let others: Vec<_> = service
        .ports
        .iter()
        .filter(|port| port.protocol != "TCP")
        .collect();
    if let Some(port) = others.first() {
        let (number, protocol) = (port.port, &port.protocol);
        refuse(
            reason::UNSUPPORTED_PROTOCOL,
            format!(
                "Port {number} is {protocol}, and only TCP can be held; move it to a Service of its own."
            ),
        );
    }
    if service.publishes_not_ready {
        refuse(
            reason::PUBLISHES_NOT_READY,
            "The Service sets publishNotReadyAddresses, so traffic would reach pods that cannot answer; unset it.".into(),
        );
    }
    if service.real_selector().is_empty() {
        refuse(
            reason::SELECTORLESS,
            "The Service has no selector, so its pods are unknown; give it the selector of its pods.".into(),
        );
        return found;
    }
    found.extend(workload_refusals(facts));
    found
}

fn workload_refusals(facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    let [workload] = facts.workloads.as_slice() else {
        found.push(no_workload(facts));
        return found;
    };
    let name = &workload.workload;
    let differing: Vec<&str> = facts
        .sharers
        .iter()
        .filter(|(_, settings)| !same_pool(settings, &facts.parsed.settings))
        .map(|(name, _)| name.as_str())
        .collect();
    if !differing.is_empty() {
        let others = differing.join(", ");
        found.push(Finding::refusal(
            reason::WORKLOAD_SHARED,
            format!("{name} is also behind the opted-in Service {others}, which is configured differently; give both the same dormouse.dev annotations."),
        ));
    }
    if let Some((service, rollout)) = &facts.rolled_out {
        let own = &facts.service.name;
        found.push(Finding::refusal(
            reason::ROLLED_OUT,
            format!("{name} is rolled out by the Rollout {rollout} for Service {service}, so Service {own} cannot be captured too: it leads to the ready pods of all revisions, of which one is kept for it; send its clients to Service {service}, or remove its annotation."),
        ));
    }
    if let Some(object) = facts.hpas.iter().find_map(|hpa| hpa.scaled_object.as_ref()) {
        found.push(Finding::refusal(
            reason::SCALED_OBJECT,
            format!("{name} is scaled by the KEDA ScaledObject {object}, which goes to zero by itself; delete the ScaledObject or the annotation."),
        ));
    }
    found
}

fn no_workload(facts: &Facts) -> Finding {
    if facts.workloads.is_empty() {
        let message = match &facts.parsed.settings.workload {
            Some(named) => format!("The annotation names {named}, which does not exist in this namespace; correct dormouse.dev/workload."),
            None => "No Deployment or StatefulSet has pods that the selector matches; correct the selector or set dormouse.dev/workload.".to_owned(),
        };
        return Finding::refusal(reason::WORKLOAD_NOT_FOUND, message);
    }
    let mut names: Vec<String> = facts
        .workloads
        .iter()
        .map(|each| each.workload.to_string())
        .collect();
    names.sort();
    Finding::refusal(
        reason::WORKLOAD_AMBIGUOUS,
        format!(
            "The selector matches {}; name the one to scale in dormouse.dev/workload.",
            names.join(" and ")
        ),
    )
}

/// Whether two Services can share a pool: everything that concerns pods is equal. What concerns only a Service's own
/// requests (time limits, protocol, what to ignore, how the workload was found) may differ.
#[must_use]
pub fn same_pool(a: &Settings, b: &Settings) -> bool {
    let pool = |settings: &Settings| Settings {
        enabled: true,
        workload: None,
        cold_start_timeout: std::time::Duration::ZERO,
        response_start_timeout: std::time::Duration::ZERO,
        request_timeout: std::time::Duration::ZERO,
        stream_idle_timeout: std::time::Duration::ZERO,
        queue_timeout: std::time::Duration::ZERO,
        protocol: None,
        proxy_protocol: false,
        waiting_page: String::new(),
        ignore: crds::route::Ignore::default(),
        queue_limit: 0,
        depends_on: Vec::new(),
        ..settings.clone()
    };
    pool(a) == pool(b)
}

fn configuration(parsed: &Parsed, findings: &mut Vec<Finding>) {
    for invalid in &parsed.invalid {
        findings.push(Finding {
            severity: Severity::Warning,
            condition: CONFIGURATION_VALID,
            reason: reason::INVALID_VALUE,
            message: format!(
                "{} on the {} is \"{}\", allowed: {}; the last good value stays in force.",
                invalid.key, invalid.place, invalid.value, invalid.allowed
            ),
        });
    }
    if !parsed.inactive.is_empty() {
        findings.push(Finding {
            severity: Severity::Warning,
            condition: FULLY_ACTIVE,
            reason: reason::NOT_YET_ACTIVE,
            message: format!(
                "Accepted, but not yet active in this version: {}.",
                parsed.inactive.join(", ")
            ),
        });
    }
    for (key, nearest) in &parsed.unknown {
        let hint = nearest.map_or_else(String::new, |nearest| format!("; did you mean {nearest}?"));
        findings.push(Finding::warning(
            reason::UNKNOWN_ANNOTATION,
            format!("{key} is not a known annotation{hint}"),
        ));
    }
}

fn of_service(facts: &Facts, findings: &mut Vec<Finding>) {
    let service = &facts.service;
    for (set, policy) in [
        (service.external_local, "externalTrafficPolicy"),
        (service.internal_local, "internalTrafficPolicy"),
    ] {
        if set {
            findings.push(Finding::warning(
                reason::TRAFFIC_POLICY_LOCAL,
                format!("{policy} is Local: only nodes with an activator serve the Service; set it to Cluster or run an activator on each node."),
            ));
        }
    }
    if service.client_ip_affinity {
        findings.push(Finding::warning(
            reason::SESSION_AFFINITY,
            "sessionAffinity is ClientIP: a client stays with one activator, not with one pod; keep sessions outside the pods.",
        ));
    }
    let injected = |value: Option<&String>| value.is_some_and(|value| value != "disabled");
    let by_pod = facts
        .workloads
        .first()
        .and_then(|workload| workload.linkerd.as_ref());
    let numeric = service
        .ports
        .iter()
        .any(|port| matches!(port.target, Target::Number(_)));
    if numeric && injected(by_pod.or(facts.namespace.get(crate::watch::slim::LINKERD))) {
        findings.push(Finding::warning(
            reason::LINKERD,
            "Linkerd is injected here, and its clients ignore a slice's port when targetPort is a number; name the container port and use the name.",
        ));
    }
    if !facts.policies.is_empty() {
        findings.push(Finding::warning(
            reason::NETWORK_POLICY,
            format!(
                "NetworkPolicy {} selects the pods: allow ingress from the activators' namespace, and expect clients' addresses to be the activators'.",
                facts.policies.join(", ")
            ),
        ));
    }
    if !facts.bystanders.is_empty() {
        findings.push(Finding::warning(
            reason::BYSTANDER,
            format!(
                "Service {} leads to the same pods and is not opted in: it has no endpoints while they sleep; annotate it alike.",
                facts.bystanders.join(", ")
            ),
        ));
    }
}

fn of_workload(facts: &Facts, findings: &mut Vec<Finding>) {
    let [workload] = facts.workloads.as_slice() else {
        return;
    };
    let name = &workload.workload;
    if facts.hpas.is_empty()
        && let Some(manager) = foreign_replicas_manager(workload)
    {
        findings.push(Finding {
            severity: Severity::Warning,
            condition: REPLICAS_CONFLICT,
            reason: reason::FOREIGN_MANAGER,
            message: format!("{manager} sets spec.replicas of {name}: each time it does, it undoes a scaling; leave replicas out of what it applies."),
        });
    }
    let serving = facts
        .service
        .ports
        .first()
        .and_then(|port| workload.container_for(&port.target));
    let Some(container) = serving else { return };
    match (&container.readiness, probe(workload).kind) {
        (None, ProbeKind::Tcp) => findings.push(Finding::warning(
            reason::NO_READINESS_PROBE,
            format!("Container {} has no readiness probe: a pod counts as ready when its port accepts connections; add an httpGet probe.", container.name),
        )),
        (_, ProbeKind::Kubernetes) => findings.push(Finding::warning(
            reason::KUBELET_PROBE,
            format!("Readiness of {name} (exec, gRPC, HTTPS, a startup probe, or more than one probe) is only seen through the kubelet, about a second later; use one httpGet or tcpSocket readiness probe."),
        )),
        _ => {}
    }
    if workload.automount_token != Some(false) {
        findings.push(Finding::advice(
            reason::TOKEN_MOUNTED,
            "Pods mount a service-account token, which adds about 0.3 s to each start; set automountServiceAccountToken: false if they do not use it.",
        ));
    }
    if let Some(limit) = &container.cpu_limit
        && cpu_millis(limit).is_some_and(|millis| millis < LOW_CPU_MILLIS)
    {
        findings.push(Finding::advice(
            reason::LOW_CPU_LIMIT,
            format!("Container {} has a CPU limit of {limit}, which slows each start; raise the limit or leave it out.", container.name),
        ));
    }
}

/// The last to write `spec.replicas`, when that is neither we nor the HPA controller.
#[must_use]
pub fn foreign_replicas_manager(workload: &WorkloadFacts) -> Option<&str> {
    const OURS: [&str; 4] = [SCALE_MANAGER, ACTIVATOR_MANAGER, AUTOSCALER_MANAGER, CLI_MANAGER];
    let last = workload.replicas_managers.first()?;
    (!OURS.contains(&last.as_str())).then_some(last)
}

/// `250m`, `0.25`, `2`: thousandths of a CPU.
fn cpu_millis(quantity: &str) -> Option<u64> {
    if let Some(millis) = quantity.strip_suffix('m') {
        return millis.parse().ok();
    }
    let cpus: f64 = quantity.parse().ok()?;
    // A quantity beyond any machine saturates, which is all that a comparison with a low limit needs.
    (cpus.is_finite() && cpus >= 0.0).then_some((cpus * 1000.0) as u64)
}

#[cfg(test)]
mod tests;
