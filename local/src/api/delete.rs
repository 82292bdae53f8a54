//! DELETE: at once, or marked and left to finalizers, to the garbage collector, or to whoever runs the pod.

use std::sync::Arc;

use serde_json::{Value, json};

use super::request::Request;
use super::router::Answer;
use super::status::{ApiError, Cause, success};
use super::store::Stored;
use super::{read, write};

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";

/// How often a deletion is tried when others write in between.
const TRIES: usize = 20;

/// What a DELETE may say beside the name.
#[derive(Clone, Debug, Default)]
struct Options {
    grace: Option<i64>,
    /// `Background`, `Foreground` or `Orphan`.
    propagation: Option<String>,
    uid: Option<String>,
    version: Option<String>,
    dry_run: bool,
}

impl Options {
    fn read(request: &Request<'_>) -> Result<Self, ApiError> {
        let body: Value = if request.body.is_empty() {
            Value::Null
        } else {
            super::codec::read(request)?
        };
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let invalid = |cause| Err(ApiError::invalid("meta.k8s.io", "DeleteOptions", "", &[cause]));
        let mut options = Self {
            grace: body["gracePeriodSeconds"].as_i64(),
            propagation: text(&body["propagationPolicy"]),
            uid: text(&body["preconditions"]["uid"]),
            version: text(&body["preconditions"]["resourceVersion"]),
            dry_run: request.dry_run()? || body["dryRun"][0] == "All",
        };
        if let Some(grace) = request.query.number("gracePeriodSeconds")? {
            options.grace = i64::try_from(grace).ok();
        }
        if let Some(policy) = request.query.get("propagationPolicy") {
            options.propagation = Some(policy.to_owned());
        }
        let orphan = body["orphanDependents"].as_bool();
        match (&options.propagation, orphan) {
            (Some(_), Some(_)) => {
                return invalid(Cause::invalid(
                    "propagationPolicy",
                    &body["propagationPolicy"],
                    "orphanDependents and deletionPropagation cannot be both set",
                ));
            }
            (None, Some(true)) => options.propagation = Some("Orphan".to_owned()),
            (None, Some(false)) => options.propagation = Some("Background".to_owned()),
            _ => {}
        }
        const POLICIES: &[&str] = &["Foreground", "Background", "Orphan"];
        match &options.propagation {
            Some(policy) if !POLICIES.contains(&policy.as_str()) => {
                invalid(Cause::unsupported("propagationPolicy", &json!(policy), POLICIES))
            }
            _ => Ok(options),
        }
    }
}

/// DELETE of one object.
pub(crate) fn one(request: &Request<'_>) -> Result<Answer, ApiError> {
    let options = Options::read(request)?;
    let live = request.api.0.store.get(&request.resource.storage, &request.key());
    let live = live.ok_or_else(|| request.not_found())?;
    let resource = &request.resource;
    match remove(request, live, &options)? {
        Deletion::Done(stored) => {
            let metadata = &stored.value["metadata"];
            let (name, uid) = (text(metadata, "name"), text(metadata, "uid"));
            if resource.is("", "Pod") || resource.is("", "Service") || resource.is("", "ServiceAccount") {
                // These answer with the object, as in Kubernetes.
                return read::show(request, 200, &stored).map(Answer::from);
            }
            Ok(write::reply_json(
                200,
                success(&resource.group, &resource.plural, name, uid),
            ))
        }
        Deletion::Marked(stored) => read::show(request, 200, &stored).map(Answer::from),
    }
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// DELETE of a collection.
pub(crate) fn collection(request: &Request<'_>) -> Result<Answer, ApiError> {
    let options = Options::read(request)?;
    let (labels, fields) = (request.labels()?, request.fields()?);
    let namespace = (!request.namespace.is_empty()).then_some(request.namespace.as_str());
    let resource = &request.resource;
    let (objects, version) = request.api.0.store.list(&resource.storage, namespace);
    let mut items = Vec::new();
    for stored in objects {
        let shown = super::convert::shown(resource, &stored.value);
        if !labels.matches(&stored.value) || !fields.matches(&shown) {
            continue;
        }
        match remove(request, stored, &options) {
            Ok(Deletion::Done(stored) | Deletion::Marked(stored)) => {
                items.push(read::value_in(resource, &stored));
            }
            Err(error) if error.code == 404 => {}
            Err(error) => return Err(error),
        }
    }
    Ok(write::reply_json(
        200,
        json!({
            "kind": resource.list_kind, "apiVersion": resource.api_version(),
            "metadata": { "resourceVersion": version.to_string() }, "items": items,
        }),
    ))
}

enum Deletion {
    Done(Arc<Stored>),
    Marked(Arc<Stored>),
}

/// Deletes or marks one object, again on a newer one if it changes in between.
fn remove(request: &Request<'_>, live: Arc<Stored>, options: &Options) -> Result<Deletion, ApiError> {
    let resource = super::convert::storage_resource(request.api, &request.resource);
    let key = read::key_of(&live.value);
    let store = &request.api.0.store;
    let mut live = live;
    for _ in 0..TRIES {
        preconditions(request, &live, options)?;
        let next = marked(request, &live, options);
        let Some(next) = next else {
            if options.dry_run {
                return Ok(Deletion::Done(live));
            }
            match store.delete(&resource.storage, &key, &live, live.value.clone()) {
                Ok(gone) => {
                    request.api.deleted(&resource, &gone.value);
                    return Ok(Deletion::Done(gone));
                }
                Err(_) => {
                    live = store
                        .get(&resource.storage, &key)
                        .ok_or_else(|| request.not_found())?;
                    continue;
                }
            }
        };
        if next == live.value {
            return Ok(Deletion::Marked(live));
        }
        if options.dry_run {
            return Ok(Deletion::Marked(Stored::new(next, live.version)));
        }
        match store.update(&resource.storage, &key, &live, next) {
            Ok(stored) => return Ok(Deletion::Marked(stored)),
            Err(_) => {
                live = store
                    .get(&resource.storage, &key)
                    .ok_or_else(|| request.not_found())?
            }
        }
    }
    Err(ApiError::stale(&resource.group, &resource.plural, &key.1))
}

fn preconditions(request: &Request<'_>, live: &Stored, options: &Options) -> Result<(), ApiError> {
    let metadata = &live.value["metadata"];
    let resource = &request.resource;
    let refuse = |what: &str, wanted: &str, found: &str| {
        Err(ApiError::conflict(
            &resource.group,
            &resource.plural,
            text(metadata, "name"),
            &format!("Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {found}"),
        ))
    };
    if let Some(uid) = options.uid.as_deref().filter(|uid| *uid != text(metadata, "uid")) {
        return refuse("UID", uid, text(metadata, "uid"));
    }
    if let Some(version) = options
        .version
        .as_deref()
        .filter(|it| *it != text(metadata, "resourceVersion"))
    {
        return refuse("ResourceVersion", version, text(metadata, "resourceVersion"));
    }
    Ok(())
}

/// The object marked for deletion; none: it goes at once.
fn marked(request: &Request<'_>, live: &Stored, options: &Options) -> Option<Value> {
    let resource = &request.resource;
    let mut next = live.value.clone();
    let mut finalizers: Vec<Value> = live.value["metadata"]["finalizers"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let had = finalizers.clone();
    match options.propagation.as_deref() {
        Some("Foreground") => {
            finalizers.retain(|it| it != ORPHAN);
            if !finalizers.iter().any(|it| it == FOREGROUND) {
                finalizers.push(json!(FOREGROUND));
            }
        }
        Some("Orphan") => {
            finalizers.retain(|it| it != FOREGROUND);
            if !finalizers.iter().any(|it| it == ORPHAN) {
                finalizers.push(json!(ORPHAN));
            }
        }
        Some(_) => finalizers.retain(|it| it != FOREGROUND && it != ORPHAN),
        None => {}
    }
    let going = live.value["metadata"].get("deletionTimestamp").is_some();
    let grace = grace(request, &live.value, options, going);
    let is_namespace = resource.is("", "Namespace");
    let held = !finalizers.is_empty() || (is_namespace && write::has_spec_finalizers(&live.value));
    if !held && grace == 0 {
        return None;
    }
    let metadata = next["metadata"].as_object_mut()?;
    if finalizers != had {
        if finalizers.is_empty() {
            metadata.remove("finalizers");
        } else {
            metadata.insert("finalizers".to_owned(), json!(finalizers));
        }
    }
    let had_grace = metadata.get("deletionGracePeriodSeconds").and_then(Value::as_i64);
    if !going || had_grace.is_some_and(|had| grace < had) {
        let at = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(grace);
        metadata.insert(
            "deletionTimestamp".to_owned(),
            json!(at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
        );
        metadata.insert("deletionGracePeriodSeconds".to_owned(), json!(grace));
        if resource.has_generation()
            && let Some(generation) = metadata.get("generation").and_then(Value::as_i64)
        {
            metadata.insert("generation".to_owned(), json!(generation + 1));
        }
    }
    if is_namespace {
        next["status"]["phase"] = json!("Terminating");
    }
    Some(next)
}

/// For how long the object stays. Only pods have a grace period: theirs, or what the client says; a pod that was never
/// given to a node, or has ended, goes at once.
fn grace(request: &Request<'_>, live: &Value, options: &Options, going: bool) -> i64 {
    if !request.resource.is("", "Pod") {
        return 0;
    }
    let ended = matches!(live["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    let unscheduled = text(&live["spec"], "nodeName").is_empty();
    let own = live["spec"]["terminationGracePeriodSeconds"]
        .as_i64()
        .unwrap_or(30);
    let wanted = options.grace.unwrap_or(own).max(0);
    if unscheduled || ended {
        return 0;
    }
    let left = live["metadata"]["deletionGracePeriodSeconds"].as_i64();
    match left.filter(|_| going) {
        // A second deletion may only shorten the first one.
        Some(left) if options.grace.is_none() => left,
        Some(left) => wanted.min(left),
        None => wanted,
    }
}
