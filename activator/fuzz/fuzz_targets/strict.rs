//! The strict reader: no verdict depends on how the bytes are cut, and what it lets pass has one reading. hyper, which
//! reads it next, must find in it exactly the requests that a plain reader of RFC 9112 finds: it may refuse, but never see
//! another request or another body.
#![no_main]

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use activator::fuzzing::Strict;
use dormouse_activator_fuzz::pieces;
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Method, target and body.
type Message = (String, String, Vec<u8>);

fuzz_target!(|bytes: &[u8]| {
    let whole = Strict::new(65_536).read(bytes);
    let mut strict = Strict::new(65_536);
    let cut = pieces(bytes).into_iter().try_for_each(|piece| strict.read(piece));
    assert_eq!(
        whole.map_err(|(_, fault)| fault),
        cut.map_err(|(_, fault)| fault),
        "the verdict depends on the cuts"
    );
    let good = match whole {
        Ok(()) => bytes,
        Err((good, _)) => {
            assert!(good < bytes.len(), "a fault behind the bytes");
            &bytes[..good]
        }
    };
    // After an upgrade it is another protocol, if the answer says so.
    if find(&good.to_ascii_lowercase(), b"upgrade").is_some() {
        return;
    }
    let (expected, seen) = (plainly(good), by_hyper(good));
    assert!(
        seen.len() <= expected.len(),
        "hyper finds {seen:?}, there are {expected:?}"
    );
    for (seen, expected) in seen.iter().zip(&expected) {
        assert_eq!(alike(seen), alike(expected));
    }
});

/// hyper writes a scheme in small letters and an empty path as `/`, also before a query, which mean the same (RFC 3986 §6.2).
fn alike((method, target, body): &Message) -> Message {
    let mut target = target.to_ascii_lowercase();
    if let Some(authority) = target.find("://").map(|scheme| scheme + 3)
        && let Some(end) = target[authority..].find(['/', '?'])
        && target[authority + end..].starts_with('?')
    {
        target.insert(authority + end, '/');
    }
    (
        method.clone(),
        target.trim_end_matches('/').to_owned(),
        body.clone(),
    )
}

/// The messages that are whole, read without any doubt: what is doubtful has been refused.
fn plainly(mut rest: &[u8]) -> Vec<Message> {
    let mut messages = Vec::new();
    loop {
        while let Some(after) = rest.strip_prefix(b"\r\n") {
            rest = after;
        }
        let Some(end) = find(rest, b"\r\n\r\n") else {
            return messages;
        };
        let head = String::from_utf8_lossy(&rest[..end]).into_owned();
        rest = &rest[end + 4..];
        let mut lines = head.split("\r\n");
        let mut words = lines.next().unwrap_or_default().split(' ');
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let field = |wanted: &str| {
            head.split("\r\n")
                .skip(1)
                .filter_map(|line| line.split_once(':'))
                .find(|(name, _)| name.eq_ignore_ascii_case(wanted))
                .map(|(_, value)| value.trim().to_owned())
        };
        let body = if field("transfer-encoding").is_some() {
            let Some((body, after)) = chunks(rest) else {
                return messages;
            };
            rest = after;
            body
        } else {
            let length = field("content-length").map_or(0, |value| value.parse().unwrap_or(usize::MAX));
            let Some(body) = rest.get(..length) else {
                return messages;
            };
            rest = &rest[length..];
            body.to_vec()
        };
        messages.push((method.to_owned(), target.to_owned(), body));
    }
}

/// A chunked body and what follows it, when it is whole.
fn chunks(mut rest: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut body = Vec::new();
    loop {
        let end = find(rest, b"\r\n")?;
        let size = String::from_utf8_lossy(&rest[..end]).into_owned();
        let size = usize::from_str_radix(size.split(';').next()?, 16).ok()?;
        rest = &rest[end + 2..];
        if size == 0 {
            break;
        }
        body.extend_from_slice(rest.get(..size)?);
        rest = rest.get(size + 2..)?;
    }
    loop {
        let end = find(rest, b"\r\n")?;
        rest = &rest[end + 2..];
        if end == 0 {
            return Some((body, rest));
        }
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// The messages whose bodies hyper has read to their end.
fn by_hyper(bytes: &[u8]) -> Vec<Message> {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let found = Arc::clone(&seen);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let (mut client, server) = tokio::io::duplex(1 << 20);
        client.write_all(bytes).await.expect("fits");
        client.shutdown().await.expect("shuts down");
        let service = hyper::service::service_fn(move |request: Request<Incoming>| {
            let found = Arc::clone(&found);
            async move {
                let (parts, body) = request.into_parts();
                if let Ok(body) = body.collect().await {
                    let target = parts.uri.to_string();
                    let message = (parts.method.to_string(), target, body.to_bytes().to_vec());
                    found.lock().expect("not poisoned").push(message);
                }
                Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
            }
        });
        let serving = hyper::server::conn::http1::Builder::new()
            .half_close(true)
            .max_header_size(65_536)
            .max_buf_size(65_536)
            .serve_connection(TokioIo::new(server), service);
        let reading = async {
            let mut answers = Vec::new();
            drop(client.read_to_end(&mut answers).await);
        };
        drop(tokio::join!(serving, reading));
    });
    let seen = seen.lock().expect("not poisoned").clone();
    seen
}
