//! A candidate beside a stable pool: who gets which requests, and whether the counts are what the pods saw.

use std::sync::atomic::AtomicU16;

use crds::evidence::EpochReport;
use crds::report::{BrokenAttempt, Directive, Peer, PoolKey, Report};
use crds::route::{
    BadAnswers, CodeRange, HeaderMatch, RouteAffinity, RouteBreaker, RouteMatch, RouteMirror, RouteRollout,
    RouteSynthetic,
};

use http_body_util::StreamBody;

use super::control::Autoscaler;
use super::*;

/// A pod that answers with one status and its name, after a while if it is told to.
struct Pod {
    address: SocketAddr,
    status: Arc<AtomicU16>,
    delay_ms: Arc<AtomicU16>,
    /// The gRPC status in its trailers; 0: it sends none.
    grpc: Arc<AtomicU16>,
    seen: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Pod {
    async fn new(name: &'static str) -> Self {
        let address = fresh_address();
        let listener = TcpListener::bind(SocketAddr::new(address, 0))
            .await
            .expect("binds");
        let address = listener.local_addr().expect("bound");
        let number = |value| Arc::new(AtomicU16::new(value));
        let (status, delay_ms, grpc) = (number(200), number(0), number(0));
        let seen = Arc::new(AtomicUsize::new(0));
        let shared = (
            Arc::clone(&status),
            Arc::clone(&delay_ms),
            Arc::clone(&grpc),
            Arc::clone(&seen),
        );
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.expect("accepts");
                let (status, delay_ms, grpc, seen) = shared.clone();
                let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                    seen.fetch_add(1, Ordering::SeqCst);
                    let status = status.load(Ordering::SeqCst);
                    let grpc = grpc.load(Ordering::SeqCst);
                    let delay = Duration::from_millis(delay_ms.load(Ordering::SeqCst).into());
                    async move {
                        drop(request.into_body().collect().await);
                        tokio::time::sleep(delay).await;
                        let mut trailers = HeaderMap::new();
                        trailers.insert("grpc-status", grpc.into());
                        let data = http_body::Frame::data(Bytes::from(name));
                        let body = if grpc > 0 {
                            let frames = [data, http_body::Frame::trailers(trailers)];
                            StreamBody::new(futures::stream::iter(frames.map(Ok))).boxed()
                        } else {
                            // Its length is known, and its end comes in a frame of its own.
                            Full::from(name).with_trailers(async { None }).boxed()
                        };
                        let mut response = Response::new(body);
                        *response.status_mut() = StatusCode::from_u16(status).expect("a status");
                        Ok::<_, std::convert::Infallible>(response)
                    }
                });
                let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                connections.spawn(async move {
                    drop(server.serve_connection(TokioIo::new(stream), service).await);
                });
            }
        });
        Self {
            address,
            status,
            delay_ms,
            grpc,
            seen,
            task,
        }
    }

    fn answers(&self, status: u16) {
        self.status.store(status, Ordering::SeqCst);
    }

    fn delays(&self, delay_ms: u16) {
        self.delay_ms.store(delay_ms, Ordering::SeqCst);
    }

    fn says_grpc(&self, status: u16) {
        self.grpc.store(status, Ordering::SeqCst);
    }

    fn seen(&self) -> u64 {
        self.seen.load(Ordering::SeqCst) as u64
    }
}

/// An activator before a stable pod (pool `web`) and a candidate (pool `web-2`).
struct Trial {
    fixture: Fixture,
    stable: Pod,
    candidate: Pod,
}

impl Trial {
    async fn new(weight: u32, change: impl FnOnce(&mut RouteSpec)) -> Self {
        let mut fixture = Fixture::with_route(|spec| {
            let mut candidate = spec.pools[0].clone();
            candidate.name = "web-2".into();
            spec.pools.push(candidate);
            weigh(spec, weight);
            spec.rollout = Some(RouteRollout {
                stable: "web".into(),
                candidate: "web-2".into(),
                attempt: "1-a".into(),
                bad: BadAnswers {
                    codes: vec![CodeRange {
                        first: 500,
                        last: 599,
                    }],
                    grpc: Vec::new(),
                    timeouts: true,
                },
                breaker: Some(RouteBreaker {
                    evidence: 10_000.0,
                    tolerance: 1.0,
                }),
                ..RouteRollout::default()
            });
            change(spec);
        })
        .await;
        let (stable, candidate) = (Pod::new("stable").await, Pod::new("candidate").await);
        let listen = fixture.listen.port();
        for (pool, pod) in [("web", &stable), ("web-2", &candidate)] {
            fixture
                .index
                .apply_slice(&a_slice(pool, pool, listen, pod.address, true, false));
        }
        Self {
            fixture,
            stable,
            candidate,
        }
    }

    /// Changes what the Route says of the candidate.
    fn change(&mut self, change: impl FnOnce(&mut RouteRollout)) {
        self.fixture
            .change(|spec| change(spec.rollout.as_mut().expect("a rollout")));
    }

    /// One request after the other. Returns who answered.
    async fn send(&self, count: usize) -> Vec<String> {
        let mut from = Vec::new();
        for _ in 0..count {
            from.push(self.fixture.get("/").await.body);
        }
        from
    }

    fn epoch(&self, number: u32) -> EpochReport {
        let attempts = self.fixture.app.directory.attempts();
        let all = attempts.iter().flat_map(|attempt| attempt.all());
        let mut found = all.filter(|line| line.epoch == number);
        found.next().unwrap_or_default()
    }

    /// Requests of an epoch, stable and candidate.
    fn requests(&self, number: u32) -> (u64, u64) {
        let line = self.epoch(number);
        (line.stable.requests, line.candidate.requests)
    }

    fn is_broken(&self) -> bool {
        let attempts = self.fixture.app.directory.attempts();
        attempts.iter().any(|attempt| attempt.is_broken())
    }
}

/// At so much evidence the candidate is taken out.
fn breaker(spec: &mut RouteSpec, evidence: Option<f64>) {
    spec.rollout.as_mut().expect("a rollout").breaker = evidence.map(|evidence| RouteBreaker {
        evidence,
        tolerance: 1.0,
    });
}

fn weigh(spec: &mut RouteSpec, candidate: u32) {
    spec.pools[0].weight = 10_000 - candidate;
    spec.pools[1].weight = candidate;
}

#[tokio::test]
async fn counts_are_what_the_pods_saw_and_the_report_says_so() {
    let trial = Trial::new(4_000, |_| {}).await;
    let mut autoscaler = Autoscaler::dial(&trial.fixture).await;
    autoscaler.line().await;
    trial.send(100).await;
    let (stable, candidate) = (trial.stable.seen(), trial.candidate.seen());
    assert_eq!(stable + candidate, 100);
    // A fair coin of 0.4 stays within this 99.9999 times of 100,000.
    assert!((15..=66).contains(&candidate), "{candidate} of 100");
    let ended = |line: &Report| {
        line.epochs
            .iter()
            .any(|epoch| epoch.stable.requests + epoch.candidate.requests == 100)
    };
    let line = autoscaler.until(ended).await;
    assert!(!line.full);
    let epoch = &line.epochs[0];
    let name = (
        epoch.namespace.as_str(),
        epoch.route.as_str(),
        epoch.attempt.as_str(),
    );
    assert_eq!(name, ("shop", "web", "1-a"));
    assert_eq!(
        (epoch.stable.requests, epoch.candidate.requests),
        (stable, candidate)
    );
    assert_eq!(
        (epoch.stable.bad, epoch.candidate.bad, epoch.broken),
        (0, 0, false)
    );
    for arm in [&epoch.stable, &epoch.candidate] {
        let timed: u64 = arm.times.iter().map(|(_, count)| count).sum();
        assert_eq!(timed, arm.requests);
    }
    // Another autoscaler starts with the same.
    let mut other = Autoscaler::dial(&trial.fixture).await;
    assert_eq!(other.line().await.epochs, line.epochs);
}

#[tokio::test]
async fn many_clients_at_once_are_counted_each_once() {
    let trial = Trial::new(3_000, |spec| breaker(spec, None)).await;
    trial.candidate.answers(503);
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let listen = trial.fixture.listen;
        clients.spawn(async move {
            let mut bad = 0;
            for _ in 0..20 {
                bad += u64::from(send(listen, Request::get("/"), Bytes::new()).await.status == 503);
            }
            bad
        });
    }
    let bad: u64 = clients.join_all().await.iter().sum();
    until("counted", || {
        trial.requests(0) == (trial.stable.seen(), trial.candidate.seen())
    })
    .await;
    let line = trial.epoch(0);
    assert_eq!(line.stable.requests + line.candidate.requests, 400);
    assert_eq!((line.stable.bad, line.candidate.bad), (0, bad));
}

#[tokio::test]
async fn a_candidate_that_only_fails_is_taken_out_without_an_autoscaler() {
    let mut trial = Trial::new(5_000, |_| {}).await;
    trial.candidate.answers(500);
    let mut listening = Autoscaler::dial(&trial.fixture).await;
    listening.line().await;
    // The stable pool never fails, so only the candidate's answers move the evidence: always the same number of them.
    trial.send(120).await;
    until("broken", || trial.is_broken()).await;
    let failed = trial.candidate.seen();
    assert!((10..=18).contains(&failed), "{failed} answers had to fail");
    assert!(trial.send(30).await.iter().all(|from| from == "stable"));
    assert_eq!(trial.candidate.seen(), failed);
    // Told to autoscalers that listen and that come, in metrics and in the dump.
    let is_told = |line: &Report| line.epochs.iter().any(|epoch| epoch.broken);
    assert!(!listening.until(is_told).await.full);
    let mut autoscaler = Autoscaler::dial(&trial.fixture).await;
    let line = autoscaler.line().await;
    let epoch = &line.epochs[0];
    assert!(epoch.broken && epoch.evidence >= 10_000, "{epoch:?}");
    assert_eq!((epoch.candidate.requests, epoch.candidate.bad), (failed, failed));
    let metrics = metrics(&trial.fixture).await;
    for series in [
        "activator_rollout_breaker_trips_total 1".to_owned(),
        "activator_rollout_broken{namespace=\"shop\",route=\"web\"} 1".to_owned(),
        format!(
            "activator_rollout_requests_total{{namespace=\"shop\",route=\"web\",arm=\"candidate\",verdict=\"bad\"}} {failed}"
        ),
    ] {
        assert!(metrics.contains(&series), "{series}\n{metrics}");
    }
    let dump = send(
        trial.fixture.app.admin_address,
        Request::get("/debug/state"),
        Bytes::new(),
    )
    .await;
    let dump: serde_json::Value = serde_json::from_str(&dump.body).expect("JSON");
    let broken = &dump["rollouts"]["shop/web"]["broken"];
    assert_eq!(broken["candidateBad"], failed);
    // Another attempt begins with nothing against it.
    trial.candidate.answers(200);
    trial.change(|rollout| rollout.attempt = "2-b".into());
    let from = trial.send(60).await;
    assert!(from.iter().any(|from| from == "candidate"));
    assert!(!trial.is_broken());
}

#[tokio::test]
async fn a_break_outlives_the_activator_that_found_it() {
    let mut trial = Trial::new(5_000, |_| {}).await;
    let mut autoscaler = Autoscaler::dial(&trial.fixture).await;
    autoscaler.line().await;
    let out = |attempt: &str| Directive {
        leader: true,
        broken: vec![BrokenAttempt {
            namespace: "shop".into(),
            route: "web".into(),
            attempt: attempt.into(),
        }],
        ..Directive::default()
    };
    autoscaler.say(&out("0-z")).await;
    assert!(trial.send(40).await.iter().any(|from| from == "candidate"));
    assert!(!trial.is_broken(), "that was another attempt");
    let counted = trial.epoch(0);

    autoscaler.say(&out("1-a")).await;
    until("told", || trial.is_broken()).await;
    assert!(trial.send(30).await.iter().all(|from| from == "stable"));
    // It says so to whoever leads next, as one that found it itself does.
    let mut next = Autoscaler::dial(&trial.fixture).await;
    let line = next.line().await;
    let (epoch, found) = (&line.epochs[0], trial.epoch(0));
    assert!(epoch.broken && epoch.evidence == 0, "{epoch:?}");
    assert_eq!(found.candidate.requests, counted.candidate.requests);
    assert_eq!(trial.fixture.app.hub.metrics.breaker_trips.get(), 0);

    // One that comes back reads the Route later than it is told, and has counted nothing.
    let mut autoscaler = Autoscaler::dial(&trial.fixture).await;
    autoscaler.line().await;
    autoscaler.say(&out("2-b")).await;
    let known = || trial.fixture.app.directory.knows_broken("2-b");
    until("told", known).await;
    trial.change(|rollout| rollout.attempt = "2-b".into());
    assert!(trial.is_broken());
    let line = autoscaler
        .line_that(|line| {
            line.epochs
                .iter()
                .any(|epoch| epoch.attempt == "2-b" && epoch.broken)
        })
        .await;
    assert_eq!(line.epochs.len(), 1, "{line:?}");
    assert!(trial.send(20).await.iter().all(|from| from == "stable"));
}

#[tokio::test]
async fn an_outage_of_both_breaks_nothing() {
    // So much evidence comes by chance once in a million times, at most.
    let trial = Trial::new(5_000, |spec| breaker(spec, Some(1e6))).await;
    trial.stable.answers(500);
    trial.candidate.answers(500);
    trial.send(60).await;
    let line = trial.epoch(0);
    assert_eq!(line.stable.bad + line.candidate.bad, 60);
    assert!(!trial.is_broken());
}

#[tokio::test]
async fn the_end_counts_in_the_epoch_of_the_beginning() {
    let mut trial = Trial::new(0, |_| {}).await;
    trial.stable.delays(300);
    let listen = trial.fixture.listen;
    let late = tokio::spawn(async move { send(listen, Request::get("/"), Bytes::new()).await });
    until("under way", || trial.stable.seen() == 1).await;
    trial.fixture.change(|spec| {
        weigh(spec, 10_000);
        spec.rollout.as_mut().expect("a rollout").epoch = 1;
    });
    assert_eq!(trial.send(3).await, ["candidate"; 3]);
    // Nor does a Route that says nothing of a rollout end the counting of what is under way.
    trial.fixture.change(|spec| spec.rollout = None);
    assert_eq!(late.await.expect("answered").body, "stable");
    until("counted", || {
        trial.requests(0) == (1, 0) && trial.requests(1) == (0, 3)
    })
    .await;
}

#[tokio::test]
async fn a_match_reaches_a_candidate_without_weight() {
    let insider = HeaderMatch {
        exact: "insider".into(),
        ..HeaderMatch::default()
    };
    let matches = vec![RouteMatch {
        headers: [("x-canary".to_owned(), insider)].into(),
    }];
    let trial = Trial::new(0, |spec| {
        spec.rollout.as_mut().expect("a rollout").matches = matches;
    })
    .await;
    for (value, wanted) in [("insider", "candidate"), ("outsider", "stable")] {
        let request = Request::get("/").header("x-canary", value);
        assert_eq!(trial.fixture.send(request).await.body, wanted);
    }
    until("counted", || trial.epoch(0).direct.requests == 1).await;
    assert_eq!(trial.requests(0), (1, 0));
}

#[tokio::test]
async fn a_client_with_a_cookie_stays() {
    let trial = Trial::new(5_000, |spec| {
        spec.rollout.as_mut().expect("a rollout").affinity = Some(RouteAffinity {
            cookie: "x-rev".into(),
            max_age_seconds: 60,
        });
    })
    .await;
    for _ in 0..8 {
        let first = trial.fixture.get("/").await;
        let cookie = first.headers["set-cookie"].to_str().expect("text");
        let cookie = cookie.split(';').next().expect("a cookie").to_owned();
        for _ in 0..5 {
            let again = trial
                .fixture
                .send(Request::get("/").header("cookie", &cookie))
                .await;
            assert_eq!(again.body, first.body);
            assert!(!again.headers.contains_key("set-cookie"));
        }
    }
    until("eight sessions", || {
        let (stable, candidate) = trial.requests(0);
        stable + candidate == 8
    })
    .await;
}

#[tokio::test]
async fn a_candidate_that_hangs_is_as_bad_as_one_that_fails() {
    let trial = Trial::new(5_000, |spec| {
        spec.response_start_timeout_ms = 20;
        breaker(spec, None);
    })
    .await;
    trial.candidate.delays(5_000);
    trial.send(16).await;
    until("counted", || {
        let (stable, candidate) = trial.requests(0);
        stable + candidate == 16
    })
    .await;
    let line = trial.epoch(0);
    assert_eq!(
        (line.candidate.bad, line.stable.bad),
        (line.candidate.requests, 0)
    );
    assert!(line.candidate.times.is_empty(), "no head, no time");
}

#[tokio::test]
async fn a_cold_start_is_no_service_time_and_a_warming_pod_is_not_timed() {
    let mut trial = Trial::new(10_000, |_| {}).await;
    // Asleep: no address.
    trial.fixture.index.delete_slice("shop", "web-2");
    let listen = trial.fixture.listen;
    let held = tokio::spawn(async move { send(listen, Request::get("/"), Bytes::new()).await });
    let pool = trial
        .fixture
        .app
        .directory
        .pool(&crds::report::PoolKey {
            namespace: "shop".into(),
            pool: "web-2".into(),
        })
        .expect("a pool");
    until("held", || pool.held() == 1).await;
    tokio::time::sleep(Duration::from_millis(600)).await;
    let awake = a_slice(
        "web-2",
        "web-2",
        listen.port(),
        trial.candidate.address,
        true,
        false,
    );
    trial.fixture.index.apply_slice(&awake);
    assert_eq!(held.await.expect("answered").body, "candidate");
    until("counted", || trial.requests(0) == (0, 1)).await;
    let times = trial.epoch(0).candidate.times;
    let slow = crds::evidence::service_time_bucket(500_000);
    assert!(matches!(times[..], [(bucket, 1)] if bucket < slow), "{times:?}");
    // One request has warmed it up: two more do before its times count, though all requests do.
    trial.change(|rollout| {
        rollout.epoch = 1;
        rollout.warmup_requests = 2;
    });
    trial.send(5).await;
    until("counted", || trial.requests(1) == (0, 5)).await;
    let timed: u64 = trial
        .epoch(1)
        .candidate
        .times
        .iter()
        .map(|(_, count)| count)
        .sum();
    assert_eq!(timed, 3);
    trial.change(|rollout| {
        rollout.epoch = 2;
        rollout.warmup_ms = 3_600_000;
    });
    trial.send(2).await;
    until("counted", || trial.requests(2) == (0, 2)).await;
    assert!(trial.epoch(2).candidate.times.is_empty());
}

#[tokio::test]
async fn a_retried_request_stays_with_its_pool_and_counts_once() {
    let mut trial = Trial::new(10_000, |_| {}).await;
    // A second pod of the candidate refuses every connection.
    let dead = SocketAddr::new(fresh_address(), 9);
    let listen = trial.fixture.listen.port();
    trial
        .fixture
        .index
        .apply_slice(&a_slice("web-2", "web-2-dead", listen, dead, true, false));
    assert_eq!(trial.send(12).await, ["candidate"; 12]);
    until("counted", || trial.requests(0) == (0, 12)).await;
    assert_eq!(
        (
            trial.epoch(0).candidate.bad,
            trial.stable.seen(),
            trial.candidate.seen()
        ),
        (0, 0, 12)
    );
}

#[tokio::test]
async fn a_candidate_whose_pods_never_come_up_is_bad() {
    let mut trial = Trial::new(10_000, |spec| spec.cold_start_timeout_ms = 50).await;
    trial.fixture.index.delete_slice("shop", "web-2");
    for _ in 0..3 {
        assert_eq!(trial.fixture.get("/").await.status, StatusCode::GATEWAY_TIMEOUT);
    }
    until("counted", || trial.requests(0) == (0, 3)).await;
    assert_eq!(trial.epoch(0).candidate.bad, 3);
    // That too many wait already says nothing of the candidate.
    trial.fixture.change(|spec| spec.queue_limit = 0);
    assert_eq!(
        trial.fixture.get("/").await.status,
        StatusCode::SERVICE_UNAVAILABLE
    );
    assert_eq!(trial.requests(0), (0, 3));
}

#[tokio::test]
async fn a_grpc_status_in_trailers_is_judged() {
    let trial = Trial::new(5_000, |spec| {
        spec.ports[0].h2c = true;
        breaker(spec, None);
        spec.rollout.as_mut().expect("a rollout").bad.grpc = vec![14];
    })
    .await;
    trial.candidate.says_grpc(14);
    trial.stable.says_grpc(5);
    let mut seen = (0, 0);
    for from in trial.send(40).await {
        *(if from == "stable" {
            &mut seen.0
        } else {
            &mut seen.1
        }) += 1;
    }
    until("counted", || trial.requests(0) == seen).await;
    let line = trial.epoch(0);
    assert_eq!((line.stable.bad, line.candidate.bad), (0, seen.1));
}

#[tokio::test]
async fn a_connection_of_bytes_is_a_request_without_a_time() {
    let trial = Trial::new(4_000, |spec| spec.ports[0].protocol = crds::route::Protocol::Tcp).await;
    trial.candidate.answers(500);
    trial.send(20).await;
    until("counted", || {
        trial.requests(0) == (trial.stable.seen(), trial.candidate.seen())
    })
    .await;
    let line = trial.epoch(0);
    assert_eq!(line.stable.requests + line.candidate.requests, 20);
    // Nobody reads what it carries.
    assert_eq!(line.candidate.bad, 0);
    assert!(line.candidate.times.is_empty());
}

#[tokio::test]
async fn an_answer_whose_length_has_passed_is_whole() {
    // To an HTTP/1.1 client; the pod's HTTP/2 stream ends a frame later.
    let trial = Trial::new(10_000, |spec| spec.ports[0].h2c = true).await;
    trial.send(5).await;
    until("counted", || trial.requests(0) == (0, 5)).await;
}

#[tokio::test]
async fn a_candidate_gets_our_share_of_requests_of_our_own() {
    let mut trial = Trial::new(0, |spec| {
        let rollout = spec.rollout.as_mut().expect("a rollout");
        rollout.synthetic = Some(RouteSynthetic {
            path: "/healthz?deep=1".into(),
            rps: 60.0,
        });
    })
    .await;
    let ready = PoolKey {
        namespace: "shop".into(),
        pool: "web-2".into(),
    };
    let candidate = trial.fixture.app.directory.pool(&ready).expect("a pool");
    until("ready", || candidate.ready() > 0).await;
    // Nobody has said how many activators there are.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(trial.candidate.seen(), 0);

    let peer = |name: &str| Peer {
        name: name.to_owned(),
        address: "127.0.0.9".into(),
    };
    let leading = Directive {
        leader: true,
        epoch: 1,
        activators: [&*trial.fixture.app.hub.config.name, "b", "c"].map(peer).into(),
        settled: true,
        ..Directive::default()
    };
    let autoscaler = Autoscaler::dial(&trial.fixture).await;
    let started = tokio::time::Instant::now();
    while started.elapsed() < Duration::from_millis(1_500) {
        autoscaler.say(&leading).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // One of three activators: a third of sixty a second.
    let (sent, most) = (
        trial.candidate.seen(),
        20.0 * started.elapsed().as_secs_f64() + 1.0,
    );
    assert!(sent >= 10 && sent as f64 <= most, "{sent} of {most}");
    trial.candidate.answers(500);
    until("a bad one", || trial.epoch(0).direct.bad > 0).await;
    let line = trial.epoch(0);
    assert!(line.direct.requests >= sent, "{line:?}");
    assert_eq!(
        (line.stable.requests, line.candidate.requests),
        (0, 0),
        "no part of what is compared"
    );
    assert_eq!(trial.stable.seen(), 0);
    // They are no use: nothing is scaled by them, or kept awake.
    assert_eq!(candidate.sum(trial.fixture.app.hub.now()).arrivals, 0);
    let metrics = metrics(&trial.fixture).await;
    assert!(
        metrics.contains("activator_synthetic_requests_total{result=\"sent\"}"),
        "{metrics}"
    );

    trial.change(|rollout| rollout.synthetic = None);
    tokio::time::sleep(Duration::from_millis(100)).await;
    let seen = trial.candidate.seen();
    for _ in 0..3 {
        autoscaler.say(&leading).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(trial.candidate.seen(), seen);
}

#[tokio::test]
async fn requests_of_our_own_do_not_wait_for_a_busy_candidate() {
    let trial = Trial::new(10_000, |spec| {
        spec.pools[1].container_concurrency = 1;
        let rollout = spec.rollout.as_mut().expect("a rollout");
        rollout.synthetic = Some(RouteSynthetic {
            path: "/".into(),
            rps: 60.0,
        });
    })
    .await;
    trial.candidate.delays(60_000);
    let listen = trial.fixture.listen;
    let client = tokio::spawn(async move { send(listen, Request::get("/"), Bytes::new()).await });
    until("at the candidate", || trial.candidate.seen() == 1).await;
    let leading = Directive {
        leader: true,
        epoch: 1,
        activators: vec![Peer {
            name: trial.fixture.app.hub.config.name.clone(),
            address: "127.0.0.9".into(),
        }],
        settled: true,
        ..Directive::default()
    };
    let autoscaler = Autoscaler::dial(&trial.fixture).await;
    let metrics = &trial.fixture.app.hub.metrics;
    let busy = metrics.synthetic.with_label_values(&["busy"]);
    let sent = metrics.synthetic.with_label_values(&["sent"]);
    let started = tokio::time::Instant::now();
    while busy.get() < 3 && sent.get() == 0 && started.elapsed() < PATIENCE {
        autoscaler.say(&leading).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(busy.get() >= 3);
    assert_eq!((sent.get(), trial.candidate.seen()), (0, 1));
    client.abort();
}

#[tokio::test]
async fn a_board_can_tell_the_volume_the_errors_the_times_and_the_weights_of_both() {
    let mut trial = Trial::new(5_000, |spec| {
        spec.rollout.as_mut().expect("a rollout").breaker = None;
    })
    .await;
    trial.candidate.answers(500);
    trial.candidate.delays(30);
    let before = metrics(&trial.fixture).await;
    assert!(!before.contains("activator_service_time_seconds"), "{before}");
    trial.send(40).await;
    let (stable, candidate) = (trial.stable.seen(), trial.candidate.seen());
    assert!(stable > 0 && candidate > 0, "{stable} and {candidate}");
    let time = |pool: &str, of: &str| {
        format!("activator_service_time_seconds_{of}{{namespace=\"shop\",pool=\"{pool}\"")
    };
    let weight = |pool: &str, role: &str, weight: f64| {
        format!(
            "activator_route_weight_ratio{{namespace=\"shop\",route=\"web\",pool=\"{pool}\",role=\"{role}\"}} {weight}"
        )
    };
    let wanted = [
        format!("activator_requests_total{{namespace=\"shop\",pool=\"web\",outcome=\"ok\"}} {stable}"),
        format!(
            "activator_requests_total{{namespace=\"shop\",pool=\"web-2\",outcome=\"server_error\"}} {candidate}"
        ),
        format!("{}}} {stable}", time("web", "count")),
        format!("{}}} {candidate}", time("web-2", "count")),
        format!("{},le=\"0.025\"}} 0", time("web-2", "bucket")),
        format!("{},le=\"30\"}} {candidate}", time("web-2", "bucket")),
        format!("{},le=\"+Inf\"}} {candidate}", time("web-2", "bucket")),
        weight("web", "stable", 0.5),
        weight("web-2", "candidate", 0.5),
    ];
    let all_there = |text: &str| wanted.iter().all(|series| text.contains(series));
    until_metrics(&trial.fixture, "all series", all_there).await;

    // What the Route names no more is in no series.
    trial.fixture.change(|spec| {
        spec.rollout = None;
        spec.pools.remove(1);
        spec.pools[0].weight = 10_000;
    });
    let after = metrics(&trial.fixture).await;
    assert!(
        after.contains(&weight("web", "stable", 1.0)) && !after.contains("\"web-2\""),
        "{after}"
    );
}

/// All safe requests are copied.
fn mirrored(spec: &mut RouteSpec) {
    spec.rollout.as_mut().expect("a rollout").mirror = Some(RouteMirror {
        percent: 100,
        methods: Vec::new(),
    });
}

#[tokio::test]
async fn mirrored_requests_are_answered_by_the_stable_pool_and_judged_in_pairs() {
    let trial = Trial::new(0, mirrored).await;
    assert_eq!(trial.send(10).await, ["stable"; 10]);
    until("ten pairs", || trial.requests(0) == (10, 10)).await;
    assert_eq!((trial.stable.seen(), trial.candidate.seen()), (10, 10));
    // What changes something goes to one pod only, and is in no pair.
    for request in [Request::post("/"), Request::put("/"), Request::delete("/")] {
        assert_eq!(trial.fixture.send(request).await.body, "stable");
    }
    let body = send(trial.fixture.listen, Request::get("/"), Bytes::from("a body")).await;
    assert_eq!(body.body, "stable");
    assert_eq!((trial.stable.seen(), trial.candidate.seen()), (14, 10));
    // The candidate's errors are its own: no client sees one. Enough of them, and it gets no more copies.
    trial.candidate.answers(500);
    for _ in 0..30 {
        let answer = trial.fixture.get("/").await;
        assert_eq!((answer.status, answer.body.as_str()), (StatusCode::OK, "stable"));
    }
    until("broken", || trial.is_broken()).await;
    let line = trial.epoch(0);
    assert_eq!(line.stable.bad, 0);
    assert!(line.candidate.bad >= 10, "{line:?}");
    let are_sent = |text: &str| {
        let copies = trial.candidate.seen();
        text.contains(&format!(
            "activator_mirrored_requests_total{{result=\"sent\"}} {copies}\n"
        ))
    };
    until_metrics(&trial.fixture, "all copies have arrived", are_sent).await;
    let copies = trial.candidate.seen();
    trial.send(5).await;
    assert_eq!(trial.candidate.seen(), copies);
    assert!(are_sent(&metrics(&trial.fixture).await));
}

#[tokio::test]
async fn a_candidate_that_hangs_delays_no_client() {
    let trial = Trial::new(0, mirrored).await;
    trial.candidate.delays(60_000);
    // More than may be under way at once, over few connections' time: all are answered, and the rest is told.
    let mut crowd = Crowd::default();
    crowd.send(&trial.fixture, 2 * crate::mirror::COPIES, "/");
    crowd.all_is_well().await;
    assert_eq!(trial.stable.seen(), 2 * crate::mirror::COPIES as u64);
    let (sent, left) = (crate::mirror::COPIES, crate::mirror::COPIES);
    until_metrics(&trial.fixture, "copies are bounded", |text| {
        text.contains(&format!(
            "activator_mirrored_requests_total{{result=\"sent\"}} {sent}"
        )) && text.contains(&format!(
            "activator_mirrored_requests_total{{result=\"too_many\"}} {left}"
        ))
    })
    .await;
    assert_eq!(trial.requests(0), (0, 0), "no pair is whole");
}

#[tokio::test]
async fn a_candidate_that_sleeps_is_not_woken_by_copies() {
    let mut trial = Trial::new(0, mirrored).await;
    trial.fixture.index.delete_slice("shop", "web-2");
    assert_eq!(trial.send(3).await, ["stable"; 3]);
    let text = metrics(&trial.fixture).await;
    assert!(
        text.contains("activator_mirrored_requests_total{result=\"asleep\"} 3"),
        "{text}"
    );
    assert_eq!(trial.candidate.seen(), 0);
}
