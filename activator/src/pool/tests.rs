//! Where a request of a limited pool finds a place.

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
