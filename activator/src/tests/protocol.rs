//! What passes through, and how: versions, bodies, heads, upgrades, limits of time.

use http::{HeaderValue, Version};
use http_body_util::StreamBody;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;

async fn warm() -> (Fixture, FakePod) {
    warm_with(|_| {}).await
}

async fn warm_with(change: impl FnOnce(&mut RouteSpec)) -> (Fixture, FakePod) {
    let mut fixture = Fixture::with_route(change).await;
    let pod = FakePod::new().await;
    fixture.publish(&[&pod]);
    (fixture, pod)
}

/// Writes bytes and reads until the other side closes.
pub(super) async fn raw(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("connects");
    // What is refused early may be closed before it has been read to its end.
    drop(stream.write_all(request.as_bytes()).await);
    let mut answer = Vec::new();
    // A reset is an end too: bytes that were only peeked at make the system send one.
    let reading = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    let so_far = String::from_utf8_lossy(&answer);
    drop(reading.unwrap_or_else(|_| panic!("not closed after {:.60}: {so_far}", request)));
    String::from_utf8_lossy(&answer).into_owned()
}

async fn h2(address: SocketAddr) -> hyper::client::conn::http2::SendRequest<Full<Bytes>> {
    let stream = TcpStream::connect(address).await.expect("connects");
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .expect("HTTP/2");
    tokio::spawn(connection);
    sender
}

#[tokio::test]
async fn http2_from_a_client_becomes_http1_for_a_pod() {
    let (fixture, _pod) = warm().await;
    let mut sender = h2(fixture.listen).await;
    let request = Request::post("http://web.shop/headers?q=1")
        .body(Full::from("body"))
        .expect("a request");
    let response = sender.send_request(request).await.expect("an answer");
    let body = response.into_body().collect().await.expect("a body").to_bytes();
    let seen = String::from_utf8_lossy(&body).into_owned();
    assert!(seen.starts_with("POST /headers?q=1 HTTP/1.1\n"), "{seen}");
    assert!(
        seen.contains("host: web.shop\n") && seen.contains("x-forwarded-for: 127.0.0.1\n"),
        "{seen}"
    );
    let echo = Request::post("http://web/echo")
        .body(Full::from("x".repeat(300_000)))
        .expect("a request");
    let body = sender.send_request(echo).await.expect("an answer").into_body();
    assert_eq!(body.collect().await.expect("a body").to_bytes().len(), 300_000);
}

#[tokio::test]
async fn pods_that_speak_http2_get_http2_from_every_client() {
    let (fixture, pod) = warm_with(|spec| spec.ports[0].h2c = true).await;
    let seen = fixture.get("/headers").await.body;
    assert!(seen.starts_with("GET http://web/headers HTTP/2.0\n"), "{seen}");
    let mut sender = h2(fixture.listen).await;
    let request = Request::get("http://web/headers")
        .body(Full::default())
        .expect("a request");
    let response = sender.send_request(request).await.expect("an answer");
    assert_eq!(
        (response.version(), response.status()),
        (Version::HTTP_2, StatusCode::OK)
    );
    drop(response);
    let many = (0..100).map(|_| {
        let mut sender = sender.clone();
        async move {
            let request = Request::get("http://web/delay/5")
                .body(Full::default())
                .expect("a request");
            sender.send_request(request).await.expect("an answer").status()
        }
    });
    assert!(
        futures::future::join_all(many)
            .await
            .iter()
            .all(|status| *status == StatusCode::OK)
    );
    assert_eq!(pod.requests(), 102);
}

#[tokio::test]
async fn bodies_stream_both_ways_at_once() {
    let (fixture, _pod) = warm().await;
    let (sender, receiver) = tokio::sync::mpsc::channel::<Result<http_body::Frame<Bytes>, std::io::Error>>(1);
    let body = StreamBody::new(futures::stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|frame| (frame, receiver))
    }));
    let opening = tokio::spawn(open(fixture.listen, Request::post("/echo"), Box::pin(body)));
    sender
        .send(Ok(http_body::Frame::data(Bytes::from("one"))))
        .await
        .expect("sent");
    let mut response = opening.await.expect("an answer");
    for part in ["one", "two", "three"] {
        if part != "one" {
            sender
                .send(Ok(http_body::Frame::data(Bytes::from(part))))
                .await
                .expect("sent");
        }
        // The part arrives while the request is still being sent.
        let frame = response
            .frame()
            .await
            .expect("a frame")
            .expect("no error")
            .into_data()
            .expect("data");
        assert_eq!(frame, part);
    }
    assert_eq!(fixture.counters().in_flight, 1);
    drop(sender);
    assert!(response.frame().await.is_none());
    fixture
        .until("ended", |counters| {
            counters.in_flight == 0 && counters.outcomes.ok == 1
        })
        .await;
}

#[tokio::test]
async fn a_chunked_request_stays_whole() {
    let (fixture, _pod) = warm().await;
    let request = "POST /echo HTTP/1.1\r\nhost: web\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n\
                   3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
    let answer = raw(fixture.listen, request).await;
    assert!(
        answer.contains("abc") && answer.contains("de") && answer.ends_with("0\r\n\r\n"),
        "{answer}"
    );
}

#[tokio::test]
async fn the_answer_to_head_has_a_length_and_no_body() {
    let (fixture, _pod) = warm().await;
    let answer = raw(
        fixture.listen,
        "HEAD / HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n",
    )
    .await;
    assert!(
        answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\n"),
        "{answer}"
    );
    assert!(answer.contains("content-length: 5\r\n"), "{answer}");
    fixture
        .until("ended", |counters| {
            counters.in_flight == 0 && counters.outcomes.ok == 1
        })
        .await;
}

#[tokio::test]
async fn a_client_that_expects_100_continue_gets_it() {
    let (fixture, _pod) = warm().await;
    let mut stream = TcpStream::connect(fixture.listen).await.expect("connects");
    let head = "POST /echo HTTP/1.1\r\nhost: web\r\nexpect: 100-continue\r\ncontent-length: 4\r\nconnection: close\r\n\r\n";
    stream.write_all(head.as_bytes()).await.expect("writes");
    let mut interim = [0; 25];
    stream.read_exact(&mut interim).await.expect("an interim answer");
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"body").await.expect("writes");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    assert!(
        answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("body"),
        "{answer}"
    );
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let (fixture, _pod) = warm().await;
    let one = "GET /delay/30 HTTP/1.1\r\nhost: web\r\n\r\n";
    let two = "GET /status/404 HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n";
    let answer = raw(fixture.listen, &format!("{one}{two}")).await;
    let (first, second) = (
        answer.find("200 OK").expect("the first"),
        answer.find("404").expect("the second"),
    );
    assert!(first < second, "{answer}");
}

#[tokio::test]
async fn requests_that_nobody_should_see_are_refused() {
    let (fixture, pod) = warm().await;
    for (request, status) in [
        ("CONNECT web:80 HTTP/1.1\r\nhost: web\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nconnection: close\r\n\r\n", "400"),
        (
            "GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\nconnection: close\r\n\r\n",
            "400",
        ),
        ("GARBAGE\r\n\r\n", "400"),
    ] {
        let answer = raw(fixture.listen, request).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{request}: {answer}"
        );
    }
    let long = format!(
        "GET / HTTP/1.1\r\nhost: web\r\nx: {}\r\n\r\n",
        "x".repeat(100_000)
    );
    assert!(raw(fixture.listen, &long).await.starts_with("HTTP/1.1 431"));
    assert_eq!(pod.requests(), 0);
}

#[tokio::test]
async fn http2_may_have_a_host_field_but_never_two() {
    let (mut fixture, witness) = (Fixture::new().await, FakePod::new().await);
    fixture.publish(&[&witness]);
    // Without an address in its target it has no `:authority`.
    for (target, hosts, wanted) in [
        ("/headers", &[][..], Ok("host: localhost\n")),
        ("/headers", &["a"], Ok("host: a\n")),
        ("http://web/headers", &["web"], Ok("host: web\n")),
        ("/headers", &["a", "b"], Err("Host twice\n")),
        ("/headers", &["a", "a"], Err("Host twice\n")),
        ("http://web/headers", &["web", "b"], Err("Host twice\n")),
        ("/headers", &["a, b"], Err("a Host that is no host\n")),
        ("/headers", &["user@web"], Err("a Host that is no host\n")),
    ] {
        let mut request = Request::get(target);
        for host in hosts {
            request = request.header("host", *host);
        }
        let request = request.body(Full::default()).expect("a request");
        let mut sender = h2(fixture.listen).await;
        let response = sender.send_request(request).await.expect("an answer");
        let status = response.status();
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        let body = String::from_utf8_lossy(&body);
        match wanted {
            Ok(wanted) => assert!(body.contains(wanted), "{target} {hosts:?}: {body}"),
            Err(why) => assert_eq!((status.as_u16(), &*body), (400, why), "{target} {hosts:?}"),
        }
    }
    assert_eq!(witness.requests(), 3);
}

#[tokio::test]
async fn a_client_that_dawdles_over_its_head_is_cut_off() {
    let fixture = Fixture::with(
        |args| args.header_timeout = Duration::from_millis(100),
        |_| {},
        None,
    )
    .await;
    for start in ["", "P", "PRI * HT", "GET / HTTP/1.1\r\nho"] {
        let answer = raw(fixture.listen, start).await;
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 408"),
            "{start:?}: {answer}"
        );
    }
}

#[tokio::test]
async fn a_client_that_ends_within_the_preface_of_http2_is_done_with_at_once() {
    let (fixture, _pod) = warm().await;
    let mut client = TcpStream::connect(fixture.listen).await.expect("connects");
    client.write_all(b"PRI *").await.expect("it is written");
    client.shutdown().await.expect("it is closed");
    let mut all = Vec::new();
    // A fraction of the time that a head may take.
    let ended = tokio::time::timeout(Duration::from_secs(10), client.read_to_end(&mut all)).await;
    ended.expect("the connection is closed").expect("it is read");
}

#[tokio::test]
async fn an_upgrade_joins_the_two_connections() {
    let mut fixture = Fixture::new().await;
    let address = SocketAddr::new(fresh_address(), 0);
    let listener = TcpListener::bind(address).await.expect("binds");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("accepts");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            stream.read_buf(&mut head).await.expect("reads");
        }
        let head = String::from_utf8_lossy(&head).to_lowercase();
        assert!(
            head.contains("upgrade: echo\r\n") && head.contains("connection: upgrade\r\n"),
            "{head}"
        );
        let answer = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
        stream.write_all(answer.as_bytes()).await.expect("writes");
        let (mut read, mut write) = stream.split();
        tokio::io::copy(&mut read, &mut write).await.expect("echoes");
    });
    fixture.publish_as(&[(address, true, false)]);
    let mut client = TcpStream::connect(fixture.listen).await.expect("connects");
    let head = "GET / HTTP/1.1\r\nhost: web\r\nconnection: Upgrade\r\nupgrade: echo\r\n\r\n";
    client.write_all(head.as_bytes()).await.expect("writes");
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        client.read_buf(&mut answer).await.expect("reads");
    }
    assert!(
        answer.starts_with(b"HTTP/1.1 101 "),
        "{}",
        String::from_utf8_lossy(&answer)
    );
    client.write_all(b"ping").await.expect("writes");
    let mut echo = [0; 4];
    client.read_exact(&mut echo).await.expect("an echo");
    assert_eq!((&echo, fixture.counters().in_flight), (b"ping", 1));
    drop(client);
    fixture
        .until("ended", |counters| {
            counters.in_flight == 0 && counters.outcomes.ok == 1
        })
        .await;
}

#[tokio::test]
async fn a_pod_that_switches_unasked_is_refused_and_its_client_is_still_read_strictly() {
    let mut fixture = Fixture::new().await;
    let listener = TcpListener::bind(SocketAddr::new(fresh_address(), 0))
        .await
        .expect("binds");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.expect("accepts");
            let answer = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
            // A probe connects and says nothing.
            tokio::spawn(async move {
                if stream.read_buf(&mut Vec::new()).await.is_ok_and(|read| read > 0) {
                    drop(stream.write_all(answer.as_bytes()).await);
                }
            });
        }
    });
    fixture.publish_as(&[(address, true, false)]);
    let mut client = TcpStream::connect(fixture.listen).await.expect("connects");
    let good = b"GET / HTTP/1.1\r\nhost: web\r\n\r\n";
    client.write_all(good).await.expect("writes");
    let mut answer = Vec::new();
    while !answer.ends_with(b"unasked\n") {
        let read = client.read_buf(&mut answer).await.expect("reads");
        assert!(read > 0, "{}", String::from_utf8_lossy(&answer));
    }
    assert!(answer.starts_with(b"HTTP/1.1 500 "));
    let bad = b"GET / HTTP/1.1\nhost: web\r\n\r\n";
    client.write_all(bad).await.expect("writes");
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.expect("reads");
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert_eq!(fixture.counters().outcomes.failed, 1);
    let metrics = metrics(&fixture).await;
    let counted = "activator_rejections_total{kind=\"internal\"} 1\n";
    assert!(metrics.contains(counted), "{metrics}");
}

#[tokio::test]
async fn a_stream_of_bytes_is_held_and_carried() {
    let mut fixture = Fixture::with_route(|spec| spec.ports[0].protocol = crds::route::Protocol::Tcp).await;
    let listener = TcpListener::bind(SocketAddr::new(fresh_address(), 0))
        .await
        .expect("binds");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.expect("accepts");
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                drop(tokio::io::copy(&mut read, &mut write).await);
            });
        }
    });
    let mut client = TcpStream::connect(fixture.listen).await.expect("connects");
    client.write_all(b"hello").await.expect("writes");
    fixture.until("held", |counters| counters.held == 1).await;
    fixture.publish_as(&[(address, false, false)]);
    client.shutdown().await.expect("half-closes");
    let mut echo = String::new();
    client.read_to_string(&mut echo).await.expect("an echo");
    assert_eq!(echo, "hello");
    fixture
        .until("ended", |counters| {
            counters.in_flight == 0 && counters.outcomes.ok == 1
        })
        .await;
}

#[tokio::test]
async fn a_stream_of_bytes_that_reaches_no_pod_is_counted_as_refused() {
    let mut fixture = Fixture::with_route(|spec| spec.ports[0].protocol = crds::route::Protocol::Tcp).await;
    // A pod that is ready, and whose port for this listener is never published.
    let pod = SocketAddr::new(fresh_address(), 1);
    let other = fixture.listen.port() ^ 1;
    fixture
        .index
        .apply_slice(&a_slice("web", "web-0", other, pod, true, false));
    assert_eq!(raw(fixture.listen, "hello").await, "");
    let counted = "activator_rejections_total{kind=\"connect\"} 1\n";
    until_metrics(&fixture, "refused", |metrics| metrics.contains(counted)).await;
    assert_eq!(fixture.counters().outcomes.failed, 1);
}

#[tokio::test]
async fn a_pod_that_does_not_begin_to_answer_is_given_up() {
    let (fixture, _pod) = warm_with(|spec| spec.response_start_timeout_ms = 50).await;
    let answer = fixture.get("/delay/5000").await;
    assert_eq!(answer.status, StatusCode::GATEWAY_TIMEOUT);
    fixture
        .until("freed", |counters| {
            counters.in_flight == 0 && counters.outcomes.failed == 1
        })
        .await;
}

#[tokio::test]
async fn a_stream_without_a_byte_for_too_long_is_broken_off_without_a_word() {
    for limit in ["idle", "whole"] {
        let (fixture, _pod) = warm_with(|spec| match limit {
            "idle" => spec.stream_idle_timeout_ms = 50,
            _ => spec.request_timeout_ms = 50,
        })
        .await;
        let mut client = TcpStream::connect(fixture.listen).await.expect("connects");
        let start = "POST /echo HTTP/1.1\r\nhost: web\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n";
        client.write_all(start.as_bytes()).await.expect("writes");
        let mut answer = Vec::new();
        drop(
            tokio::time::timeout(PATIENCE, client.read_to_end(&mut answer))
                .await
                .expect("closed in time"),
        );
        let answer = String::from_utf8_lossy(&answer);
        assert!(
            answer.contains("abc") && !answer.ends_with("0\r\n\r\n"),
            "{limit}: {answer}"
        );
        fixture
            .until("freed", |counters| {
                counters.in_flight == 0 && counters.outcomes.failed == 1
            })
            .await;
    }
}

#[tokio::test]
async fn an_answer_over_http2_whose_pod_falls_silent_is_reset() {
    let listener = TcpListener::bind(SocketAddr::new(fresh_address(), 0))
        .await
        .expect("binds");
    let pod = listener.local_addr().expect("bound");
    let mut fixture = Fixture::with_route(|spec| spec.stream_idle_timeout_ms = 50).await;
    fixture.publish_as(&[(pod, true, false)]);
    let mut sender = h2(fixture.listen).await;
    let request = Request::get("http://web/")
        .body(Full::default())
        .expect("a request");
    let asking = tokio::spawn(async move { sender.send_request(request).await.expect("a head") });
    let (mut stream, _) = listener.accept().await.expect("accepts");
    // An answer that came before the request would be no answer to it.
    let read = stream.read(&mut [0; 4096]).await.expect("a request");
    assert!(read > 0);
    let head = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc";
    stream.write_all(head).await.expect("writes");
    let body = asking.await.expect("answered").into_body();
    let reading = tokio::time::timeout(PATIENCE, body.collect());
    assert!(reading.await.expect("ends").is_err());
    fixture
        .until("freed", |counters| {
            counters.in_flight == 0 && counters.outcomes.failed == 1
        })
        .await;
}

/// A pod that answers with more than any buffer takes. Returns its address, and how many connections it has.
async fn generous() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind(SocketAddr::new(fresh_address(), 0))
        .await
        .expect("binds");
    let address = listener.local_addr().expect("bound");
    let open = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&open);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.expect("accepts");
            let count = Arc::clone(&count);
            tokio::spawn(async move {
                count.fetch_add(1, Ordering::SeqCst);
                let head = b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n";
                let piece = vec![0; 64 * 1024];
                if stream.read(&mut [0; 4096]).await.is_ok() && stream.write_all(head).await.is_ok() {
                    while stream.write_all(&piece).await.is_ok() {}
                }
                count.fetch_sub(1, Ordering::SeqCst);
            });
        }
    });
    (address, open)
}

#[tokio::test]
async fn a_client_that_does_not_read_keeps_no_place_beyond_the_limits() {
    for (limit, is_h2) in [("idle", false), ("whole", false), ("idle", true), ("whole", true)] {
        let (pod, open) = generous().await;
        let mut fixture = Fixture::with_route(|spec| {
            spec.pools[0].container_concurrency = 1;
            match limit {
                "idle" => spec.stream_idle_timeout_ms = 200,
                _ => spec.request_timeout_ms = 200,
            }
        })
        .await;
        fixture.publish_as(&[(pod, true, false)]);
        let (mut client, mut stream) = (None, None);
        if is_h2 {
            let request = Request::get("http://web/")
                .body(Full::default())
                .expect("a request");
            let mut sender = h2(fixture.listen).await;
            let response = sender.send_request(request).await.expect("an answer");
            client = Some((sender, response));
        } else {
            let mut connected = TcpStream::connect(fixture.listen).await.expect("connects");
            let request = b"GET / HTTP/1.1\r\nhost: web\r\n\r\n";
            connected.write_all(request).await.expect("writes");
            stream = Some(connected);
        }
        fixture
            .until("freed", |counters| {
                counters.in_flight == 0 && counters.outcomes.failed == 1
            })
            .await;
        until("the pod is told", || open.load(Ordering::SeqCst) == 0).await;
        let next = open_and_leave(fixture.listen).await;
        assert_eq!(next, StatusCode::OK, "{limit}, {is_h2}");
        // Whoever reads after all finds an answer that ends too soon.
        if let Some((_sender, response)) = client {
            let reading = tokio::time::timeout(PATIENCE, response.into_body().collect());
            assert!(reading.await.expect("ends").is_err(), "{limit}");
        }
        if let Some(mut stream) = stream {
            until("closed", || fixture.app.server.connections() == 0).await;
            let mut all = Vec::new();
            let reading = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut all));
            drop(reading.await.expect("ends"));
            assert!(all.len() < 1_000_000_000, "{limit}");
        }
    }
}

/// A request whose answer's body nobody reads.
async fn open_and_leave(listen: SocketAddr) -> StatusCode {
    let asking = open(listen, Request::get("/"), Full::<Bytes>::default());
    let answer = tokio::time::timeout(PATIENCE, asking).await;
    answer.expect("in time").status()
}

#[tokio::test]
async fn an_answer_that_nobody_could_begin_to_read_is_given_up() {
    let (pod, _) = generous().await;
    let mut fixture = Fixture::with_route(|spec| spec.request_timeout_ms = 200).await;
    fixture.publish_as(&[(pod, true, false)]);
    // A window of no byte: the body is never asked for.
    let stream = TcpStream::connect(fixture.listen).await.expect("connects");
    let (mut sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(0)
        .handshake(TokioIo::new(stream))
        .await
        .expect("HTTP/2");
    tokio::spawn(connection);
    let request = Request::get("http://web/")
        .body(Full::<Bytes>::default())
        .expect("a request");
    let _response = sender.send_request(request).await.expect("a head");
    fixture
        .until("freed", |counters| {
            counters.in_flight == 0 && counters.outcomes.failed == 1
        })
        .await;
}

#[tokio::test]
async fn a_client_that_goes_mid_answer_frees_the_pod() {
    let (fixture, _pod) = warm_with(|spec| spec.pools[0].container_concurrency = 1).await;
    let listen = fixture.listen;
    let client = tokio::spawn(async move { send(listen, Request::get("/delay/60000"), Bytes::new()).await });
    fixture
        .until("at the pod", |counters| counters.in_flight == 1)
        .await;
    client.abort();
    fixture
        .until("freed", |counters| {
            counters.in_flight == 0 && counters.outcomes.cancelled == 1
        })
        .await;
    assert_eq!(fixture.get("/").await.status, StatusCode::OK);
}

#[tokio::test]
async fn grpc_gets_its_own_kind_of_refusal() {
    let fixture = Fixture::with_route(|spec| spec.cold_start_timeout_ms = 50).await;
    let mut sender = h2(fixture.listen).await;
    let request = Request::post("http://web/pkg.Service/Call")
        .header("content-type", HeaderValue::from_static("application/grpc"))
        .body(Full::default())
        .expect("a request");
    let response = sender.send_request(request).await.expect("an answer");
    assert_eq!(
        (response.status(), &response.headers()["grpc-status"]),
        (StatusCode::OK, &HeaderValue::from_static("4"))
    );
}

#[tokio::test]
async fn errors_of_a_pod_pass_and_are_counted() {
    let (fixture, _pod) = warm().await;
    assert_eq!(
        fixture.get("/status/500").await.status,
        StatusCode::INTERNAL_SERVER_ERROR
    );
    assert_eq!(fixture.get("/status/404").await.status, StatusCode::NOT_FOUND);
    fixture
        .until("counted", |counters| {
            (counters.outcomes.server_error, counters.outcomes.ok) == (1, 1)
        })
        .await;
}
