//! Somebody else writes the same replicas: count it, name them, and stop before it becomes a fight.
//!
//! A foreign change is answered by writing our number again. After [`FLIPS`] of them within [`CALM`] the pool is left
//! alone until nobody has touched it for [`CALM`]; a pool with held requests and no pod is woken all the same. The
//! alternative, to fight for ever, restarts pods for ever.

use std::collections::VecDeque;
use std::time::Duration;

use crate::Time;

/// After this many foreign changes within [`CALM`] we stop writing.
pub const FLIPS: usize = 3;

/// Foreign changes count for this long, and this long without one ends a conflict.
pub const CALM: Duration = Duration::from_secs(600);

/// The foreign changes of one pool's replicas.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conflict {
    /// The last ones, oldest first; never more than [`FLIPS`], because more change nothing.
    flips: VecDeque<Time>,
    manager: String,
    /// There were enough of them; only calm ends it.
    stopped: bool,
}

impl Conflict {
    /// Notes that `manager` changed what we had written.
    pub fn flipped(&mut self, now: Time, manager: &str) {
        self.stopped = self.stopped(now);
        self.flips.retain(|at| now.since(*at) < CALM);
        self.flips.push_back(now);
        if self.flips.len() > FLIPS {
            self.flips.pop_front();
        }
        self.stopped |= self.flips.len() == FLIPS;
        manager.clone_into(&mut self.manager);
    }

    /// How many foreign changes count now, at most [`FLIPS`], and who made the last one.
    #[must_use]
    pub fn with(&self, now: Time) -> Option<(usize, &str)> {
        let last = self.flips.back()?;
        if now.since(*last) >= CALM {
            return None;
        }
        // Once there are enough of them they count together until it is calm; before, each for itself.
        let count = if self.stopped(now) {
            FLIPS
        } else {
            self.flips.iter().filter(|at| now.since(**at) < CALM).count()
        };
        Some((count, &self.manager))
    }

    /// Whether we have stopped writing.
    #[must_use]
    pub fn stopped(&self, now: Time) -> bool {
        let last = self.flips.back();
        self.stopped && last.is_some_and(|last| now.since(*last) < CALM)
    }

    /// When it will be calm, if nobody writes before.
    #[must_use]
    pub fn calm_at(&self, now: Time) -> Option<Time> {
        self.with(now)?;
        self.flips.back().map(|last| *last + CALM)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_flips_in_ten_minutes_stop_us_until_ten_calm_minutes_have_passed() {
        // (second, a foreign change happens, count that is shown, stopped)
        let rows = [
            (0, false, None, false),
            (10, true, Some(1), false),
            (300, true, Some(2), false),
            (609, false, Some(2), false),
            (611, false, Some(1), false), // the first no longer counts
            (620, true, Some(2), false),
            (700, true, Some(3), true),
            (1_000, false, Some(3), true), // one is old, but we have stopped: only calm helps
            (1_250, true, Some(3), true),
            (1_849, false, Some(3), true),
            (1_850, false, None, false),
            (1_900, true, Some(1), false),
        ];
        let mut conflict = Conflict::default();
        for (second, foreign, count, stopped) in rows {
            let now = Time::from_secs(second);
            if foreign {
                conflict.flipped(now, "argocd-controller");
            }
            assert_eq!(conflict.with(now).map(|(count, _)| count), count, "at {second} s");
            assert_eq!(conflict.stopped(now), stopped, "at {second} s");
            assert_eq!(conflict.calm_at(now).is_some(), count.is_some(), "at {second} s");
        }
    }

    #[test]
    fn the_last_writer_is_named() {
        let mut conflict = Conflict::default();
        conflict.flipped(Time::from_secs(1), "kubectl");
        conflict.flipped(Time::from_secs(2), "helm");
        assert_eq!(conflict.with(Time::from_secs(3)), Some((2, "helm")));
    }
}
