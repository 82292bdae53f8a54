//! The only clock: wall time read once, and tokio's monotonic clock from there.
//!
//! So time never goes back within a process, can be shown to users, and can be paused in tests. Two processes may
//! disagree; nothing on the wire is an instant.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time as Timestamp;
use tokio::time::Instant;

/// Tells the time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    started: Instant,
    /// Since the Unix epoch, when it started.
    anchor: Duration,
}

impl Clock {
    /// Anchors the clock at the machine's wall time.
    pub(crate) fn new() -> Self {
        Self::showing(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
    }

    /// A clock that shows this time now, since the Unix epoch.
    pub(crate) fn showing(anchor: Duration) -> Self {
        Self {
            started: Instant::now(),
            anchor,
        }
    }

    /// The time at `instant`, since the Unix epoch.
    pub(crate) fn at(&self, instant: Instant) -> Duration {
        match instant.checked_duration_since(self.started) {
            Some(after) => self.anchor + after,
            None => self.anchor.saturating_sub(self.started.duration_since(instant)),
        }
    }

    /// The instant at `time`, since the Unix epoch.
    pub(crate) fn instant(&self, time: Duration) -> Instant {
        match time.checked_sub(self.anchor) {
            Some(after) => self.started + after,
            None => self.started,
        }
    }

    /// `instant` as a status shows it: to the second.
    pub(crate) fn timestamp(&self, instant: Instant) -> Timestamp {
        let seconds = i64::try_from(self.at(instant).as_secs()).unwrap_or(0);
        Timestamp(jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::UNIX_EPOCH))
    }

    /// The instant that a status shows; one too long ago for this machine's clock counts as this process's start.
    pub(crate) fn read(&self, shown: &Timestamp) -> Instant {
        let seconds = u64::try_from(shown.0.as_second()).unwrap_or(0);
        let time = Duration::from_secs(seconds);
        match self.anchor.checked_sub(time) {
            Some(before) => self.started.checked_sub(before).unwrap_or(self.started),
            None => self.instant(time),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_moves_exactly_as_paused_time_does_and_converts_both_ways() {
        let clock = Clock::new();
        let before = clock.at(Instant::now());
        tokio::time::sleep(Duration::from_secs(600)).await;
        let after = clock.at(Instant::now());
        assert_eq!(after - before, Duration::from_secs(600));
        assert_eq!(clock.instant(after), Instant::now());
        let shown = clock.timestamp(Instant::now());
        assert!(
            Instant::now() - clock.read(&shown) < Duration::from_secs(601),
            "{shown:?}"
        );
    }
}
