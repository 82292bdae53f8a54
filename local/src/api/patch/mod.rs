//! The four ways of changing an object by saying what should be different.

mod json;
mod merge;
mod strategic;

use serde_json::Value;

use super::request::{Request, Validation};
use super::status::ApiError;
use super::write::Intent;
use super::{apply, codec, structural};

/// A patch, read but not yet applied to anything.
#[derive(Clone, Debug)]
pub(crate) enum Patch {
    Json(json_patch::Patch),
    Merge(Value),
    Strategic(Value),
    /// A server-side apply: what its manager wants to own.
    Apply(Value),
}

/// An object after a patch.
pub(crate) struct Patched {
    pub(crate) value: Value,
    /// The managed fields that come with it, from a server-side apply.
    pub(crate) fields: Option<Vec<Value>>,
}

impl Patch {
    pub(crate) fn read(request: &Request<'_>) -> Result<Self, ApiError> {
        let body = &request.body;
        let whole = |value: Value| {
            if value.is_object() {
                Ok(value)
            } else {
                Err(ApiError::bad_request("the patch is not an object"))
            }
        };
        match request.content_type() {
            "application/json-patch+json" => json::read(body).map(Self::Json),
            "application/merge-patch+json" => whole(codec::json(body)?).map(Self::Merge),
            "application/strategic-merge-patch+json" if !request.resource.custom => {
                whole(codec::json(body)?).map(Self::Strategic)
            }
            "application/apply-patch+yaml" => {
                if request.query.get("fieldManager").is_none() {
                    return Err(ApiError::invalid(
                        "meta.k8s.io",
                        "PatchOptions",
                        "",
                        &[super::status::Cause::required(
                            "fieldManager",
                            "is required for apply patch",
                        )],
                    ));
                }
                whole(codec::yaml(body)?).map(Self::Apply)
            }
            _ => Err(ApiError::unsupported_media_type(if request.resource.custom {
                "application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml"
            } else {
                "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json, application/apply-patch+yaml"
            })),
        }
    }

    pub(crate) fn is_apply(&self) -> bool {
        matches!(self, Self::Apply(_))
    }

    /// The object after the patch, checked against its schema.
    pub(crate) fn on(
        &self,
        request: &Request<'_>,
        before: &Value,
        intent: &Intent,
        warnings: &mut Vec<String>,
    ) -> Result<Patched, ApiError> {
        let resource = &request.resource;
        if let Self::Apply(config) = self {
            let mut config = config.clone();
            codec::check_kind(resource, &mut config)?;
            *warnings = structural::check_applied(resource, &mut config, intent.validation)?;
            let force = request.query.flag("force");
            let (value, fields) = apply::apply(resource, before, &config, &intent.manager, force)?;
            return Ok(Patched {
                value,
                fields: Some(fields),
            });
        }
        if request.query.get("force").is_some() {
            return Err(ApiError::invalid(
                "meta.k8s.io",
                "PatchOptions",
                "",
                &[super::status::Cause::forbidden(
                    "force",
                    "may not be specified for non-apply patch",
                )],
            ));
        }
        let mut value = match self {
            Self::Strategic(patch) => strategic::apply(before, patch, &resource.schema)?,
            other => other.plain(before)?,
        };
        codec::check_kind(resource, &mut value)?;
        // What was stored is right; only what the patch brought can be wrong.
        let validation = if value == *before {
            Validation::Ignore
        } else {
            intent.validation
        };
        *warnings = structural::check(resource, &mut value, validation)?;
        Ok(Patched { value, fields: None })
    }

    /// The object after a patch that needs no schema.
    pub(crate) fn plain(&self, before: &Value) -> Result<Value, ApiError> {
        match self {
            Self::Json(patch) => json::apply(before, patch),
            Self::Merge(patch) | Self::Strategic(patch) | Self::Apply(patch) => {
                Ok(merge::apply(before, patch))
            }
        }
    }
}
