//! What capture says of a Service: the entry for the scale side, conditions, Events.

use crds::condition::{
    self, CAPTURED, CONFIGURATION_VALID, FAIL_OPEN, FULLY_ACTIVE, SCALED_BY_HPA, SELECTOR_CONFLICT, WARNING,
    reason,
};
use crds::route::Phase;
use dormouse_core::capture::{ConditionKind, Stage, Step};
use tokio::time::Instant;

use super::gather::Seen;
use super::{Activators, Capture, Unit};
use crate::cluster::{Notice, Subject};
use crate::examine::{Finding, Severity};
use crate::state::{Entry, RouteKey};

/// Type, status, reason, message.
type Said = (&'static str, bool, &'static str, String);

impl<A: Activators> Capture<A> {
    /// Publishes the entry of a Service and tells users what has changed.
    pub(super) fn publish(&self, key: &RouteKey, unit: &mut Unit, seen: &Seen, step: &Step) {
        let said = conditions(seen, step);
        self.tell(key, unit, seen, step, &said);
        let generation = seen.route.as_ref().and_then(|route| route.metadata.generation);
        if unit.conditions.is_empty() {
            // The times of an earlier leader's transitions stay.
            let status = seen.route.as_ref().and_then(|route| route.status.as_ref());
            unit.conditions = status.map(|status| status.conditions.clone()).unwrap_or_default();
        }
        let now = self.clock.timestamp(Instant::now());
        for (kind, status, reason, message) in &said {
            let new = condition::condition(kind, *status, reason, message.clone(), generation, now.clone());
            condition::set(&mut unit.conditions, new);
        }
        unit.conditions
            .retain(|old| said.iter().any(|(kind, ..)| *kind == old.type_));
        let refused = seen.refusal.as_ref().filter(|_| step.stage == Stage::Outside);
        let pools = match refused {
            None => seen.pools.clone(),
            Some(_) => Vec::new(),
        };
        let why = match refused {
            Some(finding) => Some(finding.message.clone()),
            None => Some(step.condition.message.clone()).filter(|_| step.stage != Stage::Captured),
        };
        // What nothing of its traffic depends on is another Service's to scale.
        let own = !seen.claimed || seen.facts.key;
        let entry = Entry {
            settings: std::sync::Arc::clone(&seen.settings),
            pools,
            may_sleep: step.may_sleep.clone(),
            at_least: step.at_least.clone().filter(|_| own && seen.workload.is_some()),
            holds: step.holds.clone().filter(|_| own),
            needs: seen.needs.clone(),
            stays: seen.stays.clone(),
            idle: seen.idle.clone(),
            scaled_by: seen.hpa.as_ref().map(|name| format!("hpa/{name}")),
            phase: phase(seen, step),
            listening: seen.listening(),
            generation,
            why,
            conditions: unit.conditions.clone(),
        };
        self.registry.set(key, Some(entry));
    }

    /// An Event for each thing that was not so at the last look.
    fn tell(&self, key: &RouteKey, unit: &mut Unit, seen: &Seen, step: &Step, said: &[Said]) {
        let mut now: Vec<(&'static str, bool, String)> = Vec::new();
        if step.stage == Stage::Captured {
            now.push((
                "Captured",
                false,
                "All traffic of the Service passes through the activators.".to_owned(),
            ));
        }
        if let Some(refusal) = &seen.refusal {
            now.push((refusal.reason, true, refusal.message.clone()));
        }
        for (kind, status, reason, message) in said {
            let bad = match *kind {
                CONFIGURATION_VALID | FULLY_ACTIVE => !status,
                FAIL_OPEN | SELECTOR_CONFLICT | WARNING => *status,
                CAPTURED => *reason == crds::condition::reason::PROBE_FAILED,
                _ => false,
            };
            if bad {
                now.push((reason, true, message.clone()));
            }
        }
        let was_ours = unit.stage == Stage::Releasing;
        if step.stage == Stage::Outside && was_ours && seen.refusal.is_none() {
            now.push((
                "Released",
                false,
                "Traffic of the Service goes to its pods directly again.".to_owned(),
            ));
        }
        unit.told
            .retain(|told, _| now.iter().any(|(reason, ..)| reason == told));
        for (reason, warning, note) in now {
            // Numbers in a sentence may change at each look; what is told anew is a new thing.
            if unit.told.contains_key(reason) {
                continue;
            }
            let first = unit.conditions.is_empty();
            let known = first && reason == "Captured" && seen.was_captured();
            unit.told.insert(reason, note.clone());
            if known {
                continue;
            }
            let subject = Subject {
                kind: "Service",
                namespace: key.namespace.clone(),
                name: key.name.clone(),
                uid: seen.service.uid.clone(),
            };
            self.cluster.event(Notice {
                subject,
                warning,
                reason,
                action: "Capture",
                note,
            });
        }
    }
}

fn phase(seen: &Seen, step: &Step) -> Option<Phase> {
    match step.stage {
        Stage::Outside if seen.refusal.is_some() => Some(Phase::Refused),
        Stage::FailOpen => Some(Phase::FailOpen),
        // With the key in, whether a request finds a pod is for the pods to say.
        _ if seen.facts.key => None,
        _ => Some(Phase::Direct),
    }
}

fn conditions(seen: &Seen, step: &Step) -> Vec<Said> {
    let mut said = vec![captured(seen, step)];
    said.push(or_ok(CONFIGURATION_VALID, &seen.findings));
    said.push(or_ok(FULLY_ACTIVE, &seen.findings));
    if let Some(conflict) = &step.selector_conflict {
        let (manager, times) = (
            conflict.manager.as_deref().unwrap_or("An unknown field manager"),
            conflict.times,
        );
        said.push((
            SELECTOR_CONFLICT,
            true,
            reason::FOREIGN_MANAGER,
            format!("{manager} took {} out of the selector {times} times lately; let it leave spec.selector alone, or install the admission policy.", crds::names::CAPTURED_SELECTOR_KEY),
        ));
    }
    if let Some(hpa) = &seen.hpa {
        said.push((
            SCALED_BY_HPA,
            true,
            reason::HPA,
            format!("hpa/{hpa} scales from 1 up; Dormouse between 0 and 1."),
        ));
    }
    if step.stage == Stage::FailOpen {
        said.push((
            FAIL_OPEN,
            true,
            reason::ACTIVATORS_GONE,
            "No activator listens; the Service's slices list its pods, and nothing sleeps.".to_owned(),
        ));
    }
    let warnings: Vec<&Finding> = seen
        .findings
        .iter()
        .filter(|finding| finding.severity == Severity::Warning && finding.condition == WARNING)
        .collect();
    match warnings.as_slice() {
        [] => {}
        [one] => said.push((WARNING, true, one.reason, one.message.clone())),
        several => said.push((WARNING, true, reason::SEVERAL, join(several))),
    }
    said
}

fn join(findings: &[&Finding]) -> String {
    findings
        .iter()
        .map(|finding| finding.message.as_str())
        .collect::<Vec<_>>()
        .join(" ")
}

/// `True`, unless there are findings for it.
fn or_ok(kind: &'static str, findings: &[Finding]) -> Said {
    let found: Vec<&Finding> = findings
        .iter()
        .filter(|finding| finding.condition == kind)
        .collect();
    match found.first() {
        None => (kind, true, reason::OK, String::new()),
        Some(first) => (kind, false, first.reason, join(&found)),
    }
}

fn captured(seen: &Seen, step: &Step) -> Said {
    if let Some(refusal) = &seen.refusal {
        return (CAPTURED, false, refusal.reason, refusal.message.clone());
    }
    let why = match step.condition.kind {
        ConditionKind::Probed => reason::PROBED,
        ConditionKind::Capturing => reason::CAPTURING,
        ConditionKind::Releasing | ConditionKind::Refused => reason::RELEASING,
        ConditionKind::ProbeFailed => reason::PROBE_FAILED,
        ConditionKind::NoActivator => reason::NO_ACTIVATOR,
    };
    let errors = seen
        .acks
        .iter()
        .find(|ack| !ack.error.is_empty() && step.stage == Stage::Preparing);
    let message = match errors {
        Some(ack) => format!("{} cannot listen: {}.", ack.activator, ack.error),
        None => step.condition.message.clone(),
    };
    (
        CAPTURED,
        step.condition.kind == ConditionKind::Probed,
        why,
        message,
    )
}
