//! Scenario 8: every part is killed in turn.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use crds::names;
use crds::route::{Phase, Route};
use dormouse_tests::e2e::{self, App, Cluster, Control, Load, SOON, Signal, System};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt;

/// Most requests at 50 a second that an activator's death may cost: those that it had, and those that were sent to it
/// before its report stream's end was seen and its endpoint was gone.
const AN_ACTIVATORS_SHARE: u64 = 25;
/// Most that a pod's death may cost: what it had in flight at that moment.
const A_PODS_SHARE: u64 = 2;

#[test]
fn killing_any_part_costs_no_more_than_what_it_held_and_everything_comes_back() {
    e2e::scenario(8, System::Pods, async |cluster: &mut Cluster| {
        cluster
            .apply(&App::new("warm").replicas(2).annotate("min-scale", "2"))
            .await?;
        cluster.apply(&App::new("cold")).await?;
        cluster
            .wait_phase("warm", Phase::Awake, Duration::from_secs(60))
            .await?;
        cluster.wait_asleep("cold", Duration::from_secs(60)).await?;
        let mut control = Control::prepare(cluster, 2).await?;
        control.start(|urls| e2e::steady_over(urls, 50.0)).await?;
        let before = objects(cluster).await?;
        let mut figures = Vec::new();

        let activator = pod(cluster, names::SYSTEM_NAMESPACE, names::ACTIVATOR_SERVICE).await?;
        let failed = under_load(cluster, "one activator", async || {
            kill_pods(std::slice::from_ref(&activator))
        })
        .await?;
        ensure!(
            failed <= AN_ACTIVATORS_SHARE,
            "one activator's death cost {failed} requests"
        );
        figures.push(format!("one activator: {failed} failed"));
        cluster.wait_system(names::ACTIVATOR_SERVICE, 2).await?;

        let leader = cluster.leader().await?;
        let process = cluster
            .process_of(&leader)
            .with_context(|| format!("the process of {leader}"))?;
        let failed = under_load(cluster, "leader", async || {
            kill_pods(&[(leader.clone(), process)])
        })
        .await?;
        ensure!(failed == 0, "the leader's death cost {failed} requests");
        figures.push("leader: 0".to_owned());

        let both = cluster.pods(names::SYSTEM_NAMESPACE, names::LEASE).await?;
        let failed = under_load(cluster, "both autoscalers", async || kill_pods(&both)).await?;
        ensure!(failed == 0, "the autoscalers' death cost {failed} requests");
        figures.push("both autoscalers: 0".to_owned());
        cluster.wait_system(names::LEASE, 2).await?;

        figures.push(api_server(cluster).await?);
        if cluster.is_real() {
            figures.push(parts(cluster).await?);
        }
        figures.push(mid_request(cluster).await?);
        figures.push(all_pods(cluster).await?);
        figures.push(wake_without_autoscaler(cluster).await?);

        cluster.wait_asleep("cold", Duration::from_secs(60)).await?;
        cluster.wait_phase("warm", Phase::Awake, SOON).await?;
        let same = async || (objects(cluster).await.ok()? == before).then_some(());
        if e2e::eventually("the same objects", SOON, same).await.is_err() {
            anyhow::bail!(
                "objects before {before:#?}\nand after {:#?}",
                objects(cluster).await?
            );
        }
        Ok(figures.join("; ") + &control.stop().await?)
    });
}

/// Runs `kill` in the middle of steady traffic on the warm Service and says how many requests failed.
async fn under_load(cluster: &Cluster, what: &str, kill: impl AsyncFnOnce() -> Result<()>) -> Result<u64> {
    let prefix = format!("s8-{}", what.replace(' ', "-"));
    let load = Load::start(&prefix, e2e::steady_over(&cluster.urls("warm").await?, 50.0)?).await?;
    progress(&load, 50).await?;
    kill().await.with_context(|| what.to_owned())?;
    let answered = load.answered();
    // Six seconds of traffic: longer than a Lease or a silent stream takes to be noticed.
    progress(&load, answered + 300).await?;
    let results = load.stop().await;
    if results.failed > 0 {
        e2e::say(&format!("scenario 8, {what}: {}", e2e::first_errors(&results)));
    }
    let seen = cluster.witness().seen(&prefix)?;
    let twice: Vec<_> = seen.ids.iter().filter(|(_, times)| **times > 1).collect();
    ensure!(twice.is_empty(), "{what}: answered more than once: {twice:?}");
    Ok(results.failed)
}

async fn progress(load: &Load, answered: u64) -> Result<()> {
    let enough = async || (load.answered() >= answered).then_some(());
    e2e::eventually(&format!("{answered} answers"), Duration::from_secs(60), enough).await
}

fn kill_pods(pods: &[(String, u32)]) -> Result<()> {
    ensure!(!pods.is_empty(), "no process to kill was found");
    pods.iter()
        .try_for_each(|(_, process)| e2e::kill(*process, Signal::KILL))
}

async fn pod(cluster: &Cluster, namespace: &str, prefix: &str) -> Result<(String, u32)> {
    let pods = cluster.pods(namespace, prefix).await?;
    pods.into_iter()
        .next()
        .with_context(|| format!("a running pod {prefix}…"))
}

/// The API server goes away, with all that it remembered of the past, longer than a Lease lasts: warm traffic does not
/// notice, and who asks a sleeping Service meanwhile is answered once it is back.
async fn api_server(cluster: &Cluster) -> Result<String> {
    const AWAY: u64 = 8;
    cluster.wait_asleep("cold", Duration::from_secs(60)).await?;
    let cold = cluster.url("cold").await?;
    let mut waited = Duration::ZERO;
    let failed = under_load(cluster, "the API server", async || {
        match cluster.component("kube-apiserver") {
            // It comes back by itself, in about five seconds.
            Some(process) => e2e::kill(process, Signal::KILL)?,
            None => {
                let outage = format!("/local/outage?seconds={AWAY}");
                let outage = http::Request::post(outage).body(Vec::new())?;
                cluster.client.request_text(outage).await?;
            }
        }
        let away = async || cluster.client.apiserver_version().await.is_err().then_some(());
        e2e::eventually("the API is away", SOON, away).await?;
        let start = tokio::time::Instant::now();
        e2e::answer(&cold, Duration::from_secs(60))
            .await
            .context("a wake while the API was away")?;
        waited = start.elapsed();
        Ok(())
    })
    .await?;
    ensure!(failed == 0, "the API's outage cost {failed} requests");
    cluster.wait_system(names::ACTIVATOR_SERVICE, 2).await?;
    cluster.wait_system(names::LEASE, 2).await?;
    let how = if cluster.is_real() {
        "killed".to_owned()
    } else {
        format!("away for {AWAY} s")
    };
    Ok(format!(
        "API server {how}: 0, a wake meanwhile {} ms",
        waited.as_millis()
    ))
}

/// Kubernetes' other parts die and come back: traffic goes on, and afterwards a sleeping Service wakes as ever.
async fn parts(cluster: &Cluster) -> Result<String> {
    let cold = cluster.url("cold").await?;
    let mut figures = Vec::new();
    for part in ["etcd", "kubelet", "kube-proxy"] {
        cluster.wait_asleep("cold", Duration::from_secs(60)).await?;
        let process = cluster
            .component(part)
            .with_context(|| format!("the process of {part}"))?;
        let failed = under_load(cluster, part, async || {
            e2e::kill(process, Signal::KILL)?;
            let back = async || cluster.component(part).filter(|new| *new != process);
            e2e::eventually(part, SOON, back).await.map(drop)
        })
        .await?;
        ensure!(failed == 0, "the death of {part} cost {failed} requests");
        let start = tokio::time::Instant::now();
        e2e::answer(&cold, SOON)
            .await
            .with_context(|| format!("a wake after the death of {part}"))?;
        let took = start.elapsed().as_millis();
        figures.push(format!("{part}: 0, a wake after it {took} ms"));
    }
    Ok(figures.join("; "))
}

/// A pod dies with a request in it: that one is told so at once, and nobody else notices. It is a POST: a GET may be
/// given to another pod, as the connection's end alone does not tell whether anything was done.
async fn mid_request(cluster: &Cluster) -> Result<String> {
    let victim = format!("{}/delay/20000", cluster.url("warm").await?);
    let mut options = loadtest::Options::new(vec![victim.parse()?], loadtest::Load::Closed(1));
    (options.requests, options.method) = (Some(1), "POST".parse()?);
    let long = Load::start("s8-long", options).await?;
    let witness = cluster.witness();
    let arrived = async || witness.seen("s8-long").ok()?.pods.first().cloned();
    let name = e2e::eventually("the long request in a pod", SOON, arrived).await?;
    let process = cluster
        .process_of(&name)
        .with_context(|| format!("the process of {name}"))?;
    let failed = under_load(cluster, "a pod", async || kill_pods(&[(name.clone(), process)])).await?;
    ensure!(
        failed <= A_PODS_SHARE,
        "a pod's death cost {failed} requests besides the long one"
    );
    let results = long.finish().await;
    let error = results
        .first_errors
        .first()
        .context("the long request lost its pod, it cannot have succeeded")?;
    let times = witness.seen("s8-long")?.ids.into_values().sum::<u32>();
    ensure!(times == 1, "the long request came {times} times");
    ensure!(
        error.after < Duration::from_secs(15),
        "told after {:?}",
        error.after
    );
    Ok(format!(
        "a pod mid-request: {failed}, itself {}",
        error.failure.kind
    ))
}

async fn all_pods(cluster: &Cluster) -> Result<String> {
    let pods = cluster.pods("default", "warm").await?;
    let failed = under_load(cluster, "all pods", async || kill_pods(&pods)).await?;
    ensure!(
        failed <= A_PODS_SHARE * pods.len() as u64,
        "all pods' death cost {failed} requests"
    );
    Ok(format!("all pods: {failed}"))
}

async fn wake_without_autoscaler(cluster: &Cluster) -> Result<String> {
    cluster.wait_asleep("cold", Duration::from_secs(60)).await?;
    cluster.scale(names::SYSTEM_NAMESPACE, names::LEASE, 0).await?;
    cluster.wait_system(names::LEASE, 0).await?;
    let start = tokio::time::Instant::now();
    e2e::answer(&cluster.url("cold").await?, SOON)
        .await
        .context("a wake with no autoscaler")?;
    let took = start.elapsed();
    cluster.scale(names::SYSTEM_NAMESPACE, names::LEASE, 2).await?;
    cluster.wait_system(names::LEASE, 2).await?;
    Ok(format!("wake with no autoscaler {} ms", took.as_millis()))
}

/// Every object that the system keeps for the two Services, without what changes by itself.
async fn objects(cluster: &Cluster) -> Result<BTreeMap<String, String>> {
    let mut objects = BTreeMap::new();
    for route in cluster.api::<Route>().list(&Default::default()).await? {
        let phase = route.status.as_ref().and_then(|status| status.phase);
        objects.insert(
            format!("route/{}", route.name_any()),
            format!("{phase:?} {:?}", route.spec),
        );
    }
    for service in cluster.api::<Service>().list(&Default::default()).await? {
        let spec = service.spec.clone().unwrap_or_default();
        let text = format!("{:?} {:?} {:?}", spec.selector, spec.ports, service.labels());
        objects.insert(format!("service/{}", service.name_any()), text);
    }
    // Together, because how endpoints are spread over slices, and their ports, change with every pod.
    let mut endpoints = BTreeMap::<String, usize>::new();
    for slice in cluster.api::<EndpointSlice>().list(&Default::default()).await? {
        let label = |key: &str| slice.labels().get(key).cloned().unwrap_or_default();
        let (of, by) = (
            label(names::SLICE_SERVICE_LABEL),
            label(names::SLICE_MANAGED_BY_LABEL),
        );
        *endpoints.entry(format!("endpoints/{of} by {by}")).or_default() += slice.endpoints.len();
    }
    objects.extend(endpoints.into_iter().map(|(of, count)| (of, count.to_string())));
    for deployment in cluster.api::<Deployment>().list(&Default::default()).await? {
        let replicas = deployment.spec.as_ref().and_then(|spec| spec.replicas);
        objects.insert(
            format!("deployment/{}", deployment.name_any()),
            format!("{replicas:?}"),
        );
    }
    Ok(objects)
}
