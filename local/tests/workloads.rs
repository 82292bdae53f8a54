//! Deployments, StatefulSets, EndpointSlices and garbage collection, with real processes.

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use parking_lot::Mutex;
use serde_json::json;
use support::{Cluster, deployment, get, is_ready, service, shell, until};

async fn ready(cluster: &Cluster, app: &str, count: usize) -> Vec<Pod> {
    until(&format!("{count} ready pods of {app}"), || async {
        let pods = cluster.pods(app).await;
        (pods.len() == count && pods.iter().all(is_ready)).then_some(pods)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_answers_on_its_own_address_from_every_pod_and_refuses_without_any() {
    let cluster = Cluster::start().await;
    let made: Service = cluster.create(service("web", 21_001)).await;
    let address = format!(
        "{}:21001",
        made.spec.and_then(|it| it.cluster_ip).expect("an address")
    );
    let error = get(&address, "web", "/").await.expect_err("nobody is there");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);

    cluster.create::<Deployment>(deployment("web", 3, 0)).await;
    let pods = ready(&cluster, "web", 3).await;
    let names: BTreeSet<String> = pods.iter().filter_map(|pod| pod.metadata.name.clone()).collect();
    let addresses: BTreeSet<String> = pods
        .iter()
        .filter_map(|it| it.status.as_ref()?.pod_ip.clone())
        .collect();
    assert_eq!(addresses.len(), 3);
    let seen = Mutex::new(BTreeSet::new());
    until("an answer from each pod", || async {
        if let Ok((200, name)) = get(&address, "web", "/").await {
            seen.lock().insert(name);
        }
        (*seen.lock() == names).then_some(())
    })
    .await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_update_keeps_enough_pods_and_an_undo_uses_the_old_replica_set_again() {
    let cluster = Cluster::start().await;
    let mut web = deployment("web", 4, 0);
    web["spec"]["strategy"] =
        json!({ "type": "RollingUpdate", "rollingUpdate": { "maxSurge": 1, "maxUnavailable": 1 } });
    cluster.create::<Deployment>(web).await;
    ready(&cluster, "web", 4).await;
    let deployments = cluster.of::<Deployment>();
    let change = |delay: &str| json!({ "spec": { "template": { "spec": { "containers": [{ "name": "web", "command": ["embedded-cluster", "serve", delay] }] } } } });
    for (delay, sets) in [("30", 2), ("0", 2)] {
        deployments
            .patch("web", &PatchParams::default(), &Patch::Strategic(change(delay)))
            .await
            .expect("patched");
        until("the update's end", || async {
            let pods = cluster.pods("web").await;
            // Wanted, not alive: as on Kubernetes a ReplicaSet may get pods before another has lost its own.
            let sets = cluster.of::<ReplicaSet>();
            let all = sets.list(&ListParams::default()).await.expect("sets");
            let wanted: i32 = all.iter().filter_map(|set| set.spec.as_ref()?.replicas).sum();
            let ready = pods.iter().filter(|pod| is_ready(pod)).count();
            assert!(wanted <= 5, "{wanted} pods wanted with maxSurge 1 over 4");
            assert!(ready >= 3, "{ready} ready pods with maxUnavailable 1 of 4");
            let status = deployments
                .get("web")
                .await
                .expect("web")
                .status
                .unwrap_or_default();
            let done = status.updated_replicas == Some(4)
                && status.replicas == Some(4)
                && status.available_replicas == Some(4);
            let wanted = pods.iter().filter(|pod| is_ready(pod)).all(|pod| {
                let command = pod
                    .spec
                    .as_ref()
                    .and_then(|it| it.containers[0].command.clone())
                    .unwrap_or_default();
                command.last().map(String::as_str) == Some(delay)
            });
            (done && wanted && pods.len() == 4).then_some(())
        })
        .await;
        let all = cluster
            .of::<ReplicaSet>()
            .list(&ListParams::default())
            .await
            .expect("sets");
        assert_eq!(
            all.items.len(),
            sets,
            "a template that was used before has its ReplicaSet already"
        );
    }
    let web = until("a condition", || async {
        let web = deployments.get("web").await.expect("web");
        let conditions = web
            .status
            .clone()
            .and_then(|it| it.conditions)
            .unwrap_or_default();
        let progressed = conditions
            .iter()
            .any(|it| it.reason.as_deref() == Some("NewReplicaSetAvailable"));
        progressed.then_some(web)
    })
    .await;
    assert_eq!(
        web.metadata
            .annotations
            .and_then(|it| it.get("deployment.kubernetes.io/revision").cloned())
            .as_deref(),
        Some("3")
    );
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn recreate_starts_nothing_before_all_is_gone() {
    let cluster = Cluster::start().await;
    let mut web = deployment("web", 2, 0);
    web["spec"]["strategy"] = json!({ "type": "Recreate" });
    cluster.create::<Deployment>(web).await;
    ready(&cluster, "web", 2).await;
    let change = json!({ "spec": { "template": { "metadata": { "labels": { "version": "2" } } } } });
    cluster
        .of::<Deployment>()
        .patch("web", &PatchParams::default(), &Patch::Merge(change))
        .await
        .expect("patched");
    until("the new pods", || async {
        let pods = cluster.pods("web").await;
        let new = |pod: &&Pod| {
            pod.metadata
                .labels
                .as_ref()
                .is_some_and(|it| it.contains_key("version"))
        };
        let (new, old) = (
            pods.iter().filter(new).count(),
            pods.iter().filter(|pod| !new(pod)).count(),
        );
        assert!(new == 0 || old == 0, "{old} old pods beside {new} new ones");
        (new == 2 && pods.iter().all(is_ready)).then_some(())
    })
    .await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slices_say_ready_serving_and_terminating_as_kubernetes_does() {
    let cluster = Cluster::start().await;
    let mut slow = shell(
        "slow",
        "trap 'sleep 2; exit 0' TERM; while :; do sleep 0.05; done",
    );
    slow["spec"]["containers"][0]["ports"] = json!([{ "containerPort": 8080, "name": "http" }]);
    let mut open = service("slow", 21_002);
    open["metadata"]["labels"] = json!({ "team": "a" });
    cluster.create::<Service>(open).await;
    let of_service = ListParams::default().labels("kubernetes.io/service-name=slow");
    let slices = cluster.of::<EndpointSlice>();
    let placeholder = until("a placeholder", || async {
        let found = slices.list(&of_service).await.expect("slices").items;
        (found.len() == 1).then(|| found[0].clone())
    })
    .await;
    assert!(placeholder.endpoints.is_empty());
    assert_eq!(
        placeholder
            .metadata
            .labels
            .and_then(|it| it.get("team").cloned())
            .as_deref(),
        Some("a")
    );

    cluster.create::<Pod>(slow).await;
    let state = |wanted: (bool, bool, bool)| {
        let (slices, of_service) = (&slices, &of_service);
        until("the endpoint's state", move || async move {
            let found = slices.list(of_service).await.expect("slices").items;
            let endpoint = found
                .iter()
                .flat_map(|slice| slice.endpoints.iter())
                .next()
                .cloned()?;
            let it = endpoint.conditions.clone().unwrap_or_default();
            let is = (
                it.ready == Some(true),
                it.serving == Some(true),
                it.terminating == Some(true),
            );
            (is == wanted).then_some((endpoint, found[0].clone()))
        })
    };
    let (endpoint, slice) = state((true, true, false)).await;
    assert_eq!(
        endpoint.target_ref.and_then(|it| it.name).as_deref(),
        Some("slow")
    );
    let pod = cluster.of::<Pod>().get("slow").await.expect("the pod");
    let given = pod
        .metadata
        .annotations
        .and_then(|it| it.get("dormouse.dev/port").cloned());
    let port = slice.ports.and_then(|it| it[0].port).map(|it| it.to_string());
    assert_eq!(port, given, "the port in PORT stands for the declared one");
    cluster
        .of::<Pod>()
        .delete("slow", &DeleteParams::default())
        .await
        .expect("deleted");
    state((false, true, true)).await;
    until("no endpoints", || async {
        let found = slices.list(&of_service).await.expect("slices").items;
        found.iter().all(|slice| slice.endpoints.is_empty()).then_some(())
    })
    .await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stateful_set_starts_in_order_and_ends_from_the_top() {
    let cluster = Cluster::start().await;
    let mut db = deployment("db", 2, 100);
    db["spec"]["serviceName"] = json!("db");
    cluster.create::<StatefulSet>(db).await;
    let names = |pods: &[Pod]| {
        pods.iter()
            .filter_map(|pod| pod.metadata.name.clone())
            .collect::<Vec<_>>()
    };
    until("both pods", || async {
        let pods = cluster.pods("db").await;
        let first_ready = pods
            .iter()
            .any(|pod| pod.metadata.name.as_deref() == Some("db-0") && is_ready(pod));
        assert!(pods.len() < 2 || first_ready, "db-1 stands before db-0 was ready");
        (pods.len() == 2 && pods.iter().all(is_ready)).then_some(())
    })
    .await;
    let fewer = json!({ "spec": { "replicas": 1 } });
    cluster
        .of::<StatefulSet>()
        .patch("db", &PatchParams::default(), &Patch::Merge(fewer))
        .await
        .expect("patched");
    let left = ready(&cluster, "db", 1).await;
    assert_eq!(names(&left), ["db-0"]);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_owner_leaves_is_collected_in_the_way_that_was_asked_for() {
    let cluster = Cluster::start().await;
    let (deployments, sets) = (cluster.of::<Deployment>(), cluster.of::<ReplicaSet>());
    for (name, how) in [
        ("back", DeleteParams::background()),
        ("fore", DeleteParams::foreground()),
    ] {
        cluster.create::<Deployment>(deployment(name, 1, 0)).await;
        ready(&cluster, name, 1).await;
        deployments.delete(name, &how).await.expect("deleted");
        let of_app = ListParams::default().labels(&format!("app={name}"));
        until(&format!("all of {name} gone"), || async {
            let owner = deployments.get_opt(name).await.expect("an answer");
            let sets = sets.list(&of_app).await.expect("sets").items.len();
            let pods = cluster.pods(name).await.len();
            if name == "fore" && owner.is_none() {
                assert_eq!(
                    sets, 0,
                    "an owner deleted in the foreground goes after what blocks it"
                );
            }
            (owner.is_none() && sets + pods == 0).then_some(())
        })
        .await;
    }
    cluster.create::<Deployment>(deployment("kept", 1, 0)).await;
    ready(&cluster, "kept", 1).await;
    deployments
        .delete("kept", &DeleteParams::orphan())
        .await
        .expect("deleted");
    until("the owner gone", || async {
        deployments
            .get_opt("kept")
            .await
            .expect("an answer")
            .is_none()
            .then_some(())
    })
    .await;
    let of_app = ListParams::default().labels("app=kept");
    let left = sets.list(&of_app).await.expect("sets").items;
    assert_eq!(left.len(), 1);
    assert!(
        left[0]
            .metadata
            .owner_references
            .iter()
            .flatten()
            .next()
            .is_none()
    );
    assert_eq!(cluster.pods("kept").await.len(), 1);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_of_an_owner_that_never_was_goes_and_one_of_an_owner_that_is_stays() {
    let cluster = Cluster::start().await;
    let owner: ConfigMap = cluster.create(json!({ "metadata": { "name": "owner" } })).await;
    let owned = |name: &str, uid: &str| {
        json!({ "metadata": { "name": name, "ownerReferences": [
            { "apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": uid },
        ] } })
    };
    cluster
        .create::<ConfigMap>(owned("good", &owner.metadata.uid.expect("a uid")))
        .await;
    cluster
        .create::<ConfigMap>(owned("bad", "00000000-0000-0000-0000-000000000000"))
        .await;
    let maps = cluster.of::<ConfigMap>();
    until("the orphan gone", || async {
        maps.get_opt("bad")
            .await
            .expect("an answer")
            .is_none()
            .then_some(())
    })
    .await;
    assert!(maps.get_opt("good").await.expect("an answer").is_some());
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_takes_all_that_is_in_it_along() {
    let cluster = Cluster::start().await;
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    let shop: Namespace =
        serde_json::from_value(json!({ "metadata": { "name": "shop" } })).expect("a namespace");
    namespaces
        .create(&PostParams::default(), &shop)
        .await
        .expect("created");
    let deployments: Api<Deployment> = Api::namespaced(cluster.client.clone(), "shop");
    let web = serde_json::from_value(deployment("web", 1, 0)).expect("a Deployment");
    deployments
        .create(&PostParams::default(), &web)
        .await
        .expect("created");
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), "shop");
    until("a ready pod", || async {
        let found = pods.list(&ListParams::default()).await.expect("pods").items;
        found.iter().any(is_ready).then_some(())
    })
    .await;
    namespaces
        .delete("shop", &DeleteParams::default())
        .await
        .expect("deleted");
    until("the namespace gone", || async {
        let gone = namespaces.get_opt("shop").await.expect("an answer").is_none();
        gone.then_some(())
    })
    .await;
    let all: Api<Pod> = Api::all(cluster.client.clone());
    assert!(
        all.list(&ListParams::default())
            .await
            .expect("pods")
            .items
            .is_empty()
    );
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_that_makes_no_progress_says_so() {
    let cluster = Cluster::start().await;
    let mut never = deployment("never", 1, 0);
    never["spec"]["progressDeadlineSeconds"] = json!(1);
    never["spec"]["template"]["spec"]["containers"][0]["readinessProbe"]["httpGet"]["path"] =
        json!("/broken");
    cluster.create::<Deployment>(never).await;
    let deployments = cluster.of::<Deployment>();
    until("ProgressDeadlineExceeded", || async {
        let status = deployments
            .get("never")
            .await
            .expect("never")
            .status
            .unwrap_or_default();
        let conditions = status.conditions.unwrap_or_default();
        conditions
            .iter()
            .any(|it| it.reason.as_deref() == Some("ProgressDeadlineExceeded"))
            .then_some(())
    })
    .await;
    tokio::time::timeout(Duration::from_secs(10), cluster.end())
        .await
        .expect("an end in time");
}
