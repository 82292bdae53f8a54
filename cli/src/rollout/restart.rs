//! `dormouse rollout restart`: new pods of the stable revision.
//!
//! The user's Deployment is asked as `kubectl rollout restart` asks it. While it is a template at zero, the autoscaler hands
//! the wish on to the pool of the revision that the template is.

use crds::Rollout;
use crds::rollout::RolloutStatus;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use kube::{Api, ResourceExt as _};
use serde_json::json;

use super::{Order, lookup, no};
use crate::changes::follow_one;
use crate::client::{connect, failed, merge};
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
    merge(&api, &target, &body)
        .await
        .map_err(|error| failed("ask the Deployment to restart", &connected.url, &error))?;
    if order.no_wait {
        return output::print(&format!("{about}: asked to restart\n"));
    }
    let wish = |deployment| handed_on(deployment, &at);
    let handed_on = follow_one(api, &pool, &connected, "the Deployment", wish);
    match tokio::time::timeout(order.timeout, handed_on).await {
        Ok(Ok(Some(pods))) => output::print(&match pods {
            0 => format!("{about}: {pool} has no pods now; the next ones are new\n"),
            1 => format!("{about}: the pod of {pool} is made anew\n"),
            pods => format!("{about}: the {pods} pods of {pool} are made anew\n"),
        }),
        Ok(Ok(None)) => Err(no(format!("{about}: the pool {pool} is gone"))),
        Ok(Err(failure)) => Err(failure),
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

/// How many pods a pool has whose template has the wish.
fn handed_on(pool: Deployment, at: &str) -> Option<i32> {
    let spec = pool.spec.unwrap_or_default();
    let annotations = spec.template.metadata.and_then(|metadata| metadata.annotations);
    let found = annotations
        .as_ref()
        .and_then(|annotations| annotations.get(RESTARTED));
    (found.map(String::as_str) == Some(at)).then(|| spec.replicas.unwrap_or(1))
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
