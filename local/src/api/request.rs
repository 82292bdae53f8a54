//! What is asked, taken apart.

use bytes::Bytes;
use std::sync::Arc;

use super::resources::Resource;
use super::selector::{Fields, Labels};
use super::status::ApiError;
use super::store::Key;
use super::{Api, User};

/// Query parameters.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub(crate) fn parse(text: &str) -> Self {
        Self(
            text.split('&')
                .filter(|pair| !pair.is_empty())
                .map(|pair| {
                    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (decode(key, true), decode(value, true))
                })
                .collect(),
        )
    }

    /// The value, if it is there and not empty.
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|it| it.0 == key)
            .map(|it| it.1.as_str())
            .filter(|value| !value.is_empty())
    }

    /// `true`, `1`, or the bare key.
    pub(crate) fn flag(&self, key: &str) -> bool {
        let found = self.0.iter().find(|it| it.0 == key).map(|it| it.1.as_str());
        found.is_some_and(|value| !matches!(value, "false" | "0"))
    }

    pub(crate) fn number(&self, key: &str) -> Result<Option<u64>, ApiError> {
        self.get(key)
            .map(|text| {
                text.parse().map_err(|_| {
                    ApiError::bad_request(format!(
                        "strconv.ParseInt: parsing \"{text}\": invalid syntax for {key}"
                    ))
                })
            })
            .transpose()
    }
}

/// Undoes percent-encoding.
pub(crate) fn decode(text: &str, plus: bool) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = bytes
            .get(at + 1..at + 3)
            .and_then(|two| std::str::from_utf8(two).ok());
        match (bytes[at], hex.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (b'%', Some(byte)) => {
                out.push(byte);
                at += 3;
                continue;
            }
            (b'+', _) if plus => out.push(b' '),
            (byte, _) => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// How unknown and doubled fields are dealt with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Validation {
    Ignore,
    Warn,
    Strict,
}

/// One request on a resource.
pub(crate) struct Request<'a> {
    pub(crate) api: &'a Api,
    pub(crate) user: &'a User,
    pub(crate) method: http::Method,
    pub(crate) resource: Arc<Resource>,
    /// Empty: all namespaces, or a cluster-wide kind.
    pub(crate) namespace: String,
    /// Empty: the collection.
    pub(crate) name: String,
    /// Empty: the object itself.
    pub(crate) subresource: String,
    pub(crate) query: Query,
    pub(crate) headers: &'a http::HeaderMap,
    pub(crate) body: Bytes,
}

impl Request<'_> {
    pub(crate) fn key(&self) -> Key {
        (self.namespace.clone(), self.name.clone())
    }

    pub(crate) fn dry_run(&self) -> Result<bool, ApiError> {
        match self.query.get("dryRun") {
            None => Ok(false),
            Some("All") => Ok(true),
            Some(other) => Err(ApiError::invalid(
                "meta.k8s.io",
                "CreateOptions",
                "",
                &[super::status::Cause::unsupported(
                    "dryRun",
                    &serde_json::json!([other]),
                    &["All"],
                )],
            )),
        }
    }

    pub(crate) fn validation(&self) -> Result<Validation, ApiError> {
        match self.query.get("fieldValidation") {
            // Warn is the default since Kubernetes 1.25.
            None | Some("Warn") => Ok(Validation::Warn),
            Some("Ignore") => Ok(Validation::Ignore),
            Some("Strict") => Ok(Validation::Strict),
            Some(other) => Err(ApiError::bad_request(format!(
                "fieldValidation parameter must be one of \"Ignore\", \"Warn\", \"Strict\": {other}"
            ))),
        }
    }

    /// The field manager: as told, else the first word of the User-Agent.
    pub(crate) fn manager(&self) -> String {
        if let Some(manager) = self.query.get("fieldManager") {
            return manager.to_owned();
        }
        let agent = self
            .headers
            .get(http::header::USER_AGENT)
            .and_then(|agent| agent.to_str().ok());
        let word = agent
            .and_then(|agent| agent.split('/').next())
            .unwrap_or_default();
        if word.is_empty() {
            "unknown".to_owned()
        } else {
            word.chars().take(128).collect()
        }
    }

    pub(crate) fn labels(&self) -> Result<Labels, ApiError> {
        Labels::parse(self.query.get("labelSelector").unwrap_or_default())
    }

    pub(crate) fn fields(&self) -> Result<Fields, ApiError> {
        Fields::parse(
            self.query.get("fieldSelector").unwrap_or_default(),
            &self.resource.group,
            &self.resource.kind,
            &self.resource.selectable,
        )
    }

    pub(crate) fn not_found(&self) -> ApiError {
        ApiError::not_found(&self.resource.group, &self.resource.plural, &self.name)
    }

    /// The media type of the body, without parameters.
    pub(crate) fn content_type(&self) -> &str {
        super::router::media_type(self.headers)
    }
}
