//! The metrics of the autoscaler, but for those of calls to others, which are in `cluster` and `rollout::outside`. Label sets are
//! closed: reasons and results come from enums, never from users.

use std::sync::Arc;

use prometheus::{
    Encoder, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

/// From half a millisecond, where an idle machine is, to the second after which activators help themselves.
const FIRST_BYTE_TO_SCALE: &[f64] = &[
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0,
];

/// All series, registered once; handles are shared.
pub(crate) struct Metrics {
    registry: Registry,
    /// Report streams that are live.
    pub(crate) streams_live: IntGauge,
    /// Report lines read.
    pub(crate) lines: IntCounter,
    /// Report lines that were malformed or too long; each reset its stream.
    pub(crate) lines_malformed: IntCounter,
    /// The membership epoch.
    pub(crate) epoch: IntGauge,
    /// 1 while this process leads.
    pub(crate) leader: IntGauge,
    /// First byte accepted by an activator to `/scale` request sent.
    pub(crate) first_byte_to_scale: Histogram,
    /// Wakes that waited because as many `/scale` writes as allowed were under way.
    pub(crate) scale_queued: IntCounter,
    self_probes: IntCounterVec,
    decisions: IntCounterVec,
    scale_writes: IntCounterVec,
    status_writes: IntCounterVec,
    phases: IntGaugeVec,
}

impl Metrics {
    /// Registers everything.
    pub(crate) fn new() -> Arc<Self> {
        let registry = Registry::new();
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(format!("autoscaler_{name}"), help).expect("a valid metric name");
            registry
                .register(Box::new(counter.clone()))
                .expect("each metric is registered once");
            counter
        };
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(format!("autoscaler_{name}"), help).expect("a valid metric name");
            registry
                .register(Box::new(gauge.clone()))
                .expect("each metric is registered once");
            gauge
        };
        let counters = |name: &str, help: &str, label: &str| {
            let options = Opts::new(format!("autoscaler_{name}"), help);
            let counters = IntCounterVec::new(options, &[label]).expect("a valid metric name");
            registry
                .register(Box::new(counters.clone()))
                .expect("each metric is registered once");
            counters
        };
        let options = Opts::new("autoscaler_pools", "Opted-in Services by phase.");
        let phases = IntGaugeVec::new(options, &["phase"]).expect("a valid metric name");
        registry
            .register(Box::new(phases.clone()))
            .expect("each metric is registered once");
        let options = HistogramOpts::new(
            "autoscaler_first_byte_to_scale_seconds",
            "First byte accepted by an activator to /scale request sent, by both processes together.",
        );
        let first_byte_to_scale =
            Histogram::with_opts(options.buckets(FIRST_BYTE_TO_SCALE.to_vec())).expect("a valid metric name");
        registry
            .register(Box::new(first_byte_to_scale.clone()))
            .expect("each metric is registered once");
        Arc::new(Self {
            streams_live: gauge("streams_live", "Report streams that are live."),
            lines: counter("report_lines_total", "Report lines read."),
            lines_malformed: counter(
                "report_lines_malformed_total",
                "Report lines that were malformed or too long; each reset its stream.",
            ),
            epoch: gauge(
                "membership_epoch",
                "The epoch by which activators divide limited pools.",
            ),
            leader: gauge("leader", "1 while this process leads."),
            first_byte_to_scale,
            scale_queued: counter(
                "scale_writes_queued_total",
                "Replica changes that waited because as many writes as allowed were under way.",
            ),
            self_probes: counters("self_probes_total", "Self-probes by result.", "result"),
            decisions: counters("scale_decisions_total", "Replica changes by reason.", "reason"),
            scale_writes: counters("scale_writes_total", "Writes of /scale by result.", "result"),
            status_writes: counters(
                "status_writes_total",
                "Writes of Route status by result.",
                "result",
            ),
            phases,
            registry,
        })
    }

    /// Counts a self-probe.
    pub(crate) fn self_probe(&self, landed: bool) {
        self.self_probes
            .with_label_values(&[if landed { "landed" } else { "missed" }])
            .inc();
    }

    /// Counts a replica change.
    pub(crate) fn decision(&self, reason: &str) {
        self.decisions.with_label_values(&[reason]).inc();
    }

    /// Counts a write of `/scale`.
    pub(crate) fn scale_write(&self, result: &str) {
        self.scale_writes.with_label_values(&[result]).inc();
    }

    /// Counts a write of a Route's status.
    pub(crate) fn status_write(&self, ok: bool) {
        self.status_writes
            .with_label_values(&[if ok { "ok" } else { "failed" }])
            .inc();
    }

    /// Shows how many Services are in each phase.
    pub(crate) fn show_phases(&self, phases: &std::collections::BTreeMap<String, i64>) {
        for (phase, count) in phases {
            self.phases.with_label_values(&[phase.as_str()]).set(*count);
        }
    }

    /// A registry to which other modules add their own series.
    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }

    /// All series in Prometheus' text format.
    pub(crate) fn text(&self) -> Vec<u8> {
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::warn!(%error, "metrics");
        }
        text
    }
}
