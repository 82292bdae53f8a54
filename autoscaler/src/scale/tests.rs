//! The scaler in paused time: typed objects go into the index, lines into the sink, and a scripted API takes the writes.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use crds::Settings;
use crds::condition::{WORKLOAD_HEALTHY, find};
use crds::report::{PoolReport, Report};
use crds::route::{Phase, Route, RouteStatus, Workload};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use k8s_openapi::api::apps::v1::Deployment;
use serde_json::{Value, json};

use super::*;
use crate::state::Entry;

mod together;

/// How long the API takes for a write.
const WRITE: Duration = Duration::from_millis(100);

/// What the API was asked, and how it is to answer.
#[derive(Default)]
struct World {
    scaled: Mutex<Vec<(String, u64, Instant)>>,
    pods: Mutex<Value>,
    refuses: AtomicBool,
    other: AtomicU64,
}

fn client(world: &Arc<World>) -> kube::Client {
    let world = Arc::clone(world);
    let service = tower::service_fn(move |request: Request<kube::client::Body>| {
        let world = Arc::clone(&world);
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await?.to_bytes();
            let path = head.uri.path().to_owned();
            let (status, answer) = if path.ends_with("/scale") {
                let sent: Value = serde_json::from_slice(&body).expect("a patch");
                let replicas = sent["spec"]["replicas"].as_u64().expect("a number");
                world.scaled.lock().push((path, replicas, Instant::now()));
                tokio::time::sleep(WRITE).await;
                if world.refuses.load(Ordering::Relaxed) {
                    (
                        StatusCode::INTERNAL_SERVER_ERROR,
                        json!({"kind": "Status", "code": 500, "message": "no", "reason": "no"}),
                    )
                } else {
                    (
                        StatusCode::OK,
                        json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": {}, "spec": {"replicas": replicas}}),
                    )
                }
            } else if path.ends_with("/pods") {
                (
                    StatusCode::OK,
                    json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": *world.pods.lock()}),
                )
            } else {
                world.other.fetch_add(1, Ordering::Relaxed);
                (
                    StatusCode::CREATED,
                    serde_json::from_slice(&body).unwrap_or_default(),
                )
            };
            let mut response = Response::new(Full::new(Bytes::from(answer.to_string())));
            *response.status_mut() = status;
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(response)
        }
    });
    kube::Client::new(service, "default")
}

struct Bench {
    world: Arc<World>,
    index: Arc<Index>,
    registry: Arc<Registry>,
    fleet: Arc<Fleet>,
    scaler: Arc<Scaler>,
    leading: watch::Sender<Leadership>,
    sink: Sink,
    settings: Settings,
    release_all: watch::Sender<bool>,
}

fn bench() -> Bench {
    let world = Arc::new(World {
        pods: Mutex::new(json!([])),
        ..World::default()
    });
    let leading = watch::Sender::new(Leadership {
        leader: true,
        epoch_base: 0,
    });
    let metrics = Metrics::new();
    let index = Index::new("dormouse-system");
    let release_all = watch::Sender::new(false);
    let registry = Registry::new();
    let fleet = Fleet::new("autoscaler", Arc::clone(&metrics));
    let (cluster, _) = Cluster::new(
        client(&world),
        crate::lease::Term::endless(),
        "autoscaler",
        metrics.registry(),
    );
    let scaler = Scaler::new(
        Clock::new(),
        Arc::clone(&index),
        Arc::new(cluster),
        Arc::clone(&registry),
        Arc::clone(&fleet),
        metrics,
        release_all.subscribe(),
    );
    let sink = scaler.sink();
    tokio::spawn(Arc::clone(&scaler).run(leading.subscribe(), CancellationToken::new()));
    let settings = Settings {
        enabled: true,
        ..Settings::default()
    };
    Bench {
        world,
        index,
        registry,
        fleet,
        scaler,
        leading,
        sink,
        settings,
        release_all,
    }
}

fn pool(name: &str) -> PoolKey {
    PoolKey {
        namespace: "d".into(),
        pool: name.into(),
    }
}

fn route(name: &str) -> RouteKey {
    RouteKey {
        namespace: "d".into(),
        name: name.into(),
    }
}

impl Bench {
    fn entry(&self, name: &str) -> Entry {
        Entry {
            settings: Arc::new(self.settings.clone()),
            pools: vec![(
                pool(name),
                Workload {
                    name: name.into(),
                    ..Workload::default()
                },
            )],
            may_sleep: Ok(()),
            at_least: None,
            holds: None,
            needs: std::collections::BTreeMap::new(),
            stays: None,
            idle: BTreeSet::new(),
            scaled_by: None,
            phase: None,
            listening: vec!["a".into()],
            generation: Some(1),
            why: None,
            conditions: Vec::new(),
        }
    }

    /// A captured Service whose Deployment has `replicas`.
    async fn add(&self, name: &str, replicas: u32) {
        self.workload(name, replicas, 0);
        self.annotate(name, None);
        self.registry.set(&route(name), Some(self.entry(name)));
        self.settle().await;
    }

    fn workload(&self, name: &str, replicas: u32, ready: u32) {
        let object = json!({
            "metadata": {"namespace": "d", "name": name, "uid": name},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": {"app": name}},
                "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "app"}]}}
            },
            "status": {"replicas": replicas, "readyReplicas": ready}
        });
        let object: Deployment = serde_json::from_value(object).expect("a Deployment");
        self.index.apply(&object);
    }

    fn annotate(&self, name: &str, command: Option<&str>) {
        let annotations = command.map(|command| json!({COMMAND_ANNOTATION: command}));
        let object = json!({
            "apiVersion": "dormouse.dev/v1alpha1", "kind": "Route",
            "metadata": {"namespace": "d", "name": name, "uid": name, "annotations": annotations},
            "spec": {"pools": [{"name": name, "workload": {"kind": "Deployment", "name": name}, "weight": 10000}]}
        });
        let object: Route = serde_json::from_value(object).expect("a Route");
        self.index.apply(&object);
    }

    /// A line of one pool.
    fn line(&self, name: &str, arrivals: u64, ended: u64, held: u32, ready: u32) {
        let in_flight = u32::try_from(arrivals - ended).expect("few") - held;
        let mut line = PoolReport {
            namespace: "d".into(),
            pool: name.into(),
            arrivals,
            in_flight,
            held,
            ready,
            oldest_held_us: if held > 0 { 1500 } else { 0 },
            idle_ms: Some(0),
            ..PoolReport::default()
        };
        line.completions.ok = ended;
        let report = Report {
            activator: "a".into(),
            instance: "i".into(),
            serving: true,
            pools: vec![line],
            ..Report::default()
        };
        (self.sink)(Event::Line {
            report: Box::new(report),
            read_at: Instant::now(),
        });
    }

    /// Lets tasks run that have something to do now.
    async fn settle(&self) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    fn scaled(&self, name: &str) -> Vec<u64> {
        let path = format!("/apis/apps/v1/namespaces/d/deployments/{name}/scale");
        let all = self.world.scaled.lock();
        all.iter()
            .filter(|(of, ..)| *of == path)
            .map(|(_, replicas, _)| *replicas)
            .collect()
    }

    fn waking(&self) -> Vec<String> {
        serde_json::from_value(self.fleet.dump()["waking"].clone()).expect("names")
    }

    fn status(&self, name: &str) -> RouteStatus {
        self.scaler
            .view(&route(name), &RouteStatus::default())
            .expect("a status")
    }
}

#[tokio::test(start_paused = true)]
async fn a_wake_is_acknowledged_in_the_turn_that_read_it_and_written_without_a_tick() {
    let bench = bench();
    bench.add("web", 0).await;
    assert_eq!(bench.status("web").phase, Some(Phase::Asleep));
    let read = Instant::now();
    bench.line("web", 1, 0, 1, 0);
    assert_eq!(bench.waking(), ["d/web"], "before anything is awaited");
    bench.settle().await;
    assert_eq!(bench.scaled("web"), [1]);
    let sent = bench.world.scaled.lock()[0].2;
    assert!(sent - read <= Duration::from_millis(1), "{:?}", sent - read);
    tokio::time::sleep(WRITE * 2).await;
    let status = bench.status("web");
    assert_eq!((status.phase, status.pods.as_str()), (Some(Phase::Waking), "0/1"));
    assert!(!status.why.is_empty());

    bench.workload("web", 1, 1);
    bench.line("web", 1, 1, 0, 1);
    bench.settle().await;
    let status = bench.status("web");
    assert_eq!((status.phase, status.pods.as_str()), (Some(Phase::Awake), "1/1"));
    assert!(bench.waking().is_empty());
    assert_eq!(bench.scaled("web"), [1], "one write");
}

#[tokio::test(start_paused = true)]
async fn a_hundred_wakes_at_once_are_written_side_by_side() {
    let bench = bench();
    let names: Vec<String> = (0..100).map(|number| format!("web-{number}")).collect();
    for name in &names {
        bench.add(name, 0).await;
    }
    let start = Instant::now();
    for name in &names {
        bench.line(name, 1, 0, 1, 0);
    }
    bench.settle().await;
    for name in &names {
        assert_eq!(bench.scaled(name), [1], "{name}");
    }
    let last = bench
        .world
        .scaled
        .lock()
        .iter()
        .map(|(.., at)| *at)
        .max()
        .expect("writes");
    assert!(last - start < WRITE, "none waits for another: {:?}", last - start);
}

#[tokio::test(start_paused = true)]
async fn an_idle_pool_goes_to_sleep_by_its_own_timer_and_then_has_none() {
    let bench = bench();
    bench.add("web", 0).await;
    bench.line("web", 1, 0, 1, 0);
    tokio::time::sleep(WRITE * 2).await;
    bench.workload("web", 1, 1);
    bench.line("web", 1, 1, 0, 1);
    tokio::time::sleep(Duration::from_secs(50)).await;
    assert_eq!(bench.scaled("web"), [1], "kept for a while");
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(bench.scaled("web"), [1, 0], "{:#}", bench.scaler.dump());
    bench.workload("web", 0, 0);
    bench.line("web", 1, 1, 0, 0);
    bench.settle().await;
    assert_eq!(bench.status("web").phase, Some(Phase::Asleep));
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(bench.scaler.dump()["timers"], 0, "asleep costs nothing");
}

#[tokio::test(start_paused = true)]
async fn what_may_not_sleep_stays_and_the_reason_is_shown() {
    let bench = bench();
    bench.workload("web", 1, 1);
    bench.annotate("web", None);
    let entry = Entry {
        may_sleep: Err("the self-probe has not landed".into()),
        ..bench.entry("web")
    };
    bench.registry.set(&route("web"), Some(entry));
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(bench.scaled("web"), Vec::<u64>::new());
    assert_eq!(bench.status("web").phase, Some(Phase::Awake));
}

#[tokio::test(start_paused = true)]
async fn a_standby_writes_nothing_and_a_new_leader_begins_with_what_it_heard() {
    let bench = bench();
    bench.leading.send_replace(Leadership::default());
    bench.add("web", 0).await;
    bench.line("web", 1, 0, 1, 0);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(bench.scaled("web").is_empty() && bench.waking().is_empty());
    bench.leading.send_replace(Leadership {
        leader: true,
        epoch_base: 1 << 32,
    });
    bench.settle().await;
    assert_eq!(bench.scaled("web"), [1], "the held request was in its ledger");
}

#[tokio::test(start_paused = true)]
async fn a_wake_that_cannot_be_written_is_not_acknowledged_and_tried_again() {
    let bench = bench();
    bench.add("web", 0).await;
    bench.world.refuses.store(true, Ordering::Relaxed);
    bench.line("web", 1, 0, 1, 0);
    tokio::time::sleep(WRITE + Duration::from_millis(5)).await;
    assert!(bench.waking().is_empty(), "the activator may try itself");
    tokio::time::sleep(Duration::from_secs(3)).await;
    let tries = bench.scaled("web").len();
    assert!((3..10).contains(&tries), "with back-off: {tries}");
    bench.world.refuses.store(false, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(bench.waking(), ["d/web"]);
    bench.workload("web", 1, 0);
    let after = bench.scaled("web").len();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(bench.scaled("web").len(), after, "written once");
}

#[tokio::test(start_paused = true)]
async fn a_command_is_carried_out_once_for_each_nonce() {
    let bench = bench();
    bench.add("web", 0).await;
    bench.annotate("web", Some("wake@1"));
    tokio::time::sleep(WRITE * 2).await;
    assert_eq!(bench.scaled("web"), [1]);
    assert_eq!(bench.status("web").command, "wake@1");
    bench.workload("web", 1, 1);
    tokio::time::sleep(Duration::from_secs(3)).await;
    bench.annotate("web", Some("sleep@2"));
    tokio::time::sleep(WRITE * 2).await;
    assert_eq!(bench.scaled("web"), [1, 0]);
    bench.workload("web", 0, 0);
    bench.annotate("web", Some("sleep@2"));
    bench.annotate("web", Some("dance@3"));
    tokio::time::sleep(WRITE * 2).await;
    assert_eq!(
        bench.scaled("web"),
        [1, 0],
        "neither again nor what is no command"
    );
}

#[tokio::test(start_paused = true)]
async fn a_crash_loop_is_told_soon_and_withdrawn_when_a_pod_is_ready() {
    let bench = bench();
    *bench.world.pods.lock() = json!([{
        "metadata": {"name": "web-1", "namespace": "d"},
        "spec": {"containers": []},
        "status": {"containerStatuses": [{
            "name": "app", "image": "i", "imageID": "", "ready": false, "restartCount": 3,
            "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"exitCode": 2}}
        }]}
    }]);
    bench.add("web", 0).await;
    bench.line("web", 1, 0, 1, 0);
    tokio::time::sleep(Duration::from_secs(1)).await;
    bench.workload("web", 1, 0);
    let healthy =
        |status: &RouteStatus| find(&status.conditions, WORKLOAD_HEALTHY).map(|found| found.status == "True");
    assert_eq!(healthy(&bench.status("web")), Some(true), "not yet");
    tokio::time::sleep(Duration::from_secs(2)).await;
    let status = bench.status("web");
    assert_eq!(healthy(&status), Some(false));
    assert_eq!(status.why, "container app exits with code 2, restarted 3 times");
    bench.workload("web", 1, 1);
    bench.settle().await;
    assert_eq!(healthy(&bench.status("web")), Some(true));
}
