//! Whether a candidate is worse than the stable revision, by sequential tests that may be looked at all the time.
//!
//! [`judge`] turns what activators have [counted](Counters) into a [`Verdict`]. Every test is a bet against the candidate
//! being fine, with one unit of money, that cannot be expected to gain if it is: so the money, `E`, ever exceeds `1/α` with
//! probability at most `α`, however often one looks. Averages of bets are bets, so the tests share one unit among them
//! and need no correction for being many.
//!
//! | test | question | needs |
//! |---|---|---|
//! | [`relative`] | is the candidate worse than the stable revision beside it? | the coin that assigned each request |
//! | [`absolute::ln_e`] | does it break its objective? | requests that are independent |
//! | [`absolute::ln_s`] | is it safely better than what may be shipped? | the same |
//!
//! Relative tests run on bad answers and on answers slower than the stable revision's own median, p90 and p99 of before.
//! Mirrored pairs are a relative test with an even coin: of a pair with one bad answer, whose was it? Requests that were not
//! assigned by the coin (by a header, or our own synthetic ones) count for the other tests only. While a pod warms up its
//! times are left out; its bad answers count, because somebody got them.
//!
//! Everything is a function of sums of integers, so it can be computed anew after any crash. The error bounds hold for each
//! attempt.

pub mod absolute;
mod counters;
pub mod histogram;
mod log;
pub mod relative;

use std::time::Duration;

pub use counters::{Arm, ArmSample, CUTS, Counters, Cuts, EPOCHS, INSTANCES, Row, Sample};
pub use histogram::Histogram;
pub use relative::Bad;

use crate::rollout::FULL;
use log::ln_sum_exp;

/// What is tested, and how sure it has to be.
#[derive(Clone, Debug, PartialEq)]
pub struct Analysis {
    /// Largest probability of rolling back a candidate that is not worse, `0..1`.
    pub alpha: f64,
    /// Largest probability of shipping one of which at least `max_bad_rate` of the requests are bad, `0..1`.
    pub beta: f64,
    /// The share of bad requests that must not be shipped, `0..1`.
    pub max_bad_rate: f64,
    /// How many times as bad as the stable revision is still fine; at least 1.
    pub tolerance: f64,
    /// The share of requests that may be bad, `0..1` (0.01 for an objective of 99 %); `None`: no objective.
    pub budget: Option<f64>,
    /// Whether the candidate's service times are compared with the stable revision's.
    pub latency: bool,
    /// The time that only a share of requests may exceed, and the share: 500 ms and 0.01 for a p99 of 500 ms.
    pub latency_budget: Option<(Duration, f64)>,
    /// Whether the counts are of sessions. Times are of requests and are not tested then.
    pub sessions: bool,
}

impl Default for Analysis {
    fn default() -> Self {
        Self {
            alpha: 0.01,
            beta: 0.05,
            max_bad_rate: 0.05,
            tolerance: 1.0,
            budget: Some(0.01),
            latency: true,
            latency_budget: None,
            sessions: false,
        }
    }
}

/// A time in which a weight stood.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Epoch {
    /// The candidate's weight, in basis points.
    pub weight: u32,
    /// Whether each request went to both, and the counts are of pairs.
    pub mirrored: bool,
}

/// What one test has come to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Term {
    /// Which.
    pub test: Test,
    /// Its share of the stake. All shares together are 1.
    pub share: f64,
    /// The natural logarithm of its evidence.
    pub ln_e: f64,
    /// It does not count while the stable revision breaks the same objective.
    pub dropped: bool,
}

/// The tests that can roll back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Test {
    /// Bad answers, beside the stable revision's.
    Errors,
    /// Bad answers, against the objective.
    ErrorBudget,
    /// Answers slower than a quantile of the stable revision's, as an index of [`Cuts::SHARES`].
    Slower(usize),
    /// Answers slower than the objective.
    LatencyBudget,
    /// Bad answers since it has all traffic, against the objective.
    Bake,
}

impl Test {
    /// Parts of the stake before they are made to add up to 1. Errors come first; a test that can be fooled by one client
    /// gets half of what its sibling has.
    fn stake(self) -> f64 {
        match self {
            Self::Errors => 6.0,
            Self::ErrorBudget | Self::Bake => 3.0,
            Self::Slower(_) => 1.0,
            Self::LatencyBudget => 1.5,
        }
    }

    /// As it stands in a sentence.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Errors => "bad answers beside the stable revision's",
            Self::ErrorBudget => "bad answers against the objective",
            Self::Slower(0) => "answers slower than the stable revision's median",
            Self::Slower(1) => "answers slower than the stable revision's p90",
            Self::Slower(_) => "answers slower than the stable revision's p99",
            Self::LatencyBudget => "answers slower than the objective",
            Self::Bake => "bad answers since it has all traffic",
        }
    }
}

/// What the evidence says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verdict {
    /// Not enough of it, for either.
    #[default]
    Inconclusive,
    /// The candidate is not as bad as what must not be shipped.
    Safe,
    /// The candidate is worse.
    Worse,
}

/// The evidence so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Evidence {
    /// Requests of the stable revision and of the candidate, pairs not included.
    pub requests: [u64; 2],
    /// Of these, the bad ones.
    pub bad: [u64; 2],
    /// Mirrored pairs.
    pub pairs: u64,
    /// Each test.
    pub terms: Vec<Term>,
    /// The natural logarithm of the evidence that the candidate is worse: all terms together.
    pub ln_e: f64,
    /// The natural logarithm of the evidence that it may be shipped.
    pub ln_s: f64,
    /// With confidence `1 − beta`, at most this share of the candidate's requests is bad.
    pub upper_bound: f64,
    /// Requests of the candidate, all good, that are missing until it may be shipped. `None`: out of reach.
    pub missing: Option<u64>,
    /// What follows.
    pub verdict: Verdict,
}

impl Evidence {
    /// The test with the most evidence of all.
    #[must_use]
    pub fn strongest(&self) -> Option<&Term> {
        let counted = self.terms.iter().filter(|term| !term.dropped);
        counted.max_by(|one, other| one.ln_weighted().total_cmp(&other.ln_weighted()))
    }

    /// The evidence that the candidate is worse, cut to what is worth reading: `0..=10⁹`.
    #[must_use]
    pub fn e(&self) -> f64 {
        self.ln_e.exp().min(1e9)
    }

    /// The evidence that it may be shipped, cut alike.
    #[must_use]
    pub fn s(&self) -> f64 {
        self.ln_s.exp().min(1e9)
    }
}

impl Term {
    fn ln_weighted(&self) -> f64 {
        self.ln_e + self.share.ln()
    }
}

/// Weighs everything that has been counted in an attempt.
///
/// Once the candidate has all traffic, only what it does since then is judged: it has no stable revision beside it.
#[must_use]
pub fn judge(analysis: &Analysis, cuts: &Cuts, epochs: &[Epoch], counters: &Counters) -> Evidence {
    weigh(analysis, cuts, epochs, &counters.by_epoch(epochs.len()))
}

/// As [`judge`], from the sums over all activators, one for each epoch.
#[must_use]
pub fn weigh(analysis: &Analysis, cuts: &Cuts, epochs: &[Epoch], sums: &[Row]) -> Evidence {
    let mut evidence = test(analysis, cuts, epochs, sums);
    let (requests, bad) = (evidence.requests[1], evidence.bad[1]);
    evidence.upper_bound = absolute::upper_bound(analysis.beta, requests, bad);
    evidence.missing = absolute::requests_missing(analysis.max_bad_rate, analysis.beta, requests, bad);
    evidence
}

/// As [`weigh`], without the bound and the requests that are missing, which take a search each.
#[must_use]
pub fn test(analysis: &Analysis, cuts: &Cuts, epochs: &[Epoch], sums: &[Row]) -> Evidence {
    let view = View::of(epochs, sums);
    let baking = epochs.last().is_some_and(|epoch| epoch.weight == FULL);
    let mut terms = view.terms(analysis, cuts);
    let stakes: f64 = terms.iter().map(|term| term.share).sum();
    for term in &mut terms {
        term.share /= stakes.max(f64::MIN_POSITIVE);
        term.dropped |= baking != (term.test == Test::Bake);
    }
    let counted = terms.iter().filter(|term| !term.dropped);
    let weighted: Vec<f64> = counted.map(Term::ln_weighted).collect();
    let candidate = view.alone;
    let mut evidence = Evidence {
        requests: [view.stable.requests, candidate.requests],
        bad: [view.stable.bad, candidate.bad],
        pairs: view.pairs,
        ln_e: ln_sum_exp(&weighted),
        terms,
        ln_s: absolute::ln_s(analysis.max_bad_rate, candidate.requests, candidate.bad),
        upper_bound: 1.0,
        missing: None,
        verdict: Verdict::Inconclusive,
    };
    evidence.verdict = if evidence.ln_e >= -analysis.alpha.ln() {
        Verdict::Worse
    } else if evidence.ln_s >= -analysis.beta.ln() {
        Verdict::Safe
    } else {
        Verdict::Inconclusive
    };
    evidence
}

/// The counts, put together as the tests need them.
struct View<'a> {
    /// Epochs in which both were compared.
    compared: Vec<(u32, &'a Row)>,
    stable: Arm,
    /// The candidate's, before it had all traffic: by the coin and direct.
    alone: Arm,
    /// The candidate's, since it has all traffic.
    baked: Arm,
    pairs: u64,
}

impl<'a> View<'a> {
    fn of(epochs: &[Epoch], sums: &'a [Row]) -> Self {
        let mut view = Self {
            compared: Vec::new(),
            stable: Arm::default(),
            alone: Arm::default(),
            baked: Arm::default(),
            pairs: 0,
        };
        for (epoch, row) in epochs.iter().zip(sums) {
            if epoch.mirrored {
                view.pairs = view.pairs.saturating_add(row.candidate.requests);
                // An even coin: of two answers to one request, whose was the bad one?
                view.compared.push((FULL / 2, row));
                view.alone.add(&row.direct);
            } else if epoch.weight >= FULL {
                view.baked.add(&row.candidate);
                view.baked.add(&row.direct);
            } else {
                view.compared.push((epoch.weight, row));
                view.stable.add(&row.stable);
                view.alone.add(&row.candidate);
                view.alone.add(&row.direct);
            }
        }
        view
    }

    /// Every test that is asked for, with its part of the stake. Tests that cannot count yet have theirs all the same:
    /// shares must not depend on what is seen.
    fn terms(&self, analysis: &Analysis, cuts: &Cuts) -> Vec<Term> {
        let mut terms = vec![self.beside(analysis, Test::Errors, |arm| arm.bad)];
        if let Some(budget) = analysis.budget {
            let against = |test, arm: Arm| Term {
                test,
                share: test.stake(),
                ln_e: absolute::ln_e(budget, arm.requests, arm.bad),
                dropped: breaks(budget, self.stable.requests, self.stable.bad),
            };
            terms.push(against(Test::ErrorBudget, self.alone));
            terms.push(against(Test::Bake, self.baked));
        }
        if analysis.sessions {
            return terms;
        }
        if analysis.latency {
            for cut in (0..Cuts::SHARES.len()).filter(|cut| cuts.0[*cut].is_some()) {
                terms.push(self.beside(analysis, Test::Slower(cut), |arm| arm.over[cut]));
            }
        }
        if let (Some((_, share)), Some(_)) = (analysis.latency_budget, cuts.0[Cuts::OBJECTIVE]) {
            let over = |arm: &Arm| arm.over[Cuts::OBJECTIVE];
            terms.push(Term {
                test: Test::LatencyBudget,
                share: Test::LatencyBudget.stake(),
                ln_e: absolute::ln_e(share, self.alone.timed, over(&self.alone)),
                dropped: breaks(share, self.stable.timed, over(&self.stable)),
            });
        }
        terms
    }

    fn beside(&self, analysis: &Analysis, test: Test, bad: impl Fn(&Arm) -> u64) -> Term {
        let steps = self.compared.iter().map(|(weight, row)| Bad {
            weight: *weight,
            candidate: bad(&row.candidate),
            stable: bad(&row.stable),
        });
        Term {
            test,
            share: test.stake(),
            ln_e: relative::ln_e(analysis.tolerance.max(1.0), steps),
            dropped: false,
        }
    }
}

/// Whether the stable revision itself is over the budget: then the objective says nothing about the candidate. One bad
/// request is not enough to say so.
fn breaks(budget: f64, requests: u64, bad: u64) -> bool {
    bad >= 2 && bad as f64 > budget * requests as f64
}

#[cfg(test)]
mod tests;
