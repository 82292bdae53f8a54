//! Scenario 10: somebody applies the original manifests again and again, in every way that there is.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use crds::route::Phase;
use crds::{condition, names};
use dormouse_tests::e2e::{self, App, Cluster, Control, Load, SOON, System};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use kube::ResourceExt;

/// The shipped admission policy. The embedded cluster has no admission, so it is tried on a real one only.
const POLICY: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../manifests/components/admission-policy/policy.yaml"
);

#[test]
fn applying_the_original_manifests_every_second_fails_no_request_and_names_who_flaps() {
    e2e::scenario(10, System::Pods, async |cluster: &mut Cluster| {
        let rounds = e2e::size(12, 60);
        let app = App::new("web").annotate("min-scale", "1");
        // One whose Deployment says one replica, and has none: nobody's apply may fail for that.
        let asleep = App::new("asleep");
        cluster.apply(&app).await?;
        cluster.apply(&asleep).await?;
        cluster
            .wait_phase("web", Phase::Awake, Duration::from_secs(60))
            .await?;
        let mut control = Control::prepare(cluster, 1).await?;
        let steady = |urls: &[String]| e2e::steady_over(urls, 50.0);
        control.start(steady).await?;
        let load = Load::start("s10", steady(&cluster.urls("web").await?)?).await?;
        let mut figures = vec![flapping(cluster, &app, rounds).await?];
        figures.push(others(cluster, &asleep).await?);
        figures.push(scaled(cluster).await?);
        if cluster.is_real() {
            kubectl(cluster, &["apply", "-f", POLICY], "").await?;
            let kept = kept_by_the_policy(cluster, &app, rounds).await;
            kubectl(cluster, &["delete", "-f", POLICY], "").await?;
            figures.push(kept?);
        }
        let results = load.stop().await;
        let control = control.stop().await?;
        cluster.witness().proves("s10", &results)?;
        ensure!(results.ok > 0, "there was traffic");
        let max = results.latency.max();
        Ok(format!(
            "{}; {} requests, none failed, max {max:?}{control}",
            figures.join("; "),
            results.ok
        ))
    });
}

/// The ways of applying a manifest. None may fail because of us; all but the first take our key out.
#[derive(Clone, Copy, Debug)]
enum Way {
    ClientSide,
    ServerSide,
    Forced,
    Replace,
}

const WAYS: [Way; 4] = [Way::ClientSide, Way::Forced, Way::ServerSide, Way::Replace];

async fn kubectl(cluster: &Cluster, arguments: &[&str], input: &str) -> Result<bool> {
    Ok(e2e::kubectl(&cluster.kubeconfig, arguments, input)
        .await?
        .is_some())
}

async fn apply(cluster: &Cluster, app: &App, way: Way) -> Result<()> {
    let yaml = app.yaml(cluster);
    let there = match way {
        Way::ClientSide => kubectl(cluster, &["apply", "-f", "-"], &yaml).await?,
        Way::Replace => kubectl(cluster, &["replace", "-f", "-"], &yaml).await?,
        Way::ServerSide => {
            e2e::apply_as(&cluster.client, &yaml, "someone-else", false).await?;
            true
        }
        // With force, as a GitOps controller does: the selector is one value, so this takes our key out of it.
        Way::Forced => {
            e2e::apply_as(&cluster.client, &yaml, "gitops-controller", true).await?;
            true
        }
    };
    if !there {
        e2e::say("scenario 10: kubectl is not on this machine; only server-side applies are made");
    }
    Ok(())
}

/// Every second in another way; who takes the key away is named.
async fn flapping(cluster: &Cluster, app: &App, rounds: usize) -> Result<String> {
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    for way in WAYS.into_iter().cycle().take(rounds) {
        ticks.tick().await;
        apply(cluster, app, way)
            .await
            .with_context(|| format!("{way:?}"))?;
    }
    let conflict = cluster.wait_route("web", "the flapping manager is named", SOON, |route| {
        let conditions = route.status.as_ref().map(|status| &status.conditions);
        let conflict = conditions.and_then(|list| condition::find(list, condition::SELECTOR_CONFLICT));
        conflict.is_some_and(|conflict| {
            conflict.status == "True"
                && ["gitops-controller", "kubectl-replace", "someone-else"]
                    .iter()
                    .any(|name| conflict.message.contains(name))
        })
    });
    let conditions = conflict.await?.status.context("status")?.conditions;
    let message =
        condition::find(&conditions, condition::SELECTOR_CONFLICT).map(|found| found.message.clone());
    Ok(format!("{rounds} applies, {:?}", message.unwrap_or_default()))
}

/// What is asleep is applied in both ways that must not fail, and no conflict names us.
async fn others(cluster: &Cluster, app: &App) -> Result<String> {
    for way in [Way::ServerSide, Way::ClientSide, Way::ServerSide] {
        cluster.wait_asleep(app.name(), Duration::from_secs(60)).await?;
        apply(cluster, app, way)
            .await
            .with_context(|| format!("{way:?} of what sleeps"))?;
    }
    Ok("what sleeps is applied without a conflict".to_owned())
}

/// What we have scaled from one number to another, and never to zero, is applied with the user's own number.
async fn scaled(cluster: &Cluster) -> Result<String> {
    let app = App::new("scaled").annotate("min-scale", "2");
    cluster.apply(&app).await?;
    let owners = async || {
        let workload = cluster.api::<Deployment>().get(app.name()).await.ok()?;
        let of_replicas = |entry: &&ManagedFieldsEntry| {
            let fields = entry.fields_v1.as_ref();
            fields.is_some_and(|fields| !fields.0["f:spec"]["f:replicas"].is_null())
        };
        let nobody = !workload.managed_fields().iter().any(|entry| of_replicas(&entry));
        (nobody && workload.spec?.replicas == Some(2)).then_some(())
    };
    e2e::eventually(
        "two replicas, which belong to nobody",
        Duration::from_secs(60),
        owners,
    )
    .await?;
    apply(cluster, &app, Way::ServerSide)
        .await
        .context("of what we have scaled")?;
    Ok("what we have scaled is applied without a conflict".to_owned())
}

/// With the policy the key never goes, whoever applies.
async fn kept_by_the_policy(cluster: &Cluster, app: &App, rounds: usize) -> Result<String> {
    let key = async || {
        let service = cluster.api::<Service>().get(app.name()).await.ok()?;
        let selector = service.spec?.selector?;
        Some(selector.contains_key(names::CAPTURED_SELECTOR_KEY))
    };
    let there = async || key().await.filter(|there| *there);
    e2e::eventually("the key is back", Duration::from_secs(120), there).await?;
    // A policy takes a moment until every request meets it.
    let kept = async || {
        apply(cluster, app, Way::Forced).await.ok()?;
        let kept = key().await?;
        if !kept {
            e2e::eventually("the key is back", Duration::from_secs(120), there)
                .await
                .ok()?;
        }
        kept.then_some(())
    };
    e2e::eventually("the policy acts", Duration::from_secs(240), kept).await?;
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    for way in WAYS.into_iter().cycle().take(rounds) {
        ticks.tick().await;
        apply(cluster, app, way)
            .await
            .with_context(|| format!("{way:?} with the policy"))?;
        ensure!(
            key().await == Some(true),
            "{way:?} took the key away in spite of the policy"
        );
    }
    Ok(format!("with the policy {rounds} applies and the key stayed"))
}
