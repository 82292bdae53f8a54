//! Structure.
use serde_json::Value;
use super::request::Validation;
use super::resources::Resource;
use super::status::ApiError;
pub(crate) fn check(_: &Resource, _: &mut Value, _: Validation) -> Result<Vec<String>, ApiError> { Ok(Vec::new()) }
pub(crate) fn check_applied(_: &Resource, _: &mut Value, _: Validation) -> Result<Vec<String>, ApiError> { Ok(Vec::new()) }
pub(crate) fn word(value: &Value) -> &'static str {
    match value { Value::Null => "null", Value::Bool(_) => "bool", Value::Number(_) => "number", Value::String(_) => "string", Value::Array(_) => "array", Value::Object(_) => "object" }
}
