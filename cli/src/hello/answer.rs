//! From a request to its answer.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Request, Response, StatusCode};
use tokio::time::Instant;

use super::stats::{InFlight, Stats};

/// Longest `/delay` and pause of `/stream`, milliseconds: an hour.
const LONGEST_MS: u64 = 3_600_000;
/// Most lines of `/stream`.
const MOST_LINES: u64 = 1_000_000;

type Body = UnsyncBoxBody<Bytes, hyper::Error>;

pub(super) struct App {
    pub(super) name: String,
    /// From when on it is ready; `None`: never.
    pub(super) ready_at: Option<Instant>,
    pub(super) fails: Fails,
    pub(super) stats: Arc<Stats>,
}

/// Which greetings fail: evenly spread, so that few of them show the share already.
#[derive(Debug)]
pub(super) struct Fails {
    percent: u64,
    seen: AtomicU64,
}

impl Fails {
    pub(super) fn new(percent: u8) -> Self {
        Self {
            percent: u64::from(percent),
            seen: AtomicU64::new(0),
        }
    }

    fn next(&self) -> bool {
        let before = self.seen.fetch_add(1, Ordering::Relaxed);
        let failed = |requests: u64| requests.wrapping_mul(self.percent) / 100;
        failed(before.wrapping_add(1)) > failed(before)
    }
}

/// What a path asks for.
#[derive(Debug, PartialEq, Eq)]
enum Ask {
    Greeting,
    Delay(Duration),
    Status(StatusCode),
    Stream { lines: u64, pause: Duration },
    Echo,
    Exit(i32),
    Stats,
    Health,
    Nonsense(&'static str),
}

impl App {
    pub(super) async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let ask = ask(request.uri().path(), request.uri().query());
        match ask {
            Ask::Stats => return self.stats_page(),
            Ask::Health => return self.health(),
            _ => {}
        }
        let in_flight = self.stats.begin();
        let together = in_flight.together;
        let mut response = self.counted(ask, request, in_flight).await;
        response
            .headers_mut()
            .insert("hello-in-flight", HeaderValue::from(together));
        response
    }

    async fn counted(&self, ask: Ask, request: Request<Incoming>, in_flight: InFlight) -> Response<Body> {
        let (status, text) = match ask {
            Ask::Delay(delay) => {
                tokio::time::sleep(delay).await;
                (
                    StatusCode::OK,
                    format!("Hello from {} after {} ms\n", self.name, delay.as_millis()),
                )
            }
            Ask::Status(status) => (status, format!("{status}\n")),
            Ask::Stream { lines, pause } => return Response::new(hold(line_body(lines, pause), in_flight)),
            Ask::Echo => return echo(request, in_flight),
            Ask::Exit(code) => {
                tracing::warn!(code, "exiting, as asked to");
                std::process::exit(code)
            }
            Ask::Nonsense(what) => (StatusCode::BAD_REQUEST, format!("{what}\n")),
            Ask::Greeting if self.fails.next() => (
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("{} fails, as asked to\n", self.name),
            ),
            Ask::Greeting | Ask::Stats | Ask::Health => {
                (StatusCode::OK, format!("Hello from {}\n", self.name))
            }
        };
        let mut response = text_response(status, text);
        *response.body_mut() = hold(std::mem::take(response.body_mut()), in_flight);
        response
    }

    fn health(&self) -> Response<Body> {
        match self.ready_at {
            Some(at) if Instant::now() >= at => text_response(StatusCode::OK, "ready\n".to_owned()),
            Some(_) => text_response(StatusCode::SERVICE_UNAVAILABLE, "booting\n".to_owned()),
            None => text_response(
                StatusCode::SERVICE_UNAVAILABLE,
                "never ready, as asked to\n".to_owned(),
            ),
        }
    }

    fn stats_page(&self) -> Response<Body> {
        let mut response = text_response(StatusCode::OK, format!("{}\n", self.stats.json(&self.name)));
        response
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }
}

fn ask(path: &str, query: Option<&str>) -> Ask {
    let mut parts = path.trim_matches('/').splitn(2, '/');
    let (first, rest) = (parts.next().unwrap_or(""), parts.next());
    let number = |most: u64| {
        rest.and_then(|text| text.parse::<u64>().ok())
            .filter(|number| *number <= most)
    };
    match first {
        "delay" => number(LONGEST_MS).map_or(
            Ask::Nonsense("/delay/MS takes milliseconds from 0 to 3600000"),
            |ms| Ask::Delay(Duration::from_millis(ms)),
        ),
        "status" => number(599)
            .filter(|code| *code >= 200)
            .and_then(|code| StatusCode::from_u16(u16::try_from(code).ok()?).ok())
            .map_or(
                Ask::Nonsense("/status/CODE takes a code from 200 to 599"),
                Ask::Status,
            ),
        "stream" => number(MOST_LINES).map_or(
            Ask::Nonsense("/stream/N takes a number of lines from 0 to 1000000"),
            |lines| Ask::Stream {
                lines,
                pause: pause(query),
            },
        ),
        "exit" => number(255)
            .and_then(|code| i32::try_from(code).ok())
            .map_or(Ask::Nonsense("/exit/CODE takes a code from 0 to 255"), Ask::Exit),
        "echo" => Ask::Echo,
        "stats" => Ask::Stats,
        "healthz" => Ask::Health,
        _ => Ask::Greeting,
    }
}

fn pause(query: Option<&str>) -> Duration {
    let ms = query
        .into_iter()
        .flat_map(|query| query.split('&'))
        .find_map(|pair| pair.strip_prefix("ms=")?.parse::<u64>().ok())
        .unwrap_or(100);
    Duration::from_millis(ms.min(LONGEST_MS))
}

fn text_response(status: StatusCode, text: String) -> Response<Body> {
    let body = if status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED {
        Bytes::new()
    } else {
        Bytes::from(text)
    };
    let mut response = Response::new(Full::new(body).map_err(never).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}

fn never(error: Infallible) -> hyper::Error {
    match error {}
}

/// Lines, each but the first after a pause.
fn line_body(lines: u64, pause: Duration) -> Body {
    let lines = stream::unfold(0, move |line| async move {
        if line == lines {
            return None;
        }
        if line > 0 {
            tokio::time::sleep(pause).await;
        }
        let frame = Frame::data(Bytes::from(format!("line {}\n", line + 1)));
        Some((Ok(frame), line + 1))
    });
    StreamBody::new(lines).boxed_unsync()
}

fn echo(request: Request<Incoming>, in_flight: InFlight) -> Response<Body> {
    let kind = request.headers().get(CONTENT_TYPE).cloned();
    let mut response = Response::new(hold(request.into_body().boxed_unsync(), in_flight));
    if let Some(kind) = kind {
        response.headers_mut().insert(CONTENT_TYPE, kind);
    }
    response
}

/// Ties a request in flight to its answer's body: it ends when the body has been handed over, or the client is gone.
fn hold(body: Body, in_flight: InFlight) -> Body {
    Held {
        body,
        _in_flight: in_flight,
    }
    .boxed_unsync()
}

/// A body with its request. What it says of its size stays, so that a short answer has its length.
struct Held {
    body: Body,
    _in_flight: InFlight,
}

impl hyper::body::Body for Held {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_greetings_fail_as_were_asked_for_evenly_spread() {
        for (percent, pattern) in [(0, [0; 4]), (10, [1; 4]), (25, [2, 3, 2, 3]), (100, [10; 4])] {
            let fails = Fails::new(percent);
            let found = pattern.map(|_| (0..10).filter(|_| fails.next()).count());
            assert_eq!(found, pattern, "{percent} %");
        }
    }

    #[test]
    fn paths_and_what_they_ask_for() {
        let ms = Duration::from_millis;
        let rows = [
            ("/", None, Ask::Greeting),
            ("/anything/else", None, Ask::Greeting),
            ("/delay/250", None, Ask::Delay(ms(250))),
            ("/status/503", None, Ask::Status(StatusCode::SERVICE_UNAVAILABLE)),
            (
                "/stream/3",
                None,
                Ask::Stream {
                    lines: 3,
                    pause: ms(100),
                },
            ),
            (
                "/stream/3",
                Some("a=b&ms=5"),
                Ask::Stream {
                    lines: 3,
                    pause: ms(5),
                },
            ),
            (
                "/stream/3",
                Some("ms=99999999999"),
                Ask::Stream {
                    lines: 3,
                    pause: ms(LONGEST_MS),
                },
            ),
            ("/exit/3", None, Ask::Exit(3)),
            ("/echo", None, Ask::Echo),
            ("/stats", None, Ask::Stats),
            ("/healthz/", None, Ask::Health),
        ];
        for (path, query, want) in rows {
            assert_eq!(ask(path, query), want, "{path}");
        }
        for path in [
            "/delay/x",
            "/delay",
            "/delay/3600001",
            "/status/199",
            "/status/600",
            "/stream/-1",
            "/exit/256",
        ] {
            assert!(matches!(ask(path, None), Ask::Nonsense(_)), "{path}");
        }
    }
}
