//! Bodies in: JSON and YAML, with the kind they must be of.

use serde_json::Value;

use super::protobuf;
use super::request::Request;
use super::resources::Resource;
use super::status::ApiError;

/// Reads a body.
pub(crate) fn read(request: &Request<'_>) -> Result<Value, ApiError> {
    body(request.content_type(), &request.body)
}

const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// Reads a body of a media type.
pub(crate) fn body(media: &str, body: &[u8]) -> Result<Value, ApiError> {
    match media {
        "" | "application/json" => json(body),
        "application/yaml" | "application/apply-patch+yaml" => yaml(body),
        PROTOBUF => protobuf::read(body)
            .ok_or_else(|| ApiError::unsupported_media_type("application/json, application/yaml")),
        _ => Err(ApiError::unsupported_media_type(
            "application/json, application/yaml",
        )),
    }
}

pub(crate) fn json(body: &[u8]) -> Result<Value, ApiError> {
    serde_json::from_slice(body)
        .map_err(|error| ApiError::bad_request(format!("couldn't read the body as JSON: {error}")))
}

pub(crate) fn yaml(body: &[u8]) -> Result<Value, ApiError> {
    // Most of what is sent as YAML is JSON, which is much faster to read.
    if let Ok(value) = serde_json::from_slice(body) {
        return Ok(value);
    }
    let text = std::str::from_utf8(body).map_err(|_| ApiError::bad_request("the body is not UTF-8"))?;
    serde_saphyr::from_str(text)
        .map_err(|error| ApiError::bad_request(format!("error decoding YAML: {error}")))
}

/// Checks that `object` is of the resource's kind, filling in what is missing.
pub(crate) fn check_kind(resource: &Resource, object: &mut Value) -> Result<(), ApiError> {
    let expected = resource.api_version();
    let Some(map) = object.as_object_mut() else {
        return Err(ApiError::bad_request("the object provided is not a JSON object"));
    };
    for (key, expected) in [
        ("apiVersion", expected.as_str()),
        ("kind", resource.kind.as_str()),
    ] {
        match map.get(key).and_then(Value::as_str) {
            None | Some("") => {
                map.insert(key.to_owned(), expected.into());
            }
            Some(found) if found == expected => {}
            Some(found) => {
                return Err(ApiError::bad_request(format!(
                    "the {key} in the data ({found}) does not match the expected {key} ({expected})"
                )));
            }
        }
    }
    if !map.get("metadata").is_some_and(Value::is_object) {
        if map.get("metadata").is_some_and(|metadata| !metadata.is_null()) {
            return Err(ApiError::bad_request("metadata is not an object"));
        }
        map.insert("metadata".to_owned(), Value::Object(serde_json::Map::new()));
    }
    Ok(())
}
