//! Where a request of a limited pool finds a place; which pods are probed.

use crds::route::ProbeKind;

use super::entering::place;
use super::*;

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
