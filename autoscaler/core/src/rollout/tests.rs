//! What a rollout does, scene by scene. The laws, with crashes, are in `model`.

mod model;
mod world;

use std::time::Duration;

use super::*;
use crate::evidence::Analysis;
use world::{Quality, World};

const SECOND: Duration = Duration::from_secs(1);

fn risk() -> Plan {
    Plan {
        bake: 20 * SECOND,
        min_step: 2 * SECOND,
        ..Plan::default()
    }
}

fn linear(step: u32, max: u32) -> Plan {
    Plan {
        strategy: Strategy::Linear { step, max },
        ..risk()
    }
}

fn unjudged(strategy: Strategy) -> Plan {
    Plan {
        strategy,
        mode: Mode::None,
        ..risk()
    }
}

/// A world in which revision `r1` is stable.
fn world(plan: Plan) -> World {
    let mut world = World::new(plan, 1);
    world.run(60);
    assert_eq!((world.phase(), world.status.stable.as_str()), (Phase::Idle, "r1"));
    world.told.clear();
    world
}

fn weights(world: &World) -> Vec<u32> {
    let mut weights: Vec<u32> = world
        .written
        .iter()
        .map(|route| route.weights.get("r2").copied().unwrap_or(0))
        .collect();
    weights.dedup();
    weights
}

#[test]
fn the_first_revision_takes_the_traffic_before_the_deployment_sleeps() {
    let mut world = World::new(risk(), 1);
    world.run(60);
    assert_eq!(world.phase(), Phase::Idle);
    assert!(world.shelled);
    assert_eq!(world.kinds(), [EventKind::Initialized]);
    assert_eq!(world.route.weights, [("r1".to_owned(), FULL)].into());
}

#[test]
fn a_good_revision_is_let_in_by_evidence() {
    let mut world = world(risk());
    world.release("r2", Quality::GOOD);
    world.run(300);
    assert_eq!((world.phase(), world.status.stable.as_str()), (Phase::Idle, "r2"));
    assert_eq!(world.ended(), Some(Ended::Promoted));
    let weights = weights(&world);
    assert_eq!(weights[..2], [0, 500], "first the risk budget, {weights:?}");
    let before: Vec<&u32> = weights.iter().filter(|weight| **weight < FULL).collect();
    assert!(before.iter().all(|weight| **weight <= 5_000), "{weights:?}");
    assert_eq!(world.status.history, ["r1"]);
}

#[test]
fn a_bad_revision_is_out_after_few_requests_and_stays_out() {
    let mut world = world(risk());
    world.release("r2", Quality::BAD);
    world.run(120);
    assert_eq!(
        (world.phase(), world.status.stable.as_str()),
        (Phase::Failed, "r1")
    );
    assert_eq!(world.ended(), Some(Ended::RolledBack));
    assert!(
        world
            .status
            .attempt
            .as_ref()
            .is_some_and(|attempt| attempt.why.contains("requests were bad"))
    );
    assert_eq!(world.route.weights, [("r1".to_owned(), FULL)].into());
    // Back to the stable template, and the failed one again.
    world.latest = "r1".to_owned();
    world.run(5);
    assert_eq!(world.phase(), Phase::Idle);
    world.latest = "r2".to_owned();
    world.run(5);
    assert_eq!(world.phase(), Phase::Failed);
    assert!(world.kinds().contains(&EventKind::Quarantined));
    world.qualities.insert("r2".to_owned(), Quality::GOOD);
    world.command(Verb::Retry);
    world.run(300);
    assert_eq!(world.status.stable, "r2");
}

#[test]
fn flaggers_ladder_passes_the_maximum_once() {
    let mut world = world(unjudged(Strategy::Linear {
        step: 2_000,
        max: 7_000,
    }));
    world.release("r2", Quality::GOOD);
    world.run(120);
    assert_eq!(weights(&world)[..6], [0, 2_000, 4_000, 6_000, 8_000, FULL]);
}

#[test]
fn a_ladder_ends_in_holding_until_there_is_evidence() {
    let mut world = world(linear(2_000, 6_000));
    world.release("r2", Quality::GOOD);
    world.rate = 0.0;
    world.run(120);
    assert_eq!(world.phase(), Phase::Holding);
    assert!(world.reason.contains("67 more good ones"), "{}", world.reason);
    world.rate = 50.0;
    world.run(60);
    assert_eq!(world.status.stable, "r2");
}

#[test]
fn without_traffic_the_policy_decides_after_its_time() {
    for (then, phase, stable) in [
        (Insufficient::Promote, Phase::Idle, "r2"),
        (Insufficient::Rollback, Phase::Failed, "r1"),
        (Insufficient::Synthetic, Phase::Holding, "r1"),
    ] {
        let mut world = world(Plan {
            insufficient: Some((60 * SECOND, then)),
            ..linear(5_000, 5_000)
        });
        world.release("r2", Quality::GOOD);
        world.rate = 0.0;
        world.run(55);
        assert_eq!(world.phase(), Phase::Holding, "{then:?}");
        assert!(!world.synthetic);
        world.run(120);
        assert_eq!(
            (world.phase(), world.status.stable.as_str()),
            (phase, stable),
            "{then:?}"
        );
        assert_eq!(world.synthetic, then == Insufficient::Synthetic);
    }
}

#[test]
fn gates_and_pauses_wait_and_commands_pass_them() {
    let step = |weight, pause, gate| StepPlan {
        weight,
        pause: pause * SECOND,
        gate,
    };
    let steps = vec![step(1_000, 0, false), step(2_000, 30, false), step(FULL, 0, true)];
    let mut world = world(unjudged(Strategy::Steps(steps)));
    world.release("r2", Quality::GOOD);
    world.run(25);
    assert_eq!((world.phase(), world.weight()), (Phase::Paused, 2_000));
    assert!(world.reason.contains("paused for"), "{}", world.reason);
    world.command(Verb::Promote);
    world.run(5);
    assert_eq!((world.phase(), world.weight()), (Phase::Paused, 2_000));
    assert!(world.reason.contains("command promote"), "{}", world.reason);
    world.run(600);
    assert_eq!(world.phase(), Phase::Paused, "a gate has no deadline");
    world.command(Verb::Promote);
    world.run(60);
    assert_eq!(world.status.stable, "r2");
}

#[test]
fn commands_do_what_they_say_once() {
    let mut world = world(Plan {
        min_step: 10 * SECOND,
        ..linear(2_000, 6_000)
    });
    world.release("r2", Quality::GOOD);
    world.run(12);
    world.command(Verb::Pause);
    world.run(60);
    let weight = world.weight();
    assert_eq!(world.phase(), Phase::Paused);
    world.run(60);
    assert_eq!(world.weight(), weight);
    world.command(Verb::Resume);
    world.run(2);
    assert_ne!(world.phase(), Phase::Paused);
    world.command(Verb::Abort);
    world.run(10);
    assert_eq!(
        (world.phase(), world.ended()),
        (Phase::Failed, Some(Ended::Aborted))
    );
    // One that is meant for another attempt changes nothing, and says so.
    world.command(Verb::Retry);
    world.run(3);
    assert!(world.phase().forward());
    world.command_for("1-0", Verb::Abort);
    world.run(3);
    assert!(world.phase().forward());
    assert!(
        world.status.answer.contains("is ignored"),
        "{}",
        world.status.answer
    );
    world.command(Verb::PromoteFull);
    world.run(20);
    assert_eq!(
        (world.status.stable.as_str(), world.ended()),
        ("r2", Some(Ended::FastPromoted))
    );
}

#[test]
fn undo_brings_the_revision_before_back_and_does_not_begin_the_template_again() {
    let mut world = world(risk());
    world.release("r2", Quality::GOOD);
    world.run(300);
    world.rate = 0.0;
    world.run(30);
    world.command(Verb::Undo(None));
    world.run(4);
    assert_eq!((world.phase(), world.status.stable.as_str()), (Phase::Idle, "r1"));
    world.run(60);
    assert_eq!(world.status.stable, "r1");
    world.command(Verb::Undo(Some("r9".to_owned())));
    world.run(3);
    assert!(
        world.status.answer.contains("no revision r9"),
        "{}",
        world.status.answer
    );
}

#[test]
fn undo_under_load_waits_for_pods() {
    let mut world = world(risk());
    world.release("r2", Quality::GOOD);
    world.run(2_000);
    assert_eq!(world.pools["r1"].ready, 0, "it sleeps by now");
    world.load = 30.0;
    world.run(30);
    world.written.clear();
    world.command(Verb::Undo(None));
    world.run(30);
    assert_eq!(world.status.stable, "r1");
    assert!(
        world
            .ready_when_raised
            .iter()
            .all(|(ready, needed)| ready >= needed)
    );
}

#[test]
fn a_template_that_was_stable_lately_comes_back_without_an_analysis() {
    let mut world = world(risk());
    world.release("r2", Quality::GOOD);
    world.run(300);
    world.latest = "r1".to_owned();
    world.run(15);
    assert_eq!(
        (world.status.stable.as_str(), world.ended()),
        ("r1", Some(Ended::FastPromoted))
    );
}

#[test]
fn a_new_template_supersedes_or_queues() {
    for (on_new, between) in [(OnNew::Supersede, "r3"), (OnNew::Queue, "r2")] {
        let mut world = world(Plan {
            on_new,
            ..linear(2_000, 8_000)
        });
        world.release("r2", Quality::GOOD);
        world.run(12);
        assert!(world.weight() > 0);
        world.release("r3", Quality::GOOD);
        world.run(6);
        assert_eq!(world.candidate(), between, "{on_new:?}");
        world.run(600);
        assert_eq!(world.status.stable, "r3", "{on_new:?}");
        let stable_between = world.status.history.contains(&"r2".to_owned());
        assert_eq!(stable_between, on_new == OnNew::Queue);
    }
}

#[test]
fn a_candidate_that_never_gets_ready_never_gets_traffic() {
    let mut world = world(risk());
    world.release(
        "r2",
        Quality {
            starts: false,
            ..Quality::GOOD
        },
    );
    world.run(700);
    assert_eq!(
        (world.phase(), world.ended()),
        (Phase::Failed, Some(Ended::Expired))
    );
    assert!(
        world
            .written
            .iter()
            .all(|route| route.weights.get("r2").is_none_or(|weight| *weight == 0))
    );
}

#[test]
fn weight_moves_only_with_pods_for_it_and_every_activators_word() {
    let mut world = world(linear(2_000, 8_000));
    world.load = 50.0;
    world.release("r2", Quality::GOOD);
    world.run(600);
    assert_eq!(world.status.stable, "r2");
    assert!(world.ready_when_raised.len() >= 5);
    assert!(
        world
            .ready_when_raised
            .iter()
            .all(|(ready, needed)| ready >= needed)
    );
    world.deaf = true;
    world.release("r3", Quality::GOOD);
    world.run(300);
    assert_eq!(
        world.weight(),
        0,
        "no activator has said that it knows the candidate"
    );
    assert!(world.reason.contains("every activator"), "{}", world.reason);
}

#[test]
fn a_candidate_that_goes_bad_with_all_traffic_is_undone() {
    let mut world = world(Plan {
        bake: 300 * SECOND,
        ..risk()
    });
    world.release("r2", Quality::GOOD);
    world.run(60);
    assert_eq!(world.phase(), Phase::Baking);
    world.qualities.insert("r2".to_owned(), Quality::BAD);
    world.run(20);
    assert_eq!(
        (world.phase(), world.status.stable.as_str()),
        (Phase::Failed, "r1")
    );
}

#[test]
fn mirrored_pairs_convict_without_a_users_request() {
    let mirror = Some(Mirror {
        percent: 100,
        pairs: 50,
    });
    let mut bad = world(Plan { mirror, ..risk() });
    bad.release("r2", Quality::BAD);
    bad.run(60);
    assert_eq!(
        (bad.phase(), bad.ended()),
        (Phase::Failed, Some(Ended::RolledBack))
    );
    assert!(
        bad.written
            .iter()
            .all(|route| route.weights.get("r2").is_none_or(|weight| *weight == 0))
    );
    let mut good = world(Plan { mirror, ..risk() });
    good.release("r2", Quality::GOOD);
    good.run(300);
    assert!(good.kinds().contains(&EventKind::Mirroring));
    assert_eq!(good.status.stable, "r2");
}

#[test]
fn blue_green_waits_for_all_pods_and_its_gate() {
    let mut world = world(unjudged(Strategy::BlueGreen { gate: true }));
    world.load = 40.0;
    world.release("r2", Quality::GOOD);
    world.run(60);
    assert_eq!((world.phase(), world.weight()), (Phase::Paused, 0));
    world.command(Verb::Promote);
    world.run(60);
    assert_eq!(weights(&world), [0, FULL]);
    assert_eq!(world.status.stable, "r2");
}

#[test]
fn matched_requests_alone_can_convict_and_let_in() {
    for (quality, stable) in [(Quality::GOOD, "r2"), (Quality::BAD, "r1")] {
        let mut world = world(Plan {
            strategy: Strategy::Match,
            ..risk()
        });
        world.release("r2", quality);
        world.run(120);
        assert_eq!(world.status.stable, stable);
        assert!(world.written.iter().any(|route| route.matching));
    }
}

#[test]
fn knatives_ramp_takes_its_time() {
    let mut world = world(unjudged(Strategy::Time {
        duration: 100 * SECOND,
    }));
    world.release("r2", Quality::GOOD);
    let begun = world.now;
    while world.weight() < FULL {
        world.run(1);
    }
    let took = world.now.since(begun).as_secs();
    assert!((95..=130).contains(&took), "{took}");
    assert_eq!(weights(&world)[..3], [0, 100, 298]);
}

#[test]
fn a_breaker_or_a_veto_takes_it_out() {
    for broken in [true, false] {
        let mut world = world(linear(2_000, 8_000));
        world.release("r2", Quality::GOOD);
        world.run(12);
        if broken {
            world.broken.insert("a0".to_owned());
        } else {
            world.vetoed = Some("queue-lag 140.00 is above 100".to_owned());
        }
        world.run(5);
        assert_eq!(
            (world.phase(), world.ended()),
            (Phase::Failed, Some(Ended::RolledBack))
        );
    }
}

#[test]
fn a_suspended_rollout_begins_nothing_and_raises_nothing() {
    let mut world = world(linear(2_000, 8_000));
    world.plan.suspend = true;
    world.release("r2", Quality::GOOD);
    world.run(30);
    assert_eq!(world.phase(), Phase::Idle);
    world.plan.suspend = false;
    world.run(12);
    let weight = world.weight();
    world.plan.suspend = true;
    world.run(60);
    assert_eq!((world.phase(), world.weight()), (Phase::Paused, weight));
    world.plan.suspend = false;
    world.run(200);
    assert_eq!(world.status.stable, "r2");
}

#[test]
fn an_abort_may_go_back_in_halves_and_evidence_never_does() {
    let plan = Plan {
        gradual: true,
        ..unjudged(Strategy::Linear {
            step: 8_000,
            max: 8_000,
        })
    };
    let mut world = world(Plan {
        min_step: 10 * SECOND,
        ..plan
    });
    world.release("r2", Quality::GOOD);
    world.run(8);
    assert_eq!(world.weight(), 8_000);
    world.written.clear();
    world.command(Verb::Abort);
    world.run(100);
    assert_eq!(weights(&world), [8_000, 4_000, 2_000, 1_000, 500, 0]);
    assert_eq!(world.phase(), Phase::Failed);
}

#[test]
fn the_deployment_gets_everything_back_before_the_pools_go() {
    for halfway in [false, true] {
        let mut world = world(linear(2_000, 8_000));
        if halfway {
            world.release("r2", Quality::GOOD);
            world.run(12);
        }
        world.releasing = true;
        world.run(60);
        assert!(world.released);
        assert_eq!(world.route.weights, [("app".to_owned(), FULL)].into());
        assert_eq!(world.pools.keys().collect::<Vec<_>>(), ["app"]);
    }
}

#[test]
fn nothing_known_begins_with_the_pinned_revision() {
    let mut world = World::new(
        Plan {
            bootstrap: Some("r0".to_owned()),
            ..risk()
        },
        1,
    );
    world.revisions.insert("r0".to_owned());
    world.run(400);
    assert_eq!(
        world.status.history,
        ["r0"],
        "then the template is a change as any other"
    );
    assert_eq!(world.status.stable, "r1");
}

/// Looks of Flagger's rule: each row is the measurement, and the weight and failures after the look.
#[test]
fn flaggers_rule_to_the_tick() {
    let mut world = world(Plan {
        strategy: Strategy::Linear {
            step: 2_000,
            max: 7_000,
        },
        mode: Mode::Threshold(Threshold {
            interval: 30 * SECOND,
            threshold: 5,
            iterations: 0,
        }),
        ..risk()
    });
    world.release("r2", Quality::GOOD);
    let rows = [
        // The first step needs no measurement.
        (None, 2_000, 0),
        (Some(99.5), 4_000, 0),
        (Some(98.0), 4_000, 1),
        (Some(f64::NAN), 4_000, 2),
        // A good look takes no failure away.
        (Some(100.0), 6_000, 2),
        (None, 6_000, 3),
        (Some(0.0), 6_000, 4),
        (Some(100.0), 8_000, 4),
        (Some(50.0), 8_000, 5),
    ];
    while world.weight() == 0 {
        world.checks = Some(vec![]);
        world.run(1);
    }
    for (look, (value, weight, failed)) in rows.into_iter().enumerate() {
        if look > 0 {
            world.checks = Some(vec![Check {
                name: "request-success-rate".to_owned(),
                value,
                min: Some(99.0),
                ..Check::default()
            }]);
            world.run(30);
        }
        assert_eq!(
            (world.weight(), world.failed_checks()),
            (weight, failed),
            "look {look}"
        );
        assert!(world.phase().forward());
    }
    // The fifth failure is acted on at the next look, whatever that would say.
    world.run(28);
    assert!(world.phase().forward());
    world.checks = Some(vec![]);
    world.run(5);
    assert_eq!(
        (world.phase(), world.ended()),
        (Phase::Failed, Some(Ended::RolledBack))
    );
}

#[test]
fn flaggers_rule_waits_for_measurements_and_counts_iterations() {
    let mut world = world(Plan {
        strategy: Strategy::BlueGreen { gate: false },
        mode: Mode::Threshold(Threshold {
            interval: 10 * SECOND,
            threshold: 2,
            iterations: 3,
        }),
        ..risk()
    });
    world.release("r2", Quality::GOOD);
    world.checks = None;
    world.run(120);
    assert_eq!((world.phase(), world.failed_checks()), (Phase::Progressing, 0));
    world.checks = Some(vec![]);
    world.run(60);
    assert_eq!(world.status.stable, "r2");
}

#[test]
fn a_session_is_a_unit_without_times() {
    let sessions = Analysis {
        sessions: true,
        ..Analysis::default()
    };
    let mut world = world(Plan {
        mode: Mode::Sequential(sessions),
        ..risk()
    });
    world.release("r2", Quality::BAD);
    world.run(60);
    assert_eq!(world.phase(), Phase::Failed);
}
