//! Strategic merge patch.
use serde_json::Value;
use super::super::schema::Schema;
use super::super::status::ApiError;
pub(super) fn apply(before: &Value, patch: &Value, _: &Schema) -> Result<Value, ApiError> { Ok(super::merge::apply(before, patch)) }
