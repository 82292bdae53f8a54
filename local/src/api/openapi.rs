//! OpenAPI.
use super::{router::Reply, resources::Registry, status::ApiError};
pub(crate) fn v2(_: &Registry, _: &http::HeaderMap) -> Result<Reply, ApiError> { Err(ApiError::no_such_path()) }
pub(crate) fn v3(_: &Registry, _: &[&str]) -> Result<Reply, ApiError> { Err(ApiError::no_such_path()) }
