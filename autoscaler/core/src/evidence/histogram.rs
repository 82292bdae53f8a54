//! How long requests took, in fixed buckets: counts that can be added, whoever made them.
//!
//! A bucket is an eighth of an octave of microseconds, found with integer arithmetic, so every process finds the same one.
//! A time is known to within 12.5 %, from 8 µs to 4.4 minutes. The bounds never change: cumulative counts of different
//! activators, or of different moments of one, can be merged and subtracted.

use std::time::Duration;

/// How many buckets there are: 25 octaves of eight. The last one holds everything longer.
pub const BUCKETS: usize = 200;

/// Counts of service times by bucket. All counts only ever grow in one activator instance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    /// By bucket; buckets beyond the end are empty.
    counts: Vec<u64>,
}

/// The bucket of a time, `0..BUCKETS`.
#[must_use]
pub fn bucket(time: Duration) -> usize {
    let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(8);
    let octave = micros.ilog2() as usize - 3;
    let eighth = (micros >> octave) as usize - 8;
    (octave * 8 + eighth).min(BUCKETS - 1)
}

/// The shortest time of a bucket. For the bucket after the last: the end of the last one.
#[must_use]
pub fn lower_bound(bucket: usize) -> Duration {
    let bucket = bucket.min(BUCKETS);
    Duration::from_micros((8 + bucket as u64 % 8) << (bucket / 8))
}

impl Histogram {
    /// One with these counts by bucket; a bucket out of range counts as the last.
    #[must_use]
    pub fn from_counts(counts: impl IntoIterator<Item = (usize, u64)>) -> Self {
        let mut histogram = Self::default();
        for (bucket, count) in counts {
            histogram.add(bucket, count);
        }
        histogram
    }

    /// Counts one request that took `time`.
    pub fn record(&mut self, time: Duration) {
        self.add(bucket(time), 1);
    }

    /// Adds `count` requests to `bucket`.
    pub fn add(&mut self, bucket: usize, count: u64) {
        let bucket = bucket.min(BUCKETS - 1);
        if self.counts.len() <= bucket {
            self.counts.resize(bucket + 1, 0);
        }
        self.counts[bucket] = self.counts[bucket].saturating_add(count);
    }

    /// Adds what another one counted.
    pub fn merge(&mut self, other: &Self) {
        for (bucket, count) in other.counts.iter().enumerate() {
            self.add(bucket, *count);
        }
    }

    /// What has been counted since `earlier`, an older state of the same counts.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let before = |bucket: usize| earlier.counts.get(bucket).copied().unwrap_or(0);
        let counts = self.counts.iter().enumerate();
        Self {
            counts: counts
                .map(|(bucket, count)| count.saturating_sub(before(bucket)))
                .collect(),
        }
    }

    /// How many requests have been counted.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.counts
            .iter()
            .fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// How many took longer than every time in `bucket`.
    #[must_use]
    pub fn over(&self, bucket: usize) -> u64 {
        let longer = self.counts.iter().skip(bucket.saturating_add(1));
        longer.fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// The bucket in which the `share`-quantile lies, `share` in `0..=1`; `None` without a count.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Option<usize> {
        let total = self.total();
        let rank = (total as f64 * share.clamp(0.0, 1.0)).ceil().max(1.0);
        let mut seen = 0.0;
        let found = self.counts.iter().position(|count| {
            seen += *count as f64;
            seen >= rank
        });
        found.filter(|_| total > 0)
    }

    /// The `share`-quantile as a time, `share` in `0..=1`; `None` without a count. Within its bucket it is found as if the
    /// bucket's times were spread evenly, as Prometheus' `histogram_quantile` does.
    #[must_use]
    pub fn quantile_time(&self, share: f64) -> Option<Duration> {
        let bucket = self.quantile(share)?;
        let (total, count) = (self.total() as f64, self.counts[bucket] as f64);
        let before = total - count - self.over(bucket) as f64;
        let part = ((total * share.clamp(0.0, 1.0) - before) / count).clamp(0.0, 1.0);
        let (from, to) = (lower_bound(bucket), lower_bound(bucket + 1));
        Some(from + (to - from).mul_f64(part))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_time_lies_in_the_bucket_that_begins_before_it() {
        for micros in (0..2_000_u64).chain((0..4_000).map(|step| step * 70_001)) {
            let time = Duration::from_micros(micros);
            let found = bucket(time);
            let clamped = time.clamp(lower_bound(0), lower_bound(BUCKETS) - Duration::from_micros(1));
            assert!(
                lower_bound(found) <= clamped && clamped < lower_bound(found + 1),
                "{micros}"
            );
        }
        assert_eq!(bucket(Duration::MAX), BUCKETS - 1);
    }

    #[test]
    fn a_bucket_is_at_most_an_eighth_wide() {
        for index in 0..BUCKETS {
            let ratio = lower_bound(index + 1).as_secs_f64() / lower_bound(index).as_secs_f64();
            assert!(ratio <= 1.125 + 1e-9, "{index}: {ratio}");
        }
    }

    #[test]
    fn at_most_the_rest_is_over_a_quantile() {
        let mut histogram = Histogram::default();
        (1..=1_000).for_each(|step| histogram.record(Duration::from_micros(step * 97)));
        for share in [0.5, 0.9, 0.99] {
            let cut = histogram.quantile(share).expect("counted");
            assert!(histogram.over(cut) as f64 <= 1_000.0 * (1.0 - share) + 1e-9);
            assert!(histogram.over(cut - 1) as f64 > 1_000.0 * (1.0 - share));
        }
        assert_eq!(Histogram::default().quantile(0.5), None);
    }

    #[test]
    fn a_quantile_lies_where_it_would_with_even_times_in_its_bucket() {
        let of = |counts: &[(usize, u64)], share| {
            let histogram = Histogram::from_counts(counts.iter().copied());
            histogram.quantile_time(share).map(|time| time.as_micros())
        };
        // Bucket 0 is 8 to 9 µs, bucket 8 is 16 to 18 µs.
        assert_eq!(of(&[(8, 100)], 0.5), Some(17));
        assert_eq!(of(&[(8, 100)], 1.0), Some(18));
        assert_eq!(of(&[(0, 99), (8, 1)], 0.99), Some(9));
        assert_eq!(of(&[(0, 98), (8, 2)], 0.99), Some(17));
        assert_eq!(of(&[], 0.99), None);
    }

    proptest! {
        #[test]
        fn merging_and_subtracting_undo_each_other(
            one in prop::collection::vec((0..BUCKETS, 0_u64..50), 0..20),
            other in prop::collection::vec((0..BUCKETS, 0_u64..50), 0..20),
        ) {
            let (one, other) = (Histogram::from_counts(one), Histogram::from_counts(other));
            let mut both = one.clone();
            both.merge(&other);
            let back = both.since(&one);
            prop_assert_eq!(both.total(), one.total() + other.total());
            for cut in 0..BUCKETS {
                prop_assert_eq!(back.over(cut), other.over(cut));
            }
        }
    }
}
