//! What decides on a candidate: evidence or Flagger's rule, further measurements, and calls to others.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::strategy::{five_percent, half_a_minute};
use super::{DURATION, SHARE, SHARE_OR_NONE, ten_minutes};

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
    /// Threshold: from one look to the next. Otherwise: from one measurement of a metric that is built in to the next, and
    /// from one call of a `rollout` webhook to the next. The window of the metrics that are built in is as long.
    #[schemars(length(max = 32), regex(pattern = DURATION))]
    pub interval: String,
    /// Threshold: rolled back at the look after so many failed ones, in all. Otherwise: rolled back when a `rollout` webhook
    /// has failed so often.
    #[schemars(range(min = 1))]
    pub threshold: u32,
    /// Threshold: good looks instead of weights, for BlueGreen and ABTest.
    pub iterations: u32,
    /// Further measurements. Threshold without any: `request-success-rate` is at least `outcomes.errors.slo`, and
    /// `request-duration` at most `outcomes.latency.p99`, where these are set.
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
    /// Its name. `request-success-rate` (percent of the candidate's requests that are not bad) and `request-duration` (their
    /// p99, in milliseconds) are measured by activators, over the last `analysis.interval`.
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
    /// So many failures of one attempt are fine; the next one rolls back. Threshold counts them with all others instead.
    #[serde(default)]
    pub failure_limit: u32,
    /// Without a value.
    #[serde(default)]
    pub on_no_data: OnNoData,
    /// It is measured and shown, and decides nothing.
    #[serde(default)]
    pub dry_run: bool,
}

/// Without a value: the answer is empty or not a number, or there is no answer that can be read.
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
    /// Where: `http://prometheus.monitoring:9090`, without `/api/v1/query`.
    #[schemars(length(min = 1, max = 2048))]
    pub address: String,
    /// PromQL with one result. `{{ namespace }}`, `{{ name }}` (the Rollout), `{{ target }}`, `{{ service }}`,
    /// `{{ interval }}`, `{{ stable }}` and `{{ candidate }}` (names of revisions) are filled in.
    #[schemars(length(min = 1, max = 8192))]
    pub query: String,
    /// How often, and the `interval` of the query. Threshold measures at its looks instead.
    #[serde(default = "a_minute")]
    #[schemars(length(max = 32), regex(pattern = DURATION))]
    pub interval: String,
}

fn a_minute() -> String {
    "1m".to_owned()
}

/// A call: `POST` with Flagger's payload. Status 200, 201 and 202 agree; anything else does not.
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
    /// How long each try may take.
    #[serde(default = "half_a_minute")]
    #[schemars(length(max = 32), regex(pattern = DURATION))]
    pub timeout: String,
    /// How often it is tried again, after 1 to 30 s: when there is no answer, or its status is 429 or 5xx.
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
    /// Before the candidate is scaled up: asked until it agrees.
    ConfirmRollout,
    /// Before the first weight. A failure rolls back; Threshold counts it, and tries again.
    PreRollout,
    /// Once each interval. Failures are counted.
    #[default]
    Rollout,
    /// Before each weight: asked until it agrees.
    ConfirmTrafficIncrease,
    /// Before everything goes over: asked until it agrees.
    ConfirmPromotion,
    /// At the end, however it ended. What it says changes nothing.
    PostRollout,
    /// Asked all the time: when it agrees, the candidate is taken out.
    Rollback,
    /// For each event: `eventMessage`, `eventType` and `timestamp` (milliseconds) are added to the metadata.
    Event,
}
