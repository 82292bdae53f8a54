//! Rollouts from the annotation to the last byte of status, against an API in memory, with played activators that
//! acknowledge at once and count what a test says.

mod calls;
mod config;
mod fake;
mod in_place;
mod matrix;
mod others;
mod outside;
mod threshold;
mod world;

use std::time::Duration;

use crds::evidence::EpochReport;
use crds::report::Report;
use crds::rollout::{Phase, RolloutStatus};
use crds::{Revision, Rollout};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Service;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use crate::path::tests::world::{OPTED, World};

const TICK: Duration = Duration::from_millis(50);

/// By time alone: three steps of a second.
fn by_time() -> Value {
    json!({
        "strategy": { "steps": [{ "weight": 10 }, { "weight": 50 }], "minStepDuration": "1s" },
        "analysis": { "mode": "None", "bake": "0s" },
        "rollback": { "keepWarm": "5s" },
        "config": { "settle": "1s" },
    })
}

/// By evidence.
fn by_evidence() -> Value {
    json!({
        "strategy": { "steps": [{ "weight": 50 }], "minStepDuration": "1s" },
        "analysis": { "bake": "0s" },
        "config": { "settle": "1s" },
    })
}

#[tokio::test(start_paused = true)]
async fn a_deployment_is_adopted_and_a_new_template_becomes_stable_step_by_step() {
    let world = World::start().await;
    world.rolled_out(2, by_time()).await;
    let first = world.idle().await;
    assert_eq!(world.weights().await, [(first.stable_revision.clone(), 10_000)]);
    assert_eq!(world.replicas("web").await, 0, "a template at zero");
    let revisions = Api::<Revision>::default_namespaced(world.client());
    let revision = revisions.get(&first.stable_revision).await.expect("a Revision");
    assert_eq!(revision.spec.sequence, 1);
    assert!(revision.spec.template.contains("\"image\":\"x\""));

    world.set_image("y").await;
    for weight in ["10%", "50%"] {
        world
            .until_status(weight, |status| {
                status.weight == weight && status.step.as_ref().is_some_and(|step| step.acked_bp.is_some())
            })
            .await;
        let weights = world.weights().await;
        assert_eq!(weights.iter().map(|(_, weight)| weight).sum::<u32>(), 10_000);
        assert_eq!(weights.len(), 2);
    }
    let status = world
        .until_status("promoted", |status| {
            status.stable_revision != first.stable_revision
        })
        .await;
    assert_eq!(status.history, std::slice::from_ref(&first.stable_revision));
    let status = world.idle().await;
    world.rest(5).await;
    assert_eq!(world.weights().await, [(status.stable_revision.clone(), 10_000)]);
    let stable = world.images().await;
    let stable = stable.iter().find(|(name, ..)| *name == status.stable_revision);
    assert_eq!(
        stable.map(|(_, image, replicas)| (image.as_str(), *replicas)),
        Some(("y", 1))
    );
}

#[tokio::test(start_paused = true)]
async fn evidence_takes_a_bad_candidate_out_and_it_begins_again_only_when_told() {
    let world = World::start().await;
    world.rolled_out(1, by_evidence()).await;
    let first = world.idle().await;
    world.set_image("y").await;
    world.until_half().await;
    world.count((40, 0), (30, 12)).await;
    let failed = world
        .until_status("failed", |status| status.phase == Phase::Failed)
        .await;
    assert_eq!(failed.stable_revision, first.stable_revision);
    let attempt = failed.attempt.as_ref().expect("there was one");
    assert_eq!(attempt.result, "RolledBack");
    assert!(
        attempt.why.contains("12 of 30 requests were bad"),
        "{}",
        attempt.why
    );
    assert_eq!(world.weights().await, [(first.stable_revision.clone(), 10_000)]);
    assert_eq!(failed.quarantined, std::slice::from_ref(&attempt.candidate));
    assert!(crds::condition::is_true(&failed.conditions, "Degraded"));
    assert!(!crds::condition::is_true(&failed.conditions, "Promoted"));
    world.rest(10).await;
    assert_eq!(world.status().await.phase, Phase::Failed);

    world.command("retry").await;
    world.until_half().await;
    world.count((200, 0), (200, 0)).await;
    let status = world
        .until_status("promoted", |status| status.phase == Phase::Idle)
        .await;
    assert_eq!(status.stable_revision, attempt.candidate);
    assert!(crds::condition::is_true(&status.conditions, "Promoted"));
    assert_eq!(
        status.attempt.map(|attempt| attempt.result).as_deref(),
        Some("Promoted")
    );

    world.command("undo").await;
    let status = world
        .until_status("undone", |status| {
            status.phase == Phase::Idle && status.stable_revision == first.stable_revision
        })
        .await;
    assert_eq!(
        status.attempt.map(|attempt| attempt.result).as_deref(),
        Some("FastPromoted")
    );
}

#[tokio::test(start_paused = true)]
async fn a_breaker_that_has_gone_off_takes_the_candidate_out() {
    let world = World::start().await;
    world.rolled_out(1, by_evidence()).await;
    world.idle().await;
    world.set_image("y").await;
    let status = world.until_status("half", |status| status.weight == "50%").await;
    world.counts.line(&Report {
        activator: "activator-1".into(),
        instance: "instance-1".into(),
        epochs: vec![EpochReport {
            namespace: "default".into(),
            route: "web".into(),
            attempt: status.attempt.map(|attempt| attempt.uid).unwrap_or_default(),
            broken: true,
            ..EpochReport::default()
        }],
        ..Report::default()
    });
    let failed = world
        .until_status("failed", |status| status.phase == Phase::Failed)
        .await;
    let why = failed.attempt.map(|attempt| attempt.why).unwrap_or_default();
    assert_eq!(why, "the breaker of activator-1 has taken it out");
}

/// A report line by which the breaker of an activator has taken out the candidate of an attempt.
fn broken_by(activator: &str, status: &RolloutStatus) -> Report {
    let attempt = status.attempt.as_ref().map(|attempt| attempt.uid.clone());
    Report {
        activator: activator.into(),
        instance: format!("instance of {activator}"),
        epochs: vec![EpochReport {
            namespace: "default".into(),
            route: "web".into(),
            attempt: attempt.unwrap_or_default(),
            broken: true,
            ..EpochReport::default()
        }],
        ..Report::default()
    }
}

#[tokio::test(start_paused = true)]
async fn a_break_that_was_heard_ends_in_a_rollback_whoever_restarts() {
    // It was stored: the next process goes on with it, though no activator knows of it any more.
    let mut world = World::start().await;
    world.rolled_out(1, by_evidence()).await;
    world.idle().await;
    world.set_image("y").await;
    let status = world.until_half().await;
    world.counts.line(&broken_by("activator-1", &status));
    let stored = |status: &RolloutStatus| matches!(status.phase, Phase::RollingBack | Phase::Failed);
    world.until_status("stored", stored).await;
    world.take_over().await;
    let failed = |status: &RolloutStatus| status.phase == Phase::Failed;
    let status = world.until_status("failed", failed).await;
    assert_eq!(
        status.attempt.map(|attempt| attempt.result).as_deref(),
        Some("RolledBack")
    );

    // It could not be stored: the other activators were told, and tell the next process.
    let mut world = World::start().await;
    world.rolled_out(1, by_evidence()).await;
    world.idle().await;
    world.set_image("y").await;
    let status = world.until_half().await;
    let uid = status.attempt.as_ref().map(|attempt| attempt.uid.clone());
    world.burn(0);
    world.counts.line(&broken_by("activator-1", &status));
    world.rest(1).await;
    let told = world
        .fleet
        .out
        .lock()
        .get(&crate::path::tests::world::key("web"))
        .cloned();
    assert_eq!(told, uid);
    assert_eq!(world.status().await.weight, "50%", "nothing could be written");
    world.burn(i64::MAX);
    world.take_over().await;
    world.counts.line(&broken_by("activator-0", &status));
    let status = world.until_status("failed", failed).await;
    assert_eq!(
        status.attempt.map(|attempt| attempt.result).as_deref(),
        Some("RolledBack")
    );
    world.rest(2).await;
    assert!(world.fleet.out.lock().is_empty(), "nobody needs to know any more");
}

#[tokio::test(start_paused = true)]
async fn a_rollout_that_is_deleted_gives_the_deployment_back_with_what_is_stable() {
    let world = World::start().await;
    world.rolled_out(2, by_evidence()).await;
    world.idle().await;
    world.set_image("bad").await;
    world.until_status("half", |status| status.weight == "50%").await;
    world.delete::<Rollout>().await;
    // No pod goes for want of requests meanwhile: an uninstallation does not wait for a keep-alive.
    world.until_rollout_gone().await;
    assert_eq!(world.images().await, [("web".to_owned(), "x".to_owned(), 2)]);
    world.rest(5).await;
    assert_eq!(world.weights().await, [("web".to_owned(), 10_000)]);
}

#[tokio::test(start_paused = true)]
async fn a_deployment_that_is_made_anew_is_read_anew() {
    let world = World::start().await;
    world.rolled_out(1, by_time()).await;
    let first = world.idle().await.stable_revision;
    world.set_image("y").await;
    let stable = |status: &RolloutStatus| status.phase == Phase::Idle && status.stable_revision != first;
    world.until_status("the next is stable", stable).await;
    // Its generation begins at one again.
    world.delete::<Deployment>().await;
    world.deploy("web", 1).await;
    let back = |status: &RolloutStatus| status.phase == Phase::Idle && status.stable_revision == first;
    world.until_status("what it says now is stable", back).await;
}

#[tokio::test(start_paused = true)]
async fn a_rollout_whose_service_and_deployment_are_deleted_takes_its_pools_along() {
    let world = World::start().await;
    world.rolled_out(2, by_evidence()).await;
    world.idle().await;
    world.set_image("bad").await;
    world.until_status("half", |status| status.weight == "50%").await;
    world.delete::<Service>().await;
    world.delete::<Deployment>().await;
    world.delete::<Rollout>().await;
    world.until_rollout_gone().await;
    assert_eq!(world.images().await, []);
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_opted_out_gets_its_deployment_back_and_the_rollout_begins_anew_later() {
    let world = World::start().await;
    world.rolled_out(2, by_time()).await;
    let first = world.idle().await;
    world.annotate("web", json!({ OPTED: "false" })).await;
    world.until_gone("web").await;
    assert_eq!(world.images().await, [("web".to_owned(), "x".to_owned(), 2)]);
    assert_eq!(world.original("web").await, None);
    let rollout = world.rollouts().get("web").await.expect("it is still there");
    assert!(rollout.finalizers().is_empty(), "nobody has to wait for us");
    world.annotate("web", json!({ OPTED: "true" })).await;
    let again = world.idle().await;
    assert_eq!(again.stable_revision, first.stable_revision);
    assert_eq!(world.replicas("web").await, 0);
}

#[tokio::test(start_paused = true)]
async fn an_annotation_alone_makes_a_rollout_and_a_spec_that_cannot_be_carried_out_is_named() {
    let world = World::start().await;
    world.play_scale_side();
    world.captured("web", 1).await;
    world
        .annotate("web", json!({ "dormouse.dev/rollout": "canary" }))
        .await;
    let first = world.idle().await;
    assert!(!first.stable_revision.is_empty());
    let hook = json!([{ "name": "x", "type": "rollout", "url": "x" }]);
    let body = json!({ "spec": { "analysis": { "webhooks": hook } } });
    world
        .rollouts()
        .patch("web", &PatchParams::default(), &Patch::Merge(body))
        .await
        .expect("a patch");
    world.rest(5).await;
    assert!(world.idle().await.adopted, "the last good one stays in force");
    world
        .annotate("web", json!({ "dormouse.dev/rollout": null }))
        .await;
    world.until_rollout_gone().await;
    assert_eq!(world.replicas("web").await, 1);
}

#[tokio::test(start_paused = true)]
async fn one_that_cannot_be_read_is_deleted_as_well() {
    for ready in [true, false] {
        let mut world = World::start().await;
        if ready {
            world.rolled_out(1, by_time()).await;
            world.idle().await;
        } else {
            // Its first revision never gets pods.
            world.captured("web", 1).await;
            world.create_rollout("web", "web", by_time()).await;
            let begun = |status: &RolloutStatus| !status.stable_revision.is_empty();
            assert!(!world.until_status("begun", begun).await.adopted);
        }
        let wrong = json!({ "spec": { "strategy": { "steps": [{ "weight": 50 }, { "weight": 10 }] } } });
        let all = world.rollouts();
        all.patch("web", &PatchParams::default(), &Patch::Merge(wrong))
            .await
            .expect("a patch");
        world.kill();
        world.delete::<Rollout>().await;
        world.succeed().await;
        world.until_rollout_gone().await;
        world.rest(5).await;
        let left = world.images().await;
        assert_eq!(left, [("web".to_owned(), "x".to_owned(), 1)], "{ready}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_process_that_ends_at_any_write_is_carried_on_by_the_next() {
    for writes in (0..36).step_by(3) {
        let mut world = World::start().await;
        world.captured("web", 1).await;
        world.play_scale_side();
        world.burn(writes);
        world.create_rollout("web", "web", by_time()).await;
        let mut changed = false;
        let mut first = String::new();
        let ended = timeout(Duration::from_secs(400), async {
            loop {
                if world.is_burnt() {
                    world.take_over().await;
                }
                let status = world.status().await;
                if status.phase == Phase::Idle && status.adopted && !changed {
                    changed = true;
                    first.clone_from(&status.stable_revision);
                    world.set_image("y").await;
                }
                let promoted = changed && status.phase == Phase::Idle && status.stable_revision != first;
                let weights = world.weights().await;
                assert_eq!(weights.iter().map(|(_, weight)| weight).sum::<u32>(), 10_000);
                if promoted && world.weights().await == [(status.stable_revision.clone(), 10_000)] {
                    return status;
                }
                sleep(TICK).await;
            }
        });
        let Ok(status) = ended.await else {
            panic!("{writes}: {:#?}\n{:#?}", world.status().await, world.writes());
        };
        assert_eq!((status.attempts, status.history), (1, vec![first]), "{writes}");
        let images = world.images().await;
        assert_eq!(images.len(), 3, "{writes}: {images:?}");
        let stable = images.iter().find(|(name, ..)| *name == status.stable_revision);
        assert!(
            stable.is_some_and(|(_, image, replicas)| image == "y" && *replicas > 0),
            "{writes}: {images:?}"
        );
        assert_eq!(world.replicas("web").await, 0, "{writes}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_process_that_ends_on_the_way_back_is_carried_on_too() {
    for writes in (0..24).step_by(2) {
        let mut world = World::start().await;
        world.rolled_out(2, by_evidence()).await;
        let first = world.idle().await;
        world.set_image("bad").await;
        world.until_half().await;
        world.burn(writes);
        let (mut deleted, mut counted) = (false, false);
        let ended = timeout(Duration::from_secs(400), async {
            loop {
                if world.is_burnt() {
                    world.take_over().await;
                    counted = false;
                }
                let status = world.status().await;
                if status.weight == "50%" && !counted {
                    // What an activator has counted it tells every autoscaler.
                    world.count((40, 0), (30, 12)).await;
                    counted = true;
                }
                if status.phase == Phase::Failed && !deleted {
                    assert_eq!(status.stable_revision, first.stable_revision, "{writes}");
                    deleted = true;
                    let all = world.rollouts();
                    all.delete("web", &DeleteParams::default())
                        .await
                        .expect("it is deleted");
                }
                if world
                    .rollouts()
                    .get_opt("web")
                    .await
                    .expect("an answer")
                    .is_none()
                {
                    return;
                }
                let weights = world.weights().await;
                assert_eq!(weights.iter().map(|(_, weight)| weight).sum::<u32>(), 10_000);
                for (name, image, replicas) in world.images().await {
                    let needed = world
                        .entry("web")
                        .is_some_and(|entry| entry.needs.keys().any(|pool| pool.pool == name));
                    if image == "bad" && name != "web" && replicas > 0 && !needed {
                        world.scale(&name, 0).await;
                    }
                }
                sleep(TICK).await;
            }
        });
        assert!(
            ended.await.is_ok(),
            "{writes}: {:#?}\n{:#?}",
            world.status().await,
            world.writes()
        );
        assert!(deleted, "{writes}");
        assert_eq!(
            world.images().await,
            [("web".to_owned(), "x".to_owned(), 2)],
            "{writes}"
        );
        assert_eq!(world.weights().await, [("web".to_owned(), 10_000)], "{writes}");
    }
}
