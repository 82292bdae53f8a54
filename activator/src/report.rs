//! The report stream: what happened here, to every autoscaler that asks; what to do, from the one that leads.
//!
//! One collector makes deltas: 100 ms apart at least, at once when a request waits for a pod that is not there, and every
//! half second while anything runs. Each stream starts with a snapshot, and gets another when it was too slow: all
//! counters are cumulative, so nothing is lost by that. While nobody listens, nothing is collected.

use std::collections::HashMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use crds::evidence::EpochReport;
use crds::report::{
    COALESCE_MS, Directive, HEARTBEAT_MS, LONGEST_LINE, PROBE_MS, PoolReport, ProbeOrder, ProbeResult,
    Report, RouteAck, SILENCE_MS,
};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Either, Full};
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, broadcast, mpsc, watch};
use tokio::time::Instant;

use crate::config::ReportAuth;
use crate::directory::Directory;
use crate::hub::Hub;
use crate::pool::Pool;
use crate::selfprobe;

/// Deltas that a slow stream may lag behind before it gets a snapshot: over 20 s of them.
const DELTAS: usize = 256;
/// Lines on their way into one stream's socket. A stream that does not read this many is broken soon.
const LINES: usize = 16;
/// How long a token that was accepted is not asked about again.
const TOKEN_KEPT: Duration = Duration::from_secs(60);
/// Most tokens remembered: autoscalers are two; the rest is for tokens that rotate.
const TOKENS: usize = 64;
/// Self-probes at the same time: a start with 1,000 Services must not open 1,000 connections at once.
const PROBES: usize = 32;

/// What changed, for all streams.
#[derive(Debug, Default)]
struct Delta {
    uptime: Duration,
    pools: Vec<PoolReport>,
    routes: Vec<RouteAck>,
    epochs: Vec<EpochReport>,
    /// When the oldest held request of a pool without pods came, for the histogram.
    waited: Option<Duration>,
}

/// Makes and serves reports.
pub(crate) struct Reporter {
    hub: Arc<Hub>,
    directory: Arc<Directory>,
    deltas: broadcast::Sender<Arc<Delta>>,
    /// Whether new connections are welcome.
    serving: watch::Sender<bool>,
    tokens: Mutex<HashMap<String, Instant>>,
    probes: Arc<Semaphore>,
}

impl Reporter {
    pub(crate) fn new(hub: Arc<Hub>, directory: Arc<Directory>) -> Arc<Self> {
        Arc::new(Self {
            hub,
            directory,
            deltas: broadcast::channel(DELTAS).0,
            serving: watch::channel(true).0,
            tokens: Mutex::default(),
            probes: Arc::new(Semaphore::new(PROBES)),
        })
    }

    /// From now on reports say that this activator leaves.
    pub(crate) fn stop_serving(&self) {
        self.serving.send_replace(false);
    }

    // === collector ===

    /// Collects deltas for ever.
    pub(crate) async fn collect(self: Arc<Self>) {
        let mut running: HashMap<usize, Arc<Pool>> = HashMap::new();
        let mut last = Instant::now();
        loop {
            let is_idle = running.is_empty() || self.deltas.receiver_count() == 0;
            tokio::select! {
                () = self.hub.change() => {}
                () = tokio::time::sleep_until(last + Duration::from_millis(HEARTBEAT_MS)), if !is_idle => {}
            }
            if !self.wait_for_company(last).await {
                continue;
            }
            last = Instant::now();
            // Before the look at who listens: whoever comes after it finds them in its snapshot.
            let routes = self.directory.take_new_acks();
            if self.deltas.receiver_count() == 0 {
                // Who comes next starts with a snapshot. What changed stays in its list, each pool and attempt once.
                running.clear();
                continue;
            }
            let delta = self.delta(&mut running, routes);
            // Fails only when the last stream has just gone.
            drop(self.deltas.send(Arc::new(delta)));
        }
    }

    /// Lets changes gather until 100 ms after the last line, unless one is urgent.
    async fn wait_for_company(&self, last: Instant) -> bool {
        let due = last + Duration::from_millis(COALESCE_MS);
        loop {
            if self.hub.take_urgent() || Instant::now() >= due {
                return true;
            }
            tokio::select! {
                () = self.hub.change() => {}
                () = tokio::time::sleep_until(due) => {}
            }
        }
    }

    /// What changed since the last call, `routes` among it, and everything that runs: its integrals grow by themselves.
    fn delta(&self, running: &mut HashMap<usize, Arc<Pool>>, routes: Vec<RouteAck>) -> Delta {
        for pool in self.hub.take_changed() {
            running.insert(Arc::as_ptr(&pool).addr(), pool);
        }
        let mut delta = Delta {
            uptime: self.hub.now(),
            routes,
            epochs: self
                .hub
                .take_counted()
                .iter()
                .flat_map(|attempt| attempt.take_changed())
                .collect(),
            ..Delta::default()
        };
        running.retain(|_, pool| {
            let report = pool.report(delta.uptime, true);
            let runs = report.in_flight > 0 || report.held > 0;
            if report.ready == 0 && report.held > 0 {
                let waited = Duration::from_micros(report.oldest_held_us);
                delta.waited = Some(delta.waited.map_or(waited, |least| least.min(waited)));
            }
            delta.pools.push(report);
            runs
        });
        delta
    }

    fn snapshot(&self) -> Delta {
        let uptime = self.hub.now();
        let pools = self
            .directory
            .pools()
            .iter()
            .map(|pool| {
                let report = pool.report(uptime, false);
                if report.in_flight > 0 || report.held > 0 {
                    // The collector, which may have slept so far, must follow it from now on.
                    pool.touch(false);
                }
                report
            })
            .filter(|report| {
                report.arrivals > 0 || report.in_flight > 0 || report.held > 0 || report.ready > 0
            })
            .collect();
        Delta {
            uptime,
            pools,
            routes: self.directory.acks(),
            epochs: self
                .directory
                .attempts()
                .iter()
                .flat_map(|attempt| attempt.all())
                .collect(),
            waited: None,
        }
    }

    // === server ===

    /// Accepts autoscalers for ever.
    pub(crate) async fn serve(self: Arc<Self>, listener: tokio::net::TcpListener) {
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "report port");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let reporter = Arc::clone(&self);
            tokio::spawn(async move {
                let service = hyper::service::service_fn(move |request| {
                    let reporter = Arc::clone(&reporter);
                    async move { Ok::<_, Infallible>(reporter.answer(request).await) }
                });
                let serving = hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new())
                    .timer(hyper_util::rt::TokioTimer::new())
                    .max_concurrent_streams(8)
                    .keep_alive_interval(Duration::from_millis(SILENCE_MS))
                    .keep_alive_timeout(Duration::from_millis(SILENCE_MS))
                    .serve_connection(hyper_util::rt::TokioIo::new(stream), service);
                if let Err(error) = serving.await {
                    tracing::debug!(%error, "report connection ended");
                }
            });
        }
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<Either<Full<Bytes>, Lines>> {
        let plain = |status: StatusCode, text: &'static str| {
            let mut response = Response::new(Either::Left(Full::from(text)));
            *response.status_mut() = status;
            response
        };
        if request.uri().path() != crds::names::REPORT_PATH || request.method() != Method::POST {
            return plain(StatusCode::NOT_FOUND, "POST /v1/report\n");
        }
        if let Err((status, reason)) = self.authenticate(request.headers()).await {
            self.hub.metrics.report_refused.with_label_values(&[reason]).inc();
            return plain(status, reason);
        }
        let (sender, lines) = mpsc::channel(LINES);
        tokio::spawn(Arc::clone(&self).stream(request.into_body(), sender));
        Response::new(Either::Right(Lines(lines)))
    }

    /// Whether the caller may see reports and give directives.
    async fn authenticate(&self, headers: &HeaderMap) -> Result<(), (StatusCode, &'static str)> {
        if self.hub.config.report_auth == ReportAuth::Off {
            return Ok(());
        }
        let token = headers
            .get(http::header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.strip_prefix("Bearer "))
            .ok_or((StatusCode::UNAUTHORIZED, "no bearer token"))?;
        if self
            .tokens
            .lock()
            .get(token)
            .is_some_and(|until| *until > Instant::now())
        {
            return Ok(());
        }
        let user = self.hub.cluster.user(token).await.map_err(|error| {
            tracing::warn!(%error, "cannot check the token of a report stream");
            (StatusCode::SERVICE_UNAVAILABLE, "token not checked")
        })?;
        let user = user.ok_or((StatusCode::UNAUTHORIZED, "invalid token"))?;
        if !self.hub.config.report_users.contains(&user) {
            tracing::warn!(user, "not among --report-users");
            return Err((StatusCode::FORBIDDEN, "user not allowed"));
        }
        let now = Instant::now();
        let mut tokens = self.tokens.lock();
        tokens.retain(|_, until| *until > now);
        if tokens.len() < TOKENS {
            tokens.insert(token.to_owned(), now + TOKEN_KEPT);
        }
        Ok(())
    }

    // === one stream ===

    async fn stream(self: Arc<Self>, directives: Incoming, lines: mpsc::Sender<Bytes>) {
        self.hub.metrics.report_streams.inc();
        let (results, probed) = mpsc::channel(PROBES);
        let read = self.read(directives, results);
        let write = self.write(&lines, probed);
        let why = tokio::select! {
            why = read => why,
            why = write => why,
        };
        tracing::info!(why, "report stream ended");
        self.hub.metrics.report_streams.dec();
    }

    /// Writes lines: a snapshot, then deltas, results of probes, and a heartbeat.
    async fn write(
        &self,
        lines: &mpsc::Sender<Bytes>,
        mut probed: mpsc::Receiver<ProbeResult>,
    ) -> &'static str {
        let mut serving = self.serving.subscribe();
        let mut deltas = self.deltas.subscribe();
        let mut seq = 0;
        let mut full = Some(self.snapshot());
        // Wakes that finished while nobody listened, and what changes from now on.
        self.hub.changed(None, false);
        loop {
            let mut results = Vec::new();
            let delta = match full.take() {
                Some(snapshot) => (Arc::new(snapshot), true),
                None => tokio::select! {
                    delta = deltas.recv() => match delta {
                        Ok(delta) => (delta, false),
                        Err(broadcast::error::RecvError::Lagged(_)) => {
                            self.hub.metrics.report_lagged.inc();
                            (Arc::new(self.snapshot()), true)
                        }
                        Err(broadcast::error::RecvError::Closed) => return "the activator ends",
                    },
                    Some(result) = probed.recv() => {
                        results.push(result);
                        (Arc::new(Delta { uptime: self.hub.now(), ..Delta::default() }), false)
                    }
                    _ = serving.changed() => (Arc::new(Delta { uptime: self.hub.now(), ..Delta::default() }), false),
                    () = tokio::time::sleep(Duration::from_millis(HEARTBEAT_MS)) => {
                        (Arc::new(Delta { uptime: self.hub.now(), ..Delta::default() }), false)
                    }
                },
            };
            while let Ok(result) = probed.try_recv() {
                results.push(result);
            }
            seq += 1;
            let line = self.line(seq, &delta.0, delta.1, results);
            let sending = tokio::time::timeout(Duration::from_millis(SILENCE_MS), lines.send(line));
            match sending.await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return "the autoscaler has gone",
                Err(_) => return "the autoscaler does not read",
            }
            self.hub.metrics.report_lines.inc();
            if let Some(waited) = delta.0.waited.filter(|_| !delta.1) {
                self.hub
                    .metrics
                    .line_written
                    .observe((waited + self.hub.now().saturating_sub(delta.0.uptime)).as_secs_f64());
            }
        }
    }

    fn line(&self, seq: u64, delta: &Delta, full: bool, probes: Vec<ProbeResult>) -> Bytes {
        let (epoch, is_settled) = self.hub.shares(|shares| (shares.epoch(), shares.is_settled()));
        // Once settled, nobody sends to a pod that is another's.
        let foreign = if is_settled {
            0
        } else {
            self.directory.pools().iter().map(|pool| pool.foreign()).sum()
        };
        let report = Report {
            activator: self.hub.config.name.clone(),
            instance: self.hub.instance.clone(),
            seq,
            uptime_ms: u64::try_from(delta.uptime.as_millis()).unwrap_or(u64::MAX),
            full,
            serving: *self.serving.borrow(),
            epoch,
            foreign,
            routes: delta.routes.clone(),
            pools: delta.pools.clone(),
            probes,
            epochs: delta.epochs.clone(),
        };
        let mut line = serde_json::to_vec(&report).unwrap_or_default();
        line.push(b'\n');
        Bytes::from(line)
    }

    /// Reads directives until the stream breaks or is silent.
    async fn read(&self, mut body: Incoming, results: mpsc::Sender<ProbeResult>) -> &'static str {
        let mut pending = Vec::new();
        loop {
            let frame = match tokio::time::timeout(Duration::from_millis(SILENCE_MS), body.frame()).await {
                Err(_) => return "silent",
                Ok(None) => return "closed by the autoscaler",
                Ok(Some(Err(_))) => return "broken",
                Ok(Some(Ok(frame))) => frame,
            };
            let Ok(data) = frame.into_data() else { continue };
            pending.extend_from_slice(&data);
            while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = pending.drain(..=end).collect();
                match serde_json::from_slice::<Directive>(&line) {
                    Ok(directive) => self.obey(directive, &results),
                    Err(error) => {
                        tracing::warn!(%error, "a directive that cannot be read");
                        return "unreadable";
                    }
                }
            }
            if pending.len() > LONGEST_LINE {
                return "a line too long";
            }
        }
    }

    /// Does what a leader says; a standby's lines only keep its stream alive.
    fn obey(&self, directive: Directive, results: &mpsc::Sender<ProbeResult>) {
        // The leader of the past may not yet know that it is.
        if !directive.leader || directive.epoch < self.hub.shares(crate::balance::Shares::epoch) {
            return;
        }
        self.hub.heard_leader();
        for attempt in self.directory.set_broken(directive.broken) {
            self.hub.told_broken(&attempt);
        }
        let now = self.hub.now();
        for key in &directive.waking {
            if let Some(pool) = self.directory.pool(key) {
                pool.acknowledge(now);
            }
        }
        if directive.epoch > 0
            && self
                .hub
                .set_membership(directive.epoch, &directive.activators, directive.settled)
        {
            for pool in self.directory.pools() {
                pool.reshare();
            }
            self.hub.changed(None, true);
        }
        for order in directive.probes {
            self.probe(order, results.clone());
        }
    }

    fn probe(&self, order: ProbeOrder, results: mpsc::Sender<ProbeResult>) {
        let room = Arc::clone(&self.probes);
        let stale = self.hub.metrics.self_probes_stale.clone();
        let until = Instant::now() + Duration::from_millis(PROBE_MS.saturating_sub(order.age_ms));
        tokio::spawn(async move {
            let Ok(_room) = room.acquire().await else { return };
            if Instant::now() >= until {
                // Nobody waits for the answer any more, and the Service may be another by now.
                stale.inc();
                return;
            }
            let result = selfprobe::run(&order, until).await;
            // Fails only when the stream has gone; its successor orders anew.
            drop(results.send(result).await);
        });
    }
}

/// A response body of lines.
struct Lines(mpsc::Receiver<Bytes>);

impl Body for Lines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0
            .poll_recv(cx)
            .map(|line| line.map(|line| Ok(Frame::data(line))))
    }
}
