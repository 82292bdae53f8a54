//! The admin port: ready, live, metrics, what this process knows, and the log level. Plain HTTP/1.1, small answers.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::SetLog;

/// Connections served at once: probes, scrapers, a few people. One more is closed.
const CONNECTIONS: usize = 64;

/// A connection may take this long to send a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Tells all about one Service, by namespace and name.
pub(crate) type Explain = Box<dyn Fn(&str, &str) -> Option<serde_json::Value> + Send + Sync>;

/// What the admin port shows, as functions so that it knows nothing of the rest.
pub(crate) struct Pages {
    /// `Err` says what is not ready yet.
    pub(crate) ready: Box<dyn Fn() -> Result<(), String> + Send + Sync>,
    /// Prometheus' text.
    pub(crate) metrics: Box<dyn Fn() -> Vec<u8> + Send + Sync>,
    /// Everything, as JSON.
    pub(crate) state: Box<dyn Fn() -> serde_json::Value + Send + Sync>,
    /// One Service, by namespace and name, as JSON; `None`: not opted in.
    pub(crate) explain: Explain,
    /// Reads or changes the log filter.
    pub(crate) log: SetLog,
}

/// Binds the admin port.
///
/// # Errors
/// When the address is in use or not ours.
pub(crate) async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Serves until `stop`.
pub(crate) async fn serve(listener: TcpListener, pages: Pages, stop: CancellationToken) {
    let pages = Arc::new(pages);
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let tasks = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let Ok((tcp, _)) = accepted else {
            // Out of file descriptors, most likely: give others time to close some.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
            continue;
        };
        let pages = Arc::clone(&pages);
        let stop = stop.clone();
        tasks.spawn(async move {
            let _permit = permit;
            let service = service_fn(move |request| {
                let answer = answer(&pages, &request);
                async move { Ok::<_, Infallible>(answer) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .serve_connection(TokioIo::new(tcp), service);
            tokio::select! {
                _ = connection => {}
                () = stop.cancelled() => {}
            }
        });
    }
}

fn answer(pages: &Pages, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let path = request.uri().path();
    match (request.method(), path) {
        (&Method::PUT, "/debug/log") => log(pages, filter(request.uri().query())),
        (&Method::GET | &Method::HEAD, _) => match path {
            "/live" => text(StatusCode::OK, "ok\n"),
            "/ready" => match (pages.ready)() {
                Ok(()) => text(StatusCode::OK, "ok\n"),
                Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
            },
            "/metrics" => text(StatusCode::OK, (pages.metrics)()),
            "/debug/state" => json(&(pages.state)()),
            "/debug/log" => log(pages, None),
            _ => explain(pages, path),
        },
        _ => text(
            StatusCode::METHOD_NOT_ALLOWED,
            "GET, or PUT /debug/log?filter=FILTER\n",
        ),
    }
}

fn explain(pages: &Pages, path: &str) -> Response<Full<Bytes>> {
    let found = path
        .strip_prefix("/v1/explain/")
        .and_then(|rest| rest.split_once('/'))
        .and_then(|(namespace, name)| (pages.explain)(namespace, name));
    match found {
        Some(value) => json(&value),
        None => text(StatusCode::NOT_FOUND, "not found\n"),
    }
}

fn log(pages: &Pages, filter: Option<String>) -> Response<Full<Bytes>> {
    match (pages.log)(filter.as_deref()) {
        Ok(now) => text(StatusCode::OK, format!("{now}\n")),
        Err(error) => text(StatusCode::BAD_REQUEST, format!("{error}\n")),
    }
}

/// The value of `filter=` in a query, with percent escapes resolved.
fn filter(query: Option<&str>) -> Option<String> {
    let value = query?.split('&').find_map(|pair| pair.strip_prefix("filter="))?;
    let bytes = value.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escaped = (bytes[at] == b'%').then(|| bytes.get(at + 1..at + 3)).flatten();
        match escaped.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()) {
            Some(byte) => {
                plain.push(byte);
                at += 3;
            }
            None => {
                plain.push(if bytes[at] == b'+' { b' ' } else { bytes[at] });
                at += 1;
            }
        }
    }
    String::from_utf8(plain).ok()
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    respond(status, "text/plain; charset=utf-8", body.into())
}

fn json(value: &serde_json::Value) -> Response<Full<Bytes>> {
    respond(
        StatusCode::OK,
        "application/json",
        Bytes::from(format!("{value:#}\n")),
    )
}

fn respond(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_filter_is_read_from_the_query() {
        for (query, want) in [
            (Some("filter=info,kube%3Ddebug"), Some("info,kube=debug")),
            (Some("a=b&filter=warn"), Some("warn")),
            (Some("filter=50%"), Some("50%")),
            (Some("filter=a+b"), Some("a b")),
            (Some("level=warn"), None),
            (None, None),
        ] {
            assert_eq!(filter(query).as_deref(), want, "{query:?}");
        }
    }
}
