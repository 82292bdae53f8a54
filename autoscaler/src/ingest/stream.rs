//! One stream to one activator: dial, authenticate, read lines, send lines, until it breaks; then again, with back-off.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use crds::names::REPORT_PATH;
use crds::report::{Directive, HEARTBEAT_MS, LONGEST_LINE, Report, SILENCE_MS};
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use super::probe::Ordered;
use super::{Endpoint, Fleet, ORDERS, Sink};

/// First wait before dialling again. Doubles up to [`LONGEST_BACK_OFF`].
const FIRST_BACK_OFF: Duration = Duration::from_millis(50);
/// Longest wait before dialling again: a new activator must be in use within about a second.
const LONGEST_BACK_OFF: Duration = Duration::from_secs(1);
/// A TCP connection within a cluster takes a millisecond; a lost SYN is sent again after one second.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(1500);
/// Directive lines that may wait for the connection's window. One that is not read from for this long is broken.
const UNSENT: usize = 64;

/// How long an activator may take to end its half of a stream that we have ended.
const GOODBYE: Duration = Duration::from_millis(200);

const HEARTBEAT: Duration = Duration::from_millis(HEARTBEAT_MS);
const SILENCE: Duration = Duration::from_millis(SILENCE_MS);

/// What an activator is shown.
#[derive(Clone, Debug)]
pub(crate) enum Token {
    /// A file, read for each connection because Kubernetes rotates it. A file that is not there: no token.
    File(PathBuf),
    /// The token itself.
    Text(String),
}

impl Token {
    async fn read(&self) -> Option<String> {
        match self {
            Self::Text(text) => Some(text.clone()),
            Self::File(path) => {
                let text = tokio::fs::read_to_string(path).await.ok()?;
                Some(text.trim().to_owned())
            }
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("connecting took longer than {} ms", CONNECT_TIMEOUT.as_millis())]
    ConnectTimeout,
    #[error("connecting: {0}")]
    Connect(#[source] std::io::Error),
    #[error("the report stream: {0}")]
    Http(#[from] hyper::Error),
    #[error("the request could not be made: {0}")]
    Request(#[from] http::Error),
    #[error("the activator answered {0}")]
    Status(StatusCode),
    #[error("silent for {SILENCE_MS} ms")]
    Silent,
    #[error("the activator ended the stream")]
    Ended,
    #[error("the activator does not read: {UNSENT} directives wait")]
    NotRead,
    #[error("a malformed line: {0}")]
    Malformed(#[from] serde_json::Error),
    #[error("a line longer than {LONGEST_LINE} bytes")]
    TooLong,
}

/// Keeps a stream to `endpoint` until `stop`, or, once it is unlisted, until the stream breaks.
pub(super) async fn keep(
    fleet: Arc<Fleet>,
    endpoint: Endpoint,
    token: Token,
    sink: Sink,
    unlisted: CancellationToken,
    stop: CancellationToken,
) {
    let span = tracing::info_span!("activator", address = %endpoint.address, port = endpoint.port);
    let mut back_off = FIRST_BACK_OFF;
    let keeping = async {
        while !stop.is_cancelled() && !unlisted.is_cancelled() {
            let mut lines = 0;
            let result = session(&fleet, &endpoint, &token, &sink, &stop, &mut lines).await;
            fleet.gone(&endpoint, !unlisted.is_cancelled(), &sink);
            if lines > 0 {
                back_off = FIRST_BACK_OFF;
            }
            match result {
                Ok(()) => break,
                Err(error @ (Error::Malformed(_) | Error::TooLong)) => {
                    fleet.metrics.lines_malformed.inc();
                    tracing::warn!(%error, "report stream reset");
                }
                Err(error) if lines > 0 => tracing::warn!(%error, "report stream lost"),
                Err(error) => tracing::debug!(%error, "no report stream"),
            }
            tokio::select! {
                () = stop.cancelled() => break,
                () = unlisted.cancelled() => break,
                () = tokio::time::sleep(back_off) => {}
            }
            back_off = (back_off * 2).min(LONGEST_BACK_OFF);
        }
    };
    keeping.instrument(span).await;
}

/// One connection from dial to end. `Ok`: ended because of `stop`.
async fn session(
    fleet: &Arc<Fleet>,
    endpoint: &Endpoint,
    token: &Token,
    sink: &Sink,
    stop: &CancellationToken,
    lines: &mut u64,
) -> Result<(), Error> {
    let (sender, body) = mpsc::channel::<Bytes>(UNSENT);
    let opening = open(fleet, endpoint, token, &sender, body);
    let (mut incoming, _connection) = tokio::select! {
        () = stop.cancelled() => return Ok(()),
        opened = opening => opened?,
    };
    let mut directives = fleet.directives.subscribe();
    let (order, mut orders) = mpsc::channel::<Ordered>(ORDERS);
    let mut splitter = Lines::default();
    let mut heard = Instant::now();
    let mut repeated = Instant::now();
    // Up to which wake the activator has been told; 0 has all of them told again.
    let mut told = 0;
    loop {
        let mut probes = Vec::new();
        tokio::select! {
            // Reading first: a line may change what is then said.
            biased;
            () = stop.cancelled() => {
                close(sender, incoming).await;
                return Ok(());
            }
            frame = timeout_at(heard + SILENCE, incoming.frame()) => {
                let frame = frame.map_err(|_| Error::Silent)?.ok_or(Error::Ended)??;
                heard = Instant::now();
                if let Ok(data) = frame.into_data() {
                    splitter.push(&data);
                    while let Some(line) = splitter.next()? {
                        if line.iter().all(u8::is_ascii_whitespace) {
                            continue;
                        }
                        let report: Box<Report> = serde_json::from_slice(&line)?;
                        *lines += 1;
                        fleet.metrics.lines.inc();
                        fleet.line(endpoint, &order, report, heard, sink);
                    }
                }
                if !directives.has_changed().unwrap_or(false) {
                    continue;
                }
            }
            Some(first) = orders.recv() => {
                probes.extend(first.send());
                while let Ok(more) = orders.try_recv() {
                    probes.extend(more.send());
                }
            }
            changed = directives.changed() => if changed.is_err() { return Ok(()) },
            () = sleep_until(repeated + HEARTBEAT) => {
                repeated = Instant::now();
                told = 0;
            }
        }
        directives.mark_unchanged();
        let (directive, up_to) = fleet.directive(probes, told);
        told = up_to;
        send(&sender, &directive)?;
    }
}

/// Connects and opens the stream. The connection ends when its handle is dropped.
async fn open(
    fleet: &Fleet,
    endpoint: &Endpoint,
    token: &Token,
    sender: &mpsc::Sender<Bytes>,
    mut body: mpsc::Receiver<Bytes>,
) -> Result<(Incoming, AbortOnDropHandle<()>), Error> {
    let connecting = TcpStream::connect((endpoint.address.as_str(), endpoint.port));
    let tcp = timeout(CONNECT_TIMEOUT, connecting)
        .await
        .map_err(|_| Error::ConnectTimeout)?;
    let tcp = tcp.map_err(Error::Connect)?;
    // A wake's acknowledgement must not wait for more bytes.
    tcp.set_nodelay(true).map_err(Error::Connect)?;
    let (mut requests, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .handshake(TokioIo::new(tcp))
        .await?;
    let connection = AbortOnDropHandle::new(tokio::spawn(async move {
        // Its error is the stream's error too, and is told there.
        let _ = connection.await;
    }));
    let authority = if endpoint.address.contains(':') {
        format!("[{}]:{}", endpoint.address, endpoint.port)
    } else {
        format!("{}:{}", endpoint.address, endpoint.port)
    };
    let mut request = Request::post(format!("http://{authority}{REPORT_PATH}"))
        .header(header::CONTENT_TYPE, "application/x-ndjson");
    if let Some(token) = token.read().await {
        request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    let frames = futures::stream::poll_fn(move |context| {
        body.poll_recv(context)
            .map(|line| line.map(|line| Ok::<_, std::convert::Infallible>(Frame::data(line))))
    });
    let request = request.body(StreamBody::new(frames))?;
    send(sender, &fleet.directive(Vec::new(), 0).0)?;
    let response = timeout(SILENCE, requests.send_request(request))
        .await
        .map_err(|_| Error::Silent)??;
    if response.status() != StatusCode::OK {
        return Err(Error::Status(response.status()));
    }
    Ok((response.into_body(), connection))
}

/// Ends our half, so that the activator sees an end and not a broken connection, and gives it a moment to end its own.
async fn close(sender: mpsc::Sender<Bytes>, mut incoming: Incoming) {
    drop(sender);
    let end = async { while let Some(Ok(_)) = incoming.frame().await {} };
    let _ = timeout(GOODBYE, end).await;
}

fn send(sender: &mpsc::Sender<Bytes>, directive: &Directive) -> Result<(), Error> {
    let mut line = serde_json::to_vec(directive)?;
    line.push(b'\n');
    sender.try_send(Bytes::from(line)).map_err(|_| Error::NotRead)
}

/// Splits a byte stream into lines of bounded length.
#[derive(Debug, Default)]
struct Lines {
    buffer: BytesMut,
    /// Bytes at the buffer's beginning that are known to hold no line end.
    scanned: usize,
}

impl Lines {
    fn push(&mut self, data: &[u8]) {
        self.buffer.extend_from_slice(data);
    }

    /// The next whole line, without its end.
    fn next(&mut self) -> Result<Option<Bytes>, Error> {
        match self.buffer[self.scanned..].iter().position(|byte| *byte == b'\n') {
            Some(at) => {
                let mut line = self.buffer.split_to(self.scanned + at + 1);
                self.scanned = 0;
                line.truncate(line.len() - 1);
                Ok(Some(line.freeze()))
            }
            None if self.buffer.len() > LONGEST_LINE => Err(Error::TooLong),
            None => {
                self.scanned = self.buffer.len();
                Ok(None)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_wherever_frames_end() {
        let mut lines = Lines::default();
        let mut seen = Vec::new();
        for frame in ["ab", "c\nd", "\n\ne", "f"] {
            lines.push(frame.as_bytes());
            while let Some(line) = lines.next().expect("short lines") {
                seen.push(String::from_utf8_lossy(&line).into_owned());
            }
        }
        assert_eq!(seen, ["abc", "d", ""]);
        lines.push(b"\n");
        assert_eq!(lines.next().expect("short").as_deref(), Some(&b"ef"[..]));
    }

    #[test]
    fn a_line_without_end_is_refused_at_its_bound() {
        let mut lines = Lines::default();
        lines.push(&vec![b'x'; LONGEST_LINE]);
        assert!(matches!(lines.next(), Ok(None)));
        lines.push(b"x");
        assert!(matches!(lines.next(), Err(Error::TooLong)));
    }
}
