//! The waiting page: what a browser gets that opens a sleeping Service, in place of a blank tab.
//!
//! A navigation is answered at once with a small page, 503 and `Retry-After`: it is not the Service's answer, so nobody
//! should keep, index or count it as one. The page then asks the same address for progress, with a header of ours. That
//! request never reaches a pod: it is held here until something has changed. At the end the browser opens the address
//! again, once. Without a script the page opens it again every three seconds. Only GET is ever asked again.
//!
//! The page has no request that waits in line, so for the pool one waits in its place, whoever looks: it wakes the pool
//! and keeps its wake going as a held request does, for as long as a held request may.

mod theme;
mod themes;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ACCEPT, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, RANGE, RETRY_AFTER,
    UPGRADE_INSECURE_REQUESTS, USER_AGENT, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{Either, Full};
use hyper::body::Body;

use crate::account::{Counts, Use};
use crate::body::{ResponseBody, Upload};
use crate::hold;
use crate::hub::{self, Hub};
use crate::pool::{Enter, Pool};
use crate::request::Connection;
use crate::route::{Target, WaitingPage};
use crate::throttle::Kind;
use crate::wake;

use theme::Shown;
pub(crate) use themes::Themes;

/// By which the page asks for progress; its value is the phase that the page shows. Also in the answer, where it tells
/// that this is ours.
pub(crate) const WAIT_HEADER: HeaderName = HeaderName::from_static("dormouse-wait");

const SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");
const SEC_PURPOSE: HeaderName = HeaderName::from_static("sec-purpose");

/// Longest that a question for progress is held: less than proxies on the way wait for an answer.
const LONGEST: Duration = Duration::from_secs(20);
/// How often the phase is looked at meanwhile; that it is ready is told at once.
const LOOK: Duration = Duration::from_millis(200);

/// What a request has to do with the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asks {
    /// A browser opens an address.
    Page,
    /// The page asks how it goes.
    Progress,
}

/// Tells what browsers do from what programs do; `None`: a request like any other.
///
/// Browsers name a navigation by `Sec-Fetch-Mode`, but only over TLS and on localhost; elsewhere by
/// `Upgrade-Insecure-Requests`, which they send with nothing else. One that only fetches ahead shows no page.
pub(crate) fn asks<B: Body>(request: &Request<B>, is_ready: bool) -> Option<Asks> {
    let headers = request.headers();
    if *request.method() != Method::GET {
        return None;
    }
    if headers.contains_key(WAIT_HEADER) {
        return Some(Asks::Progress);
    }
    // Now it is all the same who asks: the usual request pays for one look.
    if is_ready || headers.contains_key(RANGE) || !request.body().is_end_stream() {
        return None;
    }
    let navigates = match headers.get(SEC_FETCH_MODE) {
        Some(mode) => mode == "navigate",
        None => headers
            .get(UPGRADE_INSECURE_REQUESTS)
            .is_some_and(|value| value == "1"),
    };
    let reads_html = headers
        .get_all(ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.contains("text/html"));
    (navigates && reads_html && !headers.contains_key(SEC_PURPOSE)).then_some(Asks::Page)
}

/// The page.
pub(crate) fn open(
    connection: &Connection,
    target: &Target,
    page: &WaitingPage,
    pool: &Arc<Pool>,
    request: &Request<Upload>,
) -> Response<ResponseBody> {
    let hub = &connection.hub;
    // Who opens it again after a failure wants another try.
    pool.forget_page_failure();
    wake(connection, pool, request);
    hub.metrics.waiting_pages.inc();
    let state = State::of(hub, pool);
    let nonce = hub::random_bits();
    let html = hub.themes.get(hub, &target.key.namespace, page).render(&Shown {
        service: &target.key.name,
        phase: state.phase,
        reason: &state.reason,
        elapsed_ms: state.elapsed.as_millis(),
        nonce: &nonce,
        query: request.uri().query(),
    });
    let mut response = Response::new(Either::Left(Full::from(html)));
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(RETRY_AFTER, HeaderValue::from_static("2"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data:; connect-src 'self'; \
         base-uri 'none'; form-action 'none'"
    );
    if let Ok(policy) = HeaderValue::try_from(policy) {
        headers.insert(CONTENT_SECURITY_POLICY, policy);
    }
    response
}

/// The answer to the page's question: held until the phase is another than the page shows.
pub(crate) async fn progress(
    connection: &Connection,
    target: &Target,
    request: &Request<Upload>,
) -> Response<ResponseBody> {
    let hub = &connection.hub;
    let until = hub.now() + LONGEST;
    let shown = request.headers().get(WAIT_HEADER);
    let is_shown = |phase: &str| shown.is_some_and(|shown| shown == phase);
    loop {
        let sleeping = target
            .pools
            .iter()
            .find(|(weight, pool)| *weight > 0 && pool.ready() == 0);
        let Some((_, pool)) = sleeping else {
            return told(&State::ready());
        };
        let becomes_ready = pool.becomes_ready();
        // The page may be another activator's.
        wake(connection, pool, request);
        let state = State::of(hub, pool);
        if !is_shown(state.phase) || hub.now() >= until {
            return told(&state);
        }
        tokio::select! {
            () = becomes_ready => {}
            () = tokio::time::sleep(LOOK) => {}
            // The page asks again, by another connection: a drain does not wait for it.
            () = connection.listening.closes() => return told(&state),
        }
    }
}

/// How it goes.
struct State {
    phase: &'static str,
    /// May be empty.
    reason: String,
    elapsed: Duration,
}

impl State {
    fn ready() -> Self {
        Self {
            phase: "ready",
            reason: String::new(),
            elapsed: Duration::ZERO,
        }
    }

    fn of(hub: &Hub, pool: &Pool) -> Self {
        let now = pool.describe();
        let elapsed = pool.waking_for(hub.now());
        let (phase, reason) = match pool.page_failure() {
            _ if now.ready > 0 => ("ready", String::new()),
            Some(failure) => ("failed", failure),
            None if now.pods > 0 => (
                "starting",
                format!("{} of {} pods are ready", now.ready, now.pods),
            ),
            None if now.waking => ("waking", String::new()),
            None => ("asleep", String::new()),
        };
        Self {
            phase,
            reason,
            elapsed,
        }
    }
}

/// A state as the page's script reads it.
fn told(state: &State) -> Response<ResponseBody> {
    let body = serde_json::json!({
        "phase": state.phase,
        "reason": state.reason,
        "elapsedMs": u64::try_from(state.elapsed.as_millis()).unwrap_or(u64::MAX),
    });
    let mut response = Response::new(Either::Left(Full::from(Bytes::from(body.to_string()))));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(WAIT_HEADER, HeaderValue::from_static(state.phase));
    response
}

/// Wakes a pool for whoever looks at its page, unless that is under way or has failed.
fn wake(connection: &Connection, pool: &Arc<Pool>, request: &Request<Upload>) {
    if !pool.begin_page_wake() {
        return;
    }
    let (hub, pool) = (Arc::clone(&connection.hub), Arc::clone(pool));
    let began = hub.now();
    let mut usage = Use::begin(&hub, &pool, connection.worker, Counts::Page, began);
    let who = || {
        let agent = request.headers().get(USER_AGENT);
        let agent = agent.and_then(|agent| agent.to_str().ok()).unwrap_or_default();
        wake::describe("GET", request.uri().path(), agent)
    };
    // A place of a peer's would be asked for and not used.
    let entered = pool.enter(
        Kind::Hop,
        began,
        &mut |below| fastrand::u32(..below),
        None,
        Some(who),
    );
    let Enter::Queued(held) = entered else {
        // There is a place, or so many wait that the pool is woken for them.
        return pool.end_page_wake(None);
    };
    let control = hub.control.clone();
    control.spawn(async move {
        let ready = async {
            loop {
                let becomes_ready = pool.becomes_ready();
                if pool.ready() > 0 {
                    return;
                }
                becomes_ready.await;
            }
        };
        let waited = hold::wait(&hub, &pool, &mut usage, held, began, ready).await;
        let failure = match waited {
            Err(reject) if pool.ready() == 0 => {
                hub.metrics.rejections.with_label_values(&[reject.label()]).inc();
                let seconds = hub.now().saturating_sub(began).as_secs_f64();
                Some(format!("no pod was ready within {seconds:.0} s"))
            }
            _ => {
                pool.answered(hub.now());
                None
            }
        };
        pool.end_page_wake(failure);
        drop(usage);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn browsers_are_told_from_programs() {
        const HTML: (&str, &str) = ("accept", "text/html,application/xhtml+xml,*/*;q=0.8");
        const NAVIGATE: (&str, &str) = ("sec-fetch-mode", "navigate");
        const INSECURE: (&str, &str) = ("upgrade-insecure-requests", "1");
        let page = Some(Asks::Page);
        for (what, method, fields, wanted) in [
            ("a browser over TLS", "GET", &[HTML, NAVIGATE][..], page),
            ("a browser in the clear", "GET", &[HTML, INSECURE], page),
            (
                "a link followed over TLS",
                "GET",
                &[HTML, NAVIGATE, INSECURE],
                page,
            ),
            ("a form sent", "POST", &[HTML, NAVIGATE], None),
            ("a look at the head", "HEAD", &[HTML, NAVIGATE], None),
            (
                "a script's fetch",
                "GET",
                &[HTML, ("sec-fetch-mode", "cors"), INSECURE],
                None,
            ),
            (
                "a picture",
                "GET",
                &[("accept", "image/*"), ("sec-fetch-mode", "no-cors")],
                None,
            ),
            ("a program that takes anything", "GET", &[("accept", "*/*")], None),
            ("a program that reads HTML", "GET", &[HTML], None),
            (
                "a browser that reads JSON",
                "GET",
                &[("accept", "application/json"), NAVIGATE],
                None,
            ),
            (
                "a browser that fetches ahead",
                "GET",
                &[HTML, NAVIGATE, ("sec-purpose", "prefetch")],
                None,
            ),
            (
                "a download that goes on",
                "GET",
                &[HTML, NAVIGATE, ("range", "bytes=5-")],
                None,
            ),
            (
                "the page itself",
                "GET",
                &[("accept", "*/*"), ("dormouse-wait", "asleep")],
                Some(Asks::Progress),
            ),
            (
                "a claim to be the page",
                "POST",
                &[("dormouse-wait", "asleep")],
                None,
            ),
        ] {
            let mut request = Request::new(Full::<Bytes>::default());
            *request.method_mut() = Method::from_bytes(method.as_bytes()).expect("a method");
            for (name, value) in fields {
                let (name, value) = (HeaderName::from_static(name), HeaderValue::from_static(value));
                request.headers_mut().append(name, value);
            }
            assert_eq!(asks(&request, false), wanted, "{what}");
            let when_ready = wanted.filter(|asks| *asks == Asks::Progress);
            assert_eq!(asks(&request, true), when_ready, "{what}, while pods are ready");
        }
    }
}
