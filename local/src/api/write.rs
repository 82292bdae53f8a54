//! Create, update and patch: from the stored object to the next one.
//!
//! `decode → structure → metadata → defaults → validate → managed fields → commit`. A commit fails if anyone wrote in
//! between; a patch that named no resourceVersion is then tried again on the new object, as in Kubernetes.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::apply::{self, Manager, Operation};
use super::fieldset::FieldSet;
use super::request::{Request, Validation};
use super::resources::{Resource, from_crd};
use super::router::{Answer, Reply};
use super::status::{ApiError, Cause};
use super::store::{Key, Refused, Stored};
use super::{Api, codec, convert, defaults, names, patch, read, structural, validate};

/// How often a patch is tried when others write in between, as in Kubernetes.
const PATCH_TRIES: usize = 5;

/// What is known of a write beside the object.
#[derive(Clone, Debug)]
pub(crate) struct Intent {
    pub(crate) manager: Manager,
    pub(crate) dry_run: bool,
    pub(crate) validation: Validation,
    /// What an apply that creates its object owns.
    pub(crate) applied: Option<FieldSet>,
}

impl Intent {
    pub(crate) fn of(request: &Request<'_>, operation: Operation) -> Result<Self, ApiError> {
        Ok(Self {
            manager: Manager {
                name: request.manager(),
                operation,
                api_version: request.resource.api_version(),
                subresource: request.subresource.clone(),
            },
            dry_run: request.dry_run()?,
            validation: request.validation()?,
            applied: None,
        })
    }
}

/// The result of a write.
pub(crate) enum Written {
    Changed(Arc<Stored>),
    /// The write would change nothing, so nothing was written.
    Same(Arc<Stored>),
    /// The last finalizer went: the object is deleted.
    Gone(Arc<Stored>),
}

impl Written {
    pub(crate) fn stored(&self) -> &Arc<Stored> {
        match self {
            Self::Changed(stored) | Self::Same(stored) | Self::Gone(stored) => stored,
        }
    }
}

/// Why a write did not come about.
pub(crate) enum Failed {
    /// Somebody else wrote first.
    Raced,
    Because(ApiError),
}

impl From<ApiError> for Failed {
    fn from(error: ApiError) -> Self {
        Self::Because(error)
    }
}

fn answer(
    request: &Request<'_>,
    code: u16,
    stored: &Stored,
    warnings: Vec<String>,
) -> Result<Answer, ApiError> {
    Ok(Answer {
        reply: read::show(request, code, stored)?,
        warnings,
    })
}

/// POST.
pub(crate) fn create(request: &Request<'_>) -> Result<Answer, ApiError> {
    let mut object = codec::read(request)?;
    codec::check_kind(&request.resource, &mut object)?;
    let intent = Intent::of(request, Operation::Update)?;
    let mut warnings = Vec::new();
    // A generated name that is taken is tried again with another suffix.
    for _ in 0..7 {
        match insert(request, object.clone(), &intent, &mut warnings) {
            Err(error)
                if error.reason == "AlreadyExists" && object["metadata"]["name"].as_str().is_none() => {}
            other => return answer(request, 201, &*other?, warnings),
        }
    }
    Err(ApiError::already_exists(
        &request.resource.group,
        &request.resource.plural,
        "generated name",
    ))
}

/// Creates `object`, which is in the request's version.
fn insert(
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
    let manager = stored_manager(&stored_as, &intent.manager);
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

/// Objects of two versions are owned in the version in which they are stored.
fn stored_manager(stored_as: &Resource, manager: &Manager) -> Manager {
    Manager {
        api_version: stored_as.api_version(),
        ..manager.clone()
    }
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

/// PUT.
pub(crate) fn update(request: &Request<'_>) -> Result<Answer, ApiError> {
    let resource = &request.resource;
    let mut object = codec::read(request)?;
    codec::check_kind(resource, &mut object)?;
    let intent = Intent::of(request, Operation::Update)?;
    match object["metadata"]["name"].as_str() {
        Some(name) if name == request.name => {}
        name => {
            return Err(ApiError::bad_request(format!(
                "the name of the object ({}) does not match the name on the URL ({})",
                name.unwrap_or_default(),
                request.name
            )));
        }
    }
    if resource.namespaced {
        match object["metadata"]["namespace"].as_str() {
            None | Some("") => object["metadata"]["namespace"] = json!(request.namespace),
            Some(namespace) if namespace == request.namespace => {}
            Some(_) => {
                return Err(ApiError::bad_request(
                    "the namespace of the provided object does not match the namespace sent on the request",
                ));
            }
        }
    }
    let warnings = structural::check(resource, &mut object, intent.validation)?;
    let given = object["metadata"]["resourceVersion"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    for _ in 0..PATCH_TRIES {
        let Some(live) = request.api.0.store.get(&resource.storage, &request.key()) else {
            if resource.create_on_update() && given.is_empty() && request.subresource.is_empty() {
                let mut warnings = Vec::new();
                let stored = insert(request, object, &intent, &mut warnings)?;
                return answer(request, 201, &stored, warnings);
            }
            return Err(request.not_found());
        };
        if given.is_empty() && !allows_unconditional_update(resource) {
            return Err(ApiError::invalid(
                &resource.group,
                &resource.kind,
                &request.name,
                &[Cause::invalid(
                    "metadata.resourceVersion",
                    &json!(0),
                    "must be specified for an update",
                )],
            ));
        }
        let next = convert::to_storage(resource, object.clone());
        match commit(request, &live, next, &intent) {
            Ok(written) => return answer(request, 200, written.stored(), warnings),
            Err(Failed::Raced) if given.is_empty() => {}
            Err(Failed::Raced) => {
                return Err(ApiError::stale(&resource.group, &resource.plural, &request.name));
            }
            Err(Failed::Because(error)) => return Err(error),
        }
    }
    Err(ApiError::stale(&resource.group, &resource.plural, &request.name))
}

fn allows_unconditional_update(resource: &Resource) -> bool {
    !(resource.custom
        || matches!(
            resource.kind.as_str(),
            "Lease" | "PodDisruptionBudget" | "CustomResourceDefinition"
        ))
}

/// PATCH, server-side apply included.
pub(crate) fn patch(request: &Request<'_>) -> Result<Answer, ApiError> {
    let resource = &request.resource;
    let patch = patch::Patch::read(request)?;
    let operation = if patch.is_apply() {
        Operation::Apply
    } else {
        Operation::Update
    };
    let intent = Intent::of(request, operation)?;
    for _ in 0..PATCH_TRIES {
        let Some(live) = request.api.0.store.get(&resource.storage, &request.key()) else {
            return create_by_apply(request, &patch, &intent);
        };
        let before = read::value_in(resource, &live);
        let mut warnings = Vec::new();
        let outcome = patch
            .on(request, &before, &intent, &mut warnings)
            .map_err(Failed::from)
            .and_then(|patched| {
                let pinned =
                    patched.value["metadata"]["resourceVersion"] != before["metadata"]["resourceVersion"];
                let next = convert::to_storage(resource, patched.value);
                let result = match patched.fields {
                    Some(fields) => commit_applied(request, &live, next, fields, &intent),
                    None => commit(request, &live, next, &intent),
                };
                match result {
                    Err(Failed::Raced) if pinned => Err(Failed::Because(ApiError::stale(
                        &resource.group,
                        &resource.plural,
                        &request.name,
                    ))),
                    other => other,
                }
            });
        match outcome {
            Ok(written) => return answer(request, 200, written.stored(), warnings),
            Err(Failed::Raced) => {}
            Err(Failed::Because(error)) => return Err(error),
        }
    }
    Err(ApiError::stale(&resource.group, &resource.plural, &request.name))
}

/// Server-side apply of an object that is not there creates it; any other patch does not.
fn create_by_apply(request: &Request<'_>, patch: &patch::Patch, intent: &Intent) -> Result<Answer, ApiError> {
    let patch::Patch::Apply(config) = patch else {
        return Err(request.not_found());
    };
    if !request.subresource.is_empty() {
        return Err(request.not_found());
    }
    let mut object = config.clone();
    codec::check_kind(&request.resource, &mut object)?;
    if object["metadata"]["uid"]
        .as_str()
        .is_some_and(|uid| !uid.is_empty())
    {
        let resource = &request.resource;
        return Err(ApiError::conflict(
            &resource.group,
            &resource.plural,
            &request.name,
            "uid mismatch: the provided object specified uid, and no existing object was found",
        ));
    }
    if object["metadata"]["name"].as_str().is_none() {
        object["metadata"]["name"] = json!(request.name);
    }
    let mut checked = object.clone();
    structural::check_applied(&request.resource, &mut checked, intent.validation)?;
    let owned = apply::owned_by_config(&request.resource, &checked, "");
    let intent = Intent {
        applied: Some(owned),
        ..intent.clone()
    };
    let mut warnings = Vec::new();
    let stored = insert(request, object, &intent, &mut warnings)?;
    answer(request, 201, &stored, warnings)
}

/// Writes `next` (as stored) in place of `live`.
pub(crate) fn commit(
    request: &Request<'_>,
    live: &Arc<Stored>,
    next: Value,
    intent: &Intent,
) -> Result<Written, Failed> {
    let stored_as = convert::storage_resource(request.api, &request.resource);
    let manager = stored_manager(&stored_as, &intent.manager);
    replace(
        request.api,
        &stored_as,
        &request.subresource,
        live,
        next,
        intent.dry_run,
        |next| {
            apply::track(&stored_as, Some(&live.value), next, &manager, None);
        },
    )
}

/// Writes the outcome of a server-side apply, whose managed fields are known already.
fn commit_applied(
    request: &Request<'_>,
    live: &Arc<Stored>,
    next: Value,
    fields: Vec<Value>,
    intent: &Intent,
) -> Result<Written, Failed> {
    let stored_as = convert::storage_resource(request.api, &request.resource);
    replace(
        request.api,
        &stored_as,
        &request.subresource,
        live,
        next,
        intent.dry_run,
        |next| {
            apply::set_entries(next, fields);
        },
    )
}

fn replace(
    api: &Api,
    resource: &Arc<Resource>,
    subresource: &str,
    live: &Arc<Stored>,
    mut next: Value,
    dry_run: bool,
    track: impl FnOnce(&mut Value),
) -> Result<Written, Failed> {
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
        track(&mut next);
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

impl Api {
    /// What a write brings about beside itself.
    pub(crate) fn written(&self, resource: &Resource, value: &Value) {
        if !resource.is("apiextensions.k8s.io", "CustomResourceDefinition") {
            return;
        }
        let plural = value
            .pointer("/spec/names/plural")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let group = value
            .pointer("/spec/group")
            .and_then(Value::as_str)
            .unwrap_or_default();
        {
            let mut registry = self.0.registry.write();
            let mut next = (**registry).clone();
            next.remove(group, plural);
            for resource in from_crd(value) {
                next.insert(resource);
            }
            *registry = Arc::new(next);
        }
        self.establish(resource, value);
    }

    /// Says that the custom resource is served from now on.
    fn establish(&self, resource: &Resource, value: &Value) {
        let key = read::key_of(value);
        let Some(live) = self.0.store.get(&resource.storage, &key) else {
            return;
        };
        let mut next = live.value.clone();
        next["status"] = defaults::crd_status(&live.value);
        if next["status"] != live.value["status"] {
            // Whoever wrote in between has established it as well.
            drop(self.0.store.update(&resource.storage, &key, &live, next));
        }
    }

    /// What a deletion brings about beside itself.
    pub(crate) fn deleted(&self, resource: &Resource, value: &Value) {
        self.0.addresses.lock().free(resource, value);
        if resource.is("apiextensions.k8s.io", "CustomResourceDefinition") {
            let plural = value
                .pointer("/spec/names/plural")
                .and_then(Value::as_str)
                .unwrap_or_default();
            let group = value
                .pointer("/spec/group")
                .and_then(Value::as_str)
                .unwrap_or_default();
            let storage: Arc<str> = format!("{group}/{plural}").into();
            for object in self.0.store.list(&storage, None).0 {
                let key = read::key_of(&object.value);
                drop(self.0.store.delete(&storage, &key, &object, object.value.clone()));
            }
            let mut registry = self.0.registry.write();
            let mut next = (**registry).clone();
            next.remove(group, plural);
            *registry = Arc::new(next);
        }
    }

    /// `default` and `kube-system`, which every cluster has.
    pub(crate) fn create_first_namespaces(&self) {
        let storage: Arc<str> = "/namespaces".into();
        for name in ["default", "kube-system"] {
            let namespace = json!({
                "apiVersion": "v1", "kind": "Namespace",
                "metadata": {
                    "name": name, "uid": names::uid(), "creationTimestamp": names::now(),
                    "labels": { "kubernetes.io/metadata.name": name },
                },
                "spec": { "finalizers": ["kubernetes"] },
                "status": { "phase": "Active" },
            });
            drop(
                self.0
                    .store
                    .create(&storage, (String::new(), name.to_owned()), namespace),
            );
        }
    }
}

/// An answer without a body of its own kind.
pub(crate) fn reply_json(code: u16, value: Value) -> Answer {
    Reply::Json(code, value).into()
}
