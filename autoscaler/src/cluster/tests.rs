//! Each write: its method, path and body; the gate before it and the count after it.

use std::sync::Arc;

use http_body_util::{BodyExt, Full};
use parking_lot::Mutex;

use super::*;

type Seen = Arc<Mutex<Vec<(String, String, Value)>>>;

/// A server that answers each request with `status` and `answer`, after `wait`.
fn server(status: u16, answer: Value, wait: Duration) -> (Client, Seen) {
    server_of(vec![(status, answer)], wait)
}

/// A server that gives one answer after the other, and then the last again and again.
fn server_of(answers: Vec<(u16, Value)>, wait: Duration) -> (Client, Seen) {
    let seen = Seen::default();
    let log = Arc::clone(&seen);
    let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
        let at = log.lock().len().min(answers.len() - 1);
        let (log, (status, answer)) = (Arc::clone(&log), answers[at].clone());
        async move {
            let (parts, body) = request.into_parts();
            let body = body
                .collect()
                .await
                .map(http_body_util::Collected::to_bytes)
                .unwrap_or_default();
            let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
            log.lock()
                .push((parts.method.to_string(), parts.uri.to_string(), body));
            tokio::time::sleep(wait).await;
            http::Response::builder()
                .status(status)
                .body(Full::new(bytes::Bytes::from(answer.to_string())))
        }
    });
    (Client::new(service, "default"), seen)
}

fn cluster(client: Client, leader: bool) -> (Cluster, Registry) {
    let registry = Registry::new();
    let term = if leader { Term::endless() } else { Term::default() };
    (Cluster::new(client, term, "test", &registry).0, registry)
}

fn counted(registry: &Registry, write: &str, result: &str) -> bool {
    let families = registry.gather();
    let series = families
        .iter()
        .flat_map(prometheus::proto::MetricFamily::get_metric);
    let mut labels = series.map(|metric| {
        metric
            .get_label()
            .iter()
            .map(|pair| pair.value().to_owned())
            .collect::<Vec<_>>()
    });
    labels.any(|values| values.contains(&write.to_owned()) && values.contains(&result.to_owned()))
}

fn workload() -> Workload {
    Workload {
        name: "web".into(),
        ..Workload::default()
    }
}

fn service() -> ServiceFacts {
    ServiceFacts {
        namespace: "default".into(),
        name: "web".into(),
        uid: "u1".into(),
        ..ServiceFacts::default()
    }
}

#[tokio::test]
async fn replicas_are_merged_into_the_scale_subresource_under_our_name() {
    let (client, seen) = server(200, json!({ "metadata": {} }), Duration::ZERO);
    let (cluster, registry) = cluster(client, true);
    cluster
        .scale("default", &workload(), 3)
        .await
        .expect("it is written");
    let (method, uri, body) = seen.lock()[0].clone();
    assert_eq!(
        (method.as_str(), body),
        ("PATCH", json!({ "spec": { "replicas": 3 } }))
    );
    assert_eq!(
        uri,
        "/apis/apps/v1/namespaces/default/deployments/web/scale?fieldManager=dormouse-scale"
    );
    assert!(counted(&registry, "scale", "ok"));
}

#[tokio::test]
async fn who_does_not_lead_writes_nothing() {
    let (client, seen) = server(200, json!({}), Duration::ZERO);
    let (cluster, registry) = cluster(client, false);
    assert!(matches!(
        cluster.scale("default", &workload(), 3).await,
        Err(Error::NotLeader(_))
    ));
    assert!(matches!(
        cluster.add_key(&service()).await,
        Err(Error::NotLeader(_))
    ));
    assert!(matches!(
        cluster.delete_slice("default", "x").await,
        Err(Error::NotLeader(_))
    ));
    assert_eq!(*seen.lock(), []);
    assert!(counted(&registry, "scale", "not_leader"));
}

#[tokio::test(start_paused = true)]
async fn a_write_without_an_answer_ends_after_five_seconds() {
    let (client, _) = server(200, json!({}), Duration::from_secs(60));
    let (cluster, registry) = cluster(client, true);
    let began = tokio::time::Instant::now();
    assert!(matches!(
        cluster.scale("default", &workload(), 1).await,
        Err(Error::Timeout(_))
    ));
    assert_eq!(began.elapsed().as_secs(), 5);
    assert!(counted(&registry, "scale", "timed_out"));
}

#[tokio::test]
async fn what_is_created_is_there_already_only_when_the_server_says_so() {
    for (reason, fine) in [("AlreadyExists", true), ("Conflict", false)] {
        let status =
            json!({ "kind": "Status", "status": "Failure", "code": 409, "message": "m", "reason": reason });
        let (client, _) = server(409, status, Duration::ZERO);
        let created = cluster(client, true)
            .0
            .create_revision(&crds::Revision::default())
            .await;
        assert_eq!(created.is_ok(), fine, "{reason}");
    }
}

#[tokio::test]
async fn answers_are_told_apart() {
    let status = |code: u16| json!({ "kind": "Status", "status": "Failure", "code": code, "message": "m", "reason": "r" });
    for (code, label) in [
        (409, "conflict"),
        (422, "conflict"),
        (404, "gone"),
        (403, "failed"),
        (500, "failed"),
    ] {
        let (client, _) = server(code, status(code), Duration::ZERO);
        let (cluster, registry) = cluster(client, true);
        assert!(cluster.scale("default", &workload(), 1).await.is_err(), "{code}");
        assert!(counted(&registry, "scale", label), "{code}");
    }
    // It names what is wrong with the object itself: looking again does not make that better.
    let mut invalid = status(422);
    invalid["details"] =
        json!({ "causes": [{ "field": "spec.template", "reason": "FieldValueInvalid", "message": "no" }] });
    let (client, _) = server(422, invalid, Duration::ZERO);
    let refused = cluster(client, true).0.scale("default", &workload(), 1).await;
    assert_eq!(refused.expect_err("it is invalid").refusal(), Some("m"));
    let (client, _) = server(404, status(404), Duration::ZERO);
    cluster(client, true)
        .0
        .delete_slice("default", "x")
        .await
        .expect("gone is what was wanted");
}

#[tokio::test]
async fn the_key_is_added_to_this_very_service_and_then_ownership_is_given_up() {
    let ours = json!({ "manager": "dormouse-autoscaler", "operation": "Update", "fieldsV1": { "f:spec": { "f:selector": {} } } });
    let answer = json!({ "metadata": {
        "name": "web", "namespace": "default", "resourceVersion": "8", "managedFields": [ours],
    } });
    let (client, seen) = server(200, answer, Duration::ZERO);
    cluster(client, true)
        .0
        .add_key(&service())
        .await
        .expect("it is written");
    let seen = seen.lock();
    let uri = "/api/v1/namespaces/default/services/web?fieldManager=dormouse-autoscaler";
    assert_eq!(
        seen[0],
        (
            "PATCH".to_owned(),
            uri.to_owned(),
            json!([
                { "op": "test", "path": "/metadata/uid", "value": "u1" },
                { "op": "add", "path": "/spec/selector/dormouse.dev~1captured", "value": "true" },
            ])
        )
    );
    assert_eq!(
        seen[1].2,
        json!([
            { "op": "test", "path": "/metadata/resourceVersion", "value": "8" },
            { "op": "replace", "path": "/metadata/managedFields", "value": [{}] },
        ])
    );
}

#[tokio::test]
async fn a_private_service_publishes_all_addresses_on_ports_named_after_the_route() {
    let (client, seen) = server(200, json!({ "metadata": {} }), Duration::ZERO);
    let wanted = PrivateService {
        pool: crds::report::PoolKey {
            namespace: "default".into(),
            pool: "web".into(),
        },
        selector: Labels::from([("app".to_owned(), "web".to_owned())]),
        ports: vec![(10_000, crate::watch::slim::Target::Name("http".into()))],
        probe: Some(crate::watch::slim::Target::Number(8080)),
        owners: vec![("web".into(), "u1".into())],
    };
    cluster(client, true)
        .0
        .apply_private_service(&wanted)
        .await
        .expect("it is written");
    let (method, uri, body) = seen.lock()[0].clone();
    assert_eq!(method, "PATCH");
    assert!(
        uri.starts_with("/api/v1/namespaces/default/services/web-dm?") && uri.contains("force=true"),
        "{uri}"
    );
    assert_eq!(body["metadata"]["labels"], json!({ "dormouse.dev/pool": "web" }));
    assert_eq!(body["spec"]["clusterIP"], "None");
    assert_eq!(body["spec"]["publishNotReadyAddresses"], true);
    let ports: Vec<_> = body["spec"]["ports"]
        .as_array()
        .expect("ports")
        .iter()
        .map(|port| (port["name"].clone(), port["targetPort"].clone()))
        .collect();
    assert_eq!(
        ports,
        [(json!("p10000"), json!("http")), (json!("probe"), json!(8080))]
    );
}

fn notice(note: &str) -> Notice {
    Notice {
        subject: Subject {
            kind: "Service",
            namespace: "default".into(),
            name: "web".into(),
            uid: "u1".into(),
        },
        warning: true,
        reason: "Headless",
        action: "Capture",
        note: note.into(),
    }
}

#[tokio::test]
async fn events_are_counted_into_the_one_they_repeat_and_never_wait() {
    let (client, seen) = server(201, json!({ "metadata": {}, "eventTime": null }), Duration::ZERO);
    let registry = Registry::new();
    let (cluster, writer) = Cluster::new(client, Term::endless(), "test", &registry);
    for _ in 0..2000 {
        cluster.event(notice("same"));
    }
    assert!(counted(&registry, "dropped", "dropped"));
    let stop = tokio_util::sync::CancellationToken::new();
    stop.cancel();
    writer.run(stop).await;
    assert_eq!(seen.lock().len(), 1, "a thousand repeats are one Event");
    assert_eq!(seen.lock()[0].2["regarding"]["name"], "web");
    assert!(counted(&registry, "repeated", "repeated"));
}

/// Tells one Event to a server that answers so; how often it was tried.
async fn told(answers: &[u16]) -> (usize, Registry) {
    let answers = answers.iter().map(|code| match code {
        201 => (201, json!({ "metadata": {}, "eventTime": null })),
        code => (
            *code,
            json!({ "kind": "Status", "status": "Failure", "code": code, "message": "no" }),
        ),
    });
    let (client, seen) = server_of(answers.collect(), Duration::ZERO);
    let registry = Registry::new();
    let (cluster, writer) = Cluster::new(client, Term::endless(), "test", &registry);
    cluster.event(notice("once"));
    let stop = tokio_util::sync::CancellationToken::new();
    stop.cancel();
    writer.run(stop).await;
    let seen = seen.lock();
    let name = |(_, _, body): &(String, String, Value)| body["metadata"]["name"].clone();
    assert!(
        seen.iter().all(|one| name(one) == name(&seen[0])),
        "each try is of the same Event"
    );
    (seen.len(), registry)
}

#[tokio::test(start_paused = true)]
async fn an_event_that_may_be_taken_later_is_tried_again() {
    for (answers, tries, end) in [
        (&[201][..], 1, "written"),
        (&[503, 429, 201], 3, "written"),
        // The first try has arrived, though its answer said otherwise.
        (&[504, 409], 2, "written"),
        (&[409], 1, "failed"),
        (&[403], 1, "failed"),
        (&[500], 4, "failed"),
    ] {
        let (tried, registry) = told(answers).await;
        assert_eq!(tried, tries, "{answers:?}");
        assert!(counted(&registry, end, end), "{answers:?}");
        assert_eq!(counted(&registry, "retried", "retried"), tries > 1, "{answers:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_event_is_told_only_by_who_leads() {
    let (client, seen) = server(201, json!({ "metadata": {}, "eventTime": null }), Duration::ZERO);
    let registry = Registry::new();
    let (cluster, writer) = Cluster::new(client, Term::default(), "test", &registry);
    cluster.event(notice("not mine to tell"));
    let stop = tokio_util::sync::CancellationToken::new();
    stop.cancel();
    writer.run(stop).await;
    assert!(seen.lock().is_empty() && counted(&registry, "dropped", "dropped"));
}
