//! Is the candidate worse than the stable revision? Which of them did the next bad request hit?
//!
//! Each request goes to the candidate with a known weight `w`, by a coin that the activator throws. If the candidate is at
//! most `tolerance` times as bad as the stable revision, then a bad request is the candidate's with probability at most
//! `p = w·t / (1 − w + w·t)`, whatever the rates are and however they drift: an outage of something shared, a wave of load
//! or another weight changes how many requests are bad, not whose they are. If it is `r` times as bad as that, the
//! probability is `θ`, the same with `r·t`. The product of `θ/p` for each bad request of the candidate and of
//! `(1−θ)/(1−p)` for each of the stable revision is a bet whose expected gain is at most nothing, so its mean over the
//! ratios, `E`, exceeds `1/α` with probability at most `α`, at any of any number of looks (Ville's inequality).
//!
//! All that is needed are two counts for each weight, so it can be computed anew from sums at any time.

use super::log::ln_mean_exp;

/// How many times worse than tolerated the candidate may be: each an equal part of the stake.
pub const RATIOS: [f64; 7] = [1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0];

/// The bad requests of both revisions while one weight stood.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bad {
    /// The candidate's weight in basis points. Pairs of mirrored requests count with 5,000.
    pub weight: u32,
    /// Bad requests that the candidate answered.
    pub candidate: u64,
    /// Bad requests that the stable revision answered.
    pub stable: u64,
}

/// The natural logarithm of `E`: evidence that the candidate is more than `tolerance` times as bad as the stable revision.
///
/// Weights 0 and 10,000 say nothing, because nothing is compared. `tolerance` is at least 1.
#[must_use]
pub fn ln_e(tolerance: f64, steps: impl IntoIterator<Item = Bad> + Clone) -> f64 {
    let bets = RATIOS.iter().map(|ratio| {
        let gains = steps.clone().into_iter().map(|step| {
            let (hit, miss) = ln_factors(tolerance, *ratio, step.weight);
            hit * step.candidate as f64 + miss * step.stable as f64
        });
        gains.sum::<f64>()
    });
    ln_mean_exp(bets)
}

/// What one bad request of the candidate, and one of the stable revision, adds to the logarithm of the bet on `ratio`.
fn ln_factors(tolerance: f64, ratio: f64, weight: u32) -> (f64, f64) {
    if weight == 0 || weight >= crate::rollout::FULL {
        return (0.0, 0.0);
    }
    let share = f64::from(weight) / f64::from(crate::rollout::FULL);
    let worse = ratio * tolerance;
    // θ/p and (1−θ)/(1−p), with what they have in common cancelled.
    let common = ((1.0 - share) + share * tolerance) / ((1.0 - share) + share * worse);
    ((ratio * common).ln(), common.ln())
}

/// `E` as it grows, one bad request at a time: what an activator's breaker keeps, and what the sums must agree with.
#[derive(Clone, Debug, PartialEq)]
pub struct Stream {
    tolerance: f64,
    bets: [f64; RATIOS.len()],
}

impl Stream {
    /// Nothing seen yet: `E` is 1.
    #[must_use]
    pub fn new(tolerance: f64) -> Self {
        Self {
            tolerance,
            bets: [0.0; RATIOS.len()],
        }
    }

    /// Takes one bad request, the candidate's or not, at the candidate's weight in basis points.
    pub fn see(&mut self, weight: u32, candidate: bool) {
        for (bet, ratio) in self.bets.iter_mut().zip(RATIOS) {
            let (hit, miss) = ln_factors(self.tolerance, ratio, weight);
            *bet += if candidate { hit } else { miss };
        }
    }

    /// The natural logarithm of `E`.
    #[must_use]
    pub fn ln_e(&self) -> f64 {
        ln_mean_exp(self.bets.iter().copied())
    }
}
