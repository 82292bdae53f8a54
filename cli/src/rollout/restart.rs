//! `dormouse rollout restart`: new pods of the stable revision.
//!
//! The user's Deployment is asked as `kubectl rollout restart` asks it. While it is a template at zero, the autoscaler hands
//! the wish on to the pool of the revision that the template is.

use crds::Rollout;
use crds::names::CLI_MANAGER;
use crds::rollout::RolloutStatus;
use futures::TryStreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher::{self, watch_object};
use kube::{Api, ResourceExt as _};
use serde_json::json;

use super::{Order, lookup, no};
use crate::client::{connect, failed};
use crate::failure::Failure;
use crate::output;

/// Where `kubectl rollout restart` writes its wish.
const RESTARTED: &str = "kubectl.kubernetes.io/restartedAt";

/// # Errors
/// When the cluster cannot be asked, the template is not the stable revision's, or nobody hands the wish on in time.
pub(super) async fn run(order: Order) -> Result<(), Failure> {
    let connected = connect(&order.scope).await?;
    let rollout = lookup(&connected, &order.name).await?;
    let about = format!("{}/{}", connected.namespace, rollout.name_any());
    let target = rollout.spec.target_ref.name.clone();
    let pool = pool(&rollout).map_err(|why| no(format!("{about}: {why}")))?;
    let api: Api<Deployment> = Api::namespaced(connected.client.clone(), &connected.namespace);
    let at = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let annotations = json!({ RESTARTED: at });
    let body = json!({ "spec": { "template": { "metadata": { "annotations": annotations } } } });
    let params = PatchParams {
        field_manager: Some(CLI_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    api.patch(&target, &params, &Patch::Merge(&body))
        .await
        .map_err(|error| failed("ask the Deployment to restart", &connected.url, &error))?;
    if order.no_wait {
        return output::print(&format!("{about}: asked to restart\n"));
    }
    match tokio::time::timeout(order.timeout, handed_on(api, &pool, &at)).await {
        Ok(Ok(Some(pods))) => output::print(&match pods {
            0 => format!("{about}: {pool} has no pods now; the next ones are new\n"),
            1 => format!("{about}: the pod of {pool} is made anew\n"),
            pods => format!("{about}: the {pods} pods of {pool} are made anew\n"),
        }),
        Ok(Ok(None)) => Err(no(format!("{about}: the pool {pool} is gone"))),
        Ok(Err(error)) => Err(Failure::Api(format!(
            "cannot watch the Deployment at {}: {error}",
            connected.url
        ))),
        Err(_) => Err(no(format!(
            "{about}: Deployment {target} is asked to restart, and nobody has handed that on to {pool} within {:?}; \
             `dormouse doctor` says whether an autoscaler runs",
            order.timeout
        ))),
    }
}

/// The Deployment whose pods are made anew.
fn pool(rollout: &Rollout) -> Result<String, String> {
    let target = &rollout.spec.target_ref.name;
    let status = rollout.status.clone().unwrap_or_default();
    let RolloutStatus {
        adopted,
        in_place,
        stable_revision: stable,
        seen_revision: seen,
        ..
    } = status;
    // In place it moves out for that.
    if !adopted && !in_place {
        return Ok(target.clone());
    }
    if seen != stable {
        let seen = if seen.is_empty() {
            "changing".to_owned()
        } else {
            seen
        };
        return Err(format!(
            "only the revision that the template of Deployment {target} is can be restarted: the template is {seen}, and \
             {stable} is stable"
        ));
    }
    Ok(stable)
}

/// Waits until the pool's template has the wish, and returns how many pods it has. `None`: the pool is gone.
async fn handed_on(api: Api<Deployment>, pool: &str, at: &str) -> Result<Option<i32>, watcher::Error> {
    let mut changes = std::pin::pin!(watch_object(api, pool));
    while let Some(Some(deployment)) = changes.try_next().await? {
        let spec = deployment.spec.unwrap_or_default();
        let annotations = spec.template.metadata.and_then(|metadata| metadata.annotations);
        if annotations.is_some_and(|annotations| annotations.get(RESTARTED).is_some_and(|found| found == at))
        {
            return Ok(Some(spec.replicas.unwrap_or(1)));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crds::RolloutSpec;

    #[test]
    fn pods_are_restarted_of_the_revision_that_the_template_is() {
        let with = |adopted, in_place, stable: &str, seen: &str| {
            let mut rollout = Rollout::new("web", RolloutSpec::default());
            rollout.spec.target_ref.name = "app".to_owned();
            rollout.status = Some(RolloutStatus {
                adopted,
                in_place,
                stable_revision: stable.to_owned(),
                seen_revision: seen.to_owned(),
                ..RolloutStatus::default()
            });
            pool(&rollout)
        };
        assert_eq!(with(false, false, "", ""), Ok("app".to_owned()));
        assert_eq!(with(true, false, "app-1", "app-1"), Ok("app-1".to_owned()));
        let moves = with(false, true, "app-1", "app-1");
        assert_eq!(moves, Ok("app-1".to_owned()), "which it moves to");
        let refused = with(true, false, "app-1", "app-2").expect_err("another one");
        assert!(
            refused.contains("the template is app-2, and app-1 is stable"),
            "{refused}"
        );
    }
}
