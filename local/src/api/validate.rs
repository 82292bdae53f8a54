//! Which objects are refused: names, labels, and the rules of each kind that users meet.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::resources::Resource;
use super::schema::Schema;
use super::selector::Labels;
use super::status::{ApiError, Cause};
use super::{apply, names, scale, workloads};

/// Most bytes of all annotations of an object together, as in Kubernetes.
const MOST_ANNOTATION_BYTES: usize = 256 << 10;

/// Whether a label selector selects an object. A selector that is not there selects nothing.
pub(crate) fn selector_matches(selector: &Value, object: &Value) -> bool {
    selector.is_object()
        && Labels::parse(&scale::selector_text(selector)).is_ok_and(|labels| labels.matches(object))
}

/// Refuses an object that cannot be created.
pub(crate) fn create(resource: &Resource, object: &Value) -> Result<(), ApiError> {
    let mut causes = Vec::new();
    name(resource, object, &mut causes);
    common(resource, object, &mut causes);
    refuse(resource, object, causes)
}

/// Refuses an object that cannot take the place of `live`.
pub(crate) fn update(
    resource: &Resource,
    live: &Value,
    next: &Value,
    subresource: &str,
) -> Result<(), ApiError> {
    let mut causes = Vec::new();
    if subresource == "status" {
        metadata(next, &mut causes);
    } else {
        common(resource, next, &mut causes);
        immutable(resource, live, next, subresource, &mut causes);
    }
    refuse(resource, next, causes)
}

fn refuse(resource: &Resource, object: &Value, causes: Vec<Cause>) -> Result<(), ApiError> {
    if causes.is_empty() {
        return Ok(());
    }
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    Err(ApiError::invalid(&resource.group, &resource.kind, name, &causes))
}

fn name(resource: &Resource, object: &Value, causes: &mut Vec<Cause>) {
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let problem = match (resource.group.as_str(), resource.kind.as_str()) {
        _ if resource.custom => names::subdomain_error(name),
        ("", "Service") => names::label_1035_error(name),
        ("", "Namespace") => names::label_error(name),
        ("rbac.authorization.k8s.io", _) => names::segment_error(name),
        _ => names::subdomain_error(name),
    };
    if let Some(problem) = problem {
        causes.push(Cause::invalid("metadata.name", &json!(name), &problem));
    }
}

fn common(resource: &Resource, object: &Value, causes: &mut Vec<Cause>) {
    metadata(object, causes);
    if resource.custom {
        return;
    }
    required(&resource.schema, object, "", causes);
    match (resource.group.as_str(), resource.kind.as_str()) {
        ("", "Service") => service(object, causes),
        ("", "Pod") => workloads::pod_spec(&object["spec"], "spec", causes),
        ("", "ConfigMap" | "Secret") => data(object, causes),
        ("apps", "Deployment" | "ReplicaSet" | "StatefulSet") => {
            workloads::workload(resource, object, causes)
        }
        ("discovery.k8s.io", "EndpointSlice") => slice(object, causes),
        ("coordination.k8s.io", "Lease") => lease(object, causes),
        ("autoscaling", "HorizontalPodAutoscaler") => autoscaler(object, causes),
        ("apiextensions.k8s.io", "CustomResourceDefinition") => definition(object, causes),
        _ => {}
    }
}

/// Fields that a schema requires, under `spec`. (What the server fills in elsewhere is not asked for.)
fn required(schema: &Schema, object: &Value, path: &str, causes: &mut Vec<Cause>) {
    let Some(spec) = schema.properties.get("spec") else {
        return;
    };
    if object.get("spec").is_some_and(Value::is_object) {
        required_in(spec, &object["spec"], &format!("{path}spec"), causes);
    }
}

fn required_in(schema: &Schema, value: &Value, path: &str, causes: &mut Vec<Cause>) {
    match value {
        Value::Object(map) => {
            for key in &schema.required {
                let empty = map
                    .get(key)
                    .is_none_or(|value| value.is_null() || *value == json!(""));
                // Said with more words by the workload's own rules.
                let own = matches!(key.as_str(), "selector" | "template") && schema.name.contains("apps.v1");
                if empty && !own {
                    causes.push(Cause::required(format!("{path}.{key}"), ""));
                }
            }
            for (key, value) in map {
                if let Some(inner) = schema.child(key) {
                    required_in(inner, value, &format!("{path}.{key}"), causes);
                }
            }
        }
        Value::Array(items) => {
            for (at, item) in items.iter().enumerate() {
                if let Some(inner) = &schema.items {
                    required_in(inner, item, &format!("{path}[{at}]"), causes);
                }
            }
        }
        _ => {}
    }
}

fn metadata(object: &Value, causes: &mut Vec<Cause>) {
    let metadata = &object["metadata"];
    labels(&metadata["labels"], "metadata.labels", causes);
    let mut bytes = 0;
    for (key, value) in metadata["annotations"].as_object().into_iter().flatten() {
        bytes += key.len() + value.as_str().map_or(0, str::len);
        if let Some(why) = names::label_key_error(&key.to_lowercase()) {
            causes.push(Cause::invalid("metadata.annotations", &json!(key), &why));
        }
    }
    if bytes > MOST_ANNOTATION_BYTES {
        causes.push(Cause::too_long("metadata.annotations", MOST_ANNOTATION_BYTES));
    }
    for (at, finalizer) in metadata["finalizers"]
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
    {
        let text = finalizer.as_str().unwrap_or_default();
        let built_in = matches!(text, "foregroundDeletion" | "orphan" | "kubernetes");
        let field = format!("metadata.finalizers[{at}]");
        if let Some(why) = names::label_key_error(text) {
            causes.push(Cause::invalid(field, finalizer, &why));
        } else if !built_in && !text.contains('/') {
            causes.push(Cause::invalid(
                field,
                finalizer,
                "name is neither a standard finalizer name nor is it fully qualified",
            ));
        }
    }
    let mut controllers = 0;
    for (at, owner) in metadata["ownerReferences"]
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
    {
        for key in ["apiVersion", "kind", "name", "uid"] {
            if owner[key].as_str().is_none_or(str::is_empty) {
                let field = format!("metadata.ownerReferences[{at}].{key}");
                causes.push(Cause::invalid(field, &json!(""), "must not be empty"));
            }
        }
        controllers += usize::from(owner["controller"] == true);
    }
    if controllers > 1 {
        causes.push(Cause::invalid(
            "metadata.ownerReferences",
            &metadata["ownerReferences"],
            "Only one reference can have Controller set to true.",
        ));
    }
    causes.extend(apply::check_entries(object));
}

/// Labels of an object or a template.
pub(crate) fn labels(labels: &Value, field: &str, causes: &mut Vec<Cause>) {
    for (key, value) in labels.as_object().into_iter().flatten() {
        if let Some(why) = names::label_key_error(key) {
            causes.push(Cause::invalid(field, &json!(key), &why));
        }
        if let Some(why) = names::label_value_error(value.as_str().unwrap_or_default()) {
            causes.push(Cause::invalid(field, value, &why));
        }
    }
}

/// A port number.
pub(crate) fn port_number(value: &Value, field: String, causes: &mut Vec<Cause>) {
    let good = value.as_i64().is_some_and(|port| (1..=65_535).contains(&port));
    if !good && !value.is_null() {
        causes.push(Cause::invalid(
            field,
            value,
            "must be between 1 and 65535, inclusive",
        ));
    }
}

/// `TCP`, `UDP` or `SCTP`.
pub(crate) fn protocol(value: &Value, field: String, causes: &mut Vec<Cause>) {
    if !matches!(value.as_str(), Some("TCP" | "UDP" | "SCTP")) {
        causes.push(Cause::unsupported(field, value, &["SCTP", "TCP", "UDP"]));
    }
}

/// A port by number or name.
pub(crate) fn port_reference(value: &Value, field: String, causes: &mut Vec<Cause>) {
    match value.as_str() {
        None => port_number(value, field, causes),
        Some(text) => {
            if let Some(why) = names::port_name_error(text) {
                causes.push(Cause::invalid(field, value, &why));
            }
        }
    }
}

fn service(object: &Value, causes: &mut Vec<Cause>) {
    let spec = &object["spec"];
    let kind = spec["type"].as_str().unwrap_or_default();
    let ports: Vec<&Value> = spec["ports"].as_array().into_iter().flatten().collect();
    match kind {
        "ClusterIP" | "NodePort" | "LoadBalancer" => {
            let headless = spec["clusterIP"] == "None";
            if ports.is_empty() && !headless {
                causes.push(Cause::required("spec.ports", ""));
            }
            if headless && kind != "ClusterIP" {
                causes.push(Cause::invalid(
                    "spec.clusterIPs[0]",
                    &json!("None"),
                    &format!("may not be set to 'None' for {kind} services"),
                ));
            }
        }
        "ExternalName" => {
            if spec["externalName"].as_str().is_none_or(str::is_empty) {
                causes.push(Cause::required("spec.externalName", ""));
            }
        }
        _ => causes.push(Cause::unsupported(
            "spec.type",
            &spec["type"],
            &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"],
        )),
    }
    if !matches!(spec["sessionAffinity"].as_str(), Some("None" | "ClientIP")) {
        causes.push(Cause::unsupported(
            "spec.sessionAffinity",
            &spec["sessionAffinity"],
            &["ClientIP", "None"],
        ));
    }
    for key in ["internalTrafficPolicy", "externalTrafficPolicy"] {
        if spec.get(key).is_some() && !matches!(spec[key].as_str(), Some("Cluster" | "Local")) {
            causes.push(Cause::unsupported(
                format!("spec.{key}"),
                &spec[key],
                &["Cluster", "Local"],
            ));
        }
    }
    labels(&spec["selector"], "spec.selector", causes);
    let (mut seen_names, mut seen_ports) = (BTreeSet::new(), BTreeSet::new());
    for (at, port) in ports.iter().enumerate() {
        let field = format!("spec.ports[{at}]");
        let name = port["name"].as_str().unwrap_or_default();
        if name.is_empty() {
            if ports.len() > 1 {
                causes.push(Cause::required(format!("{field}.name"), ""));
            }
        } else if let Some(why) = names::label_error(name) {
            causes.push(Cause::invalid(format!("{field}.name"), &port["name"], &why));
        } else if !seen_names.insert(name) {
            causes.push(Cause::duplicate(format!("{field}.name"), &port["name"]));
        }
        port_number(&port["port"], format!("{field}.port"), causes);
        protocol(&port["protocol"], format!("{field}.protocol"), causes);
        if port.get("targetPort").is_some() {
            port_reference(&port["targetPort"], format!("{field}.targetPort"), causes);
        }
        if !seen_ports.insert((port["port"].as_i64(), port["protocol"].as_str())) {
            let shown = json!({ "port": port["port"], "protocol": port["protocol"] });
            causes.push(Cause::duplicate(field, &shown));
        }
    }
}

fn data(object: &Value, causes: &mut Vec<Cause>) {
    let mut bytes = 0;
    for map in ["data", "binaryData", "stringData"] {
        for (key, value) in object[map].as_object().into_iter().flatten() {
            bytes += value.as_str().map_or(0, str::len);
            let good = key.len() <= 253
                && !matches!(key.as_str(), "." | "..")
                && key
                    .bytes()
                    .all(|it| it.is_ascii_alphanumeric() || matches!(it, b'-' | b'_' | b'.'));
            if !good || key.is_empty() {
                causes.push(Cause::invalid(
                    format!("{map}[{key}]"),
                    &json!(key),
                    "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')",
                ));
            }
        }
    }
    if bytes > 1 << 20 {
        causes.push(Cause::too_long("", 1 << 20));
    }
}

fn slice(object: &Value, causes: &mut Vec<Cause>) {
    let kind = object["addressType"].as_str().unwrap_or_default();
    if kind.is_empty() {
        causes.push(Cause::required("addressType", ""));
    } else if !matches!(kind, "IPv4" | "IPv6" | "FQDN") {
        causes.push(Cause::unsupported(
            "addressType",
            &object["addressType"],
            &["FQDN", "IPv4", "IPv6"],
        ));
    }
    let endpoints: Vec<&Value> = object["endpoints"].as_array().into_iter().flatten().collect();
    if endpoints.len() > 1_000 {
        causes.push(Cause::too_many("endpoints", endpoints.len(), 1_000));
        return;
    }
    for (at, endpoint) in endpoints.iter().enumerate() {
        let addresses: Vec<&Value> = endpoint["addresses"].as_array().into_iter().flatten().collect();
        let field = format!("endpoints[{at}].addresses");
        if addresses.is_empty() {
            causes.push(Cause::required(field.clone(), "must contain at least 1 address"));
        } else if addresses.len() > 100 {
            causes.push(Cause::too_many(field.clone(), addresses.len(), 100));
        }
        for (place, address) in addresses.iter().enumerate() {
            let text = address.as_str().unwrap_or_default();
            let good = match kind {
                "IPv4" => text.parse::<std::net::Ipv4Addr>().is_ok(),
                "IPv6" => text.parse::<std::net::Ipv6Addr>().is_ok(),
                "FQDN" => names::subdomain_error(text).is_none(),
                _ => true,
            };
            if !good {
                let why = if kind == "FQDN" {
                    "should be a domain name".to_owned()
                } else {
                    format!("must be an {kind} address")
                };
                causes.push(Cause::invalid(format!("{field}[{place}]"), address, &why));
            }
        }
    }
    let ports: Vec<&Value> = object["ports"].as_array().into_iter().flatten().collect();
    if ports.len() > 100 {
        causes.push(Cause::too_many("ports", ports.len(), 100));
        return;
    }
    let mut seen = BTreeSet::new();
    for (at, port) in ports.iter().enumerate() {
        let name = port["name"].as_str().unwrap_or_default();
        let field = format!("ports[{at}].name");
        if !seen.insert(name) {
            causes.push(Cause::duplicate(field, &json!(name)));
        } else if let Some(why) = (!name.is_empty()).then(|| names::label_error(name)).flatten() {
            causes.push(Cause::invalid(field, &json!(name), &why));
        }
        protocol(&port["protocol"], format!("ports[{at}].protocol"), causes);
        port_number(&port["port"], format!("ports[{at}].port"), causes);
    }
}

fn lease(object: &Value, causes: &mut Vec<Cause>) {
    let spec = &object["spec"];
    if spec["leaseDurationSeconds"]
        .as_i64()
        .is_some_and(|seconds| seconds <= 0)
    {
        causes.push(Cause::invalid(
            "spec.leaseDurationSeconds",
            &spec["leaseDurationSeconds"],
            "must be greater than 0",
        ));
    }
    if spec["leaseTransitions"].as_i64().is_some_and(|count| count < 0) {
        causes.push(Cause::invalid(
            "spec.leaseTransitions",
            &spec["leaseTransitions"],
            "must be greater than or equal to 0",
        ));
    }
}

fn autoscaler(object: &Value, causes: &mut Vec<Cause>) {
    let spec = &object["spec"];
    if let Some(most) = spec["maxReplicas"].as_i64() {
        if most < 1 {
            causes.push(Cause::invalid(
                "spec.maxReplicas",
                &spec["maxReplicas"],
                "must be greater than 0",
            ));
        }
        let least = spec["minReplicas"].as_i64().unwrap_or(1);
        if least < 1 {
            causes.push(Cause::invalid(
                "spec.minReplicas",
                &json!(least),
                "must be greater than or equal to 1",
            ));
        }
        if most < least {
            causes.push(Cause::invalid(
                "spec.maxReplicas",
                &json!(most),
                "must be greater than or equal to `minReplicas`",
            ));
        }
    }
}

fn definition(object: &Value, causes: &mut Vec<Cause>) {
    let spec = &object["spec"];
    let text = |pointer: &str| spec.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let (group, plural) = (text("/group"), text("/names/plural"));
    let expected = format!("{plural}.{group}");
    if object["metadata"]["name"] != expected.as_str() {
        causes.push(Cause::invalid(
            "metadata.name",
            &object["metadata"]["name"],
            "must be spec.names.plural+\".\"+spec.group",
        ));
    }
    if !matches!(text("/scope"), "Namespaced" | "Cluster") {
        causes.push(Cause::unsupported(
            "spec.scope",
            &spec["scope"],
            &["Cluster", "Namespaced"],
        ));
    }
    let versions: Vec<&Value> = spec["versions"].as_array().into_iter().flatten().collect();
    if versions.is_empty() {
        causes.push(Cause::required("spec.versions", ""));
    }
    if versions.iter().filter(|it| it["storage"] == true).count() != 1 {
        causes.push(Cause::invalid(
            "spec.versions",
            &spec["versions"],
            "must have exactly one version marked as storage version",
        ));
    }
    for (at, version) in versions.iter().enumerate() {
        if version.pointer("/schema/openAPIV3Schema").is_none() {
            causes.push(Cause::required(
                format!("spec.versions[{at}].schema.openAPIV3Schema"),
                "schemas are required",
            ));
        }
    }
}

/// Fields that cannot change.
fn immutable(resource: &Resource, live: &Value, next: &Value, subresource: &str, causes: &mut Vec<Cause>) {
    if resource.custom {
        return;
    }
    let mut fixed = |field: &str| {
        let pointer = format!("/{}", field.replace('.', "/"));
        let (old, new) = (live.pointer(&pointer), next.pointer(&pointer));
        if old != new {
            let shown = new.unwrap_or(&Value::Null);
            causes.push(Cause::invalid(field, shown, "field is immutable"));
        }
    };
    match (resource.group.as_str(), resource.kind.as_str()) {
        ("apps", "Deployment" | "ReplicaSet") => fixed("spec.selector"),
        ("apps", "StatefulSet") => workloads::stateful_set_update(live, next, causes),
        ("apps", "ControllerRevision") => fixed("data"),
        ("discovery.k8s.io", "EndpointSlice") => fixed("addressType"),
        ("", "Secret") => {
            fixed("type");
            frozen(live, next, causes);
        }
        ("", "ConfigMap") => frozen(live, next, causes),
        ("", "Pod") => workloads::pod_update(live, next, subresource, causes),
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding")
            if live["roleRef"] != next["roleRef"] =>
        {
            causes.push(Cause::invalid(
                "roleRef",
                &next["roleRef"],
                "cannot change roleRef",
            ));
        }
        ("", "Service") => service_update(live, next, causes),
        ("apiextensions.k8s.io", "CustomResourceDefinition") => {
            for field in ["spec.group", "spec.scope", "spec.names.plural", "spec.names.kind"] {
                fixed(field);
            }
        }
        _ => {}
    }
}

fn service_update(live: &Value, next: &Value, causes: &mut Vec<Cause>) {
    let kind = |service: &Value| service["spec"]["type"].as_str().unwrap_or_default().to_owned();
    if kind(live) == "ExternalName" || kind(next) == "ExternalName" {
        return;
    }
    if live["spec"]["clusterIP"] != next["spec"]["clusterIP"] {
        causes.push(Cause::invalid(
            "spec.clusterIPs[0]",
            &json!([next["spec"]["clusterIP"]]),
            "may not change once set",
        ));
    }
}

/// ConfigMaps and Secrets that declare themselves immutable.
fn frozen(live: &Value, next: &Value, causes: &mut Vec<Cause>) {
    if live["immutable"] != true {
        return;
    }
    let empty = Map::new();
    if next["immutable"] != true {
        causes.push(Cause::forbidden(
            "immutable",
            "field is immutable when `immutable` is set",
        ));
    }
    for key in ["data", "binaryData"] {
        let map = |value: &Value| value[key].as_object().unwrap_or(&empty).clone();
        if map(live) != map(next) {
            causes.push(Cause::forbidden(
                key,
                "field is immutable when `immutable` is set",
            ));
        }
    }
}
