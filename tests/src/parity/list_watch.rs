//! Lists and watches.

use std::pin::pin;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use futures::{AsyncBufReadExt as _, Stream, TryStreamExt as _};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::{Client, ResourceExt as _};
use serde_json::{Value, json};

use super::{config_map, from, raw, refused, table};

table!("list_watch":
    list_is_sorted_and_has_a_version,
    list_pages_hold_together,
    list_with_a_broken_continue_is_refused,
    list_by_labels_takes_sets,
    list_by_a_broken_selector_is_refused,
    list_by_name_field,
    list_by_an_unknown_field_is_refused,
    list_over_all_namespaces,
    list_items_say_no_kind_of_another,
    list_as_a_table,
    list_as_metadata_only,
    list_newer_than_now_is_refused,
    watch_tells_of_changes_after_a_version,
    watch_from_nothing_starts_with_what_is_there,
    watch_with_labels_tells_of_coming_and_going,
    watch_of_one_name,
    watch_ends_at_its_timeout,
    watch_list_ends_the_beginning_with_a_bookmark,
    watch_initial_events_need_a_match,
    watch_too_old_is_expired,
);

/// How long anything that must come may take.
const SOON: Duration = Duration::from_secs(10);
/// What the bookmark carries that ends the beginning of a watch-list.
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

fn maps(client: &Client, ns: &str) -> Api<ConfigMap> {
    Api::namespaced(client.clone(), ns)
}

async fn make(api: &Api<ConfigMap>, names: &[(&str, &str)]) -> anyhow::Result<()> {
    for (name, label) in names {
        let object: ConfigMap = from(json!({ "metadata": { "name": name, "labels": { "l": label } } }))?;
        api.create(&PostParams::default(), &object).await?;
    }
    Ok(())
}

async fn names(api: &Api<ConfigMap>, params: ListParams) -> anyhow::Result<Vec<String>> {
    let mut names: Vec<String> = api
        .list(&params)
        .await?
        .items
        .iter()
        .map(ConfigMap::name_any)
        .collect();
    // A real cluster puts this into every namespace.
    names.retain(|name| name != "kube-root-ca.crt");
    Ok(names)
}

async fn next<S>(stream: &mut S) -> anyhow::Result<WatchEvent<ConfigMap>>
where
    S: Stream<Item = kube::Result<WatchEvent<ConfigMap>>> + Unpin,
{
    loop {
        let event = tokio::time::timeout(SOON, stream.try_next())
            .await
            .context("no event came")??;
        match event.context("the watch ended")? {
            WatchEvent::Added(it) if it.name_any() == "kube-root-ca.crt" => {}
            // They come whenever the server sees fit, but for the one that a watch-list asks for.
            WatchEvent::Bookmark(mark) if !mark.metadata.annotations.contains_key(INITIAL_EVENTS_END) => {}
            other => return Ok(other),
        }
    }
}

async fn list_is_sorted_and_has_a_version(client: Client, ns: String) -> anyhow::Result<()> {
    let api = maps(&client, &ns);
    make(&api, &[("b", "1"), ("a", "1"), ("c", "1")]).await?;
    ensure!(names(&api, ListParams::default()).await? == ["a", "b", "c"]);
    let list = api.list(&ListParams::default()).await?;
    ensure!(
        list.metadata
            .resource_version
            .is_some_and(|version| version.parse::<u64>().is_ok())
    );
    Ok(())
}

async fn list_pages_hold_together(client: Client, ns: String) -> anyhow::Result<()> {
    let api = maps(&client, &ns);
    make(&api, &[("a", "p"), ("b", "p"), ("c", "p")]).await?;
    let params = ListParams::default().labels("l=p").limit(2);
    let first = api.list(&params).await?;
    ensure!(first.items.len() == 2);
    let token = first.metadata.continue_.clone().context("no continue")?;
    // What is made after the first page is not on the second one.
    make(&api, &[("bb", "p"), ("d", "p")]).await?;
    let second = api.list(&params.continue_token(&token)).await?;
    let found: Vec<String> = second.items.iter().map(ConfigMap::name_any).collect();
    ensure!(found == ["c"], "{found:?}");
    ensure!(
        second
            .metadata
            .continue_
            .as_deref()
            .unwrap_or_default()
            .is_empty()
    );
    ensure!(second.metadata.resource_version == first.metadata.resource_version);
    Ok(())
}

async fn list_with_a_broken_continue_is_refused(client: Client, ns: String) -> anyhow::Result<()> {
    let api = maps(&client, &ns);
    refused(
        api.list(&ListParams::default().limit(1).continue_token("nonsense"))
            .await,
        400,
    )?;
    Ok(())
}

async fn list_by_labels_takes_sets(client: Client, ns: String) -> anyhow::Result<()> {
    let api = maps(&client, &ns);
    make(&api, &[("a", "1"), ("b", "2"), ("c", "3")]).await?;
    for (selector, expected) in [
        ("l=1", vec!["a"]),
        ("l!=1,l", vec!["b", "c"]),
        ("l in (1,3)", vec!["a", "c"]),
        ("l notin (1,3),l", vec!["b"]),
        ("!l", vec![]),
        ("l,l!=2", vec!["a", "c"]),
    ] {
        let found = names(&api, ListParams::default().labels(selector)).await?;
        ensure!(found == expected, "{selector}: {found:?}");
    }
    Ok(())
}

async fn list_by_a_broken_selector_is_refused(client: Client, ns: String) -> anyhow::Result<()> {
    let api = maps(&client, &ns);
    refused(api.list(&ListParams::default().labels("a in b")).await, 400)?;
    Ok(())
}

async fn list_by_name_field(client: Client, ns: String) -> anyhow::Result<()> {
    let api = maps(&client, &ns);
    make(&api, &[("a", "1"), ("b", "2")]).await?;
    ensure!(names(&api, ListParams::default().fields("metadata.name=b")).await? == ["b"]);
    ensure!(names(&api, ListParams::default().fields("metadata.name!=b")).await? == ["a"]);
    Ok(())
}

async fn list_by_an_unknown_field_is_refused(client: Client, ns: String) -> anyhow::Result<()> {
    let api = maps(&client, &ns);
    let status = refused(api.list(&ListParams::default().fields("data.k=v")).await, 400)?;
    ensure!(
        status.message.contains("is not a known field selector"),
        "{}",
        status.message
    );
    Ok(())
}

async fn list_over_all_namespaces(client: Client, ns: String) -> anyhow::Result<()> {
    make(&maps(&client, &ns), &[("a", &ns)]).await?;
    let all: Api<ConfigMap> = Api::all(client);
    let found = all
        .list(&ListParams::default().labels(&format!("l={ns}")))
        .await?;
    ensure!(found.items.len() == 1 && found.items[0].namespace().as_deref() == Some(ns.as_str()));
    Ok(())
}

async fn list_items_say_no_kind_of_another(client: Client, ns: String) -> anyhow::Result<()> {
    make(&maps(&client, &ns), &[("a", "1")]).await?;
    let list = raw(
        &client,
        "GET",
        &format!("/api/v1/namespaces/{ns}/configmaps"),
        None,
    )
    .await?;
    ensure!(
        list["kind"] == "ConfigMapList" && list["apiVersion"] == "v1",
        "{list}"
    );
    Ok(())
}

async fn accept(client: &Client, path: &str, accept: &str) -> anyhow::Result<Value> {
    let request = http::Request::get(path)
        .header("accept", accept)
        .body(Vec::new())?;
    Ok(client.request(request).await?)
}

async fn list_as_a_table(client: Client, ns: String) -> anyhow::Result<()> {
    make(&maps(&client, &ns), &[("a", "t")]).await?;
    let path = format!("/api/v1/namespaces/{ns}/configmaps?labelSelector=l%3Dt");
    let table = accept(&client, &path, "application/json;as=Table;v=v1;g=meta.k8s.io").await?;
    ensure!(table["kind"] == "Table", "{table}");
    let columns: Vec<&str> = table["columnDefinitions"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|it| it["name"].as_str())
        .collect();
    ensure!(columns == ["Name", "Data", "Age"], "{columns:?}");
    ensure!(
        table["rows"][0]["cells"][0] == "a" && table["rows"][0]["cells"][1] == 0,
        "{table}"
    );
    ensure!(table["rows"][0]["object"]["kind"] == "PartialObjectMetadata");
    Ok(())
}

async fn list_as_metadata_only(client: Client, ns: String) -> anyhow::Result<()> {
    let api = maps(&client, &ns);
    api.create(&PostParams::default(), &config_map("a", json!({ "k": "v" }))?)
        .await?;
    let path = format!("/api/v1/namespaces/{ns}/configmaps/a");
    let object = accept(
        &client,
        &path,
        "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1",
    )
    .await?;
    ensure!(
        object["kind"] == "PartialObjectMetadata" && object.get("data").is_none(),
        "{object}"
    );
    ensure!(object["metadata"]["name"] == "a");
    Ok(())
}

async fn list_newer_than_now_is_refused(client: Client, ns: String) -> anyhow::Result<()> {
    let path = format!("/api/v1/namespaces/{ns}/configmaps?resourceVersion=999999999999");
    let status = refused(raw(&client, "GET", &path, None).await, 504)?;
    ensure!(
        status.reason == "Timeout" && status.message.contains("Too large resource version"),
        "{status:?}"
    );
    Ok(())
}

/// The version as of which a list is.
async fn version_now(api: &Api<ConfigMap>) -> anyhow::Result<String> {
    let list = api.list(&ListParams::default()).await?;
    list.metadata.resource_version.context("no version")
}

async fn watch_tells_of_changes_after_a_version(client: Client, ns: String) -> anyhow::Result<()> {
    let api = maps(&client, &ns);
    make(&api, &[("before", "w")]).await?;
    let version = version_now(&api).await?;
    let mut stream = pin!(api.watch(&WatchParams::default().labels("l=w"), &version).await?);
    make(&api, &[("a", "w")]).await?;
    let patch = Patch::Merge(json!({ "data": { "k": "v" } }));
    let patched = api.patch("a", &PatchParams::default(), &patch).await?;
    api.delete("a", &DeleteParams::default()).await?;
    match next(&mut stream).await? {
        WatchEvent::Added(it) if it.name_any() == "a" => {}
        other => bail!("{other:?}"),
    }
    match next(&mut stream).await? {
        WatchEvent::Modified(it) if it.data.is_some() => {
            ensure!(it.resource_version() == patched.resource_version());
        }
        other => bail!("{other:?}"),
    }
    match next(&mut stream).await? {
        WatchEvent::Deleted(it) => {
            ensure!(it.data.is_some(), "the last state comes with the deletion");
            ensure!(
                it.resource_version() != patched.resource_version(),
                "under the deletion's version"
            );
        }
        other => bail!("{other:?}"),
    }
    Ok(())
}

async fn watch_from_nothing_starts_with_what_is_there(client: Client, ns: String) -> anyhow::Result<()> {
    let api = maps(&client, &ns);
    make(&api, &[("a", "w"), ("b", "w")]).await?;
    let mut stream = pin!(api.watch(&WatchParams::default().labels("l=w"), "0").await?);
    let mut seen = Vec::new();
    for _ in 0..2 {
        match next(&mut stream).await? {
            WatchEvent::Added(it) => seen.push(it.name_any()),
            other => bail!("{other:?}"),
        }
    }
    seen.sort();
    ensure!(seen == ["a", "b"], "{seen:?}");
    Ok(())
}

async fn watch_with_labels_tells_of_coming_and_going(client: Client, ns: String) -> anyhow::Result<()> {
    let api = maps(&client, &ns);
    make(&api, &[("a", "out")]).await?;
    let version = version_now(&api).await?;
    let mut stream = pin!(
        api.watch(&WatchParams::default().labels("l=in"), &version)
            .await?
    );
    for label in ["in", "out"] {
        let patch = Patch::Merge(json!({ "metadata": { "labels": { "l": label } } }));
        api.patch("a", &PatchParams::default(), &patch).await?;
    }
    match next(&mut stream).await? {
        WatchEvent::Added(it) => ensure!(it.labels()["l"] == "in"),
        other => bail!("{other:?}"),
    }
    match next(&mut stream).await? {
        // What left is shown as it was when it still belonged.
        WatchEvent::Deleted(it) => ensure!(it.labels()["l"] == "in", "{it:?}"),
        other => bail!("{other:?}"),
    }
    Ok(())
}

async fn watch_of_one_name(client: Client, ns: String) -> anyhow::Result<()> {
    let api = maps(&client, &ns);
    let version = version_now(&api).await?;
    let mut stream = pin!(
        api.watch(&WatchParams::default().fields("metadata.name=b"), &version)
            .await?
    );
    make(&api, &[("a", "1"), ("b", "1")]).await?;
    match next(&mut stream).await? {
        WatchEvent::Added(it) => ensure!(it.name_any() == "b"),
        other => bail!("{other:?}"),
    }
    Ok(())
}

async fn watch_ends_at_its_timeout(client: Client, ns: String) -> anyhow::Result<()> {
    let api = maps(&client, &ns);
    let mut stream = pin!(
        api.watch(&WatchParams::default().timeout(1).labels("l=none"), "0")
            .await?
    );
    let end = tokio::time::timeout(SOON, async {
        while let Some(event) = stream.try_next().await? {
            if !matches!(event, WatchEvent::Bookmark(_)) {
                bail!("{event:?}");
            }
        }
        Ok(())
    });
    end.await.context("the watch did not end")?
}

async fn watch_list_ends_the_beginning_with_a_bookmark(client: Client, ns: String) -> anyhow::Result<()> {
    let api = maps(&client, &ns);
    make(&api, &[("a", "w")]).await?;
    let params = WatchParams::default().labels("l=w").initial_events();
    let mut stream = pin!(api.watch(&params, "").await?);
    match next(&mut stream).await? {
        WatchEvent::Added(it) => ensure!(it.name_any() == "a"),
        other => bail!("{other:?}"),
    }
    match next(&mut stream).await? {
        WatchEvent::Bookmark(mark) => ensure!(
            mark.metadata
                .annotations
                .get(INITIAL_EVENTS_END)
                .is_some_and(|it| it == "true"),
            "{:?}",
            mark.metadata.annotations
        ),
        other => bail!("{other:?}"),
    }
    Ok(())
}

async fn watch_initial_events_need_a_match(client: Client, ns: String) -> anyhow::Result<()> {
    let path = format!("/api/v1/namespaces/{ns}/configmaps?watch=true&sendInitialEvents=true");
    refused(raw(&client, "GET", &path, None).await, 422)?;
    Ok(())
}

async fn watch_too_old_is_expired(client: Client, ns: String) -> anyhow::Result<()> {
    // Version 1 is older than any cluster's first namespace, and is forgotten wherever history is bounded; where it is
    // not, the watch goes on with events. Either way the answer comes as an event, never as a failed request.
    let path = format!("/api/v1/namespaces/{ns}/configmaps?watch=true&resourceVersion=1&timeoutSeconds=1");
    let request = http::Request::get(path).body(Vec::new())?;
    let mut lines = client.request_stream(request).await?.lines();
    while let Some(line) = tokio::time::timeout(SOON, lines.try_next()).await?? {
        let event: Value = serde_json::from_str(&line)?;
        if event["type"] == "ERROR" {
            ensure!(
                event["object"]["code"] == 410 && event["object"]["reason"] == "Expired",
                "{event}"
            );
        }
    }
    Ok(())
}
