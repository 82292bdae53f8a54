//! The API over HTTP: who may ask, and through which door.
//!
//! This API can start programs, so a request needs a token, and its `Host` must be this machine's loopback: a web page
//! that had its name resolve to 127.0.0.1 cannot use it. The token comes as `Authorization: Bearer` or as the first part
//! of the path, [`path_of`]: `kubectl` shows no token to a server without TLS, but keeps the path of its server's URL.
//! (It would send a password in that URL too, with `--raw` as well, but then refuses to `exec` without saying why.)

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::router::refusal;
use super::status::ApiError;
use super::{Api, ApiBody, User};

/// How long a client may take to send a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// How long open requests may go on after `shutdown`. Watches are ended at once.
const DRAIN: Duration = Duration::from_secs(2);

/// Most connections at once. Each watch over HTTP/1.1 holds one, so 1,000 pods with a few watches each fit.
const MOST_CONNECTIONS: usize = 8_192;

/// Serves `api` on `listener` (HTTP/1.1 and HTTP/2 with prior knowledge) until `shutdown`.
///
/// # Cancel safety
/// Dropping it closes the listener; connections that are open live until their clients leave.
pub async fn serve(api: Api, listener: TcpListener, shutdown: CancellationToken) {
    let tasks = TaskTracker::new();
    let stop = shutdown.child_token();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most likely: let some close.
                tracing::warn!(%error, "cannot accept a connection to the API");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let down = api.stream_token();
        if tasks.len() >= MOST_CONNECTIONS || down.is_cancelled() {
            drop(stream);
            continue;
        }
        tasks.spawn(connection(api.clone(), stream, stop.clone(), down));
    }
    drop(listener);
    api.disconnect_all();
    tasks.close();
    if tokio::time::timeout(DRAIN, tasks.wait()).await.is_err() {
        tracing::debug!(open = tasks.len(), "connections to the API outlived its shutdown");
    }
}

/// Serves one connection: `stop` lets it end, `down` cuts it.
async fn connection(api: Api, stream: TcpStream, stop: CancellationToken, down: CancellationToken) {
    // Answers are small and awaited.
    drop(stream.set_nodelay(true));
    let service = service_fn(|request| {
        let api = api.clone();
        async move { Ok::<_, Infallible>(answer(&api, request).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(1_000);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(DRAIN, connection.as_mut()).await.unwrap_or(Ok(()))
        }
        // A restart of the API cuts connections, idle ones too.
        () = down.cancelled() => Ok(()),
    };
    if let Err(error) = result {
        tracing::debug!(error = %error, "connection to the API ended");
    }
}

/// The path below which the API is served to whoever knows `token`, for the `server` of a kubeconfig:
/// `http://127.0.0.1:8001` followed by this.
#[must_use]
pub fn path_of(token: &str) -> String {
    format!("{PREFIX}{token}")
}

const PREFIX: &str = "/token/";

/// Takes the token out of a path that has one.
fn take_token(request: &mut http::Request<Incoming>) -> Option<String> {
    let path = request.uri().path_and_query()?.as_str();
    let rest = path.strip_prefix(PREFIX)?;
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (token, rest) = (rest[..end].to_owned(), &rest[end..]);
    let rest = if rest.starts_with('/') {
        rest.to_owned()
    } else {
        format!("/{rest}")
    };
    let mut parts = request.uri().clone().into_parts();
    parts.path_and_query = Some(rest.parse().ok()?);
    *request.uri_mut() = http::Uri::from_parts(parts).ok()?;
    Some(token)
}

async fn answer(api: &Api, mut request: http::Request<Incoming>) -> http::Response<ApiBody> {
    let host = request
        .uri()
        .authority()
        .map(|authority| authority.as_str().to_owned())
        .or_else(|| {
            request
                .headers()
                .get(http::header::HOST)?
                .to_str()
                .ok()
                .map(str::to_owned)
        })
        .unwrap_or_default();
    if !is_loopback(&host) {
        return refusal(&ApiError::forbidden_host(&host));
    }
    let in_path = take_token(&mut request);
    let user = match in_path {
        Some(token) => api.user_of(&token),
        None => user(api, &request),
    };
    match user {
        Some(user) => api.handle(&user, request).await,
        None => refusal(&ApiError::unauthorized()),
    }
}

fn user(api: &Api, request: &http::Request<Incoming>) -> Option<User> {
    let header = request
        .headers()
        .get(http::header::AUTHORIZATION)?
        .to_str()
        .ok()?;
    let (scheme, token) = header.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then(|| api.user_of(token.trim()))?
}

/// Whether a `Host` names this machine's loopback: by name, by address, or by a pod's or Service's address.
fn is_loopback(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !name.is_empty() => name,
        _ => host,
    };
    if name.eq_ignore_ascii_case("localhost") {
        return true;
    }
    let bare = name
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(name);
    match bare.parse::<IpAddr>() {
        Ok(IpAddr::V4(address)) => {
            let [first, second, ..] = address.octets();
            address == Ipv4Addr::LOCALHOST || first == 127 && matches!(second & 0xf0, 64 | 96)
        }
        Ok(IpAddr::V6(address)) => address.is_loopback(),
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::is_loopback;

    #[test]
    fn only_loopback_hosts_are_let_in() {
        for (host, expected) in [
            ("localhost:8001", true),
            ("LOCALHOST", true),
            ("127.0.0.1:8001", true),
            ("[::1]:8001", true),
            ("127.64.0.5:80", true),
            ("127.96.0.1:443", true),
            ("127.112.0.1:443", false),
            ("evil.example:8001", false),
            ("localhost.evil.example", false),
            ("10.0.0.1", false),
            ("", false),
        ] {
            assert_eq!(is_loopback(host), expected, "{host}");
        }
    }
}
