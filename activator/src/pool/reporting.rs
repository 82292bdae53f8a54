//! A pool as report lines, metrics and the state dump tell of it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crds::report::PoolReport;

use super::Pool;
use crate::meter::{Meter, Times};

impl Pool {
    /// The pool's counters changed. Cheap when the next line carries it anyway.
    pub(crate) fn touch(self: &Arc<Self>, urgent: bool) {
        let is_new = !self.is_dirty.load(Ordering::Relaxed) && !self.is_dirty.swap(true, Ordering::AcqRel);
        if is_new || urgent {
            self.hub.changed(is_new.then_some(self), urgent);
        }
    }

    /// All workers' counters together.
    pub(crate) fn sum(&self, now: Duration) -> Meter {
        self.tallies.iter().fold(Meter::default(), |sum, tally| {
            let meter = tally.lock().meter;
            // An event of this very moment may be a little later than `now`.
            meter.plus(sum, now)
        })
    }

    /// All workers' service times together.
    pub(crate) fn times(&self) -> Times {
        let mut times = Times::default();
        for tally in &self.tallies {
            times.add(&tally.lock().times);
        }
        times
    }

    /// The pool's part of a report line. With `take`, finished wakes go with it, and the pool counts as unchanged.
    pub(crate) fn report(&self, now: Duration, take: bool) -> PoolReport {
        if take {
            // Before the counters are read: what changes after is reported again.
            self.is_dirty.store(false, Ordering::Release);
        }
        let sum = self.sum(now);
        let mut state = self.state.lock();
        PoolReport {
            namespace: self.key.namespace.clone(),
            pool: self.key.pool.clone(),
            arrivals: sum.arrivals,
            completions: sum.outcomes,
            in_flight_seconds: sum.in_flight_seconds,
            held_seconds: sum.held_seconds,
            service_seconds: sum.service_seconds,
            in_flight: sum.in_flight,
            held: sum.held,
            ready: u32::try_from(self.view.load().ready).unwrap_or(u32::MAX),
            oldest_held_us: state.throttle.oldest().map_or(0, |since| {
                u64::try_from(now.saturating_sub(since).as_micros())
                    .unwrap_or(u64::MAX)
                    .max(1)
            }),
            idle_ms: sum
                .last_use
                .map(|at| u64::try_from(now.saturating_sub(at).as_millis()).unwrap_or(u64::MAX)),
            wakes: if take {
                std::mem::take(&mut state.wakes)
            } else {
                Vec::new()
            },
        }
    }

    /// Requests in flight at pods that belong to another activator by the epoch in force.
    pub(crate) fn foreign(&self) -> u32 {
        if self.view.load().limit == 0 {
            return 0;
        }
        let state = self.state.lock();
        self.hub.shares(|shares| {
            let foreign = state
                .pods
                .values()
                .filter(|pod| !shares.is_mine_now(pod.endpoint.address));
            foreign
                .map(|pod| pod.endpoint.in_flight.load(Ordering::Acquire))
                .sum()
        })
    }

    /// Everything, for the state dump.
    pub(crate) fn dump(&self) -> serde_json::Value {
        let now = self.hub.now();
        let report = self.report(now, false);
        let settings = self.settings();
        let state = self.state.lock();
        let pods: Vec<_> = state
            .pods
            .iter()
            .map(|(address, pod)| {
                serde_json::json!({
                    "address": address,
                    "ports": pod.published.ports,
                    "usable": pod.is_usable(),
                    "serving": pod.published.serving,
                    "terminating": pod.published.terminating,
                    "answers": pod.answers,
                    "onProbation": pod.on_probation,
                    "ejectedMs": pod.ejected_until.map(|until| millis(until.saturating_sub(now))),
                    "failures": pod.record.strikes,
                    "probed": pod.is_probed,
                    "mine": self.hub.shares(|shares| shares.may_use(*address)),
                    "inFlight": pod.endpoint.in_flight.load(Ordering::Relaxed),
                })
            })
            .collect();
        serde_json::json!({
            "workload": settings.workload.to_string(),
            "service": settings.service,
            "containerConcurrency": settings.limit,
            "queueLimit": settings.queue_limit,
            "waking": state.waking.is_some(),
            "acknowledged": state.acknowledged.is_some(),
            "pods": pods,
            "counters": report,
        })
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
