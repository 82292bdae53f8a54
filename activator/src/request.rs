//! One request: **resolve → admit → pick → forward → account**, in this order, in [`handle`] and [`attempt`].

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use crds::names::{PROBE_INSTANCE_HEADER, PROBE_ROUTE_HEADER};
use http::header::{SET_COOKIE, USER_AGENT};
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use crate::account::{Counts, Use};
use crate::body::{Activity, Download, ResponseBody, Upload};
use crate::forward::{self, Answer, Failure, Line};
use crate::headers;
use crate::hold;
use crate::hub::Hub;
use crate::meter::Outcome;
use crate::mirror;
use crate::noise::{self, Noise};
use crate::page::{self, Asks};
use crate::places::{self, PLACE_HEADER, Word};
use crate::pool::{Enter, Failure as Fails, Pool, Slot};
use crate::reject::{Reader, Reject};
use crate::route::{Choice, Target};
use crate::server::Listening;
use crate::stream::{self, End};
use crate::strict;
use crate::talk::Talk;
use crate::throttle::Kind;
use crate::wake;

/// Bytes of the new protocol that came before its time are lost: they were taken for HTTP.
const EARLY: &str = "bytes after a request to upgrade, before its answer";

/// A client's connection.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) hub: Arc<Hub>,
    pub(crate) listening: Arc<Listening>,
    pub(crate) worker: usize,
    /// The client's address, as `X-Forwarded-For` wants it.
    pub(crate) from: HeaderValue,
    /// Whether the client's address is a peer activator's.
    pub(crate) is_peer: bool,
    /// Where the talk stands; `None` with HTTP/2, which says so itself.
    pub(crate) talk: Option<Arc<Talk>>,
}

/// Everything about a request that stays the same over its tries.
pub(crate) struct Call<'a> {
    pub(crate) connection: &'a Connection,
    pub(crate) target: &'a Target,
    pub(crate) pool: &'a Arc<Pool>,
    pub(crate) kind: Kind,
    pub(crate) counts: Counts,
    pub(crate) h2c: bool,
    /// When it arrived.
    pub(crate) started: Duration,
}

impl Call<'_> {
    /// Whether a peer activator sends it. Whoever only claims to be one is none.
    fn is_by_peer(&self) -> bool {
        self.kind == Kind::Hop && self.connection.is_peer
    }
}

/// What the tries of a request come to.
pub(crate) struct Done {
    pub(crate) answer: Answer,
    /// When it was first sent.
    pub(crate) begun: Duration,
    /// When it was sent to who answered.
    pub(crate) sent: Duration,
    /// It waited while no pod was ready.
    was_cold: bool,
}

/// Serves one request. Never fails: a refusal is a response too. It comes in a box, because each step that waits has room
/// for what it was given.
///
/// # Cancel safety
/// Dropping the future is how a client that goes away gives everything back.
pub(crate) async fn handle(
    connection: Arc<Connection>,
    request: Box<Request<Upload>>,
) -> Result<Response<ResponseBody>, Infallible> {
    let Some(talk) = connection.talk.clone() else {
        return Ok(serve(connection, request).await);
    };
    talk.asked(request.version() == Version::HTTP_10);
    let response = serve(connection, request).await;
    match response.body() {
        // What we say ourselves is said in one go; a pod's answer tells its end itself.
        Either::Left(_) => talk.idle(),
        Either::Right(body) if !body.has_ended() => talk.answering(),
        Either::Right(_) => {}
    }
    Ok(response)
}

/// The five steps.
async fn serve(connection: Arc<Connection>, mut request: Box<Request<Upload>>) -> Response<ResponseBody> {
    let hub = &connection.hub;
    let started = hub.now();
    let is_h2 = request.version() == Version::HTTP_2;

    // 1. Resolve.
    let Some((target, h2c)) = connection.listening.target() else {
        return refuse(hub, &Reject::NoRoute, &Reader::of(request.headers()), is_h2);
    };
    let has_ours = headers::has_ours(request.headers());
    if has_ours && let Some(nonce) = request.headers().get(headers::PROBE) {
        tracing::debug!(?nonce, route = target.title, "self-probe landed");
        return self_probe(hub, &target);
    }
    if let Err(reject) = check(&request) {
        return refuse(hub, &reject, &Reader::of(request.headers()), is_h2);
    }
    let (word, Choice { pool, mut ticket }) = match meant(&connection, &target, &request, has_ours) {
        Ok(meant) => meant,
        Err(reject) => return refuse(hub, &reject, &Reader::of(request.headers()), is_h2),
    };
    let kept = match word {
        Some(Word::Ask) => return Box::pin(keep_place(&connection, pool)).await,
        Some(Word::Give(number)) => {
            drop(pool.take(number));
            return Response::new(Either::Left(Full::default()));
        }
        Some(Word::Take(number)) => pool.take(number),
        None => None,
    };
    let noise = noise::kind(request.headers(), request.uri().path(), &target.ignore);
    if let Some(noise) = noise
        && pool.ready() == 0
    {
        return answer_noise(hub, pool, noise, &Reader::of(request.headers()), is_h2);
    }
    if let Some(page) = &target.waiting_page
        && word.is_none()
    {
        match page::asks(&request, pool.ready() > 0) {
            Some(Asks::Page) => return page::open(&connection, &target, page, pool, &request),
            Some(Asks::Progress) => return Box::pin(page::progress(&connection, &target, &request)).await,
            None => {}
        }
    }
    // Anybody may claim to be a peer: then it is never sent on, but it is counted all the same.
    let is_hop = has_ours && request.headers().contains_key(headers::HOP);
    let counts = match noise {
        Some(_) => Counts::Noise,
        None if is_hop && connection.is_peer => Counts::Hop,
        None => Counts::Use,
    };
    let mut usage = Use::begin(hub, pool, connection.worker, counts, started);
    if counts == Counts::Use
        && let Some(half) = mirror::copy(&connection, &target, pool, &request, h2c)
    {
        ticket = Some(half);
    }
    usage.enrol(ticket);

    // What the client reads a refusal as, and what its upgrade hangs on, before the request moves on.
    let client = Client::of(&mut request);
    let activity = target.timeouts.stream_idle.map(|_| Activity::new());
    let call = Call {
        connection: &connection,
        target: &target,
        pool,
        kind: if is_hop { Kind::Hop } else { Kind::Client },
        counts,
        h2c: h2c && client.upgrade.is_none(),
        started,
    };
    if let Some(activity) = &activity {
        request.body_mut().watch(Arc::clone(activity));
    }
    // 2.–4. Admit, pick, forward: as often as it takes.
    match attempt(&call, &mut usage, request, kept, client.upgrade.is_some()).await {
        // 5. Account.
        Ok(done) => account(&call, usage, done, client, activity),
        Err(reject) => {
            // A body that turned out malformed ends the try at the pod too; it is the client's fault all the same.
            let fault = connection.talk.as_ref().and_then(|talk| talk.fault());
            let reject = fault.map_or(reject, Reject::BadRequest);
            usage.refuse(&reject);
            refuse(hub, &reject, &client.reader, is_h2)
        }
    }
}

/// The pool that a request is for: by weight, or as a peer says, with its word about a place there.
fn meant<'a>(
    connection: &Connection,
    target: &'a Target,
    request: &Request<Upload>,
    has_ours: bool,
) -> Result<(Option<Word>, Choice<'a>), Reject> {
    let headers = request.headers();
    let Some(value) = has_ours.then(|| headers.get(PLACE_HEADER)).flatten() else {
        let choice = target.choose(Some(headers), &mut |below| fastrand::u32(..below));
        return choice.map(|choice| (None, choice)).ok_or(Reject::NoRoute);
    };
    // From a peer that we have not been told of yet it must not become a request to a pod.
    if !connection.is_peer {
        return Err(Reject::BadRequest("dormouse-place is a field between activators"));
    }
    let (word, name) = places::read(value).ok_or(Reject::NoRoute)?;
    let pool = target.pool(name).ok_or(Reject::NoRoute)?;
    Ok((Some(word), Choice { pool, ticket: None }))
}

/// What is kept of a request once it has moved on.
struct Client {
    reader: Reader,
    upgrade: Option<OnUpgrade>,
}

impl Client {
    fn of(request: &mut Request<Upload>) -> Self {
        let reader = Reader::of(request.headers());
        // RFC 9110 §7.8: in HTTP/1.0 it is to be ignored; HTTP/2 has none.
        let is_upgrade = request.version() == Version::HTTP_11 && headers::is_upgrade(request.headers());
        let upgrade = is_upgrade.then(|| hyper::upgrade::on(&mut *request));
        Self { reader, upgrade }
    }
}

/// Refuses what no pod should see.
fn check(request: &Request<Upload>) -> Result<(), Reject> {
    if request.method() == Method::CONNECT {
        return Err(Reject::BadRequest(
            "CONNECT is refused: this is not a forward proxy",
        ));
    }
    let mut hosts = request.headers().get_all(http::header::HOST).iter();
    // RFC 9112 §3.2: none or two of them make the request ambiguous. HTTP/2 needs none, and what it has is read by a pod of
    // HTTP/1.1 as that reads it.
    match (hosts.next(), hosts.next(), request.version()) {
        (None, _, Version::HTTP_11) => Err(Reject::BadRequest("an HTTP/1.1 request needs a Host field")),
        (Some(host), None, Version::HTTP_2) => {
            strict::check_host(host.as_bytes()).map_err(Reject::BadRequest)
        }
        (_, None, _) => Ok(()),
        _ => Err(Reject::BadRequest("Host twice")),
    }
}

/// Steps 2 to 4, repeated while the request can be sent again.
pub(crate) async fn attempt(
    call: &Call<'_>,
    usage: &mut Use,
    mut request: Box<Request<Upload>>,
    mut kept: Option<Slot>,
    is_upgrade: bool,
) -> Result<Done, Reject> {
    let hub = &call.connection.hub;
    let mut was_cold = false;
    let mut tries = 0;
    let mut begun = None;
    let mut failed: Option<Arc<crate::pool::Endpoint>> = None;
    let (mut parts, body) = std::mem::take(&mut *request).into_parts();
    // A peer has appended its client, and is none itself.
    let from = (!call.is_by_peer()).then_some(&call.connection.from);
    headers::to_pod(&mut parts, from, call.h2c, is_upgrade, !body.is_empty());
    *request = Request::from_parts(parts, body);
    loop {
        // 2. Admit and 3. pick: with a limit they are one fact, so the pool does both.
        let slot = match kept.take() {
            Some(slot) => slot,
            None => admit(call, usage, &request, failed.as_deref(), &mut was_cold).await?,
        };
        let (endpoint, ticket) = (Arc::clone(&slot.endpoint), slot.ticket);
        let sent = hub.now();
        let begun = *begun.get_or_insert(sent);
        usage.sent(slot, sent);
        call.pool.budget.earn();

        // 4. Forward.
        tries += 1;
        // Boxed: a request that waits, and a connection that is idle, should not keep the room for it.
        let failure = match Box::pin(forward_once(call, &endpoint, ticket, (begun, sent), request)).await? {
            Ok(answer) => {
                return Ok(Done {
                    answer,
                    begun,
                    sent,
                    was_cold,
                });
            }
            Err(failure) => failure,
        };
        usage.back(hub.now());
        request = Box::new(Box::pin(retry(call, &endpoint, failure, tries)).await?);
        // Words to a peer are not for whoever is next.
        headers::remove_ours(request.headers_mut());
        failed = Some(endpoint);
    }
}

/// Waits for a place: at once, or in line until the Route's limit.
async fn admit(
    call: &Call<'_>,
    usage: &mut Use,
    request: &Request<Upload>,
    avoid: Option<&crate::pool::Endpoint>,
    was_cold: &mut bool,
) -> Result<Slot, Reject> {
    let hub = &call.connection.hub;
    let who = (call.counts == Counts::Use).then_some(|| {
        let agent = request
            .headers()
            .get(USER_AGENT)
            .and_then(|agent| agent.to_str().ok())
            .unwrap_or_default();
        wake::describe(request.method().as_str(), request.uri().path(), agent)
    });
    let now = hub.now();
    let entered = call
        .pool
        .enter(call.kind, now, &mut |below| fastrand::u32(..below), avoid, who);
    let held = match entered {
        Enter::Granted(slot) => return Ok(slot),
        Enter::Full => {
            let limit = call.pool.settings().queue_limit;
            return Err(Reject::QueueFull {
                pool: call.pool.describe(),
                limit,
            });
        }
        Enter::Queued(held) => held,
    };
    *was_cold |= call.pool.ready() == 0;
    hold::wait(hub, call.pool, usage, held, call.started, std::future::pending()).await
}

/// One try. The outer error ends the request, the inner one may be tried again. `begun` is when the first try was sent,
/// `sent` when this one is.
async fn forward_once(
    call: &Call<'_>,
    endpoint: &Arc<crate::pool::Endpoint>,
    ticket: Option<u64>,
    (begun, sent): (Duration, Duration),
    mut request: Box<Request<Upload>>,
) -> Result<Result<Answer, Failure>, Reject> {
    let hub = &call.connection.hub;
    let Some(port) = endpoint.port(call.connection.listening.port) else {
        let error = std::io::Error::other(forward::UNPUBLISHED);
        let request = *request;
        return Ok(Err(Failure::Connect { request, error }));
    };
    let hop = endpoint.is_peer();
    if hop {
        if let Ok(instance) = HeaderValue::try_from(&hub.instance) {
            request.headers_mut().insert(headers::HOP, instance);
        }
        if let Some(take) = ticket.and_then(|ticket| places::write(Word::Take(ticket), &call.pool.key.pool)) {
            request.headers_mut().insert(PLACE_HEADER, take);
        }
    }
    let line = Line {
        endpoint,
        port,
        worker: call.connection.worker,
        h2: call.h2c,
        connect_timeout: hub.config.connect_timeout,
        source: hub.source().filter(|_| hop),
    };
    let timeouts = &call.target.timeouts;
    let sending = forward::send(line, *request);
    let (is_whole, at, after) = match (timeouts.response_start, timeouts.request) {
        (None, None) => return Ok(sending.await),
        (Some(start), Some(whole)) if begun + whole <= sent + start => (true, begun + whole, whole),
        (Some(start), _) => (false, sent + start, start),
        (None, Some(whole)) => (true, begun + whole, whole),
    };
    tokio::time::timeout_at(hub.instant(at), sending)
        .await
        .map_err(|_| {
            let pool = call.pool.describe();
            if is_whole {
                Reject::RequestTimeout { pool, after }
            } else {
                Reject::UpstreamTimeout { pool, after }
            }
        })
}

/// Decides whether a request without an answer is sent again, and returns it.
async fn retry(
    call: &Call<'_>,
    endpoint: &Arc<crate::pool::Endpoint>,
    failure: Failure,
    tries: u32,
) -> Result<Request<Upload>, Reject> {
    let hub = &call.connection.hub;
    let (request, error, kind) = match failure {
        Failure::Connect { request, error } => {
            // One failure is enough: the pod is used again as soon as it answers a probe.
            if endpoint.port(call.connection.listening.port).is_some() && !endpoint.is_peer() {
                call.pool.failed(endpoint, Fails::Refused);
            } else {
                tokio::time::sleep(forward::PAUSE).await;
            }
            (Some(request), error.to_string(), "connect")
        }
        Failure::Lost { request, error } => {
            if !endpoint.is_peer() {
                call.pool.failed(endpoint, Fails::Reset);
            }
            let request = request.filter(|_| call.pool.budget.spend());
            (request, error.to_string(), "lost")
        }
        // The pod is well, and has said so.
        Failure::Refused { request, error } => {
            let request = request.filter(|_| call.pool.budget.spend());
            (request, error.to_string(), "refused")
        }
    };
    tracing::debug!(pool = %call.pool.key, address = %endpoint.address, error, kind, tries, "try failed");
    match request {
        Some(request) if tries < forward::MOST_TRIES => {
            hub.metrics.retries.with_label_values(&[kind]).inc();
            Ok(request)
        }
        _ => Err(Reject::Connect {
            pool: call.pool.describe(),
            error,
        }),
    }
}

/// Step 5: hangs what the request holds on the answer's body.
fn account(
    call: &Call<'_>,
    mut usage: Use,
    done: Done,
    client: Client,
    activity: Option<Arc<Activity>>,
) -> Response<ResponseBody> {
    let hub = &call.connection.hub;
    let Answer { mut response, lease } = done.answer;
    let session = usage.head(response.status(), response.headers(), done.sent);
    if done.was_cold {
        let now = hub.now();
        call.pool.answered(now);
        let waited = done.sent.saturating_sub(call.started).as_micros() as f64 / 1000.0;
        if let Ok(value) = HeaderValue::try_from(format!("dormouse-cold;dur={waited:.1}")) {
            response.headers_mut().append("server-timing", value);
        }
    }
    let is_switching = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    headers::strip(response.headers_mut(), is_switching);
    response.headers_mut().remove(http::header::TRANSFER_ENCODING);
    *response.version_mut() = Version::HTTP_11;
    if let Some(session) = session {
        response.headers_mut().append(SET_COOKIE, session);
    }
    if is_switching {
        return switch(call, usage, client, response, done.begun);
    }
    let outcome = outcome(response.status());
    response.map(|body| {
        let body = Download::new(body, outcome, usage, lease, call.connection.talk.clone());
        Either::Right(body.limited(call.target.timeouts, hub.instant(done.begun), activity))
    })
}

/// How a request will have ended when its answer ends well.
pub(crate) fn outcome(status: StatusCode) -> Outcome {
    if status.is_server_error() {
        Outcome::ServerError
    } else {
        Outcome::Ok
    }
}

/// Joins the two connections of an upgrade; the request lasts as long as they do. A pod that switches unasked, and a client
/// that did not wait for it, are refused.
fn switch(
    call: &Call<'_>,
    mut usage: Use,
    client: Client,
    mut response: Response<Incoming>,
    begun: Duration,
) -> Response<ResponseBody> {
    let hub = Arc::clone(&call.connection.hub);
    let talk = call.connection.talk.as_ref();
    // Only where the client has asked is what it sends from now on not HTTP.
    let asked = match client.upgrade {
        None => Err(Reject::Internal("the pod switched protocols unasked")),
        Some(_) if talk.is_some_and(|talk| !talk.switches()) => Err(Reject::BadRequest(EARLY)),
        Some(ours) => Ok(ours),
    };
    let ours = match asked {
        Ok(ours) => ours,
        Err(reject) => {
            usage.refuse(&reject);
            return refuse(&hub, &reject, &client.reader, talk.is_none());
        }
    };
    let (limits, begun) = (call.target.timeouts, hub.instant(begun));
    let pod = hyper::upgrade::on(&mut response);
    tokio::spawn(async move {
        let (Ok(ours), Ok(pod)) = (ours.await, pod.await) else {
            return usage.finish(Outcome::Failed);
        };
        usage.settle();
        let (mut ours, mut pod) = (TokioIo::new(ours), TokioIo::new(pod));
        match stream::join(&mut ours, &mut pod, limits, begun, &hub.give_up).await {
            End::Theirs => usage.finish(Outcome::Ok),
            End::Ours => usage.finish(Outcome::Failed),
            End::Limit(limit) => {
                usage.aborted(limit);
                usage.finish(Outcome::Failed);
            }
        }
    });
    response.map(|_| Either::Left(Full::default()))
}

/// Waits for a place that a peer asks for, and keeps it. The request it is for waits at the peer, and is counted there.
async fn keep_place(connection: &Connection, pool: &Arc<Pool>) -> Response<ResponseBody> {
    let hub = &connection.hub;
    let slot = match pool.enter(
        Kind::Hop,
        hub.now(),
        &mut |below| fastrand::u32(..below),
        None,
        None::<fn() -> String>,
    ) {
        Enter::Granted(slot) => Some(slot),
        Enter::Queued(mut held) => tokio::time::timeout(places::LONGEST, held.place()).await.ok(),
        Enter::Full => None,
    };
    let mut response = Response::new(Either::Left(Full::default()));
    match slot {
        Some(slot) => {
            let number = HeaderValue::from(pool.keep(slot));
            response.headers_mut().insert(PLACE_HEADER, number);
        }
        None => *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE,
    }
    response
}

/// The answer to a self-probe: who we are, and whose port this is.
fn self_probe(hub: &Hub, target: &Target) -> Response<ResponseBody> {
    let mut response = Response::new(Either::Left(Full::default()));
    for (name, value) in [
        (PROBE_INSTANCE_HEADER, &hub.instance),
        (PROBE_ROUTE_HEADER, &target.title),
    ] {
        if let Ok(value) = HeaderValue::try_from(value) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

/// Answers noise for a pool without a ready pod.
fn answer_noise(
    hub: &Hub,
    pool: &Pool,
    noise: Noise,
    reader: &Reader,
    is_h2: bool,
) -> Response<ResponseBody> {
    hub.metrics.noise.inc();
    match noise {
        Noise::Probe => Response::new(Either::Left(Full::from("asleep, and well\n"))),
        Noise::Scrape => refuse(hub, &Reject::Asleep(pool.describe()), reader, is_h2),
    }
}

/// Makes a refusal's response and counts it.
fn refuse(hub: &Hub, reject: &Reject, reader: &Reader, is_h2: bool) -> Response<ResponseBody> {
    hub.metrics.rejections.with_label_values(&[reject.label()]).inc();
    tracing::debug!(reason = reject.label(), sentence = reject.sentence(), "refused");
    let mut response = reject.response(reader);
    if is_h2 {
        // RFC 9113 §8.2.2: HTTP/2 has other means.
        response.headers_mut().remove(http::header::CONNECTION);
    }
    debug_assert!(reader.is_grpc() || response.status() == reject.status());
    response.map(|body| Either::Left(Full::new(body)))
}
