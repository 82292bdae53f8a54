//! Knative's own cases, each row named by its vector.

use proptest::prelude::*;

use super::*;
use crate::{Algorithm, Knobs};

const T0: u64 = 1_700_000_000;

fn at(seconds: f64) -> Time {
    Time::from_millis(T0 * 1000 + (seconds * 1000.0) as u64)
}

/// The knobs of V1 to V20: target `target`, total `target / 0.75`, rates of 10.
fn knobs(target: f64, burst: f64) -> Knobs {
    Knobs {
        algorithm: Algorithm::Kpa,
        target: Some(target / 0.75),
        target_utilization_percentage: 75.0,
        target_burst_capacity: burst,
        max_scale_up_rate: 10.0,
        max_scale_down_rate: 10.0,
        ..Knobs::default()
    }
}

fn policy(knobs: Knobs) -> Policy {
    Policy::new(knobs).unwrap()
}

/// A decision at a time: pods ready, stable and panic average, pods and spare expected.
struct Row {
    now: f64,
    ready: u32,
    stable: f64,
    panic: f64,
    pods: u32,
    spare: Option<i64>,
}

fn row(now: f64, ready: u32, stable: f64, panic: f64, pods: u32, spare: i64) -> Row {
    Row {
        spare: Some(spare),
        ..free(now, ready, stable, panic, pods)
    }
}

/// A row whose spare the vector does not give.
fn free(now: f64, ready: u32, stable: f64, panic: f64, pods: u32) -> Row {
    Row {
        now,
        ready,
        stable,
        panic,
        pods,
        spare: None,
    }
}

fn decide(kpa: &mut Kpa, policy: &Policy, reachable: bool, row: &Row) -> (u32, i64) {
    let Row {
        now,
        ready,
        stable,
        panic,
        ..
    } = *row;
    match kpa.decide(
        at(now),
        policy,
        reachable,
        Some(Observation { stable, panic, ready }),
    ) {
        Decision::Scale { pods, spare, .. } => (pods, spare),
        Decision::NoData => panic!("there is data"),
    }
}

fn check(name: &str, kpa: &mut Kpa, policy: &Policy, reachable: bool, rows: &[Row]) {
    for row in rows {
        let (pods, spare) = decide(kpa, policy, reachable, row);
        assert_eq!(pods, row.pods, "{name}: pods at {} s", row.now);
        if let Some(expected) = row.spare {
            assert!(
                (spare - expected).abs() <= 1,
                "{name}: spare {spare}, not {expected}, at {} s",
                row.now
            );
        }
    }
}

/// One autoscaler, created with one pod ready, through all rows.
fn run(name: &str, knobs: Knobs, rows: &[Row]) {
    check(name, &mut Kpa::new(at(0.0), 1), &policy(knobs), true, rows);
}

#[test]
fn v1_to_v4_the_stable_average_decides() {
    run("V1", knobs(10.0, 100.0), &[row(0.0, 1, 0.0, 0.0, 0, -87)]);
    run("V2", knobs(181.0, -1.0), &[row(0.0, 1, 21.0, 26.0, 1, -1)]);
    run("V3", knobs(10.0, 0.0), &[row(0.0, 1, 50.0, 49.0, 5, 0)]);
    run("V4", knobs(10.0, 100.0), &[row(0.0, 1, 50.0, 50.0, 5, -137)]);
    run(
        "V4 with 5 ready",
        knobs(10.0, 100.0),
        &[row(0.0, 5, 50.0, 50.0, 5, -84)],
    );
}

#[test]
fn v5_and_v6_a_panic_takes_the_larger_average_and_never_shrinks() {
    for (name, stable, panic, pods) in [("V5", 50.0, 30.0, 50), ("V6", 20.0, 30.0, 30)] {
        let mut kpa = Kpa {
            panic: Some(at(-60.0)),
            most: 5,
            delay: None,
        };
        let policy = policy(knobs(1.0, 100.0));
        check(
            name,
            &mut kpa,
            &policy,
            true,
            &[row(0.0, 5, stable, panic, pods, -124)],
        );
    }
}

#[test]
fn v7_to_v9_rates_bound_each_step() {
    let slow = Knobs {
        max_scale_up_rate: 1.1,
        ..knobs(1.0, 1982.0)
    };
    run("V7", slow, &[row(0.0, 2, 3.0, 3.1, 3, -1983)]);
    let slow = Knobs {
        max_scale_down_rate: 1.1,
        ..knobs(10.0, 1982.0)
    };
    run("V8", slow.clone(), &[row(0.0, 100, 1.0, 1.0, 90, -650)]);
    let mut kpa = Kpa::new(at(0.0), 1);
    check(
        "V9",
        &mut kpa,
        &policy(slow),
        false,
        &[row(0.0, 100, 1.0, 1.0, 1, -650)],
    );
}

#[test]
fn v10_to_v15_up_and_down_by_what_is_ready() {
    run("V10", knobs(10.0, 84.0), &[row(0.0, 1, 50.0, 100.0, 10, -171)]);
    run(
        "V11",
        knobs(10.0, 61.0),
        &[
            row(0.0, 1, 1000.0, 1001.0, 10, -1049),
            row(0.0, 10, 1000.0, 1001.0, 100, -929),
        ],
    );
    run(
        "V12",
        knobs(10.0, 61.0),
        &[row(0.0, 100, 1.0, 1.0, 10, 1271), row(0.0, 10, 1.0, 1.0, 1, 71)],
    );
    run("V13", knobs(10.0, 81.0), &[row(0.0, 0, 1000.0, 888.0, 10, -969)]);
    run(
        "V14",
        knobs(10.0, 98.0),
        &[
            row(0.0, 8, 100.0, 100.0, 10, -92),
            row(0.0, 8, 50.0, 50.0, 5, -42),
        ],
    );
    run(
        "V15",
        knobs(10.0, 75.0),
        &[row(0.0, 1, 1.0, 0.0, 1, -62), row(0.0, 1, 0.0, 0.0, 0, -62)],
    );
}

#[test]
fn v16_activation_scale_counts_as_soon_as_a_pod_is_wanted() {
    let two = Knobs {
        activation_scale: Some(2),
        ..knobs(10.0, 75.0)
    };
    run(
        "V16",
        two,
        &[free(0.0, 1, 0.0, 0.0, 0), free(0.0, 1, 1.0, 0.0, 2)],
    );
}

#[test]
fn v17_a_panic_climbs_by_the_rate_until_it_is_enough() {
    run(
        "V17",
        knobs(1.0, 101.0),
        &[
            free(0.0, 1, 6.0, 6.0, 6),
            free(1.0, 6, 36.0, 36.0, 36),
            free(2.0, 36, 216.0, 216.0, 216),
            free(3.0, 216, 1296.0, 1296.0, 1296),
            free(4.0, 1296, 1296.0, 1296.0, 1296),
        ],
    );
}

#[test]
fn v18_a_panic_ends_after_a_stable_window_below_the_threshold() {
    run(
        "V18",
        knobs(10.0, 93.0),
        &[
            free(0.0, 1, 100.0, 100.0, 10),
            free(0.0, 10, 100.0, 1000.0, 100),
            free(30.0, 10, 1.0, 1.0, 100),
            free(61.0, 10, 1.0, 1.0, 1),
        ],
    );
}

#[test]
fn v19_and_v20_a_panic_is_extended_only_over_the_threshold() {
    let policy = policy(knobs(1.0, 98.0));
    let mut kpa = Kpa::new(at(0.0), 1);
    check(
        "V19",
        &mut kpa,
        &policy,
        true,
        &[free(0.0, 10, 11.0, 25.0, 25), free(30.0, 40, 30.0, 41.0, 41)],
    );
    assert_eq!(kpa.panicking(), Some(at(0.0)), "V19: the start has not moved");
    check("V19", &mut kpa, &policy, true, &[free(62.0, 55, 50.0, 56.0, 50)]);
    assert_eq!(kpa.panicking(), None, "V19: over");

    let mut kpa = Kpa::new(at(0.0), 1);
    check(
        "V20",
        &mut kpa,
        &policy,
        true,
        &[free(0.0, 10, 11.0, 25.0, 25), free(30.0, 40, 30.0, 80.0, 80)],
    );
    assert_eq!(kpa.panicking(), Some(at(30.0)), "V20: the start has moved");
}

#[test]
fn v21_requests_per_second_are_sized_alike() {
    let rps = Knobs {
        metric: Metric::RequestsPerSecond,
        ..knobs(10.0, 101.0)
    };
    run(
        "V21",
        rps,
        &[
            row(0.0, 1, 50.0, 50.0, 5, -138),
            row(0.0, 1, 100.0, 99.0, 10, -187),
        ],
    );
}

#[test]
fn v22_new_knobs_count_from_the_next_decision() {
    let mut kpa = Kpa::new(at(0.0), 1);
    check(
        "V22",
        &mut kpa,
        &policy(knobs(10.0, 77.0)),
        true,
        &[free(0.0, 1, 100.0, 101.0, 10)],
    );
    check(
        "V22",
        &mut kpa,
        &policy(knobs(1.0, 71.0)),
        true,
        &[row(0.0, 10, 100.0, 101.0, 100, -159)],
    );
}

/// The knobs of V23 to V25: no panic, and a delay.
fn delayed(seconds: u64) -> Policy {
    let mut policy = policy(Knobs {
        scale_down_delay: Duration::from_secs(seconds),
        ..knobs(10.0, 0.0)
    });
    // Knative's test has a threshold of 100 times, more than users may set.
    policy.set_panic_threshold(100.0);
    policy
}

#[test]
fn v23_to_v25_the_delay_keeps_the_largest_decision_of_its_length() {
    let minutes = |minutes: f64| minutes * 60.0;
    let mut kpa = Kpa::new(at(0.0), 1);
    let policy = delayed(300);
    check(
        "V23",
        &mut kpa,
        &policy,
        true,
        &[
            free(2.0, 1, 40.0, 40.0, 4),
            free(minutes(5.0), 1, 0.0, 0.0, 4),
            free(minutes(5.0) + 2.0, 1, 0.0, 0.0, 0),
        ],
    );
    let mut unreachable = kpa.clone();
    check(
        "V24",
        &mut kpa,
        &policy,
        true,
        &[
            free(minutes(9.0), 1, 40.0, 40.0, 4),
            free(minutes(10.0), 1, 30.0, 30.0, 4),
            free(minutes(11.0), 1, 0.0, 0.0, 4),
            free(minutes(14.0), 1, 0.0, 0.0, 3),
            free(minutes(15.0), 1, 0.0, 0.0, 0),
        ],
    );
    check(
        "V25",
        &mut unreachable,
        &policy,
        true,
        &[free(minutes(6.0), 1, 40.0, 40.0, 4)],
    );
    check(
        "V25",
        &mut unreachable,
        &policy,
        false,
        &[free(minutes(6.0) + 2.0, 1, 0.0, 0.0, 0)],
    );
    let mut kpa = Kpa::new(at(0.0), 1);
    check(
        "V25 without delay",
        &mut kpa,
        &delayed(0),
        true,
        &[free(0.0, 1, 40.0, 40.0, 4), free(0.5, 1, 20.0, 20.0, 2)],
    );
}

#[test]
fn v26_it_starts_in_a_panic_when_more_than_one_pod_is_ready() {
    for (ready, panicking) in [(0, false), (1, false), (2, true), (10, true)] {
        let kpa = Kpa::new(at(0.0), ready);
        assert_eq!(kpa.panicking().is_some(), panicking, "V26: {ready} ready");
        if panicking {
            assert_eq!(kpa.most(), ready, "V26: what there is must not shrink");
        }
    }
}

#[test]
fn v27_without_data_nothing_is_decided() {
    let policy = policy(knobs(10.0, 0.0));
    let mut kpa = Kpa::new(at(0.0), 5);
    assert_eq!(kpa.decide(at(0.0), &policy, true, None), Decision::NoData, "V27");
    assert_eq!(Averages::new(&policy).read(at(0.0), &policy, 1), None, "V27");
}

#[test]
fn v28_before_the_first_decision_the_initial_scale_gives_the_spare() {
    let knobs = Knobs {
        target: Some(25.0),
        target_utilization_percentage: 100.0,
        initial_scale: 2,
        target_burst_capacity: 42.0,
        ..knobs(10.0, 0.0)
    };
    let policy = policy(knobs);
    assert_eq!(spare(&policy, policy.knobs().initial_scale, 0.0), 8, "V28");
}

#[test]
fn v30_activators_by_capacity() {
    for (pods, burst, expected) in [
        (0, 200.0, 2),
        (1, 200.0, 3),
        (100, 0.0, 2),
        (5, -1.0, 5),
        (15, 200.0, 17),
    ] {
        let policy = policy(Knobs {
            target: Some(100.0),
            target_burst_capacity: burst,
            ..Knobs::default()
        });
        assert_eq!(
            activators(&policy, pods, 100.0),
            expected,
            "V30: {pods} pods, burst {burst}"
        );
    }
}

fn sample(in_flight: u32, in_flight_seconds: f64, arrivals: u64) -> Sample {
    Sample {
        in_flight,
        in_flight_seconds,
        arrivals,
        ..Sample::default()
    }
}

#[test]
fn totals_become_averages_over_complete_seconds() {
    let policy = policy(Knobs {
        window: Duration::from_secs(10),
        ..Knobs::default()
    });
    let mut averages = Averages::new(&policy);
    averages.observe(at(0.0), &sample(0, 0.0, 0));
    assert_eq!(averages.read(at(0.0), &policy, 0), None);
    // Four in flight from 0.5 s on, read in uneven steps.
    for (now, total) in [(0.5, 0.0), (1.25, 3.0), (3.5, 12.0), (6.0, 22.0)] {
        averages.observe(at(now), &sample(4, total, 0));
    }
    let read = averages.read(at(6.0), &policy, 0).unwrap();
    assert_eq!(read.panic, 4.0, "one second, all of it busy");
    assert_eq!(
        read.stable,
        (22.0_f64 / 6.0 * 1e6).floor() / 1e6,
        "six seconds, the first half idle"
    );
}

#[test]
fn what_begins_after_a_long_rest_is_not_spread_over_the_rest() {
    let rps = Knobs {
        metric: Metric::RequestsPerSecond,
        window: Duration::from_secs(10),
        ..Knobs::default()
    };
    let policy = policy(rps);
    let mut averages = Averages::new(&policy);
    averages.observe(at(0.0), &sample(0, 0.0, 0));
    averages.observe(at(3600.5), &sample(50, 0.0, 50));
    averages.observe(at(3601.0), &sample(50, 25.0, 50));
    let read = averages.read(at(3601.0), &policy, 0).unwrap();
    assert!(
        read.panic >= 25.0,
        "half of them at least in the last second: {read:?}"
    );
    // And a gap in which nothing happened counts as nothing.
    averages.observe(at(3602.0), &sample(0, 25.0, 50));
    averages.observe(at(3606.0), &sample(0, 25.0, 50));
    let read = averages.read(at(3606.0), &policy, 0).unwrap();
    assert_eq!(read.panic, 0.0);
    assert!(read.stable > 0.0);
}

#[test]
fn a_new_window_keeps_what_fits() {
    let long = policy(Knobs {
        window: Duration::from_secs(60),
        ..Knobs::default()
    });
    let short = policy(Knobs {
        window: Duration::from_secs(6),
        ..Knobs::default()
    });
    let mut averages = Averages::new(&long);
    for second in 0..=30_u32 {
        averages.observe(at(f64::from(second)), &sample(2, f64::from(second) * 2.0, 0));
    }
    averages.update(&short);
    assert_eq!(averages.read(at(30.0), &short, 0).unwrap().stable, 2.0);
    averages.update(&long);
    assert_eq!(averages.read(at(30.0), &long, 0).unwrap().stable, 2.0);
}

proptest! {
    #[test]
    fn spreading_loses_nothing(steps in prop::collection::vec((1_u64..3000, 0_u32..50), 2..40)) {
        let policy = policy(Knobs { window: Duration::from_secs(3600), ..Knobs::default() });
        let mut averages = Averages::new(&policy);
        let (mut now, mut total) = (T0 * 1000, 0.0);
        averages.observe(Time::from_millis(now), &sample(1, 0.0, 0));
        for (gap, in_flight) in steps {
            now += gap;
            total += f64::from(in_flight) * gap as f64 / 1000.0;
            averages.observe(Time::from_millis(now), &sample(1, total, 0));
        }
        let seconds = now / 1000 - T0;
        prop_assume!(seconds > 0);
        let kept = averages.read(Time::from_millis(now), &policy, 0).unwrap().stable * seconds as f64;
        prop_assert!((kept + averages.pending - total).abs() < 1e-6 * seconds as f64 + 1e-6, "{kept} of {total}");
    }

    #[test]
    fn never_beyond_the_rates_and_never_down_in_a_panic(
        rows in prop::collection::vec((0_u32..20, 0.0_f64..500.0, 0.0_f64..500.0), 1..40),
    ) {
        let policy = policy(knobs(10.0, 100.0));
        let mut kpa = Kpa::new(at(0.0), 0);
        let mut before: Option<u32> = None;
        for (index, (ready, stable, panic)) in rows.into_iter().enumerate() {
            let row = free(index as f64 * 2.0, ready, stable, panic, 0);
            let was_panicking = kpa.panicking().is_some();
            let (pods, _) = decide(&mut kpa, &policy, true, &row);
            let most = kpa.most().max(ready.max(1) * 10);
            prop_assert!(pods <= most && pods >= ready.max(1) / 10);
            if was_panicking && kpa.panicking().is_some() {
                prop_assert!(pods >= before.unwrap_or(0));
            }
            before = Some(pods);
        }
    }
}
