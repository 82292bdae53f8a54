//! What users do to a Rollout in the world of the tests, and what they see of it.

use std::time::Duration;

use crds::evidence::{ArmReport, EpochReport};
use crds::names::COMMAND_ANNOTATION;
use crds::report::Report;
use crds::rollout::{Phase, RolloutStatus};
use crds::{Rollout, Route};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::Deployment;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Resource, ResourceExt};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::TICK;
use crate::path::tests::world::World;

impl World {
    pub(super) fn rollouts(&self) -> Api<Rollout> {
        Api::default_namespaced(self.client())
    }

    /// A captured Service with so many pods, and a Rollout for it.
    pub(super) async fn rolled_out(&self, replicas: u32, spec: Value) {
        self.play_scale_side();
        self.captured("web", replicas).await;
        self.create_rollout("web", "web", spec).await;
    }

    /// A Rollout of the Deployment `web` for a Service.
    pub(super) async fn create_rollout(&self, name: &str, service: &str, spec: Value) {
        let mut all = json!({ "targetRef": { "name": "web" }, "serviceRef": { "name": service } });
        for (key, value) in spec.as_object().into_iter().flatten() {
            all[key] = value.clone();
        }
        let rollout = json!({ "metadata": { "name": name }, "spec": all });
        let rollout: Rollout = serde_json::from_value(rollout).expect("a Rollout");
        self.rollouts()
            .create(&PostParams::default(), &rollout)
            .await
            .expect("it is created");
    }

    pub(super) async fn status(&self) -> RolloutStatus {
        let rollout = self.rollouts().get_opt("web").await.expect("an answer");
        rollout.and_then(|rollout| rollout.status).unwrap_or_default()
    }

    /// The candidate has half, and every activator knows.
    pub(super) async fn until_half(&self) -> RolloutStatus {
        let acked = |status: &RolloutStatus| status.step.as_ref().is_some_and(|step| step.acked_bp.is_some());
        self.until_status("half", |status| status.weight == "50%" && acked(status))
            .await
    }

    pub(super) async fn until_status(
        &self,
        what: &str,
        good: impl Fn(&RolloutStatus) -> bool,
    ) -> RolloutStatus {
        let found = timeout(Duration::from_secs(300), async {
            loop {
                let status = self.status().await;
                if good(&status) {
                    return status;
                }
                sleep(TICK).await;
            }
        });
        match found.await {
            Ok(status) => status,
            Err(_) => panic!("{what}: {:#?}\n{:#?}", self.status().await, self.writes()),
        }
    }

    pub(super) async fn idle(&self) -> RolloutStatus {
        self.until_status("idle", |status| status.phase == Phase::Idle && status.adopted)
            .await
    }

    pub(super) async fn until_rollout_gone(&self) {
        let gone = timeout(Duration::from_secs(300), async {
            while self.rollouts().get_opt("web").await.expect("an answer").is_some() {
                sleep(TICK).await;
            }
        });
        let gone = gone.await;
        assert!(
            gone.is_ok(),
            "{:#?}\n{:#?}\n{:?}",
            self.status().await,
            self.writes(),
            self.images().await
        );
    }

    /// Deletes `web` of this kind, as a user would.
    pub(super) async fn delete<K>(&self)
    where
        K: Resource<Scope = NamespaceResourceScope> + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
        K::DynamicType: Default,
    {
        let all = Api::<K>::default_namespaced(self.client());
        let deleted = all.delete("web", &DeleteParams::default()).await;
        deleted.expect("it is deleted");
    }

    pub(super) async fn set_image(&self, image: &str) {
        let container = json!([{ "name": "main", "image": image, "ports": [{ "containerPort": 8080 }] }]);
        let body = json!({ "spec": { "template": { "spec": { "containers": container } } } });
        Api::<Deployment>::default_namespaced(self.client())
            .patch("web", &PatchParams::default(), &Patch::Merge(body))
            .await
            .expect("a patch");
    }

    pub(super) async fn command(&self, verb: &str) {
        let uid = self
            .status()
            .await
            .attempt
            .map(|attempt| attempt.uid)
            .unwrap_or_default();
        let body =
            json!({ "metadata": { "annotations": { COMMAND_ANNOTATION: format!("{verb}@{uid}.1") } } });
        self.rollouts()
            .patch("web", &PatchParams::default(), &Patch::Merge(body))
            .await
            .expect("a patch");
    }

    /// What the Route says; empty without one.
    pub(super) async fn weights(&self) -> Vec<(String, u32)> {
        let all = Api::<Route>::default_namespaced(self.client());
        let route = all.get_opt("web").await.expect("an answer");
        let pools = route.map(|route| route.spec.pools).unwrap_or_default();
        let weight = |pool: crds::route::RoutePool| (pool.name, pool.weight);
        pools.into_iter().map(weight).collect()
    }

    /// The image of each Deployment, and its replicas, by name.
    pub(super) async fn images(&self) -> Vec<(String, String, i32)> {
        let all = Api::<Deployment>::default_namespaced(self.client());
        let all = all.list(&ListParams::default()).await.expect("Deployments").items;
        let one = |deployment: Deployment| {
            let name = deployment.name_any();
            let spec = deployment.spec.unwrap_or_default();
            let pod = spec.template.spec.unwrap_or_default();
            let image = pod.containers.first().and_then(|each| each.image.clone());
            (name, image.unwrap_or_default(), spec.replicas.unwrap_or(1))
        };
        all.into_iter().map(one).collect()
    }

    /// An activator's counts: the stable revision's requests and bad ones, and the candidate's.
    pub(super) async fn count(&self, stable: (u64, u64), candidate: (u64, u64)) {
        let route = Api::<Route>::default_namespaced(self.client())
            .get("web")
            .await
            .expect("a Route");
        let rollout = route.spec.rollout.expect("it is counted");
        let arm = |(requests, bad)| ArmReport {
            requests,
            bad,
            times: Vec::new(),
        };
        self.counts.line(&Report {
            activator: "activator-0".into(),
            instance: "instance-0".into(),
            epochs: vec![EpochReport {
                namespace: "default".into(),
                route: "web".into(),
                attempt: rollout.attempt,
                epoch: rollout.epoch,
                stable: arm(stable),
                candidate: arm(candidate),
                ..EpochReport::default()
            }],
            ..Report::default()
        });
    }
}
