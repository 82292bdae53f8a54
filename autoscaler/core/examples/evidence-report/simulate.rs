//! Runs by the thousand, from a seed: what chance does to a rollout.

// Shared with `tests/evidence.rs`: each of the two uses its part.
#![allow(dead_code)]

use dormouse_core::evidence::{Analysis, Arm, Cuts, Epoch, Row, Verdict, absolute, test};

/// SplitMix64.
#[derive(Clone, Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Evenly in `0..1`.
    pub(crate) fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    pub(crate) fn chance(&mut self, probability: f64) -> bool {
        self.share() < probability
    }

    /// Until the next of something that happens `rate` times a second, in seconds.
    pub(crate) fn wait(&mut self, rate: f64) -> f64 {
        -(1.0 - self.share()).ln() / rate
    }

    /// Normal, mean 0 and deviation 1 (Box and Muller).
    pub(crate) fn normal(&mut self) -> f64 {
        let (one, other) = (1.0 - self.share(), self.share());
        (-2.0 * one.ln()).sqrt() * (std::f64::consts::TAU * other).cos()
    }
}

/// The upper end of the exact one-sided confidence interval (Clopper and Pearson) for a probability, after `hits` of `runs`.
pub(crate) fn upper_bound(hits: u64, runs: u64, confidence: f64) -> f64 {
    if hits >= runs {
        return 1.0;
    }
    // The largest probability with which so few hits are still this likely.
    let tail = |probability: f64| {
        let mut term = runs as f64 * (-probability).ln_1p();
        let odds = probability.ln() - (-probability).ln_1p();
        let mut sum = term.exp();
        for hit in 0..hits {
            term += ((runs - hit) as f64 / (hit + 1) as f64).ln() + odds;
            sum += term.exp();
        }
        sum
    };
    let (mut low, mut high) = (hits as f64 / runs as f64, 1.0);
    for _ in 0..60 {
        let middle = f64::midpoint(low, high);
        if tail(middle) > 1.0 - confidence {
            low = middle;
        } else {
            high = middle;
        }
    }
    high
}

/// How the bad rate of both revisions behaves while nothing is wrong with the candidate.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Rate {
    /// Always the same.
    Constant(f64),
    /// A wave: from nothing to twice this, eight times in a run.
    Wave(f64),
    /// This, and in a twentieth of the time everything is bad: something shared is down.
    Outages(f64),
    /// Runs of bad requests: after a bad one the next is bad with this probability, else with a fiftieth of it.
    Bursts(f64),
}

/// How the weight behaves.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Weights {
    Constant(u32),
    /// 20, 40, 60 and 80 %.
    Ladder,
    /// Another one ten times in a run, at random.
    Random,
}

/// A candidate that is as good as the stable revision.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Null {
    pub(crate) name: &'static str,
    pub(crate) rate: Rate,
    pub(crate) weights: Weights,
    /// Requests in a run. A service with 50 requests per second has so many in seconds, one with 0.05 in hours: the tests
    /// know no time.
    pub(crate) requests: u32,
    /// Whether the objective is tested too; it presumes that the rate keeps it.
    pub(crate) objective: bool,
}

/// Everything that may be thrown at a candidate that is no worse.
pub(crate) const NULLS: [Null; 10] = [
    null(
        "0.1 % bad, 5 %",
        Rate::Constant(0.001),
        Weights::Constant(500),
        4_000,
        true,
    ),
    null(
        "0.9 % bad, ladder",
        Rate::Constant(0.009),
        Weights::Ladder,
        2_000,
        true,
    ),
    null(
        "0.9 % bad, 50 %",
        Rate::Constant(0.009),
        Weights::Constant(5_000),
        2_000,
        true,
    ),
    null(
        "5 % bad, ladder",
        Rate::Constant(0.05),
        Weights::Ladder,
        1_000,
        false,
    ),
    null(
        "30 % bad, random weights",
        Rate::Constant(0.3),
        Weights::Random,
        400,
        false,
    ),
    null(
        "wave around 2 %, ladder",
        Rate::Wave(0.02),
        Weights::Ladder,
        1_500,
        false,
    ),
    null(
        "wave around 10 %, random weights",
        Rate::Wave(0.1),
        Weights::Random,
        600,
        false,
    ),
    null(
        "0.5 % bad with outages, ladder",
        Rate::Outages(0.005),
        Weights::Ladder,
        800,
        false,
    ),
    null(
        "bursts, 50 %",
        Rate::Bursts(0.5),
        Weights::Constant(5_000),
        1_000,
        false,
    ),
    null(
        "bursts, random weights",
        Rate::Bursts(0.8),
        Weights::Random,
        600,
        false,
    ),
];

const fn null(name: &'static str, rate: Rate, weights: Weights, requests: u32, objective: bool) -> Null {
    Null {
        name,
        rate,
        weights,
        requests,
        objective,
    }
}

impl Null {
    pub(crate) fn analysis(&self) -> Analysis {
        Analysis {
            budget: self.objective.then_some(0.01),
            latency: false,
            ..Analysis::default()
        }
    }

    /// How many of so many runs are rolled back, looking at each bad request, and never stopping to look.
    pub(crate) fn rolled_back(&self, runs: u64, seed: u64) -> u64 {
        let analysis = self.analysis();
        (0..runs)
            .filter(|run| {
                self.is_rolled_back(
                    &analysis,
                    &mut Random(seed ^ run.wrapping_mul(0x2545_f491_4f6c_dd1d)),
                )
            })
            .count() as u64
    }

    fn is_rolled_back(&self, analysis: &Analysis, random: &mut Random) -> bool {
        let mut epochs: Vec<Epoch> = Vec::new();
        let mut sums: Vec<Row> = Vec::new();
        let mut was_bad = false;
        for request in 0..self.requests {
            let part = f64::from(request) / f64::from(self.requests);
            let tenth = request.is_multiple_of((self.requests / 10).max(1));
            let weight = match self.weights {
                Weights::Constant(weight) => weight,
                Weights::Ladder => 2_000 * (1 + (part * 4.0) as u32),
                Weights::Random if tenth => 100 + (random.next() % 9_800) as u32,
                Weights::Random => epochs.last().map_or(5_000, |epoch| epoch.weight),
            };
            if epochs.last().is_none_or(|epoch| epoch.weight != weight) {
                epochs.push(Epoch {
                    weight,
                    mirrored: false,
                });
                sums.push(Row::default());
            }
            let probability = match self.rate {
                Rate::Constant(rate) => rate,
                Rate::Wave(rate) => rate * (1.0 + (part * 8.0 * std::f64::consts::TAU).sin()),
                Rate::Outages(_) if (part * 10.0).fract() < 0.05 => 1.0,
                Rate::Outages(rate) => rate,
                Rate::Bursts(stay) if was_bad => stay,
                Rate::Bursts(stay) => stay / 50.0,
            };
            let candidate = random.chance(f64::from(weight) / 10_000.0);
            was_bad = random.chance(probability);
            if let Some(row) = sums.last_mut() {
                count(
                    if candidate {
                        &mut row.candidate
                    } else {
                        &mut row.stable
                    },
                    was_bad,
                );
            }
            // Evidence grows with bad requests only: looking at those is looking all the time.
            if was_bad && test(analysis, &Cuts::default(), &epochs, &sums).verdict == Verdict::Worse {
                return true;
            }
        }
        false
    }
}

fn count(arm: &mut Arm, bad: bool) {
    arm.requests += 1;
    arm.bad += u64::from(bad);
}

/// The share of bad requests by the number of the request.
pub(crate) type RateAt = fn(u32) -> f64;

/// Bad rates that must not be shipped, at the bound and above it.
pub(crate) const UNFIT: [(&str, RateAt); 3] = [
    ("5 % bad, just at the bound", |_| 0.05),
    ("between 5 and 15 % bad, in waves", |request| {
        0.10 + 0.05 * (f64::from(request) / 9.0).sin()
    }),
    ("8 % bad", |_| 0.08),
];

/// How many of so many candidates with this bad rate are found to be safe, looking at each of their requests.
pub(crate) fn shipped(rate: RateAt, runs: u64, seed: u64) -> u64 {
    const REQUESTS: u32 = 500;
    let analysis = Analysis::default();
    let needed = -analysis.beta.ln();
    let is_shipped = |run: &u64| {
        let random = &mut Random(seed ^ run.wrapping_mul(0x2545_f491_4f6c_dd1d));
        let mut arm = Arm::default();
        (0..REQUESTS).any(|request| {
            let bad = random.chance(rate(request));
            count(&mut arm, bad);
            !bad && absolute::ln_s(analysis.max_bad_rate, arm.requests, arm.bad) >= needed
        })
    };
    (0..runs).filter(is_shipped).count() as u64
}
