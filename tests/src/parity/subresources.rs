//! `/status`, `/scale`, reviews.

use anyhow::ensure;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt as _};
use serde_json::{Value, json};

use super::{deployment, raw, refused, table};

table!("subresources":
    scale_shows_replicas_and_selector,
    scale_patch_changes_replicas_and_generation,
    scale_update_with_an_old_version_is_a_conflict,
    scale_below_zero_is_invalid,
    scale_of_what_has_none_is_not_found,
    status_is_written_only_through_status,
    status_writes_nothing_else,
    status_changes_no_generation,
    access_review_answers,
);

async fn made(client: &Client, ns: &str) -> anyhow::Result<Api<Deployment>> {
    let api: Api<Deployment> = Api::namespaced(client.clone(), ns);
    // Paused, so that no controller writes a status of its own revision history meanwhile.
    let mut object = deployment("a")?;
    object.spec.iter_mut().for_each(|spec| spec.paused = Some(true));
    api.create(&PostParams::default(), &object).await?;
    Ok(api)
}

async fn scale_shows_replicas_and_selector(client: Client, ns: String) -> anyhow::Result<()> {
    let api = made(&client, &ns).await?;
    let scale = api.get_scale("a").await?;
    ensure!(scale.metadata.name.as_deref() == Some("a") && scale.metadata.uid.is_some());
    ensure!(scale.spec.and_then(|spec| spec.replicas).unwrap_or(0) == 0);
    ensure!(scale.status.and_then(|status| status.selector).as_deref() == Some("app=a"));
    Ok(())
}

async fn scale_patch_changes_replicas_and_generation(client: Client, ns: String) -> anyhow::Result<()> {
    let api = made(&client, &ns).await?;
    let patch = Patch::Merge(json!({ "spec": { "replicas": 1 } }));
    let scale = api.patch_scale("a", &PatchParams::default(), &patch).await?;
    ensure!(scale.spec.and_then(|spec| spec.replicas) == Some(1));
    let object = api.get("a").await?;
    ensure!(object.spec.and_then(|spec| spec.replicas) == Some(1));
    ensure!(object.metadata.generation == Some(2));
    api.patch_scale(
        "a",
        &PatchParams::default(),
        &Patch::Merge(json!({ "spec": { "replicas": 0 } })),
    )
    .await?;
    Ok(())
}

async fn scale_update_with_an_old_version_is_a_conflict(client: Client, ns: String) -> anyhow::Result<()> {
    let api = made(&client, &ns).await?;
    let path = format!("/apis/apps/v1/namespaces/{ns}/deployments/a/scale");
    let old = raw(&client, "GET", &path, None).await?;
    let patch = Patch::Merge(json!({ "metadata": { "labels": { "x": "y" } } }));
    api.patch("a", &PatchParams::default(), &patch).await?;
    refused(raw(&client, "PUT", &path, Some(old)).await, 409)?;
    Ok(())
}

async fn scale_below_zero_is_invalid(client: Client, ns: String) -> anyhow::Result<()> {
    let api = made(&client, &ns).await?;
    let patch = Patch::Merge(json!({ "spec": { "replicas": -1 } }));
    refused(api.patch_scale("a", &PatchParams::default(), &patch).await, 422)?;
    Ok(())
}

async fn scale_of_what_has_none_is_not_found(client: Client, ns: String) -> anyhow::Result<()> {
    let api: Api<ConfigMap> = Api::namespaced(client, &ns);
    refused(api.get_scale("a").await, 404)?;
    Ok(())
}

async fn status_is_written_only_through_status(client: Client, ns: String) -> anyhow::Result<()> {
    let api = made(&client, &ns).await?;
    let patch = Patch::Merge(json!({ "status": { "collisionCount": 7 } }));
    let main = api.patch("a", &PatchParams::default(), &patch).await?;
    ensure!(main.status.is_none_or(|status| status.collision_count != Some(7)));
    let status = api.patch_status("a", &PatchParams::default(), &patch).await?;
    ensure!(
        status
            .status
            .is_some_and(|status| status.collision_count == Some(7))
    );
    Ok(())
}

async fn status_writes_nothing_else(client: Client, ns: String) -> anyhow::Result<()> {
    let api = made(&client, &ns).await?;
    let patch =
        Patch::Merge(json!({ "spec": { "minReadySeconds": 9 }, "metadata": { "labels": { "x": "y" } } }));
    let next = api.patch_status("a", &PatchParams::default(), &patch).await?;
    ensure!(
        next.spec
            .as_ref()
            .is_some_and(|spec| spec.min_ready_seconds.unwrap_or(0) == 0)
    );
    ensure!(!next.labels().contains_key("x"), "{:?}", next.labels());
    Ok(())
}

async fn status_changes_no_generation(client: Client, ns: String) -> anyhow::Result<()> {
    let api = made(&client, &ns).await?;
    let patch = Patch::Merge(json!({ "status": { "collisionCount": 3 } }));
    let next = api.patch_status("a", &PatchParams::default(), &patch).await?;
    ensure!(next.metadata.generation == Some(1));
    Ok(())
}

async fn access_review_answers(client: Client, ns: String) -> anyhow::Result<()> {
    let body =
        json!({ "spec": { "resourceAttributes": { "namespace": ns, "verb": "get", "resource": "pods" } } });
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let answer: Value = raw(&client, "POST", path, Some(body)).await?;
    ensure!(answer["status"]["allowed"] == true, "{answer}");
    Ok(())
}
