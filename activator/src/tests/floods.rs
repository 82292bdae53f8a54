//! HTTP/2 clients that misuse it: each is cut off or bounded, nothing stays behind, and others notice nothing.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// `GET http://web/` in HPACK: three entries of the static table and a literal authority.
const GET: &[u8] = b"\x82\x86\x84\x41\x03web";

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A connection that has said its preface.
async fn connect(fixture: &Fixture) -> TcpStream {
    let mut stream = TcpStream::connect(fixture.listen).await.expect("connects");
    let mut start = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    start.extend(frame(SETTINGS, 0, 0, &[]));
    stream.write_all(&start).await.expect("writes");
    stream
}

/// Reads frames until the connection ends; returns the error code of GOAWAY, if there was one.
async fn goodbye(stream: &mut TcpStream) -> Option<u32> {
    let reading = async {
        let mut code = None;
        let mut head = [0; 9];
        while stream.read_exact(&mut head).await.is_ok() {
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let mut payload = vec![0; length];
            if stream.read_exact(&mut payload).await.is_err() {
                break;
            }
            if head[3] == GOAWAY {
                code = Some(u32::from_be_bytes([
                    payload[4], payload[5], payload[6], payload[7],
                ]));
            }
        }
        code
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("ends")
}

/// The series of a cause.
fn fault(cause: &str) -> String {
    format!("activator_h2_faults_total{{cause=\"{cause}\"}} 1\n")
}

/// RFC 9113 §7.
const PROTOCOL_ERROR: u32 = 1;
const ENHANCE_YOUR_CALM: u32 = 11;

#[tokio::test]
async fn floods_end_the_connection_they_come_by_and_nothing_else() {
    let resets: Vec<u8> = (0..5_000_u32)
        .flat_map(|number| {
            let stream = 2 * number + 1;
            let mut both = frame(HEADERS, END_STREAM | END_HEADERS, stream, GET);
            both.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
            both
        })
        .collect();
    let mut continued = frame(HEADERS, END_STREAM, 1, GET);
    for _ in 0..2_000 {
        // A literal field without indexing: `x: ` and 1,000 bytes.
        let mut field = b"\x00\x01x\x7f\xe9\x06".to_vec();
        field.resize(field.len() + 1000, b'a');
        continued.extend(frame(CONTINUATION, 0, 1, &field));
    }
    let mut empty = frame(HEADERS, END_STREAM, 1, GET);
    for _ in 0..20_000 {
        empty.extend(frame(CONTINUATION, 0, 1, &[]));
    }
    let pings = frame(PING, 0, 0, &[0; 8]).repeat(30_000);
    let settings = frame(SETTINGS, 0, 0, &[]).repeat(30_000);
    type Row<'a> = (&'a str, Vec<u8>, &'a [u32], &'a [&'a str]);
    let rows: [Row<'_>; 6] = [
        ("rapid reset", resets, &[ENHANCE_YOUR_CALM], &["rapid_reset"]),
        (
            "CONTINUATION",
            continued,
            &[ENHANCE_YOUR_CALM, PROTOCOL_ERROR],
            &["continuation_flood", "header_list", "compression_error"],
        ),
        (
            "empty CONTINUATION",
            empty,
            &[ENHANCE_YOUR_CALM, PROTOCOL_ERROR],
            &["continuation_flood"],
        ),
        ("pings", pings, &[], &["ping_flood"]),
        ("settings", settings, &[], &["settings_flood"]),
        (
            "data on no stream",
            frame(DATA, 0, 1, b"x"),
            &[PROTOCOL_ERROR],
            &["protocol_error"],
        ),
    ];
    for (what, bytes, codes, causes) in rows {
        // Asleep: what is held is what costs.
        let mut fixture = Fixture::with_route(|spec| spec.queue_limit = 300).await;
        let mut stream = connect(&fixture).await;
        let (mut read, mut write) = stream.split();
        let writing = async {
            drop(write.write_all(&bytes).await);
            std::future::pending::<()>().await;
        };
        let mut answer = Vec::new();
        tokio::select! {
            read = tokio::time::timeout(PATIENCE, read.read_to_end(&mut answer)) => {
                drop(read.unwrap_or_else(|_| panic!("{what}: not cut off")));
            }
            () = writing => {}
        }
        let code = goaway(&answer);
        assert!(code.is_none_or(|code| codes.contains(&code)), "{what}: {code:?}");
        fixture
            .until("nothing is left", |counters| counters.held == 0)
            .await;
        let counted = |text: &str, cause: &str| text.contains(&fault(cause));
        until_metrics(&fixture, what, |text| {
            causes.iter().any(|cause| counted(text, cause))
        })
        .await;
        let pod = FakePod::new().await;
        fixture.publish(&[&pod]);
        assert_eq!(fixture.get("/").await.status, StatusCode::OK, "{what}");
    }
}

/// The error code of a GOAWAY among these frames; a reset may have overtaken it.
fn goaway(mut bytes: &[u8]) -> Option<u32> {
    while bytes.len() >= 9 {
        let length = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]) as usize;
        let payload = bytes.get(9..9 + length)?;
        if bytes[3] == GOAWAY {
            return Some(u32::from_be_bytes([
                payload[4], payload[5], payload[6], payload[7],
            ]));
        }
        bytes = &bytes[9 + length..];
    }
    None
}

#[tokio::test]
async fn a_client_that_pings_and_sets_without_reading_does_not_slow_others() {
    let mut fixture = Fixture::new().await;
    let pod = FakePod::new().await;
    fixture.publish(&[&pod]);
    let flood = connect(&fixture).await;
    let (_read, mut write) = flood.into_split();
    let flooding = tokio::spawn(async move {
        let mut bytes = frame(PING, 0, 0, &[0; 8]);
        bytes.extend(frame(SETTINGS, 0, 0, &[]));
        let bytes = bytes.repeat(1000);
        // Its own answers fill the sockets, and then nothing more is read from it.
        while write.write_all(&bytes).await.is_ok() {}
    });
    for _ in 0..50 {
        assert_eq!(fixture.get("/").await.status, StatusCode::OK);
    }
    flooding.abort();
}

#[tokio::test]
async fn more_streams_than_allowed_are_refused_and_the_rest_goes_on() {
    let fixture = Fixture::with(|args| args.max_streams = 10, |_| {}, None).await;
    let mut stream = connect(&fixture).await;
    for number in 0..30_u32 {
        let get = frame(HEADERS, END_STREAM | END_HEADERS, 2 * number + 1, GET);
        stream.write_all(&get).await.expect("writes");
    }
    fixture
        .until("as many as allowed are held", |counters| counters.held == 10)
        .await;
    drop(stream);
    fixture.until("all are gone", |counters| counters.held == 0).await;
}

#[tokio::test]
async fn a_head_beyond_its_bound_is_refused() {
    let mut fixture = Fixture::with(|args| args.max_header_bytes = 8192, |_| {}, None).await;
    let pod = FakePod::new().await;
    fixture.publish(&[&pod]);
    let mut stream = connect(&fixture).await;
    let mut block = GET.to_vec();
    for _ in 0..12 {
        block.extend(b"\x00\x01x\x7f\xe9\x06");
        block.resize(block.len() + 1000, b'a');
    }
    stream
        .write_all(&frame(HEADERS, END_STREAM | END_HEADERS, 1, &block))
        .await
        .expect("writes");
    stream
        .write_all(&frame(GOAWAY, 0, 0, &[0; 8]))
        .await
        .expect("writes");
    goodbye(&mut stream).await;
    assert_eq!(pod.requests(), 0);
    until_metrics(&fixture, "counted", |text| text.contains(&fault("header_list"))).await;
}

#[tokio::test]
async fn the_requests_of_one_connection_are_spread_over_all_pods() {
    for h2c in [false, true] {
        let mut fixture = Fixture::with_route(|spec| spec.ports[0].h2c = h2c).await;
        let pods = [FakePod::new().await, FakePod::new().await];
        fixture.publish(&[&pods[0], &pods[1]]);
        let stream = TcpStream::connect(fixture.listen).await.expect("connects");
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .expect("HTTP/2");
        tokio::spawn(connection);
        let all = (0..20).map(|_| {
            let mut sender = sender.clone();
            async move {
                let request = Request::post("http://web/delay/100")
                    .header("content-type", "application/grpc")
                    .body(Full::<Bytes>::default())
                    .expect("a request");
                sender.send_request(request).await.expect("an answer").status()
            }
        });
        let statuses = futures::future::join_all(all).await;
        assert!(statuses.iter().all(|status| *status == StatusCode::OK));
        // They overlap, so the least loaded pod alternates.
        assert_eq!([pods[0].requests(), pods[1].requests()], [10, 10], "h2c: {h2c}");
    }
}
