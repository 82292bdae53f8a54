//! Places at pods that other activators own.
//!
//! While requests wait here, each peer is asked for a place for each of them, but never for more than its pods have. What
//! comes first is used, be it a place of our own or a peer's; what is too much is given back. So no pod of the pool stays
//! idle while a request waits at any activator, whoever has the traffic; and because a pod's owner alone gives its places
//! out, never more than the limit are in it.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::task::AbortHandle;

use super::entering::Place;
use super::{Endpoint, Pool, Slot, State};
use crate::forward;
use crate::places::{KEPT, Word};

/// How long a peer that gave no answer is not asked again.
const PAUSE: Duration = Duration::from_millis(50);

/// A place asked for at a peer. It holds one of the peer's places as we count them.
#[derive(Debug)]
pub(super) struct Ask {
    id: u64,
    peer: IpAddr,
    task: AbortHandle,
}

impl Pool {
    /// The peer activator of that name as this pool sees it: its load counts this pool's requests and asks alone.
    pub(super) fn peer(
        &self,
        peers: &mut std::collections::BTreeMap<IpAddr, Arc<Endpoint>>,
        name: &str,
    ) -> Option<Arc<Endpoint>> {
        let address = self.hub.peer(name)?;
        let peer = || Arc::new(Endpoint::peer(address, self.hub.config.workers));
        Some(Arc::clone(peers.entry(address).or_insert_with(peer)))
    }

    /// Asks peers for as many places as requests wait for one, and gives up asking for more.
    pub(super) fn ask_peers(self: &Arc<Self>, state: &mut State) {
        let view = self.view.load();
        if view.peers.is_empty() && state.asks.is_empty() {
            return;
        }
        let waiting = state.throttle.clients();
        let mut wanted: Vec<(IpAddr, usize)> = Vec::with_capacity(view.peers.len());
        for (peer, pods) in &view.peers {
            let open = state.asks.iter().filter(|ask| ask.peer == peer.address).count();
            let under_way = (peer.in_flight.load(Ordering::Acquire) as usize).saturating_sub(open);
            let places = pods.saturating_mul(view.limit) as usize;
            let want = waiting.min(places.saturating_sub(under_way));
            wanted.push((peer.address, want));
            let Some(door) = view.door else { continue };
            for _ in open..want {
                self.ask(state, peer, door);
            }
        }
        state.asks.retain(|ask| {
            let left = wanted.iter_mut().find(|(peer, _)| *peer == ask.peer);
            match left {
                Some((_, left)) if *left > 0 => {
                    *left -= 1;
                    true
                }
                // Its connection closes with it, and the peer gives up the place in line.
                _ => {
                    ask.task.abort();
                    false
                }
            }
        });
    }

    fn ask(self: &Arc<Self>, state: &mut State, peer: &Arc<Endpoint>, door: u16) {
        peer.in_flight.fetch_add(1, Ordering::AcqRel);
        let slot = self.slot(Place {
            endpoint: Arc::clone(peer),
            ticket: None,
        });
        let id = fastrand::u64(..);
        let pool = Arc::clone(self);
        let asking = async move {
            match forward::say(&pool.hub, &slot.endpoint, door, &pool.key.pool, Word::Ask).await {
                Some(Some(ticket)) => pool.has_place(id, slot, ticket, door).await,
                _ => {
                    tokio::time::sleep(PAUSE).await;
                    pool.state.lock().asks.retain(|ask| ask.id != id);
                    // Dropping it asks again, if anybody still waits.
                    drop(slot);
                }
            }
        };
        state.asks.push(Ask {
            id,
            peer: peer.address,
            task: self.hub.control.spawn(asking).abort_handle(),
        });
    }

    /// A peer keeps a place for us: whoever has waited longest gets it.
    async fn has_place(self: &Arc<Self>, id: u64, slot: Slot, ticket: u64, door: u16) {
        let unused = {
            let mut state = self.state.lock();
            state.asks.retain(|ask| ask.id != id);
            slot.endpoint.in_flight.fetch_add(1, Ordering::AcqRel);
            let place = Place {
                endpoint: Arc::clone(&slot.endpoint),
                ticket: Some(ticket),
            };
            let unused = state.throttle.give(place).err();
            self.count_held(&state);
            unused
        };
        if let Some(place) = unused {
            place.endpoint.in_flight.fetch_sub(1, Ordering::AcqRel);
            forward::say(
                &self.hub,
                &slot.endpoint,
                door,
                &self.key.pool,
                Word::Give(ticket),
            )
            .await;
        }
    }

    /// Keeps a place for a peer that asked, for a while. Returns its number.
    pub(crate) fn keep(self: &Arc<Self>, slot: Slot) -> u64 {
        let number = fastrand::u64(..);
        self.state.lock().kept.insert(number, slot);
        let pool = Arc::clone(self);
        self.hub.control.spawn(async move {
            tokio::time::sleep(KEPT).await;
            if pool.take(number).is_some() {
                pool.hub.metrics.places_lapsed.inc();
            }
        });
        number
    }

    /// The place that is kept under that number.
    pub(crate) fn take(&self, number: u64) -> Option<Slot> {
        self.state.lock().kept.remove(&number)
    }
}
