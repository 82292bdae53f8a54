//! Scenario 10: somebody applies the original manifests again and again.

use std::time::Duration;

use anyhow::{Context, ensure};
use crds::condition;
use crds::route::Phase;
use dormouse_tests::e2e::{self, App, Cluster, Control, Load, SOON, System};

#[test]
fn applying_the_original_manifests_every_second_fails_no_request_and_names_who_flaps() {
    e2e::scenario(10, System::Pods, async |cluster: &mut Cluster| {
        let rounds = e2e::size(12, 60);
        let app = App::new("web").annotate("min-scale", "1");
        let yaml = app.yaml(cluster);
        let kubectl = async |arguments: &[&str]| e2e::kubectl(&cluster.kubeconfig, arguments, &yaml).await;
        let there = kubectl(&["apply", "-f", "-"]).await?.is_some();
        if !there {
            e2e::say("scenario 10: kubectl is not on this machine; only server-side applies are made");
            cluster.apply(&app).await?;
        }
        cluster
            .wait_phase("web", Phase::Awake, Duration::from_secs(60))
            .await?;
        let mut control = Control::prepare(cluster, 1).await?;
        let steady = |urls: &[String]| e2e::steady_over(urls, 50.0);
        control.start(steady).await?;
        let load = Load::start("s10", steady(&cluster.urls("web").await?)?).await?;
        let mut ticks = tokio::time::interval(Duration::from_secs(1));
        for round in 0..rounds {
            ticks.tick().await;
            if there && round % 2 == 0 {
                kubectl(&["apply", "-f", "-"]).await?;
            } else {
                // With force, as a GitOps controller does: the selector is one value, so this takes our key out of it.
                e2e::apply_as(&cluster.client, &yaml, "gitops-controller", true).await?;
            }
        }
        let conflict = cluster.wait_route("web", "the flapping manager is named", SOON, |route| {
            let conditions = route.status.as_ref().map(|status| &status.conditions);
            let conflict = conditions.and_then(|list| condition::find(list, condition::SELECTOR_CONFLICT));
            conflict.is_some_and(|conflict| {
                conflict.status == "True" && conflict.message.contains("gitops-controller")
            })
        });
        let route = conflict.await?;
        let conditions = route.status.context("status")?.conditions;
        let message =
            condition::find(&conditions, condition::SELECTOR_CONFLICT).map(|found| found.message.clone());
        let results = load.stop().await;
        let control = control.stop().await?;
        cluster.witness().proves("s10", &results)?;
        ensure!(results.ok > 0, "there was traffic");
        let max = results.latency.max();
        Ok(format!(
            "{rounds} applies, {} requests, none failed, max {max:?}{control}; {message:?}",
            results.ok
        ))
    });
}
