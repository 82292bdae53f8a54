//! The Deployment becomes a template, and gets everything back.

use super::world::{Quality, World};
use super::*;

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
fn requests_in_the_deployment_have_two_minutes_to_end() {
    for (ends, shelled_after) in [(true, 31), (false, 126)] {
        let mut world = World::new(risk(), 1);
        world.draining = true;
        world.run(10);
        assert!(world.status.adopted && !world.shelled);
        let standing_by = [("app".to_owned(), 0), ("r1".to_owned(), FULL)];
        assert_eq!(world.route.weights, standing_by.into());
        assert!(
            world.reason.contains("requests in the Deployment's pods end"),
            "{}",
            world.reason
        );
        world.run(20);
        assert!(!world.shelled);
        world.draining = !ends;
        world.run(shelled_after - 30);
        assert!(world.shelled, "ends: {ends}");
        world.run(2);
        assert_eq!(world.route.weights, [("r1".to_owned(), FULL)].into());
        assert_eq!(world.phase(), Phase::Idle);
    }
}

#[test]
fn a_deployment_that_requests_reach_past_the_activators_keeps_its_pods() {
    let mut world = world(risk());
    // Somebody has applied manifests that say one replica, and no key in the selector.
    (world.shelled, world.direct) = (false, true);
    world.pools.get_mut("app").expect("the user's own").ready = 1;
    world.run(10);
    assert!(!world.shelled);
    world.direct = false;
    world.run(2);
    assert!(world.shelled);
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
fn without_the_deployment_there_is_nothing_to_wait_for_and_the_pools_go() {
    for halfway in [false, true] {
        let mut world = world(linear(2_000, 8_000));
        if halfway {
            world.release("r2", Quality::GOOD);
            world.run(12);
        }
        world.pools.remove("app");
        world.run(30);
        assert!(!world.released && !world.pools.is_empty(), "it may come back");
        world.releasing = true;
        world.run(30);
        assert!(world.released && world.pools.is_empty());
    }
}
