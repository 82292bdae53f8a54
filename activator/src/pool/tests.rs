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
            assert!(place(&view, &mut first).is_some());
        }
        assert!(place(&view, &mut first).is_none(), "the next waits");
        let last = pods.last().expect("a pod");
        last.in_flight.fetch_sub(1, Ordering::AcqRel);
        let next = place(&view, &mut first).expect("a place");
        assert!(Arc::ptr_eq(&next.endpoint, last));
    }
}
