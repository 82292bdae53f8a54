//! Deletion: at once, with finalizers, with preconditions, in bulk.

use anyhow::ensure;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Client, ResourceExt as _};
use serde_json::json;

use super::{config_map, from, refused, table};

table!("delete":
    delete_answers_with_a_status_and_is_done,
    delete_of_what_is_not_there_is_not_found,
    delete_waits_for_finalizers,
    finalizers_cannot_be_added_to_what_is_going,
    delete_foreground_leaves_a_finalizer,
    delete_with_another_uid_is_a_conflict,
    delete_with_an_old_version_is_a_conflict,
    delete_with_dry_run_deletes_nothing,
    delete_collection_takes_only_what_is_selected,
    delete_of_a_namespace_marks_it,
);

async fn made(client: &Client, ns: &str, finalizers: &[&str]) -> anyhow::Result<Api<ConfigMap>> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), ns);
    let object: ConfigMap = from(json!({ "metadata": { "name": "a", "finalizers": finalizers } }))?;
    api.create(&PostParams::default(), &object).await?;
    Ok(api)
}

async fn release(api: &Api<ConfigMap>) -> anyhow::Result<()> {
    let patch = Patch::Merge(json!({ "metadata": { "finalizers": null } }));
    api.patch("a", &PatchParams::default(), &patch).await?;
    Ok(())
}

async fn delete_answers_with_a_status_and_is_done(client: Client, ns: String) -> anyhow::Result<()> {
    let api = made(&client, &ns, &[]).await?;
    let uid = api.get("a").await?.uid();
    let status = api.delete("a", &DeleteParams::default()).await?.right();
    let details = status.and_then(|status| status.details);
    ensure!(details.is_some_and(|it| it.name == "a" && Some(it.uid) == uid));
    ensure!(api.get_opt("a").await?.is_none());
    Ok(())
}

async fn delete_of_what_is_not_there_is_not_found(client: Client, ns: String) -> anyhow::Result<()> {
    let api: Api<ConfigMap> = Api::namespaced(client, &ns);
    refused(api.delete("none", &DeleteParams::default()).await, 404)?;
    Ok(())
}

async fn delete_waits_for_finalizers(client: Client, ns: String) -> anyhow::Result<()> {
    let api = made(&client, &ns, &["parity.test/wait"]).await?;
    let going = api.delete("a", &DeleteParams::default()).await?.left();
    ensure!(going.is_some_and(|it| it.metadata.deletion_timestamp.is_some()));
    ensure!(api.get("a").await?.metadata.deletion_timestamp.is_some());
    release(&api).await?;
    ensure!(
        api.get_opt("a").await?.is_none(),
        "the last finalizer's removal deletes it"
    );
    Ok(())
}

async fn finalizers_cannot_be_added_to_what_is_going(client: Client, ns: String) -> anyhow::Result<()> {
    let api = made(&client, &ns, &["parity.test/wait"]).await?;
    api.delete("a", &DeleteParams::default()).await?;
    let patch =
        Patch::Merge(json!({ "metadata": { "finalizers": ["parity.test/wait", "parity.test/more"] } }));
    let status = refused(api.patch("a", &PatchParams::default(), &patch).await, 422)?;
    ensure!(
        status.message.contains("no new finalizers can be added"),
        "{}",
        status.message
    );
    release(&api).await
}

async fn delete_foreground_leaves_a_finalizer(client: Client, ns: String) -> anyhow::Result<()> {
    // A finalizer of our own keeps a real cluster's garbage collector from finishing at once.
    let api = made(&client, &ns, &["parity.test/wait"]).await?;
    let going = api.delete("a", &DeleteParams::foreground()).await?.left();
    let finalizers = going.map(|it| it.finalizers().to_vec()).unwrap_or_default();
    ensure!(
        finalizers.iter().any(|it| it == "foregroundDeletion"),
        "{finalizers:?}"
    );
    release(&api).await
}

async fn delete_with_another_uid_is_a_conflict(client: Client, ns: String) -> anyhow::Result<()> {
    let api = made(&client, &ns, &[]).await?;
    let uid = Some("00000000-0000-4000-8000-000000000000".to_owned());
    let params = DeleteParams::default().preconditions(Preconditions {
        uid,
        resource_version: None,
    });
    refused(api.delete("a", &params).await, 409)?;
    ensure!(api.get_opt("a").await?.is_some());
    Ok(())
}

async fn delete_with_an_old_version_is_a_conflict(client: Client, ns: String) -> anyhow::Result<()> {
    let api = made(&client, &ns, &[]).await?;
    let old = api.get("a").await?.resource_version();
    let patch = Patch::Merge(json!({ "data": { "k": "v" } }));
    let now = api
        .patch("a", &PatchParams::default(), &patch)
        .await?
        .resource_version();
    let with = |resource_version| {
        DeleteParams::default().preconditions(Preconditions {
            uid: None,
            resource_version,
        })
    };
    refused(api.delete("a", &with(old)).await, 409)?;
    api.delete("a", &with(now)).await?;
    Ok(())
}

async fn delete_with_dry_run_deletes_nothing(client: Client, ns: String) -> anyhow::Result<()> {
    let api = made(&client, &ns, &[]).await?;
    api.delete("a", &DeleteParams::default().dry_run()).await?;
    ensure!(api.get_opt("a").await?.is_some());
    Ok(())
}

async fn delete_collection_takes_only_what_is_selected(client: Client, ns: String) -> anyhow::Result<()> {
    let api: Api<ConfigMap> = Api::namespaced(client, &ns);
    for (name, label) in [("a", "go"), ("b", "go"), ("c", "stay")] {
        let mut object = config_map(name, json!({}))?;
        object.labels_mut().insert("l".into(), label.into());
        api.create(&PostParams::default(), &object).await?;
    }
    api.delete_collection(&DeleteParams::default(), &ListParams::default().labels("l=go"))
        .await?;
    let left = api.list(&ListParams::default().labels("l")).await?;
    ensure!(left.items.len() == 1 && left.items[0].name_any() == "c");
    Ok(())
}

async fn delete_of_a_namespace_marks_it(client: Client, ns: String) -> anyhow::Result<()> {
    let inner = format!("{ns}-x");
    let namespaces: Api<Namespace> = Api::all(client.clone());
    namespaces
        .create(
            &PostParams::default(),
            &from(json!({ "metadata": { "name": inner } }))?,
        )
        .await?;
    // Content with a finalizer keeps a real cluster's namespace controller from finishing at once.
    let api = made(&client, &inner, &["parity.test/wait"]).await?;
    let going = namespaces.delete(&inner, &DeleteParams::default()).await?.left();
    ensure!(going.is_some_and(|it| it.status.and_then(|it| it.phase).as_deref() == Some("Terminating")));
    let maps: Api<ConfigMap> = Api::namespaced(client, &inner);
    let status = refused(
        maps.create(&PostParams::default(), &config_map("b", json!({}))?)
            .await,
        403,
    )?;
    ensure!(
        status.message.contains("because it is being terminated"),
        "{}",
        status.message
    );
    release(&api).await
}
