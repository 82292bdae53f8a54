use super::*;

fn key() -> PoolKey {
    PoolKey {
        namespace: "default".into(),
        pool: "web".into(),
    }
}

fn pool(arrivals: u64, ended: u64, in_flight_seconds: f64, in_flight: u32, held: u32) -> PoolReport {
    PoolReport {
        namespace: "default".into(),
        pool: "web".into(),
        arrivals,
        completions: Outcomes {
            ok: ended,
            ..Outcomes::default()
        },
        in_flight_seconds,
        in_flight,
        held,
        ready: 1,
        oldest_held_us: if held > 0 { 1_500 } else { 0 },
        idle_ms: Some(0),
        ..PoolReport::default()
    }
}

fn line(instance: &str, uptime: u64, full: bool, pools: Vec<PoolReport>) -> Report {
    Report {
        activator: "activator".into(),
        instance: instance.into(),
        uptime_ms: uptime * 1000,
        full,
        serving: true,
        pools,
        ..Report::default()
    }
}

/// Arrivals, ended, in-flight seconds, in flight, held.
type Expected = (u64, u64, f64, u32, u32);

enum Do {
    Line(Report),
    Gone(&'static str),
    Wait(u64),
}

#[tokio::test(start_paused = true)]
async fn totals_only_grow_and_gauges_leave_with_their_instance() {
    use Do::{Gone, Line, Wait};
    let mut ledger = Ledger::default();
    let mut now = Instant::now();
    // (what happens, arrivals, ended, in-flight seconds, in flight, held) afterwards.
    let rows: Vec<(&str, Do, Expected)> = vec![
        (
            "a young instance counts from its birth",
            Line(line("a", 1, true, vec![pool(3, 1, 2.0, 2, 0)])),
            (3, 1, 2.0, 2, 0),
        ),
        (
            "between lines the gauges carry the integral on",
            Wait(2),
            (3, 1, 6.0, 2, 0),
        ),
        (
            "a line that says less does not take back",
            Line(line("a", 3, false, vec![pool(3, 1, 5.9, 2, 0)])),
            (3, 1, 6.0, 2, 0),
        ),
        (
            "an old line repeated changes no total",
            Line(line("a", 3, false, vec![pool(2, 1, 4.0, 2, 0)])),
            (3, 1, 6.0, 2, 0),
        ),
        (
            "an old instance, first seen now, brings only its gauges",
            Line(line("b", 999, true, vec![pool(500, 499, 900.0, 1, 4)])),
            (3, 1, 6.0, 3, 4),
        ),
        (
            "and from then on what it counts",
            Line(line("b", 1000, false, vec![pool(510, 509, 901.0, 1, 0)])),
            (13, 11, 6.9, 3, 0),
        ),
        (
            "a broken stream takes the gauges away",
            Gone("b"),
            (13, 11, 6.9, 2, 0),
        ),
        (
            "the same instance goes on where it was",
            Line(line("b", 1002, true, vec![pool(511, 511, 902.0, 0, 0)])),
            (14, 13, 7.9, 2, 0),
        ),
        (
            "a restarted activator is a new instance and adds",
            Gone("a"),
            (14, 13, 7.9, 0, 0),
        ),
        (
            "also when its counters start anew",
            Line(line("c", 0, true, vec![pool(2, 2, 0.5, 0, 0)])),
            (16, 15, 8.4, 0, 0),
        ),
        (
            "a snapshot that does not name the pool takes its gauges away",
            Line(line("c", 2, false, vec![pool(3, 2, 0.5, 1, 0)])),
            (17, 15, 8.4, 1, 0),
        ),
        ("as said", Line(line("c", 2, true, vec![])), (17, 15, 8.4, 0, 0)),
    ];
    for (what, event, (arrivals, ended, seconds, in_flight, held)) in rows {
        match event {
            Line(report) => {
                ledger.line(&report, now);
            }
            Gone(instance) => {
                ledger.gone(instance, now);
            }
            Wait(seconds) => now += Duration::from_secs(seconds),
        }
        let traffic = ledger.traffic(&key(), now);
        assert_eq!(
            (traffic.arrivals, traffic.completions),
            (arrivals, ended),
            "{what}"
        );
        assert!(
            (traffic.in_flight_seconds - seconds).abs() < 1e-9,
            "{what}: {}",
            traffic.in_flight_seconds
        );
        assert_eq!((traffic.in_flight, traffic.held), (in_flight, held), "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_oldest_held_request_is_dated_back_and_its_pool_is_touched() {
    let mut ledger = Ledger::default();
    let now = Instant::now() + Duration::from_secs(10);
    let touched = ledger.line(&line("a", 1, true, vec![pool(1, 0, 0.0, 0, 1)]), now);
    assert_eq!(touched, vec![key()]);
    let traffic = ledger.traffic(&key(), now);
    assert_eq!(traffic.oldest_held, Some(now - Duration::from_micros(1_500)));
    assert_eq!(traffic.last_request, Some(now));
}

#[tokio::test(start_paused = true)]
async fn what_forgotten_instances_counted_stays_in_the_totals() {
    let mut ledger = Ledger::default();
    let now = Instant::now();
    for number in 0..(REMEMBERED as u64 + 10) {
        let instance = format!("i{number}");
        ledger.line(&line(&instance, 0, true, vec![pool(1, 1, 0.25, 0, 0)]), now);
        ledger.gone(&instance, now);
    }
    let traffic = ledger.traffic(&key(), now);
    assert_eq!(traffic.arrivals, REMEMBERED as u64 + 10);
    assert_eq!(ledger.pools[&key()].instances.len(), REMEMBERED);
}

#[tokio::test(start_paused = true)]
async fn numbers_that_are_none_do_not_poison_the_sums() {
    let mut ledger = Ledger::default();
    let now = Instant::now();
    let mut bad = pool(u64::MAX, u64::MAX, f64::NAN, 0, 0);
    bad.completions.failed = u64::MAX;
    bad.held_seconds = -1.0;
    bad.service_seconds = f64::INFINITY;
    bad.oldest_held_us = u64::MAX;
    bad.idle_ms = Some(u64::MAX);
    ledger.line(&line("a", 0, true, vec![bad.clone(), bad]), now);
    ledger.line(&line("b", 0, true, vec![pool(1, 1, 1.0, 0, 0)]), now);
    let traffic = ledger.traffic(&key(), now);
    assert!((traffic.in_flight_seconds - 1.0).abs() < 1e-9);
    assert_eq!((traffic.arrivals, traffic.service_seconds), (u64::MAX, 0.0));
}
