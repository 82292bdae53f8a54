//! Create, update and patch: from the stored object to the next one.
//!
//! `decode → structure → metadata → defaults → validate → managed fields → commit`. Here the verbs, in [`mod@insert`] what
//! becomes of an object that was not there, in [`mod@commit`] of one that was, in [`effects`] what follows. A commit fails
//! if anyone wrote in between; a patch that named no resourceVersion is then tried again on the new object, as in
//! Kubernetes.

mod commit;
mod effects;
mod insert;

use std::sync::Arc;

use serde_json::{Value, json};

use self::commit::commit_applied;
pub(crate) use self::commit::{commit, has_spec_finalizers};
use self::insert::insert;
use super::apply::{self, Manager, Operation};
use super::fieldset::FieldSet;
use super::request::{Request, Validation};
use super::resources::Resource;
use super::router::{Answer, Reply};
use super::status::{ApiError, Cause};
use super::store::Stored;
use super::{codec, convert, patch, read, structural};

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

    /// The manager as it is written down: objects of two versions are owned in the version in which they are stored.
    fn manager_of(&self, stored_as: &Resource) -> Manager {
        Manager {
            api_version: stored_as.api_version(),
            ..self.manager.clone()
        }
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

/// An answer without a body of its own kind.
pub(crate) fn reply_json(code: u16, value: Value) -> Answer {
    Reply::Json(code, value).into()
}
