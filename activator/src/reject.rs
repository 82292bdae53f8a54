//! Every way to refuse a request, and the one table from the reason to what the client reads.
//!
//! Deep code says *what* happened; only this file chooses a status. The next protocol takes its answer from the same
//! table: HTTP from [`Reject::status`], gRPC from [`Reject::grpc`].

use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONNECTION, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Response, StatusCode};

use crate::meter::Outcome;

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Reject {
    /// Nothing is served on the port (any more).
    NoRoute,
    /// The request cannot be served by anybody.
    BadRequest(&'static str),
    /// As many requests as allowed are held already.
    QueueFull {
        /// What the pool is doing.
        pool: PoolNow,
        /// The limit.
        limit: u32,
    },
    /// No pod could take it in time.
    ColdStartTimeout {
        /// What the pool is doing.
        pool: PoolNow,
        /// How long it was held.
        held: Duration,
    },
    /// Pods are ready, and no place came free in time.
    QueueTimeout {
        /// What the pool is doing.
        pool: PoolNow,
        /// How long it was held.
        held: Duration,
    },
    /// No connection to a pod, or it broke before an answer.
    Connect {
        /// What the pool is doing.
        pool: PoolNow,
        /// What went wrong with the last try.
        error: String,
    },
    /// The pod did not begin to answer in time.
    UpstreamTimeout {
        /// What the pool is doing.
        pool: PoolNow,
        /// How long was waited.
        after: Duration,
    },
    /// The Route's limit for a whole request passed before the pod began to answer.
    RequestTimeout {
        /// What the pool is doing.
        pool: PoolNow,
        /// How long was waited.
        after: Duration,
    },
    /// A scraper asked for a sleeping Service.
    Asleep(PoolNow),
    /// The activator goes away.
    Draining,
    /// A defect of ours.
    Internal(&'static str),
}

/// A pool as a refusal describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PoolNow {
    /// `namespace/name` of the Service.
    pub(crate) service: String,
    /// Pods that answer.
    pub(crate) ready: usize,
    /// Pods that exist.
    pub(crate) pods: usize,
    /// Requests held.
    pub(crate) held: u32,
    /// Whether an autoscaler has said that it wakes the pool.
    pub(crate) waking: bool,
}

impl std::fmt::Display for PoolNow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            service, ready, pods, ..
        } = self;
        match (pods, self.waking) {
            (0, true) => write!(f, "{service} is being woken and has no pod yet"),
            (0, false) => write!(f, "{service} has no pod"),
            _ => write!(f, "{ready} of {pods} pods of {service} are ready"),
        }
    }
}

impl Reject {
    /// The name in metrics: a closed set.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::NoRoute => "no_route",
            Self::BadRequest(_) => "bad_request",
            Self::QueueFull { .. } => "queue_full",
            Self::ColdStartTimeout { .. } => "cold_start_timeout",
            Self::QueueTimeout { .. } => "queue_timeout",
            Self::Connect { .. } => "connect",
            Self::UpstreamTimeout { .. } => "upstream_timeout",
            Self::RequestTimeout { .. } => "request_timeout",
            Self::Asleep(_) => "asleep",
            Self::Draining => "draining",
            Self::Internal(_) => "internal",
        }
    }

    /// The table.
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::NoRoute => StatusCode::NOT_FOUND,
            Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::QueueFull { .. } | Self::QueueTimeout { .. } | Self::Asleep(_) | Self::Draining => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::ColdStartTimeout { .. } | Self::UpstreamTimeout { .. } | Self::RequestTimeout { .. } => {
                StatusCode::GATEWAY_TIMEOUT
            }
            Self::Connect { .. } => StatusCode::BAD_GATEWAY,
            Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The same as a gRPC status: 14 UNAVAILABLE may be tried again, 4 is DEADLINE_EXCEEDED, 8 RESOURCE_EXHAUSTED,
    /// 12 UNIMPLEMENTED, 3 INVALID_ARGUMENT, 13 INTERNAL.
    pub(crate) fn grpc(&self) -> u8 {
        match self {
            Self::NoRoute => 12,
            Self::BadRequest(_) => 3,
            Self::QueueFull { .. } | Self::QueueTimeout { .. } => 8,
            Self::ColdStartTimeout { .. } | Self::UpstreamTimeout { .. } | Self::RequestTimeout { .. } => 4,
            Self::Connect { .. } | Self::Asleep(_) | Self::Draining => 14,
            Self::Internal(_) => 13,
        }
    }

    /// How the request's end is counted.
    pub(crate) fn outcome(&self) -> Outcome {
        match self {
            Self::Connect { .. }
            | Self::UpstreamTimeout { .. }
            | Self::RequestTimeout { .. }
            | Self::Internal(_) => Outcome::Failed,
            _ => Outcome::Refused,
        }
    }

    /// Whether the client should come back by another connection.
    fn closes(&self) -> bool {
        matches!(self, Self::NoRoute | Self::BadRequest(_) | Self::Draining)
    }

    /// One sentence on why.
    pub(crate) fn sentence(&self) -> String {
        match self {
            Self::NoRoute => "no Service is served on this port (any more)".to_owned(),
            Self::BadRequest(why) => (*why).to_owned(),
            Self::QueueFull { pool, limit } => {
                format!(
                    "{} requests are held already (queue-limit {limit}): {pool}",
                    pool.held
                )
            }
            Self::ColdStartTimeout { pool, held } => format!("held {:.1} s: {pool}", held.as_secs_f64()),
            Self::QueueTimeout { pool, held } => format!(
                "waited {:.1} s in line for a place (queue-timeout): {pool}, and all are busy",
                held.as_secs_f64()
            ),
            Self::Connect { pool, error } => format!("no answer from a pod: {error}; {pool}"),
            Self::UpstreamTimeout { pool, after } => {
                format!(
                    "the pod did not begin to answer within {:.1} s: {pool}",
                    after.as_secs_f64()
                )
            }
            Self::RequestTimeout { pool, after } => {
                format!(
                    "the pod did not answer within the {:.1} s that a request may take: {pool}",
                    after.as_secs_f64()
                )
            }
            Self::Asleep(pool) => format!("asleep, and scrapes do not wake: {pool}"),
            Self::Draining => "this activator is shutting down".to_owned(),
            Self::Internal(what) => format!("internal error: {what}"),
        }
    }

    /// The response, in the form that the client reads: gRPC, JSON, or a line of text.
    pub(crate) fn response(&self, reader: &Reader) -> Response<Bytes> {
        let sentence = self.sentence();
        if reader.is_grpc() {
            return self.grpc_response(&sentence);
        }
        let (kind, body) = if reader.accepts_json() {
            let body = serde_json::json!({ "error": self.label(), "message": sentence });
            ("application/json", format!("{body}\n"))
        } else {
            ("text/plain; charset=utf-8", format!("{sentence}\n"))
        };
        let mut response = Response::new(Bytes::from(body));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        if self.status() == StatusCode::SERVICE_UNAVAILABLE {
            // A cold start takes a second or two: sooner would only be refused again.
            headers.insert(RETRY_AFTER, HeaderValue::from_static("2"));
        }
        if self.closes() {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    /// The response to a message that could not be read, as bytes.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let (status, sentence) = (self.status(), self.sentence());
        let length = sentence.len() + 1;
        format!(
            "HTTP/1.1 {status}\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {length}\r\n\
             connection: close\r\n\r\n{sentence}\n"
        )
        .into_bytes()
    }

    /// A response of trailers only, as gRPC wants a refusal: status 200, the code and the message as headers.
    fn grpc_response(&self, sentence: &str) -> Response<Bytes> {
        let mut response = Response::new(Bytes::new());
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert("grpc-status", HeaderValue::from(u16::from(self.grpc())));
        // The sentences are ASCII without percent signs; names of Services are DNS labels.
        let message: String = sentence
            .chars()
            .filter(|c| (' '..='~').contains(c) && *c != '%')
            .collect();
        if let Ok(message) = HeaderValue::try_from(message) {
            headers.insert("grpc-message", message);
        }
        response
    }
}

/// The fields of a request that say how its client reads a refusal. Kept while it waits, so they are few and small.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reader {
    accept: Option<HeaderValue>,
    content_type: Option<HeaderValue>,
}

impl Reader {
    pub(crate) fn of(request: &HeaderMap) -> Self {
        Self {
            accept: request.get(ACCEPT).cloned(),
            content_type: request.get(CONTENT_TYPE).cloned(),
        }
    }

    /// Whether the request is a gRPC call.
    pub(crate) fn is_grpc(&self) -> bool {
        let kind = self.content_type.as_ref();
        kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
    }

    /// Whether the client names JSON, or a kind of it, among what it accepts.
    fn accepts_json(&self) -> bool {
        let accept = self.accept.as_ref().and_then(|accept| accept.to_str().ok());
        accept.is_some_and(|accept| accept.contains("application/json") || accept.contains("+json"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> PoolNow {
        PoolNow {
            service: "shop/web".into(),
            ready: 0,
            pods: 1,
            held: 7,
            waking: false,
        }
    }

    fn all() -> Vec<(Reject, u16, u8, &'static str)> {
        let held = Duration::from_secs(60);
        vec![
            (
                Reject::NoRoute,
                404,
                12,
                "no Service is served on this port (any more)",
            ),
            (
                Reject::BadRequest("CONNECT is refused"),
                400,
                3,
                "CONNECT is refused",
            ),
            (
                Reject::QueueFull {
                    pool: pool(),
                    limit: 7,
                },
                503,
                8,
                "7 requests are held already (queue-limit 7): 0 of 1 pods of shop/web are ready",
            ),
            (
                Reject::ColdStartTimeout { pool: pool(), held },
                504,
                4,
                "held 60.0 s: 0 of 1 pods of shop/web are ready",
            ),
            (
                Reject::Connect {
                    pool: pool(),
                    error: "refused".into(),
                },
                502,
                14,
                "no answer from a pod: refused; 0 of 1 pods of shop/web are ready",
            ),
            (
                Reject::UpstreamTimeout {
                    pool: pool(),
                    after: held,
                },
                504,
                4,
                "the pod did not begin to answer within 60.0 s: 0 of 1 pods of shop/web are ready",
            ),
            (
                Reject::QueueTimeout {
                    pool: PoolNow { ready: 1, ..pool() },
                    held,
                },
                503,
                8,
                "waited 60.0 s in line for a place (queue-timeout): 1 of 1 pods of shop/web are ready, and all are busy",
            ),
            (
                Reject::RequestTimeout {
                    pool: PoolNow { ready: 1, ..pool() },
                    after: held,
                },
                504,
                4,
                "the pod did not answer within the 60.0 s that a request may take: 1 of 1 pods of shop/web are ready",
            ),
            (
                Reject::Asleep(PoolNow { pods: 0, ..pool() }),
                503,
                14,
                "asleep, and scrapes do not wake: shop/web has no pod",
            ),
            (Reject::Draining, 503, 14, "this activator is shutting down"),
            (Reject::Internal("x"), 500, 13, "internal error: x"),
        ]
    }

    #[test]
    fn each_refusal_has_its_status_its_grpc_code_and_its_sentence() {
        for (reject, status, grpc, sentence) in all() {
            let response = reject.response(&Reader::default());
            assert_eq!(response.status().as_u16(), status, "{reject:?}");
            assert_eq!(response.body(), &format!("{sentence}\n"), "{reject:?}");
            assert_eq!(
                response.headers().contains_key(RETRY_AFTER),
                status == 503,
                "{reject:?}"
            );
            assert_eq!(reject.grpc(), grpc, "{reject:?}");
        }
    }

    #[test]
    fn labels_are_unique() {
        let labels: std::collections::HashSet<_> = all().iter().map(|row| row.0.label()).collect();
        assert_eq!(labels.len(), all().len());
    }

    #[test]
    fn a_client_that_accepts_json_gets_json() {
        for accept in [
            "application/json",
            "text/html, application/json;q=0.9",
            "application/problem+json",
        ] {
            let mut request = HeaderMap::new();
            request.insert(ACCEPT, HeaderValue::from_static(accept));
            let response = Reject::Draining.response(&Reader::of(&request));
            let body: serde_json::Value = serde_json::from_slice(response.body()).expect("JSON");
            assert_eq!(body["error"], "draining", "{accept}");
        }
    }

    #[test]
    fn a_grpc_call_gets_trailers_only() {
        let mut request = HeaderMap::new();
        request.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc+proto"));
        let response = Reject::ColdStartTimeout {
            pool: pool(),
            held: Duration::from_secs(60),
        }
        .response(&Reader::of(&request));
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["grpc-status"], "4");
        assert_eq!(
            response.headers()["grpc-message"],
            "held 60.0 s: 0 of 1 pods of shop/web are ready"
        );
        assert!(response.body().is_empty());
    }
}
