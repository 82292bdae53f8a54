//! Where a rollout stands: all that is needed to go on, and why.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where a rollout stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RolloutStatus {
    /// Generation of the spec that was last acted on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Phase.
    pub phase: Phase,
    /// The candidate's weight in percent, as `20%`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub weight: String,
    /// Where it stands and why, in one sentence with numbers.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// What happens next, in one sentence; empty: nothing is planned.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub next: String,
    /// The revision that has the traffic when there is no candidate.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub stable_revision: String,
    /// The revision that is being let in; empty: none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub candidate_revision: String,
    /// Whether the traffic goes to pools of revisions, not to the user's own workload.
    pub adopted: bool,
    /// Whether the stable revision's pods are those of the user's own workload, which is paused, or it is leaving it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub in_place: bool,
    /// The revision of the template that was last acted on.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub seen_revision: String,
    /// To be begun when the present candidate is out.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub queued_revision: String,
    /// The attempt under way, or the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempt: Option<AttemptStatus>,
    /// How many attempts there have been.
    pub attempts: u64,
    /// The present step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<StepStatus>,
    /// What the evidence says, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evidence: Option<EvidenceStatus>,
    /// Previous stable revisions, newest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub history: Vec<String>,
    /// Revisions that failed, newest first; they begin again on `retry`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20))]
    pub quarantined: Vec<String>,
    /// The last command that was looked at, whole.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub last_command: String,
    /// What became of it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub last_command_answer: String,
    /// When the stable revision became stable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub promoted_at: Option<MicroTime>,
    /// `Ready`, `Progressing`, `Promoted`, `Degraded`, `AutoscalerConflict`, `ReplicasConflict`, `ConfigTracked`; `MeasurementsAvailable`
    /// where something is measured, and `AlertsDelivered` where somebody is told.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

impl RolloutStatus {
    /// Whether a first revision serves, in a pool of its own or in the user's paused workload.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.adopted || self.in_place
    }
}

/// Phases, in the order in which a rollout meets them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Phase {
    /// The first revision's pool is made, and gets the traffic of the user's workload.
    #[default]
    Adopting,
    /// One revision, all traffic.
    Idle,
    /// The candidate's pods start.
    Preparing,
    /// Requests are copied to the candidate.
    Mirroring,
    /// The candidate's weight grows.
    Progressing,
    /// Waits for a person, or for a pause to end.
    Paused,
    /// Only evidence is missing.
    Holding,
    /// The candidate gets everything.
    Promoting,
    /// The candidate has everything and is watched.
    Baking,
    /// The stable revision gets everything back.
    RollingBack,
    /// The template's revision is not the one that serves.
    Failed,
    /// The user's workload gets everything back, and the pools go.
    Releasing,
}

/// One try to let one revision in. Moments are kept to the microsecond, so that they read back as they were.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AttemptStatus {
    /// Unique; commands name it: `promote@UID.NONCE`.
    pub uid: String,
    /// The revision.
    pub candidate: String,
    /// Without an analysis.
    pub fast: bool,
    /// When it began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<MicroTime>,
    /// How it ended: `Promoted`, `FastPromoted`, `RolledBack`, `Aborted`, `Superseded`, `Expired`. Empty: it has not.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub result: String,
    /// Why it ended so, in one sentence.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// Whether requests are mirrored.
    pub mirroring: bool,
    /// Weights since the beginning; the last one stands. Counts name epochs by their place.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128))]
    pub epochs: Vec<EpochStatus>,
    /// Since when it has been getting ready for what comes next.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub getting_ready_since: Option<MicroTime>,
    /// Since when only evidence has been missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiting_since: Option<MicroTime>,
    /// Since when the candidate has had everything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baking_since: Option<MicroTime>,
    /// Somebody has paused it.
    pub paused: bool,
    /// Somebody has ended what stands after this many weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skipped: Option<u32>,
    /// Somebody has opened the gate that stands after this many weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub passed: Option<u32>,
    /// Somebody has said to promote over missing evidence.
    pub waived: bool,
    /// Its pods may start: whoever has to confirm that has.
    pub confirmed: bool,
    /// The webhooks that it waits for, by their type.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub waits_for: String,
    /// Thresholds of service time, as bucket numbers (`service_time_bucket`): the stable revision's median, p90 and p99, and
    /// the objective. -1: none.
    #[schemars(length(max = 4))]
    pub cuts: Vec<i32>,
    /// What activators have counted, by epoch and activator process.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8192))]
    pub counts: Vec<Counts>,
    /// The lowest share of bad requests that was ruled out so far, in parts of a million.
    pub ruled_out_ppm: u32,
    /// Where the Threshold rule stands.
    pub ticks: TickStatus,
    /// What was measured beyond that, by name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub measurements: Vec<MeasurementStatus>,
}

/// A measurement: of a metric, or a `rollout` webhook.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct MeasurementStatus {
    /// The metric's name; `hook NAME` for a webhook.
    pub name: String,
    /// The last value; empty: there was none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub value: String,
    /// What was wrong with the last one; empty: nothing.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// How many have failed in this attempt.
    pub failures: u32,
    /// When it was last measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub measured_at: Option<MicroTime>,
    /// It decides nothing.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
}

/// A time in which a weight stood.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct EpochStatus {
    /// The candidate's weight, in basis points.
    pub weight_bp: u32,
    /// Whether each request went to both.
    pub mirrored: bool,
}

/// What one activator process counted in one epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Counts {
    /// The epoch's place.
    pub epoch: u32,
    /// The activator's process.
    pub instance: String,
    /// The stable revision's, by the coin.
    pub stable: ArmCounts,
    /// The candidate's, by the coin.
    pub candidate: ArmCounts,
    /// The candidate's, by a match or by ourselves.
    pub direct: ArmCounts,
}

/// Requests of one revision: ended, bad, with a judged time, and over each of four thresholds. Trailing zeros are left out.
pub type ArmCounts = Vec<u64>;

/// The present step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct StepStatus {
    /// How many weights there have been.
    pub index: u32,
    /// The candidate's weight, in basis points.
    pub weight_bp: u32,
    /// The same, if every living activator has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acked_bp: Option<u32>,
    /// Since when every living activator has had it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<MicroTime>,
}

/// What the evidence says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct EvidenceStatus {
    /// Requests of the stable revision, and of the candidate.
    pub requests: [u64; 2],
    /// Of these, the bad ones.
    pub bad: [u64; 2],
    /// Mirrored pairs.
    pub pairs: u64,
    /// Evidence that the candidate is worse.
    pub e_rollback: f64,
    /// With so much it is taken out: 1 / alpha.
    pub need_rollback: f64,
    /// Evidence that the candidate may be shipped.
    pub e_safe: f64,
    /// With so much it is promoted: 1 / beta.
    pub need_safe: f64,
    /// Requests of the candidate, all good, that are missing until then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eta_requests: Option<u64>,
    /// With confidence 1 − beta, at most this share of the candidate's requests is bad, in percent.
    pub bad_at_most_percent: f64,
    /// The test with the most evidence.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub strongest: String,
    /// `Inconclusive`, `Safe`, `Worse`.
    pub verdict: String,
    /// The requests in a column: `812+203`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub requests_text: String,
    /// The evidence in a column: `38/100`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub text: String,
}

/// Where the Threshold rule stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TickStatus {
    /// When it last looked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_at: Option<MicroTime>,
    /// Looks that failed.
    pub failed_checks: u32,
    /// Good looks that count instead of weights.
    pub iterations: u32,
}
