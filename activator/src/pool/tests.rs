//! Where a request of a limited pool finds a place.

use std::net::IpAddr;

use super::*;

#[test]
fn a_peer_gets_no_more_requests_than_its_pods_can_take() {
    let peer = |last: u8| Arc::new(Endpoint::peer(IpAddr::from([127, 0, 0, last]), 1));
    let (one, three) = (peer(1), peer(2));
    let view = View {
        limit: 2,
        peers: vec![(Arc::clone(&one), 1), (Arc::clone(&three), 3)],
        ready: 4,
        known: 4,
        ..View::default()
    };
    let mut first = |_| 0;
    for _ in 0..8 {
        assert!(place(&view, Kind::Client, &mut first).is_some());
    }
    let loads = [&one, &three].map(|peer| peer.in_flight.load(Ordering::Acquire));
    assert_eq!(loads, [2, 6], "in proportion to the pods each owns");
    assert!(
        place(&view, Kind::Client, &mut first).is_none(),
        "the ninth waits for a pod of our own, or for one of the eight to end"
    );
    one.in_flight.fetch_sub(1, Ordering::AcqRel);
    let next = place(&view, Kind::Client, &mut first).expect("a place");
    assert!(Arc::ptr_eq(&next, &one));
}
