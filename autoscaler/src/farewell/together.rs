//! Requests that are all authorized before any of them is carried out.
//!
//! An API server authorizes a request by its head, and says "100 Continue" to one that expects it when somebody begins to
//! read the body, which is after that. So each body is kept back until all heads have been answered. Requests that are only
//! sent at the same time are not enough: on a busy machine the first was carried out before the last was looked at.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use http::header::EXPECT;
use http::{HeaderValue, Request, StatusCode};
use hyper::body::{Body as HttpBody, Bytes, Frame, SizeHint};
use kube::client::Body;
use tokio::sync::watch;
use tokio::time::timeout;

/// A proxy before the API server may swallow the interim answer: then the bodies go without it.
const PATIENCE: Duration = Duration::from_millis(500);

/// Opens when as many heads have been answered as there are requests.
#[derive(Clone, Debug)]
pub(super) struct Gate {
    requests: usize,
    answered: watch::Sender<usize>,
}

/// One of the requests: its head is answered once.
#[derive(Clone, Debug)]
pub(super) struct Head {
    gate: Gate,
    is_answered: Arc<AtomicBool>,
}

impl Gate {
    pub(super) fn new(requests: usize) -> Self {
        Self {
            requests,
            answered: watch::Sender::new(0),
        }
    }

    /// Puts one of the requests before the gate. Its final answer has to be [noted](Head::answered) by the caller.
    pub(super) fn keep<B>(&self, request: &mut Request<B>) -> Head {
        let head = Head {
            gate: self.clone(),
            is_answered: Arc::default(),
        };
        request
            .headers_mut()
            .insert(EXPECT, HeaderValue::from_static("100-continue"));
        let interim = head.clone();
        hyper::ext::on_informational(request, move |answer| {
            if answer.status() == StatusCode::CONTINUE {
                interim.answered();
            }
        });
        request.extensions_mut().insert(self.clone());
        head
    }

    async fn opened(self) {
        let mut answered = self.answered.subscribe();
        let all = answered.wait_for(|answered| *answered >= self.requests);
        if timeout(PATIENCE, all).await.is_err() {
            tracing::debug!("no interim answers; the requests go on without");
        }
    }
}

impl Head {
    /// It has been answered, finally or with an interim answer.
    pub(super) fn answered(&self) {
        if !self.is_answered.swap(true, Ordering::SeqCst) {
            self.gate.answered.send_modify(|answered| *answered += 1);
        }
    }
}

/// A request's body, which may have to wait for other requests.
pub struct HeldBody {
    opened: Option<BoxFuture<'static, ()>>,
    body: Body,
}

impl std::fmt::Debug for HeldBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut body = f.debug_struct("HeldBody");
        body.field("is_held", &self.opened.is_some())
            .finish_non_exhaustive()
    }
}

/// Gives a request's body what it may have to wait for. Whoever makes the client that an autoscaler gets has all requests
/// pass through here; without it, the last requests of an uninstallation are only sent at the same time.
pub fn hold(request: Request<Body>) -> Request<HeldBody> {
    let gate = request.extensions().get::<Gate>().cloned();
    request.map(|body| HeldBody {
        opened: gate.map(|gate| gate.opened().boxed()),
        body,
    })
}

impl HttpBody for HeldBody {
    type Data = Bytes;
    type Error = kube::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, kube::Error>>> {
        if let Some(opened) = &mut self.opened {
            ready!(opened.poll_unpin(cx));
            self.opened = None;
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Mutex;

    use futures::future::join_all;
    use http::Response;
    use http_body_util::{BodyExt, Full};
    use hyper::body::Incoming;
    use hyper::service::service_fn;
    use hyper_util::client::legacy::Client as Http;
    use hyper_util::client::legacy::connect::HttpConnector;
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use kube::Client;
    use tokio::net::TcpListener;
    use tower::{BoxError, ServiceBuilder, service_fn as tower_fn};

    use super::*;

    /// What a server saw, in order.
    type Seen = Arc<Mutex<Vec<&'static str>>>;

    /// A server that looks at heads with a pause between them, reads bodies at once, and refuses `/refused` by its head.
    async fn serve(seen: Seen) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let turn = Arc::new(tokio::sync::Mutex::new(()));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (seen, turn) = (Arc::clone(&seen), Arc::clone(&turn));
                tokio::spawn(async move {
                    let service = service_fn(|request| answer(request, &seen, &turn));
                    let http = hyper::server::conn::http1::Builder::new();
                    drop(http.serve_connection(TokioIo::new(stream), service).await);
                });
            }
        });
        format!("http://{address}")
    }

    async fn answer(
        request: Request<Incoming>,
        seen: &Seen,
        turn: &tokio::sync::Mutex<()>,
    ) -> Result<Response<Full<Bytes>>, Infallible> {
        {
            let _turn = turn.lock().await;
            tokio::time::sleep(Duration::from_millis(20)).await;
            seen.lock().expect("no panic").push("head");
        }
        let mut response = Response::new(Full::from("{}"));
        if request.uri().path() == "/refused" {
            *response.status_mut() = StatusCode::FORBIDDEN;
        } else {
            request.into_body().collect().await.expect("a body");
            seen.lock().expect("no panic").push("body");
        }
        Ok(response)
    }

    fn client() -> Client {
        let http: Http<HttpConnector, HeldBody> = Http::builder(TokioExecutor::new()).build_http();
        let service = ServiceBuilder::new()
            .map_err(BoxError::from)
            .map_request(hold)
            .service(tower_fn(move |request| http.request(request)));
        Client::new(service, "default")
    }

    #[tokio::test]
    async fn no_body_is_sent_before_every_head_was_answered_also_with_a_refusal() {
        for (paths, bodies) in [(["/a", "/b", "/c", "/d"], 4), (["/a", "/refused", "/c", "/d"], 3)] {
            let seen = Seen::default();
            let (client, url) = (client(), serve(Arc::clone(&seen)).await);
            let gate = Gate::new(paths.len());
            join_all(paths.map(async |path| {
                let mut request = Request::patch(format!("{url}{path}"))
                    .body(b"[]".to_vec())
                    .expect("a request");
                let head = gate.keep(&mut request);
                drop(client.request::<serde_json::Value>(request).await);
                head.answered();
            }))
            .await;
            let seen = seen.lock().expect("no panic").clone();
            assert_eq!(seen[..4], ["head"; 4], "{seen:?}");
            assert_eq!(seen[4..], vec!["body"; bodies], "{seen:?}");
        }
    }
}
