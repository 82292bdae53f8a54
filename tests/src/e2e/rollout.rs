//! What the scenarios of rollouts ask a cluster for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use crds::Rollout;
use crds::names::{COMMAND_ANNOTATION, REVISION_LABEL};
use crds::rollout::{Phase, RolloutStatus};
use crds::route::{FULL_WEIGHT, Route};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::app::App;
use super::apply::apply;
use super::cluster::{Cluster, SOON};
use super::wait::{eventually, notes, wait_for};

/// Revisions of which pods were seen, and the most pods at one time.
#[derive(Clone, Debug, Default)]
pub struct PodsSeen {
    /// Labels of revisions; empty for pods without one.
    pub revisions: BTreeSet<String>,
    /// Most pods at one time.
    pub most: usize,
}

/// The manifest of a Rollout of Service and Deployment `name`, with `spec` beside what names them.
#[must_use]
pub fn rollout(name: &str, spec: Value) -> String {
    let mut all = json!({ "targetRef": { "name": name }, "serviceRef": { "name": name } });
    for (key, value) in spec.as_object().into_iter().flatten() {
        all[key] = value.clone();
    }
    // JSON is YAML.
    json!({
        "apiVersion": "dormouse.dev/v1alpha1",
        "kind": "Rollout",
        "metadata": { "name": name, "namespace": "default" },
        "spec": all,
    })
    .to_string()
}

impl Cluster {
    /// Applies a Rollout of Service and Deployment `name`.
    ///
    /// # Errors
    /// The cluster refuses it.
    pub async fn apply_rollout(&self, name: &str, spec: Value) -> Result<()> {
        apply(&self.client, &rollout(name, spec)).await
    }

    /// Sets variables of a Deployment's container, as `kubectl set env` does: a release. An empty value takes one away.
    ///
    /// # Errors
    /// The cluster refuses.
    pub async fn release(&self, deployment: &str, environment: &[(&str, &str)]) -> Result<()> {
        let variables: Vec<Value> = environment
            .iter()
            .map(|(name, value)| match value.is_empty() {
                true => json!({ "name": name, "$patch": "delete" }),
                false => json!({ "name": name, "value": value }),
            })
            .collect();
        let container = json!({ "name": "app", "env": variables });
        self.change_container(deployment, container).await
    }

    /// Changes a Deployment's container, as `kubectl set image` and `set env` do.
    ///
    /// # Errors
    /// The cluster refuses.
    pub async fn change_container(&self, deployment: &str, container: Value) -> Result<()> {
        let body = json!({ "spec": { "template": { "spec": { "containers": [container] } } } });
        self.api::<Deployment>()
            .patch(deployment, &PatchParams::default(), &Patch::Strategic(body))
            .await?;
        Ok(())
    }

    /// Waits until the status of a Rollout satisfies `check`, and returns it.
    ///
    /// # Errors
    /// It does not within `limit`; it is in the error.
    pub async fn wait_rollout(
        &self,
        name: &str,
        what: &str,
        limit: Duration,
        mut check: impl FnMut(&RolloutStatus) -> bool,
    ) -> Result<RolloutStatus> {
        let key = format!("default/{name}");
        let waiting = wait_for(self.api::<Rollout>(), what, limit, |rollouts| {
            let status = rollouts.get(&key)?.status.as_ref()?;
            check(status).then(|| status.clone())
        });
        match waiting.await {
            Ok(status) => Ok(status),
            Err(error) => {
                let status = self.rollout_status(name).await;
                Err(error.context(format!("Rollout {name}: {status:#?}")))
            }
        }
    }

    /// The status of a Rollout now.
    ///
    /// # Errors
    /// There is no such Rollout.
    pub async fn rollout_status(&self, name: &str) -> Result<RolloutStatus> {
        let rollout = self.api::<Rollout>().get(name).await?;
        Ok(rollout.status.unwrap_or_default())
    }

    /// Waits until a Rollout has its first revision, with all traffic.
    ///
    /// # Errors
    /// It has not within a minute and a half.
    pub async fn wait_adopted(&self, name: &str) -> Result<RolloutStatus> {
        let limit = Duration::from_secs(90);
        self.wait_rollout(name, "adopted", limit, |status| {
            status.adopted && status.phase == Phase::Idle
        })
        .await
    }

    /// Applies an application and a Rollout of it, and returns its first revision once that has all traffic.
    ///
    /// # Errors
    /// The cluster refuses, or it has not within a minute and a half.
    pub async fn adopt(&self, app: &App, spec: Value) -> Result<String> {
        self.apply(app).await?;
        self.apply_rollout(app.name(), spec).await?;
        Ok(self.wait_adopted(app.name()).await?.stable_revision)
    }

    /// Waits until the candidate has `weight` (`50%`) and every activator has acknowledged it.
    ///
    /// # Errors
    /// It has not within `limit`.
    pub async fn wait_weight(&self, name: &str, weight: &str, limit: Duration) -> Result<RolloutStatus> {
        self.wait_rollout(name, weight, limit, |status| {
            let acked = status.step.as_ref().is_some_and(|step| step.acked_bp.is_some());
            status.weight == weight && acked
        })
        .await
    }

    /// Waits until an attempt other than `before` has ended like `result`, and returns the status.
    ///
    /// # Errors
    /// It has not within `limit`.
    pub async fn wait_result(
        &self,
        name: &str,
        before: &str,
        result: &str,
        limit: Duration,
    ) -> Result<RolloutStatus> {
        self.wait_rollout(name, result, limit, |status| {
            let attempt = status.attempt.as_ref();
            let ended = attempt.is_some_and(|attempt| attempt.uid != before && attempt.result == result);
            ended && matches!(status.phase, Phase::Idle | Phase::Failed)
        })
        .await
    }

    /// Commands a Rollout's present attempt, by the annotation.
    ///
    /// # Errors
    /// The cluster refuses.
    pub async fn command(&self, name: &str, verb: &str) -> Result<()> {
        let attempt = self.rollout_status(name).await?.attempt;
        let uid = attempt.map(|attempt| attempt.uid).unwrap_or_default();
        let nonce = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)?
            .as_nanos();
        let annotations = json!({ COMMAND_ANNOTATION: format!("{verb}@{uid}.{nonce}") });
        let body = json!({ "metadata": { "annotations": annotations } });
        self.api::<Rollout>()
            .patch(name, &PatchParams::default(), &Patch::Merge(body))
            .await?;
        Ok(())
    }

    /// The weights that a Service's Route says, by pool.
    ///
    /// # Errors
    /// There is no Route, or they do not add up to everything.
    pub async fn weights(&self, service: &str) -> Result<BTreeMap<String, u32>> {
        let route = self.api::<Route>().get(service).await?;
        let pools = route.spec.pools.into_iter();
        let weights: BTreeMap<_, _> = pools.map(|pool| (pool.name, pool.weight)).collect();
        let sum: u32 = weights.values().sum();
        ensure!(sum == FULL_WEIGHT, "weights add up to {sum}: {weights:?}");
        Ok(weights)
    }

    /// Waits until the Route of a Service gives everything to one revision and names no other. The one before stands by with
    /// nothing for a moment longer than it takes to be out.
    ///
    /// # Errors
    /// It does not in time.
    pub async fn wait_everything_on(&self, service: &str, revision: &str) -> Result<()> {
        let alone = BTreeMap::from([(revision.to_owned(), FULL_WEIGHT)]);
        let all = async || (self.weights(service).await.ok()? == alone).then_some(());
        eventually(&format!("{revision} has everything"), SOON, all).await
    }

    /// Reasons and texts of the Events about a Rollout, in the order in which they happened: about this one, not about one
    /// that had its name before.
    ///
    /// # Errors
    /// The API does not answer.
    pub async fn told(&self, rollout: &str) -> Result<Vec<(String, String)>> {
        let uid = self.api::<Rollout>().get(rollout).await?.metadata.uid;
        let events = self.api::<Event>().list(&Default::default()).await?.items;
        let mut about: Vec<_> = events
            .into_iter()
            .filter(|event| {
                let object = &event.involved_object;
                object.kind.as_deref() == Some("Rollout") && object.uid == uid
            })
            .map(|event| {
                let at = event.event_time.map(|time| time.0);
                (
                    at,
                    event.reason.unwrap_or_default(),
                    event.message.unwrap_or_default(),
                )
            })
            .collect();
        about.sort();
        Ok(about
            .into_iter()
            .map(|(_, reason, text)| (reason, text))
            .collect())
    }

    /// Notes the pods with label `app` that there are from now on.
    ///
    /// # Errors
    /// The API does not answer.
    pub async fn watch_pods(&self, app: &str) -> Result<Arc<Mutex<PodsSeen>>> {
        let config = watcher::Config::default().labels(&format!("app={app}"));
        notes(self.api::<Pod>(), config, PodsSeen::note).await
    }
}

impl PodsSeen {
    fn note(&mut self, pods: &BTreeMap<String, Pod>) {
        let revision = |pod: &Pod| pod.labels().get(REVISION_LABEL).cloned().unwrap_or_default();
        self.revisions.extend(pods.values().map(revision));
        self.most = self.most.max(pods.len());
    }
}
