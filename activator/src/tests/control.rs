//! Everything beside traffic: reports and directives, wakes of our own, listeners, self-probes, the way out.

use crds::report::{Directive, Peer, PoolKey, ProbeOrder, Report};
use http_body_util::StreamBody;
use hyper::client::conn::http2;

use super::*;

/// An autoscaler's end of a report stream.
pub(super) struct Autoscaler {
    directives: tokio::sync::mpsc::Sender<Result<http_body::Frame<Bytes>, std::io::Error>>,
    lines: Incoming,
    pending: Vec<u8>,
}

impl Autoscaler {
    pub(super) async fn dial(fixture: &Fixture) -> Self {
        Self::try_dial(fixture, None).await.expect("accepted")
    }

    async fn try_dial(fixture: &Fixture, token: Option<&str>) -> Result<Self, StatusCode> {
        let stream = tokio::net::TcpStream::connect(fixture.app.report_address)
            .await
            .expect("connects");
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .expect("HTTP/2");
        tokio::spawn(connection);
        let (directives, receiver) = tokio::sync::mpsc::channel(8);
        let body = StreamBody::new(Box::pin(futures::stream::unfold(
            receiver,
            |mut receiver| async { receiver.recv().await.map(|frame| (frame, receiver)) },
        )));
        let mut request = Request::post("http://activator/v1/report");
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let response = sender
            .send_request(request.body(body).expect("a request"))
            .await
            .expect("an answer");
        match response.status() {
            StatusCode::OK => Ok(Self {
                directives,
                lines: response.into_body(),
                pending: Vec::new(),
            }),
            status => Err(status),
        }
    }

    pub(super) async fn say(&self, directive: &Directive) {
        let mut line = serde_json::to_vec(directive).expect("JSON");
        line.push(b'\n');
        self.directives
            .send(Ok(http_body::Frame::data(line.into())))
            .await
            .expect("open");
    }

    pub(super) async fn line(&mut self) -> Report {
        loop {
            if let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=end).collect();
                return serde_json::from_slice(&line).expect("a report");
            }
            let frame = tokio::time::timeout(PATIENCE, self.lines.frame())
                .await
                .expect("in time");
            self.pending
                .extend(frame.expect("open").expect("whole").into_data().expect("data"));
        }
    }

    /// The first line that is as wished, to an autoscaler that says nothing meanwhile.
    pub(super) async fn line_that(&mut self, is_so: impl Fn(&Report) -> bool) -> Report {
        loop {
            let line = self.line().await;
            if is_so(&line) {
                return line;
            }
        }
    }

    /// The first line that is as wished.
    pub(super) async fn until(&mut self, is_so: impl Fn(&Report) -> bool) -> Report {
        let leading = Directive {
            leader: true,
            ..Directive::default()
        };
        loop {
            let line = self.line().await;
            if is_so(&line) {
                return line;
            }
            self.say(&leading).await;
        }
    }
}

fn web() -> PoolKey {
    PoolKey {
        namespace: "shop".into(),
        pool: "web".into(),
    }
}

/// An API server with one Deployment `web`. Returns what was written to it.
fn fake_api(replicas: i32) -> (kube::Client, Arc<parking_lot::Mutex<Vec<String>>>) {
    let written = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let log = Arc::clone(&written);
    let service = tower::service_fn(move |request: Request<kube::client::Body>| {
        let log = Arc::clone(&log);
        async move {
            let what = format!("{} {}", request.method(), request.uri());
            let body = request.into_body().collect().await.expect("a body").to_bytes();
            let answer = if what.contains("tokenreviews") {
                let text = String::from_utf8_lossy(&body).into_owned();
                let user = if text.contains("good") {
                    "system:serviceaccount:x:autoscaler"
                } else {
                    "somebody"
                };
                serde_json::json!({
                    "metadata": {}, "spec": {},
                    "status": { "authenticated": !text.contains("bad"), "user": { "username": user } },
                })
            } else {
                serde_json::json!({
                    "metadata": { "name": "web", "namespace": "shop", "resourceVersion": "7" },
                    "spec": { "replicas": replicas }, "status": { "replicas": replicas },
                })
            };
            if !what.starts_with("GET") {
                log.lock()
                    .push(format!("{what} {}", String::from_utf8_lossy(&body)));
            }
            Ok::<_, std::convert::Infallible>(Response::new(Full::<Bytes>::from(answer.to_string())))
        }
    });
    (kube::Client::new(service, "default"), written)
}

#[tokio::test]
async fn a_report_begins_with_everything_and_goes_on_with_what_changed() {
    let mut fixture = Fixture::new().await;
    let pod = FakePod::new().await;
    fixture.publish(&[&pod]);
    fixture.get("/").await;
    let mut autoscaler = Autoscaler::dial(&fixture).await;
    let first = autoscaler.line().await;
    assert!(first.full && first.serving && first.seq == 1, "{first:?}");
    assert_eq!((first.activator.as_str(), first.instance.len()), ("one", 32));
    let ack = &first.routes[0];
    assert_eq!(
        (
            ack.name.as_str(),
            ack.uid.as_str(),
            ack.generation,
            ack.error.as_str()
        ),
        ("web", "uid-1", 1, "")
    );
    assert_eq!(
        (
            first.pools[0].arrivals,
            first.pools[0].completions.ok,
            first.pools[0].ready
        ),
        (1, 1, 1)
    );
    fixture.get("/").await;
    let second = autoscaler
        .until(|line| line.pools.first().is_some_and(|pool| pool.completions.ok == 2))
        .await;
    assert!(!second.full && second.pools[0].idle_ms.is_some(), "{second:?}");
    fixture.change(|spec| spec.queue_limit = 5);
    let changed = autoscaler.until(|line| !line.routes.is_empty()).await;
    assert_eq!(changed.routes[0].generation, 2);
    fixture.index.delete_route(&crate::route::RouteKey {
        namespace: "shop".into(),
        name: "web".into(),
    });
    assert!(autoscaler.until(|line| !line.routes.is_empty()).await.routes[0].gone);
}

#[tokio::test]
async fn a_wake_is_reported_at_once_and_its_acknowledgement_is_enough() {
    let (client, written) = fake_api(0);
    let mut fixture = Fixture::with(|_| {}, |_| {}, Some(client)).await;
    let mut autoscaler = Autoscaler::dial(&fixture).await;
    autoscaler.line().await;
    let listen = fixture.listen;
    let request = tokio::spawn(async move { send(listen, Request::get("/"), Bytes::new()).await });
    let line = autoscaler
        .until(|line| line.pools.first().is_some_and(|pool| pool.held == 1))
        .await;
    assert!(
        line.pools[0].oldest_held_us > 0 && line.pools[0].ready == 0,
        "{line:?}"
    );
    let waking = Directive {
        leader: true,
        waking: vec![web()],
        ..Directive::default()
    };
    for _ in 0..4 {
        autoscaler.say(&waking).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(written.lock().is_empty(), "{:?}", written.lock());
    let pod = FakePod::new().await;
    fixture.publish(&[&pod]);
    assert_eq!(request.await.expect("answered").status, StatusCode::OK);
    let line = autoscaler
        .until(|line| line.pools.iter().any(|pool| !pool.wakes.is_empty()))
        .await;
    let wake = line
        .pools
        .iter()
        .flat_map(|pool| &pool.wakes)
        .next()
        .expect("a wake");
    assert!(wake.signal_ms.is_some() && wake.answered_ms.is_some(), "{wake:?}");
}

#[tokio::test]
async fn without_an_autoscaler_the_activator_wakes_the_pool_itself() {
    let (client, written) = fake_api(0);
    let fixture = Fixture::with(|_| {}, |_| {}, Some(client)).await;
    let listen = fixture.listen;
    let request = tokio::spawn(async move { send(listen, Request::get("/"), Bytes::new()).await });
    until("written", || !written.lock().is_empty()).await;
    let write = written.lock()[0].clone();
    assert!(
        write.starts_with("PATCH /apis/apps/v1/namespaces/shop/deployments/web/scale?"),
        "{write}"
    );
    assert!(write.contains("fieldManager=dormouse-activator"), "{write}");
    assert!(
        write.contains(r#""replicas":1"#) && write.contains(r#""resourceVersion":"7""#),
        "{write}"
    );
    request.abort();
}

#[tokio::test]
async fn a_workload_that_stands_above_zero_is_not_written() {
    let (client, written) = fake_api(3);
    let fixture = Fixture::with(|_| {}, |_| {}, Some(client)).await;
    let listen = fixture.listen;
    let request = tokio::spawn(async move { send(listen, Request::get("/"), Bytes::new()).await });
    let already = fixture.app.hub.metrics.own_wakes.with_label_values(&["already"]);
    until("looked", || already.get() > 0).await;
    assert!(written.lock().is_empty());
    request.abort();
}

#[tokio::test]
async fn only_allowed_users_may_open_a_report_stream() {
    let (client, _) = fake_api(0);
    let fixture = Fixture::with(
        |args| {
            args.report_auth = ReportAuth::TokenReview;
            args.report_users = vec!["system:serviceaccount:x:autoscaler".into()];
        },
        |_| {},
        Some(client),
    )
    .await;
    for (token, wanted) in [
        (None, Some(StatusCode::UNAUTHORIZED)),
        (Some("bad"), Some(StatusCode::UNAUTHORIZED)),
        (Some("other"), Some(StatusCode::FORBIDDEN)),
        (Some("good"), None),
        (Some("good"), None),
    ] {
        assert_eq!(
            Autoscaler::try_dial(&fixture, token).await.err(),
            wanted,
            "{token:?}"
        );
    }
}

#[tokio::test]
async fn only_a_leader_is_obeyed_and_never_one_of_the_past() {
    let fixture = Fixture::new().await;
    let mut autoscaler = Autoscaler::dial(&fixture).await;
    let peers = vec![Peer {
        name: "one".into(),
        address: "127.0.0.1".into(),
    }];
    let directive = |leader, epoch| Directive {
        leader,
        epoch,
        activators: peers.clone(),
        ..Directive::default()
    };
    autoscaler.say(&directive(false, 9)).await;
    autoscaler.say(&directive(true, 5)).await;
    autoscaler.say(&directive(true, 4)).await;
    assert_eq!(autoscaler.until(|line| line.epoch > 0).await.epoch, 5);
    assert_eq!(autoscaler.line().await.epoch, 5);
}

#[tokio::test]
async fn a_silent_autoscaler_is_dropped() {
    let fixture = Fixture::new().await;
    let mut autoscaler = Autoscaler::dial(&fixture).await;
    let ended = tokio::time::timeout(PATIENCE, async {
        while let Some(Ok(_)) = autoscaler.lines.frame().await {}
    });
    ended.await.expect("the stream ends");
}

#[tokio::test]
async fn a_self_probe_lands_with_instance_and_route() {
    let fixture = Fixture::new().await;
    let mut autoscaler = Autoscaler::dial(&fixture).await;
    let order = |id, route: &str, address: String| ProbeOrder {
        id,
        namespace: "shop".into(),
        route: route.into(),
        address,
        tries: 2,
        age_ms: 0,
    };
    let nobody = SocketAddr::new(fresh_address(), 9);
    let stale = ProbeOrder {
        age_ms: crds::report::PROBE_MS,
        ..order(4, "web", fixture.listen.to_string())
    };
    let orders = vec![
        stale,
        order(1, "web", fixture.listen.to_string()),
        order(2, "other", fixture.listen.to_string()),
        order(3, "web", nobody.to_string()),
    ];
    autoscaler
        .say(&Directive {
            leader: true,
            probes: orders,
            ..Directive::default()
        })
        .await;
    let mut results = Vec::new();
    while results.len() < 3 {
        results.extend(autoscaler.until(|line| !line.probes.is_empty()).await.probes);
    }
    results.sort_by_key(|result| result.id);
    assert_eq!(
        results[0].landed.as_deref(),
        Some(fixture.app.hub.instance.as_str())
    );
    assert_eq!(results[1].error, "landed on the port of shop/web");
    assert!(
        results[2].landed.is_none() && results[2].error.starts_with("cannot connect"),
        "{results:?}"
    );
    assert!(results.iter().all(|result| result.id != 4), "{results:?}");
    assert_eq!(fixture.app.hub.metrics.self_probes_stale.get(), 1);
    assert_eq!(fixture.counters().arrivals, 0);
}

#[tokio::test]
async fn a_port_that_is_taken_is_reported_and_tried_again() {
    let mut fixture = Fixture::new().await;
    let taken = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let port = taken.local_addr().expect("bound").port();
    let old = fixture.listen;
    fixture.change(|spec| spec.ports[0].listen = port);
    let error = fixture.app.directory.acks()[0].error.clone();
    assert!(
        error.starts_with(&format!("cannot listen on 127.0.0.1:{port}")),
        "{error}"
    );
    assert!(tokio::net::TcpStream::connect(old).await.is_err());
    drop(taken);
    fixture.index.retry();
    let ack = &fixture.app.directory.acks()[0];
    assert_eq!((ack.error.as_str(), ack.generation), ("", 2));
    fixture.listen.set_port(port);
    let pod = FakePod::new().await;
    fixture.publish(&[&pod]);
    assert_eq!(fixture.get("/").await.status, StatusCode::OK);
}

#[tokio::test]
async fn acknowledgements_that_nobody_listens_to_are_not_kept_and_who_comes_gets_the_last() {
    let mut fixture = Fixture::new().await;
    for _ in 0..100 {
        fixture.change(|spec| spec.queue_limit += 1);
    }
    until("let go", || fixture.app.directory.new_acks() == 0).await;
    let generation = fixture.route.metadata.generation.expect("a generation");
    let mut scaler = Autoscaler::dial(&fixture).await;
    let first = scaler.line().await;
    assert!(first.full && first.routes.len() == 1, "{first:?}");
    assert_eq!(first.routes[0].generation, generation);
    fixture.change(|spec| spec.queue_limit += 1);
    let next = scaler.line_that(|report| !report.routes.is_empty()).await;
    assert_eq!(next.routes[0].generation, generation + 1);
}

#[tokio::test]
async fn two_routes_cannot_have_one_port() {
    let mut fixture = Fixture::new().await;
    let mut other = a_route("api", fixture.listen.port());
    other.metadata.uid = Some("uid-2".into());
    fixture.index.apply_route(&other);
    let acks = fixture.app.directory.acks();
    let error = |name: &str| {
        acks.iter()
            .find(|ack| ack.name == name)
            .expect("acknowledged")
            .error
            .clone()
    };
    assert_eq!(error("web"), "");
    assert!(error("api").ends_with("belongs to shop/web"), "{}", error("api"));
}

#[tokio::test]
async fn counters_of_a_pool_outlive_its_route() {
    let mut fixture = Fixture::new().await;
    let pod = FakePod::new().await;
    fixture.publish(&[&pod]);
    fixture.get("/").await;
    let key = crate::route::RouteKey {
        namespace: "shop".into(),
        name: "web".into(),
    };
    fixture.index.delete_route(&key);
    assert!(fixture.app.directory.pools().is_empty());
    fixture.index.apply_route(&fixture.route);
    assert_eq!((fixture.counters().arrivals, fixture.pool().ready()), (1, 1));
}

#[tokio::test]
async fn of_pools_without_a_route_those_that_went_last_keep_their_counters() {
    let mut fixture = Fixture::new().await;
    let pod = FakePod::new().await;
    fixture.publish(&[&pod]);
    fixture.get("/").await;
    let key = |name: &str| crate::route::RouteKey {
        namespace: "shop".into(),
        name: name.into(),
    };
    let others = |fixture: &mut Fixture, numbers: std::ops::Range<u32>| {
        for number in numbers {
            let name = format!("api-{number}");
            let mut route = a_route(&name, 0);
            route.spec.ports.clear();
            fixture.index.apply_route(&route);
            fixture.index.delete_route(&key(&name));
        }
    };
    for (what, before, after, kept) in [
        ("the last of many", 0..1000, 1000..1999, 1),
        ("many went after it", 0..0, 2000..3000, 0),
    ] {
        others(&mut fixture, before);
        fixture.index.delete_route(&key("web"));
        others(&mut fixture, after);
        fixture.index.apply_route(&fixture.route);
        assert_eq!(fixture.counters().arrivals, kept, "{what}");
    }
    let metrics = metrics(&fixture).await;
    assert!(
        metrics.contains("activator_pools_forgotten_total 2000\n"),
        "{metrics}"
    );
}

#[tokio::test]
async fn a_drain_lets_a_body_finish_and_takes_nothing_new() {
    let mut fixture = Fixture::new().await;
    let pod = FakePod::new().await;
    fixture.publish(&[&pod]);
    let mut autoscaler = Autoscaler::dial(&fixture).await;
    let listen = fixture.listen;
    let slow = tokio::spawn(async move { send(listen, Request::get("/delay/400"), Bytes::new()).await });
    fixture
        .until("at the pod", |counters| counters.in_flight == 1)
        .await;
    tokio::join!(fixture.app.drain(), async {
        assert!(!autoscaler.until(|line| !line.serving).await.serving);
        until("closed", || {
            fixture.app.server.ports() == 0 || fixture.app.phases.now() != crate::shutdown::Phase::Unready
        })
        .await;
        let answer = slow.await.expect("answered");
        assert_eq!((answer.status, answer.body.as_str()), (StatusCode::OK, "late"));
        let last = autoscaler
            .until(|line| line.pools.iter().any(|pool| pool.completions.ok == 1))
            .await;
        assert!(!last.serving);
    });
    assert!(tokio::net::TcpStream::connect(fixture.listen).await.is_err());
}

#[tokio::test]
async fn a_drain_gives_up_what_still_waits() {
    let fixture = Fixture::with(
        |args| args.drain_timeout = Duration::from_millis(100),
        |_| {},
        None,
    )
    .await;
    let listen = fixture.listen;
    let held = tokio::spawn(async move { send(listen, Request::get("/"), Bytes::new()).await });
    fixture.until("held", |counters| counters.held == 1).await;
    fixture.app.drain().await;
    let answer = held.await.expect("answered");
    assert_eq!(
        (answer.status, answer.body.as_str()),
        (
            StatusCode::SERVICE_UNAVAILABLE,
            "this activator is shutting down\n"
        )
    );
}

#[tokio::test]
async fn a_route_deleted_while_its_pods_are_published_is_served_until_they_are_not() {
    let mut fixture = Fixture::new().await;
    let pod = FakePod::new().await;
    fixture.publish(&[&pod]);
    let key = crate::route::RouteKey {
        namespace: "shop".into(),
        name: "web".into(),
    };
    fixture.index.depart(&key);
    let answer = fixture.get("/").await;
    assert_eq!(answer.status, StatusCode::OK, "served on");
    assert_eq!(answer.headers["connection"], "close", "and told to connect anew");
    fixture.index.apply_route(&fixture.route);
    fixture.publish(&[]);
    assert_eq!(fixture.app.server.ports(), 1, "it came back in time");
    fixture.publish(&[&pod]);
    fixture.index.depart(&key);
    fixture.publish(&[]);
    assert_eq!(fixture.app.server.ports(), 0, "nothing is published any more");
}

#[tokio::test]
async fn the_last_activator_serves_on_while_a_route_leads_to_it() {
    let alone = |args: &mut Args| args.drain_alone = Duration::from_secs(60);
    let mut fixture = Fixture::with(alone, |_| {}, None).await;
    let pod = FakePod::new().await;
    fixture.publish(&[&pod]);
    let (listen, delay) = (fixture.listen, fixture.app.hub.config.drain_delay);
    let key = fixture.pool().key.clone();
    tokio::join!(fixture.app.drain(), async {
        tokio::time::sleep(delay * 3).await;
        let answer = send(listen, Request::get("/"), Bytes::new()).await;
        assert_eq!(answer.status, StatusCode::OK, "past the delay");
        fixture.index.delete_route(&crate::route::RouteKey {
            namespace: key.namespace,
            name: key.pool,
        });
    });
    assert!(tokio::net::TcpStream::connect(listen).await.is_err());
}

#[tokio::test]
async fn an_activator_that_knows_of_another_does_not_stay() {
    let alone = |args: &mut Args| args.drain_alone = Duration::from_secs(60);
    let fixture = Fixture::with(alone, |_| {}, None).await;
    let autoscaler = Autoscaler::dial(&fixture).await;
    let other = Peer {
        name: "two".into(),
        address: "127.0.0.2".into(),
    };
    let directive = Directive {
        leader: true,
        epoch: 1,
        activators: vec![other],
        ..Directive::default()
    };
    autoscaler.say(&directive).await;
    until("told", || fixture.app.hub.others_serve()).await;
    let drained = tokio::time::timeout(PATIENCE, fixture.app.drain()).await;
    assert!(drained.is_ok(), "it stayed");
}

#[tokio::test]
async fn the_admin_endpoints_tell_what_there_is() {
    let mut fixture = Fixture::new().await;
    let pod = FakePod::new().await;
    fixture.publish(&[&pod]);
    fixture.get("/").await;
    fixture.until("ended", |counters| counters.outcomes.ok == 1).await;
    let admin = fixture.app.admin_address;
    let get = |path: &'static str| send(admin, Request::get(path), Bytes::new());
    assert_eq!(get("/live").await.status, StatusCode::OK);
    let ready = get("/ready").await;
    assert_eq!(
        (ready.status, ready.body.contains("not been listed")),
        (StatusCode::SERVICE_UNAVAILABLE, true)
    );
    let metrics = get("/metrics").await.body;
    let line = r#"activator_requests_total{namespace="shop",pool="web",outcome="ok"} 1"#;
    assert!(metrics.contains(line), "{metrics}");
    let tasks = metrics
        .lines()
        .find_map(|line| line.strip_prefix("activator_tasks "));
    let tasks: usize = tasks.and_then(|tasks| tasks.parse().ok()).expect("a number");
    assert!((1..1_000).contains(&tasks), "{tasks}");
    let state: serde_json::Value = serde_json::from_str(&get("/debug/state").await.body).expect("JSON");
    assert_eq!(state["pools"]["shop/web"]["pods"][0]["usable"], true);
    let put = send(admin, Request::put("/debug/log?filter=a%3Ddebug"), Bytes::new()).await;
    assert_eq!((put.status, put.body.as_str()), (StatusCode::OK, "a=debug\n"));
}
