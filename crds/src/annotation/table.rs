//! The table itself: every key a user can write, once.

use std::time::Duration;

use super::value::{Kind, Word};
use super::{Aggregation, KeepAlive, Metric, PolicyKind, Preference, Settings, text};
use crate::route::Protocol;

/// Most pods that any key may name: two thirds of what one Kubernetes cluster supports in all.
pub(super) const MOST_PODS: u32 = 100_000;
/// Most requests that any key may name; a process holds far fewer.
const MOST_REQUESTS: u32 = 1_000_000;
const SECOND: Duration = Duration::from_secs(1);
const MILLISECOND: Duration = Duration::from_millis(1);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// One key that a user can write.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Its name after `dormouse.dev/`.
    pub name: &'static str,
    /// What its value is, and its range.
    pub kind: Kind,
    /// What holds when it is not set: a value as it would be written, or words in parentheses.
    pub default: &'static str,
    /// Knative's keys for the same thing, in full, the preferred one first.
    pub knative: &'static [&'static str],
    /// Whether it may stand on a Namespace, as the default for its Services.
    pub on_namespace: bool,
    /// What it does, in one or two sentences.
    pub meaning: &'static str,
    /// Whether this version does what it asks for.
    pub active: Active,
}

/// Whether this version does what a key asks for. A key that is not yet active is still read and checked in full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Active {
    /// Yes.
    Yes,
    /// Not yet.
    No,
    /// Yes, but for these values.
    Except(&'static [&'static str]),
    /// Only for these values.
    Only(&'static [&'static str]),
}

impl Active {
    /// Whether this version does what the key asks for with this value.
    #[must_use]
    pub fn for_value(self, value: &str) -> bool {
        let value = value.trim();
        match self {
            Self::Yes => true,
            Self::No => false,
            Self::Except(values) => !values.contains(&value),
            Self::Only(values) => values.contains(&value),
        }
    }
}

impl Key {
    /// The key in full: `dormouse.dev/NAME`.
    #[must_use]
    pub fn full(&self) -> String {
        format!("{}{}", super::PREFIX, self.name)
    }
}

/// A row in its most common form: ours or Knative's, also on a Namespace, active.
const fn key(name: &'static str, kind: Kind, default: &'static str, meaning: &'static str) -> Key {
    Key {
        name,
        kind,
        default,
        knative: &[],
        on_namespace: true,
        meaning,
        active: Active::Yes,
    }
}

impl Key {
    const fn knative(mut self, keys: &'static [&'static str]) -> Self {
        self.knative = keys;
        self
    }

    const fn active(mut self, active: Active) -> Self {
        self.active = active;
        self
    }

    const fn service_only(mut self) -> Self {
        self.on_namespace = false;
        self
    }
}

const fn pods(min: u32, set: fn(&mut Settings, u32)) -> Kind {
    Kind::Whole {
        unit: "pods",
        min,
        max: MOST_PODS,
        set,
    }
}

const fn requests(min: u32, max: u32, set: fn(&mut Settings, u32)) -> Kind {
    Kind::Whole {
        unit: "requests",
        min,
        max,
        set,
    }
}

const fn number(unit: &'static str, min: f64, max: f64, set: fn(&mut Settings, f64)) -> Kind {
    Kind::Number {
        unit,
        min,
        max,
        or: None,
        set,
    }
}

const fn duration(min: Duration, max: Duration, step: Duration, set: fn(&mut Settings, Duration)) -> Kind {
    Kind::Duration {
        min,
        max,
        step,
        word: None,
        set,
    }
}

const fn word(name: &'static str, set: fn(&mut Settings)) -> Word {
    Word { name, also: &[], set }
}

/// Every key, in the order in which a reader wants to meet them.
pub static TABLE: &[Key] = &[
    key(
        "scale-to-zero",
        Kind::Choice { words: &[word("true", |s| s.enabled = true), word("false", |s| s.enabled = false)] },
        "false",
        "`true` opts the Service in. `false` on a Service opts it out where its Namespace says `true`.",
    ),
    key(
        "workload",
        Kind::Text {
            grammar: "`deployment/NAME` or `statefulset/NAME`, in the Service's namespace",
            set: text::workload,
        },
        "(found by the selector)",
        "What has the pods and is scaled. Needed only where the selector matches the pods of more than one.",
    )
    .service_only(),
    key(
        "min-scale",
        pods(0, |s, n| s.min_scale = n),
        "0",
        "Fewest pods. Above 0 the Service never sleeps.",
    )
    .knative(&["autoscaling.knative.dev/min-scale", "autoscaling.knative.dev/minScale"]),
    key("max-scale", pods(0, |s, n| s.max_scale = n), "0", "Most pods; 0: no limit.")
        .knative(&["autoscaling.knative.dev/max-scale", "autoscaling.knative.dev/maxScale"]),
    key(
        "initial-scale",
        pods(0, |s, n| s.initial_scale = n),
        "1",
        "Pods that a new Service must reach once before it is scaled by its load.",
    )
    .knative(&["autoscaling.knative.dev/initial-scale", "autoscaling.knative.dev/initialScale"]),
    key(
        "activation-scale",
        pods(2, |s, n| s.activation_scale = Some(n)),
        "(off)",
        "Fewest pods on waking from zero: as many as `min-scale` at least and `max-scale` at most.",
    )
    .knative(&["autoscaling.knative.dev/activation-scale", "autoscaling.knative.dev/activationScale"]),
    key(
        "policy",
        Kind::Choice {
            words: &[
                word("adaptive", |s| s.policy = PolicyKind::Adaptive),
                Word {
                    name: "kpa",
                    also: &["kpa.autoscaling.knative.dev"],
                    set: |s| s.policy = PolicyKind::Kpa,
                },
            ],
        },
        "adaptive",
        "How many pods above one: `adaptive` sizes by Little's law on exact counts, `kpa` by Knative's windows. A \
         HorizontalPodAutoscaler on the workload takes this over, and needs no key.",
    )
    .knative(&["autoscaling.knative.dev/class"]),
    key(
        "metric",
        Kind::Choice {
            words: &[
                word("concurrency", |s| s.metric = Metric::Concurrency),
                word("rps", |s| s.metric = Metric::Rps),
            ],
        },
        "concurrency",
        "What is compared with `target`: requests in flight and held, or requests per second.",
    )
    .knative(&["autoscaling.knative.dev/metric"]),
    key(
        "target",
        number("requests, or requests per second, per pod", 0.01, MOST_REQUESTS as f64, |s, n| {
            s.target = Some(n);
        }),
        "(100 for concurrency, 200 for rps)",
        "What one pod should take of the metric. Never more than `container-concurrency`.",
    )
    .knative(&["autoscaling.knative.dev/target"]),
    key(
        "target-utilization-percentage",
        number("percent", 1.0, 100.0, |s, n| s.target_utilization_percentage = n),
        "70",
        "Part of `target` that is aimed at, so that there is room while a pod boots.",
    )
    .knative(&[
        "autoscaling.knative.dev/target-utilization-percentage",
        "autoscaling.knative.dev/targetUtilizationPercentage",
    ]),
    key(
        "target-burst-capacity",
        Kind::Number {
            unit: "requests",
            min: 0.0,
            max: MOST_REQUESTS as f64,
            or: Some(-1.0),
            set: |s, n| s.target_burst_capacity = n,
        },
        "211",
        "Knative's threshold for taking its proxy out of the path. Ours never leaves it, so this only shows in numbers \
         that `kpa` reports.",
    )
    .knative(&[
        "autoscaling.knative.dev/target-burst-capacity",
        "autoscaling.knative.dev/targetBurstCapacity",
    ]),
    key(
        "container-concurrency",
        requests(0, MOST_REQUESTS, |s, n| s.container_concurrency = n),
        "0",
        "Most requests in flight in one pod, exact over all activators; 0: no limit. More are held.",
    ),
    key(
        "window",
        duration(Duration::from_secs(6), HOUR, SECOND, |s, d| s.window = d),
        "60s",
        "For `kpa`: the stable window over which the metric is averaged.",
    )
    .knative(&["autoscaling.knative.dev/window"]),
    key(
        "panic-window-percentage",
        number("percent", 1.0, 100.0, |s, n| s.panic_window_percentage = n),
        "10",
        "For `kpa`: the panic window as a part of `window`.",
    )
    .knative(&[
        "autoscaling.knative.dev/panic-window-percentage",
        "autoscaling.knative.dev/panicWindowPercentage",
    ]),
    key(
        "panic-threshold-percentage",
        number("percent", 110.0, 1000.0, |s, n| s.panic_threshold_percentage = n),
        "200",
        "For `kpa`: load in the panic window, as a part of what the ready pods should take, from which on it panics.",
    )
    .knative(&[
        "autoscaling.knative.dev/panic-threshold-percentage",
        "autoscaling.knative.dev/panicThresholdPercentage",
    ]),
    key(
        "max-scale-up-rate",
        number("factor", 1.01, MOST_REQUESTS as f64, |s, n| s.max_scale_up_rate = n),
        "1000",
        "For `kpa`: most that the pods grow in one step.",
    ),
    key(
        "max-scale-down-rate",
        number("factor", 1.01, MOST_REQUESTS as f64, |s, n| s.max_scale_down_rate = n),
        "2",
        "For `kpa`: most that the pods shrink in one step.",
    ),
    key(
        "metric-aggregation-algorithm",
        Kind::Choice {
            words: &[
                word("linear", |s| s.aggregation = Aggregation::Linear),
                Word {
                    name: "weighted-exponential",
                    also: &["weightedExponential"],
                    set: |s| s.aggregation = Aggregation::WeightedExponential,
                },
            ],
        },
        "linear",
        "For `kpa`: whether every second of a window weighs the same, or younger ones more.",
    )
    .knative(&[
        "autoscaling.knative.dev/metric-aggregation-algorithm",
        "autoscaling.knative.dev/metricAggregationAlgorithm",
    ]),
    key(
        "scale-down-delay",
        duration(Duration::ZERO, HOUR, SECOND, |s, d| s.scale_down_delay = d),
        "0s",
        "How long a lower number of pods must be enough before pods are taken away.",
    )
    .knative(&["autoscaling.knative.dev/scale-down-delay", "autoscaling.knative.dev/scaleDownDelay"]),
    key(
        "scale-to-zero-pod-retention-period",
        duration(Duration::ZERO, HOUR, MILLISECOND, |s, d| s.retention = d),
        "0s",
        "Shortest time that the last pod stays after the decision to sleep.",
    )
    .knative(&[
        "autoscaling.knative.dev/scale-to-zero-pod-retention-period",
        "autoscaling.knative.dev/scaleToZeroPodRetentionPeriod",
    ]),
    key(
        "keep-alive",
        Kind::Duration {
            min: SECOND,
            max: DAY,
            step: MILLISECOND,
            word: Some(word("adaptive", |s| s.keep_alive = KeepAlive::Adaptive)),
            set: |s, d| s.keep_alive = KeepAlive::Fixed(d),
        },
        "adaptive",
        "How long the last pod stays without a request. `adaptive` is learned from the Service's own gaps; until \
         learning is active it is 60s.",
    )
    .active(Active::Except(&["adaptive"])),
    key(
        "preference",
        Kind::Choice {
            words: &[
                word("economy", |s| s.preference = Preference::Economy),
                word("balanced", |s| s.preference = Preference::Balanced),
                word("snappy", |s| s.preference = Preference::Snappy),
            ],
        },
        "balanced",
        "What an adaptive `keep-alive` prefers: 150, 600 or 3600 idle pod-seconds to one more cold start.",
    )
    .active(Active::No),
    key(
        "burst",
        requests(0, MOST_REQUESTS, |s, n| s.burst = n),
        "0",
        "Spare requests in flight for which pods are kept ready while awake.",
    ),
    key(
        "schedule",
        Kind::Text {
            grammar: "`DAYS HH:MM-HH:MM [ZONE] min=N [except DATE,…]`, several joined by `;`, such as \
                      `Mon-Fri 08:00-18:00 Europe/Berlin min=1`",
            set: text::schedule,
        },
        "(none)",
        "Fewest pods at certain times. The zone is UTC when left out; hours that end before they start end the next day.",
    )
    .active(Active::No),
    key(
        "queue-limit",
        requests(1, 100_000, |s, n| s.queue_limit = n),
        "1000",
        "Most requests held at once, per Service and activator. One more gets 503 with Retry-After.",
    ),
    key(
        "cold-start-timeout",
        duration(Duration::from_millis(100), HOUR, MILLISECOND, |s, d| s.cold_start_timeout = d),
        "60s",
        "Longest that a request is held for a pod. Longer: 504.",
    ),
    key(
        "queue-timeout",
        duration(Duration::ZERO, HOUR, MILLISECOND, |s, d| s.queue_timeout = d),
        "0s",
        "Longest that a request waits in line while pods are ready and all are busy; 0s: as `cold-start-timeout`. Longer: \
         503 with Retry-After.",
    ),
    key(
        "response-start-timeout",
        duration(Duration::ZERO, DAY, MILLISECOND, |s, d| s.response_start_timeout = d),
        "0s",
        "Longest from a request's dispatch to the first byte of its response; 0s: no limit. Longer: 504.",
    ),
    key(
        "request-timeout",
        duration(Duration::ZERO, DAY, MILLISECOND, |s, d| s.request_timeout = d),
        "0s",
        "Longest from a request's dispatch to the end of its response; 0s: no limit. Longer: 504, or an aborted stream \
         where the response had begun.",
    ),
    key(
        "stream-idle-timeout",
        duration(Duration::ZERO, DAY, MILLISECOND, |s, d| s.stream_idle_timeout = d),
        "0s",
        "Longest that a stream may go without a byte in either direction; 0s: no limit.",
    ),
    key(
        "protocol",
        Kind::Choice {
            words: &[
                word("http", |s| s.protocol = Some(Protocol::Http)),
                word("tcp", |s| s.protocol = Some(Protocol::Tcp)),
            ],
        },
        "(from appProtocol, else http)",
        "What is spoken on the Service's ports. `http` is HTTP/1.1 and HTTP/2, told apart by the first bytes.",
    ),
    key(
        "proxy-protocol",
        Kind::Choice {
            words: &[
                word("off", |s| s.proxy_protocol = false),
                word("v2", |s| s.proxy_protocol = true),
            ],
        },
        "off",
        "Whether a connection to a TCP port begins, at the pod, with a PROXY protocol header that names the client.",
    ),
    key(
        "waiting-page",
        Kind::Text { grammar: "`auto`, `off`, or the name of a ConfigMap", set: text::waiting_page },
        "auto",
        "Whether a browser that opens a sleeping Service gets a page that continues by itself. Other requests are held. \
         A ConfigMap in the Service's namespace changes how the page looks.",
    ),
    key(
        "ignore",
        Kind::Text {
            grammar: "entries joined by commas, at most 64 of each kind: `/PATH` is an exact path, anything else the \
                      beginning of a User-Agent",
            set: text::ignore,
        },
        "(probes and scrapers)",
        "Requests that neither wake the Service nor keep it awake, besides those of kubelet, Prometheus and load \
         balancers, which are known.",
    ),
    key(
        "group",
        Kind::Text { grammar: "a name: lower-case letters, digits and `-`, at most 63", set: text::group },
        "(none)",
        "Services of one group, in one Namespace, sleep and wake together: a request to one wakes all, and none sleeps until \
         all may. A Deployment or StatefulSet without a Service (a worker) may have this and `scale-to-zero` itself.",
    ),
    key(
        "depends-on",
        Kind::Text {
            grammar: "names of Services or workers in the same Namespace, joined by commas, at most 32",
            set: text::depends_on,
        },
        "(none)",
        "Services and workers that are woken with this one and before it, and stay awake while it is.",
    )
    .service_only(),
    key(
        "rollout",
        Kind::Text { grammar: "`canary`, `blue-green`, or the name of a Rollout", set: text::rollout },
        "(none)",
        "How a changed Deployment is let in: by growing shares (`canary`) or all at once after its pods are ready \
         (`blue-green`), each with the defaults of a Rollout, which is made and deleted with the annotation. The name of a \
         Rollout that you have written yourself: as that says.",
    ),
];
