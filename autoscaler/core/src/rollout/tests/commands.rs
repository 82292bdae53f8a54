//! What people say: commands, gates, and templates that come back.

use super::world::Quality;
use super::*;

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
