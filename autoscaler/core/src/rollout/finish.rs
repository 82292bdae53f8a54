//! How an attempt ends: with all traffic, or with none.

use super::{Ended, EventKind, FULL, HISTORY, Look, Phase, QUARANTINED, Span};

/// Below this weight a gradual way back ends at nothing.
const LAST_OF_GRADUAL: u32 = FULL / 20;

impl Look<'_> {
    /// `Promoting => Baking | Idle`.
    pub(super) fn promoting(&mut self) {
        if self.acknowledged().is_none() {
            return;
        }
        if self.plan.bake.is_zero() || self.attempt.fast {
            self.done(None);
            return;
        }
        self.status.phase = Phase::Baking;
        self.attempt.baking = Some(self.now);
        let text = format!(
            "{} has everything; watched for {}.",
            self.attempt.candidate,
            Span(self.plan.bake)
        );
        self.say(EventKind::Baking, text);
    }

    /// `Baking => Idle`.
    pub(super) fn bake(&mut self) {
        if self.acknowledged().is_none() {
            return;
        }
        let end = self.attempt.baking.unwrap_or(self.now) + self.plan.bake;
        if self.now >= end || self.attempt.skipped == Some(self.attempt.step) {
            self.done(None);
            return;
        }
        self.wake(end);
        self.reason = format!("{} has everything and is watched.", self.attempt.candidate);
        self.next = format!("stable in {}", Span(end.since(self.now)));
    }

    /// `RollingBack => Failed | Idle`.
    pub(super) fn retreat(&mut self) {
        let Some(acked) = self.acknowledged() else {
            return;
        };
        if self.attempt.weight == 0 {
            self.ended();
            return;
        }
        let due = acked + self.plan.min_step;
        if self.now < due {
            self.reason = format!("{}, on its way out.", self.at());
            self.wake(due);
            return;
        }
        let half = self.attempt.weight / 2;
        self.attempt.weight = if half < LAST_OF_GRADUAL { 0 } else { half };
        self.attempt.acked = None;
        self.reason = format!("{} on its way out.", self.at());
        self.wake(self.now);
    }

    /// The candidate is stable from now on. `for_next`: sooner than it would have been, because that one is to begin.
    pub(super) fn done(&mut self, for_next: Option<&str>) {
        let (status, attempt) = (&mut self.status, &mut self.attempt);
        let before = std::mem::replace(&mut status.stable, attempt.candidate.clone());
        let history = &mut status.history;
        history.retain(|revision| *revision != before && *revision != attempt.candidate);
        history.insert(0, before.clone());
        history.truncate(HISTORY);
        status
            .quarantined
            .retain(|revision| *revision != attempt.candidate);
        status.promoted = Some(self.now);
        status.phase = Phase::Idle;
        attempt.result = Some(if attempt.fast {
            Ended::FastPromoted
        } else {
            Ended::Promoted
        });
        let text = match for_next {
            None => format!("{} is stable, after {before}.", attempt.candidate),
            Some(next) => format!(
                "{} is stable, after {before}: the evidence was in, and {next} ends its watch.",
                attempt.candidate
            ),
        };
        attempt.why.clone_from(&text);
        self.reason.clone_from(&text);
        self.tell(EventKind::Promoted, text);
        self.wake(self.now);
    }

    /// The candidate has no traffic any more.
    fn ended(&mut self) {
        let (status, attempt) = (&mut self.status, &self.attempt);
        let superseded = attempt.result == Some(Ended::Superseded);
        if !superseded && !attempt.fast {
            status
                .quarantined
                .retain(|revision| *revision != attempt.candidate);
            status.quarantined.insert(0, attempt.candidate.clone());
            status.quarantined.truncate(QUARANTINED);
        }
        status.phase = if superseded || status.seen == status.stable {
            Phase::Idle
        } else {
            Phase::Failed
        };
        let text = format!(
            "{} is out, {} has all traffic: {}.",
            attempt.candidate, status.stable, attempt.why
        );
        self.reason.clone_from(&text);
        self.tell(EventKind::RolledBack, text);
        self.wake(self.now);
        if let Some(revision) = self.status.queued.take() {
            self.begin(&revision, true);
        }
    }
}
