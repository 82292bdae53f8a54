//! Validation.
use serde_json::Value;
use super::resources::Resource;
use super::status::ApiError;
#[derive(Debug, Default)]
pub(crate) struct Addresses {}
#[derive(Debug, Default)]
pub(crate) struct Lease {}
impl Addresses {
    pub(crate) fn take(&mut self, _: &Resource, _: &mut Value, _: Option<&Value>) -> Result<Lease, ApiError> { Ok(Lease {}) }
    pub(crate) fn give_back(&mut self, _: Lease) {}
    pub(crate) fn keep(&mut self, _: Lease) {}
    pub(crate) fn free(&mut self, _: &Resource, _: &Value) {}
}
pub(crate) fn create(_: &Resource, _: &Value) -> Result<(), ApiError> { Ok(()) }
pub(crate) fn update(_: &Resource, _: &Value, _: &Value, _: &str) -> Result<(), ApiError> { Ok(()) }
/// Whether a label selector selects an object.
pub(crate) fn selector_matches(selector: &Value, object: &Value) -> bool {
    super::selector::Labels::parse(&super::scale::selector_text(selector)).is_ok_and(|labels| labels.matches(object))
}
