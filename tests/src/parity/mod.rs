//! API cases that any Kubernetes API must answer alike.
//!
//! Each case takes a client and a namespace of its own, asserts what kube-apiserver 1.35 does, and never waits for a
//! controller: on a real cluster those run, on the bare embedded API they do not, and neither may matter.
//! Give it a client without retries (`Config::default_retry = false`): some cases are after a refusal.

mod apply;
mod crds;
mod delete;
mod list_watch;
mod objects;
mod patches;
mod subresources;
mod validation;

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, bail};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Service};
use kube::api::{Api, DeleteParams, PostParams};
use kube::core::Status;
use kube::{Client, ResourceExt as _};
use serde_json::{Value, json};

/// What a case comes to.
pub type Outcome = Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>>;

/// One case.
#[derive(Clone, Copy)]
pub struct Case {
    /// The file it is in.
    pub group: &'static str,
    /// A sentence, with underscores.
    pub name: &'static str,
    /// Runs it in a namespace that exists and is its own.
    pub run: fn(Client, String) -> Outcome,
}

/// Lists the cases of one file.
macro_rules! table {
    ($group:literal: $($name:ident),+ $(,)?) => {
        /// The cases of this file.
        pub(super) fn cases() -> Vec<$crate::parity::Case> {
            vec![$($crate::parity::Case {
                group: $group,
                name: stringify!($name),
                run: |client, namespace| Box::pin($name(client, namespace)),
            }),+]
        }
    };
}
use table;

/// All cases.
#[must_use]
pub fn cases() -> Vec<Case> {
    [
        objects::cases(),
        list_watch::cases(),
        patches::cases(),
        apply::cases(),
        delete::cases(),
        subresources::cases(),
        crds::cases(),
        validation::cases(),
    ]
    .concat()
}

/// Runs one case in a fresh namespace, and asks for the namespace's deletion.
///
/// # Errors
/// What the case asserts does not hold, or its namespace cannot be made.
pub async fn run(client: Client, case: &Case) -> anyhow::Result<()> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name = format!(
        "parity-{}-{}",
        std::process::id(),
        COUNT.fetch_add(1, Ordering::Relaxed)
    );
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let namespace: Namespace = from(json!({ "metadata": { "name": name } }))?;
    namespaces
        .create(&PostParams::default(), &namespace)
        .await
        .context("create the case's namespace")?;
    let result = (case.run)(client, name.clone()).await;
    namespaces
        .delete(&name, &DeleteParams::default())
        .await
        .context("delete the case's namespace")?;
    result.with_context(|| format!("{}::{}", case.group, case.name))
}

/// A typed object from JSON.
pub(crate) fn from<T: serde::de::DeserializeOwned>(value: Value) -> anyhow::Result<T> {
    Ok(serde_json::from_value(value)?)
}

pub(crate) fn config_map(name: &str, data: Value) -> anyhow::Result<ConfigMap> {
    from(json!({ "metadata": { "name": name }, "data": data }))
}

/// A Deployment of no pods, so that controllers on a real cluster have nothing to do.
pub(crate) fn deployment(name: &str) -> anyhow::Result<Deployment> {
    from(deployment_json(name))
}

pub(crate) fn deployment_json(name: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": name },
        "spec": {
            "replicas": 0,
            "selector": { "matchLabels": { "app": name } },
            "template": {
                "metadata": { "labels": { "app": name } },
                "spec": { "containers": [{ "name": "main", "image": "registry.invalid/none:1" }] },
            },
        },
    })
}

pub(crate) fn service(name: &str, spec: Value) -> anyhow::Result<Service> {
    from(json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": name }, "spec": spec }))
}

/// The refusal that an answer must be.
pub(crate) fn refused<T: std::fmt::Debug>(result: kube::Result<T>, code: u16) -> anyhow::Result<Box<Status>> {
    match result {
        Err(kube::Error::Api(status)) if status.code == code => Ok(status),
        Err(other) => bail!("expected {code}, got {other:?}"),
        Ok(value) => bail!("expected {code}, got {value:?}"),
    }
}

/// The fields that a 422 blames.
pub(crate) fn blamed(status: &Status) -> Vec<String> {
    let details = status.details.as_ref();
    details
        .map(|it| it.causes.iter().map(|cause| cause.field.clone()).collect())
        .unwrap_or_default()
}

/// A raw request, answered with JSON.
pub(crate) async fn raw(
    client: &Client,
    method: &str,
    path: &str,
    body: Option<Value>,
) -> kube::Result<Value> {
    send(client, method, path, "application/json", body).await
}

pub(crate) async fn send(
    client: &Client,
    method: &str,
    path: &str,
    media: &str,
    body: Option<Value>,
) -> kube::Result<Value> {
    let body = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", media)
        .header("accept", "application/json")
        .body(body)
        .map_err(kube::Error::HttpError)?;
    client.request(request).await
}

/// The entry of one manager.
pub(crate) fn owned_by(object: &impl kube::Resource, manager: &str) -> Option<Value> {
    let entries = object.managed_fields().iter();
    let mut mine = entries.filter(|entry| entry.manager.as_deref() == Some(manager));
    mine.next()
        .and_then(|entry| entry.fields_v1.as_ref())
        .map(|fields| fields.0.clone())
}
