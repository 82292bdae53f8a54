//! One time for everything in this crate: the duration since the Unix epoch.
//!
//! Nothing here reads a clock: time comes in as an argument. Within one process it never goes back; from one leader to
//! the next it may jump, so every difference saturates at zero.

use std::ops::{Add, Sub};
use std::time::Duration;

/// A moment: the duration since the Unix epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(Duration);

impl Time {
    /// The Unix epoch.
    pub const EPOCH: Self = Self(Duration::ZERO);

    /// The moment `elapsed` after the Unix epoch.
    #[must_use]
    pub const fn from_epoch(elapsed: Duration) -> Self {
        Self(elapsed)
    }

    /// The moment `seconds` after the Unix epoch.
    #[must_use]
    pub const fn from_secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// The moment `milliseconds` after the Unix epoch.
    #[must_use]
    pub const fn from_millis(milliseconds: u64) -> Self {
        Self(Duration::from_millis(milliseconds))
    }

    /// The duration since the Unix epoch.
    #[must_use]
    pub const fn since_epoch(self) -> Duration {
        self.0
    }

    /// How long after `earlier` this is; zero when it is not after.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// Whole seconds since the Unix epoch: the number of a one-second bucket.
    pub(crate) fn second(self) -> u64 {
        self.0.as_secs()
    }
}

impl Add<Duration> for Time {
    type Output = Self;

    /// The moment `duration` later, at most the end of time.
    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration))
    }
}

impl Sub<Duration> for Time {
    type Output = Self;

    /// The moment `duration` earlier, at least the epoch.
    fn sub(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(duration))
    }
}

/// The earlier of two moments of which either may be missing.
pub(crate) fn earliest(one: Option<Time>, other: Option<Time>) -> Option<Time> {
    one.into_iter().chain(other).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_saturates_at_both_ends() {
        let minute = Duration::from_secs(60);
        assert_eq!(Time::from_secs(10) - minute, Time::EPOCH);
        assert_eq!(
            Time::from_epoch(Duration::MAX) + minute,
            Time::from_epoch(Duration::MAX)
        );
        assert_eq!(
            Time::from_secs(10).since(Time::from_secs(70)),
            Duration::ZERO,
            "a clock that jumped back"
        );
        assert_eq!(Time::from_secs(70).since(Time::from_secs(10)), minute);
    }

    #[test]
    fn the_earliest_of_what_there_is() {
        let (one, two) = (Some(Time::from_secs(1)), Some(Time::from_secs(2)));
        assert_eq!(earliest(two, one), one);
        assert_eq!(earliest(None, two), two);
        assert_eq!(earliest(None, None), None);
    }
}
