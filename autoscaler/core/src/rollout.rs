//! Letting a new revision in, or taking it out again, without ever giving traffic to what can neither serve nor hold it.
//!
//! Each [`step`] takes what was stored ([`Status`]) and what is seen ([`Facts`]) and returns a [`Decision`]: what to store
//! first, then what to do. The status is all that is known: the actions follow from it and from the facts alone, never from
//! how it was reached, so a process that ends between any two of them is carried on by the next one.
//!
//! ```text
//! Adopting => Idle => Preparing => (Mirroring) => Progressing => Promoting => (Baking) => Idle
//!                                                 Paused, Holding
//!             from any of them with a candidate:  RollingBack => Failed | Idle
//! ```
//!
//! A weight is raised only when the pods for it are ready and every living activator has acknowledged the one before.
//! It is taken back at once, whoever is ready: the stable revision's pool can hold requests until its pods answer.

mod adopt;
mod advance;
mod begin;
mod facts;
mod finish;
mod gates;
mod ladder;
mod plan;
mod status;
mod threshold;

use std::collections::BTreeMap;

pub use facts::{
    Action, Answer, Ask, Check, Command, Decision, Event, EventKind, Facts, Gate, PoolFact, RouteFact,
    RouteWanted, Verb,
};
pub use plan::{Insufficient, Mirror, Mode, OnNew, Plan, StepPlan, Strategy, Threshold};
pub use status::{Attempt, Ended, HISTORY, Phase, QUARANTINED, Status, Ticks};
pub use threshold::failure;

use crate::Time;
use crate::evidence::{self, Evidence, Verdict};
use crate::reason::Span;
use crate::time::earliest;

/// All traffic, in basis points.
pub const FULL: u32 = 10_000;

/// Decides what is next for one rollout.
#[must_use]
pub fn step(now: Time, plan: &Plan, status: &Status, facts: &Facts) -> Decision {
    let mut status = status.clone();
    let attempt = status.attempt.take().unwrap_or_default();
    let mut look = Look {
        now,
        plan,
        facts,
        status,
        attempt,
        evidence: None,
        aim: 0,
        synthetic: false,
        asks: None,
        measure: false,
        released: false,
        events: Vec::new(),
        reason: String::new(),
        next: String::new(),
        afterwards: String::new(),
        wake_at: None,
    };
    look.count();
    if facts.releasing {
        look.release();
    } else {
        look.obey();
        look.change();
        if !look.guard() {
            look.advance();
        }
    }
    look.decision()
}

/// A step in the making.
struct Look<'a> {
    now: Time,
    plan: &'a Plan,
    facts: &'a Facts,
    /// Without its attempt, which is next to it while the step lasts.
    status: Status,
    /// With an empty uid: there has been none.
    attempt: Attempt,
    evidence: Option<Evidence>,
    /// The weight that the candidate's pods are to be ready for.
    aim: u32,
    synthetic: bool,
    asks: Option<Ask>,
    measure: bool,
    released: bool,
    events: Vec<Event>,
    reason: String,
    next: String,
    /// What follows when this candidate is decided.
    afterwards: String,
    wake_at: Option<Time>,
}

impl Look<'_> {
    /// Takes the reports in, and weighs all there are.
    fn count(&mut self) {
        let attempt = &mut self.attempt;
        if attempt.uid.is_empty() || !self.status.phase.forward() {
            return;
        }
        if self.facts.samples_of == attempt.uid {
            for sample in &self.facts.samples {
                if (sample.epoch as usize) < attempt.epochs.len() {
                    attempt.counters.observe(sample, &attempt.cuts);
                }
            }
        }
        if let Mode::Sequential(analysis) = &self.plan.mode
            && !attempt.fast
        {
            let found = evidence::judge(analysis, &attempt.cuts, &attempt.epochs, &attempt.counters);
            let bound = (found.upper_bound * f64::from(ladder::MILLION)).ceil() as u32;
            attempt.ruled_out = attempt.ruled_out.min(bound);
            self.evidence = Some(found);
        }
    }

    /// Whether the candidate is to be taken out; then it is.
    fn guard(&mut self) -> bool {
        if !self.status.phase.forward() || self.attempt.fast {
            return false;
        }
        let broken: Vec<&str> = self.facts.broken.iter().map(String::as_str).collect();
        let why = if !broken.is_empty() {
            Some(format!("the breaker of {} has taken it out", broken.join(", ")))
        } else if let Some(veto) = &self.facts.vetoed {
            Some(veto.clone())
        } else {
            self.evidence
                .as_ref()
                .filter(|evidence| evidence.verdict == Verdict::Worse)
                .map(|evidence| self.worse(evidence))
        };
        let Some(why) = why else {
            return false;
        };
        self.back(Ended::RolledBack, why);
        true
    }

    fn worse(&self, evidence: &Evidence) -> String {
        let [stable, candidate] = evidence.requests;
        let [stable_bad, candidate_bad] = evidence.bad;
        let test = evidence.strongest().map_or("", |term| term.test.name());
        let needed = match &self.plan.mode {
            Mode::Sequential(analysis) => 1.0 / analysis.alpha,
            _ => 0.0,
        };
        let (e, pairs) = (evidence.e(), evidence.pairs);
        let mirrored = if pairs > 0 {
            format!(", {pairs} mirrored")
        } else {
            String::new()
        };
        format!(
            "{candidate_bad} of {candidate} requests were bad, {stable_bad} of {stable} of the stable revision's{mirrored}; \
             evidence {e:.0} of {needed:.0} needed, mostly {test}"
        )
    }

    /// Begins to take the candidate out.
    fn back(&mut self, result: Ended, why: String) {
        let attempt = &mut self.attempt;
        attempt.result = Some(result);
        attempt.why = why;
        attempt.acked = None;
        attempt.mirroring = false;
        // What failed is taken out at once; what somebody has had enough of may go in halves.
        if !(self.plan.gradual && result == Ended::Aborted) {
            attempt.weight = 0;
        }
        self.status.phase = Phase::RollingBack;
        let text = format!("Taking {} out: {}.", attempt.candidate, attempt.why);
        self.reason.clone_from(&text);
        self.tell(EventKind::RollingBack, text);
        self.wake(self.now);
    }

    /// Everything goes back to the user's Deployment.
    fn release(&mut self) {
        self.status.phase = Phase::Releasing;
        // Who deletes a Deployment means its pods too, and there is nothing that could take the traffic over.
        let gone = self.target_is_gone();
        self.status.adopted &= !gone;
        self.status.in_place &= !gone && (self.status.adopted || self.facts.held);
        if self.given_back() {
            self.reason = match gone {
                true => "The Deployment is gone, and so go its revisions' pods.".to_owned(),
                false => "The Deployment has all traffic again.".to_owned(),
            };
            self.released = self.facts.pools.keys().all(|pool| *pool == self.facts.target);
            if self.released {
                self.tell(EventKind::Released, self.reason.clone());
            }
            return;
        }
        if !self.status.adopted {
            self.reason = match self.status.in_place {
                true => "The Deployment gets its template back, and goes on.".to_owned(),
                false => "The Deployment gets all traffic again.".to_owned(),
            };
            return;
        }
        let ready = self.ready(&self.facts.target.clone());
        let needed = self.needed(FULL, &self.facts.target).max(1);
        self.reason = format!("Giving the Deployment back: {ready} of {needed} of its pods are ready.");
        if ready >= needed {
            (self.status.adopted, self.status.in_place) = (false, false);
            self.wake(self.now);
        }
    }

    /// Whether the user has deleted their Deployment.
    fn target_is_gone(&self) -> bool {
        !self.facts.pools.contains_key(&self.facts.target)
    }

    /// Whether no request needs the revisions' pools any more.
    fn given_back(&self) -> bool {
        !self.status.has_begun() && (self.target_is_gone() || self.settled())
    }

    /// What the Route has to say, as things stand.
    fn route(&self) -> RouteWanted {
        let (status, attempt, facts) = (&self.status, &self.attempt, self.facts);
        let exists = |pool: &str| facts.pools.contains_key(pool);
        let mut wanted = RouteWanted::default();
        if !status.adopted {
            if exists(&facts.target) {
                wanted.weights.insert(facts.target.clone(), FULL);
            }
            return wanted;
        }
        let candidate = status.phase.active() && exists(&attempt.candidate);
        let stable = exists(&status.stable);
        let weight = match (stable, candidate) {
            (true, true) => attempt.weight.min(FULL),
            (true, false) => 0,
            (false, true) => FULL,
            (false, false) => return wanted,
        };
        if stable {
            wanted.weights.insert(status.stable.clone(), FULL - weight);
        }
        if status.phase == Phase::Adopting && exists(&facts.target) && !facts.shelled {
            // It stands by until what is under way there has ended: activators tell of pools that the Route names.
            wanted.weights.insert(facts.target.clone(), 0);
        }
        if !candidate {
            return wanted;
        }
        wanted.weights.insert(attempt.candidate.clone(), weight);
        wanted.candidate = Some(attempt.candidate.clone());
        if !status.phase.forward() || attempt.fast || !stable {
            // Nobody is judged by what happens now; a pool that somebody has deleted would spoil the comparison.
            return wanted;
        }
        if let (true, Some(mirror)) = (attempt.mirroring, self.plan.mirror) {
            wanted.mirror = mirror.percent.clamp(1, 100);
        }
        if let Some(last) = attempt.epochs.len().checked_sub(1) {
            let epoch = u32::try_from(last).unwrap_or(u32::MAX);
            wanted.count = Some((attempt.uid.clone(), epoch));
            wanted.matching = self.plan.matching || self.plan.strategy == Strategy::Match;
            wanted.breaker = matches!(self.plan.mode, Mode::Sequential(_));
        }
        wanted
    }

    /// Whether every living activator has what is wanted.
    fn settled(&self) -> bool {
        self.facts.route.acked && self.facts.route.says == self.route()
    }

    fn ready(&self, pool: &str) -> u32 {
        self.facts.pools.get(pool).map_or(0, |fact| fact.ready)
    }

    /// Pods for this share of the load, at most as many as the pool may have.
    fn needed(&self, weight: u32, pool: &str) -> u32 {
        let per_pod = if self.facts.per_pod > 0.0 {
            self.facts.per_pod
        } else {
            1.0
        };
        let pods = (self.facts.load * f64::from(weight) / f64::from(FULL) / per_pod).ceil() as u32;
        match self.facts.pools.get(pool).map_or(0, |fact| fact.max) {
            0 => pods,
            max => pods.min(max),
        }
    }

    fn wake(&mut self, at: Time) {
        self.wake_at = earliest(self.wake_at, Some(at));
    }

    fn tell(&mut self, kind: EventKind, text: String) {
        self.events.push(Event { kind, text });
    }

    /// How many pods each pool needs at least.
    fn pools(&mut self) -> BTreeMap<String, (u32, &'static str)> {
        let mut pools = BTreeMap::new();
        let mut want = |pool: &str, pods: u32, why: &'static str| {
            if pods > 0 && !pool.is_empty() {
                pools.insert(pool.to_owned(), (pods, why));
            }
        };
        let (stable, candidate) = (self.status.stable.clone(), self.attempt.candidate.clone());
        let everything = self.needed(FULL, &stable);
        let all_back = "it has to be able to take all traffic back";
        let warm = self.warm_until();
        match self.status.phase {
            Phase::Adopting => {
                // One that sleeps is not woken for it.
                let asleep = self.facts.resting || (self.status.in_place && self.status.adopted);
                if self.may_stay() == Some(false) {
                    let pods = everything.max(u32::from(!asleep));
                    want(&stable, pods, "it takes the traffic over");
                }
            }
            Phase::Releasing => {
                if self.status.adopted {
                    want(
                        &stable,
                        everything,
                        "it has the traffic until the Deployment has it",
                    );
                }
            }
            Phase::Idle | Phase::Failed => {
                if let (Some(last), Some(until)) = (self.status.history.first().cloned(), warm)
                    && self.now < until
                {
                    // Load comes and goes; one that is kept warm does not go with it.
                    let pods = self.needed(FULL, &last).max(1);
                    want(&last, pods, "it was stable until just now");
                    self.wake(until);
                }
            }
            Phase::RollingBack => {
                // All of it comes to who may have had none until now.
                let awake = u32::from(self.ready(&stable) > 0);
                want(&stable, everything.max(awake), all_back);
            }
            phase => {
                let may_start = phase == Phase::Mirroring || self.attempt.confirmed;
                let proving = matches!(phase, Phase::Preparing | Phase::Mirroring) && !self.attempt.fast;
                let mut share = self.needed(self.attempt.weight.max(self.aim), &candidate);
                if self.aim <= self.attempt.weight && self.wakes_by_itself(&candidate, share) {
                    share = 0;
                }
                // Requests of our own wake nobody.
                let least = u32::from((proving && may_start) || self.synthetic || self.awaits_traffic());
                want(&candidate, share.max(least), "its next weight needs them");
                match warm.filter(|_| phase == Phase::Baking) {
                    Some(until) if self.now >= until => {}
                    until => {
                        // Without a share of its own it has no traffic that keeps it awake, and with little load in the last
                        // seconds it would sleep and rise by turns: until the verdict one pod stays.
                        let bare = self.attempt.weight == FULL && !self.plan.keep_warm.is_zero();
                        if self.attempt.weight == FULL || !self.wakes_by_itself(&stable, everything) {
                            want(&stable, everything.max(u32::from(bare)), all_back);
                        }
                        if let Some(until) = until {
                            self.wake(until);
                        }
                    }
                }
            }
        }
        pools
    }

    /// Whether a pool asleep is left to its own requests, which it holds: a request for another one is no reason to wake it,
    /// and with load for one pod at most there is nothing to get ready for.
    fn wakes_by_itself(&self, pool: &str, pods: u32) -> bool {
        pods <= 1 && self.ready(pool) == 0
    }

    /// Whether the candidate is awake for a weight that comes next, or that not every activator has yet: no request can have
    /// kept it awake until then.
    fn awaits_traffic(&self) -> bool {
        let attempt = &self.attempt;
        let first = attempt.weight == 0 && attempt.waits.is_none() && self.plan.strategy != Strategy::Match;
        let goes_on = match self.status.phase {
            Phase::Preparing => attempt.fast,
            phase => matches!(phase, Phase::Progressing | Phase::Promoting),
        };
        goes_on && (first || attempt.acked.is_none()) && self.ready(&attempt.candidate) > 0
    }

    /// Until when the revision before keeps its pods.
    fn warm_until(&self) -> Option<Time> {
        let since = match self.status.phase {
            Phase::Baking => self.attempt.baking,
            _ => self.status.promoted,
        };
        Some(since? + self.plan.keep_warm)
    }

    fn actions(&self) -> Vec<Action> {
        let (status, facts) = (&self.status, self.facts);
        let exists = |pool: &str| facts.pools.contains_key(pool);
        let mut actions = Vec::new();
        let mut ensure = |revision: &str| {
            if !revision.is_empty() && !exists(revision) {
                actions.push(Action::EnsurePool(revision.to_owned()));
            }
        };
        let releasing = status.phase == Phase::Releasing;
        if !releasing || status.adopted {
            ensure(&status.stable);
        }
        if status.phase.forward() || (status.phase == Phase::RollingBack && self.attempt.weight > 0) {
            ensure(&self.attempt.candidate);
        }
        if releasing && status.has_begun() {
            actions.push(Action::RestoreTarget(status.stable.clone()));
        }
        if !releasing && self.plan.pause_target && !facts.paused && !status.stable.is_empty() {
            actions.push(Action::PauseTarget);
        }
        if !releasing && !self.plan.pause_target && facts.held && status.adopted && facts.shelled {
            actions.push(Action::ResumeTarget);
        }
        let route = self.route();
        let settled = self.settled();
        if !route.weights.is_empty() && route != facts.route.says {
            actions.push(Action::WriteRoute(route));
        }
        let reached = facts.direct && self.ready(&facts.target) > 0;
        let needed = reached || self.drains_until().is_some();
        if settled && status.adopted && !facts.shelled && !releasing && !needed {
            actions.push(Action::ShellTarget);
        }
        if settled && releasing && status.adopted && exists(&status.stable) {
            // The user's own selector selects their pods too: they go before the traffic comes back to it.
            let others = facts
                .pools
                .keys()
                .filter(|pool| **pool != status.stable && **pool != facts.target);
            actions.extend(others.cloned().map(Action::RemovePool));
        }
        if releasing && self.given_back() && !self.released {
            actions.push(Action::RemovePools);
        }
        actions
    }

    fn decision(mut self) -> Decision {
        let pools = self.pools();
        let actions = self.actions();
        let mut planned = vec![self.next, self.afterwards];
        planned.retain(|planned| !planned.is_empty());
        let mut status = self.status;
        status.attempt = Some(self.attempt).filter(|attempt| !attempt.uid.is_empty());
        Decision {
            status,
            actions,
            pools,
            synthetic: self.synthetic,
            asks: self.asks,
            measure: self.measure,
            evidence: self.evidence,
            events: self.events,
            reason: self.reason,
            next: planned.join("; "),
            wake_at: self.wake_at,
            released: self.released,
        }
    }
}

/// A weight as people write it: `5 %`, `0.5 %`.
fn percent(weight: u32) -> String {
    format!("{} %", f64::from(weight) / 100.0)
}

#[cfg(test)]
mod tests;
