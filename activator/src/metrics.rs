//! Metrics. Labels come from closed sets, plus namespace, pool and Route, and the series of these go with them.

mod scraped;

use std::sync::Arc;

use prometheus::core::Collector;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder,
};

use crate::directory::Directory;
use crate::hub::Hub;
use crate::wake::Parts;
use scraped::Scraped;

/// From what a wake signal takes (milliseconds) to what a slow image takes (a minute).
const COLD: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0,
];
/// Around the budget of 15 ms.
const ANSWERING: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25, 1.0,
];
/// Around the budget of 5 ms.
const SIGNAL: &[f64] = &[
    0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5,
];

/// All metrics of one activator, in a registry of its own.
pub(crate) struct Metrics {
    registry: Registry,
    pub(crate) cold_start: HistogramVec,
    pub(crate) answering: Histogram,
    pub(crate) line_written: Histogram,
    pub(crate) rejections: IntCounterVec,
    pub(crate) faults: IntCounterVec,
    pub(crate) h2_faults: IntCounterVec,
    pub(crate) retries: IntCounterVec,
    pub(crate) aborts: IntCounterVec,
    pub(crate) ejections: IntCounterVec,
    pub(crate) ejections_withheld: IntCounter,
    pub(crate) noise: IntCounter,
    pub(crate) waiting_pages: IntCounter,
    pub(crate) waiting_page_errors: IntCounter,
    pub(crate) waiting_pages_unread: IntCounter,
    pub(crate) places_lapsed: IntCounter,
    pub(crate) connections: IntCounter,
    pub(crate) accept_errors: IntCounter,
    pub(crate) unused: IntCounter,
    pub(crate) tasks: IntGauge,
    pub(crate) probes: IntCounterVec,
    pub(crate) own_wakes: IntCounterVec,
    pub(crate) report_lines: IntCounter,
    pub(crate) report_streams: IntGauge,
    pub(crate) report_refused: IntCounterVec,
    pub(crate) report_lagged: IntCounter,
    pub(crate) watch_errors: IntCounterVec,
    pub(crate) pools_forgotten: IntCounter,
    pub(crate) self_probes_stale: IntCounter,
    pub(crate) breaker_trips: IntCounter,
    pub(crate) mirrored: IntCounterVec,
    pub(crate) synthetic: IntCounterVec,
}

impl Metrics {
    /// Registers everything.
    pub(crate) fn new() -> Self {
        let registry = Registry::new();
        let cold = histogram(
            "activator_cold_start_seconds",
            "Parts of finished wakes, by phase",
            COLD,
        );
        let answering = histogram(
            "activator_pod_answering_to_response_seconds",
            "From the last failed probe of a waking pod to the first response head: an upper bound of what a pod that \
             answers waited for the activator",
            ANSWERING,
        );
        let line = histogram(
            "activator_wake_to_report_line_seconds",
            "From the arrival of the request that wakes a pool to the report line that says so",
            SIGNAL,
        );
        let cold_start = own(&registry, HistogramVec::new(cold, &["phase"]));
        let answering = own(&registry, Histogram::with_opts(answering));
        let line_written = own(&registry, Histogram::with_opts(line));
        let counters = |name: &str, help: &str, label: &str| {
            own(&registry, IntCounterVec::new(Opts::new(name, help), &[label]))
        };
        let counter = |name: &str, help: &str| own(&registry, IntCounter::new(name, help));
        Self {
            cold_start,
            answering,
            line_written,
            rejections: counters("activator_rejections_total", "Refused requests, by kind", "kind"),
            faults: counters(
                "activator_faults_total",
                "HTTP/1.1 connections closed for a malformed or ambiguous message, by fault",
                "fault",
            ),
            h2_faults: counters(
                "activator_h2_faults_total",
                "HTTP/2 connections ended for what their clients did, and header lists refused, by cause",
                "cause",
            ),
            retries: counters(
                "activator_retries_total",
                "Requests sent again, by what failed",
                "kind",
            ),
            aborts: counters(
                "activator_streams_aborted_total",
                "Answers and streams broken off in the middle, by the limit that passed",
                "limit",
            ),
            ejections: counters(
                "activator_pod_ejections_total",
                "Times a pod was passed over because it failed requests, by how",
                "cause",
            ),
            ejections_withheld: counter(
                "activator_pod_ejections_withheld_total",
                "Times a pod that failed requests was not passed over for a time, because half of its pool is already",
            ),
            noise: counter(
                "activator_noise_answered_total",
                "Probes and scrapes answered for sleeping pools",
            ),
            waiting_pages: counter(
                "activator_waiting_pages_total",
                "Waiting pages sent to browsers that opened a sleeping Service",
            ),
            waiting_page_errors: counter(
                "activator_waiting_page_errors_total",
                "Readings of a waiting page's ConfigMap that could not be used",
            ),
            waiting_pages_unread: counter(
                "activator_waiting_pages_unread_total",
                "Times a waiting page's ConfigMap was not read, because Routes name more of them than are kept",
            ),
            places_lapsed: counter(
                "activator_places_lapsed_total",
                "Places kept for a peer activator that neither took nor gave them back in time",
            ),
            connections: counter("activator_connections_total", "Accepted client connections"),
            accept_errors: counter(
                "activator_accept_errors_total",
                "Connections that could not be accepted",
            ),
            unused: counter(
                "activator_unused_connections_total",
                "Connections to pods that were closed because nobody had used them for half a minute",
            ),
            tasks: own(
                &registry,
                IntGauge::new(
                    "activator_tasks",
                    "Async tasks that have not ended, of all threads",
                ),
            ),
            probes: counters(
                "activator_pod_probes_total",
                "Readiness probes of pods, by result",
                "result",
            ),
            own_wakes: counters(
                "activator_own_wakes_total",
                "Tries to raise /scale because no autoscaler acknowledged, by result",
                "result",
            ),
            report_lines: counter("activator_report_lines_total", "Report lines written"),
            report_streams: own(
                &registry,
                IntGauge::new("activator_report_streams", "Open report streams"),
            ),
            report_refused: counters(
                "activator_report_refused_total",
                "Refused report streams, by reason",
                "reason",
            ),
            report_lagged: counter(
                "activator_report_lagged_total",
                "Times a report stream was too slow and got a snapshot instead of what it missed",
            ),
            watch_errors: counters(
                "activator_watch_errors_total",
                "Errors of watches, by kind of object",
                "kind",
            ),
            pools_forgotten: counter(
                "activator_pools_forgotten_total",
                "Pools without a Route whose counters begin anew should they come back, because more went after them than \
                 are kept",
            ),
            self_probes_stale: counter(
                "activator_self_probes_stale_total",
                "Orders of self-probes that were not carried out, because nobody waits for the answer after ten seconds",
            ),
            breaker_trips: counter(
                "activator_rollout_breaker_trips_total",
                "Times a candidate was taken out here, because it was overwhelmingly worse than the stable pool",
            ),
            mirrored: counters(
                "activator_mirrored_requests_total",
                "Copies of requests to candidates, by what became of them: sent, given up after that, or not made because \
                 the candidate has no ready pod or too many are under way",
                "result",
            ),
            synthetic: counters(
                "activator_synthetic_requests_total",
                "Requests of our own to candidates: sent, or not sent because the candidate has no ready pod (asleep), none of \
                 its pods that this activator may use has room (busy), too many are under way, or no port of the Route speaks \
                 HTTP (nowhere)",
                "result",
            ),
            registry,
        }
    }

    /// Adds the series that are read from pools, attempts and Routes.
    pub(crate) fn observe(&self, hub: &Arc<Hub>, directory: &Arc<Directory>) {
        let scraped = Scraped::new(Arc::downgrade(hub), Arc::downgrade(directory));
        drop(self.registry.register(Box::new(scraped)));
    }

    /// A wake has finished.
    pub(crate) fn wake(&self, parts: &Parts) {
        let phases = [
            ("signal", parts.signal),
            ("address", parts.address),
            ("listening", Some(parts.listening)),
            ("forward", Some(parts.forward)),
            ("total", Some(parts.total)),
        ];
        for (phase, duration) in phases {
            if let Some(duration) = duration {
                self.cold_start
                    .with_label_values(&[phase])
                    .observe(duration.as_secs_f64());
            }
        }
        self.answering.observe(parts.answering_to_response.as_secs_f64());
    }

    /// The exposition format.
    pub(crate) fn text(&self) -> String {
        TextEncoder::new()
            .encode_to_string(&self.registry.gather())
            .unwrap_or_default()
    }
}

fn histogram(name: &str, help: &str, buckets: &[f64]) -> HistogramOpts {
    HistogramOpts::new(name, help).buckets(buckets.to_vec())
}

/// Registers a metric. Names are constants of this file, so they are valid and unique.
fn own<M: Collector + Clone + 'static>(registry: &Registry, metric: prometheus::Result<M>) -> M {
    let metric = metric.expect("a metric's name and labels are valid constants");
    registry
        .register(Box::new(metric.clone()))
        .expect("a metric's name is used once");
    metric
}
