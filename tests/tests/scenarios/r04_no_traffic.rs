//! Rollouts, scenario 4: a release that nobody asks is neither let in nor thrown out, and costs nothing.

use std::time::Duration;

use anyhow::{Context, ensure};
use dormouse_tests::e2e::{self, App, Cluster, Load, SOON, System};
use serde_json::json;

#[test]
fn a_release_without_traffic_waits_asleep_says_what_is_missing_and_is_let_in_when_traffic_comes() {
    e2e::scenario("r04", System::Pods, async |cluster: &mut Cluster| {
        cluster.apply(&App::new("web")).await?;
        cluster
            .apply_rollout(
                "web",
                json!({
                    "strategy": { "minStepDuration": "1s" },
                    "analysis": { "bake": "2s" },
                    "rollback": { "keepWarm": "0s" },
                    "config": { "settle": "1s" },
                }),
            )
            .await?;
        let stable = cluster.wait_adopted("web").await?.stable_revision;
        cluster.release("web", &[("VERSION", "v2")]).await?;
        let limit = Duration::from_secs(60);
        let waiting = cluster.wait_weight("web", "5%", limit).await?;
        cluster.wait_asleep("web", limit).await?;
        // Long enough for a rule that takes silence for failure: six of its looks, at two seconds each.
        let still = cluster
            .wait_rollout("web", "it changes its mind", Duration::from_secs(12), |status| {
                status.candidate_revision != waiting.candidate_revision || status.weight != "5%"
            })
            .await;
        ensure!(still.is_err(), "without a request: {still:#?}");
        let status = cluster.rollout_status("web").await?;
        ensure!(
            status.why.contains("0 of its 0 requests") && status.why.contains("more good ones let it in"),
            "it says what is missing: {:?}",
            status.why
        );
        let pods = cluster.watch_pods("web").await?;
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
