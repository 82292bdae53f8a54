//! A cluster for one test, and waiting with a limit.

#![allow(dead_code, reason = "each test file uses a part")]

use std::fmt::Debug;
use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use dormouse_local as local;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, PostParams};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

/// The executable with the test's application in it.
pub(crate) fn executable() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_embedded-cluster"))
}

/// A running cluster.
pub(crate) struct Cluster {
    pub(crate) api: local::api::Api,
    pub(crate) client: Client,
    running: local::Running,
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        let api = local::api::Api::new();
        let options = local::Options {
            executable: Some(executable()),
            ..Default::default()
        };
        let running = local::start(&api, options, CancellationToken::new())
            .await
            .expect("a cluster");
        Self {
            client: api.client(),
            api,
            running,
        }
    }

    /// Ends it and checks that nothing runs on.
    pub(crate) async fn end(self) {
        self.running.end().await;
    }

    pub(crate) fn of<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), "default")
    }

    pub(crate) async fn create<K>(&self, object: Value) -> K
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + DeserializeOwned
            + serde::Serialize
            + Clone
            + Debug,
    {
        let object: K = serde_json::from_value(object).expect("an object");
        self.of()
            .create(&PostParams::default(), &object)
            .await
            .expect("created")
    }

    /// The pods with label `app`.
    pub(crate) async fn pods(&self, app: &str) -> Vec<Pod> {
        let of_app = ListParams::default().labels(&format!("app={app}"));
        self.of::<Pod>().list(&of_app).await.expect("pods").items
    }
}

/// A Deployment of the test application.
pub(crate) fn deployment(name: &str, replicas: i32, delay_ms: u64) -> Value {
    json!({
        "metadata": { "name": name },
        "spec": {
            "replicas": replicas,
            "selector": { "matchLabels": { "app": name } },
            "template": {
                "metadata": { "labels": { "app": name } },
                "spec": { "containers": [{
                    "name": "web",
                    "command": ["embedded-cluster", "serve", delay_ms.to_string()],
                    "image": "example/web",
                    "ports": [{ "containerPort": 8080, "name": "http" }],
                    "readinessProbe": { "httpGet": { "path": "/ready", "port": "http" }, "periodSeconds": 1 },
                }] },
            },
        },
    })
}

/// A pod that runs a shell script.
pub(crate) fn shell(name: &str, script: &str) -> Value {
    json!({
        "metadata": { "name": name, "labels": { "app": name } },
        "spec": { "containers": [{ "name": "main", "image": "example/sh", "command": ["sh", "-c", script] }] },
    })
}

/// A Service for the pods with label `app`. Tests run beside each other on the same addresses, so each has a port of
/// its own.
pub(crate) fn service(name: &str, port: u16) -> Value {
    json!({
        "metadata": { "name": name },
        "spec": { "selector": { "app": name }, "ports": [{ "name": "http", "port": port, "targetPort": "http" }] },
    })
}

/// Looks again and again until `look` gives something; fails after 20 s, long enough for a slow machine.
pub(crate) async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(tokio::time::Instant::now() < deadline, "not seen in time: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    pod.metadata.deletion_timestamp.is_none()
        && conditions
            .into_iter()
            .any(|it| it.type_ == "Ready" && it.status == "True")
}

/// `GET` over one connection; the status and the body.
pub(crate) async fn get(address: &str, host: &str, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let status = answer.get(9..12).and_then(|it| it.parse().ok()).unwrap_or(0);
    let body = answer
        .split_once("\r\n\r\n")
        .map(|(_, body)| body.to_owned())
        .unwrap_or_default();
    Ok((status, body))
}
