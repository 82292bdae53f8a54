//! What activators have counted for one attempt: cumulative integers by epoch and activator instance.
//!
//! An epoch is a time during which a weight stood; activators count a request in the epoch in which they assigned it. Each
//! number only grows in one instance, so two states of a row are merged by taking the larger of each: merging the same
//! report twice, or an old one late, changes nothing, and the order does not matter. What is lost is not there yet.

use std::collections::BTreeMap;

use super::Histogram;

/// How many latency thresholds are counted: the stable revision's p50, p90 and p99, and the objective.
pub const CUTS: usize = 4;
/// Most activator instances whose counts of one attempt are kept. Those of later ones are left out, which delays a
/// verdict and never distorts it. Activators are few; this is a crash loop's bound.
pub const INSTANCES: usize = 64;
/// Most epochs of one attempt: a ramp of 1 % steps fits.
pub const EPOCHS: usize = 128;

/// The thresholds of service time, as buckets, frozen when an attempt begins. Slow is what lies in a later bucket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cuts(pub [Option<usize>; CUTS]);

impl Cuts {
    /// Which part of the stable revision's requests may be slower than each relative threshold, slowest part last.
    pub const SHARES: [f64; 3] = [0.5, 0.9, 0.99];
    /// The objective's place.
    pub const OBJECTIVE: usize = 3;
    /// So many requests beyond a quantile, at least, before it is taken for a threshold: fewer say little about it.
    const LEAST_BEYOND: f64 = 5.0;

    /// Freezes the thresholds: quantiles of what the stable revision took so far, and the objective.
    ///
    /// Any threshold gives a valid test as long as it is chosen before the counting begins; a good one gives a strong test.
    #[must_use]
    pub fn freeze(stable: &Histogram, objective: Option<std::time::Duration>) -> Self {
        let mut cuts = [None; CUTS];
        for (cut, share) in cuts.iter_mut().zip(Self::SHARES) {
            if stable.total() as f64 * (1.0 - share) >= Self::LEAST_BEYOND {
                *cut = stable.quantile(share);
            }
        }
        cuts[Self::OBJECTIVE] = objective.map(super::histogram::bucket);
        Self(cuts)
    }
}

/// One revision's requests, as an activator reports them for one epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ArmSample {
    /// Requests that ended. With session affinity: sessions that began.
    pub requests: u64,
    /// Of these, how many were bad. With session affinity: sessions with a bad request.
    pub bad: u64,
    /// Service times (dispatch to response head) outside of a pod's warm-up.
    pub times: Histogram,
}

/// What one activator instance reports for one epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Its process.
    pub instance: String,
    /// The number of the epoch in its attempt.
    pub epoch: u32,
    /// The stable revision's requests that were assigned by the coin.
    pub stable: ArmSample,
    /// The candidate's requests that were assigned by the coin.
    pub candidate: ArmSample,
    /// The candidate's requests that a header or we ourselves have sent there: not assigned by the coin.
    pub direct: ArmSample,
}

/// One revision's requests, as far as they matter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arm {
    /// Requests that ended.
    pub requests: u64,
    /// Of these, how many were bad.
    pub bad: u64,
    /// Requests with a service time, outside of a pod's warm-up.
    pub timed: u64,
    /// Of these, how many were over each threshold.
    pub over: [u64; CUTS],
}

impl Arm {
    fn of(sample: &ArmSample, cuts: &Cuts) -> Self {
        Self {
            requests: sample.requests,
            bad: sample.bad.min(sample.requests),
            timed: sample.times.total(),
            over: cuts
                .0
                .map(|cut| cut.map_or(0, |bucket| sample.times.over(bucket))),
        }
    }

    fn join(&mut self, other: &Self) {
        self.requests = self.requests.max(other.requests);
        self.bad = self.bad.max(other.bad);
        self.timed = self.timed.max(other.timed);
        for (mine, its) in self.over.iter_mut().zip(other.over) {
            *mine = (*mine).max(its);
        }
    }

    /// Adds requests of others.
    pub fn add(&mut self, other: &Self) {
        self.requests = self.requests.saturating_add(other.requests);
        self.bad = self.bad.saturating_add(other.bad);
        self.timed = self.timed.saturating_add(other.timed);
        for (mine, its) in self.over.iter_mut().zip(other.over) {
            *mine = mine.saturating_add(its);
        }
    }
}

/// The requests of one epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// Of the stable revision, by the coin. Of mirrored pairs: `bad` counts pairs of which only its answer was bad.
    pub stable: Arm,
    /// Of the candidate, by the coin. Of mirrored pairs: `bad` counts pairs of which only its answer was bad.
    pub candidate: Arm,
    /// Of the candidate, not by the coin.
    pub direct: Arm,
}

impl Row {
    fn join(&mut self, other: &Self) {
        self.stable.join(&other.stable);
        self.candidate.join(&other.candidate);
        self.direct.join(&other.direct);
    }

    /// Adds requests of others.
    pub fn add(&mut self, other: &Self) {
        self.stable.add(&other.stable);
        self.candidate.add(&other.candidate);
        self.direct.add(&other.direct);
    }
}

/// All counts of one attempt. Merging is idempotent, and its order does not matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    rows: BTreeMap<(u32, String), Row>,
}

impl Counters {
    /// Takes a report.
    pub fn observe(&mut self, sample: &Sample, cuts: &Cuts) {
        let row = Row {
            stable: Arm::of(&sample.stable, cuts),
            candidate: Arm::of(&sample.candidate, cuts),
            direct: Arm::of(&sample.direct, cuts),
        };
        self.insert(sample.epoch, &sample.instance, &row);
    }

    /// Takes a row, as it was kept in a status.
    pub fn insert(&mut self, epoch: u32, instance: &str, row: &Row) {
        if *row == Row::default() || epoch as usize >= EPOCHS || !self.has_room(instance) {
            return;
        }
        self.rows
            .entry((epoch, instance.to_owned()))
            .or_default()
            .join(row);
    }

    /// Takes everything another one has.
    pub fn merge(&mut self, other: &Self) {
        for ((epoch, instance), row) in &other.rows {
            self.insert(*epoch, instance, row);
        }
    }

    fn has_room(&self, instance: &str) -> bool {
        let instances: std::collections::BTreeSet<_> = self.rows.keys().map(|(_, name)| name).collect();
        instances.len() < INSTANCES || instances.iter().any(|name| *name == instance)
    }

    /// All rows: epoch, instance, counts. What a status keeps.
    pub fn rows(&self) -> impl Iterator<Item = (u32, &str, &Row)> {
        self.rows
            .iter()
            .map(|((epoch, instance), row)| (*epoch, instance.as_str(), row))
    }

    /// The sum over all activators for each epoch, `epochs` of them.
    #[must_use]
    pub fn by_epoch(&self, epochs: usize) -> Vec<Row> {
        let mut sums = vec![Row::default(); epochs];
        for ((epoch, _), row) in &self.rows {
            if let Some(sum) = sums.get_mut(*epoch as usize) {
                sum.add(row);
            }
        }
        sums
    }
}
