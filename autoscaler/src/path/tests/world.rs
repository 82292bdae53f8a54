//! A cluster of objects alone: the API in memory, the built-in controllers played once every few milliseconds, and
//! activators that acknowledge every Route at once, or are played apart. Every write of the autoscaler is recorded in a
//! few words, and may be refused, lost, or the last one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use crds::names::SCALE_MANAGER;
use crds::route::Route;
use http_body_util::{BodyExt, Full};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use kube::{CustomResourceExt, ResourceExt};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::super::{Activators, Capture};
use crate::clock::Clock;
use crate::cluster::Cluster;
use crate::ingest::{Ack, Live, Probe};
use crate::lease::{Leadership, Term};
use crate::rollout::Rollouts;
use crate::rollout::counts::Counts;
use crate::rollout::outside::Outside;
use crate::state::{Dirty, Entry, Registry, RouteKey};
use crate::watch::{Index, Scope};

/// How often the built-in controllers look.
const TICK: Duration = Duration::from_millis(50);
/// The annotation by which a Service is opted in.
pub(crate) const OPTED: &str = "dormouse.dev/scale-to-zero";
/// The settle time of the tests.
const SETTLE: Duration = Duration::from_secs(2);

pub(crate) fn key(name: &str) -> RouteKey {
    RouteKey {
        namespace: "default".into(),
        name: name.into(),
    }
}

/// Activators that listen as soon as they are told.
pub(crate) struct Streams {
    index: Arc<Index>,
    live: Mutex<Vec<Live>>,
    changed: watch::Sender<u64>,
    acked: Arc<Dirty<RouteKey>>,
    misses: AtomicBool,
    writes: Writes,
    /// What activators have acknowledged, when they are played apart; else they hear what the autoscaler hears, at once.
    heard: Option<Arc<Mutex<Vec<Ack>>>>,
    /// What all activators were last told is out.
    pub(crate) out: Mutex<std::collections::BTreeMap<RouteKey, String>>,
}

impl Streams {
    /// Tells the autoscaler that somebody has acknowledged something, or that somebody is another process now.
    pub(crate) fn has_heard(&self, route: &RouteKey) {
        self.acked.mark([route.clone()]);
        self.changed.send_modify(|count| *count += 1);
    }

    /// Another process in the place of one.
    pub(crate) fn replace(&self, name: &str, instance: &str) {
        for live in self.live.lock().iter_mut().filter(|live| live.name == name) {
            instance.clone_into(&mut live.instance);
        }
        self.changed.send_modify(|count| *count += 1);
    }

    pub(crate) fn set_live(&self, count: u8) {
        *self.live.lock() = (0..count)
            .map(|number| Live {
                name: format!("activator-{number}"),
                instance: format!("instance-{number}"),
                address: format!("10.9.0.{number}"),
                node: Some("node-a".into()),
                zone: None,
                serving: true,
            })
            .collect();
        self.changed.send_modify(|count| *count += 1);
    }

    pub(crate) fn miss(&self, misses: bool) {
        self.misses.store(misses, Ordering::SeqCst);
    }
}

impl Activators for Streams {
    fn live(&self) -> Vec<Live> {
        self.live.lock().clone()
    }

    fn acks(&self, route: &RouteKey) -> Vec<Ack> {
        if let Some(heard) = &self.heard {
            return heard.lock().clone();
        }
        let Some(route) = self.index.route(route) else {
            return Vec::new();
        };
        let ack = |live: &Live| Ack {
            activator: live.name.clone(),
            instance: live.instance.clone(),
            serving: true,
            uid: route.uid().unwrap_or_default(),
            generation: route.metadata.generation.unwrap_or(0),
            error: String::new(),
        };
        self.live.lock().iter().map(ack).collect()
    }

    async fn probe(&self, _: &RouteKey, _: &str, _: u32) -> Probe {
        sleep(Duration::from_millis(5)).await;
        self.writes.add("probe".into());
        if self.misses.load(Ordering::SeqCst) {
            return Probe::Missed("a pod answered".into());
        }
        Probe::Landed {
            by: "activator-0".into(),
            on: "activator-0".into(),
        }
    }

    fn acked(&self) -> Arc<Dirty<RouteKey>> {
        Arc::clone(&self.acked)
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn take_out(&self, route: &RouteKey, attempt: Option<&str>) {
        let mut out = self.out.lock();
        match attempt {
            Some(attempt) => _ = out.insert(route.clone(), attempt.to_owned()),
            None => _ = out.remove(route),
        }
    }
}

#[derive(Clone, Default)]
struct Writes(Arc<Mutex<Vec<(Instant, String)>>>);

impl Writes {
    fn add(&self, write: String) {
        self.0.lock().push((Instant::now(), write));
    }
}

/// What happens to the autoscaler's writes.
#[derive(Debug, Default)]
pub(crate) struct Chaos {
    /// Of a thousand writes so many are refused because of a conflict.
    pub(crate) conflicts: AtomicU32,
    /// Of a thousand writes so many get no answer; half of them are done all the same.
    pub(crate) lost: AtomicU32,
    /// The process ends with its last write done and unanswered, not before it.
    pub(crate) dies_late: AtomicBool,
    /// A part of paths that the autoscaler may not read or write; empty: none.
    forbidden: Mutex<String>,
    random: Mutex<fastrand::Rng>,
}

impl Chaos {
    pub(crate) fn seed(&self, seed: u64) {
        *self.random.lock() = fastrand::Rng::with_seed(seed);
    }

    fn forbids(&self, path: &str) -> bool {
        let part = self.forbidden.lock();
        !part.is_empty() && path.contains(part.as_str())
    }

    fn hits(&self, of_a_thousand: &AtomicU32) -> bool {
        let share = of_a_thousand.load(Ordering::SeqCst);
        share > 0 && self.random.lock().u32(0..1000) < share
    }
}

pub(crate) struct World {
    api: local::api::Api,
    client: kube::Client,
    pub(crate) chaos: Arc<Chaos>,
    /// How often the built-in controllers look.
    tick: Duration,
    /// The wall's, which goes on as tests' time does.
    clock: Clock,
    /// The clock of the next process is ahead of it by so much.
    pub(crate) ahead: Duration,
    pub(crate) fleet: Arc<Streams>,
    index: Arc<Index>,
    registry: Arc<Registry>,
    writes: Writes,
    /// What activators have counted for rollouts.
    pub(crate) counts: Arc<Counts>,
    /// So many more writes of the present process succeed; then none does, as when it has ended.
    fuse: Arc<AtomicI64>,
    /// The scale side does what entries ask for.
    scales: Arc<AtomicBool>,
    /// It also takes the pods of pools without requests away.
    lowers: Arc<AtomicBool>,
    /// What activators have acknowledged, when they are played apart.
    heard: Option<Arc<Mutex<Vec<Ack>>>>,
    stop: CancellationToken,
    /// Panics when a Service goes dark.
    controllers: tokio::task::JoinHandle<()>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
        assert!(
            std::thread::panicking() || !self.controllers.is_finished(),
            "a Service went dark"
        );
    }
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::start_with(TICK, None).await
    }

    /// One whose controllers look every `tick`, and whose activators are played apart if there is a place for what they
    /// have acknowledged.
    pub(crate) async fn start_with(tick: Duration, heard: Option<Arc<Mutex<Vec<Ack>>>>) -> Self {
        let api = local::api::Api::new();
        let client = api.client();
        for crd in [Route::crd(), crds::Rollout::crd(), crds::Revision::crd()] {
            Api::all(client.clone())
                .create(&PostParams::default(), &crd)
                .await
                .expect("the CRD");
        }
        let writes = Writes::default();
        let index = Index::new("dormouse-system");
        let stop = CancellationToken::new();
        let controllers = tokio::spawn(controllers(api.clone(), tick, CancellationToken::new()));
        let fleet = Arc::new(Streams {
            index: Arc::clone(&index),
            live: Mutex::default(),
            changed: watch::Sender::new(0),
            acked: Dirty::new(),
            misses: AtomicBool::new(false),
            writes: writes.clone(),
            heard: heard.clone(),
            out: Mutex::default(),
        });
        fleet.set_live(2);
        let mut world = Self {
            api,
            client,
            chaos: Arc::default(),
            tick,
            clock: Clock::new(),
            ahead: Duration::ZERO,
            fleet,
            index,
            registry: Registry::new(),
            writes,
            counts: Arc::default(),
            fuse: Arc::default(),
            scales: Arc::default(),
            lowers: Arc::default(),
            heard,
            stop,
            controllers,
        };
        world.take_over().await;
        world
    }

    /// A new leader, with nothing remembered; the old one is gone.
    pub(crate) async fn take_over(&mut self) {
        self.kill();
        self.succeed().await;
    }

    /// The process ends: nothing that it still tries reaches the API.
    pub(crate) fn kill(&self) {
        self.fuse.store(-1, Ordering::SeqCst);
        self.stop.cancel();
    }

    /// Deposes a process. It asks before each write whether it leads, and the Lease is not given away before it knows: just
    /// one write may be under way, and come late. What is returned ends it.
    pub(crate) fn depose(&self) -> impl FnOnce() + use<> {
        self.fuse.fetch_min(1, Ordering::SeqCst);
        let (fuse, stop) = (Arc::clone(&self.fuse), self.stop.clone());
        move || {
            fuse.store(-1, Ordering::SeqCst);
            stop.cancel();
        }
    }

    /// A new leader, whatever the old one does.
    pub(crate) async fn succeed(&mut self) {
        self.stop = CancellationToken::new();
        self.fuse = Arc::new(AtomicI64::new(i64::MAX));
        let writer = recording(
            &self.api,
            self.writes.clone(),
            Arc::clone(&self.fuse),
            Arc::clone(&self.chaos),
        );
        let scope = Scope {
            namespace: None,
            system: "dormouse-system".into(),
        };
        self.index = Index::new("dormouse-system");
        tokio::spawn(crate::watch::run(
            Arc::clone(&self.index),
            self.client.clone(),
            scope,
            self.stop.clone(),
        ));
        self.fleet = Arc::new(Streams {
            index: Arc::clone(&self.index),
            live: Mutex::new(self.fleet.live()),
            changed: watch::Sender::new(0),
            acked: Dirty::new(),
            misses: AtomicBool::new(false),
            writes: self.writes.clone(),
            heard: self.heard.clone(),
            out: Mutex::default(),
        });
        self.registry = Registry::new();
        let leading = watch::Sender::new(Leadership {
            leader: true,
            epoch_base: 0,
        });
        let registry = prometheus::Registry::new();
        let (cluster, events) = Cluster::new(writer.clone(), Term::endless(), "test", &registry);
        tokio::spawn(events.run(self.stop.clone()));
        let divisions = crate::state::Divisions::new();
        let cluster = Arc::new(cluster);
        self.counts = Arc::default();
        let clock = Clock::showing(self.clock.at(Instant::now()) + self.ahead);
        let rollouts = Rollouts::new(
            clock,
            Arc::clone(&self.index),
            Arc::clone(&cluster),
            Arc::clone(&self.fleet),
            Arc::clone(&self.registry),
            Arc::clone(&divisions),
            Arc::clone(&self.counts),
            Arc::new(|_| crate::rollout::Flow::default()),
            watch::Sender::new(false).subscribe(),
            Outside::new(&registry),
        );
        tokio::spawn(rollouts.run(self.client.clone(), None, leading.subscribe(), self.stop.clone()));
        tokio::spawn(scale(
            writer,
            Arc::clone(&self.index),
            Arc::clone(&self.registry),
            Arc::clone(&self.scales),
            Arc::clone(&self.lowers),
            self.tick,
            self.stop.clone(),
        ));
        let capture = Capture::new(
            clock,
            SETTLE,
            Arc::clone(&self.index),
            cluster,
            Arc::clone(&self.fleet),
            Arc::clone(&self.registry),
            Arc::new(|_| 0),
            watch::Sender::new(false).subscribe(),
            divisions,
        );
        let receiver = leading.subscribe();
        let stop = self.stop.clone();
        tokio::spawn(async move {
            let _leading = leading;
            capture.run(receiver, stop).await;
        });
    }

    // What users do.

    pub(crate) async fn deploy(&self, name: &str, replicas: u32) {
        let labels = json!({ "app": name });
        let deployment: Deployment = object(json!({
            "metadata": { "name": name },
            "spec": {
                "replicas": replicas,
                "selector": { "matchLabels": labels },
                "template": {
                    "metadata": { "labels": labels },
                    "spec": { "containers": [{ "name": "main", "image": "x", "ports": [{ "containerPort": 8080 }] }] },
                },
            },
        }));
        let api = Api::<Deployment>::default_namespaced(self.client.clone());
        api.create(&PostParams::default(), &deployment)
            .await
            .expect("a Deployment");
    }

    pub(crate) async fn service(&self, name: &str, annotations: Value) {
        self.service_on(name, name, annotations).await;
    }

    pub(crate) async fn service_on(&self, name: &str, app: &str, annotations: Value) {
        let service: Service = object(manifest(name, app, annotations));
        let params = PostParams {
            field_manager: Some("kubectl-client-side-apply".into()),
            ..PostParams::default()
        };
        self.services()
            .create(&params, &service)
            .await
            .expect("a Service");
    }

    /// A Deployment with so many replicas and its Service, opted in, once it is captured.
    pub(crate) async fn captured(&self, name: &str, replicas: u32) -> Arc<Entry> {
        self.deploy(name, replicas).await;
        self.service(name, json!({ OPTED: "true" })).await;
        self.until(name, |entry| entry.may_sleep.is_ok()).await
    }

    pub(crate) async fn apply_as(
        &self,
        manager: &str,
        name: &str,
        annotations: Value,
    ) -> kube::Result<Service> {
        let body = manifest(name, name, annotations);
        self.services()
            .patch(name, &PatchParams::apply(manager), &Patch::Apply(body))
            .await
    }

    pub(crate) async fn annotate(&self, name: &str, annotations: Value) {
        let body = json!({ "metadata": { "annotations": annotations } });
        self.services()
            .patch(name, &PatchParams::default(), &Patch::Merge(body))
            .await
            .expect("a patch");
    }

    pub(crate) async fn set_ports(&self, name: &str, ports: Value) {
        let body = json!({ "spec": { "ports": ports } });
        self.services()
            .patch(name, &PatchParams::default(), &Patch::Merge(body))
            .await
            .expect("a patch");
    }

    pub(crate) async fn scale(&self, name: &str, replicas: u32) {
        let body = json!({ "spec": { "replicas": replicas } });
        let api = Api::<Deployment>::default_namespaced(self.client.clone());
        let ours = PatchParams {
            field_manager: Some(SCALE_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        api.patch_scale(name, &ours, &Patch::Merge(body))
            .await
            .expect("a scale");
    }

    pub(crate) async fn keda(&self, workload: &str) {
        let hpa: HorizontalPodAutoscaler = object(json!({
            "metadata": { "name": "keda-hpa", "ownerReferences": [
                { "apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject", "name": "it", "uid": "1" },
            ] },
            "spec": {
                "maxReplicas": 3,
                "scaleTargetRef": { "apiVersion": "apps/v1", "kind": "Deployment", "name": workload },
            },
        }));
        let api = Api::<HorizontalPodAutoscaler>::default_namespaced(self.client.clone());
        api.create(&PostParams::default(), &hpa).await.expect("an HPA");
    }

    // What is seen.

    fn services(&self) -> Api<Service> {
        Api::default_namespaced(self.client.clone())
    }

    pub(crate) async fn read_service(&self, name: &str) -> Service {
        self.services().get(name).await.expect("the Service")
    }

    pub(crate) async fn selector_keys(&self, name: &str) -> usize {
        let service = self.read_service(name).await;
        service
            .spec
            .and_then(|spec| spec.selector)
            .map_or(0, |all| all.len())
    }

    async fn deployment(&self, name: &str) -> Deployment {
        Api::<Deployment>::default_namespaced(self.client.clone())
            .get(name)
            .await
            .expect("the Deployment")
    }

    pub(crate) async fn original(&self, name: &str) -> Option<String> {
        self.deployment(name)
            .await
            .annotations()
            .get(crds::names::ORIGINAL_REPLICAS_ANNOTATION)
            .cloned()
    }

    pub(crate) async fn replicas(&self, name: &str) -> i32 {
        self.deployment(name)
            .await
            .spec
            .and_then(|spec| spec.replicas)
            .unwrap_or(1)
    }

    pub(crate) async fn slice(&self, name: &str) -> Option<EndpointSlice> {
        let api = Api::<EndpointSlice>::default_namespaced(self.client.clone());
        api.get_opt(name).await.expect("an answer")
    }

    pub(crate) async fn slice_when(&self, name: &str) -> EndpointSlice {
        soon(name, async || self.slice(name).await).await
    }

    pub(crate) async fn route_when(&self, name: &str, good: impl Fn(&Route) -> bool) -> Route {
        let api = Api::<Route>::default_namespaced(self.client.clone());
        soon(name, async || {
            api.get_opt(name).await.expect("an answer").filter(&good)
        })
        .await
    }

    /// Who owns `spec.selector`, of our name or another's, after capture.
    pub(crate) async fn managers_of_selector(&self, name: &str) -> Vec<String> {
        managers_of(&self.read_service(name).await, "f:selector")
    }

    pub(crate) async fn managers_of_replicas(&self, name: &str) -> Vec<String> {
        managers_of(&self.deployment(name).await, "f:replicas")
    }

    pub(crate) fn entry(&self, name: &str) -> Option<Arc<Entry>> {
        self.registry.get(&key(name))
    }

    pub(crate) async fn until(&self, name: &str, good: impl Fn(&Entry) -> bool) -> Arc<Entry> {
        let entry = || self.entry(name);
        let found = timeout(Duration::from_secs(120), async {
            loop {
                if let Some(entry) = entry().filter(|entry| good(entry)) {
                    return entry;
                }
                sleep(TICK).await;
            }
        });
        found
            .await
            .unwrap_or_else(|_| panic!("{name}: {:#?} after {:#?}", entry(), self.writes()))
    }

    pub(crate) async fn until_gone(&self, name: &str) {
        let gone = timeout(Duration::from_secs(400), async {
            while self.entry(name).is_some() {
                sleep(TICK).await;
            }
        });
        gone.await
            .unwrap_or_else(|_| panic!("{name}: {:#?} after {:#?}", self.entry(name), self.writes()));
    }

    pub(crate) async fn rest(&self, seconds: u64) {
        sleep(Duration::from_secs(seconds)).await;
    }

    pub(crate) async fn write_status(&self, name: &str) {
        let conditions = self
            .entry(name)
            .map(|entry| entry.conditions.clone())
            .unwrap_or_default();
        let body = json!({ "status": { "conditions": conditions } });
        let api = Api::<Route>::default_namespaced(self.client.clone());
        api.patch_status(name, &PatchParams::default(), &Patch::Merge(body))
            .await
            .expect("a status");
    }

    pub(crate) fn writes(&self) -> Vec<String> {
        self.writes
            .0
            .lock()
            .iter()
            .map(|(_, write)| write.clone())
            .collect()
    }

    /// Has pods made and kept as entries ask for.
    pub(crate) fn play_scale_side(&self) {
        self.scales.store(true, Ordering::SeqCst);
    }

    /// Has pods of pools without requests go.
    pub(crate) fn play_going_to_zero(&self) {
        self.lowers.store(true, Ordering::SeqCst);
    }

    /// Ends every watch, and has the API forget what has changed: all who watched have to list again.
    pub(crate) async fn lose_watches(&self) {
        let request = http::Request::post("/local/outage?seconds=0").body(Vec::new());
        // One that is under way already does as well.
        let _ = self.client.request_text(request.expect("a request")).await;
    }

    /// Takes the permission for paths with this in them; empty: gives it back.
    pub(crate) fn forbid(&self, part: &str) {
        part.clone_into(&mut self.chaos.forbidden.lock());
    }

    /// Has everything fail after so many more writes.
    pub(crate) fn burn(&self, writes: i64) {
        self.fuse.store(writes, Ordering::SeqCst);
    }

    /// Whether the last write that could succeed has been tried.
    pub(crate) fn is_burnt(&self) -> bool {
        self.fuse.load(Ordering::SeqCst) < 0
    }

    /// How many writes the present process has tried.
    pub(crate) fn writes_tried(&self) -> i64 {
        i64::MAX.saturating_sub(self.fuse.load(Ordering::SeqCst))
    }

    /// The client of a user.
    pub(crate) fn client(&self) -> kube::Client {
        self.client.clone()
    }

    pub(crate) fn forget_writes(&self) {
        self.writes.0.lock().clear();
    }

    /// Between the first of one write and the first of another lay the settle time.
    pub(crate) fn settled_between(&self, first: &str, second: &str) {
        let writes = self.writes.0.lock();
        let at = |wanted: &str| {
            writes
                .iter()
                .find(|(_, write)| write == wanted)
                .map(|(at, _)| *at)
                .expect("it was written")
        };
        let passed = at(second).duration_since(at(first));
        assert!(passed >= SETTLE, "{first}, and {second} only {passed:?} later");
    }

    /// The same for the last of each.
    pub(crate) fn settled_between_last(&self, first: &str, second: &str) {
        let writes = self.writes.0.lock();
        let at = |wanted: &str| {
            writes
                .iter()
                .rfind(|(_, write)| write == wanted)
                .map(|(at, _)| *at)
                .expect("it was written")
        };
        let passed = at(second).duration_since(at(first));
        assert!(passed >= SETTLE, "{first}, and {second} only {passed:?} later");
    }
}

fn object<K: serde::de::DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).expect("an object of that kind")
}

fn manifest(name: &str, app: &str, annotations: Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": name, "annotations": annotations },
        "spec": { "selector": { "app": app }, "ports": [{ "name": "http", "port": 80, "targetPort": 8080 }] },
    })
}

async fn soon<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let found = timeout(Duration::from_secs(60), async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            sleep(TICK).await;
        }
    });
    found.await.unwrap_or_else(|_| panic!("{what}: not in time"))
}

/// A client that notes what it is asked to write.
fn recording(api: &local::api::Api, writes: Writes, fuse: Arc<AtomicI64>, chaos: Arc<Chaos>) -> kube::Client {
    let api = api.clone();
    let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
        let (api, writes, fuse) = (api.clone(), writes.clone(), Arc::clone(&fuse));
        let chaos = Arc::clone(&chaos);
        async move {
            let (parts, body) = request.into_parts();
            let mut unanswered = None;
            if parts.method != http::Method::GET {
                let left = fuse.fetch_sub(1, Ordering::SeqCst);
                if left < 0 || (left == 0 && !chaos.dies_late.load(Ordering::SeqCst)) {
                    return Err("the process has ended");
                } else if left == 0 {
                    unanswered = Some("the process has ended");
                } else if chaos.hits(&chaos.conflicts) {
                    return Ok(refused(
                        http::StatusCode::CONFLICT,
                        "Conflict",
                        "the object has been modified; please apply your changes to the latest version and try again",
                    ));
                } else if chaos.hits(&chaos.lost) {
                    if chaos.random.lock().bool() {
                        return Err("the connection broke before");
                    }
                    unanswered = Some("the connection broke after");
                }
            }
            let body = body
                .collect()
                .await
                .map(http_body_util::Collected::to_bytes)
                .unwrap_or_default();
            let write = words(&parts, &body);
            if chaos.forbids(parts.uri.path()) {
                return Ok(refused(http::StatusCode::FORBIDDEN, "Forbidden", "forbidden"));
            }
            let request = http::Request::from_parts(parts, Full::new(body));
            let user = local::api::User::admin();
            let response = api.handle(&user, request).await;
            if let Some(write) = write.filter(|_| response.status().is_success()) {
                writes.add(write);
            }
            unanswered.map_or(Ok(response), Err)
        }
    });
    kube::Client::new(service, "default")
}

/// The API says no.
fn refused(code: http::StatusCode, reason: &str, message: &str) -> http::Response<local::api::ApiBody> {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure",
        "code": code.as_u16(), "reason": reason, "message": message,
    });
    let body = Full::new(Bytes::from(status.to_string())).map_err(|never| match never {});
    let mut response = http::Response::new(body.boxed_unsync());
    *response.status_mut() = code;
    let json = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(http::header::CONTENT_TYPE, json);
    response
}

/// The scale side, as far as entries ask for pods.
async fn scale(
    client: kube::Client,
    index: Arc<Index>,
    registry: Arc<Registry>,
    scales: Arc<AtomicBool>,
    lowers: Arc<AtomicBool>,
    tick: Duration,
    stop: CancellationToken,
) {
    let api = Api::<Deployment>::default_namespaced(client);
    while !stop.is_cancelled() {
        let all = if scales.load(Ordering::SeqCst) {
            registry.all()
        } else {
            Vec::new()
        };
        for (_, entry) in all {
            for (pool, workload) in &entry.pools {
                let needs = entry.needs.get(pool).into_iter().chain(&entry.at_least);
                let least = needs.map(|(replicas, _)| *replicas).max().unwrap_or(0);
                let Some(there) = index.workload(&pool.namespace, workload) else {
                    continue;
                };
                let idle =
                    lowers.load(Ordering::SeqCst) && entry.idle.contains(pool) && entry.may_sleep.is_ok();
                if there.replicas < least || (idle && there.replicas > least) {
                    let body = json!({ "spec": { "replicas": least } });
                    let patch = Patch::Merge(body);
                    let ours = PatchParams {
                        field_manager: Some(SCALE_MANAGER.to_owned()),
                        ..PatchParams::default()
                    };
                    let _ = api.patch_scale(&workload.name, &ours, &patch).await;
                }
            }
        }
        sleep(tick).await;
    }
}

fn words(parts: &http::request::Parts, body: &Bytes) -> Option<String> {
    let path: Vec<&str> = parts.uri.path().split('/').collect();
    let (kind, name) = match path.as_slice() {
        [.., kind, name, "scale"] => return Some(format!("scale {kind}/{name}")),
        [.., kind, name] => (*kind, *name),
        _ => return None,
    };
    let what = match kind {
        "routes" => "route",
        "endpointslices" => "slice",
        "services" if name.ends_with("-dm") => "private",
        "services" => "service",
        "deployments" => "workload",
        _ => return None,
    };
    let text = String::from_utf8_lossy(body);
    match (parts.method.as_str(), what) {
        ("GET" | "POST", _) => None,
        ("DELETE", _) => Some(format!("delete {what} {name}")),
        (_, "workload") if text.contains("managedFields") => Some(format!("disown replicas of {name}")),
        (_, "workload") if text.contains("null") => Some(format!("forget {name}")),
        (_, "workload") => Some(format!("note {name}")),
        (_, "service") if text.contains("managedFields") => Some(format!("disown {name}")),
        (_, "service") if text.contains("\"remove\"") => Some(format!("key - {name}")),
        (_, "service") => Some(format!("key + {name}")),
        _ => Some(format!("{what} {name}")),
    }
}

/// The built-in controllers: every Deployment has its pods at once, every Service with a selector its slice.
async fn controllers(api: local::api::Api, tick: Duration, stop: CancellationToken) {
    let client = api.client();
    let mut published = std::collections::HashMap::new();
    // The templates of the pods: a paused Deployment keeps those that it has.
    let mut running = std::collections::HashMap::new();
    let mut seen = 0;
    while !stop.is_cancelled() {
        let version = api.stats().store.version;
        if version == seen {
            sleep(tick).await;
            continue;
        }
        seen = version;
        let deployments = Api::<Deployment>::default_namespaced(client.clone());
        let list = deployments
            .list(&ListParams::default())
            .await
            .expect("Deployments")
            .items;
        for deployment in &list {
            let spec = deployment.spec.clone().unwrap_or_default();
            let replicas = spec.replicas.unwrap_or(1);
            let runs = running
                .entry(deployment.name_any())
                .or_insert_with(|| spec.template.clone());
            if spec.paused != Some(true) || replicas == 0 {
                runs.clone_from(&spec.template);
            }
            let updated = if *runs == spec.template { replicas } else { 0 };
            let status = deployment.status.clone().unwrap_or_default();
            let told = [status.ready_replicas, status.updated_replicas].map(|pods| pods.unwrap_or(0));
            if told != [replicas, updated] || status.observed_generation != deployment.metadata.generation {
                let body = json!({ "status": {
                    "observedGeneration": deployment.metadata.generation,
                    "replicas": replicas,
                    "readyReplicas": replicas,
                    "updatedReplicas": updated,
                } });
                let params = PatchParams::default();
                let _ = deployments
                    .patch_status(&deployment.name_any(), &params, &Patch::Merge(body))
                    .await;
            }
        }
        let services = Api::<Service>::default_namespaced(client.clone());
        let services = services
            .list(&ListParams::default())
            .await
            .expect("Services")
            .items;
        for service in &services {
            let slice = slice_of(service, &list);
            if published.get(&service.name_any()) != Some(&slice) {
                publish(&client, &service.name_any(), &slice).await;
                published.insert(service.name_any(), slice);
            }
        }
        let slices = Api::<EndpointSlice>::default_namespaced(client.clone());
        let slices = slices.list(&ListParams::default()).await.expect("slices").items;
        for service in &services {
            let name = service.name_any();
            let of =
                |slice: &&EndpointSlice| slice.labels().get(crds::names::SLICE_SERVICE_LABEL) == Some(&name);
            let dark = slices.iter().filter(of).all(|slice| slice.endpoints.is_empty());
            // A Service with pods must always have somebody ready in its slices.
            assert!(
                !dark || pods_of(service, &list, false).is_empty(),
                "{name} has pods and no endpoints"
            );
        }
        sleep(tick).await;
    }
}

fn pods_of(service: &Service, deployments: &[Deployment], selector_key: bool) -> Vec<String> {
    let mut selector = service
        .spec
        .as_ref()
        .and_then(|spec| spec.selector.clone())
        .unwrap_or_default();
    if !selector_key {
        selector.remove(crds::names::CAPTURED_SELECTOR_KEY);
    }
    let mut pods = Vec::new();
    for (number, deployment) in deployments.iter().enumerate() {
        let spec = deployment.spec.clone().unwrap_or_default();
        let labels = spec
            .template
            .metadata
            .and_then(|metadata| metadata.labels)
            .unwrap_or_default();
        if selector.iter().all(|(key, value)| labels.get(key) == Some(value)) {
            pods.extend((0..spec.replicas.unwrap_or(1)).map(|pod| format!("10.1.{number}.{pod}")));
        }
    }
    pods
}

async fn publish(client: &kube::Client, name: &str, slice: &Value) {
    let slices = Api::<EndpointSlice>::default_namespaced(client.clone());
    let params = PatchParams::apply("endpointslice-controller").force();
    slices
        .patch(&format!("{name}-k8s"), &params, &Patch::Apply(slice))
        .await
        .expect("a slice");
}

/// What the built-in controller publishes for a Service.
fn slice_of(service: &Service, deployments: &[Deployment]) -> Value {
    let name = service.name_any();
    let conditions = json!({ "ready": true, "serving": true, "terminating": false });
    let endpoints: Vec<Value> = pods_of(service, deployments, true)
        .iter()
        .map(|pod| json!({ "addresses": [pod], "conditions": conditions }))
        .collect();
    let ports = service
        .spec
        .as_ref()
        .and_then(|spec| spec.ports.as_ref())
        .into_iter()
        .flatten();
    let ports: Vec<Value> = ports
        .map(|port| json!({ "name": port.name.clone().unwrap_or_default(), "port": 8080, "protocol": "TCP" }))
        .collect();
    let mut labels = service.labels().clone();
    labels.insert(crds::names::SLICE_SERVICE_LABEL.into(), name.clone());
    labels.insert(
        crds::names::SLICE_MANAGED_BY_LABEL.into(),
        "endpointslice-controller.k8s.io".into(),
    );
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": { "name": format!("{name}-k8s"), "labels": labels },
        "addressType": "IPv4", "endpoints": endpoints, "ports": ports,
    })
}

/// Who owns a field of the spec.
fn managers_of<K: ResourceExt>(object: &K, field: &str) -> Vec<String> {
    let entries = object.managed_fields().iter();
    let owners = entries.filter(|entry| {
        let fields = entry.fields_v1.as_ref();
        fields.is_some_and(|fields| !fields.0["f:spec"][field].is_null())
    });
    owners.filter_map(|entry| entry.manager.clone()).collect()
}
