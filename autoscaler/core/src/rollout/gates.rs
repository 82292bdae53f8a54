//! Gates: places where somebody outside has to agree, or to find nothing wrong.
//!
//! Nobody is asked here. A step says at which gate it stands ([`Ask`]), and is told later what was said there. A yes holds for
//! the step; after a no it is asked again and again, for as long as it takes, and the time that this takes is not the
//! candidate's. The command `promote` opens the gate at which it waits.

use super::{Answer, Ask, Ended, EventKind, Gate, Look, Mode, Time};

impl Look<'_> {
    /// What is said at a gate. `None`: nothing yet, or a no from before `after`.
    pub(super) fn answer(&mut self, gate: Gate, after: Time) -> Option<Result<(), String>> {
        let step = self.attempt.step;
        if !self.plan.gates.contains(&gate) || self.attempt.passed == Some(step) {
            return Some(Ok(()));
        }
        let said = self.facts.gates.get(&gate);
        if let Some(Answer { no: None, .. }) = said {
            return Some(Ok(()));
        }
        self.asks = Some(Ask { gate, step, after });
        let said = said.filter(|said| said.at >= after)?;
        said.no.clone().map(Err)
    }

    /// Whether all agree at this gate; else it waits.
    pub(super) fn admitted(&mut self, gate: Gate) -> bool {
        let text = match self.answer(gate, Time::default()) {
            Some(Ok(())) => {
                if self.attempt.waits.take().is_some() {
                    self.tell(EventKind::Resumed, format!("{}, {gate} is passed.", self.at()));
                }
                return true;
            }
            None => {
                self.reason = format!("{}, asks {gate}.", self.at());
                return false;
            }
            Some(Err(no)) => format!("{}, waits for {gate}: {no}.", self.at()),
        };
        self.reason.clone_from(&text);
        if self.attempt.waits.replace(gate) != Some(gate) {
            self.tell(EventKind::Waiting, text);
        }
        false
    }

    /// Whether its pods may start. Once they may, nobody is asked again: a process that begins anew must not stop them.
    pub(super) fn may_start(&mut self) -> bool {
        if self.attempt.confirmed || self.attempt.fast {
            return true;
        }
        self.attempt.getting_ready = Some(self.now);
        if !self.admitted(Gate::Rollout) {
            return false;
        }
        // What was passed by command was this gate, not the next one.
        self.attempt.passed = None;
        self.attempt.confirmed = true;
        true
    }

    /// Whether nobody has found anything wrong before the first weight. By Flagger's rule a failure is counted, and tried
    /// again after an interval; otherwise it takes the candidate out.
    pub(super) fn fit_to_begin(&mut self) -> bool {
        if !self.plan.gates.contains(&Gate::First) {
            return true;
        }
        let rule = match &self.plan.mode {
            Mode::Threshold(rule) => Some(*rule),
            _ => None,
        };
        let (started, ticks) = (self.attempt.started, self.attempt.ticks);
        let due = match (ticks.last, rule) {
            (Some(last), Some(rule)) => last + rule.interval,
            _ => started,
        };
        // Its time does not count.
        self.attempt.getting_ready = Some(self.now);
        if self.now < due {
            self.reason = format!(
                "{} failed, and is tried again; {} failed.",
                Gate::First,
                ticks.failed
            );
            self.wake(due);
            return false;
        }
        if rule.is_some_and(|rule| ticks.failed >= rule.threshold.max(1)) {
            self.back(Ended::RolledBack, format!("{} checks failed", ticks.failed));
            return false;
        }
        let why = match self.answer(Gate::First, due) {
            Some(Ok(())) => {
                self.attempt.getting_ready = None;
                return true;
            }
            None => {
                self.reason = format!("Waits for {} before the first weight.", Gate::First);
                return false;
            }
            Some(Err(why)) => format!("{} failed: {why}", Gate::First),
        };
        match rule {
            None => self.back(Ended::RolledBack, why),
            Some(rule) => {
                self.attempt.ticks.last = Some(self.now);
                self.check_failed(&rule, &why);
            }
        }
        false
    }
}
