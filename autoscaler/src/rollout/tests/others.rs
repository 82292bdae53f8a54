//! Others on the same Deployment: Services, autoscalers, field managers; and what Revisions say.

use crds::condition::{self, AUTOSCALER_CONFLICT, CAPTURED, REPLICAS_CONFLICT, reason};
use kube::api::ListParams;

use super::super::standing::letters;
use super::*;

impl World {
    async fn scale_as(&self, manager: &str, name: &str, replicas: u32) {
        let params = PatchParams {
            field_manager: Some(manager.to_owned()),
            ..PatchParams::default()
        };
        let body = json!({ "spec": { "replicas": replicas } });
        Api::<Deployment>::default_namespaced(self.client())
            .patch(name, &params, &Patch::Merge(body))
            .await
            .expect("a patch");
    }

    async fn until_replicas(&self, name: &str, replicas: i32) {
        let there = timeout(Duration::from_secs(60), async {
            while self.replicas(name).await != replicas {
                sleep(TICK).await;
            }
        });
        assert!(there.await.is_ok(), "{:#?}", self.writes());
    }
}

#[tokio::test(start_paused = true)]
async fn who_keeps_waking_the_template_is_named_and_left_after_the_third_time() {
    let world = World::start().await;
    world.rolled_out(2, by_time()).await;
    world.idle().await;
    for _ in 0..2 {
        world.scale_as("argocd-controller", "web", 2).await;
        world.until_replicas("web", 0).await;
        world.rest(1).await;
    }
    let conflict = |status: &RolloutStatus, word: &str| {
        let found = condition::find(&status.conditions, REPLICAS_CONFLICT);
        found.is_some_and(|found| found.message.contains("argocd-controller") && found.message.contains(word))
    };
    world
        .until_status("twice", |status| conflict(status, "2 times"))
        .await;
    world.scale_as("argocd-controller", "web", 2).await;
    world
        .until_status("three times", |status| conflict(status, "left as it is"))
        .await;
    world.rest(60).await;
    assert_eq!(world.replicas("web").await, 2, "nobody fights for ever");
    world.rest(600).await;
    world.until_replicas("web", 0).await;
    let status = world
        .until_status("calm", |status| {
            condition::find(&status.conditions, REPLICAS_CONFLICT).is_none()
        })
        .await;
    assert_eq!(status.phase, Phase::Idle);
}

#[tokio::test(start_paused = true)]
async fn an_autoscaler_on_the_template_or_on_a_pool_is_named() {
    let world = World::start().await;
    world.rolled_out(1, by_time()).await;
    let first = world.idle().await;
    world.keda("web").await;
    let status = world
        .until_status("named", |status| {
            condition::is_true(&status.conditions, AUTOSCALER_CONFLICT)
        })
        .await;
    let found = condition::find(&status.conditions, AUTOSCALER_CONFLICT).expect("named");
    assert_eq!(found.reason, reason::SCALED_OBJECT);
    assert!(
        found
            .message
            .starts_with("ScaledObject it scales deployment/web."),
        "{}",
        found.message
    );
    let entry = world.entry("web").expect("an entry");
    assert_eq!(
        entry.scaled_by, None,
        "what has no pods is scaled by nobody else: the pools are ours"
    );
    let hpas =
        Api::<k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler>::default_namespaced(world.client());
    hpas.delete("keda-hpa", &DeleteParams::default())
        .await
        .expect("deleted");
    world
        .until_status("gone", |status| {
            condition::find(&status.conditions, AUTOSCALER_CONFLICT).is_none()
        })
        .await;
    world.keda(&first.stable_revision).await;
    let status = world
        .until_status("named", |status| {
            condition::is_true(&status.conditions, AUTOSCALER_CONFLICT)
        })
        .await;
    let found = condition::find(&status.conditions, AUTOSCALER_CONFLICT).expect("named");
    assert!(
        found.message.contains(&first.stable_revision),
        "{}",
        found.message
    );
    world
        .until("web", |entry| entry.scaled_by.as_deref() == Some("hpa/keda-hpa"))
        .await;
}

#[tokio::test(start_paused = true)]
async fn another_service_on_the_deployment_is_given_back_and_keeps_its_pods() {
    let world = World::start().await;
    // Both are captured when the rollout comes. The world's controllers see to it that neither goes dark.
    world.deploy("web", 1).await;
    world.service("web", json!({ OPTED: "true" })).await;
    world.service_on("other", "web", json!({ OPTED: "true" })).await;
    for name in ["web", "other"] {
        world.until(name, |entry| entry.may_sleep.is_ok()).await;
    }
    world.play_scale_side();
    world.create_rollout("ship", "web", by_time()).await;
    let adopted = timeout(Duration::from_secs(300), async {
        while world.replicas("web").await != 0 {
            // As long as the template has pods the other Service must have come out already, or still lead to them.
            sleep(TICK).await;
        }
    });
    assert!(adopted.await.is_ok(), "{:#?}", world.writes());
    let refused = |entry: &crate::state::Entry| {
        let captured = condition::find(&entry.conditions, CAPTURED);
        captured.is_some_and(|captured| {
            let names = ["Rollout ship", "Service web", "Service other"];
            captured.reason == reason::ROLLED_OUT && names.iter().all(|name| captured.message.contains(name))
        })
    };
    world.until("other", refused).await;
    assert_eq!(
        world.selector_keys("other").await,
        1,
        "its own endpoints are back"
    );
    assert_eq!(
        world.original("web").await.as_deref(),
        Some("1"),
        "the note is the rollout's"
    );
    let entry = world
        .until("web", |entry| {
            entry
                .needs
                .values()
                .any(|(pods, why)| *pods >= 1 && why.contains("Service other"))
        })
        .await;
    assert_eq!(entry.pools.len(), 1);
    // One that comes later is refused from the beginning.
    world.service_on("late", "web", json!({ OPTED: "true" })).await;
    world
        .until("late", |entry| {
            let captured = condition::find(&entry.conditions, CAPTURED);
            captured.is_some_and(|captured| captured.reason == reason::ROLLED_OUT)
        })
        .await;
    world.rest(30).await;
    assert_eq!(world.replicas("web").await, 0, "nobody wakes the template");

    let all = world.rollouts();
    all.delete("ship", &DeleteParams::default())
        .await
        .expect("deleted");
    for name in ["web", "other", "late"] {
        world.until(name, |entry| entry.may_sleep.is_ok()).await;
    }
    assert_eq!(world.replicas("web").await, 1);
}

#[tokio::test(start_paused = true)]
async fn of_two_rollouts_for_one_deployment_the_later_waits() {
    let world = World::start().await;
    world.rolled_out(1, by_time()).await;
    let first = world.idle().await;
    world.deploy("api", 1).await;
    world.service("api", json!({ OPTED: "true" })).await;
    world.create_rollout("second", "api", json!({})).await;
    let said = timeout(Duration::from_secs(60), async {
        loop {
            let second = world.rollouts().get("second").await.expect("it is there");
            let why = second.status.map(|status| status.why).unwrap_or_default();
            if why.contains("deployment/web is rolled out by the Rollout web for Service web") {
                return;
            }
            sleep(TICK).await;
        }
    });
    assert!(said.await.is_ok());
    assert_eq!(world.status().await.stable_revision, first.stable_revision);
}

#[tokio::test(start_paused = true)]
async fn a_second_rollout_of_a_service_comes_and_goes_unnoticed() {
    let world = World::start().await;
    world.rolled_out(1, by_time()).await;
    let first = world.idle().await;
    let all = world.rollouts();
    world.create_rollout("yet-another", "web", json!({})).await;
    world.rest(5).await;
    let second = all.get("yet-another").await.expect("it is there");
    let why = second.status.map(|status| status.why).unwrap_or_default();
    assert!(why.contains("has the Rollout web already"), "{why}");
    let before = world.writes().len();
    all.delete("yet-another", &DeleteParams::default())
        .await
        .expect("deleted");
    world.rest(5).await;
    let routed = |write: &&String| write.starts_with("route ");
    let writes = world.writes().split_off(before);
    assert_eq!(writes.iter().filter(routed).count(), 0, "{writes:#?}");
    assert_eq!(world.weights().await, [(first.stable_revision, 10_000)]);
}

#[tokio::test(start_paused = true)]
async fn revisions_say_how_they_stand() {
    let world = World::start().await;
    world.rolled_out(2, by_evidence()).await;
    let first = world.idle().await.stable_revision;
    let revisions = Api::<Revision>::default_namespaced(world.client());
    let shown = async |name: &str| {
        let revision = revisions.get(name).await.expect("a Revision");
        let status = revision.status.unwrap_or_default();
        let letters = letters(&status.conditions);
        (letters, status.weight, status.pool, status.ready_replicas)
    };
    let until = async |name: &str, letters: &str, weight: &str| {
        let said = timeout(Duration::from_secs(60), async {
            while shown(name).await.0 != letters || shown(name).await.1 != weight {
                sleep(TICK).await;
            }
        });
        assert!(
            said.await.is_ok(),
            "{name}: {letters} {weight}, and says {:?}",
            shown(name).await
        );
    };
    until(&first, "RA--", "100%").await;
    let (_, _, pool, ready) = shown(&first).await;
    assert_eq!(pool, first);
    assert_eq!(i32::try_from(ready).ok(), Some(world.replicas(&first).await));
    world.set_image("y").await;
    let status = world.until_half().await;
    until(&status.candidate_revision, "RA--", "50%").await;
    world.count((40, 0), (30, 12)).await;
    until(&status.candidate_revision, "R--Q", "0%").await;
    until(&first, "RA--", "100%").await;
    world.scale(&status.candidate_revision, 0).await;
    until(&status.candidate_revision, "R-SQ", "0%").await;
    // Nothing happens, and nothing is written.
    world.rest(5).await;
    let version = async || {
        let all = revisions
            .list(&ListParams::default())
            .await
            .expect("Revisions")
            .items;
        all.iter().map(ResourceExt::resource_version).collect::<Vec<_>>()
    };
    let before = version().await;
    world.rest(60).await;
    assert_eq!(version().await, before);
}
