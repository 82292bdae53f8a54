//! The rules of pods and of what makes them.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::names;
use super::resources::Resource;
use super::status::Cause;
use super::validate::{labels, port_number, port_reference, protocol, selector_matches};

fn not_negative(value: &Value, field: String, causes: &mut Vec<Cause>) {
    if value.as_i64().is_some_and(|number| number < 0) {
        causes.push(Cause::invalid(field, value, "must be greater than or equal to 0"));
    }
}

/// Deployments, ReplicaSets and StatefulSets.
pub(crate) fn workload(resource: &Resource, object: &Value, causes: &mut Vec<Cause>) {
    let spec = &object["spec"];
    for key in [
        "replicas",
        "minReadySeconds",
        "revisionHistoryLimit",
        "progressDeadlineSeconds",
    ] {
        not_negative(&spec[key], format!("spec.{key}"), causes);
    }
    let selector = &spec["selector"];
    if !selector.is_object() {
        causes.push(Cause::required("spec.selector", ""));
    } else if selector.as_object().is_some_and(serde_json::Map::is_empty) {
        let why = format!("empty selector is invalid for {}", resource.kind.to_lowercase());
        causes.push(Cause::invalid("spec.selector", selector, &why));
    } else {
        label_selector(selector, "spec.selector", causes);
    }
    let template = &spec["template"];
    if selector.is_object() && !selector_matches(selector, template) {
        causes.push(Cause::invalid(
            "spec.template.metadata.labels",
            &template["metadata"]["labels"],
            "`selector` does not match template `labels`",
        ));
    }
    labels(
        &template["metadata"]["labels"],
        "spec.template.metadata.labels",
        causes,
    );
    pod_spec(&template["spec"], "spec.template.spec", causes);
    let policy = &template["spec"]["restartPolicy"];
    if policy.is_string() && policy != "Always" {
        causes.push(Cause::unsupported(
            "spec.template.spec.restartPolicy",
            policy,
            &["Always"],
        ));
    }
    if resource.kind == "Deployment" {
        strategy(&spec["strategy"], causes);
        let (ready, deadline) = (
            spec["minReadySeconds"].as_i64(),
            spec["progressDeadlineSeconds"].as_i64(),
        );
        if let (Some(ready), Some(deadline)) = (ready.or(Some(0)), deadline)
            && deadline <= ready
        {
            causes.push(Cause::invalid(
                "spec.progressDeadlineSeconds",
                &json!(deadline),
                "must be greater than minReadySeconds",
            ));
        }
    }
}

/// A selector with `matchLabels` and `matchExpressions`.
fn label_selector(selector: &Value, field: &str, causes: &mut Vec<Cause>) {
    labels(&selector["matchLabels"], &format!("{field}.matchLabels"), causes);
    for (at, expression) in selector["matchExpressions"]
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
    {
        let field = format!("{field}.matchExpressions[{at}]");
        let some = expression["values"].as_array().is_some_and(|all| !all.is_empty());
        match expression["operator"].as_str() {
            Some("In" | "NotIn") if !some => causes.push(Cause::required(
                format!("{field}.values"),
                "must be specified when `operator` is 'In' or 'NotIn'",
            )),
            Some("Exists" | "DoesNotExist") if some => causes.push(Cause::forbidden(
                format!("{field}.values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            )),
            Some("In" | "NotIn" | "Exists" | "DoesNotExist") => {}
            _ => causes.push(Cause::invalid(
                format!("{field}.operator"),
                &expression["operator"],
                "not a valid selector operator",
            )),
        }
    }
}

fn strategy(strategy: &Value, causes: &mut Vec<Cause>) {
    match strategy["type"].as_str() {
        Some("Recreate") => {
            if strategy.get("rollingUpdate").is_some() {
                causes.push(Cause::forbidden(
                    "spec.strategy.rollingUpdate",
                    "may not be specified when strategy `type` is 'Recreate'",
                ));
            }
        }
        Some("RollingUpdate") => {
            let mut zero = true;
            for key in ["maxUnavailable", "maxSurge"] {
                let value = &strategy["rollingUpdate"][key];
                let field = format!("spec.strategy.rollingUpdate.{key}");
                match value {
                    Value::String(text) => {
                        let number = text
                            .strip_suffix('%')
                            .filter(|text| text.bytes().all(|it| it.is_ascii_digit()));
                        match number.and_then(|text| text.parse::<u32>().ok()) {
                            None => causes.push(Cause::invalid(
                                field,
                                value,
                                "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')",
                            )),
                            Some(number) if key == "maxUnavailable" && number > 100 => {
                                causes.push(Cause::invalid(field, value, "must not be greater than 100%"));
                            }
                            Some(number) => zero &= number == 0,
                        }
                    }
                    other => {
                        not_negative(other, field, causes);
                        zero &= other.as_i64() == Some(0);
                    }
                }
            }
            if zero {
                causes.push(Cause::invalid(
                    "spec.strategy.rollingUpdate.maxUnavailable",
                    &strategy["rollingUpdate"]["maxUnavailable"],
                    "may not be 0 when `maxSurge` is 0",
                ));
            }
        }
        _ => causes.push(Cause::unsupported(
            "spec.strategy.type",
            &strategy["type"],
            &["Recreate", "RollingUpdate"],
        )),
    }
}

/// A pod's spec, in a pod or a template.
pub(crate) fn pod_spec(spec: &Value, field: &str, causes: &mut Vec<Cause>) {
    let containers: Vec<&Value> = spec["containers"].as_array().into_iter().flatten().collect();
    if containers.is_empty() {
        causes.push(Cause::required(format!("{field}.containers"), ""));
    }
    let mut volumes = BTreeSet::new();
    for (at, volume) in spec["volumes"].as_array().into_iter().flatten().enumerate() {
        let name = volume["name"].as_str().unwrap_or_default();
        if !name.is_empty() && !volumes.insert(name) {
            causes.push(Cause::duplicate(
                format!("{field}.volumes[{at}].name"),
                &volume["name"],
            ));
        }
    }
    let mut seen = BTreeSet::new();
    for key in ["initContainers", "containers"] {
        for (at, one) in spec[key].as_array().into_iter().flatten().enumerate() {
            let field = format!("{field}.{key}[{at}]");
            let name = one["name"].as_str().unwrap_or_default();
            if !name.is_empty() {
                if let Some(why) = names::label_error(name) {
                    causes.push(Cause::invalid(format!("{field}.name"), &one["name"], &why));
                } else if !seen.insert(name) {
                    causes.push(Cause::duplicate(format!("{field}.name"), &one["name"]));
                }
            }
            container(one, &field, &volumes, causes);
        }
    }
    not_negative(
        &spec["terminationGracePeriodSeconds"],
        format!("{field}.terminationGracePeriodSeconds"),
        causes,
    );
    let policy = &spec["restartPolicy"];
    if policy.is_string() && !matches!(policy.as_str(), Some("Always" | "OnFailure" | "Never")) {
        causes.push(Cause::unsupported(
            format!("{field}.restartPolicy"),
            policy,
            &["Always", "Never", "OnFailure"],
        ));
    }
    labels(&spec["nodeSelector"], &format!("{field}.nodeSelector"), causes);
}

fn container(container: &Value, field: &str, volumes: &BTreeSet<&str>, causes: &mut Vec<Cause>) {
    let image = container["image"].as_str().unwrap_or_default();
    if image.is_empty() {
        causes.push(Cause::required(format!("{field}.image"), ""));
    } else if image.trim() != image {
        causes.push(Cause::invalid(
            format!("{field}.image"),
            &container["image"],
            "must not have leading or trailing whitespace",
        ));
    }
    if !matches!(
        container["imagePullPolicy"].as_str(),
        None | Some("Always" | "IfNotPresent" | "Never")
    ) {
        causes.push(Cause::unsupported(
            format!("{field}.imagePullPolicy"),
            &container["imagePullPolicy"],
            &["Always", "IfNotPresent", "Never"],
        ));
    }
    let mut seen = BTreeSet::new();
    for (at, port) in container["ports"].as_array().into_iter().flatten().enumerate() {
        let field = format!("{field}.ports[{at}]");
        if let Some(name) = port["name"].as_str() {
            if let Some(why) = names::port_name_error(name) {
                causes.push(Cause::invalid(format!("{field}.name"), &port["name"], &why));
            } else if !seen.insert(name) {
                causes.push(Cause::duplicate(format!("{field}.name"), &port["name"]));
            }
        }
        port_number(&port["containerPort"], format!("{field}.containerPort"), causes);
        protocol(&port["protocol"], format!("{field}.protocol"), causes);
    }
    for (at, env) in container["env"].as_array().into_iter().flatten().enumerate() {
        let field = format!("{field}.env[{at}]");
        if env["name"].as_str().is_some_and(|name| name.contains('=')) {
            causes.push(Cause::invalid(format!("{field}.name"), &env["name"], "a valid environment variable name must consist only of printable ASCII characters other than '='"));
        }
        if env["value"].as_str().is_some_and(|it| !it.is_empty()) && env["valueFrom"].is_object() {
            causes.push(Cause::invalid(
                format!("{field}.valueFrom"),
                &json!(""),
                "may not be specified when `value` is not empty",
            ));
        }
    }
    for (at, mount) in container["volumeMounts"]
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
    {
        if mount["name"].as_str().is_some_and(|name| !volumes.contains(name)) {
            causes.push(Cause {
                reason: "FieldValueNotFound",
                field: format!("{field}.volumeMounts[{at}].name"),
                message: format!("Not found: {}", mount["name"]),
            });
        }
    }
    for key in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if container[key].is_object() {
            probe(&container[key], &format!("{field}.{key}"), key, causes);
        }
    }
}

fn probe(probe: &Value, field: &str, kind: &str, causes: &mut Vec<Cause>) {
    let handlers = ["exec", "httpGet", "tcpSocket", "grpc"];
    let count = handlers.iter().filter(|key| probe[**key].is_object()).count();
    if count == 0 {
        causes.push(Cause::required(field, "must specify a handler type"));
    } else if count > 1 {
        causes.push(Cause::forbidden(
            field,
            "may not specify more than 1 handler type",
        ));
    }
    for key in ["httpGet", "tcpSocket", "grpc"] {
        if probe[key].is_object() {
            port_reference(&probe[key]["port"], format!("{field}.{key}.port"), causes);
        }
    }
    for key in [
        "initialDelaySeconds",
        "timeoutSeconds",
        "periodSeconds",
        "successThreshold",
        "failureThreshold",
    ] {
        not_negative(&probe[key], format!("{field}.{key}"), causes);
    }
    if kind != "readinessProbe" && probe["successThreshold"].as_i64().is_some_and(|it| it != 1) {
        causes.push(Cause::invalid(
            format!("{field}.successThreshold"),
            &probe["successThreshold"],
            "must be 1",
        ));
    }
}

/// Of a running pod only images, deadlines and tolerations may change.
pub(crate) fn pod_update(live: &Value, next: &Value, subresource: &str, causes: &mut Vec<Cause>) {
    let fixed = |pod: &Value| {
        let mut spec = pod["spec"].clone();
        if let Some(map) = spec.as_object_mut() {
            for key in [
                "activeDeadlineSeconds",
                "tolerations",
                "terminationGracePeriodSeconds",
                "schedulingGates",
            ] {
                map.remove(key);
            }
        }
        if subresource == "binding"
            && let Some(map) = spec.as_object_mut()
        {
            map.remove("nodeName");
        }
        for key in ["containers", "initContainers"] {
            for container in spec
                .get_mut(key)
                .and_then(Value::as_array_mut)
                .into_iter()
                .flatten()
            {
                if let Some(map) = container.as_object_mut() {
                    map.remove("image");
                }
            }
        }
        spec
    };
    if fixed(live) != fixed(next) {
        causes.push(Cause::forbidden(
            "spec",
            "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)",
        ));
    }
}

/// What may change of a StatefulSet is a short list.
pub(crate) fn stateful_set_update(live: &Value, next: &Value, causes: &mut Vec<Cause>) {
    const FREE: &[&str] = &[
        "replicas",
        "ordinals",
        "template",
        "updateStrategy",
        "revisionHistoryLimit",
        "persistentVolumeClaimRetentionPolicy",
        "minReadySeconds",
    ];
    let fixed = |set: &Value| {
        let mut spec = set["spec"].as_object().cloned().unwrap_or_default();
        spec.retain(|key, _| !FREE.contains(&key.as_str()));
        spec
    };
    if fixed(live) != fixed(next) {
        causes.push(Cause::forbidden(
            "spec",
            "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
        ));
    }
}
