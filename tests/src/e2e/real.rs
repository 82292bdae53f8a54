//! The real cluster: what `tests/cluster/run` has started and installed Dormouse on. The only place that knows where
//! it lies. Scenarios share it, so each begins and ends with nothing of its own in namespaces `default` and `control`.

use std::fmt::Debug;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use crds::route::Route;
use crds::{Rollout, names};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{Namespace, Pod, Secret, Service};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{DeleteParams, LogParams, ObjectMeta, PostParams};
use kube::{Api, Client, ResourceExt};
use serde::de::DeserializeOwned;

use super::process::descendants;
use super::wait::wait_for;

/// Where pods of the test application find the folder of the running scenario.
pub(super) const MOUNT: &str = "/e2e";
/// The test application's image.
pub(super) const IMAGE: &str = "docker.io/local/witness:dev";
/// Its program in that image.
pub(super) const PROGRAM: &str = "/witness";
/// The node's address, at which NodePorts are reached.
pub(super) const NODE_IP: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// The namespace of the control: a Service that Dormouse does not know, and which nothing happens to.
pub(super) const CONTROL_NAMESPACE: &str = "control";

/// Longest until all pods of a scenario are gone: about four end in a second.
const CLEARED: Duration = Duration::from_secs(180);

/// The cluster that runs, as its folder tells.
pub(super) struct Real {
    /// The process that everything of the cluster descends from, containers included.
    pub(super) pid: u32,
    /// What `kubectl --kubeconfig` takes.
    pub(super) kubeconfig: PathBuf,
    folder: PathBuf,
}

/// Whether scenarios are to run on a real cluster: `DORMOUSE_E2E_CLUSTER=real`.
#[must_use]
pub fn real() -> bool {
    std::env::var("DORMOUSE_E2E_CLUSTER").is_ok_and(|cluster| cluster == "real")
}

impl Real {
    /// The running cluster.
    pub(super) fn attach() -> Result<Self> {
        let folder = std::env::var("DORMOUSE_CLUSTER_DIR").unwrap_or("/var/lib/dormouse-cluster".to_owned());
        let folder = PathBuf::from(folder);
        let init = std::fs::read_to_string(folder.join("init.pid"))
            .with_context(|| format!("no cluster runs in {}: tests/cluster/up", folder.display()))?;
        let kubeconfig = folder.join("admin.kubeconfig");
        Ok(Self {
            pid: init.trim().parse()?,
            kubeconfig,
            folder,
        })
    }

    /// A folder for scenario `name`, which its pods can reach.
    pub(super) fn scenario_folder(&self, name: &str) -> PathBuf {
        self.folder
            .join("e2e")
            .join(format!("{}-{name}", std::process::id()))
    }

    /// The process of one of Kubernetes' own parts, such as `kube-apiserver` or `etcd`.
    pub(super) fn component(&self, name: &str) -> Option<u32> {
        descendants(self.pid).into_iter().find(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            // One binary is all Kubernetes parts, and its first argument says which; etcd is a program of its own.
            line.split(|byte| *byte == 0)
                .take(2)
                .any(|word| Path::new(&*String::from_utf8_lossy(word)).file_name() == Some(name.as_ref()))
        })
    }

    /// Deletes whatever a scenario has left, and waits until it is gone.
    pub(super) async fn clear(client: &Client) -> Result<()> {
        let namespaces: Api<Namespace> = Api::all(client.clone());
        if namespaces.get_opt(CONTROL_NAMESPACE).await?.is_none() {
            let control = Namespace {
                metadata: ObjectMeta {
                    name: Some(CONTROL_NAMESPACE.to_owned()),
                    ..ObjectMeta::default()
                },
                ..Namespace::default()
            };
            namespaces.create(&PostParams::default(), &control).await?;
        }
        // While what they roll out is still there to be given back.
        delete_all::<Rollout>(client, "default").await?;
        let rollouts = Api::<Rollout>::namespaced(client.clone(), "default");
        wait_for(rollouts, "no Rollouts", CLEARED, |rollouts| {
            // Those of a Service's annotation go with the Service.
            let own = |rollout: &&Rollout| rollout.owner_references().is_empty();
            rollouts.values().find(own).is_none().then_some(())
        })
        .await?;
        for namespace in ["default", CONTROL_NAMESPACE] {
            delete_all::<HorizontalPodAutoscaler>(client, namespace).await?;
            delete_all::<Service>(client, namespace).await?;
            delete_all::<Deployment>(client, namespace).await?;
            delete_all::<Secret>(client, namespace).await?;
            delete_all::<RoleBinding>(client, namespace).await?;
            delete_all::<Role>(client, namespace).await?;
        }
        for namespace in ["default", CONTROL_NAMESPACE] {
            let pods = Api::<Pod>::namespaced(client.clone(), namespace);
            wait_for(pods, "no pods", CLEARED, |pods| pods.is_empty().then_some(())).await?;
        }
        let routes = Api::<Route>::namespaced(client.clone(), "default");
        wait_for(routes, "no Routes", CLEARED, |routes| {
            routes.is_empty().then_some(())
        })
        .await
    }

    /// Replaces those of the system's pods that were killed: each kill makes the kubelet wait longer before it starts
    /// the container again, and the next scenario is not about that.
    pub(super) async fn replace_killed(client: &Client) -> Result<()> {
        let pods: Api<Pod> = Api::namespaced(client.clone(), names::SYSTEM_NAMESPACE);
        for pod in pods.list(&Default::default()).await? {
            let statuses = pod
                .status
                .as_ref()
                .and_then(|status| status.container_statuses.as_ref());
            if statuses
                .into_iter()
                .flatten()
                .any(|status| status.restart_count > 0)
            {
                pods.delete(&pod.name_any(), &DeleteParams::default()).await?;
            }
        }
        Ok(())
    }

    /// The last `lines` lines of each pod of the system.
    pub(super) async fn log(client: &Client, lines: i64) -> String {
        let pods: Api<Pod> = Api::namespaced(client.clone(), names::SYSTEM_NAMESPACE);
        let mut text = String::new();
        for pod in pods.list(&Default::default()).await.into_iter().flatten() {
            let parameters = LogParams {
                tail_lines: Some(lines),
                ..LogParams::default()
            };
            let log = pods.logs(&pod.name_any(), &parameters).await;
            let log = log.unwrap_or_else(|error| error.to_string());
            text.push_str(&format!("--- {}\n{log}\n", pod.name_any()));
        }
        text
    }
}

async fn delete_all<K>(client: &Client, namespace: &str) -> Result<()>
where
    K: kube::Resource<Scope = kube::core::NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
    K::DynamicType: Default,
{
    let api = Api::<K>::namespaced(client.clone(), namespace);
    for object in api.list(&Default::default()).await? {
        // The API server's own Service; and what has an owner goes with it.
        if object.name_any() == "kubernetes" || !object.owner_references().is_empty() {
            continue;
        }
        match api.delete(&object.name_any(), &DeleteParams::default()).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            deleted => drop(deleted?),
        }
    }
    Ok(())
}
