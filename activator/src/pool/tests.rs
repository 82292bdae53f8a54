//! Where a request of a limited pool finds a place; which pods are probed, and which wakes are over.

use crds::route::ProbeKind;

use super::entering::place;
use super::*;
use crate::throttle::Kind;

#[test]
fn a_pod_gets_no_more_requests_than_its_limit() {
    let pod = |last: u8| Arc::new(Endpoint::pod(IpAddr::from([127, 0, 0, last]), Box::default(), 1));
    for pods in [vec![pod(1)], vec![pod(1), pod(2)]] {
        let view = View {
            limit: 2,
            pods: pods.clone(),
            ..View::default()
        };
        let mut first = |_| 0;
        for _ in 0..2 * pods.len() {
            assert!(place(&view, None, &mut first).is_some());
        }
        assert!(place(&view, None, &mut first).is_none(), "the next waits");
        let last = pods.last().expect("a pod");
        last.in_flight.fetch_sub(1, Ordering::AcqRel);
        let next = place(&view, None, &mut first).expect("a place");
        assert!(Arc::ptr_eq(&next.endpoint, last));
    }
}

#[test]
fn a_pod_to_avoid_is_taken_only_when_it_is_the_only_one() {
    let pod = |last: u8| Arc::new(Endpoint::pod(IpAddr::from([127, 0, 0, last]), Box::default(), 1));
    let (bad, good) = (pod(1), pod(2));
    good.in_flight.store(7, Ordering::Release);
    for limit in [0, 9] {
        let both = View {
            limit,
            pods: vec![Arc::clone(&bad), Arc::clone(&good)],
            ..View::default()
        };
        let taken = place(&both, Some(&*bad), &mut |_| 0).expect("a place");
        assert!(Arc::ptr_eq(&taken.endpoint, &good), "limit {limit}");
        let one = View {
            limit,
            pods: vec![Arc::clone(&bad)],
            ..View::default()
        };
        let taken = place(&one, Some(&*bad), &mut |_| 0).expect("a place");
        assert!(Arc::ptr_eq(&taken.endpoint, &bad), "limit {limit}");
    }
}

/// A pool on the runtime that asks.
fn pool(settings: Settings) -> Arc<Pool> {
    let config = crate::config::Config::try_from(crate::config::Args::default()).expect("valid");
    let hub = Hub::new(config, crate::cluster::Cluster { client: None });
    let key = PoolKey {
        namespace: "shop".into(),
        pool: "web".into(),
    };
    let pool = Pool::new(key, hub);
    pool.configure(Settings {
        queue_limit: 10,
        ..settings
    });
    pool
}

fn probed(kind: ProbeKind) -> Probe {
    Probe {
        kind,
        ..Probe::default()
    }
}

fn published(port: u16, serving: bool) -> Published {
    Published {
        ports: [(80, port)].into(),
        serving,
        ..Published::default()
    }
}

fn enter(pool: &Arc<Pool>) -> Enter {
    let who = Some(|| "GET /".to_owned());
    pool.enter(Kind::Client, pool.hub.now(), &mut |_| 0, None, who)
}

fn held(pool: &Arc<Pool>) -> Held {
    match enter(pool) {
        Enter::Queued(held) => held,
        _ => panic!("not held"),
    }
}

#[tokio::test]
async fn a_pool_is_described_while_its_settings_change() {
    const TIMES: u32 = 50_000;
    let pool = pool(Settings::default());
    let (done, both) = std::sync::mpsc::channel();
    let (describing, described) = (Arc::clone(&pool), done.clone());
    std::thread::spawn(move || {
        (0..TIMES).for_each(|_| drop(describing.describe()));
        described.send(()).expect("somebody waits");
    });
    let runtime = tokio::runtime::Handle::current();
    std::thread::spawn(move || {
        let _entered = runtime.enter();
        for queue_limit in 0..TIMES {
            pool.configure(Settings {
                queue_limit,
                ..Settings::default()
            });
        }
        done.send(()).expect("somebody waits");
    });
    for _ in 0..2 {
        // It takes a fraction of a second, unless each waits for the other.
        both.recv_timeout(Duration::from_secs(60)).expect("no deadlock");
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_on_probation_is_probed_until_it_answers_though_nobody_waits() {
    let pool = pool(Settings {
        probe: probed(ProbeKind::Tcp),
        ..Settings::default()
    });
    let well = IpAddr::from([127, 21, 0, 1]);
    let cut_off = IpAddr::from([127, 21, 0, 2]);
    let listener = tokio::net::TcpListener::bind((cut_off, 0)).await.expect("binds");
    let port = listener.local_addr().expect("bound").port();
    drop(listener);
    let all = [well, cut_off].map(|address| (address, published(port, true)));
    pool.publish(all.into());
    let endpoint = Arc::clone(&pool.state.lock().pods[&cut_off].endpoint);
    pool.failed(&endpoint, Failure::Refused);
    // Longer than anybody would wait; meanwhile the other serves, and Kubernetes has nothing to say.
    for _ in 0..60 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(pool.ready(), 1);
    }
    let _listener = tokio::net::TcpListener::bind((cut_off, port))
        .await
        .expect("binds");
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(pool.ready(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_wake_that_nothing_answered_is_not_in_the_way_of_the_next() {
    let pool = pool(Settings {
        probe: probed(ProbeKind::Kubernetes),
        ..Settings::default()
    });
    let pod = IpAddr::from([127, 21, 0, 3]);
    let is_said_to_wake = || pool.describe().waking;
    let mut first = held(&pool);
    assert!(first.wakes);
    pool.acknowledge(pool.hub.now());
    pool.publish([(pod, published(9, false))].into());
    assert!(
        pool.is_waking() && is_said_to_wake(),
        "it goes on while somebody waits"
    );
    pool.publish([(pod, published(9, true))].into());
    // It is sent, and its client gives up.
    drop(first.place().await);
    pool.publish([].into());
    assert!(!pool.is_waking());
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(!is_said_to_wake());
    let next = held(&pool);
    assert!(next.wakes);
    assert_eq!(pool.waking_for(pool.hub.now()), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_wake_whose_pod_came_and_went_is_not_that_of_who_came_later() {
    let pool = pool(Settings {
        limit: 1,
        probe: probed(ProbeKind::Kubernetes),
        ..Settings::default()
    });
    let pod = IpAddr::from([127, 21, 0, 4]);
    let (mut first, early) = (held(&pool), held(&pool));
    pool.publish([(pod, published(9, true))].into());
    let slot = first.place().await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    pool.publish([].into());
    assert!(pool.is_waking(), "one of those who woke it waits still");
    pool.publish([(pod, published(9, true))].into());
    let _later = held(&pool);
    drop((early, slot));
    pool.publish([].into());
    assert!(!pool.is_waking());
    assert!(held(&pool).wakes);
}

#[tokio::test]
async fn there_is_room_only_where_a_place_of_our_own_is_free() {
    let pod = |in_flight| {
        let pod = Endpoint::pod(IpAddr::from([127, 0, 0, 1]), Box::default(), 1);
        pod.in_flight.store(in_flight, Ordering::Release);
        Arc::new(pod)
    };
    let pool = pool(Settings::default());
    for (what, limit, pods, wanted) in [
        ("without a limit", 0, vec![pod(100)], true),
        ("no pod", 0, vec![], false),
        ("a free place", 2, vec![pod(2), pod(1)], true),
        ("all are busy", 2, vec![pod(2), pod(2)], false),
        ("all pods are another activator's", 2, vec![], false),
    ] {
        pool.view.store(Arc::new(View {
            limit,
            pods,
            ready: 2,
            ..View::default()
        }));
        assert_eq!(pool.has_room(), wanted, "{what}");
    }
}
