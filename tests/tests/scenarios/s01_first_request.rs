//! Scenario 1: the example sleeps, one request wakes it, it sleeps again, and every tool can see it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use crds::route::{Phase, Route};
use dormouse_tests::e2e::{self, Cluster, SOON, System};
use futures::StreamExt;
use kube::ResourceExt;
use kube::api::WatchParams;
use kube::core::WatchEvent;
use tokio::sync::Mutex;

#[test]
fn a_sleeping_example_answers_one_request_and_every_phase_has_its_reason() {
    e2e::scenario(1, System::InProcess, async |cluster: &mut Cluster| {
        let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/hello");
        let mut name = None;
        for file in std::fs::read_dir(examples)?.flatten().map(|entry| entry.path()) {
            if file.extension().is_some_and(|end| end == "yaml" || end == "yml") {
                let yaml = std::fs::read_to_string(&file)?;
                name = name.or(service_name(&yaml));
                e2e::apply(&cluster.client, &yaml).await?;
            }
        }
        let name = name.context("examples/hello has a Service")?;
        cluster.annotate(&name, &[("keep-alive", Some("6s"))]).await?;
        fell_asleep(cluster, &name, Duration::from_secs(120)).await?;

        let seen = watch_phases(cluster, &name).await?;
        let start = tokio::time::Instant::now();
        let body = e2e::answer(&cluster.front_url(&name).await?, SOON).await?;
        let took = start.elapsed();
        ensure!(!body.is_empty(), "an answer has a body");
        cluster.wait_phase(&name, Phase::Awake, SOON).await?;
        let (_, get, _) = cluster.run(&["get"]).await?;
        ensure!(
            get.contains(&name) && get.contains("Awake"),
            "dormouse get prints\n{get}"
        );
        fell_asleep(cluster, &name, SOON).await?;

        let phases = seen.lock().await.clone();
        let order: Vec<_> = phases.iter().map(|(phase, _)| *phase).collect();
        ensure!(
            order == [Phase::Asleep, Phase::Waking, Phase::Awake, Phase::Asleep],
            "phases {phases:?}"
        );
        ensure!(
            phases.iter().all(|(_, why)| !why.is_empty()),
            "each with its reason: {phases:?}"
        );
        let kubectl = kubectl(cluster, &name).await?;
        Ok(format!(
            "first answer after {} ms, {kubectl}, phases {order:?}",
            took.as_millis()
        ))
    });
}

fn service_name(yaml: &str) -> Option<String> {
    let document = yaml
        .split("\n---")
        .find(|document| document.lines().any(|line| line.trim() == "kind: Service"))?;
    let name = document
        .lines()
        .find_map(|line| line.trim().strip_prefix("name: "))?;
    Some(name.trim_matches('"').to_owned())
}

/// Waits until it sleeps and says so.
async fn fell_asleep(cluster: &Cluster, name: &str, limit: Duration) -> Result<()> {
    cluster.wait_asleep(name, limit).await?;
    let said = cluster.wait_route(name, "it says why it sleeps", SOON, |route| {
        route
            .status
            .as_ref()
            .is_some_and(|status| status.why.contains("to 0") || status.why.contains("at 0"))
    });
    said.await.map(drop)
}

/// Every phase of a Route from now on, without repetitions, with the last reason given while it lasted.
async fn watch_phases(cluster: &Cluster, name: &str) -> Result<Arc<Mutex<Vec<(Phase, String)>>>> {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let api = cluster.api::<Route>();
    let note = |seen: &mut Vec<(Phase, String)>, route: &Route| {
        let Some(status) = &route.status else { return };
        // A phase's reason may follow it by a moment.
        if let Some((last, why)) = seen.last_mut()
            && Some(*last) == status.phase
        {
            why.clone_from(&status.why);
        }
        if let Some(phase) = status.phase
            && seen.last().is_none_or(|(last, _)| *last != phase)
        {
            seen.push((phase, status.why.clone()));
        }
    };
    let now = api.get(name).await?;
    note(&mut *seen.lock().await, &now);
    let parameters = WatchParams::default().fields(&format!("metadata.name={name}"));
    let mut events = api
        .watch(&parameters, &now.resource_version().context("a version")?)
        .await?
        .boxed();
    let notes = seen.clone();
    tokio::spawn(async move {
        while let Some(Ok(event)) = events.next().await {
            if let WatchEvent::Added(route) | WatchEvent::Modified(route) = event {
                note(&mut *notes.lock().await, &route);
            }
        }
    });
    Ok(seen)
}

async fn kubectl(cluster: &Cluster, name: &str) -> Result<&'static str> {
    let run = async |arguments: &[&str]| e2e::kubectl(&cluster.kubeconfig, arguments, "").await;
    let Some(table) = run(&["get", "routes"]).await? else {
        return Ok("kubectl not on this machine");
    };
    ensure!(
        table.contains("PHASE") && table.contains("Asleep"),
        "kubectl get routes prints\n{table}"
    );
    let described = run(&["describe", "service", name]).await?.unwrap_or_default();
    ensure!(
        described.contains("Endpoints") || described.contains("Selector"),
        "describe prints\n{described}"
    );
    let services = run(&["get", "services,deployments,endpointslices"])
        .await?
        .unwrap_or_default();
    ensure!(services.contains(name), "kubectl get prints\n{services}");
    Ok("kubectl get and describe work")
}
