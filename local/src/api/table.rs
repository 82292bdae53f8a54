//! Tables.
use serde_json::{Value, json};
use super::request::Request;
use super::resources::Resource;
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Include { None, Metadata, Object }
pub(crate) fn include(_: &Request<'_>) -> Include { Include::Metadata }
pub(crate) fn table(_: &Resource, _: &[&Value], _: &str, _: &str, _: Option<u64>, _: bool, _: Include) -> Value { json!({}) }
pub(crate) fn bookmark(object: &Value) -> Value { object.clone() }
