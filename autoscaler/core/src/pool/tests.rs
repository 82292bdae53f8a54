use proptest::prelude::*;

use super::*;
use crate::Knobs;

mod laws;

fn at(seconds: f64) -> Time {
    Time::from_millis(1_700_000_000_000 + (seconds * 1000.0) as u64)
}

fn pool(change: impl FnOnce(&mut Knobs)) -> Pool {
    let mut knobs = Knobs::default();
    change(&mut knobs);
    Pool::new(Policy::new(knobs).unwrap(), at(0.0))
}

/// A workload with `replicas`, all of them ready.
fn facts(replicas: u32) -> Facts {
    Facts {
        replicas,
        ready: replicas,
        ..Facts::default()
    }
}

fn held(held: u32) -> Sample {
    Sample {
        held,
        arrivals: u64::from(held),
        idle: Some(Duration::ZERO),
        ..Sample::default()
    }
}

fn quiet(idle: u64) -> Sample {
    Sample {
        idle: Some(Duration::from_secs(idle)),
        arrivals: 1,
        completions: 1,
        ..Sample::default()
    }
}

fn look(pool: &mut Pool, seconds: f64, sample: &Sample, facts: &Facts) -> Step {
    pool.observe(at(seconds), sample);
    pool.step(at(seconds), facts)
}

#[test]
fn the_first_held_request_wakes_at_once_and_is_named() {
    let mut asleep = pool(|_| ());
    let step = look(&mut asleep, 1000.0, &Sample::default(), &facts(0));
    assert_eq!(
        (step.replicas, step.phase, step.wake_at),
        (None, Phase::Asleep, None),
        "asleep it costs nothing"
    );
    let step = look(&mut asleep, 1000.01, &held(1), &facts(0));
    assert_eq!((step.replicas, step.phase), (Some(1), Phase::Waking));
    assert_eq!(step.reason.to_string(), "0 to 1: first request held");
    assert_eq!(step.reason.label(), "first_request");
}

#[test]
fn how_many_a_wake_starts() {
    type Change = fn(&mut Knobs);
    let rows: [(&str, Change, u32); 5] = [
        ("one", |_| (), 1),
        ("activation-scale", |knobs| knobs.activation_scale = Some(3), 3),
        ("min-scale", |knobs| knobs.min_scale = 2, 2),
        ("kpa", |knobs| knobs.algorithm = Algorithm::Kpa, 1),
        (
            "kpa with activation-scale",
            |knobs| {
                (knobs.algorithm, knobs.activation_scale) = (Algorithm::Kpa, Some(4));
            },
            4,
        ),
    ];
    for (name, change, expected) in rows {
        let step = look(&mut pool(change), 1.0, &held(5), &facts(0));
        assert_eq!(step.replicas, Some(expected), "{name}");
    }
}

#[test]
fn a_wake_starts_as_many_as_the_last_ones_needed() {
    let mut pool = pool(|knobs| knobs.container_concurrency = 10);
    assert_eq!(look(&mut pool, 1.0, &held(1), &facts(0)).replicas, Some(1));
    let waking = Facts {
        ready: 0,
        starting: vec![Duration::from_secs(1)],
        ..facts(1)
    };
    look(&mut pool, 2.0, &held(25), &waking);
    look(&mut pool, 3.0, &held(25), &facts(3));
    let slept = look(&mut pool, 200.0, &quiet(150), &facts(3));
    assert_eq!(slept.replicas, Some(0));
    look(&mut pool, 201.0, &quiet(151), &facts(0));
    assert_eq!(
        look(&mut pool, 300.0, &held(1), &facts(0)).replicas,
        Some(3),
        "25 at once, 10 each"
    );
}

#[test]
fn it_falls_asleep_after_the_keep_alive_and_says_when() {
    let mut pool = pool(|knobs| knobs.keep_alive = Some(Duration::from_secs(60)));
    let step = look(&mut pool, 100.0, &quiet(18), &facts(1));
    assert_eq!(step.replicas, None);
    assert_eq!(
        step.next.unwrap().to_string(),
        "asleep in 42 s unless a request arrives"
    );
    assert_eq!(step.wake_at, Some(at(142.0)));
    let step = look(&mut pool, 142.0, &quiet(60), &facts(1));
    assert_eq!((step.replicas, step.phase), (Some(0), Phase::Asleep));
    assert_eq!(
        step.reason.to_string(),
        "1 to 0: no request for 60 s (keep-alive 60 s)"
    );
}

#[test]
fn many_pods_without_a_request_sleep_together() {
    let step = look(&mut pool(|_| ()), 100.0, &quiet(60), &facts(5));
    assert_eq!(step.replicas, Some(0));
}

#[test]
fn what_keeps_the_last_pod() {
    type Change = fn(&mut Knobs);
    let uncaptured = || Err("not captured yet: a self-probe is under way".to_owned());
    let rows: Vec<(Change, Sample, Facts, &str)> = vec![
        (
            |_| (),
            quiet(99),
            Facts {
                may_sleep: uncaptured(),
                ..facts(1)
            },
            "stays at 1: not captured yet: a self-probe is under way",
        ),
        (
            |_| (),
            Sample {
                stale: true,
                ..quiet(99)
            },
            facts(1),
            "stays at 1: reports are missing, nothing is scaled down",
        ),
        (
            |knobs| knobs.min_scale = 1,
            quiet(99),
            facts(1),
            "stays at 1: min-scale is 1",
        ),
        (
            |_| (),
            quiet(99),
            Facts {
                at_least: Some((2, "the Service is being given back".to_owned())),
                ..facts(2)
            },
            "stays at 2: at least 2: the Service is being given back",
        ),
        (
            |_| (),
            quiet(99),
            Facts {
                command: Some(Command::Wake),
                ..facts(1)
            },
            "stays at 1: nothing to change",
        ),
        (
            |_| (),
            Sample {
                in_flight: 3,
                ..quiet(0)
            },
            Facts {
                command: Some(Command::Sleep),
                ..facts(1)
            },
            "stays at 1: asked to sleep, but 3 in flight and 0 held",
        ),
        (
            |knobs| knobs.retention = Duration::from_secs(300),
            quiet(99),
            facts(1),
            "stays at 1: nothing to change",
        ),
    ];
    for (change, sample, facts, expected) in rows {
        let step = look(&mut pool(change), 100.0, &sample, &facts);
        assert_eq!(
            (step.replicas, step.reason.to_string().as_str()),
            (None, expected)
        );
    }
}

#[test]
fn commands_are_obeyed_at_once() {
    let mut asleep = pool(|_| ());
    let step = look(
        &mut asleep,
        1.0,
        &Sample::default(),
        &Facts {
            command: Some(Command::Wake),
            ..facts(0)
        },
    );
    assert_eq!(step.reason.to_string(), "0 to 1: asked to wake");
    assert_eq!(step.replicas, Some(1));
    let step = look(&mut asleep, 30.0, &Sample::default(), &facts(1));
    assert_eq!(
        step.next,
        Some(Plan::Sleep {
            after: Duration::from_secs(31)
        }),
        "a keep-alive from then on"
    );
    let step = look(
        &mut asleep,
        31.0,
        &quiet(0),
        &Facts {
            command: Some(Command::Sleep),
            ..facts(1)
        },
    );
    assert_eq!(step.reason.to_string(), "1 to 0: asked to sleep");
    assert_eq!(step.replicas, Some(0));
}

#[test]
fn nothing_goes_back_to_zero_just_after_a_wake() {
    let mut pool = pool(|knobs| knobs.keep_alive = Some(Duration::ZERO));
    look(&mut pool, 10.0, &held(1), &facts(0));
    let step = look(&mut pool, 10.5, &quiet(0), &facts(1));
    assert_eq!(step.reason.label(), "just_woken");
    assert_eq!(step.wake_at, Some(at(12.0)));
    assert_eq!(look(&mut pool, 12.0, &quiet(2), &facts(1)).replicas, Some(0));
}

#[test]
fn bounds_and_who_comes_before_them() {
    let busy = Sample {
        held: 500,
        in_flight: 5,
        arrivals: 500,
        ..quiet(0)
    };
    let mut capped = pool(|knobs| (knobs.max_scale, knobs.container_concurrency) = (3, 1));
    look(&mut capped, 1.0, &quiet(0), &facts(1));
    let step = look(&mut capped, 1.5, &busy, &facts(1));
    assert_eq!(step.replicas, Some(3));
    assert!(
        step.reason.to_string().starts_with("1 to 3: max-scale is 3, "),
        "{}",
        step.reason
    );
    let why = || Some((5, "the Service is being given back".to_owned()));
    let step = look(
        &mut capped,
        2.0,
        &busy,
        &Facts {
            at_least: why(),
            ..facts(3)
        },
    );
    assert_eq!(
        step.replicas,
        Some(5),
        "what is asked for at least comes before max-scale"
    );
    let step = look(
        &mut pool(|_| ()),
        2.0,
        &quiet(999),
        &Facts {
            at_least: why(),
            ..facts(0)
        },
    );
    assert_eq!(
        step.reason.to_string(),
        "0 to 5: at least 5: the Service is being given back"
    );
    let mut two = pool(|knobs| knobs.min_scale = 2);
    assert_eq!(look(&mut two, 2.0, &quiet(999), &facts(0)).replicas, Some(2));
    assert_eq!(
        look(
            &mut two,
            99.0,
            &quiet(99),
            &Facts {
                reachable: false,
                ..facts(2)
            }
        )
        .replicas,
        Some(0)
    );
}

#[test]
fn who_was_kept_awake_for_traffic_to_come_has_its_keep_alive_from_then_on() {
    for (reachable, until) in [(true, Some(at(80.0))), (false, None)] {
        let mut pool = pool(|knobs| knobs.keep_alive = Some(Duration::from_secs(30)));
        let kept = Facts {
            at_least: Some((1, "its next weight needs them".to_owned())),
            reachable,
            ..facts(1)
        };
        assert_eq!(look(&mut pool, 40.0, &quiet(40), &kept).replicas, None);
        let alone = Facts {
            reachable,
            ..facts(1)
        };
        let step = look(&mut pool, 50.0, &quiet(50), &alone);
        // To one that traffic cannot reach, nobody comes.
        assert_eq!(
            (step.replicas, step.wake_at),
            (until.is_none().then_some(0), until)
        );
        let step = look(&mut pool, 80.0, &quiet(80), &alone);
        assert_eq!(
            step.reason.to_string(),
            "1 to 0: no request for 80 s (keep-alive 30 s)"
        );
        assert_eq!(step.replicas, Some(0));
    }
}

#[test]
fn initial_scale_counts_until_it_was_reached_once() {
    let mut pool = pool(|knobs| (knobs.initial_scale, knobs.keep_alive) = (3, Some(Duration::from_secs(5))));
    pool.begin_at_initial_scale();
    let step = look(&mut pool, 1.0, &quiet(0), &facts(1));
    assert_eq!(step.reason.to_string(), "1 to 3: initial-scale is 3");
    assert_eq!(
        look(&mut pool, 99.0, &quiet(98), &Facts { ready: 2, ..facts(3) }).replicas,
        None
    );
    assert_eq!(look(&mut pool, 100.0, &quiet(99), &facts(3)).replicas, Some(0));
}

#[test]
fn beside_an_hpa_only_the_first_pod_is_ours() {
    let by = || Some("hpa/web".to_owned());
    let mut pool = pool(|_| ());
    let hpa = |replicas| Facts {
        scaled_by: by(),
        ..facts(replicas)
    };
    assert_eq!(look(&mut pool, 1.0, &held(1), &hpa(0)).replicas, Some(1));
    let busy = Sample {
        held: 900,
        in_flight: 900,
        arrivals: 900,
        ..quiet(0)
    };
    let step = look(&mut pool, 5.0, &busy, &hpa(1));
    assert_eq!(
        (step.replicas, step.reason.to_string().as_str()),
        (None, "stays at 1: hpa/web decides beyond the first pod")
    );
    assert_eq!(look(&mut pool, 9.0, &busy, &hpa(7)).replicas, None);
    assert_eq!(look(&mut pool, 99.0, &quiet(30), &hpa(7)).replicas, None);
    assert_eq!(look(&mut pool, 199.0, &quiet(90), &hpa(7)).replicas, Some(0));
    // Its own writes are no conflict.
    let foreign = Some(Foreign {
        from: 1,
        manager: "kube-controller-manager".to_owned(),
    });
    look(&mut pool, 200.0, &busy, &Facts { foreign, ..hpa(2) });
    assert_eq!(pool.conflict(at(200.0)), None);
}

#[test]
fn we_stop_fighting_after_three_flips_and_wake_all_the_same() {
    let mut pool = pool(|_| ());
    let flip = |from, replicas| Facts {
        foreign: Some(Foreign {
            from,
            manager: "argocd-controller".to_owned(),
        }),
        ..facts(replicas)
    };
    for second in [1.0, 2.0] {
        let step = look(&mut pool, 100.0 + second, &quiet(90), &flip(1, 3));
        assert_eq!(step.replicas, Some(0), "we write our number again");
    }
    let step = look(&mut pool, 103.0, &quiet(90), &flip(1, 3));
    assert_eq!(step.replicas, None);
    let expected =
        "stays at 3: argocd-controller changed replicas 3 times in 10 min, left alone until it is calm";
    assert_eq!(step.reason.to_string(), expected);
    assert_eq!(
        step.next,
        Some(Plan::Calm {
            after: Duration::from_secs(600)
        })
    );
    assert_eq!(pool.conflict(at(103.0)), Some((3, "argocd-controller", true)));
    assert_eq!(
        look(&mut pool, 104.0, &held(1), &flip(3, 0)).replicas,
        Some(1),
        "held requests come first"
    );
    assert_eq!(
        look(&mut pool, 705.0, &quiet(600), &facts(3)).replicas,
        Some(0),
        "calm again"
    );
}

#[test]
fn who_raises_it_from_zero_has_it_for_a_keep_alive() {
    let mut pool = pool(|_| ());
    let foreign = Some(Foreign {
        from: 0,
        manager: "kubectl".to_owned(),
    });
    let step = look(&mut pool, 500.0, &quiet(499), &Facts { foreign, ..facts(1) });
    assert_eq!(
        (step.replicas, step.next),
        (
            None,
            Some(Plan::Sleep {
                after: Duration::from_secs(60)
            })
        )
    );
}

#[test]
fn a_new_leader_shrinks_nothing_it_does_not_know() {
    use Algorithm::{Adaptive, Kpa};
    // Pods that it does not see answering yet are not there for nothing either.
    for (algorithm, ready) in [(Adaptive, 5), (Kpa, 5), (Adaptive, 2), (Adaptive, 0)] {
        let mut pool = pool(|knobs| knobs.algorithm = algorithm);
        let facts = Facts { ready, ..facts(5) };
        let busy = |second: f64| Sample {
            in_flight: 4,
            in_flight_seconds: second * 4.0,
            ..quiet(0)
        };
        for second in 0..15 {
            let second = f64::from(second);
            let step = look(&mut pool, second, &busy(second), &facts);
            let why = format!("{algorithm:?}, {ready} ready, at {second} s: {}", step.reason);
            assert_eq!(step.replicas, None, "{why}");
        }
    }
}

#[test]
fn knatives_policy_sleeps_by_its_own_gate() {
    let mut pool = pool(|knobs| knobs.algorithm = Algorithm::Kpa);
    let mut woken = look(&mut pool, 0.0, &held(1), &facts(0));
    assert_eq!(woken.replicas, Some(1));
    let mut second = 0.5;
    woken.replicas = None;
    while woken.replicas.is_none() {
        woken = look(&mut pool, second, &quiet(second as u64), &facts(1));
        assert!(
            woken.wake_at.is_some_and(|at| at <= self::at(second + 2.001)),
            "the tick goes on"
        );
        second += 2.0;
        assert!(second < 130.0);
    }
    assert_eq!(woken.replicas, Some(0));
    assert!(
        (60.0..70.0).contains(&second),
        "a window and a tick, as Knative behind its activator: {second}"
    );
}

#[test]
fn knatives_policy_gives_up_pods_that_never_become_ready() {
    let mut pool = pool(|knobs| knobs.algorithm = Algorithm::Kpa);
    look(&mut pool, 0.0, &held(1), &facts(0));
    let starting = Facts { ready: 0, ..facts(1) };
    let mut last = None;
    for tick in 1..330_u64 {
        let step = look(&mut pool, tick as f64 * 2.0, &quiet(tick * 2), &starting);
        if step.replicas.is_some() {
            last = Some((tick * 2, step));
            break;
        }
    }
    let (second, step) = last.unwrap();
    assert_eq!((second, step.reason.label()), (630, "never_ready"));
}

#[test]
fn knatives_policy_scales_by_its_averages_on_its_tick() {
    let mut pool = pool(|knobs| (knobs.algorithm, knobs.target) = (Algorithm::Kpa, Some(10.0)));
    let busy = |second: f64| Sample {
        in_flight: 35,
        in_flight_seconds: second * 35.0,
        ..quiet(0)
    };
    let mut changes = Vec::new();
    let mut replicas = 1;
    for quarter in 0..40 {
        let second = f64::from(quarter) / 4.0;
        if let Some(to) = look(&mut pool, second, &busy(second), &facts(replicas)).replicas {
            changes.push((second, to));
            replicas = to;
        }
    }
    assert_eq!(changes, [(2.0, 5)], "35 over 10 x 70 %");
}

#[test]
fn a_held_queue_gets_pods_that_drain_it_and_the_reason_has_the_numbers() {
    let mut pool = pool(|knobs| knobs.container_concurrency = 1);
    let mut sample = quiet(0);
    let mut now = 0.0;
    while now < 20.0 {
        now += 0.1;
        sample.arrivals += 12;
        sample.completions += 12;
        sample.service_seconds += 12.0 * 0.08;
        sample.in_flight_seconds += 0.96;
        sample.in_flight = 10;
        look(&mut pool, now, &sample, &facts(20));
    }
    sample.held = 120;
    sample.arrivals += 120;
    let step = look(
        &mut pool,
        now + 0.1,
        &sample,
        &Facts {
            ready: 14,
            ..facts(14)
        },
    );
    let to = step.replicas.unwrap();
    assert!((15..=140).contains(&to), "{to}");
    let text = step.reason.to_string();
    assert!(
        text.contains("120 held, ") && text.contains(" req/s x 80 ms, "),
        "{text}"
    );
    assert!(text.contains(" more pods drain the queue in "), "{text}");
}

#[test]
fn new_knobs_count_at_once_and_what_was_measured_stays() {
    let mut pool = pool(|_| ());
    look(&mut pool, 10.0, &quiet(0), &facts(1));
    let short = Knobs {
        keep_alive: Some(Duration::from_secs(5)),
        ..Knobs::default()
    };
    pool.update_policy(Policy::new(short).unwrap(), at(11.0));
    let step = look(&mut pool, 12.0, &quiet(2), &facts(1));
    assert_eq!(
        step.next,
        Some(Plan::Sleep {
            after: Duration::from_secs(3)
        })
    );
    let kpa = Knobs {
        algorithm: Algorithm::Kpa,
        ..Knobs::default()
    };
    pool.update_policy(Policy::new(kpa).unwrap(), at(12.0));
    let step = look(&mut pool, 13.0, &quiet(3), &facts(1));
    assert_eq!(step.replicas, None);
    assert!(pool.numbers().iter().any(|(name, _)| *name == "stable"));
}
