//! Rollouts, scenario 4: a release that nobody asks is neither let in nor thrown out, and costs nothing.

use std::time::Duration;

use anyhow::{Context, ensure};
use crds::rollout::RolloutStatus;
use dormouse_tests::e2e::{self, App, Cluster, Load, SOON, System};
use serde_json::json;

#[test]
fn a_release_without_traffic_waits_asleep_says_what_is_missing_and_is_let_in_when_traffic_comes() {
    e2e::scenario("r04", System::Pods, async |cluster: &mut Cluster| {
        let app = App::new("web");
        let spec = json!({
            "strategy": { "minStepDuration": "1s" },
            "analysis": { "bake": "2s" },
            "rollback": { "keepWarm": "0s" },
            "config": { "settle": "1s" },
        });
        let stable = cluster.adopt(&app, spec).await?;
        cluster.release("web", &[("VERSION", "v2")]).await?;
        let limit = Duration::from_secs(60);
        let waiting = cluster.wait_weight("web", "5%", limit).await?;
        cluster.wait_asleep("web", limit).await?;
        let pods = cluster.watch_pods("web").await?;
        let moved = |status: &RolloutStatus| {
            status.candidate_revision != waiting.candidate_revision || status.weight != "5%"
        };
        // Long enough for a rule that takes silence for failure: six of its looks, at two seconds each.
        let moves = cluster.wait_rollout("web", "it changes its mind", limit, moved);
        let quiet = tokio::time::timeout(Duration::from_secs(12), moves).await;
        ensure!(quiet.is_err(), "without a request: {quiet:#?}");
        let status = cluster.rollout_status("web").await?;
        ensure!(!moved(&status), "without a request: {status:#?}");
        ensure!(
            status.why.contains("0 of its 0 requests") && status.why.contains("more good ones let it in"),
            "it says what is missing: {:?}",
            status.why
        );
        ensure!(pods.lock().most == 0, "it waits asleep: {pods:?}");

        let load = Load::start("r04", e2e::steady_over(&cluster.urls("web").await?, 20.0)?).await?;
        let done = cluster
            .wait_result("web", "", "Promoted", Duration::from_secs(120))
            .await?;
        ensure!(done.stable_revision == waiting.candidate_revision, "{done:#?}");
        load.goes_on(20, SOON).await?;
        let results = load.stop().await;
        let seen = cluster.witness().proves("r04", &results)?;
        let (old, new) = (seen.of(&stable), seen.of(&done.stable_revision));
        let evidence = done.evidence.context("evidence")?;
        Ok(format!(
            "asleep: \"{}\"; then {} requests ({old} stable, {new} candidate), none failed, let in after {} of its own",
            status.why, results.ok, evidence.requests[1]
        ))
    });
}
