//! Scenario 6: where the time of one wake goes, in the metrics and in words.

use std::time::Duration;

use anyhow::{Context, ensure};
use crds::route::Wake;
use dormouse_tests::e2e::{self, App, Cluster, SOON, System};

#[test]
fn a_lone_wake_is_split_into_its_parts_in_the_metrics_and_in_explain() {
    e2e::scenario(6, System::Pods, async |cluster: &mut Cluster| {
        let rounds = e2e::size(3, 20);
        cluster
            .apply(&App::new("web").annotate("keep-alive", "1s"))
            .await?;
        let mut wakes: Vec<Wake> = Vec::new();
        for round in 0..rounds {
            cluster.wait_asleep("web", Duration::from_secs(60)).await?;
            e2e::answer(&cluster.url("web").await?, SOON).await?;
            let last = wakes.last().and_then(|wake| wake.at.clone());
            let what = format!("wake {round} on record, with signal and forward");
            let route = cluster.wait_route("web", &what, SOON, |route| {
                let newest = route.status.as_ref().and_then(|status| status.wakes.first());
                newest.is_some_and(|wake| {
                    wake.at != last && wake.signal_ms.is_some() && wake.answered_ms.is_some()
                })
            });
            wakes.push(route.await?.status.context("status")?.wakes.remove(0));
        }
        let (code, explained, error) = cluster.run(&["explain", "web"]).await?;
        ensure!(
            code == 0 && explained.contains("ms"),
            "dormouse explain prints\n{explained}{error}"
        );
        let histograms = histograms(cluster).await?;
        ensure!(!histograms.is_empty(), "no wake histogram in any /metrics");
        let part = |part: fn(&Wake) -> Option<f64>| {
            let mut all: Vec<f64> = wakes.iter().filter_map(part).collect();
            all.sort_by(f64::total_cmp);
            let at = |place: usize| all.get(place).copied().unwrap_or(f64::NAN);
            format!(
                "{:.1} (max {:.1})",
                at(all.len() / 2),
                at(all.len().saturating_sub(1))
            )
        };
        Ok(format!(
            "{rounds} wakes in ms, median: byte to /scale {}, listening to answer {}, all {}; metrics {histograms:?}",
            part(|wake| wake.signal_ms),
            part(|wake| wake.forward_ms),
            part(|wake| wake.answered_ms),
        ))
    });
}

/// Names of the histograms about wakes and cold starts that have counted something, over all processes of the system.
async fn histograms(cluster: &Cluster) -> anyhow::Result<Vec<String>> {
    let all = cluster.scrape("").await?;
    let about_wakes = |name: &&str| {
        ["cold", "wake", "signal", "forward"]
            .iter()
            .any(|word| name.contains(word))
    };
    let names = all.histograms().into_iter().filter(about_wakes);
    Ok(names.map(str::to_owned).collect())
}
