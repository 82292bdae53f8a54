//! The annotation table, row by row, and the rules between keys.

use std::collections::BTreeMap;
use std::time::Duration;

use dormouse_crds::annotation::{
    Aggregation, Invalid, KeepAlive, Kind, Metric, PREFIX, Parsed, PolicyKind, Preference, TABLE, find,
    markdown, nearest, parse,
};
use dormouse_crds::route::{Protocol, WorkloadKind};
use dormouse_crds::{Settings, names};
use proptest::prelude::*;

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

/// Reads one key of ours from a Service.
fn one(name: &str, value: &str) -> Parsed {
    parse(&BTreeMap::new(), &map(&[(&format!("{PREFIX}{name}"), value)]))
}

fn long_list(count: usize, prefix: &str) -> String {
    (0..count)
        .map(|n| format!("{prefix}{n}"))
        .collect::<Vec<_>>()
        .join(",")
}

/// For each key: values at the edges of what is allowed, and values just outside or nonsense.
fn edges() -> Vec<(&'static str, Vec<String>, Vec<String>)> {
    let strings = |values: &[&str]| values.iter().map(|v| (*v).to_owned()).collect::<Vec<_>>();
    let row = |name, good: &[&str], bad: &[&str]| (name, strings(good), strings(bad));
    let mut rows = vec![
        row(
            "scale-to-zero",
            &["true", "false", " true "],
            &["", "True", "yes", "1"],
        ),
        row(
            "workload",
            &["deployment/web", "statefulset/db-1", "deployment/a.b"],
            &[
                "web",
                "deployment/",
                "deployment/Web",
                "deploy/web",
                "daemonset/web",
                "deployment/a/b",
                "deployment/-a",
            ],
        ),
        row(
            "min-scale",
            &["0", "100000"],
            &["-1", "100001", "1.5", "many", ""],
        ),
        row(
            "max-scale",
            &["0", "100000"],
            &["-1", "100001", "1.5", "many", "4294967296"],
        ),
        row("initial-scale", &["0", "100000"], &["-1", "100001", "x"]),
        row("activation-scale", &["2", "100000"], &["1", "0", "100001", "x"]),
        row(
            "policy",
            &["adaptive", "kpa", "kpa.autoscaling.knative.dev"],
            &["hpa.autoscaling.knative.dev", "KPA"],
        ),
        row("metric", &["concurrency", "rps"], &["cpu", "memory", ""]),
        row(
            "target",
            &["0.01", "1000000", "1e3"],
            &["0.009", "0", "-1", "1000000.1", "NaN", "inf", "x"],
        ),
        row(
            "target-utilization-percentage",
            &["1", "100", "70.5"],
            &["0.9", "100.1", "70%", "NaN"],
        ),
        row(
            "target-burst-capacity",
            &["-1", "-1.0", "0", "1000000"],
            &["-0.5", "-2", "1000001", "x"],
        ),
        row(
            "container-concurrency",
            &["0", "1", "1000000"],
            &["-1", "1000001", "1.5"],
        ),
        row(
            "window",
            &["6s", "1h", "1m30s"],
            &["5s", "5999ms", "1h1s", "6500ms", "60", "soon", ""],
        ),
        row("panic-window-percentage", &["1", "100"], &["0.9", "100.1", "x"]),
        row(
            "panic-threshold-percentage",
            &["110", "1000"],
            &["109.9", "1000.1", "x"],
        ),
        row(
            "max-scale-up-rate",
            &["1.01", "1000000"],
            &["1", "0", "1000001", "x"],
        ),
        row(
            "max-scale-down-rate",
            &["1.01", "1000000"],
            &["1", "-2", "1000001", "x"],
        ),
        row(
            "metric-aggregation-algorithm",
            &["linear", "weighted-exponential", "weightedExponential"],
            &["exponential", ""],
        ),
        row(
            "scale-down-delay",
            &["0s", "0", "1h"],
            &["1h1s", "1500ms", "60", "-1s"],
        ),
        row(
            "scale-to-zero-pod-retention-period",
            &["0s", "1h", "1500ms"],
            &["1h1ms", "60", "-1s"],
        ),
        row(
            "keep-alive",
            &["adaptive", "1s", "24h"],
            &["999ms", "24h1ms", "60", "learned"],
        ),
        row("preference", &["economy", "balanced", "snappy"], &["fast", ""]),
        row("burst", &["0", "1000000"], &["-1", "1000001", "x"]),
        row(
            "schedule",
            &[
                "Mon-Fri 08:00-18:00 Europe/Berlin min=1",
                "daily 00:00-24:00 min=100000",
            ],
            &["always", ""],
        ),
        row("queue-limit", &["1", "100000"], &["0", "100001", "x"]),
        row(
            "cold-start-timeout",
            &["100ms", "1h"],
            &["99ms", "1h1ms", "60", "0s"],
        ),
        row("queue-timeout", &["0s", "1h"], &["1h1ms", "60", "x"]),
        row("response-start-timeout", &["0s", "24h"], &["24h1ms", "60", "x"]),
        row("request-timeout", &["0s", "24h"], &["24h1ms", "60", "x"]),
        row("stream-idle-timeout", &["0s", "24h"], &["24h1ms", "60", "x"]),
        row("protocol", &["http", "tcp"], &["HTTP", "udp", "grpc"]),
        row("proxy-protocol", &["off", "v2"], &["v1", "true", ""]),
        row("waiting-page", &["auto", "off", "my-page"], &["My Page", "", "-"]),
        row(
            "ignore",
            &["Pingdom", "/healthz, Pingdom/1.0,/ready"],
            &["", "a,,b", "caf\u{e9}", "a\nb"],
        ),
        row("group", &["preview-7", "a"], &["", "Preview", "a.b", "-a"]),
        row("depends-on", &["db", "db, cache"], &["", "db,", "db,db", "Db"]),
        row(
            "rollout",
            &["canary", "blue-green", "my-rollout"],
            &["", "My Rollout"],
        ),
    ];
    let mut add = |name: &str, good: String, bad: String| {
        let row = rows
            .iter_mut()
            .find(|row| row.0 == name)
            .expect("a row for each key");
        row.1.push(good);
        row.2.push(bad);
    };
    add("ignore", long_list(64, "/p"), long_list(65, "/p"));
    add("ignore", long_list(64, "agent"), long_list(65, "agent"));
    add("ignore", "a".repeat(256), "a".repeat(257));
    add("depends-on", long_list(32, "db"), long_list(33, "db"));
    add("group", "a".repeat(63), "a".repeat(64));
    add("waiting-page", "a".repeat(63), "a".repeat(64));
    add("rollout", "a".repeat(63), format!("{}a", "a.".repeat(127)));
    rows
}

#[test]
fn every_key_takes_its_edges_and_refuses_what_lies_outside() {
    let rows = edges();
    let named: Vec<_> = rows.iter().map(|row| row.0).collect();
    let table: Vec<_> = TABLE.iter().map(|key| key.name).collect();
    assert_eq!(named, table, "a row for each key, in the table's order");
    for (name, good, bad) in rows {
        let allowed = find(name).expect("in the table").kind.allowed();
        for value in good {
            let parsed = one(name, &value);
            assert_eq!(parsed.invalid, [], "{name}: {value}");
            assert_eq!(parsed.written.len(), 1, "{name}: {value}");
        }
        for value in bad {
            let parsed = one(name, &value);
            assert_eq!(parsed.settings, Settings::default(), "{name}: {value}");
            assert_eq!(parsed.written, [], "{name}: {value}");
            let [invalid] = parsed.invalid.as_slice() else {
                panic!("{name}: {value}: {:?}", parsed.invalid)
            };
            assert_eq!(invalid.key, format!("{PREFIX}{name}"));
            assert!(
                invalid.allowed.starts_with(&allowed),
                "{name}: {value}: {}",
                invalid.allowed
            );
        }
    }
}

#[test]
fn every_key_sets_its_own_field() {
    type Check = fn(&Settings) -> bool;
    let rows: &[(&str, &str, Check)] = &[
        ("scale-to-zero", "true", |s| s.enabled),
        ("workload", "statefulset/db", |s| {
            s.workload
                .as_ref()
                .is_some_and(|w| w.kind == WorkloadKind::StatefulSet && w.name == "db")
        }),
        ("min-scale", "3", |s| s.min_scale == 3),
        ("max-scale", "3", |s| s.max_scale == 3),
        ("initial-scale", "3", |s| s.initial_scale == 3),
        ("activation-scale", "3", |s| s.activation_scale == Some(3)),
        ("policy", "kpa", |s| s.policy == PolicyKind::Kpa),
        ("metric", "rps", |s| s.metric == Metric::Rps),
        ("target", "7.5", |s| s.target == Some(7.5)),
        ("target-utilization-percentage", "55", |s| {
            s.target_utilization_percentage == 55.0
        }),
        ("target-burst-capacity", "-1", |s| s.target_burst_capacity == -1.0),
        ("container-concurrency", "1", |s| s.container_concurrency == 1),
        ("window", "6s", |s| s.window == Duration::from_secs(6)),
        ("panic-window-percentage", "20", |s| {
            s.panic_window_percentage == 20.0
        }),
        ("panic-threshold-percentage", "150", |s| {
            s.panic_threshold_percentage == 150.0
        }),
        ("max-scale-up-rate", "10", |s| s.max_scale_up_rate == 10.0),
        ("max-scale-down-rate", "3", |s| s.max_scale_down_rate == 3.0),
        ("metric-aggregation-algorithm", "weighted-exponential", |s| {
            s.aggregation == Aggregation::WeightedExponential
        }),
        ("scale-down-delay", "15m", |s| {
            s.scale_down_delay == Duration::from_secs(900)
        }),
        ("scale-to-zero-pod-retention-period", "42s", |s| {
            s.retention == Duration::from_secs(42)
        }),
        ("keep-alive", "10s", |s| {
            s.keep_alive == KeepAlive::Fixed(Duration::from_secs(10))
        }),
        ("preference", "snappy", |s| s.preference == Preference::Snappy),
        ("burst", "5", |s| s.burst == 5),
        ("schedule", "daily 08:00-18:00 min=1", |s| {
            s.schedule.as_deref() == Some("daily 08:00-18:00 min=1")
        }),
        ("queue-limit", "7", |s| s.queue_limit == 7),
        ("cold-start-timeout", "2m", |s| {
            s.cold_start_timeout == Duration::from_secs(120)
        }),
        ("queue-timeout", "4s", |s| {
            s.queue_timeout == Duration::from_secs(4)
        }),
        ("response-start-timeout", "1s", |s| {
            s.response_start_timeout == Duration::from_secs(1)
        }),
        ("request-timeout", "2s", |s| {
            s.request_timeout == Duration::from_secs(2)
        }),
        ("stream-idle-timeout", "3s", |s| {
            s.stream_idle_timeout == Duration::from_secs(3)
        }),
        ("protocol", "tcp", |s| s.protocol == Some(Protocol::Tcp)),
        ("proxy-protocol", "v2", |s| s.proxy_protocol),
        ("waiting-page", "off", |s| s.waiting_page == "off"),
        ("ignore", "/healthz, Pingdom", |s| {
            s.ignore.paths == ["/healthz"] && s.ignore.user_agents == ["Pingdom"]
        }),
        ("group", "preview", |s| s.group.as_deref() == Some("preview")),
        ("depends-on", "db, cache", |s| s.depends_on == ["db", "cache"]),
        ("rollout", "canary", |s| s.rollout.as_deref() == Some("canary")),
    ];
    assert_eq!(rows.len(), TABLE.len());
    for (name, value, check) in rows {
        assert!(
            !check(&Settings::default()),
            "{name}: the row must change something"
        );
        assert!(check(&one(name, value).settings), "{name}");
    }
}

#[test]
fn a_documented_default_is_the_default() {
    for key in TABLE.iter().filter(|key| !key.default.starts_with('(')) {
        let parsed = one(key.name, key.default);
        assert_eq!(parsed.invalid, [], "{}", key.name);
        assert_eq!(parsed.settings, Settings::default(), "{}", key.name);
    }
}

#[test]
fn every_synonym_means_the_same_and_gives_way_to_our_key() {
    let rows = edges();
    for key in TABLE {
        let good = &rows.iter().find(|row| row.0 == key.name).expect("a row").1;
        let (first, last) = (&good[0], &good[good.len() - 1]);
        for name in key.knative {
            assert!(name.starts_with("autoscaling.knative.dev/"), "{name}");
            let alone = parse(&BTreeMap::new(), &map(&[(name, first)]));
            assert_eq!(alone.settings, one(key.name, first).settings, "{name}");
            assert_eq!(alone.written[0].key, *name);
            let both = parse(&BTreeMap::new(), &map(&[(name, first), (&key.full(), last)]));
            assert_eq!(both.settings, one(key.name, last).settings, "{name}");
        }
    }
    let camel_case: Vec<_> = TABLE
        .iter()
        .flat_map(|key| key.knative)
        .filter(|n| n.contains("minScale"))
        .collect();
    assert_eq!(camel_case.len(), 1);
}

#[test]
fn a_service_wins_over_its_namespace_key_by_key() {
    let namespace = map(&[
        ("dormouse.dev/scale-to-zero", "true"),
        ("dormouse.dev/max-scale", "5"),
    ]);
    let knative = map(&[
        ("autoscaling.knative.dev/max-scale", "9"),
        ("dormouse.dev/burst", "2"),
    ]);
    let parsed = parse(&namespace, &knative);
    let settings = &parsed.settings;
    assert!(settings.enabled);
    assert_eq!(
        (settings.max_scale, settings.burst),
        (9, 2),
        "a Service's synonym wins over our key on the Namespace"
    );
    let places: Vec<_> = parsed
        .written
        .iter()
        .map(|written| (written.name, written.place))
        .collect();
    assert_eq!(
        places,
        [
            ("scale-to-zero", "Namespace"),
            ("max-scale", "Service"),
            ("burst", "Service")
        ]
    );

    let opted_out = parse(&namespace, &map(&[("dormouse.dev/scale-to-zero", "false")]));
    assert!(!opted_out.settings.enabled);
}

#[test]
fn what_is_refused_on_the_service_falls_back_to_the_namespace() {
    let namespace = map(&[("dormouse.dev/max-scale", "5"), ("dormouse.dev/burst", "none")]);
    let parsed = parse(&namespace, &map(&[("dormouse.dev/max-scale", "lots")]));
    assert_eq!(parsed.settings.max_scale, 5);
    assert_eq!(
        parsed.invalid,
        [
            Invalid {
                key: "dormouse.dev/max-scale".to_owned(),
                value: "lots".to_owned(),
                allowed: "a whole number of pods from 0 to 100000".to_owned(),
                place: "Service",
            },
            Invalid {
                key: "dormouse.dev/burst".to_owned(),
                value: "none".to_owned(),
                allowed: "a whole number of requests from 0 to 1000000".to_owned(),
                place: "Namespace",
            },
        ]
    );
}

#[test]
fn a_workload_on_a_namespace_is_refused() {
    let parsed = parse(
        &map(&[("dormouse.dev/workload", "deployment/web")]),
        &BTreeMap::new(),
    );
    assert_eq!(parsed.settings.workload, None);
    assert_eq!(parsed.invalid[0].allowed, "on a Service only");
}

#[test]
fn bounds_that_contradict_each_other_are_refused_and_both_are_named() {
    type Row<'a> = (
        &'a [(&'a str, &'a str)],
        Option<(&'a str, &'a str)>,
        (u32, u32, Option<u32>),
    );
    let rows: &[Row<'_>] = &[
        (&[("min-scale", "3"), ("max-scale", "3")], None, (3, 3, None)),
        (&[("min-scale", "3"), ("max-scale", "0")], None, (3, 0, None)),
        (
            &[("min-scale", "3"), ("max-scale", "2")],
            Some(("max-scale", "min-scale, which is 3")),
            (0, 0, None),
        ),
        (
            &[("max-scale", "2"), ("activation-scale", "2")],
            None,
            (0, 2, Some(2)),
        ),
        (
            &[("max-scale", "2"), ("activation-scale", "3")],
            Some(("activation-scale", "max-scale, which is 2")),
            (0, 2, None),
        ),
        (
            &[("min-scale", "4"), ("activation-scale", "4")],
            None,
            (4, 0, Some(4)),
        ),
        (
            &[("min-scale", "4"), ("activation-scale", "3")],
            Some(("activation-scale", "min-scale, which is 4")),
            (4, 0, None),
        ),
    ];
    for (pairs, want, scales) in rows {
        let service: BTreeMap<_, _> = pairs
            .iter()
            .map(|(name, value)| (format!("{PREFIX}{name}"), (*value).to_owned()))
            .collect();
        let parsed = parse(&BTreeMap::new(), &service);
        let s = &parsed.settings;
        assert_eq!(
            (s.min_scale, s.max_scale, s.activation_scale),
            *scales,
            "{pairs:?}"
        );
        match (want, parsed.invalid.as_slice()) {
            (None, []) => {}
            (Some((key, other)), [invalid]) => {
                assert_eq!(invalid.key, format!("{PREFIX}{key}"));
                assert!(invalid.allowed.contains(other), "{}", invalid.allowed);
            }
            (want, got) => panic!("{pairs:?}: wanted {want:?}, got {got:?}"),
        }
    }
}

#[test]
fn keys_that_are_not_yet_active_are_listed_as_written() {
    let rows: &[(&str, &str, bool)] = &[
        ("preference", "snappy", true),
        ("schedule", "daily 08:00-18:00 min=1", true),
        ("group", "a", false),
        ("depends-on", "db", false),
        ("rollout", "canary", false),
        ("protocol", "tcp", false),
        ("protocol", "http", false),
        ("keep-alive", "adaptive", true),
        ("keep-alive", "60s", false),
        ("proxy-protocol", "v2", false),
        ("waiting-page", "auto", false),
        ("waiting-page", "my-page", false),
        ("waiting-page", "off", false),
        ("min-scale", "1", false),
        ("policy", "kpa", false),
    ];
    for (name, value, inactive) in rows {
        let want: &[String] = if *inactive {
            &[format!("{PREFIX}{name}")]
        } else {
            &[]
        };
        assert_eq!(one(name, value).inactive, want, "{name}={value}");
    }
    assert_eq!(
        one("preference", "nonsense").inactive,
        [] as [String; 0],
        "what is refused is not pending"
    );
}

#[test]
fn a_typing_error_is_met_with_the_key_that_was_meant() {
    let rows: &[(&str, Option<&str>)] = &[
        ("scale-to-zer0", Some("scale-to-zero")),
        ("scaleToZero", Some("scale-to-zero")),
        ("minScale", Some("min-scale")),
        ("max-scal", Some("max-scale")),
        ("keepalive", Some("keep-alive")),
        ("cold_start_timeout", Some("cold-start-timeout")),
        ("colour", None),
        ("", None),
    ];
    for (name, want) in rows {
        assert_eq!(nearest(name), *want, "{name}");
        assert_eq!(
            one(name, "1").unknown,
            [(format!("{PREFIX}{name}"), *want)],
            "{name}"
        );
    }
    let ours = map(&[
        (names::ORIGINAL_REPLICAS_ANNOTATION, "3"),
        (names::COMMAND_ANNOTATION, "wake@1"),
        ("a/b", "c"),
    ]);
    assert_eq!(parse(&BTreeMap::new(), &ours).unknown, []);
    let everywhere = map(&[("dormouse.dev/min-scal", "1")]);
    assert_eq!(
        parse(&everywhere, &everywhere).unknown.len(),
        1,
        "once, not once for each place"
    );
}

#[test]
fn a_long_value_is_cut_in_the_message() {
    let parsed = one("min-scale", &"\u{1f42d}".repeat(10_000));
    assert_eq!(parsed.invalid[0].value.chars().count(), 81);
}

#[test]
fn the_docs_page_is_the_table() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/annotations.md");
    let page = std::fs::read_to_string(path).expect("docs/annotations.md");
    assert!(
        page == markdown(),
        "docs/annotations.md is not the table: cargo run -- explain annotations -o markdown > docs/annotations.md"
    );
}

/// Whether every setting lies in the range that its key documents.
fn in_range(s: &Settings) -> bool {
    let counts = [
        ("min-scale", s.min_scale),
        ("max-scale", s.max_scale),
        ("initial-scale", s.initial_scale),
        ("container-concurrency", s.container_concurrency),
        ("burst", s.burst),
        ("queue-limit", s.queue_limit),
    ];
    let numbers = [
        ("target-utilization-percentage", s.target_utilization_percentage),
        ("target-burst-capacity", s.target_burst_capacity),
        ("panic-window-percentage", s.panic_window_percentage),
        ("panic-threshold-percentage", s.panic_threshold_percentage),
        ("max-scale-up-rate", s.max_scale_up_rate),
        ("max-scale-down-rate", s.max_scale_down_rate),
        ("target", s.target.unwrap_or(100.0)),
    ];
    let durations = [
        ("window", s.window),
        ("scale-down-delay", s.scale_down_delay),
        ("scale-to-zero-pod-retention-period", s.retention),
        ("cold-start-timeout", s.cold_start_timeout),
        ("queue-timeout", s.queue_timeout),
        ("response-start-timeout", s.response_start_timeout),
        ("request-timeout", s.request_timeout),
        ("stream-idle-timeout", s.stream_idle_timeout),
    ];
    let kind = |name| find(name).expect("in the table").kind;
    counts.iter().all(|(name, n)| match kind(name) {
        Kind::Whole { min, max, .. } => (min..=max).contains(n),
        _ => false,
    }) && numbers.iter().all(|(name, n)| match kind(name) {
        Kind::Number { min, max, or, .. } => (min..=max).contains(n) || or == Some(*n),
        _ => false,
    }) && durations.iter().all(|(name, d)| match kind(name) {
        Kind::Duration { min, max, .. } => (min..=max).contains(d),
        _ => false,
    }) && (s.max_scale == 0 || s.max_scale >= s.min_scale)
        && s.activation_scale
            .is_none_or(|n| n >= 2 && n >= s.min_scale && (s.max_scale == 0 || n <= s.max_scale))
}

/// Values near what the grammars expect, and anything at all.
fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<i64>().prop_map(|n| n.to_string()),
        (-3_i32..2000).prop_map(|n| n.to_string()),
        any::<f64>().prop_map(|n| n.to_string()),
        "-?[0-9]{1,5}(h|m|s|ms)([0-9]{1,3}(s|ms))?",
        "(true|false|kpa|rps|adaptive|off|tcp|http|NaN|inf|1e9|-1)",
        "(Mon|Tue-Sat|daily) [0-2][0-9]:[0-6][0-9]-[0-2][0-9]:[0-6][0-9] ?(UTC|X/Y)? min=[0-9]{1,7}( except .*)?",
        "(deployment|statefulset|pod)/[a-zA-Z.-]{0,20}",
        "[a-z/, ]{0,40}",
        any::<String>(),
    ]
}

fn annotations() -> impl Strategy<Value = BTreeMap<String, String>> {
    let keys: Vec<String> = TABLE
        .iter()
        .flat_map(|key| std::iter::once(key.full()).chain(key.knative.iter().map(|k| (*k).to_owned())))
        .collect();
    let key = prop_oneof![9 => proptest::sample::select(keys), 1 => any::<String>().prop_map(|s| format!("{PREFIX}{s}"))];
    proptest::collection::btree_map(key, value(), 0..12)
}

proptest! {
    #[test]
    fn parsing_never_panics_and_never_leaves_the_ranges(namespace in annotations(), service in annotations()) {
        let parsed = parse(&namespace, &service);
        prop_assert!(in_range(&parsed.settings), "{:?}", parsed.settings);
        for written in &parsed.written {
            prop_assert!(!parsed.invalid.iter().any(|i| i.key == written.key && i.place == written.place));
        }
    }
}
