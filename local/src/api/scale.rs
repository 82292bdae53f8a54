//! `/scale`: replicas of Deployments, ReplicaSets, StatefulSets and custom resources, as `autoscaling/v1` Scale.

use serde_json::{Value, json};

use super::apply::{self, Operation};
use super::request::Request;
use super::resources::ScalePaths;
use super::router::Answer;
use super::status::{ApiError, Cause};
use super::store::Stored;
use super::write::{self, Failed, Intent, Written};
use super::{codec, patch, read};

/// How often a write is tried when others write in between.
const TRIES: usize = 5;

fn pointer(path: &str) -> String {
    path.replace('.', "/")
}

/// The Scale of an object.
fn scale_of(request: &Request<'_>, paths: &ScalePaths, value: &Value) -> Value {
    let number = |path: &str| value.pointer(&pointer(path)).and_then(Value::as_i64).unwrap_or(0);
    let metadata = &value["metadata"];
    let mut scale = json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1",
        "metadata": {
            "name": metadata["name"], "namespace": metadata["namespace"], "uid": metadata["uid"],
            "resourceVersion": metadata["resourceVersion"], "creationTimestamp": metadata["creationTimestamp"],
        },
        "spec": { "replicas": number(&paths.spec) },
        "status": { "replicas": number(&paths.status) },
    });
    // `replicas: 0` is left out, as Kubernetes' encoder does.
    if number(&paths.spec) == 0
        && let Some(spec) = scale["spec"].as_object_mut()
    {
        spec.clear();
    }
    let selector = match &paths.selector {
        Some(path) => value
            .pointer(&pointer(path))
            .and_then(Value::as_str)
            .map(str::to_owned),
        None if request.resource.custom => None,
        None => Some(selector_text(&value["spec"]["selector"])),
    };
    if let Some(selector) = selector {
        scale["status"]["selector"] = json!(selector);
    }
    scale
}

/// A label selector as `kubectl` writes it.
pub(crate) fn selector_text(selector: &Value) -> String {
    let mut parts: Vec<String> = Vec::new();
    for (key, value) in selector["matchLabels"].as_object().into_iter().flatten() {
        parts.push(format!("{key}={}", value.as_str().unwrap_or_default()));
    }
    for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
        let key = expression["key"].as_str().unwrap_or_default();
        let all = expression["values"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str);
        let values = all.collect::<Vec<_>>().join(",");
        parts.push(match expression["operator"].as_str().unwrap_or_default() {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_owned(),
        });
    }
    parts.sort();
    parts.join(",")
}

/// GET, PUT and PATCH of `/scale`.
pub(crate) fn handle(request: &Request<'_>) -> Result<Answer, ApiError> {
    let paths = request
        .resource
        .scale
        .as_ref()
        .ok_or_else(ApiError::no_such_path)?;
    match request.method {
        http::Method::GET => {
            let stored = live(request)?;
            let value = read::value_in(&request.resource, &stored);
            Ok(write::reply_json(200, scale_of(request, paths, &value)))
        }
        http::Method::PUT => {
            let scale = codec::read(request)?;
            change(request, paths, Operation::Update, |_, _| Ok(scale.clone()))
        }
        http::Method::PATCH => {
            let patch = patch::Patch::read(request)?;
            let operation = if patch.is_apply() {
                Operation::Apply
            } else {
                Operation::Update
            };
            change(request, paths, operation, |before, _| patch.plain(before))
        }
        _ => Err(ApiError::method_not_allowed()),
    }
}

/// Sets what a path as `.spec.replicas` names, making the objects on the way.
fn set_path(value: &mut Value, path: &str, to: Value) {
    let mut at = value;
    for step in path.split('.').filter(|step| !step.is_empty()) {
        if !at.is_object() {
            *at = json!({});
        }
        at = &mut at[step];
    }
    *at = to;
}

fn live(request: &Request<'_>) -> Result<std::sync::Arc<Stored>, ApiError> {
    let stored = request.api.0.store.get(&request.resource.storage, &request.key());
    stored.ok_or_else(|| request.not_found())
}

fn change(
    request: &Request<'_>,
    paths: &ScalePaths,
    operation: Operation,
    next_scale: impl Fn(&Value, &Stored) -> Result<Value, ApiError>,
) -> Result<Answer, ApiError> {
    let resource = &request.resource;
    let intent = Intent::of(request, operation)?;
    let stale = || ApiError::stale(&resource.group, &resource.plural, &request.name);
    for _ in 0..TRIES {
        let live = live(request)?;
        let mut value = read::value_in(resource, &live);
        let before = scale_of(request, paths, &value);
        let scale = next_scale(&before, &live)?;
        check(request, &scale)?;
        let version = scale["metadata"]["resourceVersion"].as_str().unwrap_or_default();
        if !version.is_empty() && Some(version) != before["metadata"]["resourceVersion"].as_str() {
            return Err(stale());
        }
        let uid = scale["metadata"]["uid"].as_str().unwrap_or_default();
        if !uid.is_empty() && Some(uid) != before["metadata"]["uid"].as_str() {
            return Err(stale());
        }
        let replicas = scale["spec"]["replicas"].as_i64().unwrap_or(0);
        if intent.manager.operation == Operation::Apply {
            let path: Vec<&str> = paths.spec.split('.').filter(|step| !step.is_empty()).collect();
            let changes = value.pointer(&pointer(&paths.spec)).and_then(Value::as_i64) != Some(replicas);
            let force = request.query.flag("force") || !changes;
            apply::check_replicas(&value, &path, &intent.manager, force)?;
        }
        set_path(&mut value, &paths.spec, json!(replicas));
        let next = super::convert::to_storage(resource, value);
        match write::commit(request, &live, next, &intent) {
            Ok(Written::Same(stored) | Written::Changed(stored) | Written::Gone(stored)) => {
                let value = read::value_in(resource, &stored);
                return Ok(write::reply_json(200, scale_of(request, paths, &value)));
            }
            Err(Failed::Raced) if version.is_empty() || operation_is_patch(request) => {}
            Err(Failed::Raced) => return Err(stale()),
            Err(Failed::Because(error)) => return Err(error),
        }
    }
    Err(stale())
}

fn operation_is_patch(request: &Request<'_>) -> bool {
    request.method == http::Method::PATCH
}

fn check(request: &Request<'_>, scale: &Value) -> Result<(), ApiError> {
    let invalid = |cause| Err(ApiError::invalid("autoscaling", "Scale", &request.name, &[cause]));
    let replicas = &scale["spec"]["replicas"];
    if !replicas.is_null() && replicas.as_i64().is_none() {
        return Err(ApiError::bad_request(format!(
            "Scale in version \"v1\" cannot be handled as a Scale: json: cannot unmarshal {} into Go struct field ScaleSpec.spec.replicas of type int32",
            super::structural::word(replicas)
        )));
    }
    if replicas.as_i64().is_some_and(|replicas| replicas < 0) {
        return invalid(Cause::invalid(
            "spec.replicas",
            replicas,
            "must be greater than or equal to 0",
        ));
    }
    match scale["metadata"]["name"].as_str() {
        Some(name) if name != request.name => Err(ApiError::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            request.name
        ))),
        _ => Ok(()),
    }
}
