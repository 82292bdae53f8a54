//! What the activator asks of the API server besides its watches: raise `/scale` from 0 to 1 when no autoscaler does, check
//! the token of who opens a report stream, and read the ConfigMaps that dress waiting pages.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crds::names::ACTIVATOR_MANAGER;
use crds::route::{Workload, WorkloadKind};
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::autoscaling::v1::Scale;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;

use crate::hub::Hub;
use crate::pool::Pool;

/// Longest that one call may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait between two tries to wake a pool.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// An acknowledgement counts this long; leaders repeat it every half second.
pub(crate) const ACKNOWLEDGED: Duration = Duration::from_secs(2);

/// Access to the API server. Without a client, as in tests, every call fails.
#[derive(Clone)]
pub(crate) struct Cluster {
    pub(crate) client: Option<kube::Client>,
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClusterError {
    /// The API server said no.
    #[error(transparent)]
    Api(#[from] kube::Error),
    /// It did not answer.
    #[error("no answer from the API server within 5 s")]
    Timeout(#[from] tokio::time::error::Elapsed),
    /// There is none.
    #[error("no API server")]
    None,
}

impl Cluster {
    fn client(&self) -> Result<kube::Client, ClusterError> {
        self.client.clone().ok_or(ClusterError::None)
    }

    /// Raises a workload from 0 to 1. `false`: it stands above 0 already, and nothing was written.
    pub(crate) async fn raise(&self, namespace: &str, workload: &Workload) -> Result<bool, ClusterError> {
        let client = self.client()?;
        tokio::time::timeout(TIMEOUT, async {
            match workload.kind {
                WorkloadKind::Deployment => {
                    raise(Api::<Deployment>::namespaced(client, namespace), &workload.name).await
                }
                WorkloadKind::StatefulSet => {
                    raise(Api::<StatefulSet>::namespaced(client, namespace), &workload.name).await
                }
            }
        })
        .await?
    }

    /// What a ConfigMap says in words; `None`: there is none of that name.
    pub(crate) async fn config_map(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<BTreeMap<String, String>>, ClusterError> {
        let api: Api<ConfigMap> = Api::namespaced(self.client()?, namespace);
        let found = tokio::time::timeout(TIMEOUT, api.get_opt(name)).await??;
        Ok(found.map(|found| found.data.unwrap_or_default()))
    }

    /// The user to whom a token belongs; `None`: it is not valid.
    pub(crate) async fn user(&self, token: &str) -> Result<Option<String>, ClusterError> {
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: Some(token.to_owned()),
                ..TokenReviewSpec::default()
            },
            ..TokenReview::default()
        };
        let api: Api<TokenReview> = Api::all(self.client()?);
        let status = tokio::time::timeout(TIMEOUT, api.create(&PostParams::default(), &review))
            .await??
            .status;
        Ok(status
            .filter(|status| status.authenticated == Some(true))
            .and_then(|status| status.user)
            .and_then(|user| user.username))
    }
}

async fn raise<K>(api: Api<K>, name: &str) -> Result<bool, ClusterError>
where
    K: Clone + serde::de::DeserializeOwned,
{
    let now: Scale = api.get_scale(name).await?;
    if now.spec.and_then(|spec| spec.replicas).unwrap_or(0) > 0 {
        return Ok(false);
    }
    // The version makes it 0 → 1 and nothing else, whoever else writes at the same time.
    let patch = json!({
        "metadata": { "resourceVersion": now.metadata.resource_version },
        "spec": { "replicas": 1 },
    });
    let params = PatchParams {
        field_manager: Some(ACTIVATOR_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    api.patch_scale(name, &params, &Patch::Merge(&patch)).await?;
    Ok(true)
}

/// Watches over one wake: when no leader has acknowledged it in time, this activator raises `/scale` itself, again and
/// again while requests wait.
pub(crate) async fn wake_unless_acknowledged(pool: Arc<Pool>, hub: Arc<Hub>) {
    let mut pause = hub.config.wake_after;
    loop {
        tokio::time::sleep(pause).await;
        if !pool.is_waking() || pool.ready() > 0 {
            return;
        }
        if !pool.needs_wake(hub.now().saturating_sub(ACKNOWLEDGED)) {
            pause = hub.config.wake_after;
            continue;
        }
        let workload = pool.settings().workload.clone();
        pool.signalled(hub.now());
        let result = hub.cluster.raise(&pool.key.namespace, &workload).await;
        let label = match &result {
            Ok(true) => "raised",
            Ok(false) => "already",
            Err(_) => "failed",
        };
        hub.metrics.own_wakes.with_label_values(&[label]).inc();
        match result {
            Ok(true) => {
                tracing::info!(pool = %pool.key, %workload, "no autoscaler acknowledged the wake: raised 0 to 1")
            }
            Ok(false) => tracing::debug!(pool = %pool.key, %workload, "stands above 0 already"),
            Err(error) => tracing::warn!(pool = %pool.key, %workload, %error, "cannot raise 0 to 1"),
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}
