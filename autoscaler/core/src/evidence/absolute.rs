//! Is the candidate's own bad rate above its budget, or safely below what may be shipped?
//!
//! Both are bets as in [`relative`](super::relative), on the share of the candidate's own requests that are bad:
//! [`ln_e`] bets that it is more than the budget, [`ln_s`] that it is less than what may be shipped. They take requests for
//! independent, which requests of one client that repeats itself are not: that is why the caller gives the first one less
//! of the stake, and none while the stable revision is above the budget too.

use super::log::{ln_mean_exp, times_ln};

/// Bets that the share is this many times the budget.
const TIMES_OVER: [f64; 4] = [1.5, 2.0, 3.0, 5.0];
/// Bets that the share is this much.
const SHARES_OVER: [f64; 4] = [0.1, 0.2, 0.5, 0.98];
/// Bets that the share is this part of what may be shipped. Nothing bad at all is the usual case.
const PARTS_BELOW: [f64; 5] = [0.0, 0.02, 0.1, 0.25, 0.5];
/// No budget below this or above one minus this: logarithms stay finite.
const LEAST_SHARE: f64 = 1e-9;

/// The natural logarithm of the evidence that more than `budget` (a share, `0..1`) of the requests are bad.
#[must_use]
pub fn ln_e(budget: f64, requests: u64, bad: u64) -> f64 {
    let (budget, bad) = (within(budget), bad.min(requests));
    let good = requests - bad;
    let bets = TIMES_OVER.iter().map(|times| times * budget).chain(SHARES_OVER);
    let over = bets.filter(|share| *share > budget && *share < 1.0);
    // For a budget above all of these the halfway to everything is left.
    let mut over: Vec<f64> = over.collect();
    if over.is_empty() {
        over.push(f64::midpoint(1.0, budget));
    }
    let gains = over
        .iter()
        .map(|share| times_ln(bad, share / budget) + times_ln(good, (1.0 - share) / (1.0 - budget)));
    ln_mean_exp(gains)
}

/// The natural logarithm of the evidence that less than `rate` (a share, `0..1`) of the requests are bad.
#[must_use]
pub fn ln_s(rate: f64, requests: u64, bad: u64) -> f64 {
    let (rate, bad) = (within(rate), bad.min(requests));
    let good = requests - bad;
    let gains = PARTS_BELOW
        .iter()
        .map(|part| times_ln(bad, *part) + times_ln(good, (1.0 - part * rate) / (1.0 - rate)));
    ln_mean_exp(gains)
}

/// The smallest share that can be ruled out with confidence `1 − beta`, at every look at once; 1 when none can.
#[must_use]
pub fn upper_bound(beta: f64, requests: u64, bad: u64) -> f64 {
    let needed = -within(beta).ln();
    // The evidence against a share grows with the share, so halving finds where it is just enough.
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..30 {
        let middle = f64::midpoint(low, high);
        if ln_s(middle, requests, bad) >= needed {
            high = middle;
        } else {
            low = middle;
        }
    }
    high
}

/// How many more requests, all of them good, make the evidence for less than `rate` reach `1 / beta`. `None`: more than
/// a billion.
#[must_use]
pub fn requests_missing(rate: f64, beta: f64, requests: u64, bad: u64) -> Option<u64> {
    const MOST: u64 = 1_000_000_000;
    let needed = -within(beta).ln();
    let enough = |more: u64| ln_s(rate, requests.saturating_add(more), bad) >= needed;
    if !enough(MOST) {
        return None;
    }
    let (mut low, mut high) = (0, MOST);
    while low < high {
        let middle = u64::midpoint(low, high);
        if enough(middle) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    Some(low)
}

/// A share that is neither nothing nor everything; what is not a number is the strictest.
fn within(share: f64) -> f64 {
    if share.is_nan() {
        return LEAST_SHARE;
    }
    share.clamp(LEAST_SHARE, 1.0 - LEAST_SHARE)
}
