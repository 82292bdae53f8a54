//! A hard limit over several activators: never more, never idle pods beside held requests, whoever comes and goes.

use crds::report::Peer;

use super::*;
use crate::balance::Shares;

/// Activators with one Route on the same port, and so the same pods.
struct Fleet {
    all: Vec<Fixture>,
    epoch: u64,
}

impl Fleet {
    /// So many of them, of which none knows another yet.
    async fn new(count: usize, limit: u32) -> Self {
        let first = fresh_address();
        let port = free_port(first).await;
        let mut all = Vec::new();
        for number in 0..count {
            let bind = if number == 0 { first } else { fresh_address() };
            let mut fixture = Fixture::with(
                move |args| {
                    args.bind = bind;
                    args.name = Some(name(number));
                },
                move |spec| {
                    spec.pools[0].container_concurrency = limit;
                    spec.ports[0].listen = port;
                },
                None,
            )
            .await;
            fixture.listen.set_port(port);
            all.push(fixture);
        }
        Self { all, epoch: 0 }
    }

    /// One in which all know each other, and all pods.
    async fn joined(count: usize, limit: u32, pods: &[FakePod]) -> Self {
        let mut fleet = Self::new(count, limit).await;
        let members: Vec<usize> = (0..count).collect();
        fleet.begin(&members, &members);
        fleet.settle(&members);
        fleet.publish(pods);
        fleet
    }

    /// A new epoch of these members begins; all that live hear of it.
    fn begin(&mut self, members: &[usize], live: &[usize]) {
        self.epoch += 1;
        self.tell(members, live, false);
    }

    /// All follow it.
    fn settle(&mut self, members: &[usize]) {
        self.tell(members, members, true);
    }

    /// As their report streams would.
    fn tell(&self, members: &[usize], live: &[usize], settled: bool) {
        let peers: Vec<Peer> = members
            .iter()
            .map(|at| Peer {
                name: name(*at),
                address: self.all[*at].app.hub.config.bind.to_string(),
            })
            .collect();
        for at in live {
            let fixture = &self.all[*at];
            fixture.app.hub.set_membership(self.epoch, &peers, settled);
            fixture.pool().reshare();
        }
    }

    fn publish(&mut self, pods: &[FakePod]) {
        let pods: Vec<&FakePod> = pods.iter().collect();
        for fixture in &mut self.all {
            fixture.publish(&pods);
        }
    }

    fn foreign(&self, members: &[usize]) -> u32 {
        members.iter().map(|at| self.all[*at].pool().foreign()).sum()
    }
}

fn name(number: usize) -> String {
    format!("activator-{number}")
}

/// Pods of which the activators of a fleet own so many each.
async fn divided(counts: &[usize]) -> Vec<FakePod> {
    let names: Vec<String> = (0..counts.len()).map(name).collect();
    let shares = names.iter().map(|name| {
        let mut shares = Shares::new(name);
        shares.update(1, names.clone(), true);
        shares
    });
    let mut pods: Vec<FakePod> = Vec::new();
    for (shares, count) in shares.zip(counts) {
        let wanted = pods.len() + count;
        while pods.len() < wanted {
            // Most addresses belong to others; a listener is made only for one that does not.
            let address = fresh_address();
            if shares.may_use(address) {
                let address = SocketAddr::new(address, free_port(address).await);
                pods.push(FakePod::on(address).await);
            }
        }
    }
    pods
}

fn most_overlap(pods: &[FakePod]) -> Vec<usize> {
    pods.iter()
        .map(|pod| pod.seen.most_overlap.load(Ordering::SeqCst))
        .collect()
}

fn busy(pods: &[FakePod]) -> usize {
    pods.iter()
        .map(|pod| pod.seen.overlap.load(Ordering::SeqCst))
        .sum()
}

#[tokio::test]
async fn activators_together_keep_to_the_limit() {
    let pods = divided(&[2, 2]).await;
    let fleet = Fleet::joined(2, 1, &pods).await;
    let mut crowd = Crowd::default();
    for fixture in &fleet.all {
        crowd.send(fixture, 30, "/delay/5");
    }
    crowd.all_is_well().await;
    assert_eq!(most_overlap(&pods), [1; 4]);
}

#[tokio::test]
async fn no_pod_stays_idle_while_a_request_waits_whoever_has_the_traffic() {
    // How the pods are divided, and which activator has all the traffic.
    let rows: [(&[usize], usize); 5] = [
        (&[1, 3], 0),
        (&[1, 3], 1),
        (&[4, 0], 1),
        (&[2, 1, 1], 0),
        (&[0, 1, 3], 0),
    ];
    for (counts, at) in rows {
        for limit in [1, 2] {
            let pods = divided(counts).await;
            let fleet = Fleet::joined(counts.len(), limit, &pods).await;
            let places = pods.len() * limit as usize;
            let mut crowd = Crowd::default();
            crowd.send(&fleet.all[at], places, "/delay/400");
            until("all places are taken", || busy(&pods) == places).await;
            // What comes now waits, and is answered as places become free.
            crowd.send(&fleet.all[at], places, "/delay/5");
            crowd.all_is_well().await;
            assert_eq!(
                most_overlap(&pods),
                vec![limit as usize; pods.len()],
                "{counts:?} {at} {limit}"
            );
        }
    }
}

#[tokio::test]
async fn each_request_is_counted_once_and_the_pod_sees_nothing_of_its_way() {
    let pods = divided(&[1, 0]).await;
    let fleet = Fleet::joined(2, 1, &pods).await;
    let mut crowd = Crowd::default();
    for fixture in &fleet.all {
        crowd.send(fixture, 10, "/delay/5");
    }
    crowd.all_is_well().await;
    assert_eq!(most_overlap(&pods), [1]);
    // Arrival and end are counted where it came in, its time at the pod where it went out.
    for fixture in &fleet.all {
        fixture
            .until("ended", |counters| {
                counters.outcomes.ok == 10 && counters.in_flight == 0
            })
            .await;
        assert_eq!(fixture.counters().arrivals, 10);
    }
    assert!(fleet.all[0].counters().service_seconds > 0.1);
    assert_eq!(fleet.all[1].counters().service_seconds, 0.0);
    for fixture in &fleet.all {
        // Noise, too: it is counted nowhere, and goes the same way.
        for agent in ["curl/8", "kube-probe/1.35", "Prometheus/3.0"] {
            let seen = fixture
                .send(Request::get("/headers").header("user-agent", agent))
                .await
                .body;
            assert!(
                !seen.contains("dormouse-") && seen.contains("x-forwarded-for: 127.0.0.1\n"),
                "{agent}: {seen}"
            );
        }
    }
}

#[tokio::test]
async fn a_body_goes_by_a_peer_unchanged() {
    let pods = divided(&[1, 0]).await;
    let fleet = Fleet::joined(2, 1, &pods).await;
    let body = Bytes::from("0123456789".repeat(50_000));
    let answer = send(fleet.all[1].listen, Request::post("/echo"), body.clone()).await;
    assert_eq!((answer.status, answer.body.len()), (StatusCode::OK, body.len()));
}

#[tokio::test]
async fn a_marked_request_is_not_sent_on() {
    let pods = divided(&[1, 0]).await;
    let fleet = Fleet::joined(2, 1, &pods).await;
    let mut crowd = Crowd::default();
    crowd.send_marked(&fleet.all[1], "/");
    fleet.all[1].until("held", |counters| counters.held == 1).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(pods[0].requests(), 0);
}

#[tokio::test]
async fn only_peers_may_ask_for_places() {
    let pods = divided(&[1, 0]).await;
    let fleet = Fleet::joined(2, 1, &pods).await;
    let request = Request::get("/").header("dormouse-place", "ask web");
    let answer = fleet.all[0].send(request).await;
    assert_eq!((answer.status, pods[0].requests()), (StatusCode::BAD_REQUEST, 0));
}

#[tokio::test]
async fn a_place_that_is_kept_for_a_peer_that_went_is_free_again() {
    let pods = divided(&[1, 0]).await;
    let fleet = Fleet::joined(2, 1, &pods).await;
    let source = fleet.all[1].app.hub.config.bind;
    let mut stream = crate::forward::dial(fleet.all[0].listen, Some(source), PATIENCE)
        .await
        .expect("connects");
    let ask = b"GET / HTTP/1.1\r\nhost: a\r\ndormouse-place: ask web\r\nconnection: close\r\n\r\n";
    tokio::io::AsyncWriteExt::write_all(&mut stream, ask)
        .await
        .expect("writes");
    let mut answer = String::new();
    tokio::io::AsyncReadExt::read_to_string(&mut stream, &mut answer)
        .await
        .expect("an answer");
    assert!(
        answer.starts_with("HTTP/1.1 200 OK\r\ndormouse-place: "),
        "{answer}"
    );
    assert_eq!(fleet.all[0].get("/").await.status, StatusCode::OK);
    assert_eq!(fleet.all[0].app.hub.metrics.places_lapsed.get(), 1);
}

#[tokio::test]
async fn clients_that_leave_take_what_was_asked_for_them_back() {
    let pods = divided(&[1, 0]).await;
    let fleet = Fleet::joined(2, 1, &pods).await;
    let mut long = Crowd::default();
    long.send(&fleet.all[0], 1, "/delay/60000");
    until("the pod is busy", || busy(&pods) == 1).await;
    let mut crowd = Crowd::default();
    crowd.send(&fleet.all[1], 5, "/");
    until("asked", || fleet.all[0].pool().held() == 1).await;
    drop(crowd);
    until("given up", || fleet.all[0].pool().held() == 0).await;
    assert_eq!(fleet.all[1].pool().held(), 0);
}

#[tokio::test]
async fn before_an_epoch_is_settled_only_pods_of_both_epochs_are_used() {
    let pods = divided(&[2, 2]).await;
    let mut fleet = Fleet::new(2, 1).await;
    fleet.begin(&[0], &[0]);
    fleet.settle(&[0]);
    fleet.publish(&pods);
    let mut crowd = Crowd::default();
    crowd.send(&fleet.all[0], 4, "/delay/300");
    fleet.all[0]
        .until("all busy", |counters| counters.in_flight == 4)
        .await;
    fleet.begin(&[0, 1], &[0, 1]);
    assert_eq!(fleet.all[0].pool().foreign(), 2, "of 4 pods that changed hands");
    // Marked, or the newcomer would send it on to the owner.
    crowd.send_marked(&fleet.all[1], "/");
    fleet.all[1].until("held", |counters| counters.held == 1).await;
    until("no foreign request is left", || fleet.foreign(&[0]) == 0).await;
    assert_eq!(fleet.all[1].counters().held, 1);
    fleet.settle(&[0, 1]);
    crowd.all_is_well().await;
    assert_eq!(most_overlap(&pods), [1; 4]);
}

/// The law: over any joins and leaves of three activators, with traffic anywhere all the time, no pod ever sees more than
/// its limit, and every request is answered. The leader is played as `crds::report::Directive::settled` defines it.
#[tokio::test]
async fn over_joins_and_leaves_the_limit_holds_and_every_request_is_answered() {
    for seed in 0..6 {
        let mut random = fastrand::Rng::with_seed(seed);
        let limit = random.u32(1..=2);
        let pods = divided(&[2, 2, 1]).await;
        let mut fleet = Fleet::new(3, limit).await;
        let mut members = vec![0];
        fleet.begin(&members, &members);
        fleet.settle(&members);
        fleet.publish(&pods);
        let mut crowd = Crowd::default();
        for _ in 0..8 {
            // Traffic goes to members only: others are in no slice. Now and then one has it all.
            for at in &members {
                if random.bool() {
                    crowd.send(&fleet.all[*at], random.usize(1..15), "/delay/3");
                }
            }
            let stays = members[random.usize(..members.len())];
            let next: Vec<usize> = (0..3).filter(|at| *at == stays || random.bool()).collect();
            // Who leaves goes on with what it holds, and the epoch settles only when that is done.
            let live: Vec<usize> = (0..3)
                .filter(|at| members.contains(at) || next.contains(at))
                .collect();
            for at in next.iter().filter(|at| !members.contains(at)) {
                fleet.all[*at].app.hub.was_away();
            }
            fleet.begin(&next, &live);
            crowd.send(&fleet.all[stays], random.usize(1..15), "/delay/3");
            until("nobody has a foreign request in flight", || {
                fleet.foreign(&live) == 0
            })
            .await;
            fleet.settle(&next);
            members = next;
        }
        crowd.all_is_well().await;
        let most = most_overlap(&pods);
        assert!(
            most.iter().all(|most| *most <= limit as usize),
            "seed {seed}: {most:?}, limit {limit}"
        );
    }
}
