//! The next state of an object that is there: what its writer may not change, and the commit.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::{Failed, Intent, Written};
use crate::api::request::Request;
use crate::api::resources::Resource;
use crate::api::status::{ApiError, Cause};
use crate::api::store::{Refused, Stored};
use crate::api::{apply, convert, defaults, read, validate};

/// Writes `next` (as stored) in place of `live`.
pub(crate) fn commit(
    request: &Request<'_>,
    live: &Arc<Stored>,
    next: Value,
    intent: &Intent,
) -> Result<Written, Failed> {
    replace(request, live, next, intent, |stored_as, next| {
        let manager = intent.manager_of(stored_as);
        apply::track(stored_as, Some(&live.value), next, &manager, None);
    })
}

/// Writes the outcome of a server-side apply, whose managed fields are known already.
pub(super) fn commit_applied(
    request: &Request<'_>,
    live: &Arc<Stored>,
    next: Value,
    fields: Vec<Value>,
    intent: &Intent,
) -> Result<Written, Failed> {
    replace(request, live, next, intent, |_, next| {
        apply::set_entries(next, fields);
    })
}

fn replace(
    request: &Request<'_>,
    live: &Arc<Stored>,
    mut next: Value,
    intent: &Intent,
    track: impl FnOnce(&Resource, &mut Value),
) -> Result<Written, Failed> {
    let (api, subresource, dry_run) = (request.api, &request.subresource, intent.dry_run);
    let resource = &convert::storage_resource(api, &request.resource);
    let key = read::key_of(&live.value);
    keep_metadata(resource, &live.value, &mut next)?;
    keep_other_half(resource, subresource, &live.value, &mut next);
    let lease = api
        .0
        .addresses
        .lock()
        .take(resource, &mut next, Some(&live.value))?;
    let result = (|| {
        defaults::fill(resource, &mut next);
        if resource.has_generation() && defaults::spec_differs(resource, &live.value, &next) {
            let generation = live.value["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
            next["metadata"]["generation"] = json!(generation);
        }
        validate::update(resource, &live.value, &next, subresource)?;
        track(resource, &mut next);
        next["metadata"]["resourceVersion"] = live.value["metadata"]["resourceVersion"].clone();
        if next == live.value {
            return Ok(Written::Same(Arc::clone(live)));
        }
        if dry_run {
            return Ok(Written::Changed(Stored::new(next, live.version)));
        }
        let metadata = &next["metadata"];
        let going = metadata.get("deletionTimestamp").is_some();
        let held = metadata["finalizers"]
            .as_array()
            .is_some_and(|all| !all.is_empty());
        let grace = metadata["deletionGracePeriodSeconds"].as_i64().unwrap_or(0);
        let held = held || resource.is("", "Namespace") && has_spec_finalizers(&next);
        if going && !held && grace == 0 {
            let gone = api
                .0
                .store
                .delete(&resource.storage, &key, live, next)
                .map_err(|_| Failed::Raced)?;
            api.deleted(resource, &gone.value);
            return Ok(Written::Gone(gone));
        }
        let stored = match api.0.store.update(&resource.storage, &key, live, next) {
            Ok(stored) => stored,
            Err(Refused::Exists | Refused::Changed) => return Err(Failed::Raced),
        };
        api.written(resource, &stored.value);
        Ok(Written::Changed(stored))
    })();
    match &result {
        Ok(Written::Changed(_)) if !dry_run => api.0.addresses.lock().keep(lease),
        _ => api.0.addresses.lock().give_back(lease),
    }
    result
}

pub(crate) fn has_spec_finalizers(namespace: &Value) -> bool {
    namespace
        .pointer("/spec/finalizers")
        .and_then(Value::as_array)
        .is_some_and(|all| !all.is_empty())
}

/// Metadata that a writer cannot change, and the two preconditions in it.
fn keep_metadata(resource: &Resource, live: &Value, next: &mut Value) -> Result<(), ApiError> {
    let name = live["metadata"]["name"].as_str().unwrap_or_default();
    let old = live["metadata"].as_object().cloned().unwrap_or_default();
    let invalid = |cause| Err(ApiError::invalid(&resource.group, &resource.kind, name, &[cause]));
    let Some(new) = next["metadata"].as_object_mut() else {
        return Err(ApiError::bad_request("metadata is not an object"));
    };
    let given = |new: &Map<String, Value>, key: &str| {
        new.get(key)
            .and_then(Value::as_str)
            .filter(|text| !text.is_empty())
            .map(str::to_owned)
    };
    if let Some(uid) = given(new, "uid").filter(|uid| Some(uid.as_str()) != old["uid"].as_str()) {
        let held = old["uid"].as_str().unwrap_or_default();
        return Err(ApiError::conflict(
            &resource.group,
            &resource.plural,
            name,
            &format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {held}"),
        ));
    }
    if given(new, "resourceVersion").is_some_and(|it| Some(it.as_str()) != old["resourceVersion"].as_str()) {
        return Err(ApiError::stale(&resource.group, &resource.plural, name));
    }
    for key in ["name", "namespace"] {
        let same = given(new, key).is_none_or(|it| old.get(key).and_then(Value::as_str) == Some(it.as_str()));
        if !same {
            return invalid(Cause::invalid(
                format!("metadata.{key}"),
                &new[key],
                "field is immutable",
            ));
        }
    }
    for key in [
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "resourceVersion",
        "generateName",
    ] {
        match old.get(key) {
            Some(value) => new.insert(key.to_owned(), value.clone()),
            None => new.remove(key),
        };
    }
    new.remove("selfLink");
    if old.contains_key("deletionTimestamp") {
        let names = |metadata: &Map<String, Value>| -> Vec<String> {
            let all = metadata
                .get("finalizers")
                .and_then(Value::as_array)
                .into_iter()
                .flatten();
            all.filter_map(|it| it.as_str().map(str::to_owned)).collect()
        };
        let had = names(&old);
        let added: Vec<String> = names(new).into_iter().filter(|it| !had.contains(it)).collect();
        if !added.is_empty() {
            let shown = added
                .iter()
                .map(|it| format!("\"{it}\""))
                .collect::<Vec<_>>()
                .join(", ");
            return invalid(Cause::forbidden(
                "metadata.finalizers",
                &format!(
                    "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{shown}}}"
                ),
            ));
        }
    }
    Ok(())
}

/// The main endpoint does not write the status, and `/status` writes nothing else.
fn keep_other_half(resource: &Resource, subresource: &str, live: &Value, next: &mut Value) {
    fn copy(from: &Value, to: &mut Value, key: &str) {
        let Some(map) = to.as_object_mut() else { return };
        match from.get(key) {
            Some(value) => map.insert(key.to_owned(), value.clone()),
            None => map.remove(key),
        };
    }
    if !resource.status || matches!(subresource, "finalize" | "internal") {
        return;
    }
    if subresource != "status" {
        copy(live, next, "status");
        return;
    }
    let status = next.get("status").cloned();
    let given = next["metadata"].clone();
    next.clone_from(live);
    if let Some(map) = next.as_object_mut() {
        match status {
            Some(status) => map.insert("status".to_owned(), status),
            None => map.remove("status"),
        };
    }
    // What the client says of managed fields counts everywhere; annotations of built-in kinds do too.
    let also: &[&str] = if resource.custom {
        &["managedFields"]
    } else if resource.group == "apps" {
        &["managedFields", "annotations"]
    } else {
        &["managedFields", "annotations", "labels"]
    };
    for key in also {
        copy(&given, &mut next["metadata"], key);
    }
}
