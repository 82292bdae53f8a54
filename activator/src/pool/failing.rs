//! Pods that fail requests: passed over, and taken back.

use std::sync::Arc;
use std::time::Duration;

use super::outlier::{self, Failure, RESETS};
use super::{Endpoint, Pool};

impl Pool {
    /// A request to the pod failed. One that fails too much gets no more until its time has passed and it answers a probe.
    pub(crate) fn failed(self: &Arc<Self>, endpoint: &Arc<Endpoint>, failure: Failure) {
        if failure == Failure::Reset && endpoint.was_reset() < RESETS {
            return;
        }
        let now = self.hub.now();
        let mut state = self.state.lock();
        let there = state.pods.values().filter(|pod| !pod.published.terminating);
        let (mut pods, mut out) = (0, 0);
        for pod in there {
            pods += 1;
            out += usize::from(pod.is_ejected());
        }
        let Some(pod) = state.pod_of(endpoint) else {
            return;
        };
        if pod.published.terminating || pod.on_probation || pod.is_ejected() {
            return;
        }
        let metrics = &self.hub.metrics;
        let mut time = pod.record.strike(now, failure);
        if !time.is_zero() && !outlier::may_eject(out, pods) {
            metrics.ejections_withheld.inc();
            if failure == Failure::Reset {
                tracing::debug!(pool = %self.key, address = %endpoint.address, out, pods, "a pod fails, and is one of too many");
                endpoint.answered();
                return;
            }
            time = Duration::ZERO;
        }
        endpoint.answered();
        pod.answers = false;
        pod.on_probation = true;
        let strikes = pod.record.strikes;
        let cause = failure.label();
        metrics.ejections.with_label_values(&[cause]).inc();
        if time.is_zero() {
            tracing::info!(pool = %self.key, address = %endpoint.address, cause, "a pod is passed over until it answers a probe");
        } else {
            pod.ejected_until = Some(now + time);
            let seconds = time.as_secs();
            tracing::warn!(pool = %self.key, address = %endpoint.address, cause, strikes, seconds, "a pod fails and is passed over");
            let (pool, endpoint) = (Arc::downgrade(self), Arc::downgrade(endpoint));
            self.hub.control.spawn(async move {
                tokio::time::sleep(time).await;
                if let (Some(pool), Some(endpoint)) = (pool.upgrade(), endpoint.upgrade()) {
                    pool.take_back(&endpoint);
                }
            });
        }
        self.refresh(&mut state);
        drop(state);
        self.touch(true);
    }

    /// The pod's time has passed: it is used again once it answers a probe.
    fn take_back(self: &Arc<Self>, endpoint: &Arc<Endpoint>) {
        let mut state = self.state.lock();
        let Some(pod) = state.pod_of(endpoint) else {
            return;
        };
        pod.ejected_until = None;
        self.refresh(&mut state);
    }
}
