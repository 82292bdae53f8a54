//! When an activator takes a candidate out by itself: whose was the next bad answer? Pure.
//!
//! The coin gives the candidate a share `w` of the requests. If it is at most `t` times as bad as the stable pool, a bad
//! answer is its own with probability at most `p = w·t / (1 − w + w·t)`, however the rates drift. Each of some ratios `r`
//! bets that it is `r` times as bad as that: it gains `θ/p` with a bad answer of the candidate's and `(1 − θ)/(1 − p)`
//! with one of the stable pool's, where `θ` is `p` with `r·t` for `t`. The mean of the bets, `E`, exceeds `x` with
//! probability at most `1/x` if the candidate is fine. The same as the autoscaler's relative test, kept as it grows.

use crds::route::RouteBreaker;

/// How many times worse than tolerated the candidate may be: each an equal part of the stake.
const RATIOS: [f64; 7] = [1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0];

/// So much evidence where the Route's number is none.
const USUAL: f64 = 10_000.0;

/// What it takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Breaker {
    /// At so much evidence, above 1.
    pub(super) evidence: f64,
    /// How many times as bad is still fine; at least 1.
    pub(super) tolerance: f64,
}

impl Breaker {
    pub(super) fn of(asked: &RouteBreaker) -> Self {
        Self {
            evidence: Some(asked.evidence)
                .filter(|evidence| evidence.is_finite() && *evidence > 1.0)
                .unwrap_or(USUAL),
            tolerance: Some(asked.tolerance)
                .filter(|tolerance| tolerance.is_finite())
                .map_or(1.0, |tolerance| tolerance.max(1.0)),
        }
    }
}

/// The bets, as logarithms.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Evidence([f64; RATIOS.len()]);

impl Evidence {
    /// Takes one bad answer, the candidate's or not, that was assigned when the candidate's share was `share`. At none and
    /// at all it says nothing, because nothing is compared.
    pub(super) fn see(&mut self, tolerance: f64, share: f64, is_candidate: bool) {
        if !(share > 0.0 && share < 1.0) {
            return;
        }
        for (bet, ratio) in self.0.iter_mut().zip(RATIOS) {
            // θ/p and (1−θ)/(1−p), with what they have in common cancelled.
            let common = (1.0 - share + share * tolerance) / (1.0 - share + share * ratio * tolerance);
            *bet += if is_candidate {
                (ratio * common).ln()
            } else {
                common.ln()
            };
        }
    }

    /// `E`: 1 before anything is seen.
    pub(super) fn e(&self) -> f64 {
        // The sum may be beyond any number; it is compared all the same.
        self.0.iter().map(|bet| bet.exp()).sum::<f64>() / RATIOS.len() as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn e_of(tolerance: f64, seen: &[(f64, bool, u32)]) -> f64 {
        let mut evidence = Evidence::default();
        for (share, is_candidate, times) in seen {
            for _ in 0..*times {
                evidence.see(tolerance, *share, *is_candidate);
            }
        }
        evidence.e()
    }

    #[test]
    fn evidence_is_the_mean_of_the_bets() {
        // θ/p = r·(1−w+wt)/(1−w+wrt), worked out by hand for t = 1.
        let hit = |share: f64, times: i32| {
            let bets = RATIOS.map(|ratio| (ratio / (1.0 - share + share * ratio)).powi(times));
            bets.iter().sum::<f64>() / 7.0
        };
        for (what, tolerance, seen, wanted) in [
            ("nothing", 1.0, &[][..], 1.0),
            ("one at half", 1.0, &[(0.5, true, 1)][..], hit(0.5, 1)),
            ("five at a fifth", 1.0, &[(0.2, true, 5)][..], hit(0.2, 5)),
            (
                "two steps",
                1.0,
                &[(0.0, true, 9), (1.0, true, 9), (0.01, true, 1)][..],
                hit(0.01, 1),
            ),
            (
                "tolerance of 2 at half",
                2.0,
                &[(0.5, true, 1)][..],
                RATIOS
                    .map(|ratio| ratio * 1.5 / (0.5 + ratio))
                    .iter()
                    .sum::<f64>()
                    / 7.0,
            ),
            (
                "one of the stable pool's",
                1.0,
                &[(0.5, false, 1)][..],
                RATIOS.map(|ratio| 1.0 / (0.5 + 0.5 * ratio)).iter().sum::<f64>() / 7.0,
            ),
        ] {
            let e = e_of(tolerance, seen);
            assert!((e - wanted).abs() < 1e-9 * wanted, "{what}: {e}, wanted {wanted}");
        }
    }

    #[test]
    fn a_candidate_that_only_fails_is_taken_out_within_a_few_answers() {
        for (share, most) in [(0.01, 3), (0.05, 4), (0.2, 8), (0.5, 18)] {
            let needed = (1..).find(|bad| e_of(1.0, &[(share, true, *bad)]) >= USUAL);
            assert!(needed.is_some_and(|needed| needed <= most), "{share}: {needed:?}");
        }
    }

    #[test]
    fn equally_bad_pools_gather_no_evidence() {
        let mut random = fastrand::Rng::with_seed(3);
        let mut tripped = 0;
        for _ in 0..2_000 {
            let mut evidence = Evidence::default();
            for at in 0..500 {
                let share = [0.05, 0.2, 0.5][at % 3];
                evidence.see(1.0, share, random.f64() < share);
                if evidence.e() >= 100.0 {
                    tripped += 1;
                    break;
                }
            }
        }
        // At most 1 % may: 20 expected at worst, and no more than 36 with any seed worth its name.
        assert!(tripped <= 36, "{tripped} of 2000 reach E = 100");
    }

    #[test]
    fn numbers_that_are_none_become_the_usual_ones() {
        for (evidence, tolerance, wanted) in [
            (500.0, 1.5, (500.0, 1.5)),
            (0.0, 0.0, (USUAL, 1.0)),
            (f64::NAN, f64::NAN, (USUAL, 1.0)),
            (f64::INFINITY, f64::INFINITY, (USUAL, 1.0)),
            (-1.0, -1.0, (USUAL, 1.0)),
        ] {
            let read = Breaker::of(&RouteBreaker { evidence, tolerance });
            assert_eq!((read.evidence, read.tolerance), wanted);
        }
    }
}
