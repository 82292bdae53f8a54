//! The `Rollout`: how new revisions of a Service's workload are let in, and where the present one stands.
//!
//! Users may write one; the annotation `dormouse.dev/rollout` makes one with defaults. Durations are written `30s`, `10m`,
//! `1h30m`, shares as `5%`, weights in percent with at most two places. Kept in the status: all that the autoscaler needs
//! to go on after any crash, and the evidence in numbers for whoever asks why.

mod analysis;
mod status;
mod strategy;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use analysis::{
    AnalysisMode, AnalysisSpec, ErrorsSpec, Insufficient, InsufficientSpec, LatencySpec, MetricSpec,
    OnNoData, OutcomesSpec, PrometheusSpec, SyntheticSpec, WarmupSpec, WebhookKind, WebhookSpec,
};
pub use status::{
    ArmCounts, AttemptStatus, Counts, EpochStatus, EvidenceStatus, MeasurementStatus, Phase, RolloutStatus,
    StepStatus, TickStatus,
};
pub use strategy::{
    AffinitySpec, Gate, LinearSpec, MirrorSpec, RiskSpec, StepSpec, StrategyKind, StrategySpec, TimeSpec,
};

/// How new revisions are let in.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "dormouse.dev",
    version = "v1alpha1",
    kind = "Rollout",
    namespaced,
    status = "RolloutStatus",
    category = "dormouse",
    shortname = "rol",
    derive = "PartialEq",
    derive = "Default",
    printcolumn = r#"{"name":"Phase","type":"string","jsonPath":".status.phase"}"#,
    printcolumn = r#"{"name":"Weight","type":"string","jsonPath":".status.weight"}"#,
    printcolumn = r#"{"name":"Stable","type":"string","jsonPath":".status.stableRevision"}"#,
    printcolumn = r#"{"name":"Candidate","type":"string","jsonPath":".status.candidateRevision"}"#,
    printcolumn = r#"{"name":"Verdict","type":"string","jsonPath":".status.evidence.verdict"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#,
    printcolumn = r#"{"name":"Step","type":"integer","jsonPath":".status.step.index","priority":1}"#,
    printcolumn = r#"{"name":"Requests","type":"string","jsonPath":".status.evidence.requestsText","priority":1}"#,
    printcolumn = r#"{"name":"Evidence","type":"string","jsonPath":".status.evidence.text","priority":1}"#,
    printcolumn = r#"{"name":"Step-Age","type":"date","jsonPath":".status.step.startedAt","priority":1}"#,
    printcolumn = r#"{"name":"Why","type":"string","jsonPath":".status.why","priority":1}"#,
    doc = "How new revisions of a Service's workload are let in by evidence, and taken out by it.",
    validation = Rule::new("self.spec.targetRef == oldSelf.spec.targetRef && self.spec.serviceRef == oldSelf.spec.serviceRef")
        .message("targetRef and serviceRef never change: delete this Rollout, which gives everything back, and create another")
)]
#[serde(rename_all = "camelCase")]
pub struct RolloutSpec {
    /// The workload whose template is rolled out.
    pub target_ref: TargetRef,
    /// What the workload itself is while its revisions run in pools.
    #[serde(default)]
    pub target_mode: TargetMode,
    /// The Service whose traffic is divided.
    pub service_ref: ServiceRef,
    /// Which weights, in which order.
    #[serde(default)]
    pub strategy: StrategySpec,
    /// What decides whether it goes on.
    #[serde(default)]
    pub analysis: AnalysisSpec,
    /// So long may the candidate's pods take to be ready for the next weight.
    #[serde(default = "ten_minutes")]
    #[schemars(length(max = 32), regex(pattern = DURATION))]
    pub progress_deadline: String,
    /// The way back.
    #[serde(default)]
    pub rollback: RollbackSpec,
    /// Which old revisions are kept.
    #[serde(default)]
    pub revisions: RevisionsSpec,
    /// What belongs to a revision besides the template.
    #[serde(default)]
    pub config: ConfigSpec,
    /// What happens to a candidate when the template changes again.
    #[serde(default)]
    pub on_new_revision: OnNewRevision,
    /// The revision that is stable when nothing is known, for a cluster built anew from manifests.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 253))]
    pub bootstrap_revision: String,
    /// Nothing new begins, and no weight is raised.
    #[serde(default)]
    pub suspend: bool,
    /// Who is told.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub alerts: Vec<Alert>,
}

impl Default for RolloutSpec {
    fn default() -> Self {
        Self {
            target_ref: TargetRef::default(),
            target_mode: TargetMode::default(),
            service_ref: ServiceRef::default(),
            strategy: StrategySpec::default(),
            analysis: AnalysisSpec::default(),
            progress_deadline: ten_minutes(),
            rollback: RollbackSpec::default(),
            revisions: RevisionsSpec::default(),
            config: ConfigSpec::default(),
            on_new_revision: OnNewRevision::default(),
            bootstrap_revision: String::new(),
            suspend: false,
            alerts: Vec::new(),
        }
    }
}

/// How durations are written.
const DURATION: &str = r"^(0|([0-9]+(\.[0-9]+)?(ms|s|m|h))+)$";
/// How shares are written.
const SHARE: &str = r"^[0-9]+(\.[0-9]+)?%$";
/// The same, or nothing.
const SHARE_OR_NONE: &str = r"^([0-9]+(\.[0-9]+)?%)?$";

fn ten_minutes() -> String {
    "10m".to_owned()
}

/// A workload in the Rollout's namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TargetRef {
    /// Deployment.
    #[serde(default)]
    pub kind: TargetKind,
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// Kinds of workload that can be rolled out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TargetKind {
    /// `apps/v1` Deployment.
    #[default]
    Deployment,
}

/// What the workload itself is while its revisions run in pools.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TargetMode {
    /// A template at zero replicas: tools that check its health stay green.
    #[default]
    Shell,
    /// Paused, so that nothing which was not let in ever starts, and the pool of the first revision until it sleeps or its
    /// template changes: no pod restarts at adoption.
    Paused,
}

/// A Service in the Rollout's namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceRef {
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// The way back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RollbackSpec {
    /// For so long after promotion the previous revision keeps pods enough to take everything back.
    #[schemars(length(max = 32), regex(pattern = DURATION))]
    pub keep_warm: String,
    /// So many previous stable revisions come back without an analysis.
    #[schemars(range(max = 10))]
    pub window: u32,
    /// Whether an abort takes the weight back in halves. Evidence always takes it back at once.
    pub gradual: bool,
}

impl Default for RollbackSpec {
    fn default() -> Self {
        Self {
            keep_warm: "15m".to_owned(),
            window: 3,
            gradual: false,
        }
    }
}

/// Which old revisions are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RevisionsSpec {
    /// So many besides those in use.
    #[schemars(range(min = 0, max = 100))]
    pub history_limit: u32,
    /// And those that are younger.
    #[schemars(length(max = 32), regex(pattern = DURATION))]
    pub min_age: String,
}

impl Default for RevisionsSpec {
    fn default() -> Self {
        Self {
            history_limit: 10,
            min_age: "48h".to_owned(),
        }
    }
}

/// What belongs to a revision besides the template.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ConfigSpec {
    /// ConfigMaps that the template refers to. The annotation `dormouse.dev/rollout-config` on one overrules it,
    /// unless it is `Ignore`.
    pub config_maps: ConfigPolicy,
    /// Secrets that the template refers to. To read them takes a permission that is not granted by default.
    pub secrets: ConfigPolicy,
    /// A change has to rest for so long before it becomes a revision.
    #[schemars(length(max = 32), regex(pattern = DURATION))]
    pub settle: String,
}

impl Default for ConfigSpec {
    fn default() -> Self {
        Self {
            config_maps: ConfigPolicy::Snapshot,
            secrets: ConfigPolicy::Digest,
            settle: "5s".to_owned(),
        }
    }
}

/// What a change of configuration does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ConfigPolicy {
    /// A new revision, with an immutable copy that rolls back with it.
    #[default]
    Snapshot,
    /// A new revision, without a copy.
    Digest,
    /// Nothing.
    Ignore,
}

/// What happens to a candidate when the template changes again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnNewRevision {
    /// It is taken out, and the new one begins.
    #[default]
    Supersede,
    /// The new one waits until it is decided.
    Queue,
}

/// Who is told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Alert {
    /// From which severity on.
    #[serde(default)]
    pub severity: Severity,
    /// What is sent.
    #[serde(rename = "type", default)]
    pub kind: AlertKind,
    /// A Secret with the key `address`: the URL. The autoscaler may not read Secrets until a Role says so.
    pub secret_ref: SecretRef,
}

/// What is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AlertKind {
    /// Slack's payload, which Mattermost, Rocket.Chat and others take too.
    #[default]
    Slack,
    /// A plain JSON object.
    Webhook,
}

/// How serious it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Everything.
    #[default]
    Info,
    /// What waits for a person.
    Warn,
    /// What failed.
    Error,
}

/// A Secret in the Rollout's namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretRef {
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

#[cfg(test)]
mod tests {
    use kube::CustomResourceExt as _;

    use super::*;

    #[test]
    fn a_short_rollout_has_all_defaults() {
        let short = serde_json::json!({"targetRef": {"name": "web"}, "serviceRef": {"name": "web"}});
        let spec: RolloutSpec = serde_json::from_value(short).expect("reads");
        let expected = RolloutSpec {
            target_ref: TargetRef {
                name: "web".to_owned(),
                ..TargetRef::default()
            },
            service_ref: ServiceRef {
                name: "web".to_owned(),
            },
            ..RolloutSpec::default()
        };
        assert_eq!(spec, expected);
        assert_eq!((spec.analysis.alpha, spec.analysis.beta), (0.01, 0.05));
        assert_eq!(spec.strategy.min_step_duration, "30s");
    }

    /// What an API server refuses in a schema, and a default that does not fit its own pattern.
    #[test]
    fn the_schemas_are_ones_an_api_server_takes() {
        for crd in [Rollout::crd(), crate::Revision::crd(), crate::Route::crd()] {
            let crd = serde_json::to_value(crd).expect("JSON");
            walk(&crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"], "");
        }
    }

    fn walk(schema: &serde_json::Value, path: &str) {
        for word in ["prefixItems", "$ref", "definitions", "$defs"] {
            assert!(schema.get(word).is_none(), "{path} has {word}");
        }
        assert_ne!(
            schema.get("items"),
            Some(&serde_json::Value::Bool(true)),
            "{path}"
        );
        if let Some(properties) = schema["properties"].as_object() {
            for (name, property) in properties {
                if let (Some(default), Some(_)) =
                    (schema["default"][name].as_str(), property["pattern"].as_str())
                {
                    let fits =
                        default.ends_with('%') || default.ends_with(['s', 'm', 'h']) || default.is_empty();
                    assert!(fits, "{path}.{name}: {default:?}");
                    let may_be_empty = property["pattern"] == SHARE_OR_NONE;
                    assert!(
                        !default.is_empty() || may_be_empty,
                        "{path}.{name} has an empty default"
                    );
                }
                if let (Some(default), Some(least)) =
                    (property["default"].as_f64(), property["minimum"].as_f64())
                {
                    assert!(default >= least, "{path}.{name}: {default} below {least}");
                }
                walk(property, &format!("{path}.{name}"));
            }
        }
        walk_if(&schema["items"], path);
        walk_if(&schema["additionalProperties"], path);
    }

    fn walk_if(schema: &serde_json::Value, path: &str) {
        if schema.is_object() {
            walk(schema, &format!("{path}[]"));
        }
    }
}
