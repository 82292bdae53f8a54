//! Self-probes: does a Service's own address lead to an activator? The sender's word does not count: the activator that
//! answers says its instance, 128 random bits, and only instances of live streams are believed.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crds::report::{ProbeOrder, ProbeResult};
use tokio::sync::oneshot;

use super::{Endpoint, Fleet};
use crate::state::RouteKey;

/// Longest a self-probe may take: its tries are short connections within the cluster.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

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
        if stream.orders.try_send(order).is_err() {
            return Err("too many self-probes wait for the activator's stream");
        }
        let (answer, receiver) = oneshot::channel();
        state.probes.insert(id, (endpoint, answer));
        Ok((name, receiver))
    }
}
