//! The error bounds of the tests, over many seeded runs, by exact confidence bounds. One command makes the whole report:
//! `cargo run --release -p dormouse-core --example evidence-report`.

#[path = "../examples/evidence-report/simulate.rs"]
mod simulate;

use dormouse_core::evidence::Analysis;
use simulate::{NULLS, UNFIT, shipped, upper_bound};

const CONFIDENCE: f64 = 0.99;

fn no_healthy_candidate_is_rolled_back_more_often_than_alpha(runs: u64) {
    let alpha = Analysis::default().alpha;
    let mut all = 0;
    for (seed, null) in (1_u64..).zip(NULLS) {
        let hits = null.rolled_back(runs, seed << 32);
        let bound = upper_bound(hits, runs, CONFIDENCE);
        assert!(
            bound <= alpha,
            "{}: {hits} of {runs}, at most {bound:.4}",
            null.name
        );
        all += hits;
    }
    let total = runs * NULLS.len() as u64;
    assert!(
        total >= 100_000 && upper_bound(all, total, CONFIDENCE) <= alpha,
        "{all} of {total}"
    );
}

fn no_unfit_candidate_is_shipped_more_often_than_beta(runs: u64) {
    let beta = Analysis::default().beta;
    for (seed, (name, rate)) in (101_u64..).zip(UNFIT) {
        let hits = shipped(rate, runs, seed << 32);
        let bound = upper_bound(hits, runs, CONFIDENCE);
        assert!(bound <= beta, "{name}: {hits} of {runs}, at most {bound:.4}");
    }
}

#[test]
fn of_a_hundred_thousand_healthy_candidates_at_most_alpha_are_rolled_back() {
    no_healthy_candidate_is_rolled_back_more_often_than_alpha(10_000);
}

#[test]
fn of_many_unfit_candidates_at_most_beta_are_shipped() {
    no_unfit_candidate_is_shipped_more_often_than_beta(20_000);
}

#[test]
#[ignore = "minutes: ten times as many runs of each kind"]
fn the_bounds_hold_over_a_million_runs() {
    no_healthy_candidate_is_rolled_back_more_often_than_alpha(100_000);
    no_unfit_candidate_is_shipped_more_often_than_beta(200_000);
}

#[test]
fn the_exact_bound_is_that_of_the_tables() {
    for (hits, runs, confidence, bound) in [
        (0, 300, 0.95, 0.009_936),
        (1, 100, 0.95, 0.046_56),
        (5, 10, 0.975, 0.812_9),
        (10, 10, 0.95, 1.0),
    ] {
        let found = upper_bound(hits, runs, confidence);
        assert!((found - bound).abs() < 1e-4, "{hits} of {runs}: {found}");
    }
}
