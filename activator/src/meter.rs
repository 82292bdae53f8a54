//! What is counted: arrivals, ends by outcome, and two integrals over time. Pure; `now` is the activator's uptime.
//!
//! Everything is cumulative, so a reader that misses lines loses nothing. An integral of requests over time, in
//! request-seconds, divided by the time it covers is the exact mean concurrency: no sampling error, whatever the tick.
//! There is one meter for each pool and worker thread, so its lock is never contended but by a reader.

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
}
