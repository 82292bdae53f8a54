//! What an activator serves, for whoever wants to read it: pools, Routes, acknowledgements, attempts.
//!
//! `watch` writes it. Everybody else reads copies of pointers, so that no lock is held for longer than that takes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crds::report::{BrokenAttempt, PoolKey, RouteAck};
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

use crate::pool::Pool;
use crate::rollout::Attempt;
use crate::route::{RouteKey, Target};

/// Pools and acknowledgements, for whoever wants to read them.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    pools: RwLock<HashMap<PoolKey, Arc<Pool>>>,
    /// Routes that are served.
    targets: RwLock<BTreeMap<RouteKey, Arc<Target>>>,
    acks: RwLock<BTreeMap<RouteKey, RouteAck>>,
    /// Acknowledgements that no line has carried yet.
    new_acks: Mutex<Vec<RouteAck>>,
    /// The attempt that each Route named last.
    attempts: RwLock<BTreeMap<RouteKey, Arc<Attempt>>>,
    synthetic_changed: Notify,
    /// Attempts whose candidate is out, as a leader last said: one that a Route names later begins without it.
    broken: Mutex<Vec<BrokenAttempt>>,
    /// Both kinds of object have been listed once.
    is_synced: [AtomicBool; 2],
}

impl Directory {
    /// The pool of that name.
    pub(crate) fn pool(&self, key: &PoolKey) -> Option<Arc<Pool>> {
        self.pools.read().get(key).cloned()
    }

    /// All pools that a Route uses.
    pub(crate) fn pools(&self) -> Vec<Arc<Pool>> {
        self.pools.read().values().cloned().collect()
    }

    /// Takes a pool in.
    pub(crate) fn insert_pool(&self, pool: &Arc<Pool>) {
        self.pools.write().insert(pool.key.clone(), Arc::clone(pool));
    }

    /// Takes a pool out.
    pub(crate) fn remove_pool(&self, key: &PoolKey) -> Option<Arc<Pool>> {
        self.pools.write().remove(key)
    }

    /// The Route of that name.
    pub(crate) fn target(&self, key: &RouteKey) -> Option<Arc<Target>> {
        self.targets.read().get(key).cloned()
    }

    /// All Routes that are served.
    pub(crate) fn targets(&self) -> Vec<Arc<Target>> {
        self.targets.read().values().cloned().collect()
    }

    /// Takes a Route in, and returns it as it was before.
    pub(crate) fn insert_target(&self, target: &Arc<Target>) -> Option<Arc<Target>> {
        let old = self
            .targets
            .write()
            .insert(target.key.clone(), Arc::clone(target));
        if is_synthetic(target) {
            self.synthetic_changed.notify_one();
        }
        old
    }

    /// Takes a Route out, and the counts of its attempt with it.
    pub(crate) fn remove_target(&self, key: &RouteKey) -> Option<Arc<Target>> {
        let old = self.targets.write().remove(key)?;
        self.attempts.write().remove(key);
        Some(old)
    }

    /// All acknowledgements.
    pub(crate) fn acks(&self) -> Vec<RouteAck> {
        self.acks.read().values().cloned().collect()
    }

    /// Acknowledgements since the last call.
    pub(crate) fn take_new_acks(&self) -> Vec<RouteAck> {
        std::mem::take(&mut *self.new_acks.lock())
    }

    /// How many acknowledgements no line has carried yet.
    #[cfg(test)]
    pub(crate) fn new_acks(&self) -> usize {
        self.new_acks.lock().len()
    }

    /// All Routes have been listed.
    pub(crate) fn routes_are_synced(&self) {
        self.is_synced[0].store(true, Ordering::Release);
    }

    /// All slices have been listed.
    pub(crate) fn slices_are_synced(&self) {
        self.is_synced[1].store(true, Ordering::Release);
    }

    /// Whether the cluster has been seen.
    pub(crate) fn is_synced(&self) -> bool {
        self.is_synced.iter().all(|is| is.load(Ordering::Acquire))
    }

    /// All attempts that are counted.
    pub(crate) fn attempts(&self) -> Vec<Arc<Attempt>> {
        self.attempts.read().values().cloned().collect()
    }

    /// Where a Route's attempt of that name is counted: its counts stay until the Route names another.
    pub(crate) fn attempt(&self, route: &RouteKey, uid: &str) -> Option<Arc<Attempt>> {
        if uid.is_empty() {
            return None;
        }
        let mut attempts = self.attempts.write();
        if let Some(known) = attempts.get(route).filter(|known| known.uid == uid) {
            return Some(Arc::clone(known));
        }
        let attempt = Arc::new(Attempt::new(route.clone(), uid.to_owned()));
        attempts.insert(route.clone(), Arc::clone(&attempt));
        Some(attempt)
    }

    /// The Routes whose candidate gets requests of our own.
    pub(crate) fn synthetic(&self) -> Vec<Arc<Target>> {
        let targets = self.targets.read();
        targets
            .values()
            .filter(|target| is_synthetic(target))
            .cloned()
            .collect()
    }

    /// Waits until there may be more of them. Cancel safe: a change that came is not lost.
    pub(crate) async fn synthetic_changed(&self) {
        self.synthetic_changed.notified().await;
    }

    /// Takes in which attempts' candidates are out. Returns those that a Route names.
    pub(crate) fn set_broken(&self, broken: Vec<BrokenAttempt>) -> Vec<Arc<Attempt>> {
        // First, so that one that is made meanwhile is found there.
        self.broken.lock().clone_from(&broken);
        if broken.is_empty() {
            return Vec::new();
        }
        let out = |attempt: &&Arc<Attempt>| broken.iter().any(|broken| is_of(broken, attempt));
        self.attempts.read().values().filter(out).cloned().collect()
    }

    /// Whether a leader has said that the candidate of the attempt of that name is out.
    #[cfg(test)]
    pub(crate) fn knows_broken(&self, uid: &str) -> bool {
        self.broken.lock().iter().any(|broken| broken.attempt == uid)
    }

    /// Whether a leader says that the candidate is out.
    pub(crate) fn is_broken(&self, attempt: &Attempt) -> bool {
        self.broken.lock().iter().any(|broken| is_of(broken, attempt))
    }

    /// Takes in what became of a Route here. What has been said before is not said again.
    pub(crate) fn acknowledge(&self, ack: RouteAck) {
        let key = RouteKey {
            namespace: ack.namespace.clone(),
            name: ack.name.clone(),
        };
        let mut acks = self.acks.write();
        if acks.get(&key) == Some(&ack) {
            return;
        }
        if ack.gone {
            acks.remove(&key);
        } else {
            acks.insert(key, ack.clone());
        }
        self.new_acks.lock().push(ack);
    }
}

/// Whether its candidate gets requests of our own.
fn is_synthetic(target: &Target) -> bool {
    let plan = target.rollout.as_ref();
    plan.is_some_and(|plan| plan.synthetic().is_some())
}

fn is_of(broken: &BrokenAttempt, attempt: &Attempt) -> bool {
    let route = &attempt.route;
    broken.attempt == attempt.uid && broken.route == route.name && broken.namespace == route.namespace
}
