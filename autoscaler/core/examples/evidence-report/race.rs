//! One release against one rule, with the real state machine: arrivals, a coin, and looks.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use dormouse_core::Time;
use dormouse_core::evidence::{ArmSample, Histogram, Sample};
use dormouse_core::rollout::{
    Action, Check, Facts, Mode, Phase, Plan, PoolFact, RouteFact, RouteWanted, Status, step,
};

use crate::simulate::Random;

/// How a revision answers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Quality {
    /// Share of its requests that are bad.
    pub(crate) bad: f64,
    /// Its service times are those of the stable revision times this.
    pub(crate) slower: f64,
    /// Share of its requests that take a second longer.
    pub(crate) hiccups: f64,
}

/// A case: two revisions under a load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// Requests per second, both together.
    pub(crate) rps: f64,
    pub(crate) stable: Quality,
    pub(crate) candidate: Quality,
    /// Whether times are judged.
    pub(crate) latency: bool,
}

/// How one run ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    /// Whether it was rolled back, shipped, or neither.
    pub(crate) end: End,
    /// When.
    pub(crate) seconds: f64,
    /// Bad requests that the candidate answered until then.
    pub(crate) failed: u64,
    /// All requests that it answered until then.
    pub(crate) requests: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    RolledBack,
    Shipped,
    Neither,
}

/// A run that is undecided after so long is neither.
const LONGEST: f64 = 4.0 * 3_600.0;
/// Activators put changes together for so long.
const COALESCE: f64 = 0.1;
const BEGUN: f64 = 1_000_000.0;

struct Race<'a> {
    case: &'a Case,
    plan: Plan,
    window: f64,
    random: Random,
    status: Status,
    facts: Facts,
    samples: BTreeMap<u32, Sample>,
    /// The candidate's recent requests: when, bad or not, milliseconds.
    recent: VecDeque<(f64, bool, f64)>,
    failed: u64,
    requests: u64,
}

/// Lets one candidate run. `window`: over how many seconds measurements of Flagger's rule are taken.
pub(crate) fn run(case: &Case, plan: &Plan, window: f64, seed: u64) -> Run {
    let mut race = Race::new(case, plan, window, seed);
    let (mut now, mut next) = (BEGUN, BEGUN + race.random.wait(case.rps));
    loop {
        let wake = race.look(now);
        if let Some(end) = race.end() {
            return race.result(end, now);
        }
        if now - BEGUN > LONGEST {
            return race.result(End::Neither, now);
        }
        // All that arrive until the next look; one that decides nothing by itself is looked at with the next report.
        let sequential = matches!(plan.mode, Mode::Sequential(_));
        let due = if sequential {
            (next + COALESCE).min(wake.unwrap_or(f64::MAX))
        } else {
            wake.unwrap_or(now + 1.0)
        };
        now = due.max(now + 1e-3);
        while next <= now {
            race.serve(next);
            next += race.random.wait(case.rps);
        }
    }
}

impl<'a> Race<'a> {
    fn new(case: &'a Case, plan: &Plan, window: f64, seed: u64) -> Self {
        let mut random = Random(seed);
        let mut stable_times = Histogram::default();
        for _ in 0..5_000 {
            let millis = service_millis(&mut random, &case.stable);
            stable_times.record(Duration::from_secs_f64(millis / 1e3));
        }
        let pool = PoolFact { ready: 1_000, max: 0 };
        let stable = "stable".to_owned();
        Self {
            case,
            plan: plan.clone(),
            window,
            status: Status {
                phase: Phase::Idle,
                stable: stable.clone(),
                adopted: true,
                seen: stable.clone(),
                ..Status::default()
            },
            facts: Facts {
                latest: Some("candidate".to_owned()),
                revisions: BTreeSet::from(["candidate".to_owned()]),
                pools: BTreeMap::from([(stable.clone(), pool), ("candidate".to_owned(), pool)]),
                target: "app".to_owned(),
                shelled: true,
                route: RouteFact {
                    says: RouteWanted {
                        weights: BTreeMap::from([(stable, 10_000)]),
                        ..RouteWanted::default()
                    },
                    acked: true,
                },
                per_pod: 1.0,
                stable_times,
                ..Facts::default()
            },
            random,
            samples: BTreeMap::new(),
            recent: VecDeque::new(),
            failed: 0,
            requests: 0,
        }
    }

    /// Looks until nothing changes any more. Returns when to look again.
    fn look(&mut self, now: f64) -> Option<f64> {
        self.facts.checks = Some(self.measure(now));
        self.facts.samples = self.samples.values().cloned().collect();
        let time = Time::from_epoch(Duration::from_secs_f64(now));
        loop {
            let decision = step(time, &self.plan, &self.status, &self.facts);
            // One that has more to do asks to be looked at at once.
            let done = decision.actions.is_empty() && decision.wake_at.is_none_or(|at| at > time);
            self.status = decision.status;
            for action in decision.actions {
                if let Action::WriteRoute(route) = action {
                    self.facts.route.says = route;
                }
            }
            if let Some(attempt) = self
                .status
                .attempt
                .as_ref()
                .filter(|attempt| attempt.uid != self.facts.samples_of)
            {
                self.facts.samples_of.clone_from(&attempt.uid);
            }
            if done || self.end().is_some() {
                return decision.wake_at.map(|at| at.since_epoch().as_secs_f64());
            }
        }
    }

    fn end(&self) -> Option<End> {
        match self.status.phase {
            Phase::Failed => Some(End::RolledBack),
            Phase::Idle if self.status.stable == "candidate" => Some(End::Shipped),
            _ => None,
        }
    }

    fn result(&self, end: End, now: f64) -> Run {
        Run {
            end,
            seconds: now - BEGUN,
            failed: self.failed,
            requests: self.requests,
        }
    }

    fn serve(&mut self, at: f64) {
        let says = &self.facts.route.says;
        let weight = says.weights.get("candidate").copied().unwrap_or(0);
        let candidate = self.random.chance(f64::from(weight) / 10_000.0);
        let quality = if candidate {
            self.case.candidate
        } else {
            self.case.stable
        };
        let bad = self.random.chance(quality.bad);
        let millis = if self.case.latency {
            service_millis(&mut self.random, &quality)
        } else {
            1.0
        };
        if candidate {
            self.failed += u64::from(bad);
            self.requests += 1;
            self.recent.push_back((at, bad, millis));
        }
        let Some((_, epoch)) = says.count else {
            return;
        };
        let sample = self.samples.entry(epoch).or_default();
        (sample.epoch, sample.instance) = (epoch, "a".to_owned());
        let arm: &mut ArmSample = if candidate {
            &mut sample.candidate
        } else {
            &mut sample.stable
        };
        arm.requests += 1;
        arm.bad += u64::from(bad);
        if self.case.latency {
            arm.times.record(Duration::from_secs_f64(millis / 1e3));
        }
    }

    /// Flagger's two builtin metrics over its window: no request, no value.
    fn measure(&mut self, now: f64) -> Vec<Check> {
        while self
            .recent
            .front()
            .is_some_and(|(at, ..)| *at < now - self.window)
        {
            self.recent.pop_front();
        }
        if !matches!(self.plan.mode, Mode::Threshold(_)) {
            self.recent.clear();
            return Vec::new();
        }
        let total = self.recent.len();
        let good = self.recent.iter().filter(|(_, bad, _)| !bad).count();
        let mut times: Vec<f64> = self.recent.iter().map(|(.., millis)| *millis).collect();
        times.sort_by(f64::total_cmp);
        let rank = (total as f64 * 0.99).ceil() as usize;
        let success = Check {
            name: "request-success-rate".to_owned(),
            value: (total > 0).then(|| 100.0 * good as f64 / total as f64),
            min: Some(99.0),
            ..Check::default()
        };
        let duration = Check {
            name: "request-duration".to_owned(),
            value: rank.checked_sub(1).and_then(|index| times.get(index).copied()),
            max: Some(500.0),
            ..Check::default()
        };
        if self.case.latency {
            vec![success, duration]
        } else {
            vec![success]
        }
    }
}

/// Log-normal: median 20 ms, p99 160 ms.
fn service_millis(random: &mut Random, quality: &Quality) -> f64 {
    let usual = 20.0 * (0.894 * random.normal()).exp() * quality.slower;
    usual
        + if random.chance(quality.hiccups) {
            1_000.0
        } else {
            0.0
        }
}
