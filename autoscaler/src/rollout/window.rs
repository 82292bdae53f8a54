//! The candidate's requests of the last interval: what activators have counted now, less what they had counted then.
//!
//! Counts are cumulative in one activator process. One that begins anew has a new name and counts from nothing, and what one
//! had counted before it ended stays, so neither is ever counted twice nor negative. Nothing of another attempt is in them.
//! Counts as they were then are this process's memory: one that has just begun says nothing until it has seen a whole
//! interval, and what is in the status already is not taken for new.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use dormouse_core::Time;
use dormouse_core::evidence::{Histogram, Sample};
use dormouse_core::rollout::Attempt;

/// A window is remembered in so many parts, so it may be longer than asked by one of them.
const PARTS: u32 = 20;

/// Counts of a time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) requests: u64,
    pub(super) bad: u64,
    pub(super) times: Histogram,
}

impl Tally {
    /// The share of requests that were not bad, in percent. `None`: no request.
    pub(super) fn success_rate(&self) -> Option<f64> {
        let good = self.requests.saturating_sub(self.bad);
        (self.requests > 0).then(|| 100.0 * good as f64 / self.requests as f64)
    }

    /// The 99th percentile of service times, in milliseconds. `None`: no time was judged.
    pub(super) fn p99_ms(&self) -> Option<f64> {
        let time = self.times.quantile_time(0.99)?;
        Some(time.as_secs_f64() * 1000.0)
    }

    fn add(&mut self, other: &Self) {
        self.requests = self.requests.saturating_add(other.requests);
        self.bad = self.bad.saturating_add(other.bad);
        self.times.merge(&other.times);
    }

    fn since(&self, earlier: &Self) -> Self {
        Self {
            requests: self.requests.saturating_sub(earlier.requests),
            bad: self.bad.saturating_sub(earlier.bad),
            times: self.times.since(&earlier.times),
        }
    }
}

/// Counts by activator process.
type Tallies = BTreeMap<String, Tally>;

/// Remembers counts for one attempt.
#[derive(Debug, Default)]
pub(super) struct Window {
    /// Since when it has looked.
    since: Option<Time>,
    /// Processes that had counted before it looked, by the status.
    old: BTreeSet<String>,
    /// What these had counted when they were first heard here.
    first: Tallies,
    now: Tallies,
    then: VecDeque<(Time, Tallies)>,
}

impl Window {
    /// Takes in what is counted now. Remembers enough for windows of `span`.
    pub(super) fn note(&mut self, now: Time, span: Duration, attempt: &Attempt, samples: &[Sample]) {
        if self.since.is_none() {
            self.since = Some(now);
            let known = attempt
                .counters
                .rows()
                .map(|(_, instance, _)| instance.to_owned());
            self.old = known.collect();
        }
        self.now = tallies(attempt, samples);
        for (instance, tally) in &self.now {
            if self.old.contains(instance) && !self.first.contains_key(instance) {
                self.first.insert(instance.clone(), tally.clone());
            }
        }
        let due = self
            .then
            .back()
            .is_none_or(|(at, _)| now.since(*at) >= span / PARTS);
        if due {
            self.then.push_back((now, self.now.clone()));
        }
        // The newest that is old enough stays, and what came after it.
        while self.then.get(1).is_some_and(|(at, _)| now.since(*at) >= span) {
            self.then.pop_front();
        }
    }

    /// What was counted in the last `span`. `None`: not looked for so long yet.
    pub(super) fn over(&self, now: Time, span: Duration) -> Option<Tally> {
        let (_, before) = self.then.iter().rev().find(|(at, _)| now.since(*at) >= span)?;
        let mut sum = Tally::default();
        for (instance, tally) in &self.now {
            let base = before.get(instance).or_else(|| self.first.get(instance));
            sum.add(&base.map_or_else(|| tally.clone(), |base| tally.since(base)));
        }
        Some(sum)
    }
}

/// The candidate's counts by process, over all epochs but mirrored ones: there, pairs are counted, not requests.
fn tallies(attempt: &Attempt, samples: &[Sample]) -> Tallies {
    let mut found = Tallies::new();
    for sample in samples {
        let epoch = attempt.epochs.get(sample.epoch as usize);
        if epoch.is_none_or(|epoch| epoch.mirrored) {
            continue;
        }
        let tally = found.entry(sample.instance.clone()).or_default();
        for arm in [&sample.candidate, &sample.direct] {
            tally.requests = tally.requests.saturating_add(arm.requests);
            tally.bad = tally.bad.saturating_add(arm.bad.min(arm.requests));
            tally.times.merge(&arm.times);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use dormouse_core::evidence::{Arm, ArmSample, Counters, Epoch, Row};

    const SPAN: Duration = Duration::from_secs(30);

    fn at(seconds: u64) -> Time {
        Time::from_secs(1_000_000 + seconds)
    }

    fn attempt() -> Attempt {
        Attempt {
            epochs: vec![
                Epoch {
                    weight: 0,
                    mirrored: true,
                },
                Epoch {
                    weight: 2000,
                    mirrored: false,
                },
            ],
            ..Attempt::default()
        }
    }

    fn sample(instance: &str, epoch: u32, requests: u64, bad: u64) -> Sample {
        let mut times = Histogram::default();
        times.add(80, requests);
        Sample {
            instance: instance.to_owned(),
            epoch,
            candidate: ArmSample { requests, bad, times },
            ..Sample::default()
        }
    }

    /// Looks each second until `end`, with what is counted by then.
    fn watch(
        window: &mut Window,
        attempt: &Attempt,
        from: u64,
        end: u64,
        samples: impl Fn(u64) -> Vec<Sample>,
    ) {
        for second in from..=end {
            window.note(at(second), SPAN, attempt, &samples(second));
        }
    }

    #[test]
    fn it_is_what_came_in_the_last_span_and_no_more() {
        let (mut window, attempt) = (Window::default(), attempt());
        // Two requests a second, from the 10th second on all bad.
        let counted = |second: u64| vec![sample("a", 1, 2 * second, 2 * second.saturating_sub(10))];
        watch(&mut window, &attempt, 0, 29, counted);
        assert_eq!(window.over(at(29), SPAN), None, "not a whole span yet");
        watch(&mut window, &attempt, 30, 30, counted);
        let found = window.over(at(30), SPAN).expect("a whole span");
        assert_eq!((found.requests, found.bad), (60, 40));
        watch(&mut window, &attempt, 31, 100, counted);
        let found = window.over(at(100), SPAN).expect("a whole span");
        // Its parts are a second and a half: it may be longer by as much.
        assert!((60..=64).contains(&found.requests), "{found:?}");
        assert_eq!(found.success_rate(), Some(0.0));
        assert_eq!(found.times.total(), found.requests);
        assert!(window.then.len() <= PARTS as usize + 2, "{}", window.then.len());
    }

    #[test]
    fn without_requests_there_is_no_value() {
        let (mut window, attempt) = (Window::default(), attempt());
        let counted = |_| vec![sample("a", 1, 7, 0)];
        watch(&mut window, &attempt, 0, 60, counted);
        let found = window.over(at(60), SPAN).expect("a whole span");
        assert_eq!((found.success_rate(), found.p99_ms()), (None, None));
    }

    #[test]
    fn activators_that_begin_anew_are_counted_once() {
        let (mut window, attempt) = (Window::default(), attempt());
        // `a` ends after 100; `b` comes in its place and has 10 of its own.
        let counted = |second: u64| match second {
            0..40 => vec![sample("a", 1, 100, 0)],
            _ => vec![sample("a", 1, 100, 0), sample("b", 1, 10, 1)],
        };
        watch(&mut window, &attempt, 0, 50, counted);
        let found = window.over(at(50), SPAN).expect("a whole span");
        assert_eq!((found.requests, found.bad), (10, 1));
    }

    #[test]
    fn what_the_status_has_already_is_not_new_to_a_process_that_begins() {
        let mut attempt = attempt();
        let mut counters = Counters::default();
        let row = Row {
            candidate: Arm {
                requests: 90,
                ..Arm::default()
            },
            ..Row::default()
        };
        counters.insert(1, "a", &row);
        attempt.counters = counters;
        let mut window = Window::default();
        // `a` is heard of after a while only, and counts on; `b` is really new.
        let counted = |second: u64| match second {
            0..5 => vec![],
            20.. => vec![sample("a", 1, 104, 0), sample("b", 1, 3, 0)],
            _ => vec![sample("a", 1, 100, 0)],
        };
        watch(&mut window, &attempt, 0, 30, counted);
        assert_eq!(window.over(at(30), SPAN).map(|found| found.requests), Some(7));
    }

    #[test]
    fn mirrored_pairs_are_not_requests() {
        let (mut window, attempt) = (Window::default(), attempt());
        watch(&mut window, &attempt, 0, 30, |second| {
            vec![
                sample("a", 0, 50 * second, 0),
                sample("a", 1, second, 0),
                sample("a", 9, second, 0),
            ]
        });
        assert_eq!(window.over(at(30), SPAN).map(|found| found.requests), Some(30));
    }
}
