//! Scenario 11: what cannot work says so: in a condition, an Event, `doctor`, and to those who wait.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use crds::condition::{self, reason};
use crds::route::Phase;
use dormouse_tests::e2e::{self, App, Cluster, SOON, System};
use k8s_openapi::api::core::v1::Event;

/// Condition, status and reason that are promised.
type Promise = (&'static str, &'static str, &'static str);

#[test]
fn whatever_cannot_work_says_why_in_a_condition_an_event_doctor_and_to_the_client() {
    e2e::scenario(11, System::InProcess, async |cluster: &mut Cluster| {
        let (misconfigured, broken) = (misconfigured(cluster), broken());
        // All at once, so that what takes its time does so together.
        for (name, yaml, ..) in &misconfigured {
            e2e::apply(&cluster.client, yaml)
                .await
                .with_context(|| (*name).to_owned())?;
        }
        for (name, app, _) in &broken {
            cluster.apply(app).await.with_context(|| (*name).to_owned())?;
        }
        let mut seen = Vec::new();
        for (name, _, promise, said) in misconfigured {
            check(cluster, name, promise, said)
                .await
                .with_context(|| name.to_owned())?;
            seen.push(format!("{name}: {}", promise.2));
        }
        for (name, _, promise) in broken {
            cluster
                .wait_phase(name, Phase::Asleep, Duration::from_secs(60))
                .await?;
            let start = tokio::time::Instant::now();
            let (status, body) = e2e::get(&cluster.url(name).await?, SOON).await?;
            let took = start.elapsed();
            ensure!(matches!(status, 503 | 504), "{name}: {status} {body}");
            ensure!(
                took < Duration::from_secs(8),
                "{name}: told after {took:?}, 4s were promised"
            );
            ensure!(body.len() > 20, "{name}: the body says why: {body:?}");
            check(cluster, name, promise, promise.2)
                .await
                .with_context(|| name.to_owned())?;
            seen.push(format!(
                "{name}: {status} after {} ms, {}",
                took.as_millis(),
                promise.2
            ));
        }
        Ok(seen.join("; "))
    });
}

/// Services that are refused or warned about: name, manifests, condition, a word that `doctor` says.
fn misconfigured(cluster: &Cluster) -> Vec<(&'static str, String, Promise, &'static str)> {
    let captured = |reason| (condition::CAPTURED, "False", reason);
    let headless = App::new("headless")
        .cluster_only()
        .yaml(cluster)
        .replace("spec:\n  selector: {app: headless}\n  ports", {
            "spec:\n  clusterIP: None\n  selector: {app: headless}\n  ports"
        });
    let lonely = App::new("lonely").service();
    let value = App::new("value").annotate("keep-alive", "soon").yaml(cluster);
    let shared = format!(
        "{}---\n{}",
        App::new("first").yaml(cluster),
        App::new("second")
            .annotate("max-scale", "7")
            .service()
            .replace("{app: second}", "{app: first}")
    );
    let scaled = format!("{}---\n{HPA}", App::new("scaled").yaml(cluster));
    vec![
        ("headless", headless, captured(reason::HEADLESS), "headless"),
        ("lonely", lonely, captured(reason::WORKLOAD_NOT_FOUND), "orkload"),
        (
            "value",
            value,
            (condition::CONFIGURATION_VALID, "False", reason::INVALID_VALUE),
            "keep-alive",
        ),
        ("second", shared, captured(reason::WORKLOAD_SHARED), "first"),
        (
            "scaled",
            scaled,
            (condition::SCALED_BY_HPA, "True", reason::HPA),
            "scaled-hpa",
        ),
    ]
}

/// Workloads that can be captured and cannot serve.
fn broken() -> Vec<(&'static str, App, Promise)> {
    let app = |name| App::new(name).annotate("cold-start-timeout", "4s");
    let unhealthy = |reason| (condition::WORKLOAD_HEALTHY, "False", reason);
    // Pods are looked at every few seconds, and that one never becomes ready is only said when it has had ten. What sleeps
    // again is no longer unhealthy.
    let patient = |name| app(name).annotate("keep-alive", "15s");
    vec![
        (
            "crashes",
            patient("crashes").arguments(&["crash"]),
            unhealthy(reason::CRASH_LOOP),
        ),
        (
            "imageless",
            // Nobody serves images there, so the answer comes at once.
            patient("imageless").image("127.0.0.1:1/absent:1"),
            unhealthy(reason::IMAGE_PULL),
        ),
        (
            "unready",
            patient("unready").probe("httpGet: {path: /status/500, port: 8080}"),
            unhealthy(reason::NEVER_READY),
        ),
    ]
}

/// The condition, an Event about the Service, and `doctor`'s line.
async fn check(cluster: &Cluster, name: &str, (kind, status, reason): Promise, said: &str) -> Result<()> {
    let what = format!("{kind}={status} {reason}");
    cluster
        .wait_route(name, &what, Duration::from_secs(60), |route| {
            let conditions = route.status.as_ref().map(|status| &status.conditions);
            let found = conditions.and_then(|list| condition::find(list, kind));
            found.is_some_and(|found| {
                found.status == status && found.reason == reason && !found.message.is_empty()
            })
        })
        .await?;
    e2e::wait_for(
        cluster.api::<Event>(),
        &format!("an Event about {name}"),
        SOON,
        |events| {
            events
                .values()
                .any(|event| event.involved_object.name.as_deref() == Some(name))
                .then_some(())
        },
    )
    .await?;
    let (_, doctor, error) = cluster.run(&["doctor", name]).await?;
    ensure!(
        doctor.contains(said),
        "doctor {name} does not say {said:?}:\n{doctor}{error}"
    );
    Ok(())
}

const HPA: &str = "apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: scaled-hpa
  namespace: default
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: scaled}
  minReplicas: 1
  maxReplicas: 5
  metrics:
  - type: Resource
    resource: {name: cpu, target: {type: Utilization, averageUtilization: 80}}
";
