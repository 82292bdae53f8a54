//! Four ways to release, each under the same load: a good version, then one that fails every request.
//!
//! `cargo run --release -p dormouse-tests --example strategies`, with the manifests of `examples/strategies`. What comes of
//! it, and how to read it, is in the README there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use crds::condition;
use crds::route::Phase;
use dormouse_tests::e2e::{self, Cluster, Load, SOON, System};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::api::{Api, ListParams};
use parking_lot::Mutex;

/// Requests per second, each on a connection of its own.
const RATE: f64 = 20.0;
/// How long somebody takes to see that a version is bad, and to undo it.
const NOTICED_AFTER: Duration = Duration::from_secs(10);
/// How long nobody asks before pods are counted again.
const QUIET: Duration = Duration::from_secs(15);
const LIMIT: Duration = Duration::from_secs(120);
const STRATEGIES: [&str; 4] = ["recreate", "rolling", "serverless", "canary"];
/// Variables of a version that fails, and of one that is good again.
const BAD: [(&str, &str); 2] = [("VERSION", "3"), ("HELLO_FAIL_PERCENT", "100")];
const GOOD_AGAIN: [(&str, &str); 2] = [("VERSION", "2"), ("HELLO_FAIL_PERCENT", "")];

/// Pods over time.
#[derive(Clone, Copy, Debug, Default)]
struct Pods {
    most: usize,
    sum: usize,
    looks: usize,
}

fn main() {
    e2e::scenario("strategies", System::InProcess, async |cluster: &mut Cluster| {
        let mut table = vec![
            "| strategy | failed: good version | failed: bad version | undone by | most pods | pods on average | pods when idle |"
                .to_owned(),
            "|---|---|---|---|---|---|---|".to_owned(),
        ];
        for strategy in STRATEGIES {
            table.push(
                row(cluster, strategy)
                    .await
                    .with_context(|| strategy.to_owned())?,
            );
        }
        Ok(format!("{RATE} requests per second\n\n{}", table.join("\n")))
    });
}

async fn row(cluster: &Cluster, name: &str) -> Result<String> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/strategies");
    let yaml = std::fs::read_to_string(format!("{folder}/{name}.yaml"))?;
    e2e::apply(&cluster.client, &yaml).await?;
    ready(cluster, name).await?;
    let url = cluster.url(name).await?;
    let answers = async || e2e::answer(&url, SOON).await.ok();
    e2e::eventually("it answers", SOON, answers).await?;

    let counter = Counter::start(cluster.client.clone(), name);
    let load = Load::start(name, e2e::steady(&url, RATE)?).await?;
    load.goes_on(40, SOON).await?;
    cluster.release(name, &[("VERSION", "2")]).await?;
    let last = released(cluster, name, "").await?;
    load.goes_on(40, SOON).await?;
    let good = load.failed();

    cluster.release(name, &BAD).await?;
    let undone = if name == "canary" {
        cluster.wait_result(name, &last, "RolledBack", LIMIT).await?;
        "itself"
    } else {
        // What a person does takes its time.
        tokio::time::sleep(NOTICED_AFTER).await;
        cluster.release(name, &GOOD_AGAIN).await?;
        released(cluster, name, "").await?;
        "a person, after 10 s"
    };
    load.goes_on(40, SOON).await?;
    let results = load.stop().await;
    let pods = counter.stop();
    tokio::time::sleep(QUIET).await;
    let idle = count(&cluster.client, name).await?;
    let bad = results.failed - good;
    let (most, average) = (pods.most, pods.sum as f64 / pods.looks.max(1) as f64);
    Ok(format!(
        "| {name} | {good} | {bad} | {undone} | {most} | {average:.1} | {idle} |"
    ))
}

/// Waits until it is as its manifest says.
async fn ready(cluster: &Cluster, name: &str) -> Result<()> {
    match name {
        "serverless" => {
            cluster
                .wait_route(name, "captured", LIMIT, |route| {
                    let status = route.status.as_ref();
                    status.is_some_and(|status| {
                        condition::is_true(&status.conditions, condition::CAPTURED)
                            && matches!(status.phase, Some(Phase::Awake | Phase::Asleep))
                    })
                })
                .await?;
        }
        "canary" => _ = cluster.wait_adopted(name).await?,
        _ => rolled(cluster, name).await?,
    }
    Ok(())
}

/// Waits until the present version has everything. Returns the attempt, where there is one.
async fn released(cluster: &Cluster, name: &str, before: &str) -> Result<String> {
    if name == "canary" {
        let status = cluster.wait_result(name, before, "Promoted", LIMIT).await?;
        return Ok(status.attempt.map(|attempt| attempt.uid).unwrap_or_default());
    }
    rolled(cluster, name).await?;
    Ok(String::new())
}

/// As `kubectl rollout status`.
async fn rolled(cluster: &Cluster, name: &str) -> Result<()> {
    let key = format!("default/{name}");
    e2e::wait_for(
        cluster.api::<Deployment>(),
        "it is rolled",
        LIMIT,
        |deployments| {
            let deployment = deployments.get(&key)?;
            let (spec, status) = (deployment.spec.as_ref()?, deployment.status.as_ref()?);
            let wanted = spec.replicas.unwrap_or(1);
            let observed = status.observed_generation >= deployment.metadata.generation;
            let all = |count: Option<i32>| count.unwrap_or(0) == wanted;
            (observed && all(status.updated_replicas) && all(status.replicas) && all(status.ready_replicas))
                .then_some(())
        },
    )
    .await
}

async fn count(client: &Client, name: &str) -> Result<usize> {
    let pods = Api::<Pod>::default_namespaced(client.clone());
    Ok(pods
        .list(&ListParams::default().labels(&format!("app={name}")))
        .await?
        .items
        .len())
}

/// Counts pods four times a second.
struct Counter {
    pods: Arc<Mutex<Pods>>,
    over: Arc<AtomicBool>,
}

impl Counter {
    fn start(client: Client, name: &str) -> Self {
        const EVERY: Duration = Duration::from_millis(250);
        let counter = Self {
            pods: Arc::default(),
            over: Arc::default(),
        };
        let (pods, over, name) = (
            Arc::clone(&counter.pods),
            Arc::clone(&counter.over),
            name.to_owned(),
        );
        tokio::spawn(async move {
            while !over.load(Ordering::SeqCst) {
                if let Ok(now) = count(&client, &name).await {
                    let mut pods = pods.lock();
                    pods.most = pods.most.max(now);
                    pods.sum += now;
                    pods.looks += 1;
                }
                tokio::time::sleep(EVERY).await;
            }
        });
        counter
    }

    fn stop(self) -> Pods {
        self.over.store(true, Ordering::SeqCst);
        *self.pods.lock()
    }
}
