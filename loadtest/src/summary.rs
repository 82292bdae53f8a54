//! Results for reading: one structure with a stable schema, printed as JSON or as text.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::histogram::Histogram;
use crate::options::Options;
use crate::results::Results;

/// Names the schema. It grows by new fields under this name; anything else gets a new one.
pub const SCHEMA: &str = "dormouse-loadtest/v1";

/// A run for reading. Times are milliseconds.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// [`SCHEMA`].
    pub schema: &'static str,
    /// From the start to the end of the last request.
    pub elapsed_ms: f64,
    /// Requests sent.
    pub sent: u64,
    /// Complete answers with an expected status.
    pub ok: u64,
    /// All others.
    pub failed: u64,
    /// Complete answers per second.
    pub throughput_per_second: f64,
    /// Bytes of the bodies of complete answers.
    pub body_bytes: u64,
    /// Connections made.
    pub connections: u64,
    /// Due time to last byte, of complete answers.
    pub latency_ms: Spread,
    /// Due time to failure.
    pub failure_latency_ms: Spread,
    /// Due time to sending: the generator's own delay.
    pub lateness_ms: Spread,
    /// Complete answers by status.
    pub statuses: BTreeMap<u16, u64>,
    /// Failures by kind.
    pub errors: BTreeMap<String, u64>,
    /// The first failures.
    pub first_errors: Vec<FirstError>,
    /// Second by second.
    pub timeline: Vec<TimelineSecond>,
    /// In wake runs, what came of each target, slowest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<TargetLine>,
}

/// A distribution in milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Spread {
    /// How many values.
    pub count: u64,
    /// Arithmetic mean.
    pub mean: f64,
    /// Half are not above it.
    pub p50: f64,
    /// Nine of ten are not above it.
    pub p90: f64,
    /// 99 of 100.
    pub p99: f64,
    /// 999 of 1000.
    pub p999: f64,
    /// The largest.
    pub max: f64,
}

/// A failure.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FirstError {
    /// From the start of the run.
    pub at_ms: f64,
    /// From when it was due.
    pub after_ms: f64,
    /// Where it was sent.
    pub url: String,
    /// Its id.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub id: String,
    /// Its kind, as in `errors`.
    pub kind: String,
    /// More words.
    pub message: String,
}

/// One second.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TimelineSecond {
    /// Which, from 0.
    pub second: usize,
    /// Requests sent in it.
    pub sent: u64,
    /// Complete answers in it.
    pub ok: u64,
    /// Failures in it.
    pub failed: u64,
    /// Of its answers' latencies, to 6 %.
    pub p50_ms: f64,
    /// Likewise.
    pub p99_ms: f64,
    /// Exact.
    pub max_ms: f64,
}

/// One target of a wake run.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TargetLine {
    /// The target.
    pub url: String,
    /// From the common start to its answer, or to its failure.
    pub latency_ms: f64,
    /// Its failure's kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Summary {
    /// Puts `results` of a run with `options` into words.
    #[must_use]
    pub fn new(options: &Options, results: &Results) -> Self {
        let url = |target: usize| {
            options
                .targets
                .get(target)
                .map_or_else(String::new, |t| t.url.clone())
        };
        let first_errors = results.first_errors.iter().map(|error| FirstError {
            at_ms: millis(error.at),
            after_ms: millis(error.after),
            url: url(error.target),
            id: error.id.clone(),
            kind: error.failure.kind.to_string(),
            message: error.failure.message.clone(),
        });
        let timeline = results
            .timeline
            .iter()
            .enumerate()
            .map(|(second, line)| TimelineSecond {
                second,
                sent: line.sent,
                ok: line.ok,
                failed: line.failed,
                p50_ms: millis(line.latency.percentile(50.0)),
                p99_ms: millis(line.latency.percentile(99.0)),
                max_ms: millis(line.latency.max()),
            });
        let mut targets: Vec<_> = results.targets.iter().collect();
        targets.sort_by_key(|line| std::cmp::Reverse(line.latency));
        let targets = targets.into_iter().map(|line| TargetLine {
            url: url(line.target),
            latency_ms: millis(line.latency),
            error: line.error.map(|kind| kind.to_string()),
        });
        Self {
            schema: SCHEMA,
            elapsed_ms: millis(results.elapsed),
            sent: results.sent,
            ok: results.ok,
            failed: results.failed,
            throughput_per_second: results.throughput(),
            body_bytes: results.bytes,
            connections: results.connections,
            latency_ms: Spread::from(&results.latency),
            failure_latency_ms: Spread::from(&results.failure_latency),
            lateness_ms: Spread::from(&results.lateness),
            statuses: results.statuses.clone(),
            errors: results
                .errors
                .iter()
                .map(|(kind, count)| (kind.to_string(), *count))
                .collect(),
            first_errors: first_errors.collect(),
            timeline: timeline.collect(),
            targets: targets.collect(),
        }
    }
}

impl From<&Histogram> for Spread {
    fn from(histogram: &Histogram) -> Self {
        let at = |percent| millis(histogram.percentile(percent));
        Self {
            count: histogram.count(),
            mean: millis(histogram.mean()),
            p50: at(50.0),
            p90: at(90.0),
            p99: at(99.0),
            p999: at(99.9),
            max: millis(histogram.max()),
        }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            p50,
            p90,
            p99,
            p999,
            max,
            ..
        } = self;
        write!(
            f,
            "p50 {p50:.2}  p90 {p90:.2}  p99 {p99:.2}  p99.9 {p999:.2}  max {max:.2} ms"
        )
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.elapsed_ms / 1000.0;
        let of_all = 100.0 * self.ok as f64 / (self.ok + self.failed).max(1) as f64;
        writeln!(
            f,
            "sent         {} in {seconds:.2} s, {} connections",
            self.sent, self.connections
        )?;
        writeln!(
            f,
            "answered     {} ({of_all:.3} %), {:.1} per second",
            self.ok, self.throughput_per_second
        )?;
        writeln!(f, "failed       {}", self.failed)?;
        writeln!(f, "latency      {}", self.latency_ms)?;
        if self.failure_latency_ms.count > 0 {
            writeln!(f, "  of failed  {}", self.failure_latency_ms)?;
        }
        writeln!(f, "lateness     {}", self.lateness_ms)?;
        let counts = |f: &mut fmt::Formatter<'_>, name: &str, list: Vec<String>| match list.is_empty() {
            true => Ok(()),
            false => writeln!(f, "{name:<12} {}", list.join("  ")),
        };
        counts(
            f,
            "statuses",
            self.statuses
                .iter()
                .map(|(code, n)| format!("{code}: {n}"))
                .collect(),
        )?;
        counts(
            f,
            "errors",
            self.errors
                .iter()
                .map(|(kind, n)| format!("{kind}: {n}"))
                .collect(),
        )?;
        for error in &self.first_errors {
            let FirstError {
                at_ms,
                after_ms,
                kind,
                url,
                id,
                message,
            } = error;
            writeln!(
                f,
                "  at {at_ms:.0} ms, after {after_ms:.0} ms: {kind} {url} {id} {message}"
            )?;
        }
        if self.targets.len() > 1 {
            writeln!(f, "slowest targets")?;
            for line in self.targets.iter().take(5) {
                let error = line.error.as_deref().unwrap_or("ok");
                writeln!(f, "  {:.1} ms  {error}  {}", line.latency_ms, line.url)?;
            }
        }
        self.write_timeline(f)
    }
}

impl Summary {
    /// At most forty lines: beyond that every n-th second is shown, and JSON has them all.
    fn write_timeline(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LINES: usize = 40;
        let step = self.timeline.len().div_ceil(LINES).max(1);
        writeln!(f, "  second    sent      ok  failed   p50 ms   p99 ms   max ms")?;
        for line in self.timeline.iter().step_by(step) {
            let TimelineSecond {
                second,
                sent,
                ok,
                failed,
                p50_ms,
                p99_ms,
                max_ms,
            } = line;
            writeln!(
                f,
                "{second:>8}{sent:>8}{ok:>8}{failed:>8}{p50_ms:>9.2}{p99_ms:>9.2}{max_ms:>9.2}"
            )?;
        }
        Ok(())
    }
}

fn millis(duration: Duration) -> f64 {
    // Whole microseconds: more digits would only be noise in a report.
    duration.as_micros() as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Load;
    use crate::results::{Answer, ErrorKind, Failure, Outcome};

    fn summary() -> Summary {
        let options = Options::new(
            vec!["http://127.0.0.1:1/a".parse().expect("url")],
            Load::Closed(1),
        );
        let mut results = Results::default();
        let at = Duration::from_millis;
        let outcome = |ended, result| Outcome {
            target: 0,
            id: "x-1".into(),
            due: at(0),
            started: at(1),
            ended: at(ended),
            connected: true,
            result,
        };
        results.push(outcome(
            20,
            Ok(Answer {
                status: 200,
                bytes: 3,
            }),
        ));
        let failure = Failure {
            kind: ErrorKind::Status(503),
            message: "queue full".into(),
        };
        results.push(outcome(1500, Err(failure)));
        Summary::new(&options, &results)
    }

    #[test]
    fn the_json_schema_is_stable() {
        let json = serde_json::to_value(summary()).expect("serialises");
        let expected = serde_json::json!({
            "schema": "dormouse-loadtest/v1", "elapsedMs": 1500.0, "sent": 2, "ok": 1, "failed": 1,
            "throughputPerSecond": 1.0 / 1.5, "bodyBytes": 3, "connections": 2,
            "latencyMs": {"count": 1, "mean": 20.0, "p50": 20.0, "p90": 20.0, "p99": 20.0, "p999": 20.0, "max": 20.0},
            "failureLatencyMs": {"count": 1, "mean": 1500.0, "p50": 1500.0, "p90": 1500.0, "p99": 1500.0,
                "p999": 1500.0, "max": 1500.0},
            "latenessMs": {"count": 2, "mean": 1.0, "p50": 1.0, "p90": 1.0, "p99": 1.0, "p999": 1.0, "max": 1.0},
            "statuses": {"200": 1}, "errors": {"status-503": 1},
            "firstErrors": [{"atMs": 1500.0, "afterMs": 1500.0, "url": "http://127.0.0.1:1/a", "id": "x-1",
                "kind": "status-503", "message": "queue full"}],
            "timeline": [
                {"second": 0, "sent": 2, "ok": 1, "failed": 0, "p50Ms": 20.0, "p99Ms": 20.0, "maxMs": 20.0},
                {"second": 1, "sent": 0, "ok": 0, "failed": 1, "p50Ms": 0.0, "p99Ms": 0.0, "maxMs": 0.0},
            ],
        });
        assert_eq!(json, expected);
    }

    #[test]
    fn the_text_names_counts_percentiles_and_the_first_failures() {
        let text = summary().to_string();
        for part in [
            "sent         2 in 1.50 s",
            "(50.000 %)",
            "p99.9 20.00",
            "status-503: 1",
            "queue full",
        ] {
            assert!(text.contains(part), "{part:?} in\n{text}");
        }
    }
}
