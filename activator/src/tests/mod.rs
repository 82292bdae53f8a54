//! Whole activators in this process, on ephemeral ports, before fake pods. No Kubernetes: Routes and slices are applied
//! to the index as its watches would.

mod cold;
mod control;
mod failing;
mod fleet;
mod floods;
mod leaving;
mod limits;
mod protocol;
mod rollout;
mod streams;
mod strict;
mod waiting;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use crds::route::{Probe, ProbeKind, Route, RoutePool, RoutePort, RouteSpec, Workload};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use kube::api::ObjectMeta;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::config::{Args, Config, ReportAuth};
use crate::pool::Pool;
use crate::watch::Index;
use crate::{App, SetLog};

/// Nothing here takes this long unless it hangs.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// A loopback address that no other test uses: pods are told apart by address.
pub(super) fn fresh_address() -> IpAddr {
    static NEXT: AtomicU16 = AtomicU16::new(10);
    let [high, low] = NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    IpAddr::from([127, 20, high, low])
}

/// A port that was free a moment ago.
pub(super) async fn free_port(address: IpAddr) -> u16 {
    let listener = TcpListener::bind(SocketAddr::new(address, 0))
        .await
        .expect("an ephemeral port");
    listener.local_addr().expect("bound").port()
}

/// One activator with one Route `shop/web` and its pool `web`.
pub(super) struct Fixture {
    pub(super) app: App,
    pub(super) index: Index,
    pub(super) route: Route,
    pub(super) listen: SocketAddr,
}

impl Fixture {
    pub(super) async fn new() -> Self {
        Self::with(|_| {}, |_| {}, None).await
    }

    pub(super) async fn with_route(change: impl FnOnce(&mut RouteSpec)) -> Self {
        Self::with(|_| {}, change, None).await
    }

    pub(super) async fn with(
        args: impl FnOnce(&mut Args),
        route: impl FnOnce(&mut RouteSpec),
        client: Option<kube::Client>,
    ) -> Self {
        let mut all = Args {
            bind: IpAddr::from([127, 0, 0, 1]),
            report_port: 0,
            admin_port: 0,
            workers: Some(2),
            name: Some("one".into()),
            report_auth: ReportAuth::Off,
            drain_delay: Duration::from_millis(50),
            wake_after: Duration::from_millis(100),
            ..Args::default()
        };
        args(&mut all);
        let bind = all.bind;
        let set_log: SetLog = Arc::new(|filter| Ok(filter.unwrap_or("info").to_owned()));
        let app = App::start(Config::try_from(all).expect("valid"), client, set_log).expect("starts");
        let mut index = app.index();
        let listen = free_port(bind).await;
        let mut object = a_route("web", listen);
        route(&mut object.spec);
        index.apply_route(&object);
        Self {
            app,
            index,
            route: object,
            listen: SocketAddr::new(bind, listen),
        }
    }

    /// Publishes these pods, and no others.
    pub(super) fn publish(&mut self, pods: &[&FakePod]) {
        let all: Vec<_> = pods.iter().map(|pod| pod.published(false)).collect();
        self.publish_as(&all);
    }

    /// Publishes pods with what Kubernetes says of them.
    pub(super) fn publish_as(&mut self, pods: &[(SocketAddr, bool, bool)]) {
        let listen = self.listen.port();
        // A slice for each pod, because each has a port of its own.
        for slot in 0..8 {
            let name = format!("web-{slot}");
            match pods.get(slot) {
                Some((address, serving, terminating)) => {
                    self.index
                        .apply_slice(&a_slice("web", &name, listen, *address, *serving, *terminating));
                }
                None => self.index.delete_slice("shop", &name),
            }
        }
    }

    /// Changes the Route.
    pub(super) fn change(&mut self, change: impl FnOnce(&mut RouteSpec)) {
        change(&mut self.route.spec);
        self.route.metadata.generation = self.route.metadata.generation.map(|generation| generation + 1);
        self.index.apply_route(&self.route);
    }

    pub(super) fn pool(&self) -> Arc<Pool> {
        self.app
            .directory
            .pools()
            .into_iter()
            .find(|pool| pool.key.pool == "web")
            .expect("the pool")
    }

    pub(super) fn counters(&self) -> crate::meter::Meter {
        self.pool().sum(self.app.hub.now())
    }

    /// Waits until the pool's counters are as wished.
    pub(super) async fn until(&self, what: &str, is_so: impl Fn(&crate::meter::Meter) -> bool) {
        until(what, || is_so(&self.counters())).await;
    }

    pub(super) async fn get(&self, path: &str) -> Answer {
        self.send(Request::get(path)).await
    }

    pub(super) async fn send(&self, request: http::request::Builder) -> Answer {
        send(self.listen, request, Bytes::new()).await
    }
}

/// Many clients at once, each with a connection of its own.
#[derive(Default)]
pub(super) struct Crowd(tokio::task::JoinSet<StatusCode>);

impl Crowd {
    /// So many requests come to an activator.
    pub(super) fn send(&mut self, fixture: &Fixture, count: usize, path: &str) {
        for _ in 0..count {
            let (listen, request) = (fixture.listen, Request::get(path));
            self.0
                .spawn(async move { send(listen, request, Bytes::new()).await.status });
        }
    }

    /// A request that claims to come from a peer comes to an activator.
    pub(super) fn send_marked(&mut self, fixture: &Fixture, path: &str) {
        let (listen, request) = (fixture.listen, Request::get(path).header("dormouse-hop", "x"));
        self.0
            .spawn(async move { send(listen, request, Bytes::new()).await.status });
    }

    /// Waits until all are answered with 200.
    pub(super) async fn all_is_well(self) {
        let statuses = self.0.join_all().await;
        assert!(
            statuses.iter().all(|status| *status == StatusCode::OK),
            "{statuses:?}"
        );
    }
}

/// Waits for something that happens on another thread.
pub(super) async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting)
        .await
        .unwrap_or_else(|_| panic!("never: {what}"));
}

/// The metrics as they are scraped.
pub(super) async fn metrics(fixture: &Fixture) -> String {
    send(fixture.app.admin_address, Request::get("/metrics"), Bytes::new())
        .await
        .body
}

/// Waits for something that is counted on another thread.
pub(super) async fn until_metrics(fixture: &Fixture, what: &str, is_so: impl Fn(&str) -> bool) {
    let waiting = async {
        while !is_so(&metrics(fixture).await) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    if tokio::time::timeout(PATIENCE, waiting).await.is_err() {
        panic!("never: {what}: {}", metrics(fixture).await);
    }
}

pub(super) fn a_route(name: &str, listen: u16) -> Route {
    let spec = RouteSpec {
        ports: vec![RoutePort {
            port: 80,
            listen,
            ..RoutePort::default()
        }],
        pools: vec![RoutePool {
            name: name.into(),
            workload: Workload {
                name: name.into(),
                ..Workload::default()
            },
            weight: 10_000,
            probe: Probe {
                kind: ProbeKind::Tcp,
                ..Probe::default()
            },
            ..RoutePool::default()
        }],
        queue_limit: 1000,
        cold_start_timeout_ms: 10_000,
        ..RouteSpec::default()
    };
    let mut route = Route::new(name, spec);
    route.metadata.namespace = Some("shop".into());
    route.metadata.uid = Some("uid-1".into());
    route.metadata.generation = Some(1);
    route
}

pub(super) fn a_slice(
    pool: &str,
    name: &str,
    listen: u16,
    pod: SocketAddr,
    serving: bool,
    terminating: bool,
) -> EndpointSlice {
    EndpointSlice {
        metadata: ObjectMeta {
            name: Some(name.into()),
            namespace: Some("shop".into()),
            labels: Some([(crds::names::POOL_LABEL.to_owned(), pool.to_owned())].into()),
            ..ObjectMeta::default()
        },
        address_type: if pod.is_ipv4() { "IPv4" } else { "IPv6" }.into(),
        endpoints: vec![Endpoint {
            addresses: vec![pod.ip().to_string()],
            conditions: Some(EndpointConditions {
                ready: Some(true),
                serving: Some(serving),
                terminating: Some(terminating),
            }),
            ..Endpoint::default()
        }],
        ports: Some(vec![EndpointPort {
            name: Some(crds::names::pool_port_name(listen)),
            port: Some(i32::from(pod.port())),
            ..EndpointPort::default()
        }]),
    }
}

/// What a client got.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: String,
}

/// One request on a connection of its own.
pub(super) async fn send(address: SocketAddr, request: http::request::Builder, body: Bytes) -> Answer {
    let response = tokio::time::timeout(PATIENCE, open(address, request, Full::new(body)))
        .await
        .expect("an answer");
    let (parts, body) = response.into_parts();
    let body = tokio::time::timeout(PATIENCE, body.collect())
        .await
        .expect("in time")
        .expect("a whole body")
        .to_bytes();
    Answer {
        status: parts.status,
        headers: parts.headers,
        body: String::from_utf8_lossy(&body).into_owned(),
    }
}

/// One request; the answer's body is still to come.
pub(super) async fn open<B>(
    address: SocketAddr,
    request: http::request::Builder,
    body: B,
) -> Response<Incoming>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let stream = tokio::net::TcpStream::connect(address).await.expect("connects");
    let request = request.header("host", "web").body(body).expect("a request");
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .expect("HTTP/1.1");
    tokio::spawn(connection);
    let boxed = request.map(|body| body.map_err(Into::into).boxed_unsync());
    sender.send_request(boxed).await.expect("an answer")
}

/// A pod: an HTTP server (both versions) that can be slow, and counts.
pub(super) struct FakePod {
    pub(super) address: SocketAddr,
    pub(super) seen: Arc<Seen>,
    task: JoinHandle<()>,
}

/// What a pod has seen.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Open now.
    pub(super) connections: AtomicUsize,
    pub(super) requests: AtomicUsize,
    pub(super) overlap: AtomicUsize,
    pub(super) most_overlap: AtomicUsize,
}

impl FakePod {
    /// A pod that answers at once.
    pub(super) async fn new() -> Self {
        let address = fresh_address();
        Self::on(SocketAddr::new(address, free_port(address).await)).await
    }

    /// A pod at a given address.
    ///
    /// `/delay/MS` answers later, `/status/CODE` with that status, `/echo` with the request's body, `/headers` with what
    /// it was sent, `/die` not at all.
    pub(super) async fn on(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.expect("binds");
        let seen = Arc::new(Seen::default());
        let pod = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.expect("accepts");
                let pod = Arc::clone(&pod);
                connections.spawn(async move {
                    pod.connections.fetch_add(1, Ordering::SeqCst);
                    let seen = Arc::clone(&pod);
                    let service =
                        hyper::service::service_fn(move |request| answer(Arc::clone(&pod), request));
                    let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    drop(
                        server
                            .serve_connection_with_upgrades(TokioIo::new(stream), service)
                            .await,
                    );
                    seen.connections.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self { address, seen, task }
    }

    pub(super) fn published(&self, terminating: bool) -> (SocketAddr, bool, bool) {
        (self.address, true, terminating)
    }

    pub(super) fn requests(&self) -> usize {
        self.seen.requests.load(Ordering::SeqCst)
    }

    /// Ends it with all its connections, as SIGKILL would.
    pub(super) async fn kill(self) {
        self.task.abort();
        drop(self.task.await);
    }
}

async fn answer(
    pod: Arc<Seen>,
    request: Request<Incoming>,
) -> Result<Response<http_body_util::Either<Full<Bytes>, Incoming>>, std::io::Error> {
    use http_body_util::Either;
    pod.requests.fetch_add(1, Ordering::SeqCst);
    let now = pod.overlap.fetch_add(1, Ordering::SeqCst) + 1;
    pod.most_overlap.fetch_max(now, Ordering::SeqCst);
    let path = request.uri().path().to_owned();
    let response = match path.trim_start_matches('/').split_once('/') {
        Some(("delay", ms)) => {
            tokio::time::sleep(Duration::from_millis(ms.parse().expect("milliseconds"))).await;
            Response::new(Either::Left(Full::from("late")))
        }
        Some(("status", code)) => {
            let mut response = Response::new(Either::Left(Full::from("status")));
            *response.status_mut() = code.parse().expect("a status");
            response
        }
        _ if path == "/echo" => {
            pod.overlap.fetch_sub(1, Ordering::SeqCst);
            return Ok(Response::new(Either::Right(request.into_body())));
        }
        _ if path == "/headers" => {
            let mut text = format!("{} {} {:?}\n", request.method(), request.uri(), request.version());
            for (name, value) in request.headers() {
                text.push_str(&format!("{name}: {}\n", value.to_str().unwrap_or("?")));
            }
            Response::new(Either::Left(Full::from(text)))
        }
        _ if path == "/die" => return Err(std::io::Error::other("dies")),
        _ => Response::new(Either::Left(Full::from("hello"))),
    };
    pod.overlap.fetch_sub(1, Ordering::SeqCst);
    Ok(response)
}
