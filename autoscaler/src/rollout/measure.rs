//! Measurements beyond the evidence: readings of metrics, answers of `rollout` webhooks, and what failed of them.
//!
//! By Flagger's rule a look wants them all at once, as a [`Round`]. Otherwise each is measured at its own interval, and its
//! failures are counted: how many there were is in the status, so a process that begins anew goes on counting.

use crds::rollout::{AttemptStatus, MeasurementStatus, WebhookKind};
use dormouse_core::Time;
use dormouse_core::rollout::{Check, failure};

use super::outside::Caller;
use super::outward::{Metric, Outward, Query, Source};
use super::prometheus;
use super::question::Question;
use super::status;
use super::webhook::{About, Hook};
use super::window::Tally;

/// What was measured: a value, none, or the sentence that says why it could not be.
pub(super) type Reading = Result<Option<f64>, String>;

/// Names that queries and payloads are filled with.
#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    pub(super) about: About,
    pub(super) target: String,
    pub(super) service: String,
    pub(super) stable: String,
    pub(super) candidate: String,
}

impl Names {
    fn value(&self, name: &str, interval: &str) -> Option<String> {
        Some(match name {
            "namespace" => self.about.namespace.clone(),
            "name" => self.about.name.clone(),
            "target" => self.target.clone(),
            "service" => self.service.clone(),
            "stable" => self.stable.clone(),
            "candidate" => self.candidate.clone(),
            "interval" => interval.to_owned(),
            _ => return None,
        })
    }
}

/// Something that is measured.
#[derive(Clone, Copy, Debug)]
pub(super) enum Probe<'a> {
    Metric(&'a Metric),
    Hook(&'a Hook),
}

/// Everything that is measured: webhooks before metrics, as with Flagger.
pub(super) fn probes(outward: &Outward) -> impl Iterator<Item = Probe<'_>> {
    let hooks = outward.hooks(WebhookKind::Rollout).map(Probe::Hook);
    hooks.chain(outward.metrics.iter().map(Probe::Metric))
}

impl Probe<'_> {
    pub(super) fn name(&self) -> String {
        match self {
            Self::Metric(metric) => metric.name.clone(),
            Self::Hook(hook) => format!("hook {}", hook.name),
        }
    }

    pub(super) fn dry_run(&self) -> bool {
        matches!(self, Self::Metric(metric) if metric.dry_run)
    }

    /// What activators have counted, for a metric that is built in.
    fn built_in(&self, tally: &Tally) -> Option<Reading> {
        let Self::Metric(metric) = self else {
            return None;
        };
        match metric.source {
            Source::SuccessRate => Some(Ok(tally.success_rate())),
            Source::Duration => Some(Ok(tally.p99_ms())),
            Source::Prometheus(_) => None,
        }
    }

    /// The reading in the state machine's terms. `served`: there were requests in the window. Then a missing time is only
    /// that of pods that are warming up, and no lack of traffic.
    fn check(&self, reading: &Reading, served: bool) -> Check {
        let (value, error) = match reading {
            Ok(value) => (*value, None),
            Err(error) => (None, Some(error.clone())),
        };
        match self {
            Self::Metric(metric) => Check {
                name: metric.name.clone(),
                value,
                min: metric.min,
                max: metric.max,
                ignore_no_data: metric.ignore_no_data || (served && metric.source == Source::Duration),
                against: error.filter(|_| !metric.ignore_no_data),
            },
            Self::Hook(_) => Check {
                name: self.name(),
                ignore_no_data: true,
                against: error,
                ..Check::default()
            },
        }
    }

    /// Asks for a reading; `None` for one that is built in.
    pub(super) fn ask(
        &self,
        caller: &Caller,
        names: &Names,
    ) -> Option<impl Future<Output = Reading> + Send + use<>> {
        let (caller, names) = (caller.clone(), names.clone());
        let asked = match self {
            Self::Hook(hook) => Asked::Hook((*hook).clone()),
            Self::Metric(metric) => match &metric.source {
                Source::Prometheus(query) => Asked::Query(query.clone()),
                Source::SuccessRate | Source::Duration => return None,
            },
        };
        Some(async move {
            match asked {
                Asked::Hook(hook) => {
                    let more = std::collections::BTreeMap::new();
                    hook.call(&caller, &names.about, &more).await.map(|()| None)
                }
                Asked::Query(query) => {
                    let text = prometheus::fill(&query.text, |name| names.value(name, &query.interval))?;
                    prometheus::ask(&caller, &query.endpoint, &text).await
                }
            }
        })
    }
}

enum Asked {
    Hook(Hook),
    Query(Query),
}

/// All measurements of one look of Flagger's rule.
#[derive(Debug, Default)]
pub(super) struct Round {
    asked: Question<Vec<(String, Reading)>>,
    /// What the look is told.
    checks: Option<Vec<Check>>,
}

impl Round {
    /// Asks everybody at once.
    pub(super) fn begin(outward: &Outward, caller: &Caller, names: &Names) -> Self {
        let calls: Vec<_> = probes(outward)
            .filter_map(|probe| {
                let (name, call) = (probe.name(), probe.ask(caller, names)?);
                Some(async move { (name, call.await) })
            })
            .collect();
        let mut round = Self::default();
        round.asked.ask(futures::future::join_all(calls));
        round
    }

    pub(super) fn checks(&self) -> Option<&Vec<Check>> {
        self.checks.as_ref()
    }

    /// Takes the readings in once all are there. `tally`: what activators have counted in the window.
    pub(super) fn hear(&mut self, now: Time, outward: &Outward, tally: Option<&Tally>, series: &mut Series) {
        self.asked.hear(now);
        let (None, Some((_, readings)), Some(tally)) = (&self.checks, self.asked.last(), tally) else {
            return;
        };
        let mut checks = Vec::new();
        for probe in probes(outward) {
            let name = probe.name();
            let asked = readings.iter().find(|(of, _)| *of == name);
            let reading = probe
                .built_in(tally)
                .or_else(|| asked.map(|(_, reading)| reading.clone()));
            // One that was added to the spec meanwhile is in the next round.
            let Some(reading) = reading else {
                continue;
            };
            let check = probe.check(&reading, tally.requests > 0);
            series.note(now, &probe, &reading, failure(&check));
            if !probe.dry_run() {
                checks.push(check);
            }
        }
        self.checks = Some(checks);
    }
}

/// What was measured of one attempt, by name.
#[derive(Debug, Default)]
pub(super) struct Series {
    all: std::collections::BTreeMap<String, Line>,
}

/// What was measured of one thing.
#[derive(Debug, Default)]
struct Line {
    question: Question<Reading>,
    shown: MeasurementStatus,
    /// Since when it is measured.
    since: Option<Time>,
    at: Option<Time>,
    /// It could not be measured.
    error: Option<String>,
}

impl Series {
    /// What an earlier process measured.
    pub(super) fn of(attempt: Option<&AttemptStatus>) -> Self {
        let known = attempt
            .map(|attempt| attempt.measurements.as_slice())
            .unwrap_or_default();
        let line = |shown: &MeasurementStatus| Line {
            shown: shown.clone(),
            at: shown.measured_at.as_ref().map(status::read_time),
            ..Line::default()
        };
        Self {
            all: known
                .iter()
                .map(|shown| (shown.name.clone(), line(shown)))
                .collect(),
        }
    }

    /// Forgets what is measured no more.
    pub(super) fn keep(&mut self, outward: &Outward) {
        self.all
            .retain(|name, _| probes(outward).any(|probe| probe.name() == *name));
    }

    fn note(&mut self, now: Time, probe: &Probe<'_>, reading: &Reading, why: Option<String>) {
        let line = self.all.entry(probe.name()).or_default();
        let value = reading.as_ref().ok().copied().flatten();
        line.at = Some(now);
        line.error = reading.as_ref().err().cloned();
        line.shown = MeasurementStatus {
            name: probe.name(),
            value: value.map(|value| format!("{value:.2}")).unwrap_or_default(),
            failures: line.shown.failures.saturating_add(u32::from(why.is_some())),
            // An error that decides nothing is shown all the same.
            why: why.or_else(|| line.error.clone()).unwrap_or_default(),
            measured_at: Some(status::write_time(now)),
            dry_run: probe.dry_run(),
        };
    }

    /// Measures what is due, and takes in what was measured: outside of Flagger's rule.
    pub(super) fn go_on(
        &mut self,
        now: Time,
        outward: &Outward,
        tally: Option<&Tally>,
        caller: &Caller,
        names: &Names,
    ) {
        for probe in probes(outward) {
            let every = match probe {
                Probe::Metric(metric) => metric.every(outward.interval),
                Probe::Hook(_) => outward.interval,
            };
            let line = self.all.entry(probe.name()).or_default();
            let reading = match line.question.hear(now) {
                true => line.question.last().map(|(_, reading)| reading.clone()),
                false => None,
            };
            if let Some(reading) = reading {
                let why = failure(&probe.check(&reading, false));
                self.note(now, &probe, &reading, why);
                continue;
            }
            let since = *line.since.get_or_insert(now);
            // A webhook may be what makes traffic: it is called at once, and a metric has something to measure later.
            let due = match (line.at, probe) {
                (Some(at), _) => at + every,
                (None, Probe::Hook(_)) => since,
                (None, Probe::Metric(_)) => since + every,
            };
            if now < due || line.question.open() {
                continue;
            }
            if let Some(call) = probe.ask(caller, names) {
                line.question.ask(call);
            } else if let Some((tally, reading)) =
                tally.and_then(|tally| Some((tally, probe.built_in(tally)?)))
            {
                let why = failure(&probe.check(&reading, tally.requests > 0));
                self.note(now, &probe, &reading, why);
            }
        }
    }

    /// Why the candidate is to be taken out: more measurements have failed than may.
    pub(super) fn veto(&self, outward: &Outward) -> Option<String> {
        probes(outward)
            .filter(|probe| !probe.dry_run())
            .find_map(|probe| {
                let limit = match probe {
                    Probe::Metric(metric) => metric.limit,
                    Probe::Hook(_) => outward.hook_failures - 1,
                };
                let shown = &self.all.get(&probe.name())?.shown;
                let why = &shown.why;
                (shown.failures > limit).then(|| {
                    format!(
                        "{why}; {} of its measurements failed, {limit} may",
                        shown.failures
                    )
                })
            })
    }

    /// What could not be measured the last time, and why.
    pub(super) fn errors(&self) -> Vec<String> {
        let lines = self.all.iter();
        lines
            .filter_map(|(name, line)| Some(format!("{name}: {}", line.error.as_ref()?)))
            .collect()
    }

    /// As a status shows them: what has been measured at least once.
    pub(super) fn shown(&self) -> Vec<MeasurementStatus> {
        let measured = self.all.values().filter(|line| line.at.is_some());
        measured.map(|line| line.shown.clone()).collect()
    }
}
