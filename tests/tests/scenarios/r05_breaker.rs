//! Rollouts, scenario 5: both autoscalers are killed in the middle of a release that then goes bad.

use std::time::Duration;

use anyhow::{Context, ensure};
use crds::names;
use crds::rollout::Phase;
use dormouse_tests::e2e::{self, App, Cluster, Load, SOON, Signal, System};
use serde_json::json;

/// Bad answers that one activator needs to be sure by itself, at half of the traffic (`activator/src/rollout/breaker.rs`),
/// with what is in flight meanwhile.
const FOR_ONE: u64 = 22;

#[test]
fn without_autoscalers_activators_take_a_bad_release_out_and_the_status_says_so_later() {
    e2e::scenario("r05", System::Pods, async |cluster: &mut Cluster| {
        let app = App::new("web").replicas(2).annotate("min-scale", "1");
        let half = json!({ "weight": 50, "pause": "10m" });
        let spec = json!({
            "strategy": { "steps": [half], "minStepDuration": "1s" },
            "config": { "settle": "1s" },
        });
        let stable = cluster.adopt(&app, spec).await?;
        let load = Load::start("r05", e2e::steady_over(&cluster.urls("web").await?, 50.0)?).await?;
        let down = cluster.folder.join("down");
        let known = format!("{}/down", cluster.witness_folder());
        let release = [
            ("VERSION", "v2"),
            ("FAIL_PERCENT", "100"),
            ("FAIL_WHILE", known.as_str()),
        ];
        cluster.release("web", &release).await?;
        let half = cluster.wait_weight("web", "50%", Duration::from_secs(60)).await?;
        load.goes_on(100, SOON).await?;
        let good = cluster.witness().seen("r05")?.of(&half.candidate_revision);
        ensure!(
            good > 10 && load.failed() == 0,
            "it has {good} good requests, {} failed",
            load.failed()
        );

        let autoscalers = cluster.pods(names::SYSTEM_NAMESPACE, names::LEASE).await?;
        ensure!(autoscalers.len() == 2, "{autoscalers:?}");
        cluster.scale(names::SYSTEM_NAMESPACE, names::LEASE, 0).await?;
        for (_, process) in &autoscalers {
            // It may have ended already.
            let _ = e2e::kill(*process, Signal::KILL);
        }
        cluster.wait_system(names::LEASE, 0).await?;
        std::fs::write(&down, "what the release needs has gone away")?;
        let limit = Duration::from_secs(30);
        let begun = async || (load.failed() > 0).then_some(());
        e2e::eventually("it fails", limit, begun).await?;
        // Both activators are sure when a second of traffic fails nowhere.
        let quiet = async || {
            let before = load.failed();
            load.goes_on(50, SOON).await.ok()?;
            (load.failed() == before).then_some(before)
        };
        let bad = e2e::eventually("nothing fails any more", limit, quiet).await?;
        ensure!(bad <= 2 * FOR_ONE, "{bad} requests failed");
        let before = cluster.witness().seen("r05")?.of(&half.candidate_revision);
        load.goes_on(100, SOON).await?;
        let after = cluster.witness().seen("r05")?.of(&half.candidate_revision);
        ensure!(before == after, "it still had {} requests", after - before);
        let untold = cluster.rollout_status("web").await?;
        ensure!(untold.phase != Phase::Failed, "nobody was there to say so");

        cluster.scale(names::SYSTEM_NAMESPACE, names::LEASE, 2).await?;
        cluster.wait_system(names::LEASE, 2).await?;
        let failed = cluster
            .wait_result("web", "", "RolledBack", Duration::from_secs(60))
            .await?;
        let attempt = failed.attempt.context("an attempt")?;
        ensure!(attempt.why.contains("breaker"), "{}", attempt.why);
        cluster.wait_everything_on("web", &stable).await?;
        load.goes_on(50, SOON).await?;
        let results = load.stop().await;
        cluster.witness().proves_but("r05", &results, bad)?;
        Ok(format!(
            "{bad} of {} requests failed with no autoscaler, none after; on return: {}",
            results.sent, attempt.why
        ))
    });
}
