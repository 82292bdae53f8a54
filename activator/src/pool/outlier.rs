//! Which pod fails requests, and how long it is passed over for that. Pure; `now` is the activator's uptime.
//!
//! A connection that is refused says enough: the pod is not picked until it answers a probe, which one that restarts does
//! as soon as it can. A pod that answers probes and fails requests all the same would come straight back, so each further
//! time takes twice as long. A reset may be chance (a connection that the pod closes at that very moment), so only several
//! without an answer in between count. Each minute without a failure takes one failure back.
//!
//! At most half of a pool's pods are passed over for a time, and so never the only one: the others would carry more than
//! twice their load, and what fails everywhere is not an outlier. Waiting for a probe has no such bound, because requests
//! are held meanwhile and lose nothing.

use std::time::Duration;

/// Resets without an answer in between that count as a failure.
pub(super) const RESETS: u32 = 3;
/// The first time that a pod is passed over for.
const SHORTEST: Duration = Duration::from_secs(1);
/// The longest: what a pod that is well again after all is missed for.
const LONGEST: Duration = Duration::from_secs(60);
/// What takes one failure back.
const FORGIVEN: Duration = Duration::from_secs(60);

/// How a pod failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// It took no connection.
    Refused,
    /// It ended a connection on which a request waited, without a byte of answer.
    Reset,
}

impl Failure {
    /// The name in metrics and logs.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Reset => "reset",
        }
    }
}

/// What a pod has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Record {
    /// Failures that are not forgiven.
    pub(super) strikes: u32,
    /// When it was last picked again, or one of its failures was last forgiven.
    since: Duration,
}

impl Record {
    /// It has failed. Returns how long it is passed over; zero: until it answers a probe.
    pub(super) fn strike(&mut self, now: Duration, failure: Failure) -> Duration {
        let forgiven = now.saturating_sub(self.since).as_secs() / FORGIVEN.as_secs();
        self.strikes = self
            .strikes
            .saturating_sub(u32::try_from(forgiven).unwrap_or(u32::MAX));
        let time = match (failure, self.strikes) {
            (Failure::Refused, 0) => Duration::ZERO,
            (Failure::Refused, before) => doubled(before - 1),
            (Failure::Reset, before) => doubled(before),
        };
        self.strikes = self.strikes.saturating_add(1);
        self.since = now;
        time
    }

    /// It is picked again.
    pub(super) fn back(&mut self, now: Duration) {
        self.since = now;
    }
}

fn doubled(times: u32) -> Duration {
    // 2⁶ seconds are above the longest.
    (SHORTEST * (1 << times.min(6))).min(LONGEST)
}

/// Whether one more of so many pods may be passed over for a time, when `out` are already.
pub(super) fn may_eject(out: usize, pods: usize) -> bool {
    2 * (out + 1) <= pods
}

#[cfg(test)]
mod tests {
    use super::Failure::{Refused, Reset};
    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn each_failure_takes_twice_as_long_as_the_one_before() {
        type Row<'a> = (&'a str, &'a [(u64, Failure, u64)]);
        let rows: [Row<'_>; 4] = [
            (
                "refused",
                &[(0, Refused, 0), (1, Refused, 1), (3, Refused, 2), (6, Refused, 4)],
            ),
            (
                "reset",
                &[(0, Reset, 1), (2, Reset, 2), (5, Reset, 4), (10, Reset, 8)],
            ),
            (
                "bounded",
                &[
                    (0, Reset, 1),
                    (1, Reset, 2),
                    (2, Reset, 4),
                    (3, Reset, 8),
                    (4, Reset, 16),
                    (5, Reset, 32),
                    (6, Reset, 60),
                    (7, Reset, 60),
                    (8, Reset, 60),
                ],
            ),
            // Two strikes, of which two minutes take both back.
            (
                "forgiven",
                &[
                    (0, Reset, 1),
                    (2, Reset, 2),
                    (123, Reset, 1),
                    (182, Reset, 2),
                    (243, Refused, 1),
                ],
            ),
        ];
        for (what, failures) in rows {
            let mut record = Record::default();
            for (now, failure, wanted) in failures {
                assert_eq!(
                    record.strike(at(*now), *failure),
                    at(*wanted),
                    "{what} at {now} s"
                );
            }
        }
    }

    #[test]
    fn time_counts_from_when_a_pod_is_picked_again() {
        let mut record = Record::default();
        assert_eq!(record.strike(at(100), Reset), at(1));
        record.back(at(500));
        assert_eq!(
            record.strike(at(559), Reset),
            at(2),
            "not yet a minute of good work"
        );
    }

    #[test]
    fn no_more_than_half_are_ejected() {
        for (out, pods, wanted) in [
            (0, 0, false),
            (0, 1, false),
            (0, 2, true),
            (1, 2, false),
            (0, 3, true),
            (1, 3, false),
            (1, 4, true),
            (4, 9, false),
        ] {
            assert_eq!(may_eject(out, pods), wanted, "{out} of {pods}");
        }
    }
}
