//! What a rollout does, scene by scene. The laws, with crashes, are in `model`.

mod adoption;
mod commands;
mod gates;
mod in_place;
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
fn a_request_wakes_no_pool_that_it_is_not_for_and_load_for_pods_does() {
    let mut world = world(linear(5_000, 5_000));
    (world.rate, world.load) = (0.0, 0.0);
    world.release("r2", Quality::GOOD);
    world.run(30);
    assert_eq!((world.phase(), world.weight()), (Phase::Holding, 5_000));
    let asleep = |world: &World| ["r1", "r2"].iter().all(|pool| world.pools[*pool].ready == 0);
    assert!(asleep(&world) && world.at_least.is_empty());
    // Some activator holds it for one of the two: that one is woken by it, and nobody by us.
    world.load = 1.0;
    world.turn(world::Fault::None).expect("undisturbed");
    assert!(world.at_least.is_empty(), "{:?}", world.at_least);
    world.load = 4.0;
    world.turn(world::Fault::None).expect("undisturbed");
    assert_eq!(
        world.at_least,
        [("r1".to_owned(), 4), ("r2".to_owned(), 2)].into()
    );
}

#[test]
fn who_is_ready_stays_awake_until_every_activator_gives_it_its_weight() {
    let linear = Strategy::Linear {
        step: 2_000,
        max: 6_000,
    };
    for strategy in [linear, Strategy::Steps(Vec::new())] {
        // Nobody asks just now: no request keeps it awake.
        let mut world = world(unjudged(strategy.clone()));
        (world.rate, world.load) = (0.0, 0.0);
        world.release("r2", Quality::GOOD);
        let mut was_ready = false;
        loop {
            world.pass();
            world.turn(world::Fault::None).expect("undisturbed");
            let is_ready = world.pools.get("r2").is_some_and(|pool| pool.ready > 0);
            assert!(is_ready || !was_ready, "{strategy:?}: {}", world.reason);
            was_ready |= is_ready;
            let attempt = world.status.attempt.as_ref();
            if attempt.is_some_and(|attempt| attempt.weight > 0 && attempt.acked.is_some()) {
                break;
            }
            assert!(world.now < Time::from_secs(1_001_000), "{}", world.reason);
        }
        assert!(was_ready, "{strategy:?}");
    }
}

#[test]
fn who_is_awake_stays_so_until_it_has_the_traffic_back() {
    for verb in [Verb::Abort, Verb::Undo(None)] {
        let mut world = world(Plan {
            keep_warm: 200 * SECOND,
            ..unjudged(Strategy::Steps(Vec::new()))
        });
        (world.rate, world.load) = (0.0, 0.0);
        world.release("r2", Quality::GOOD);
        let is_abort = verb == Verb::Abort;
        let phase = if is_abort { Phase::Baking } else { Phase::Idle };
        let stands = |world: &World| {
            let all = (world.phase(), world.weight()) == (phase, FULL);
            all && world.pools["r1"].ready > 0
        };
        for _ in 0..100 {
            if stands(&world) {
                break;
            }
            world.run(1);
        }
        assert!(stands(&world), "{verb:?}: {}", world.reason);
        world.command(verb.clone());
        let is_back = |world: &World| {
            let attempt = world.status.attempt.as_ref();
            let acked = attempt.is_some_and(|attempt| attempt.acked.is_some());
            match is_abort {
                true => world.phase() == Phase::Failed,
                false => world.candidate() == "r1" && world.weight() == FULL && acked,
            }
        };
        for _ in 0..100 {
            world.pass();
            world.turn(world::Fault::None).expect("undisturbed");
            assert!(world.pools["r1"].ready > 0, "{verb:?}: {}", world.reason);
            if is_back(&world) {
                break;
            }
        }
        assert!(is_back(&world), "{verb:?}: {}", world.reason);
    }
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
        // Whatever else comes first.
        let waits = world.planned.ends_with("r3 begins after r2");
        assert_eq!(waits, on_new == OnNew::Queue, "{:?}", world.planned);
        world.run(600);
        assert_eq!(world.status.stable, "r3", "{on_new:?}");
        let stable_between = world.status.history.contains(&"r2".to_owned());
        assert_eq!(stable_between, on_new == OnNew::Queue);
    }
}

#[test]
fn a_new_template_ends_the_watch_of_what_is_proven() {
    let mut world = world(Plan {
        bake: 300 * SECOND,
        ..risk()
    });
    world.release("r2", Quality::GOOD);
    world.run(60);
    assert_eq!(world.phase(), Phase::Baking);
    world.release("r3", Quality::GOOD);
    world.run(2);
    assert_eq!((world.status.stable.as_str(), world.candidate()), ("r2", "r3"));
    assert_eq!(world.status.history, ["r1"]);
    let promoted = world.told.iter().find(|event| event.kind == EventKind::Promoted);
    let text = promoted.map(|event| event.text.as_str()).unwrap_or_default();
    assert!(text.contains("r3 ends its watch"), "{text}");
    world.run(120);
    let back = |route: &RouteWanted| route.weights.get("r1").is_some_and(|weight| *weight > 0);
    assert!(!world.written.iter().any(back), "{:#?}", world.written);
}

#[test]
fn what_is_watched_and_not_proven_is_taken_out_before_the_next_begins() {
    for (what, latest, candidate) in [("the next", "r3", "r3"), ("the one before", "r1", "r2")] {
        let mut world = world(Plan {
            bake: 300 * SECOND,
            ..unjudged(Strategy::Immediate)
        });
        world.release("r2", Quality::GOOD);
        world.run(20);
        assert_eq!(world.phase(), Phase::Baking);
        world.release(latest, Quality::GOOD);
        world.run(4);
        assert_eq!(world.status.stable, "r1", "{what}");
        assert_eq!(world.candidate(), candidate, "{what}");
        assert_eq!(world.written[0].weights["r1"], FULL, "{what}: first back");
        assert!(world.status.history.is_empty(), "{what}");
    }
    // Evidence or not: the template of the revision before is a way back.
    let mut world = world(Plan {
        bake: 300 * SECOND,
        ..risk()
    });
    world.release("r2", Quality::GOOD);
    world.run(60);
    world.latest = "r1".to_owned();
    world.run(4);
    assert_eq!((world.phase(), world.status.stable.as_str()), (Phase::Idle, "r1"));
    assert_eq!(world.ended(), Some(Ended::Superseded));
}

#[test]
fn what_is_kept_warm_keeps_a_pod_without_load() {
    for (keep_warm, kept) in [(200 * SECOND, true), (Duration::ZERO, false)] {
        let mut world = world(Plan {
            bake: 100 * SECOND,
            keep_warm,
            ..risk()
        });
        // Requests come, and none is under way when somebody looks.
        world.load = 0.0;
        world.release("r2", Quality::GOOD);
        world.run(60);
        assert_eq!(world.phase(), Phase::Baking);
        for second in 60..160 {
            world.run(1);
            assert_eq!(world.pools["r1"].ready > 0, kept, "{keep_warm:?}, {second}");
        }
        assert_eq!(world.phase(), Phase::Idle, "promoted");
        world.run(60);
        assert_eq!(world.pools["r1"].ready > 0, kept, "{keep_warm:?}");
        world.run(300);
        assert_eq!(world.pools["r1"].ready, 0, "it may sleep then");
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
