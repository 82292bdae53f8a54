//! Code and configuration as one revision.

use crds::condition::{self, CONFIG_TRACKED};
use crds::names::CONFIG_POLICY_ANNOTATION;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{ListParams, PostParams};

use super::*;

impl World {
    fn config_maps(&self) -> Api<ConfigMap> {
        Api::default_namespaced(self.client())
    }

    async fn set_config(&self, name: &str, data: Value) {
        let body =
            json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name }, "data": data });
        let params = PatchParams::apply("kubectl").force();
        self.config_maps()
            .patch(name, &params, &Patch::Apply(body))
            .await
            .expect("a ConfigMap");
    }

    /// A rolled-out Deployment whose pods read a ConfigMap and a Secret.
    async fn configured(&self) -> RolloutStatus {
        self.set_config("cfg", json!({ "a": "1" })).await;
        let secret = json!({ "metadata": { "name": "keys" }, "data": { "k": "MQ==" } });
        let secret: Secret = serde_json::from_value(secret).expect("a Secret");
        Api::<Secret>::default_namespaced(self.client())
            .create(&PostParams::default(), &secret)
            .await
            .expect("a Secret");
        self.play_scale_side();
        self.captured("web", 1).await;
        let from = json!([{ "configMapRef": { "name": "cfg" } }, { "secretRef": { "name": "keys" } }]);
        let container = json!([{ "name": "main", "envFrom": from }]);
        let body = json!({ "spec": { "template": { "spec": { "containers": container } } } });
        Api::<Deployment>::default_namespaced(self.client())
            .patch("web", &PatchParams::default(), &Patch::Strategic(body))
            .await
            .expect("a patch");
        self.create_rollout("web", "web", by_time()).await;
        self.idle().await
    }

    async fn set_only_image(&self, image: &str) {
        let container = json!([{ "name": "main", "image": image }]);
        let body = json!({ "spec": { "template": { "spec": { "containers": container } } } });
        Api::<Deployment>::default_namespaced(self.client())
            .patch("web", &PatchParams::default(), &Patch::Strategic(body))
            .await
            .expect("a patch");
    }

    async fn promoted_after(&self, before: &str) -> RolloutStatus {
        self.until_status("promoted", |status| {
            status.phase == Phase::Idle && status.stable_revision != before
        })
        .await
    }

    /// What the pods of a revision get from the ConfigMap, and the ConfigMap's name.
    async fn configured_with(&self, revision: &str) -> (String, String) {
        let pool = Api::<Deployment>::default_namespaced(self.client())
            .get(revision)
            .await
            .expect("its pool");
        let pod = pool.spec.and_then(|spec| spec.template.spec).expect("a template");
        let from = pod.containers[0].env_from.clone().unwrap_or_default();
        let name = from[0].config_map_ref.clone().expect("a ConfigMap").name;
        let secret = from[1].secret_ref.clone().expect("a Secret").name;
        assert_eq!(secret, "keys", "Secrets are not copied unless that is asked for");
        let copy = self.config_maps().get(&name).await.expect("it is there");
        (copy.data.unwrap_or_default()["a"].clone(), name)
    }

    async fn revisions(&self) -> Vec<Revision> {
        let all = Api::<Revision>::default_namespaced(self.client());
        let mut all = all.list(&ListParams::default()).await.expect("Revisions").items;
        all.sort_by_key(|revision| revision.spec.sequence);
        all
    }
}

#[tokio::test(start_paused = true)]
async fn code_and_configuration_are_one_revision_and_go_back_together() {
    let world = World::start().await;
    let first = world.configured().await;
    let (held, copy) = world.configured_with(&first.stable_revision).await;
    assert_eq!(held, "1");
    assert!(
        copy.starts_with("cfg-") && copy.len() == "cfg-".len() + 8,
        "{copy}"
    );
    let object = world.config_maps().get(&copy).await.expect("the copy");
    assert_eq!(object.immutable, Some(true));
    let owner = &object.metadata.owner_references.as_ref().expect("an owner")[0];
    assert_eq!(
        (owner.kind.as_str(), owner.name.as_str()),
        ("Revision", first.stable_revision.as_str())
    );

    // One apply of both, in either order.
    world.set_only_image("y").await;
    world.rest(2).await;
    world.set_config("cfg", json!({ "a": "2" })).await;
    let second = world.promoted_after(&first.stable_revision).await;
    assert_eq!(world.configured_with(&second.stable_revision).await.0, "2");
    assert_eq!(world.revisions().await.len(), 2, "one revision");

    // Configuration alone.
    world.set_config("cfg", json!({ "a": "3" })).await;
    let third = world.promoted_after(&second.stable_revision).await;
    assert_eq!(world.configured_with(&third.stable_revision).await.0, "3");
    let revisions = world.revisions().await;
    assert_eq!(revisions[2].spec.template, revisions[1].spec.template);
    let kinds: Vec<_> = revisions[2]
        .spec
        .configs
        .iter()
        .map(|config| config.kind.as_str())
        .collect();
    assert_eq!(kinds, ["ConfigMap", "Secret"]);
    assert!(revisions[2].spec.configs[1].snapshot.is_empty());

    // The way back brings the old configuration back, whatever the ConfigMap says now.
    world.command("undo").await;
    let back = world.promoted_after(&third.stable_revision).await;
    assert_eq!(back.stable_revision, second.stable_revision);
    assert_eq!(world.configured_with(&back.stable_revision).await.0, "2");
    world.rest(60).await;
    assert_eq!(
        world.status().await.stable_revision,
        second.stable_revision,
        "and it stays"
    );
    let status = world.status().await;
    assert!(
        condition::is_true(&status.conditions, CONFIG_TRACKED),
        "{:?}",
        status.conditions
    );
}

#[tokio::test(start_paused = true)]
async fn a_copy_has_every_revision_that_uses_it_for_an_owner() {
    let world = World::start().await;
    let first = world.configured().await;
    let (_, copy) = world.configured_with(&first.stable_revision).await;
    world.set_only_image("y").await;
    let second = world.promoted_after(&first.stable_revision).await;
    assert_eq!(world.configured_with(&second.stable_revision).await.1, copy);
    let object = world.config_maps().get(&copy).await.expect("the copy");
    let owners = object.metadata.owner_references.unwrap_or_default();
    let mut owners: Vec<_> = owners.into_iter().map(|owner| owner.name).collect();
    owners.sort();
    let mut wanted = vec![first.stable_revision, second.stable_revision];
    wanted.sort();
    assert_eq!(owners, wanted);
}

#[tokio::test(start_paused = true)]
async fn what_may_not_be_read_is_left_out_and_fails_nothing() {
    let world = World::start().await;
    world.forbid("secrets");
    let first = world.configured().await;
    let said = |status: &RolloutStatus| {
        let tracked = condition::find(&status.conditions, CONFIG_TRACKED);
        tracked.map(|tracked| (tracked.reason.clone(), tracked.message.clone()))
    };
    let status = world.until_status("said", |status| said(status).is_some()).await;
    let (reason, message) = said(&status).expect("said");
    assert_eq!(reason, condition::reason::CONFIG_FORBIDDEN);
    assert!(
        message.contains("Secret keys") && message.contains("--verb=get"),
        "{message}"
    );
    world.set_only_image("y").await;
    let second = world.promoted_after(&first.stable_revision).await;
    assert_eq!(world.configured_with(&second.stable_revision).await.0, "1");
    // With the permission it belongs to the revision.
    world.forbid("");
    let third = world.promoted_after(&second.stable_revision).await;
    let status = world
        .until_status("tracked", |status| {
            condition::is_true(&status.conditions, CONFIG_TRACKED)
        })
        .await;
    assert_eq!(status.stable_revision, third.stable_revision);
}

#[tokio::test(start_paused = true)]
async fn what_reads_its_configuration_again_by_itself_opts_out() {
    let world = World::start().await;
    let first = world.configured().await;
    let body = json!({ "metadata": { "annotations": { CONFIG_POLICY_ANNOTATION: "Ignore" } } });
    world
        .config_maps()
        .patch("cfg", &PatchParams::default(), &Patch::Merge(body))
        .await
        .expect("a patch");
    // To leave it out is a change itself; after it there is none.
    let second = world.promoted_after(&first.stable_revision).await;
    assert_eq!(world.configured_with(&second.stable_revision).await.1, "cfg");
    world.set_config("cfg", json!({ "a": "2" })).await;
    world.rest(60).await;
    assert_eq!(world.status().await.stable_revision, second.stable_revision);
    assert_eq!(world.configured_with(&second.stable_revision).await.0, "2");
}

#[tokio::test(start_paused = true)]
async fn nothing_begins_that_could_not_start() {
    let world = World::start().await;
    let first = world.configured().await;
    let params = DeleteParams::default();
    world.config_maps().delete("cfg", &params).await.expect("deleted");
    world.set_only_image("y").await;
    world.rest(60).await;
    let status = world.status().await;
    assert_eq!(
        (status.phase, &status.stable_revision),
        (Phase::Idle, &first.stable_revision)
    );
    let tracked = condition::find(&status.conditions, CONFIG_TRACKED).expect("said");
    assert_eq!(tracked.reason, condition::reason::CONFIG_MISSING);
    assert!(tracked.message.contains("ConfigMap cfg"), "{}", tracked.message);
    // What serves has its own copy.
    assert_eq!(world.configured_with(&first.stable_revision).await.0, "1");
    world.set_config("cfg", json!({ "a": "2" })).await;
    let second = world.promoted_after(&first.stable_revision).await;
    assert_eq!(world.configured_with(&second.stable_revision).await.0, "2");
}

#[tokio::test(start_paused = true)]
async fn what_is_in_the_way_of_a_copy_is_named_and_not_touched() {
    let world = World::start().await;
    let first = world.configured().await;
    // The name that the copy of the next state would have.
    let next = super::super::config::digest(&json!({ "data": { "a": "2" } }));
    let name = format!("cfg-{}", &next[..8]);
    world.set_config(&name, json!({ "mine": "x" })).await;
    world.set_config("cfg", json!({ "a": "2" })).await;
    let status = world
        .until_status("said", |status| {
            let tracked = condition::find(&status.conditions, CONFIG_TRACKED);
            tracked.is_some_and(|tracked| tracked.reason == condition::reason::CONFIG_NOT_COPIED)
        })
        .await;
    assert_eq!(status.stable_revision, first.stable_revision);
    let theirs = world.config_maps().get(&name).await.expect("it is there");
    assert_eq!(theirs.data.unwrap_or_default()["mine"], "x");
    let params = DeleteParams::default();
    world.config_maps().delete(&name, &params).await.expect("deleted");
    let second = world.promoted_after(&first.stable_revision).await;
    assert_eq!(world.configured_with(&second.stable_revision).await.0, "2");
}
