//! The other ends of the benchmark and the soak, cheap enough to leave the processor to what is measured.
//!
//! `wire get` asks as fast as it is answered, with bytes made once and answers only skipped over: a tenth of what a client
//! that understands HTTP costs. `wire open` keeps connections open, `wire bulk` reads a byte stream; `wire source`, `wire
//! mute`, `wire echo` and `wire pod` are what stands behind a proxy. Everything is printed as one line of JSON.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use clap::{Parser, Subcommand};
use http::{Request, Response};
use http_body_util::{BodyExt, Either, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Source addresses that connections are dealt over: one address has too few ports for many of them.
const SOURCES: usize = 250;
/// The longest head of an answer.
const LONGEST_HEAD: usize = 16 * 1024;

#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Ask again and again over so many connections; the answers need a Content-Length
    Get {
        address: SocketAddr,
        #[arg(default_value = "/")]
        path: String,
        #[arg(long, default_value_t = 16)]
        connections: usize,
        #[arg(long, default_value_t = 5.0)]
        seconds: f64,
        /// Most requests of each connection
        #[arg(long, default_value_t = u64::MAX)]
        requests: u64,
        /// A connection for each request
        #[arg(long)]
        fresh: bool,
    },
    /// Open so many connections and keep them until the input ends
    Open {
        address: SocketAddr,
        #[arg(long, default_value_t = 1000)]
        connections: usize,
        /// What each of them does first
        #[arg(long, value_enum, default_value = "answered")]
        after: After,
    },
    /// Read bytes from so many connections as fast as they come
    Bulk {
        address: SocketAddr,
        #[arg(long, default_value_t = 4)]
        connections: usize,
        #[arg(long, default_value_t = 5.0)]
        seconds: f64,
    },
    /// Send bytes to whoever connects, for ever
    Source { address: SocketAddr },
    /// Read whatever comes and never answer
    Mute { address: SocketAddr },
    /// Send back whatever comes
    Echo { address: SocketAddr },
    /// A web application: /delay/MS, /bytes/N, /drip/N/MS (N events), /echo; ends politely on SIGTERM
    Pod { address: SocketAddr },
}

/// What a connection does before it is kept.
#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
enum After {
    /// Nothing.
    Nothing,
    /// A request, and its answer is read.
    Answered,
    /// A request, whose answer nobody waits for.
    Asked,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    match Args::parse().command {
        Command::Get {
            address,
            path,
            connections,
            seconds,
            requests,
            fresh,
        } => get(address, &path, connections, seconds, requests, fresh).await,
        Command::Open {
            address,
            connections,
            after,
        } => open(address, connections, after).await,
        Command::Bulk {
            address,
            connections,
            seconds,
        } => bulk(address, connections, seconds).await,
        Command::Source { address } => serve(address, source).await,
        Command::Mute { address } => serve(address, mute).await,
        Command::Echo { address } => serve(address, echo).await,
        Command::Pod { address } => pod(address).await,
    }
}

// === clients ===

async fn connect(address: SocketAddr, number: usize) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    let source = IpAddr::from([127, 0, 1, u8::try_from(1 + number % SOURCES)?]);
    socket.bind(SocketAddr::new(source, 0))?;
    let stream = socket
        .connect(address)
        .await
        .with_context(|| address.to_string())?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn request(address: SocketAddr, path: &str, fresh: bool) -> Vec<u8> {
    let close = if fresh { "connection: close\r\n" } else { "" };
    format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nuser-agent: wire/1\r\naccept: */*\r\n{close}\r\n")
        .into_bytes()
}

/// What one client has counted.
#[derive(Default)]
struct Count {
    answers: u64,
    bytes: u64,
    errors: u64,
    first_error: Option<String>,
}

async fn get(
    address: SocketAddr,
    path: &str,
    connections: usize,
    seconds: f64,
    requests: u64,
    fresh: bool,
) -> Result<()> {
    let start = Instant::now();
    let until = start + Duration::from_secs_f64(seconds);
    let mut clients = JoinSet::new();
    for number in 0..connections {
        let request = request(address, path, fresh);
        clients.spawn(async move {
            let mut count = Count::default();
            let mut buffer = vec![0; 128 * 1024];
            let mut kept = None;
            while Instant::now() < until && count.answers + count.errors < requests {
                match ask(address, number, &mut kept, &request, &mut buffer).await {
                    Ok(bytes) => {
                        count.answers += 1;
                        count.bytes += bytes as u64;
                        if fresh {
                            kept = None;
                        }
                    }
                    Err(error) => {
                        count.errors += 1;
                        count.first_error.get_or_insert(format!("{error:#}"));
                        kept = None;
                        // Errors should not become a flood.
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                }
            }
            count
        });
    }
    let mut all = Count::default();
    while let Some(count) = clients.join_next().await {
        let count = count?;
        all.answers += count.answers;
        all.bytes += count.bytes;
        all.errors += count.errors;
        all.first_error = all.first_error.or(count.first_error);
    }
    println!(
        "{}",
        json!({
            "answers": all.answers, "bytes": all.bytes, "errors": all.errors, "firstError": all.first_error,
            "seconds": start.elapsed().as_secs_f64(),
        })
    );
    Ok(())
}

/// One request and its whole answer. Returns the bytes of its body.
async fn ask(
    address: SocketAddr,
    number: usize,
    kept: &mut Option<TcpStream>,
    request: &[u8],
    buffer: &mut [u8],
) -> Result<usize> {
    if kept.is_none() {
        *kept = Some(connect(address, number).await?);
    }
    let stream = kept.as_mut().context("just connected")?;
    stream.write_all(request).await?;
    let mut filled = 0;
    let (end, length) = loop {
        let read = stream.read(&mut buffer[filled..]).await?;
        ensure!(read > 0, "closed before an answer");
        filled += read;
        if let Some(end) = find(&buffer[..filled], b"\r\n\r\n") {
            break (end + 4, length(&buffer[..end])?);
        }
        ensure!(filled < LONGEST_HEAD, "a head without an end");
    };
    let mut left = length
        .checked_sub(filled - end)
        .context("more than Content-Length")?;
    while left > 0 {
        let read = stream.read(buffer).await?;
        ensure!(read > 0, "closed within an answer");
        left = left.checked_sub(read).context("more than Content-Length")?;
    }
    Ok(length)
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// `Content-Length` of a head whose status must be 200.
fn length(head: &[u8]) -> Result<usize> {
    let head = std::str::from_utf8(head)?;
    ensure!(
        head.get(8..12) == Some(" 200"),
        "{}",
        head.lines().next().unwrap_or_default()
    );
    let fields = head.lines().filter_map(|line| line.split_once(':'));
    for (name, value) in fields {
        if name.eq_ignore_ascii_case("content-length") {
            return Ok(value.trim().parse()?);
        }
    }
    bail!("an answer without Content-Length")
}

async fn open(address: SocketAddr, connections: usize, after: After) -> Result<()> {
    let request = request(address, "/", false);
    let mut buffer = vec![0; LONGEST_HEAD];
    let mut kept = Vec::with_capacity(connections);
    for number in 0..connections {
        let mut stream = Some(connect(address, number).await?);
        match after {
            After::Nothing => {}
            After::Answered => drop(ask(address, number, &mut stream, &request, &mut buffer).await?),
            After::Asked => {
                let stream = stream.as_mut().context("just connected")?;
                stream.write_all(&request).await?;
            }
        }
        kept.extend(stream);
    }
    println!("{}", json!({ "open": kept.len() }));
    // Ends with who started it.
    drop(tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new())).await?);
    Ok(())
}

async fn bulk(address: SocketAddr, connections: usize, seconds: f64) -> Result<()> {
    let start = Instant::now();
    let until = start + Duration::from_secs_f64(seconds);
    let mut clients = JoinSet::new();
    for number in 0..connections {
        clients.spawn(async move {
            let mut stream = connect(address, number).await?;
            let mut buffer = vec![0; 256 * 1024];
            let mut bytes = 0_u64;
            loop {
                match tokio::time::timeout_at(until, stream.read(&mut buffer)).await {
                    Err(_) => return Ok::<_, anyhow::Error>(bytes),
                    Ok(read) => {
                        let read = read?;
                        ensure!(read > 0, "the source has ended");
                        bytes += read as u64;
                    }
                }
            }
        });
    }
    let mut bytes = 0;
    while let Some(client) = clients.join_next().await {
        bytes += client??;
    }
    println!(
        "{}",
        json!({ "bytes": bytes, "seconds": start.elapsed().as_secs_f64() })
    );
    Ok(())
}

// === servers ===

async fn serve<F: Future<Output = ()> + Send + 'static>(
    address: SocketAddr,
    carry: fn(TcpStream) -> F,
) -> Result<()> {
    let listener = listen(address)?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(carry(stream));
    }
}

fn listen(address: SocketAddr) -> Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address).with_context(|| address.to_string())?;
    let listener = socket.listen(4096)?;
    println!("{}", json!({ "listening": listener.local_addr()?.to_string() }));
    Ok(listener)
}

// Peers that go away are nobody's error here.

async fn source(mut stream: TcpStream) {
    let bytes = vec![0; 256 * 1024];
    while stream.write_all(&bytes).await.is_ok() {}
}

async fn mute(mut stream: TcpStream) {
    let mut bytes = [0; 1024];
    while stream.read(&mut bytes).await.is_ok_and(|read| read > 0) {}
}

async fn echo(mut stream: TcpStream) {
    let (mut read, mut write) = stream.split();
    drop(tokio::io::copy(&mut read, &mut write).await);
}

async fn pod(address: SocketAddr) -> Result<()> {
    let listener = listen(address)?;
    let mut end = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let graceful = hyper_util::server::graceful::GracefulShutdown::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => accepted?.0,
            _ = end.recv() => break,
        };
        stream.set_nodelay(true)?;
        let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
        let serving = server
            .serve_connection(TokioIo::new(stream), hyper::service::service_fn(answer))
            .into_owned();
        let serving = graceful.watch(serving);
        tokio::spawn(async move { drop(serving.await) });
    }
    drop(listener);
    graceful.shutdown().await;
    Ok(())
}

type Body = Either<Full<Bytes>, http_body_util::combinators::UnsyncBoxBody<Bytes, hyper::Error>>;

async fn answer(request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    let mut parts = path.trim_start_matches('/').split('/');
    let what = parts.next().unwrap_or_default();
    let numbers: Vec<u64> = parts.filter_map(|part| part.parse().ok()).collect();
    let body = match (what, numbers.as_slice()) {
        ("delay", [ms]) => {
            tokio::time::sleep(Duration::from_millis(*ms)).await;
            Either::Left(Full::from("late\n"))
        }
        ("bytes", [count]) => Either::Left(Full::from(vec![b'x'; usize::try_from(*count).unwrap_or(0)])),
        ("drip", [count, ms]) => {
            let (count, pause) = (*count, Duration::from_millis(*ms));
            Either::Right(StreamBody::new(drip(count, pause)).boxed_unsync())
        }
        ("echo", _) => Either::Right(request.into_body().boxed_unsync()),
        _ => Either::Left(Full::from("ok\n")),
    };
    Ok(Response::new(body))
}

/// So many events, so far apart.
fn drip(
    count: u64,
    pause: Duration,
) -> impl futures::Stream<Item = Result<Frame<Bytes>, hyper::Error>> + Send {
    futures::stream::unfold(0, move |sent| async move {
        if sent == count {
            return None;
        }
        tokio::time::sleep(pause).await;
        Some((
            Ok(Frame::data(Bytes::from(format!("data: {sent}\n\n")))),
            sent + 1,
        ))
    })
}
