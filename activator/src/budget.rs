//! How many requests may be sent a second time: a fifth of all, with a hundred to begin with and a thousand saved up.
//!
//! Without a budget, retries against pods that break under load double that load. Connections that were refused cost the
//! pod nothing and are not counted here.

use std::sync::atomic::{AtomicI32, Ordering};

/// What one retry costs, in what one request earns.
const COST: i32 = 5;
/// What a pool begins with: 100 retries, as many as are lost when a usual pod goes without a word.
const START: i32 = 100 * COST;
/// Most that can be saved up: 1,000 retries, what half of a thousand requests a second earn in ten seconds. A pod with
/// hundreds of requests in flight can be killed without one of them lost.
const MOST: i32 = 1000 * COST;

/// The retry budget of one pool.
#[derive(Debug)]
pub(crate) struct Budget(AtomicI32);

impl Default for Budget {
    fn default() -> Self {
        Self(AtomicI32::new(START))
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
        (0..100_000).for_each(|_| budget.earn());
        assert_eq!((0..5000).filter(|_| budget.spend()).count(), 1000);
    }
}
