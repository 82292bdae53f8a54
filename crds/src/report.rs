//! The report stream: JSON lines in both directions of one HTTP/2 request, `POST /v1/report` on an activator.
//!
//! An autoscaler (the leader and its standby) dials every activator and authenticates with its service-account token.
//! The response body carries [`Report`] lines, the request body [`Directive`] lines. Both sides send a line at least
//! every [`HEARTBEAT_MS`]; a stream silent for [`SILENCE_MS`] is broken.
//!
//! Counters are cumulative for one activator instance, so lost, repeated or reordered lines can only delay, never
//! distort. The wire carries durations and counts, never instants: processes do not compare clocks.

use serde::{Deserialize, Serialize};

use crate::evidence::EpochReport;
use crate::route::Wake;

/// Longest time between two lines, in milliseconds.
pub const HEARTBEAT_MS: u64 = 500;
/// After this long without a line, in milliseconds, a stream is broken: four heartbeats.
pub const SILENCE_MS: u64 = 2_000;
/// Changes are put together for this long, in milliseconds, unless a pool goes from nothing to something.
pub const COALESCE_MS: u64 = 100;
/// How long the answer to a self-probe order is waited for, in milliseconds: its tries are short connections within the
/// cluster.
pub const PROBE_MS: u64 = 10_000;
/// Longest line, in bytes, that either side accepts: 10,000 pools in one snapshot fit.
pub const LONGEST_LINE: usize = 16 << 20;

/// A line from an activator. The first of a stream has `full` and names every pool; later ones name what changed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Report {
    /// The activator's name: its pod's name.
    pub activator: String,
    /// 128 random bits in hex, new with each process: the scope of all counters.
    pub instance: String,
    /// Counts the lines of this stream from 1.
    pub seq: u64,
    /// Milliseconds since the instance started, when the line was made: the clock of the integrals.
    pub uptime_ms: u64,
    /// Whether the line is a snapshot: what it does not name is not there.
    pub full: bool,
    /// Whether the activator takes new connections. `false` from SIGTERM on: leave it out of all slices.
    pub serving: bool,
    /// The membership epoch ([`Directive::epoch`]) by which it divides limited pools.
    pub epoch: u64,
    /// Requests in flight in limited pools at pods that are not its own by that epoch.
    pub foreign: u32,
    /// Routes whose listening state changed; all of them in a snapshot.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<RouteAck>,
    /// Pools that changed; all that ever had a request in a snapshot.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pools: Vec<PoolReport>,
    /// Answers to self-probe orders.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub probes: Vec<ProbeResult>,
    /// Epochs of rollouts whose counts changed; in a snapshot all of the attempts that Routes name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub epochs: Vec<EpochReport>,
}

/// That an activator listens on all ports of a Route's generation, or cannot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RouteAck {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// The Route object's uid: a Route deleted and made anew is another.
    pub uid: String,
    /// The generation it serves.
    pub generation: i64,
    /// Why it cannot listen, for example a port in use. Empty: it listens.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub error: String,
    /// The Route is gone and its ports are closed.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub gone: bool,
}

/// The counters of one pool in one activator instance.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PoolReport {
    /// Namespace.
    pub namespace: String,
    /// Pool name.
    pub pool: String,
    /// Requests that arrived and count as use, since the instance started.
    pub arrivals: u64,
    /// Of these, how many have ended.
    pub completions: Outcomes,
    /// Integral over time of requests dispatched to pods and not ended, in request-seconds.
    pub in_flight_seconds: f64,
    /// Integral over time of requests held, in request-seconds.
    pub held_seconds: f64,
    /// Sum of service times (dispatch to end) of ended requests, in seconds.
    pub service_seconds: f64,
    /// Requests in flight now.
    pub in_flight: u32,
    /// Requests held now.
    pub held: u32,
    /// Pods that this activator sees answering.
    pub ready: u32,
    /// How long the oldest held request had been held when the line was made, in microseconds; 0 when none is.
    pub oldest_held_us: u64,
    /// How long ago a request that counts last arrived or ended, in milliseconds; `None`: never in this instance.
    pub idle_ms: Option<u64>,
    /// The last finished wakes that were not yet reported on this stream, oldest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub wakes: Vec<Wake>,
}

/// Ended requests by how they ended. Cumulative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Outcomes {
    /// The pod answered below 500, to the end.
    pub ok: u64,
    /// The pod answered 500 or more.
    pub server_error: u64,
    /// We refused: queue full, cold-start timeout, draining.
    pub refused: u64,
    /// The pod could not be reached, broke off, or took longer than a timeout.
    pub failed: u64,
    /// The client went away.
    pub cancelled: u64,
}

impl Outcomes {
    /// All of them together.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.ok + self.server_error + self.refused + self.failed + self.cancelled
    }
}

/// The answer to a [`ProbeOrder`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProbeResult {
    /// The order's id.
    pub id: u64,
    /// Instance of the activator on which it landed, with the right Route; `None`: it landed elsewhere or nowhere.
    pub landed: Option<String>,
    /// What happened instead, when it did not land.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub error: String,
}

/// A line from an autoscaler.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Directive {
    /// The autoscaler's name: its pod's name.
    pub autoscaler: String,
    /// Whether it leads. Only a leader's lines are obeyed; a standby's only keep its stream alive.
    pub leader: bool,
    /// Counts memberships; grows also from one leader to the next (it starts at the Lease's transitions × 2³²).
    pub epoch: u64,
    /// The activators that share the limited pools in this epoch, by name.
    pub activators: Vec<Peer>,
    /// Whether all of them have acknowledged the epoch with no foreign request in flight. Before that an activator
    /// uses, of a limited pool, only pods that are its own both by this epoch and by the last settled one.
    pub settled: bool,
    /// Pools whose wake has been seen and is being carried out. A line sent because a wake began names those that this
    /// stream has not been told of; all of them are repeated at least every [`HEARTBEAT_MS`] until they are awake.
    pub waking: Vec<PoolKey>,
    /// Self-probes to run, each once.
    pub probes: Vec<ProbeOrder>,
    /// Candidates that some activator's breaker has taken out, until their rollback is over. Every activator leaves them out
    /// then and says so in its reports, so that the break outlives the activator that found it. Repeated in every line.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub broken: Vec<BrokenAttempt>,
}

/// An attempt whose candidate is out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BrokenAttempt {
    /// The Route's namespace.
    pub namespace: String,
    /// The Route's name.
    pub route: String,
    /// The attempt that the Route names; of another one it says nothing.
    pub attempt: String,
}

/// An activator as its peers see it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// The address on which it listens for all Routes.
    pub address: String,
}

/// A pool in its namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PoolKey {
    /// Namespace.
    pub namespace: String,
    /// Pool name.
    pub pool: String,
}

impl std::fmt::Display for PoolKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.pool)
    }
}

/// Asks an activator to connect to a Service's own address and say whether it lands on an activator.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProbeOrder {
    /// Unique in this autoscaler's process.
    pub id: u64,
    /// The Route's namespace.
    pub namespace: String,
    /// The Route's name.
    pub route: String,
    /// `IP:PORT` of the Service: its ClusterIP and a port.
    pub address: String,
    /// How many connections to try before saying that none landed. While the Service's built-in endpoints stand
    /// beside ours, most connections may rightly land on a pod.
    pub tries: u32,
    /// How long ago it was given, in milliseconds, when the line was made. Nobody waits for the answer longer than
    /// [`PROBE_MS`] after that.
    pub age_ms: u64,
}
