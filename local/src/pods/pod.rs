//! One pod's life: init containers in order, then all containers, and a status that follows what they do.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::address::Address;
use super::container;
use super::logs::Logs;
use super::process::Spawner;
use super::status::{View, Views, compose};
use crate::cluster::{Cluster, is_conflict, is_not_found, now};
use crate::informer::Key;

/// How long before a write that failed is tried again.
const WRITE_PAUSE: Duration = Duration::from_millis(200);

/// Most Events about one pod: a probe that fails every second for days must not fill the API.
const MOST_EVENTS: usize = 50;

/// What all pods share.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) spawner: Spawner,
    pub(crate) logs: Logs,
    /// The folder that stands first in `PATH`.
    pub(crate) first_in_path: Option<PathBuf>,
}

/// Which container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slot {
    Init(usize),
    Main(usize),
}

/// A pod that is being run.
pub(super) struct PodRun {
    pub(super) cluster: Arc<Cluster>,
    pub(super) settings: Settings,
    pub(super) namespace: String,
    /// As it was when it was bound.
    pub(super) pod: Arc<Pod>,
    pub(super) address: Address,
    views: Mutex<Views>,
    changed: Notify,
    /// When all must be gone; `None`: it runs.
    stop: watch::Receiver<Option<Instant>>,
    started: Time,
    /// How many Events of each reason were written.
    events: Mutex<BTreeMap<String, usize>>,
}

impl PodRun {
    pub(super) fn new(
        cluster: Arc<Cluster>,
        settings: Settings,
        pod: Arc<Pod>,
        address: Address,
        stop: watch::Receiver<Option<Instant>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            views: Mutex::new(Views::new(&pod)),
            changed: Notify::new(),
            started: now(),
            events: Mutex::default(),
            cluster,
            settings,
            pod,
            address,
            stop,
        })
    }

    /// Runs the pod until its object may go.
    pub(super) async fn live(self: Arc<Self>) {
        let writer = tokio::spawn(Arc::clone(&self).write_status());
        // So that the address is published while the process starts.
        self.changed.notify_one();
        self.warn_of_volumes().await;
        self.run_containers().await;
        self.stopping().await;
        writer.abort();
        let _ = writer.await;
        self.finish().await;
    }

    async fn run_containers(self: &Arc<Self>) {
        let (init, main) = {
            let views = self.views.lock();
            (views.init.len(), views.main.len())
        };
        let mut sidecars = tokio::task::JoinSet::new();
        for index in 0..init {
            let slot = Slot::Init(index);
            if self.container(slot).restart_policy.as_deref() == Some("Always") {
                sidecars.spawn(container::run(Arc::clone(self), slot));
                continue;
            }
            if container::run(Arc::clone(self), slot).await != Some(0) {
                return;
            }
        }
        let mut containers = tokio::task::JoinSet::new();
        for index in 0..main {
            containers.spawn(container::run(Arc::clone(self), Slot::Main(index)));
        }
        while containers.join_next().await.is_some() {}
        // Sidecars serve the others, so they go last.
        sidecars.shutdown().await;
    }

    pub(super) fn container(&self, slot: Slot) -> &Container {
        let spec = self.pod.spec.as_ref();
        let found = match slot {
            Slot::Init(index) => spec.and_then(|spec| spec.init_containers.as_ref()?.get(index)),
            Slot::Main(index) => spec.and_then(|spec| spec.containers.get(index)),
        };
        found.expect("slots are made from the same spec")
    }

    /// Changes what is known of a container; whether that changed anything.
    pub(super) fn update(&self, slot: Slot, change: impl FnOnce(&mut View)) -> bool {
        let mut views = self.views.lock();
        let view = match slot {
            Slot::Init(index) => views.init.get_mut(index),
            Slot::Main(index) => views.main.get_mut(index),
        };
        let Some(view) = view else { return false };
        let before = view.clone();
        change(view);
        let changed = *view != before;
        if changed {
            self.changed.notify_one();
        }
        changed
    }

    /// Waits until the pod is to be stopped.
    pub(super) async fn stopping(&self) {
        let mut stop = self.stop.clone();
        // The sender is dropped only with the runner: then everything stops.
        let _ = stop.wait_for(Option::is_some).await;
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stop.borrow().is_some()
    }

    /// When all must be gone.
    pub(super) fn stop_deadline(&self) -> Instant {
        self.stop.borrow().unwrap_or_else(Instant::now)
    }

    /// Waits until `deadline`, or an earlier one that is set meanwhile.
    pub(super) async fn past(&self, deadline: Instant) {
        let mut stop = self.stop.clone();
        loop {
            let at = stop.borrow_and_update().map_or(deadline, |it| it.min(deadline));
            tokio::select! {
                () = tokio::time::sleep_until(at) => return,
                changed = stop.changed() => if changed.is_err() { return },
            }
        }
    }

    /// `terminationGracePeriodSeconds`.
    pub(super) fn grace_seconds(&self) -> i64 {
        self.pod
            .spec
            .as_ref()
            .and_then(|spec| spec.termination_grace_period_seconds)
            .unwrap_or(30)
    }

    /// Writes an Event about the pod, unless there are too many.
    pub(super) async fn event(&self, warning: bool, reason: &str, message: &str) {
        let count = {
            let mut events = self.events.lock();
            let count = events.entry(reason.to_owned()).or_default();
            *count += 1;
            *count
        };
        // The first few of a kind tell all; then every tenth says that it goes on.
        if count > MOST_EVENTS || (count > 5 && count % 10 != 0) {
            return;
        }
        self.cluster
            .event(&*self.pod, warning, reason, message, "kubelet")
            .await;
    }

    async fn warn_of_volumes(&self) {
        let volumes = self
            .pod
            .spec
            .iter()
            .flat_map(|spec| spec.volumes.iter().flatten());
        let names: Vec<&str> = volumes
            .map(|it| it.name.as_str())
            .filter(|it| !it.starts_with("kube-api-access-"))
            .collect();
        if !names.is_empty() {
            let message = format!(
                "volumes are not mounted by the embedded cluster: {}",
                names.join(", ")
            );
            self.event(true, "FailedMount", &message).await;
        }
    }

    /// Writes the status after each change, the newest only.
    async fn write_status(self: Arc<Self>) {
        let mut written = None;
        loop {
            self.changed.notified().await;
            while let Err(error) = self.write_once(&mut written).await {
                tracing::debug!(%error, "pod status not written");
                tokio::time::sleep(WRITE_PAUSE).await;
            }
        }
    }

    async fn write_once(&self, written: &mut Option<Views>) -> Result<(), kube::Error> {
        let views = self.views.lock().clone();
        if written.as_ref() == Some(&views) {
            return Ok(());
        }
        let Some(pod) = self.cluster.pods.get(&Key::of(&*self.pod)) else {
            return Ok(());
        };
        if pod.metadata.uid != self.pod.metadata.uid {
            return Ok(());
        }
        let status = compose(&pod, &views, self.address.ip, &self.started, &now());
        let patch = json!({ "metadata": { "uid": self.pod.metadata.uid }, "status": status });
        let api = self.cluster.api::<Pod>(&self.namespace);
        let name = self.pod.metadata.name.clone().unwrap_or_default();
        match api
            .patch_status(&name, &PatchParams::default(), &Patch::Merge(patch))
            .await
        {
            Ok(pod) => self.cluster.pods.observe(pod),
            // Gone, or another pod of the same name: nothing to tell.
            Err(error) if is_not_found(&error) || is_conflict(&error) => {}
            Err(error) => return Err(error),
        }
        *written = Some(views);
        Ok(())
    }

    /// All has ended: the last status, and the object goes.
    async fn finish(&self) {
        let name = self.pod.metadata.name.clone().unwrap_or_default();
        let api = self.cluster.api::<Pod>(&self.namespace);
        loop {
            let result = async {
                self.write_once(&mut None).await?;
                let same = Preconditions {
                    uid: self.pod.metadata.uid.clone(),
                    resource_version: None,
                };
                let now = DeleteParams {
                    preconditions: Some(same),
                    ..DeleteParams::default().grace_period(0)
                };
                api.delete(&name, &now).await.map(drop)
            };
            match result.await {
                Err(error) if !is_not_found(&error) && !is_conflict(&error) => {
                    tracing::debug!(%error, pod = name, "pod not deleted");
                    tokio::time::sleep(WRITE_PAUSE).await;
                }
                _ => return,
            }
        }
    }
}
