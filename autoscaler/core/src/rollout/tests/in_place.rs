//! The first revision in the user's Deployment, which is paused.

use super::world::{Quality, World};
use super::*;

fn paused() -> Plan {
    Plan {
        pause_target: true,
        ..risk()
    }
}

/// The first revision serves in place.
fn in_place(plan: Plan) -> World {
    let mut world = World::new(plan, 1);
    world.run(20);
    assert_eq!(world.phase(), Phase::Idle, "{}", world.reason);
    assert!(world.paused && world.held && world.status.in_place && !world.status.adopted);
    assert_eq!(world.route.weights, [("app".to_owned(), FULL)].into());
    assert_eq!(world.kinds(), [EventKind::Initialized]);
    world.told.clear();
    world
}

/// It has a pool of its own, and the Deployment is a template.
fn moved(world: &World) {
    assert_eq!(world.phase(), Phase::Idle, "{}", world.reason);
    assert!(world.status.adopted && !world.status.in_place && world.shelled && world.paused);
    assert_eq!(world.route.weights, [("r1".to_owned(), FULL)].into());
}

#[test]
fn a_paused_deployment_stays_the_first_revisions_pool() {
    let world = in_place(paused());
    assert!(
        !world.shelled && world.at_least.is_empty(),
        "{:?}",
        world.at_least
    );
    assert_eq!(world.pools["r1"].ready, 0, "its own pool waits at zero");
    assert!(
        world.reason.contains("in the Deployment, which is paused"),
        "{}",
        world.reason
    );
}

#[test]
fn it_moves_out_when_the_template_changes_and_the_next_begins_after_that() {
    let mut world = in_place(paused());
    world.release("r2", Quality::GOOD);
    world.run(5);
    assert!(world.kinds().contains(&EventKind::Moving));
    assert!(
        world.told[0].text.ends_with("its template has changed."),
        "{:?}",
        world.told[0]
    );
    assert_eq!(world.runs, "r1", "nothing that was not let in has started");
    world.run(300);
    assert_eq!(world.ended(), Some(Ended::Promoted));
    assert_eq!(world.status.stable, "r2");
    assert_eq!(world.status.history, ["r1"], "it can be undone to");
    assert!(world.paused && world.shelled && !world.status.in_place);
}

#[test]
fn a_bad_second_revision_is_taken_out_and_the_first_has_a_pool_of_its_own() {
    let mut world = in_place(paused());
    world.release("r2", Quality::BAD);
    world.run(120);
    assert_eq!(
        (world.phase(), world.ended()),
        (Phase::Failed, Some(Ended::RolledBack))
    );
    assert_eq!(world.route.weights, [("r1".to_owned(), FULL)].into());
}

#[test]
fn it_moves_out_before_it_sleeps_without_starting_a_pod() {
    let mut world = in_place(paused());
    world.rate = 0.0;
    for _ in 0..10 {
        world.run(1);
        assert_eq!(world.pools["r1"].ready, 0);
    }
    assert!(
        world.told[0].text.ends_with("it is about to sleep."),
        "{:?}",
        world.told
    );
    moved(&world);
}

#[test]
fn it_moves_out_when_somebody_lets_the_deployment_go_on_or_the_mode_changes() {
    let mut world = in_place(paused());
    (world.paused, world.held) = (false, false);
    world.run(20);
    assert!(
        world.told[0].text.ends_with("somebody has let it go on."),
        "{:?}",
        world.told
    );
    moved(&world);

    let mut world = in_place(paused());
    world.plan.pause_target = false;
    world.run(20);
    assert!(world.status.adopted && world.shelled && !world.status.in_place);
    assert!(!world.paused, "as a template at zero it need not be");
}

#[test]
fn pods_of_two_templates_are_no_pool_of_one_revision() {
    let mut world = World::new(paused(), 1);
    // Paused by its user, in the middle of a change.
    (world.paused, world.runs) = (true, "r0".to_owned());
    world.run(20);
    moved(&world);
}

#[test]
fn released_in_place_it_goes_on_with_the_template_that_it_ran() {
    let mut world = in_place(paused());
    world.latest = "r2".to_owned();
    world.releasing = true;
    world.run(5);
    assert!(world.released, "{}", world.reason);
    assert_eq!((world.latest.as_str(), world.runs.as_str()), ("r1", "r1"));
    assert!(!world.paused && !world.shelled);
    assert_eq!(world.route.weights, [("app".to_owned(), FULL)].into());
    assert_eq!(world.pools.keys().collect::<Vec<_>>(), ["app"]);
}

#[test]
fn released_after_a_move_it_goes_on_and_has_its_pods() {
    let mut world = in_place(paused());
    world.release("r2", Quality::BAD);
    world.run(120);
    world.releasing = true;
    world.run(20);
    assert!(world.released, "{}", world.reason);
    assert!(!world.paused && !world.shelled);
    assert_eq!(world.runs, "r1");
}
