//! JSON Patch (RFC 6902).

use json_patch::{AddOperation, PatchOperation};
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
    for operation in &patch.0 {
        let operation = as_kubernetes_reads_it(&value, operation);
        json_patch::patch(&mut value, &[operation]).map_err(|error| {
            ApiError::unprocessable(format!(
                "the server rejected our request due to an error in our request: {error}"
            ))
        })?;
    }
    Ok(value)
}

/// Kubernetes takes `replace` of a key that an object does not have as `add`, against RFC 6902 §4.3 (seen at a
/// kube-apiserver 1.35; `remove` of such a key is refused there too).
fn as_kubernetes_reads_it(value: &Value, operation: &PatchOperation) -> PatchOperation {
    let PatchOperation::Replace(replace) = operation else {
        return operation.clone();
    };
    let missing = replace.path.split_back().is_some_and(|(parent, key)| {
        let parent = parent.resolve(value).ok().and_then(Value::as_object);
        parent.is_some_and(|parent| !parent.contains_key(&*key.decoded()))
    });
    if missing {
        PatchOperation::Add(AddOperation {
            path: replace.path.clone(),
            value: replace.value.clone(),
        })
    } else {
        operation.clone()
    }
}
