//! Which Service is looked at when.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::{AT_ONCE, Activators, Capture, Unit};
use crate::lease::Leadership;
use crate::state::RouteKey;

/// Every Service that is known, in one of three places: asleep in `units`, waiting in `queue`, or being looked at.
#[derive(Default)]
struct Schedule {
    units: HashMap<RouteKey, Unit>,
    queue: VecDeque<RouteKey>,
    queued: HashSet<RouteKey>,
    running: HashSet<RouteKey>,
    /// Marked again while being looked at.
    again: HashSet<RouteKey>,
    timers: BTreeSet<(Instant, RouteKey)>,
    due: HashMap<RouteKey, Instant>,
}

impl Schedule {
    fn mark(&mut self, key: RouteKey) {
        if self.running.contains(&key) {
            self.again.insert(key);
        } else if self.queued.insert(key.clone()) {
            self.queue.push_back(key);
        }
    }

    fn next(&mut self) -> Option<(RouteKey, Unit)> {
        let key = self.queue.pop_front()?;
        self.queued.remove(&key);
        self.running.insert(key.clone());
        self.timer(&key, None);
        let unit = self.units.remove(&key).unwrap_or_default();
        Some((key, unit))
    }

    fn timer(&mut self, key: &RouteKey, at: Option<Instant>) {
        if let Some(old) = self.due.remove(key) {
            self.timers.remove(&(old, key.clone()));
        }
        if let Some(at) = at {
            self.due.insert(key.clone(), at);
            self.timers.insert((at, key.clone()));
        }
    }

    fn looked(&mut self, key: RouteKey, unit: Option<Unit>, wake: Option<Instant>) {
        self.running.remove(&key);
        self.timer(&key, wake);
        if let Some(unit) = unit {
            self.units.insert(key.clone(), unit);
        }
        if self.again.remove(&key) {
            self.mark(key);
        }
    }

    fn ring(&mut self, now: Instant) {
        while let Some((at, key)) = self.timers.first().cloned() {
            if at > now {
                break;
            }
            self.timer(&key, None);
            self.mark(key);
        }
    }
}

impl<A: Activators> Capture<A> {
    /// Captures and gives back, while this process leads, until `stop`; then the looks under way end.
    pub(crate) async fn run(
        self: Arc<Self>,
        mut leading: watch::Receiver<Leadership>,
        stop: CancellationToken,
    ) {
        let mut synced = self.index.synced();
        tokio::select! {
            () = stop.cancelled() => return,
            ready = synced.wait_for(|synced| *synced) => if ready.is_err() { return },
        }
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                leader = leading.wait_for(|now| now.leader) => if leader.is_err() { return },
            }
            *self.leads_since.lock() = Some(Instant::now());
            self.adopt_ports();
            self.lead(&mut leading, &stop).await;
            *self.leads_since.lock() = None;
            for (key, _) in self.registry.all() {
                self.registry.set(&key, None);
            }
        }
    }

    /// One term as leader. It starts with a look at everything, from an empty memory.
    async fn lead(self: &Arc<Self>, leading: &mut watch::Receiver<Leadership>, stop: &CancellationToken) {
        let (marked, acked) = (self.index.dirty_services(), self.fleet.acked());
        let divided = self.divisions.dirty();
        let mut live = self.fleet.changes();
        let mut release_all = self.release_all.clone();
        let mut schedule = Schedule::default();
        let mut looks = JoinSet::new();
        for key in self.index.relevant() {
            schedule.mark(key);
        }
        loop {
            while looks.len() < AT_ONCE
                && let Some((key, unit)) = schedule.next()
            {
                let this = Arc::clone(self);
                looks.spawn(async move {
                    let (unit, wake) = this.look(&key, unit).await;
                    (key, unit, wake)
                });
            }
            let next = schedule.timers.first().map(|(at, _)| *at);
            tokio::select! {
                () = stop.cancelled() => break,
                lost = leading.wait_for(|now| !now.leader) => { drop(lost); break }
                Some(looked) = looks.join_next(), if !looks.is_empty() => match looked {
                    Ok((key, unit, wake)) => schedule.looked(key, unit, wake),
                    // A look that panicked: its Service starts anew, and so does whoever else was being looked at.
                    Err(error) => {
                        tracing::error!(%error, "a look at a Service failed");
                        break;
                    }
                },
                keys = marked.take() => keys.into_iter().for_each(|key| schedule.mark(key)),
                keys = divided.take() => keys.into_iter().for_each(|key| schedule.mark(key)),
                keys = acked.take() => keys.into_iter().for_each(|key| schedule.mark(key)),
                keys = self.again.take() => keys.into_iter().for_each(|key| schedule.mark(key)),
                Ok(()) = live.changed() => {
                    self.index.relevant().into_iter().for_each(|key| schedule.mark(key));
                }
                Ok(()) = release_all.changed() => {
                    self.index.relevant().into_iter().for_each(|key| schedule.mark(key));
                }
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {
                    schedule.ring(Instant::now());
                }
            }
        }
        // A look holds no lock and every write in it is bounded: let them end rather than cut them in two.
        while looks.join_next().await.is_some() {}
    }
}
