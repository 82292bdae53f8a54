//! One stored object, several versions: HPAs (kept as v2), Events (kept as v1 of the core group), and custom resources,
//! whose versions differ by name only.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::Api;
use super::resources::Resource;

/// Whether the resource's version is not the one that is stored.
pub(crate) fn needed(resource: &Resource) -> bool {
    resource.storage_version != resource.api_version()
}

/// The resource in the version in which it is stored.
pub(crate) fn storage_resource(api: &Api, resource: &Arc<Resource>) -> Arc<Resource> {
    if !needed(resource) {
        return Arc::clone(resource);
    }
    let (group, version) = resource
        .storage_version
        .rsplit_once('/')
        .unwrap_or(("", &resource.storage_version));
    let registry = api.registry();
    registry
        .get(group, version, &resource.plural)
        .map_or_else(|| Arc::clone(resource), Arc::clone)
}

/// The object as a client of this version would see it, for field selectors.
pub(crate) fn shown<'a>(resource: &Resource, value: &'a Value) -> std::borrow::Cow<'a, Value> {
    if needed(resource) {
        std::borrow::Cow::Owned(to_version(resource, value.clone()))
    } else {
        std::borrow::Cow::Borrowed(value)
    }
}

/// From the stored version to the resource's.
pub(crate) fn to_version(resource: &Resource, mut value: Value) -> Value {
    if !needed(resource) {
        return value;
    }
    match (resource.group.as_str(), resource.version.as_str()) {
        ("events.k8s.io", _) if !resource.custom => rename(&mut value, EVENT_FIELDS, false),
        ("autoscaling", "v1") if !resource.custom => hpa_to_v1(&mut value),
        _ => {}
    }
    value["apiVersion"] = json!(resource.api_version());
    value
}

/// From the resource's version to the stored one.
pub(crate) fn to_storage(resource: &Resource, mut value: Value) -> Value {
    if !needed(resource) {
        return value;
    }
    match (resource.group.as_str(), resource.version.as_str()) {
        ("events.k8s.io", _) if !resource.custom => {
            rename(&mut value, EVENT_FIELDS, true);
            // An Event of the core group must say what it is about.
            if value.get("involvedObject").is_none() {
                value["involvedObject"] = json!({});
            }
        }
        ("autoscaling", "v1") if !resource.custom => hpa_to_v2(&mut value),
        _ => {}
    }
    value["apiVersion"] = json!(resource.storage_version);
    value
}

/// Field of the core group's Event, field of events.k8s.io/v1.
const EVENT_FIELDS: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("reportingComponent", "reportingController"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
];

fn rename(value: &mut Value, fields: &[(&str, &str)], back: bool) {
    let Some(map) = value.as_object_mut() else { return };
    for &(left, right) in fields {
        let (from, to) = if back { (right, left) } else { (left, right) };
        if let Some(value) = map.remove(from) {
            map.insert(to.to_owned(), value);
        }
    }
}

/// Where v1 keeps what it has no field for.
const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";

fn cpu_target(metric: &Value) -> Option<&Value> {
    (metric["type"] == "Resource" && metric["resource"]["name"] == "cpu")
        .then(|| metric["resource"]["target"].get("averageUtilization"))
        .flatten()
}

fn set_annotation(value: &mut Value, key: &str, text: &Value) {
    let text = text.to_string();
    if let Some(metadata) = value["metadata"].as_object_mut() {
        let annotations = metadata
            .entry("annotations")
            .or_insert_with(|| Value::Object(Map::new()));
        annotations[key] = json!(text);
    }
}

fn hpa_to_v1(value: &mut Value) {
    let metrics = value["spec"]
        .as_object_mut()
        .and_then(|spec| spec.remove("metrics"));
    if let Some(Value::Array(metrics)) = metrics {
        let mut rest = Vec::new();
        for metric in metrics {
            match cpu_target(&metric).cloned() {
                Some(target) => value["spec"]["targetCPUUtilizationPercentage"] = target,
                None => rest.push(metric),
            }
        }
        if !rest.is_empty() {
            set_annotation(value, METRICS, &Value::Array(rest));
        }
    }
    if let Some(behavior) = value["spec"]
        .as_object_mut()
        .and_then(|spec| spec.remove("behavior"))
    {
        set_annotation(value, BEHAVIOR, &behavior);
    }
    let Some(status) = value.get_mut("status").and_then(Value::as_object_mut) else {
        return;
    };
    let conditions = status.remove("conditions");
    if let Some(Value::Array(metrics)) = status.remove("currentMetrics")
        && let Some(used) = metrics
            .iter()
            .find(|it| it["resource"]["name"] == "cpu")
            .and_then(|it| it["resource"]["current"].get("averageUtilization"))
    {
        status.insert("currentCPUUtilizationPercentage".to_owned(), used.clone());
    }
    if let Some(conditions) = conditions {
        set_annotation(value, CONDITIONS, &conditions);
    }
}

fn hpa_to_v2(value: &mut Value) {
    let mut take = |key: &str| -> Option<Value> {
        let annotations = value.pointer_mut("/metadata/annotations")?.as_object_mut()?;
        serde_json::from_str(annotations.remove(key)?.as_str()?).ok()
    };
    let (metrics, behavior, conditions) = (take(METRICS), take(BEHAVIOR), take(CONDITIONS));
    let mut all = Vec::new();
    if let Some(target) = value["spec"]
        .as_object_mut()
        .and_then(|spec| spec.remove("targetCPUUtilizationPercentage"))
    {
        all.push(json!({
            "type": "Resource",
            "resource": { "name": "cpu", "target": { "type": "Utilization", "averageUtilization": target } },
        }));
    }
    if let Some(Value::Array(metrics)) = metrics {
        all.extend(metrics);
    }
    if !all.is_empty() {
        value["spec"]["metrics"] = Value::Array(all);
    }
    if let Some(behavior) = behavior {
        value["spec"]["behavior"] = behavior;
    }
    if let Some(status) = value.get_mut("status").and_then(Value::as_object_mut) {
        if let Some(used) = status.remove("currentCPUUtilizationPercentage") {
            let metric = json!({
                "type": "Resource", "resource": { "name": "cpu", "current": { "averageUtilization": used } },
            });
            status.insert("currentMetrics".to_owned(), json!([metric]));
        }
        if let Some(conditions) = conditions {
            status.insert("conditions".to_owned(), conditions);
        }
    }
}
