//! Which weights a candidate gets, in which order, and who gets to it otherwise.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{DURATION, SHARE};

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

pub(super) fn half_a_minute() -> String {
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

pub(super) fn five_percent() -> String {
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
