//! Scenario 7: a hard limit holds over all activators together.

use std::time::Duration;

use anyhow::{Result, ensure};
use dormouse_tests::e2e::{self, App, Cluster, Control, Load, System};
use loadtest::{Burst, Connections, Options, Schedule};

#[test]
fn no_pod_ever_sees_two_requests_at_once_when_its_limit_is_one() {
    e2e::scenario(7, System::Pods, async |cluster: &mut Cluster| {
        let rounds = e2e::size(1, 5);
        let app = App::new("web")
            .annotate("container-concurrency", "1")
            .annotate("max-scale", "10")
            .annotate("target", "1")
            .annotate("keep-alive", "2s");
        cluster.apply(&app).await?;
        let peak = cluster.watch_peak("web").await?;
        let mut figures = Vec::new();
        for round in 1..=rounds {
            cluster.wait_asleep("web", Duration::from_secs(60)).await?;
            let prefix = format!("s7-{round}");
            let load = burst(&cluster.urls("web").await?)?;
            let results = Load::start(&prefix, load).await?.finish().await;
            let seen = cluster.witness().proves(&format!("{prefix}-"), &results)?;
            ensure!(results.ok == 100, "{} of 100 answered", results.ok);
            ensure!(
                seen.overlap == 1,
                "a pod with limit 1 had {} requests at once",
                seen.overlap
            );
            figures.push(format!(
                "{} pods, last answer {:?}",
                seen.pods.len(),
                results.latency.max()
            ));
        }
        let mut control = Control::prepare(cluster, 2).await?;
        control.start(burst).await?;
        let control = control.finish().await?;
        let peak = *peak.lock();
        ensure!(peak <= 10, "10 pods at most, there were {peak} at once");
        Ok(format!(
            "100 requests of 300 ms, all 200, never two at once, at most {peak} pods at once: {}{control}",
            figures.join("; ")
        ))
    });
}

/// A hundred requests in one instant.
fn burst(urls: &[String]) -> Result<Options> {
    let targets = urls.iter().map(|url| format!("{url}/delay/300").parse());
    let schedule = Schedule {
        burst: Some(Burst {
            size: 100,
            every: Duration::from_secs(60),
        }),
        ..Schedule::default()
    };
    let targets = targets.collect::<Result<_, _>>()?;
    let mut options = Options::new(targets, loadtest::Load::Open(schedule));
    (options.connections, options.duration) = (Connections::Fresh, Duration::from_secs(1));
    options.timeout = Duration::from_secs(60);
    Ok(options)
}
