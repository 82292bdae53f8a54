//! JSON Patch (RFC 6902).

use serde_json::Value;

use super::super::status::ApiError;

/// Most operations in one patch, as in Kubernetes.
const MOST_OPERATIONS: usize = 10_000;

pub(super) fn read(body: &[u8]) -> Result<json_patch::Patch, ApiError> {
    let patch: json_patch::Patch = serde_json::from_slice(body)
        .map_err(|error| ApiError::bad_request(format!("error decoding patch: {error}")))?;
    if patch.0.len() > MOST_OPERATIONS {
        let mut error = ApiError::too_large(MOST_OPERATIONS);
        error.message = format!(
            "The allowed maximum operations in a JSON patch is {MOST_OPERATIONS}, got {}",
            patch.0.len()
        );
        return Err(error);
    }
    Ok(patch)
}

pub(super) fn apply(before: &Value, patch: &json_patch::Patch) -> Result<Value, ApiError> {
    let mut value = before.clone();
    json_patch::patch(&mut value, &patch.0).map_err(|error| {
        ApiError::unprocessable(format!(
            "the server rejected our request due to an error in our request: {error}"
        ))
    })?;
    Ok(value)
}
