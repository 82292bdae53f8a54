//! From a path to a verb on a resource, and from an answer to an HTTP response.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use serde_json::Value;

use super::request::{Query, Request, decode};
use super::resources::Registry;
use super::status::ApiError;
use super::{
    Api, ApiBody, User, delete, discovery, openapi, outage, read, reviews, scale, subresources, write,
};

/// What a handler answers.
pub(crate) enum Reply {
    Json(u16, Value),
    /// JSON, already serialised.
    Bytes(u16, Bytes),
    Typed(u16, &'static str, Bytes),
    /// A stream, and its media type.
    Stream(&'static str, ApiBody),
}

/// An answer and the warnings that come with it.
pub(crate) struct Answer {
    pub(crate) reply: Reply,
    pub(crate) warnings: Vec<String>,
}

impl From<Reply> for Answer {
    fn from(reply: Reply) -> Self {
        Self {
            reply,
            warnings: Vec::new(),
        }
    }
}

pub(crate) fn whole(bytes: impl Into<Bytes>) -> ApiBody {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

fn respond(code: u16, media: &'static str, body: ApiBody) -> Response<ApiBody> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    headers.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("no-cache, private"),
    );
    response
}

pub(crate) const JSON: &str = "application/json";

/// A refusal as a response.
pub(crate) fn refusal(error: &ApiError) -> Response<ApiBody> {
    let mut response = respond(error.code, JSON, whole(error.to_status().to_string()));
    if matches!(error.code, 429 | 503) {
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

fn response(answer: Result<Answer, ApiError>) -> Response<ApiBody> {
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => return refusal(&error),
    };
    let mut response = match answer.reply {
        Reply::Json(code, value) => respond(code, JSON, whole(value.to_string())),
        Reply::Bytes(code, bytes) => respond(code, JSON, whole(bytes)),
        Reply::Typed(code, media, bytes) => respond(code, media, whole(bytes)),
        Reply::Stream(media, body) => respond(200, media, body),
    };
    for warning in answer.warnings {
        let text = warning.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{text}\"")) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
    response
}

/// Answers one request.
pub(crate) async fn route(
    api: &Api,
    user: &User,
    parts: &http::request::Parts,
    body: Bytes,
) -> Response<ApiBody> {
    let path = parts.uri.path();
    let query = Query::parse(parts.uri.query().unwrap_or_default());
    let steps: Vec<String> = path
        .split('/')
        .filter(|step| !step.is_empty())
        .map(|step| decode(step, false))
        .collect();
    let steps: Vec<&str> = steps.iter().map(String::as_str).collect();
    if steps == ["local", "outage"] {
        return response(outage::handle(api, user, &parts.method, &query));
    }
    let registry = api.registry();
    if let Some(answer) = fixed(api, &registry, parts, &steps) {
        return response(answer);
    }
    let target = match steps.as_slice() {
        ["api", version, rest @ ..] => find(&registry, "", version, rest),
        ["apis", group, inner @ ..] => {
            if parts.method == Method::POST
                && let Some(answer) =
                    reviews::review(api, user, group, inner, media_type(&parts.headers), &body)
            {
                return response(answer);
            }
            match inner {
                [version, rest @ ..] => find(&registry, group, version, rest),
                [] => None,
            }
        }
        _ => None,
    };
    let Some(target) = target else {
        return refusal(&ApiError::no_such_path());
    };
    let request = Request {
        api,
        user,
        method: parts.method.clone(),
        resource: target.resource,
        namespace: target.namespace,
        name: target.name,
        subresource: target.subresource,
        query,
        headers: &parts.headers,
        body,
    };
    response(dispatch(&request).await)
}

/// The media type of a body, without parameters.
pub(crate) fn media_type(headers: &http::HeaderMap) -> &str {
    let media = headers.get(header::CONTENT_TYPE).and_then(|it| it.to_str().ok());
    media
        .and_then(|media| media.split(';').next())
        .unwrap_or_default()
        .trim()
}

/// Paths that are not resources.
fn fixed(
    api: &Api,
    registry: &Registry,
    parts: &http::request::Parts,
    steps: &[&str],
) -> Option<Result<Answer, ApiError>> {
    let reply = match steps {
        ["healthz" | "livez" | "readyz", ..] => Reply::Typed(200, "text/plain", Bytes::from_static(b"ok")),
        ["version"] => Reply::Json(200, discovery::version()),
        ["openapi", "v2"] => return Some(openapi::v2(registry, &parts.headers).map(Answer::from)),
        ["openapi", "v3", rest @ ..] => return Some(openapi::v3(registry, rest).map(Answer::from)),
        _ => return discovery::answer(api, registry, &parts.headers, steps).map(|it| it.map(Answer::from)),
    };
    Some(Ok(reply.into()))
}

struct Target {
    resource: Arc<super::resources::Resource>,
    namespace: String,
    name: String,
    subresource: String,
}

/// The object or collection that a path names.
fn find(registry: &Registry, group: &str, version: &str, rest: &[&str]) -> Option<Target> {
    let (namespace, rest) = match rest {
        // The namespace itself, or something of it that is no namespaced kind.
        ["namespaces", _] | ["namespaces", _, "status" | "finalize"] => ("", rest),
        ["namespaces", namespace, inner @ ..] => (*namespace, inner),
        other => ("", other),
    };
    let (plural, name, subresource) = match rest {
        [plural] => (*plural, "", String::new()),
        [plural, name] => (*plural, *name, String::new()),
        [plural, name, subresource] => (*plural, *name, (*subresource).to_owned()),
        _ => return None,
    };
    let resource = Arc::clone(registry.get(group, version, plural)?);
    // A namespaced object is found only under its namespace, and a cluster-wide one under none.
    let misplaced = if resource.namespaced {
        namespace.is_empty() && !name.is_empty()
    } else {
        !namespace.is_empty()
    };
    (!misplaced).then(|| Target {
        resource,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        subresource,
    })
}

async fn dispatch(request: &Request<'_>) -> Result<Answer, ApiError> {
    let (method, resource) = (&request.method, &request.resource);
    match request.subresource.as_str() {
        "" if request.name.is_empty() => match *method {
            Method::GET | Method::HEAD => read::list(request),
            Method::POST if !resource.namespaced || !request.namespace.is_empty() => write::create(request),
            Method::DELETE if !resource.namespaced || !request.namespace.is_empty() => {
                delete::collection(request)
            }
            _ => Err(ApiError::method_not_allowed()),
        },
        "" => match *method {
            Method::GET | Method::HEAD => read::get(request),
            Method::PUT => write::update(request),
            Method::PATCH => write::patch(request),
            Method::DELETE => delete::one(request),
            _ => Err(ApiError::method_not_allowed()),
        },
        "status" if resource.status => match *method {
            Method::GET => read::get(request),
            Method::PUT => write::update(request),
            Method::PATCH => write::patch(request),
            _ => Err(ApiError::method_not_allowed()),
        },
        "scale" if resource.scale.is_some() => scale::handle(request),
        _ => subresources::handle(request).await,
    }
}
