//! Condition types and reasons of a Route. Users match on them, so they only ever grow.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// `True` once a self-probe through the Service's own address has landed on an activator. Nothing sleeps before.
pub const CAPTURED: &str = "Captured";
/// `False` names the key, the value and the allowed range of each annotation that was not accepted.
pub const CONFIGURATION_VALID: &str = "ConfigurationValid";
/// `False` lists annotations that were accepted but whose feature this version does not have yet.
pub const FULLY_ACTIVE: &str = "FullyActive";
/// `True` while somebody else writes the workload's replicas; the message names the field manager.
pub const REPLICAS_CONFLICT: &str = "ReplicasConflict";
/// `True` while somebody else takes our key out of the Service's selector; the message names the field manager.
pub const SELECTOR_CONFLICT: &str = "SelectorConflict";
/// `True` when a HorizontalPodAutoscaler scales 1→N and we scale 0↔1.
pub const SCALED_BY_HPA: &str = "ScaledByHPA";
/// `True` while no activator is ready and the Service's slices list the pods themselves.
pub const FAIL_OPEN: &str = "FailOpen";
/// `False` when pods cannot become ready: crash loop, image, scheduling, quota, never ready.
pub const WORKLOAD_HEALTHY: &str = "WorkloadHealthy";
/// `False` while something about `depends-on` cannot be obeyed as written; the message names it and the fix.
pub const DEPENDENCIES: &str = "DependenciesResolved";
/// Of a Rollout: `True` while a HorizontalPodAutoscaler or ScaledObject scales its Deployment or a pool; the message names it.
pub const AUTOSCALER_CONFLICT: &str = "AutoscalerConflict";
/// Of a Rollout whose template refers to ConfigMaps or Secrets: `False` when a change of some makes no new revision, or when
/// some are missing; the message names them and the fix.
pub const CONFIG_TRACKED: &str = "ConfigTracked";
/// `True` while there is something a user may want to know that stops nothing; the message lists it.
pub const WARNING: &str = "Warning";
/// Of a Rollout: `False` while something that it measures cannot be; the message names it and why.
pub const MEASUREMENTS_AVAILABLE: &str = "MeasurementsAvailable";
/// Of a Rollout: `False` while an alert could not be sent; the message names the Secret, and what is missing.
pub const ALERTS_DELIVERED: &str = "AlertsDelivered";

/// Reasons, by the condition they are used with.
pub mod reason {
    /// Captured: the self-probe landed on an activator.
    pub const PROBED: &str = "SelfProbeLanded";
    /// Captured: capture is under way.
    pub const CAPTURING: &str = "Capturing";
    /// Captured: release is under way.
    pub const RELEASING: &str = "Releasing";
    /// Captured: the self-probe did not land on an activator; the network goes past our endpoints.
    pub const PROBE_FAILED: &str = "SelfProbeFailed";
    /// Captured: no activator is ready to listen.
    pub const NO_ACTIVATOR: &str = "NoActivator";
    /// Captured: refused, the Service is headless.
    pub const HEADLESS: &str = "Headless";
    /// Captured: refused, the Service is of type ExternalName.
    pub const EXTERNAL_NAME: &str = "ExternalName";
    /// Captured: refused, the Service has no selector.
    pub const SELECTORLESS: &str = "Selectorless";
    /// Captured: refused, a port is UDP or SCTP.
    pub const UNSUPPORTED_PROTOCOL: &str = "UnsupportedProtocol";
    /// Captured: refused, the Service publishes addresses that are not ready.
    pub const PUBLISHES_NOT_READY: &str = "PublishesNotReadyAddresses";
    /// Captured: refused, no workload matches.
    pub const WORKLOAD_NOT_FOUND: &str = "WorkloadNotFound";
    /// Captured: refused, more than one workload matches and none is named.
    pub const WORKLOAD_AMBIGUOUS: &str = "WorkloadAmbiguous";
    /// Captured: refused, another opted-in Service of different configuration has the workload.
    pub const WORKLOAD_SHARED: &str = "WorkloadShared";
    /// Captured: refused, the workload is rolled out for another Service.
    pub const ROLLED_OUT: &str = "WorkloadRolledOut";
    /// ConfigTracked: an object that pods cannot start without is not there.
    pub const CONFIG_MISSING: &str = "ConfigMissing";
    /// ConfigTracked: an object may not be read; the message says how to grant it.
    pub const CONFIG_FORBIDDEN: &str = "ConfigForbidden";
    /// ConfigTracked: the copy of an object cannot be made.
    pub const CONFIG_NOT_COPIED: &str = "ConfigNotCopied";
    /// ConfigTracked: the template refers to more objects than are tracked.
    pub const CONFIG_TOO_MUCH: &str = "ConfigTooMuch";
    /// Captured: refused, a KEDA ScaledObject scales the workload.
    pub const SCALED_OBJECT: &str = "ScaledObject";
    /// Captured: refused, all listening ports are in use.
    pub const NO_PORT_LEFT: &str = "NoPortLeft";
    /// Anything: all is well.
    pub const OK: &str = "OK";
    /// ConfigurationValid: an annotation has a value out of its range.
    pub const INVALID_VALUE: &str = "InvalidValue";
    /// FullyActive: an annotation's feature is not there yet.
    pub const NOT_YET_ACTIVE: &str = "NotYetActive";
    /// ReplicasConflict, SelectorConflict: the field's other manager is named in the message.
    pub const FOREIGN_MANAGER: &str = "ForeignManager";
    /// WorkloadHealthy: a container exits again and again.
    pub const CRASH_LOOP: &str = "CrashLoopBackOff";
    /// WorkloadHealthy: an image cannot be pulled.
    pub const IMAGE_PULL: &str = "ImagePullBackOff";
    /// WorkloadHealthy: a pod cannot be scheduled.
    pub const UNSCHEDULABLE: &str = "Unschedulable";
    /// WorkloadHealthy: pods run but do not become ready in time.
    pub const NEVER_READY: &str = "NeverReady";
    /// WorkloadHealthy: the workload's pods cannot be created (quota, admission).
    pub const CREATE_FAILED: &str = "FailedCreate";
    /// ScaledByHPA: the HorizontalPodAutoscaler is named in the message.
    pub const HPA: &str = "HorizontalPodAutoscaler";
    /// DependenciesResolved: nothing has the name that `depends-on` gives.
    pub const DEPENDENCY_NOT_FOUND: &str = "DependencyNotFound";
    /// DependenciesResolved: what it names is there, but is not opted in or cannot be captured.
    pub const DEPENDENCY_NOT_CAPTURED: &str = "DependencyNotCaptured";
    /// DependenciesResolved: it depends on itself, through others.
    pub const DEPENDENCY_CYCLE: &str = "DependencyCycle";
    /// DependenciesResolved: what it names is in another group.
    pub const DEPENDENCY_IN_OTHER_GROUP: &str = "DependencyInOtherGroup";
    /// An Event on a workload without a Service: it is opted in, and cannot be put to sleep.
    pub const WORKER_REFUSED: &str = "WorkerRefused";
    /// Warning: NetworkPolicies select the pods.
    pub const NETWORK_POLICY: &str = "NetworkPolicy";
    /// Warning: a traffic policy of the Service is `Local`.
    pub const TRAFFIC_POLICY_LOCAL: &str = "TrafficPolicyLocal";
    /// Warning: the Service has session affinity by client address.
    pub const SESSION_AFFINITY: &str = "SessionAffinity";
    /// Warning: the pods have no readiness probe.
    pub const NO_READINESS_PROBE: &str = "NoReadinessProbe";
    /// Warning: the pods' readiness can only be told by the kubelet, which is slower.
    pub const KUBELET_PROBE: &str = "ReadinessByKubelet";
    /// Warning: Linkerd is injected and a targetPort is a number.
    pub const LINKERD: &str = "LinkerdNumericTargetPort";
    /// Warning: an annotation under our prefix is unknown.
    pub const UNKNOWN_ANNOTATION: &str = "UnknownAnnotation";
    /// Warning: a Service that is not opted in leads to the same pods, and has none while they sleep.
    pub const BYSTANDER: &str = "OtherServiceOnPods";
    /// Warning: pods mount a service-account token, which delays each start.
    pub const TOKEN_MOUNTED: &str = "ServiceAccountTokenMounted";
    /// Warning: a low CPU limit slows each start.
    pub const LOW_CPU_LIMIT: &str = "LowCpuLimit";
    /// Warning: more than one; the message lists them.
    pub const SEVERAL: &str = "SeveralWarnings";
    /// MeasurementsAvailable, AlertsDelivered: the message says who does not answer, or what is missing.
    pub const NO_ANSWER: &str = "NoAnswer";
    /// FailOpen: no activator is ready.
    pub const ACTIVATORS_GONE: &str = "ActivatorsGone";
}

/// Sets `condition` in `list`, keeping `lastTransitionTime` when its status does not change. Returns whether anything changed.
pub fn set(list: &mut Vec<Condition>, mut condition: Condition) -> bool {
    match list.iter_mut().find(|old| old.type_ == condition.type_) {
        None => {
            list.push(condition);
            true
        }
        Some(old) => {
            if old.status == condition.status {
                condition.last_transition_time = old.last_transition_time.clone();
            }
            let changed = *old != condition;
            *old = condition;
            changed
        }
    }
}

/// Builds a condition. `now` is the transition time, should its status turn out to be new.
#[must_use]
pub fn condition(
    kind: &str,
    status: bool,
    reason: &str,
    message: impl Into<String>,
    generation: Option<i64>,
    now: Time,
) -> Condition {
    Condition {
        type_: kind.to_owned(),
        status: if status { "True" } else { "False" }.to_owned(),
        reason: reason.to_owned(),
        message: message.into(),
        observed_generation: generation,
        last_transition_time: now,
    }
}

/// The condition of type `kind`, if the list has it.
#[must_use]
pub fn find<'a>(list: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    list.iter().find(|condition| condition.type_ == kind)
}

/// Whether the list has condition `kind` with status `True`.
#[must_use]
pub fn is_true(list: &[Condition], kind: &str) -> bool {
    find(list, kind).is_some_and(|condition| condition.status == "True")
}
