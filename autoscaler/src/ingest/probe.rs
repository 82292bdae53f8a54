//! Self-probes: does a Service's own address lead to an activator? The sender's word does not count: the activator that
//! answers says its instance, 128 random bits, and only instances of live streams are believed.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crds::report::{PROBE_MS, ProbeOrder, ProbeResult};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{Endpoint, Fleet};
use crate::state::RouteKey;

/// Longest a self-probe may take.
const PROBE_TIMEOUT: Duration = Duration::from_millis(PROBE_MS);

/// An order on its way to a stream.
#[derive(Debug)]
pub(super) struct Ordered {
    pub(super) order: ProbeOrder,
    pub(super) at: Instant,
}

impl Ordered {
    /// The order as it is sent now; `None`: nobody waits for its answer any more.
    pub(super) fn send(mut self) -> Option<ProbeOrder> {
        let age = self.at.elapsed();
        self.order.age_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        (age < PROBE_TIMEOUT).then_some(self.order)
    }
}

/// The outcome of a self-probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Probe {
    /// A connection to the address landed on a live activator, with the right Route.
    Landed {
        /// The activator that dialled.
        by: String,
        /// The activator that answered.
        on: String,
    },
    /// It did not, or nobody could try; a sentence.
    Missed(String),
}

impl Fleet {
    /// Has a live activator connect to `address` (a Service's `ClusterIP:port`) up to `tries` times.
    ///
    /// # Cancel safety
    /// A dropped probe is forgotten; its answer is ignored.
    pub(crate) async fn probe(&self, route: &RouteKey, address: &str, tries: u32) -> Probe {
        let id = self.next_probe.fetch_add(1, Ordering::Relaxed);
        let order = ProbeOrder {
            id,
            namespace: route.namespace.clone(),
            route: route.name.clone(),
            address: address.to_owned(),
            tries,
            age_ms: 0,
        };
        let (by, answer) = match self.order(order) {
            Ok(ordered) => ordered,
            Err(why) => return Probe::Missed(why.to_owned()),
        };
        let result = tokio::time::timeout(PROBE_TIMEOUT, answer).await;
        let mut state = self.state.lock();
        state.probes.remove(&id);
        let outcome = match result {
            Ok(Ok(ProbeResult {
                landed: Some(instance),
                ..
            })) => {
                let on = state
                    .streams
                    .values()
                    .find(|stream| stream.live.instance == instance);
                match on {
                    Some(on) => Probe::Landed {
                        by,
                        on: on.live.name.clone(),
                    },
                    None => Probe::Missed(format!("{by} landed on an activator that has no live stream")),
                }
            }
            Ok(Ok(result)) => Probe::Missed(format!("{by} dialled {address}: {}", result.error)),
            Ok(Err(_)) => Probe::Missed(format!("the stream of {by} broke during the probe")),
            Err(_) => Probe::Missed(format!(
                "{by} did not answer within {} s",
                PROBE_TIMEOUT.as_secs()
            )),
        };
        self.metrics.self_probe(matches!(outcome, Probe::Landed { .. }));
        outcome
    }

    /// Gives an order to the next serving activator, in turn.
    fn order(&self, order: ProbeOrder) -> Result<(String, oneshot::Receiver<ProbeResult>), &'static str> {
        let mut state = self.state.lock();
        let serving: Vec<Endpoint> = state
            .streams
            .iter()
            .filter(|(_, stream)| stream.live.serving)
            .map(|(endpoint, _)| endpoint.clone())
            .collect();
        if serving.is_empty() {
            return Err("no activator is live");
        }
        state.last_prober = (state.last_prober + 1) % serving.len();
        let endpoint = serving[state.last_prober].clone();
        let Some(stream) = state.streams.get(&endpoint) else {
            return Err("no activator is live");
        };
        let name = stream.live.name.clone();
        let id = order.id;
        let at = Instant::now();
        if stream.orders.try_send(Ordered { order, at }).is_err() {
            return Err("too many self-probes wait for the activator's stream");
        }
        let (answer, receiver) = oneshot::channel();
        state.probes.insert(id, (endpoint, answer));
        Ok((name, receiver))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_order_that_nobody_waits_for_is_not_sent() {
        for (waited, sent) in [(0, Some(0)), (9_999, Some(9_999)), (10_000, None), (60_000, None)] {
            let ordered = Ordered {
                order: ProbeOrder::default(),
                at: Instant::now(),
            };
            tokio::time::advance(Duration::from_millis(waited)).await;
            assert_eq!(ordered.send().map(|order| order.age_ms), sent, "{waited}");
        }
    }
}
