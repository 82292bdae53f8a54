//! How often and how much a request allocates: a check of cost that no slow or busy machine can spoil.
//!
//! A whole activator runs in this process, which counts every allocation. Its client and its pods are threads with buffers
//! of their own that allocate nothing once they run, so what is counted is the activator's. Nobody reads its reports: they
//! cost by the tenth of a second, not by the request.
//!
//! The bounds are what was measured and a little room. One that is exceeded is either a slip or a price worth paying: then
//! raise it here, in the commit that pays it, and say for what.

use std::alloc::System;
use std::convert::Infallible;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dormouse_activator as activator;
use futures::StreamExt;
use http::{Request, Response};
use http_body_util::{BodyExt, Either, Full, StreamBody};
use serde_json::{Value, json};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use tokio_util::sync::CancellationToken;

#[global_allocator]
static COUNTED: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Nothing here takes this long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(20);
const REQUESTS: usize = 500;
const HELD: usize = 200;

const GET: &[u8] = b"GET /some/path?query=1 HTTP/1.1\r\nhost: web.default\r\nuser-agent: test/1\r\n\
    accept: application/json\r\naccept-encoding: gzip, deflate, br\r\n\r\n";
const GET_AND_CLOSE: &[u8] =
    b"GET /some/path?query=1 HTTP/1.1\r\nhost: web.default\r\nuser-agent: test/1\r\n\
    accept: application/json\r\nconnection: close\r\n\r\n";
const POST_HEAD: &[u8] = b"POST /some/path HTTP/1.1\r\nhost: web.default\r\nuser-agent: test/1\r\n\
    content-type: application/json\r\ncontent-length: 1024\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nserver: test\r\ndate: Thu, 01 Jan 1970 00:00:00 GMT\r\n\
    content-type: text/plain\r\ncontent-length: 2\r\n\r\nok";

/// Where the Routes of the activator under test listen.
struct Ports {
    web: u16,
    asleep: u16,
    tcp: u16,
}

/// One way to use the activator, `usize` times, and what one of them may cost.
struct Row {
    what: &'static str,
    use_it: fn(&Ports, usize),
    most_allocations: f64,
    most_bytes: f64,
}

const ROWS: &[Row] = &[
    Row {
        what: "a GET on a kept connection",
        use_it: kept_gets,
        most_allocations: 11.0,
        most_bytes: 31_000.0,
    },
    Row {
        what: "a POST of 1 KiB on a kept connection",
        use_it: kept_posts,
        most_allocations: 11.0,
        most_bytes: 32_000.0,
    },
    Row {
        what: "a GET over HTTP/2",
        use_it: h2_gets,
        most_allocations: 17.0,
        most_bytes: 33_000.0,
    },
    Row {
        what: "a connection with one GET",
        use_it: fresh_gets,
        most_allocations: 34.0,
        most_bytes: 54_000.0,
    },
    Row {
        what: "a TCP connection that says two bytes",
        use_it: tcp,
        most_allocations: 14.0,
        most_bytes: 22_000.0,
    },
];

/// The bounds are those of an optimised build; without optimisation futures are larger, and more of them are made.
const ROOM: f64 = if cfg!(debug_assertions) { 2.0 } else { 1.0 };

/// Heap of one held request with its HTTP/1.1 connection, in bytes.
const MOST_HELD_BYTES: f64 = 23_000.0;

#[test]
fn requests_and_held_requests_stay_within_their_allocations() {
    let ports = start();
    let mut exceeded = Vec::new();
    for row in ROWS {
        // Pools, buffers and tables grow to their size first.
        (row.use_it)(&ports, 50);
        let region = Region::new(COUNTED);
        (row.use_it)(&ports, REQUESTS);
        let change = region.change();
        let allocations = (change.allocations + change.reallocations) as f64 / REQUESTS as f64;
        let bytes = change.bytes_allocated as f64 / REQUESTS as f64;
        println!("{}: {allocations:.1} allocations, {bytes:.0} bytes", row.what);
        if allocations > ROOM * row.most_allocations || bytes > ROOM * row.most_bytes {
            exceeded.push(format!(
                "{}: {allocations:.1} allocations of {bytes:.0} bytes, allowed are {:.1} of {:.0}",
                row.what,
                ROOM * row.most_allocations,
                ROOM * row.most_bytes
            ));
        }
    }
    let held = held(&ports);
    println!("a held request: {held} bytes");
    let most = ROOM * MOST_HELD_BYTES;
    if held as f64 > most {
        exceeded.push(format!(
            "a held request: {held} bytes of heap, allowed are {most:.0}"
        ));
    }
    assert!(
        exceeded.is_empty(),
        "dearer than before; see the head of this file:\n{}",
        exceeded.join("\n")
    );
}

// === what is done ===

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("connects");
    stream.set_nodelay(true).expect("a socket");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    stream
}

/// Reads one answer of the pod.
fn answered(stream: &mut TcpStream) {
    let mut bytes = [0; 2048];
    let mut filled = 0;
    while !(filled > 2 && bytes[..filled].ends_with(b"\r\n\r\nok")) {
        let read = stream.read(&mut bytes[filled..]).expect("an answer");
        assert!(read > 0, "closed after {filled} bytes");
        filled += read;
    }
    assert!(bytes.starts_with(b"HTTP/1.1 200 "), "{:?}", bytes.get(..filled));
}

fn kept_gets(ports: &Ports, count: usize) {
    let mut stream = connect(ports.web);
    for _ in 0..count {
        stream.write_all(GET).expect("writes");
        answered(&mut stream);
    }
}

fn kept_posts(ports: &Ports, count: usize) {
    let mut stream = connect(ports.web);
    for _ in 0..count {
        stream.write_all(POST_HEAD).expect("writes");
        stream.write_all(&[b'x'; 1024]).expect("writes");
        answered(&mut stream);
    }
}

fn fresh_gets(ports: &Ports, count: usize) {
    for _ in 0..count {
        let mut stream = connect(ports.web);
        stream.write_all(GET_AND_CLOSE).expect("writes");
        answered(&mut stream);
        assert_eq!(stream.read(&mut [0]).expect("its end"), 0);
    }
}

fn tcp(ports: &Ports, count: usize) {
    for _ in 0..count {
        let mut stream = connect(ports.tcp);
        stream.write_all(b"hi").expect("writes");
        let mut bytes = [0; 2];
        stream.read_exact(&mut bytes).expect("the echo");
        drop(stream.shutdown(std::net::Shutdown::Write));
        assert_eq!(stream.read(&mut [0]).expect("its end"), 0);
    }
}

/// One stream after the other, in frames made by hand (RFC 9113 §4).
fn h2_gets(ports: &Ports, count: usize) {
    const HEADERS: u8 = 1;
    const SETTINGS: u8 = 4;
    const END_STREAM: u8 = 1;
    const END_HEADERS: u8 = 4;
    /// `GET http://web/` in HPACK: three entries of the static table and a literal authority.
    const BLOCK: &[u8; 8] = b"\x82\x86\x84\x41\x03web";
    let mut stream = connect(ports.web);
    stream
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .expect("writes");
    let mut payload = [0; 16_384];
    for number in 0..u32::try_from(count).expect("few") {
        let id = 2 * number + 1;
        let mut frame = [0; 9 + BLOCK.len()];
        frame[2] = BLOCK.len() as u8;
        frame[3] = HEADERS;
        frame[4] = END_STREAM | END_HEADERS;
        frame[5..9].copy_from_slice(&id.to_be_bytes());
        frame[9..].copy_from_slice(BLOCK);
        stream.write_all(&frame).expect("writes");
        loop {
            let mut head = [0; 9];
            stream.read_exact(&mut head).expect("a frame");
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            stream.read_exact(&mut payload[..length]).expect("its payload");
            match (head[3], head[4]) {
                (SETTINGS, 0) => stream.write_all(b"\0\0\0\x04\x01\0\0\0\0").expect("acknowledges"),
                // DATA and HEADERS are the frames that end a stream.
                (0 | HEADERS, flags) if flags & END_STREAM != 0 => break,
                (3 | 7, _) => panic!("refused: {head:?}"),
                _ => {}
            }
        }
    }
}

/// Heap of one request that waits for a pod, with its connection.
fn held(ports: &Ports) -> usize {
    let hold = |count| -> Vec<TcpStream> {
        let mut streams = Vec::with_capacity(count);
        for _ in 0..count {
            let mut stream = connect(ports.asleep);
            stream.write_all(GET).expect("writes");
            streams.push(stream);
        }
        streams
    };
    let live = || {
        let stats = COUNTED.stats();
        stats.bytes_allocated - stats.bytes_deallocated
    };
    let first = hold(HELD);
    settle(live);
    let before = live();
    let second = hold(HELD);
    let own = HELD * size_of::<TcpStream>();
    settle(live);
    let after = live();
    drop((first, second));
    after.saturating_sub(before + own) / HELD
}

/// Waits until a figure stands still: what was written to a socket is read by another thread.
fn settle(figure: impl Fn() -> usize) {
    let mut last = figure();
    for _ in 0..200 {
        pause();
        let now = figure();
        if now.abs_diff(last) < 1024 {
            return;
        }
        last = now;
    }
    panic!("never still");
}

#[allow(
    clippy::disallowed_methods,
    reason = "this thread has no runtime that a sleep could block"
)]
fn pause() {
    std::thread::sleep(Duration::from_millis(100));
}

// === the activator and its pods ===

fn start() -> Ports {
    let ports = Ports {
        web: free_port(),
        asleep: free_port(),
        tcp: free_port(),
    };
    let pods = [(ports.web, serve(web_pod)), (ports.tcp, serve(tcp_pod))];
    let routes = [(ports.web, "http"), (ports.asleep, "http"), (ports.tcp, "tcp")];
    let args = activator::Args {
        bind: Ipv4Addr::LOCALHOST.into(),
        report_port: 0,
        admin_port: 0,
        workers: Some(1),
        name: Some("one".into()),
        report_auth: activator::ReportAuth::Off,
        // Nothing is to be raised here, and trying would cost.
        wake_after: Duration::from_secs(3600),
        ..activator::Args::default()
    };
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let set_log: activator::SetLog = Arc::new(|_| Ok(String::new()));
        let (shutdown, abort) = (CancellationToken::new(), CancellationToken::new());
        let running = async {
            let client = cluster(
                routes.map(|(listen, protocol)| route(listen, protocol)).to_vec(),
                pods.map(|(listen, pod)| slice(listen, pod)).to_vec(),
            );
            activator::run(args, client, set_log, shutdown, abort).await
        };
        runtime.block_on(running).expect("runs");
    });
    for port in [ports.web, ports.asleep, ports.tcp] {
        let mut tries = 0;
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            tries += 1;
            assert!(tries < 100, "nothing listens on {port}");
            pause();
        }
    }
    ports
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("an ephemeral port");
    listener.local_addr().expect("bound").port()
}

/// A thread for each connection.
fn serve(carry: fn(TcpStream)) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::new(127, 0, 0, 2), 0)).expect("an ephemeral port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            drop(stream.set_nodelay(true));
            std::thread::spawn(move || carry(stream));
        }
    });
    address
}

/// Answers every request; bodies have 1,024 bytes or none.
fn web_pod(mut stream: TcpStream) {
    let mut bytes = [0; 4096];
    let mut filled = 0;
    while let Ok(read @ 1..) = stream.read(&mut bytes[filled..]) {
        filled += read;
        let Some(end) = bytes[..filled]
            .windows(4)
            .position(|window| window == b"\r\n\r\n")
        else {
            continue;
        };
        let body = if bytes.starts_with(b"POST") { 1024 } else { 0 };
        if filled >= end + 4 + body {
            filled = 0;
            if stream.write_all(ANSWER).is_err() {
                return;
            }
        }
    }
}

fn tcp_pod(mut stream: TcpStream) {
    let mut bytes = [0; 64];
    while let Ok(read @ 1..) = stream.read(&mut bytes) {
        if stream.write_all(&bytes[..read]).is_err() {
            return;
        }
    }
}

/// An API server that lists these, and in which nothing ever changes.
fn cluster(routes: Vec<Value>, slices: Vec<Value>) -> kube::Client {
    let service = tower::service_fn(move |request: Request<kube::client::Body>| {
        let uri = request.uri().to_string();
        let (version, kind, items) = if uri.contains("/routes") {
            ("dormouse.dev/v1alpha1", "RouteList", &routes)
        } else {
            ("discovery.k8s.io/v1", "EndpointSliceList", &slices)
        };
        let body = if uri.contains("watch=true") {
            Either::Right(StreamBody::new(
                futures::stream::pending::<Result<_, Infallible>>().boxed(),
            ))
        } else {
            let list = json!({
                "apiVersion": version, "kind": kind, "metadata": { "resourceVersion": "1" }, "items": items,
            });
            Either::Left(Full::<Bytes>::from(list.to_string()).map_err(|never| match never {}))
        };
        async move { Ok::<_, Infallible>(Response::new(body)) }
    });
    kube::Client::new(service, "default")
}

fn route(listen: u16, protocol: &str) -> Value {
    json!({
        "apiVersion": "dormouse.dev/v1alpha1", "kind": "Route",
        "metadata": {
            "name": format!("r{listen}"), "namespace": "default", "uid": format!("u{listen}"), "generation": 1,
            "resourceVersion": "1",
        },
        "spec": {
            "ports": [{ "port": 80, "listen": listen, "protocol": protocol }],
            "pools": [{
                "name": format!("r{listen}"), "weight": 10_000, "probe": { "kind": "Tcp" },
                "workload": { "kind": "Deployment", "name": format!("r{listen}") },
            }],
            "queueLimit": 100_000, "coldStartTimeoutMs": 600_000,
        },
    })
}

fn slice(listen: u16, pod: SocketAddr) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "name": format!("r{listen}-x"), "namespace": "default", "resourceVersion": "1",
            "labels": { crds::names::POOL_LABEL: format!("r{listen}") },
        },
        "endpoints": [{ "addresses": [pod.ip()], "conditions": { "ready": true, "serving": true } }],
        "ports": [{ "name": crds::names::pool_port_name(listen), "port": pod.port() }],
    })
}
