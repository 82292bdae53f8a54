//! `targetMode: Paused`: the first revision in the user's own pods.

use crds::names::PAUSED_ANNOTATION;

use super::*;

fn paused() -> Value {
    let mut spec = by_time();
    spec["targetMode"] = json!("Paused");
    spec
}

impl World {
    async fn in_place(&self) -> RolloutStatus {
        self.until_status("in place", |status| {
            status.in_place && status.phase == Phase::Idle
        })
        .await
    }

    async fn web(&self) -> Deployment {
        let all = Api::<Deployment>::default_namespaced(self.client());
        all.get("web").await.expect("the Deployment")
    }
}

fn is_paused(deployment: &Deployment) -> bool {
    deployment.spec.as_ref().and_then(|spec| spec.paused) == Some(true)
}

fn is_noted(deployment: &Deployment) -> bool {
    let annotations = deployment.metadata.annotations.as_ref();
    annotations.is_some_and(|annotations| annotations.contains_key(PAUSED_ANNOTATION))
}

/// Whether an entry of ours in `managedFields` has this field of the spec.
fn owned(deployment: &Deployment, field: &str) -> bool {
    let entries = deployment.metadata.managed_fields.iter().flatten();
    entries
        .filter(|entry| entry.manager.as_deref() == Some("dormouse-autoscaler"))
        .filter_map(|entry| entry.fields_v1.as_ref())
        .any(|fields| fields.0.pointer(&format!("/f:spec/{field}")).is_some())
}

#[tokio::test(start_paused = true)]
async fn a_paused_deployment_is_the_first_revisions_pool_and_goes_on_in_the_end() {
    let world = World::start().await;
    world.rolled_out(2, paused()).await;
    let status = world.in_place().await;
    world.rest(5).await;
    let web = world.web().await;
    assert!(is_paused(&web) && is_noted(&web));
    assert!(!owned(&web, "f:paused"), "{:?}", web.metadata.managed_fields);
    assert_eq!(world.replicas("web").await, 2, "as before");
    assert_eq!(world.weights().await, [("web".to_owned(), 10_000)]);
    let pool = world.replicas(&status.stable_revision).await;
    assert_eq!(pool, 0, "it has one to move into");
    let revisions = Api::<Revision>::default_namespaced(world.client());
    let shown = async || {
        let revision = revisions.get(&status.stable_revision).await.ok()?;
        let status = revision.status.unwrap_or_default();
        (status.pool == "web" && status.replicas == 2 && status.weight == "100%").then_some(())
    };
    while shown().await.is_none() {
        world.rest(1).await;
    }

    world.delete::<Rollout>().await;
    world.until_rollout_gone().await;
    let web = world.web().await;
    assert!(!is_paused(&web) && !is_noted(&web));
    assert_eq!(world.replicas("web").await, 2);
}

#[tokio::test(start_paused = true)]
async fn what_is_released_from_there_moves_out_and_a_template_that_was_given_back_is_nobodys() {
    let world = World::start().await;
    world.rolled_out(1, paused()).await;
    let first = world.in_place().await.stable_revision;
    world.set_image("y").await;
    let second = world
        .until_status("promoted", |status| {
            status.phase == Phase::Idle && status.adopted && status.stable_revision != first
        })
        .await
        .stable_revision;
    assert_eq!(world.weights().await, [(second, 10_000)]);
    assert!(is_paused(&world.web().await), "a paused template at zero");
    assert_eq!(world.replicas("web").await, 0);

    // One that is not let in: given back, the Deployment has the stable template.
    world.set_image("z").await;
    world
        .until_status("a candidate", |status| status.weight == "10%")
        .await;
    world.delete::<Rollout>().await;
    world.until_rollout_gone().await;
    world.rest(5).await;
    let web = world.web().await;
    let image = world.images().await;
    assert!(
        image.iter().any(|(name, image, _)| name == "web" && image == "y"),
        "{image:?}"
    );
    assert!(!is_paused(&web) && !is_noted(&web));
    assert!(!owned(&web, "f:template"), "{:?}", web.metadata.managed_fields);
}
