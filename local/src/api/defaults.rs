//! Defaults.
use serde_json::{Value, json};
use super::resources::Resource;
pub(crate) fn prepare_create(resource: &Resource, object: &mut Value) {
    if resource.status && let Some(map) = object.as_object_mut() { map.remove("status"); }
}
pub(crate) fn fill(_: &Resource, _: &mut Value) {}
pub(crate) fn spec_differs(_: &Resource, a: &Value, b: &Value) -> bool { a.get("spec") != b.get("spec") }
pub(crate) fn crd_status(_: &Value) -> Value { json!({}) }
