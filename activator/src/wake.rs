//! One wake, measured: from the first held request to the first answer. Pure; `now` is the activator's uptime.

use std::time::Duration;

use crds::route::Wake;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

/// A wake under way. Its parts are set in the order of the fields, each once.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct WakeClock {
    start: Duration,
    at: Timestamp,
    woken_by: String,
    signal: Option<Duration>,
    address: Option<Duration>,
    /// When the last failed probe of the pod that answers first was sent: it listened no sooner.
    failed: Option<Duration>,
    listening: Option<Duration>,
    held: u32,
}

/// The parts of a finished wake, for histograms.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Parts {
    /// First byte to the wake's signal.
    pub(crate) signal: Option<Duration>,
    /// Signal to the first address.
    pub(crate) address: Option<Duration>,
    /// First address to the first pod seen answering.
    pub(crate) listening: Duration,
    /// First pod seen answering to the first answer.
    pub(crate) forward: Duration,
    /// First byte to the first answer.
    pub(crate) total: Duration,
    /// From the last try that failed to the first answer: more than what the pod waited for us.
    pub(crate) answering_to_response: Duration,
}

impl WakeClock {
    /// A request is held at `start`, `at` by the wall clock, and no pod is ready.
    pub(crate) fn new(start: Duration, at: Timestamp, woken_by: String) -> Self {
        Self {
            start,
            at,
            woken_by,
            signal: None,
            address: None,
            failed: None,
            listening: None,
            held: 0,
        }
    }

    /// When it began.
    pub(crate) fn start(&self) -> Duration {
        self.start
    }

    /// The wake has been signalled: an autoscaler said so, or the activator did it itself.
    pub(crate) fn signalled(&mut self, now: Duration) {
        self.signal.get_or_insert(now);
    }

    /// A pod's address is visible.
    pub(crate) fn address(&mut self, now: Duration) {
        self.address.get_or_insert(now);
    }

    /// A pod answers whose last failed probe was sent then.
    pub(crate) fn failed(&mut self, now: Duration) {
        if self.listening.is_none() {
            self.failed = Some(now);
        }
    }

    /// The first pod answers, while `held` requests wait.
    pub(crate) fn listening(&mut self, now: Duration, held: u32) {
        if self.listening.is_none() {
            self.listening = Some(now);
            self.held = held;
        }
    }

    /// Whether its first pod had answered by then.
    pub(crate) fn listened_before(&self, then: Duration) -> bool {
        self.listening.is_some_and(|listening| listening < then)
    }

    /// The first answer goes out. `None`: no pod has been seen answering, so it was no answer to a wake.
    pub(crate) fn finish(&self, now: Duration, pool: &str) -> Option<(Wake, Parts)> {
        let listening = self.listening?;
        let since = |end: Duration| end.saturating_sub(self.start);
        let waited = now.saturating_sub(self.failed.unwrap_or(listening));
        let parts = Parts {
            signal: self.signal.map(since),
            address: self
                .address
                .map(|address| address.saturating_sub(self.signal.unwrap_or(self.start))),
            listening: listening.saturating_sub(self.address.unwrap_or(self.start)),
            forward: now.saturating_sub(listening),
            total: since(now),
            answering_to_response: waited,
        };
        let wake = Wake {
            at: Some(Time(self.at)),
            pool: pool.to_owned(),
            signal_ms: self.signal.map(since).map(ms),
            address_ms: self.address.map(since).map(ms),
            listening_ms: Some(ms(since(listening))),
            answered_ms: Some(ms(since(now))),
            forward_ms: Some(ms(waited)),
            held: self.held,
            woken_by: self.woken_by.clone(),
        };
        Some((wake, parts))
    }
}

/// Milliseconds to the microsecond: more digits would be noise.
fn ms(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}

/// What a wake's first request was: method, path without query, and user agent, each cut to 64 bytes.
pub(crate) fn describe(method: &str, path: &str, agent: &str) -> String {
    let mut text = String::new();
    for part in [method, path, agent] {
        if part.is_empty() {
            continue;
        }
        if !text.is_empty() {
            text.push(' ');
        }
        text.extend(
            part.chars()
                .filter(|letter| !letter.is_control())
                .scan(0, |bytes, letter| {
                    *bytes += letter.len_utf8();
                    (*bytes <= 64).then_some(letter)
                }),
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn the_parts_are_measured_from_the_first_held_request() {
        let mut clock = WakeClock::new(at(1000), Timestamp::UNIX_EPOCH, "GET /".into());
        assert_eq!(clock.finish(at(2000), "web"), None);
        clock.signalled(at(1005));
        clock.signalled(at(1900));
        clock.address(at(1300));
        clock.failed(at(1380));
        clock.listening(at(1400), 12);
        clock.listening(at(1500), 99);
        clock.failed(at(1450));
        let (wake, parts) = clock.finish(at(1410), "web").expect("finished");
        assert_eq!(
            (
                wake.signal_ms,
                wake.address_ms,
                wake.listening_ms,
                wake.answered_ms,
                wake.forward_ms
            ),
            (Some(5.0), Some(300.0), Some(400.0), Some(410.0), Some(30.0))
        );
        assert_eq!((wake.held, wake.woken_by.as_str()), (12, "GET /"));
        let wanted = Parts {
            signal: Some(at(5)),
            address: Some(at(295)),
            listening: at(100),
            forward: at(10),
            total: at(410),
            answering_to_response: at(30),
        };
        assert_eq!(parts, wanted);
    }

    #[test]
    fn what_woke_is_cut_and_cleaned() {
        assert_eq!(describe("GET", "/a\nb", "curl/8"), "GET /ab curl/8");
        assert_eq!(describe("GET", &"é".repeat(100), "").chars().count(), 4 + 32);
    }
}
