//! The waiting page to look at: an activator before one Service that is asleep, and takes some seconds to wake.
//!
//! `cargo run -p dormouse-activator --example page -- PORT [DIRECTORY]` serves it on PORT; open it in a browser. The files of
//! DIRECTORY, if given, are the keys of the ConfigMap that dresses the page, read again every ten seconds: what looks
//! right here looks right in the cluster. Four seconds after the wake a pod is there, four later it answers; `?` and its
//! query are shown by it, and `/sleep` puts it back to sleep.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dormouse_activator as activator;
use futures::StreamExt;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Either, Full, StreamBody};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

type Failure = Box<dyn std::error::Error + Send + Sync>;

const POD: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 2)), 21_999);
const STEP: Duration = Duration::from_secs(4);

/// What stands in the cluster: replicas, and whether the pod has an address.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Cluster {
    replicas: u32,
    is_published: bool,
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (port, directory) = match args.as_slice() {
        [port] => (port.parse()?, None),
        [port, directory] => (port.parse()?, Some(PathBuf::from(directory))),
        _ => return Err("page PORT [DIRECTORY]".into()),
    };
    let cluster = watch::Sender::new(Cluster::default());
    tokio::spawn(live(cluster.clone()));
    let client = api(port, directory, cluster);
    let args = activator::Args {
        bind: IpAddr::from([127, 0, 0, 1]),
        report_port: 0,
        admin_port: 0,
        workers: Some(1),
        name: Some("one".into()),
        report_auth: activator::ReportAuth::Off,
        ..activator::Args::default()
    };
    println!("http://localhost:{port}/");
    let set_log: activator::SetLog = Arc::new(|_| Ok(String::new()));
    let never = CancellationToken::new();
    activator::run(args, client, set_log, never.clone(), never).await?;
    Ok(())
}

/// Starts and ends the pod as the cluster's replicas say.
async fn live(cluster: watch::Sender<Cluster>) {
    let mut seen = cluster.subscribe();
    loop {
        drop(seen.wait_for(|cluster| cluster.replicas > 0).await);
        tokio::time::sleep(STEP).await;
        cluster.send_modify(|cluster| cluster.is_published = true);
        tokio::time::sleep(STEP).await;
        tokio::select! {
            result = pod(cluster.clone()) => drop(result),
            _ = seen.wait_for(|cluster| cluster.replicas == 0) => {}
        }
        cluster.send_modify(|cluster| cluster.is_published = false);
    }
}

/// The pod: says what it was asked.
async fn pod(cluster: watch::Sender<Cluster>) -> Result<(), Failure> {
    let listener = tokio::net::TcpListener::bind(POD).await?;
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await?;
        let cluster = cluster.clone();
        let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
            if request.uri().path() == "/sleep" {
                cluster.send_modify(|cluster| cluster.replicas = 0);
            }
            let text = format!(
                "<!doctype html><title>awake</title><h1>Awake</h1><p>{} {}",
                request.method(),
                request.uri().path()
            );
            let mut response = Response::new(Full::<Bytes>::from(text));
            let kind = http::HeaderValue::from_static("text/html; charset=utf-8");
            response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
            async move { Ok::<_, Infallible>(response) }
        });
        connections.spawn(
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
        );
    }
}

/// An API server with what the activator needs.
fn api(port: u16, directory: Option<PathBuf>, cluster: watch::Sender<Cluster>) -> kube::Client {
    let service = tower::service_fn(move |request: Request<kube::client::Body>| {
        let (directory, cluster) = (directory.clone(), cluster.clone());
        async move {
            let uri = request.uri().to_string();
            let now = *cluster.borrow();
            let whole = |value: Value| {
                Either::Left(
                    Full::<Bytes>::from(value.to_string()).map_err(|never: Infallible| match never {}),
                )
            };
            let body = if uri.contains("watch=true") {
                let changes = uri.contains("endpointslices").then(|| slices(port, &cluster));
                let lines = changes.unwrap_or_else(|| futures::stream::pending().boxed());
                Either::Right(StreamBody::new(lines))
            } else if uri.contains("/scale") {
                if request.method() == Method::PATCH {
                    cluster.send_modify(|cluster| cluster.replicas = 1);
                }
                let replicas = cluster.borrow().replicas;
                whole(
                    json!({ "metadata": { "name": "web", "resourceVersion": "1" }, "spec": { "replicas": replicas } }),
                )
            } else if uri.contains("/configmaps/") {
                whole(json!({ "metadata": { "name": "dress" }, "data": files(directory) }))
            } else if uri.contains("/routes") {
                let page = if directory.is_some() { "dress" } else { "auto" };
                whole(list(
                    "dormouse.dev/v1alpha1",
                    "RouteList",
                    vec![route(port, page)],
                ))
            } else {
                let items = if now.is_published {
                    vec![slice(port)]
                } else {
                    vec![]
                };
                whole(list("discovery.k8s.io/v1", "EndpointSliceList", items))
            };
            Ok::<_, Infallible>(Response::new(body))
        }
    });
    kube::Client::new(service, "default")
}

/// The slice's comings and goings as a watch tells them.
fn slices(
    port: u16,
    cluster: &watch::Sender<Cluster>,
) -> futures::stream::BoxStream<'static, Result<http_body::Frame<Bytes>, Infallible>> {
    let start = (cluster.subscribe(), cluster.borrow().is_published);
    futures::stream::unfold(start, move |(mut seen, was)| async move {
        let now = seen
            .wait_for(|cluster| cluster.is_published != was)
            .await
            .ok()?
            .is_published;
        let kind = if now { "ADDED" } else { "DELETED" };
        let line = format!("{}\n", json!({ "type": kind, "object": slice(port) }));
        Some((Ok(http_body::Frame::data(Bytes::from(line))), (seen, now)))
    })
    .boxed()
}

fn files(directory: Option<PathBuf>) -> BTreeMap<String, String> {
    let entries = directory.and_then(|directory| std::fs::read_dir(directory).ok());
    let read = |entry: std::fs::DirEntry| {
        let text = std::fs::read_to_string(entry.path()).ok()?;
        Some((entry.file_name().into_string().ok()?, text))
    };
    entries.into_iter().flatten().flatten().filter_map(read).collect()
}

fn list(version: &str, kind: &str, items: Vec<Value>) -> Value {
    json!({ "apiVersion": version, "kind": kind, "metadata": { "resourceVersion": "1" }, "items": items })
}

fn route(listen: u16, page: &str) -> Value {
    json!({
        "apiVersion": "dormouse.dev/v1alpha1", "kind": "Route",
        "metadata": { "name": "web", "namespace": "default", "uid": "uid", "generation": 1, "resourceVersion": "1" },
        "spec": {
            "ports": [{ "port": 80, "listen": listen }],
            "pools": [{
                "name": "web", "weight": 10_000, "workload": { "kind": "Deployment", "name": "web" },
                "probe": { "kind": "Tcp" },
            }],
            "queueLimit": 1000, "coldStartTimeoutMs": 30_000, "waitingPage": page,
        },
    })
}

fn slice(listen: u16) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "name": "web-x", "namespace": "default", "resourceVersion": "2",
            "labels": { crds::names::POOL_LABEL: "web" },
        },
        "endpoints": [{ "addresses": [POD.ip()], "conditions": { "ready": true, "serving": false } }],
        "ports": [{ "name": crds::names::pool_port_name(listen), "port": POD.port() }],
    })
}
