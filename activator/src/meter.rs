//! What is counted: arrivals, ends by outcome, and two integrals over time. Pure; `now` is the activator's uptime.
//!
//! Everything is cumulative, so a reader that misses lines loses nothing. An integral of requests over time, in
//! request-seconds, divided by the time it covers is the exact mean concurrency: no sampling error, whatever the tick.
//! There is one meter for each pool and worker thread, so its lock is never contended but by a reader. Beside it are the
//! service times, by which nothing is decided: they are for people and their boards.

use std::time::Duration;

use crds::report::Outcomes;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Outcome {
    /// The pod answered below 500, to the end.
    Ok,
    /// The pod answered 500 or more.
    ServerError,
    /// We refused.
    Refused,
    /// The pod could not be reached, broke off, or took too long.
    Failed,
    /// The client went away.
    Cancelled,
}

/// The counters of one pool in one worker.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Meter {
    /// When the integrals were last brought up to date.
    at: Duration,
    /// When a request last arrived or ended.
    pub(crate) last_use: Option<Duration>,
    pub(crate) arrivals: u64,
    pub(crate) outcomes: Outcomes,
    pub(crate) in_flight: u32,
    pub(crate) held: u32,
    pub(crate) in_flight_seconds: f64,
    pub(crate) held_seconds: f64,
    pub(crate) service_seconds: f64,
}

impl Meter {
    /// Brings the integrals up to `now`. A clock that seems to go back adds nothing.
    fn advance(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.at).as_secs_f64();
        self.at = self.at.max(now);
        self.in_flight_seconds += passed * f64::from(self.in_flight);
        self.held_seconds += passed * f64::from(self.held);
    }

    /// A request arrives from a client.
    pub(crate) fn arrive(&mut self, now: Duration) {
        self.arrivals += 1;
        self.last_use = Some(now);
    }

    /// The pool is used, though by no request.
    pub(crate) fn used(&mut self, now: Duration) {
        self.last_use = Some(now);
    }

    /// It begins to wait.
    pub(crate) fn hold(&mut self, now: Duration) {
        self.advance(now);
        self.held += 1;
    }

    /// It waits no more.
    pub(crate) fn unhold(&mut self, now: Duration) {
        self.advance(now);
        self.held = self.held.saturating_sub(1);
    }

    /// It is sent to a pod.
    pub(crate) fn dispatch(&mut self, now: Duration) {
        self.advance(now);
        self.in_flight += 1;
    }

    /// It is at the pod no more, after `service`.
    pub(crate) fn leave(&mut self, now: Duration, service: Duration) {
        self.advance(now);
        self.in_flight = self.in_flight.saturating_sub(1);
        self.service_seconds += service.as_secs_f64();
    }

    /// It has ended.
    pub(crate) fn end(&mut self, now: Duration, outcome: Outcome) {
        self.last_use = Some(now);
        let ends = &mut self.outcomes;
        *match outcome {
            Outcome::Ok => &mut ends.ok,
            Outcome::ServerError => &mut ends.server_error,
            Outcome::Refused => &mut ends.refused,
            Outcome::Failed => &mut ends.failed,
            Outcome::Cancelled => &mut ends.cancelled,
        } += 1;
    }

    /// Adds another worker's counters, both as of `now`.
    #[must_use]
    pub(crate) fn plus(mut self, mut other: Self, now: Duration) -> Self {
        self.advance(now);
        other.advance(now);
        self.last_use = self.last_use.max(other.last_use);
        self.arrivals += other.arrivals;
        self.outcomes.ok += other.outcomes.ok;
        self.outcomes.server_error += other.outcomes.server_error;
        self.outcomes.refused += other.outcomes.refused;
        self.outcomes.failed += other.outcomes.failed;
        self.outcomes.cancelled += other.outcomes.cancelled;
        self.in_flight += other.in_flight;
        self.held += other.held;
        self.in_flight_seconds += other.in_flight_seconds;
        self.held_seconds += other.held_seconds;
        self.service_seconds += other.service_seconds;
        self
    }
}

/// Upper bounds of service times, in microseconds, inclusive: a factor of two to three apart, from what a loopback answer takes
/// to what nobody waits for.
pub(crate) const TIME_BOUNDS: [u64; 15] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000, 30_000_000,
];

/// Service times of one pool in one worker: from dispatch to the answer's head. Nothing is kept for a pool that never answered.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Times {
    /// By bound; the last place is for what is beyond them.
    counts: Option<Box<[u64; TIME_BOUNDS.len() + 1]>>,
    seconds: f64,
}

impl Times {
    /// An answer took so long.
    pub(crate) fn note(&mut self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let place = TIME_BOUNDS.partition_point(|bound| *bound < micros);
        self.counts.get_or_insert_default()[place] += 1;
        self.seconds += time.as_secs_f64();
    }

    /// Adds another worker's.
    pub(crate) fn add(&mut self, other: &Self) {
        if let Some(theirs) = &other.counts {
            let ours = self.counts.get_or_insert_default();
            ours.iter_mut()
                .zip(theirs.iter())
                .for_each(|(ours, theirs)| *ours += theirs);
        }
        self.seconds += other.seconds;
    }

    /// How many answers took at most as long as each bound, how many there were, and their times together in seconds.
    /// `None`: there was none.
    pub(crate) fn cumulative(&self) -> Option<([u64; TIME_BOUNDS.len()], u64, f64)> {
        let counts = self.counts.as_ref()?;
        let mut sum = 0;
        let mut up_to = [0; TIME_BOUNDS.len()];
        for (place, count) in up_to.iter_mut().zip(counts.iter()) {
            sum += count;
            *place = sum;
        }
        Some((up_to, sum + counts[TIME_BOUNDS.len()], self.seconds))
    }
}

/// What one worker counts of one pool.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) meter: Meter,
    pub(crate) times: Times,
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn integrals_are_exact_whenever_they_are_read() {
        let mut meter = Meter::default();
        meter.arrive(at(10));
        meter.hold(at(10));
        meter.arrive(at(11));
        meter.hold(at(11));
        meter.unhold(at(13));
        meter.dispatch(at(13));
        meter.unhold(at(14));
        meter.dispatch(at(14));
        meter.leave(at(16), at(3));
        meter.end(at(16), Outcome::Ok);
        // One is still in flight: 3 s of the first, 2 s of the second so far, then 4 s more.
        let sum = |now| meter.plus(Meter::default(), now);
        assert_eq!(
            (sum(at(16)).held_seconds, sum(at(16)).in_flight_seconds),
            (6.0, 5.0)
        );
        assert_eq!(sum(at(20)).in_flight_seconds, 9.0);
        assert_eq!(
            (sum(at(20)).in_flight, sum(at(20)).held, meter.service_seconds),
            (1, 0, 3.0)
        );
        assert_eq!(
            (meter.arrivals, meter.outcomes.ok, meter.last_use),
            (2, 1, Some(at(16)))
        );
    }

    #[test]
    fn a_clock_that_goes_back_adds_nothing_and_takes_nothing() {
        let mut meter = Meter::default();
        meter.dispatch(at(5));
        meter.dispatch(at(4));
        meter.leave(at(6), at(1));
        assert_eq!(meter.in_flight_seconds, 2.0);
    }

    #[test]
    fn every_outcome_has_its_counter() {
        let mut meter = Meter::default();
        for outcome in [
            Outcome::Ok,
            Outcome::ServerError,
            Outcome::Refused,
            Outcome::Failed,
            Outcome::Cancelled,
        ] {
            meter.end(at(1), outcome);
        }
        let each = Outcomes {
            ok: 1,
            server_error: 1,
            refused: 1,
            failed: 1,
            cancelled: 1,
        };
        assert_eq!((meter.outcomes, meter.outcomes.total()), (each, 5));
    }

    #[test]
    fn workers_add_up() {
        let mut one = Meter::default();
        one.dispatch(at(0));
        let mut other = Meter::default();
        other.hold(at(2));
        other.arrive(at(3));
        let sum = one.plus(other, at(4));
        assert_eq!((sum.in_flight_seconds, sum.held_seconds), (4.0, 2.0));
        assert_eq!((sum.in_flight, sum.held, sum.last_use), (1, 1, Some(at(3))));
    }

    #[test]
    fn a_time_is_counted_at_every_bound_that_it_does_not_pass() {
        let (mut one, mut other) = (Times::default(), Times::default());
        assert_eq!(one.cumulative(), None);
        for micros in [0, 500, 501, 30_000_000] {
            one.note(Duration::from_micros(micros));
        }
        other.note(Duration::from_micros(30_000_001));
        one.add(&other);
        one.add(&Times::default());
        let (up_to, all, seconds) = one.cumulative().expect("five answers");
        assert_eq!((up_to[0], up_to[1], up_to[13], up_to[14], all), (2, 3, 3, 4, 5));
        assert!((seconds - 60.001_002).abs() < 1e-9, "{seconds}");
    }
}
