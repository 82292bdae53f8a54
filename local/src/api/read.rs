//! GET: one object, a list, or the start of a watch; and in which form objects are shown.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::{BufMut, Bytes, BytesMut};
use serde_json::{Value, json};

use super::request::Request;
use super::resources::Resource;
use super::router::{Answer, Reply};
use super::status::ApiError;
use super::store::{Key, Stored};
use super::{convert, table, watch};

/// In which form the client wants objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum View {
    Plain,
    /// Rows and columns, for `kubectl get`.
    Table,
    /// Only metadata.
    Partial,
}

impl View {
    /// The first form in `Accept` that there is.
    pub(crate) fn of(request: &Request<'_>) -> Result<Self, ApiError> {
        let Some(accept) = request
            .headers
            .get(http::header::ACCEPT)
            .and_then(|it| it.to_str().ok())
        else {
            return Ok(Self::Plain);
        };
        for range in accept.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default();
            if !matches!(media, "application/json" | "*/*" | "application/*" | "") {
                continue;
            }
            let form = parts.find_map(|part| part.strip_prefix("as="));
            match form {
                None => return Ok(Self::Plain),
                Some("Table") => return Ok(Self::Table),
                Some("PartialObjectMetadata" | "PartialObjectMetadataList") => return Ok(Self::Partial),
                Some(_) => {}
            }
        }
        Err(ApiError::not_acceptable(
            "application/json, application/json;as=Table;g=meta.k8s.io;v=v1",
        ))
    }
}

/// An object as JSON in the version that was asked for.
pub(crate) fn bytes_in(resource: &Resource, stored: &Stored) -> Bytes {
    if convert::needed(resource) {
        Bytes::from(convert::to_version(resource, stored.value.clone()).to_string())
    } else {
        stored.bytes.clone()
    }
}

/// An object in the version that was asked for.
pub(crate) fn value_in(resource: &Resource, stored: &Stored) -> Value {
    if convert::needed(resource) {
        convert::to_version(resource, stored.value.clone())
    } else {
        stored.value.clone()
    }
}

/// `kind: PartialObjectMetadata` of an object.
pub(crate) fn partial(value: &Value) -> Value {
    json!({ "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": value["metadata"] })
}

/// One object as a reply.
pub(crate) fn show(request: &Request<'_>, code: u16, stored: &Stored) -> Result<Reply, ApiError> {
    let resource = &request.resource;
    Ok(match View::of(request)? {
        View::Plain => Reply::Bytes(code, bytes_in(resource, stored)),
        View::Partial => Reply::Json(code, partial(&stored.value)),
        View::Table => {
            let value = value_in(resource, stored);
            let version = stored.version.to_string();
            let rows = table::include(request);
            Reply::Json(
                code,
                table::table(resource, &[&value], &version, "", None, true, rows),
            )
        }
    })
}

/// GET of one object.
pub(crate) fn get(request: &Request<'_>) -> Result<Answer, ApiError> {
    let stored = request
        .api
        .0
        .store
        .get(&request.resource.storage, &request.key())
        .ok_or_else(|| request.not_found())?;
    show(request, 200, &stored).map(Answer::from)
}

/// GET of a collection.
pub(crate) fn list(request: &Request<'_>) -> Result<Answer, ApiError> {
    if request.query.flag("watch") {
        return watch::start(request).map(Answer::from);
    }
    if request.query.get("sendInitialEvents").is_some() {
        return Err(ApiError::invalid(
            "meta.k8s.io",
            "ListOptions",
            "",
            &[super::status::Cause::forbidden(
                "sendInitialEvents",
                "sendInitialEvents is forbidden for list",
            )],
        ));
    }
    let view = View::of(request)?;
    let (labels, fields) = (request.labels()?, request.fields()?);
    let limit = usize::try_from(request.query.number("limit")?.unwrap_or(0)).unwrap_or(usize::MAX);
    let (objects, version, start) = snapshot(request)?;
    let start = start.unwrap_or_default();
    let mut chosen: Vec<Arc<Stored>> = Vec::new();
    let mut last: Option<Key> = None;
    let mut remaining = 0_u64;
    for stored in objects {
        let key = key_of(&stored.value);
        if key <= start && start != Key::default() {
            continue;
        }
        let shown = convert::shown(&request.resource, &stored.value);
        if !labels.matches(&stored.value) || !fields.matches(&shown) {
            continue;
        }
        if limit > 0 && chosen.len() >= limit {
            remaining += 1;
            continue;
        }
        last = Some(key);
        chosen.push(stored);
    }
    let more = (remaining > 0)
        .then(|| last.map(|key| token(version, &key)))
        .flatten()
        .unwrap_or_default();
    // With selectors Kubernetes does not know how many remain, and says nothing.
    let remaining = (remaining > 0 && labels.is_empty() && fields.is_empty()).then_some(remaining);
    Ok(render(request, view, &chosen, version, &more, remaining).into())
}

pub(crate) fn key_of(value: &Value) -> Key {
    let text = |key: &str| value["metadata"][key].as_str().unwrap_or_default().to_owned();
    (text("namespace"), text("name"))
}

/// The objects to choose from, the version at which they are true, and behind which key to start.
type Snapshot = (Vec<Arc<Stored>>, u64, Option<Key>);

fn snapshot(request: &Request<'_>) -> Result<Snapshot, ApiError> {
    let store = &request.api.0.store;
    let storage = &request.resource.storage;
    let namespace = (!request.namespace.is_empty()).then_some(request.namespace.as_str());
    let exact = |version: u64| -> Result<Vec<Arc<Stored>>, ApiError> {
        Ok(store
            .list_at(storage, namespace, version)?
            .into_iter()
            .map(|it| it.1)
            .collect())
    };
    if let Some(text) = request.query.get("continue") {
        if request
            .query
            .get("resourceVersion")
            .is_some_and(|version| version != "0")
        {
            return Err(ApiError::bad_request(
                "specifying resource version is not allowed when using continue",
            ));
        }
        let (version, key) = read_token(text)
            .ok_or_else(|| ApiError::bad_request("continue key is not valid: the token is malformed"))?;
        return Ok((exact(version)?, version, Some(key)));
    }
    let version = request.query.number("resourceVersion")?;
    match (request.query.get("resourceVersionMatch"), version) {
        (Some("Exact"), Some(version)) if version > 0 => return Ok((exact(version)?, version, None)),
        (None, _) | (Some("NotOlderThan"), Some(_)) => {}
        (Some(other), _) => {
            return Err(ApiError::bad_request(format!(
                "resourceVersionMatch {other} is forbidden unless a fitting resourceVersion is provided"
            )));
        }
    }
    if let Some(version) = version.filter(|&version| version > store.version()) {
        // Refuses with "Too large resource version".
        exact(version)?;
    }
    let (objects, version) = store.list(storage, namespace);
    Ok((objects, version, None))
}

/// The `continue` token: the version of the first page and the last key on this one.
fn token(version: u64, last: &Key) -> String {
    URL_SAFE_NO_PAD.encode(json!({ "rv": version, "ns": last.0, "name": last.1 }).to_string())
}

fn read_token(text: &str) -> Option<(u64, Key)> {
    let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
    let value: Value = serde_json::from_slice(&bytes).ok()?;
    let key = (
        value["ns"].as_str()?.to_owned(),
        value["name"].as_str()?.to_owned(),
    );
    Some((value["rv"].as_u64()?, key))
}

fn render(
    request: &Request<'_>,
    view: View,
    chosen: &[Arc<Stored>],
    version: u64,
    more: &str,
    remaining: Option<u64>,
) -> Reply {
    let resource = &request.resource;
    let version = version.to_string();
    if view == View::Table {
        let values: Vec<Value> = chosen.iter().map(|stored| value_in(resource, stored)).collect();
        let values: Vec<&Value> = values.iter().collect();
        let rows = table::include(request);
        return Reply::Json(
            200,
            table::table(resource, &values, &version, more, remaining, true, rows),
        );
    }
    let mut metadata = json!({ "resourceVersion": version });
    if !more.is_empty() {
        metadata["continue"] = json!(more);
    }
    if let Some(remaining) = remaining {
        metadata["remainingItemCount"] = json!(remaining);
    }
    let (kind, api_version) = match view {
        View::Partial => (
            "PartialObjectMetadataList".to_owned(),
            "meta.k8s.io/v1".to_owned(),
        ),
        _ => (resource.list_kind.clone(), resource.api_version()),
    };
    let head =
        format!("{{\"kind\":\"{kind}\",\"apiVersion\":\"{api_version}\",\"metadata\":{metadata},\"items\":[");
    let mut out =
        BytesMut::with_capacity(head.len() + chosen.iter().map(|it| it.bytes.len() + 1).sum::<usize>());
    out.put_slice(head.as_bytes());
    for (at, stored) in chosen.iter().enumerate() {
        if at > 0 {
            out.put_u8(b',');
        }
        match view {
            View::Partial => out.put_slice(partial(&stored.value).to_string().as_bytes()),
            _ => out.put_slice(&bytes_in(resource, stored)),
        }
    }
    out.put_slice(b"]}");
    Reply::Bytes(200, out.freeze())
}
