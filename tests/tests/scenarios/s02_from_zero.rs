//! Scenario 2: many clients at once against nothing.

use std::time::Duration;

use anyhow::ensure;
use dormouse_tests::e2e::{self, App, Cluster, Control, Load, System};

#[test]
fn clients_that_all_come_at_once_to_zero_pods_are_all_answered_and_pods_rise_and_return_to_zero() {
    e2e::scenario(2, System::InProcess, async |cluster: &mut Cluster| {
        let (clients, seconds, target, most) = e2e::size((60, 6, "10", "6"), (300, 20, "50", "10"));
        let app = App::new("web")
            .annotate("target", target)
            .annotate("max-scale", most)
            .annotate("keep-alive", "3s");
        cluster.apply(&app).await?;
        cluster.wait_asleep("web", Duration::from_secs(60)).await?;
        let peak = cluster.watch_peak("web").await?;
        let options = |urls: &[String]| {
            let targets = urls.iter().map(|url| format!("{url}/delay/100").parse());
            let targets = targets.collect::<Result<_, _>>()?;
            let mut options = loadtest::Options::new(targets, loadtest::Load::Closed(clients));
            options.duration = Duration::from_secs(seconds);
            Ok(options)
        };
        let load = options(&cluster.urls("web").await?)?;
        let results = Load::start("s2", load).await?.finish().await;
        let pods = cluster.witness().proves("s2", &results)?.pods.len();
        cluster.wait_replicas("web", 0, Duration::from_secs(60)).await?;
        cluster.wait_asleep("web", e2e::SOON).await?;
        let (peak, most) = (*peak.lock(), most.parse::<i32>()?);
        ensure!(
            peak > 1 && peak <= most,
            "by concurrency there should be 2 to {most} pods, there were {peak}"
        );
        // After it, not beside it: together they would be twice as many clients.
        let mut control = Control::prepare(cluster, 2).await?;
        control.start(options).await?;
        let control = control.finish().await?;
        let (p50, max) = (results.latency.percentile(50.0), results.latency.max());
        Ok(format!(
            "{clients} clients, {} requests, none failed, slowest {max:?}, p50 {p50:?}, {peak} pods ({pods} served){control}",
            results.ok,
        ))
    });
}
