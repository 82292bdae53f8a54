//! The whole autoscaler against the API in memory and one played activator: from the annotation to the first pod.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use crds::Route;
use crds::names::{ACTIVATOR_SERVICE, CAPTURED_SELECTOR_KEY, LEASE, SLICE_SERVICE_LABEL, SYSTEM_NAMESPACE};
use crds::report::{Directive, PoolReport, ProbeResult, Report, RouteAck};
use crds::route::Phase;
use dormouse_autoscaler as autoscaler;
use http::{Request, Response};
use http_body_util::{BodyExt, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{Api, Client, CustomResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{Mutex, mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// No step takes longer, however busy the machine.
const SOON: Duration = Duration::from_secs(20);
const INSTANCE: &str = "0123456789abcdef0123456789abcdef";

/// A played activator: it listens for every Route at once, every self-probe lands on it, and it holds what it is told.
struct Activator {
    port: u16,
    held: watch::Sender<u32>,
    directives: Mutex<mpsc::UnboundedReceiver<Directive>>,
}

impl Activator {
    async fn start(client: Client) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let held = watch::Sender::new(0);
        let (told, directives) = mpsc::unbounded_channel();
        let lines = held.subscribe();
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (client, lines, told) = (client.clone(), lines.clone(), told.clone());
                let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                    let body = stream(request, client.clone(), lines.clone(), told.clone());
                    async move { Ok::<_, Infallible>(Response::new(body)) }
                });
                let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(tcp), service);
                tokio::spawn(async move {
                    let _ = serving.await;
                });
            }
        });
        Arc::new(Self {
            port,
            held,
            directives: Mutex::new(directives),
        })
    }
}

/// One report stream: a full line every 100 ms, and at once when what is held changes.
fn stream(
    request: Request<Incoming>,
    client: Client,
    mut held: watch::Receiver<u32>,
    told: mpsc::UnboundedSender<Directive>,
) -> BoxBody<Bytes, Infallible> {
    let (sender, mut receiver) = mpsc::channel::<Bytes>(16);
    let (answers, mut answered) = mpsc::unbounded_channel::<ProbeResult>();
    let (epochs, epoch) = watch::channel(0);
    let mut body = request.into_body();
    tokio::spawn(async move {
        let mut buffer = Vec::new();
        while let Some(Ok(frame)) = body.frame().await {
            buffer.extend_from_slice(frame.data_ref().map(|data| &data[..]).unwrap_or_default());
            while let Some(at) = buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = buffer.drain(..=at).collect();
                let directive: Directive = serde_json::from_slice(&line).expect("a directive");
                for order in &directive.probes {
                    let landed = Some(INSTANCE.to_owned());
                    let _ = answers.send(ProbeResult {
                        id: order.id,
                        landed,
                        ..ProbeResult::default()
                    });
                }
                epochs.send_replace(directive.epoch);
                let _ = told.send(directive);
            }
        }
    });
    tokio::spawn(async move {
        let start = Instant::now();
        loop {
            let routes = Api::<Route>::all(client.clone()).list(&Default::default()).await;
            let mut probes = Vec::new();
            while let Ok(answer) = answered.try_recv() {
                probes.push(answer);
            }
            let now = *held.borrow_and_update();
            let report = Report {
                activator: "activator-1".into(),
                instance: INSTANCE.into(),
                uptime_ms: u64::try_from(start.elapsed().as_millis()).unwrap_or(0),
                full: true,
                serving: true,
                epoch: *epoch.borrow(),
                routes: routes
                    .map(|list| list.items.iter().map(ack).collect())
                    .unwrap_or_default(),
                pools: vec![pool(now)],
                probes,
                ..Report::default()
            };
            let mut line = serde_json::to_vec(&report).expect("a line");
            line.push(b'\n');
            if sender.send(Bytes::from(line)).await.is_err() {
                return;
            }
            let _ = tokio::time::timeout(Duration::from_millis(100), held.changed()).await;
        }
    });
    let frames = futures::stream::poll_fn(move |context| {
        receiver
            .poll_recv(context)
            .map(|line| line.map(|line| Ok(Frame::data(line))))
    });
    BodyExt::boxed(StreamBody::new(frames))
}

fn ack(route: &Route) -> RouteAck {
    RouteAck {
        namespace: route.metadata.namespace.clone().unwrap_or_default(),
        name: route.metadata.name.clone().unwrap_or_default(),
        uid: route.metadata.uid.clone().unwrap_or_default(),
        generation: route.metadata.generation.unwrap_or(0),
        ..RouteAck::default()
    }
}

fn pool(held: u32) -> PoolReport {
    PoolReport {
        namespace: "default".into(),
        pool: "web".into(),
        arrivals: u64::from(held),
        held,
        oldest_held_us: u64::from(held) * 500,
        idle_ms: (held > 0).then_some(0),
        ..PoolReport::default()
    }
}

fn object<K: DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).expect("an object")
}

async fn make<K>(api: Api<K>, value: Value)
where
    K: kube::Resource + DeserializeOwned + Clone + std::fmt::Debug + serde::Serialize,
{
    let created = api.create(&Default::default(), &object::<K>(value)).await;
    match created {
        Ok(_) => {}
        // The API may have made its own namespaces already.
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        Err(error) => panic!("{error}"),
    }
}

/// What a user has, and where activators are found.
async fn world(client: &Client, report_port: u16) {
    let crds = Api::<
        k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    >::all(client.clone());
    make(crds, serde_json::to_value(Route::crd()).expect("a CRD")).await;
    for name in [SYSTEM_NAMESPACE, "default"] {
        make(
            Api::<Namespace>::all(client.clone()),
            json!({"metadata": {"name": name}}),
        )
        .await;
    }
    let slices = Api::<EndpointSlice>::namespaced(client.clone(), SYSTEM_NAMESPACE);
    let activators = json!({
        "metadata": {"name": "activators", "labels": BTreeMap::from([(SLICE_SERVICE_LABEL, ACTIVATOR_SERVICE)])},
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["127.0.0.1"], "conditions": {"ready": true}}],
        "ports": [{"name": "report", "port": report_port, "protocol": "TCP"}]
    });
    make(slices, activators).await;
    let web = json!({
        "metadata": {"name": "web"},
        "spec": {
            "replicas": 0,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "web", "image": "web", "ports": [{"containerPort": 8080}]}]}
            }
        }
    });
    make(Api::<Deployment>::namespaced(client.clone(), "default"), web).await;
    let service = json!({
        "metadata": {"name": "web", "annotations": {"dormouse.dev/scale-to-zero": "true"}},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}
    });
    make(Api::<Service>::namespaced(client.clone(), "default"), service).await;
}

async fn until<F: Future<Output = Option<T>>, T>(what: &str, mut look: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + SOON;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not in time");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn start(client: Client, stop: &CancellationToken) -> tokio::task::JoinHandle<Result<(), autoscaler::Error>> {
    let args = autoscaler::Args {
        name: "autoscaler-1".into(),
        bind: IpAddr::V4(Ipv4Addr::LOCALHOST),
        admin_port: 0,
        settle: Duration::from_millis(50),
        report_token: Some("token".into()),
        ..autoscaler::Args::default()
    };
    let log: autoscaler::SetLog = Arc::new(|_| Ok("info".into()));
    tokio::spawn(autoscaler::run(
        args,
        client,
        log,
        stop.clone(),
        CancellationToken::new(),
    ))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_annotated_service_is_captured_sleeps_wakes_and_leadership_is_given_back() {
    let cluster = local::api::Api::new();
    let client = cluster.client();
    let activator = Activator::start(client.clone()).await;
    world(&client, activator.port).await;
    let stop = CancellationToken::new();
    let running = start(client.clone(), &stop);

    let routes = Api::<Route>::namespaced(client.clone(), "default");
    let asleep = until("asleep", || async {
        let status = routes.get_opt("web").await.ok()??.status?;
        let captured = crds::condition::is_true(&status.conditions, crds::condition::CAPTURED);
        (captured && status.phase == Some(Phase::Asleep)).then_some(status)
    });
    let status = asleep.await;
    assert_eq!(
        (status.pods.as_str(), status.weights.as_str()),
        ("0/0", "web=100")
    );
    assert_eq!(status.listening, ["activator-1"]);
    assert!(crds::condition::is_true(
        &status.conditions,
        crds::condition::CAPTURED
    ));
    let services = Api::<Service>::namespaced(client.clone(), "default");
    let selector = services
        .get("web")
        .await
        .expect("the Service")
        .spec
        .and_then(|spec| spec.selector);
    assert!(selector.is_some_and(|keys| keys.contains_key(CAPTURED_SELECTOR_KEY)));

    activator.held.send_replace(2);
    let mut directives = activator.directives.lock().await;
    let acknowledged = async {
        while let Some(directive) = directives.recv().await {
            if directive.waking.iter().any(|pool| pool.pool == "web") {
                return;
            }
        }
    };
    tokio::time::timeout(SOON, acknowledged)
        .await
        .expect("the wake is acknowledged");
    let workloads = Api::<Deployment>::namespaced(client.clone(), "default");
    until("one replica", || async {
        let spec = workloads.get("web").await.ok()?.spec?;
        (spec.replicas? == 1).then_some(())
    })
    .await;
    let why = until("a reason", || async {
        let status = routes.get("web").await.ok()?.status?;
        (status.phase == Some(Phase::Waking))
            .then_some(status.why)
            .filter(|why| why.starts_with("0 to 1"))
    });
    assert!(why.await.contains("held"));

    stop.cancel();
    let ended = tokio::time::timeout(SOON, running)
        .await
        .expect("it ends in time")
        .expect("no panic");
    assert!(ended.is_ok(), "{ended:?}");
    let lease = Api::<Lease>::namespaced(client, SYSTEM_NAMESPACE)
        .get(LEASE)
        .await
        .expect("the Lease");
    let spec = lease.spec.expect("a spec");
    assert_eq!(
        (spec.holder_identity, spec.lease_transitions),
        (None, Some(0)),
        "released"
    );
}
