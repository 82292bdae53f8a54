//! Scenario 5: many Services are asked in the same instant.

use std::time::Duration;

use anyhow::{Context, ensure};
use crds::condition;
use crds::route::{Phase, Route};
use dormouse_tests::e2e::{self, App, Cluster, Control, Load, System};

#[test]
fn services_woken_in_the_same_instant_are_all_answered_and_scaled_at_once() {
    e2e::scenario(5, System::InProcess, async |cluster: &mut Cluster| {
        let counts: &[usize] = e2e::size(&[25], &[100, 200]);
        let most = counts.iter().copied().max().unwrap_or(0);
        let names: Vec<String> = (0..most).map(|n| format!("s{n:03}")).collect();
        for name in &names {
            // They start at zero, so that only their wakes cost processes.
            cluster
                .apply(&App::new(name).replicas(0).annotate("keep-alive", "5s"))
                .await?;
        }
        let mut figures = Vec::new();
        for count in counts {
            let asleep = Duration::from_secs(60 + most as u64);
            e2e::wait_for(cluster.api::<Route>(), "all asleep", asleep, |routes| {
                (routes.values().filter(|route| asleep_and_captured(route)).count() == most).then_some(())
            })
            .await?;
            let before = wakes(cluster).await?;
            let mut urls = Vec::new();
            for name in &names[..*count] {
                urls.push(cluster.url(name).await?);
            }
            let mut options = e2e::wake(&urls)?;
            options.timeout = Duration::from_secs(60);
            let results = Load::start(&format!("s5-{count}"), options).await?.finish().await;
            cluster.witness().proves(&format!("s5-{count}-"), &results)?;
            let what = format!("{count} wakes on record");
            let signals: Vec<f64> = e2e::wait_for(cluster.api::<Route>(), &what, e2e::SOON, |routes| {
                let woken = routes
                    .values()
                    .filter(|route| newest_wake(route) > before)
                    .collect::<Vec<_>>();
                let signals: Vec<f64> = woken.iter().filter_map(|route| signal(route)).collect();
                (signals.len() >= *count).then_some(signals)
            })
            .await?;
            let last = signals.iter().copied().fold(0.0, f64::max);
            let budget = *count as f64 * 2.0;
            ensure!(
                !e2e::full() || cfg!(debug_assertions) || last <= budget,
                "last /scale after {last:.0} ms"
            );
            let answered = results.latency.max();
            let mut control = Control::prepare(cluster, 1).await?;
            control
                .start(|urls| e2e::wake(&urls.iter().cycle().take(*count).cloned().collect::<Vec<_>>()))
                .await?;
            let control = control.finish().await?;
            figures.push(format!(
                "{count} services, last /scale {last:.1} ms (budget {budget}), last answer {answered:?}{control}"
            ));
        }
        Ok(figures.join("; "))
    });
}

fn asleep_and_captured(route: &Route) -> bool {
    route.status.as_ref().is_some_and(|status| {
        status.phase == Some(Phase::Asleep) && condition::is_true(&status.conditions, condition::CAPTURED)
    })
}

/// When the newest wake on record of all Services began, as text that sorts by time.
async fn wakes(cluster: &Cluster) -> anyhow::Result<Option<String>> {
    let routes = cluster
        .api::<Route>()
        .list(&Default::default())
        .await
        .context("routes")?;
    Ok(routes.items.iter().filter_map(newest_wake).max())
}

fn newest_wake(route: &Route) -> Option<String> {
    let wake = route.status.as_ref()?.wakes.first()?;
    serde_json::to_value(wake.at.as_ref()?)
        .ok()?
        .as_str()
        .map(str::to_owned)
}

fn signal(route: &Route) -> Option<f64> {
    route.status.as_ref()?.wakes.first()?.signal_ms
}
