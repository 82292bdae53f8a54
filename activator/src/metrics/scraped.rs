//! Series that are made when they are scraped, from what is counted anyway: nothing is counted twice on the hot path, and a
//! pool's, an attempt's or a Route's series go with it.

use std::sync::Weak;
use std::time::Duration;

use crds::route::FULL_WEIGHT;
use prometheus::core::{Collector, Desc};
use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};

use crate::directory::Directory;
use crate::hub::Hub;
use crate::meter::{TIME_BOUNDS, Times};
use crate::pool::Pool;
use crate::rollout::Attempt;
use crate::route::Target;

/// Reads an activator when it is scraped.
pub(super) struct Scraped {
    hub: Weak<Hub>,
    directory: Weak<Directory>,
    descs: Vec<Desc>,
}

/// Places in [`FAMILIES`].
#[derive(Clone, Copy)]
enum Family {
    Requests,
    InFlight,
    Held,
    Ready,
    Pools,
    Ejected,
    ServiceTime,
    RolloutRequests,
    RolloutBroken,
    RolloutUncounted,
    Weight,
}

const FAMILIES: [(&str, &str, MetricType); 11] = [
    (
        "activator_requests_total",
        "Ended requests that count as use, by outcome",
        MetricType::COUNTER,
    ),
    (
        "activator_requests_in_flight",
        "Requests at pods",
        MetricType::GAUGE,
    ),
    ("activator_requests_held", "Requests that wait", MetricType::GAUGE),
    ("activator_pods_ready", "Pods seen answering", MetricType::GAUGE),
    ("activator_pools", "Pools", MetricType::GAUGE),
    (
        "activator_pods_ejected",
        "Pods passed over for a time because they fail requests",
        MetricType::GAUGE,
    ),
    (
        "activator_service_time_seconds",
        "From dispatch to a pod to its answer's head, of answered requests that have ended; waiting and cold starts are not in it",
        MetricType::HISTOGRAM,
    ),
    (
        "activator_rollout_requests_total",
        "Requests counted in the last attempt of a rollout, by how they were assigned and what they came to",
        MetricType::COUNTER,
    ),
    (
        "activator_rollout_broken",
        "Whether the breaker has taken the candidate of a Route's last attempt out here",
        MetricType::GAUGE,
    ),
    (
        "activator_rollout_uncounted_total",
        "Requests of a Route's last attempt that were not counted, because it has had too many epochs, and those not \
         counted as bad, because an epoch has too many bad sessions",
        MetricType::COUNTER,
    ),
    (
        "activator_route_weight_ratio",
        "The share of a Route's requests that a pool is to get, and whether it is the candidate's",
        MetricType::GAUGE,
    ),
];

/// What is gathered, by family.
#[derive(Default)]
struct Gathered([Vec<Metric>; FAMILIES.len()]);

impl Scraped {
    pub(super) fn new(hub: Weak<Hub>, directory: Weak<Directory>) -> Self {
        let descs = FAMILIES
            .iter()
            .filter_map(|(name, help, _)| {
                Desc::new((*name).into(), (*help).into(), vec![], Default::default()).ok()
            })
            .collect();
        Self {
            hub,
            directory,
            descs,
        }
    }
}

impl Collector for Scraped {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let (Some(hub), Some(directory)) = (self.hub.upgrade(), self.directory.upgrade()) else {
            return Vec::new();
        };
        let mut gathered = Gathered::default();
        let (now, pools) = (hub.now(), directory.pools());
        gathered.put(Family::Pools, pools.len() as f64, &[]);
        for pool in pools {
            gathered.pool(&pool, now);
        }
        for attempt in directory.attempts() {
            gathered.attempt(&attempt);
        }
        for target in directory.targets() {
            gathered.route(&target);
        }
        gathered.families()
    }
}

impl Gathered {
    fn pool(&mut self, pool: &Pool, now: Duration) {
        let sum = pool.sum(now);
        let own = [
            ("namespace", pool.key.namespace.as_str()),
            ("pool", pool.key.pool.as_str()),
        ];
        let ends = &sum.outcomes;
        // A pool that was never used has fewer series to tell about.
        if sum.arrivals > 0 {
            for (outcome, count) in [
                ("ok", ends.ok),
                ("server_error", ends.server_error),
                ("refused", ends.refused),
                ("failed", ends.failed),
                ("cancelled", ends.cancelled),
            ] {
                let labels = [own[0], own[1], ("outcome", outcome)];
                self.put(Family::Requests, count as f64, &labels);
            }
        }
        self.times(&pool.times(), &own);
        self.put(Family::InFlight, f64::from(sum.in_flight), &own);
        self.put(Family::Held, f64::from(sum.held), &own);
        self.put(Family::Ready, pool.ready() as f64, &own);
        self.put(Family::Ejected, pool.ejected() as f64, &own);
    }

    fn times(&mut self, times: &Times, labels: &[(&str, &str)]) {
        let Some((up_to, all, seconds)) = times.cumulative() else {
            return;
        };
        let buckets = TIME_BOUNDS.iter().zip(up_to).map(|(bound, count)| {
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(*bound as f64 / 1e6);
            bucket.set_cumulative_count(count);
            bucket
        });
        let mut histogram = Histogram::default();
        histogram.set_bucket(buckets.collect());
        histogram.set_sample_count(all);
        histogram.set_sample_sum(seconds);
        let mut metric = labelled(labels);
        metric.set_histogram(histogram);
        self.0[Family::ServiceTime as usize].push(metric);
    }

    fn attempt(&mut self, attempt: &Attempt) {
        let own = [
            ("namespace", attempt.route.namespace.as_str()),
            ("route", attempt.route.name.as_str()),
        ];
        for (arm, good, bad) in attempt.sums() {
            for (verdict, count) in [("good", good), ("bad", bad)] {
                let labels = [own[0], own[1], ("arm", arm), ("verdict", verdict)];
                self.put(Family::RolloutRequests, count as f64, &labels);
            }
        }
        let broken = f64::from(u8::from(attempt.is_broken()));
        self.put(Family::RolloutBroken, broken, &own);
        self.put(Family::RolloutUncounted, attempt.uncounted() as f64, &own);
    }

    fn route(&mut self, target: &Target) {
        for (weight, pool) in &target.pools {
            let labels = [
                ("namespace", target.key.namespace.as_str()),
                ("route", target.key.name.as_str()),
                ("pool", pool.key.pool.as_str()),
                ("role", target.role(&pool.key.pool)),
            ];
            let share = f64::from(*weight) / f64::from(FULL_WEIGHT);
            self.put(Family::Weight, share, &labels);
        }
    }

    fn put(&mut self, family: Family, value: f64, labels: &[(&str, &str)]) {
        let mut metric = labelled(labels);
        let (.., kind) = FAMILIES[family as usize];
        if kind == MetricType::COUNTER {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
        self.0[family as usize].push(metric);
    }

    fn families(self) -> Vec<MetricFamily> {
        FAMILIES
            .iter()
            .zip(self.0)
            .filter(|(_, metrics)| !metrics.is_empty())
            .map(|((name, help, kind), metrics)| {
                let mut family = MetricFamily::default();
                family.set_name((*name).to_owned());
                family.set_help((*help).to_owned());
                family.set_field_type(*kind);
                family.set_metric(metrics);
                family
            })
            .collect()
    }
}

fn labelled(labels: &[(&str, &str)]) -> Metric {
    let labels = labels.iter().map(|(name, value)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    });
    Metric::from_label(labels.collect())
}
