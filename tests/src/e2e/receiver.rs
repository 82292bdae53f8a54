//! Somebody outside who is told things: an HTTP server in this process that processes of the cluster can reach.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::cluster::Cluster;

/// Takes every `POST` of JSON and answers 200. Gone when it is dropped.
pub struct Receiver {
    address: SocketAddr,
    received: Arc<Mutex<Vec<Value>>>,
    serving: JoinHandle<()>,
}

impl Receiver {
    /// Listens where processes of `cluster` reach it, on a free port.
    ///
    /// # Errors
    /// It cannot listen there.
    pub async fn start(cluster: &Cluster) -> Result<Self> {
        let host = cluster.host();
        let listener = TcpListener::bind((host, 0))
            .await
            .with_context(|| host.to_string())?;
        let address = listener.local_addr()?;
        let received = Arc::default();
        let messages = Arc::clone(&received);
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&messages)));
            }
        });
        Ok(Self {
            address,
            received,
            serving,
        })
    }

    /// Its address.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// Everything so far, in the order of its arrival.
    #[must_use]
    pub fn received(&self) -> Vec<Value> {
        self.received.lock().clone()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(stream: TcpStream, received: Arc<Mutex<Vec<Value>>>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let received = Arc::clone(&received);
        async move {
            let body = request.into_body().collect().await?.to_bytes();
            let mut response = Response::new(Empty::<Bytes>::new());
            match serde_json::from_slice(&body) {
                Ok(message) => received.lock().push(message),
                Err(_) => *response.status_mut() = StatusCode::BAD_REQUEST,
            }
            Ok::<_, hyper::Error>(response)
        }
    });
    let connection =
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    // A connection that breaks is the other side's matter.
    drop(connection.await);
}
