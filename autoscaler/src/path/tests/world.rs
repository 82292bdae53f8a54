//! A cluster of objects alone: the API in memory, the built-in controllers played once every few milliseconds, and
//! activators that acknowledge every Route at once. Every write of the autoscaler is recorded in a few words.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
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
use crate::lease::Leadership;
use crate::rollout::Rollouts;
use crate::rollout::counts::Counts;
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
}

impl Streams {
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
}

#[derive(Clone, Default)]
struct Writes(Arc<Mutex<Vec<(Instant, String)>>>);

impl Writes {
    fn add(&self, write: String) {
        self.0.lock().push((Instant::now(), write));
    }
}

pub(crate) struct World {
    client: kube::Client,
    /// Records what it is asked to write.
    watched: kube::Client,
    pub(crate) fleet: Arc<Streams>,
    index: Arc<Index>,
    registry: Arc<Registry>,
    writes: Writes,
    /// What activators have counted for rollouts.
    pub(crate) counts: Arc<Counts>,
    /// So many more writes succeed; then none does, as when the process has ended.
    fuse: Arc<AtomicI64>,
    /// The scale side does what entries ask for.
    scales: Arc<AtomicBool>,
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
        let api = local::api::Api::new();
        let client = api.client();
        for crd in [Route::crd(), crds::Rollout::crd(), crds::Revision::crd()] {
            Api::all(client.clone())
                .create(&PostParams::default(), &crd)
                .await
                .expect("the CRD");
        }
        let writes = Writes::default();
        let fuse = Arc::new(AtomicI64::new(i64::MAX));
        let watched = recording(&api, writes.clone(), Arc::clone(&fuse));
        let index = Index::new("dormouse-system");
        let stop = CancellationToken::new();
        let scope = Scope {
            namespace: None,
            system: "dormouse-system".into(),
        };
        tokio::spawn(crate::watch::run(
            Arc::clone(&index),
            client.clone(),
            scope,
            stop.clone(),
        ));
        let controllers = tokio::spawn(controllers(client.clone(), CancellationToken::new()));
        let fleet = Arc::new(Streams {
            index: Arc::clone(&index),
            live: Mutex::default(),
            changed: watch::Sender::new(0),
            acked: Dirty::new(),
            misses: AtomicBool::new(false),
            writes: writes.clone(),
        });
        fleet.set_live(2);
        let mut world = Self {
            client,
            watched,
            fleet,
            index,
            registry: Registry::new(),
            writes,
            counts: Arc::default(),
            fuse,
            scales: Arc::default(),
            stop,
            controllers,
        };
        world.take_over().await;
        world
    }

    /// A new leader, with nothing remembered; the old one is gone.
    pub(crate) async fn take_over(&mut self) {
        self.stop.cancel();
        self.stop = CancellationToken::new();
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
        let live = self.fleet.live().len();
        self.fleet = Arc::new(Streams {
            index: Arc::clone(&self.index),
            live: Mutex::default(),
            changed: watch::Sender::new(0),
            acked: Dirty::new(),
            misses: AtomicBool::new(false),
            writes: self.writes.clone(),
        });
        self.fleet.set_live(u8::try_from(live).expect("few"));
        self.registry = Registry::new();
        let leading = watch::Sender::new(Leadership {
            leader: true,
            epoch_base: 0,
        });
        let registry = prometheus::Registry::new();
        let (cluster, events) = Cluster::new(self.watched.clone(), leading.subscribe(), "test", &registry);
        tokio::spawn(events.run(self.stop.clone()));
        let divisions = crate::state::Divisions::new();
        let cluster = Arc::new(cluster);
        self.counts = Arc::default();
        let clock = Clock::new();
        let rollouts = Rollouts::new(
            clock,
            Arc::clone(&self.index),
            Arc::clone(&cluster),
            Arc::clone(&self.fleet),
            Arc::clone(&self.registry),
            Arc::clone(&divisions),
            Arc::clone(&self.counts),
            Arc::new(|_| (0, 0)),
            watch::Sender::new(false).subscribe(),
        );
        tokio::spawn(rollouts.run(self.client.clone(), None, leading.subscribe(), self.stop.clone()));
        tokio::spawn(scale(
            self.watched.clone(),
            Arc::clone(&self.registry),
            Arc::clone(&self.scales),
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

    /// Has everything fail after so many more writes.
    pub(crate) fn burn(&self, writes: i64) {
        self.fuse.store(writes, Ordering::SeqCst);
    }

    /// Whether the last write that could succeed has been tried.
    pub(crate) fn is_burnt(&self) -> bool {
        self.fuse.load(Ordering::SeqCst) < 0
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
fn recording(api: &local::api::Api, writes: Writes, fuse: Arc<AtomicI64>) -> kube::Client {
    let api = api.clone();
    let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
        let (api, writes, fuse) = (api.clone(), writes.clone(), Arc::clone(&fuse));
        async move {
            let (parts, body) = request.into_parts();
            if parts.method != http::Method::GET && fuse.fetch_sub(1, Ordering::SeqCst) <= 0 {
                return Err("the process has ended");
            }
            let body = body
                .collect()
                .await
                .map(http_body_util::Collected::to_bytes)
                .unwrap_or_default();
            let write = words(&parts, &body);
            let request = http::Request::from_parts(parts, Full::new(body));
            let user = local::api::User::admin();
            let response = api.handle(&user, request).await;
            if let Some(write) = write.filter(|_| response.status().is_success()) {
                writes.add(write);
            }
            Ok(response)
        }
    });
    kube::Client::new(service, "default")
}

/// The scale side, as far as entries ask for pods.
async fn scale(
    client: kube::Client,
    registry: Arc<Registry>,
    scales: Arc<AtomicBool>,
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
                let Ok(there) = api.get(&workload.name).await else {
                    continue;
                };
                let replicas = there.spec.and_then(|spec| spec.replicas).unwrap_or(1);
                if u32::try_from(replicas).is_ok_and(|replicas| replicas < least) {
                    let body = json!({ "spec": { "replicas": least } });
                    let patch = Patch::Merge(body);
                    let _ = api
                        .patch_scale(&workload.name, &PatchParams::default(), &patch)
                        .await;
                }
            }
        }
        sleep(TICK).await;
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
async fn controllers(client: kube::Client, stop: CancellationToken) {
    let mut published = std::collections::HashMap::new();
    while !stop.is_cancelled() {
        let deployments = Api::<Deployment>::default_namespaced(client.clone());
        let list = deployments
            .list(&ListParams::default())
            .await
            .expect("Deployments")
            .items;
        for deployment in &list {
            let replicas = deployment
                .spec
                .as_ref()
                .and_then(|spec| spec.replicas)
                .unwrap_or(1);
            let ready = deployment
                .status
                .as_ref()
                .and_then(|status| status.ready_replicas)
                .unwrap_or(0);
            if ready != replicas {
                let body = json!({ "status": { "replicas": replicas, "readyReplicas": replicas } });
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
        sleep(TICK).await;
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
