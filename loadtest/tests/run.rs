//! Whole runs against servers in this process, on ephemeral ports.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dormouse_loadtest::{
    Burst, Connections, ErrorKind, Load, Options, Protocol, Results, Run, Schedule, Summary, run,
};
use http::{Request, Response, Version};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::Instant;

/// What a server saw.
#[derive(Default)]
struct Seen {
    ids: Mutex<HashMap<String, usize>>,
    connections: AtomicUsize,
    now: AtomicUsize,
    most: AtomicUsize,
    h2: AtomicUsize,
    bytes: AtomicUsize,
    arrivals: Mutex<Vec<Instant>>,
}

/// `/delay/MS` waits, `/status/CODE` answers so, all else is 200.
async fn answer(seen: Arc<Seen>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    seen.arrivals.lock().push(Instant::now());
    seen.most
        .fetch_max(seen.now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
    seen.h2.fetch_add(
        usize::from(request.version() == Version::HTTP_2),
        Ordering::SeqCst,
    );
    if let Some(id) = request.headers().get("x-id") {
        *seen
            .ids
            .lock()
            .entry(id.to_str().unwrap_or("?").to_owned())
            .or_default() += 1;
    }
    let path = request.uri().path().to_owned();
    let body = request
        .into_body()
        .collect()
        .await
        .map(|body| body.to_bytes().len())
        .unwrap_or(0);
    seen.bytes.fetch_add(body, Ordering::SeqCst);
    let number = |prefix| {
        path.strip_prefix(prefix)
            .and_then(|rest| rest.parse::<u64>().ok())
    };
    if let Some(delay) = number("/delay/") {
        tokio::time::sleep(Duration::from_millis(delay)).await;
    }
    seen.now.fetch_sub(1, Ordering::SeqCst);
    let mut response = Response::new(Full::new(Bytes::from_static(b"hello")));
    if let Some(code) = number("/status/") {
        *response.status_mut() = u16::try_from(code).unwrap_or(500).try_into().expect("a status");
    }
    Ok(response)
}

async fn server() -> (SocketAddr, Arc<Seen>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("address");
    let seen = Arc::new(Seen::default());
    let shared = seen.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            shared.connections.fetch_add(1, Ordering::SeqCst);
            let seen = shared.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request| answer(seen.clone(), request));
                let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                drop(server.serve_connection(TokioIo::new(stream), service).await);
            });
        }
    });
    (address, seen)
}

/// A server that reads a request's head, then does with the connection as told.
async fn raw<F>(then: fn(tokio::net::TcpStream) -> F) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = [0; 1024];
                let _ = stream.read(&mut head).await;
                then(stream).await;
            });
        }
    });
    address
}

fn options(address: SocketAddr, path: &str, load: Load) -> Options {
    Options::new(
        vec![format!("http://{address}{path}").parse().expect("url")],
        load,
    )
}

async fn results(options: Options) -> Results {
    tokio::time::timeout(Duration::from_secs(30), run(options))
        .await
        .expect("bounded")
        .expect("runs")
}

#[tokio::test]
async fn a_closed_loop_sends_each_request_once_with_an_id_of_its_own() {
    for (protocol, kept, connections) in [
        (Protocol::Http1, Connections::Kept, 1..=8),
        (Protocol::Http1, Connections::Fresh, 200..=200),
        (Protocol::H2c, Connections::Kept, 2..=2),
        (Protocol::H2c, Connections::Fresh, 200..=200),
    ] {
        let (address, seen) = server().await;
        let mut options = options(address, "/", Load::Closed(8));
        (options.requests, options.protocol, options.connections) = (Some(200), protocol, kept);
        (options.h2_connections, options.id_header) = (2, Some("x-id".parse().expect("name")));
        (options.method, options.body) = (http::Method::POST, Bytes::from_static(b"four"));
        let got = results(options).await;
        let row = format!("{protocol:?} {kept:?}");
        assert_eq!(
            (got.sent, got.ok, got.failed, got.bytes),
            (200, 200, 0, 1000),
            "{row}"
        );
        assert_eq!(got.latency.count(), 200, "{row}");
        let made = seen.connections.load(Ordering::SeqCst);
        assert!(connections.contains(&made), "{row}: {made} connections");
        assert_eq!(got.connections, made as u64, "{row}");
        assert_eq!(
            seen.h2.load(Ordering::SeqCst),
            if protocol == Protocol::H2c { 200 } else { 0 },
            "{row}"
        );
        assert_eq!(seen.bytes.load(Ordering::SeqCst), 800, "{row}");
        let ids = seen.ids.lock();
        assert_eq!((ids.len(), ids.values().max()), (200, Some(&1)), "{row}");
    }
}

#[tokio::test]
async fn a_closed_loop_never_has_more_in_flight_than_clients() {
    let (address, seen) = server().await;
    let mut options = options(address, "/delay/20", Load::Closed(5));
    options.duration = Duration::from_millis(300);
    let got = results(options).await;
    assert_eq!(seen.most.load(Ordering::SeqCst), 5);
    assert!(got.ok >= 5 && got.failed == 0, "{got:?}");
}

#[tokio::test]
async fn an_open_loop_counts_latency_from_the_due_time_also_when_the_generator_must_wait() {
    let (address, seen) = server().await;
    let mut options = options(address, "/delay/50", Load::Open(Schedule::rate(100.0)));
    (options.requests, options.max_in_flight) = (Some(20), 1);
    let got = results(options).await;
    // One at a time, 50 ms each, due every 10 ms: the twentieth is due at 190 ms and answered after 1000 ms or more.
    assert_eq!((got.ok, seen.most.load(Ordering::SeqCst)), (20, 1));
    assert!(
        got.latency.max() >= Duration::from_millis(800),
        "{:?}",
        got.latency.max()
    );
    assert!(
        got.lateness.max() >= Duration::from_millis(750),
        "{:?}",
        got.lateness.max()
    );
}

#[tokio::test]
async fn an_open_loop_keeps_its_schedule_whatever_the_server_does() {
    let (address, seen) = server().await;
    let mut options = options(address, "/delay/400", Load::Open(Schedule::rate(100.0)));
    options.duration = Duration::from_millis(500);
    let got = results(options).await;
    assert_eq!((got.sent, got.ok), (50, 50));
    let arrivals = seen.arrivals.lock();
    let spread = *arrivals.iter().max().expect("some") - *arrivals.iter().min().expect("some");
    assert!(spread >= Duration::from_millis(400), "{spread:?}");
    assert!(seen.most.load(Ordering::SeqCst) > 10);
}

#[tokio::test]
async fn a_burst_comes_all_at_once() {
    let (address, seen) = server().await;
    let burst = Some(Burst {
        size: 40,
        every: Duration::from_secs(60),
    });
    let mut options = options(
        address,
        "/delay/300",
        Load::Open(Schedule {
            burst,
            ..Schedule::default()
        }),
    );
    options.duration = Duration::from_millis(100);
    assert_eq!(results(options).await.ok, 40);
    assert_eq!(seen.most.load(Ordering::SeqCst), 40);
}

#[tokio::test]
async fn a_wake_run_asks_each_target_once_at_the_same_instant() {
    let (address, seen) = server().await;
    let targets = (0..50).map(|n| format!("http://s{n}.localhost:{}/delay/200", address.port()));
    let options = Options::new(targets.map(|url| url.parse().expect("url")).collect(), Load::Wake);
    let got = results(options.clone()).await;
    assert_eq!((got.sent, got.ok, got.targets.len()), (50, 50, 50));
    assert_eq!(seen.most.load(Ordering::SeqCst), 50);
    let mut targets: Vec<_> = got.targets.iter().map(|line| line.target).collect();
    targets.sort_unstable();
    assert_eq!(targets, (0..50).collect::<Vec<_>>());
    let summary = Summary::new(&options, &got);
    assert!(summary.targets.is_sorted_by(|a, b| a.latency_ms >= b.latency_ms));
}

#[tokio::test]
async fn targets_are_asked_in_turn() {
    let ((one, first), (two, second)) = (server().await, server().await);
    let targets = [one, two].map(|address| format!("http://{address}/").parse().expect("url"));
    let mut options = Options::new(targets.into(), Load::Closed(3));
    options.requests = Some(30);
    assert_eq!(results(options).await.ok, 30);
    for seen in [first, second] {
        assert_eq!(seen.arrivals.lock().len(), 15);
    }
}

#[tokio::test]
async fn failures_are_told_apart() {
    let refused = {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        listener.local_addr().expect("address")
    };
    let closes = raw(|stream| async move { drop(stream) }).await;
    let resets = raw(|stream| async move {
        // Closing with a zero linger sends RST instead of FIN.
        stream.set_zero_linger().expect("linger");
    })
    .await;
    let cuts = raw(|mut stream| async move {
        let _ = stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf")
            .await;
    })
    .await;
    let babbles = raw(|mut stream| async move {
        let _ = stream.write_all(b"SSH-2.0-no\r\n\r\n").await;
    })
    .await;
    let (good, _) = server().await;
    for (address, path, kind) in [
        (refused, "/", ErrorKind::ConnectRefused),
        (closes, "/", ErrorKind::Closed),
        (resets, "/", ErrorKind::Reset),
        (cuts, "/", ErrorKind::BodyCut),
        (babbles, "/", ErrorKind::Protocol),
        (good, "/delay/5000", ErrorKind::Timeout),
        (good, "/status/503", ErrorKind::Status(503)),
    ] {
        let mut options = options(address, path, Load::Closed(1));
        (options.requests, options.timeout) = (Some(2), Duration::from_millis(200));
        options.id_header = Some("x-id".parse().expect("name"));
        let got = results(options).await;
        assert_eq!((got.ok, got.failed), (0, 2), "{kind}");
        assert_eq!(got.errors.get(&kind), Some(&2), "{kind}: {:?}", got.errors);
        assert_eq!(got.first_errors.len(), 2, "{kind}");
        assert!(got.first_errors[0].id.ends_with("-1"), "{kind}");
        if kind == ErrorKind::Status(503) {
            assert_eq!(got.first_errors[0].failure.message, "hello");
        }
    }
}

#[tokio::test]
async fn an_expected_status_is_no_failure() {
    let (address, _) = server().await;
    let mut options = options(address, "/status/404", Load::Closed(1));
    (options.requests, options.expect) = (Some(3), "2xx,404".parse().expect("reads"));
    let got = results(options).await;
    assert_eq!((got.ok, got.statuses.get(&404)), (3, Some(&3)));
}

/// A server that closes each connection after one answer without saying so, as one does that restarts.
#[tokio::test]
async fn a_kept_connection_that_was_closed_meanwhile_costs_no_request() {
    let address = raw(|mut stream| async move {
        let _ = stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            .await;
    })
    .await;
    let mut options = options(address, "/", Load::Open(Schedule::rate(20.0)));
    options.requests = Some(6);
    let got = results(options).await;
    assert_eq!(
        (got.ok, got.failed, got.connections),
        (6, 0, 6),
        "{:?}",
        got.first_errors
    );
}

#[tokio::test]
async fn a_stopped_run_ends_and_what_was_in_flight_still_counts() {
    let (address, _) = server().await;
    for load in [Load::Closed(3), Load::Open(Schedule::rate(50.0))] {
        let mut options = options(address, "/delay/30", load);
        options.duration = Duration::from_secs(3600);
        let run = Run::start(options).await.expect("starts");
        let watch = run.watch();
        while watch.progress().ok < 5 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        watch.stop();
        let got = tokio::time::timeout(Duration::from_secs(5), run.finish())
            .await
            .expect("ends");
        assert_eq!(
            got.ok + got.failed,
            got.sent + got.errors.get(&ErrorKind::NotSent).unwrap_or(&0)
        );
        assert!(got.ok >= 5, "{load:?}");
    }
}
