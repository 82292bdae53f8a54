//! One request to one pod, over connections that belong to this worker thread alone.
//!
//! Each worker keeps its own idle connections in the endpoint itself: no lock is contended, no map is searched, and when
//! the endpoint goes, so do they. Measured against a pooled client shared by all threads, this costs a quarter less CPU.
//!
//! A connection that a pod closes while it is idle is the usual cause of lost requests. So a sender is asked whether it
//! is still open, a request that was not written comes back whole, and one that was written without a byte of answer may
//! be repeated when its method is idempotent and it has no body. What may not be repeated (RFC 9110 §9.2.2: a proxy must
//! not repeat a POST) is written to an idle connection only after a look at the socket itself: the end of it may have
//! arrived, and only this thread's event loop not told us yet. One that nobody has needed for [`UNUSED`] is closed by us.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::Duration;

use http::{Method, Request, Response, Version};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use tokio::net::{TcpSocket, TcpStream};

use crds::names::HOP_HEADER;

use crate::body::Upload;
use crate::directory::Directory;
use crate::hub::Hub;
use crate::places::{self, PLACE_HEADER, Word};
use crate::pool::Endpoint;
use crate::wire::Wire;

/// Most idle connections that a worker keeps to one endpoint: above any number of requests that one core has in flight
/// at one pod at useful latencies; beyond it, connecting anew is the smaller cost.
const MOST_IDLE: usize = 512;

/// Most pods or peers that one request, or one connection of bytes, is tried on. Each try that cannot connect puts its pod on
/// probation, so more tries than this mean that probes and connections disagree.
pub(crate) const MOST_TRIES: u32 = 16;

/// How long it waits before it is sent again to where it could just not be sent: a peer that restarts, or a port that
/// Kubernetes has not published yet.
pub(crate) const PAUSE: Duration = Duration::from_millis(50);

/// Why a pod whose port Kubernetes has not published yet cannot be connected to.
pub(crate) const UNPUBLISHED: &str = "its port is not published yet";

/// Flow-control window of one HTTP/2 stream from a pod: what a client that does not read makes us keep, at most.
const STREAM_WINDOW: u32 = 256 * 1024;

/// What was idle for so long is closed: a rush needs many connections, and afterwards they are memory here and in the pod.
const UNUSED: Duration = Duration::from_secs(10);

/// A worker's connections to one endpoint.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    h1: Mutex<Kept>,
    /// One for each port; connecting is done by one request while others wait.
    h2: tokio::sync::Mutex<Vec<(u16, http2::SendRequest<Upload>)>>,
}

/// Idle HTTP/1.1 connections.
#[derive(Debug, Default)]
struct Kept {
    /// The last used last.
    all: Vec<Idle>,
    /// The fewest there were since they were last looked through: of what is used last first, as many were not used at all.
    least: usize,
}

/// An idle HTTP/1.1 connection.
#[derive(Debug)]
struct Idle {
    port: u16,
    sender: http1::SendRequest<Upload>,
    /// Weak: the socket closes when its connection ends, not when somebody next looks here.
    wire: Weak<TcpStream>,
}

impl Connections {
    /// Closes what nobody uses now. What is in use closes when it has been used.
    pub(crate) fn close_idle(&self) {
        self.h1.lock().all.clear();
        // Somebody who is connecting has it, and closes what was made in vain with the endpoint.
        if let Ok(mut open) = self.h2.try_lock() {
            open.clear();
        }
    }

    /// Closes what has not been used since the last time. Returns how many.
    pub(crate) fn close_unused(&self) -> usize {
        let mut kept = self.h1.lock();
        let unused = kept.least.min(kept.all.len());
        let used = kept.all.split_off(unused);
        let closed = std::mem::replace(&mut kept.all, used);
        kept.least = kept.all.len();
        drop(kept);
        closed.len()
    }
}

/// Closes connections that nobody needs any more, for ever.
pub(crate) async fn close_unused(hub: Arc<Hub>, directory: Arc<Directory>) {
    loop {
        tokio::time::sleep(UNUSED).await;
        let closed: usize = directory.pools().iter().map(|pool| pool.close_unused()).sum();
        hub.metrics.unused.inc_by(closed as u64);
    }
}

/// Where to send.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Line<'a> {
    pub(crate) endpoint: &'a Arc<Endpoint>,
    pub(crate) port: u16,
    pub(crate) worker: usize,
    pub(crate) h2: bool,
    pub(crate) connect_timeout: Duration,
    /// The local address to connect from.
    pub(crate) source: Option<IpAddr>,
}

/// The head of an answer, and the connection that its body comes by.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) response: Response<Incoming>,
    pub(crate) lease: Option<Lease>,
}

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum Failure {
    /// No connection: the pod has seen nothing.
    Connect {
        /// The request as it was.
        request: Request<Upload>,
        /// What went wrong.
        error: std::io::Error,
    },
    /// It broke after the request may have been read, without a byte of answer.
    Lost {
        /// A copy, when it may be sent again.
        request: Option<Request<Upload>>,
        /// What went wrong.
        error: hyper::Error,
    },
    /// The pod said that it has not read it (RFC 9113 §8.7).
    Refused {
        /// A copy, when it is still whole.
        request: Option<Request<Upload>>,
        /// What it said.
        error: hyper::Error,
    },
}

/// An HTTP/1.1 connection in use.
#[derive(Debug)]
pub(crate) struct Lease {
    idle: Idle,
    endpoint: Arc<Endpoint>,
    worker: usize,
}

impl Lease {
    /// The answer has been read to its end: the connection can be used again.
    pub(crate) fn give_back(mut self) {
        if self.idle.sender.is_closed() {
            return;
        }
        if self.idle.sender.is_ready() {
            return self.park();
        }
        // The request's body may still be on its way, or the connection has not yet noticed its own end.
        tokio::spawn(async move {
            if self.idle.sender.ready().await.is_ok() {
                self.park();
            }
        });
    }

    fn park(self) {
        let mut kept = self.endpoint.connections[self.worker].h1.lock();
        if kept.all.len() >= MOST_IDLE {
            // Those that the pod has closed may be in it still.
            kept.all.retain(|idle| !idle.sender.is_closed());
        }
        // Under the lock: an endpoint that leaves empties the list after it has said so.
        if kept.all.len() < MOST_IDLE && !self.endpoint.is_leaving() {
            kept.all.push(self.idle);
        }
    }
}

/// Sends a request and waits for the answer's head.
///
/// # Cancel safety
/// Dropping the future gives the request up; its connection is closed.
pub(crate) async fn send(line: Line<'_>, request: Request<Upload>) -> Result<Answer, Failure> {
    if line.h2 {
        // Boxed, as is connecting below: requests over connections that are there should not keep the room for it.
        Box::pin(send_h2(line, request)).await
    } else {
        send_h1(line, request).await
    }
}

async fn send_h1(line: Line<'_>, mut request: Request<Upload>) -> Result<Answer, Failure> {
    // Each turn uses up an idle connection or returns, so there are at most MOST_IDLE + 1.
    loop {
        let copy = repeatable(&request);
        let (mut idle, is_new) = match take_idle(line, copy.is_none()) {
            Some(idle) => (idle, false),
            None => match Box::pin(connect_h1(line)).await {
                Ok(idle) => (idle, true),
                Err(error) => return Err(Failure::Connect { request, error }),
            },
        };
        match idle.sender.try_send_request(request).await {
            Ok(response) => {
                line.endpoint.answered();
                let lease = (response.status() != http::StatusCode::SWITCHING_PROTOCOLS).then(|| Lease {
                    idle,
                    endpoint: Arc::clone(line.endpoint),
                    worker: line.worker,
                });
                return Ok(Answer { response, lease });
            }
            Err(mut failure) => match failure.take_message() {
                Some(unsent) if !is_new => request = unsent,
                Some(request) => {
                    let error =
                        std::io::Error::new(std::io::ErrorKind::ConnectionReset, failure.into_error());
                    return Err(Failure::Connect { request, error });
                }
                None => {
                    return Err(Failure::Lost {
                        request: copy,
                        error: failure.into_error(),
                    });
                }
            },
        }
    }
}

/// An idle connection, the last used first. `look`: only one on which nothing has come, not even its end.
/// No more of them are looked at than must be: there may be hundreds.
fn take_idle(line: Line<'_>, look: bool) -> Option<Idle> {
    let mut kept = line.endpoint.connections[line.worker].h1.lock();
    let mut at = kept.all.len();
    loop {
        at = kept.all[..at].iter().rposition(|idle| idle.port == line.port)?;
        let idle = kept.all.remove(at);
        kept.least = kept.least.min(kept.all.len());
        let is_good = idle.sender.is_ready()
            && (!look
                || idle
                    .wire
                    .upgrade()
                    .is_some_and(|stream| crate::wire::is_silent(&stream)));
        if is_good {
            return Some(idle);
        }
    }
}

async fn connect_h1(line: Line<'_>) -> std::io::Result<Idle> {
    let stream = Arc::new(connect(line).await?);
    let wire = Arc::downgrade(&stream);
    let (sender, connection) = http1::Builder::new()
        .max_headers(256)
        .handshake(TokioIo::new(Wire::new(stream)))
        .await
        .map_err(std::io::Error::other)?;
    tokio::spawn(async move {
        // Its end is seen by whoever waits for the answer.
        drop(connection.with_upgrades().await);
    });
    Ok(Idle {
        port: line.port,
        sender,
        wire,
    })
}

async fn send_h2(line: Line<'_>, mut request: Request<Upload>) -> Result<Answer, Failure> {
    // A connection that ended while it was idle says nothing of the pod: the second turn has a new one.
    loop {
        let (mut sender, is_new) = match h2_sender(line).await {
            Ok(found) => found,
            Err(error) => return Err(Failure::Connect { request, error }),
        };
        let whole = without_body(&request);
        match sender.try_send_request(request).await {
            Ok(response) => {
                line.endpoint.answered();
                return Ok(Answer {
                    response,
                    lease: None,
                });
            }
            Err(mut failure) => match failure.take_message() {
                Some(unsent) if !is_new => {
                    request = unsent;
                    forget_h2(line).await;
                }
                Some(request) => {
                    let error =
                        std::io::Error::new(std::io::ErrorKind::ConnectionReset, failure.into_error());
                    return Err(Failure::Connect { request, error });
                }
                None => return Err(lost_h2(whole, failure.into_error())),
            },
        }
    }
}

/// What a stream that ended without an answer came to.
fn lost_h2(whole: Option<Request<Upload>>, error: hyper::Error) -> Failure {
    use std::error::Error;
    let said = error
        .source()
        .and_then(|source| source.downcast_ref::<h2::Error>());
    if said.is_some_and(|said| said.is_remote() && said.reason() == Some(h2::Reason::REFUSED_STREAM)) {
        return Failure::Refused {
            request: whole,
            error,
        };
    }
    Failure::Lost {
        request: whole.filter(|request| is_idempotent(request.method())),
        error,
    }
}

/// A connection for the line's port, and whether it was made for this.
async fn h2_sender(line: Line<'_>) -> std::io::Result<(http2::SendRequest<Upload>, bool)> {
    let mut open = line.endpoint.connections[line.worker].h2.lock().await;
    open.retain(|(_, sender)| !sender.is_closed());
    if let Some((_, sender)) = open.iter().find(|(port, _)| *port == line.port) {
        return Ok((sender.clone(), false));
    }
    let stream = connect(line).await?;
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(STREAM_WINDOW * 4)
        .max_header_list_size(256 * 1024)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(std::io::Error::other)?;
    tokio::spawn(async move { drop(connection.await) });
    if !line.endpoint.is_leaving() {
        open.push((line.port, sender.clone()));
    }
    Ok((sender, true))
}

/// The connection for the line's port takes no more requests: the next one is new.
async fn forget_h2(line: Line<'_>) {
    let mut open = line.endpoint.connections[line.worker].h2.lock().await;
    open.retain(|(port, _)| *port != line.port);
}

/// Says a word about a place to a peer. `None`: it gave no good answer; the number is that of the place it keeps.
///
/// # Cancel safety
/// Dropping the future closes the connection, and the peer gives up what was asked for.
pub(crate) async fn say(
    hub: &Hub,
    peer: &Arc<Endpoint>,
    port: u16,
    pool: &str,
    word: Word,
) -> Option<Option<u64>> {
    let mut request = Request::new(Upload::default());
    let headers = request.headers_mut();
    headers.insert(http::header::HOST, http::HeaderValue::from_static("activator"));
    headers.insert(HOP_HEADER, http::HeaderValue::try_from(&hub.instance).ok()?);
    headers.insert(PLACE_HEADER, places::write(word, pool)?);
    let line = Line {
        endpoint: peer,
        port,
        // Control tasks have connections of their own, because a connection lives on its own thread.
        worker: hub.config.workers,
        h2: false,
        connect_timeout: hub.config.connect_timeout,
        source: hub.source(),
    };
    let answer = tokio::time::timeout(places::LONGEST * 2, send(line, request))
        .await
        .ok()?
        .ok()?;
    if let Some(lease) = answer.lease {
        lease.give_back();
    }
    if answer.response.status() != http::StatusCode::OK {
        return None;
    }
    let number = answer.response.headers().get(PLACE_HEADER);
    Some(number.and_then(|number| number.to_str().ok()?.parse().ok()))
}

async fn connect(line: Line<'_>) -> std::io::Result<TcpStream> {
    dial(
        SocketAddr::new(line.endpoint.address, line.port),
        line.source,
        line.connect_timeout,
    )
    .await
}

/// Connects from `source`, with small packets sent at once.
pub(crate) async fn dial(
    address: SocketAddr,
    source: Option<IpAddr>,
    timeout: Duration,
) -> std::io::Result<TcpStream> {
    let connecting = async {
        match source {
            Some(source) if source.is_ipv4() == address.is_ipv4() => {
                let socket = if source.is_ipv4() {
                    TcpSocket::new_v4()?
                } else {
                    TcpSocket::new_v6()?
                };
                socket.bind(SocketAddr::new(source, 0))?;
                socket.connect(address).await
            }
            _ => TcpStream::connect(address).await,
        }
    };
    let stream = tokio::time::timeout(timeout, connecting)
        .await
        .map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A copy of a request that may be sent twice: idempotent (RFC 9110 §9.2.2) and without a body.
fn repeatable(request: &Request<Upload>) -> Option<Request<Upload>> {
    is_idempotent(request.method())
        .then(|| without_body(request))
        .flatten()
}

fn is_idempotent(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE
    )
}

/// A copy of a request that has no body, and asks for no other protocol.
pub(crate) fn without_body(request: &Request<Upload>) -> Option<Request<Upload>> {
    if !request.body().is_empty() || request.headers().contains_key(http::header::UPGRADE) {
        return None;
    }
    let mut copy = Request::new(Upload::default());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    *copy.version_mut() = if request.version() == Version::HTTP_2 {
        Version::HTTP_2
    } else {
        Version::HTTP_11
    };
    Some(copy)
}
