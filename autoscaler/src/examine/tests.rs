//! Each refusal and each warning, by table.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Service;
use serde_json::{Value, json};

use super::*;
use crate::state::RouteKey;
use crate::watch::Index;

fn facts(service: Value, pod: Value) -> Facts {
    let mut object = json!({
        "metadata": { "name": "web", "namespace": "default" },
        "spec": {
            "clusterIP": "10.0.0.1",
            "selector": { "app": "web" },
            "ports": [{ "name": "http", "port": 80, "targetPort": "http" }],
        },
    });
    merge(&mut object, &service);
    let mut template = json!({
        "automountServiceAccountToken": false,
        "containers": [{
            "name": "main",
            "ports": [{ "name": "http", "containerPort": 8080 }],
            "readinessProbe": { "httpGet": { "path": "/ready", "port": "http" } },
        }],
    });
    merge(&mut template, &pod);
    let service = ServiceFacts::from(&serde_json::from_value::<Service>(object).expect("a Service"));
    let workload: Deployment = serde_json::from_value(json!({
        "metadata": { "name": "web", "namespace": "default" },
        "spec": {
            "selector": {},
            "template": { "metadata": { "labels": { "app": "web" } }, "spec": template },
        },
    }))
    .expect("a Deployment");
    let parsed = crds::annotation::parse(&Labels::new(), &service.annotations);
    Facts {
        service,
        namespace: Labels::new(),
        parsed,
        workloads: vec![WorkloadFacts::from(&workload)],
        sharers: vec![],
        rolled_out: None,
        bystanders: vec![],
        hpas: vec![],
        policies: vec![],
    }
}

/// RFC 7396.
fn merge(target: &mut Value, patch: &Value) {
    match (target, patch) {
        (Value::Object(target), Value::Object(patch)) => {
            for (key, value) in patch {
                if value.is_null() {
                    target.remove(key);
                } else {
                    merge(target.entry(key).or_insert(Value::Null), value);
                }
            }
        }
        (target, patch) => *target = patch.clone(),
    }
}

fn reasons(facts: &Facts) -> Vec<&'static str> {
    examine(facts).iter().map(|finding| finding.reason).collect()
}

fn container(fields: Value) -> Value {
    let mut container = json!({ "name": "main", "ports": [{ "name": "http", "containerPort": 8080 }] });
    merge(&mut container, &fields);
    json!({ "containers": [container] })
}

#[test]
fn a_plain_service_has_nothing_to_say_about() {
    assert_eq!(examine(&facts(json!({}), json!({}))), []);
}

#[test]
fn each_refusal_has_its_reason_and_its_fix() {
    let service = |spec: Value| facts(json!({ "spec": spec }), json!({}));
    let port = |protocol: &str| json!([{ "port": 53, "protocol": protocol }]);
    let ambiguous = {
        let mut facts = service(json!({}));
        let mut other = facts.workloads[0].clone();
        other.workload.name = "other".into();
        facts.workloads.push(other);
        facts
    };
    let missing = Facts {
        workloads: vec![],
        ..service(json!({}))
    };
    let settings = |max_scale| Settings {
        enabled: true,
        max_scale,
        ..Settings::default()
    };
    let shared = Facts {
        sharers: vec![("admin".into(), settings(3))],
        ..service(json!({}))
    };
    let rolled_out = Facts {
        rolled_out: Some(("front".into(), "front-rollout".into())),
        ..service(json!({}))
    };
    let hpa = HpaFacts {
        name: "keda-hpa".into(),
        scaled_object: Some("it".into()),
        ..HpaFacts::default()
    };
    let keda = Facts {
        hpas: vec![hpa],
        ..service(json!({}))
    };
    for (facts, reason, word) in [
        (
            service(json!({ "clusterIP": "None" })),
            reason::HEADLESS,
            "clusterIP",
        ),
        (
            service(json!({ "type": "ExternalName" })),
            reason::EXTERNAL_NAME,
            "ExternalName",
        ),
        (
            service(json!({ "selector": null })),
            reason::SELECTORLESS,
            "selector",
        ),
        (
            service(json!({ "ports": port("UDP") })),
            reason::UNSUPPORTED_PROTOCOL,
            "UDP",
        ),
        (
            service(json!({ "ports": port("SCTP") })),
            reason::UNSUPPORTED_PROTOCOL,
            "SCTP",
        ),
        (
            service(json!({ "publishNotReadyAddresses": true })),
            reason::PUBLISHES_NOT_READY,
            "publishNotReady",
        ),
        (missing, reason::WORKLOAD_NOT_FOUND, "dormouse.dev/workload"),
        (
            ambiguous,
            reason::WORKLOAD_AMBIGUOUS,
            "deployment/other and deployment/web",
        ),
        (shared, reason::WORKLOAD_SHARED, "admin"),
        (rolled_out, reason::ROLLED_OUT, "Service front, so Service web"),
        (keda, reason::SCALED_OBJECT, "ScaledObject it"),
    ] {
        let refusals = refusals(&facts);
        let [refusal] = refusals.as_slice() else {
            panic!("{reason}: {refusals:?}")
        };
        assert_eq!(
            (refusal.reason, refusal.condition, refusal.severity),
            (reason, CAPTURED, Severity::Refusal)
        );
        assert!(
            refusal.message.contains(word) && refusal.message.ends_with('.'),
            "{}",
            refusal.message
        );
    }
}

#[test]
fn services_of_equal_configuration_may_share_a_workload() {
    let alike = Settings {
        enabled: true,
        request_timeout: std::time::Duration::from_secs(1),
        ..Settings::default()
    };
    let mut facts = facts(
        json!({ "metadata": { "annotations": { "dormouse.dev/scale-to-zero": "true" } } }),
        json!({}),
    );
    facts.sharers = vec![("admin".into(), alike)];
    assert_eq!(reasons(&facts), Vec::<&str>::new());
}

#[test]
fn each_warning_has_its_reason() {
    let service = |spec: Value| facts(json!({ "spec": spec }), json!({}));
    let annotated = |key: &str, value: &str| {
        facts(
            json!({ "metadata": { "annotations": { key: value } } }),
            json!({}),
        )
    };
    let probe = |probe: Value| facts(json!({}), container(json!({ "readinessProbe": probe })));
    let mut foreign = service(json!({}));
    foreign.workloads[0].replicas_managers = vec!["argocd-controller".into(), SCALE_MANAGER.into()];
    let mut ours = service(json!({}));
    ours.workloads[0].replicas_managers = vec![SCALE_MANAGER.into(), "argocd-controller".into()];
    let mut linkerd = service(json!({ "ports": [{ "port": 80, "targetPort": 8080 }] }));
    linkerd
        .namespace
        .insert("linkerd.io/inject".into(), "enabled".into());
    let mut named = service(json!({}));
    named
        .namespace
        .insert("linkerd.io/inject".into(), "enabled".into());
    for (what, facts, want) in [
        (
            "external policy",
            service(json!({ "externalTrafficPolicy": "Local" })),
            vec![reason::TRAFFIC_POLICY_LOCAL],
        ),
        (
            "internal policy",
            service(json!({ "internalTrafficPolicy": "Local" })),
            vec![reason::TRAFFIC_POLICY_LOCAL],
        ),
        (
            "affinity",
            service(json!({ "sessionAffinity": "ClientIP" })),
            vec![reason::SESSION_AFFINITY],
        ),
        (
            "policies",
            Facts {
                policies: vec!["deny".into()],
                ..service(json!({}))
            },
            vec![reason::NETWORK_POLICY],
        ),
        (
            "bystander",
            Facts {
                bystanders: vec!["old".into()],
                ..service(json!({}))
            },
            vec![reason::BYSTANDER],
        ),
        ("foreign replicas", foreign, vec![reason::FOREIGN_MANAGER]),
        ("our replicas", ours, vec![]),
        ("linkerd, number", linkerd, vec![reason::LINKERD]),
        ("linkerd, name", named, vec![]),
        (
            "no probe",
            facts(json!({}), container(json!({}))),
            vec![reason::NO_READINESS_PROBE],
        ),
        (
            "exec probe",
            probe(json!({ "exec": { "command": ["true"] } })),
            vec![reason::KUBELET_PROBE],
        ),
        (
            "grpc probe",
            probe(json!({ "grpc": { "port": 1 } })),
            vec![reason::KUBELET_PROBE],
        ),
        (
            "tcp probe",
            probe(json!({ "tcpSocket": { "port": 8080 } })),
            vec![],
        ),
        (
            "typing error",
            annotated("dormouse.dev/max-scal", "3"),
            vec![reason::UNKNOWN_ANNOTATION],
        ),
        (
            "bad value",
            annotated("dormouse.dev/max-scale", "many"),
            vec![reason::INVALID_VALUE],
        ),
        (
            "a value whose feature comes later",
            annotated("dormouse.dev/keep-alive", "adaptive"),
            vec![reason::NOT_YET_ACTIVE],
        ),
        (
            "token",
            facts(json!({}), json!({ "automountServiceAccountToken": null })),
            vec![reason::TOKEN_MOUNTED],
        ),
        (
            "cpu limit",
            facts(
                json!({}),
                container(json!({
                    "readinessProbe": { "tcpSocket": { "port": 8080 } },
                    "resources": { "limits": { "cpu": "100m" } },
                })),
            ),
            vec![reason::LOW_CPU_LIMIT],
        ),
    ] {
        assert_eq!(reasons(&facts), want, "{what}");
        assert!(
            examine(&facts)
                .iter()
                .all(|finding| finding.severity != Severity::Refusal),
            "{what}"
        );
    }
}

#[test]
fn the_probe_is_the_pods_own_where_it_can_be_run_from_outside() {
    let http = json!({ "httpGet": {
        "path": "/ready", "port": "http", "httpHeaders": [{ "name": "host", "value": "a.example" }, { "name": "X", "value": "1" }],
    }, "timeoutSeconds": 2, "initialDelaySeconds": 3 });
    let of = |containers: Value| {
        let (probe, target) =
            probe_with_port(&facts(json!({}), json!({ "containers": containers })).workloads[0]);
        (probe.kind, target, probe)
    };
    let one = |fields: Value| {
        let mut container = json!({ "name": "a" });
        merge(&mut container, &fields);
        container
    };
    let (kind, target, probe) = of(json!([one(json!({ "readinessProbe": http }))]));
    assert_eq!(
        (kind, target),
        (ProbeKind::Http, Some(Target::Name("http".into())))
    );
    assert_eq!(
        (probe.path.as_str(), probe.host.as_str()),
        ("/ready", "a.example")
    );
    assert_eq!(
        (probe.headers.len(), probe.timeout_ms, probe.initial_delay_ms),
        (1, 2000, 3000)
    );
    let https = json!({ "httpGet": { "port": 1, "scheme": "HTTPS" } });
    for (what, containers, want) in [
        ("none", json!([one(json!({}))]), ProbeKind::Tcp),
        (
            "tcp",
            json!([one(json!({ "readinessProbe": { "tcpSocket": { "port": 1 } } }))]),
            ProbeKind::Tcp,
        ),
        (
            "https",
            json!([one(json!({ "readinessProbe": https }))]),
            ProbeKind::Kubernetes,
        ),
        (
            "two probed containers",
            json!([
                one(json!({ "readinessProbe": http })),
                one(json!({ "name": "b", "readinessProbe": http }))
            ]),
            ProbeKind::Kubernetes,
        ),
        (
            "another startup probe",
            json!([one(
                json!({ "readinessProbe": http, "startupProbe": { "exec": { "command": ["x"] } } })
            )]),
            ProbeKind::Kubernetes,
        ),
        (
            "the same startup probe",
            json!([one(json!({ "readinessProbe": http, "startupProbe": http }))]),
            ProbeKind::Http,
        ),
    ] {
        assert_eq!(of(containers).0, want, "{what}");
    }
}

#[test]
fn cpu_quantities_are_read_as_kubernetes_writes_them() {
    for (text, want) in [
        ("250m", Some(250)),
        ("0.1", Some(100)),
        ("2", Some(2000)),
        ("x", None),
        ("-1", None),
    ] {
        assert_eq!(cpu_millis(text), want, "{text}");
    }
}

#[test]
fn a_service_that_is_given_back_is_not_warned_of_itself() {
    let index = Index::new("");
    let labels = json!({ "app": "web" });
    for name in ["web", "other"] {
        let service = json!({
            "metadata": { "name": name, "namespace": "default" },
            "spec": { "selector": labels, "ports": [{ "port": 80 }] },
        });
        index.apply(&serde_json::from_value::<Service>(service).expect("a Service"));
    }
    let deployment = json!({
        "metadata": { "name": "web", "namespace": "default" },
        "spec": { "selector": { "matchLabels": labels }, "template": { "metadata": { "labels": labels } } },
    });
    index.apply(&serde_json::from_value::<Deployment>(deployment).expect("a Deployment"));
    let key = RouteKey {
        namespace: "default".into(),
        name: "web".into(),
    };
    let facts = from_index(&index, &key, &[], |_| None, |_| None).expect("it is known");
    assert_eq!(facts.workloads.len(), 1);
    assert_eq!(facts.bystanders, ["other"]);
}
