//! One connection on its worker: what is spoken on it, and the library that reads it.

use std::sync::Arc;
use std::time::Duration;

use crds::route::Protocol;
use http::header::CONNECTION;
use http::{HeaderValue, Request, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;

use super::Accepted;
use crate::body::Upload;
use crate::frames::{self, Watched};
use crate::hub::Hub;
use crate::reject::Reject;
use crate::request::{self, Connection};
use crate::socket::Socket;
use crate::strict::Fault;
use crate::talk::{Patience, Talk};

/// How often a silent HTTP/2 connection is asked whether it is still there.
const PING: Duration = Duration::from_secs(30);
/// Flow-control window of one HTTP/2 stream from a client: what a slow pod makes us keep, at most.
const STREAM_WINDOW: u32 = 128 * 1024;
/// How long, and for how many bytes, a client that was refused may go on sending before its connection is closed.
const FAREWELL: Duration = Duration::from_millis(500);
const FAREWELL_BYTES: usize = 256 * 1024;

/// Carries one connection to its end.
pub(super) async fn carry(hub: Arc<Hub>, worker: usize, accepted: Accepted) {
    let Accepted {
        stream,
        from,
        listening,
        room,
    } = accepted;
    let Ok(stream) = TcpStream::from_std(stream) else {
        return;
    };
    if listening.protocol() == Protocol::Tcp {
        Box::pin(crate::tcp::carry(&hub, worker, stream, &listening)).await;
        drop(room);
        return;
    }
    let timeout = hub.config.header_timeout;
    let is_h2 = tokio::select! {
        sniffed = tokio::time::timeout(timeout, speaks_h2(&stream)) => match sniffed {
            Ok(Ok(is_h2)) => is_h2,
            _ => return,
        },
        // Nothing has been asked yet.
        () = listening.closing.cancelled() => return,
    };
    let Ok(from_value) = HeaderValue::try_from(from.to_string()) else {
        return;
    };
    let is_peer = hub.is_peer(from);
    let connection = |talk: Option<Arc<Talk>>| {
        Arc::new(Connection {
            hub: Arc::clone(&hub),
            listening,
            worker,
            from: from_value,
            is_peer,
            talk,
        })
    };
    let result = if is_h2 {
        // Boxed: the many connections of HTTP/1.1 should not keep the room for it.
        Box::pin(http2(stream, connection(None))).await
    } else {
        let talk = Arc::new(Talk::new(hub.config.max_header_bytes));
        let stream = Arc::new(stream);
        let connection = connection(Some(Arc::clone(&talk)));
        let result = http1(Arc::clone(&stream), Arc::clone(&talk), connection).await;
        if let Some(fault) = talk.fault() {
            // Boxed: connections without a fault should not keep the room for it.
            Box::pin(refuse_fault(&hub, &stream, &talk, fault)).await;
        }
        result
    };
    if let Err(error) = result {
        tracing::debug!(%error, %from, "connection broke");
    }
    drop(room);
}

async fn http1(
    stream: Arc<TcpStream>,
    talk: Arc<Talk>,
    connection: Arc<Connection>,
) -> Result<(), hyper::Error> {
    let config = &connection.hub.config;
    let closing = connection.listening.closing.clone();
    let patience = Patience {
        head: config.header_timeout,
        idle: config.keep_alive_timeout,
    };
    let mut builder = hyper::server::conn::http1::Builder::new();
    // Both are watched by the talk: the clock of a head starts with its first byte, and a client that has finished
    // sending is not one that has gone.
    builder
        .header_read_timeout(None)
        .half_close(true)
        .max_header_size(config.max_header_bytes)
        .max_buf_size(config.max_header_bytes);
    let service = service_fn(move |request| {
        let (connection, request) = (Arc::clone(&connection), boxed(request));
        async move {
            let listening = Arc::clone(&connection.listening);
            let mut answer = request::handle(connection, request).await;
            if let Ok(response) = &mut answer
                && listening.is_leaving()
                && response.status() != StatusCode::SWITCHING_PROTOCOLS
            {
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(CONNECTION, close);
            }
            answer
        }
    });
    let socket = Socket::new(Arc::clone(&stream), Arc::clone(&talk));
    let serving = builder
        .serve_connection(TokioIo::new(socket), service)
        .with_upgrades();
    let over = talk.until_over(&stream, patience);
    tokio::pin!(serving, over);
    tokio::select! {
        result = serving.as_mut() => return result,
        // Dropping what serves it gives back all that its request holds.
        _ = over.as_mut() => return Ok(()),
        () = closing.cancelled() => serving.as_mut().graceful_shutdown(),
    }
    tokio::select! {
        result = serving.as_mut() => result,
        _ = over.as_mut() => Ok(()),
    }
}

/// Tells a client what is wrong with what it sent, unless it is in the middle of an answer: then the end is all it gets.
async fn refuse_fault(hub: &Hub, stream: &TcpStream, talk: &Talk, fault: Fault) {
    tracing::debug!(fault, "refused");
    hub.metrics.faults.with_label_values(&[fault]).inc();
    if !talk.may_speak() {
        return;
    }
    let reject = Reject::BadRequest(fault);
    hub.metrics.rejections.with_label_values(&[reject.label()]).inc();
    if stream.try_write(&reject.bytes()).is_err() {
        return;
    }
    drop(socket2::SockRef::from(stream).shutdown(std::net::Shutdown::Write));
    // What is unread at the end makes the system send a reset, which could overtake the answer.
    let reading = async {
        let mut rest = 0;
        let mut bytes = [0; 1024];
        while rest < FAREWELL_BYTES && stream.readable().await.is_ok() {
            match stream.try_read(&mut bytes) {
                Ok(read @ 1..) => rest += read,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                _ => return,
            }
        }
    };
    drop(tokio::time::timeout(FAREWELL, reading).await);
}

async fn http2(stream: TcpStream, connection: Arc<Connection>) -> Result<(), hyper::Error> {
    let config = &connection.hub.config;
    let listening = Arc::clone(&connection.listening);
    let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(config.max_streams)
        .max_header_list_size(u32::try_from(config.max_header_bytes).unwrap_or(u32::MAX))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(STREAM_WINDOW * 8)
        .max_send_buf_size(STREAM_WINDOW as usize)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING);
    let hub = Arc::clone(&connection.hub);
    let watched = Watched::new(stream, Arc::clone(&hub));
    let seen = watched.seen();
    let service = service_fn(move |request| request::handle(Arc::clone(&connection), boxed(request)));
    let serving = builder.serve_connection(TokioIo::new(watched), service);
    tokio::pin!(serving);
    let result = tokio::select! {
        result = serving.as_mut() => result,
        // GOAWAY names the last stream that is served: no request is lost.
        () = listening.leaves() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Some(cause) = result
        .as_ref()
        .err()
        .and_then(|error| frames::cause(error, &seen))
    {
        hub.metrics.h2_faults.with_label_values(&[cause]).inc();
    }
    result
}

fn boxed(request: Request<Incoming>) -> Box<Request<Upload>> {
    Box::new(request.map(Upload::new))
}

/// Tells HTTP/2 with prior knowledge from HTTP/1.1 by the first bytes, which stay in the socket.
async fn speaks_h2(stream: &TcpStream) -> std::io::Result<bool> {
    const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    // A preface in pieces is looked at again: peeking does not wait for more than there is. Less and less often, because
    // whoever sends half of one and stays would be looked at until the head's time is up.
    const LOOKS: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(128));
    let mut start = [0; PREFACE.len()];
    let mut again = LOOKS.0;
    loop {
        let ready = stream.ready(tokio::io::Interest::READABLE).await?;
        let length = stream.peek(&mut start).await?;
        if length == 0 || start[..length] != PREFACE[..length] {
            return Ok(false);
        }
        if length == PREFACE.len() {
            return Ok(true);
        }
        // Nothing follows any more: whoever reads on finds the end.
        if ready.is_read_closed() {
            return Ok(false);
        }
        tokio::time::sleep(again).await;
        again = LOOKS.1.min(again * 2);
    }
}
