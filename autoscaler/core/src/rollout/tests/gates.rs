//! Scenes at gates: who has to agree, what a no does, and that nobody is asked twice for one purpose.

use super::world::{Quality, World};
use super::*;

const NO: Option<&str> = Some("the change board said 403");

fn gated(gates: &[Gate], plan: Plan) -> World {
    let mut world = world(Plan {
        gates: gates.iter().copied().collect(),
        ..plan
    });
    world.release("r2", Quality::GOOD);
    world
}

fn say(world: &mut World, gate: Gate, no: Option<&str>) {
    world.says.insert(gate, no.map(str::to_owned));
}

fn told(world: &World, kind: EventKind) -> usize {
    world.kinds().iter().filter(|told| **told == kind).count()
}

fn threshold(threshold: u32) -> Plan {
    Plan {
        strategy: Strategy::Linear {
            step: 2_000,
            max: 7_000,
        },
        mode: Mode::Threshold(Threshold {
            interval: 30 * SECOND,
            threshold,
            iterations: 0,
        }),
        ..risk()
    }
}

#[test]
fn no_pod_starts_before_the_rollout_is_confirmed_however_long_that_takes() {
    let mut world = gated(&[Gate::Rollout], risk());
    say(&mut world, Gate::Rollout, NO);
    world.run(3_000);
    assert_eq!((world.phase(), world.weight()), (Phase::Preparing, 0));
    assert_eq!(world.pools.get("r2").map_or(0, |pool| pool.ready), 0);
    assert!(
        world.reason.contains("confirm-rollout: the change board"),
        "{}",
        world.reason
    );
    assert_eq!(told(&world, EventKind::Waiting), 1, "{:?}", world.told);
    assert!(
        (295..=305).contains(&world.asked.len()),
        "each ten seconds: {}",
        world.asked.len()
    );
    say(&mut world, Gate::Rollout, None);
    world.run(20);
    assert!(world.pools["r2"].ready > 0);
    let asked = world.asked.len();
    world.run(300);
    assert_eq!(world.status.stable, "r2");
    assert_eq!(world.asked.len(), asked, "nobody is asked again");
}

#[test]
fn pods_that_were_confirmed_stay_when_a_new_process_knows_no_answers() {
    let mut world = gated(&[Gate::Rollout], risk());
    world.load = 5.0;
    say(&mut world, Gate::Rollout, None);
    world.qualities.insert(
        "r2".to_owned(),
        Quality {
            starts: false,
            ..Quality::GOOD
        },
    );
    world.run(20);
    assert!(
        world
            .status
            .attempt
            .as_ref()
            .is_some_and(|attempt| attempt.confirmed)
    );
    world.forget_answers();
    say(&mut world, Gate::Rollout, NO);
    world.qualities.insert("r2".to_owned(), Quality::GOOD);
    world.run(300);
    assert_eq!(world.status.stable, "r2");
}

#[test]
fn the_command_promote_opens_the_gate_at_which_it_waits_and_no_other() {
    let mut world = gated(&[Gate::Rollout, Gate::First], risk());
    say(&mut world, Gate::Rollout, NO);
    say(&mut world, Gate::First, NO);
    world.run(20);
    world.command(Verb::Promote);
    world.run(30);
    assert_eq!(
        (world.phase(), world.ended()),
        (Phase::Failed, Some(Ended::RolledBack)),
        "a failed test is nothing that waits"
    );
    let why = world.status.attempt.as_ref().map(|attempt| attempt.why.clone());
    assert_eq!(
        why.as_deref(),
        Some("pre-rollout failed: the change board said 403")
    );
    assert!(
        world
            .written
            .iter()
            .all(|route| route.weights.get("r2").is_none_or(|weight| *weight == 0)),
        "it never had a request"
    );
}

#[test]
fn flaggers_rule_counts_a_failed_test_before_the_first_weight_and_tries_again() {
    for (threshold_of, stable) in [(5, "r2"), (3, "r1")] {
        let mut world = gated(&[Gate::First], threshold(threshold_of));
        world.checks = Some(vec![]);
        say(&mut world, Gate::First, NO);
        world.run(15);
        assert_eq!(world.failed_checks(), 1);
        world.run(60);
        assert_eq!((world.failed_checks(), world.weight()), (3, 0));
        say(&mut world, Gate::First, None);
        world.run(600);
        assert_eq!(world.status.stable, stable);
        assert_eq!(world.failed_checks(), 3);
    }
}

#[test]
fn each_weight_is_asked_for_once_and_everything_by_itself() {
    let mut world = gated(
        &[Gate::Increase, Gate::Promotion],
        Plan {
            mode: Mode::None,
            ..linear(3_000, 9_000)
        },
    );
    for gate in [Gate::Increase, Gate::Promotion] {
        say(&mut world, gate, None);
    }
    world.run(300);
    assert_eq!(world.status.stable, "r2");
    assert_eq!(
        world.asked,
        [
            (Gate::Increase, 0),
            (Gate::Increase, 1),
            (Gate::Increase, 2),
            (Gate::Promotion, 3)
        ]
    );
    assert_eq!(told(&world, EventKind::Waiting), 0);
}

#[test]
fn evidence_takes_out_what_waits_at_a_gate_and_a_command_lets_it_in() {
    for bad in [true, false] {
        let mut world = gated(&[Gate::Promotion], linear(2_000, 4_000));
        say(&mut world, Gate::Promotion, NO);
        world.run(120);
        assert_eq!(world.weight(), 4_000);
        assert!(
            world.reason.contains("waits for confirm-promotion"),
            "{}",
            world.reason
        );
        assert_eq!(told(&world, EventKind::Waiting), 1);
        if bad {
            world.qualities.insert("r2".to_owned(), Quality::BAD);
        } else {
            world.command(Verb::Promote);
        }
        world.run(300);
        let stable = if bad { "r1" } else { "r2" };
        assert_eq!(world.status.stable, stable, "{}", world.status.answer);
    }
}

#[test]
fn a_look_of_flaggers_rule_waits_for_an_answer_and_a_no_costs_a_look() {
    let mut world = gated(&[Gate::Increase], threshold(5));
    world.checks = Some(vec![]);
    // Nobody answers: no look is over.
    world.run(100);
    assert_eq!(world.weight(), 0);
    let last = |world: &World| {
        let attempt = world.status.attempt.as_ref().expect("there is one");
        attempt.ticks.last
    };
    assert_eq!(last(&world), None);
    say(&mut world, Gate::Increase, None);
    world.run(2);
    assert_eq!(world.weight(), 2_000);
    // A no: looks go on, and so do their checks.
    say(&mut world, Gate::Increase, NO);
    world.run(65);
    assert_eq!((world.weight(), world.failed_checks()), (2_000, 0));
    assert!(
        world.reason.contains("waits for confirm-traffic-increase"),
        "{}",
        world.reason
    );
    let before = last(&world);
    world.run(30);
    assert!(last(&world) > before, "another look");
    world.checks = Some(vec![Check {
        name: "hook load-test".to_owned(),
        against: Some("load-test said 500".to_owned()),
        ignore_no_data: true,
        ..Check::default()
    }]);
    world.run(6 * 30);
    assert_eq!(
        (world.phase(), world.ended(), world.failed_checks()),
        (Phase::Failed, Some(Ended::RolledBack), 5),
        "failures count while it waits"
    );
    assert!(
        world
            .told
            .iter()
            .any(|event| event.text.contains("hook load-test: load-test said 500")),
        "{:?}",
        world.told
    );
}

#[test]
fn what_comes_back_or_is_promoted_in_full_asks_nobody() {
    let mut world = gated(&Gate::ALL, risk());
    world.run(10);
    assert_eq!(world.pools.get("r2").map_or(0, |pool| pool.ready), 0);
    world.command(Verb::PromoteFull);
    world.run(60);
    assert_eq!(world.status.stable, "r2");
}

#[test]
fn measurements_are_wanted_when_a_look_is_due_and_not_between() {
    let mut world = gated(&[], threshold(5));
    world.run(10);
    assert_eq!(
        (world.weight(), world.wanted),
        (2_000, 0),
        "the first step needs none"
    );
    world.run(15);
    assert_eq!(world.wanted, 0);
    world.run(20);
    assert!(world.wanted > 0);
    assert_eq!(world.weight(), 2_000, "it waits for them");
    let wanted = world.wanted;
    world.checks = Some(vec![]);
    world.run(3);
    assert_eq!(world.weight(), 4_000);
    world.run(20);
    assert!(world.wanted <= wanted + 1, "{}", world.wanted);
}
