//! Reactive sizing: as many pods as the traffic of this moment needs, without windows.
//!
//! All traffic passes our activators, so counters are exact and nothing is scraped. Little's law gives the requests that
//! are served at once; a square-root term leaves room for chance (in place of a fixed 70 %). For held requests, pods are
//! added that drain the backlog that will stand when a pod ordered now turns ready, and never more than could hold all that
//! waits. What was wanted lately keeps counting for a while that grows with the boot time, because a pod given up too early
//! costs a boot. A jump of load is acted on at the next report; Knative's averages need seconds to rise, overshoot by the
//! backlog, and hold the overshoot for a minute.
//!
//! Rejected: learning how many requests one pod serves well from its service times. A shared bottleneck behind the pods
//! looks exactly like full pods, and adding pods makes it worse, so the learner runs away. Capacity per pod is what is
//! declared: `container-concurrency`, else `target`, else its default.

use std::collections::VecDeque;
use std::time::Duration;

use crate::kpa::count;
use crate::window::Maximum;
use crate::{Metric, Policy, Sample, Time};

/// While requests are in flight or held, sizing is looked at this often even if no report comes.
pub const TICK: Duration = Duration::from_millis(250);

/// Decay time of the fast arrival counter, in seconds.
const FAST: f64 = 1.0;
/// Decay time of the slow counters, in seconds.
const SLOW: f64 = 20.0;
/// The fast counter counts only as far as it is sure by this many standard deviations.
const SURE: f64 = 0.5;
/// Spare capacity in standard deviations of the number of requests being served.
const SPARE: f64 = 1.5;
/// Service time assumed before any request has ended: usual for a web request.
const FIRST_SERVICE: f64 = 0.1;
/// Boot time assumed before any pod has been seen starting.
const FIRST_BOOT: Duration = Duration::from_secs(3);
/// Boots and activations that are remembered.
const REMEMBERED_BOOTS: usize = 16;
/// Activations whose width is remembered.
const REMEMBERED_WIDTHS: usize = 8;
/// Share of boots and widths that the remembered figure covers.
const QUANTILE: f64 = 0.8;
/// Steps of the hysteresis.
const STEP: Duration = Duration::from_secs(1);

/// What sizing looks at besides the counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pods<'a> {
    /// Pods ready.
    pub ready: u32,
    /// Ages of pods that were asked for and are not ready.
    pub starting: &'a [Duration],
    /// Pods that the workload is to have now, seen or not.
    pub asked: u32,
}

/// How many pods, and the numbers behind it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sizing {
    /// Pods wanted, hysteresis included.
    pub pods: u32,
    /// Pods wanted by this moment alone.
    pub momentary: u32,
    /// Of these, added to drain the queue.
    pub extra: u32,
    /// Requests per second.
    pub rate: f64,
    /// Mean time a pod takes for one.
    pub service: Duration,
    /// Requests that one pod serves at once.
    pub per_pod: f64,
    /// Requests held.
    pub held: u32,
    /// With `extra`: in how long the queue is drained once they are ready.
    pub drained: Duration,
    /// For how long a larger size keeps counting.
    pub hysteresis: Duration,
    /// For how long fewer pods have been enough, as far as it is known: the hysteresis, once it has counted for that long.
    pub calm: Duration,
    /// When the size that counts now stops counting, and what it would be then.
    pub falls: Option<(Time, u32)>,
}

/// The counters and memory of one pool.
#[derive(Clone, Debug)]
pub struct Adaptive {
    /// Decayed arrivals.
    fast: f64,
    slow: f64,
    /// Decayed integrals: requests in flight, and requests that ended, both with [`SLOW`].
    flight: f64,
    ended: f64,
    /// Mean service time of long ago.
    usual: f64,
    /// Since when traffic is counted without a rest.
    since: Option<Time>,
    last: Option<(Time, Sample)>,
    boots: VecDeque<Duration>,
    widths: VecDeque<u32>,
    /// The most requests at once since the pool had no ready pod.
    width: u32,
    recent: Maximum,
    hysteresis: Duration,
    /// When it first decided.
    began: Option<Time>,
}

impl Default for Adaptive {
    fn default() -> Self {
        let hysteresis = Duration::from_secs(20);
        Self {
            fast: 0.0,
            slow: 0.0,
            flight: 0.0,
            ended: 0.0,
            usual: FIRST_SERVICE,
            since: None,
            last: None,
            boots: VecDeque::new(),
            widths: VecDeque::new(),
            width: 0,
            recent: Maximum::new(hysteresis, STEP),
            hysteresis,
            began: None,
        }
    }
}

impl Adaptive {
    /// Takes in the totals at `now`.
    pub fn observe(&mut self, now: Time, sample: &Sample) {
        let Some((then, last)) = self.last.replace((now, *sample)) else {
            return;
        };
        let passed = now.since(then).as_secs_f64();
        let new = sample.arrivals.saturating_sub(last.arrivals);
        if self.since.is_some_and(|_| self.rested(passed)) {
            self.since = None;
        }
        if new > 0 && self.since.is_none() {
            self.since = Some(now);
            (self.fast, self.slow, self.flight, self.ended) = (0.0, 0.0, 0.0, 0.0);
        }
        let ended = sample.completions.saturating_sub(last.completions) as f64;
        let served = (sample.service_seconds - last.service_seconds).max(0.0);
        if ended > 0.0 && served.is_finite() {
            // One in fifty of the way for each request: forgets a deploy within a few hundred requests.
            let weight = 1.0 - 0.98_f64.powf(ended);
            self.usual += weight * (served / ended - self.usual);
        }
        let flight = (sample.in_flight_seconds - last.in_flight_seconds).max(0.0);
        let (fade, fade_fast) = ((-passed / SLOW).exp(), (-passed / FAST).exp());
        self.fast = self.fast * fade_fast + new as f64 * middle(passed, FAST);
        self.slow = self.slow * fade + new as f64 * middle(passed, SLOW);
        self.ended = self.ended * fade + ended * middle(passed, SLOW);
        self.flight = self.flight * fade + flight * middle(passed, SLOW);
    }

    /// Whether nothing has been going on for so long that the counters have faded.
    fn rested(&self, passed: f64) -> bool {
        passed > 5.0 * SLOW || self.slow * (-passed / SLOW).exp() < 1e-3 && self.flight < 1e-3
    }

    /// A pod took so long from being asked for to being ready.
    pub fn booted(&mut self, took: Duration) {
        keep(&mut self.boots, took, REMEMBERED_BOOTS);
    }

    /// How long a pod takes to start, for four of five of the last boots.
    #[must_use]
    pub fn boot(&self) -> Duration {
        quantile(&self.boots).unwrap_or(FIRST_BOOT)
    }

    /// How many pods a wake starts with, from the width of the last ones.
    #[must_use]
    pub fn first(&self, policy: &Policy) -> u32 {
        let width = quantile(&self.widths).unwrap_or(1);
        self.hold(policy, width).max(1)
    }

    /// Pods that hold `requests` at once.
    fn hold(&self, policy: &Policy, requests: u32) -> u32 {
        count((f64::from(requests) / self.per_pod(policy)).ceil())
    }

    /// Requests that one pod serves at once.
    #[must_use]
    pub fn per_pod(&self, policy: &Policy) -> f64 {
        match policy.knobs().metric {
            Metric::Concurrency => policy.total(),
            // So many a second, each taking so long, are so many at once. A hard limit binds whatever the metric is.
            Metric::RequestsPerSecond => {
                let by_rate = policy.total() * self.service();
                match policy.knobs().container_concurrency {
                    0 => by_rate,
                    limit => by_rate.min(f64::from(limit)),
                }
            }
        }
    }

    /// Mean service time in seconds: what is in flight over what ends, with the usual as a first guess. Counting time in
    /// flight sees slow requests before they end.
    fn service(&self) -> f64 {
        ((self.flight + self.usual) / (self.ended + 1.0)).max(1e-3)
    }

    /// Requests per second.
    fn rate(&self, now: Time) -> f64 {
        let Some(since) = self.since else {
            return 0.0;
        };
        // A counter that has not run for long has not filled; but before a moment's worth it says nothing.
        let age = now.since(since).as_secs_f64();
        let filled = |time: f64, least: f64| time * (1.0 - (-age.max(least) / time).exp());
        let passed = self.last.map_or(0.0, |(then, _)| now.since(then).as_secs_f64());
        let (fast, slow) = (
            self.fast * (-passed / FAST).exp(),
            self.slow * (-passed / SLOW).exp(),
        );
        let sure = (fast - SURE * fast.sqrt()).max(0.0);
        (slow / filled(SLOW, 2.0)).max(sure / filled(FAST, 0.5))
    }

    /// Mean number of requests in flight.
    fn in_flight(&self, now: Time) -> f64 {
        let age = self.since.map_or(0.0, |since| now.since(since).as_secs_f64());
        self.flight / (SLOW * (1.0 - (-age.max(2.0) / SLOW).exp()))
    }

    /// How many pods the traffic of this moment needs.
    pub fn decide(&mut self, now: Time, policy: &Policy, pods: Pods) -> Sizing {
        let sample = self.last.map(|(_, sample)| sample).unwrap_or_default();
        self.measure_width(&sample, pods.ready);
        let (rate, service, per_pod) = (self.rate(now), self.service(), self.per_pod(policy));
        let busy = sample.held > 0 || sample.in_flight > 0;
        // Requests that last longer than the counters see hold their pods all the same.
        let offered = (rate * service).max(self.in_flight(now)).max(0.0);
        let burst = f64::from(policy.knobs().burst);
        let spared = (offered + SPARE * offered.sqrt()) / per_pod;
        let steady = match busy || offered > 0.01 {
            true => count(spared.max((offered + burst) / per_pod).ceil()),
            // With no traffic, burst still keeps pods ready as long as there are any; the ladder to zero decides on those.
            false => count((burst / per_pod).ceil()),
        };
        let queue = self.queue(&sample, pods, rate, service, per_pod, steady);
        let momentary = match queue.extra {
            0 => steady.max(u32::from(busy)),
            extra => steady.max(planned(pods).saturating_add(extra)),
        };
        self.set_hysteresis(policy);
        if self.recent.expires().is_none() {
            // What there is when counting begins is taken for wanted: a new leader must not shrink what it does not know.
            self.recent.record(now, planned(pods).max(pods.asked));
        }
        let wanted = self.recent.record(now, momentary);
        let falls = self.recent.expires().filter(|_| wanted > momentary);
        Sizing {
            pods: wanted,
            momentary,
            extra: queue.extra,
            rate,
            service: Duration::try_from_secs_f64(service).unwrap_or(Duration::MAX),
            per_pod,
            held: sample.held,
            drained: queue.drained,
            hysteresis: self.hysteresis,
            calm: self.hysteresis.min(now.since(*self.began.get_or_insert(now))),
            falls: falls.map(|at| (at, self.recent.afterwards().unwrap_or(momentary))),
        }
    }

    /// Pods to add for held requests.
    fn queue(
        &self,
        sample: &Sample,
        pods: Pods,
        rate: f64,
        service: f64,
        per_pod: f64,
        steady: u32,
    ) -> Queue {
        if sample.held == 0 {
            return Queue::default();
        }
        let boot = self.boot().as_secs_f64();
        let each = per_pod / service;
        // What starting pods will have done when a pod ordered now turns ready: each works from its own readiness on.
        let started: f64 = pods.starting.iter().map(|age| age.as_secs_f64().min(boot)).sum();
        let backlog =
            f64::from(sample.held) + rate * boot - f64::from(pods.ready) * each * boot - each * started;
        let drain = (0.2 * boot).clamp(0.5, 5.0);
        let planned = planned(pods);
        let left = (f64::from(planned) * each - rate).max(0.0);
        let extra = ((backlog.max(0.0) - left * drain).max(0.0) / (each * drain)).ceil();
        let waiting = sample.held.saturating_add(sample.in_flight);
        let all = count((f64::from(waiting) / per_pod).ceil());
        let extra = count(extra).min(steady.max(all).saturating_sub(planned));
        let speed = (f64::from(planned.saturating_add(extra)) * each - rate).max(each * 0.1);
        let drained = Duration::try_from_secs_f64(backlog.max(0.0) / speed).unwrap_or(Duration::MAX);
        Queue { extra, drained }
    }

    /// Four boots: a pod given up earlier than that was not worth its start.
    fn set_hysteresis(&mut self, policy: &Policy) {
        let boots = self
            .boot()
            .saturating_mul(4)
            .clamp(Duration::from_secs(20), Duration::from_secs(120));
        let hysteresis = boots.max(policy.knobs().scale_down_delay);
        if hysteresis != self.hysteresis {
            self.hysteresis = hysteresis;
            self.recent.set_delay(hysteresis);
        }
    }

    /// How wide the last wakes were: the most requests at once before the first pod was ready.
    fn measure_width(&mut self, sample: &Sample, ready: u32) {
        if ready == 0 {
            self.width = self.width.max(sample.held.saturating_add(sample.in_flight));
        } else if self.width > 0 {
            keep(
                &mut self.widths,
                std::mem::take(&mut self.width),
                REMEMBERED_WIDTHS,
            );
        }
    }

    /// Forgets what was wanted: the pool is at zero.
    pub fn slept(&mut self) {
        self.recent.clear();
    }
}

#[derive(Default)]
struct Queue {
    extra: u32,
    drained: Duration,
}

fn planned(pods: Pods) -> u32 {
    pods.ready
        .saturating_add(u32::try_from(pods.starting.len()).unwrap_or(u32::MAX))
}

/// What is left, on average, of events spread over the last `passed` seconds.
fn middle(passed: f64, decay: f64) -> f64 {
    if passed < 1e-9 {
        return 1.0;
    }
    (1.0 - (-passed / decay).exp()) * decay / passed
}

fn keep<T>(list: &mut VecDeque<T>, value: T, most: usize) {
    list.push_back(value);
    if list.len() > most {
        list.pop_front();
    }
}

/// The value that [`QUANTILE`] of the list does not exceed.
fn quantile<T: Ord + Copy>(list: &VecDeque<T>) -> Option<T> {
    let mut sorted: Vec<T> = list.iter().copied().collect();
    sorted.sort_unstable();
    let index = (sorted.len() as f64 * QUANTILE).ceil() as usize;
    sorted.get(index.saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests;
