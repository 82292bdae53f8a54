//! One request: a connection, a head, a body, and what went wrong on the way.
//!
//! A request is sent again only when hyper hands it back unwritten, because a kept connection had closed: nobody can
//! have seen it. Everything else is a failure, as a client without retries would see it.

use std::error::Error as _;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::header::HOST;
use http::{HeaderValue, Request, Response, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use tokio::net::TcpStream;

use crate::options::{Connections, Options, Protocol, Target};
use crate::results::{Answer, ErrorKind, Failure};

/// How often a request that was never written is given to another kept connection before a new one is made for it.
const KEPT_TRIES: usize = 3;
/// How much of an unexpected answer's body is kept: a sentence that says why.
const KEPT_BODY: usize = 200;

/// All there is to send requests to one target.
pub(crate) struct Client {
    address: SocketAddr,
    uri: Uri,
    host: HeaderValue,
    idle: Mutex<Vec<http1::SendRequest<Full<Bytes>>>>,
    /// A slot is locked while its connection is being made, so that requests do not make one each.
    shared: Vec<tokio::sync::Mutex<Option<http2::SendRequest<Full<Bytes>>>>>,
    next: AtomicUsize,
}

/// A connection that can take one request now.
enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Client {
    pub(crate) fn new(options: &Options, target: &Target, address: SocketAddr) -> Result<Self, http::Error> {
        // Origin form for HTTP/1.1; HTTP/2 makes :scheme and :authority from the absolute form.
        let uri = match options.protocol {
            Protocol::Http1 => Uri::from(target.path.clone()),
            Protocol::H2c => Uri::builder()
                .scheme("http")
                .authority(target.authority.clone())
                .path_and_query(target.path.clone())
                .build()?,
        };
        Ok(Self {
            address,
            uri,
            host: options.host(target),
            idle: Mutex::new(Vec::new()),
            shared: (0..options.h2_connections)
                .map(|_| tokio::sync::Mutex::new(None))
                .collect(),
            next: AtomicUsize::new(0),
        })
    }

    /// Sends one request and reads its answer to the end. Also says whether a connection was made for it.
    pub(crate) async fn send(&self, options: &Options, id: &str) -> (bool, Result<Answer, Failure>) {
        let mut connected = false;
        let sending = self.exchange(options, id, &mut connected);
        let result = match tokio::time::timeout(options.timeout, sending).await {
            Ok(result) => result,
            Err(_) => Err(failure(
                ErrorKind::Timeout,
                format!("no answer within {:?}", options.timeout),
            )),
        };
        (connected, result)
    }

    async fn exchange(&self, options: &Options, id: &str, connected: &mut bool) -> Result<Answer, Failure> {
        let mut request = self.request(options, id)?;
        for attempt in 0.. {
            let kept = options.connections == Connections::Kept && attempt < KEPT_TRIES;
            let (mut sender, new) = self.sender(options, kept).await?;
            *connected |= new;
            let sent = match &mut sender {
                Sender::Http1(sender) => sender.try_send_request(request).await,
                Sender::Http2(sender) => sender.try_send_request(request).await,
            };
            match sent {
                Ok(response) => return self.read(options, response, sender).await,
                Err(error) => request = unwritten(error, new || !kept)?,
            }
        }
        Err(failure(ErrorKind::Closed, "no connection stays open"))
    }

    fn request(&self, options: &Options, id: &str) -> Result<Request<Full<Bytes>>, Failure> {
        let mut request = Request::new(Full::new(options.body.clone()));
        *request.method_mut() = options.method.clone();
        *request.uri_mut() = self.uri.clone();
        let headers = request.headers_mut();
        headers.clone_from(&options.headers);
        if options.protocol == Protocol::Http1 {
            headers.insert(HOST, self.host.clone());
        } else {
            headers.remove(HOST);
        }
        if let Some(name) = &options.id_header {
            let value = HeaderValue::from_str(id).map_err(|error| failure(ErrorKind::Protocol, error))?;
            headers.insert(name, value);
        }
        Ok(request)
    }

    /// A connection for one request, and whether it is new.
    async fn sender(&self, options: &Options, kept: bool) -> Result<(Sender, bool), Failure> {
        match options.protocol {
            Protocol::Http1 => {
                if kept && let Some(sender) = self.idle().await {
                    return Ok((Sender::Http1(sender), false));
                }
                let stream = self.connect(options).await?;
                let (sender, connection) = http1::handshake(TokioIo::new(stream))
                    .await
                    .map_err(|error| before_head(&error))?;
                // Its error is also the request's, which is where it is told.
                tokio::spawn(async move { drop(connection.await) });
                Ok((Sender::Http1(sender), true))
            }
            Protocol::H2c if kept => {
                let slot = self.next.fetch_add(1, Ordering::Relaxed) % self.shared.len();
                let mut slot = self.shared[slot].lock().await;
                if let Some(sender) = slot.as_ref().filter(|sender| !sender.is_closed()) {
                    return Ok((Sender::Http2(sender.clone()), false));
                }
                let sender = self.handshake_h2(options).await?;
                *slot = Some(sender.clone());
                Ok((Sender::Http2(sender), true))
            }
            Protocol::H2c => Ok((Sender::Http2(self.handshake_h2(options).await?), true)),
        }
    }

    /// A kept connection that is still open, the last used first.
    async fn idle(&self) -> Option<http1::SendRequest<Full<Bytes>>> {
        loop {
            let mut sender = self.idle.lock().pop()?;
            if sender.ready().await.is_ok() {
                return Some(sender);
            }
        }
    }

    async fn handshake_h2(&self, options: &Options) -> Result<http2::SendRequest<Full<Bytes>>, Failure> {
        let stream = self.connect(options).await?;
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .map_err(|error| before_head(&error))?;
        tokio::spawn(async move { drop(connection.await) });
        Ok(sender)
    }

    async fn connect(&self, options: &Options) -> Result<TcpStream, Failure> {
        let stream =
            match tokio::time::timeout(options.connect_timeout, TcpStream::connect(self.address)).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    return Err(failure(ErrorKind::ConnectRefused, error));
                }
                Ok(Err(error)) => return Err(failure(ErrorKind::Connect, error)),
                Err(_) => {
                    return Err(failure(
                        ErrorKind::ConnectTimeout,
                        format!("{:?}", options.connect_timeout),
                    ));
                }
            };
        stream
            .set_nodelay(true)
            .map_err(|error| failure(ErrorKind::Connect, error))?;
        Ok(stream)
    }

    /// Reads the body to its end and gives the connection back.
    async fn read(
        &self,
        options: &Options,
        response: Response<Incoming>,
        sender: Sender,
    ) -> Result<Answer, Failure> {
        let status = response.status().as_u16();
        let expected = options.expect.allows(status);
        let mut body = response.into_body();
        let (mut bytes, mut beginning) = (0, Vec::new());
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| failure(ErrorKind::BodyCut, chain(&error)))?;
            if let Some(data) = frame.data_ref() {
                bytes += data.len() as u64;
                if !expected {
                    let room = KEPT_BODY.saturating_sub(beginning.len()).min(data.len());
                    beginning.extend_from_slice(&data[..room]);
                }
            }
        }
        if let Sender::Http1(sender) = sender
            && options.connections == Connections::Kept
            && !sender.is_closed()
        {
            self.idle.lock().push(sender);
        }
        if expected {
            Ok(Answer { status, bytes })
        } else {
            let words = String::from_utf8_lossy(&beginning).trim().to_owned();
            Err(failure(ErrorKind::Status(status), words))
        }
    }
}

/// The request, if it was never written and another connection may do better; else why it failed.
fn unwritten(
    mut error: TrySendError<Request<Full<Bytes>>>,
    last: bool,
) -> Result<Request<Full<Bytes>>, Failure> {
    match error.take_message() {
        Some(request) if !last => Ok(request),
        _ => Err(before_head(error.error())),
    }
}

/// What an error before the answer's head is called.
fn before_head(error: &hyper::Error) -> Failure {
    let kind = match io_kind(error) {
        Some(io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) => ErrorKind::Reset,
        Some(io::ErrorKind::UnexpectedEof) => ErrorKind::Closed,
        _ if error.is_incomplete_message() || error.is_closed() || error.is_canceled() => ErrorKind::Closed,
        _ => ErrorKind::Protocol,
    };
    failure(kind, chain(error))
}

fn io_kind(error: &hyper::Error) -> Option<io::ErrorKind> {
    let mut source = error.source();
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return Some(error.kind());
        }
        source = error.source();
    }
    None
}

fn chain(error: &hyper::Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        words.push_str(": ");
        words.push_str(&error.to_string());
        source = error.source();
    }
    words
}

fn failure(kind: ErrorKind, message: impl ToString) -> Failure {
    Failure {
        kind,
        message: message.to_string(),
    }
}
