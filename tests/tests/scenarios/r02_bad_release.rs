//! Rollouts, scenario 2: a release that fails every request.

use std::time::Duration;

use anyhow::{Context, ensure};
use crds::condition;
use crds::rollout::Phase;
use dormouse_tests::e2e::{self, App, Cluster, Control, Load, SOON, System};

/// Most failed answers.
const MOST_FAILED: u64 = 4;
/// From the answer that was evidence enough until no activator sends it anything any more.
const OUT_WITHIN: Duration = Duration::from_secs(1);

#[test]
fn a_release_that_fails_every_request_is_out_everywhere_within_a_second_and_four_answers() {
    e2e::scenario("r02", System::Pods, async |cluster: &mut Cluster| {
        let app = App::new("web")
            .replicas(2)
            .annotate("min-scale", "1")
            .annotate("rollout", "canary");
        cluster.apply(&app).await?;
        let stable = cluster.wait_adopted("web").await?.stable_revision;
        let mut control = Control::prepare(cluster, 2).await?;
        let steady = |urls: &[String]| e2e::steady_over(urls, 50.0);
        control.start(steady).await?;
        let load = Load::start("r02", steady(&cluster.urls("web").await?)?).await?;
        load.goes_on(50, SOON).await?;

        cluster
            .release("web", &[("VERSION", "bad"), ("FAIL_PERCENT", "100")])
            .await?;
        let limit = Duration::from_secs(60);
        let failed = cluster
            .wait_rollout("web", "failed", limit, |status| status.phase == Phase::Failed)
            .await?;
        // It is not Failed before every activator has acknowledged a Route in which it has no weight.
        let out = load.elapsed();
        load.goes_on(250, SOON).await?;
        let results = load.stop().await;
        let control = control.stop().await?;

        let seen = cluster.witness().proves_but("r02", &results, MOST_FAILED)?;
        let attempt = failed.attempt.context("an attempt")?;
        ensure!(
            seen.of(&attempt.candidate) == results.failed && results.failed > 0,
            "{} requests were the candidate's, {} failed",
            seen.of(&attempt.candidate),
            results.failed
        );
        let counted = failed.evidence.context("evidence")?.bad[1];
        let last = usize::try_from(counted)?
            .checked_sub(1)
            .context("nothing was counted")?;
        let judged = results
            .first_errors
            .get(last)
            .context("as many failed as were counted")?
            .at;
        let took = out.saturating_sub(judged);
        ensure!(
            took <= OUT_WITHIN,
            "out {took:?} after the answer that was enough"
        );
        let late: Vec<_> = results
            .first_errors
            .iter()
            .filter(|error| error.at > out)
            .collect();
        ensure!(late.is_empty(), "failed after it was out: {late:?}");

        ensure!(attempt.result == "RolledBack", "{attempt:#?}");
        ensure!(attempt.why.contains("requests were bad"), "{}", attempt.why);
        ensure!(
            failed.quarantined == [attempt.candidate.clone()],
            "{:?}",
            failed.quarantined
        );
        ensure!(
            condition::is_true(&failed.conditions, "Degraded"),
            "kubectl can wait for it"
        );
        cluster.wait_everything_on("web", &stable).await?;
        cluster
            .wait_replicas(&attempt.candidate, 0, Duration::from_secs(60))
            .await?;
        let told = cluster.told("web").await?;
        ensure!(told.iter().any(|(reason, _)| reason == "RolledBack"), "{told:?}");
        Ok(format!(
            "{} of {} requests failed, out everywhere {} ms after answer {counted}: {}{control}",
            results.failed,
            results.sent,
            took.as_millis(),
            attempt.why
        ))
    });
}
