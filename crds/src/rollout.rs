//! The `Rollout`: how new revisions of a Service's workload are let in, and where the present one stands.
//!
//! Users may write one; the annotation `dormouse.dev/rollout` makes one with defaults. Durations are written `30s`, `10m`,
//! `1h30m`, shares as `5%`, weights in percent with at most two places. Kept in the status: all that the autoscaler needs
//! to go on after any crash, and the evidence in numbers for whoever asks why.

mod status;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use status::{
    ArmCounts, AttemptStatus, Counts, EpochStatus, EvidenceStatus, Phase, RolloutStatus, StepStatus,
    TickStatus,
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
    doc = "How new revisions of a Service's workload are let in by evidence, and taken out by it."
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
    /// Paused, and the pool of the first revision: no pod restarts at adoption.
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

/// Which weights, in which order. Of `steps`, `linear`, `risk` and `time` at most one; none: `risk` with its defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "[has(self.steps), has(self.linear), has(self.risk), has(self.time)].filter(x, x).size() <= 1",
     "message": "of steps, linear, risk and time at most one"},
    {"rule": "self.type == 'Canary' || !(has(self.steps) || has(self.linear) || has(self.risk) || has(self.time))",
     "message": "steps, linear, risk and time are for type Canary"},
    {"rule": "self.type != 'ABTest' || (has(self.match) && size(self.match) > 0)",
     "message": "type ABTest needs match"}
]))]
pub struct StrategySpec {
    /// The kind.
    #[serde(rename = "type", default)]
    pub kind: StrategyKind,
    /// One after the other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 100))]
    pub steps: Option<Vec<StepSpec>>,
    /// Equal steps, as Flagger's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub linear: Option<LinearSpec>,
    /// As much as is safe by what is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub risk: Option<RiskSpec>,
    /// By time alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<TimeSpec>,
    /// For BlueGreen: whether somebody has to promote before the traffic goes over.
    #[serde(default)]
    pub gate: Gate,
    /// A weight stands for at least so long, counted from when every activator has it.
    #[serde(default = "half_a_minute")]
    #[schemars(length(max = 32), regex(pattern = DURATION))]
    pub min_step_duration: String,
    /// Requests that always go to the candidate. They are not compared with the stable revision's.
    #[serde(rename = "match", default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub matches: Option<Vec<crate::route::RouteMatch>>,
    /// Copies requests to the candidate before the first weight; the copies' answers are thrown away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror: Option<MirrorSpec>,
    /// Keeps a client with its revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_affinity: Option<AffinitySpec>,
}

impl Default for StrategySpec {
    fn default() -> Self {
        Self {
            kind: StrategyKind::default(),
            steps: None,
            linear: None,
            risk: None,
            time: None,
            gate: Gate::default(),
            min_step_duration: half_a_minute(),
            matches: None,
            mirror: None,
            session_affinity: None,
        }
    }
}

fn half_a_minute() -> String {
    "30s".to_owned()
}

/// Kinds of strategy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum StrategyKind {
    /// A growing share.
    #[default]
    Canary,
    /// Nothing, then everything.
    BlueGreen,
    /// What matches, then everything.
    #[serde(rename = "ABTest")]
    AbTest,
    /// Everything at once.
    Immediate,
}

/// Whether a person has to agree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Gate {
    /// No.
    #[default]
    None,
    /// Somebody has to `promote`.
    Manual,
}

/// A listed step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StepSpec {
    /// The candidate's weight, in percent, `0..=100`.
    #[schemars(range(min = 0.0, max = 100.0))]
    pub weight: f64,
    /// How long it stands, after `minStepDuration`, before the next step; empty: no longer.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 32))]
    pub pause: String,
    /// Whether somebody has to promote before this step is taken.
    #[serde(default)]
    pub gate: Gate,
}

/// Equal steps.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LinearSpec {
    /// How much more each time, in percent.
    #[schemars(range(min = 1.0, max = 100.0))]
    pub step: f64,
    /// The last weight is the first that is not below, in percent.
    #[serde(default = "hundred")]
    #[schemars(range(min = 1.0, max = 100.0))]
    pub max: f64,
}

fn hundred() -> f64 {
    100.0
}

/// A ramp paced by evidence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RiskSpec {
    /// Largest share of all requests that may be bad because of the candidate.
    #[serde(default = "five_percent")]
    #[schemars(length(max = 16), regex(pattern = SHARE))]
    pub budget: String,
    /// Largest weight before the verdict.
    #[serde(default = "half")]
    #[schemars(length(max = 16), regex(pattern = SHARE))]
    pub max_before_verdict: String,
}

impl Default for RiskSpec {
    fn default() -> Self {
        Self {
            budget: five_percent(),
            max_before_verdict: half(),
        }
    }
}

fn five_percent() -> String {
    "5%".to_owned()
}

fn half() -> String {
    "50%".to_owned()
}

/// A ramp by time alone: 1 % at once, then equal steps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TimeSpec {
    /// From the first weight to all traffic.
    #[schemars(length(max = 32), regex(pattern = DURATION))]
    pub duration: String,
}

/// Mirrored requests before the first weight.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MirrorSpec {
    /// Share of the requests that are mirrored, in percent.
    #[serde(default = "all_of_them")]
    #[schemars(range(min = 1, max = 100))]
    pub percent: u32,
    /// Only these methods.
    #[serde(default = "safe_methods")]
    #[schemars(length(min = 1, max = 16))]
    pub methods: Vec<String>,
    /// After so many pairs it goes on.
    #[serde(default = "two_hundred")]
    #[schemars(range(min = 1))]
    pub requests: u64,
}

impl Default for MirrorSpec {
    fn default() -> Self {
        Self {
            percent: all_of_them(),
            methods: safe_methods(),
            requests: two_hundred(),
        }
    }
}

fn all_of_them() -> u32 {
    100
}

fn safe_methods() -> Vec<String> {
    vec!["GET".to_owned(), "HEAD".to_owned()]
}

fn two_hundred() -> u64 {
    200
}

/// Keeps a client with its revision. Evidence counts sessions then, and no service times.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AffinitySpec {
    /// Name of the cookie.
    #[schemars(length(min = 1, max = 128))]
    pub cookie: String,
    /// How long a client of the candidate stays with it. Clients of the stable revision are assigned anew at each step.
    #[serde(default = "a_day")]
    #[schemars(length(max = 32), regex(pattern = DURATION))]
    pub max_age: String,
}

fn a_day() -> String {
    "24h".to_owned()
}

/// What decides.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AnalysisSpec {
    /// The rule.
    pub mode: AnalysisMode,
    /// Sequential: largest probability of rolling back a candidate that is not worse.
    #[schemars(range(min = 0.000001, max = 0.5))]
    pub alpha: f64,
    /// Sequential: largest probability of shipping one that is bad at least as often as `maxBadRate`.
    #[schemars(range(min = 0.000001, max = 0.5))]
    pub beta: f64,
    /// Sequential: the share of bad requests that must not be shipped.
    #[schemars(length(max = 16), regex(pattern = SHARE))]
    pub max_bad_rate: String,
    /// What counts as bad.
    pub outcomes: OutcomesSpec,
    /// Sequential: how many times as bad as the stable revision is still fine; 1.1: 10 % worse is.
    #[schemars(range(min = 1.0, max = 100.0))]
    pub tolerance: f64,
    /// Requests of a new pod whose times are not judged.
    pub warmup: WarmupSpec,
    /// Without enough traffic.
    pub on_insufficient_traffic: InsufficientSpec,
    /// Requests that we send ourselves, with the policy Synthetic.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub synthetic: Option<SyntheticSpec>,
    /// Threshold: from one look to the next.
    #[schemars(length(max = 32), regex(pattern = DURATION))]
    pub interval: String,
    /// Threshold: rolled back at the look after so many failed ones, in all.
    #[schemars(range(min = 1))]
    pub threshold: u32,
    /// Threshold: good looks instead of weights, for BlueGreen and ABTest.
    pub iterations: u32,
    /// Further measurements.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub metrics: Vec<MetricSpec>,
    /// Calls, with Flagger's types and payload.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub webhooks: Vec<WebhookSpec>,
    /// After all traffic has gone over, the candidate is watched for so long and undone by itself. `0s`: not at all.
    #[schemars(length(max = 32), regex(pattern = DURATION))]
    pub bake: String,
}

impl Default for AnalysisSpec {
    fn default() -> Self {
        Self {
            mode: AnalysisMode::default(),
            alpha: 0.01,
            beta: 0.05,
            max_bad_rate: five_percent(),
            outcomes: OutcomesSpec::default(),
            tolerance: 1.0,
            warmup: WarmupSpec::default(),
            on_insufficient_traffic: InsufficientSpec::default(),
            synthetic: None,
            interval: "60s".to_owned(),
            threshold: 5,
            iterations: 0,
            metrics: Vec::new(),
            webhooks: Vec::new(),
            bake: ten_minutes(),
        }
    }
}

/// Rules of analysis.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AnalysisMode {
    /// Sequential tests on what activators count.
    #[default]
    Sequential,
    /// Flagger's: measurements at an interval, and so many failures.
    Threshold,
    /// Time alone.
    None,
}

/// What counts as bad.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct OutcomesSpec {
    /// Answers.
    pub errors: ErrorsSpec,
    /// Service times: from dispatch to the head of the answer, never waiting or cold start.
    pub latency: LatencySpec,
}

/// Bad answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ErrorsSpec {
    /// HTTP status codes: `5xx`, `429`.
    #[schemars(length(max = 32))]
    pub codes: Vec<String>,
    /// gRPC status names.
    #[schemars(length(max = 17))]
    pub grpc: Vec<String>,
    /// Whether a timeout, or a connection that breaks off, is bad.
    pub timeouts: bool,
    /// Share of requests that have to be good; empty: no objective, only the comparison.
    #[schemars(length(max = 16), regex(pattern = SHARE_OR_NONE))]
    pub slo: String,
}

impl Default for ErrorsSpec {
    fn default() -> Self {
        Self {
            codes: vec!["5xx".to_owned()],
            grpc: ["Unknown", "Internal", "Unavailable"].map(str::to_owned).to_vec(),
            timeouts: true,
            slo: "99%".to_owned(),
        }
    }
}

/// Slow answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct LatencySpec {
    /// Whether times are compared with the stable revision's own median, p90 and p99 of before.
    pub relative: bool,
    /// The time that 99 % of the answers have to keep, for example `500ms`; empty: no objective.
    #[schemars(length(max = 32))]
    pub p99: String,
}

impl Default for LatencySpec {
    fn default() -> Self {
        Self {
            relative: true,
            p99: String::new(),
        }
    }
}

/// Requests of a new pod whose times are not judged. Bad answers always count: somebody got them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct WarmupSpec {
    /// The first so many.
    pub per_pod_requests: u32,
    /// Those within so long.
    #[schemars(length(max = 32), regex(pattern = DURATION))]
    pub per_pod: String,
}

impl Default for WarmupSpec {
    fn default() -> Self {
        Self {
            per_pod_requests: 20,
            per_pod: "10s".to_owned(),
        }
    }
}

/// Without enough traffic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct InsufficientSpec {
    /// What is done first.
    pub policy: Insufficient,
    /// When only evidence has been missing for so long, `then` follows. Empty: never.
    #[schemars(length(max = 32))]
    pub after: String,
    /// What is done then.
    pub then: Insufficient,
}

impl Default for InsufficientSpec {
    fn default() -> Self {
        Self {
            policy: Insufficient::Hold,
            after: String::new(),
            then: Insufficient::Hold,
        }
    }
}

/// What is done without enough traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Insufficient {
    /// Nothing: it waits, and says for how many requests.
    #[default]
    Hold,
    /// It is promoted, and the bound `beta` is given up.
    Promote,
    /// It is taken out.
    Rollback,
    /// We send requests of our own.
    Synthetic,
}

/// Requests that we send ourselves, to the candidate only.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SyntheticSpec {
    /// Path with query.
    #[schemars(length(min = 1, max = 2048))]
    pub path: String,
    /// How many a second.
    #[schemars(range(min = 0.01, max = 100.0))]
    pub rps: f64,
}

/// A further measurement.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MetricSpec {
    /// Its name. `request-success-rate` (percent) and `request-duration` (p99, milliseconds) are measured by activators.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Asks a Prometheus; absent for the two that are built in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prometheus: Option<PrometheusSpec>,
    /// Smallest value that is fine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<f64>,
    /// Largest value that is fine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
    /// Sequential: rolled back after so many failures. Threshold counts them with all others.
    #[serde(default)]
    pub failure_limit: u32,
    /// Without a value.
    #[serde(default)]
    pub on_no_data: OnNoData,
    /// It is measured and shown, and decides nothing.
    #[serde(default)]
    pub dry_run: bool,
}

/// Without a value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnNoData {
    /// It has failed, as with Flagger.
    #[default]
    Fail,
    /// It has not.
    Ignore,
}

/// A query.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PrometheusSpec {
    /// Where.
    #[schemars(length(min = 1, max = 2048))]
    pub address: String,
    /// PromQL.
    #[schemars(length(min = 1, max = 8192))]
    pub query: String,
    /// How often, and the `interval` of the query.
    #[serde(default = "a_minute")]
    #[schemars(length(max = 32), regex(pattern = DURATION))]
    pub interval: String,
}

fn a_minute() -> String {
    "1m".to_owned()
}

/// A call, with Flagger's payload.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WebhookSpec {
    /// When it is made.
    #[serde(rename = "type", default)]
    pub kind: WebhookKind,
    /// Its name; empty: its type.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 253))]
    pub name: String,
    /// Where.
    #[schemars(length(min = 1, max = 2048))]
    pub url: String,
    /// How long it may take.
    #[serde(default = "half_a_minute")]
    #[schemars(length(max = 32), regex(pattern = DURATION))]
    pub timeout: String,
    /// How often it is tried again.
    #[serde(default)]
    #[schemars(range(max = 10))]
    pub retries: u32,
    /// Copied to the payload.
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub metadata: std::collections::BTreeMap<String, String>,
}

/// When a call is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum WebhookKind {
    /// Before the candidate is scaled up.
    ConfirmRollout,
    /// Before the first weight.
    PreRollout,
    /// At each look.
    #[default]
    Rollout,
    /// Before each weight.
    ConfirmTrafficIncrease,
    /// Before everything goes over.
    ConfirmPromotion,
    /// At the end.
    PostRollout,
    /// A success rolls back.
    Rollback,
    /// For each event.
    Event,
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
    /// ConfigMaps that the template refers to.
    pub config_maps: ConfigPolicy,
    /// Secrets that the template refers to.
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
    /// A Secret with the key `address`: a URL that takes Slack's payload.
    pub secret_ref: SecretRef,
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
