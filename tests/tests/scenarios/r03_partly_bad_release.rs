//! Rollouts, scenario 3: a release of which a tenth fails is taken out, and comes back once what it needed is there again.

use std::time::Duration;

use anyhow::{Context, ensure};
use crds::rollout::Phase;
use dormouse_tests::e2e::{self, App, Cluster, Load, SOON, System};
use serde_json::json;

/// A fixed threshold with Flagger's usual steps costs ten times as many, in the median, at this load and this share
/// (docs/evidence.md, "10 % bad, 50 rps").
const MOST_FAILED: u64 = 181 / 10;

#[test]
fn a_release_that_fails_a_tenth_is_taken_out_and_let_in_when_it_is_told_to_try_again() {
    e2e::scenario("r03", System::Pods, async |cluster: &mut Cluster| {
        let app = App::new("web").replicas(2).annotate("min-scale", "1");
        let spec = json!({
            "strategy": { "minStepDuration": "1s" },
            "analysis": { "bake": "2s" },
            "config": { "settle": "1s" },
        });
        let stable = cluster.adopt(&app, spec).await?;
        let load = Load::start("r03", e2e::steady_over(&cluster.urls("web").await?, 50.0)?).await?;
        load.goes_on(50, SOON).await?;

        let missing = cluster.folder.join("missing");
        std::fs::write(&missing, "what the release needs is not there")?;
        let known = format!("{}/missing", cluster.witness_folder());
        let release = [
            ("VERSION", "v2"),
            ("FAIL_PERCENT", "10"),
            ("FAIL_WHILE", known.as_str()),
        ];
        cluster.release("web", &release).await?;
        let limit = Duration::from_secs(120);
        let failed = cluster.wait_result("web", "", "RolledBack", limit).await?;
        ensure!(
            failed.phase == Phase::Failed && failed.stable_revision == stable,
            "{failed:#?}"
        );
        let attempt = failed.attempt.context("an attempt")?;
        let bad = load.failed();
        load.goes_on(100, SOON).await?;
        ensure!(load.failed() == bad, "it still has requests");
        cluster.wait_everything_on("web", &stable).await?;
        cluster
            .wait_replicas(&attempt.candidate, 0, Duration::from_secs(60))
            .await?;

        std::fs::remove_file(&missing)?;
        cluster.command("web", "retry").await?;
        let again = cluster
            .wait_result("web", &attempt.uid, "Promoted", limit)
            .await?;
        ensure!(
            again.stable_revision == attempt.candidate,
            "the same revision: {again:#?}"
        );
        load.goes_on(50, SOON).await?;
        let results = load.stop().await;
        let seen = cluster.witness().proves_but("r03", &results, MOST_FAILED)?;
        ensure!(
            results.failed == bad && bad > 0,
            "{} failed, {bad} before the retry",
            results.failed
        );
        let (old, new) = (seen.of(&stable), seen.of(&attempt.candidate));
        Ok(format!(
            "{bad} of {} requests failed ({old} stable, {new} candidate), none after the retry: {}",
            results.sent, attempt.why
        ))
    });
}
