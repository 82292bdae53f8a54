//! How a request gets a place at a pod, and gives it back.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::oneshot;

use super::{Endpoint, Pool, State, View};
use crate::balance;
use crate::throttle::{Admit, Kind, Ticket};
use crate::wake::WakeClock;

/// The answer to [`Pool::enter`].
pub(crate) enum Enter {
    /// Go on.
    Granted(Slot),
    /// Wait.
    Queued(Held),
    /// Too many wait.
    Full,
}

/// A place that has been taken and belongs to nobody yet.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) endpoint: Arc<Endpoint>,
    /// The number under which a peer keeps it.
    pub(super) ticket: Option<u64>,
}

impl Pool {
    /// A request asks for a place. `who` describes it, should it be the one that wakes the pool; noise wakes nothing.
    /// A pod to `avoid`, where it has just failed, is taken only when there is no other.
    pub(crate) fn enter(
        self: &Arc<Self>,
        kind: Kind,
        now: Duration,
        random: &mut impl FnMut(u32) -> u32,
        avoid: Option<&Endpoint>,
        who: Option<impl FnOnce() -> String>,
    ) -> Enter {
        let view = self.view.load();
        if view.limit == 0 && self.held() == 0 {
            // The view may be a moment old; a pod that has just gone refuses and the request comes back.
            if let Some(place) = place(&view, avoid, random) {
                return Enter::Granted(self.slot(place));
            }
        }
        let mut state = self.state.lock();
        let view = self.view.load();
        let limit = self.settings.load().queue_limit as usize;
        let (ticket, line) = match state
            .throttle
            .admit(now, kind, limit, || place(&view, avoid, random))
        {
            Admit::Granted(place) => return Enter::Granted(self.slot(place)),
            Admit::Full => return Enter::Full,
            Admit::Queued(ticket, line) => (ticket, line),
        };
        self.count_held(&state);
        self.start_probes(&mut state);
        self.ask_peers(&mut state);
        let wakes = match who {
            Some(who) if view.ready == 0 && state.waking.is_none() => {
                let at = k8s_openapi::jiff::Timestamp::now();
                let mut clock = WakeClock::new(now, at, who());
                if state.pods.values().any(|pod| !pod.published.terminating) {
                    clock.address(now);
                }
                state.waking = Some(clock);
                state.acknowledged = None;
                true
            }
            _ => false,
        };
        drop(state);
        if wakes {
            self.hub.control.spawn(crate::cluster::wake_unless_acknowledged(
                Arc::clone(self),
                Arc::clone(&self.hub),
            ));
        }
        Enter::Queued(Held {
            pool: Arc::clone(self),
            ticket,
            line,
            wakes,
            has_ended: false,
        })
    }

    pub(super) fn slot(self: &Arc<Self>, place: Place) -> Slot {
        Slot {
            pool: Arc::clone(self),
            endpoint: place.endpoint,
            ticket: place.ticket,
        }
    }

    pub(super) fn count_held(&self, state: &State) {
        let held = u32::try_from(state.throttle.waiting()).unwrap_or(u32::MAX);
        self.held.store(held, Ordering::Release);
    }

    /// Gives out every place that is free, in order of arrival, and asks peers for those who still wait.
    pub(super) fn dispatch(self: &Arc<Self>, state: &mut State) {
        let view = self.view.load();
        let mut random = |below: u32| fastrand::u32(..below);
        state.throttle.dispatch(
            || place(&view, None, &mut random),
            |place| {
                place.endpoint.in_flight.fetch_sub(1, Ordering::AcqRel);
            },
        );
        self.count_held(state);
        self.ask_peers(state);
    }

    pub(super) fn release(self: &Arc<Self>, endpoint: &Endpoint) {
        endpoint.in_flight.fetch_sub(1, Ordering::AcqRel);
        if self.view.load().limit > 0 || self.held() > 0 {
            self.dispatch(&mut self.state.lock());
        }
    }
}

/// Finds a place at a pod of ours and takes it: at the one to `avoid` only when it is the only one.
pub(super) fn place(
    view: &View,
    avoid: Option<&Endpoint>,
    random: &mut impl FnMut(u32) -> u32,
) -> Option<Place> {
    let load = |endpoint: &Endpoint| match avoid {
        // With a limit this is beyond it: then the request waits, and takes what comes.
        Some(avoid) if std::ptr::eq(avoid, endpoint) && view.pods.len() > 1 => u32::MAX,
        _ => endpoint.in_flight.load(Ordering::Acquire),
    };
    let endpoint = if let [only] = view.pods.as_slice() {
        (view.limit == 0 || load(only) < view.limit).then_some(only)?
    } else {
        &view.pods[balance::pick(view.pods.iter().map(|pod| load(pod)), view.limit, random)?]
    };
    endpoint.in_flight.fetch_add(1, Ordering::AcqRel);
    Some(Place {
        endpoint: Arc::clone(endpoint),
        ticket: None,
    })
}

/// A place at a pod or a peer; dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Slot {
    pool: Arc<Pool>,
    pub(crate) endpoint: Arc<Endpoint>,
    /// The number under which a peer keeps it.
    pub(crate) ticket: Option<u64>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.pool.release(&self.endpoint);
    }
}

/// A place in line; dropping it leaves the line.
#[derive(Debug)]
pub(crate) struct Held {
    pool: Arc<Pool>,
    ticket: Ticket,
    line: oneshot::Receiver<Place>,
    /// Whether this request began a wake.
    pub(crate) wakes: bool,
    has_ended: bool,
}

impl Held {
    /// Waits for a place.
    ///
    /// # Cancel safety
    /// May be called again; a place that came meanwhile is not lost.
    pub(crate) async fn place(&mut self) -> Slot {
        match (&mut self.line).await {
            Ok(place) => {
                self.has_ended = true;
                self.pool.slot(place)
            }
            // The sender is dropped only with the pool, which this guard keeps alive.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.has_ended {
            return;
        }
        let mut state = self.pool.state.lock();
        state.throttle.leave(self.ticket);
        self.pool.count_held(&state);
        self.pool.ask_peers(&mut state);
        if state.throttle.waiting() == 0 && self.pool.view.load().ready == 0 {
            // Everybody has gone: what wakes now is not a cold start that anybody waits for.
            state.waking = None;
        }
        drop(state);
        // A place may have been given in the meantime.
        self.line.close();
        if let Ok(place) = self.line.try_recv() {
            drop(self.pool.slot(place));
        }
    }
}
