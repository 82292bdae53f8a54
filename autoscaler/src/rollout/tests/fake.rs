//! A server on a loopback socket that answers as a test says, and remembers what it was asked.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

/// What was asked.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// With the query string.
    pub(crate) path: String,
    /// As text.
    pub(crate) body: String,
}

impl Asked {
    /// The body as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).expect("JSON")
    }
}

/// What is answered. `None`: nothing, ever.
pub(crate) type Reply = Option<(u16, String)>;

/// The server; it ends when it is dropped.
pub(crate) struct Fake {
    /// `http://127.0.0.1:PORT`.
    pub(crate) address: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    _serving: AbortOnDropHandle<()>,
}

impl Fake {
    /// One that answers by `reply`, which sees how often its path was asked before.
    pub(crate) async fn start(reply: impl Fn(&Asked, usize) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = format!("http://{}", listener.local_addr().expect("an address"));
        let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let (reply, seen) = (Arc::new(reply), Arc::clone(&asked));
        let serving = tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    return;
                };
                let (reply, seen) = (Arc::clone(&reply), Arc::clone(&seen));
                let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                    let (reply, seen) = (Arc::clone(&reply), Arc::clone(&seen));
                    async move { Ok::<_, Infallible>(answer(request, reply.as_ref(), &seen).await) }
                });
                tokio::spawn(async move {
                    let http = hyper::server::conn::http1::Builder::new();
                    let _ = http.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self {
            address,
            asked,
            _serving: AbortOnDropHandle::new(serving),
        }
    }

    /// One that always answers with this.
    pub(crate) async fn saying(status: u16, body: &str) -> Self {
        let body = body.to_owned();
        Self::start(move |_, _| Some((status, body.clone()))).await
    }

    /// Everything that was asked on paths that begin so.
    pub(crate) fn asked(&self, path: &str) -> Vec<Asked> {
        let asked = self.asked.lock();
        asked
            .iter()
            .filter(|one| one.path.starts_with(path))
            .cloned()
            .collect()
    }
}

async fn answer(
    request: Request<Incoming>,
    reply: &(dyn Fn(&Asked, usize) -> Reply + Send + Sync),
    seen: &Mutex<Vec<Asked>>,
) -> Response<Full<Bytes>> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(http_body_util::Collected::to_bytes);
    let asked = Asked {
        path: parts.uri.to_string(),
        body: String::from_utf8_lossy(&body.unwrap_or_default()).into_owned(),
    };
    let before = {
        let mut seen = seen.lock();
        let before = seen.iter().filter(|one| one.path == asked.path).count();
        seen.push(asked.clone());
        before
    };
    let Some((status, text)) = reply(&asked, before) else {
        return std::future::pending().await;
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = StatusCode::from_u16(status).expect("a status");
    response
}
