//! What users were promised of releases, in simulated time, with the state machine that ships: bad ones are out after few
//! answers, and healthy ones are never thrown out for want of traffic. `docs/evidence.md` has the whole table.

#[allow(
    dead_code,
    reason = "the report uses all of it, this the cases it was promised for"
)]
#[path = "../examples/evidence-report/race.rs"]
mod race;
#[path = "../examples/evidence-report/simulate.rs"]
mod simulate;

use std::time::Duration;

use dormouse_core::rollout::{Mode, Plan, Strategy, Threshold};
use race::{Case, End, Quality, Run, run};

const SEEDS: u64 = 200;

fn case(rps: f64, stable: f64, candidate: f64) -> Case {
    let quality = |bad| Quality {
        bad,
        slower: 1.0,
        hiccups: 0.0,
    };
    Case {
        name: "",
        rps,
        stable: quality(stable),
        candidate: quality(candidate),
        latency: false,
    }
}

/// The usual fixed threshold: 20 % more each half minute, out at the look after five that failed, over two minutes each.
fn threshold() -> (Plan, f64) {
    let rule = Threshold {
        interval: Duration::from_secs(30),
        threshold: 5,
        iterations: 0,
    };
    let plan = Plan {
        mode: Mode::Threshold(rule),
        ..ladder()
    };
    (plan, 120.0)
}

fn ladder() -> Plan {
    Plan {
        strategy: Strategy::Linear {
            step: 2_000,
            max: 7_000,
        },
        ..risk()
    }
}

fn risk() -> Plan {
    Plan {
        bake: Duration::ZERO,
        ..Plan::default()
    }
}

fn runs(case: &Case, plan: &Plan, window: f64) -> Vec<Run> {
    (0..SEEDS)
        .map(|seed| run(case, plan, window, seed << 20))
        .collect()
}

fn all_ended(runs: &[Run], end: End) -> bool {
    runs.iter().all(|run| run.end == end)
}

#[test]
fn a_release_that_fails_every_request_costs_four_answers_at_most() {
    let case = case(50.0, 0.001, 1.0);
    let by_budget = runs(&case, &risk(), 0.0);
    assert!(all_ended(&by_budget, End::RolledBack));
    let worst = by_budget.iter().map(|run| run.failed).max();
    assert!(worst <= Some(4), "{worst:?} failed");
    // At a fifth of the traffic a bad answer says less, and one of the stable revision's own, so early, takes the objective
    // out of the comparison: once in a hundred runs it takes a few more.
    let by_ladder = runs(&case, &ladder(), 0.0);
    assert!(all_ended(&by_ladder, End::RolledBack));
    let few = by_ladder.iter().filter(|run| run.failed <= 4).count() as u64;
    assert!(few * 100 >= SEEDS * 95, "{few} of {SEEDS} cost four at most");
}

#[test]
fn a_release_that_fails_a_tenth_costs_a_quarter_of_what_a_threshold_costs() {
    let case = case(5.0, 0.001, 0.1);
    let (rule, window) = threshold();
    let by_rule = runs(&case, &rule, window);
    assert!(all_ended(&by_rule, End::RolledBack), "the rule finds it as well");
    let failed = |runs: &[Run]| runs.iter().map(|run| run.failed).sum::<u64>();
    let ours = runs(&case, &risk(), 0.0);
    let caught = ours.iter().filter(|run| run.end == End::RolledBack).count() as u64;
    assert!(caught * 100 >= SEEDS * 99, "{caught} of {SEEDS} were caught");
    assert!(
        failed(&ours) * 4 <= failed(&by_rule),
        "{} failed, {} by the rule, over {SEEDS} seeds",
        failed(&ours),
        failed(&by_rule)
    );
}

#[test]
fn a_healthy_release_with_a_request_each_twenty_seconds_is_never_rolled_back() {
    let case = case(0.05, 0.0, 0.0);
    for plan in [risk(), ladder()] {
        let runs = runs(&case, &plan, 0.0);
        assert!(all_ended(&runs, End::Shipped), "under {:?}", plan.strategy);
    }
    let (rule, window) = threshold();
    let by_rule = runs(&case, &rule, window);
    let thrown_out = by_rule.iter().filter(|run| run.end == End::RolledBack).count();
    assert!(
        thrown_out > 0,
        "a threshold throws some out for silence: what is seen here can be seen"
    );
}
