//! How many requests may be sent a second time: a fifth of all, with a little to begin with.
//!
//! Without a budget, retries against pods that break under load double that load. Connections that were refused cost the
//! pod nothing and are not counted here.

use std::sync::atomic::{AtomicI32, Ordering};

/// What one retry costs, in what one request earns.
const COST: i32 = 5;
/// Most that can be saved up: 100 retries, what a rolling restart of a busy pod needs at once.
const MOST: i32 = 100 * COST;

/// The retry budget of one pool.
#[derive(Debug)]
pub(crate) struct Budget(AtomicI32);

impl Default for Budget {
    fn default() -> Self {
        Self(AtomicI32::new(MOST))
    }
}

impl Budget {
    /// A request was sent.
    pub(crate) fn earn(&self) {
        // Nearly always full, and then nothing is written: the line stays shared between cores.
        if self.0.load(Ordering::Relaxed) < MOST {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether one may be sent again.
    pub(crate) fn spend(&self) -> bool {
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                (left >= COST).then(|| left - COST)
            })
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fifth_of_the_requests_may_be_repeated() {
        let budget = Budget::default();
        assert_eq!((0..1000).filter(|_| budget.spend()).count(), 100);
        (0..50).for_each(|_| budget.earn());
        assert_eq!((0..1000).filter(|_| budget.spend()).count(), 10);
    }
}
