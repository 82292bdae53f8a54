//! Knative's pod autoscaler, to the digit (knative/serving, `pkg/autoscaler/scaling/autoscaler.go`).
//!
//! Two averages of the same metric: a stable one over the window, and one over a tenth of it that can start a *panic*.
//! In a panic the number of pods only rises; it ends when the short average has been below the threshold for a whole stable
//! window. Rates bound each step up and down by the pods that are ready. A scale-down delay keeps the largest decision of
//! its length. Where Knative answers `-1` for "no data", this answers [`Decision::NoData`].

use std::time::Duration;

use crate::window::{Maximum, Window};
use crate::{Metric, Policy, Sample, Time};

/// Time between two decisions; Knative's constant.
pub const TICK: Duration = Duration::from_secs(2);

/// What a decision is made from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Observation {
    /// The metric averaged over the stable window.
    pub stable: f64,
    /// The metric averaged over the panic window.
    pub panic: f64,
    /// Pods ready.
    pub ready: u32,
}

/// How many pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// So many.
    Scale {
        /// Pods wanted; 0 means that none are needed, not yet that the last one may go.
        pods: u32,
        /// Knative's excess burst capacity: how many more requests than the target burst the ready pods could take.
        /// Negative when they could not. -1 when the target burst capacity is unlimited.
        spare: i64,
        /// Whether the short average decides.
        panicking: bool,
    },
    /// Nothing is known: keep what there is.
    NoData,
}

/// Knative's autoscaler of one revision.
#[derive(Clone, Debug)]
pub struct Kpa {
    /// When the panic threshold was last reached, while panicking.
    panic: Option<Time>,
    /// The most pods wanted in this panic.
    most: u32,
    delay: Option<(Duration, Maximum)>,
}

impl Kpa {
    /// Starts in a panic when two or more pods are ready: the history is lost, so what there is must not shrink until a
    /// window is full again.
    #[must_use]
    pub fn new(now: Time, ready: u32) -> Self {
        Self {
            panic: (ready > 1).then_some(now),
            most: ready,
            delay: None,
        }
    }

    /// Whether it panics, and since when the threshold has not been reached again.
    #[must_use]
    pub fn panicking(&self) -> Option<Time> {
        self.panic
    }

    /// The most pods wanted in this panic.
    #[must_use]
    pub fn most(&self) -> u32 {
        self.most
    }

    /// Decides. An unreachable pool may shrink as fast as it likes, and without delay.
    pub fn decide(
        &mut self,
        now: Time,
        policy: &Policy,
        reachable: bool,
        observed: Option<Observation>,
    ) -> Decision {
        let Some(Observation { stable, panic, ready }) = observed else {
            return Decision::NoData;
        };
        let knobs = policy.knobs();
        let present = f64::from(ready.max(1));
        // Rounded up, so that a slow rate does not hold one pod for ever.
        let most = (knobs.max_scale_up_rate * present).ceil();
        let least = if reachable {
            (present / knobs.max_scale_down_rate).floor()
        } else {
            0.0
        };
        let pods = |average: f64| {
            let wanted = (average / policy.target()).ceil();
            let within = count(wanted.max(least).min(most));
            let activation = knobs.activation_scale.filter(|scale| *scale > 1 && wanted > 0.0);
            (wanted, within.max(activation.unwrap_or(0)))
        };
        let (_, steady) = pods(stable);
        let (sudden, quick) = pods(panic);
        self.turn(now, sudden / present >= policy.panic_threshold(), knobs.window);

        let mut pods = steady;
        if self.panic.is_some() {
            self.most = self.most.max(steady).max(quick);
            pods = self.most;
        }
        if reachable && let Some(delay) = self.delay(knobs.scale_down_delay) {
            pods = delay.record(now, pods);
        }
        Decision::Scale {
            pods,
            spare: spare(policy, ready, panic),
            panicking: self.panic.is_some(),
        }
    }

    /// Begins, extends or ends a panic.
    fn turn(&mut self, now: Time, over: bool, window: Duration) {
        match self.panic {
            _ if over => self.panic = Some(now),
            Some(since) if since + window < now => {
                self.panic = None;
                self.most = 0;
            }
            _ => {}
        }
    }

    fn delay(&mut self, length: Duration) -> Option<&mut Maximum> {
        if length.is_zero() {
            self.delay = None;
        } else if self.delay.as_ref().is_none_or(|(known, _)| *known != length) {
            self.delay = Some((length, Maximum::new(length, TICK)));
        }
        self.delay.as_mut().map(|(_, maximum)| maximum)
    }
}

/// Knative's excess burst capacity with `ready` pods and a short average of `panic`.
#[must_use]
pub fn spare(policy: &Policy, ready: u32, panic: f64) -> i64 {
    let burst = policy.knobs().target_burst_capacity;
    if burst < 0.0 {
        return -1;
    }
    if burst == 0.0 {
        return 0;
    }
    // A float-to-integer cast saturates.
    (f64::from(ready) * policy.total() - burst - panic).floor() as i64
}

/// Knative's number of activators in the path of `ready` pods, each activator good for `capacity` requests.
#[must_use]
pub fn activators(policy: &Policy, ready: u32, capacity: f64) -> u32 {
    const FEWEST: u32 = 2;
    let burst = policy.knobs().target_burst_capacity;
    if burst == 0.0 || capacity <= 0.0 {
        return FEWEST;
    }
    let load = f64::from(ready) * policy.total() + burst.max(0.0);
    count((load / capacity).ceil()).max(FEWEST)
}

/// A number of pods from a float: never negative, never too large.
pub(crate) fn count(pods: f64) -> u32 {
    // A float-to-integer cast saturates, and not-a-number becomes zero.
    pods as u32
}

/// The two averages of one pool, filled from activators' totals.
#[derive(Clone, Debug)]
pub struct Averages {
    stable: Window,
    panic: Window,
    metric: Metric,
    /// What the running second has so far. It counts once it is over: an average with half a second in it is too low.
    pending: f64,
    /// Up to when `pending` reaches.
    until: Option<Time>,
    last: Sample,
}

impl Averages {
    /// Empty ones.
    #[must_use]
    pub fn new(policy: &Policy) -> Self {
        Self {
            stable: Window::new(policy.knobs().window),
            panic: Window::new(policy.panic_window()),
            metric: policy.knobs().metric,
            pending: 0.0,
            until: None,
            last: Sample::default(),
        }
    }

    /// The knobs changed. What was measured stays as far as it fits.
    pub fn update(&mut self, policy: &Policy) {
        if self.metric != policy.knobs().metric {
            let last = self.last;
            *self = Self::new(policy);
            self.last = last;
            return;
        }
        self.stable.resize(policy.knobs().window);
        self.panic.resize(policy.panic_window());
    }

    /// Takes in the totals at `now` and spreads what is new over the time since the last ones.
    pub fn observe(&mut self, now: Time, sample: &Sample) {
        let Some(until) = self.until else {
            self.until = Some(now);
            self.last = *sample;
            return;
        };
        let busy = |sample: &Sample| sample.in_flight > 0 || sample.held > 0;
        // When nothing was going on, what is new has just begun, however long ago the last sample was.
        let from = if busy(&self.last) {
            until
        } else {
            until.max(now - Duration::from_secs(1))
        };
        let total = |sample: &Sample| match self.metric {
            Metric::Concurrency => sample.in_flight_seconds + sample.held_seconds,
            Metric::RequestsPerSecond => sample.arrivals as f64,
        };
        let new = (total(sample) - total(&self.last)).max(0.0);
        self.last = *sample;
        self.spread(until, from, now, new);
        self.until = Some(now);
    }

    /// Fills the seconds from `until` to `now`; `new` lies between `from` and `now`.
    fn spread(&mut self, until: Time, from: Time, now: Time, new: f64) {
        let length = now.since(from).as_secs_f64();
        let share = |begin: Time, end: Time| match length > 0.0 {
            true => new * end.since(begin.max(from)).as_secs_f64() / length,
            false => 0.0,
        };
        if now.second() == until.second() {
            self.pending += if length > 0.0 { share(until, now) } else { new };
            return;
        }
        let first_end = Time::from_secs(until.second() + 1);
        let pending = std::mem::take(&mut self.pending) + share(until, first_end);
        self.record(until, pending);
        // Seconds before the window need no zeros: a gap of a window starts it anew.
        let begin = first_end.max(now - Duration::from_secs(self.stable.seconds() + 1));
        for second in begin.second()..now.second() {
            let begin = Time::from_secs(second);
            self.record(begin, share(begin, begin + Duration::from_secs(1)));
        }
        self.pending = share(Time::from_secs(now.second()), now);
    }

    fn record(&mut self, at: Time, value: f64) {
        self.stable.record(at, value);
        self.panic.record(at, value);
    }

    /// The averages over complete seconds. `None`: no data for a window.
    #[must_use]
    pub fn read(&self, now: Time, policy: &Policy, ready: u32) -> Option<Observation> {
        // The running second is not complete, so the window ends with the one before.
        let end = now - Duration::from_secs(1);
        let aggregation = policy.knobs().aggregation;
        (!self.stable.is_empty(end)).then(|| Observation {
            stable: self.stable.average(end, aggregation),
            panic: self.panic.average(end, aggregation),
            ready,
        })
    }
}

#[cfg(test)]
mod tests;
