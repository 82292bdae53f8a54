//! Deployment: ReplicaSets, one for each template, and the steps from one to the next.
//!
//! `plan` is the arithmetic, `sets` the ReplicaSets, `status` what is said about it all.

mod plan;
mod sets;
mod status;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, ReplicaSet};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::core::ObjectMeta;
use serde_json::json;

use super::Start;
use super::pods_of::may_adopt;
use crate::cluster::{Cluster, controller_of, is_controlled_by, is_not_found, owned_by, selects};
use crate::informer::Key;
use crate::queue::{self, Queue};
use plan::{Set, Wish, grow, share, shrink};
use sets::has_template;

const HASH_LABEL: &str = "pod-template-hash";
const REVISION: &str = "deployment.kubernetes.io/revision";
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MAXIMUM: &str = "deployment.kubernetes.io/max-replicas";
const SOURCE: &str = "deployment-controller";

/// Deployments are independent, so several may be looked at together; more would only wait for the API.
const WORKERS: usize = 4;

/// Adds listeners.
pub(super) fn prepare(cluster: &Arc<Cluster>) -> Start {
    let queue = Queue::new();
    super::replicaset::listen(&queue, &cluster.deployments);
    let (for_sets, deployments) = (Arc::clone(&queue), Arc::clone(&cluster.deployments));
    cluster.replica_sets.listen(move |old, new| {
        for set in [old, new].into_iter().flatten() {
            let namespace = set.metadata.namespace.clone().unwrap_or_default();
            match controller_of(&set.metadata) {
                Some(owner) if owner.kind == "Deployment" => for_sets.add(Key::new(namespace, &owner.name)),
                Some(_) => {}
                None => {
                    for deployment in deployments.in_namespace(&namespace) {
                        for_sets.add(Key::of(&*deployment));
                    }
                }
            }
        }
    });
    let cluster = Arc::clone(cluster);
    Box::new(move |tasks, shutdown| {
        tasks.spawn(queue::work(
            "deployment",
            queue,
            WORKERS,
            shutdown.clone(),
            move |key| {
                let cluster = Arc::clone(&cluster);
                async move { reconcile(&cluster, &key).await }
            },
        ));
    })
}

/// One look at one Deployment.
struct Look<'a> {
    cluster: &'a Cluster,
    key: &'a Key,
    deployment: Arc<Deployment>,
    spec: &'a DeploymentSpec,
    wish: Wish,
    /// The ReplicaSet of the present template.
    new: Option<Arc<ReplicaSet>>,
    /// All others, oldest first.
    old: Vec<Arc<ReplicaSet>>,
}

async fn reconcile(cluster: &Cluster, key: &Key) -> Result<Option<Duration>, kube::Error> {
    let Some(deployment) = cluster.deployments.get(key) else {
        return Ok(None);
    };
    let Some(spec) = deployment.spec.clone() else {
        return Ok(None);
    };
    let sets = claim(cluster, &deployment, &spec).await?;
    let wish = wish_of(&spec);
    let (mut same, mut old): (Vec<_>, Vec<_>) = sets
        .into_iter()
        .partition(|set| has_template(set, &spec.template));
    // Two with one template can only come from outside; the older one counts, as in Kubernetes.
    let new = (!same.is_empty()).then(|| same.remove(0));
    old.extend(same);
    old.sort_by_key(|set| set.metadata.creation_timestamp.clone());
    let mut look = Look {
        cluster,
        key,
        deployment: Arc::clone(&deployment),
        spec: &spec,
        wish,
        new,
        old,
    };
    if deployment.metadata.deletion_timestamp.is_none() {
        look.step().await?;
    }
    look.refresh();
    let next = look.write_status().await?;
    if deployment.metadata.deletion_timestamp.is_none() && look.is_complete() {
        look.forget_history().await?;
    }
    Ok(next)
}

fn wish_of(spec: &DeploymentSpec) -> Wish {
    let replicas = spec.replicas.unwrap_or(1).max(0);
    if is_recreate(spec) {
        return Wish {
            replicas,
            surge: 0,
            unavailable: replicas,
        };
    }
    let rolling = spec.strategy.as_ref().and_then(|it| it.rolling_update.as_ref());
    let (surge, unavailable): (Option<&IntOrString>, Option<&IntOrString>) = (
        rolling.and_then(|it| it.max_surge.as_ref()),
        rolling.and_then(|it| it.max_unavailable.as_ref()),
    );
    Wish::new(replicas, surge, unavailable)
}

fn is_recreate(spec: &DeploymentSpec) -> bool {
    spec.strategy.as_ref().and_then(|it| it.type_.as_deref()) == Some("Recreate")
}

/// The Deployment's ReplicaSets; those that match and have no owner are taken over.
async fn claim(
    cluster: &Cluster,
    deployment: &Deployment,
    spec: &DeploymentSpec,
) -> Result<Vec<Arc<ReplicaSet>>, kube::Error> {
    let namespace = deployment.metadata.namespace.clone().unwrap_or_default();
    let mut claimed = Vec::new();
    for set in cluster.replica_sets.in_namespace(&namespace) {
        if is_controlled_by(&set.metadata, deployment.metadata.uid.as_ref()) {
            claimed.push(set);
        } else if controller_of(&set.metadata).is_none()
            && set.metadata.deletion_timestamp.is_none()
            && deployment.metadata.deletion_timestamp.is_none()
            && selects(&spec.selector, set.metadata.labels.as_ref())
            && may_adopt(cluster, deployment).await?
        {
            let mut owners = set.metadata.owner_references.clone().unwrap_or_default();
            owners.push(owned_by(deployment));
            let patch = json!({ "metadata": { "uid": set.metadata.uid, "ownerReferences": owners } });
            let name = set.metadata.name.clone().unwrap_or_default();
            let api = cluster.api::<ReplicaSet>(&namespace);
            let adopted = api
                .patch(&name, &PatchParams::default(), &Patch::Merge(patch))
                .await?;
            cluster.replica_sets.observe(adopted.clone());
            claimed.push(Arc::new(adopted));
        }
    }
    claimed.sort_by_key(|set| set.metadata.creation_timestamp.clone());
    Ok(claimed)
}

fn replicas_of(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

fn available_of(set: &ReplicaSet) -> i32 {
    set.status
        .as_ref()
        .and_then(|status| status.available_replicas)
        .unwrap_or(0)
}

fn annotation(meta: &ObjectMeta, key: &str) -> Option<i64> {
    meta.annotations.as_ref()?.get(key)?.parse().ok()
}

fn seen(set: &ReplicaSet) -> Set {
    let max_replicas = annotation(&set.metadata, MAXIMUM).and_then(|it| i32::try_from(it).ok());
    // Until the ReplicaSet's controller has seen its new size, its counts are of the old one.
    let available = available_of(set).min(replicas_of(set));
    Set {
        replicas: replicas_of(set),
        available,
        max_replicas,
    }
}

impl Look<'_> {
    async fn step(&mut self) -> Result<(), kube::Error> {
        let paused = self.spec.paused == Some(true);
        if paused || self.is_being_scaled() {
            if let Some(new) = self.new.clone() {
                self.set_revision(&new).await?;
            }
            return self.resize().await;
        }
        if is_recreate(self.spec) {
            return self.recreate().await;
        }
        self.ensure_new().await?;
        let Some(new) = self.new.clone() else {
            return Ok(());
        };
        let all = self.total();
        let size = grow(self.wish, replicas_of(&new), all);
        if self.scale(&new, size).await? {
            return Ok(());
        }
        let old: Vec<Set> = self.old.iter().map(|set| seen(set)).collect();
        let kept = shrink(self.wish, &seen(&new), &old);
        for (set, kept) in self.old.clone().iter().zip(kept) {
            self.scale(set, kept).await?;
        }
        Ok(())
    }

    /// All old pods must be gone before the first new one.
    async fn recreate(&mut self) -> Result<(), kube::Error> {
        let mut waiting = false;
        for set in self.old.clone() {
            self.scale(&set, 0).await?;
        }
        for pod in self.cluster.pods.in_namespace(&self.key.namespace) {
            waiting |= !crate::cluster::is_finished(&pod)
                && self
                    .old
                    .iter()
                    .any(|set| is_controlled_by(&pod.metadata, set.metadata.uid.as_ref()));
        }
        if waiting {
            return Ok(());
        }
        self.ensure_new().await?;
        let Some(new) = self.new.clone() else {
            return Ok(());
        };
        self.scale(&new, self.wish.replicas).await?;
        Ok(())
    }

    fn total(&self) -> i32 {
        self.old.iter().chain(&self.new).map(|set| replicas_of(set)).sum()
    }

    /// Whether the Deployment's own size changed since its ReplicaSets were last scaled.
    fn is_being_scaled(&self) -> bool {
        self.old.iter().chain(&self.new).any(|set| {
            replicas_of(set) > 0
                && annotation(&set.metadata, DESIRED).is_some_and(|it| it != i64::from(self.wish.replicas))
        })
    }

    /// Changes sizes without going on with an update.
    async fn resize(&mut self) -> Result<(), kube::Error> {
        let active: Vec<Arc<ReplicaSet>> = self
            .new
            .iter()
            .chain(&self.old)
            .filter(|set| replicas_of(set) > 0)
            .cloned()
            .collect();
        if active.len() <= 1 {
            let newest = self.new.clone().or_else(|| self.old.last().cloned());
            let Some(only) = active.into_iter().next().or(newest) else {
                return Ok(());
            };
            self.scale(&only, self.wish.replicas).await?;
            return Ok(());
        }
        if self.new.as_ref().is_some_and(|new| self.is_saturated(new)) {
            for set in self.old.clone() {
                self.scale(&set, 0).await?;
            }
            return Ok(());
        }
        if is_recreate(self.spec) {
            return Ok(());
        }
        let grows = self.wish.replicas + self.wish.surge > self.total();
        let mut sorted = active;
        sorted.sort_by_key(|set| {
            let created = set
                .metadata
                .creation_timestamp
                .as_ref()
                .map_or(0, |time| time.0.as_nanosecond());
            (-replicas_of(set), if grows { -created } else { created })
        });
        let sets: Vec<Set> = sorted.iter().map(|set| seen(set)).collect();
        let status = self
            .deployment
            .status
            .as_ref()
            .and_then(|status| status.replicas)
            .unwrap_or(0);
        for (set, size) in sorted.iter().zip(share(self.wish, &sets, status)) {
            self.scale(set, size).await?;
        }
        Ok(())
    }

    fn is_saturated(&self, set: &ReplicaSet) -> bool {
        replicas_of(set) == self.wish.replicas
            && annotation(&set.metadata, DESIRED) == Some(i64::from(self.wish.replicas))
            && available_of(set) == self.wish.replicas
    }

    /// Reads again what this look has written.
    fn refresh(&mut self) {
        if let Some(deployment) = self.cluster.deployments.get(self.key) {
            self.deployment = deployment;
        }
        for set in self.old.iter_mut().chain(&mut self.new) {
            if let Some(fresh) = self.cluster.replica_sets.get(&Key::of(&**set)) {
                *set = fresh;
            }
        }
    }

    /// Deletes old, empty ReplicaSets past `revisionHistoryLimit`.
    async fn forget_history(&self) -> Result<(), kube::Error> {
        let keep = usize::try_from(self.spec.revision_history_limit.unwrap_or(10)).unwrap_or(0);
        let mut empty: Vec<&Arc<ReplicaSet>> = self
            .old
            .iter()
            .filter(|set| {
                replicas_of(set) == 0
                    && set.status.as_ref().is_none_or(|status| status.replicas == 0)
                    && set.metadata.deletion_timestamp.is_none()
                    && set.status.as_ref().and_then(|status| status.observed_generation)
                        >= set.metadata.generation
            })
            .collect();
        empty.sort_by_key(|set| annotation(&set.metadata, REVISION));
        let surplus = empty.len().saturating_sub(keep);
        let api = self.cluster.api::<ReplicaSet>(&self.key.namespace);
        for set in empty.into_iter().take(surplus) {
            let name = set.metadata.name.clone().unwrap_or_default();
            match api.delete(&name, &DeleteParams::background()).await {
                Err(error) if !is_not_found(&error) => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}
