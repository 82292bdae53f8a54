//! Scenario 9: all activators are gone.

use std::time::Duration;

use anyhow::{Context, ensure};
use crds::route::Phase;
use crds::{condition, names};
use dormouse_tests::e2e::{self, App, Cluster, Control, Load, SOON, Signal, System};

#[test]
fn without_any_activator_ready_pods_keep_answering_and_with_them_everything_goes_back() {
    e2e::scenario(9, System::Pods, async |cluster: &mut Cluster| {
        cluster.apply(&App::new("web").annotate("min-scale", "1")).await?;
        cluster
            .wait_phase("web", Phase::Awake, Duration::from_secs(60))
            .await?;
        let mut control = Control::prepare(cluster, 1).await?;
        let steady = |urls: &[String]| e2e::steady_over(urls, 50.0);
        control.start(steady).await?;
        let load = Load::start("s9", steady(&cluster.urls("web").await?)?).await?;
        let some = async || (load.answered() >= 50).then_some(());
        e2e::eventually("traffic", SOON, some).await?;

        let activators = cluster
            .pods(names::SYSTEM_NAMESPACE, names::ACTIVATOR_SERVICE)
            .await?;
        ensure!(activators.len() == 2, "two activators, {activators:?}");
        // To zero first, so that nothing starts them again; then all at once, without a chance to say goodbye.
        cluster
            .scale(names::SYSTEM_NAMESPACE, names::ACTIVATOR_SERVICE, 0)
            .await?;
        for (_, process) in &activators {
            // One that has already ended on its own is as gone as it can be.
            let _ = e2e::kill(*process, Signal::KILL);
        }
        cluster
            .wait_route("web", "web fails open", SOON, |route| {
                let status = route.status.as_ref();
                status.is_some_and(|status| condition::is_true(&status.conditions, condition::FAIL_OPEN))
            })
            .await?;
        let answered = load.answered();
        let more = async || (load.answered() >= answered + 100).then_some(());
        e2e::eventually("answers without activators", SOON, more).await?;

        cluster
            .scale(names::SYSTEM_NAMESPACE, names::ACTIVATOR_SERVICE, 2)
            .await?;
        cluster
            .wait_route(
                "web",
                "web no longer fails open",
                Duration::from_secs(60),
                |route| {
                    let Some(status) = &route.status else { return false };
                    let open = condition::is_true(&status.conditions, condition::FAIL_OPEN);
                    !open && status.phase == Some(Phase::Awake)
                },
            )
            .await?;
        let answered = load.answered();
        let more = async || (load.answered() >= answered + 100).then_some(());
        e2e::eventually("answers through activators again", SOON, more).await?;
        let results = load.stop().await;
        let control = control.stop().await?;
        let outage = outage(&results).context("figures")?;
        ensure!(
            outage <= Duration::from_secs(5),
            "no answer for {outage:?}: {}",
            e2e::first_errors(&results)
        );
        Ok(format!(
            "{} answered, {} failed, longest without an answer {outage:?}{control}",
            results.ok, results.failed
        ))
    });
}

/// The longest run of whole seconds in which requests failed.
fn outage(results: &loadtest::Results) -> Option<Duration> {
    let failed = |second: &loadtest::results::Second| second.failed > 0;
    let longest = results
        .timeline
        .chunk_by(|a, b| failed(a) == failed(b))
        .filter(|run| failed(&run[0]));
    Some(Duration::from_secs(
        longest.map(<[_]>::len).max().unwrap_or(0) as u64
    ))
}
