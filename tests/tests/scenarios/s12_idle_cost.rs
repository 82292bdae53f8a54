//! Scenario 12: what a thousand idle Services cost.

use std::time::Duration;

use anyhow::{Context, ensure};
use crds::names;
use crds::route::{Phase, Route};
use dormouse_tests::e2e::{self, App, Cluster, System};
use futures::{StreamExt, TryStreamExt};

#[test]
fn idle_services_cost_little_memory_and_hardly_any_processor_time() {
    e2e::scenario(12, System::Pods, async |cluster: &mut Cluster| {
        // A real API server answers in milliseconds what the embedded one answers in microseconds: capturing a thousand
        // would take most of the suite's time there and show nothing that 300 do not.
        let (services, seconds) = if cluster.is_real() {
            (300, 20)
        } else {
            e2e::size((60, 5), (1_000, 30))
        };
        let start = tokio::time::Instant::now();
        let cluster_ref = &*cluster;
        futures::stream::iter(0..services)
            .map(|n| async move {
                cluster_ref
                    .apply(&App::new(&format!("idle-{n:04}")).replicas(0))
                    .await
            })
            .buffer_unordered(8)
            .try_collect::<()>()
            .await?;
        let limit = Duration::from_secs(60 + services / 2);
        e2e::wait_for(
            cluster.api::<Route>(),
            "all captured and asleep",
            limit,
            |routes| {
                let asleep = |route: &&Route| {
                    route
                        .status
                        .as_ref()
                        .is_some_and(|s| s.phase == Some(Phase::Asleep))
                };
                (routes.values().filter(asleep).count() as u64 == services).then_some(())
            },
        )
        .await?;
        let captured = start.elapsed();
        let mut figures = Vec::new();
        for name in [names::ACTIVATOR_SERVICE, names::LEASE] {
            for (pod, process) in cluster.pods(names::SYSTEM_NAMESPACE, name).await? {
                figures.push((pod, process, e2e::cpu_seconds(process).context("cpu")?));
            }
        }
        ensure!(figures.len() == 4, "four processes: {figures:?}");
        // Time is what is measured here: it has to pass.
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        let mut words = Vec::new();
        for (pod, process, before) in figures {
            let used = e2e::cpu_seconds(process).context("cpu")? - before;
            let resident = e2e::resident_bytes(process).context("memory")? as f64 / 1e6;
            let role = if pod.starts_with(names::LEASE) {
                "autoscaler"
            } else {
                "activator"
            };
            words.push(format!(
                "{role} {resident:.1} MB, {:.1} ms CPU/s",
                used * 1000.0 / seconds as f64
            ));
        }
        let profile = if cluster.is_real() {
            "in images"
        } else if cfg!(debug_assertions) {
            "debug"
        } else {
            "release"
        };
        let captured = captured.as_secs();
        Ok(format!(
            "{services} idle services ({profile}), captured in {captured} s: {}",
            words.join("; ")
        ))
    });
}
