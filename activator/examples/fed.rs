//! An activator as shipped, fed by hand instead of by Kubernetes: the benchmark, the soak and the tests with other
//! people's clients run it.
//!
//! `fed serve FLAGS` takes the flags of `dormouse activator`. Standard input carries watch events, one JSON object a line, as
//! Kubernetes writes them: `{"type": "ADDED" | "MODIFIED" | "DELETED", "object": …}` of Routes and EndpointSlices.
//! Standard output says `ready`, and `scale KIND NAMESPACE NAME` whenever a sleeping workload is raised. The end of the
//! input drains it and ends it.
//!
//! `fed reports ADDRESS` plays the autoscaler: it opens the report stream as the leader does, sends a directive each half
//! second, and when its input ends it prints how many lines it got and what the last counters were.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::io::BufRead;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use clap::Parser;
use crds::report::{Directive, HEARTBEAT_MS, Peer, Report};
use dormouse_activator as activator;
use futures::stream::{self, BoxStream, StreamExt};
use http::{Method, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Either, Full, StreamBody};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tikv_jemallocator::Jemalloc;
use tokio::sync::{broadcast, mpsc};
use tokio_util::sync::CancellationToken;

type Failure = Box<dyn std::error::Error + Send + Sync>;
type Answer = Response<Either<Full<Bytes>, StreamBody<BoxStream<'static, Result<Frame<Bytes>, Infallible>>>>>;

/// Events that a watch may lag behind before it must list anew, as the API server's own cache has an end.
const KEPT_EVENTS: usize = 1024;

#[derive(Parser)]
enum Line {
    /// Run an activator
    Serve(Box<Serve>),
    /// Listen to an activator's reports
    Reports {
        /// Its report port
        address: SocketAddr,
    },
}

#[derive(clap::Args)]
struct Serve {
    #[command(flatten)]
    args: activator::Args,
}

/// As in `dormouse`.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> Result<(), Failure> {
    let line = Line::parse();
    // As in `dormouse`: traffic has threads of its own, this is for everything else.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = CancellationToken::new();
    match line {
        Line::Serve(serve) => runtime.block_on(run(serve.args, ended)),
        Line::Reports { address } => runtime.block_on(listen(address, ended)),
    }
}

// === the activator and its API server ===

async fn run(args: activator::Args, ended: CancellationToken) -> Result<(), Failure> {
    let world = Arc::new(World::default());
    let (feeding, shutdown) = (Arc::clone(&world), ended.clone());
    std::thread::spawn(move || {
        println!("ready");
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if let Err(error) = feeding.feed(&line) {
                eprintln!("{error}: {line}");
            }
        }
        shutdown.cancel();
    });
    let service = tower::service_fn(move |request| {
        let world = Arc::clone(&world);
        async move { Ok::<_, Infallible>(world.answer(request).await) }
    });
    let set_log: activator::SetLog = Arc::new(|_| Ok(String::new()));
    let client = kube::Client::new(service, "default");
    activator::run(args, client, set_log, ended, CancellationToken::new()).await?;
    Ok(())
}

/// Routes and slices, and who watches them.
#[derive(Default)]
struct World {
    kinds: Mutex<BTreeMap<&'static str, Kind>>,
}

/// The objects of one kind.
struct Kind {
    version: u64,
    objects: BTreeMap<(String, String), Value>,
    /// The last events with their versions.
    events: VecDeque<(u64, Bytes)>,
    watches: broadcast::Sender<(u64, Bytes)>,
}

impl Default for Kind {
    fn default() -> Self {
        Self {
            version: 1,
            objects: BTreeMap::new(),
            events: VecDeque::new(),
            watches: broadcast::channel(KEPT_EVENTS).0,
        }
    }
}

/// A kind's plural in paths, from its name in objects.
fn plural(kind: &str) -> Option<&'static str> {
    match kind {
        "Route" => Some("routes"),
        "EndpointSlice" => Some("endpointslices"),
        _ => None,
    }
}

impl World {
    fn feed(&self, line: &str) -> Result<(), Failure> {
        let mut event: Value = serde_json::from_str(line)?;
        let is_deleted = event["type"] == "DELETED";
        let object = &mut event["object"];
        let kind = object["kind"]
            .as_str()
            .and_then(plural)
            .ok_or("an object that is neither Route nor EndpointSlice")?;
        let name = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
        let key = (name("namespace"), name("name"));
        let mut kinds = self.kinds.lock();
        let kind = kinds.entry(kind).or_default();
        kind.version += 1;
        object["metadata"]["resourceVersion"] = json!(kind.version.to_string());
        if is_deleted {
            kind.objects.remove(&key);
        } else {
            kind.objects.insert(key, object.clone());
        }
        let event = (kind.version, Bytes::from(format!("{event}\n")));
        kind.events.push_back(event.clone());
        if kind.events.len() > KEPT_EVENTS {
            kind.events.pop_front();
        }
        // Nobody watches yet: the list will have it.
        drop(kind.watches.send(event));
        Ok(())
    }

    async fn answer(&self, request: Request<kube::client::Body>) -> Answer {
        let (path, query) = (request.uri().path(), request.uri().query().unwrap_or_default());
        if path.ends_with("/scale") {
            return scale(request).await;
        }
        let (kind, version, name) = match path {
            path if path.ends_with("/routes") => ("routes", "dormouse.dev/v1alpha1", "RouteList"),
            _ => ("endpointslices", "discovery.k8s.io/v1", "EndpointSliceList"),
        };
        let mut kinds = self.kinds.lock();
        let kind = kinds.entry(kind).or_default();
        if !query.contains("watch=true") {
            return whole(&json!({
                "apiVersion": version, "kind": name,
                "metadata": { "resourceVersion": kind.version.to_string() },
                "items": kind.objects.values().collect::<Vec<_>>(),
            }));
        }
        let seen = query
            .split('&')
            .find_map(|part| part.strip_prefix("resourceVersion="))
            .and_then(|version| version.parse().ok())
            .unwrap_or(0);
        Response::new(Either::Right(StreamBody::new(kind.watch(seen))))
    }
}

impl Kind {
    /// All events after version `seen`; a watch that is too late ends in the error that makes its client list anew.
    fn watch(&self, seen: u64) -> BoxStream<'static, Result<Frame<Bytes>, Infallible>> {
        if self.version - seen.min(self.version) > self.events.len() as u64 {
            let gone = json!({ "type": "ERROR", "object": {
                "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Expired", "code": 410,
            }});
            return stream::iter([Ok(Frame::data(Bytes::from(format!("{gone}\n"))))]).boxed();
        }
        let missed: Vec<Bytes> = self
            .events
            .iter()
            .filter(|(version, _)| *version > seen)
            .map(|(_, event)| event.clone())
            .collect();
        let coming = stream::unfold(self.watches.subscribe(), |mut events| async {
            let (_, event) = events.recv().await.ok()?;
            Some((event, events))
        });
        stream::iter(missed)
            .chain(coming)
            .map(|event| Ok(Frame::data(event)))
            .boxed()
    }
}

/// `/scale` of a workload, which always says 0, so that a wake is written each time.
async fn scale(request: Request<kube::client::Body>) -> Answer {
    let path = request.uri().path().to_owned();
    let parts: Vec<&str> = path.split('/').collect();
    // /apis/apps/v1/namespaces/NAMESPACE/KIND/NAME/scale
    let [.., namespace, kind, name, _] = parts.as_slice() else {
        return whole(&json!({}));
    };
    let is_write = request.method() != Method::GET;
    if is_write {
        println!("scale {kind} {namespace} {name}");
    }
    whole(&json!({
        "apiVersion": "autoscaling/v1", "kind": "Scale",
        "metadata": { "name": name, "namespace": namespace, "resourceVersion": "1" },
        "spec": { "replicas": u8::from(is_write) }, "status": { "replicas": 0 },
    }))
}

fn whole(value: &Value) -> Answer {
    Response::new(Either::Left(Full::from(value.to_string())))
}

// === who listens to its reports ===

async fn listen(address: SocketAddr, ended: CancellationToken) -> Result<(), Failure> {
    let ending = ended.clone();
    std::thread::spawn(move || {
        println!("ready");
        // Ends with who started it.
        drop(std::io::stdin().read_line(&mut String::new()));
        ending.cancel();
    });
    let stream = tokio::net::TcpStream::connect(address).await?;
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(executor, hyper_util::rt::TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let (directives, body) = mpsc::channel::<Result<Frame<Bytes>, Infallible>>(1);
    tokio::spawn(direct(directives, address));
    let uri = format!("http://{address}{}", crds::names::REPORT_PATH);
    let body = StreamBody::new(received(body));
    let mut reports = sender
        .send_request(Request::post(uri).body(body)?)
        .await?
        .into_body();
    let (mut lines, mut arrivals, mut pending) = (0_u64, BTreeMap::new(), Vec::new());
    loop {
        let frame = tokio::select! {
            frame = reports.frame() => frame,
            () = ended.cancelled() => break,
        };
        let Some(Ok(frame)) = frame else { break };
        pending.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            let report: Report = serde_json::from_slice(&line)?;
            lines += 1;
            for pool in report.pools {
                arrivals.insert(format!("{}/{}", pool.namespace, pool.pool), pool.arrivals);
            }
        }
    }
    println!("{}", json!({ "lines": lines, "arrivals": arrivals }));
    Ok(())
}

/// A leader's directives: the one activator there is has all pods.
async fn direct(directives: mpsc::Sender<Result<Frame<Bytes>, Infallible>>, address: SocketAddr) {
    let directive = Directive {
        autoscaler: "fed".into(),
        leader: true,
        epoch: 1,
        activators: vec![Peer {
            name: "one".into(),
            address: address.ip().to_string(),
        }],
        settled: true,
        ..Directive::default()
    };
    let line = Bytes::from(format!("{}\n", json!(directive)));
    while directives.send(Ok(Frame::data(line.clone()))).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(HEARTBEAT_MS)).await;
    }
}

fn received<T: Send + 'static>(channel: mpsc::Receiver<T>) -> BoxStream<'static, T> {
    stream::unfold(channel, |mut channel| async {
        let item = channel.recv().await?;
        Some((item, channel))
    })
    .boxed()
}
