//! Rollouts, scenario 1: the first revision is adopted under traffic, what changes nothing begins nothing, and the next
//! release is let in, for all to see.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use crds::rollout::Phase;
use dormouse_tests::e2e::{self, App, Cluster, Control, Load, SOON, System};
use k8s_openapi::api::apps::v1::Deployment;
use kube::api::{Patch, PatchParams};
use serde_json::json;

/// What a person waits for, made quicker. Everything else is the default: the ramp is paced by evidence.
const QUICK: &str = r#"{"spec": {
    "strategy": {"minStepDuration": "1s"},
    "analysis": {"bake": "2s"},
    "rollback": {"keepWarm": "2s"}
}}"#;

#[test]
fn a_first_release_is_adopted_unnoticed_and_the_next_is_let_in_for_all_to_see() {
    e2e::scenario("r01", System::Pods, async |cluster: &mut Cluster| {
        cluster
            .apply(&App::new("web").plain().replicas(2).env("VERSION", "v1"))
            .await?;
        cluster.wait_replicas("web", 2, SOON).await?;
        cluster.wait_answers("web").await?;
        let mut control = Control::prepare(cluster, 2).await?;
        let steady = |urls: &[String]| e2e::steady_over(urls, 20.0);
        control.start(steady).await?;
        let load = Load::start("r01", steady(&cluster.urls("web").await?)?).await?;

        let stable = adopted(cluster).await?;
        ensure!(
            load.failed() == 0,
            "adoption was noticed: {}",
            e2e::first_errors(&load.stop().await)
        );
        nothing_begins(cluster, &load).await?;
        let restarted = restarted(cluster, &stable, &load).await?;
        let shown = let_in(cluster, &stable, &load).await?;

        load.goes_on(20, SOON).await?;
        let results = load.stop().await;
        let control = control.stop().await?;
        let seen = cluster.witness().proves("r01", &results)?;
        let status = cluster.rollout_status("web").await?;
        let (old, new) = (seen.of(&stable), seen.of(&status.stable_revision));
        ensure!(old > 0 && new > 0, "both revisions served: {old} and {new}");
        let (sent, max) = (results.ok, results.latency.max());
        Ok(format!(
            "{sent} requests, none failed, twice or lost, slowest {max:?}; {restarted}; {shown}{control}"
        ))
    });
}

/// One annotation makes the Rollout, and its first revision is not analysed.
async fn adopted(cluster: &Cluster) -> Result<String> {
    let opted = [
        ("scale-to-zero", Some("true")),
        ("min-scale", Some("1")),
        ("rollout", Some("canary")),
    ];
    cluster.annotate("web", &opted).await?;
    let status = cluster.wait_adopted("web").await?;
    ensure!(
        status.weight.is_empty() && status.attempts == 0,
        "nothing was analysed: {status:#?}"
    );
    let stable = status.stable_revision;
    cluster.wait_everything_on("web", &stable).await?;
    cluster
        .wait_replicas("web", 0, SOON)
        .await
        .context("the Deployment is a template at zero")?;
    ensure!(
        told(cluster).await?.contains(&"Initialized".to_owned()),
        "an Event says so"
    );
    Ok(stable)
}

/// `kubectl set image` to the image that is there, and an apply of what is there.
async fn nothing_begins(cluster: &Cluster, load: &Load) -> Result<()> {
    let before = cluster.api::<Deployment>().get("web").await?;
    let template = before.spec.context("a spec")?.template;
    let containers = template.spec.context("a pod")?.containers;
    let image = containers.first().and_then(|each| each.image.clone());
    cluster
        .change_container("web", json!({ "name": "app", "image": image }))
        .await?;
    cluster.release("web", &[("VERSION", "v1")]).await?;
    // Longer than a template has to rest before it is a revision.
    load.goes_on(140, Duration::from_secs(60)).await?;
    let status = cluster.rollout_status("web").await?;
    ensure!(
        status.attempts == 0 && status.phase == Phase::Idle,
        "an attempt began: {status:#?}"
    );
    Ok(())
}

/// `kubectl rollout restart` makes new pods of the same revision, and no attempt.
async fn restarted(cluster: &Cluster, stable: &str, load: &Load) -> Result<&'static str> {
    let before = pods(cluster, stable).await?;
    let at = json!({ "kubectl.kubernetes.io/restartedAt": "2026-01-01T00:00:00Z" });
    let body = json!({ "spec": { "template": { "metadata": { "annotations": at } } } });
    cluster
        .api::<Deployment>()
        .patch("web", &PatchParams::default(), &Patch::Strategic(body))
        .await?;
    let replaced = async || {
        let now = pods(cluster, stable).await.ok()?;
        (!now.is_empty() && now.iter().all(|pod| !before.contains(pod))).then_some(())
    };
    e2e::eventually("the pods are new", Duration::from_secs(60), replaced).await?;
    load.goes_on(20, SOON).await?;
    ensure!(load.failed() == 0, "a restart failed requests");
    ensure!(
        cluster.rollout_status("web").await?.attempts == 0,
        "a restart is no release"
    );
    Ok("rollout restart made new pods and no attempt")
}

async fn pods(cluster: &Cluster, revision: &str) -> Result<Vec<String>> {
    let pods = cluster.pods("default", revision).await?;
    Ok(pods.into_iter().map(|(name, _)| name).collect())
}

async fn let_in(cluster: &Cluster, stable: &str, load: &Load) -> Result<String> {
    let patch: serde_json::Value = serde_json::from_str(QUICK)?;
    cluster
        .api::<crds::Rollout>()
        .patch("web", &PatchParams::default(), &Patch::Merge(patch))
        .await?;
    cluster.release("web", &[("VERSION", "v2")]).await?;
    let limit = Duration::from_secs(90);
    let status = cluster
        .wait_rollout("web", "a weight", limit, |status| status.weight == "5%")
        .await?;
    ensure!(status.stable_revision == stable, "not promoted yet");
    let table = columns(cluster, &status.candidate_revision).await?;
    let done = cluster.wait_result("web", "", "Promoted", limit).await?;
    ensure!(done.stable_revision == status.candidate_revision, "{done:#?}");
    ensure!(done.history == [stable.to_owned()], "{done:#?}");
    load.goes_on(20, SOON).await?;
    cluster.wait_everything_on("web", &done.stable_revision).await?;
    let order = told(cluster).await?;
    ensure!(
        order.first().is_some_and(|first| first == "Initialized"),
        "nothing was wrong before: {order:?}"
    );
    let mut at = order.iter();
    for reason in [
        "Initialized",
        "NewRevision",
        "CandidateReady",
        "WeightAdvanced",
        "Baking",
        "Promoted",
    ] {
        ensure!(
            at.any(|told| told == reason),
            "{reason} in its place in {order:?}"
        );
    }
    let answer = e2e::fetch(&cluster.url("web").await?, SOON).await?;
    let version = answer
        .headers()
        .get("x-version")
        .map(|value| value.to_str().unwrap_or(""));
    ensure!(version == Some("v2"), "answered by {version:?}");
    Ok(format!("{table}; {order:?}"))
}

async fn told(cluster: &Cluster) -> Result<Vec<String>> {
    Ok(cluster
        .told("web")
        .await?
        .into_iter()
        .map(|(reason, _)| reason)
        .collect())
}

async fn columns(cluster: &Cluster, candidate: &str) -> Result<&'static str> {
    let Some(table) = e2e::kubectl(&cluster.kubeconfig, &["get", "rollouts"], "").await? else {
        return Ok("kubectl not on this machine");
    };
    for word in ["PHASE", "WEIGHT", "STABLE", "CANDIDATE", "VERDICT", candidate] {
        ensure!(
            table.contains(word),
            "kubectl get rollouts has no {word}:\n{table}"
        );
    }
    Ok("kubectl get shows phase, weight and candidate")
}
