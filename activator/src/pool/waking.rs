//! A pool's wake under way.

use std::sync::Arc;
use std::time::Duration;

use super::Pool;

/// Finished wakes kept until a report line carries them. Enough for a stream's absence; older ones go first.
const KEPT_WAKES: usize = 8;

impl Pool {
    /// A leader says that it wakes the pool.
    pub(crate) fn acknowledge(&self, now: Duration) {
        let mut state = self.state.lock();
        state.acknowledged = Some(now);
        if let Some(clock) = &mut state.waking {
            clock.signalled(now);
        }
    }

    /// This activator wakes the pool itself.
    pub(crate) fn signalled(&self, now: Duration) {
        if let Some(clock) = &mut self.state.lock().waking {
            clock.signalled(now);
        }
    }

    /// Whether requests wait, no pod is there to take them, and no leader has said since `since` that it sees to it.
    pub(crate) fn needs_wake(&self, since: Duration) -> bool {
        let state = self.state.lock();
        state.waking.is_some()
            && state.throttle.waiting() > 0
            && self.view.read().ready == 0
            && state.acknowledged.is_none_or(|at| at < since)
    }

    /// Whether the wake that began has neither ended nor been given up.
    pub(crate) fn is_waking(&self) -> bool {
        self.state.lock().waking.is_some()
    }

    /// The first answer to a request that was held while no pod was ready.
    pub(crate) fn answered(self: &Arc<Self>, now: Duration) {
        let mut state = self.state.lock();
        let Some((wake, parts)) = state
            .waking
            .as_ref()
            .and_then(|clock| clock.finish(now, &self.key.pool))
        else {
            return;
        };
        state.waking = None;
        if state.wakes.len() == KEPT_WAKES {
            state.wakes.remove(0);
        }
        state.wakes.push(wake);
        drop(state);
        self.hub.metrics.wake(&parts);
        self.touch(false);
    }
}
