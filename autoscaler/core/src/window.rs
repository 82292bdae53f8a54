//! The recent past in one-second buckets: average, weighted average, maximum.
//!
//! A [`Window`] is a ring of buckets for the last `length` seconds. Values of one second add up. It behaves as Knative's
//! buckets do, to the digit: a window that is only partly filled is averaged over what there is, a gap without writes counts
//! as zeros once something older than the gap has been written, data that comes late goes where it belongs, and a gap of a
//! whole window starts anew. [`Maximum`] keeps the largest value over a delay.

use std::collections::VecDeque;
use std::time::Duration;

use crate::{Aggregation, Time};

/// Averages are cut to this many parts of one: six digits.
const PRECISION: f64 = 1e6;
/// The newest bucket weighs at least this much in a weighted average.
const SMALLEST_COEFFICIENT: f64 = 0.2;
/// All buckets together weigh at least this much in a weighted average.
const WEIGHT: f64 = 0.9999;

/// A ring of one-second buckets.
#[derive(Clone, Debug, PartialEq)]
pub struct Window {
    /// Indexed by second modulo length. Buckets outside of `first..=last` are zero.
    buckets: Vec<f64>,
    /// Seconds of the first and the last write. `None`: nothing has been written.
    written: Option<(u64, u64)>,
}

impl Window {
    /// An empty window. Its length is taken in whole seconds, at least one.
    #[must_use]
    pub fn new(length: Duration) -> Self {
        let seconds = usize::try_from(length.as_secs())
            .unwrap_or(usize::MAX)
            .clamp(1, 86_400);
        Self {
            buckets: vec![0.0; seconds],
            written: None,
        }
    }

    /// Changes its length; the newest seconds that fit stay.
    pub fn resize(&mut self, length: Duration) {
        let mut resized = Self::new(length);
        if resized.seconds() == self.seconds() {
            return;
        }
        if let Some((first, last)) = self.written {
            let kept = resized.seconds().min(self.seconds());
            let oldest = last.saturating_sub(kept - 1).max(first);
            for second in oldest..=last {
                resized.record(Time::from_secs(second), self.buckets[self.index(second)]);
            }
        }
        *self = resized;
    }

    /// Its length in seconds.
    #[must_use]
    pub fn seconds(&self) -> u64 {
        self.buckets.len() as u64
    }

    /// Adds `value` to the second of `at`. What is older than the window is not kept.
    pub fn record(&mut self, at: Time, value: f64) {
        let second = at.second();
        self.written = Some(match self.written {
            None => (second, second),
            Some((_, last)) if second >= last.saturating_add(self.seconds()) => {
                self.buckets.fill(0.0);
                (second, second)
            }
            Some((first, last)) if second > last => {
                (last + 1..=second).for_each(|gap| *self.bucket(gap) = 0.0);
                (first, second)
            }
            Some((_, last)) if second + self.seconds() <= last => return,
            Some((first, last)) => (first.min(second), last),
        });
        *self.bucket(second) += value;
    }

    /// Whether nothing was written for longer than the window.
    #[must_use]
    pub fn is_empty(&self, now: Time) -> bool {
        self.written
            .is_none_or(|(_, last)| now.second().saturating_sub(last) > self.seconds())
    }

    /// The average at `now`, linear or weighted.
    #[must_use]
    pub fn average(&self, now: Time, aggregation: Aggregation) -> f64 {
        match aggregation {
            Aggregation::Linear => self.linear(now),
            Aggregation::WeightedExponential => self.weighted(now),
        }
    }

    /// The mean over the seconds from the first write on, at most the window.
    fn linear(&self, now: Time) -> f64 {
        let Some((first, last)) = self.written else {
            return 0.0;
        };
        // Seconds since the last write: those at the window's other end no longer count, and are not averaged over.
        let gap = now.second().saturating_sub(last);
        if gap >= self.seconds() {
            return 0.0;
        }
        let left = self.seconds() - gap;
        let valid = left.min((last - first).saturating_add(1));
        // Added up anew rather than carried along: a sum kept up by adding and subtracting drifts.
        let sum: f64 = (0..left).map(|age| self.at(last, age)).sum();
        (sum / valid as f64 * PRECISION).floor() / PRECISION
    }

    /// `sum of value * c * (1 - c)^age`, with ages in seconds before `now`.
    fn weighted(&self, now: Time) -> f64 {
        let Some((_, last)) = self.written else {
            return 0.0;
        };
        let gap = now.second().saturating_sub(last);
        if gap > self.seconds() {
            return 0.0;
        }
        let coefficient = coefficient(self.buckets.len());
        let mut weight = coefficient * (1.0 - coefficient).powi(i32::try_from(gap).unwrap_or(i32::MAX));
        let mut sum = 0.0;
        for age in 0..self.seconds() - gap {
            sum += self.at(last, age) * weight;
            weight *= 1.0 - coefficient;
        }
        sum
    }

    /// The bucket `age` seconds before `last`.
    fn at(&self, last: u64, age: u64) -> f64 {
        last.checked_sub(age)
            .map_or(0.0, |second| self.buckets[self.index(second)])
    }

    fn bucket(&mut self, second: u64) -> &mut f64 {
        let index = self.index(second);
        &mut self.buckets[index]
    }

    fn index(&self, second: u64) -> usize {
        // The remainder is less than the length, which is a usize.
        (second % self.seconds()) as usize
    }
}

/// The weight of the newest of `buckets`: so large that all together weigh [`WEIGHT`], and at least
/// [`SMALLEST_COEFFICIENT`].
fn coefficient(buckets: usize) -> f64 {
    (1.0 - (1.0 - WEIGHT).powf(1.0 / buckets as f64)).max(SMALLEST_COEFFICIENT)
}

/// The largest value of the last `delay`, in steps of `step`.
///
/// Values of one step are not told apart, as in Knative: of two within a step the larger counts.
#[derive(Clone, Debug, PartialEq)]
pub struct Maximum {
    step: Duration,
    /// How many steps it looks back.
    steps: u64,
    /// Number of the step and value, values falling: what is smaller and older than another can never be the largest.
    /// Bounded by `steps`.
    values: VecDeque<(u64, u32)>,
}

impl Maximum {
    /// An empty one.
    #[must_use]
    pub fn new(delay: Duration, step: Duration) -> Self {
        let step = step.max(Duration::from_millis(1));
        Self {
            step,
            steps: steps(delay, step),
            values: VecDeque::new(),
        }
    }

    /// Notes `value` and returns the largest of the last `delay`.
    pub fn record(&mut self, now: Time, value: u32) -> u32 {
        let step = u64::try_from(now.since_epoch().as_millis() / self.step.as_millis()).unwrap_or(u64::MAX);
        while self.values.back().is_some_and(|(_, last)| *last <= value) {
            self.values.pop_back();
        }
        self.values.push_back((step, value));
        while self
            .values
            .front()
            .is_some_and(|(first, _)| first.saturating_add(self.steps) <= step)
        {
            self.values.pop_front();
        }
        self.largest()
    }

    /// The largest value now kept; 0 when there is none.
    #[must_use]
    pub fn largest(&self) -> u32 {
        self.values.front().map_or(0, |(_, value)| *value)
    }

    /// When the largest value stops counting.
    #[must_use]
    pub fn expires(&self) -> Option<Time> {
        let (step, _) = self.values.front()?;
        let millis = step
            .saturating_add(self.steps)
            .saturating_mul(u64::try_from(self.step.as_millis()).unwrap_or(u64::MAX));
        Some(Time::from_millis(millis))
    }

    /// The largest value without those that stop counting by `then`: where it goes if nothing larger comes.
    #[must_use]
    pub fn afterwards(&self) -> Option<u32> {
        self.values.get(1).map(|(_, value)| *value)
    }

    /// Looks back over another delay from now on.
    pub fn set_delay(&mut self, delay: Duration) {
        self.steps = steps(delay, self.step);
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.values.clear();
    }
}

fn steps(delay: Duration, step: Duration) -> u64 {
    u64::try_from(delay.as_millis().div_ceil(step.as_millis()).max(1)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
