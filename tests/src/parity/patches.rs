//! JSON, merge and strategic merge patches.

use anyhow::ensure;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Service};
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt as _};
use serde_json::{Value, json};

use super::{config_map, deployment, refused, send, service, table};

table!("patches":
    merge_patch_merges_and_removes,
    merge_patch_of_nothing_changes_nothing,
    merge_patch_with_an_old_version_is_a_conflict,
    merge_patch_of_what_is_not_there_is_not_found,
    merge_patch_replaces_lists,
    json_patch_operates,
    json_patch_whose_test_fails_is_invalid,
    json_patch_replace_adds_a_missing_key_and_remove_refuses_it,
    strategic_patch_merges_containers_by_name,
    strategic_patch_merges_env_and_deletes_by_directive,
    strategic_patch_merges_service_ports_by_port,
    strategic_patch_retains_keys,
    strategic_patch_merges_finalizers,
    patch_cannot_rename,
    patch_of_an_unknown_type_is_refused,
    patch_with_dry_run_stores_nothing,
    patch_with_strict_validation_names_unknown_fields,
);

async fn setup(client: &Client, ns: &str) -> anyhow::Result<Api<ConfigMap>> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), ns);
    api.create(
        &PostParams::default(),
        &config_map("a", json!({ "k": "1", "j": "2" }))?,
    )
    .await?;
    Ok(api)
}

async fn deployed(client: &Client, ns: &str) -> anyhow::Result<Api<Deployment>> {
    let api: Api<Deployment> = Api::namespaced(client.clone(), ns);
    api.create(&PostParams::default(), &deployment("a")?).await?;
    Ok(api)
}

fn containers(deployment: &Deployment) -> Value {
    serde_json::to_value(deployment).unwrap_or_default()["spec"]["template"]["spec"]["containers"].clone()
}

async fn merge_patch_merges_and_removes(client: Client, ns: String) -> anyhow::Result<()> {
    let api = setup(&client, &ns).await?;
    let patch = Patch::Merge(json!({ "data": { "k": null, "new": "3" } }));
    let next = api.patch("a", &PatchParams::default(), &patch).await?;
    let data = next.data.unwrap_or_default();
    ensure!(
        data.len() == 2 && data["j"] == "2" && data["new"] == "3",
        "{data:?}"
    );
    Ok(())
}

async fn merge_patch_of_nothing_changes_nothing(client: Client, ns: String) -> anyhow::Result<()> {
    let api = setup(&client, &ns).await?;
    let before = api.get("a").await?;
    let next = api
        .patch(
            "a",
            &PatchParams::default(),
            &Patch::Merge(json!({ "data": { "k": "1" } })),
        )
        .await?;
    ensure!(next.resource_version() == before.resource_version());
    Ok(())
}

async fn merge_patch_with_an_old_version_is_a_conflict(client: Client, ns: String) -> anyhow::Result<()> {
    let api = setup(&client, &ns).await?;
    let old = api.get("a").await?.resource_version();
    api.patch(
        "a",
        &PatchParams::default(),
        &Patch::Merge(json!({ "data": { "k": "2" } })),
    )
    .await?;
    let patch = Patch::Merge(json!({ "metadata": { "resourceVersion": old }, "data": { "k": "3" } }));
    refused(api.patch("a", &PatchParams::default(), &patch).await, 409)?;
    Ok(())
}

async fn merge_patch_of_what_is_not_there_is_not_found(client: Client, ns: String) -> anyhow::Result<()> {
    let api: Api<ConfigMap> = Api::namespaced(client, &ns);
    refused(
        api.patch("none", &PatchParams::default(), &Patch::Merge(json!({})))
            .await,
        404,
    )?;
    Ok(())
}

async fn merge_patch_replaces_lists(client: Client, ns: String) -> anyhow::Result<()> {
    let api = deployed(&client, &ns).await?;
    let list = json!([{ "name": "other", "image": "registry.invalid/x:2" }]);
    let patch = Patch::Merge(json!({ "spec": { "template": { "spec": { "containers": list } } } }));
    let next = api.patch("a", &PatchParams::default(), &patch).await?;
    let all = containers(&next);
    ensure!(
        all.as_array().is_some_and(|all| all.len() == 1) && all[0]["name"] == "other",
        "{all}"
    );
    Ok(())
}

async fn json_patch_operates(client: Client, ns: String) -> anyhow::Result<()> {
    setup(&client, &ns).await?;
    let path = format!("/api/v1/namespaces/{ns}/configmaps/a");
    let patch = json!([
        { "op": "test", "path": "/data/k", "value": "1" },
        { "op": "replace", "path": "/data/k", "value": "9" },
        { "op": "remove", "path": "/data/j" },
        { "op": "add", "path": "/metadata/labels", "value": { "a.b/c": "d" } },
        { "op": "replace", "path": "/metadata/labels/a.b~1c", "value": "e" },
        { "op": "copy", "from": "/data/k", "path": "/data/copied" },
    ]);
    let next = send(
        &client,
        "PATCH",
        &path,
        "application/json-patch+json",
        Some(patch),
    )
    .await?;
    ensure!(next["data"] == json!({ "k": "9", "copied": "9" }), "{next}");
    ensure!(next["metadata"]["labels"]["a.b/c"] == "e", "{next}");
    Ok(())
}

async fn json_patch_whose_test_fails_is_invalid(client: Client, ns: String) -> anyhow::Result<()> {
    setup(&client, &ns).await?;
    let path = format!("/api/v1/namespaces/{ns}/configmaps/a");
    let patch = json!([{ "op": "test", "path": "/data/k", "value": "no" }]);
    refused(
        send(
            &client,
            "PATCH",
            &path,
            "application/json-patch+json",
            Some(patch),
        )
        .await,
        422,
    )?;
    Ok(())
}

async fn json_patch_replace_adds_a_missing_key_and_remove_refuses_it(
    client: Client,
    ns: String,
) -> anyhow::Result<()> {
    setup(&client, &ns).await?;
    let path = format!("/api/v1/namespaces/{ns}/configmaps/a");
    let kind = "application/json-patch+json";
    let replace = json!([{ "op": "replace", "path": "/data/none", "value": "x" }]);
    let after = send(&client, "PATCH", &path, kind, Some(replace)).await?;
    ensure!(after["data"]["none"] == "x", "{after}");
    for patch in [
        json!([{ "op": "remove", "path": "/data/nothing" }]),
        json!([{ "op": "replace", "path": "/nowhere/none", "value": "x" }]),
    ] {
        refused(send(&client, "PATCH", &path, kind, Some(patch)).await, 422)?;
    }
    Ok(())
}

async fn strategic_patch_merges_containers_by_name(client: Client, ns: String) -> anyhow::Result<()> {
    let api = deployed(&client, &ns).await?;
    let list =
        json!([{ "name": "main", "args": ["x"] }, { "name": "side", "image": "registry.invalid/s:1" }]);
    let patch = Patch::Strategic(json!({ "spec": { "template": { "spec": { "containers": list } } } }));
    let all = containers(&api.patch("a", &PatchParams::default(), &patch).await?);
    ensure!(all.as_array().is_some_and(|all| all.len() == 2), "{all}");
    let main = all
        .as_array()
        .into_iter()
        .flatten()
        .find(|it| it["name"] == "main")
        .cloned()
        .unwrap_or_default();
    ensure!(
        main["image"] == "registry.invalid/none:1" && main["args"] == json!(["x"]),
        "{main}"
    );
    Ok(())
}

async fn strategic_patch_merges_env_and_deletes_by_directive(
    client: Client,
    ns: String,
) -> anyhow::Result<()> {
    let api = deployed(&client, &ns).await?;
    let with = |env: Value| {
        let list = json!([{ "name": "main", "env": env }]);
        Patch::Strategic(json!({ "spec": { "template": { "spec": { "containers": list } } } }))
    };
    let first = with(json!([{ "name": "A", "value": "1" }, { "name": "B", "value": "2" }]));
    api.patch("a", &PatchParams::default(), &first).await?;
    let second = with(json!([{ "name": "A", "$patch": "delete" }, { "name": "B", "value": "3" }]));
    let all = containers(&api.patch("a", &PatchParams::default(), &second).await?);
    ensure!(all[0]["env"] == json!([{ "name": "B", "value": "3" }]), "{all}");
    Ok(())
}

async fn strategic_patch_merges_service_ports_by_port(client: Client, ns: String) -> anyhow::Result<()> {
    let api: Api<Service> = Api::namespaced(client, &ns);
    let spec = json!({ "ports": [{ "name": "a", "port": 80 }, { "name": "b", "port": 81 }] });
    api.create(&PostParams::default(), &service("s", spec)?).await?;
    let patch = Patch::Strategic(json!({ "spec": { "ports": [{ "port": 81, "targetPort": 8081 }] } }));
    let next = serde_json::to_value(api.patch("s", &PatchParams::default(), &patch).await?)?;
    let ports = next["spec"]["ports"].as_array().cloned().unwrap_or_default();
    ensure!(ports.len() == 2, "{ports:?}");
    let second = ports
        .iter()
        .find(|it| it["port"] == 81)
        .cloned()
        .unwrap_or_default();
    ensure!(second["name"] == "b" && second["targetPort"] == 8081, "{second}");
    Ok(())
}

async fn strategic_patch_retains_keys(client: Client, ns: String) -> anyhow::Result<()> {
    let api = deployed(&client, &ns).await?;
    let patch = json!({ "spec": { "strategy": { "$retainKeys": ["type"], "type": "Recreate" } } });
    let next = api
        .patch("a", &PatchParams::default(), &Patch::Strategic(patch))
        .await?;
    let strategy = next.spec.and_then(|spec| spec.strategy).unwrap_or_default();
    ensure!(
        strategy.type_.as_deref() == Some("Recreate") && strategy.rolling_update.is_none(),
        "{strategy:?}"
    );
    Ok(())
}

async fn strategic_patch_merges_finalizers(client: Client, ns: String) -> anyhow::Result<()> {
    let api = setup(&client, &ns).await?;
    for name in ["parity.test/a", "parity.test/b"] {
        let patch = Patch::Strategic(json!({ "metadata": { "finalizers": [name] } }));
        api.patch("a", &PatchParams::default(), &patch).await?;
    }
    let mut found = api.get("a").await?.finalizers().to_vec();
    found.sort();
    ensure!(found == ["parity.test/a", "parity.test/b"], "{found:?}");
    // Finalizers would keep the namespace.
    api.patch(
        "a",
        &PatchParams::default(),
        &Patch::Merge(json!({ "metadata": { "finalizers": null } })),
    )
    .await?;
    Ok(())
}

async fn patch_cannot_rename(client: Client, ns: String) -> anyhow::Result<()> {
    let api = setup(&client, &ns).await?;
    let patch = Patch::Merge(json!({ "metadata": { "name": "b" } }));
    match api.patch("a", &PatchParams::default(), &patch).await {
        Err(kube::Error::Api(status)) => ensure!(matches!(status.code, 400 | 422), "{status:?}"),
        other => anyhow::bail!("{other:?}"),
    }
    Ok(())
}

async fn patch_of_an_unknown_type_is_refused(client: Client, ns: String) -> anyhow::Result<()> {
    setup(&client, &ns).await?;
    let path = format!("/api/v1/namespaces/{ns}/configmaps/a");
    refused(
        send(&client, "PATCH", &path, "application/json", Some(json!({}))).await,
        415,
    )?;
    Ok(())
}

async fn patch_with_dry_run_stores_nothing(client: Client, ns: String) -> anyhow::Result<()> {
    let api = setup(&client, &ns).await?;
    let params = PatchParams {
        dry_run: true,
        ..PatchParams::default()
    };
    let shown = api
        .patch("a", &params, &Patch::Merge(json!({ "data": { "k": "9" } })))
        .await?;
    ensure!(shown.data.is_some_and(|data| data["k"] == "9"));
    ensure!(api.get("a").await?.data.is_some_and(|data| data["k"] == "1"));
    Ok(())
}

async fn patch_with_strict_validation_names_unknown_fields(client: Client, ns: String) -> anyhow::Result<()> {
    deployed(&client, &ns).await?;
    let path = format!("/apis/apps/v1/namespaces/{ns}/deployments/a?fieldValidation=");
    let patch = json!({ "spec": { "replicass": 3 } });
    let media = "application/merge-patch+json";
    let strict = send(
        &client,
        "PATCH",
        &format!("{path}Strict"),
        media,
        Some(patch.clone()),
    )
    .await;
    match strict {
        Err(kube::Error::Api(status)) => {
            ensure!(matches!(status.code, 400 | 422), "{status:?}");
            ensure!(
                status.message.contains("unknown field \"spec.replicass\""),
                "{}",
                status.message
            );
        }
        other => anyhow::bail!("{other:?}"),
    }
    let ignored = send(&client, "PATCH", &format!("{path}Ignore"), media, Some(patch)).await?;
    ensure!(ignored["spec"].get("replicass").is_none());
    Ok(())
}
