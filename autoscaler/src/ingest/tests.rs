//! Against a fake activator: an HTTP/2 server on loopback whose lines the test writes and whose directives it reads.

use bytes::Bytes;
use crds::report::{HEARTBEAT_MS, PoolReport, SILENCE_MS};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;

use super::*;

const SOON: Duration = Duration::from_secs(10);

type Body = BoxBody<Bytes, std::convert::Infallible>;

/// One accepted report stream.
struct Stream {
    /// Lines to send.
    lines: mpsc::UnboundedSender<Bytes>,
    directives: mpsc::UnboundedReceiver<Directive>,
    authorization: Option<String>,
}

impl Stream {
    fn say(&self, report: &Report) {
        let mut line = serde_json::to_vec(report).expect("a line");
        line.push(b'\n');
        self.lines.send(Bytes::from(line)).expect("the stream stands");
    }

    async fn until(&mut self, what: &str, wanted: impl Fn(&Directive) -> bool) -> Directive {
        let search = async {
            loop {
                let directive = self
                    .directives
                    .recv()
                    .await
                    .unwrap_or_else(|| panic!("{what}: the stream ended"));
                if wanted(&directive) {
                    return directive;
                }
            }
        };
        tokio::time::timeout(SOON, search)
            .await
            .unwrap_or_else(|_| panic!("{what}: not in time"))
    }

    async fn ends(&mut self) {
        let end = async { while self.directives.recv().await.is_some() {} };
        tokio::time::timeout(SOON, end)
            .await
            .expect("the stream is closed");
    }
}

/// A fake activator: its endpoint and the streams it accepts.
async fn activator() -> (Endpoint, mpsc::UnboundedReceiver<Stream>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let (accepted, streams) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let accepted = accepted.clone();
            let service = hyper::service::service_fn(move |request| serve(request, accepted.clone()));
            let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(tcp), service);
            tokio::spawn(async move {
                let _ = serving.await;
            });
        }
    });
    let endpoint = Endpoint {
        address: "127.0.0.1".into(),
        port,
        node: Some("n".into()),
        zone: None,
    };
    (endpoint, streams)
}

async fn serve(
    request: Request<Incoming>,
    accepted: mpsc::UnboundedSender<Stream>,
) -> Result<Response<Body>, std::convert::Infallible> {
    let (lines, mut to_send) = mpsc::unbounded_channel::<Bytes>();
    let (to_read, directives) = mpsc::unbounded_channel();
    let authorization = request.headers().get("authorization");
    let authorization = authorization
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned);
    assert_eq!(
        (request.method().as_str(), request.uri().path()),
        ("POST", "/v1/report")
    );
    let _ = accepted.send(Stream {
        lines,
        directives,
        authorization,
    });
    let mut body = request.into_body();
    tokio::spawn(async move {
        let mut buffer = Vec::new();
        while let Some(Ok(frame)) = body.frame().await {
            buffer.extend_from_slice(frame.data_ref().map(|data| &data[..]).unwrap_or_default());
            while let Some(at) = buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = buffer.drain(..=at).collect();
                let _ = to_read.send(serde_json::from_slice(&line).expect("a directive"));
            }
        }
    });
    let frames = futures::stream::poll_fn(move |context| {
        to_send
            .poll_recv(context)
            .map(|line| line.map(|line| Ok(Frame::data(line))))
    });
    let mut response = Response::new(BodyExt::boxed(StreamBody::new(frames)));
    *response.status_mut() = StatusCode::OK;
    Ok(response)
}

struct Running {
    fleet: Arc<Fleet>,
    metrics: Arc<Metrics>,
    events: mpsc::UnboundedReceiver<Event>,
    endpoints: watch::Sender<Arc<Vec<Endpoint>>>,
    leadership: watch::Sender<Leadership>,
    stop: CancellationToken,
}

/// Runs a fleet. A line that names a pool with held requests sets that pool waking, as the scaler would.
fn start(endpoints: Vec<Endpoint>, leader: bool) -> Running {
    let metrics = Metrics::new();
    let fleet = Fleet::new("autoscaler-1", Arc::clone(&metrics));
    let (events, received) = mpsc::unbounded_channel();
    let endpoints = watch::Sender::new(Arc::new(endpoints));
    let leadership = watch::Sender::new(Leadership {
        leader,
        epoch_base: 7 << 32,
    });
    let stop = CancellationToken::new();
    let waker = Arc::clone(&fleet);
    let sink: Sink = Arc::new(move |event| {
        if let Event::Line { report, .. } = &event {
            for pool in report.pools.iter().filter(|pool| pool.held > 0) {
                waker.set_waking(
                    &PoolKey {
                        namespace: pool.namespace.clone(),
                        pool: pool.pool.clone(),
                    },
                    true,
                );
            }
        }
        let _ = events.send(event);
    });
    tokio::spawn(Arc::clone(&fleet).run(
        endpoints.subscribe(),
        leadership.subscribe(),
        Token::Text("secret".into()),
        sink,
        stop.clone(),
    ));
    Running {
        fleet,
        metrics,
        events: received,
        endpoints,
        leadership,
        stop,
    }
}

fn report(name: &str) -> Report {
    Report {
        activator: name.into(),
        instance: format!("{name}-instance"),
        seq: 1,
        full: true,
        serving: true,
        ..Report::default()
    }
}

async fn next<T>(receiver: &mut mpsc::UnboundedReceiver<T>) -> T {
    tokio::time::timeout(SOON, receiver.recv())
        .await
        .expect("in time")
        .expect("it runs")
}

async fn until(what: &str, fleet: &Fleet, wanted: impl Fn(&Fleet) -> bool) {
    let mut changes = fleet.changes();
    let search = async {
        while !wanted(fleet) {
            changes.changed().await.expect("the fleet runs");
        }
    };
    tokio::time::timeout(SOON, search)
        .await
        .unwrap_or_else(|_| panic!("{what}: not in time"));
}

#[tokio::test]
async fn a_leader_tells_membership_acknowledges_wakes_and_settles_the_epoch() {
    let (endpoint, mut streams) = activator().await;
    let mut running = start(vec![endpoint], true);
    let mut stream = next(&mut streams).await;
    assert_eq!(stream.authorization.as_deref(), Some("Bearer secret"));
    assert_eq!(
        running.fleet.missing(),
        ["127.0.0.1"],
        "no line yet: its totals are missing"
    );
    stream
        .until("the first directive, before any line", |said| {
            said.leader && said.activators.is_empty()
        })
        .await;

    stream.say(&report("a"));
    let epoch = (7 << 32) + 1;
    let said = stream.until("a membership", |said| said.epoch == epoch).await;
    assert_eq!(
        said.activators,
        [Peer {
            name: "a".into(),
            address: "127.0.0.1".into()
        }]
    );
    assert!(!said.settled);
    assert!(running.fleet.missing().is_empty());
    stream.say(&Report { epoch, ..report("a") });
    stream.until("settled", |said| said.settled).await;

    let held = PoolReport {
        namespace: "d".into(),
        pool: "web".into(),
        held: 1,
        ..PoolReport::default()
    };
    stream.say(&Report {
        epoch,
        full: false,
        pools: vec![held],
        ..report("a")
    });
    let key = PoolKey {
        namespace: "d".into(),
        pool: "web".into(),
    };
    stream
        .until("the wake's acknowledgement", |said| said.waking == [key.clone()])
        .await;
    stream
        .until("its repetition", |said| said.waking == [key.clone()])
        .await;
    running.fleet.set_waking(&key, false);
    stream.until("its end", |said| said.waking.is_empty()).await;
    assert!(matches!(next(&mut running.events).await, Event::Line { .. }));
    running.stop.cancel();
    stream.ends().await;
}

#[tokio::test]
async fn a_standby_keeps_its_stream_and_leads_on_it_later() {
    let (endpoint, mut streams) = activator().await;
    let running = start(vec![endpoint], false);
    let mut stream = next(&mut streams).await;
    stream.say(&report("a"));
    until("a live activator", &running.fleet, |fleet| {
        fleet.live().len() == 1
    })
    .await;
    let said = stream.until("a heartbeat", |_| true).await;
    assert_eq!(
        said,
        Directive {
            autoscaler: "autoscaler-1".into(),
            ..Directive::default()
        }
    );
    running.leadership.send_replace(Leadership {
        leader: true,
        epoch_base: 8 << 32,
    });
    let said = stream.until("leadership", |said| said.leader).await;
    assert_eq!((said.epoch, said.activators.len()), ((8 << 32) + 1, 1));
}

#[tokio::test]
async fn heartbeats_come_often_enough_for_the_other_side() {
    let (endpoint, mut streams) = activator().await;
    let _running = start(vec![endpoint], false);
    let mut stream = next(&mut streams).await;
    let lines = stream.lines.clone();
    tokio::spawn(async move {
        while lines.send(Bytes::from_static(b"{\"serving\":true}\n")).is_ok() {
            tokio::time::sleep(Duration::from_millis(HEARTBEAT_MS)).await;
        }
    });
    let mut last = Instant::now();
    for _ in 0..4 {
        stream.until("a heartbeat", |_| true).await;
        assert!(last.elapsed() < Duration::from_millis(SILENCE_MS));
        last = Instant::now();
    }
}

#[tokio::test]
async fn a_silent_stream_is_broken_and_dialled_again() {
    let (endpoint, mut streams) = activator().await;
    let mut running = start(vec![endpoint], true);
    let mut first = next(&mut streams).await;
    first.say(&report("a"));
    until("live", &running.fleet, |fleet| fleet.live().len() == 1).await;
    let silent = Instant::now();
    until("gone", &running.fleet, |fleet| fleet.live().is_empty()).await;
    assert!(
        silent.elapsed() >= Duration::from_millis(SILENCE_MS - 100),
        "{:?}",
        silent.elapsed()
    );
    assert!(matches!(next(&mut running.events).await, Event::Line { .. }));
    let Event::Gone { instance } = next(&mut running.events).await else {
        panic!("gone is told")
    };
    assert_eq!(instance, "a-instance");
    assert_eq!(
        running.fleet.missing().len(),
        1,
        "it is listed, so it is waited for"
    );
    first.ends().await;
    let second = next(&mut streams).await;
    second.say(&report("a"));
    until("live again", &running.fleet, |fleet| fleet.live().len() == 1).await;
}

#[tokio::test]
async fn a_malformed_line_resets_the_stream_and_is_counted() {
    let (endpoint, mut streams) = activator().await;
    let running = start(vec![endpoint], true);
    let mut first = next(&mut streams).await;
    first.say(&report("a"));
    first
        .lines
        .send(Bytes::from_static(b"{\"activator\": 3}\n"))
        .expect("the stream stands");
    first.ends().await;
    next(&mut streams).await;
    assert_eq!(running.metrics.lines_malformed.get(), 1);
}

#[tokio::test]
async fn an_unlisted_activator_is_used_until_its_stream_breaks() {
    let (endpoint, mut streams) = activator().await;
    let running = start(vec![endpoint], true);
    let stream = next(&mut streams).await;
    stream.say(&report("a"));
    until("live", &running.fleet, |fleet| fleet.live().len() == 1).await;
    running.endpoints.send_replace(Arc::default());
    stream.say(&Report {
        serving: false,
        full: false,
        ..report("a")
    });
    until("draining", &running.fleet, |fleet| {
        fleet.live().iter().all(|live| !live.serving)
    })
    .await;
    drop(stream);
    until("gone", &running.fleet, |fleet| fleet.live().is_empty()).await;
    assert!(running.fleet.missing().is_empty(), "nobody waits for it");
    let again = tokio::time::timeout(Duration::from_millis(300), streams.recv()).await;
    assert!(again.is_err(), "it is not dialled again");
}

#[tokio::test]
async fn a_self_probe_counts_only_when_it_lands_on_a_live_activator() {
    let route = RouteKey {
        namespace: "d".into(),
        name: "web".into(),
    };
    let (endpoint, mut streams) = activator().await;
    let running = start(vec![endpoint], true);
    assert!(
        matches!(
            running.fleet.probe(&route, "127.0.0.1:1", 3).await,
            Probe::Missed(_)
        ),
        "nobody is live"
    );
    let mut stream = next(&mut streams).await;
    stream.say(&report("a"));
    until("live", &running.fleet, |fleet| fleet.live().len() == 1).await;
    for (landed, want) in [
        (
            Some("a-instance"),
            Probe::Landed {
                by: "a".into(),
                on: "a".into(),
            },
        ),
        (
            Some("unknown"),
            Probe::Missed("a landed on an activator that has no live stream".into()),
        ),
        (None, Probe::Missed("a dialled 127.0.0.1:80: refused".into())),
    ] {
        let fleet = Arc::clone(&running.fleet);
        let of = route.clone();
        let probing = tokio::spawn(async move { fleet.probe(&of, "127.0.0.1:80", 3).await });
        let order = stream
            .until("an order", |said| !said.probes.is_empty())
            .await
            .probes
            .remove(0);
        assert_eq!(
            (order.namespace.as_str(), order.route.as_str(), order.tries),
            ("d", "web", 3)
        );
        let landed = landed.map(str::to_owned);
        let error = if landed.is_none() {
            "refused".to_owned()
        } else {
            String::new()
        };
        let answer = ProbeResult {
            id: order.id,
            landed,
            error,
        };
        stream.say(&Report {
            full: false,
            probes: vec![answer],
            ..report("a")
        });
        assert_eq!(probing.await.expect("no panic"), want);
    }
}

#[tokio::test]
async fn acknowledgements_follow_lines_and_snapshots() {
    let ack = |name: &str, generation| RouteAck {
        namespace: "d".into(),
        name: name.into(),
        uid: "u".into(),
        generation,
        ..RouteAck::default()
    };
    let mut acks = HashMap::new();
    let names = |touched: Vec<RouteKey>| touched.into_iter().map(|key| key.name).collect::<Vec<_>>();
    assert_eq!(
        names(apply_acks(&mut acks, true, vec![ack("x", 1), ack("y", 1)])),
        ["x", "y"]
    );
    assert_eq!(
        names(apply_acks(&mut acks, false, vec![ack("x", 1), ack("y", 2)])),
        ["y"],
        "only what changed"
    );
    assert_eq!(
        names(apply_acks(&mut acks, true, vec![ack("y", 2)])),
        ["x"],
        "not named: gone"
    );
    let gone = RouteAck {
        gone: true,
        ..ack("y", 2)
    };
    assert_eq!(names(apply_acks(&mut acks, false, vec![gone])), ["y"]);
    assert!(acks.is_empty());
}
