//! What an activator counts for a rollout: cumulative integers by epoch, and the buckets of service time.
//!
//! A request is counted in the epoch that the Route named when the request was assigned, once, when it ends. An activator
//! keeps the counts of every epoch of an attempt until the Route names another attempt.

use serde::{Deserialize, Serialize};

/// How many buckets of service time there are.
pub const BUCKETS: u16 = 200;

/// Most epochs of one attempt, `0..EPOCHS`: a ramp of 1 % steps fits. Requests of later ones are counted nowhere.
pub const EPOCHS: u32 = 128;

/// The bucket of a service time in microseconds, `0..BUCKETS`: an eighth of an octave, from 8 µs to 4.4 minutes. The same
/// integer arithmetic as in the autoscaler's `evidence::histogram`.
#[must_use]
pub fn service_time_bucket(micros: u64) -> u16 {
    let micros = micros.max(8);
    let octave = micros.ilog2() - 3;
    let eighth = (micros >> octave) - 8;
    let bucket = u64::from(octave) * 8 + eighth;
    u16::try_from(bucket).unwrap_or(u16::MAX).min(BUCKETS - 1)
}

/// The counts of one epoch in one activator instance. Cumulative: a line that is lost or repeated changes nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EpochReport {
    /// The Route's namespace.
    pub namespace: String,
    /// The Route's name.
    pub route: String,
    /// The attempt that the Route named.
    pub attempt: String,
    /// The epoch that it named.
    pub epoch: u32,
    /// Requests of the stable pool that were assigned by the coin. In an epoch with a mirror: pairs.
    pub stable: ArmReport,
    /// Requests of the candidate that were assigned by the coin. In an epoch with a mirror: pairs.
    pub candidate: ArmReport,
    /// Requests of the candidate that a match has sent there, or that are synthetic.
    pub direct: ArmReport,
    /// The breaker has taken the candidate out here.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub broken: bool,
    /// The evidence on which it did, rounded down: `E` by the counts of this activator instance alone. 0: it has not.
    #[serde(skip_serializing_if = "is_zero")]
    pub evidence: u64,
}

/// Whether there is none: then it is not written.
#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(evidence: &u64) -> bool {
    *evidence == 0
}

/// The requests of one pool in one epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ArmReport {
    /// Requests that ended, refusals by ourselves and clients that went away without a bad answer left out; one for which no
    /// pod came up in time was not refused, but could not be reached. With affinity: sessions whose first request ended so. Of mirrored requests: pairs of which both answers are in.
    pub requests: u64,
    /// Of these, how many were bad by the Route's rule. With affinity: sessions with at least one. Of mirrored requests:
    /// pairs of which only this answer was bad.
    pub bad: u64,
    /// Service times (dispatch to response head) outside of a pod's warm-up: bucket and count, buckets in order, empty ones
    /// left out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub times: Vec<(u16, u64)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_begin_where_they_should() {
        for (micros, bucket) in [
            (0, 0),
            (8, 0),
            (9, 1),
            (15, 7),
            (16, 8),
            (18, 9),
            (500_000, 127),
            (u64::MAX, 199),
        ] {
            assert_eq!(service_time_bucket(micros), bucket, "{micros}");
        }
        let all: Vec<u16> = (0..100_000).map(service_time_bucket).collect();
        assert!(all.is_sorted());
    }

    #[test]
    fn a_line_without_news_reads_as_nothing() {
        let read: EpochReport = serde_json::from_str(r#"{"route":"web","epoch":3}"#).expect("defaults");
        assert_eq!((read.epoch, read.candidate.requests, read.broken), (3, 0, false));
    }
}
