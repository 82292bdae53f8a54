//! The admin endpoints: `/ready`, `/live`, `/metrics`, `/debug/state`, `/debug/log`.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use serde_json::json;

use crate::SetLog;
use crate::directory::Directory;
use crate::hub::Hub;
use crate::server::Server;
use crate::shutdown::{Phase, Phases};

/// What the endpoints read.
pub(crate) struct Admin {
    pub(crate) hub: Arc<Hub>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) server: Arc<Server>,
    pub(crate) phases: Phases,
    pub(crate) set_log: SetLog,
}

impl Admin {
    /// Serves for ever.
    pub(crate) async fn serve(self: Arc<Self>, listener: tokio::net::TcpListener) {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let admin = Arc::clone(&self);
            tokio::spawn(async move {
                let service = hyper::service::service_fn(move |request| {
                    let response = admin.answer(&request);
                    async move { Ok::<_, Infallible>(response) }
                });
                let serving = hyper::server::conn::http1::Builder::new()
                    .timer(hyper_util::rt::TokioTimer::new())
                    .header_read_timeout(Duration::from_secs(10))
                    .serve_connection(hyper_util::rt::TokioIo::new(stream), service);
                if let Err(error) = serving.await {
                    tracing::debug!(%error, "admin connection ended");
                }
            });
        }
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        match (request.method(), request.uri().path()) {
            (&Method::GET, "/live") => text(StatusCode::OK, "live\n".to_owned()),
            (&Method::GET, "/ready") => self.ready(),
            (&Method::GET, "/metrics") => {
                let metrics = &self.hub.metrics;
                metrics
                    .tasks
                    .set(i64::try_from(self.server.tasks()).unwrap_or(i64::MAX));
                text(StatusCode::OK, metrics.text())
            }
            (&Method::GET, "/debug/state") => json_of(&self.state()),
            (&Method::GET, "/debug/log") => log(&self.set_log, None),
            (&Method::PUT, "/debug/log") => {
                let query = request.uri().query().unwrap_or_default();
                match query.split('&').find_map(|pair| pair.strip_prefix("filter=")) {
                    Some(filter) => log(&self.set_log, Some(&decode(filter))),
                    None => text(StatusCode::BAD_REQUEST, "PUT /debug/log?filter=info\n".to_owned()),
                }
            }
            _ => text(
                StatusCode::NOT_FOUND,
                "/ready /live /metrics /debug/state /debug/log\n".to_owned(),
            ),
        }
    }

    /// Ready once the cluster has been seen, until SIGTERM.
    fn ready(&self) -> Response<Full<Bytes>> {
        match (self.phases.now(), self.directory.is_synced()) {
            (Phase::Serving, true) => text(StatusCode::OK, "ready\n".to_owned()),
            (Phase::Serving, false) => text(
                StatusCode::SERVICE_UNAVAILABLE,
                "Routes and EndpointSlices have not been listed yet\n".to_owned(),
            ),
            (phase, _) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{phase:?}\n")),
        }
    }

    fn state(&self) -> serde_json::Value {
        let pools: serde_json::Map<_, _> = self
            .directory
            .pools()
            .iter()
            .map(|pool| (pool.key.to_string(), pool.dump()))
            .collect();
        let rollouts: serde_json::Map<_, _> = self
            .directory
            .attempts()
            .iter()
            .map(|attempt| (attempt.route.to_string(), attempt.dump()))
            .collect();
        json!({
            "name": self.hub.config.name,
            "instance": self.hub.instance,
            "phase": format!("{:?}", self.phases.now()),
            "uptimeSeconds": self.hub.now().as_secs(),
            "epoch": self.hub.shares(crate::balance::Shares::epoch),
            "peers": self.hub.peers(),
            "connections": self.server.connections(),
            "listeners": self.server.ports(),
            "routes": self.directory.acks(),
            "waitingPages": self.hub.themes.dump(),
            "pools": pools,
            "rollouts": rollouts,
        })
    }
}

fn log(set_log: &SetLog, filter: Option<&str>) -> Response<Full<Bytes>> {
    match set_log(filter) {
        Ok(filter) => text(StatusCode::OK, format!("{filter}\n")),
        Err(error) => text(StatusCode::BAD_REQUEST, format!("{error}\n")),
    }
}

/// Undoes percent-encoding; what is not encoded properly stays as it is.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let code = tail.get(..2).and_then(|code| std::str::from_utf8(code).ok());
        match code.and_then(|code| u8::from_str_radix(code, 16).ok()) {
            Some(byte) if *first == b'%' => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            _ => {
                bytes.push(if *first == b'+' { b' ' } else { *first });
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}

fn json_of(value: &serde_json::Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(format!("{value:#}\n")));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    use super::decode;

    #[test]
    fn queries_are_decoded() {
        for (text, wanted) in [
            ("a%3Dinfo%2Cb", "a=info,b"),
            ("a+b", "a b"),
            ("%zz%4", "%zz%4"),
            ("", ""),
        ] {
            assert_eq!(decode(text), wanted);
        }
    }
}
