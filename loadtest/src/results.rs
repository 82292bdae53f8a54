//! What came of a run: plain data that grows by `push` and `merge`.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::histogram::Histogram;

/// How many failures are kept with their details: enough to see a pattern, little enough to read.
pub const KEPT_ERRORS: usize = 20;
/// Longest timeline, in seconds: two hours, the longest run there is. What comes after counts in its last second.
pub const LONGEST_TIMELINE: usize = 7_200;

/// One request, from when it was due to its last byte. All times count from the start of the run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Which of the targets, by its place in the list.
    pub target: usize,
    /// The id it carried; empty when ids are off.
    pub id: String,
    /// When it was due. Latency counts from here, so a generator that falls behind cannot hide a slow server.
    pub due: Duration,
    /// When it was sent.
    pub started: Duration,
    /// When its answer was complete, or it failed.
    pub ended: Duration,
    /// Whether its connection was made for it.
    pub connected: bool,
    /// How it ended.
    pub result: Result<Answer, Failure>,
}

/// A complete answer with an expected status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Bytes of the body.
    pub bytes: u64,
}

/// Why there was no complete answer with an expected status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Its kind.
    pub kind: ErrorKind,
    /// The error's own words, or the beginning of the body of an unexpected answer.
    pub message: String,
}

/// The kinds of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ErrorKind {
    /// Nothing listens.
    ConnectRefused,
    /// No connection in time.
    ConnectTimeout,
    /// No connection for another reason.
    Connect,
    /// The connection was reset before the answer's head.
    Reset,
    /// The connection was closed in order, but before the answer's head.
    Closed,
    /// No complete answer in time.
    Timeout,
    /// The answer broke off in its body.
    BodyCut,
    /// A complete answer with an unexpected status.
    Status(u16),
    /// Bytes that are not HTTP, or a broken HTTP/2 stream.
    Protocol,
    /// The run ended before the generator could send it.
    NotSent,
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ConnectRefused => "connect-refused",
            Self::ConnectTimeout => "connect-timeout",
            Self::Connect => "connect",
            Self::Reset => "reset",
            Self::Closed => "closed",
            Self::Timeout => "timeout",
            Self::BodyCut => "body-cut",
            Self::Status(code) => return write!(f, "status-{code}"),
            Self::Protocol => "protocol",
            Self::NotSent => "not-sent",
        })
    }
}

/// A failure with its place and time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedRequest {
    /// When it failed.
    pub at: Duration,
    /// How long after it was due.
    pub after: Duration,
    /// Which target.
    pub target: usize,
    /// Its id.
    pub id: String,
    /// Why.
    pub failure: Failure,
}

/// One second of the run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Second {
    /// Requests sent in it.
    pub sent: u64,
    /// Complete answers in it.
    pub ok: u64,
    /// Failures in it.
    pub failed: u64,
    /// Latencies of the complete answers in it.
    pub latency: Histogram,
}

impl Default for Second {
    fn default() -> Self {
        Self {
            sent: 0,
            ok: 0,
            failed: 0,
            latency: Histogram::new(Histogram::COARSE),
        }
    }
}

/// Everything about a run, or several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Results {
    /// Requests sent.
    pub sent: u64,
    /// Complete answers with an expected status.
    pub ok: u64,
    /// All others.
    pub failed: u64,
    /// Bytes of the bodies of complete answers.
    pub bytes: u64,
    /// Connections made for a request.
    pub connections: u64,
    /// Due time to last byte, of complete answers.
    pub latency: Histogram,
    /// Due time to failure.
    pub failure_latency: Histogram,
    /// Due time to sending: how late the generator itself was.
    pub lateness: Histogram,
    /// Complete answers by status.
    pub statuses: BTreeMap<u16, u64>,
    /// Failures by kind.
    pub errors: BTreeMap<ErrorKind, u64>,
    /// The first failures by time, at most [`KEPT_ERRORS`].
    pub first_errors: Vec<FailedRequest>,
    /// Second by second from the start.
    pub timeline: Vec<Second>,
    /// In wake runs, one entry a target that was asked; else empty.
    pub targets: Vec<TargetResult>,
    /// From the start to the end of the last request.
    pub elapsed: Duration,
}

/// The one request of a wake run to one target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetResult {
    /// The target, by its place in the list.
    pub target: usize,
    /// From the common start to its end.
    pub latency: Duration,
    /// `None`: answered as expected.
    pub error: Option<ErrorKind>,
}

impl Default for Results {
    fn default() -> Self {
        let histogram = Histogram::new(Histogram::FINE);
        Self {
            sent: 0,
            ok: 0,
            failed: 0,
            bytes: 0,
            connections: 0,
            latency: histogram.clone(),
            failure_latency: histogram.clone(),
            lateness: histogram,
            statuses: BTreeMap::new(),
            errors: BTreeMap::new(),
            first_errors: Vec::new(),
            timeline: Vec::new(),
            targets: Vec::new(),
            elapsed: Duration::ZERO,
        }
    }
}

impl Results {
    /// Counts one request.
    pub fn push(&mut self, outcome: Outcome) {
        let latency = outcome.ended.saturating_sub(outcome.due);
        self.elapsed = self.elapsed.max(outcome.ended);
        self.connections += u64::from(outcome.connected);
        let sent = !matches!(&outcome.result, Err(failure) if failure.kind == ErrorKind::NotSent);
        if sent {
            self.sent += 1;
            self.second(outcome.started).sent += 1;
            self.lateness.push(outcome.started.saturating_sub(outcome.due));
        }
        match outcome.result {
            Ok(answer) => {
                self.ok += 1;
                self.bytes += answer.bytes;
                self.latency.push(latency);
                *self.statuses.entry(answer.status).or_default() += 1;
                let second = self.second(outcome.ended);
                second.ok += 1;
                second.latency.push(latency);
            }
            Err(failure) => {
                self.failed += 1;
                self.failure_latency.push(latency);
                *self.errors.entry(failure.kind).or_default() += 1;
                self.second(outcome.ended).failed += 1;
                let (at, target, id) = (outcome.ended, outcome.target, outcome.id);
                self.keep_error(FailedRequest {
                    at,
                    after: latency,
                    target,
                    id,
                    failure,
                });
            }
        }
    }

    /// Adds all of `other`, as if both had been one run with one start.
    pub fn merge(&mut self, other: Self) {
        self.sent += other.sent;
        self.ok += other.ok;
        self.failed += other.failed;
        self.bytes += other.bytes;
        self.connections += other.connections;
        self.latency.merge(&other.latency);
        self.failure_latency.merge(&other.failure_latency);
        self.lateness.merge(&other.lateness);
        for (status, count) in other.statuses {
            *self.statuses.entry(status).or_default() += count;
        }
        for (kind, count) in other.errors {
            *self.errors.entry(kind).or_default() += count;
        }
        other
            .first_errors
            .into_iter()
            .for_each(|error| self.keep_error(error));
        self.timeline
            .resize_with(self.timeline.len().max(other.timeline.len()), Second::default);
        for (mine, theirs) in self.timeline.iter_mut().zip(other.timeline) {
            mine.sent += theirs.sent;
            mine.ok += theirs.ok;
            mine.failed += theirs.failed;
            mine.latency.merge(&theirs.latency);
        }
        self.targets.extend(other.targets);
        self.elapsed = self.elapsed.max(other.elapsed);
    }

    /// Complete answers per second of the whole run.
    #[must_use]
    pub fn throughput(&self) -> f64 {
        let seconds = self.elapsed.as_secs_f64();
        if seconds > 0.0 {
            self.ok as f64 / seconds
        } else {
            0.0
        }
    }

    fn second(&mut self, at: Duration) -> &mut Second {
        let index = usize::try_from(at.as_secs())
            .unwrap_or(usize::MAX)
            .min(LONGEST_TIMELINE - 1);
        if self.timeline.len() <= index {
            self.timeline.resize_with(index + 1, Second::default);
        }
        &mut self.timeline[index]
    }

    fn keep_error(&mut self, error: FailedRequest) {
        let place = self.first_errors.partition_point(|kept| kept.at <= error.at);
        if place < KEPT_ERRORS {
            self.first_errors.insert(place, error);
            self.first_errors.truncate(KEPT_ERRORS);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(due_ms: u64, took_ms: u64, result: Result<Answer, Failure>) -> Outcome {
        let due = Duration::from_millis(due_ms);
        let started = due + Duration::from_millis(1);
        let ended = due + Duration::from_millis(took_ms);
        Outcome {
            target: 0,
            id: format!("r{due_ms}"),
            due,
            started,
            ended,
            connected: due_ms == 0,
            result,
        }
    }

    fn ok() -> Result<Answer, Failure> {
        Ok(Answer {
            status: 200,
            bytes: 5,
        })
    }

    fn failed(kind: ErrorKind) -> Result<Answer, Failure> {
        Err(Failure {
            kind,
            message: String::new(),
        })
    }

    #[test]
    fn latency_counts_from_the_due_time_and_seconds_from_the_start() {
        let mut results = Results::default();
        results.push(outcome(0, 300, ok()));
        results.push(outcome(900, 300, ok()));
        results.push(outcome(1500, 20, failed(ErrorKind::Status(503))));
        results.push(outcome(1600, 20, failed(ErrorKind::NotSent)));
        assert_eq!((results.sent, results.ok, results.failed), (3, 2, 2));
        assert_eq!((results.bytes, results.connections), (10, 1));
        assert_eq!(results.latency.max(), Duration::from_millis(300));
        assert_eq!(results.lateness.max(), Duration::from_millis(1));
        let seconds: Vec<_> = results
            .timeline
            .iter()
            .map(|s| (s.sent, s.ok, s.failed))
            .collect();
        assert_eq!(seconds, [(2, 1, 0), (1, 1, 2)]);
        assert_eq!(results.errors[&ErrorKind::Status(503)], 1);
        assert_eq!(results.elapsed, Duration::from_millis(1620));
    }

    #[test]
    fn merging_parts_gives_the_whole_in_any_order() {
        let outcomes: Vec<_> = (0..200)
            .map(|n| {
                outcome(
                    n * 17,
                    3 + n % 50,
                    if n % 4 == 0 {
                        failed(ErrorKind::Reset)
                    } else {
                        ok()
                    },
                )
            })
            .collect();
        let mut whole = Results::default();
        let mut parts = vec![Results::default(); 3];
        for (n, outcome) in outcomes.into_iter().enumerate() {
            whole.push(outcome.clone());
            parts[n % 3].push(outcome);
        }
        for order in [[0, 1, 2], [2, 0, 1]] {
            let mut merged = Results::default();
            order.iter().for_each(|part| merged.merge(parts[*part].clone()));
            assert_eq!(merged, whole, "{order:?}");
        }
    }

    #[test]
    fn only_the_first_failures_by_time_are_kept() {
        let mut results = Results::default();
        (0..100)
            .rev()
            .for_each(|n| results.push(outcome(n, 5, failed(ErrorKind::Closed))));
        let kept: Vec<_> = results
            .first_errors
            .iter()
            .map(|error| error.at.as_millis() as usize)
            .collect();
        assert_eq!(kept, (5..5 + KEPT_ERRORS).collect::<Vec<_>>());
    }

    #[test]
    fn a_timeline_has_a_last_second() {
        let mut results = Results::default();
        results.push(outcome(100_000_000, 1, ok()));
        assert_eq!(results.timeline.len(), LONGEST_TIMELINE);
    }
}
