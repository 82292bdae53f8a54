//! Rollouts, scenario 9: `targetMode: Paused`. The first revision stays in the user's own pods, whatever is applied, until it
//! sleeps or the next one begins; and the Deployment goes on when the Rollout goes.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use crds::Rollout;
use crds::names::PAUSED_ANNOTATION;
use crds::rollout::{Phase, RolloutStatus};
use dormouse_tests::e2e::{self, App, Cluster, Load, SOON, System};
use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt;
use kube::api::DeleteParams;
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(60);
/// Longer than the pods have to end once they are told to.
const LONG: Duration = Duration::from_secs(8);

#[test]
fn a_paused_deployment_keeps_its_pods_until_it_sleeps_or_changes_and_goes_on_in_the_end() {
    e2e::scenario("r09", System::Pods, async |cluster: &mut Cluster| {
        // The one sleeps after it has been adopted, and not before.
        for (name, least) in [("web", "2"), ("sleeper", "0")] {
            let app = App::new(name)
                .annotate("min-scale", least)
                .annotate("keep-alive", "12s");
            cluster.apply(&app.replicas(2).env("VERSION", "v1")).await?;
        }
        let before = pods(cluster, "web").await?;
        cluster.wait_answers("web").await?;
        let load = Load::start("r09", e2e::steady_over(&cluster.urls("web").await?, 20.0)?).await?;
        for name in ["web", "sleeper"] {
            cluster.apply_rollout(name, spec()).await?;
        }
        let first = in_place(cluster, "web").await?;
        ensure!(pods(cluster, "web").await? == before, "a pod was made anew");
        let (slept, ()) = tokio::try_join!(sleeps_and_wakes(cluster), restarts(cluster, &load))?;

        let second = let_in(cluster, &load).await?;
        given_back(cluster, "web").await?;
        load.goes_on(20, SOON).await?;
        let results = load.stop().await;
        let seen = cluster.witness().proves("r09", &results)?;
        let by = [seen.of("web"), seen.of(&first), seen.of(&second)];
        ensure!(by.iter().all(|&requests| requests > 0), "answered by {by:?}");
        Ok(format!(
            "adopted without a new pod; {slept}; {} requests by the Deployment, its pool and the next revision, {by:?}, none \
             failed, one of {} s over the move included; given back, the Deployment goes on",
            results.ok,
            LONG.as_secs()
        ))
    });
}

fn spec() -> Value {
    json!({
        "targetMode": "Paused",
        "strategy": { "steps": [{ "weight": 50 }], "minStepDuration": "1s" },
        "analysis": { "mode": "None", "bake": "0s" },
        "rollback": { "keepWarm": "0s" },
        "config": { "settle": "1s" },
    })
}

async fn pods(cluster: &Cluster, name: &str) -> Result<BTreeSet<String>> {
    cluster.wait_replicas(name, 2, SOON).await?;
    let ready = async || {
        let pods = cluster.pods("default", name).await.ok()?;
        (pods.len() == 2).then_some(pods)
    };
    let pods = e2e::eventually("two pods", SOON, ready).await?;
    Ok(pods.into_iter().map(|(name, _)| name).collect())
}

/// Waits until the first revision serves in the Deployment, which is paused by us.
async fn in_place(cluster: &Cluster, name: &str) -> Result<String> {
    let status = cluster
        .wait_rollout(name, "in place", LIMIT, |status| {
            status.in_place && status.phase == Phase::Idle
        })
        .await?;
    let deployment = cluster.api::<Deployment>().get(name).await?;
    let paused = deployment.spec.as_ref().and_then(|spec| spec.paused);
    ensure!(paused == Some(true), "{name} is not paused");
    ensure!(
        deployment.annotations().contains_key(PAUSED_ANNOTATION),
        "{name}: whose pause?"
    );
    // What we have changed is nobody's: the same manifest is applied by another manager, with pauses of its own.
    let nobody = async || {
        let deployment = cluster.api::<Deployment>().get(name).await.ok()?;
        let ours = deployment.managed_fields().iter().any(|entry| {
            let fields = entry.fields_v1.as_ref();
            fields.is_some_and(|fields| !fields.0["f:spec"]["f:paused"].is_null())
        });
        (!ours).then_some(())
    };
    e2e::eventually("the pause belongs to nobody", SOON, nobody).await?;
    Ok(status.stable_revision)
}

/// Moved out, with the Deployment a template at zero that is still paused.
async fn moved(cluster: &Cluster, name: &str) -> Result<RolloutStatus> {
    let status = cluster
        .wait_rollout(name, "moved", LIMIT, |status| {
            status.adopted && !status.in_place && status.phase != Phase::Adopting
        })
        .await?;
    cluster.wait_replicas(name, 0, SOON).await?;
    let told = cluster.told(name).await?;
    ensure!(told.iter().any(|(reason, _)| reason == "Moving"), "{told:?}");
    Ok(status)
}

/// Without requests the revision gets a pool of its own at zero, and the next request wakes that.
async fn sleeps_and_wakes(cluster: &Cluster) -> Result<String> {
    in_place(cluster, "sleeper").await?;
    let stable = moved(cluster, "sleeper").await?.stable_revision;
    cluster.wait_asleep("sleeper", LIMIT).await?;
    let body = e2e::answer(&cluster.url("sleeper").await?, SOON).await?;
    ensure!(body.starts_with(&format!("{stable}-")), "answered by {body:?}");
    Ok("one that slept has moved out and was woken in its own pool".to_owned())
}

/// What is applied again changes nothing; a request outlives the move; a restart is a move.
async fn restarts(cluster: &Cluster, load: &Load) -> Result<()> {
    let url = format!("{}/delay/{}", cluster.url("web").await?, LONG.as_millis());
    let long = tokio::spawn(async move { e2e::answer(&url, LONG * 3).await });
    load.goes_on(20, SOON).await?;
    ensure!(
        cluster.rollout_status("web").await?.in_place,
        "nothing has moved it"
    );
    let (code, out, error) = cluster.run(&["rollout", "restart", "web"]).await?;
    ensure!(code == 0, "restart: {code} {out} {error}");
    moved(cluster, "web").await?;
    let answer = long.await.context("the long request")??;
    ensure!(!answer.is_empty(), "the long request was answered by nobody");
    Ok(())
}

/// The next one is let in, and nothing of it has run before.
async fn let_in(cluster: &Cluster, load: &Load) -> Result<String> {
    cluster.release("web", &[("VERSION", "v2")]).await?;
    let done = cluster.wait_result("web", "", "Promoted", LIMIT).await?;
    cluster.wait_everything_on("web", &done.stable_revision).await?;
    load.goes_on(20, SOON).await?;
    let deployment = cluster.api::<Deployment>().get("web").await?;
    let spec = deployment.spec.context("a spec")?;
    ensure!(
        (spec.paused, spec.replicas) == (Some(true), Some(0)),
        "a paused template at zero: {spec:?}"
    );
    Ok(done.stable_revision)
}

/// Without its Rollout the Deployment runs the stable template, goes on, and nobody owns what we gave back.
async fn given_back(cluster: &Cluster, name: &str) -> Result<()> {
    cluster
        .api::<Rollout>()
        .delete(name, &DeleteParams::default())
        .await?;
    let gone = async || {
        let there = cluster.api::<Rollout>().get_opt(name).await.ok()?;
        let deployment = cluster.api::<Deployment>().get(name).await.ok()?;
        let paused = deployment.spec.as_ref().and_then(|spec| spec.paused);
        let noted = deployment.annotations().contains_key(PAUSED_ANNOTATION);
        (there.is_none() && paused != Some(true) && !noted).then_some(())
    };
    e2e::eventually("the Deployment goes on", LIMIT, gone).await?;
    let answer = e2e::fetch(&cluster.url(name).await?, SOON).await?;
    let version = answer
        .headers()
        .get("x-version")
        .and_then(|value| value.to_str().ok());
    ensure!(version == Some("v2"), "{answer:?}");
    Ok(())
}
