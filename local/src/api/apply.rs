//! Managed fields.
use serde_json::{Value, json};
use super::resources::Resource;
use super::status::ApiError;
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation { Apply, Update }
#[derive(Clone, Debug)]
pub(crate) struct Manager { pub(crate) name: String, pub(crate) operation: Operation, pub(crate) api_version: String, pub(crate) subresource: String }
pub(crate) fn track(_: &Resource, _: Option<&Value>, _: &mut Value, _: &Manager) {}
pub(crate) fn set_entries(next: &mut Value, fields: Vec<Value>) { next["metadata"]["managedFields"] = json!(fields); }
pub(crate) fn apply(_: &Resource, before: &Value, config: &Value, _: &Manager, _: bool) -> Result<(Value, Vec<Value>), ApiError> {
    Ok((super::patch::merge(before, config), Vec::new()))
}
