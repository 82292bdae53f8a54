//! What a Route says while a candidate is being let in.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The candidate, and what is counted, mirrored, matched and guarded for it. Weights are the pools'.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RouteRollout {
    /// The stable pool.
    pub stable: String,
    /// The candidate's pool.
    pub candidate: String,
    /// Under which attempt it is counted. Another one than before: counting begins anew. Empty: nothing is counted.
    pub attempt: String,
    /// Under which epoch requests are counted that are assigned from now on.
    pub epoch: u32,
    /// Which answers are bad.
    pub bad: BadAnswers,
    /// The first so many requests of a pod whose times are not counted.
    pub warmup_requests: u32,
    /// For so long after a pod was first seen answering its times are not counted, in milliseconds.
    pub warmup_ms: u64,
    /// Copies of requests to the candidate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mirror: Option<RouteMirror>,
    /// Requests that go to the candidate whatever its weight; one of these is enough.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub matches: Vec<RouteMatch>,
    /// Keeps a client with its pool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity: Option<RouteAffinity>,
    /// Takes the candidate out without the autoscaler.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub breaker: Option<RouteBreaker>,
    /// Requests of our own to the candidate, by all activators together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub synthetic: Option<RouteSynthetic>,
}

/// Which answers are bad. What could not be reached or broke off is, if timeouts are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct BadAnswers {
    /// HTTP status codes.
    #[schemars(length(max = 32))]
    pub codes: Vec<CodeRange>,
    /// gRPC status codes.
    #[schemars(length(max = 17))]
    pub grpc: Vec<u32>,
    /// Timeouts and broken connections.
    pub timeouts: bool,
}

/// HTTP status codes from the first to the last, both included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CodeRange {
    /// The first.
    #[schemars(range(min = 100, max = 599))]
    pub first: u16,
    /// The last.
    #[schemars(range(min = 100, max = 599))]
    pub last: u16,
}

/// Copies of requests to the candidate. Their answers are compared, and thrown away.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RouteMirror {
    /// Share of the requests, in percent.
    #[schemars(range(min = 1, max = 100))]
    pub percent: u32,
    /// Only these methods; none: all.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub methods: Vec<String>,
}

/// Headers that have to match, all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RouteMatch {
    /// By name, in lower case.
    #[schemars(extend("maxProperties" = 16))]
    pub headers: std::collections::BTreeMap<String, HeaderMatch>,
}

/// How a header's value has to be. What is empty matches anything, so an empty one asks for the header alone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct HeaderMatch {
    /// The whole value.
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 1024))]
    pub exact: String,
    /// How it begins.
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 1024))]
    pub prefix: String,
    /// How it ends.
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 1024))]
    pub suffix: String,
    /// What it contains: in `cookie`, for example, `group=insider`.
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 1024))]
    pub contains: String,
}

/// Keeps a client with its pool, by a cookie that names pool, attempt and epoch. The candidate's clients keep it for its
/// age; the stable pool's are assigned anew in each epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RouteAffinity {
    /// Name of the cookie.
    #[schemars(length(max = 128))]
    pub cookie: String,
    /// Its age, in seconds.
    pub max_age_seconds: u64,
}

/// Takes the candidate out when an activator's own counts are overwhelming, downwards only.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RouteBreaker {
    /// At so much evidence that the candidate is worse.
    pub evidence: f64,
    /// How many times as bad as the stable pool is still fine; at least 1.
    pub tolerance: f64,
}

/// Requests of our own.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RouteSynthetic {
    /// Path with query.
    #[schemars(length(max = 2048))]
    pub path: String,
    /// How many a second, by all activators together.
    pub rps: f64,
}
