use super::*;

#[test]
fn v29_target_and_total_per_pod() {
    let concurrency = |limit: u32, target: Option<f64>, utilization: f64| Knobs {
        container_concurrency: limit,
        target,
        target_utilization_percentage: utilization,
        ..Knobs::default()
    };
    let rate = |target: Option<f64>, utilization: f64| Knobs {
        metric: Metric::RequestsPerSecond,
        ..concurrency(0, target, utilization)
    };
    let rows = [
        ("no limit, 80 %", concurrency(0, None, 80.0), (80.0, 100.0)),
        ("limit 12, 75 %", concurrency(12, None, 75.0), (9.0, 12.0)),
        ("limit 1, 80 %", concurrency(1, None, 80.0), (0.8, 1.0)),
        ("target 1, 0.1 %", concurrency(0, Some(1.0), 0.1), (0.01, 1.0)),
        (
            "limit 10, target 1",
            concurrency(10, Some(1.0), 100.0),
            (1.0, 1.0),
        ),
        ("target 500", concurrency(0, Some(500.0), 100.0), (500.0, 500.0)),
        (
            "limit 1, target 10",
            concurrency(1, Some(10.0), 100.0),
            (1.0, 1.0),
        ),
        ("rps default", rate(None, 70.0), (140.0, 200.0)),
        ("rps target 1", rate(Some(1.0), 70.0), (0.7, 1.0)),
        ("rps 75 %", rate(None, 75.0), (150.0, 200.0)),
        ("rps target 300", rate(Some(300.0), 70.0), (210.0, 300.0)),
    ];
    for (name, knobs, (target, total)) in rows {
        let policy = Policy::new(knobs).unwrap();
        assert!(
            (policy.target() - target).abs() < 1e-9,
            "V29, {name}: {}",
            policy.target()
        );
        assert!(
            (policy.total() - total).abs() < 1e-9,
            "V29, {name}: {}",
            policy.total()
        );
    }
}

#[test]
fn a_knob_out_of_its_range_is_named_with_its_value() {
    type Change = fn(&mut Knobs);
    let rows: &[(&str, Change)] = &[
        ("target", |knobs| knobs.target = Some(0.001)),
        ("target", |knobs| knobs.target = Some(f64::NAN)),
        ("target-utilization-percentage", |knobs| {
            knobs.target_utilization_percentage = 0.0
        }),
        ("target-utilization-percentage", |knobs| {
            knobs.target_utilization_percentage = 101.0
        }),
        ("target-utilization-percentage", |knobs| {
            knobs.target_utilization_percentage = f64::NAN
        }),
        ("target-burst-capacity", |knobs| {
            knobs.target_burst_capacity = -2.0
        }),
        ("max-scale", |knobs| (knobs.min_scale, knobs.max_scale) = (3, 2)),
        ("activation-scale", |knobs| knobs.activation_scale = Some(0)),
        ("activation-scale", |knobs| {
            (knobs.max_scale, knobs.activation_scale) = (2, Some(3))
        }),
        ("activation-scale", |knobs| {
            (knobs.min_scale, knobs.activation_scale) = (3, Some(2))
        }),
        ("window", |knobs| knobs.window = Duration::from_secs(5)),
        ("window", |knobs| knobs.window = Duration::from_secs(3601)),
        ("panic-window-percentage", |knobs| {
            knobs.panic_window_percentage = 0.5
        }),
        ("panic-threshold-percentage", |knobs| {
            knobs.panic_threshold_percentage = 100.0
        }),
        ("max-scale-up-rate", |knobs| knobs.max_scale_up_rate = 1.0),
        ("max-scale-down-rate", |knobs| {
            knobs.max_scale_down_rate = f64::INFINITY
        }),
        ("scale-down-delay", |knobs| {
            knobs.scale_down_delay = Duration::from_secs(3601)
        }),
        ("scale-to-zero-pod-retention-period", |knobs| {
            knobs.retention = Duration::from_secs(7200)
        }),
    ];
    for (knob, change) in rows {
        let mut knobs = Knobs::default();
        change(&mut knobs);
        let invalid = Policy::new(knobs).unwrap_err();
        assert_eq!(invalid.knob, *knob);
        assert!(
            invalid.to_string().starts_with(&format!("{knob} is ")),
            "{invalid}"
        );
    }
}

#[test]
fn the_defaults_are_allowed_and_are_knatives() {
    let policy = Policy::new(Knobs::default()).unwrap();
    assert_eq!(policy, Policy::default());
    assert_eq!(policy.panic_window(), Duration::from_secs(6));
    assert_eq!(policy.panic_threshold(), 2.0);
    assert_eq!(policy.keep_alive(), Duration::from_secs(60));
}

#[test]
fn the_panic_window_is_whole_seconds_and_at_least_one() {
    for (window, percentage, seconds) in [
        (60, 10.0, 6),
        (6, 10.0, 1),
        (6, 1.0, 1),
        (15, 10.0, 2),
        (3600, 100.0, 3600),
    ] {
        let knobs = Knobs {
            window: Duration::from_secs(window),
            panic_window_percentage: percentage,
            ..Knobs::default()
        };
        assert_eq!(
            Policy::new(knobs).unwrap().panic_window(),
            Duration::from_secs(seconds),
            "{window} s, {percentage} %"
        );
    }
}

#[test]
fn bounds_are_inclusive_and_zero_is_no_bound() {
    let policy = |min_scale, max_scale| {
        Policy::new(Knobs {
            min_scale,
            max_scale,
            ..Knobs::default()
        })
        .unwrap()
    };
    for (min, max, asked, given) in [
        (0, 0, 7, 7),
        (2, 0, 1, 2),
        (0, 5, 7, 5),
        (2, 5, 3, 3),
        (3, 3, 0, 3),
    ] {
        assert_eq!(policy(min, max).bounded(asked), given, "{asked} in {min}..={max}");
    }
}
