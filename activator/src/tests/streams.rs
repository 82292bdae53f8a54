//! Streams of bytes and WebSockets: what pods read first, how long they last, families of addresses; and the limits of
//! time that requests have.

use std::net::Ipv6Addr;

use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;

use super::*;

fn tcp(spec: &mut RouteSpec) {
    spec.ports[0].protocol = crds::route::Protocol::Tcp;
}

/// Reads a PROXY header by the specification: source, destination, and how many bytes it took.
fn read_header(bytes: &[u8]) -> (SocketAddr, SocketAddr, usize) {
    assert_eq!(&bytes[..13], b"\r\n\r\n\0\r\nQUIT\n\x21");
    let length = 16 + usize::from(u16::from_be_bytes([bytes[14], bytes[15]]));
    let at = |from: usize| u16::from_be_bytes([bytes[from], bytes[from + 1]]);
    match bytes[13] {
        0x11 => {
            let ip = |from: usize| IpAddr::from(<[u8; 4]>::try_from(&bytes[from..from + 4]).expect("four"));
            (
                SocketAddr::new(ip(16), at(24)),
                SocketAddr::new(ip(20), at(26)),
                length,
            )
        }
        0x21 => {
            let ip =
                |from: usize| IpAddr::from(<[u8; 16]>::try_from(&bytes[from..from + 16]).expect("sixteen"));
            (
                SocketAddr::new(ip(16), at(48)),
                SocketAddr::new(ip(32), at(50)),
                length,
            )
        }
        family => panic!("family {family:#x}"),
    }
}

#[tokio::test]
async fn a_pod_reads_who_its_client_is_before_the_first_byte() {
    for bind in [IpAddr::from([127, 0, 0, 1]), IpAddr::from(Ipv6Addr::LOCALHOST)] {
        let mut fixture = Fixture::with(
            |args| args.bind = bind,
            |spec| {
                tcp(spec);
                spec.proxy_protocol = true;
            },
            None,
        )
        .await;
        let pods = if bind.is_ipv4() { fresh_address() } else { bind };
        let listener = TcpListener::bind(SocketAddr::new(pods, 0)).await.expect("binds");
        let address = listener.local_addr().expect("bound");
        // Held first: the header is the first thing that the pod reads all the same.
        let mut client = TcpStream::connect(fixture.listen).await.expect("connects");
        client.write_all(b"hello").await.expect("writes");
        fixture.until("held", |counters| counters.held == 1).await;
        fixture.publish_as(&[(address, true, false)]);
        let (mut pod, _) = listener.accept().await.expect("accepts");
        let mut bytes = Vec::new();
        while !bytes.ends_with(b"hello") {
            assert_ne!(pod.read_buf(&mut bytes).await.expect("reads"), 0);
        }
        let (source, destination, length) = read_header(&bytes);
        assert_eq!(source, client.local_addr().expect("bound"));
        assert_eq!(destination, fixture.listen);
        assert_eq!(&bytes[length..], b"hello", "and nothing between");
        // A server that speaks first finds the header there already.
        let mut silent = TcpStream::connect(fixture.listen).await.expect("connects");
        let (mut pod, _) = listener.accept().await.expect("accepts");
        pod.write_all(b"220 ready").await.expect("writes");
        let mut greeting = [0; 9];
        silent.read_exact(&mut greeting).await.expect("reads");
        assert_eq!(&greeting, b"220 ready");
        let mut bytes = [0; 52];
        let length = if bind.is_ipv4() { 28 } else { 52 };
        pod.read_exact(&mut bytes[..length]).await.expect("reads");
        assert_eq!(read_header(&bytes).0, silent.local_addr().expect("bound"));
    }
}

#[tokio::test]
async fn requests_and_pods_of_ipv6_are_served_like_others() {
    let loopback = IpAddr::from(Ipv6Addr::LOCALHOST);
    let mut fixture = Fixture::with(|args| args.bind = loopback, |_| {}, None).await;
    assert!(fixture.listen.is_ipv6());
    let address = SocketAddr::new(loopback, free_port(loopback).await);
    let listen = fixture.listen;
    let client = tokio::spawn(async move { send(listen, Request::get("/headers"), Bytes::new()).await });
    fixture.until("held", |counters| counters.held == 1).await;
    fixture.publish_as(&[(address, false, false)]);
    let _pod = FakePod::on(address).await;
    let answer = client.await.expect("answered");
    assert_eq!(answer.status, StatusCode::OK);
    assert!(answer.body.contains("x-forwarded-for: ::1\n"), "{}", answer.body);
}

#[tokio::test]
async fn one_listener_takes_both_families() {
    let mut fixture = Fixture::with(
        |args| args.bind = IpAddr::from(Ipv6Addr::UNSPECIFIED),
        |_| {},
        None,
    )
    .await;
    let port = fixture.listen.port();
    let (old, new) = (
        FakePod::new().await,
        SocketAddr::new(IpAddr::from(Ipv6Addr::LOCALHOST), 0),
    );
    let new = SocketAddr::new(new.ip(), free_port(new.ip()).await);
    let new = FakePod::on(new).await;
    for from in [IpAddr::from([127, 0, 0, 1]), IpAddr::from(Ipv6Addr::LOCALHOST)] {
        // A client of either family reaches pods of either.
        for pod in [&old, &new] {
            fixture.publish(&[pod]);
            let answer = send(
                SocketAddr::new(from, port),
                Request::get("/headers"),
                Bytes::new(),
            )
            .await;
            assert_eq!(answer.status, StatusCode::OK);
            // Not `::ffff:127.0.0.1`, which applications do not take for IPv4.
            let field = format!("x-forwarded-for: {from}\n");
            assert!(answer.body.contains(&field), "{}", answer.body);
        }
    }
}

#[tokio::test]
async fn each_port_of_a_service_leads_to_its_own_port_of_the_pod() {
    let mut fixture = Fixture::new().await;
    let second = free_port(fixture.listen.ip()).await;
    fixture.change(|spec| {
        spec.ports[0].name = "web".into();
        spec.ports.push(RoutePort {
            name: "admin".into(),
            port: 81,
            listen: second,
            ..RoutePort::default()
        });
    });
    let address = fresh_address();
    let web = FakePod::on(SocketAddr::new(address, free_port(address).await)).await;
    let admin = FakePod::on(SocketAddr::new(address, free_port(address).await)).await;
    // As Kubernetes resolves named ports: one slice with both.
    let mut slice = a_slice("web", "web-x", fixture.listen.port(), web.address, true, false);
    slice.ports.as_mut().expect("ports").push(EndpointPort {
        name: Some(crds::names::pool_port_name(second)),
        port: Some(i32::from(admin.address.port())),
        ..EndpointPort::default()
    });
    fixture.index.apply_slice(&slice);
    for _ in 0..3 {
        assert_eq!(fixture.get("/").await.status, StatusCode::OK);
    }
    let other = SocketAddr::new(fixture.listen.ip(), second);
    assert_eq!(
        send(other, Request::get("/"), Bytes::new()).await.status,
        StatusCode::OK
    );
    assert_eq!((web.requests(), admin.requests()), (3, 1));
}

/// A WebSocket server that sends back what it gets; ends with its task.
async fn echo(address: SocketAddr) -> JoinHandle<()> {
    let listener = TcpListener::bind(address).await.expect("binds");
    tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.expect("accepts");
            connections.spawn(async move {
                // A probe connects and says nothing.
                let Ok(mut socket) = tokio_tungstenite::accept_async(stream).await else {
                    return;
                };
                while let Some(Ok(message)) = socket.next().await {
                    if !(message.is_text() || message.is_binary()) {
                        continue;
                    }
                    if socket.send(message).await.is_err() {
                        return;
                    }
                }
            });
        }
    })
}

async fn websocket(listen: SocketAddr) -> tokio_tungstenite::WebSocketStream<TcpStream> {
    let stream = TcpStream::connect(listen).await.expect("connects");
    let opening = tokio_tungstenite::client_async("ws://web/chat", stream);
    let opened = tokio::time::timeout(PATIENCE, opening).await.expect("in time");
    opened.expect("a WebSocket").0
}

async fn says(socket: &mut tokio_tungstenite::WebSocketStream<TcpStream>, text: &str) {
    socket.send(Message::text(text)).await.expect("sent");
    let back = tokio::time::timeout(PATIENCE, socket.next())
        .await
        .expect("in time");
    assert_eq!(back.expect("open").expect("a message"), Message::text(text));
}

async fn an_address() -> SocketAddr {
    let address = fresh_address();
    SocketAddr::new(address, free_port(address).await)
}

#[tokio::test]
async fn a_websocket_is_held_through_a_cold_start_and_survives_the_end_of_other_pods() {
    let mut fixture = Fixture::new().await;
    let (address, other) = (an_address().await, an_address().await);
    let listen = fixture.listen;
    let opening = tokio::spawn(async move { websocket(listen).await });
    fixture.until("held", |counters| counters.held == 1).await;
    fixture.publish_as(&[(address, false, false)]);
    let _pod = echo(address).await;
    let mut socket = opening.await.expect("opened");
    says(&mut socket, "hello").await;
    says(&mut socket, &"x".repeat(300_000)).await;
    // Another pod comes, gets a WebSocket of its own, and goes.
    let leaving = echo(other).await;
    fixture.publish_as(&[(address, true, true), (other, true, false)]);
    let mut second = websocket(listen).await;
    says(&mut second, "there").await;
    says(&mut socket, "the pod that terminates goes on serving it").await;
    fixture.publish_as(&[(address, true, false), (other, true, true)]);
    leaving.abort();
    let end = tokio::time::timeout(PATIENCE, second.next()).await.expect("ends");
    assert!(!matches!(end, Some(Ok(_))), "{end:?}");
    fixture.publish_as(&[(address, true, false)]);
    drop(second);
    fixture
        .until("one is left", |counters| counters.in_flight == 1)
        .await;
    says(&mut socket, "still here").await;
    socket.close(None).await.expect("closes");
    while tokio::time::timeout(PATIENCE, socket.next())
        .await
        .expect("ends")
        .is_some()
    {}
    drop(socket);
    fixture
        .until("ended", |counters| {
            (counters.in_flight, counters.outcomes.ok) == (0, 2)
        })
        .await;
}

#[tokio::test]
async fn a_websocket_has_the_limits_of_its_route() {
    for (limit, change) in [
        (
            "stream-idle-timeout",
            (|spec| spec.stream_idle_timeout_ms = 100) as fn(&mut RouteSpec),
        ),
        ("request-timeout", |spec| spec.request_timeout_ms = 100),
    ] {
        let mut fixture = Fixture::with_route(change).await;
        let address = an_address().await;
        let _pod = echo(address).await;
        fixture.publish_as(&[(address, true, false)]);
        let mut socket = websocket(fixture.listen).await;
        let end = tokio::time::timeout(PATIENCE, socket.next()).await.expect("ends");
        assert!(!matches!(end, Some(Ok(_))), "{end:?}");
        fixture
            .until("ended", |counters| {
                (counters.in_flight, counters.outcomes.failed) == (0, 1)
            })
            .await;
        let text = metrics(&fixture).await;
        let line = format!("activator_streams_aborted_total{{limit=\"{limit}\"}} 1");
        assert!(text.contains(&line), "{line}: {text}");
    }
}

#[tokio::test]
async fn an_activator_that_ends_lets_a_websocket_finish_and_then_says_that_it_is_over() {
    for finishes in [true, false] {
        let mut fixture = Fixture::with(
            |args| args.drain_timeout = Duration::from_millis(if finishes { 20_000 } else { 200 }),
            |_| {},
            None,
        )
        .await;
        let address = an_address().await;
        let _pod = echo(address).await;
        fixture.publish_as(&[(address, true, false)]);
        let mut socket = websocket(fixture.listen).await;
        says(&mut socket, "before").await;
        let talking = async {
            if finishes {
                until("it drains", || is_draining(&fixture)).await;
                says(&mut socket, "while it drains").await;
                socket.close(None).await.expect("closes");
            }
            let mut last = None;
            while let Some(end) = tokio::time::timeout(PATIENCE, socket.next()).await.expect("ends") {
                last = Some(end);
                if matches!(last, Some(Err(_))) {
                    break;
                }
            }
            last
        };
        let (last, ()) = tokio::join!(talking, fixture.app.drain());
        // A connection that just ends is told apart from a network that broke: no reset.
        let text = format!("{last:?}");
        assert!(!text.contains("ConnectionReset"), "finishes: {finishes}: {text}");
    }
}

fn is_draining(fixture: &Fixture) -> bool {
    fixture.app.phases.now() == crate::shutdown::Phase::Draining
}

#[tokio::test]
async fn each_limit_of_time_has_a_refusal_of_its_own() {
    type Change = fn(&mut RouteSpec);
    let rows: [(&str, Change, u16, &str, &str); 4] = [
        (
            "cold start",
            |spec| spec.cold_start_timeout_ms = 50,
            504,
            "held 0.",
            "cold_start_timeout",
        ),
        (
            "line",
            |spec| {
                spec.pools[0].container_concurrency = 1;
                spec.queue_timeout_ms = 50;
            },
            503,
            "waited 0.",
            "queue_timeout",
        ),
        (
            "response start",
            |spec| {
                spec.response_start_timeout_ms = 50;
                spec.request_timeout_ms = 60_000;
            },
            504,
            "the pod did not begin to answer within 0.",
            "upstream_timeout",
        ),
        (
            "whole request",
            |spec| {
                spec.response_start_timeout_ms = 60_000;
                spec.request_timeout_ms = 50;
            },
            504,
            "the pod did not answer within the 0.",
            "request_timeout",
        ),
    ];
    for (what, change, status, sentence, label) in rows {
        let mut fixture = Fixture::with_route(change).await;
        let pod = FakePod::new().await;
        if what != "cold start" {
            fixture.publish(&[&pod]);
        }
        let mut busy = None;
        if what == "line" {
            let listen = fixture.listen;
            busy = Some(tokio::spawn(async move {
                send(listen, Request::get("/delay/60000"), Bytes::new())
                    .await
                    .status
            }));
            fixture.until("busy", |counters| counters.in_flight == 1).await;
        }
        let answer = fixture.get("/delay/60000").await;
        assert_eq!(answer.status.as_u16(), status, "{what}: {}", answer.body);
        assert!(answer.body.starts_with(sentence), "{what}: {}", answer.body);
        assert_eq!(
            answer.headers.contains_key("retry-after"),
            status == 503,
            "{what}"
        );
        let text = metrics(&fixture).await;
        let line = format!("activator_rejections_total{{kind=\"{label}\"}} 1");
        assert!(text.contains(&line), "{what}: {text}");
        if let Some(busy) = busy {
            busy.abort();
        }
    }
}
