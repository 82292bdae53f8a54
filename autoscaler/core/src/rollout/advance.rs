//! What a candidate goes through, phase by phase.

use std::time::Duration;

use super::ladder::{self, Next};
use super::threshold::{self, Look as Outcome};
use super::{
    Ended, EventKind, FULL, Gate, Insufficient, Look, Mode, Phase, Span, Strategy, Threshold, Time, percent,
};
use crate::evidence::{Epoch, Verdict};

impl Look<'_> {
    pub(super) fn advance(&mut self) {
        match self.status.phase {
            Phase::Adopting => self.adopt(),
            Phase::Idle if self.status.in_place => self.stay(),
            Phase::Idle | Phase::Failed | Phase::Releasing => self.rest(),
            Phase::Preparing => self.prepare(),
            Phase::Mirroring => self.mirror(),
            Phase::Progressing | Phase::Paused | Phase::Holding => self.progress(),
            Phase::Promoting => self.promoting(),
            Phase::Baking => self.bake(),
            Phase::RollingBack => self.retreat(),
        }
    }

    fn rest(&mut self) {
        let stable = &self.status.stable;
        self.reason = match self.status.phase {
            Phase::Failed if self.attempt.candidate == self.status.seen => format!(
                "{stable} has all traffic; {} failed: {}.",
                self.attempt.candidate, self.attempt.why
            ),
            Phase::Failed => format!("{stable} has all traffic; {} failed before.", self.status.seen),
            _ => format!("{stable} has all traffic."),
        };
    }

    /// `Preparing => Mirroring | Progressing | Promoting`.
    fn prepare(&mut self) {
        let candidate = self.attempt.candidate.clone();
        let fast = self.attempt.fast;
        if !self.may_start() {
            return;
        }
        self.aim = match ladder::next(self.now, self.plan, &self.attempt) {
            _ if fast => FULL,
            Next::To { weight, .. } => weight,
            Next::Top { .. } if self.plan.strategy != Strategy::Match => FULL,
            _ => 0,
        };
        if let Some(mirror) = self.plan.mirror.filter(|_| !fast) {
            self.aim = self.aim.max(mirror.percent.min(100) * FULL / 100);
        }
        let needed = self.needed(self.aim, &candidate).max(u32::from(!fast));
        if !self.pods_ready(needed) {
            return;
        }
        if !fast && !self.fit_to_begin() {
            return;
        }
        if fast {
            if self.acknowledged().is_none() {
                return;
            }
            self.stand(FULL, false);
            self.status.phase = Phase::Promoting;
            self.say(
                EventKind::Promoting,
                format!("{candidate} is ready and gets everything."),
            );
        } else if let Some(mirror) = self.plan.mirror {
            self.stand(0, true);
            self.status.phase = Phase::Mirroring;
            let text = format!(
                "{} % of the requests are mirrored to {candidate}.",
                mirror.percent
            );
            self.say(EventKind::Mirroring, text);
        } else {
            self.ready_to_progress();
            self.say(EventKind::CandidateReady, format!("{candidate} is ready."));
        }
    }

    fn ready_to_progress(&mut self) {
        self.status.phase = Phase::Progressing;
        if self.plan.strategy == Strategy::Match {
            self.stand(0, false);
        }
    }

    /// Whether the candidate has these pods; else it has until the deadline to get them.
    fn pods_ready(&mut self, needed: u32) -> bool {
        let candidate = self.attempt.candidate.clone();
        let ready = self.ready(&candidate);
        if self.facts.pools.contains_key(&candidate) && ready >= needed {
            self.attempt.getting_ready = None;
            return true;
        }
        let since = *self.attempt.getting_ready.get_or_insert(self.now);
        let deadline = since + self.plan.progress_deadline;
        self.reason = format!("{candidate} has {ready} of {needed} pods ready.");
        if self.now < deadline {
            self.next = format!("taken out in {} unless they are", Span(deadline.since(self.now)));
            self.wake(deadline);
        } else {
            let why = format!(
                "{ready} of {needed} pods were ready after {}",
                Span(self.plan.progress_deadline)
            );
            self.back(Ended::Expired, why);
        }
        false
    }

    /// From now on this weight stands; what is counted is counted for it.
    fn stand(&mut self, weight: u32, mirrored: bool) {
        let attempt = &mut self.attempt;
        attempt.weight = weight;
        attempt.mirroring = mirrored;
        attempt.epochs.push(Epoch { weight, mirrored });
        (attempt.acked, attempt.waiting, attempt.getting_ready) = (None, None, None);
        (attempt.skipped, attempt.passed, attempt.waits) = (None, None, None);
        self.wake(self.now);
    }

    pub(super) fn say(&mut self, kind: EventKind, text: String) {
        self.reason.clone_from(&text);
        self.tell(kind, text);
        self.wake(self.now);
    }

    /// Whether every activator has what stands; notes since when.
    pub(super) fn acknowledged(&mut self) -> Option<Time> {
        let candidate = &self.attempt.candidate;
        if self.status.phase.forward() && !self.facts.pools.contains_key(candidate) {
            self.reason = format!("The pool of {candidate} is gone, and is made again.");
            return None;
        }
        if !self.settled() {
            self.reason = format!(
                "Waits until every activator has {} for {}.",
                percent(self.attempt.weight),
                self.attempt.candidate
            );
            return None;
        }
        Some(*self.attempt.acked.get_or_insert(self.now))
    }

    /// `Mirroring => Progressing`.
    fn mirror(&mut self) {
        let Some(since) = self.acknowledged() else {
            return;
        };
        let wanted = self.plan.mirror.map_or(0, |mirror| mirror.pairs);
        let sums = self.attempt.counters.by_epoch(self.attempt.epochs.len());
        let pairs = sums.last().map_or(0, |row| row.candidate.requests);
        if pairs >= wanted || self.attempt.skipped == Some(self.attempt.step) {
            self.attempt.waiting = None;
            self.ready_to_progress();
            let text = format!(
                "{pairs} mirrored pairs say nothing against {}.",
                self.attempt.candidate
            );
            self.say(EventKind::CandidateReady, text);
            return;
        }
        self.reason = format!("{pairs} of {wanted} pairs are mirrored.");
        self.attempt.waiting.get_or_insert(since);
        if self.patience_over() == Some(Insufficient::Promote) {
            self.attempt.skipped = Some(self.attempt.step);
            self.wake(self.now);
        }
    }

    /// `Progressing | Paused | Holding => Promoting`, and to and fro.
    fn progress(&mut self) {
        let Some(acked) = self.acknowledged() else {
            return;
        };
        if self.attempt.paused || self.plan.suspend {
            let who = if self.attempt.paused {
                "by command"
            } else {
                "suspended"
            };
            self.pause(format!("Paused at {}, {who}.", percent(self.attempt.weight)));
            return;
        }
        if let Mode::Threshold(rule) = self.plan.mode {
            self.tick(&rule);
            return;
        }
        let safe = self.verdict() == Verdict::Safe;
        let paced_by_evidence = matches!(self.plan.strategy, Strategy::Risk { .. });
        if paced_by_evidence && (safe || self.attempt.waived) {
            self.top(false);
            return;
        }
        if self.attempt.skipped != Some(self.attempt.step) && !self.stood(acked) {
            return;
        }
        match ladder::next(self.now, self.plan, &self.attempt) {
            Next::To { weight, gate } => {
                if self.gate_open(gate) {
                    self.raise(weight, Gate::Increase);
                }
            }
            Next::At(due) => {
                self.go_on(format!("{} for {}.", self.at(), Span(due.since(self.now))));
                self.wake(due);
            }
            Next::Evidence => self.wait_for_evidence(false),
            Next::Top { gate } => self.top(gate),
        }
    }

    fn verdict(&self) -> Verdict {
        self.evidence
            .as_ref()
            .map_or(Verdict::Inconclusive, |evidence| evidence.verdict)
    }

    pub(super) fn at(&self) -> String {
        format!("{} has {}", self.attempt.candidate, percent(self.attempt.weight))
    }

    /// Whether the weight has stood for its time.
    fn stood(&mut self, acked: Time) -> bool {
        let least = acked + ladder::dwell(self.plan, &self.attempt);
        if self.now >= least {
            return true;
        }
        self.wake(least);
        let left = Span(least.since(self.now));
        self.next = format!("goes on in {left}");
        let pause = ladder::pause(self.plan, &self.attempt);
        if pause > Duration::ZERO && self.now >= acked + self.plan.min_step {
            self.pause(format!("{}, paused for {left}.", self.at()));
        } else {
            self.wake(acked + self.plan.min_step);
            let text = format!("{} for {left} at least.", self.at());
            self.go_on(text);
        }
        false
    }

    fn pause(&mut self, why: String) {
        self.halt(EventKind::Paused, why);
    }

    fn halt(&mut self, kind: EventKind, why: String) {
        let before = std::mem::replace(&mut self.status.phase, Phase::Paused);
        self.reason.clone_from(&why);
        // Time that a person takes is not the candidate's.
        self.attempt.waiting = None;
        self.attempt.getting_ready = None;
        if before != Phase::Paused {
            self.tell(kind, why);
        }
    }

    fn go_on(&mut self, why: String) {
        let before = std::mem::replace(&mut self.status.phase, Phase::Progressing);
        if before == Phase::Paused {
            self.tell(EventKind::Resumed, format!("{}, goes on.", self.at()));
        }
        self.reason = why;
    }

    fn gate_open(&mut self, gate: bool) -> bool {
        if !gate || self.attempt.passed == Some(self.attempt.step) {
            return true;
        }
        let why = format!("{}, waits for the command promote.", self.at());
        self.halt(EventKind::Waiting, why);
        false
    }

    /// Everything is next, if it may be.
    fn top(&mut self, gate: bool) {
        let proof = matches!(self.plan.mode, Mode::Sequential(_))
            && !matches!(
                self.plan.strategy,
                Strategy::Time { .. } | Strategy::BlueGreen { .. } | Strategy::Immediate
            );
        if proof && !self.attempt.waived && self.verdict() != Verdict::Safe {
            self.wait_for_evidence(true);
        } else if self.gate_open(gate) {
            self.everything();
        }
    }

    /// Only evidence is missing.
    fn wait_for_evidence(&mut self, at_the_top: bool) {
        let missing = self.evidence.as_ref().and_then(|evidence| evidence.missing);
        let (bad, requests) = self
            .evidence
            .as_ref()
            .map_or((0, 0), |evidence| (evidence.bad[1], evidence.requests[1]));
        let more = match missing {
            Some(missing) => format!("{missing} more good ones let it in"),
            None => "no number of good ones lets it in".to_owned(),
        };
        let text = format!(
            "{}: {bad} of its {requests} requests were bad, {more}.",
            self.at()
        );
        if at_the_top && self.status.phase != Phase::Holding {
            self.status.phase = Phase::Holding;
            self.tell(EventKind::InsufficientTraffic, text.clone());
        } else if !at_the_top {
            self.go_on(String::new());
        }
        self.reason = text;
        self.attempt.waiting.get_or_insert(self.now);
        if self.patience_over() == Some(Insufficient::Promote) {
            self.attempt.waived = true;
            self.everything();
        }
    }

    /// What to do once there has been too little traffic for too long. Taking out is done here.
    fn patience_over(&mut self) -> Option<Insufficient> {
        let ((after, then), since) = (self.plan.insufficient?, self.attempt.waiting?);
        let due = since + after;
        if self.now < due {
            self.wake(due);
            let what = match then {
                Insufficient::Promote => "promoted unproven",
                Insufficient::Rollback => "taken out",
                Insufficient::Synthetic => "sent requests of our own",
            };
            self.next = format!("{what} in {} without enough traffic", Span(due.since(self.now)));
            return None;
        }
        match then {
            Insufficient::Rollback => {
                let why = format!("there was not enough traffic in {}", Span(after));
                self.back(Ended::RolledBack, why);
            }
            Insufficient::Synthetic => self.synthetic = true,
            Insufficient::Promote => {}
        }
        Some(then)
    }

    /// Gives the candidate this weight once `gate` is open and its pods are ready for it. Returns whether it has been given.
    fn raise(&mut self, weight: u32, gate: Gate) -> bool {
        self.aim = weight;
        self.go_on(String::new());
        if !self.admitted(gate) {
            self.attempt.getting_ready = None;
            return false;
        }
        let needed = self.needed(weight, &self.attempt.candidate);
        if !self.pods_ready(needed) {
            return false;
        }
        self.stand(weight, false);
        self.attempt.step = self.attempt.step.saturating_add(1);
        let candidate = self.attempt.candidate.clone();
        self.say(
            EventKind::WeightAdvanced,
            format!("{candidate} gets {}.", percent(weight)),
        );
        true
    }

    /// Flagger's rule has one failure more.
    pub(super) fn check_failed(&mut self, rule: &Threshold, why: &str) {
        self.attempt.ticks.failed += 1;
        let (failed, at) = (self.attempt.ticks.failed, percent(self.attempt.weight));
        let text = format!("Halted at {at}: {why}; {failed} of {} failed.", rule.threshold);
        self.say(EventKind::CheckFailed, text);
    }

    /// One look of Flagger's rule.
    fn tick(&mut self, rule: &Threshold) {
        let (now, attempt) = (self.now, &self.attempt);
        if attempt.waived {
            self.everything();
            return;
        }
        let due = (attempt.ticks.last).map_or(attempt.started, |last| last + rule.interval);
        let (failed, weight) = (attempt.ticks.failed, attempt.weight);
        if now < due {
            self.wake(due);
            let waits = self.attempt.waits.map(|gate| format!(", waits for {gate}"));
            let (at, waits, most) = (self.at(), waits.unwrap_or_default(), rule.threshold);
            self.go_on(format!("{at}{waits}, {failed} of {most} checks failed."));
            return;
        }
        let begun = weight > 0 || attempt.ticks.iterations > 0;
        let over = failed >= rule.threshold.max(1);
        self.measure = begun && !over;
        if self.measure && self.facts.checks.is_none() {
            self.go_on(format!("{}, waits for measurements.", self.at()));
            return;
        }
        let checks = self.facts.checks.as_deref().unwrap_or_default();
        let outcome = threshold::look(
            rule,
            &self.plan.strategy,
            weight,
            attempt.step,
            &attempt.ticks,
            checks,
        );
        let gate = match outcome {
            Outcome::Step(_) => Some(Gate::Increase),
            Outcome::Promote => Some(Gate::Promotion),
            _ => None,
        };
        // Who has to agree is asked at each look, and the look waits for the answer as it does for measurements.
        if let Some(gate) = gate
            && self.answer(gate, due).is_none()
        {
            self.go_on(format!("{}, asks {gate}.", self.at()));
            return;
        }
        self.measure = false;
        self.attempt.ticks.last = Some(now);
        self.wake(now + rule.interval);
        match outcome {
            Outcome::Rollback => self.back(Ended::RolledBack, format!("{failed} checks failed")),
            Outcome::Failed(why) => {
                self.go_on(String::new());
                self.check_failed(rule, &why);
            }
            Outcome::Step(weight) => _ = self.raise(weight, Gate::Increase),
            Outcome::Iteration => {
                self.attempt.ticks.iterations += 1;
                let done = self.attempt.ticks.iterations;
                self.go_on(format!("Iteration {done} of {}.", rule.iterations.max(1)));
            }
            Outcome::Promote => self.everything(),
        }
    }

    /// All traffic, and no more steps.
    fn everything(&mut self) {
        if self.raise(FULL, Gate::Promotion) {
            self.status.phase = Phase::Promoting;
        }
    }
}
