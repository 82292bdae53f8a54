//! A small cluster around the machine: a stored status, a Route, pools that boot, activators that hear late and count, and
//! a shell that stores first, acts then, and may end in between.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::super::*;
use crate::Time;
use crate::evidence::{Histogram, Sample};

/// How a revision behaves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Quality {
    pub(super) starts: bool,
    /// Share of its requests that are bad.
    pub(super) bad: f64,
}

impl Quality {
    pub(super) const GOOD: Self = Self {
        starts: true,
        bad: 0.0,
    };
    pub(super) const BAD: Self = Self {
        starts: true,
        bad: 1.0,
    };
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pool {
    pub(super) ready: u32,
    /// Ticks until what is wanted is ready.
    boot: u32,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Activator {
    pub(super) alive: bool,
    process: u32,
    heard: RouteWanted,
    attempt: String,
    counts: BTreeMap<u32, Sample>,
}

/// Where the shell's process ends, or is told no.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    None,
    /// After so many writes of this turn.
    Crash(usize),
    /// The status was changed by somebody else meanwhile.
    Conflict,
    /// A process that led before acts on what it knew then.
    Stale,
}

pub(super) struct World {
    pub(super) plan: Plan,
    pub(super) now: Time,
    pub(super) random: Random,
    /// As stored, with its resource version.
    pub(super) status: Status,
    version: u64,
    /// What a process knew that has been deposed since.
    past: Option<(Time, Status, u64, Facts)>,
    pub(super) latest: String,
    pub(super) revisions: BTreeSet<String>,
    pub(super) qualities: BTreeMap<String, Quality>,
    pub(super) pools: BTreeMap<String, Pool>,
    pub(super) at_least: BTreeMap<String, u32>,
    pub(super) shelled: bool,
    /// Requests reach pods past the activators.
    pub(super) direct: bool,
    /// Requests are under way in the Deployment.
    pub(super) draining: bool,
    /// The Deployment is paused; we have paused it.
    pub(super) paused: bool,
    pub(super) held: bool,
    /// The template of the Deployment's pods.
    pub(super) runs: String,
    pub(super) route: RouteWanted,
    pub(super) activators: Vec<Activator>,
    /// Activators hear of no Route any more.
    pub(super) deaf: bool,
    /// Reports get lost.
    pub(super) silent: bool,
    pub(super) load: f64,
    /// Requests per second.
    pub(super) rate: f64,
    owed: f64,
    pub(super) broken: BTreeSet<String>,
    pub(super) vetoed: Option<String>,
    pub(super) checks: Option<Vec<Check>>,
    /// What is said at gates, to whoever asks. Nobody answers at one that is missing.
    pub(super) says: BTreeMap<Gate, Option<String>>,
    /// What was said, at the step at which it was asked.
    answers: BTreeMap<(Gate, u32), Answer>,
    /// Questions, one each.
    pub(super) asked: Vec<(Gate, u32)>,
    /// Measurements of Flagger's rule that were wanted.
    pub(super) wanted: u32,
    command: Option<Command>,
    commands: u32,
    pub(super) releasing: bool,
    pub(super) released: bool,
    pub(super) synthetic: bool,
    pub(super) reason: String,
    /// What it says comes next.
    pub(super) planned: String,
    pub(super) told: Vec<Event>,
    pub(super) written: Vec<RouteWanted>,
    /// Pods that were ready, and needed, each time a weight was raised.
    pub(super) ready_when_raised: Vec<(u32, u32)>,
}

const TICK: Duration = Duration::from_millis(500);
const BOOT: u32 = 3;

impl World {
    pub(super) fn new(plan: Plan, seed: u64) -> Self {
        let deployment = Pool { ready: 1, boot: 0 };
        let activator = Activator {
            alive: true,
            ..Activator::default()
        };
        let mut world = Self {
            plan,
            now: Time::from_secs(1_000_000),
            random: Random(seed),
            status: Status::default(),
            version: 0,
            past: None,
            latest: "r1".to_owned(),
            revisions: ["r1".to_owned()].into(),
            qualities: BTreeMap::new(),
            pools: [("app".to_owned(), deployment)].into(),
            at_least: BTreeMap::new(),
            shelled: false,
            direct: false,
            draining: false,
            paused: false,
            held: false,
            runs: "r1".to_owned(),
            route: RouteWanted::default(),
            activators: vec![activator; 3],
            deaf: false,
            silent: false,
            load: 0.0,
            rate: 50.0,
            owed: 0.0,
            broken: BTreeSet::new(),
            vetoed: None,
            checks: None,
            says: BTreeMap::new(),
            answers: BTreeMap::new(),
            asked: Vec::new(),
            wanted: 0,
            command: None,
            commands: 0,
            releasing: false,
            released: false,
            synthetic: false,
            reason: String::new(),
            planned: String::new(),
            told: Vec::new(),
            written: Vec::new(),
            ready_when_raised: Vec::new(),
        };
        world.route.weights.insert("app".to_owned(), FULL);
        world
    }

    pub(super) fn release(&mut self, revision: &str, quality: Quality) {
        self.latest = revision.to_owned();
        self.revisions.insert(revision.to_owned());
        self.qualities.insert(revision.to_owned(), quality);
        self.written.clear();
    }

    pub(super) fn command(&mut self, verb: Verb) {
        let attempt = self
            .status
            .attempt
            .as_ref()
            .map_or(String::new(), |attempt| attempt.uid.clone());
        self.command_for(&attempt, verb);
    }

    pub(super) fn command_for(&mut self, attempt: &str, verb: Verb) {
        self.commands += 1;
        self.command = Some(Command {
            text: format!("{verb:?}@{attempt}.{}", self.commands),
            attempt: attempt.to_owned(),
            verb,
        });
    }

    pub(super) fn phase(&self) -> Phase {
        self.status.phase
    }

    pub(super) fn weight(&self) -> u32 {
        self.status.attempt.as_ref().map_or(0, |attempt| attempt.weight)
    }

    pub(super) fn candidate(&self) -> &str {
        self.status
            .attempt
            .as_ref()
            .map_or("", |attempt| &attempt.candidate)
    }

    pub(super) fn ended(&self) -> Option<Ended> {
        self.status.attempt.as_ref()?.result
    }

    pub(super) fn failed_checks(&self) -> u32 {
        self.status
            .attempt
            .as_ref()
            .map_or(0, |attempt| attempt.ticks.failed)
    }

    pub(super) fn kinds(&self) -> Vec<EventKind> {
        self.told.iter().map(|event| event.kind).collect()
    }

    /// Lets so many seconds pass, undisturbed.
    pub(super) fn run(&mut self, seconds: u64) {
        for _ in 0..2 * seconds {
            self.pass();
            self.turn(Fault::None).expect("undisturbed");
        }
    }

    /// Time passes: pods boot, activators hear and count.
    pub(super) fn pass(&mut self) {
        self.now = self.now + TICK;
        if !self.paused {
            self.runs.clone_from(&self.latest);
        }
        for (name, pool) in &mut self.pools {
            let quality = self.qualities.get(name).copied().unwrap_or(Quality::GOOD);
            let weight = self.route.weights.get(name).copied().unwrap_or(0);
            let own = (self.load * f64::from(weight) / f64::from(FULL)).ceil() as u32;
            let used = u32::from(self.rate > 0.0 && weight > 0);
            let mut wanted = self.at_least.get(name).copied().unwrap_or(0).max(own).max(used);
            if name == "app" && !self.shelled {
                wanted = wanted.max(1);
            }
            if wanted <= pool.ready || !quality.starts {
                pool.ready = if quality.starts { wanted } else { 0 };
                pool.boot = BOOT;
            } else if pool.boot == 0 {
                pool.ready = wanted;
            } else {
                pool.boot -= 1;
            }
        }
        self.serve();
        for activator in self
            .activators
            .iter_mut()
            .filter(|activator| activator.alive && !self.deaf)
        {
            activator.heard = self.route.clone();
        }
    }

    fn serve(&mut self) {
        self.owed += self.rate * TICK.as_secs_f64();
        while self.owed >= 1.0 {
            self.owed -= 1.0;
            let index = self.random.below(self.activators.len() as u64) as usize;
            let (coin, matches, mirrored) = (
                self.random.below(u64::from(FULL)),
                self.random.below(5),
                self.random.below(100),
            );
            let quality = |name: &str| self.qualities.get(name).copied().unwrap_or(Quality::GOOD);
            let activator = &mut self.activators[index];
            let route = activator.heard.clone();
            let (Some((attempt, epoch)), Some(candidate)) = (&route.count, &route.candidate) else {
                continue;
            };
            if !activator.alive {
                continue;
            }
            if activator.attempt != *attempt {
                (activator.attempt, activator.counts) = (attempt.clone(), BTreeMap::new());
            }
            let sample = activator.counts.entry(*epoch).or_default();
            (sample.instance, sample.epoch) = (format!("{index}-{}", activator.process), *epoch);
            let bad = self.random.chance(quality(candidate).bad);
            let weight = route.weights.get(candidate).copied().unwrap_or(0);
            if route.mirror > 0 {
                if mirrored < u64::from(route.mirror) {
                    sample.stable.requests += 1;
                    sample.candidate.requests += 1;
                    sample.candidate.bad += u64::from(bad);
                }
            } else if route.matching && matches == 0 {
                sample.direct.requests += 1;
                sample.direct.bad += u64::from(bad);
            } else if coin < u64::from(weight) {
                sample.candidate.requests += 1;
                sample.candidate.bad += u64::from(bad);
            } else {
                sample.stable.requests += 1;
            }
        }
    }

    /// Another process in the place of this one: it has counted nothing and heard nothing.
    pub(super) fn restart_activator(&mut self, index: usize) {
        let activator = &mut self.activators[index];
        *activator = Activator {
            alive: true,
            process: activator.process + 1,
            ..Activator::default()
        };
    }

    /// Somebody deletes a pool. Who has not seen that yet may still write its name; here everybody has.
    pub(super) fn lose_pool(&mut self, pool: &str) {
        self.pools.remove(pool);
        self.past = None;
    }

    fn facts(&self) -> Facts {
        let alive = || self.activators.iter().filter(|activator| activator.alive);
        let uid = self.status.attempt.as_ref().map_or("", |attempt| &attempt.uid);
        let counted = alive().filter(|activator| activator.attempt == *uid && !self.silent);
        Facts {
            latest: Some(self.latest.clone()),
            revisions: self.revisions.clone(),
            pools: self
                .pools
                .iter()
                .map(|(name, pool)| {
                    (
                        name.clone(),
                        PoolFact {
                            ready: pool.ready,
                            max: 0,
                        },
                    )
                })
                .collect(),
            target: "app".to_owned(),
            shelled: self.shelled,
            draining: self.draining,
            paused: self.paused,
            held: self.held,
            whole: (!self.shelled).then(|| self.runs == self.latest),
            resting: self.shelled || (self.rate == 0.0 && self.load == 0.0),
            direct: self.direct,
            route: RouteFact {
                says: self.route.clone(),
                acked: alive().next().is_some() && alive().all(|activator| activator.heard == self.route),
            },
            load: self.load,
            per_pod: 1.0,
            samples: counted
                .flat_map(|activator| activator.counts.values().cloned())
                .collect(),
            samples_of: uid.to_owned(),
            stable_times: Histogram::default(),
            broken: self.broken.clone(),
            checks: self.checks.clone(),
            vetoed: self.vetoed.clone(),
            gates: self.at_gates(),
            command: self.command.clone(),
            releasing: self.releasing,
        }
    }

    /// What was said at the gates of the present step. A yes is remembered, a no for ten seconds.
    fn at_gates(&self) -> BTreeMap<Gate, Answer> {
        let step = self.status.attempt.as_ref().map_or(0, |attempt| attempt.step);
        let here = self.answers.iter().filter(|((_, at), _)| *at == step);
        here.map(|((gate, _), answer)| (*gate, answer.clone())).collect()
    }

    /// Asks whom the machine wants asked, unless that has been answered lately.
    fn ask(&mut self, ask: Option<Ask>) {
        let Some(Ask { gate, step, after }) = ask else {
            return;
        };
        let last = self.answers.get(&(gate, step));
        let lately = |last: &Answer| {
            last.no.is_none() || (last.at >= after && self.now < last.at + Duration::from_secs(10))
        };
        if last.is_some_and(lately) {
            return;
        }
        self.asked.push((gate, step));
        if let Some(no) = self.says.get(&gate) {
            let answer = Answer {
                at: self.now,
                no: no.clone(),
            };
            self.answers.insert((gate, step), answer);
        }
    }

    /// Another process asks from now on.
    pub(super) fn forget_answers(&mut self) {
        self.answers.clear();
    }

    /// The shell's turn. Every decision is checked against what it may not be.
    pub(super) fn turn(&mut self, fault: Fault) -> Result<(), String> {
        let present = (self.now, self.status.clone(), self.version, self.facts());
        let (now, status, version, facts) = match fault {
            Fault::Stale => self.past.take().unwrap_or(present),
            _ => {
                if self.past.is_none() {
                    self.past = Some(present.clone());
                }
                present
            }
        };
        let decision = step(now, &self.plan, &status, &facts);
        self.check(&status, &facts, &decision)?;
        if fault == Fault::Crash(0) || fault == Fault::Conflict || version != self.version {
            return Ok(());
        }
        // Stored first, and always: also what is unchanged is confirmed, so that nobody acts who is not the last one.
        if decision.status != status {
            self.status = decision.status.clone();
            self.version += 1;
        }
        (self.synthetic, self.released) = (decision.synthetic, decision.released);
        self.wanted += u32::from(decision.measure);
        self.ask(decision.asks);
        self.reason.clone_from(&decision.reason);
        self.planned.clone_from(&decision.next);
        self.told.extend(decision.events.iter().cloned());
        self.at_least = decision
            .pools
            .iter()
            .map(|(name, (pods, _))| (name.clone(), *pods))
            .collect();
        for (done, action) in decision.actions.iter().enumerate() {
            if fault == Fault::Crash(done + 1) {
                return Ok(());
            }
            // The Route is written as it was read, or not at all.
            if matches!(action, Action::WriteRoute(_)) && facts.route.says != self.route {
                return Ok(());
            }
            self.act(action)?;
        }
        Ok(())
    }

    fn act(&mut self, action: &Action) -> Result<(), String> {
        match action {
            Action::EnsurePool(revision) => {
                if !self.revisions.contains(revision) {
                    return Err(format!("a pool of {revision}, which does not exist"));
                }
                self.pools.entry(revision.clone()).or_default().boot = BOOT;
            }
            Action::WriteRoute(route) => {
                let sum: u32 = route.weights.values().sum();
                if sum != FULL {
                    return Err(format!("weights add up to {sum}"));
                }
                if let Some(missing) = route.weights.keys().find(|pool| !self.pools.contains_key(*pool)) {
                    return Err(format!("{missing} has a place in the Route and is not there"));
                }
                self.route = route.clone();
                self.written.push(route.clone());
            }
            Action::ShellTarget => {
                if self.route.weights.get("app").is_some_and(|weight| *weight > 0) {
                    return Err("the Deployment sleeps with traffic".to_owned());
                }
                self.shelled = true;
            }
            Action::PauseTarget => (self.paused, self.held) = (true, true),
            Action::ResumeTarget => (self.paused, self.held) = (false, false),
            Action::RestoreTarget(revision) => {
                self.latest.clone_from(revision);
                (self.paused, self.held, self.shelled) = (false, false, false);
            }
            Action::RemovePool(pool) => {
                if self.route.weights.contains_key(pool) {
                    return Err(format!("{pool} is removed with traffic"));
                }
                self.pools.remove(pool);
            }
            Action::RemovePools => {
                // Without a Deployment there is nothing that it could go back to.
                let gone = !self.pools.contains_key("app");
                if !gone && self.route.weights.keys().any(|pool| pool != "app") {
                    return Err("pools are removed with traffic".to_owned());
                }
                self.pools.retain(|pool, _| pool == "app");
            }
        }
        Ok(())
    }

    fn check(&mut self, before: &Status, facts: &Facts, decision: &Decision) -> Result<(), String> {
        let weight = |status: &Status| {
            status.attempt.as_ref().map_or((String::new(), 0), |attempt| {
                (attempt.uid.clone(), attempt.weight)
            })
        };
        let ((uid, old), (after, new)) = (weight(before), weight(&decision.status));
        if uid == after && new > old {
            let candidate = decision
                .status
                .attempt
                .as_ref()
                .map_or("", |attempt| &attempt.candidate);
            let ready = facts.pools.get(candidate).map_or(0, |pool| pool.ready);
            let needed = (facts.load * f64::from(new) / f64::from(FULL)).ceil() as u32;
            self.ready_when_raised.push((ready, needed));
            if ready < needed || !facts.route.acked {
                return Err(format!(
                    "{old} to {new} with {ready} of {needed} pods, acked {}",
                    facts.route.acked
                ));
            }
        }
        let status = &decision.status;
        if status.in_place && !status.adopted && self.paused && self.runs != status.stable {
            return Err(format!("{} has the traffic of {}", self.runs, status.stable));
        }
        if decision.reason.is_empty() {
            return Err(format!("no reason in phase {}", decision.status.phase));
        }
        let epochs = decision
            .status
            .attempt
            .as_ref()
            .map_or(0, |attempt| attempt.epochs.len());
        if epochs > crate::evidence::EPOCHS {
            return Err(format!("{epochs} epochs"));
        }
        Ok(())
    }
}

/// SplitMix64: small, seeded, good enough to shuffle a world.
#[derive(Clone, Debug)]
pub(super) struct Random(pub(super) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    pub(super) fn chance(&mut self, share: f64) -> bool {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64 >= 1.0 - share
    }
}
