//! The wakes under way, in the order in which they began, so that each stream is told of each at once but only once.
//!
//! A heartbeat repeats all of them, which is what keeps an activator from waking a pool itself. A line sent because a wake
//! began names only what that stream has not been told yet: with all of them in every line, waking N Services in one
//! instant would cost N² names.

use std::collections::{BTreeMap, HashMap};

use crds::report::PoolKey;

/// The pools whose wake is being carried out.
#[derive(Debug, Default)]
pub(super) struct Waking {
    /// When each began, counted in wakes since the first.
    began: HashMap<PoolKey, u64>,
    in_order: BTreeMap<u64, PoolKey>,
    /// The youngest that ever was.
    youngest: u64,
}

impl Waking {
    /// A wake begins. Returns whether it was not under way already.
    pub(super) fn begin(&mut self, pool: &PoolKey) -> bool {
        if self.began.contains_key(pool) {
            return false;
        }
        self.youngest += 1;
        self.began.insert(pool.clone(), self.youngest);
        self.in_order.insert(self.youngest, pool.clone());
        true
    }

    /// A wake has ended, well or not.
    pub(super) fn end(&mut self, pool: &PoolKey) {
        if let Some(began) = self.began.remove(pool) {
            self.in_order.remove(&began);
        }
    }

    /// Forgets all wakes under way.
    pub(super) fn clear(&mut self) {
        self.began.clear();
        self.in_order.clear();
    }

    /// Those that began after `told`, oldest first, and what to pass for `told` next time. 0 stands for all.
    pub(super) fn since(&self, told: u64) -> (Vec<PoolKey>, u64) {
        let after = (std::ops::Bound::Excluded(told), std::ops::Bound::Unbounded);
        (
            self.in_order.range(after).map(|(_, pool)| pool.clone()).collect(),
            self.youngest,
        )
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = &PoolKey> {
        self.in_order.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(name: &str) -> PoolKey {
        PoolKey {
            namespace: "d".into(),
            pool: name.into(),
        }
    }

    #[test]
    fn each_wake_is_told_once_and_all_of_them_to_a_heartbeat() {
        let mut waking = Waking::default();
        assert_eq!(waking.since(0), (vec![], 0));
        assert!(waking.begin(&pool("b")));
        assert!(waking.begin(&pool("a")));
        assert!(!waking.begin(&pool("b")), "under way already");
        let (first, told) = waking.since(0);
        assert_eq!(first, [pool("b"), pool("a")], "in the order in which they began");
        assert_eq!(waking.since(told).0, []);
        waking.begin(&pool("c"));
        assert_eq!(waking.since(told).0, [pool("c")]);
        assert_eq!(waking.since(0).0, [pool("b"), pool("a"), pool("c")]);
    }

    #[test]
    fn a_wake_that_ended_is_not_told_and_one_that_begins_anew_is() {
        let mut waking = Waking::default();
        waking.begin(&pool("a"));
        let (_, told) = waking.since(0);
        waking.end(&pool("a"));
        waking.end(&pool("never began"));
        assert_eq!(waking.since(0).0, []);
        waking.begin(&pool("a"));
        assert_eq!(waking.since(told).0, [pool("a")]);
        waking.clear();
        assert_eq!((waking.since(0).0, waking.iter().count()), (vec![], 0));
        assert!(waking.begin(&pool("a")), "forgotten, so it begins anew");
        assert_eq!(waking.since(told + 1).0, [pool("a")], "and counts on");
    }
}
