//! Sleeping pools: holding, waking, probing, giving up.

use super::*;

#[tokio::test]
async fn a_request_waits_for_a_pod_and_is_answered() {
    let mut fixture = Fixture::new().await;
    let address = fresh_address();
    let address = SocketAddr::new(address, free_port(address).await);
    let listen = fixture.listen;
    let client = tokio::spawn(async move { send(listen, Request::get("/"), Bytes::new()).await });
    fixture.until("held", |counters| counters.held == 1).await;
    // The address is visible before anybody listens, as Kubernetes shows it.
    fixture.publish_as(&[(address, false, false)]);
    tokio::time::sleep(Duration::from_millis(60)).await;
    assert_eq!(fixture.pool().ready(), 0);
    let _pod = FakePod::on(address).await;
    let answer = client.await.expect("answered");
    assert_eq!((answer.status, answer.body.as_str()), (StatusCode::OK, "hello"));
    assert!(
        answer.headers["server-timing"]
            .to_str()
            .expect("text")
            .starts_with("dormouse-cold;dur=")
    );
    fixture
        .until("ended", |counters| {
            counters.outcomes.ok == 1 && counters.in_flight == 0
        })
        .await;
    let report = fixture.pool().report(fixture.app.hub.now(), true);
    let wake = report.wakes.first().expect("a wake");
    assert_eq!((wake.held, wake.woken_by.as_str()), (1, "GET /"));
    assert!(
        wake.address_ms < wake.listening_ms && wake.listening_ms <= wake.answered_ms,
        "{wake:?}"
    );
    assert!(
        report.held_seconds > 0.05 && report.in_flight_seconds > 0.0,
        "{report:?}"
    );
}

#[tokio::test]
async fn a_warm_answer_says_nothing_of_a_cold_start() {
    let mut fixture = Fixture::new().await;
    let pod = FakePod::new().await;
    fixture.publish(&[&pod]);
    let answer = fixture.get("/").await;
    assert_eq!(
        (answer.status, answer.headers.contains_key("server-timing")),
        (StatusCode::OK, false)
    );
}

#[tokio::test]
async fn held_requests_go_out_in_the_order_they_came() {
    let mut fixture = Fixture::with_route(|spec| spec.pools[0].container_concurrency = 1).await;
    let (done, mut order) = tokio::sync::mpsc::unbounded_channel();
    for number in 0..20_u32 {
        let (listen, done) = (fixture.listen, done.clone());
        tokio::spawn(async move {
            send(listen, Request::get("/delay/2"), Bytes::new()).await;
            done.send(number).expect("collected");
        });
        fixture
            .until("held", |counters| counters.held == number + 1)
            .await;
    }
    let pod = FakePod::new().await;
    fixture.publish(&[&pod]);
    for number in 0..20 {
        assert_eq!(order.recv().await, Some(number));
    }
    assert_eq!(pod.seen.most_overlap.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn one_more_than_the_queue_limit_is_refused() {
    let fixture = Fixture::with_route(|spec| spec.queue_limit = 2).await;
    for _ in 0..2 {
        let listen = fixture.listen;
        tokio::spawn(async move { send(listen, Request::get("/"), Bytes::new()).await });
    }
    fixture.until("held", |counters| counters.held == 2).await;
    let answer = fixture.get("/").await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer.headers.contains_key("retry-after"));
    assert_eq!(
        answer.body,
        "2 requests are held already (queue-limit 2): shop/web has no pod\n"
    );
}

#[tokio::test]
async fn a_request_is_held_no_longer_than_the_cold_start_timeout() {
    let mut fixture = Fixture::with_route(|spec| spec.cold_start_timeout_ms = 200).await;
    let nobody = SocketAddr::new(fresh_address(), 9);
    fixture.publish_as(&[(nobody, false, false)]);
    let answer = fixture.get("/").await;
    assert_eq!(answer.status, StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(answer.body, "held 0.2 s: 0 of 1 pods of shop/web are ready\n");
    fixture
        .until("refused", |counters| {
            counters.outcomes.refused == 1 && counters.held == 0
        })
        .await;
}

#[tokio::test]
async fn a_client_that_goes_frees_its_place_in_line() {
    let fixture = Fixture::with_route(|spec| spec.queue_limit = 1).await;
    let listen = fixture.listen;
    let client = tokio::spawn(async move { send(listen, Request::get("/"), Bytes::new()).await });
    fixture.until("held", |counters| counters.held == 1).await;
    client.abort();
    fixture
        .until("gone", |counters| {
            counters.held == 0 && counters.outcomes.cancelled == 1
        })
        .await;
    assert_eq!(fixture.pool().held(), 0);
    assert!(!fixture.pool().is_waking());
}

#[tokio::test]
async fn kubernetes_is_believed_once_it_has_said_ready() {
    let mut fixture = Fixture::new().await;
    let (one, two) = (FakePod::new().await, FakePod::new().await);
    fixture.publish(&[&one, &two]);
    assert_eq!(fixture.pool().ready(), 2);
    for (serving, terminating) in [(false, false), (true, true)] {
        fixture.publish_as(&[one.published(false), (two.address, serving, terminating)]);
        assert_eq!(fixture.pool().ready(), 1);
        for _ in 0..20 {
            assert_eq!(fixture.get("/").await.status, StatusCode::OK);
        }
        assert_eq!(two.requests(), 0);
        fixture.publish(&[&one, &two]);
    }
}

#[tokio::test]
async fn a_probe_over_http_needs_a_good_status() {
    let mut fixture = Fixture::with_route(|spec| {
        spec.pools[0].probe = Probe {
            kind: ProbeKind::Http,
            path: "/status/503".into(),
            ..Probe::default()
        };
    })
    .await;
    let pod = FakePod::new().await;
    fixture.publish_as(&[(pod.address, false, false)]);
    until("probed a few times", || pod.requests() > 3).await;
    assert_eq!(fixture.pool().ready(), 0);
    fixture.change(|spec| spec.pools[0].probe.path = "/status/204".into());
    until("ready", || fixture.pool().ready() == 1).await;
}

#[tokio::test]
async fn a_probe_that_only_kubernetes_can_run_is_waited_for() {
    let mut fixture = Fixture::with_route(|spec| spec.pools[0].probe.kind = ProbeKind::Kubernetes).await;
    let pod = FakePod::new().await;
    fixture.publish_as(&[(pod.address, false, false)]);
    let listen = fixture.listen;
    let client = tokio::spawn(async move { send(listen, Request::get("/"), Bytes::new()).await });
    fixture.until("held", |counters| counters.held == 1).await;
    assert_eq!(fixture.pool().ready(), 0);
    fixture.publish(&[&pod]);
    assert_eq!(client.await.expect("answered").status, StatusCode::OK);
}

#[tokio::test]
async fn noise_neither_wakes_nor_counts() {
    let mut fixture = Fixture::with_route(|spec| spec.ignore.paths = vec!["/healthz".into()]).await;
    for (agent, path, status) in [
        ("kube-probe/1.35", "/", 200),
        ("Prometheus/3", "/metrics", 503),
        ("curl", "/healthz", 200),
    ] {
        let answer = fixture.send(Request::get(path).header("user-agent", agent)).await;
        assert_eq!(answer.status.as_u16(), status, "{agent}");
    }
    let pod = FakePod::new().await;
    fixture.publish(&[&pod]);
    let answer = fixture
        .send(Request::get("/").header("user-agent", "kube-probe/1.35"))
        .await;
    assert_eq!(
        (answer.status, answer.body.as_str(), pod.requests()),
        (StatusCode::OK, "hello", 1)
    );
    assert_eq!(
        (fixture.counters().arrivals, fixture.pool().is_waking()),
        (0, false)
    );
}

#[tokio::test]
async fn a_burst_of_cold_requests_is_answered_whole() {
    let mut fixture = Fixture::new().await;
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..200 {
        let listen = fixture.listen;
        clients.spawn(async move { send(listen, Request::get("/"), Bytes::new()).await.status });
    }
    fixture.until("held", |counters| counters.held == 200).await;
    let pod = FakePod::new().await;
    fixture.publish_as(&[(pod.address, false, false)]);
    let statuses = clients.join_all().await;
    assert!(statuses.iter().all(|status| *status == StatusCode::OK));
    assert_eq!(pod.requests(), 200);
}

#[test]
fn a_held_request_is_small() {
    fn size<A, B, F: Future>(_: fn(A, B) -> F) -> usize {
        size_of::<F>()
    }
    // With its connection a held request may cost 16 KB. hyper's two buffers take half of that; a request that waits and
    // sending are boxed apart.
    let size = size(crate::request::handle);
    assert!(size <= 1536, "{size} bytes");
}
