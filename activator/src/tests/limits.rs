//! Hard limits, one activator and two; pods that go; requests sent again.

use crds::report::Peer;

use super::*;

/// Tells both activators of a membership, as their report streams would.
fn join(fleet: &mut [&mut Fixture], epoch: u64, settled: bool) {
    let peers: Vec<Peer> = fleet
        .iter()
        .map(|fixture| Peer {
            name: fixture.app.hub.config.name.clone(),
            address: fixture.app.hub.config.bind.to_string(),
        })
        .collect();
    for fixture in fleet {
        fixture.app.hub.set_membership(epoch, &peers, settled);
        fixture.pool().reshare();
    }
}

/// Two activators with one Route on the same port, and so the same pods.
async fn two(limit: u32) -> (Fixture, Fixture) {
    let addresses = [fresh_address(), fresh_address()];
    let port = free_port(addresses[0]).await;
    let make = |name: &'static str, bind: IpAddr| {
        Fixture::with(
            move |args| {
                args.bind = bind;
                args.name = Some(name.into());
            },
            move |spec| {
                spec.pools[0].container_concurrency = limit;
                spec.ports[0].listen = port;
            },
            None,
        )
    };
    let (mut one, mut other) = (make("one", addresses[0]).await, make("other", addresses[1]).await);
    one.listen.set_port(port);
    other.listen.set_port(port);
    (one, other)
}

/// Pods of which each of these activators owns `each`.
async fn divided(activators: &[&str], each: usize) -> Vec<FakePod> {
    let mut shares: Vec<crate::balance::Shares> = activators
        .iter()
        .map(|name| crate::balance::Shares::new(name))
        .collect();
    for share in &mut shares {
        share.update(
            1,
            activators.iter().map(|name| (*name).to_owned()).collect(),
            true,
        );
    }
    let mut pods: Vec<FakePod> = Vec::new();
    let owned = |pods: &[FakePod], share: &crate::balance::Shares| {
        pods.iter().filter(|pod| share.may_use(pod.address.ip())).count()
    };
    while pods.len() < each * activators.len() {
        let pod = FakePod::new().await;
        let owner = shares.iter().find(|share| share.may_use(pod.address.ip()));
        if owner.is_some_and(|owner| owned(&pods, owner) < each) {
            pods.push(pod);
        }
    }
    pods
}

#[tokio::test]
async fn a_pod_never_sees_more_than_its_limit() {
    let mut fixture = Fixture::with_route(|spec| spec.pools[0].container_concurrency = 2).await;
    let pods = [FakePod::new().await, FakePod::new().await];
    fixture.publish(&[&pods[0], &pods[1]]);
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..60 {
        let listen = fixture.listen;
        clients.spawn(async move { send(listen, Request::get("/delay/5"), Bytes::new()).await.status });
    }
    assert!(
        clients
            .join_all()
            .await
            .iter()
            .all(|status| *status == StatusCode::OK)
    );
    for pod in &pods {
        assert_eq!(pod.seen.most_overlap.load(Ordering::SeqCst), 2);
    }
}

#[tokio::test]
async fn two_activators_together_keep_to_the_limit() {
    let (mut one, mut other) = two(1).await;
    join(&mut [&mut one, &mut other], 1, true);
    let pods = [FakePod::new().await, FakePod::new().await, FakePod::new().await];
    for fixture in [&mut one, &mut other] {
        fixture.publish(&[&pods[0], &pods[1], &pods[2]]);
    }
    let mut clients = tokio::task::JoinSet::new();
    for number in 0..60 {
        let listen = if number % 2 == 0 { one.listen } else { other.listen };
        clients.spawn(async move { send(listen, Request::get("/delay/5"), Bytes::new()).await.status });
    }
    assert!(
        clients
            .join_all()
            .await
            .iter()
            .all(|status| *status == StatusCode::OK)
    );
    for pod in &pods {
        assert_eq!(pod.seen.most_overlap.load(Ordering::SeqCst), 1);
    }
}

#[tokio::test]
async fn an_activator_without_a_pod_of_its_own_asks_its_peer() {
    let (mut one, mut other) = two(1).await;
    join(&mut [&mut one, &mut other], 1, true);
    let pod = FakePod::new().await;
    for fixture in [&mut one, &mut other] {
        fixture.publish(&[&pod]);
    }
    // One of them owns the only pod; both answer, and never at once.
    let mut clients = tokio::task::JoinSet::new();
    for number in 0..20 {
        let listen = if number % 2 == 0 { one.listen } else { other.listen };
        clients.spawn(async move { send(listen, Request::get("/delay/5"), Bytes::new()).await.status });
    }
    assert!(
        clients
            .join_all()
            .await
            .iter()
            .all(|status| *status == StatusCode::OK)
    );
    assert_eq!(pod.seen.most_overlap.load(Ordering::SeqCst), 1);
    // Each request is counted once: arrival and end where it came in, its time at the pod where it went out.
    for fixture in [&one, &other] {
        fixture
            .until("ended", |counters| {
                counters.outcomes.ok == 10 && counters.in_flight == 0
            })
            .await;
        assert_eq!(fixture.counters().arrivals, 10);
    }
    let service = [one.counters().service_seconds, other.counters().service_seconds];
    assert!(
        service.contains(&0.0) && service.iter().sum::<f64>() > 0.1,
        "{service:?}"
    );
    // The pod sees neither the mark nor a second forwarder.
    for fixture in [&one, &other] {
        let seen = fixture.get("/headers").await.body;
        assert!(
            !seen.contains("dormouse-hop") && seen.contains("x-forwarded-for: 127.0.0.1\n"),
            "{seen}"
        );
    }
}

#[tokio::test]
async fn a_marked_request_is_not_sent_on() {
    let (mut one, mut other) = two(1).await;
    join(&mut [&mut one, &mut other], 1, true);
    let pod = FakePod::new().await;
    for fixture in [&mut one, &mut other] {
        fixture.publish(&[&pod]);
    }
    let owner = one.app.hub.shares(|shares| shares.may_use(pod.address.ip()));
    let stranger = if owner { &other } else { &one };
    let listen = stranger.listen;
    let client = tokio::spawn(async move {
        send(
            listen,
            Request::get("/").header("dormouse-hop", "x"),
            Bytes::new(),
        )
        .await
    });
    stranger.until("held", |counters| counters.held == 1).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!((pod.requests(), client.is_finished()), (0, false));
    client.abort();
}

#[tokio::test]
async fn before_an_epoch_is_settled_only_pods_of_both_epochs_are_used() {
    let (mut one, mut other) = two(1).await;
    let pods = divided(&["one", "other"], 2).await;
    let all: Vec<&FakePod> = pods.iter().collect();
    join(&mut [&mut one], 1, true);
    one.publish(&all);
    other.publish(&all);
    let listen = one.listen;
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..4 {
        clients.spawn(async move {
            send(listen, Request::get("/delay/300"), Bytes::new())
                .await
                .status
        });
    }
    one.until("all busy", |counters| counters.in_flight == 4).await;
    join(&mut [&mut one, &mut other], 2, false);
    let foreign = one.pool().foreign();
    assert_eq!(foreign, 2, "of 4 pods that changed hands");
    let newcomer = other.listen;
    // Marked, or the newcomer would send it on to the owner.
    clients.spawn(async move {
        send(
            newcomer,
            Request::get("/").header("dormouse-hop", "x"),
            Bytes::new(),
        )
        .await
        .status
    });
    other.until("held", |counters| counters.held == 1).await;
    until("no foreign request is left", || one.pool().foreign() == 0).await;
    assert_eq!(other.counters().held, 1);
    join(&mut [&mut one, &mut other], 2, true);
    assert!(
        clients
            .join_all()
            .await
            .iter()
            .all(|status| *status == StatusCode::OK)
    );
    assert!(
        pods.iter()
            .all(|pod| pod.seen.most_overlap.load(Ordering::SeqCst) == 1)
    );
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
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..5 {
        let listen = fixture.listen;
        clients.spawn(async move {
            send(listen, Request::get("/delay/100"), Bytes::new())
                .await
                .status
        });
    }
    fixture
        .until("one at the pod", |counters| {
            (counters.in_flight, counters.held) == (1, 4)
        })
        .await;
    fixture.change(|spec| spec.pools[0].container_concurrency = 0);
    fixture
        .until("all at the pod", |counters| counters.in_flight == 5)
        .await;
    assert!(
        clients
            .join_all()
            .await
            .iter()
            .all(|status| *status == StatusCode::OK)
    );
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
