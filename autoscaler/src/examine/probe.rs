//! The readiness probe of a workload's pods, as far as it can be run from outside.

use crds::route::{Probe, ProbeHeader, ProbeKind};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{ContainerFacts, Target, WorkloadFacts};

/// How an activator can tell that a pod of this workload answers.
#[must_use]
pub fn probe(workload: &WorkloadFacts) -> Probe {
    probe_with_port(workload).0
}

/// The same, with the port of the pod that the probe goes to; `None`: the port that is served.
#[must_use]
pub fn probe_with_port(workload: &WorkloadFacts) -> (Probe, Option<Target>) {
    let by_kubelet = (
        Probe {
            kind: ProbeKind::Kubernetes,
            ..Probe::default()
        },
        None,
    );
    let probed = workload
        .containers
        .iter()
        .filter(|container| container.readiness.is_some());
    let mut probed: Vec<&ContainerFacts> = probed.collect();
    // A pod is ready when all its containers are: one probe alone can be run for all.
    if workload.readiness_gated || probed.len() > 1 {
        return by_kubelet;
    }
    let started_first = |container: &ContainerFacts| {
        container
            .startup
            .as_ref()
            .is_some_and(|startup| !same_handler(Some(startup), container.readiness.as_ref()))
    };
    if workload.containers.iter().any(started_first) {
        return by_kubelet;
    }
    let Some(container) = probed.pop() else {
        // No probe at all: the port that is served accepts connections.
        return (Probe::default(), None);
    };
    let Some(readiness) = &container.readiness else {
        return by_kubelet;
    };
    from_kubernetes(readiness).unwrap_or(by_kubelet)
}

fn same_handler(
    a: Option<&k8s_openapi::api::core::v1::Probe>,
    b: Option<&k8s_openapi::api::core::v1::Probe>,
) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => {
            a.http_get == b.http_get && a.tcp_socket == b.tcp_socket && a.exec == b.exec && a.grpc == b.grpc
        }
        _ => false,
    }
}

fn from_kubernetes(probe: &k8s_openapi::api::core::v1::Probe) -> Option<(Probe, Option<Target>)> {
    let seconds = |value: Option<i32>| {
        u64::try_from(value.unwrap_or(0))
            .unwrap_or(0)
            .saturating_mul(1000)
    };
    let timing = Probe {
        timeout_ms: seconds(probe.timeout_seconds),
        initial_delay_ms: seconds(probe.initial_delay_seconds),
        ..Probe::default()
    };
    let target = |port: &IntOrString| match port {
        IntOrString::Int(number) => u16::try_from(*number).ok().map(Target::Number),
        IntOrString::String(name) => Some(
            name.parse()
                .map_or_else(|_| Target::Name(name.clone()), Target::Number),
        ),
    };
    if let Some(http) = &probe.http_get {
        // A probe of another host than the pod says nothing about the pod; HTTPS would need its certificate.
        if http
            .scheme
            .as_deref()
            .is_some_and(|scheme| scheme.eq_ignore_ascii_case("https"))
            || http.host.is_some()
        {
            return None;
        }
        let headers = http.http_headers.iter().flatten();
        let (hosts, headers): (Vec<_>, Vec<_>) =
            headers.partition(|header| header.name.eq_ignore_ascii_case("host"));
        let headers = headers.into_iter().map(|header| ProbeHeader {
            name: header.name.clone(),
            value: header.value.clone(),
        });
        let path = http
            .path
            .clone()
            .filter(|path| !path.is_empty())
            .unwrap_or_else(|| "/".to_owned());
        let probe = Probe {
            kind: ProbeKind::Http,
            path,
            host: hosts
                .first()
                .map(|header| header.value.clone())
                .unwrap_or_default(),
            headers: headers.collect(),
            ..timing
        };
        return Some((probe, Some(target(&http.port)?)));
    }
    let tcp = probe.tcp_socket.as_ref().filter(|tcp| tcp.host.is_none())?;
    Some((
        Probe {
            kind: ProbeKind::Tcp,
            ..timing
        },
        Some(target(&tcp.port)?),
    ))
}
