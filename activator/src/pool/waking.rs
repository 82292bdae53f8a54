//! A pool's wake under way.

use std::sync::Arc;
use std::time::Duration;

use super::{Pool, State};

/// Finished wakes kept until a report line carries them. Enough for a stream's absence; older ones go first.
const KEPT_WAKES: usize = 8;

/// The wake for those who look at the waiting page.
#[derive(Debug, Default)]
pub(super) enum PageWake {
    /// Nobody looks, or the pool is ready.
    #[default]
    None,
    /// One waits in their place.
    Running,
    /// It waited in vain: what is said about it.
    Failed(String),
}

impl State {
    /// Whether a leader has said since `since` that it wakes the pool.
    pub(super) fn is_acknowledged(&self, since: Duration) -> bool {
        self.acknowledged.is_some_and(|at| at >= since)
    }

    /// No pod answers. A wake that nobody waits for any more is over, though no answer ended it: the client may have gone, or
    /// the pod said nothing. It would be in the way of the next one, and its clock would run until then. So is one whose pod
    /// has come and gone, when all who wait now came later.
    pub(super) fn forget_wake(&mut self) {
        let oldest = self.throttle.oldest();
        self.waking
            .take_if(|clock| oldest.is_none_or(|oldest| clock.listened_before(oldest)));
    }
}

impl Pool {
    /// Somebody looks at the page. Returns whether a wake is to begin: none is under way, and none has failed.
    pub(crate) fn begin_page_wake(&self) -> bool {
        let mut page = self.page.lock();
        let begins = matches!(*page, PageWake::None);
        if begins {
            *page = PageWake::Running;
        }
        begins
    }

    /// The wake has ended; with a `failure`, in vain.
    pub(crate) fn end_page_wake(&self, failure: Option<String>) {
        *self.page.lock() = failure.map_or(PageWake::None, PageWake::Failed);
    }

    /// Somebody opens the page anew: a failure is of the past.
    pub(crate) fn forget_page_failure(&self) {
        let mut page = self.page.lock();
        if matches!(*page, PageWake::Failed(_)) {
            *page = PageWake::None;
        }
    }

    /// Why the last wake for the page failed, if it did.
    pub(crate) fn page_failure(&self) -> Option<String> {
        match &*self.page.lock() {
            PageWake::Failed(failure) => Some(failure.clone()),
            _ => None,
        }
    }

    /// How long ago the wake under way began.
    pub(crate) fn waking_for(&self, now: Duration) -> Duration {
        let state = self.state.lock();
        state
            .waking
            .as_ref()
            .map_or(Duration::ZERO, |clock| now.saturating_sub(clock.start()))
    }

    /// Waits until the first pod answers, from now on. Looked at before the first poll, nothing is missed.
    pub(crate) fn becomes_ready(&self) -> tokio::sync::futures::Notified<'_> {
        self.became_ready.notified()
    }

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
            && self.view.load().ready == 0
            && !state.is_acknowledged(since)
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
