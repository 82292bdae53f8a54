//! Scenario 14: a rollout by annotation, told what to do from the command line, under a client that never stops.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use crds::Rollout;
use crds::rollout::{Phase, RolloutStatus};
use dormouse_tests::e2e::{self, App, Cluster, Load, System};
use k8s_openapi::api::apps::v1::Deployment;
use kube::api::{Patch, PatchParams};
use serde_json::json;

/// Pods start, endpoints follow, and each template rests for a moment.
const STEP: Duration = Duration::from_secs(60);

#[test]
fn a_rollout_does_what_it_is_told_and_says_so_and_no_request_fails() {
    e2e::scenario(14, System::InProcess, async |cluster: &mut Cluster| {
        cluster.apply(&template("1")).await?;
        let first = wait(cluster, "the first revision", |status| idle_on(status, "")).await?;
        slow_ladder(cluster).await?;
        let load = Load::start("s14", e2e::steady_over(&cluster.urls("web").await?, 20.0)?).await?;
        refused_without_candidate(cluster).await?;
        let second = promoted_by_hand(cluster, &first).await?;
        restarted_and_undone(cluster, &first, &second).await?;
        let third = aborted_and_retried(cluster, &first).await?;
        let results = load.stop().await;
        cluster.witness().proves("s14", &results)?;
        cluster.annotate("web", &[("rollout", None)]).await?;
        e2e::wait_for(cluster.api::<Rollout>(), "the Rollout to go", STEP, |rollouts| {
            rollouts.is_empty().then_some(())
        })
        .await?;
        Ok(format!(
            "{first}, {second} and {third} came and went by commands under {} requests, none failed, twice or lost",
            results.ok
        ))
    });
}

/// The application with another template for each version.
fn template(version: &str) -> App {
    App::new("web")
        .annotate("rollout", "canary")
        .annotate("keep-alive", "5s")
        .env("VERSION", version)
}

/// Two steps that only a person lets pass, and nothing that takes its time.
async fn slow_ladder(cluster: &Cluster) -> Result<()> {
    let spec = json!({ "spec": {
        "strategy": {
            "steps": [{ "weight": 20, "pause": "1h" }, { "weight": 50, "gate": "Manual" }],
            "minStepDuration": "0s",
        },
        "analysis": { "mode": "None", "bake": "0s" },
        "config": { "settle": "1s" },
    }});
    let params = PatchParams::default();
    let rollouts = cluster.api::<Rollout>();
    rollouts.patch("web", &params, &Patch::Merge(&spec)).await?;
    Ok(())
}

async fn refused_without_candidate(cluster: &Cluster) -> Result<()> {
    let (code, _, error) = cluster.run(&["rollout", "promote", "web"]).await?;
    ensure!(
        code == 1 && error.contains("promote is ignored: there is no candidate in phase Idle"),
        "promote without a candidate: {code} {error}"
    );
    let (code, _, error) = cluster.run(&["rollout", "undo", "web", "7"]).await?;
    ensure!(
        code == 1 && error.contains("has no revision 7: there are 1"),
        "undo 7: {code} {error}"
    );
    let (code, _, error) = cluster.run(&["rollout", "get", "nobody"]).await?;
    ensure!(
        code == 1 && error.contains("there is no Rollout nobody"),
        "get nobody: {code} {error}"
    );
    Ok(())
}

/// Through the pause, the gate and to the end, each by a command. Returns the revision.
async fn promoted_by_hand(cluster: &Cluster, first: &str) -> Result<String> {
    cluster.apply(&template("2")).await?;
    let second = wait(cluster, "20 % of the second", |status| paused_at(status, "20%")).await?;
    tell(cluster, &["pause"], "paused").await?;
    tell(cluster, &["resume"], "resumed").await?;
    let (_, picture, _) = cluster.run(&["rollout", "get", "service/web"]).await?;
    for part in [
        "Paused, candidate",
        "to do ",
        "▶ 20%  · 50% (waits for promote)  · 100%",
        first,
        &second,
        "resume: resumed.",
    ] {
        ensure!(picture.contains(part), "{part:?} is not in\n{picture}");
    }
    let (_, explained, _) = cluster.run(&["explain", "web"]).await?;
    ensure!(
        explained.contains("\nRollout\n  phase         Paused, candidate"),
        "no rollout in\n{explained}"
    );
    tell(cluster, &["promote"], "goes on").await?;
    wait(cluster, "the gate", |status| {
        (paused_at(status, "20%").is_some() && status.why.contains("waits for the command promote"))
            .then(String::new)
    })
    .await?;
    tell(cluster, &["promote"], "goes on").await?;
    wait(cluster, "the second to be stable", |status| {
        idle_on(status, first)
    })
    .await
}

async fn restarted_and_undone(cluster: &Cluster, first: &str, second: &str) -> Result<()> {
    tell(cluster, &["restart"], second).await?;
    let restarted = cluster.api::<Deployment>().get(second).await?;
    let template = restarted.spec.context("a spec")?.template;
    let annotations = template
        .metadata
        .and_then(|metadata| metadata.annotations)
        .unwrap_or_default();
    ensure!(
        annotations.contains_key("kubectl.kubernetes.io/restartedAt"),
        "the pool {second} was not asked to restart"
    );
    tell(cluster, &["undo", "1"], &format!("back to {first}")).await?;
    wait(cluster, "the first to be stable again", |status| {
        idle_on(status, second)
    })
    .await?;
    replaced(cluster, second).await?;
    let (code, _, error) = cluster.run(&["rollout", "restart", "web"]).await?;
    ensure!(
        code == 1 && error.contains(&format!("the template is {second}, and {first} is stable")),
        "restart of what the template is not: {code} {error}"
    );
    Ok(())
}

/// Waits until a restart has replaced every pod. What is applied next takes our key out of the selector for a moment, in which
/// Kubernetes' own rolling update loses requests, as it does everywhere.
async fn replaced(cluster: &Cluster, pool: &str) -> Result<()> {
    e2e::wait_for(cluster.api::<Deployment>(), "the restart", STEP, |deployments| {
        let deployment = deployments.get(&format!("default/{pool}"))?;
        let status = deployment.status.as_ref()?;
        let seen = status.observed_generation >= deployment.metadata.generation;
        (seen && status.updated_replicas == status.replicas).then_some(())
    })
    .await
}

/// Taken out, tried again, and given everything. Returns the revision.
async fn aborted_and_retried(cluster: &Cluster, first: &str) -> Result<String> {
    cluster.apply(&template("3")).await?;
    let third = wait(cluster, "20 % of the third", |status| paused_at(status, "20%")).await?;
    tell(cluster, &["abort"], "taking the candidate out").await?;
    wait(cluster, "the third to be out", |status| {
        (status.phase == Phase::Failed && status.stable_revision == first).then(String::new)
    })
    .await?;
    let (_, table, _) = cluster.run(&["rollout", "get"]).await?;
    ensure!(
        table.contains("Failed") && table.contains("aborted by command"),
        "{table}"
    );
    let (_, doctor, _) = cluster.run(&["doctor", "web"]).await?;
    ensure!(
        doctor.contains("! Rollout: Failed") && doctor.contains("rollout retry web"),
        "{doctor}"
    );
    tell(cluster, &["retry"], &format!("{third} begins again")).await?;
    wait(cluster, "20 % of the third again", |status| {
        paused_at(status, "20%")
    })
    .await?;
    tell(cluster, &["promote", "--full"], "gets everything, unjudged").await?;
    wait(cluster, "the third to be stable", |status| idle_on(status, first)).await
}

/// Gives a command, which has to be obeyed with this answer.
async fn tell(cluster: &Cluster, words: &[&str], answer: &str) -> Result<()> {
    let mut line = vec!["rollout", words[0], "web"];
    line.extend(&words[1..]);
    let (code, out, error) = cluster.run(&line).await?;
    ensure!(
        code == 0 && out.contains(answer),
        "dormouse {line:?}: {code} {out} {error}"
    );
    Ok(())
}

/// Waits until the status is as wanted.
async fn wait(
    cluster: &Cluster,
    what: &str,
    found: impl Fn(&RolloutStatus) -> Option<String>,
) -> Result<String> {
    e2e::wait_for(cluster.api::<Rollout>(), what, STEP, |rollouts| {
        found(rollouts.get("default/web")?.status.as_ref()?)
    })
    .await
}

/// The stable revision, when it rests there and it is another one.
fn idle_on(status: &RolloutStatus, not: &str) -> Option<String> {
    let stable = &status.stable_revision;
    (status.phase == Phase::Idle && status.adopted && stable != not).then(|| stable.clone())
}

/// The candidate, when it waits at this weight.
fn paused_at(status: &RolloutStatus, weight: &str) -> Option<String> {
    (status.phase == Phase::Paused && status.weight == weight).then(|| status.candidate_revision.clone())
}
