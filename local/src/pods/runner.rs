//! Which pods there are: each is bound to the one node, run by a task of its own, and stopped when it is deleted.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::address::{Address, Addresses};
use super::pod::{PodRun, Settings};
use crate::cluster::{Cluster, NODE, PORT_ANNOTATION, is_conflict, is_finished, is_not_found, seconds};
use crate::informer::Key;
use crate::queue::{self, Queue};

/// Pods bound at the same time; more would only wait for the API.
const WORKERS: usize = 8;

/// How long to wait for a port when all are taken.
const NO_PORT_PAUSE: Duration = Duration::from_secs(1);

/// Runs all pods.
pub(crate) struct Runner {
    cluster: Arc<Cluster>,
    settings: Settings,
    addresses: Addresses,
    queue: Arc<Queue>,
    running: Mutex<HashMap<String, Running>>,
    tasks: Mutex<JoinSet<()>>,
}

/// A pod that is being run, by uid.
struct Running {
    stop: watch::Sender<Option<Instant>>,
}

impl Runner {
    /// Adds listeners.
    pub(crate) fn prepare(
        cluster: &Arc<Cluster>,
        settings: super::pod::Settings,
        addresses: Addresses,
    ) -> Arc<Self> {
        let queue = Queue::new();
        let runner = Arc::new(Self {
            cluster: Arc::clone(cluster),
            settings,
            addresses,
            queue: Arc::clone(&queue),
            running: Mutex::default(),
            tasks: Mutex::default(),
        });
        let weak = Arc::downgrade(&runner);
        cluster.pods.listen(move |old, new| match (old, new) {
            (_, Some(new)) => queue.add(Key::of(new)),
            // Gone without asking us (grace period 0): nothing may run on.
            (Some(old), None) => {
                if let Some(runner) = weak.upgrade() {
                    runner.stop(old.metadata.uid.as_deref().unwrap_or_default(), Instant::now());
                }
            }
            (None, None) => {}
        });
        runner
    }

    /// Runs pods until `shutdown`, then ends them all within `grace`.
    pub(crate) async fn run(self: Arc<Self>, shutdown: CancellationToken, grace: Duration) {
        let runner = Arc::clone(&self);
        queue::work("pods", Arc::clone(&self.queue), WORKERS, shutdown, move |key| {
            let runner = Arc::clone(&runner);
            async move { runner.look(&key).await }
        })
        .await;
        self.end_all(grace).await;
    }

    async fn look(self: &Arc<Self>, key: &Key) -> Result<Option<Duration>, kube::Error> {
        let Some(pod) = self.cluster.pods.get(key) else {
            return Ok(None);
        };
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let is_running = self.running.lock().contains_key(&uid);
        let node = pod
            .spec
            .as_ref()
            .and_then(|spec| spec.node_name.as_deref())
            .filter(|it| !it.is_empty());
        // A pod for another node is not ours, and nobody's.
        if node.is_some_and(|node| node != NODE) {
            return Ok(None);
        }
        if pod.metadata.deletion_timestamp.is_some() {
            if is_running {
                self.stop(&uid, deadline(&pod));
                return Ok(None);
            }
            return self.delete_unstarted(&pod).await;
        }
        if is_running || is_finished(&pod) {
            return Ok(None);
        }
        let Some(address) = self.addresses.take() else {
            self.cluster
                .event(
                    &*pod,
                    true,
                    "FailedScheduling",
                    "no port is left on this machine",
                    "default-scheduler",
                )
                .await;
            return Ok(Some(NO_PORT_PAUSE));
        };
        let Some(bound) = self.bind(&pod, &address).await? else {
            return Ok(None);
        };
        self.start(Arc::new(bound), address);
        Ok(None)
    }

    /// The scheduler's part: first the port, then the node, so that a bound pod always has one.
    async fn bind(&self, pod: &Pod, address: &Address) -> Result<Option<Pod>, kube::Error> {
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let name = pod.metadata.name.clone().unwrap_or_default();
        let api = self.cluster.api::<Pod>(&namespace);
        let annotations = json!({ PORT_ANNOTATION: address.port.to_string() });
        let patch = json!({ "metadata": { "uid": pod.metadata.uid, "annotations": annotations } });
        let mut bound = match api
            .patch(&name, &PatchParams::default(), &Patch::Merge(patch))
            .await
        {
            Ok(patched) => patched,
            Err(error) if is_not_found(&error) || is_conflict(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        self.cluster.pods.observe(bound.clone());
        let spec = bound.spec.get_or_insert_default();
        if spec.node_name.as_deref() == Some(NODE) {
            return Ok(Some(bound));
        }
        spec.node_name = Some(NODE.to_owned());
        let binding = json!({
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": { "name": name, "namespace": namespace, "uid": pod.metadata.uid },
            "target": { "kind": "Node", "name": NODE },
        });
        let request = http::Request::post(format!("/api/v1/namespaces/{namespace}/pods/{name}/binding"))
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(binding.to_string().into_bytes())
            .map_err(kube::Error::HttpError)?;
        match self.cluster.client.request::<serde_json::Value>(request).await {
            Ok(_) => Ok(Some(bound)),
            Err(error) if is_not_found(&error) || is_conflict(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn start(self: &Arc<Self>, pod: Arc<Pod>, address: Address) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let (stop, stopped) = watch::channel(None);
        self.running.lock().insert(uid.clone(), Running { stop });
        let run = PodRun::new(
            Arc::clone(&self.cluster),
            self.settings.clone(),
            Arc::clone(&pod),
            address,
            stopped,
        );
        let runner = Arc::clone(self);
        let mut tasks = self.tasks.lock();
        // Ended tasks are taken out as new ones come, so the set holds little more than what runs.
        while tasks.try_join_next().is_some() {}
        tasks.spawn(async move {
            run.live().await;
            runner.running.lock().remove(&uid);
            let key = Key::of(&*pod);
            runner.settings.logs.forget(&key.namespace, &key.name);
        });
    }

    /// Has a pod end by `deadline`; an earlier deadline wins.
    fn stop(&self, uid: &str, deadline: Instant) {
        if let Some(running) = self.running.lock().get(uid) {
            running.stop.send_if_modified(|stop| {
                let earlier = stop.is_none_or(|it| deadline < it);
                if earlier {
                    *stop = Some(deadline);
                }
                earlier
            });
        }
    }

    /// A pod that was deleted before it was started.
    async fn delete_unstarted(&self, pod: &Pod) -> Result<Option<Duration>, kube::Error> {
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let name = pod.metadata.name.clone().unwrap_or_default();
        let api = self.cluster.api::<Pod>(&namespace);
        let same = kube::api::Preconditions {
            uid: pod.metadata.uid.clone(),
            resource_version: None,
        };
        let now = kube::api::DeleteParams {
            preconditions: Some(same),
            ..kube::api::DeleteParams::default().grace_period(0)
        };
        match api.delete(&name, &now).await {
            Err(error) if !is_not_found(&error) && !is_conflict(&error) => Err(error),
            _ => Ok(None),
        }
    }

    /// Ends all pods: TERM now, KILL after `grace`.
    async fn end_all(&self, grace: Duration) {
        let deadline = Instant::now() + grace;
        let uids: Vec<String> = self.running.lock().keys().cloned().collect();
        for uid in uids {
            self.stop(&uid, deadline);
        }
        let mut tasks = std::mem::take(&mut *self.tasks.lock());
        // A little more than the grace period: KILL takes effect at once, but the last writes must end, too.
        let ended = tokio::time::timeout(grace + Duration::from_millis(500), async {
            while tasks.join_next().await.is_some() {}
        });
        if ended.await.is_err() {
            tracing::warn!("some pods did not end in time; they are killed");
        }
    }
}

/// When a deleted pod must be gone.
fn deadline(pod: &Pod) -> Instant {
    let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(30);
    // The deletion time lies at the end of the grace period; a clock that jumped must not kill at once.
    Instant::now() + seconds(grace)
}
