//! Create, get, update: metadata, versions, conflicts.

use anyhow::ensure;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt as _};
use serde_json::json;

use super::{config_map, deployment, from, raw, refused, table};

table!("objects":
    create_sets_what_only_the_server_knows,
    create_twice_is_already_exists,
    create_with_a_resource_version_is_refused,
    create_with_generate_name_makes_a_name,
    create_in_a_missing_namespace_is_not_found,
    create_with_dry_run_stores_nothing,
    get_of_what_is_not_there_is_not_found,
    update_with_an_old_version_is_a_conflict,
    update_without_a_version_overwrites,
    update_that_changes_nothing_keeps_the_version,
    update_with_another_uid_is_a_conflict,
    update_of_what_is_not_there_is_not_found,
    update_cannot_change_identity,
    lease_can_be_created_by_update,
    generation_counts_changes_of_the_spec,
    generation_of_a_deployment_counts_annotations_too,
    unknown_kind_is_not_found,
    empty_maps_are_left_out,
);

async fn create_sets_what_only_the_server_knows(client: Client, ns: String) -> anyhow::Result<()> {
    let api: Api<ConfigMap> = Api::namespaced(client, &ns);
    let mut sent = config_map("a", json!({ "k": "v" }))?;
    sent.metadata.uid = Some("mine".into());
    let made = api.create(&PostParams::default(), &sent).await?;
    ensure!(
        made.uid().is_some_and(|uid| uid.len() == 36),
        "uid: {:?}",
        made.uid()
    );
    ensure!(made.creation_timestamp().is_some() && made.resource_version().is_some());
    ensure!(
        made.metadata.generation.is_none(),
        "a ConfigMap has no generation"
    );
    ensure!(made.namespace().as_deref() == Some(ns.as_str()));
    ensure!(
        made.metadata
            .managed_fields
            .as_ref()
            .is_some_and(|all| all.len() == 1)
    );
    Ok(())
}

async fn create_twice_is_already_exists(client: Client, ns: String) -> anyhow::Result<()> {
    let api: Api<ConfigMap> = Api::namespaced(client, &ns);
    let sent = config_map("a", json!({}))?;
    api.create(&PostParams::default(), &sent).await?;
    let status = refused(api.create(&PostParams::default(), &sent).await, 409)?;
    ensure!(status.reason == "AlreadyExists", "{status:?}");
    ensure!(
        status.message == "configmaps \"a\" already exists",
        "{}",
        status.message
    );
    Ok(())
}

async fn create_with_a_resource_version_is_refused(client: Client, ns: String) -> anyhow::Result<()> {
    let api: Api<ConfigMap> = Api::namespaced(client, &ns);
    let mut sent = config_map("a", json!({}))?;
    sent.metadata.resource_version = Some("1".into());
    match api.create(&PostParams::default(), &sent).await {
        Err(kube::Error::Api(status)) => {
            ensure!(
                status.message.contains("resourceVersion should not be set"),
                "{}",
                status.message
            );
        }
        other => anyhow::bail!("{other:?}"),
    }
    Ok(())
}

async fn create_with_generate_name_makes_a_name(client: Client, ns: String) -> anyhow::Result<()> {
    let api: Api<ConfigMap> = Api::namespaced(client, &ns);
    let sent: ConfigMap = from(json!({ "metadata": { "generateName": "cm-" } }))?;
    let first = api.create(&PostParams::default(), &sent).await?.name_any();
    let second = api.create(&PostParams::default(), &sent).await?.name_any();
    ensure!(
        first.starts_with("cm-") && first.len() == 8 && first != second,
        "{first} {second}"
    );
    Ok(())
}

async fn create_in_a_missing_namespace_is_not_found(client: Client, _: String) -> anyhow::Result<()> {
    let api: Api<ConfigMap> = Api::namespaced(client, "no-such-namespace");
    let status = refused(
        api.create(&PostParams::default(), &config_map("a", json!({}))?)
            .await,
        404,
    )?;
    ensure!(
        status.message == "namespaces \"no-such-namespace\" not found",
        "{}",
        status.message
    );
    Ok(())
}

async fn create_with_dry_run_stores_nothing(client: Client, ns: String) -> anyhow::Result<()> {
    let api: Api<ConfigMap> = Api::namespaced(client, &ns);
    let params = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let made = api.create(&params, &config_map("a", json!({}))?).await?;
    ensure!(made.uid().is_some());
    ensure!(api.get_opt("a").await?.is_none());
    Ok(())
}

async fn get_of_what_is_not_there_is_not_found(client: Client, ns: String) -> anyhow::Result<()> {
    let api: Api<ConfigMap> = Api::namespaced(client, &ns);
    let status = refused(api.get("none").await, 404)?;
    ensure!(
        status.reason == "NotFound" && status.message == "configmaps \"none\" not found",
        "{status:?}"
    );
    Ok(())
}

async fn update_with_an_old_version_is_a_conflict(client: Client, ns: String) -> anyhow::Result<()> {
    let api: Api<ConfigMap> = Api::namespaced(client, &ns);
    let first = api
        .create(&PostParams::default(), &config_map("a", json!({ "k": "1" }))?)
        .await?;
    let mut next = first.clone();
    next.data = Some([("k".to_owned(), "2".to_owned())].into());
    api.replace("a", &PostParams::default(), &next).await?;
    next.data = Some([("k".to_owned(), "3".to_owned())].into());
    let status = refused(api.replace("a", &PostParams::default(), &next).await, 409)?;
    ensure!(
        status.reason == "Conflict" && status.message.contains("the object has been modified"),
        "{status:?}"
    );
    Ok(())
}

async fn update_without_a_version_overwrites(client: Client, ns: String) -> anyhow::Result<()> {
    let api: Api<ConfigMap> = Api::namespaced(client, &ns);
    api.create(&PostParams::default(), &config_map("a", json!({ "k": "1" }))?)
        .await?;
    let next = api
        .replace(
            "a",
            &PostParams::default(),
            &config_map("a", json!({ "j": "2" }))?,
        )
        .await?;
    ensure!(
        next.data
            .as_ref()
            .is_some_and(|data| data.len() == 1 && data["j"] == "2"),
        "{next:?}"
    );
    Ok(())
}

async fn update_that_changes_nothing_keeps_the_version(client: Client, ns: String) -> anyhow::Result<()> {
    let api: Api<ConfigMap> = Api::namespaced(client, &ns);
    let first = api
        .create(&PostParams::default(), &config_map("a", json!({ "k": "1" }))?)
        .await?;
    let next = api.replace("a", &PostParams::default(), &first).await?;
    ensure!(next.resource_version() == first.resource_version());
    Ok(())
}

async fn update_with_another_uid_is_a_conflict(client: Client, ns: String) -> anyhow::Result<()> {
    let api: Api<ConfigMap> = Api::namespaced(client, &ns);
    let mut object = api
        .create(&PostParams::default(), &config_map("a", json!({}))?)
        .await?;
    object.metadata.uid = Some("00000000-0000-4000-8000-000000000000".into());
    refused(api.replace("a", &PostParams::default(), &object).await, 409)?;
    Ok(())
}

async fn update_of_what_is_not_there_is_not_found(client: Client, ns: String) -> anyhow::Result<()> {
    let api: Api<ConfigMap> = Api::namespaced(client, &ns);
    refused(
        api.replace("a", &PostParams::default(), &config_map("a", json!({}))?)
            .await,
        404,
    )?;
    Ok(())
}

async fn update_cannot_change_identity(client: Client, ns: String) -> anyhow::Result<()> {
    let path = format!("/api/v1/namespaces/{ns}/configmaps");
    raw(
        &client,
        "POST",
        &path,
        Some(json!({ "metadata": { "name": "a" } })),
    )
    .await?;
    let other = json!({ "metadata": { "name": "b" } });
    refused(raw(&client, "PUT", &format!("{path}/a"), Some(other)).await, 400)?;
    let elsewhere = json!({ "metadata": { "name": "a", "namespace": "default" } });
    refused(
        raw(&client, "PUT", &format!("{path}/a"), Some(elsewhere)).await,
        400,
    )?;
    Ok(())
}

async fn lease_can_be_created_by_update(client: Client, ns: String) -> anyhow::Result<()> {
    let path = format!("/apis/coordination.k8s.io/v1/namespaces/{ns}/leases/l");
    let lease = json!({ "metadata": { "name": "l" }, "spec": { "holderIdentity": "me" } });
    let made = raw(&client, "PUT", &path, Some(lease)).await?;
    ensure!(
        made["spec"]["holderIdentity"] == "me" && made["metadata"]["uid"].is_string(),
        "{made}"
    );
    Ok(())
}

/// A paused Deployment: no controller annotates it meanwhile.
async fn paused(client: Client, ns: &str) -> anyhow::Result<(Api<Deployment>, Deployment)> {
    let api: Api<Deployment> = Api::namespaced(client, ns);
    let mut object = deployment("a")?;
    object.spec.iter_mut().for_each(|spec| spec.paused = Some(true));
    let made = api.create(&PostParams::default(), &object).await?;
    Ok((api, made))
}

async fn generation_counts_changes_of_the_spec(client: Client, ns: String) -> anyhow::Result<()> {
    let (api, mut object) = paused(client, &ns).await?;
    ensure!(object.metadata.generation == Some(1));
    object.labels_mut().insert("x".into(), "y".into());
    object.metadata.resource_version = None;
    let labelled = api.replace("a", &PostParams::default(), &object).await?;
    ensure!(labelled.metadata.generation == Some(1), "labels are not the spec");
    object
        .spec
        .iter_mut()
        .for_each(|spec| spec.min_ready_seconds = Some(3));
    let changed = api.replace("a", &PostParams::default(), &object).await?;
    ensure!(
        changed.metadata.generation == Some(2),
        "{:?}",
        changed.metadata.generation
    );
    Ok(())
}

async fn generation_of_a_deployment_counts_annotations_too(client: Client, ns: String) -> anyhow::Result<()> {
    let (api, _) = paused(client, &ns).await?;
    for (value, wanted) in [(json!("1"), 2), (json!("1"), 2), (json!(null), 3)] {
        let patch = Patch::Merge(json!({ "metadata": { "annotations": { "parity.test/a": value } } }));
        let next = api.patch("a", &PatchParams::default(), &patch).await?;
        ensure!(
            next.metadata.generation == Some(wanted),
            "{value}: {:?}",
            next.metadata.generation
        );
    }
    Ok(())
}

async fn unknown_kind_is_not_found(client: Client, ns: String) -> anyhow::Result<()> {
    refused(
        raw(&client, "GET", &format!("/api/v1/namespaces/{ns}/nonsense"), None).await,
        404,
    )?;
    refused(
        raw(&client, "GET", "/apis/nonsense.example/v1/things", None).await,
        404,
    )?;
    Ok(())
}

async fn empty_maps_are_left_out(client: Client, ns: String) -> anyhow::Result<()> {
    let path = format!("/api/v1/namespaces/{ns}/configmaps");
    let body = json!({ "metadata": { "name": "a", "labels": {}, "annotations": null }, "data": {} });
    let made = raw(&client, "POST", &path, Some(body)).await?;
    ensure!(
        made.get("data").is_none() && made["metadata"].get("labels").is_none(),
        "{made}"
    );
    Ok(())
}
