//! Totals of each pool over all activators and their restarts. Pure: time is an argument.
//!
//! Each instance reports cumulative counters. A total is the sum, over instances, of what each has counted since the
//! ledger first saw it (an instance first seen at birth counts whole), so totals only grow: an instance that is gone keeps
//! what it had, a restarted activator is a new instance and adds, and the same instance coming back after a broken stream
//! goes on where it was. Gauges (in flight, held, ready) leave with their instance.
//!
//! Between two lines of an instance its integrals are carried forward by its gauges, because an activator tells every
//! change of them at once, and nothing while nothing changes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use crds::report::{Outcomes, PoolKey, PoolReport, Report};
use tokio::time::Instant;

/// An instance first seen younger than this has told everything it ever counted. Four silent periods of a stream.
const BIRTH: Duration = Duration::from_secs(8);

/// How many instances that are gone are remembered, in case only their stream broke. Older ones keep their share of
/// the totals, but would start anew.
const REMEMBERED: usize = 64;

/// The traffic of one pool, over all activators.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Traffic {
    /// Requests that arrived and count as use.
    pub(crate) arrivals: u64,
    /// Requests that have ended.
    pub(crate) completions: u64,
    /// Integral of requests dispatched and not ended, in request-seconds.
    pub(crate) in_flight_seconds: f64,
    /// Integral of requests held, in request-seconds.
    pub(crate) held_seconds: f64,
    /// Sum of service times of ended requests, in seconds.
    pub(crate) service_seconds: f64,
    /// Requests in flight now.
    pub(crate) in_flight: u32,
    /// Requests held now.
    pub(crate) held: u32,
    /// Pods that the best-informed activator sees answering.
    pub(crate) ready: u32,
    /// Since when the oldest held request has been held.
    pub(crate) oldest_held: Option<Instant>,
    /// When a request that counts was last seen.
    pub(crate) last_request: Option<Instant>,
}

/// All pools.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    pools: HashMap<PoolKey, Pool>,
    /// Live instances.
    live: HashSet<String>,
    /// Instances that are gone, oldest first.
    gone: Vec<String>,
}

#[derive(Debug, Default)]
struct Pool {
    /// What instances that are forgotten had counted.
    settled: Counters,
    instances: BTreeMap<String, Share>,
    /// The last totals given out: what the next may not fall below.
    shown: Counters,
    last_request: Option<Instant>,
}

/// One instance's part of a pool.
#[derive(Debug)]
struct Share {
    /// Its counters when it was first seen.
    base: Counters,
    now: Counters,
    at: Instant,
    in_flight: u32,
    held: u32,
    ready: u32,
    oldest_held: Option<Instant>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Counters {
    arrivals: u64,
    completions: u64,
    in_flight_seconds: f64,
    held_seconds: f64,
    service_seconds: f64,
}

impl Ledger {
    /// Takes in a line that was read at `at`. Returns the pools it touched.
    pub(crate) fn line(&mut self, report: &Report, at: Instant) -> Vec<PoolKey> {
        let instance = &report.instance;
        // Of an instance that we know, all pools are known: one that is new to us was new to it.
        let known = !self.live.insert(instance.clone()) || self.gone.contains(instance);
        self.gone.retain(|gone| gone != instance);
        let from_birth = known || Duration::from_millis(report.uptime_ms) < BIRTH;
        let mut touched = Vec::with_capacity(report.pools.len());
        for line in &report.pools {
            let key = PoolKey {
                namespace: line.namespace.clone(),
                pool: line.pool.clone(),
            };
            self.pools
                .entry(key.clone())
                .or_default()
                .take_in(instance, line, from_birth, at);
            touched.push(key);
        }
        if report.full {
            let named: HashSet<&PoolKey> = touched.iter().collect();
            let mut emptied = Vec::new();
            for (key, pool) in &mut self.pools {
                if !named.contains(key) && pool.instances.get_mut(instance).is_some_and(Share::drop_gauges) {
                    emptied.push(key.clone());
                }
            }
            touched.extend(emptied);
        }
        touched
    }

    /// Drops the gauges of an instance whose stream broke. Returns the pools it touched.
    pub(crate) fn gone(&mut self, instance: &str, now: Instant) -> Vec<PoolKey> {
        if !self.live.remove(instance) {
            return Vec::new();
        }
        let mut touched = Vec::new();
        for (key, pool) in &mut self.pools {
            if let Some(share) = pool.instances.get_mut(instance) {
                share.now = share.carried(now);
                share.at = now;
                share.drop_gauges();
                touched.push(key.clone());
            }
        }
        self.gone.push(instance.to_owned());
        if self.gone.len() > REMEMBERED {
            let forgotten = self.gone.remove(0);
            for pool in self.pools.values_mut() {
                if let Some(share) = pool.instances.remove(&forgotten) {
                    pool.settled = pool.settled.plus(&share.now.minus(&share.base));
                }
            }
        }
        touched
    }

    /// The traffic of one pool; nothing but zeroes for one without any.
    pub(crate) fn traffic(&mut self, pool: &PoolKey, now: Instant) -> Traffic {
        self.pools
            .get_mut(pool)
            .map(|pool| pool.traffic(now))
            .unwrap_or_default()
    }

    /// How many activator instances are live.
    pub(crate) fn instances(&self) -> usize {
        self.live.len()
    }
}

impl Pool {
    fn take_in(&mut self, instance: &str, line: &PoolReport, from_birth: bool, at: Instant) {
        let now = Counters::of(line);
        let share = self
            .instances
            .entry(instance.to_owned())
            .or_insert_with(|| Share {
                base: if from_birth { Counters::default() } else { now },
                now,
                at,
                in_flight: 0,
                held: 0,
                ready: 0,
                oldest_held: None,
            });
        // Lines of one stream are in order; those of a broken one and its successor may overlap.
        share.now = share.now.largest(&now);
        share.at = at;
        share.in_flight = line.in_flight;
        share.held = line.held;
        share.ready = line.ready;
        let ago = Duration::from_micros(line.oldest_held_us);
        share.oldest_held = (line.held > 0).then(|| at.checked_sub(ago).unwrap_or(at));
        let idle = line.idle_ms.map(Duration::from_millis);
        let seen = idle.map(|idle| at.checked_sub(idle).unwrap_or(at));
        self.last_request = self.last_request.max(seen);
    }

    fn traffic(&mut self, now: Instant) -> Traffic {
        let mut sum = self.settled;
        let mut traffic = Traffic {
            last_request: self.last_request,
            ..Traffic::default()
        };
        for share in self.instances.values() {
            sum = sum.plus(&share.carried(now).minus(&share.base));
            traffic.in_flight = traffic.in_flight.saturating_add(share.in_flight);
            traffic.held = traffic.held.saturating_add(share.held);
            traffic.ready = traffic.ready.max(share.ready);
            traffic.oldest_held = match (traffic.oldest_held, share.oldest_held) {
                (Some(one), Some(other)) => Some(one.min(other)),
                (one, other) => one.or(other),
            };
        }
        if traffic.in_flight > 0 || traffic.held > 0 {
            traffic.last_request = Some(now);
            self.last_request = Some(now);
        }
        self.shown = self.shown.largest(&sum);
        traffic.arrivals = self.shown.arrivals;
        traffic.completions = self.shown.completions;
        traffic.in_flight_seconds = self.shown.in_flight_seconds;
        traffic.held_seconds = self.shown.held_seconds;
        traffic.service_seconds = self.shown.service_seconds;
        traffic
    }
}

impl Share {
    /// Its counters at `now`, carried forward from its last line.
    fn carried(&self, now: Instant) -> Counters {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        Counters {
            in_flight_seconds: self.now.in_flight_seconds + f64::from(self.in_flight) * passed,
            held_seconds: self.now.held_seconds + f64::from(self.held) * passed,
            ..self.now
        }
    }

    /// Returns whether there was anything to drop.
    fn drop_gauges(&mut self) -> bool {
        let any = self.in_flight > 0 || self.held > 0 || self.ready > 0;
        (self.in_flight, self.held, self.ready, self.oldest_held) = (0, 0, 0, None);
        any
    }
}

impl Counters {
    fn of(line: &PoolReport) -> Self {
        // A number that is not one must not poison the sums.
        let real = |number: f64| {
            if number.is_finite() && number >= 0.0 {
                number
            } else {
                0.0
            }
        };
        let Outcomes {
            ok,
            server_error,
            refused,
            failed,
            cancelled,
        } = line.completions;
        let ended = [ok, server_error, refused, failed, cancelled];
        Self {
            arrivals: line.arrivals,
            completions: ended.into_iter().fold(0, u64::saturating_add),
            in_flight_seconds: real(line.in_flight_seconds),
            held_seconds: real(line.held_seconds),
            service_seconds: real(line.service_seconds),
        }
    }

    fn plus(&self, other: &Self) -> Self {
        Self {
            arrivals: self.arrivals.saturating_add(other.arrivals),
            completions: self.completions.saturating_add(other.completions),
            in_flight_seconds: self.in_flight_seconds + other.in_flight_seconds,
            held_seconds: self.held_seconds + other.held_seconds,
            service_seconds: self.service_seconds + other.service_seconds,
        }
    }

    fn minus(&self, other: &Self) -> Self {
        Self {
            arrivals: self.arrivals.saturating_sub(other.arrivals),
            completions: self.completions.saturating_sub(other.completions),
            in_flight_seconds: (self.in_flight_seconds - other.in_flight_seconds).max(0.0),
            held_seconds: (self.held_seconds - other.held_seconds).max(0.0),
            service_seconds: (self.service_seconds - other.service_seconds).max(0.0),
        }
    }

    fn largest(&self, other: &Self) -> Self {
        Self {
            arrivals: self.arrivals.max(other.arrivals),
            completions: self.completions.max(other.completions),
            in_flight_seconds: self.in_flight_seconds.max(other.in_flight_seconds),
            held_seconds: self.held_seconds.max(other.held_seconds),
            service_seconds: self.service_seconds.max(other.service_seconds),
        }
    }
}

#[cfg(test)]
mod tests;
