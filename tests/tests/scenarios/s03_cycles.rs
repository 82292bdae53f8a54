//! Scenario 3: sleep and wake again and again under traffic that never stops.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use crds::route::Phase;
use dormouse_tests::e2e::{self, App, Cluster, Control, Load, SOON, System};
use k8s_openapi::api::apps::v1::Deployment;

#[test]
fn no_request_of_a_steady_client_fails_is_answered_twice_or_is_lost_over_any_edge() {
    e2e::scenario(3, System::InProcess, async |cluster: &mut Cluster| {
        let cycles = e2e::size(8, 50);
        cluster
            .apply(&App::new("web").annotate("keep-alive", "60s"))
            .await?;
        let captured = Duration::from_secs(60);
        cluster
            .wait_route("web", "web captured", captured, |route| {
                let conditions = route.status.as_ref().map(|status| &status.conditions);
                conditions.is_some_and(|list| crds::condition::is_true(list, crds::condition::CAPTURED))
            })
            .await?;
        let mut control = Control::prepare(cluster, 1).await?;
        let steady = |urls: &[String]| e2e::steady_over(urls, 20.0);
        control.start(steady).await?;
        let load = Load::start("s3", steady(&cluster.urls("web").await?)?).await?;
        for cycle in 1..=cycles {
            cluster.wait_phase("web", Phase::Awake, SOON).await?;
            sleep_and_wake(cluster)
                .await
                .with_context(|| format!("cycle {cycle}"))?;
            ensure!(load.failed() == 0, "a request failed in cycle {cycle}");
        }
        cluster.wait_phase("web", Phase::Awake, SOON).await?;
        let results = load.stop().await;
        let control = control.stop().await?;
        let seen = cluster.witness().proves("s3", &results)?;
        let pods = seen.pods.len() as i64;
        ensure!(
            pods > cycles,
            "{cycles} cycles are at least {} pods, there were {pods}",
            cycles + 1
        );
        let (p50, p99, max) = (
            results.latency.percentile(50.0),
            results.latency.percentile(99.0),
            results.latency.max(),
        );
        Ok(format!(
            "{cycles} cycles, {} requests, none failed, twice or lost; p50 {p50:?} p99 {p99:?} max {max:?}; {pods} pods{control}",
            results.ok
        ))
    });
}

/// Puts it to sleep, and waits until its traffic has woken it. That happens at once, so zero is seen in the Deployment's
/// history rather than in its state: each sleep and each wake is a new generation.
async fn sleep_and_wake(cluster: &Cluster) -> Result<()> {
    /// Nobody is sent to sleep with a request in flight, so it may take a few words.
    const TRIES: u32 = 20;
    let before = cluster.api::<Deployment>().get("web").await?;
    let before = before.metadata.generation.context("a generation")?;
    for _ in 0..TRIES {
        let (code, out, error) = cluster.run(&["sleep", "web"]).await?;
        ensure!(code == 0, "dormouse sleep: {code} {out} {error}");
        if wait_generation(cluster, before + 1, Duration::from_secs(2))
            .await
            .is_ok()
        {
            return wait_generation(cluster, before + 2, SOON).await;
        }
    }
    anyhow::bail!("asked to sleep {TRIES} times, in vain")
}

/// Waits until the Deployment has this generation.
async fn wait_generation(cluster: &Cluster, generation: i64, limit: Duration) -> Result<()> {
    let what = format!("web at generation {generation}");
    e2e::wait_for(cluster.api::<Deployment>(), &what, limit, |deployments| {
        (deployments.get("default/web")?.metadata.generation? >= generation).then_some(())
    })
    .await
}
