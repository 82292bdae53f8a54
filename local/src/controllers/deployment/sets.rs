//! A Deployment's ReplicaSets: found by template, made, given a size and a revision.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::ObjectMeta;
use serde_json::json;

use super::plan::grow;
use super::{DESIRED, HASH_LABEL, Look, MAXIMUM, REVISION, SOURCE, annotation, is_recreate, replicas_of};
use crate::cluster::{is_conflict, is_not_found, owned_by};
use crate::informer::Key;

/// Whether a ReplicaSet was made from this template.
pub(super) fn has_template(set: &ReplicaSet, template: &PodTemplateSpec) -> bool {
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

impl Look<'_> {
    /// Finds or makes the ReplicaSet of the present template, with the highest revision.
    pub(super) async fn ensure_new(&mut self) -> Result<(), kube::Error> {
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
        let size = grow(self.wish, 0, self.total());
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

    pub(super) async fn set_revision(&mut self, new: &ReplicaSet) -> Result<(), kube::Error> {
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
    pub(super) async fn scale(&mut self, set: &Arc<ReplicaSet>, size: i32) -> Result<bool, kube::Error> {
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
}
