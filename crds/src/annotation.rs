//! The one table of user-facing annotations, and the parser made from it.
//!
//! | module | what it holds |
//! |---|---|
//! | `table` | [`TABLE`]: every key with its kind, range, default, synonyms and meaning |
//! | `value` | [`Kind`]: how a value is read, and how its range is said |
//! | `text`, `schedule` | the values that have a grammar of their own |
//! | `docs` | the table as a page |
//!
//! Which value counts: the Service's over the Namespace's, and on one object our key over Knative's. A value that is
//! not allowed is reported, and the next in that order counts.

mod docs;
mod schedule;
mod table;
mod text;
mod value;

use std::collections::BTreeMap;
use std::time::Duration;

use crate::names;
use crate::route::{Ignore, Protocol, Workload};

pub use docs::{activity, markdown};
pub use table::{Active, Key, TABLE};
pub use value::{Kind, Word, read_duration, write_duration};

/// What every key of ours starts with.
pub const PREFIX: &str = "dormouse.dev/";

/// Longest part of a value, in characters, that is repeated in a message: the value may be as long as an object.
const LONGEST_SHOWN: usize = 80;

/// What a user wrote on a Service, over the Namespace's defaults, over ours: resolved and in range.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// `scale-to-zero: "true"`: the Service is opted in.
    pub enabled: bool,
    /// `workload`; `None`: found by the selector.
    pub workload: Option<Workload>,
    /// `min-scale`, pods.
    pub min_scale: u32,
    /// `max-scale`, pods; 0: none.
    pub max_scale: u32,
    /// `initial-scale`, pods.
    pub initial_scale: u32,
    /// `activation-scale`, pods from zero; `None`: off.
    pub activation_scale: Option<u32>,
    /// `policy`.
    pub policy: PolicyKind,
    /// `metric`.
    pub metric: Metric,
    /// `target` per pod, requests in flight or requests per second; `None`: the metric's default (100, 200).
    pub target: Option<f64>,
    /// `target-utilization-percentage`, `1.0..=100.0`.
    pub target_utilization_percentage: f64,
    /// `target-burst-capacity`, requests; -1: unlimited. Only reported, as our proxy never leaves the path.
    pub target_burst_capacity: f64,
    /// `container-concurrency`, requests in flight per pod; 0: no limit.
    pub container_concurrency: u32,
    /// `window`.
    pub window: Duration,
    /// `panic-window-percentage`, `1.0..=100.0`.
    pub panic_window_percentage: f64,
    /// `panic-threshold-percentage`, `110.0..=1000.0`.
    pub panic_threshold_percentage: f64,
    /// `max-scale-up-rate`, factor above 1.
    pub max_scale_up_rate: f64,
    /// `max-scale-down-rate`, factor above 1.
    pub max_scale_down_rate: f64,
    /// `metric-aggregation-algorithm`.
    pub aggregation: Aggregation,
    /// `scale-down-delay`.
    pub scale_down_delay: Duration,
    /// `scale-to-zero-pod-retention-period`.
    pub retention: Duration,
    /// `keep-alive`.
    pub keep_alive: KeepAlive,
    /// `preference`.
    pub preference: Preference,
    /// `burst`, requests in flight of spare to keep ready.
    pub burst: u32,
    /// `schedule`, as written; validated.
    pub schedule: Option<String>,
    /// `queue-limit`, held requests per pool and activator.
    pub queue_limit: u32,
    /// `cold-start-timeout`.
    pub cold_start_timeout: Duration,
    /// `queue-timeout`; zero: as `cold_start_timeout`.
    pub queue_timeout: Duration,
    /// `response-start-timeout`; zero: off.
    pub response_start_timeout: Duration,
    /// `request-timeout`; zero: off.
    pub request_timeout: Duration,
    /// `stream-idle-timeout`; zero: off.
    pub stream_idle_timeout: Duration,
    /// `protocol`; `None`: from `appProtocol`, else HTTP.
    pub protocol: Option<Protocol>,
    /// `proxy-protocol`: TCP connections to pods begin with a header of version 2.
    pub proxy_protocol: bool,
    /// `waiting-page`: `auto`, `off`, or a ConfigMap's name.
    pub waiting_page: String,
    /// `ignore`.
    pub ignore: Ignore,
    /// `group`.
    pub group: Option<String>,
    /// `depends-on`, Service names.
    pub depends_on: Vec<String>,
    /// `rollout`: `canary`, `blue-green` or a Rollout's name.
    pub rollout: Option<String>,
}

/// `policy`: the algorithm for 1→N.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyKind {
    /// Ours: Little's law on exact counters.
    Adaptive,
    /// Knative's stable and panic windows.
    Kpa,
}

/// `metric`: what is compared with the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Requests in flight and held.
    Concurrency,
    /// Requests per second.
    Rps,
}

/// `metric-aggregation-algorithm`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aggregation {
    /// Every second of the window weighs the same.
    Linear,
    /// Younger seconds weigh more.
    WeightedExponential,
}

/// `keep-alive`: how long the last pod stays without a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeepAlive {
    /// Learned; a fixed 60 s until learning is active.
    Adaptive,
    /// Fixed.
    Fixed(Duration),
}

/// `preference`: how many idle pod-seconds one avoided cold start is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preference {
    /// 150.
    Economy,
    /// 600.
    Balanced,
    /// 3600.
    Snappy,
}

/// One annotation that was not accepted. What runs stays as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// The key as written, with its prefix.
    pub key: String,
    /// The value as written; of a long one, the beginning.
    pub value: String,
    /// What is allowed, in words a user can act on.
    pub allowed: String,
    /// `Service` or `Namespace`: where it was written.
    pub place: &'static str,
}

impl std::fmt::Display for Invalid {
    /// One sentence: key, value, place, what is allowed.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}: `{}` on the {} is not allowed: {}",
            self.key, self.value, self.place, self.allowed
        )
    }
}

/// One annotation that was accepted and counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The name of the key in [`TABLE`].
    pub name: &'static str,
    /// The key as written, with its prefix: ours or Knative's.
    pub key: String,
    /// The value as written.
    pub value: String,
    /// `Service` or `Namespace`: where it was written.
    pub place: &'static str,
}

/// The result of reading a Service's and its Namespace's annotations.
#[derive(Clone, Debug, PartialEq)]
pub struct Parsed {
    /// The settings, with the default (or the Namespace's valid value) in place of each invalid one.
    pub settings: Settings,
    /// What was not accepted. When not empty, the caller keeps the last good settings.
    pub invalid: Vec<Invalid>,
    /// Keys, as written, that were accepted but whose feature this version does not have yet.
    pub inactive: Vec<String>,
    /// Keys under our prefix that the table does not know, with the nearest known key: most likely typing errors.
    pub unknown: Vec<(String, Option<&'static str>)>,
    /// What was accepted and counts, in the table's order.
    pub written: Vec<Written>,
}

/// Reads the annotations of a Service over those of its Namespace.
#[must_use]
pub fn parse(namespace: &BTreeMap<String, String>, service: &BTreeMap<String, String>) -> Parsed {
    let mut parsed = Parsed {
        settings: Settings::default(),
        invalid: Vec::new(),
        inactive: Vec::new(),
        unknown: Vec::new(),
        written: Vec::new(),
    };
    for key in TABLE {
        read_key(
            key,
            &[("Service", service), ("Namespace", namespace)],
            &mut parsed,
        );
    }
    check_together(&mut parsed);
    for written in &parsed.written {
        let key = TABLE.iter().find(|key| key.name == written.name);
        if key.is_some_and(|key| !key.active.for_value(&written.value)) {
            parsed.inactive.push(written.key.clone());
        }
    }
    parsed.unknown = unknown(service.keys().chain(namespace.keys()));
    parsed
}

/// Takes the first value of `key` that is allowed, and reports those before it that are not.
fn read_key(key: &Key, places: &[(&'static str, &BTreeMap<String, String>)], parsed: &mut Parsed) {
    for (place, annotations) in places {
        let ours = key.full();
        let names = std::iter::once(ours.as_str()).chain(key.knative.iter().copied());
        let Some((name, value)) = names
            .into_iter()
            .find_map(|name| Some((name, annotations.get(name)?)))
        else {
            continue;
        };
        let refused = if *place == "Namespace" && !key.on_namespace {
            Err("on a Service only".to_owned())
        } else {
            key.kind
                .read(value, &mut parsed.settings)
                .map_err(|detail| match detail.as_str() {
                    "" => key.kind.allowed(),
                    detail => format!("{} ({detail})", key.kind.allowed()),
                })
        };
        match refused {
            Ok(()) => {
                let (name, value) = (name.to_owned(), value.clone());
                parsed.written.push(Written {
                    name: key.name,
                    key: name,
                    value,
                    place,
                });
                return;
            }
            Err(allowed) => {
                parsed.invalid.push(Invalid {
                    key: name.to_owned(),
                    value: shorten(value),
                    allowed,
                    place,
                });
            }
        }
    }
}

/// The rules between keys, as in Knative. What breaks one goes back to its default, so that the settings are in range.
fn check_together(parsed: &mut Parsed) {
    let (min, max) = (parsed.settings.min_scale, parsed.settings.max_scale);
    if max > 0 && max < min {
        parsed.refuse(
            "max-scale",
            format!("at least min-scale, which is {min}; or 0 for no limit"),
        );
        parsed.written.retain(|written| written.name != "min-scale");
        let default = Settings::default();
        (parsed.settings.min_scale, parsed.settings.max_scale) = (default.min_scale, default.max_scale);
    }
    let (min, max) = (parsed.settings.min_scale, parsed.settings.max_scale);
    let Some(activation) = parsed.settings.activation_scale else {
        return;
    };
    let wrong = if activation < min {
        format!("at least min-scale, which is {min}")
    } else if max > 0 && activation > max {
        format!("at most max-scale, which is {max}")
    } else {
        return;
    };
    parsed.refuse("activation-scale", wrong);
    parsed.settings.activation_scale = None;
}

impl Parsed {
    /// Turns an accepted value into an invalid one. A value that was never written cannot break a rule: the defaults
    /// keep them all.
    fn refuse(&mut self, name: &str, allowed: String) {
        let Some(at) = self.written.iter().position(|written| written.name == name) else {
            return;
        };
        let written = self.written.remove(at);
        let (key, value, place) = (written.key, shorten(&written.value), written.place);
        self.invalid.push(Invalid {
            key,
            value,
            allowed,
            place,
        });
    }
}

/// Keys under our prefix that are neither in the table nor written by us.
fn unknown<'a>(keys: impl Iterator<Item = &'a String>) -> Vec<(String, Option<&'static str>)> {
    const OURS: &[&str] = &[
        names::ORIGINAL_REPLICAS_ANNOTATION,
        names::COMMAND_ANNOTATION,
        names::RELEASE_ALL_ANNOTATION,
        names::CAPTURED_SELECTOR_KEY,
        names::POOL_LABEL,
        names::SERVICE_LABEL,
    ];
    let mut unknown: Vec<(String, Option<&'static str>)> = Vec::new();
    for key in keys {
        let Some(name) = key.strip_prefix(PREFIX) else {
            continue;
        };
        let known = OURS.contains(&key.as_str()) || find(name).is_some();
        if !known && !unknown.iter().any(|(other, _)| other == key) {
            unknown.push((key.clone(), nearest(name)));
        }
    }
    unknown
}

/// The row of the key with this name (without the prefix).
#[must_use]
pub fn find(name: &str) -> Option<&'static Key> {
    TABLE.iter().find(|key| key.name == name)
}

/// The name in the table that `name` was most likely meant to be; `None` when none is near.
#[must_use]
pub fn nearest(name: &str) -> Option<&'static str> {
    let plain = |text: &str| text.to_ascii_lowercase().replace(['-', '_'], "");
    let meant = plain(name);
    // Longer names are far from all, and not worth the work.
    if meant.len() > 64 {
        return None;
    }
    let distances = TABLE
        .iter()
        .map(|key| (distance(&meant, &plain(key.name)), key.name));
    // A third of the letters wrong is another word.
    distances
        .min()
        .filter(|(distance, _)| *distance <= (meant.len() / 3).max(1))
        .map(|(_, name)| name)
}

/// Insertions, deletions and replacements that make `a` into `b`, in characters.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// The beginning of a value that may be as long as an object.
fn shorten(text: &str) -> String {
    match text.char_indices().nth(LONGEST_SHOWN) {
        None => text.to_owned(),
        Some((at, _)) => format!("{}…", &text[..at]),
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            enabled: false,
            workload: None,
            min_scale: 0,
            max_scale: 0,
            initial_scale: 1,
            activation_scale: None,
            policy: PolicyKind::Adaptive,
            metric: Metric::Concurrency,
            target: None,
            target_utilization_percentage: 70.0,
            target_burst_capacity: 211.0,
            container_concurrency: 0,
            window: Duration::from_secs(60),
            panic_window_percentage: 10.0,
            panic_threshold_percentage: 200.0,
            max_scale_up_rate: 1000.0,
            max_scale_down_rate: 2.0,
            aggregation: Aggregation::Linear,
            scale_down_delay: Duration::ZERO,
            retention: Duration::ZERO,
            keep_alive: KeepAlive::Adaptive,
            preference: Preference::Balanced,
            burst: 0,
            schedule: None,
            queue_limit: 1000,
            cold_start_timeout: Duration::from_secs(60),
            queue_timeout: Duration::ZERO,
            response_start_timeout: Duration::ZERO,
            request_timeout: Duration::ZERO,
            stream_idle_timeout: Duration::ZERO,
            protocol: None,
            proxy_protocol: false,
            waiting_page: "auto".to_owned(),
            ignore: Ignore::default(),
            group: None,
            depends_on: Vec::new(),
            rollout: None,
        }
    }
}
