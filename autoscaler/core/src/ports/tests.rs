use proptest::prelude::*;

use super::*;

fn at(seconds: u64) -> Time {
    Time::from_secs(seconds)
}

fn ports() -> Ports<&'static str> {
    Ports::new(10_000, 10_003, Duration::from_secs(60))
}

fn held(key: &'static str, port: u16, created: u64) -> Held<&'static str> {
    Held {
        key,
        port,
        created: at(created),
    }
}

#[test]
fn ports_are_given_out_in_turn_and_freed_ones_rest() {
    let mut ports = ports();
    for (key, port) in [("a", 10_000), ("b", 10_001), ("c", 10_002), ("a", 10_000)] {
        assert_eq!(ports.allocate(at(0), &key), Ok(port), "{key}");
    }
    ports.release(at(10), &"a");
    assert_eq!(ports.get(&"a"), None);
    assert_eq!(ports.allocate(at(11), &"d"), Ok(10_003));
    let none = ports.allocate(at(69), &"e").unwrap_err();
    assert_eq!(
        none,
        Exhausted {
            used: 3,
            quarantined: 1
        }
    );
    assert_eq!(
        none.to_string(),
        "no listening port is left: 3 are in use, 1 were freed a short while ago"
    );
    assert_eq!(ports.allocate(at(70), &"e"), Ok(10_000), "rested");
    assert_eq!(ports.holder(10_000), Some(&"e"));
    assert_eq!(ports.keys().copied().collect::<Vec<_>>(), ["b", "c", "d", "e"]);
}

#[test]
fn a_restart_takes_in_what_routes_hold_and_goes_on_behind_it() {
    let mut ports = ports();
    assert_eq!(ports.adopt([held("a", 10_001, 5)]), Vec::<&str>::new());
    assert_eq!(ports.get(&"a"), Some(10_001));
    assert_eq!(
        ports.allocate(at(0), &"b"),
        Ok(10_002),
        "what was freed before the restart rests as well"
    );
    assert_eq!(
        ports.adopt([held("a", 10_001, 5)]),
        Vec::<&str>::new(),
        "once more changes nothing"
    );
}

#[test]
fn of_two_routes_with_one_port_the_older_keeps_it() {
    for order in [[0, 1, 2, 3], [3, 2, 1, 0]] {
        let all = [
            held("young", 10_000, 9),
            held("old", 10_000, 1),
            held("stray", 9_999, 2),
            held("fine", 10_002, 3),
        ];
        let mut ports = ports();
        let losers = ports.adopt(order.map(|index: usize| all[index].clone()));
        assert_eq!(losers, ["stray", "young"], "in the order of age");
        assert_eq!(
            (ports.get(&"old"), ports.get(&"fine")),
            (Some(10_000), Some(10_002))
        );
        assert_eq!(ports.allocate(at(0), &"young"), Ok(10_003));
    }
}

#[test]
fn equal_age_is_decided_by_name_so_that_all_leaders_agree() {
    let mut ports = ports();
    assert_eq!(ports.adopt([held("b", 10_000, 1), held("a", 10_000, 1)]), ["b"]);
}

#[test]
fn a_range_of_one_port_works() {
    let mut ports = Ports::new(10_000, 10_000, Duration::ZERO);
    assert_eq!(ports.allocate(at(0), &"a"), Ok(10_000));
    assert!(ports.allocate(at(0), &"b").is_err());
    ports.release(at(0), &"a");
    assert_eq!(ports.allocate(at(0), &"b"), Ok(10_000));
}

proptest! {
    #[test]
    fn no_two_hold_one_port_and_none_returns_before_its_rest(
        steps in prop::collection::vec((0_u8..12, any::<bool>(), 0_u64..20), 1..200),
    ) {
        let quarantine = 30;
        let mut ports = Ports::new(100, 109, Duration::from_secs(quarantine));
        let mut freed = std::collections::HashMap::new();
        let mut now = 0;
        for (key, take, pause) in steps {
            now += pause;
            let before = ports.get(&key);
            if take {
                if let Ok(port) = ports.allocate(at(now), &key) {
                    prop_assert!((100..=109).contains(&port));
                    prop_assert_eq!(ports.holder(port), Some(&key));
                    let rested = freed.get(&port).is_none_or(|since| now - since >= quarantine);
                    prop_assert!(before == Some(port) || rested, "{port} at {now}");
                }
            } else if let Some(port) = before {
                ports.release(at(now), &key);
                freed.insert(port, now);
            }
            let mut taken: Vec<u16> = ports.keys().filter_map(|key| ports.get(key)).collect();
            let count = taken.len();
            taken.sort_unstable();
            taken.dedup();
            prop_assert_eq!(taken.len(), count);
        }
    }
}
