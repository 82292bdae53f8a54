//! A log-linear histogram of durations: fixed size, fixed relative error, mergeable.
//!
//! Values are whole microseconds. Below `2^bits` every value has a bucket of its own; above, every power of two is
//! divided into `2^bits` equal buckets, so a bucket is never wider than `1 / 2^bits` of its values. Our own rather than a
//! crate: it is a page long, needs no dependency, and its memory is known before the run: 28 KB at seven bits.

use std::time::Duration;

/// Values at or above this many microseconds (71 minutes) are counted in the last bucket; [`Histogram::max`] stays exact.
const LIMIT_BITS: u32 = 32;

/// Counts of durations by size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram {
    bits: u32,
    counts: Vec<u64>,
    total: u64,
    sum: Duration,
    max: Duration,
}

impl Histogram {
    /// Bits of precision for results: percentiles are at most 0.8 % too high.
    pub const FINE: u32 = 7;
    /// Bits of precision for each second of a timeline: 6 % too high at most, in 3.7 KB.
    pub const COARSE: u32 = 4;

    /// An empty histogram with `bits` of precision, `1..=12`; others are brought into that range.
    #[must_use]
    pub fn new(bits: u32) -> Self {
        let bits = bits.clamp(1, 12);
        let buckets = ((LIMIT_BITS - bits + 1) as usize) << bits;
        Self {
            bits,
            counts: vec![0; buckets],
            total: 0,
            sum: Duration::ZERO,
            max: Duration::ZERO,
        }
    }

    /// Counts one value.
    pub fn push(&mut self, value: Duration) {
        let index = index(self.bits, u64::try_from(value.as_micros()).unwrap_or(u64::MAX));
        self.counts[index] += 1;
        self.total += 1;
        self.sum = self.sum.saturating_add(value);
        self.max = self.max.max(value);
    }

    /// Adds all of `other`, which may have another precision: its values then count at the top of their buckets.
    pub fn merge(&mut self, other: &Self) {
        for (from, count) in other.counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            let to = if self.bits == other.bits {
                from
            } else {
                index(self.bits, highest(other.bits, from))
            };
            self.counts[to] += count;
        }
        self.total += other.total;
        self.sum = self.sum.saturating_add(other.sum);
        self.max = self.max.max(other.max);
    }

    /// How many values were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.total
    }

    /// The largest value, exact. Zero when there is none.
    #[must_use]
    pub fn max(&self) -> Duration {
        self.max
    }

    /// The arithmetic mean, exact to rounding. Zero when there is no value.
    #[must_use]
    pub fn mean(&self) -> Duration {
        if self.total == 0 {
            Duration::ZERO
        } else {
            self.sum.div_f64(self.total as f64)
        }
    }

    /// The smallest value such that `percent` (`0.0..=100.0`) of all values are not above it, as the top of its bucket
    /// and never above the maximum. Zero when there is no value.
    #[must_use]
    pub fn percentile(&self, percent: f64) -> Duration {
        let rank = ((percent.clamp(0.0, 100.0) / 100.0) * self.total as f64)
            .ceil()
            .max(1.0) as u64;
        let mut seen = 0;
        for (at, count) in self.counts.iter().enumerate() {
            seen += count;
            if *count > 0 && seen >= rank {
                // The last bucket has no top: what it holds is only known not to exceed the maximum.
                if at + 1 == self.counts.len() {
                    return self.max;
                }
                return Duration::from_micros(highest(self.bits, at)).min(self.max);
            }
        }
        self.max
    }
}

/// The bucket of `micros`.
fn index(bits: u32, micros: u64) -> usize {
    let micros = micros.min((1 << LIMIT_BITS) - 1);
    let magnitude = (u64::BITS - micros.leading_zeros()).saturating_sub(bits + 1);
    // Within a magnitude the top bit is always set, so its buckets start at 2^bits: magnitudes follow without gaps.
    ((magnitude as usize) << bits) + (micros >> magnitude) as usize
}

/// The largest value that falls into bucket `index`, in microseconds.
fn highest(bits: u32, index: usize) -> u64 {
    let magnitude = (index >> bits).saturating_sub(1) as u32;
    let step = index as u64 - (u64::from(magnitude) << bits);
    ((step + 1) << magnitude) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bucket_begins_where_the_last_one_ended() {
        for bits in [1, 4, 7, 12] {
            let buckets = Histogram::new(bits).counts.len();
            for at in 0..buckets - 1 {
                let top = highest(bits, at);
                assert_eq!(index(bits, top), at, "bits {bits}, top {top}");
                assert_eq!(index(bits, top + 1), at + 1, "bits {bits}, above {top}");
            }
            assert_eq!(index(bits, u64::MAX), buckets - 1, "bits {bits}");
        }
    }

    #[test]
    fn percentiles_are_within_the_stated_error_and_never_too_low() {
        let mut histogram = Histogram::new(Histogram::FINE);
        (1..=100_000).for_each(|n| histogram.push(Duration::from_micros(n * 37)));
        for percent in [1.0, 50.0, 90.0, 99.0, 99.9, 100.0] {
            let exact = percent / 100.0 * 3_700_000.0;
            let got = histogram.percentile(percent).as_micros() as f64;
            assert!(
                got >= exact && got <= exact * 1.008,
                "p{percent}: {got} for {exact}"
            );
        }
        assert_eq!(histogram.max(), Duration::from_micros(3_700_000));
        assert_eq!(histogram.mean(), Duration::from_nanos(1_850_018_500));
    }

    #[test]
    fn empty_one_value_and_beyond_the_limit() {
        let mut histogram = Histogram::new(Histogram::FINE);
        assert_eq!(histogram.percentile(99.0), Duration::ZERO);
        assert_eq!(histogram.mean(), Duration::ZERO);
        histogram.push(Duration::from_micros(1000));
        for percent in [0.0, 50.0, 100.0] {
            assert_eq!(histogram.percentile(percent), Duration::from_micros(1000));
        }
        histogram.push(Duration::from_secs(10_000));
        assert_eq!(histogram.percentile(100.0), Duration::from_secs(10_000));
    }

    #[test]
    fn merging_is_the_same_as_counting_in_one_place() {
        let mut random = fastrand::Rng::with_seed(7);
        let (mut one, mut left, mut right) = (Histogram::new(7), Histogram::new(7), Histogram::new(7));
        for _ in 0..10_000 {
            let value = Duration::from_micros(random.u64(0..10_000_000));
            one.push(value);
            if random.bool() {
                left.push(value)
            } else {
                right.push(value)
            }
        }
        left.merge(&right);
        assert_eq!(left, one);
        let mut coarse = Histogram::new(Histogram::COARSE);
        coarse.merge(&one);
        assert_eq!(
            (coarse.count(), coarse.max(), coarse.mean()),
            (one.count(), one.max(), one.mean())
        );
    }
}
