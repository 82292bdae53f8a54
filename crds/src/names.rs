//! Names shared by all parts: API group, labels, field managers, object names, ports.

/// The API group of every Dormouse resource, and the prefix of every label and annotation.
pub const GROUP: &str = "dormouse.dev";

/// The version that all resources have today.
pub const VERSION: &str = "v1alpha1";

/// The namespace that the shipped manifests install into.
pub const SYSTEM_NAMESPACE: &str = "dormouse-system";

/// Key added to a captured Service's `spec.selector`. No pod ever carries it, so the built-in EndpointSlices
/// are empty, and the user's own selector stays readable: it is the selector without this key.
pub const CAPTURED_SELECTOR_KEY: &str = "dormouse.dev/captured";

/// The value of [`CAPTURED_SELECTOR_KEY`].
pub const CAPTURED_SELECTOR_VALUE: &str = "true";

/// Label of a pool's private Service and, because Kubernetes copies Service labels to slices, of its EndpointSlices.
/// Its value is the pool's name. Activators watch EndpointSlices by this label.
pub const POOL_LABEL: &str = "dormouse.dev/pool";

/// Label on every object that we own, naming the Service it was made for.
pub const SERVICE_LABEL: &str = "dormouse.dev/service";

/// Label of a revision's pool, its pods and its Revision object: the revision's name.
pub const REVISION_LABEL: &str = "dormouse.dev/revision";

/// Label of a revision's pool and of its Revision object: the Rollout's name.
pub const ROLLOUT_LABEL: &str = "dormouse.dev/rollout";

/// Value of `endpointslice.kubernetes.io/managed-by` on the slices that we publish on users' Services.
pub const SLICE_MANAGER: &str = "dormouse.dev";

/// Kubernetes' label that ties an EndpointSlice to a Service.
pub const SLICE_SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// Kubernetes' label that names who manages an EndpointSlice.
pub const SLICE_MANAGED_BY_LABEL: &str = "endpointslice.kubernetes.io/managed-by";

/// Annotation on a workload that we put to sleep: how many replicas it had when its Service was captured.
/// It says at a glance why a Deployment stands at zero, and is what release restores, whatever has been lost since.
pub const ORIGINAL_REPLICAS_ANNOTATION: &str = "dormouse.dev/original-replicas";

/// Annotation on a Deployment that we have paused, because its Rollout says `targetMode: Paused`: we let it go on when that ends.
pub const PAUSED_ANNOTATION: &str = "dormouse.dev/paused";

/// Annotation on a Route, written by `dormouse wake`, `dormouse sleep`: `wake@NONCE` or `sleep@NONCE`.
/// The autoscaler acts once for each nonce and records it in the Route's status.
/// On a Rollout, written by `dormouse rollout`: `VERB@ATTEMPT.NONCE`, where ATTEMPT is the uid in the status of the attempt that
/// is meant, empty before the first; VERB is `promote`, `promote-full`, `abort`, `retry`, `pause`, `resume`, `undo` or
/// `undo=REVISION`. Looked at once, and answered in the status.
pub const COMMAND_ANNOTATION: &str = "dormouse.dev/command";

/// Annotation on a Route: the annotations of Namespace and Service, as JSON, that were last accepted. A value that is
/// invalid later never changes what runs, not even when another autoscaler takes over.
pub const LAST_GOOD_ANNOTATION: &str = "dormouse.dev/last-good";

/// Annotation on the leader-election Lease that asks the autoscaler to release every Service (`dormouse uninstall`).
pub const RELEASE_ALL_ANNOTATION: &str = "dormouse.dev/release-all";

/// Annotation on a ConfigMap or Secret that a rolled-out workload's template refers to: `Ignore`, `Digest` or `Snapshot`, in
/// place of what the Rollout's `spec.config` says, unless that is `Ignore` for the kind. `Ignore` is for applications that read their configuration again by
/// themselves: a change of it is then no new revision.
pub const CONFIG_POLICY_ANNOTATION: &str = "dormouse.dev/rollout-config";

/// Annotation on an immutable copy of a ConfigMap or Secret that a Revision owns: the name of what it is a copy of.
pub const SNAPSHOT_ANNOTATION: &str = "dormouse.dev/snapshot-of";

/// Finalizer of the shipped ServiceAccount, roles and bindings of the autoscaler: their deletion waits until every Service
/// has been given back.
pub const RELEASE_FINALIZER: &str = "dormouse.dev/release";

/// Field manager of the autoscaler's writes to Routes, slices, private Services and Service selectors.
pub const AUTOSCALER_MANAGER: &str = "dormouse-autoscaler";

/// Field manager of `/scale` writes by the autoscaler.
pub const SCALE_MANAGER: &str = "dormouse-scale";

/// Field manager of the `/scale` write with which an activator wakes a pool when no autoscaler answers.
pub const ACTIVATOR_MANAGER: &str = "dormouse-activator";

/// Field manager of the command line's writes.
pub const CLI_MANAGER: &str = "dormouse-cli";

/// Name of the leader-election Lease, in the system namespace.
pub const LEASE: &str = "dormouse-autoscaler";

/// Name of the headless Service, in the system namespace, whose EndpointSlices list the activators.
pub const ACTIVATOR_SERVICE: &str = "dormouse-activator";

/// Name of that Service's port on which an activator serves its report stream, `POST /v1/report`.
pub const REPORT_PORT_NAME: &str = "report";

/// Path of the report stream.
pub const REPORT_PATH: &str = "/v1/report";

/// First port, inclusive, of the range from which a listening port is given to each (Service, port).
/// The range ends below the usual ephemeral range, which starts at 32768.
pub const FIRST_LISTEN_PORT: u16 = 10_000;

/// Last port, inclusive, of that range.
pub const LAST_LISTEN_PORT: u16 = 32_000;

/// Name of the port of a pool's private Service that stands for the Service port served on activator port `listen`.
///
/// The port is the route, so the name is unique in the cluster, also when two Services share one workload.
#[must_use]
pub fn pool_port_name(listen: u16) -> String {
    format!("p{listen}")
}

/// Name of the port of a pool's private Service that stands for the pod's readiness-probe port.
/// Kubernetes resolves it for each pod, named ports included.
pub const PROBE_PORT_NAME: &str = "probe";

/// Name of the private headless Service of a pool.
///
/// A pool is named after its workload, whose name may be longer than a Service's and have dots in it: such a name is cut,
/// its dots become dashes, and a hash keeps it apart from others.
#[must_use]
pub fn private_service_name(pool: &str) -> String {
    const SUFFIX: &str = "-dm";
    const LONGEST: usize = 63;
    if pool.len() + SUFFIX.len() <= LONGEST && !pool.contains('.') {
        return format!("{pool}{SUFFIX}");
    }
    // FNV-1a: only to tell two long names with one beginning apart, so speed and size matter more than strength.
    let hash = pool.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    let dashed = pool.replace('.', "-");
    let kept = dashed
        .get(..LONGEST - SUFFIX.len() - 9)
        .unwrap_or(&dashed)
        .trim_end_matches('-');
    format!("{kept}-{hash:08x}{SUFFIX}")
}

/// Request header that marks a request one activator sent to another: at most one hop.
/// Its value is the sending activator's instance.
pub const HOP_HEADER: &str = "dormouse-hop";

/// Request header of a self-probe. Its value is a nonce; an activator that receives it on a listening port answers
/// itself, with [`PROBE_INSTANCE_HEADER`] and [`PROBE_ROUTE_HEADER`], and never forwards it.
pub const PROBE_HEADER: &str = "dormouse-probe";

/// Response header of a self-probe: the instance (128 random bits) of the activator that received it.
/// Nobody but a live activator knows its instance, so an application that echoes headers cannot fake it.
pub const PROBE_INSTANCE_HEADER: &str = "dormouse-instance";

/// Response header of a self-probe: `NAMESPACE/NAME` of the Route that owns the port.
pub const PROBE_ROUTE_HEADER: &str = "dormouse-route";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_service_names_fit_a_dns_label_and_stay_apart() {
        assert_eq!(private_service_name("web"), "web-dm");
        let long = "a".repeat(63);
        let other = format!("{}b", "a".repeat(62));
        let names = [long.as_str(), &other, "a.b", "a-b", "a.b-dm", "a..b"];
        let made: std::collections::BTreeSet<_> = names.map(private_service_name).into();
        assert_eq!(made.len(), names.len(), "{made:?}");
        for name in made {
            let label = name.len() <= 63 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
            assert!(label, "{name}");
        }
    }
}
