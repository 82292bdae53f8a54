//! The `Route`: one for each opted-in Service, with its name and namespace, owned by it.
//!
//! The autoscaler writes spec and status; activators read the spec. A Route of a refused Service has no ports and
//! no pools: it exists to carry the condition that says why. Times are milliseconds, weights are basis points.

mod rollout;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use rollout::{
    BadAnswers, CodeRange, HeaderMatch, RouteAffinity, RouteBreaker, RouteMatch, RouteMirror, RouteRollout,
    RouteSynthetic,
};

/// The sum of the weights of a Route's pools: 10,000 basis points.
pub const FULL_WEIGHT: u32 = 10_000;

/// Everything an activator needs to serve one Service.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "dormouse.dev",
    version = "v1alpha1",
    kind = "Route",
    namespaced,
    status = "RouteStatus",
    category = "dormouse",
    derive = "PartialEq",
    derive = "Default",
    printcolumn = r#"{"name":"Phase","type":"string","jsonPath":".status.phase"}"#,
    printcolumn = r#"{"name":"Pods","type":"string","jsonPath":".status.pods"}"#,
    printcolumn = r#"{"name":"Weights","type":"string","jsonPath":".status.weights"}"#,
    printcolumn = r#"{"name":"Why","type":"string","jsonPath":".status.why"}"#,
    printcolumn = r#"{"name":"Last-Request","type":"date","jsonPath":".status.lastRequest"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#,
    doc = "What an activator needs to serve one Service. Made and owned by Dormouse; not for writing by hand.",
    validation = Rule::new(
        "!has(self.spec.pools) || size(self.spec.pools) == 0 || self.spec.pools.map(p, p.weight).sum() == 10000"
    )
    .message("the weights of the pools must add up to 10000 basis points"),
    validation = Rule::new(
        "!has(self.spec.ports) || self.spec.ports.all(p, self.spec.ports.exists_one(q, q.listen == p.listen))"
    )
    .message("two ports must not have the same listening port"),
    validation = Rule::new(
        "!has(self.spec.pools) || self.spec.pools.all(p, self.spec.pools.exists_one(q, q.name == p.name))"
    )
    .message("two pools must not have the same name")
)]
#[serde(rename_all = "camelCase")]
pub struct RouteSpec {
    /// The Service's ports, each with the activator port that stands for it. Empty: the Service is not served.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100))]
    pub ports: Vec<RoutePort>,
    /// Where requests go, by weight. One pool for a plain Service, one for each live revision with a Rollout.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub pools: Vec<RoutePool>,
    /// Most requests held at once, per pool and activator. One more is refused with 503 and Retry-After.
    #[serde(default)]
    pub queue_limit: u32,
    /// Longest a request may wait for a pod to answer while its pool wakes, in milliseconds. Longer: 504.
    #[serde(default)]
    pub cold_start_timeout_ms: u64,
    /// Longest a request may wait for a place while pods are ready and all are busy, in milliseconds. 0: as long as the
    /// cold start may take. Longer: 503 and Retry-After.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub queue_timeout_ms: u64,
    /// Longest from the request's dispatch to the response's head, in milliseconds. 0: no limit.
    #[serde(default)]
    pub response_start_timeout_ms: u64,
    /// Longest from the request's dispatch to the response's end, in milliseconds. 0: no limit.
    #[serde(default)]
    pub request_timeout_ms: u64,
    /// Longest a stream may go without a byte in either direction, in milliseconds. 0: no limit.
    #[serde(default)]
    pub stream_idle_timeout_ms: u64,
    /// What a browser gets that opens the Service while it sleeps: `auto` is the built-in page, another word the name of
    /// the ConfigMap that dresses it; `off` or nothing: it is held like any other client.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 253))]
    pub waiting_page: String,
    /// Whether connections to TCP ports begin with a PROXY protocol header of version 2, which names the client.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub proxy_protocol: bool,
    /// What is neither counted as use nor wakes anything.
    #[serde(default)]
    pub ignore: Ignore,
    /// A candidate that is being let in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RouteRollout>,
}

/// Whether a limit is not set: then it is not written, and Routes stay as they were before there was one.
#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(limit: &u64) -> bool {
    *limit == 0
}

/// One port of the Service and the activator port that stands for it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RoutePort {
    /// The Service port's name; empty when the Service has one unnamed port.
    #[serde(default)]
    pub name: String,
    /// The Service port's number.
    #[schemars(range(min = 1))]
    pub port: u16,
    /// The port on which every activator listens for it, unique in the cluster: the port is the route.
    #[schemars(range(min = 10000, max = 32000))]
    pub listen: u16,
    /// What is spoken on it.
    #[serde(default)]
    pub protocol: Protocol,
    /// Whether pods speak HTTP/2 with prior knowledge on it (`appProtocol: kubernetes.io/h2c`).
    #[serde(default)]
    pub h2c: bool,
    /// The Service port's `appProtocol`, copied to our slices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app_protocol: Option<String>,
}

/// What is spoken on a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP/1.1 or HTTP/2 with prior knowledge, told apart by the first bytes.
    #[default]
    Http,
    /// Bytes.
    Tcp,
}

/// The pods of one revision: one workload.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RoutePool {
    /// Unique in the namespace. For a plain Service, the workload's name. Its private Service is named after it, with
    /// `-dm` appended.
    // The bound keeps the API server's estimate of what comparing names costs below its limit.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// What has the pods and the `/scale`.
    pub workload: Workload,
    /// Share of requests in basis points, `0..=10000`.
    #[schemars(range(min = 0, max = 10000))]
    pub weight: u32,
    /// Most requests in flight in one pod, over all activators. 0: no limit.
    #[serde(default)]
    pub container_concurrency: u32,
    /// How an activator tells that a pod can answer.
    #[serde(default)]
    pub probe: Probe,
}

/// A workload in the Route's namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Workload {
    /// Deployment or StatefulSet.
    pub kind: WorkloadKind,
    /// Its name.
    pub name: String,
}

/// The kinds of workload with `/scale` that we scale.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub enum WorkloadKind {
    /// `apps/v1` Deployment.
    #[default]
    Deployment,
    /// `apps/v1` StatefulSet.
    StatefulSet,
}

impl WorkloadKind {
    /// The plural resource name in `apps/v1`.
    #[must_use]
    pub fn plural(self) -> &'static str {
        match self {
            Self::Deployment => "deployments",
            Self::StatefulSet => "statefulsets",
        }
    }
}

impl std::fmt::Display for Workload {
    /// As `kubectl` writes it: `deployment/web`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match self.kind {
            WorkloadKind::Deployment => "deployment",
            WorkloadKind::StatefulSet => "statefulset",
        };
        write!(f, "{kind}/{}", self.name)
    }
}

/// How an activator tells that a pod can answer: the pod's own readiness probe where that can be run from outside.
/// The port is the private Service's port `probe`, else the port that is being served.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Probe {
    /// Which kind of probe.
    #[serde(default)]
    pub kind: ProbeKind,
    /// Path with query of an HTTP probe.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// Value of the Host header of an HTTP probe; empty: the pod's address.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub host: String,
    /// Further headers of an HTTP probe.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<ProbeHeader>,
    /// How long one try may take, in milliseconds. 0: one second, as in Kubernetes.
    #[serde(default)]
    pub timeout_ms: u64,
    /// How long after its address appears a pod is left alone (the probe's `initialDelaySeconds`), in milliseconds.
    #[serde(default)]
    pub initial_delay_ms: u64,
}

/// Kinds of readiness probe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ProbeKind {
    /// A TCP connection is accepted. Also what is done when a pod declares no probe.
    #[default]
    Tcp,
    /// `GET path` answers 200..=399.
    Http,
    /// Cannot be run from outside (exec, gRPC, HTTPS, startup probe): wait until Kubernetes says the pod serves.
    Kubernetes,
}

/// A header of an HTTP probe.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProbeHeader {
    /// Name.
    pub name: String,
    /// Value.
    pub value: String,
}

/// Requests that neither wake a pool nor keep it awake, besides those known by default (kubelet, Prometheus, load balancers).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Ignore {
    /// Prefixes of `User-Agent`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub user_agents: Vec<String>,
    /// Exact paths.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub paths: Vec<String>,
}

/// What the autoscaler knows of the Service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RouteStatus {
    /// Where the Service stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// Pods ready and wanted, as `ready/wanted`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub pods: String,
    /// Weight by pool in percent, as `web=100` or `web-1=80,web-2=20`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub weights: String,
    /// One sentence, with numbers, on the last change.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// One sentence on what happens next, and when; empty when nothing is planned.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub next: String,
    /// When a request that counts was last seen, to within half a minute while awake.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_request: Option<Time>,
    /// The generation of the spec that `listening` refers to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Names of the activators that listen on all ports of that generation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub listening: Vec<String>,
    /// The last wakes, newest first, at most [`RouteStatus::KEPT_WAKES`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub wakes: Vec<Wake>,
    /// The last command carried out: `wake@NONCE` or `sleep@NONCE`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub command: String,
    /// Conditions; types and reasons are in [`crate::condition`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

impl RouteStatus {
    /// How many wakes are kept: enough to tell usual from unusual, little enough to read.
    pub const KEPT_WAKES: usize = 8;
}

/// Where a Service stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Phase {
    /// Opted in, but not captured (yet, or any more): traffic goes to the pods directly.
    Direct,
    /// Captured, no pods.
    Asleep,
    /// Pods wanted, none ready.
    Waking,
    /// At least one pod ready.
    Awake,
    /// No activator is ready: traffic goes to the pods directly, by our own slices.
    FailOpen,
    /// Not captured, and cannot be: see the condition `Captured`.
    Refused,
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self:?}")
    }
}

/// One wake, split into its parts. All times are durations in milliseconds; the start is the first held request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Wake {
    /// When it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Time>,
    /// The pool.
    pub pool: String,
    /// First byte accepted to `/scale` request sent, by activator and autoscaler together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal_ms: Option<f64>,
    /// First byte accepted to first pod address visible.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address_ms: Option<f64>,
    /// First byte accepted to first pod seen answering its probe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listening_ms: Option<f64>,
    /// First byte accepted to first response head sent to a client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answered_ms: Option<f64>,
    /// Pod seen answering to first response head sent to a client, an upper bound: counted from the last try that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forward_ms: Option<f64>,
    /// How many requests were held when the first pod answered.
    #[serde(default)]
    pub held: u32,
    /// What the first held request was: method, path without query, and user agent, each cut to 64 bytes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub woken_by: String,
}
