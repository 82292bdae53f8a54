//! Clients that leave, and clients that only look like it, while their requests wait. Real sockets: what a closed one
//! does is the system's business.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;

/// A client that has written `bytes`, and whose first request is held.
async fn held(fixture: &Fixture, bytes: &[u8]) -> TcpStream {
    let mut client = TcpStream::connect(fixture.listen).await.expect("connects");
    client.write_all(bytes).await.expect("writes");
    fixture.until("held", |counters| counters.held == 1).await;
    client
}

fn a_post(length: usize, sent: usize) -> Vec<u8> {
    let mut bytes =
        format!("POST /echo HTTP/1.1\r\nhost: web\r\ncontent-length: {length}\r\n\r\n").into_bytes();
    bytes.resize(bytes.len() + sent, b'x');
    bytes
}

const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: web\r\n\r\n";

#[tokio::test]
async fn a_client_that_closes_frees_its_place_whatever_it_has_left_unread() {
    let pipelined = [GET, GET].concat();
    let rows: [(&str, Vec<u8>); 5] = [
        ("nothing", GET.to_vec()),
        ("a body, whole", a_post(1000, 1000)),
        ("a body, not yet sent", a_post(1_000_000, 0)),
        // More than hyper's buffer, so most of it stays in the socket.
        ("a body, half sent", a_post(100_000, 50_000)),
        ("a second request", pipelined),
    ];
    for (what, bytes) in rows {
        let fixture = Fixture::with_route(|spec| spec.queue_limit = 1).await;
        drop(held(&fixture, &bytes).await);
        fixture
            .until(what, |counters| {
                (counters.held, counters.outcomes.cancelled) == (0, 1)
            })
            .await;
        assert_eq!(fixture.pool().held(), 0, "{what}");
    }
}

#[tokio::test]
async fn a_client_that_resets_frees_its_place_in_every_version() {
    let rows: [(&str, Vec<u8>); 3] = [
        ("HTTP/1.1", a_post(100_000, 50_000)),
        ("HTTP/1.0", b"GET / HTTP/1.0\r\n\r\n".to_vec()),
        ("a whole body", a_post(10, 10)),
    ];
    for (what, bytes) in rows {
        let fixture = Fixture::new().await;
        let client = held(&fixture, &bytes).await;
        socket2::SockRef::from(&client)
            .set_linger(Some(Duration::ZERO))
            .expect("lingers not");
        drop(client);
        fixture
            .until(what, |counters| {
                (counters.held, counters.outcomes.cancelled) == (0, 1)
            })
            .await;
    }
}

#[tokio::test]
async fn a_client_that_has_only_finished_sending_is_answered() {
    let rows: [(&str, Vec<u8>, &str, &str); 4] = [
        (
            "a GET",
            GET.to_vec(),
            "hello",
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n",
        ),
        (
            "a POST",
            a_post(5, 5),
            "xxxxx",
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n",
        ),
        (
            "two GETs",
            [GET, GET].concat(),
            "hello",
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n",
        ),
        // HTTP/1.0 knows no interim answers, so it is not asked.
        (
            "HTTP/1.0",
            b"GET / HTTP/1.0\r\n\r\n".to_vec(),
            "hello",
            "HTTP/1.0 200 OK\r\n",
        ),
    ];
    for (what, bytes, end, start) in rows {
        let mut fixture = Fixture::new().await;
        let mut client = held(&fixture, &bytes).await;
        client.shutdown().await.expect("half-closes");
        if start.starts_with("HTTP/1.1 100") {
            client
                .readable()
                .await
                .expect("is asked whether it is still there");
        }
        let pod = FakePod::new().await;
        fixture.publish(&[&pod]);
        let mut answer = String::new();
        tokio::time::timeout(PATIENCE, client.read_to_string(&mut answer))
            .await
            .expect("in time")
            .expect("an answer");
        assert!(
            answer.starts_with(start) && answer.ends_with(end),
            "{what}: {answer}"
        );
        let wanted = if what == "two GETs" { 2 } else { 1 };
        assert_eq!(answer.matches(" 200 OK").count(), wanted, "{what}: {answer}");
        fixture
            .until("ended", |counters| counters.outcomes.ok == wanted as u64)
            .await;
    }
}

#[tokio::test]
async fn a_client_that_leaves_while_a_pod_thinks_frees_the_pod() {
    for body in [false, true] {
        let mut fixture = Fixture::with_route(|spec| spec.pools[0].container_concurrency = 1).await;
        let pod = FakePod::new().await;
        fixture.publish(&[&pod]);
        let mut client = TcpStream::connect(fixture.listen).await.expect("connects");
        let head = if body {
            "POST /delay/60000 HTTP/1.1\r\nhost: web\r\ncontent-length: 2000000\r\n\r\n"
        } else {
            "GET /delay/60000 HTTP/1.1\r\nhost: web\r\n\r\n"
        };
        client.write_all(head.as_bytes()).await.expect("writes");
        fixture
            .until("at the pod", |counters| counters.in_flight == 1)
            .await;
        drop(client);
        fixture
            .until("freed", |counters| {
                counters.in_flight == 0 && counters.outcomes.ok == 0
            })
            .await;
    }
}

#[tokio::test]
async fn a_connection_of_bytes_whose_client_leaves_frees_its_place() {
    for (sent, resets) in [("", false), ("", true), ("hello", true)] {
        let fixture = Fixture::with_route(|spec| spec.ports[0].protocol = crds::route::Protocol::Tcp).await;
        let client = held(&fixture, sent.as_bytes()).await;
        if resets {
            socket2::SockRef::from(&client)
                .set_linger(Some(Duration::ZERO))
                .expect("lingers not");
        }
        drop(client);
        fixture.until("gone", |counters| counters.held == 0).await;
    }
}

#[tokio::test]
async fn heads_and_idle_connections_have_a_patience_each() {
    let fixture = Fixture::with(
        |args| {
            args.header_timeout = Duration::from_secs(3600);
            args.keep_alive_timeout = Duration::from_millis(100);
        },
        |spec| spec.ignore.paths = vec!["/healthz".into()],
        None,
    )
    .await;
    let mut idle = TcpStream::connect(fixture.listen).await.expect("connects");
    let probe = b"GET /healthz HTTP/1.1\r\nhost: web\r\n\r\n";
    idle.write_all(probe).await.expect("writes");
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, idle.read_to_string(&mut answer))
        .await
        .expect("closed once idle for too long")
        .expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    // A head that is under way is not idle.
    let mut slow = TcpStream::connect(fixture.listen).await.expect("connects");
    let (first, rest) = probe.split_at(20);
    slow.write_all(first).await.expect("writes");
    tokio::time::sleep(Duration::from_millis(300)).await;
    slow.write_all(rest).await.expect("writes");
    let mut answer = String::new();
    slow.read_to_string(&mut answer).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
}
