//! Hard limits of one activator; pods that go; requests sent again.

use super::*;

#[tokio::test]
async fn a_pod_never_sees_more_than_its_limit() {
    let mut fixture = Fixture::with_route(|spec| spec.pools[0].container_concurrency = 2).await;
    let pods = [FakePod::new().await, FakePod::new().await];
    fixture.publish(&[&pods[0], &pods[1]]);
    let mut crowd = Crowd::default();
    crowd.send(&fixture, 60, "/delay/5");
    crowd.all_is_well().await;
    for pod in &pods {
        assert_eq!(pod.seen.most_overlap.load(Ordering::SeqCst), 2);
    }
}

#[tokio::test]
async fn ports_that_nobody_connects_to_keep_no_room_for_connections() {
    let mut fixture = Fixture::with(|args| args.max_connections = 2, |_| {}, None).await;
    let ip = fixture.listen.ip();
    let mut listens = vec![fixture.listen.port()];
    for port in 81..84 {
        let listen = free_port(ip).await;
        listens.push(listen);
        fixture.change(|spec| {
            spec.ports.push(RoutePort {
                port,
                listen,
                ..RoutePort::default()
            });
        });
    }
    // The last first: a port that is left gives its room to one that waits.
    for listen in listens.into_iter().rev() {
        let probe = Request::get("/").header("dormouse-probe", "x");
        let answer = send(SocketAddr::new(ip, listen), probe, Bytes::new()).await;
        assert_eq!(answer.status, StatusCode::OK, "{listen}");
    }
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_until_others_end() {
    let mut fixture = Fixture::with(|args| args.max_connections = 2, |_| {}, None).await;
    let pod = FakePod::new().await;
    fixture.publish(&[&pod]);
    let mut crowd = Crowd::default();
    crowd.send(&fixture, 8, "/delay/20");
    crowd.all_is_well().await;
    assert_eq!(pod.seen.most_overlap.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn connections_that_only_a_rush_needed_are_closed_after_it() {
    let mut fixture = Fixture::with(|args| args.workers = Some(1), |_| {}, None).await;
    let pod = FakePod::new().await;
    fixture.publish(&[&pod]);
    let mut crowd = Crowd::default();
    crowd.send(&fixture, 8, "/delay/100");
    fixture
        .until("all at the pod", |counters| counters.in_flight == 8)
        .await;
    crowd.all_is_well().await;
    let open = || pod.seen.connections.load(Ordering::SeqCst);
    let pool = fixture.pool();
    assert_eq!(pool.close_unused(), 0, "they have all been used");
    let mut closed = 0;
    // One request at a time needs one of them, and it is always the same.
    for _ in 0..1_000 {
        assert_eq!(fixture.get("/").await.status, StatusCode::OK);
        closed += pool.close_unused();
        if (closed, open()) == (7, 1) {
            break;
        }
    }
    assert_eq!((closed, open()), (7, 1));
    until("nobody needs the last one", || {
        closed += pool.close_unused();
        closed == 8
    })
    .await;
    until("it is closed", || open() == 0).await;
    assert_eq!(fixture.get("/").await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_pod_that_refuses_is_passed_over_and_comes_back_after_a_probe() {
    let mut fixture = Fixture::new().await;
    let (good, bad) = (FakePod::new().await, FakePod::new().await);
    let address = bad.address;
    fixture.publish(&[&good, &bad]);
    bad.kill().await;
    for _ in 0..20 {
        assert_eq!(fixture.get("/").await.status, StatusCode::OK);
    }
    assert_eq!((good.requests(), fixture.pool().ready()), (20, 1));
    let back = FakePod::on(address).await;
    until("used again", || fixture.pool().ready() == 2).await;
    drop(back);
}

#[tokio::test]
async fn a_get_survives_the_death_of_its_pod_and_a_post_does_not() {
    let mut fixture = Fixture::new().await;
    let (first, second) = (FakePod::new().await, FakePod::new().await);
    fixture.publish(&[&first]);
    let listen = fixture.listen;
    let get = tokio::spawn(async move { send(listen, Request::get("/delay/5000"), Bytes::new()).await });
    let post =
        tokio::spawn(async move { send(listen, Request::post("/delay/5000"), Bytes::from("x")).await });
    fixture
        .until("both there", |counters| counters.in_flight == 2)
        .await;
    fixture.publish_as(&[first.published(true), second.published(false)]);
    until("the pod has them", || first.requests() == 2).await;
    first.kill().await;
    let post = post.await.expect("answered");
    assert_eq!(post.status, StatusCode::BAD_GATEWAY);
    assert!(post.body.starts_with("no answer from a pod: "), "{}", post.body);
    until("asked the other", || second.requests() == 1).await;
    get.abort();
    fixture
        .until("freed", |counters| {
            counters.in_flight == 0 && counters.outcomes.failed == 1
        })
        .await;
}

#[tokio::test]
async fn connections_that_a_pod_closed_while_idle_lose_nothing() {
    let mut fixture = Fixture::new().await;
    let pod = FakePod::new().await;
    let address = pod.address;
    fixture.publish(&[&pod]);
    assert_eq!(fixture.get("/").await.status, StatusCode::OK);
    // The same address, another process: every idle connection is dead.
    pod.kill().await;
    let pod = FakePod::on(address).await;
    for _ in 0..10 {
        let answer = send(fixture.listen, Request::post("/echo"), Bytes::from("body")).await;
        assert_eq!((answer.status, answer.body.as_str()), (StatusCode::OK, "body"));
    }
    assert_eq!(pod.requests(), 10);
}

#[tokio::test]
async fn a_limit_may_change_while_requests_wait() {
    let mut fixture = Fixture::with_route(|spec| spec.pools[0].container_concurrency = 1).await;
    let pod = FakePod::new().await;
    fixture.publish(&[&pod]);
    let mut crowd = Crowd::default();
    crowd.send(&fixture, 5, "/delay/100");
    fixture
        .until("one at the pod", |counters| {
            (counters.in_flight, counters.held) == (1, 4)
        })
        .await;
    fixture.change(|spec| spec.pools[0].container_concurrency = 0);
    fixture
        .until("all at the pod", |counters| counters.in_flight == 5)
        .await;
    crowd.all_is_well().await;
}

#[tokio::test]
async fn weights_divide_requests_among_pools() {
    let mut fixture = Fixture::with_route(|spec| {
        spec.pools[0].weight = 2_500;
        spec.pools.push(RoutePool {
            name: "web-2".into(),
            weight: 7_500,
            ..spec.pools[0].clone()
        });
        spec.pools[1].weight = 7_500;
    })
    .await;
    let (one, other) = (FakePod::new().await, FakePod::new().await);
    fixture.publish(&[&one]);
    let slice = a_slice(
        "web-2",
        "web-2-x",
        fixture.listen.port(),
        other.address,
        true,
        false,
    );
    fixture.index.apply_slice(&slice);
    for _ in 0..400 {
        assert_eq!(fixture.get("/").await.status, StatusCode::OK);
    }
    // Four standard deviations of a binomial with n = 400, p = 1/4 are 35.
    assert!((65..135).contains(&one.requests()), "{}", one.requests());
    assert_eq!(one.requests() + other.requests(), 400);
}
