//! What a Rollout's spec asks of others: further measurements, webhooks, alerts. Read once, checked.

use std::collections::BTreeSet;
use std::time::Duration;

use crds::rollout::{
    Alert, AnalysisMode, AnalysisSpec, MetricSpec, OnNoData, RolloutSpec, WebhookKind, WebhookSpec,
};
use dormouse_core::rollout::Gate;
use http::Uri;

use super::webhook::{Hook, label};
use super::{plan, prometheus, web};

/// Percent of the candidate's requests that are not bad.
const SUCCESS_RATE: &str = "request-success-rate";
/// The 99th percentile of their service times, in milliseconds.
const DURATION: &str = "request-duration";
/// Shortest time between two measurements, and longest time of one call.
const LEAST: Duration = Duration::from_secs(1);
const LONGEST_CALL: Duration = Duration::from_secs(600);

/// All of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Outward {
    /// From one look, call or builtin measurement to the next.
    pub(super) interval: Duration,
    pub(super) metrics: Vec<Metric>,
    pub(super) hooks: Vec<Hook>,
    /// So many failures of one `rollout` webhook take the candidate out.
    pub(super) hook_failures: u32,
    pub(super) alerts: Vec<Alert>,
}

/// A further measurement.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Metric {
    pub(super) name: String,
    pub(super) source: Source,
    pub(super) min: Option<f64>,
    pub(super) max: Option<f64>,
    /// So many failures are fine.
    pub(super) limit: u32,
    pub(super) ignore_no_data: bool,
    pub(super) dry_run: bool,
}

/// Where its value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// Activators' counts.
    SuccessRate,
    /// Activators' counts.
    Duration,
    /// A Prometheus.
    Prometheus(Query),
}

/// A query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Query {
    pub(super) endpoint: Uri,
    /// With variables.
    pub(super) text: String,
    pub(super) every: Duration,
    /// The same as users wrote it, for the query.
    pub(super) interval: String,
}

impl Metric {
    /// From one measurement to the next.
    pub(super) fn every(&self, usual: Duration) -> Duration {
        match &self.source {
            Source::Prometheus(query) => query.every,
            Source::SuccessRate | Source::Duration => usual,
        }
    }
}

impl Outward {
    /// Webhooks of one type, in their order.
    pub(super) fn hooks(&self, kind: WebhookKind) -> impl Iterator<Item = &Hook> {
        self.hooks.iter().filter(move |hook| hook.kind == kind)
    }

    /// The gates at which somebody is to be asked.
    pub(super) fn gates(&self) -> BTreeSet<Gate> {
        let asked = |gate: &Gate| self.hooks(kind_of(*gate)).next().is_some();
        Gate::ALL.into_iter().filter(asked).collect()
    }

    /// Whether anything is measured.
    pub(super) fn measures(&self) -> bool {
        !self.metrics.is_empty() || self.hooks(WebhookKind::Rollout).next().is_some()
    }
}

/// The webhooks of a gate.
pub(super) fn kind_of(gate: Gate) -> WebhookKind {
    match gate {
        Gate::Rollout => WebhookKind::ConfirmRollout,
        Gate::First => WebhookKind::PreRollout,
        Gate::Increase => WebhookKind::ConfirmTrafficIncrease,
        Gate::Promotion => WebhookKind::ConfirmPromotion,
    }
}

/// Reads a spec.
///
/// # Errors
/// The first field that cannot be carried out, its value and what is allowed.
pub(super) fn read(spec: &RolloutSpec) -> Result<Outward, String> {
    let analysis = &spec.analysis;
    let interval = at_least_a_second("spec.analysis.interval", &analysis.interval)?;
    let mut metrics: Vec<Metric> = Vec::new();
    for asked in &analysis.metrics {
        let metric = metric(asked)?;
        if metrics.iter().any(|other| other.name == metric.name) {
            return Err(format!(
                "spec.analysis.metrics has {} twice: give each a name of its own",
                metric.name
            ));
        }
        metrics.push(metric);
    }
    let mut hooks: Vec<Hook> = Vec::new();
    for asked in &analysis.webhooks {
        let hook = hook(asked)?;
        let twice = |other: &Hook| other.kind == hook.kind && other.name == hook.name;
        if hook.kind == WebhookKind::Rollout && hooks.iter().any(twice) {
            return Err(format!(
                "spec.analysis.webhooks has {} of type rollout twice: give each a name of its own",
                hook.name
            ));
        }
        hooks.push(hook);
    }
    if analysis.mode == AnalysisMode::Threshold && metrics.is_empty() {
        metrics = objectives(analysis)?;
        if metrics.is_empty() && hooks.iter().all(|hook| hook.kind != WebhookKind::Rollout) {
            return Err(
                "spec.analysis.mode is Threshold and nothing is measured: list metrics, or set \
                 spec.analysis.outcomes.errors.slo"
                    .to_owned(),
            );
        }
    }
    Ok(Outward {
        interval,
        metrics,
        hooks,
        hook_failures: analysis.threshold.max(1),
        alerts: spec.alerts.clone(),
    })
}

fn metric(asked: &MetricSpec) -> Result<Metric, String> {
    let field = format!("spec.analysis.metrics[{}]", asked.name);
    let source = match (asked.name.as_str(), &asked.prometheus) {
        (SUCCESS_RATE, None) => Source::SuccessRate,
        (DURATION, None) => Source::Duration,
        (SUCCESS_RATE | DURATION, Some(_)) => {
            return Err(format!(
                "{field} is built in and has a query: rename it, or leave prometheus out"
            ));
        }
        (_, None) => {
            return Err(format!(
                "{field} has no prometheus, and built in are only {SUCCESS_RATE} and {DURATION}: say where it is measured"
            ));
        }
        (_, Some(asked)) => {
            let field = format!("{field}.prometheus");
            let address = &asked.address;
            let endpoint = prometheus::endpoint(address)
                .map_err(|why| format!("{field}.address is \"{address}\", {why}"))?;
            prometheus::fill(&asked.query, |name| {
                prometheus::VARIABLES.contains(&name).then(String::new)
            })
            .map_err(|why| format!("{field}.query {why}"))?;
            Source::Prometheus(Query {
                endpoint,
                text: asked.query.clone(),
                every: at_least_a_second(&format!("{field}.interval"), &asked.interval)?,
                interval: asked.interval.clone(),
            })
        }
    };
    let numbers = asked.min.iter().chain(&asked.max);
    match (asked.min, asked.max) {
        (None, None) => Err(format!(
            "{field} has neither min nor max: say which values are fine"
        )),
        (Some(min), Some(max)) if min > max => {
            Err(format!("{field} has min {min} above max {max}: no value is fine"))
        }
        _ if numbers.copied().any(f64::is_nan) => Err(format!("{field} has a bound that is not a number")),
        _ => Ok(Metric {
            name: asked.name.clone(),
            source,
            min: asked.min,
            max: asked.max,
            limit: asked.failure_limit,
            ignore_no_data: asked.on_no_data == OnNoData::Ignore,
            dry_run: asked.dry_run,
        }),
    }
}

/// What Threshold measures when nothing is listed: the objectives.
fn objectives(analysis: &AnalysisSpec) -> Result<Vec<Metric>, String> {
    let built_in = |name: &str, source, min, max| Metric {
        name: name.to_owned(),
        source,
        min,
        max,
        limit: 0,
        ignore_no_data: false,
        dry_run: false,
    };
    let mut metrics = Vec::new();
    let (slo, p99) = (&analysis.outcomes.errors.slo, &analysis.outcomes.latency.p99);
    if !slo.is_empty() {
        let percent = plan::share("spec.analysis.outcomes.errors.slo", slo)? * 100.0;
        metrics.push(built_in(SUCCESS_RATE, Source::SuccessRate, Some(percent), None));
    }
    if !p99.is_empty() {
        let most = plan::duration("spec.analysis.outcomes.latency.p99", p99)?;
        let most = most.as_secs_f64() * 1000.0;
        metrics.push(built_in(DURATION, Source::Duration, None, Some(most)));
    }
    Ok(metrics)
}

fn hook(asked: &WebhookSpec) -> Result<Hook, String> {
    let kind = label(asked.kind);
    let name = if asked.name.is_empty() { kind } else { &asked.name };
    let field = format!("spec.analysis.webhooks[{name}]");
    let timeout = at_least_a_second(&format!("{field}.timeout"), &asked.timeout)?;
    if timeout > LONGEST_CALL {
        return Err(format!(
            "{field}.timeout is \"{}\", allowed: at most 10m",
            asked.timeout
        ));
    }
    Ok(Hook {
        kind: asked.kind,
        name: name.to_owned(),
        to: web::address(&asked.url).map_err(|why| format!("{field}.url is \"{}\", {why}", asked.url))?,
        timeout,
        retries: asked.retries.min(10),
        metadata: asked.metadata.clone(),
    })
}

fn at_least_a_second(field: &str, text: &str) -> Result<Duration, String> {
    let read = plan::duration(field, text)?;
    if read < LEAST {
        return Err(format!("{field} is \"{text}\", allowed: 1s and longer"));
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn spec(analysis: Value) -> RolloutSpec {
        serde_json::from_value(json!({
            "targetRef": { "name": "web" }, "serviceRef": { "name": "web" }, "analysis": analysis,
        }))
        .expect("a spec")
    }

    #[test]
    fn what_cannot_be_asked_is_named_with_its_place_and_the_fix() {
        let query = |change: Value| {
            let mut prometheus = json!({ "address": "http://p:9090", "query": "up" });
            for (key, value) in change.as_object().into_iter().flatten() {
                prometheus[key] = value.clone();
            }
            json!({ "metrics": [{ "name": "lag", "max": 1, "prometheus": prometheus }] })
        };
        let hook = |change: Value| {
            let mut hook = json!({ "type": "rollout", "url": "http://x" });
            for (key, value) in change.as_object().into_iter().flatten() {
                hook[key] = value.clone();
            }
            json!({ "webhooks": [hook] })
        };
        for (analysis, parts) in [
            (
                json!({ "metrics": [{ "name": "lag", "max": 1 }] }),
                ["metrics[lag] has no prometheus", DURATION],
            ),
            (
                json!({ "metrics": [{ "name": DURATION }] }),
                ["neither min nor max", "say which"],
            ),
            (
                json!({ "metrics": [{ "name": DURATION, "min": 3, "max": 1 }] }),
                ["min 3 above max 1", "no value"],
            ),
            (
                json!({ "metrics": [{ "name": SUCCESS_RATE, "min": 1 }, { "name": SUCCESS_RATE, "min": 2 }] }),
                ["request-success-rate twice", "a name of its own"],
            ),
            (
                query(json!({ "address": "p:9090" })),
                ["metrics[lag].prometheus.address is \"p:9090\"", "http://HOST"],
            ),
            (
                query(json!({ "address": "http://me:pw@p" })),
                ["password", "would not be sent"],
            ),
            (
                query(json!({ "query": "a{{ ingress }}" })),
                ["uses {{ ingress }}", "candidate"],
            ),
            (query(json!({ "query": "a{{ name" })), ["query has a {{", "}}"]),
            (
                query(json!({ "interval": "0s" })),
                ["prometheus.interval is \"0s\"", "1s"],
            ),
            (
                hook(json!({ "url": "ftp://x" })),
                ["webhooks[rollout].url is \"ftp://x\"", "https://"],
            ),
            (hook(json!({ "timeout": "1h" })), ["timeout is \"1h\"", "10m"]),
            (
                json!({ "mode": "Threshold", "outcomes": { "errors": { "slo": "" } } }),
                ["nothing is measured", "list metrics"],
            ),
        ] {
            let error = read(&spec(analysis.clone())).expect_err("it cannot be carried out");
            assert!(
                parts.iter().all(|part| error.contains(part)),
                "{analysis}: {error}"
            );
        }
    }

    #[test]
    fn threshold_without_metrics_measures_the_objectives() {
        let asked = json!({ "mode": "Threshold", "outcomes": { "latency": { "p99": "250ms" } } });
        let read = read(&spec(asked)).expect("it can be carried out");
        let found: Vec<_> = read
            .metrics
            .iter()
            .map(|it| (it.name.as_str(), it.min, it.max))
            .collect();
        assert_eq!(
            found,
            [(SUCCESS_RATE, Some(99.0), None), (DURATION, None, Some(250.0))]
        );
    }

    #[test]
    fn gates_are_where_webhooks_are() {
        let hook = |kind: &str| json!({ "type": kind, "url": "https://x/y" });
        let kinds = ["confirm-promotion", "pre-rollout", "event", "rollback"];
        let read = read(&spec(json!({ "webhooks": kinds.map(hook) }))).expect("it can be carried out");
        assert_eq!(read.gates(), [Gate::First, Gate::Promotion].into());
        assert!(!read.measures());
        assert_eq!(read.hooks[0].timeout, Duration::from_secs(30));
    }
}
