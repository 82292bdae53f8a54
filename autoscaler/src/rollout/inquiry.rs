//! What is asked of others for one attempt: who has to agree, who may call it off, and what is measured.
//!
//! A look first listens to what has been answered, then lets the state machine decide, then asks what that wants to know.
//! All of it can be asked again: a process that begins anew repeats the questions that are open.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crds::condition;
use crds::rollout::{RolloutStatus, WebhookKind};
use dormouse_core::Time;
use dormouse_core::rollout::{
    Answer, Ask, Attempt, Decision, Ended, Event, EventKind, Facts, Gate, Mode, Phase, Status,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time as Stamp;

use super::Rollouts;
use super::alert::{self, Message};
use super::look::{Unit, reason, subject};
use super::measure::{Names, Round, Series};
use super::outside::Caller;
use super::outward::{Outward, kind_of};
use super::question::Question;
use super::see::Seen;
use super::webhook::{About, Hook};
use super::window::Window;
use crate::path::Activators;
use crate::state::RouteKey;

/// Who does not agree is asked again each interval, and at least so often; so is who may call it off.
const AGAIN: Duration = Duration::from_secs(10);

/// The questions of one attempt.
#[derive(Default)]
pub(super) struct Inquiry {
    /// The attempt; empty: there is none that is judged.
    uid: String,
    caller: Option<Caller>,
    window: Window,
    gates: BTreeMap<(Gate, u32), Question<Result<(), String>>>,
    /// The webhook that calls it off.
    rollback: Question<Option<String>>,
    round: Option<Round>,
    series: Series,
}

/// The attempt that others are asked about.
fn judged(status: &Status) -> Option<&Attempt> {
    let attempt = status.attempt.as_ref()?;
    (status.phase.forward() && !attempt.fast).then_some(attempt)
}

impl Inquiry {
    /// What was said at the gates of this step; what was said at others is forgotten.
    fn answers(&mut self, now: Time, step: u32) -> BTreeMap<Gate, Answer> {
        self.gates.retain(|(_, at), _| *at == step);
        let mut answers = BTreeMap::new();
        for ((gate, _), question) in &mut self.gates {
            question.hear(now);
            if let Some((at, said)) = question.last() {
                let no = said.as_ref().err().cloned();
                answers.insert(*gate, Answer { at: *at, no });
            }
        }
        answers
    }

    /// Asks whoever stands at a gate, unless they have been lately.
    fn ask_gate(&mut self, now: Time, ask: Ask, outward: &Outward, caller: &Caller, about: &About) {
        let question = self.gates.entry((ask.gate, ask.step)).or_default();
        let again = outward.interval.min(AGAIN);
        let known = question
            .last()
            .is_some_and(|(at, said)| said.is_ok() || (*at >= ask.after && now.since(*at) < again));
        if known || question.open() {
            return;
        }
        let hooks: Vec<Hook> = outward.hooks(kind_of(ask.gate)).cloned().collect();
        let (caller, about) = (caller.clone(), about.clone());
        question.ask(async move {
            for hook in hooks {
                hook.call(&caller, &about, &BTreeMap::new()).await?;
            }
            Ok(())
        });
    }

    /// Asks whoever may call it off.
    fn ask_rollback(&mut self, now: Time, outward: &Outward, caller: &Caller, about: &About) {
        let again = outward.interval.min(AGAIN);
        let lately = self.rollback.last().is_some_and(|(at, _)| now.since(*at) < again);
        let hooks: Vec<Hook> = outward.hooks(WebhookKind::Rollback).cloned().collect();
        if lately || self.rollback.open() || hooks.is_empty() {
            return;
        }
        let (caller, about) = (caller.clone(), about.clone());
        self.rollback.ask(async move {
            for hook in hooks {
                match hook.call(&caller, &about, &BTreeMap::new()).await {
                    Ok(()) => return Some(hook.name),
                    Err(why) => tracing::debug!(%why, "no rollback is called for"),
                }
            }
            None
        });
    }
}

impl<A: Activators> Rollouts<A> {
    /// Adds what others have said to the facts.
    pub(super) fn listen(&self, unit: &mut Unit, seen: &Seen, before: &Status, now: Time, facts: &mut Facts) {
        let Some(attempt) = judged(before) else {
            unit.inquiry = Inquiry::default();
            return;
        };
        let outward = &seen.asked.outward;
        let inquiry = &mut unit.inquiry;
        if inquiry.uid != attempt.uid {
            let known = seen
                .rollout
                .status
                .as_ref()
                .and_then(|known| known.attempt.as_ref());
            *inquiry = Inquiry {
                uid: attempt.uid.clone(),
                caller: Some(self.outside.caller()),
                series: Series::of(known.filter(|known| known.uid == attempt.uid)),
                ..Inquiry::default()
            };
        }
        inquiry
            .window
            .note(now, outward.interval, attempt, &facts.samples);
        inquiry.series.keep(outward);
        facts.gates = inquiry.answers(now, attempt.step);
        inquiry.rollback.hear(now);
        let called_off = inquiry.rollback.last().and_then(|(_, by)| by.as_ref());
        facts.vetoed = called_off.map(|by| format!("{by} calls it off"));
        if matches!(seen.asked.plan.mode, Mode::Threshold(_)) {
            let tally = inquiry.window.over(now, outward.interval);
            if let Some(round) = &mut inquiry.round {
                round.hear(now, outward, tally.as_ref(), &mut inquiry.series);
                facts.checks = round.checks().cloned();
            }
        } else {
            facts.vetoed = facts.vetoed.take().or_else(|| inquiry.series.veto(outward));
        }
    }

    /// Asks others what is to be known next.
    pub(super) fn inquire(&self, unit: &mut Unit, seen: &Seen, decision: &Decision, now: Time) {
        let inquiry = &mut unit.inquiry;
        let attempt = judged(&decision.status).filter(|attempt| attempt.uid == inquiry.uid);
        let (Some(attempt), Some(caller)) = (attempt, inquiry.caller.clone()) else {
            return;
        };
        let outward = &seen.asked.outward;
        let names = names(seen, &decision.status);
        if let Some(ask) = decision.asks {
            inquiry.ask_gate(now, ask, outward, &caller, &names.about);
        }
        inquiry.ask_rollback(now, outward, &caller, &names.about);
        if matches!(seen.asked.plan.mode, Mode::Threshold(_)) {
            match (decision.measure, &inquiry.round) {
                (false, _) => inquiry.round = None,
                (true, None) => inquiry.round = Some(Round::begin(outward, &caller, &names)),
                (true, Some(_)) => {}
            }
        } else if !attempt.epochs.is_empty() {
            // Before it has anything to answer, nothing it does can be measured.
            let tally = inquiry.window.over(now, outward.interval);
            inquiry
                .series
                .go_on(now, outward, tally.as_ref(), &caller, &names);
        }
    }

    /// Shows what was measured, and who cannot be reached.
    pub(super) fn show_outside(
        &self,
        unit: &Unit,
        seen: &Seen,
        new: &mut RolloutStatus,
        generation: Option<i64>,
        stamp: &Stamp,
    ) {
        let (inquiry, outward) = (&unit.inquiry, &seen.asked.outward);
        let mut show = |kind: &str, wrong: &[String]| {
            let (reason, message) = match wrong {
                [] => (condition::reason::OK, String::new()),
                wrong => (condition::reason::NO_ANSWER, wrong.join("; ")),
            };
            let now =
                condition::condition(kind, wrong.is_empty(), reason, message, generation, stamp.clone());
            condition::set(&mut new.conditions, now);
        };
        if !outward.alerts.is_empty() {
            let troubles = self.outside.troubles(&key_of(seen));
            show(
                condition::ALERTS_DELIVERED,
                &troubles.into_values().collect::<Vec<_>>(),
            );
        }
        let attempt = new.attempt.as_mut().filter(|attempt| attempt.uid == inquiry.uid);
        if let Some(attempt) = attempt.filter(|_| outward.measures()) {
            attempt.measurements = inquiry.series.shown();
            show(condition::MEASUREMENTS_AVAILABLE, &inquiry.series.errors());
        }
    }

    /// Tells others what has happened.
    pub(super) fn announce(&self, seen: &Seen, status: &Status, event: &Event) {
        let outward = &seen.asked.outward;
        let ended = status.attempt.as_ref().and_then(|attempt| attempt.result);
        let at_ms = self.clock.at(seen.now).as_millis();
        let at_ms = u64::try_from(at_ms).unwrap_or(u64::MAX);
        let names = names(seen, status);
        if let Some(severity) = alert::severity(event.kind, ended) {
            for asked in outward
                .alerts
                .iter()
                .filter(|asked| alert::wanted(asked.severity, severity))
            {
                let message = Message {
                    rollout: key_of(seen),
                    severity,
                    event: reason(event.kind),
                    text: event.text.clone(),
                    stable: names.stable.clone(),
                    candidate: names.candidate.clone(),
                    at_ms,
                };
                let sent = alert::send(
                    Arc::clone(&self.outside),
                    Arc::clone(&self.cluster),
                    self.outside.teller(),
                    subject(&seen.rollout),
                    asked.clone(),
                    message,
                );
                self.outside.tell("alert", sent);
            }
        }
        let kind = if event.kind.warns() { "Warning" } else { "Normal" };
        let more = BTreeMap::from([
            ("eventMessage", event.text.clone()),
            ("eventType", kind.to_owned()),
            ("timestamp", at_ms.to_string()),
        ]);
        for hook in outward.hooks(WebhookKind::Event) {
            self.call_once(hook, &names.about, more.clone());
        }
        if matches!(event.kind, EventKind::Promoted | EventKind::RolledBack) {
            for hook in outward.hooks(WebhookKind::PostRollout) {
                self.call_once(hook, &names.about, BTreeMap::new());
            }
        }
    }

    /// Calls a webhook whose answer changes nothing.
    fn call_once(&self, hook: &Hook, about: &About, more: BTreeMap<&'static str, String>) {
        let (hook, about, teller) = (hook.clone(), about.clone(), self.outside.teller());
        self.outside.tell(super::webhook::label(hook.kind), async move {
            if let Err(why) = hook.call(&teller, &about, &more).await {
                tracing::warn!(rollout = about.name, namespace = about.namespace, %why, "a webhook");
            }
        });
    }
}

/// The Rollout's own key.
fn key_of(seen: &Seen) -> RouteKey {
    RouteKey {
        namespace: seen.service.namespace.clone(),
        name: seen.rollout.metadata.name.clone().unwrap_or_default(),
    }
}

fn names(seen: &Seen, status: &Status) -> Names {
    let attempt = status.attempt.as_ref();
    let candidate = attempt
        .map(|attempt| attempt.candidate.clone())
        .unwrap_or_default();
    let RouteKey { namespace, name } = key_of(seen);
    Names {
        about: About {
            namespace,
            name,
            phase: flaggers_phase(status.phase, attempt.and_then(|attempt| attempt.result)),
            checksum: candidate.rsplit('-').next().unwrap_or_default().to_owned(),
        },
        target: seen.target_name.clone(),
        service: seen.service.name.clone(),
        stable: status.stable.clone(),
        candidate,
    }
}

/// Our phases in Flagger's words: receivers compare them.
fn flaggers_phase(phase: Phase, ended: Option<Ended>) -> &'static str {
    match phase {
        Phase::Adopting => "Initializing",
        Phase::Idle => match ended {
            Some(Ended::Promoted | Ended::FastPromoted) => "Succeeded",
            _ => "Initialized",
        },
        Phase::Preparing | Phase::Mirroring | Phase::Progressing | Phase::Holding | Phase::RollingBack => {
            "Progressing"
        }
        Phase::Paused => "Waiting",
        Phase::Promoting => "Promoting",
        Phase::Baking => "Finalising",
        Phase::Failed => "Failed",
        Phase::Releasing => "Terminating",
    }
}
