//! Why: one sentence with the numbers, for the Event, the log, the Route's WHY and the metric's label.

use std::fmt::{self, Display, Formatter};
use std::time::Duration;

/// What was decided, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Reason {
    /// Replicas before.
    pub from: u32,
    /// Replicas wanted now. Equal to `from`: they stay.
    pub to: u32,
    /// What led to it.
    pub cause: Cause,
}

/// What leads to a decision.
#[derive(Clone, Debug, PartialEq)]
pub enum Cause {
    /// A request is held and there is no pod.
    FirstRequest {
        /// Requests held.
        held: u32,
    },
    /// Little's law, without a queue to drain.
    Load {
        /// Requests per second.
        rate: f64,
        /// Mean time a pod takes for one.
        service: Duration,
        /// Requests that one pod serves side by side.
        per_pod: f64,
    },
    /// Held requests that the pods there are would not drain in time.
    Queue {
        /// Requests held.
        held: u32,
        /// Requests per second.
        rate: f64,
        /// Mean time a pod takes for one.
        service: Duration,
        /// Pods added for the queue.
        extra: u32,
        /// In how long it is drained then, counted from when they are ready.
        drained: Duration,
    },
    /// Fewer pods have been enough for the whole of the hysteresis.
    Less {
        /// For how long fewer have been enough.
        calm: Duration,
        /// Requests per second.
        rate: f64,
    },
    /// Knative's averages.
    Window {
        /// Average over the stable window.
        stable: f64,
        /// Average over the panic window.
        panic: f64,
        /// What one pod is meant to carry.
        target: f64,
        /// Whether the panic window decides.
        panicking: bool,
    },
    /// No request for the keep-alive.
    Idle {
        /// How long ago the last request was.
        idle: Duration,
        /// How long the last pod stays.
        keep_alive: Duration,
    },
    /// Pods did not become ready before the deadline.
    NeverReady {
        /// How long they had.
        waited: Duration,
    },
    /// `min-scale`.
    Minimum {
        /// Its value.
        min: u32,
    },
    /// `max-scale`.
    Maximum {
        /// Its value.
        max: u32,
        /// What would be wanted without it.
        wanted: u32,
    },
    /// `initial-scale` has not been reached yet.
    Initial {
        /// Its value.
        initial: u32,
    },
    /// Somebody needs at least so many pods.
    AtLeast {
        /// How many.
        replicas: u32,
        /// Why.
        why: String,
    },
    /// It has a pod for others: its group, or what depends on it.
    Together {
        /// For whom.
        why: String,
    },
    /// It serves no requests, and nobody that it has pods for is awake.
    Unneeded,
    /// It is to have a pod, once what it depends on has.
    Waits {
        /// For whom it rises, and for whom it waits.
        why: String,
    },
    /// It has waited for what it depends on.
    After {
        /// What else led to it.
        cause: Box<Cause>,
        /// How the wait ended.
        note: String,
    },
    /// `dormouse wake`.
    Wake,
    /// `dormouse sleep`.
    Sleep,
    /// `dormouse sleep` cannot be obeyed.
    Busy {
        /// Requests in flight.
        in_flight: u32,
        /// Requests held.
        held: u32,
    },
    /// It would sleep, but may not.
    MayNotSleep {
        /// Why.
        why: String,
    },
    /// Reports are missing: nothing is scaled down.
    Stale,
    /// It has just woken.
    JustWoken {
        /// How long ago.
        ago: Duration,
        /// How long it stays at least.
        settle: Duration,
    },
    /// A HorizontalPodAutoscaler decides beyond the first pod.
    ScaledBy {
        /// `hpa/NAME`.
        name: String,
    },
    /// Somebody else writes replicas.
    Conflict {
        /// The field manager.
        manager: String,
        /// How often within ten minutes.
        flips: usize,
        /// Whether we have stopped writing.
        stopped: bool,
    },
    /// Somebody else has raised it from zero, which counts as use.
    ForeignWake {
        /// The field manager.
        manager: String,
    },
    /// Nothing to do.
    Steady,
    /// No data yet.
    NoData,
}

impl Reason {
    /// The metric's label: from a closed set.
    #[must_use]
    pub fn label(&self) -> &'static str {
        self.cause.label()
    }
}

impl Cause {
    fn label(&self) -> &'static str {
        match self {
            Self::FirstRequest { .. } => "first_request",
            Self::Load { .. } => "load",
            Self::Queue { .. } => "queue",
            Self::Less { .. } => "less_load",
            Self::Window { panicking: false, .. } => "window",
            Self::Window { panicking: true, .. } => "panic",
            Self::Idle { .. } => "idle",
            Self::NeverReady { .. } => "never_ready",
            Self::Minimum { .. } => "minimum",
            Self::Maximum { .. } => "maximum",
            Self::Initial { .. } => "initial",
            Self::AtLeast { .. } => "at_least",
            Self::Together { .. } => "together",
            Self::Unneeded => "unneeded",
            Self::Waits { .. } => "waits",
            Self::After { cause, .. } => cause.label(),
            Self::Wake => "wake_command",
            Self::Sleep => "sleep_command",
            Self::Busy { .. } => "busy",
            Self::MayNotSleep { .. } => "may_not_sleep",
            Self::Stale => "stale",
            Self::JustWoken { .. } => "just_woken",
            Self::ScaledBy { .. } => "scaled_by",
            Self::Conflict { .. } => "conflict",
            Self::ForeignWake { .. } => "foreign_wake",
            Self::Steady => "steady",
            Self::NoData => "no_data",
        }
    }
}

impl Display for Reason {
    /// One sentence without a full stop: `3 to 7: 41 held, …`, `stays at 1: …`.
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.from == self.to {
            write!(f, "stays at {}: {}", self.to, self.cause)
        } else {
            write!(f, "{} to {}: {}", self.from, self.to, self.cause)
        }
    }
}

impl Display for Cause {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::FirstRequest { held: 0 | 1 } => write!(f, "first request held"),
            Self::FirstRequest { held } => write!(f, "first requests held, {held} so far"),
            Self::Load {
                rate,
                service,
                per_pod,
            } => write!(
                f,
                "{rate:.1} req/s x {}, {} at once per pod",
                Span(*service),
                Few(*per_pod)
            ),
            Self::Queue {
                held,
                rate,
                service,
                extra,
                drained,
            } => {
                let (service, drained) = (Span(*service), Span(*drained));
                let pods = if *extra == 1 { "pod drains" } else { "pods drain" };
                write!(
                    f,
                    "{held} held, {rate:.1} req/s x {service}, {extra} more {pods} the queue in {drained}"
                )
            }
            Self::Less { calm, rate } => {
                write!(
                    f,
                    "fewer have been enough for {}, {rate:.1} req/s now",
                    Span(*calm)
                )
            }
            Self::Window {
                stable,
                panic,
                target,
                panicking,
            } => {
                let mode = if *panicking { ", panicking" } else { "" };
                write!(
                    f,
                    "averages {stable:.2} (stable) and {panic:.2} (panic), {target:.2} per pod{mode}"
                )
            }
            Self::Idle { idle, keep_alive } => {
                write!(
                    f,
                    "no request for {} (keep-alive {})",
                    Span(*idle),
                    Span(*keep_alive)
                )
            }
            Self::NeverReady { waited } => write!(f, "no pod became ready within {}", Span(*waited)),
            Self::Minimum { min } => write!(f, "min-scale is {min}"),
            Self::Maximum { max, wanted } => write!(f, "max-scale is {max}, {wanted} would be wanted"),
            Self::Initial { initial } => write!(f, "initial-scale is {initial}"),
            Self::AtLeast { replicas, why } => write!(f, "at least {replicas}: {why}"),
            Self::Together { why } | Self::Waits { why } => write!(f, "{why}"),
            Self::Unneeded => write!(f, "nobody that it has pods for is awake"),
            Self::After { cause, note } => write!(f, "{cause}; {note}"),
            Self::Wake => write!(f, "asked to wake"),
            Self::Sleep => write!(f, "asked to sleep"),
            Self::Busy { in_flight, held } => {
                write!(f, "asked to sleep, but {in_flight} in flight and {held} held")
            }
            Self::MayNotSleep { why } => write!(f, "{why}"),
            Self::Stale => write!(f, "reports are missing, nothing is scaled down"),
            Self::JustWoken { ago, settle } => {
                write!(
                    f,
                    "woken {} ago, stays for {} at least",
                    Span(*ago),
                    Span(*settle)
                )
            }
            Self::ScaledBy { name } => write!(f, "{name} decides beyond the first pod"),
            Self::Conflict {
                manager,
                flips,
                stopped: true,
            } => {
                write!(
                    f,
                    "{manager} changed replicas {flips} times in 10 min, left alone until it is calm"
                )
            }
            Self::Conflict { manager, flips, .. } => {
                let times = if *flips == 1 { "time" } else { "times" };
                write!(f, "{manager} changed replicas {flips} {times} in 10 min")
            }
            Self::ForeignWake { manager } => write!(f, "{manager} raised it from zero, which counts as use"),
            Self::Steady => write!(f, "nothing to change"),
            Self::NoData => write!(f, "no reports yet"),
        }
    }
}

/// What comes next if nothing happens before. Durations count from the step that planned it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// To zero.
    Sleep {
        /// In how long.
        after: Duration,
    },
    /// To fewer pods.
    Shrink {
        /// In how long, at the earliest.
        after: Duration,
        /// To how many.
        to: u32,
    },
    /// We write again.
    Calm {
        /// In how long.
        after: Duration,
    },
}

impl Plan {
    /// In how long.
    #[must_use]
    pub fn after(&self) -> Duration {
        match self {
            Self::Sleep { after } | Self::Shrink { after, .. } | Self::Calm { after } => *after,
        }
    }
}

impl Display for Plan {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sleep { after } => write!(f, "asleep in {} unless a request arrives", Span(*after)),
            Self::Shrink { after, to } => write!(f, "down to {to} in {} unless load returns", Span(*after)),
            Self::Calm { after } => write!(f, "replicas are ours again in {} if nobody writes", Span(*after)),
        }
    }
}

/// A duration as people write it: `80 ms`, `0.6 s`, `42 s`, `5 min`, `2 h`.
pub(crate) struct Span(pub(crate) Duration);

impl Display for Span {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs_f64();
        let tenths = (seconds * 10.0).round() / 10.0;
        if seconds < 0.0995 {
            write!(f, "{} ms", Few((seconds * 1e4).round() / 10.0))
        } else if tenths < 10.0 {
            write!(f, "{} s", Few(tenths))
        } else if seconds < 600.0 {
            write!(f, "{seconds:.0} s")
        } else if seconds < 36_000.0 {
            write!(f, "{:.0} min", seconds / 60.0)
        } else {
            write!(f, "{:.0} h", seconds / 3600.0)
        }
    }
}

/// A number with at most two places, and none when it is whole.
struct Few(f64);

impl Display for Few {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}", (self.0 * 100.0).round() / 100.0)
    }
}

#[cfg(test)]
mod tests;
