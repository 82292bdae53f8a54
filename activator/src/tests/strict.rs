//! Malformed and ambiguous HTTP/1.1, over real sockets: what each client is answered, and what the pod saw. RFC 9112.

use parking_lot::Mutex;

use super::protocol::raw;
use super::*;

/// Requests as a pod read them, one text each: request line, fields in order of name, blank line, body, trailers.
type Log = Arc<Mutex<Vec<String>>>;

/// A pod that writes down every request it has read to its end.
async fn a_witness() -> (SocketAddr, Log) {
    let log = Log::default();
    let listener = TcpListener::bind(SocketAddr::new(fresh_address(), 0))
        .await
        .expect("binds");
    let address = listener.local_addr().expect("bound");
    let all = Arc::clone(&log);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("accepts");
            let log = Arc::clone(&all);
            let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                let log = Arc::clone(&log);
                async move {
                    let (parts, body) = request.into_parts();
                    let body = body.collect().await?;
                    let trailers = body.trailers().cloned();
                    let mut fields: Vec<String> = parts
                        .headers
                        .iter()
                        .map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())))
                        .collect();
                    fields.sort();
                    let mut text = format!("{} {}\n{}\n\n", parts.method, parts.uri, fields.join("\n"));
                    text.push_str(&String::from_utf8_lossy(&body.to_bytes()));
                    for (name, value) in trailers.iter().flatten() {
                        text.push_str(&format!("\n{name}: {}", value.to_str().unwrap_or("?")));
                    }
                    log.lock().push(text);
                    Ok::<_, hyper::Error>(Response::new(Full::new(Bytes::from("ok"))))
                }
            });
            tokio::spawn(
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    (address, log)
}

const H: &str = "host: web\r\n";
const C: &str = "connection: close\r\n";

/// What is refused: what is wrong, the bytes, what the client is told.
fn refused() -> Vec<(&'static str, String, &'static str)> {
    let get = |fields: &str| format!("GET / HTTP/1.1\r\n{H}{fields}\r\n");
    let post = |fields: &str, body: &str| format!("POST / HTTP/1.1\r\n{H}{fields}\r\n{body}");
    let chunked = |body: &str| format!("POST / HTTP/1.1\r\n{H}transfer-encoding: chunked\r\n\r\n{body}");
    let host = |host: &str| format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n");
    let line = |line: &str| format!("{line}\r\n{H}\r\n");
    const LINE: &str = "a request line that is not METHOD TARGET VERSION with one space between";
    const VERSION: &str = "a version other than HTTP/1.1 and HTTP/1.0";
    const TARGET: &str = "a target that is neither a path nor an http address";
    const NUMBER: &str = "a Content-Length that is no number";
    const BOTH: &str = "both Content-Length and Transfer-Encoding";
    const CODING: &str = "a Transfer-Encoding other than chunked";
    const BARE: &str = "a line that ends without a carriage return";
    const CONTROL: &str = "a control character in a field";
    const HOST: &str = "a Host that is no host";
    const SIZE: &str = "a chunk's size that is no number";
    vec![
        (
            "CL.TE",
            post(
                "content-length: 4\r\ntransfer-encoding: chunked\r\n",
                "0\r\n\r\nG",
            ),
            BOTH,
        ),
        (
            "TE.CL",
            post(
                "transfer-encoding: chunked\r\ncontent-length: 4\r\n",
                "0\r\n\r\nG",
            ),
            BOTH,
        ),
        (
            "CL.TE, length 0",
            post("content-length: 0\r\ntransfer-encoding: chunked\r\n", "0\r\n\r\n"),
            BOTH,
        ),
        (
            "two lengths",
            post("content-length: 1\r\ncontent-length: 2\r\n", "ab"),
            "Content-Length twice",
        ),
        (
            "a length twice",
            post("content-length: 1\r\ncontent-length: 1\r\n", "a"),
            "Content-Length twice",
        ),
        ("a list of lengths", post("content-length: 1, 1\r\n", "a"), NUMBER),
        ("a negative length", post("content-length: -1\r\n", ""), NUMBER),
        (
            "a length with a sign",
            post("content-length: +1\r\n", "a"),
            NUMBER,
        ),
        ("a length in hex", post("content-length: 0x1\r\n", "a"), NUMBER),
        ("an empty length", post("content-length:\r\n", ""), NUMBER),
        (
            "a length with a blank inside",
            post("content-length: 1 0\r\n", "a"),
            NUMBER,
        ),
        (
            "a length beyond 64 bits",
            post("content-length: 99999999999999999999\r\n", ""),
            NUMBER,
        ),
        (
            "TE.TE",
            post("transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n", ""),
            "Transfer-Encoding twice",
        ),
        (
            "chunked and identity",
            post("transfer-encoding: chunked, identity\r\n", ""),
            CODING,
        ),
        (
            "gzip, chunked",
            post("transfer-encoding: gzip, chunked\r\n", ""),
            CODING,
        ),
        ("identity", post("transfer-encoding: identity\r\n", ""), CODING),
        ("xchunked", post("transfer-encoding: xchunked\r\n", ""), CODING),
        (
            "chunked with a parameter",
            post("transfer-encoding: chunked;a=b\r\n", ""),
            CODING,
        ),
        (
            "chunked behind a vertical tab",
            post("transfer-encoding: \u{b}chunked\r\n", ""),
            CONTROL,
        ),
        ("an empty coding", post("transfer-encoding:\r\n", ""), CODING),
        (
            "chunked in HTTP/1.0",
            format!("POST / HTTP/1.0\r\n{H}transfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
            "Transfer-Encoding in HTTP/1.0",
        ),
        (
            "a folded field",
            get("x: a\r\n b\r\n"),
            "a field that goes on in the next line",
        ),
        (
            "a folded field by tab",
            get("x: a\r\n\tb\r\n"),
            "a field that goes on in the next line",
        ),
        (
            "a fold before any field",
            format!("GET / HTTP/1.1\r\n {H}\r\n"),
            "a field that goes on in the next line",
        ),
        (
            "a bare LF after the line",
            format!("GET / HTTP/1.1\n{H}\r\n"),
            BARE,
        ),
        (
            "a bare LF after a field",
            "GET / HTTP/1.1\r\nhost: web\nx: y\r\n\r\n".into(),
            BARE,
        ),
        (
            "a bare LF at the end",
            "GET / HTTP/1.1\r\nhost: web\r\n\n".into(),
            BARE,
        ),
        ("a bare LF first", format!("\nGET / HTTP/1.1\r\n{H}\r\n"), BARE),
        ("a bare CR in a value", get("x: a\rb\r\n"), CONTROL),
        ("a NUL in a value", get("x: a\0b\r\n"), CONTROL),
        ("a DEL in a value", get("x: a\u{7f}b\r\n"), CONTROL),
        ("an escape in a value", get("x: a\u{1b}b\r\n"), CONTROL),
        (
            "a NUL in a name",
            get("x\0y: a\r\n"),
            "a field name that is no token",
        ),
        (
            "a blank before the colon",
            get("content-length : 1\r\n"),
            "a blank before a field's colon",
        ),
        (
            "a tab before the colon",
            get("transfer-encoding\t: chunked\r\n"),
            "a blank before a field's colon",
        ),
        (
            "a blank in a name",
            get("x y: a\r\n"),
            "a field name that is no token",
        ),
        ("no name", get(": a\r\n"), "a field name that is no token"),
        (
            "a name in brackets",
            get("(x): a\r\n"),
            "a field name that is no token",
        ),
        (
            "a name beyond ASCII",
            get("é: a\r\n"),
            "a field name that is no token",
        ),
        ("no colon", get("host\r\n"), "a field without a colon"),
        (
            "no Host",
            "GET / HTTP/1.1\r\n\r\n".into(),
            "an HTTP/1.1 request needs a Host field",
        ),
        ("two Hosts", get(H), "Host twice"),
        (
            "two Hosts in HTTP/1.0",
            format!("GET / HTTP/1.0\r\n{H}{H}\r\n"),
            "Host twice",
        ),
        ("a Host with a path", host("web/x"), HOST),
        ("a Host with a user", host("user@web"), HOST),
        ("a list of Hosts", host("a, b"), HOST),
        ("a Host with a bad port", host("web:http"), HOST),
        ("a Host with a long port", host("web:123456"), HOST),
        ("a Host with half a bracket", host("[::1"), HOST),
        ("HTTP/0.9", "GET /\r\n".into(), LINE),
        ("HTTP/1.2", line("GET / HTTP/1.2"), VERSION),
        ("HTTP/2.0 as text", line("GET / HTTP/2.0"), VERSION),
        ("http/1.1", line("GET / http/1.1"), VERSION),
        ("HTTP/1.10", line("GET / HTTP/1.10"), VERSION),
        ("two blanks", line("GET  / HTTP/1.1"), LINE),
        ("a blank in the target", line("GET /a b HTTP/1.1"), LINE),
        ("a blank first", line(" GET / HTTP/1.1"), LINE),
        ("a blank last", line("GET / HTTP/1.1 "), LINE),
        ("tabs for blanks", line("GET\t/\tHTTP/1.1"), LINE),
        ("no method", line("/ HTTP/1.1"), LINE),
        (
            "a method that is no token",
            line("G@T / HTTP/1.1"),
            "a method that is no token",
        ),
        ("a relative target", line("GET index.html HTTP/1.1"), TARGET),
        ("an authority as target", line("GET web:80 HTTP/1.1"), TARGET),
        ("an asterisk for GET", line("GET * HTTP/1.1"), TARGET),
        ("another scheme", line("GET ftp://web/ HTTP/1.1"), TARGET),
        (
            "an absolute target with a user",
            line("GET http://user@web/ HTTP/1.1"),
            HOST,
        ),
        (
            "an absolute target without a host",
            line("GET http:/// HTTP/1.1"),
            "a target without a host",
        ),
        ("a fragment", line("GET /#a HTTP/1.1"), "a target with a fragment"),
        (
            "a target beyond ASCII",
            line("GET /é HTTP/1.1"),
            "a target with bytes that must be percent-encoded",
        ),
        (
            "a NUL in the target",
            line("GET /\0 HTTP/1.1"),
            "a target with bytes that must be percent-encoded",
        ),
        (
            "CONNECT",
            line("CONNECT web:80 HTTP/1.1"),
            "CONNECT is refused: this is not a forward proxy",
        ),
        ("a chunk without a size", chunked("\r\nabc\r\n0\r\n\r\n"), SIZE),
        ("a size with 0x", chunked("0x3\r\nabc\r\n0\r\n\r\n"), SIZE),
        ("a negative size", chunked("-3\r\nabc\r\n0\r\n\r\n"), SIZE),
        ("a size with a blank", chunked("3 \r\nabc\r\n0\r\n\r\n"), SIZE),
        (
            "a size beyond 64 bits",
            chunked("10000000000000003\r\nabc\r\n0\r\n\r\n"),
            SIZE,
        ),
        ("a size line with a bare LF", chunked("3\nabc\r\n0\r\n\r\n"), BARE),
        (
            "a chunk longer than its size",
            chunked("2\r\nabc\r\n0\r\n\r\n"),
            "a chunk that is longer than its size",
        ),
        (
            "a chunk that ends in a bare LF",
            chunked("3\r\nabc\n0\r\n\r\n"),
            BARE,
        ),
        (
            "a NUL in an extension",
            chunked("3;a=\0\r\nabc\r\n0\r\n\r\n"),
            "a control character in a chunk's extension",
        ),
        (
            "a huge extension",
            chunked(&format!("3;{}\r\nabc\r\n0\r\n\r\n", "a".repeat(2000))),
            "a chunk's size in a line of more than 1 KiB",
        ),
        (
            "a folded trailer",
            chunked("0\r\nx: a\r\n b\r\n\r\n"),
            "a field that goes on in the next line",
        ),
        ("a trailer with a bare LF", chunked("0\r\nx: a\n\r\n"), BARE),
        (
            "a trailer without a colon",
            chunked("0\r\nx\r\n\r\n"),
            "a field without a colon",
        ),
        (
            "bytes after a request to upgrade",
            format!(
                "GET / HTTP/1.1\r\n{H}connection: upgrade\r\nupgrade: x\r\n\r\nGET / HTTP/1.1\r\n{H}\r\n"
            ),
            "bytes after a request to upgrade, before its answer",
        ),
    ]
}

#[tokio::test]
async fn what_has_two_readings_is_refused_by_name_and_no_pod_sees_it() {
    let mut fixture = Fixture::new().await;
    let (pod, log) = a_witness().await;
    fixture.publish_as(&[(pod, true, false)]);
    let rows = refused();
    assert!(rows.len() >= 60, "{}", rows.len());
    for (what, bytes, told) in rows {
        let answer = raw(fixture.listen, &bytes).await;
        // The request to upgrade itself is sound, and is answered; what follows it is not.
        let (last, seen) = match what {
            "bytes after a request to upgrade" => (answer.rfind("HTTP/1.1 400").unwrap_or(0), 1),
            _ => (0, 0),
        };
        let answer = &answer[last..];
        assert!(
            answer.starts_with("HTTP/1.1 400 Bad Request\r\n"),
            "{what}: {answer}"
        );
        assert!(answer.contains("\r\nconnection: close\r\n"), "{what}: {answer}");
        assert!(answer.ends_with(&format!("\r\n\r\n{told}\n")), "{what}: {answer}");
        assert_eq!(std::mem::take(&mut *log.lock()).len(), seen, "{what}");
    }
}

#[tokio::test]
async fn what_has_one_reading_reaches_the_pod_with_that_meaning() {
    let mut fixture = Fixture::new().await;
    let (pod, log) = a_witness().await;
    fixture.publish_as(&[(pod, true, false)]);
    let f = "x-forwarded-for: 127.0.0.1";
    let get = |line: &str, fields: &str| format!("{line}\r\n{fields}{C}\r\n");
    let chunked = |body: &str| format!("POST / HTTP/1.1\r\n{H}{C}transfer-encoding: chunked\r\n\r\n{body}");
    let rows: Vec<(&str, String, String)> = vec![
        (
            "a line break first",
            get("\r\nGET / HTTP/1.1", H),
            format!("GET /\nhost: web\n{f}\n\n"),
        ),
        (
            "an absolute target",
            get("GET http://other:81/a?b HTTP/1.1", H),
            format!("GET /a?b\nhost: other:81\n{f}\n\n"),
        ),
        (
            "an asterisk",
            get("OPTIONS * HTTP/1.1", H),
            format!("OPTIONS *\nhost: web\n{f}\n\n"),
        ),
        (
            "an empty Host",
            get("GET / HTTP/1.1", "host:\r\n"),
            format!("GET /\nhost: \n{f}\n\n"),
        ),
        (
            "HTTP/1.0 without a Host",
            "GET / HTTP/1.0\r\n\r\n".into(),
            format!("GET /\nhost: localhost\n{f}\n\n"),
        ),
        (
            "an IPv6 Host",
            get("GET / HTTP/1.1", "host: [::1]:80\r\n"),
            format!("GET /\nhost: [::1]:80\n{f}\n\n"),
        ),
        (
            "blanks around a value",
            get("GET / HTTP/1.1", "host: \t web \t\r\n"),
            format!("GET /\nhost: web\n{f}\n\n"),
        ),
        (
            "bytes beyond ASCII",
            get("GET / HTTP/1.1", "host: web\r\nx: é\r\n"),
            format!("GET /\nhost: web\n{f}\nx: é\n\n"),
        ),
        (
            "a field twice",
            get("GET / HTTP/1.1", "host: web\r\na: 1\r\na: 2\r\n"),
            format!("GET /\na: 1\na: 2\nhost: web\n{f}\n\n"),
        ),
        (
            "fields for one connection",
            format!(
                "GET / HTTP/1.1\r\n{H}connection: close, x-mine\r\nx-mine: 1\r\nkeep-alive: 5\r\nte: gzip\r\nproxy-connection: a\r\n\r\n"
            ),
            format!("GET /\nhost: web\n{f}\n\n"),
        ),
        (
            "a nominated field that says where or how much",
            format!(
                "POST / HTTP/1.1\r\n{H}connection: close, host, content-length\r\ncontent-length: 2\r\n\r\nab"
            ),
            format!("POST /\ncontent-length: 2\nhost: web\n{f}\n\nab"),
        ),
        (
            "TE: trailers",
            get("GET / HTTP/1.1", "host: web\r\nte: trailers\r\n"),
            format!("GET /\nconnection: te\nhost: web\nte: trailers\n{f}\n\n"),
        ),
        (
            "TE: trailers for this connection",
            format!("GET / HTTP/1.1\r\n{H}connection: close, TE\r\nte: trailers\r\n\r\n"),
            format!("GET /\nconnection: te\nhost: web\nte: trailers\n{f}\n\n"),
        ),
        (
            "Upgrade without Connection",
            get("GET / HTTP/1.1", "host: web\r\nupgrade: h2c\r\n"),
            format!("GET /\nhost: web\n{f}\n\n"),
        ),
        (
            "Upgrade in HTTP/1.0",
            format!("GET / HTTP/1.0\r\n{H}connection: upgrade\r\nupgrade: x\r\n\r\n"),
            format!("GET /\nhost: web\n{f}\n\n"),
        ),
        (
            "a body of length 0",
            get("POST / HTTP/1.1", "host: web\r\ncontent-length: 0\r\n"),
            format!("POST /\ncontent-length: 0\nhost: web\n{f}\n\n"),
        ),
        (
            "chunks",
            chunked("3\r\nabc\r\n0A;x=y\r\n0123456789\r\n0\r\n\r\n"),
            format!("POST /\nhost: web\ntransfer-encoding: chunked\n{f}\n\nabc0123456789"),
        ),
        (
            "trailers nobody announced",
            chunked("1\r\na\r\n0\r\nhost: evil\r\ncontent-length: 7\r\nx: y\r\n\r\n"),
            format!("POST /\nhost: web\ntransfer-encoding: chunked\n{f}\n\na"),
        ),
        (
            "a GET with a body",
            format!("GET / HTTP/1.1\r\n{H}{C}content-length: 3\r\n\r\nabc"),
            format!("GET /\ncontent-length: 3\nhost: web\n{f}\n\nabc"),
        ),
        (
            "an expectation that nobody knows",
            format!("POST / HTTP/1.1\r\n{H}{C}expect: x\r\ncontent-length: 1\r\n\r\na"),
            format!("POST /\ncontent-length: 1\nexpect: x\nhost: web\n{f}\n\na"),
        ),
        (
            "our own fields",
            get("GET / HTTP/1.1", "host: web\r\ndormouse-hop: x\r\n"),
            format!("GET /\nhost: web\n{f}\n\n"),
        ),
    ];
    for (what, bytes, wanted) in rows {
        let answer = raw(fixture.listen, &bytes).await;
        assert!(answer.contains(" 200 OK\r\n"), "{what}: {answer}");
        assert_eq!(std::mem::take(&mut *log.lock()), [wanted], "{what}");
    }
}

#[tokio::test]
async fn heads_that_are_too_large_have_their_own_answers() {
    let mut fixture = Fixture::new().await;
    let (pod, log) = a_witness().await;
    fixture.publish_as(&[(pod, true, false)]);
    let field = format!("x: {}\r\n", "a".repeat(1000));
    for (what, bytes, status) in [
        (
            "one long field",
            format!("GET / HTTP/1.1\r\n{H}x: {}\r\n\r\n", "a".repeat(70_000)),
            "431",
        ),
        (
            "much in many fields",
            format!("GET / HTTP/1.1\r\n{H}{}\r\n", field.repeat(70)),
            "431",
        ),
        (
            "more than 100 fields",
            format!("GET / HTTP/1.1\r\n{H}{}\r\n", "x: a\r\n".repeat(101)),
            "431",
        ),
    ] {
        let answer = raw(fixture.listen, &bytes).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{what}: {answer}"
        );
        assert!(log.lock().is_empty(), "{what}");
    }
}

#[tokio::test]
async fn a_fault_after_a_good_request_does_not_cost_it_its_answer() {
    let mut fixture = Fixture::new().await;
    let (pod, log) = a_witness().await;
    fixture.publish_as(&[(pod, true, false)]);
    let bytes = format!("GET /good HTTP/1.1\r\n{H}\r\nGET /bad HTTP/1.1\n{H}\r\n");
    let answer = raw(fixture.listen, &bytes).await;
    let (good, bad) = (answer.find("200 OK"), answer.find("400 Bad Request"));
    assert!(good < bad && good.is_some(), "{answer}");
    let log = log.lock();
    assert!(log.len() == 1 && log[0].starts_with("GET /good\n"), "{log:?}");
}
