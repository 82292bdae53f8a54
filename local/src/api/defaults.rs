//! What Kubernetes fills in when a manifest says nothing, and what it takes out when an object is created.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::names;
use super::resources::Resource;

/// Takes out what a client cannot set when it creates an object, and sets what only the server can.
pub(crate) fn prepare_create(resource: &Resource, object: &mut Value) {
    if let Some(map) = object.as_object_mut().filter(|_| resource.status) {
        map.remove("status");
    }
    match (resource.group.as_str(), resource.kind.as_str()) {
        ("", "Pod") if !resource.custom => {
            object["status"] = json!({ "phase": "Pending", "qosClass": qos_class(&object["spec"]) });
        }
        ("", "Namespace") if !resource.custom => {
            let name = object["metadata"]["name"].clone();
            object["metadata"]["labels"]["kubernetes.io/metadata.name"] = name;
            object["spec"] = json!({ "finalizers": ["kubernetes"] });
            object["status"] = json!({ "phase": "Active" });
        }
        ("", "Service") if !resource.custom => object["status"] = json!({ "loadBalancer": {} }),
        ("apps" | "policy" | "autoscaling" | "networking.k8s.io", _)
            if resource.status && !resource.custom =>
        {
            object["status"] = initial_status(resource);
        }
        _ => {}
    }
}

fn initial_status(resource: &Resource) -> Value {
    match resource.kind.as_str() {
        "ReplicaSet" => json!({ "replicas": 0 }),
        "StatefulSet" => json!({ "replicas": 0, "availableReplicas": 0 }),
        "HorizontalPodAutoscaler" if resource.version == "v1" => {
            json!({ "currentReplicas": 0, "desiredReplicas": 0 })
        }
        "HorizontalPodAutoscaler" => json!({ "desiredReplicas": 0, "currentMetrics": null }),
        "PodDisruptionBudget" => {
            json!({ "currentHealthy": 0, "desiredHealthy": 0, "disruptionsAllowed": 0, "expectedPods": 0 })
        }
        "Ingress" => json!({ "loadBalancer": {} }),
        _ => json!({}),
    }
}

/// Guaranteed, Burstable or BestEffort, from the containers' CPU and memory.
fn qos_class(spec: &Value) -> &'static str {
    let containers: Vec<&Value> = spec["containers"].as_array().into_iter().flatten().collect();
    let set = |value: &Value| value.as_object().is_some_and(|map| !map.is_empty());
    let none = containers
        .iter()
        .all(|it| !set(&it["resources"]["requests"]) && !set(&it["resources"]["limits"]));
    let guaranteed = containers.iter().all(|it| {
        ["cpu", "memory"].iter().all(|name| {
            let limit = &it["resources"]["limits"][name];
            let request = &it["resources"]["requests"][name];
            !limit.is_null() && (request.is_null() || request == limit)
        })
    });
    match (none, guaranteed && !containers.is_empty()) {
        (true, _) => "BestEffort",
        (false, true) => "Guaranteed",
        (false, false) => "Burstable",
    }
}

/// Sets a field that is not set.
fn set(object: &mut Value, key: &str, value: impl Into<Value>) {
    if let Some(map) = object.as_object_mut()
        && map.get(key).is_none_or(Value::is_null)
    {
        map.insert(key.to_owned(), value.into());
    }
}

fn each(object: &mut Value, key: &str, mut change: impl FnMut(&mut Value)) {
    if let Some(items) = object.get_mut(key).and_then(Value::as_array_mut) {
        items.iter_mut().for_each(&mut change);
    }
}

/// Makes a field an object if it is not set, and changes it.
fn within(object: &mut Value, key: &str, change: impl FnOnce(&mut Value)) {
    if object.is_object() {
        if object.get(key).is_none_or(Value::is_null) {
            object[key] = json!({});
        }
        change(&mut object[key]);
    }
}

/// Fills in an object's defaults.
pub(crate) fn fill(resource: &Resource, object: &mut Value) {
    if resource.custom {
        return;
    }
    match (resource.group.as_str(), resource.kind.as_str()) {
        ("", "Service") => service(object),
        ("", "Pod") => within(object, "spec", |spec| {
            pod_spec(spec);
            set(spec, "enableServiceLinks", true);
        }),
        ("", "Secret") => secret(object),
        ("", "Endpoints") => each(object, "subsets", |subset| {
            each(subset, "ports", |port| set(port, "protocol", "TCP"));
        }),
        ("", "Namespace") => {
            let name = object["metadata"]["name"].clone();
            within(&mut object["metadata"], "labels", |labels| {
                set(labels, "kubernetes.io/metadata.name", name)
            });
            within(object, "spec", |_| {});
            within(object, "status", |status| set(status, "phase", "Active"));
        }
        ("apps", "Deployment") => deployment(object),
        ("apps", "ReplicaSet") => within(object, "spec", |spec| {
            set(spec, "replicas", 1);
            template(spec);
        }),
        ("apps", "StatefulSet") => stateful_set(object),
        ("discovery.k8s.io", "EndpointSlice") => each(object, "ports", |port| {
            set(port, "name", "");
            set(port, "protocol", "TCP");
        }),
        ("autoscaling", "HorizontalPodAutoscaler") => autoscaler(object),
        ("apiextensions.k8s.io", "CustomResourceDefinition") => definition(object),
        ("policy", "PodDisruptionBudget") => {}
        ("networking.k8s.io", "NetworkPolicy") => network_policy(object),
        _ => {}
    }
}

fn service(object: &mut Value) {
    within(object, "spec", |spec| {
        set(spec, "sessionAffinity", "None");
        set(spec, "type", "ClusterIP");
        let kind = spec["type"].as_str().unwrap_or_default().to_owned();
        each(spec, "ports", |port| {
            set(port, "protocol", "TCP");
            if kind != "ExternalName" || port.get("targetPort").is_some() {
                let number = port["port"].clone();
                set(port, "targetPort", number);
            }
        });
        if spec["sessionAffinity"] == "ClientIP" {
            within(spec, "sessionAffinityConfig", |config| {
                within(config, "clientIP", |client| set(client, "timeoutSeconds", 10_800));
            });
        }
        if matches!(kind.as_str(), "NodePort" | "LoadBalancer") {
            set(spec, "externalTrafficPolicy", "Cluster");
        }
        if kind == "LoadBalancer" {
            set(spec, "allocateLoadBalancerNodePorts", true);
        }
        if kind != "ExternalName" {
            set(spec, "internalTrafficPolicy", "Cluster");
        }
    });
}

/// `stringData` is only a way in: it ends up in `data`.
fn secret(object: &mut Value) {
    set(object, "type", "Opaque");
    let texts = object.as_object_mut().and_then(|map| map.remove("stringData"));
    if let Some(Value::Object(texts)) = texts {
        within(object, "data", |data| {
            for (key, text) in texts {
                data[key] = json!(STANDARD.encode(text.as_str().unwrap_or_default()));
            }
        });
    }
}

fn template(spec: &mut Value) {
    if spec.get("template").is_some() {
        within(spec, "template", |template| {
            if let Some(metadata) = template.as_object_mut() {
                metadata.entry("metadata").or_insert_with(|| json!({}));
            }
            within(template, "spec", pod_spec);
        });
    }
}

fn deployment(object: &mut Value) {
    within(object, "spec", |spec| {
        set(spec, "replicas", 1);
        set(spec, "revisionHistoryLimit", 10);
        set(spec, "progressDeadlineSeconds", 600);
        within(spec, "strategy", |strategy| {
            set(strategy, "type", "RollingUpdate");
            if strategy["type"] == "RollingUpdate" {
                within(strategy, "rollingUpdate", |rolling| {
                    set(rolling, "maxUnavailable", "25%");
                    set(rolling, "maxSurge", "25%");
                });
            }
        });
        template(spec);
    });
}

fn stateful_set(object: &mut Value) {
    within(object, "spec", |spec| {
        set(spec, "replicas", 1);
        set(spec, "revisionHistoryLimit", 10);
        set(spec, "podManagementPolicy", "OrderedReady");
        within(spec, "updateStrategy", |strategy| {
            set(strategy, "type", "RollingUpdate");
            if strategy["type"] == "RollingUpdate" {
                within(strategy, "rollingUpdate", |rolling| set(rolling, "partition", 0));
            }
        });
        within(spec, "persistentVolumeClaimRetentionPolicy", |policy| {
            set(policy, "whenDeleted", "Retain");
            set(policy, "whenScaled", "Retain");
        });
        template(spec);
    });
}

fn pod_spec(spec: &mut Value) {
    set(spec, "restartPolicy", "Always");
    set(spec, "terminationGracePeriodSeconds", 30);
    set(spec, "dnsPolicy", "ClusterFirst");
    set(spec, "schedulerName", "default-scheduler");
    set(spec, "securityContext", json!({}));
    if let Some(account) = spec
        .get("serviceAccountName")
        .or_else(|| spec.get("serviceAccount"))
        .cloned()
    {
        set(spec, "serviceAccountName", account.clone());
        spec["serviceAccount"] = account;
    }
    let host = spec["hostNetwork"] == true;
    for key in ["initContainers", "containers"] {
        each(spec, key, |it| container(it, host));
    }
    each(spec, "volumes", volume);
}

fn container(container: &mut Value, host: bool) {
    set(container, "terminationMessagePath", "/dev/termination-log");
    set(container, "terminationMessagePolicy", "File");
    set(container, "resources", json!({}));
    let image = container["image"].as_str().unwrap_or_default();
    let tag = image
        .rsplit('/')
        .next()
        .unwrap_or_default()
        .split_once(':')
        .map(|it| it.1);
    let latest = !image.contains('@') && matches!(tag, None | Some("latest"));
    set(
        container,
        "imagePullPolicy",
        if latest { "Always" } else { "IfNotPresent" },
    );
    each(container, "ports", |port| {
        set(port, "protocol", "TCP");
        if host {
            let number = port["containerPort"].clone();
            set(port, "hostPort", number);
        }
    });
    each(container, "env", |env| {
        if env.pointer("/valueFrom/fieldRef").is_some() {
            set(&mut env["valueFrom"]["fieldRef"], "apiVersion", "v1");
        }
    });
    if let Some(resources) = container.get_mut("resources").and_then(Value::as_object_mut)
        && let Some(limits) = resources.get("limits").and_then(Value::as_object).cloned()
    {
        // What is limited is requested, unless the manifest says otherwise.
        let requests = resources
            .entry("requests")
            .or_insert_with(|| Value::Object(Map::new()));
        for (name, limit) in limits {
            set(requests, &name, limit);
        }
    }
    for key in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = container.get_mut(key).filter(|probe| probe.is_object()) {
            set(probe, "timeoutSeconds", 1);
            set(probe, "periodSeconds", 10);
            set(probe, "successThreshold", 1);
            set(probe, "failureThreshold", 3);
            http_action(probe);
            if let Some(grpc) = probe.get_mut("grpc") {
                set(grpc, "service", "");
            }
        }
    }
    if let Some(lifecycle) = container.get_mut("lifecycle") {
        for key in ["postStart", "preStop"] {
            if let Some(handler) = lifecycle.get_mut(key) {
                http_action(handler);
            }
        }
    }
}

fn http_action(handler: &mut Value) {
    if let Some(action) = handler.get_mut("httpGet") {
        set(action, "path", "/");
        set(action, "scheme", "HTTP");
    }
}

fn volume(volume: &mut Value) {
    if volume.as_object().is_some_and(|map| map.len() == 1) {
        volume["emptyDir"] = json!({});
    }
    for key in ["configMap", "secret", "downwardAPI", "projected"] {
        if let Some(source) = volume.get_mut(key) {
            set(source, "defaultMode", 420);
        }
    }
    if let Some(path) = volume.get_mut("hostPath") {
        set(path, "type", "");
    }
}

fn autoscaler(object: &mut Value) {
    within(object, "spec", |spec| {
        set(spec, "minReplicas", 1);
        if spec.get("metrics").is_none() {
            spec["metrics"] = json!([{
                "type": "Resource",
                "resource": { "name": "cpu", "target": { "type": "Utilization", "averageUtilization": 80 } },
            }]);
        }
    });
}

fn network_policy(object: &mut Value) {
    within(object, "spec", |spec| {
        if spec.get("policyTypes").is_none() {
            let egress = spec.get("egress").is_some();
            spec["policyTypes"] = if egress {
                json!(["Ingress", "Egress"])
            } else {
                json!(["Ingress"])
            };
        }
        for direction in ["ingress", "egress"] {
            each(spec, direction, |rule| {
                each(rule, "ports", |port| set(port, "protocol", "TCP"))
            });
        }
    });
}

fn definition(object: &mut Value) {
    within(object, "spec", |spec| {
        within(spec, "names", |names| {
            let kind = names["kind"].as_str().unwrap_or_default().to_owned();
            set(names, "singular", kind.to_lowercase());
            set(names, "listKind", format!("{kind}List"));
        });
        within(spec, "conversion", |conversion| {
            set(conversion, "strategy", "None")
        });
    });
}

/// The status of a CustomResourceDefinition that is served.
pub(crate) fn crd_status(crd: &Value) -> Value {
    let mut status = crd
        .get("status")
        .cloned()
        .filter(Value::is_object)
        .unwrap_or_else(|| json!({}));
    status["acceptedNames"] = crd["spec"]["names"].clone();
    let versions = crd["spec"]["versions"].as_array().into_iter().flatten();
    let stored: Vec<&Value> = versions
        .filter(|it| it["storage"] == true)
        .map(|it| &it["name"])
        .collect();
    let mut kept: Vec<Value> = status["storedVersions"].as_array().cloned().unwrap_or_default();
    for version in stored {
        if !kept.contains(version) {
            kept.push(version.clone());
        }
    }
    status["storedVersions"] = Value::Array(kept);
    let done = status["conditions"].as_array().is_some_and(|all| !all.is_empty());
    if !done {
        let condition = |kind: &str, reason: &str, message: &str| {
            json!({
                "type": kind, "status": "True", "reason": reason, "message": message,
                "lastTransitionTime": names::now(),
            })
        };
        status["conditions"] = json!([
            condition("NamesAccepted", "NoConflicts", "no conflicts found"),
            condition(
                "Established",
                "InitialNamesAccepted",
                "the initial names have been accepted"
            ),
        ]);
    }
    status
}

/// Whether the part of the object that its generation counts has changed.
pub(crate) fn spec_differs(resource: &Resource, before: &Value, after: &Value) -> bool {
    if resource.is("discovery.k8s.io", "EndpointSlice") {
        let part = |value: &Value| {
            (
                value["endpoints"].clone(),
                value["ports"].clone(),
                value["addressType"].clone(),
                value["metadata"]["labels"].clone(),
            )
        };
        return part(before) != part(after);
    }
    if !resource.custom {
        // A Deployment's controller copies its annotations to the ReplicaSet: it must see that it has them all.
        let annotated = |value: &Value| {
            let annotations = value["metadata"]["annotations"].as_object();
            let any = annotations.filter(|it| resource.is("apps", "Deployment") && !it.is_empty());
            any.cloned()
        };
        return before.get("spec") != after.get("spec") || annotated(before) != annotated(after);
    }
    let rest = |value: &Value| -> Map<String, Value> {
        let mut map = value.as_object().cloned().unwrap_or_default();
        map.remove("metadata");
        map.remove("apiVersion");
        if resource.status {
            map.remove("status");
        }
        map
    };
    rest(before) != rest(after)
}
