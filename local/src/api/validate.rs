//! Which objects are refused: names, labels, and the rules of each kind that users meet.

mod kinds;

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
        ("", "Service") => kinds::service(object, causes),
        ("", "Pod") => workloads::pod_spec(&object["spec"], "spec", causes),
        ("", "ConfigMap" | "Secret") => kinds::data(object, causes),
        ("apps", "Deployment" | "ReplicaSet" | "StatefulSet") => {
            workloads::workload(resource, object, causes)
        }
        ("discovery.k8s.io", "EndpointSlice") => kinds::slice(object, causes),
        ("coordination.k8s.io", "Lease") => kinds::lease(object, causes),
        ("autoscaling", "HorizontalPodAutoscaler") => kinds::autoscaler(object, causes),
        ("apiextensions.k8s.io", "CustomResourceDefinition") => kinds::definition(object, causes),
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
