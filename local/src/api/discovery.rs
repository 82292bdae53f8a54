//! Discovery.
use serde_json::{Value, json};
use super::{Api, router::Reply, resources::Registry, status::ApiError};
pub(crate) fn version() -> Value { json!({}) }
pub(crate) fn answer(_: &Api, _: &Registry, _: &http::HeaderMap, _: &[&str]) -> Option<Result<Reply, ApiError>> { None }
