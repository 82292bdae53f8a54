//! Deployment: ReplicaSets, one for each template, and the steps from one to the next.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{
    Deployment, DeploymentCondition, DeploymentSpec, DeploymentStatus, ReplicaSet, ReplicaSetSpec,
};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::core::ObjectMeta;
use serde_json::json;

use super::Start;
use super::deployment_plan::{Set, Wish, grow, share, shrink};
use crate::cluster::{
    Cluster, controller_of, is_conflict, is_controlled_by, is_not_found, now, owned_by, selects,
};
use crate::informer::Key;
use crate::queue::{self, Queue};

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

/// Whether a ReplicaSet was made from this template.
fn has_template(set: &ReplicaSet, template: &PodTemplateSpec) -> bool {
    let Some(mut have) = set.spec.as_ref().and_then(|spec| spec.template.clone()) else {
        return false;
    };
    let mut want = template.clone();
    for template in [&mut have, &mut want] {
        if let Some(labels) = template.metadata.as_mut().and_then(|meta| meta.labels.as_mut()) {
            labels.remove(HASH_LABEL);
        }
    }
    have == want
}

/// A short name for a template, in the letters that Kubernetes uses: no vowels, so no words.
fn hash(template: &PodTemplateSpec, collisions: i32) -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let text = serde_json::to_string(template).unwrap_or_default();
    let salt = collisions.to_le_bytes();
    // FNV-1a: it must only tell templates apart; a collision is found and counted.
    let mut rest = text
        .bytes()
        .chain(salt.into_iter().filter(|_| collisions > 0))
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    (0..10)
        .map(|_| {
            let letter = LETTERS[usize::try_from(rest % LETTERS.len() as u64).unwrap_or(0)];
            rest /= LETTERS.len() as u64;
            char::from(letter)
        })
        .collect()
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
        self.ensure_new(None).await?;
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
        self.ensure_new(None).await?;
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

    /// Finds or makes the ReplicaSet of the present template, with the highest revision.
    async fn ensure_new(&mut self, size: Option<i32>) -> Result<(), kube::Error> {
        if let Some(new) = self.new.clone() {
            return self.set_revision(&new).await;
        }
        let collisions = self
            .deployment
            .status
            .as_ref()
            .and_then(|status| status.collision_count)
            .unwrap_or(0);
        let hash = hash(&self.spec.template, collisions);
        let size = size.unwrap_or_else(|| grow(self.wish, 0, self.total()));
        let set = self.make(&hash, size);
        let api = self.cluster.api::<ReplicaSet>(&self.key.namespace);
        match api.create(&PostParams::default(), &set).await {
            Ok(made) => {
                self.cluster.replica_sets.observe(made.clone());
                let name = made.metadata.name.clone().unwrap_or_default();
                self.new = Some(Arc::new(made));
                let message = format!("Scaled up replica set {name} from 0 to {size}");
                if size > 0 {
                    self.cluster
                        .event(&*self.deployment, false, "ScalingReplicaSet", &message, SOURCE)
                        .await;
                }
                let revision = self.revision();
                self.copy_revision(revision).await
            }
            // Another template of the same hash: count it, and the next look takes another hash.
            Err(error) if is_conflict(&error) => {
                let patch = json!({ "status": { "collisionCount": collisions + 1 } });
                let api = self.cluster.api::<Deployment>(&self.key.namespace);
                let name = set.metadata.name.clone().unwrap_or_default();
                let taken = self
                    .cluster
                    .replica_sets
                    .get(&Key::new(&self.key.namespace, name));
                if taken.is_some() {
                    let patched = api
                        .patch_status(&self.key.name, &PatchParams::default(), &Patch::Merge(patch))
                        .await?;
                    self.cluster.deployments.observe(patched);
                }
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    fn make(&self, hash: &str, size: i32) -> ReplicaSet {
        let mut template = self.spec.template.clone();
        let labels = template
            .metadata
            .get_or_insert_default()
            .labels
            .get_or_insert_default();
        labels.insert(HASH_LABEL.to_owned(), hash.to_owned());
        let labels = labels.clone();
        let mut selector = self.spec.selector.clone();
        selector
            .match_labels
            .get_or_insert_default()
            .insert(HASH_LABEL.to_owned(), hash.to_owned());
        let mut annotations: BTreeMap<String, String> =
            self.deployment.metadata.annotations.clone().unwrap_or_default();
        annotations.retain(|key, _| key != "kubectl.kubernetes.io/last-applied-configuration");
        annotations.insert(REVISION.to_owned(), self.revision().to_string());
        annotations.extend(self.size_annotations());
        ReplicaSet {
            metadata: ObjectMeta {
                name: Some(format!("{}-{hash}", self.key.name)),
                namespace: Some(self.key.namespace.clone()),
                labels: Some(labels),
                annotations: Some(annotations),
                owner_references: Some(vec![owned_by(&*self.deployment)]),
                ..Default::default()
            },
            spec: Some(ReplicaSetSpec {
                replicas: Some(size),
                min_ready_seconds: self.spec.min_ready_seconds,
                selector,
                template: Some(template),
            }),
            status: None,
        }
    }

    /// One more than every older ReplicaSet's.
    fn revision(&self) -> i64 {
        self.old
            .iter()
            .filter_map(|set| annotation(&set.metadata, REVISION))
            .max()
            .unwrap_or(0)
            + 1
    }

    async fn set_revision(&mut self, new: &ReplicaSet) -> Result<(), kube::Error> {
        let have = annotation(&new.metadata, REVISION).unwrap_or(0);
        let revision = self.revision().max(have);
        let ready = self.spec.min_ready_seconds.unwrap_or(0);
        let other_ready = new
            .spec
            .as_ref()
            .and_then(|spec| spec.min_ready_seconds)
            .unwrap_or(0)
            != ready;
        if have != revision || other_ready {
            let patch = json!({
                "metadata": { "annotations": { REVISION: revision.to_string() } },
                "spec": { "minReadySeconds": ready },
            });
            self.new = self.patch_set(new, patch).await?.map(Arc::new);
        }
        self.copy_revision(revision).await
    }

    async fn copy_revision(&mut self, revision: i64) -> Result<(), kube::Error> {
        if annotation(&self.deployment.metadata, REVISION) == Some(revision) {
            return Ok(());
        }
        let patch = json!({ "metadata": { "annotations": { REVISION: revision.to_string() } } });
        let api = self.cluster.api::<Deployment>(&self.key.namespace);
        let patched = api
            .patch(&self.key.name, &PatchParams::default(), &Patch::Merge(patch))
            .await?;
        self.cluster.deployments.observe(patched);
        Ok(())
    }

    fn size_annotations(&self) -> [(String, String); 2] {
        let most = self.wish.replicas
            + if is_recreate(self.spec) {
                0
            } else {
                self.wish.surge
            };
        [
            (DESIRED.to_owned(), self.wish.replicas.to_string()),
            (MAXIMUM.to_owned(), most.to_string()),
        ]
    }

    /// Gives a ReplicaSet a size; whether that changed it.
    async fn scale(&mut self, set: &Arc<ReplicaSet>, size: i32) -> Result<bool, kube::Error> {
        let before = replicas_of(set);
        let annotations = self.size_annotations();
        let noted = annotations
            .iter()
            .all(|(key, value)| set.metadata.annotations.as_ref().and_then(|it| it.get(key)) == Some(value));
        if before == size && (noted || size == 0) {
            return Ok(false);
        }
        let annotations: BTreeMap<String, String> = annotations.into();
        let patch = json!({ "metadata": { "annotations": annotations }, "spec": { "replicas": size } });
        let Some(patched) = self.patch_set(set, patch).await? else {
            return Ok(false);
        };
        let name = patched.metadata.name.clone().unwrap_or_default();
        if self
            .new
            .as_ref()
            .is_some_and(|new| new.metadata.uid == patched.metadata.uid)
        {
            self.new = Some(Arc::new(patched));
        } else if let Some(old) = self
            .old
            .iter_mut()
            .find(|old| old.metadata.uid == patched.metadata.uid)
        {
            *old = Arc::new(patched);
        }
        if before != size {
            let direction = if size > before { "up" } else { "down" };
            let message = format!("Scaled {direction} replica set {name} from {before} to {size}");
            self.cluster
                .event(&*self.deployment, false, "ScalingReplicaSet", &message, SOURCE)
                .await;
        }
        Ok(before != size)
    }

    async fn patch_set(
        &self,
        set: &ReplicaSet,
        mut patch: serde_json::Value,
    ) -> Result<Option<ReplicaSet>, kube::Error> {
        patch["metadata"]["uid"] = json!(set.metadata.uid);
        let name = set.metadata.name.clone().unwrap_or_default();
        let api = self.cluster.api::<ReplicaSet>(&self.key.namespace);
        match api
            .patch(&name, &PatchParams::default(), &Patch::Merge(patch))
            .await
        {
            Ok(patched) => {
                self.cluster.replica_sets.observe(patched.clone());
                Ok(Some(patched))
            }
            Err(error) if is_not_found(&error) => Ok(None),
            Err(error) => Err(error),
        }
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

    fn is_complete(&self) -> bool {
        let status = self.deployment.status.clone().unwrap_or_default();
        is_complete(&status, self.wish.replicas, self.deployment.metadata.generation)
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

    /// Writes the status when it changed; when to look again.
    async fn write_status(&mut self) -> Result<Option<Duration>, kube::Error> {
        let old = self.deployment.status.clone().unwrap_or_default();
        let mut new = self.counts(&old);
        let next = self.conditions(&old, &mut new);
        if new != old {
            let patch = json!({ "metadata": { "uid": self.deployment.metadata.uid }, "status": new });
            let api = self.cluster.api::<Deployment>(&self.key.namespace);
            let patched = api
                .patch_status(&self.key.name, &PatchParams::default(), &Patch::Merge(patch))
                .await?;
            self.cluster.deployments.observe(patched.clone());
            self.deployment = Arc::new(patched);
        }
        Ok(next)
    }

    fn counts(&self, old: &DeploymentStatus) -> DeploymentStatus {
        let sets = || self.old.iter().chain(&self.new);
        let sum = |of: fn(&k8s_openapi::api::apps::v1::ReplicaSetStatus) -> i32| -> i32 {
            sets().filter_map(|set| set.status.as_ref()).map(of).sum()
        };
        let available = sum(|status| status.available_replicas.unwrap_or(0));
        let updated = self
            .new
            .iter()
            .filter_map(|set| set.status.as_ref())
            .map(|status| status.replicas)
            .sum();
        DeploymentStatus {
            replicas: Some(sum(|status| status.replicas)),
            updated_replicas: Some(updated),
            ready_replicas: Some(sum(|status| status.ready_replicas.unwrap_or(0))),
            available_replicas: Some(available),
            unavailable_replicas: Some((self.total() - available).max(0)),
            terminating_replicas: Some(sum(|status| status.terminating_replicas.unwrap_or(0))),
            observed_generation: self.deployment.metadata.generation,
            collision_count: old.collision_count,
            conditions: old.conditions.clone(),
        }
    }

    fn conditions(&self, old: &DeploymentStatus, new: &mut DeploymentStatus) -> Option<Duration> {
        let available = new.available_replicas.unwrap_or(0);
        let conditions = new.conditions.get_or_insert_default();
        if available >= self.wish.replicas - self.wish.unavailable {
            set(
                conditions,
                "Available",
                true,
                "MinimumReplicasAvailable",
                "Deployment has minimum availability.",
            );
        } else {
            let message = "Deployment does not have minimum availability.";
            set(
                conditions,
                "Available",
                false,
                "MinimumReplicasUnavailable",
                message,
            );
        }
        let failure = self.old.iter().chain(&self.new).find_map(|set| {
            let conditions = set.status.as_ref()?.conditions.as_ref()?;
            conditions.iter().find(|it| it.type_ == "ReplicaFailure").cloned()
        });
        match failure {
            Some(it) => set(
                conditions,
                "ReplicaFailure",
                true,
                it.reason.as_deref().unwrap_or("FailedCreate"),
                it.message.as_deref().unwrap_or_default(),
            ),
            None => conditions.retain(|it| it.type_ != "ReplicaFailure"),
        }
        self.progress(old, new)
    }

    fn progress(&self, old: &DeploymentStatus, new: &mut DeploymentStatus) -> Option<Duration> {
        let deadline = self.spec.progress_deadline_seconds.filter(|it| *it < i32::MAX)?;
        let name = self
            .new
            .as_ref()
            .and_then(|set| set.metadata.name.clone())
            .unwrap_or_default();
        let complete = is_complete(new, self.wish.replicas, self.deployment.metadata.generation);
        let advanced = advanced(old, new);
        let conditions = new.conditions.get_or_insert_default();
        if self.spec.paused == Some(true) {
            let reason = conditions
                .iter()
                .find(|it| it.type_ == "Progressing")
                .and_then(|it| it.reason.clone());
            if reason.as_deref() != Some("ProgressDeadlineExceeded") {
                set_as(
                    conditions,
                    "Progressing",
                    "Unknown",
                    "DeploymentPaused",
                    "Deployment is paused",
                );
            }
            return None;
        }
        let before = conditions.iter().find(|it| it.type_ == "Progressing").cloned();
        let was = before
            .as_ref()
            .and_then(|it| it.reason.clone())
            .unwrap_or_default();
        if complete {
            let message = format!("ReplicaSet \"{name}\" has successfully progressed.");
            set(
                conditions,
                "Progressing",
                true,
                "NewReplicaSetAvailable",
                &message,
            );
            return None;
        }
        let message = format!("ReplicaSet \"{name}\" is progressing.");
        let since = before
            .as_ref()
            .and_then(|it| it.last_update_time.as_ref())
            .map_or_else(Timestamp::now, |it| it.0);
        let left =
            jiff::SignedDuration::from_secs(i64::from(deadline)) - Timestamp::now().duration_since(since);
        if before.is_none() || advanced || was == "DeploymentPaused" || was == "NewReplicaSetAvailable" {
            set(conditions, "Progressing", true, "ReplicaSetUpdated", &message);
            if let Some(it) = conditions.iter_mut().find(|it| it.type_ == "Progressing") {
                it.last_update_time = Some(now());
            }
            return Some(crate::cluster::seconds(i64::from(deadline)));
        }
        if was == "ProgressDeadlineExceeded" {
            return None;
        }
        if left <= jiff::SignedDuration::ZERO {
            let message = format!("ReplicaSet \"{name}\" has timed out progressing.");
            set(
                conditions,
                "Progressing",
                false,
                "ProgressDeadlineExceeded",
                &message,
            );
            return None;
        }
        Some(left.unsigned_abs())
    }
}

fn is_complete(status: &DeploymentStatus, replicas: i32, generation: Option<i64>) -> bool {
    status.updated_replicas.unwrap_or(0) == replicas
        && status.replicas.unwrap_or(0) == replicas
        && status.available_replicas.unwrap_or(0) == replicas
        && status.observed_generation >= generation
}

fn advanced(old: &DeploymentStatus, new: &DeploymentStatus) -> bool {
    let left = |it: &DeploymentStatus| it.replicas.unwrap_or(0) - it.updated_replicas.unwrap_or(0);
    new.updated_replicas.unwrap_or(0) > old.updated_replicas.unwrap_or(0)
        || left(new) < left(old)
        || new.ready_replicas.unwrap_or(0) > old.ready_replicas.unwrap_or(0)
        || new.available_replicas.unwrap_or(0) > old.available_replicas.unwrap_or(0)
}

fn set(conditions: &mut Vec<DeploymentCondition>, kind: &str, value: bool, reason: &str, message: &str) {
    set_as(
        conditions,
        kind,
        if value { "True" } else { "False" },
        reason,
        message,
    );
}

/// Sets a condition. Its times change only with its status and reason, as in Kubernetes.
fn set_as(conditions: &mut Vec<DeploymentCondition>, kind: &str, status: &str, reason: &str, message: &str) {
    let before = conditions.iter().position(|it| it.type_ == kind);
    let mut transition = Some(now());
    if let Some(at) = before {
        let it = &conditions[at];
        if it.status == status && it.reason.as_deref() == Some(reason) {
            return;
        }
        if it.status == status {
            transition.clone_from(&it.last_transition_time);
        }
        conditions.remove(at);
    }
    conditions.push(DeploymentCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_transition_time: transition,
        last_update_time: Some(now()),
    });
}
