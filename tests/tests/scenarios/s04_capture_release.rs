//! Scenario 4: a live Service comes and goes under traffic through its own address.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, ensure};
use crds::route::{Phase, Route};
use dormouse_tests::e2e::{self, App, Cluster, Control, Load, System};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use kube::ResourceExt;

/// Capture and release wait out several settle times each.
const CAPTURE: Duration = Duration::from_secs(60);

#[test]
fn a_live_service_is_captured_and_given_back_as_it_was_without_a_failed_request() {
    e2e::scenario(4, System::Pods, async |cluster: &mut Cluster| {
        let rounds = e2e::size(2, 20);
        cluster.apply(&App::new("web").plain().replicas(2)).await?;
        let slices = cluster.api::<EndpointSlice>();
        e2e::wait_for(slices, "web has endpoints", e2e::SOON, |slices| {
            // One slice for each port set, and here every pod has a port of its own.
            let endpoints = slices.values().flat_map(|slice| &slice.endpoints);
            let ready = |endpoint: &&Endpoint| {
                let conditions = endpoint.conditions.as_ref();
                conditions.and_then(|conditions| conditions.ready) == Some(true)
            };
            (endpoints.filter(ready).count() == 2).then_some(())
        })
        .await?;
        cluster.wait_answers("web").await?;
        let before = state(cluster).await?;
        let mut control = Control::prepare(cluster, 2).await?;
        let steady = |urls: &[String]| e2e::steady_over(urls, 100.0);
        control.start(steady).await?;
        let load = Load::start("s4", steady(&cluster.urls("web").await?)?).await?;
        for round in 1..=rounds {
            let keep = [("scale-to-zero", Some("true")), ("keep-alive", Some("600s"))];
            cluster.annotate("web", &keep).await?;
            cluster
                .wait_phase("web", Phase::Awake, CAPTURE)
                .await
                .with_context(|| format!("round {round}"))?;
            cluster
                .annotate("web", &[("scale-to-zero", None), ("keep-alive", None)])
                .await?;
            let gone = e2e::wait_for(cluster.api::<Route>(), "web's Route is gone", CAPTURE, |routes| {
                routes.is_empty().then_some(())
            });
            gone.await.with_context(|| format!("round {round}"))?;
            ensure!(load.failed() == 0, "a request failed in round {round}: {}", {
                e2e::first_errors(&load.stop().await)
            });
        }
        let results = load.stop().await;
        let control = control.stop().await?;
        cluster.witness().proves("s4", &results)?;
        // What the activators' last connections need goes after the Route.
        let same = async || (state(cluster).await.ok()? == before).then_some(());
        if e2e::eventually("as it was", e2e::SOON, same).await.is_err() {
            anyhow::bail!("not as it was:\n{before:#?}\n{:#?}", state(cluster).await?);
        }
        let (p50, max) = (results.latency.percentile(50.0), results.latency.max());
        let sent = results.ok;
        Ok(format!(
            "{rounds} rounds, {sent} requests, none failed, twice or lost; p50 {p50:?} max {max:?}{control}"
        ))
    });
}

/// What a user can see of a Service and its workload, and would miss.
async fn state(cluster: &Cluster) -> anyhow::Result<BTreeMap<&'static str, String>> {
    let service = cluster.api::<Service>().get("web").await?;
    let deployment = cluster.api::<Deployment>().get("web").await?;
    let slices = cluster.api::<EndpointSlice>().list(&Default::default()).await?;
    let services = cluster.api::<Service>().list(&Default::default()).await?;
    let names = |names: Vec<String>| {
        let mut names = names;
        names.sort();
        names.join(" ")
    };
    let replicas = deployment.spec.as_ref().and_then(|spec| spec.replicas);
    Ok(BTreeMap::from([
        (
            "selector",
            format!(
                "{:?}",
                service.spec.as_ref().and_then(|spec| spec.selector.clone())
            ),
        ),
        ("annotations", format!("{:?}", service.annotations())),
        ("labels", format!("{:?}", service.labels())),
        ("replicas", format!("{replicas:?}")),
        (
            "workload annotations",
            format!("{:?}", workload_annotations(&deployment)),
        ),
        ("slices", slices.items.len().to_string()),
        (
            "services",
            names(services.items.iter().map(ResourceExt::name_any).collect()),
        ),
    ]))
}

fn workload_annotations(deployment: &Deployment) -> Vec<&String> {
    // Kubernetes keeps its own notes there, such as the revision.
    deployment
        .annotations()
        .keys()
        .filter(|key| key.starts_with("dormouse.dev/"))
        .collect()
}
