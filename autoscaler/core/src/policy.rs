//! A pool's knobs: plain numbers, checked once, then trusted.
//!
//! [`Knobs`] is what a caller fills in; [`Policy::new`] checks it and names the knob that is out of its range. Inside the
//! crate nothing is checked again. Ranges and defaults are Knative's where Knative has the knob.

use std::time::Duration;

/// How pods beyond the first are decided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// Reactive sizing without windows: [`crate::adaptive`].
    #[default]
    Adaptive,
    /// Knative's pod autoscaler, to the digit: [`crate::kpa`].
    Kpa,
}

/// What is measured per pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Metric {
    /// Requests being served or held, averaged over time.
    #[default]
    Concurrency,
    /// Requests that arrive, per second.
    RequestsPerSecond,
}

/// How a window's buckets become one number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Aggregation {
    /// The mean of the buckets.
    #[default]
    Linear,
    /// Newer buckets weigh more, exponentially.
    WeightedExponential,
}

/// All knobs, as primitives. `Knobs::default()` has every default.
#[derive(Clone, Debug, PartialEq)]
pub struct Knobs {
    /// `policy`.
    pub algorithm: Algorithm,
    /// `metric`.
    pub metric: Metric,
    /// `target` per pod, at least 0.01. `None`: 100 requests, or 200 requests per second.
    pub target: Option<f64>,
    /// `target-utilization-percentage`, `0 < x <= 100`.
    pub target_utilization_percentage: f64,
    /// `target-burst-capacity`, -1 or at least 0.
    pub target_burst_capacity: f64,
    /// `container-concurrency`: most requests in flight in one pod. 0: no limit.
    pub container_concurrency: u32,
    /// `min-scale`, pods.
    pub min_scale: u32,
    /// `max-scale`, pods. 0: no limit; else at least `min_scale`.
    pub max_scale: u32,
    /// `initial-scale`, pods.
    pub initial_scale: u32,
    /// `activation-scale`, pods, at least 1: how many a wake starts.
    pub activation_scale: Option<u32>,
    /// `window`, 6 s to 1 h.
    pub window: Duration,
    /// `panic-window-percentage` of `window`, 1 to 100.
    pub panic_window_percentage: f64,
    /// `panic-threshold-percentage`, 110 to 1000.
    pub panic_threshold_percentage: f64,
    /// `max-scale-up-rate`, more than 1.
    pub max_scale_up_rate: f64,
    /// `max-scale-down-rate`, more than 1.
    pub max_scale_down_rate: f64,
    /// `metric-aggregation-algorithm`.
    pub aggregation: Aggregation,
    /// `scale-down-delay`, at most 1 h.
    pub scale_down_delay: Duration,
    /// `scale-to-zero-pod-retention-period`, at most 1 h.
    pub retention: Duration,
    /// `keep-alive`: how long the last pod stays after the last request. `None`: the algorithm's own rule, which is 60 s
    /// for `Adaptive` and Knative's window and grace period for `Kpa`.
    pub keep_alive: Option<Duration>,
    /// `burst`: requests for which capacity is kept free.
    pub burst: u32,
    /// Knative's `scale-to-zero-grace-period`.
    pub grace: Duration,
    /// How long pods may take to become ready before a `Kpa` pool gives up and goes back to zero.
    pub progress_deadline: Duration,
    /// After a wake nothing goes back to zero for this long.
    pub settle: Duration,
}

impl Default for Knobs {
    fn default() -> Self {
        Self {
            algorithm: Algorithm::Adaptive,
            metric: Metric::Concurrency,
            target: None,
            target_utilization_percentage: 70.0,
            target_burst_capacity: 211.0,
            container_concurrency: 0,
            min_scale: 0,
            max_scale: 0,
            initial_scale: 1,
            activation_scale: None,
            window: Duration::from_secs(60),
            panic_window_percentage: 10.0,
            panic_threshold_percentage: 200.0,
            max_scale_up_rate: 1000.0,
            max_scale_down_rate: 2.0,
            aggregation: Aggregation::Linear,
            scale_down_delay: Duration::ZERO,
            retention: Duration::ZERO,
            keep_alive: None,
            burst: 0,
            grace: Duration::from_secs(30),
            progress_deadline: Duration::from_secs(600),
            settle: Duration::from_secs(2),
        }
    }
}

/// A knob that is out of its range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// The knob, as users write it.
    pub knob: &'static str,
    /// Its value.
    pub value: String,
    /// What is allowed.
    pub allowed: &'static str,
}

impl std::fmt::Display for Invalid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} is {}, allowed: {}", self.knob, self.value, self.allowed)
    }
}

impl std::error::Error for Invalid {}

/// Knobs that have been checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    knobs: Knobs,
    target: f64,
    total: f64,
    panic_threshold: f64,
}

/// With no target given: requests per pod.
const DEFAULT_CONCURRENCY: f64 = 100.0;
/// With no target given: requests per second and pod.
const DEFAULT_RATE: f64 = 200.0;
/// Smallest target per pod.
const SMALLEST_TARGET: f64 = 0.01;
/// The last pod stays this long, unless told otherwise.
const KEEP_ALIVE: Duration = Duration::from_secs(60);
/// Longest delay, window or retention.
const HOUR: Duration = Duration::from_secs(3600);

impl Policy {
    /// Checks the knobs.
    ///
    /// # Errors
    /// Names the first knob that is out of its range; the user has to change it.
    pub fn new(knobs: Knobs) -> Result<Self, Invalid> {
        check(&knobs)?;
        Ok(Self::resolved(knobs))
    }

    fn resolved(knobs: Knobs) -> Self {
        let (target, total) = resolve(&knobs);
        let panic_threshold = knobs.panic_threshold_percentage / 100.0;
        Self {
            knobs,
            target,
            total,
            panic_threshold,
        }
    }

    /// Sets a threshold that users may not set, for Knative's own cases.
    #[cfg(test)]
    pub(crate) fn set_panic_threshold(&mut self, threshold: f64) {
        self.panic_threshold = threshold;
    }

    /// The knobs it was made from.
    #[must_use]
    pub fn knobs(&self) -> &Knobs {
        &self.knobs
    }

    /// What one pod is meant to carry: the total times the target utilization.
    #[must_use]
    pub fn target(&self) -> f64 {
        self.target
    }

    /// What one pod carries at most.
    #[must_use]
    pub fn total(&self) -> f64 {
        self.total
    }

    /// Knative's short window: a percentage of the long one, at least a second, whole seconds.
    #[must_use]
    pub fn panic_window(&self) -> Duration {
        let seconds = self.knobs.window.as_secs_f64() * self.knobs.panic_window_percentage / 100.0;
        Duration::from_secs((seconds.round() as u64).max(1))
    }

    /// How many times the ready pods' capacity starts a panic.
    #[must_use]
    pub fn panic_threshold(&self) -> f64 {
        self.panic_threshold
    }

    /// The keep-alive as a fixed time: what was asked for, or the default of the adaptive algorithm.
    #[must_use]
    pub fn keep_alive(&self) -> Duration {
        self.knobs
            .keep_alive
            .unwrap_or(KEEP_ALIVE)
            .max(self.knobs.retention)
    }

    /// Between `min_scale` and `max_scale`.
    #[must_use]
    pub fn bounded(&self, pods: u32) -> u32 {
        let pods = pods.max(self.knobs.min_scale);
        match self.knobs.max_scale {
            0 => pods,
            max => pods.min(max),
        }
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self::resolved(Knobs::default())
    }
}

/// Target and total per pod, as Knative resolves them.
fn resolve(knobs: &Knobs) -> (f64, f64) {
    let limit = f64::from(knobs.container_concurrency);
    let utilization = knobs.target_utilization_percentage / 100.0;
    let total = match (knobs.metric, knobs.target) {
        (Metric::Concurrency, Some(target)) if limit > 0.0 => target.min(limit),
        (Metric::Concurrency, None) if limit > 0.0 => limit,
        (_, Some(target)) => target,
        (Metric::Concurrency, None) => DEFAULT_CONCURRENCY,
        (Metric::RequestsPerSecond, None) => DEFAULT_RATE,
    };
    ((total * utilization).max(SMALLEST_TARGET), total)
}

/// A knob's name, its value, whether it is allowed, and what is.
type Rule = (&'static str, String, bool, &'static str);

fn check(knobs: &Knobs) -> Result<(), Invalid> {
    let within = |value: f64, low: f64, high: f64| value >= low && value <= high;
    let Knobs {
        target,
        target_utilization_percentage: utilization,
        target_burst_capacity: spare,
        min_scale,
        max_scale,
        panic_window_percentage: panic_window,
        panic_threshold_percentage: panic_threshold,
        max_scale_up_rate: up,
        max_scale_down_rate: down,
        ..
    } = *knobs;
    let secs = |duration: Duration| format!("{}s", duration.as_secs_f64());
    let (window, delay, retention) = (knobs.window, knobs.scale_down_delay, knobs.retention);
    let short = Duration::from_secs(6);
    let activation = knobs.activation_scale.unwrap_or(min_scale.max(1));
    let rules: [Rule; 12] = [
        (
            "target",
            format!("{target:?}"),
            target.is_none_or(|target| within(target, SMALLEST_TARGET, f64::MAX)),
            "at least 0.01",
        ),
        (
            "target-utilization-percentage",
            utilization.to_string(),
            utilization > 0.0 && utilization <= 100.0,
            "more than 0, at most 100",
        ),
        (
            "target-burst-capacity",
            spare.to_string(),
            spare == -1.0 || within(spare, 0.0, f64::MAX),
            "-1, or at least 0",
        ),
        (
            "max-scale",
            max_scale.to_string(),
            max_scale == 0 || max_scale >= min_scale,
            "0, or at least min-scale",
        ),
        (
            "activation-scale",
            activation.to_string(),
            activation >= min_scale.max(1) && (max_scale == 0 || activation <= max_scale),
            "at least 1, from min-scale to max-scale",
        ),
        (
            "window",
            secs(window),
            window >= short && window <= HOUR,
            "6s to 1h",
        ),
        (
            "panic-window-percentage",
            panic_window.to_string(),
            within(panic_window, 1.0, 100.0),
            "1 to 100",
        ),
        (
            "panic-threshold-percentage",
            panic_threshold.to_string(),
            within(panic_threshold, 110.0, 1000.0),
            "110 to 1000",
        ),
        (
            "max-scale-up-rate",
            up.to_string(),
            up > 1.0 && up.is_finite(),
            "more than 1",
        ),
        (
            "max-scale-down-rate",
            down.to_string(),
            down > 1.0 && down.is_finite(),
            "more than 1",
        ),
        ("scale-down-delay", secs(delay), delay <= HOUR, "0s to 1h"),
        (
            "scale-to-zero-pod-retention-period",
            secs(retention),
            retention <= HOUR,
            "0s to 1h",
        ),
    ];
    match rules.into_iter().find(|(_, _, fine, _)| !fine) {
        None => Ok(()),
        Some((knob, value, _, allowed)) => Err(Invalid { knob, value, allowed }),
    }
}

#[cfg(test)]
mod tests;
