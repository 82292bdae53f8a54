//! Server-side apply and managed fields.

use anyhow::ensure;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Service};
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt as _};
use serde_json::{Value, json};

use super::{config_map, deployment_json, owned_by, refused, service, table};

table!("apply":
    apply_creates_and_owns_what_it_sent,
    apply_without_a_manager_is_refused,
    apply_of_the_same_changes_nothing,
    apply_removes_what_it_no_longer_sends,
    apply_leaves_what_others_set,
    apply_conflicts_with_an_update,
    apply_conflicts_with_another_apply,
    apply_by_force_takes_over,
    apply_of_an_equal_value_shares_it,
    apply_merges_containers_by_name,
    apply_keeps_a_scaled_deployment_when_it_gave_up_replicas,
    replicas_scaled_to_zero_are_nobodys_and_stay_so,
    apply_of_a_service_selector_is_atomic,
    apply_of_an_undeclared_field_is_refused,
    update_owns_what_it_changed,
    update_may_drop_its_own_entry,
    create_owns_defaults_but_not_addresses,
    managed_fields_can_be_cleared,
);

fn map(data: Value) -> Patch<Value> {
    Patch::Apply(
        json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "a" }, "data": data }),
    )
}

fn by(manager: &str) -> PatchParams {
    PatchParams::apply(manager)
}

fn data(object: &ConfigMap) -> Value {
    json!(object.data)
}

async fn apply_creates_and_owns_what_it_sent(client: Client, ns: String) -> anyhow::Result<()> {
    let api: Api<ConfigMap> = Api::namespaced(client, &ns);
    let made = api.patch("a", &by("one"), &map(json!({ "k": "1" }))).await?;
    let entries = made.managed_fields();
    ensure!(
        entries.len() == 1 && entries[0].operation.as_deref() == Some("Apply"),
        "{entries:?}"
    );
    ensure!(
        owned_by(&made, "one") == Some(json!({ "f:data": { "f:k": {} } })),
        "{entries:?}"
    );
    Ok(())
}

async fn apply_without_a_manager_is_refused(client: Client, ns: String) -> anyhow::Result<()> {
    let path = format!("/api/v1/namespaces/{ns}/configmaps/a");
    let body = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "a" } });
    let result = super::send(
        &client,
        "PATCH",
        &path,
        "application/apply-patch+yaml",
        Some(body),
    )
    .await;
    match result {
        Err(kube::Error::Api(status)) => ensure!(matches!(status.code, 400 | 422), "{status:?}"),
        other => anyhow::bail!("{other:?}"),
    }
    Ok(())
}

async fn apply_of_the_same_changes_nothing(client: Client, ns: String) -> anyhow::Result<()> {
    let api: Api<ConfigMap> = Api::namespaced(client, &ns);
    let first = api.patch("a", &by("one"), &map(json!({ "k": "1" }))).await?;
    let second = api.patch("a", &by("one"), &map(json!({ "k": "1" }))).await?;
    ensure!(first.resource_version() == second.resource_version());
    Ok(())
}

async fn apply_removes_what_it_no_longer_sends(client: Client, ns: String) -> anyhow::Result<()> {
    let api: Api<ConfigMap> = Api::namespaced(client, &ns);
    api.patch("a", &by("one"), &map(json!({ "k": "1", "j": "2" })))
        .await?;
    let next = api.patch("a", &by("one"), &map(json!({ "j": "2" }))).await?;
    ensure!(data(&next) == json!({ "j": "2" }), "{next:?}");
    Ok(())
}

async fn apply_leaves_what_others_set(client: Client, ns: String) -> anyhow::Result<()> {
    let api: Api<ConfigMap> = Api::namespaced(client, &ns);
    api.patch("a", &by("one"), &map(json!({ "k": "1" }))).await?;
    api.patch("a", &by("two"), &map(json!({ "j": "2" }))).await?;
    let next = api.patch("a", &by("one"), &map(json!({ "k": "3" }))).await?;
    ensure!(data(&next) == json!({ "j": "2", "k": "3" }), "{next:?}");
    Ok(())
}

async fn apply_conflicts_with_an_update(client: Client, ns: String) -> anyhow::Result<()> {
    let api: Api<ConfigMap> = Api::namespaced(client, &ns);
    let params = PostParams {
        field_manager: Some("maker".into()),
        ..PostParams::default()
    };
    api.create(&params, &config_map("a", json!({ "k": "1" }))?)
        .await?;
    let status = refused(api.patch("a", &by("one"), &map(json!({ "k": "2" }))).await, 409)?;
    let expected = "Apply failed with 1 conflict: conflict with \"maker\" using v1: .data.k";
    ensure!(status.message == expected, "{}", status.message);
    let causes = status.details.map(|it| it.causes).unwrap_or_default();
    ensure!(causes.len() == 1 && causes[0].reason == "FieldManagerConflict" && causes[0].field == ".data.k");
    Ok(())
}

async fn apply_conflicts_with_another_apply(client: Client, ns: String) -> anyhow::Result<()> {
    let api: Api<ConfigMap> = Api::namespaced(client, &ns);
    api.patch("a", &by("one"), &map(json!({ "k": "1", "j": "1" })))
        .await?;
    let status = refused(
        api.patch("a", &by("two"), &map(json!({ "k": "2", "j": "2" })))
            .await,
        409,
    )?;
    let expected = "Apply failed with 2 conflicts: conflicts with \"one\":\n- .data.j\n- .data.k";
    ensure!(status.message == expected, "{}", status.message);
    Ok(())
}

async fn apply_by_force_takes_over(client: Client, ns: String) -> anyhow::Result<()> {
    let api: Api<ConfigMap> = Api::namespaced(client, &ns);
    api.patch("a", &by("one"), &map(json!({ "k": "1" }))).await?;
    let next = api
        .patch("a", &by("two").force(), &map(json!({ "k": "2" })))
        .await?;
    ensure!(
        data(&next) == json!({ "k": "2" }) && owned_by(&next, "one").is_none(),
        "{next:?}"
    );
    Ok(())
}

async fn apply_of_an_equal_value_shares_it(client: Client, ns: String) -> anyhow::Result<()> {
    let api: Api<ConfigMap> = Api::namespaced(client, &ns);
    api.patch("a", &by("one"), &map(json!({ "k": "1" }))).await?;
    api.patch("a", &by("two"), &map(json!({ "k": "1" }))).await?;
    // Given up by one, it still belongs to the other.
    let next = api.patch("a", &by("one"), &map(json!({}))).await?;
    ensure!(data(&next) == json!({ "k": "1" }), "{next:?}");
    Ok(())
}

async fn apply_merges_containers_by_name(client: Client, ns: String) -> anyhow::Result<()> {
    let api: Api<Deployment> = Api::namespaced(client, &ns);
    api.patch("a", &by("one"), &Patch::Apply(deployment_json("a")))
        .await?;
    let side = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "a" },
        "spec": { "template": { "spec": { "containers": [{ "name": "side", "image": "registry.invalid/s:1" }] } } },
    });
    let next = api.patch("a", &by("two"), &Patch::Apply(side)).await?;
    let containers = |it: &Deployment| -> Vec<String> {
        let spec = it.spec.as_ref().and_then(|it| it.template.spec.as_ref());
        spec.map(|it| it.containers.iter().map(|it| it.name.clone()).collect())
            .unwrap_or_default()
    };
    ensure!(containers(&next) == ["main", "side"], "{:?}", containers(&next));
    let gone = json!({ "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "a" } });
    let next = api.patch("a", &by("two"), &Patch::Apply(gone)).await?;
    ensure!(
        containers(&next) == ["main"],
        "defaults of the container go with it: {:?}",
        containers(&next)
    );
    Ok(())
}

async fn apply_keeps_a_scaled_deployment_when_it_gave_up_replicas(
    client: Client,
    ns: String,
) -> anyhow::Result<()> {
    let api: Api<Deployment> = Api::namespaced(client, &ns);
    api.patch("a", &by("one"), &Patch::Apply(deployment_json("a")))
        .await?;
    let scale = PatchParams {
        field_manager: Some("scaler".into()),
        ..PatchParams::default()
    };
    let zero = json!({ "spec": { "replicas": 1 } });
    api.patch_scale("a", &scale, &Patch::Merge(zero)).await?;
    let with = api
        .patch("a", &by("one"), &Patch::Apply(deployment_json("a")))
        .await;
    let status = refused(with, 409)?;
    ensure!(
        status
            .message
            .contains("\"scaler\" with subresource \"scale\" using apps/v1: .spec.replicas"),
        "{}",
        status.message
    );
    let mut without = deployment_json("a");
    if let Some(spec) = without["spec"].as_object_mut() {
        spec.remove("replicas");
    }
    let next = api.patch("a", &by("one"), &Patch::Apply(without)).await?;
    ensure!(next.spec.and_then(|spec| spec.replicas) == Some(1));
    api.patch_scale("a", &scale, &Patch::Merge(json!({ "spec": { "replicas": 0 } })))
        .await?;
    Ok(())
}

async fn replicas_scaled_to_zero_are_nobodys_and_stay_so(client: Client, ns: String) -> anyhow::Result<()> {
    let api: Api<Deployment> = Api::namespaced(client, &ns);
    let mut two = deployment_json("z");
    two["spec"]["replicas"] = json!(2);
    api.patch("z", &by("one"), &Patch::Apply(two)).await?;
    let scale = PatchParams {
        field_manager: Some("scaler".into()),
        ..PatchParams::default()
    };
    for replicas in [0, 1] {
        let to = json!({ "spec": { "replicas": replicas } });
        api.patch_scale("z", &scale, &Patch::Merge(to)).await?;
        let now = api.get("z").await?;
        let owners: Vec<_> = ["one", "scaler"]
            .into_iter()
            .filter(|name| {
                owned_by(&now, name).is_some_and(|fields| !fields["f:spec"]["f:replicas"].is_null())
            })
            .collect();
        ensure!(owners.is_empty(), "{replicas} are of {owners:?}");
    }
    let mut none = deployment_json("z");
    none["spec"]["replicas"] = json!(0);
    api.patch("z", &by("other"), &Patch::Apply(none)).await?;
    Ok(())
}

async fn apply_of_a_service_selector_is_atomic(client: Client, ns: String) -> anyhow::Result<()> {
    let api: Api<Service> = Api::namespaced(client, &ns);
    let spec = json!({ "selector": { "app": "a" }, "ports": [{ "port": 80 }] });
    let own = service("s", spec)?;
    let made = api.patch("s", &by("user"), &Patch::Apply(&own)).await?;
    let owned = owned_by(&made, "user").unwrap_or_default();
    ensure!(owned["f:spec"]["f:selector"] == json!({}), "{owned}");
    let patch = Patch::Merge(json!({ "spec": { "selector": { "extra": "1" } } }));
    let other = PatchParams {
        field_manager: Some("other".into()),
        ..PatchParams::default()
    };
    api.patch("s", &other, &patch).await?;
    let status = refused(api.patch("s", &by("user"), &Patch::Apply(&own)).await, 409)?;
    ensure!(
        status.message.ends_with("\"other\" using v1: .spec.selector"),
        "{}",
        status.message
    );
    let forced = api.patch("s", &by("user").force(), &Patch::Apply(&own)).await?;
    ensure!(
        forced
            .spec
            .and_then(|it| it.selector)
            .is_some_and(|it| it.len() == 1),
        "the whole map is replaced"
    );
    Ok(())
}

async fn apply_of_an_undeclared_field_is_refused(client: Client, ns: String) -> anyhow::Result<()> {
    let api: Api<ConfigMap> = Api::namespaced(client, &ns);
    let config = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "a" }, "dataa": {} });
    match api.patch("a", &by("one"), &Patch::Apply(config)).await {
        Err(kube::Error::Api(status)) => {
            ensure!(
                status.message.contains("field not declared in schema"),
                "{}",
                status.message
            );
        }
        other => anyhow::bail!("{other:?}"),
    }
    Ok(())
}

async fn update_owns_what_it_changed(client: Client, ns: String) -> anyhow::Result<()> {
    let api: Api<ConfigMap> = Api::namespaced(client, &ns);
    api.patch("a", &by("one"), &map(json!({ "k": "1", "j": "1" })))
        .await?;
    let params = PatchParams {
        field_manager: Some("editor".into()),
        ..PatchParams::default()
    };
    let next = api
        .patch("a", &params, &Patch::Merge(json!({ "data": { "k": "2" } })))
        .await?;
    ensure!(
        owned_by(&next, "editor") == Some(json!({ "f:data": { "f:k": {} } })),
        "{next:?}"
    );
    ensure!(
        owned_by(&next, "one") == Some(json!({ "f:data": { "f:j": {} } })),
        "{next:?}"
    );
    Ok(())
}

async fn update_may_drop_its_own_entry(client: Client, ns: String) -> anyhow::Result<()> {
    let api: Api<Service> = Api::namespaced(client, &ns);
    let own = service(
        "s",
        json!({ "selector": { "app": "a" }, "ports": [{ "port": 80 }] }),
    )?;
    api.patch("s", &by("user"), &Patch::Apply(&own)).await?;
    let other = PatchParams {
        field_manager: Some("other".into()),
        ..PatchParams::default()
    };
    let patch = Patch::Merge(json!({ "spec": { "selector": { "extra": "1" } } }));
    let next = api.patch("s", &other, &patch).await?;
    let kept: Vec<_> = next
        .managed_fields()
        .iter()
        .filter(|it| it.manager.as_deref() != Some("other"))
        .cloned()
        .collect();
    let patch = Patch::Merge(json!({ "metadata": {
        "managedFields": kept, "resourceVersion": next.resource_version(),
    } }));
    let next = api.patch("s", &other, &patch).await?;
    ensure!(owned_by(&next, "other").is_none(), "{:?}", next.managed_fields());
    // Nobody owns the selector any more, so there is no conflict, and the extra key goes.
    api.patch("s", &by("user"), &Patch::Apply(&own)).await?;
    Ok(())
}

async fn create_owns_defaults_but_not_addresses(client: Client, ns: String) -> anyhow::Result<()> {
    let api: Api<Service> = Api::namespaced(client, &ns);
    let params = PostParams {
        field_manager: Some("maker".into()),
        ..PostParams::default()
    };
    let made = api
        .create(&params, &service("s", json!({ "ports": [{ "port": 80 }] }))?)
        .await?;
    let owned = owned_by(&made, "maker").unwrap_or_default();
    ensure!(
        owned["f:spec"]["f:type"] == json!({}) && owned["f:spec"]["f:sessionAffinity"] == json!({}),
        "{owned}"
    );
    ensure!(owned["f:spec"].get("f:clusterIP").is_none(), "{owned}");
    ensure!(
        owned["f:spec"]["f:ports"]
            .get("k:{\"port\":80,\"protocol\":\"TCP\"}")
            .is_some(),
        "{owned}"
    );
    Ok(())
}

async fn managed_fields_can_be_cleared(client: Client, ns: String) -> anyhow::Result<()> {
    let api: Api<ConfigMap> = Api::namespaced(client, &ns);
    api.patch("a", &by("one"), &map(json!({ "k": "1" }))).await?;
    let patch = Patch::Merge(json!({ "metadata": { "managedFields": [{}] } }));
    let next = api.patch("a", &PatchParams::default(), &patch).await?;
    ensure!(next.managed_fields().is_empty(), "{:?}", next.managed_fields());
    Ok(())
}
