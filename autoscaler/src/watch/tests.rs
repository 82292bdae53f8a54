//! Typed objects in, reads and marks out.

use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::*;

fn object<K: DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).expect("an object of that kind")
}

fn key(name: &str) -> RouteKey {
    RouteKey {
        namespace: "default".into(),
        name: name.into(),
    }
}

fn pool(name: &str) -> PoolKey {
    PoolKey {
        namespace: "default".into(),
        pool: name.into(),
    }
}

fn service(name: &str, annotations: Value, selector: Value) -> Service {
    object(json!({
        "metadata": { "name": name, "namespace": "default", "uid": format!("uid-{name}"), "annotations": annotations },
        "spec": { "clusterIP": "10.0.0.1", "selector": selector, "ports": [{ "port": 80, "targetPort": "http" }] },
    }))
}

fn opted(name: &str, app: &str) -> Service {
    service(
        name,
        json!({ "dormouse.dev/scale-to-zero": "true" }),
        json!({ "app": app }),
    )
}

fn deployment(name: &str, labels: Value, replicas: u32) -> Deployment {
    object(json!({
        "metadata": { "name": name, "namespace": "default", "uid": format!("uid-{name}") },
        "spec": {
            "replicas": replicas,
            "selector": { "matchLabels": labels },
            "template": { "metadata": { "labels": labels }, "spec": { "containers": [{ "name": "main" }] } },
        },
    }))
}

fn slice(name: &str, labels: Value, endpoints: Value) -> EndpointSlice {
    object(json!({
        "metadata": { "name": name, "namespace": "default", "labels": labels },
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{ "name": "p10000", "port": 8080 }],
    }))
}

/// What is marked now, sorted; and nothing is marked afterwards.
async fn taken<K: std::hash::Hash + Eq + Ord>(dirty: &Dirty<K>) -> Vec<K> {
    let soon = std::time::Duration::from_millis(1);
    let mut keys = tokio::time::timeout(soon, dirty.take()).await.unwrap_or_default();
    keys.sort();
    keys
}

#[tokio::test(start_paused = true)]
async fn only_services_that_are_opted_in_captured_or_routed_are_marked() {
    let index = Index::new("dormouse-system");
    let dirty = index.dirty_services();
    index.apply(&service("plain", json!({}), json!({ "app": "plain" })));
    assert_eq!(taken(&dirty).await, []);
    index.apply(&opted("web", "web"));
    assert_eq!(taken(&dirty).await, [key("web")]);
    index.apply(&service(
        "stray",
        json!({}),
        json!({ "app": "x", "dormouse.dev/captured": "true" }),
    ));
    assert_eq!(taken(&dirty).await, [key("stray")]);
    index.apply(&object::<Route>(
        json!({ "metadata": { "name": "plain", "namespace": "default", "uid": "r" }, "spec": {} }),
    ));
    assert_eq!(taken(&dirty).await, [key("plain")]);
    // The annotation goes away: that is the moment to look, and the last one.
    index.apply(&service("web", json!({}), json!({ "app": "web" })));
    assert_eq!(taken(&dirty).await, [key("web")]);
    assert!(!index.relevant().contains(&key("web")));
}

#[tokio::test(start_paused = true)]
async fn the_same_object_again_marks_nothing() {
    let index = Index::new("dormouse-system");
    let dirty = index.dirty_services();
    let web = opted("web", "web");
    index.apply(&web);
    index.apply(&deployment("web", json!({ "app": "web" }), 1));
    taken(&dirty).await;
    index.apply(&web);
    index.apply(&deployment("web", json!({ "app": "web" }), 1));
    assert_eq!(taken(&dirty).await, []);
}

#[tokio::test(start_paused = true)]
async fn a_namespaces_annotation_opts_all_its_services_in_and_out() {
    let index = Index::new("dormouse-system");
    let dirty = index.dirty_services();
    index.apply(&service("a", json!({}), json!({ "app": "a" })));
    index.apply(&service("b", json!({}), json!({ "app": "b" })));
    let annotated = |value| -> Namespace {
        object(
            json!({ "metadata": { "name": "default", "annotations": { "dormouse.dev/scale-to-zero": value } } }),
        )
    };
    index.apply(&annotated("true"));
    assert_eq!(taken(&dirty).await, [key("a"), key("b")]);
    index.apply(&annotated("false"));
    assert_eq!(taken(&dirty).await, [key("a"), key("b")]);
    assert!(index.relevant().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_workload_finds_its_services_and_they_find_it() {
    let index = Index::new("dormouse-system");
    let (services, pools) = (index.dirty_services(), index.dirty_pools());
    index.apply(&opted("web", "web"));
    index.apply(&service(
        "named",
        json!({ "dormouse.dev/scale-to-zero": "true", "dormouse.dev/workload": "deployment/web" }),
        json!({ "app": "other" }),
    ));
    index.apply(&opted("else", "else"));
    taken(&services).await;
    index.apply(&deployment("web", json!({ "app": "web", "tier": "front" }), 1));
    assert_eq!(taken(&services).await, [key("named"), key("web")]);
    assert_eq!(taken(&pools).await, [pool("web")]);
    for name in ["web", "named"] {
        let found = index.workloads_of(&key(name));
        assert_eq!(
            found
                .iter()
                .map(|each| each.workload.name.as_str())
                .collect::<Vec<_>>(),
            ["web"],
            "{name}"
        );
    }
    assert!(index.workloads_of(&key("else")).is_empty());
    let web = index
        .workload(
            "default",
            &Workload {
                name: "web".into(),
                ..Workload::default()
            },
        )
        .expect("it is there");
    assert_eq!(index.services_of(&web), [key("named"), key("web")].into());
    // Its pods' labels change: who lost it and who wins it both look again.
    index.apply(&deployment("web", json!({ "app": "else" }), 1));
    assert_eq!(taken(&services).await, [key("else"), key("named"), key("web")]);
    index.delete(&deployment("web", json!({ "app": "else" }), 1));
    assert_eq!(taken(&services).await, [key("else"), key("named")]);
}

#[test]
fn our_key_does_not_hide_the_workload_and_an_empty_selector_finds_none() {
    let index = Index::new("dormouse-system");
    index.apply(&deployment("web", json!({ "app": "web" }), 1));
    let annotation = json!({ "dormouse.dev/scale-to-zero": "true" });
    index.apply(&service(
        "web",
        annotation.clone(),
        json!({ "app": "web", "dormouse.dev/captured": "true" }),
    ));
    index.apply(&service(
        "none",
        annotation,
        json!({ "dormouse.dev/captured": "true" }),
    ));
    assert_eq!(index.workloads_of(&key("web")).len(), 1);
    assert_eq!(index.workloads_of(&key("none")).len(), 0);
    let web = index.service(&key("web")).expect("it is there");
    assert!(web.has_key());
    assert_eq!(
        web.real_selector(),
        Labels::from([("app".to_owned(), "web".to_owned())])
    );
}

#[tokio::test(start_paused = true)]
async fn slices_are_told_apart_by_whose_they_are() {
    let index = Index::new("dormouse-system");
    let (services, pools) = (index.dirty_services(), index.dirty_pools());
    index.apply(&opted("web", "web"));
    index.apply(&deployment("web", json!({ "app": "web" }), 1));
    taken(&services).await;
    taken(&pools).await;
    let of_web = json!({ "kubernetes.io/service-name": "web", "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io" });
    index.apply(&slice(
        "web-1",
        of_web,
        json!([
            { "addresses": ["10.1.0.1"], "conditions": { "ready": true } },
            { "addresses": ["10.1.0.2"], "conditions": { "ready": false } },
        ]),
    ));
    assert_eq!(
        (taken(&services).await, taken(&pools).await),
        (vec![key("web")], vec![])
    );
    let ours = json!({ "kubernetes.io/service-name": "web", "endpointslice.kubernetes.io/managed-by": "dormouse.dev" });
    index.apply(&slice(
        "web-dm",
        ours,
        json!([{ "addresses": ["10.2.0.1"], "conditions": { "ready": true } }]),
    ));
    taken(&services).await;
    let private = json!({ "kubernetes.io/service-name": "web-dm", "dormouse.dev/pool": "web" });
    index.apply(&slice("web-dm-1", private, json!([
        { "addresses": ["10.1.0.1"], "conditions": { "ready": true, "serving": true, "terminating": false } },
        { "addresses": ["10.1.0.2"], "conditions": { "ready": true, "serving": false, "terminating": false } },
        { "addresses": ["10.1.0.3"], "conditions": { "ready": true, "serving": true, "terminating": true } },
    ])));
    assert_eq!(
        (taken(&services).await, taken(&pools).await),
        (vec![key("web")], vec![pool("web")])
    );
    let roles: Vec<_> = index
        .slices_of(&key("web"))
        .iter()
        .map(|slice| (slice.role.clone(), slice.ready))
        .collect();
    assert_eq!(roles, [(Role::Other, 1), (Role::Ours, 1)]);
    assert_eq!(index.ready_pods(&pool("web")), 1);
}

#[test]
fn activators_are_read_from_their_own_services_slices() {
    let index = Index::new("dormouse-system");
    let list = index.activators();
    let activators = |addresses: &[&str]| -> EndpointSlice {
        let endpoints: Vec<_> = addresses
            .iter()
            .map(|address| json!({ "addresses": [address], "nodeName": "n1", "zone": "z1" }))
            .collect();
        object(json!({
            "metadata": {
                "name": "a", "namespace": "dormouse-system",
                "labels": { "kubernetes.io/service-name": "dormouse-activator" },
            },
            "addressType": "IPv4",
            "endpoints": endpoints,
            "ports": [{ "name": "admin", "port": 9000 }, { "name": "report", "port": 9001 }],
        }))
    };
    index.apply(&activators(&["10.0.0.2", "10.0.0.1"]));
    let seen: Vec<_> = list
        .borrow()
        .iter()
        .map(|each| (each.address.clone(), each.port, each.zone.clone()))
        .collect();
    let zone = || Some("z1".to_owned());
    assert_eq!(
        seen,
        [
            ("10.0.0.1".to_owned(), 9001, zone()),
            ("10.0.0.2".to_owned(), 9001, zone())
        ]
    );
    index.delete(&activators(&[]));
    assert!(list.borrow().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_new_list_takes_out_what_it_does_not_name() {
    let index = Index::new("dormouse-system");
    let dirty = index.dirty_services();
    index.reset(&[opted("a", "a"), opted("b", "b")]);
    index.apply(&object::<StatefulSet>(json!({
        "metadata": { "name": "b", "namespace": "default" },
        "spec": { "selector": {}, "serviceName": "b", "template": { "metadata": { "labels": { "app": "b" } } } },
    })));
    taken(&dirty).await;
    index.reset(&[opted("a", "a")]);
    assert_eq!(taken(&dirty).await, [key("b")]);
    index.reset::<Deployment>(&[]);
    assert_eq!(
        index.sizes()["workloads"],
        1,
        "a list of Deployments says nothing of StatefulSets"
    );
}

#[test]
fn hpas_are_found_by_what_they_scale_with_the_scaled_object_that_owns_them() {
    let index = Index::new("dormouse-system");
    index.apply(&object::<HorizontalPodAutoscaler>(json!({
        "metadata": {
            "name": "keda-hpa-web", "namespace": "default",
            "ownerReferences": [{ "apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject", "name": "web", "uid": "1" }],
        },
        "spec": { "maxReplicas": 3, "scaleTargetRef": { "apiVersion": "apps/v1", "kind": "Deployment", "name": "web" } },
    })));
    let web = Workload {
        name: "web".into(),
        ..Workload::default()
    };
    let found = index.hpas_of("default", &web);
    assert_eq!(
        found
            .iter()
            .map(|hpa| hpa.scaled_object.as_deref())
            .collect::<Vec<_>>(),
        [Some("web")]
    );
}

#[test]
fn a_workload_with_a_note_is_an_orphan_until_a_service_means_it() {
    let index = Index::new("dormouse-system");
    let mut web = deployment("web", json!({ "app": "web" }), 0);
    web.metadata.annotations = Some([("dormouse.dev/original-replicas".to_owned(), "2".to_owned())].into());
    index.apply(&web);
    let orphans: Vec<_> = index
        .orphans()
        .iter()
        .map(|each| each.original_replicas)
        .collect();
    assert_eq!(orphans, [Some(2)]);
    index.apply(&opted("web", "web"));
    assert!(index.orphans().is_empty());
}

#[test]
fn who_owns_a_field_is_read_from_managed_fields_the_last_first() {
    let entry = |manager: &str, time: &str, fields: Value| json!({ "manager": manager, "time": time, "fieldsV1": fields });
    let selector = json!({ "f:spec": { "f:selector": {} } });
    let web: Service = object(json!({ "metadata": { "name": "web", "managedFields": [
        entry("kubectl", "2026-01-01T00:00:00Z", selector.clone()),
        entry("dormouse-autoscaler", "2026-01-03T00:00:00Z", selector.clone()),
        entry("flux", "2026-01-02T00:00:00Z", selector),
        entry("other", "2026-01-04T00:00:00Z", json!({ "f:spec": { "f:ports": {} } })),
    ] } }));
    let facts = ServiceFacts::from(&web);
    assert_eq!(
        (facts.selector_managers, facts.we_own_selector),
        (vec!["flux".to_owned(), "kubectl".to_owned()], true)
    );
}

#[test]
fn a_common_label_does_not_make_ten_thousand_services_look_at_each_other() {
    let index = Index::new("dormouse-system");
    for number in 0..10_000 {
        let name = format!("s{number}");
        let labels = json!({ "part-of": "shop", "app": name, "zone": "a" });
        index.apply(&service(
            &name,
            json!({ "dormouse.dev/scale-to-zero": "true" }),
            labels.clone(),
        ));
        index.apply(&deployment(&name, labels, 1));
    }
    let found = index.workloads_of(&key("s77"));
    assert_eq!(found.len(), 1);
    assert_eq!(index.services_of(&found[0]), [key("s77")].into());
}
