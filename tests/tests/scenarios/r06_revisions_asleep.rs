//! Rollouts, scenario 6: four revisions of one Service, all asleep; a request wakes one of them, and so does an undo.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use crds::rollout::{Phase, RolloutStatus};
use dormouse_tests::e2e::{self, App, Cluster, Load, SOON, System};
use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt;
use serde_json::json;

/// A pod's way from its start to its listening.
const BOOT: Duration = Duration::from_millis(500);
/// With half of the traffic each, one of two pools is not asked in so many tries once in 16,384 runs.
const TRIES: usize = 15;
const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn four_revisions_sleep_at_zero_a_request_wakes_the_one_it_is_for_and_undo_holds_it_for_the_old_one() {
    e2e::scenario("r06", System::Pods, async |cluster: &mut Cluster| {
        let boot = BOOT.as_millis().to_string();
        let app = App::new("web").env("VERSION", "v1").env("BOOT_DELAY_MS", &boot);
        let spec = json!({
            "strategy": { "steps": [{ "weight": 50 }], "minStepDuration": "1s" },
            "analysis": { "bake": "0s" },
            "rollback": { "keepWarm": "0s" },
            "config": { "settle": "1s" },
        });
        let first = cluster.adopt(&app, spec).await?;
        let second = promoted(cluster, "v2").await?;
        let third = promoted(cluster, "v3").await?;
        cluster.release("web", &[("VERSION", "v4")]).await?;
        let status = cluster.wait_weight("web", "50%", LIMIT).await?;
        let fourth = status.candidate_revision.clone();
        ensure!(status.stable_revision == third, "{status:#?}");
        ensure!(
            status.history == [second.clone(), first.clone()],
            "{:?}",
            status.history
        );
        all_asleep(cluster, &[&first, &second, &third, &fourth]).await?;

        let woken = wakes(cluster, [&third, &fourth]).await?;
        let undone = undo(cluster, &first).await?;
        let loaded = undo_under_load(cluster, &first, &third).await?;
        Ok(format!("4 revisions at 0 pods; {woken}; {undone}; {loaded}"))
    });
}

/// Makes a version stable without asking anybody.
async fn promoted(cluster: &Cluster, version: &str) -> Result<String> {
    let before = cluster.rollout_status("web").await?;
    let uid = |status: &RolloutStatus| status.attempt.as_ref().map(|attempt| attempt.uid.clone());
    let last = uid(&before).unwrap_or_default();
    cluster.release("web", &[("VERSION", version)]).await?;
    cluster
        .wait_rollout("web", version, LIMIT, |status| {
            uid(status).is_some_and(|uid| uid != last) && !status.candidate_revision.is_empty()
        })
        .await?;
    cluster.command("web", "promote-full").await?;
    let done = cluster.wait_result("web", &last, "FastPromoted", LIMIT).await?;
    ensure!(done.history.first() == Some(&before.stable_revision), "{done:#?}");
    Ok(done.stable_revision)
}

/// No pods, and every Deployment at zero.
async fn all_asleep(cluster: &Cluster, revisions: &[&String]) -> Result<()> {
    cluster.wait_asleep("web", LIMIT).await?;
    let deployments = cluster.api::<Deployment>().list(&Default::default()).await?.items;
    let mut names: BTreeSet<String> = deployments.iter().map(ResourceExt::name_any).collect();
    let awake = deployments.iter().filter(|each| {
        let spec = each.spec.as_ref();
        spec.and_then(|spec| spec.replicas).unwrap_or(1) > 0
    });
    ensure!(awake.count() == 0, "a Deployment is not at zero");
    ensure!(names.remove("web"), "the user's Deployment");
    let wanted: BTreeSet<String> = revisions.iter().map(|&name| name.clone()).collect();
    ensure!(names == wanted, "pools {names:?}, wanted {wanted:?}");
    Ok(())
}

/// Single requests to pools asleep, until each of the two has been woken.
async fn wakes(cluster: &Cluster, pools: [&String; 2]) -> Result<String> {
    let (url, mut woken) = (cluster.url("web").await?, Vec::new());
    for _ in 0..TRIES {
        cluster.wait_asleep("web", LIMIT).await?;
        let pods = cluster.watch_pods("web").await?;
        ensure!(pods.lock().most == 0, "asleep");
        let start = tokio::time::Instant::now();
        let body = e2e::answer(&url, SOON).await?;
        ensure!(start.elapsed() >= BOOT, "it was held for a start");
        cluster.wait_asleep("web", LIMIT).await?;
        let seen = pods.lock().clone();
        let pool = pools
            .into_iter()
            .find(|pool| body.starts_with(&format!("{pool}-")));
        let pool = pool.with_context(|| format!("answered by {body:?}"))?;
        ensure!(
            seen.most == 1 && seen.revisions == [pool.clone()].into(),
            "only {pool} was woken: {seen:?}"
        );
        woken.push(pool);
        if pools.iter().all(|pool| woken.contains(pool)) {
            return Ok(format!(
                "{} requests woke one pod each, of both pools",
                woken.len()
            ));
        }
    }
    anyhow::bail!("{TRIES} requests woke {woken:?}")
}

/// Back to a revision that sleeps: the next request waits for its start.
async fn undo(cluster: &Cluster, first: &str) -> Result<String> {
    cluster.command("web", &format!("undo={first}")).await?;
    let done = cluster
        .wait_rollout("web", "undone", LIMIT, |status| {
            status.stable_revision == first && matches!(status.phase, Phase::Idle | Phase::Failed)
        })
        .await?;
    ensure!(
        done.attempt.as_ref().is_some_and(|attempt| attempt.fast),
        "no analysis: {done:#?}"
    );
    cluster.wait_asleep("web", LIMIT).await?;
    let start = tokio::time::Instant::now();
    let answer = e2e::fetch(&cluster.url("web").await?, SOON).await?;
    let took = start.elapsed();
    let version = answer
        .headers()
        .get("x-version")
        .and_then(|value| value.to_str().ok());
    ensure!(answer.status() == 200 && version == Some("v1"), "{answer:?}");
    ensure!(took >= BOOT, "answered after {took:?}: it was not asleep");
    Ok(format!("undo: held {} ms, answered by v1", took.as_millis()))
}

/// Back to another one that sleeps, in the middle of traffic: nobody sees an error, and it has the requests in the end.
async fn undo_under_load(cluster: &Cluster, first: &str, third: &str) -> Result<String> {
    let load = Load::start("r06", e2e::steady_over(&cluster.urls("web").await?, 20.0)?).await?;
    load.goes_on(40, SOON).await?;
    cluster.wait_replicas(third, 0, LIMIT).await?;
    cluster.command("web", &format!("undo={third}")).await?;
    cluster
        .wait_rollout("web", "undone", LIMIT, |status| status.stable_revision == third)
        .await?;
    load.goes_on(40, SOON).await?;
    let results = load.stop().await;
    let seen = cluster.witness().proves("r06", &results)?;
    let (before, after) = (seen.of(first), seen.of(third));
    ensure!(before > 0 && after >= 40, "{before} before and {after} after");
    Ok(format!(
        "undo under load: {before} before, {after} after, none failed, slowest {:?}",
        results.latency.max()
    ))
}
