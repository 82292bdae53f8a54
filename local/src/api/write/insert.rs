//! An object that was not there: its metadata, its namespace, and its place in the store.

use std::sync::Arc;

use serde_json::{Value, json};

use super::Intent;
use crate::api::request::Request;
use crate::api::resources::Resource;
use crate::api::status::{ApiError, Cause};
use crate::api::store::{Key, Stored};
use crate::api::{Api, apply, convert, defaults, names, read, structural, validate};

/// Creates `object`, which is in the request's version.
pub(super) fn insert(
    request: &Request<'_>,
    mut object: Value,
    intent: &Intent,
    warnings: &mut Vec<String>,
) -> Result<Arc<Stored>, ApiError> {
    let (api, resource) = (request.api, &request.resource);
    *warnings = structural::check(resource, &mut object, intent.validation)?;
    new_metadata(request, &mut object)?;
    let key = read::key_of(&object);
    check_namespace(api, resource, &key)?;
    defaults::prepare_create(resource, &mut object);
    let mut object = convert::to_storage(resource, object);
    let stored_as = convert::storage_resource(api, resource);
    defaults::fill(&stored_as, &mut object);
    let manager = intent.manager_of(&stored_as);
    apply::track(&stored_as, None, &mut object, &manager, intent.applied.as_ref());
    // Addresses are nobody's fields, so they are given after tracking.
    let lease = api.0.addresses.lock().take(&stored_as, &mut object, None)?;
    let result = (|| {
        validate::create(&stored_as, &object)?;
        if intent.dry_run {
            if api.0.store.get(&resource.storage, &key).is_some() {
                return Err(ApiError::already_exists(
                    &resource.group,
                    &resource.plural,
                    &key.1,
                ));
            }
            let mut shown = Stored::new(object, 0);
            if let Some(stored) = Arc::get_mut(&mut shown)
                && let Some(metadata) = stored.value["metadata"].as_object_mut()
            {
                metadata.remove("resourceVersion");
                stored.bytes = stored.value.to_string().into();
            }
            return Ok(shown);
        }
        let stored = api
            .0
            .store
            .create(&resource.storage, key.clone(), object)
            .map_err(|_| ApiError::already_exists(&resource.group, &resource.plural, &key.1))?;
        Ok(stored)
    })();
    if result.is_err() || intent.dry_run {
        api.0.addresses.lock().give_back(lease);
    } else if let Ok(stored) = &result {
        api.0.addresses.lock().keep(lease);
        api.written(&stored_as, &stored.value);
        return Ok(api
            .0
            .store
            .get(&resource.storage, &key)
            .unwrap_or_else(|| Arc::clone(stored)));
    }
    result
}

/// The metadata of an object that is to be created.
fn new_metadata(request: &Request<'_>, object: &mut Value) -> Result<(), ApiError> {
    let resource = &request.resource;
    let Some(metadata) = object["metadata"].as_object_mut() else {
        return Err(ApiError::bad_request("metadata is not an object"));
    };
    if metadata
        .get("resourceVersion")
        .is_some_and(|version| !matches!(version.as_str(), Some("") | None))
    {
        return Err(ApiError::bad_request(
            "resourceVersion should not be set on objects to be created",
        ));
    }
    for key in [
        "resourceVersion",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "selfLink",
        "generation",
    ] {
        metadata.remove(key);
    }
    if resource.namespaced {
        match metadata.get("namespace").and_then(Value::as_str) {
            None | Some("") => {
                metadata.insert("namespace".to_owned(), json!(request.namespace));
            }
            Some(namespace) if namespace == request.namespace => {}
            Some(_) => {
                return Err(ApiError::bad_request(
                    "the namespace of the provided object does not match the namespace sent on the request",
                ));
            }
        }
    } else if metadata
        .get("namespace")
        .and_then(Value::as_str)
        .is_some_and(|it| !it.is_empty())
    {
        return Err(ApiError::bad_request(
            "namespace is not allowed for cluster-scoped resources",
        ));
    } else {
        metadata.remove("namespace");
    }
    let named = metadata
        .get("name")
        .and_then(Value::as_str)
        .is_some_and(|name| !name.is_empty());
    if !named {
        metadata.remove("name");
        if let Some(prefix) = metadata
            .get("generateName")
            .and_then(Value::as_str)
            .filter(|it| !it.is_empty())
        {
            // Names that a controller derives from it must fit into a label, so 63 - 5.
            let prefix: String = prefix.chars().take(58).collect();
            metadata.insert(
                "name".to_owned(),
                json!(format!("{prefix}{}", names::random_suffix())),
            );
        } else {
            return Err(ApiError::invalid(
                &resource.group,
                &resource.kind,
                "",
                &[Cause::required(
                    "metadata.name",
                    "name or generateName is required",
                )],
            ));
        }
    }
    metadata.insert("uid".to_owned(), json!(names::uid()));
    metadata.insert("creationTimestamp".to_owned(), json!(names::now()));
    if resource.has_generation() {
        metadata.insert("generation".to_owned(), json!(1));
    }
    Ok(())
}

/// A namespaced object needs a namespace that is there and stays.
fn check_namespace(api: &Api, resource: &Resource, key: &Key) -> Result<(), ApiError> {
    if !resource.namespaced {
        return Ok(());
    }
    let namespaces: Arc<str> = "/namespaces".into();
    let namespace = api.0.store.get(&namespaces, &(String::new(), key.0.clone()));
    let namespace = namespace.ok_or_else(|| ApiError::not_found("", "namespaces", &key.0))?;
    if namespace.value["metadata"].get("deletionTimestamp").is_some() {
        let why = format!(
            "unable to create new content in namespace {} because it is being terminated",
            key.0
        );
        let mut error = ApiError::forbidden(&resource.group, &resource.plural, &key.1, &why);
        if let Some(details) = &mut error.details {
            details["causes"] = json!([{
                "reason": "NamespaceTerminating",
                "message": format!("namespace {} is being terminated", key.0),
                "field": "metadata.namespace",
            }]);
        }
        return Err(error);
    }
    Ok(())
}
