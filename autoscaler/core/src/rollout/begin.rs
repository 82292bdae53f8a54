//! What comes from people: commands, and new templates.

use super::{Attempt, Command, Ended, EventKind, FULL, Look, Mode, OnNew, Phase, Verb, ladder};
use crate::evidence::{Cuts, Verdict};

impl Look<'_> {
    /// Obeys a command that has not been looked at yet.
    pub(super) fn obey(&mut self) {
        let Some(command) = self.facts.command.as_ref() else {
            return;
        };
        if command.text == self.status.command {
            return;
        }
        self.status.command.clone_from(&command.text);
        let answer = if command.attempt == self.attempt.uid {
            self.carry_out(command)
        } else {
            Err(format!(
                "it is for attempt {:?}, the present one is {:?}",
                command.attempt, self.attempt.uid
            ))
        };
        let (kind, text) = match answer {
            Ok(done) => (EventKind::CommandObeyed, format!("{}: {done}.", command.text)),
            Err(why) => (
                EventKind::CommandIgnored,
                format!("{} is ignored: {why}.", command.text),
            ),
        };
        self.status.answer.clone_from(&text);
        self.tell(kind, text);
        self.wake(self.now);
    }

    fn carry_out(&mut self, command: &Command) -> Result<String, String> {
        let (phase, attempt) = (self.status.phase, &mut self.attempt);
        let nothing = || Err(format!("there is no candidate in phase {phase}"));
        match &command.verb {
            Verb::Retry => self.retry(),
            Verb::Undo(revision) => self.undo(revision.as_deref()),
            _ if !phase.forward() => nothing(),
            Verb::Promote if attempt.waits.is_some() => {
                attempt.passed = Some(attempt.step);
                attempt.paused = false;
                Ok("goes on".to_owned())
            }
            Verb::Promote => match phase {
                Phase::Preparing | Phase::Promoting => Err(format!("phase {phase} ends by itself")),
                _ => {
                    let now = self.now;
                    let stood = attempt
                        .acked
                        .is_some_and(|acked| now >= acked + ladder::dwell(self.plan, attempt));
                    let here = Some(attempt.step);
                    let at_gate =
                        phase == Phase::Paused && !attempt.paused && (stood || attempt.skipped == here);
                    match at_gate {
                        true => attempt.passed = here,
                        false => attempt.skipped = here,
                    }
                    attempt.waived |=
                        attempt.waiting.is_some() || matches!(self.plan.mode, Mode::Threshold(_));
                    attempt.paused = false;
                    Ok("goes on".to_owned())
                }
            },
            Verb::PromoteFull => {
                attempt.fast = true;
                attempt.paused = false;
                attempt.mirroring = false;
                self.status.phase = if attempt.weight == FULL {
                    Phase::Promoting
                } else {
                    Phase::Preparing
                };
                attempt.getting_ready = Some(self.now);
                Ok(format!("{} gets everything, unjudged", attempt.candidate))
            }
            Verb::Abort => {
                self.back(Ended::Aborted, "aborted by command".to_owned());
                Ok("taking the candidate out".to_owned())
            }
            Verb::Pause => {
                attempt.paused = true;
                Ok("paused".to_owned())
            }
            Verb::Resume => {
                attempt.paused = false;
                Ok("resumed".to_owned())
            }
        }
    }

    fn retry(&mut self) -> Result<String, String> {
        let revision = self.status.seen.clone();
        if self.status.phase != Phase::Failed || revision.is_empty() {
            return Err(format!("nothing has failed in phase {}", self.status.phase));
        }
        self.status.quarantined.retain(|failed| *failed != revision);
        self.begin(&revision, false);
        Ok(format!("{revision} begins again"))
    }

    fn undo(&mut self, revision: Option<&str>) -> Result<String, String> {
        if self.status.phase == Phase::RollingBack {
            return Err("a candidate is being taken out already".to_owned());
        }
        let stable = self.status.stable.clone();
        let forward = self.status.phase.forward();
        match revision {
            // The version before a candidate is the stable one.
            None if forward => self.back(Ended::Aborted, "undone by command".to_owned()),
            Some(revision) if forward && revision == stable => {
                self.back(Ended::Aborted, "undone by command".to_owned());
            }
            _ => {
                let Some(revision) = revision.or(self.status.history.first().map(String::as_str)) else {
                    return Err("there is no earlier revision".to_owned());
                };
                let revision = revision.to_owned();
                if revision == stable || (forward && revision == self.attempt.candidate) {
                    return Err(format!("{revision} has traffic already"));
                }
                if !self.facts.revisions.contains(&revision) {
                    return Err(format!("there is no revision {revision}"));
                }
                if !self.status.adopted {
                    return Err(match self.status.in_place {
                        true => format!("{stable} moves into a pool of its own first"),
                        false => format!("phase {} ends first", self.status.phase),
                    });
                }
                if forward {
                    self.status.queued = Some(revision.clone());
                    self.back(Ended::Aborted, format!("undone to {revision} by command"));
                } else {
                    self.begin(&revision, true);
                }
                return Ok(format!("back to {revision}"));
            }
        }
        Ok(format!("back to {stable}"))
    }

    /// Acts on a template that was not acted on yet.
    pub(super) fn change(&mut self) {
        if self.status.in_place {
            // It moves out first: until then it is no pool that anything can be compared with.
            return;
        }
        let Some(latest) = self
            .facts
            .latest
            .clone()
            .filter(|latest| *latest != self.status.seen)
        else {
            return;
        };
        match self.status.phase {
            Phase::Adopting | Phase::RollingBack | Phase::Releasing => {}
            Phase::Idle | Phase::Failed => self.take_up(latest),
            _ if latest == self.attempt.candidate => self.status.seen = latest,
            _ if latest != self.status.stable && self.plan.on_new == OnNew::Queue => {
                self.afterwards = format!("{latest} begins after {}", self.attempt.candidate);
            }
            // All traffic is on it and the evidence is in: only the rest of the watch is missing. To go back to the revision
            // before would take every user from what is known to be good, and where templates change faster than they
            // bake nothing would ever be promoted. It is what the new one is compared with.
            Phase::Baking if latest != self.status.stable && self.is_proven() => {
                if self.settled() {
                    self.done(Some(&latest));
                }
            }
            _ => {
                // Acted on when the candidate is out, whatever the template says then.
                self.status.seen.clear();
                self.back(Ended::Superseded, format!("the template is {latest} now"));
            }
        }
    }

    /// Whether the tests have let the candidate in and still would, and nothing else speaks against it.
    fn is_proven(&self) -> bool {
        let accused = !self.facts.broken.is_empty() || self.facts.vetoed.is_some();
        !accused
            && self
                .evidence
                .as_ref()
                .is_some_and(|evidence| evidence.verdict == Verdict::Safe)
    }

    fn take_up(&mut self, latest: String) {
        if latest == self.status.stable {
            self.status.phase = Phase::Idle;
        } else if self.plan.suspend {
            self.next = format!("{latest} begins when the rollout is no longer suspended");
            return;
        } else if self.status.quarantined.contains(&latest) {
            self.status.phase = Phase::Failed;
            let text = format!("{latest} failed before; it begins again on the command retry.");
            self.tell(EventKind::Quarantined, text);
        } else {
            let known = self.status.history.iter().take(self.plan.window);
            let fast = known.into_iter().any(|revision| *revision == latest);
            self.begin(&latest, fast);
        }
        self.status.seen = latest;
    }

    /// Begins an attempt.
    pub(super) fn begin(&mut self, revision: &str, fast: bool) {
        self.status.attempts = self.status.attempts.saturating_add(1);
        let objective = match &self.plan.mode {
            Mode::Sequential(analysis) => analysis.latency_budget.map(|(time, _)| time),
            _ => None,
        };
        let millis = self.now.since_epoch().as_millis();
        self.attempt = Attempt {
            // The time keeps it apart from an attempt of an earlier object with this name.
            uid: format!("{}-{millis:x}", self.status.attempts),
            candidate: revision.to_owned(),
            fast,
            started: self.now,
            getting_ready: Some(self.now),
            cuts: Cuts::freeze(&self.facts.stable_times, objective),
            ruled_out: ladder::MILLION,
            ..Attempt::default()
        };
        self.evidence = None;
        self.status.phase = Phase::Preparing;
        let text = match fast {
            true => format!("{revision} has been stable before: it comes back without an analysis."),
            false => format!("New revision {revision}, scaling up."),
        };
        self.tell(EventKind::NewRevision, text);
        self.wake(self.now);
    }
}
