//! Custom resources: structure, defaults, pruning, subresources.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Client;
use kube::api::{Api, DeleteParams, PostParams};
use serde_json::{Value, json};

use super::{blamed, from, raw, refused, send, table};

table!("crds":
    custom_resource_gets_defaults_and_loses_unknown_fields,
    custom_resource_of_a_wrong_type_is_invalid,
    custom_resource_without_a_required_field_is_invalid,
    custom_resource_counts_generations_and_keeps_status_apart,
    custom_resource_scales,
    custom_resource_takes_no_strategic_patch,
    custom_resource_update_needs_a_version,
    custom_resource_shows_its_columns,
    custom_resources_go_with_their_definition,
);

struct Things {
    client: Client,
    definitions: Api<CustomResourceDefinition>,
    name: String,
    path: String,
}

impl Things {
    async fn new(client: Client, ns: &str) -> anyhow::Result<Self> {
        // Definitions belong to the whole cluster, so each case has a group of its own.
        let group = format!("{ns}.parity.test");
        let name = format!("things.{group}");
        let schema = json!({ "type": "object", "properties": {
            "spec": { "type": "object", "required": ["size"], "properties": {
                "size": { "type": "integer", "minimum": 1, "maximum": 9 },
                "color": { "type": "string", "default": "red", "enum": ["red", "blue"] },
                "replicas": { "type": "integer" },
            } },
            "status": { "type": "object", "properties": {
                "replicas": { "type": "integer" }, "note": { "type": "string" },
            } },
        } });
        let definition: CustomResourceDefinition = from(json!({
            "metadata": { "name": name },
            "spec": {
                "group": group, "scope": "Namespaced",
                "names": { "plural": "things", "kind": "Thing" },
                "versions": [{
                    "name": "v1", "served": true, "storage": true, "schema": { "openAPIV3Schema": schema },
                    "subresources": { "status": {}, "scale": {
                        "specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas",
                    } },
                    "additionalPrinterColumns": [{ "name": "Size", "type": "integer", "jsonPath": ".spec.size" }],
                }],
            },
        }))?;
        let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
        definitions.create(&PostParams::default(), &definition).await?;
        let path = format!("/apis/{group}/v1/namespaces/{ns}/things");
        let things = Self {
            client,
            definitions,
            name,
            path,
        };
        // A real API server takes a moment to serve it.
        let wait = async {
            while things.call("GET", "", None).await.is_err() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), wait)
            .await
            .context("the kind is not served")?;
        Ok(things)
    }

    async fn call(&self, method: &str, rest: &str, body: Option<Value>) -> kube::Result<Value> {
        raw(&self.client, method, &format!("{}{rest}", self.path), body).await
    }

    fn thing(&self, spec: Value) -> Value {
        let group = self.name.trim_start_matches("things.");
        json!({ "apiVersion": format!("{group}/v1"), "kind": "Thing", "metadata": { "name": "a" }, "spec": spec })
    }

    async fn merge(&self, rest: &str, patch: Value) -> kube::Result<Value> {
        send(
            &self.client,
            "PATCH",
            &format!("{}{rest}", self.path),
            "application/merge-patch+json",
            Some(patch),
        )
        .await
    }

    async fn done(self) -> anyhow::Result<()> {
        self.definitions
            .delete(&self.name, &DeleteParams::default())
            .await?;
        Ok(())
    }
}

async fn custom_resource_gets_defaults_and_loses_unknown_fields(
    client: Client,
    ns: String,
) -> anyhow::Result<()> {
    let things = Things::new(client, &ns).await?;
    let body = things.thing(json!({ "size": 1, "unknown": true }));
    let made = things.call("POST", "", Some(body.clone())).await?;
    ensure!(made["spec"] == json!({ "size": 1, "color": "red" }), "{made}");
    let strict = things.call("POST", "?fieldValidation=Strict", Some(body)).await;
    refused(strict, 400)?;
    things.done().await
}

async fn custom_resource_of_a_wrong_type_is_invalid(client: Client, ns: String) -> anyhow::Result<()> {
    let things = Things::new(client, &ns).await?;
    for (spec, field) in [
        (json!({ "size": "big" }), "spec.size"),
        (json!({ "size": 1, "color": "green" }), "spec.color"),
        (json!({ "size": 10 }), "spec.size"),
    ] {
        let body = things.thing(spec);
        let status = refused(things.call("POST", "", Some(body)).await, 422)?;
        ensure!(blamed(&status).iter().any(|it| it == field), "{status:?}");
    }
    things.done().await
}

async fn custom_resource_without_a_required_field_is_invalid(
    client: Client,
    ns: String,
) -> anyhow::Result<()> {
    let things = Things::new(client, &ns).await?;
    let body = things.thing(json!({}));
    let status = refused(things.call("POST", "", Some(body)).await, 422)?;
    ensure!(
        status.message.contains("spec.size: Required value"),
        "{}",
        status.message
    );
    things.done().await
}

async fn custom_resource_counts_generations_and_keeps_status_apart(
    client: Client,
    ns: String,
) -> anyhow::Result<()> {
    let things = Things::new(client, &ns).await?;
    let mut body = things.thing(json!({ "size": 1 }));
    body["status"] = json!({ "note": "no" });
    let made = things.call("POST", "", Some(body)).await?;
    ensure!(
        made.get("status").is_none() && made["metadata"]["generation"] == 1,
        "{made}"
    );
    let next = things
        .merge(
            "/a/status",
            json!({ "status": { "note": "yes" }, "spec": { "size": 5 } }),
        )
        .await?;
    ensure!(
        next["status"]["note"] == "yes" && next["spec"]["size"] == 1,
        "{next}"
    );
    ensure!(next["metadata"]["generation"] == 1, "{next}");
    let next = things
        .merge("/a", json!({ "status": { "note": "no" }, "spec": { "size": 5 } }))
        .await?;
    ensure!(
        next["status"]["note"] == "yes" && next["metadata"]["generation"] == 2,
        "{next}"
    );
    things.done().await
}

async fn custom_resource_scales(client: Client, ns: String) -> anyhow::Result<()> {
    let things = Things::new(client, &ns).await?;
    let body = things.thing(json!({ "size": 1, "replicas": 2 }));
    things.call("POST", "", Some(body)).await?;
    let scale = things.call("GET", "/a/scale", None).await?;
    ensure!(
        scale["kind"] == "Scale" && scale["spec"]["replicas"] == 2,
        "{scale}"
    );
    things
        .merge("/a/scale", json!({ "spec": { "replicas": 3 } }))
        .await?;
    ensure!(things.call("GET", "/a", None).await?["spec"]["replicas"] == 3);
    things.done().await
}

async fn custom_resource_takes_no_strategic_patch(client: Client, ns: String) -> anyhow::Result<()> {
    let things = Things::new(client, &ns).await?;
    let body = things.thing(json!({ "size": 1 }));
    things.call("POST", "", Some(body)).await?;
    let path = format!("{}/a", things.path);
    let media = "application/strategic-merge-patch+json";
    refused(
        send(&things.client, "PATCH", &path, media, Some(json!({}))).await,
        415,
    )?;
    things.done().await
}

async fn custom_resource_update_needs_a_version(client: Client, ns: String) -> anyhow::Result<()> {
    let things = Things::new(client, &ns).await?;
    let body = things.thing(json!({ "size": 1 }));
    things.call("POST", "", Some(body.clone())).await?;
    let status = refused(things.call("PUT", "/a", Some(body)).await, 422)?;
    ensure!(
        status.message.contains("metadata.resourceVersion"),
        "{}",
        status.message
    );
    things.done().await
}

async fn custom_resource_shows_its_columns(client: Client, ns: String) -> anyhow::Result<()> {
    let things = Things::new(client, &ns).await?;
    let body = things.thing(json!({ "size": 4 }));
    things.call("POST", "", Some(body)).await?;
    let request = http::Request::get(&things.path)
        .header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")
        .body(Vec::new())?;
    let table: Value = things.client.request(request).await?;
    ensure!(
        table["columnDefinitions"][1]["name"] == "Size" && table["rows"][0]["cells"][1] == 4,
        "{table}"
    );
    things.done().await
}

async fn custom_resources_go_with_their_definition(client: Client, ns: String) -> anyhow::Result<()> {
    let things = Things::new(client, &ns).await?;
    let body = things.thing(json!({ "size": 1 }));
    things.call("POST", "", Some(body)).await?;
    things
        .definitions
        .delete(&things.name, &DeleteParams::default())
        .await?;
    let gone = async {
        while !matches!(things.call("GET", "/a", None).await, Err(kube::Error::Api(status)) if status.code == 404)
        {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), gone)
        .await
        .context("it is still served")?;
    Ok(())
}
