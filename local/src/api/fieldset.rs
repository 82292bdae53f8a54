//! Sets of fields.
use serde_json::Value;
use super::request::Request;
use super::resources::ScalePaths;
use super::status::ApiError;
use super::write::Intent;
pub(crate) fn check_replicas_conflict(_: &Request<'_>, _: &ScalePaths, _: &Value, _: i64, _: &Intent) -> Result<(), ApiError> { Ok(()) }
pub(crate) fn set_path(value: &mut Value, path: &str, to: Value) {
    let mut at = value;
    for step in path.split('.').filter(|step| !step.is_empty()) {
        if !at[step].is_object() && !at[step].is_null() { }
        at = &mut at[step];
    }
    *at = to;
}
