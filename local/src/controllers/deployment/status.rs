//! What a Deployment's status says: counts, `Available`, `Progressing`, `ReplicaFailure`.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus};
use kube::api::{Patch, PatchParams};
use serde_json::json;

use super::Look;
use crate::cluster::now;

impl Look<'_> {
    pub(super) fn is_complete(&self) -> bool {
        let status = self.deployment.status.clone().unwrap_or_default();
        is_complete(&status, self.wish.replicas, self.deployment.metadata.generation)
    }

    /// Writes the status when it changed; when to look again.
    pub(super) async fn write_status(&mut self) -> Result<Option<Duration>, kube::Error> {
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
