//! Pods that fail, and pods that end: real sockets, and every way of ending that servers have.

use std::sync::atomic::{AtomicBool, AtomicU8};

use http_body_util::combinators::BoxBody;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::*;

/// How a server ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// Stops listening, closes idle connections, finishes what it does and closes those too (Go's `Shutdown`).
    Graceful,
    /// The same, but idle connections are reset.
    ResetsIdle,
    /// Stops listening; each connection answers once more and closes, without having said so.
    OneMore,
    /// Stops listening and nothing else; connections go on as before until they are all cut.
    Deaf,
    /// Ends at once, with requests in the middle (SIGKILL).
    Killed,
    /// Goes on listening, and resets each connection with its first byte.
    Resets,
}

const RUNNING: u8 = 0;
const LAST: u8 = 1;
const RESETS: u8 = 2;

/// A server by hand, because real ones end too well.
struct Mortal {
    address: SocketAddr,
    mode: Arc<AtomicU8>,
    /// Connections without a request are to end.
    ends_idle: CancellationToken,
    /// They end by a reset.
    is_rude: Arc<AtomicBool>,
    stops: CancellationToken,
    dies: CancellationToken,
    requests: Arc<AtomicUsize>,
}

impl Mortal {
    async fn new() -> Self {
        let ip = fresh_address();
        let listener = TcpListener::bind(SocketAddr::new(ip, 0)).await.expect("binds");
        let pod = Self {
            address: listener.local_addr().expect("bound"),
            mode: Arc::default(),
            ends_idle: CancellationToken::new(),
            is_rude: Arc::default(),
            stops: CancellationToken::new(),
            dies: CancellationToken::new(),
            requests: Arc::default(),
        };
        let (mode, ends_idle, is_rude) = (
            Arc::clone(&pod.mode),
            pod.ends_idle.clone(),
            Arc::clone(&pod.is_rude),
        );
        let (stops, dies, requests) = (pod.stops.clone(), pod.dies.clone(), Arc::clone(&pod.requests));
        tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let (stream, _) = accepted.expect("accepts");
                        let one = One {
                            stream,
                            mode: Arc::clone(&mode),
                            ends_idle: ends_idle.clone(),
                            is_rude: Arc::clone(&is_rude),
                            requests: Arc::clone(&requests),
                        };
                        connections.spawn(one.serve());
                    }
                    () = stops.cancelled() => break,
                    () = dies.cancelled() => break,
                }
            }
            drop(listener);
            tokio::select! {
                () = async { while connections.join_next().await.is_some() {} } => {}
                () = dies.cancelled() => {}
            }
        });
        pod
    }

    fn end(&self, ending: Ending) {
        match ending {
            Ending::Graceful | Ending::ResetsIdle => {
                self.is_rude.store(ending == Ending::ResetsIdle, Ordering::SeqCst);
                self.mode.store(LAST, Ordering::SeqCst);
                self.stops.cancel();
                self.ends_idle.cancel();
            }
            Ending::OneMore => {
                self.mode.store(LAST, Ordering::SeqCst);
                self.stops.cancel();
            }
            Ending::Deaf => self.stops.cancel(),
            Ending::Killed => self.dies.cancel(),
            Ending::Resets => self.mode.store(RESETS, Ordering::SeqCst),
        }
    }
}

impl Drop for Mortal {
    fn drop(&mut self) {
        self.dies.cancel();
    }
}

/// One connection of such a server.
struct One {
    stream: TcpStream,
    mode: Arc<AtomicU8>,
    ends_idle: CancellationToken,
    is_rude: Arc<AtomicBool>,
    requests: Arc<AtomicUsize>,
}

impl One {
    async fn serve(mut self) {
        let mut bytes = Vec::new();
        loop {
            tokio::select! {
                biased;
                read = self.stream.read_buf(&mut bytes) => match read {
                    Ok(1..) => {}
                    _ => return,
                },
                () = self.ends_idle.cancelled(), if bytes.is_empty() => {
                    if self.is_rude.load(Ordering::SeqCst) {
                        self.reset();
                    }
                    return;
                }
            }
            if self.mode.load(Ordering::SeqCst) == RESETS {
                return self.reset();
            }
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let Some((head, body)) = text.split_once("\r\n\r\n") else {
                continue;
            };
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "))
                .map_or(0, |length| length.parse().expect("a length"));
            if body.len() < length {
                continue;
            }
            bytes.clear();
            self.requests.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(5)).await;
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";
            if self.stream.write_all(answer).await.is_err() || self.mode.load(Ordering::SeqCst) == LAST {
                return;
            }
        }
    }

    fn reset(&self) {
        let linger = socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
        linger.expect("lingers not");
    }
}

/// Clients with a connection each that ask again and again.
struct Load {
    clients: tokio::task::JoinSet<(usize, Vec<String>)>,
    ends: CancellationToken,
}

impl Load {
    /// Eight clients, together about a thousand requests a second, of which half are at a pod at any time.
    fn start(listen: SocketAddr, method: http::Method) -> Self {
        let ends = CancellationToken::new();
        let mut clients = tokio::task::JoinSet::new();
        for _ in 0..8 {
            clients.spawn(ask(listen, method.clone(), ends.clone()));
        }
        Self { clients, ends }
    }

    /// Ends them. Returns how many requests they sent, and what was wrong with answers.
    async fn end(self) -> (usize, Vec<String>) {
        self.ends.cancel();
        let all = self.clients.join_all().await;
        let count = all.iter().map(|(count, _)| count).sum();
        (count, all.into_iter().flat_map(|(_, wrong)| wrong).collect())
    }
}

/// A server of HTTP/2 with prior knowledge that ends as gRPC servers do: GOAWAY, finish what is under way, close.
async fn polite(ends: CancellationToken) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind(SocketAddr::new(fresh_address(), 0))
        .await
        .expect("binds");
    let address = listener.local_addr().expect("bound");
    let serving = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let stream = tokio::select! {
                accepted = listener.accept() => accepted.expect("accepts").0,
                () = ends.cancelled() => break,
            };
            let ends = ends.clone();
            connections.spawn(async move {
                let service = hyper::service::service_fn(|_| async {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                    Ok::<_, std::convert::Infallible>(Response::new(Full::<Bytes>::from("hello")))
                });
                let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                let mut serving = std::pin::pin!(server.serve_connection(TokioIo::new(stream), service));
                tokio::select! {
                    _ = serving.as_mut() => return,
                    () = ends.cancelled() => serving.as_mut().graceful_shutdown(),
                }
                drop(serving.await);
            });
        }
        drop(listener);
        while connections.join_next().await.is_some() {}
    });
    (address, serving)
}

#[tokio::test]
async fn pods_of_http2_that_say_goodbye_lose_nothing_whatever_the_method() {
    for method in [http::Method::GET, http::Method::POST] {
        let mut fixture = Fixture::with_route(|spec| spec.ports[0].h2c = true).await;
        let (ends, stays) = (CancellationToken::new(), CancellationToken::new());
        let (first, leaving) = polite(ends.clone()).await;
        let (second, _staying) = polite(stays).await;
        fixture.publish_as(&[(first, true, false), (second, true, false)]);
        let load = Load::start(fixture.listen, method.clone());
        fixture
            .until("both are busy", |counters| counters.outcomes.ok > 50)
            .await;
        // We are told after the pod has ended.
        ends.cancel();
        leaving.await.expect("ends");
        tokio::time::sleep(Duration::from_millis(100)).await;
        fixture.publish_as(&[(second, true, false)]);
        let (count, wrong) = load.end().await;
        assert!(
            wrong.is_empty(),
            "{method}: {} of {count}: {:?}",
            wrong.len(),
            wrong.first()
        );
    }
}

#[tokio::test]
async fn a_post_that_a_pod_refuses_unread_is_sent_again_and_one_that_it_resets_is_not() {
    for (reason, wanted) in [
        (h2::Reason::REFUSED_STREAM, StatusCode::OK),
        (h2::Reason::INTERNAL_ERROR, StatusCode::BAD_GATEWAY),
    ] {
        let mut fixture = Fixture::with_route(|spec| spec.ports[0].h2c = true).await;
        let listener = TcpListener::bind(SocketAddr::new(fresh_address(), 0))
            .await
            .expect("binds");
        fixture.publish_as(&[(listener.local_addr().expect("bound"), true, false)]);
        let pod = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.expect("accepts");
            let mut connection = h2::server::handshake(stream).await.expect("HTTP/2");
            let mut is_first = true;
            while let Some(Ok((_, mut answer))) = connection.accept().await {
                if std::mem::take(&mut is_first) {
                    answer.send_reset(reason);
                } else {
                    answer.send_response(Response::new(()), true).expect("sent");
                }
            }
        });
        let answer = send(fixture.listen, Request::post("/"), Bytes::new()).await;
        assert_eq!(answer.status, wanted, "{reason}: {}", answer.body);
        pod.abort();
    }
}

async fn ask(listen: SocketAddr, method: http::Method, ends: CancellationToken) -> (usize, Vec<String>) {
    let stream = TcpStream::connect(listen).await.expect("connects");
    let (mut sender, connection) = hyper::client::conn::http1::handshake::<
        _,
        BoxBody<Bytes, std::convert::Infallible>,
    >(TokioIo::new(stream))
    .await
    .expect("HTTP/1.1");
    tokio::spawn(connection);
    let (mut count, mut wrong) = (0, Vec::new());
    while !ends.is_cancelled() {
        let body = if method == http::Method::POST { "body" } else { "" };
        let request = Request::builder()
            .method(method.clone())
            .uri("/")
            .header("host", "web")
            .body(Full::from(body).boxed())
            .expect("a request");
        sender.ready().await.expect("open");
        let response = sender.send_request(request).await.expect("an answer");
        let (parts, body) = response.into_parts();
        let body = body.collect().await.map(http_body_util::Collected::to_bytes);
        count += 1;
        if parts.status != StatusCode::OK || !matches!(&body, Ok(body) if body == "hello") {
            wrong.push(format!("{} {body:?}", parts.status));
        }
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    (count, wrong)
}

/// One restart, or the end of all pods but one, under load.
async fn roll(ending: Ending, told_first: bool, method: http::Method, leaves: usize) {
    let what = format!("{ending:?}, told first: {told_first}, {method}, {leaves} of 4 leave");
    let mut fixture = Fixture::new().await;
    let pods = [
        Mortal::new().await,
        Mortal::new().await,
        Mortal::new().await,
        Mortal::new().await,
    ];
    let published = |terminating: bool| -> Vec<_> {
        let each = |(at, pod): (usize, &Mortal)| (pod.address, true, terminating && at < leaves);
        pods.iter().enumerate().map(each).collect()
    };
    fixture.publish_as(&published(false));
    let load = Load::start(fixture.listen, method);
    let busy = || pods.iter().all(|pod| pod.requests.load(Ordering::SeqCst) > 10);
    until("all pods are busy", busy).await;
    if told_first {
        fixture.publish_as(&published(true));
        tokio::time::sleep(Duration::from_millis(20)).await;
        pods[..leaves].iter().for_each(|pod| pod.end(ending));
    } else {
        pods[..leaves].iter().for_each(|pod| pod.end(ending));
        // As late as Kubernetes may be.
        tokio::time::sleep(Duration::from_millis(150)).await;
        fixture.publish_as(&published(true));
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    pods[..leaves].iter().for_each(|pod| pod.end(Ending::Killed));
    let left: Vec<_> = published(false).split_off(leaves);
    fixture.publish_as(&left);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let (count, wrong) = load.end().await;
    assert!(
        wrong.is_empty(),
        "{what}: {} of {count}: {:?}",
        wrong.len(),
        wrong.first()
    );
    assert!(count > 50, "{what}: {count}");
}

const ENDINGS: [Ending; 6] = [
    Ending::Graceful,
    Ending::ResetsIdle,
    Ending::OneMore,
    Ending::Deaf,
    Ending::Killed,
    Ending::Resets,
];

#[tokio::test]
async fn no_get_is_lost_however_pods_end_and_whenever_we_are_told() {
    for ending in ENDINGS {
        for told_first in [true, false] {
            for leaves in [1, 3] {
                roll(ending, told_first, http::Method::GET, leaves).await;
            }
        }
    }
}

#[tokio::test]
async fn no_post_is_lost_when_pods_end_after_they_are_known_to() {
    for ending in [
        Ending::Graceful,
        Ending::ResetsIdle,
        Ending::OneMore,
        Ending::Deaf,
    ] {
        for leaves in [1, 3] {
            roll(ending, true, http::Method::POST, leaves).await;
        }
    }
}

#[tokio::test]
async fn a_pod_that_resets_is_ejected_for_a_time_and_comes_back() {
    let mut fixture = Fixture::new().await;
    let (good, bad) = (Mortal::new().await, Mortal::new().await);
    fixture.publish_as(&[(good.address, true, false), (bad.address, true, false)]);
    bad.mode.store(RESETS, Ordering::SeqCst);
    for _ in 0..40 {
        assert_eq!(fixture.get("/").await.status, StatusCode::OK);
    }
    assert_eq!(good.requests.load(Ordering::SeqCst), 40);
    assert_eq!((fixture.pool().ejected(), fixture.pool().ready()), (1, 1));
    let text = metrics(&fixture).await;
    for line in [
        "activator_pod_ejections_total{cause=\"reset\"} 1",
        "activator_pods_ejected{namespace=\"shop\",pool=\"web\"} 1",
        "activator_retries_total{kind=\"lost\"} 3",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    let dump = fixture.pool().dump();
    let pods = dump["pods"].as_array().expect("pods");
    let ejected: Vec<_> = pods.iter().filter(|pod| pod["ejectedMs"].is_u64()).collect();
    assert_eq!(ejected.len(), 1, "{dump}");
    assert_eq!(
        (&ejected[0]["failures"], &ejected[0]["usable"]),
        (&1.into(), &false.into())
    );
    bad.mode.store(RUNNING, Ordering::SeqCst);
    until("used again", || fixture.pool().ready() == 2).await;
    for _ in 0..40 {
        assert_eq!(fixture.get("/").await.status, StatusCode::OK);
    }
    assert!(bad.requests.load(Ordering::SeqCst) > 0);
}

#[tokio::test]
async fn the_only_pod_is_never_ejected_for_a_time() {
    let mut fixture = Fixture::new().await;
    let bad = Mortal::new().await;
    fixture.publish_as(&[(bad.address, true, false)]);
    bad.mode.store(RESETS, Ordering::SeqCst);
    for _ in 0..5 {
        let answer = send(fixture.listen, Request::post("/"), Bytes::from("x")).await;
        assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
    }
    assert_eq!((fixture.pool().ejected(), fixture.pool().ready()), (0, 1));
    let text = metrics(&fixture).await;
    assert!(
        text.contains("activator_pod_ejections_withheld_total 1"),
        "{text}"
    );
    bad.mode.store(RUNNING, Ordering::SeqCst);
    assert_eq!(fixture.get("/").await.status, StatusCode::OK);
}

#[tokio::test]
async fn idle_connections_to_a_pod_that_terminates_are_closed() {
    let mut fixture = Fixture::new().await;
    let (listener, second) = (
        TcpListener::bind(SocketAddr::new(fresh_address(), 0))
            .await
            .expect("binds"),
        Mortal::new().await,
    );
    let first = listener.local_addr().expect("bound");
    fixture.publish_as(&[(first, true, false)]);
    let pod = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("accepts");
        let mut bytes = Vec::new();
        while !bytes.ends_with(b"\r\n\r\n") {
            stream.read_buf(&mut bytes).await.expect("reads");
        }
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";
        stream.write_all(answer).await.expect("writes");
        // A server that waits for its clients to close waits for this.
        stream.read(&mut [0]).await.expect("an end")
    });
    assert_eq!(fixture.get("/").await.status, StatusCode::OK);
    fixture.publish_as(&[(first, true, true), (second.address, true, false)]);
    let rest = tokio::time::timeout(PATIENCE, pod)
        .await
        .expect("closed")
        .expect("ends");
    assert_eq!(rest, 0);
    assert_eq!(fixture.get("/").await.status, StatusCode::OK);
    assert_eq!(second.requests.load(Ordering::SeqCst), 1);
}
