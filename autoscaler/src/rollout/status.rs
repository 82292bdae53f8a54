//! A rollout's status as Kubernetes keeps it, and as the state machine knows it. What one becomes in the other and back is
//! what it was, to the microsecond: a process that reads a status goes on as the one that wrote it would have.

use std::time::Duration;

use crds::condition::{self, AUTOSCALER_CONFLICT, CONFIG_TRACKED, REPLICAS_CONFLICT};
use crds::rollout as wire;
use dormouse_core::Time;
use dormouse_core::evidence::{Arm, CUTS, Counters, Cuts, Epoch, Evidence, Row, Verdict};
use dormouse_core::rollout::{Attempt, Decision, Ended, Gate, Mode, Phase, Plan, Status, Ticks};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, Time as Stamp};

use super::Said;

/// What a status says, in the state machine's terms. What it has no place for is dropped.
pub(super) fn read(status: &wire::RolloutStatus) -> Status {
    Status {
        phase: phase(status.phase),
        stable: status.stable_revision.clone(),
        adopted: status.adopted,
        in_place: status.in_place,
        seen: status.seen_revision.clone(),
        queued: Some(status.queued_revision.clone()).filter(|queued| !queued.is_empty()),
        attempt: (status.attempt.as_ref()).map(|attempt| read_attempt(attempt, status.step.as_ref())),
        attempts: status.attempts,
        history: status.history.clone(),
        quarantined: status.quarantined.clone(),
        command: status.last_command.clone(),
        answer: status.last_command_answer.clone(),
        promoted: status.promoted_at.as_ref().map(read_time),
    }
}

/// A status with what the state machine keeps; what is for people is taken from `decision`.
pub(super) fn write(
    old: &wire::RolloutStatus,
    plan: &Plan,
    decision: &Decision,
    generation: Option<i64>,
    said: &[Said],
    stamp: &Stamp,
) -> wire::RolloutStatus {
    let status = &decision.status;
    let attempt = status.attempt.as_ref();
    let active = status.active();
    wire::RolloutStatus {
        observed_generation: generation,
        phase: wire_phase(status.phase),
        weight: active.map(|attempt| percent(attempt.weight)).unwrap_or_default(),
        why: decision.reason.clone(),
        next: decision.next.clone(),
        stable_revision: status.stable.clone(),
        candidate_revision: active
            .map(|attempt| attempt.candidate.clone())
            .unwrap_or_default(),
        adopted: status.adopted,
        in_place: status.in_place,
        seen_revision: status.seen.clone(),
        queued_revision: status.queued.clone().unwrap_or_default(),
        attempt: attempt.map(|attempt| wire::AttemptStatus {
            measurements: (old.attempt.as_ref())
                .filter(|old| old.uid == attempt.uid)
                .map(|old| old.measurements.clone())
                .unwrap_or_default(),
            ..write_attempt(attempt)
        }),
        attempts: status.attempts,
        step: attempt.map(step),
        evidence: match &decision.evidence {
            Some(found) => Some(evidence(plan, found)),
            // The evidence of the attempt that ended last stays to be read.
            None if old.attempt.as_ref().map(|old| &old.uid) == attempt.map(|new| &new.uid) => {
                old.evidence.clone()
            }
            None => None,
        },
        history: status.history.clone(),
        quarantined: status.quarantined.clone(),
        last_command: status.command.clone(),
        last_command_answer: status.answer.clone(),
        promoted_at: status.promoted.map(write_time),
        conditions: conditions(&old.conditions, decision, generation, said, stamp),
    }
}

/// What `kubectl wait` waits for.
fn conditions(
    old: &[Condition],
    decision: &Decision,
    generation: Option<i64>,
    said: &[Said],
    stamp: &Stamp,
) -> Vec<Condition> {
    let status = &decision.status;
    let phase = status.phase;
    let adopted = status.adopted && phase != Phase::Adopting;
    let serves = (adopted || status.in_place) && phase != Phase::Releasing;
    let mut conditions = old.to_vec();
    let passing = [REPLICAS_CONFLICT, AUTOSCALER_CONFLICT, CONFIG_TRACKED];
    // Of these there is something to say, or they are not there.
    conditions.retain(|old| {
        !passing.contains(&old.type_.as_str()) || said.iter().any(|said| said.kind == old.type_)
    });
    for (kind, holds) in [
        // A revision serves.
        ("Ready", serves),
        // There is a candidate.
        ("Progressing", phase.active()),
        // What the template says is what serves.
        ("Promoted", phase == Phase::Idle && status.seen == status.stable),
        // What the template says has failed.
        ("Degraded", phase == Phase::Failed),
    ] {
        let reason = phase.to_string();
        let new = condition::condition(kind, holds, &reason, "", generation, stamp.clone());
        condition::set(&mut conditions, new);
    }
    for said in said {
        let (kind, message) = (said.kind, said.message.clone());
        let new = condition::condition(kind, said.holds, said.reason, message, generation, stamp.clone());
        condition::set(&mut conditions, new);
    }
    conditions
}

fn read_attempt(attempt: &wire::AttemptStatus, step: Option<&wire::StepStatus>) -> Attempt {
    let epochs: Vec<Epoch> = attempt
        .epochs
        .iter()
        .map(|epoch| Epoch {
            weight: epoch.weight_bp,
            mirrored: epoch.mirrored,
        })
        .collect();
    let mut counters = Counters::default();
    for counts in &attempt.counts {
        let row = Row {
            stable: read_arm(&counts.stable),
            candidate: read_arm(&counts.candidate),
            direct: read_arm(&counts.direct),
        };
        counters.insert(counts.epoch, &counts.instance, &row);
    }
    let mut cuts = [None; CUTS];
    for (cut, kept) in cuts.iter_mut().zip(&attempt.cuts) {
        *cut = usize::try_from(*kept).ok();
    }
    Attempt {
        uid: attempt.uid.clone(),
        candidate: attempt.candidate.clone(),
        fast: attempt.fast,
        started: attempt.started_at.as_ref().map(read_time).unwrap_or_default(),
        step: step.map_or(0, |step| step.index),
        weight: step.map_or(0, |step| step.weight_bp),
        mirroring: attempt.mirroring,
        epochs,
        acked: step.and_then(|step| step.started_at.as_ref()).map(read_time),
        getting_ready: attempt.getting_ready_since.as_ref().map(read_time),
        waiting: attempt.waiting_since.as_ref().map(read_time),
        baking: attempt.baking_since.as_ref().map(read_time),
        paused: attempt.paused,
        skipped: attempt.skipped,
        passed: attempt.passed,
        waived: attempt.waived,
        confirmed: attempt.confirmed,
        waits: Gate::ALL
            .into_iter()
            .find(|gate| gate.to_string() == attempt.waits_for),
        cuts: Cuts(cuts),
        counters,
        ruled_out: attempt.ruled_out_ppm,
        ticks: Ticks {
            last: attempt.ticks.last_at.as_ref().map(read_time),
            failed: attempt.ticks.failed_checks,
            iterations: attempt.ticks.iterations,
        },
        result: ended(&attempt.result),
        why: attempt.why.clone(),
    }
}

fn write_attempt(attempt: &Attempt) -> wire::AttemptStatus {
    wire::AttemptStatus {
        uid: attempt.uid.clone(),
        candidate: attempt.candidate.clone(),
        fast: attempt.fast,
        started_at: Some(write_time(attempt.started)),
        result: attempt
            .result
            .map(|result| format!("{result:?}"))
            .unwrap_or_default(),
        why: attempt.why.clone(),
        mirroring: attempt.mirroring,
        epochs: attempt
            .epochs
            .iter()
            .map(|epoch| wire::EpochStatus {
                weight_bp: epoch.weight,
                mirrored: epoch.mirrored,
            })
            .collect(),
        getting_ready_since: attempt.getting_ready.map(write_time),
        waiting_since: attempt.waiting.map(write_time),
        baking_since: attempt.baking.map(write_time),
        paused: attempt.paused,
        skipped: attempt.skipped,
        passed: attempt.passed,
        waived: attempt.waived,
        confirmed: attempt.confirmed,
        waits_for: attempt.waits.map(|gate| gate.to_string()).unwrap_or_default(),
        cuts: attempt
            .cuts
            .0
            .map(|cut| cut.and_then(|cut| i32::try_from(cut).ok()).unwrap_or(-1))
            .to_vec(),
        counts: attempt
            .counters
            .rows()
            .map(|(epoch, instance, row)| wire::Counts {
                epoch,
                instance: instance.to_owned(),
                stable: write_arm(&row.stable),
                candidate: write_arm(&row.candidate),
                direct: write_arm(&row.direct),
            })
            .collect(),
        ruled_out_ppm: attempt.ruled_out,
        ticks: wire::TickStatus {
            last_at: attempt.ticks.last.map(write_time),
            failed_checks: attempt.ticks.failed,
            iterations: attempt.ticks.iterations,
        },
        // Who measures shows them.
        measurements: Vec::new(),
    }
}

/// How many measurements have failed, by name.
pub(super) fn failures(status: &wire::RolloutStatus) -> Vec<(&str, u32)> {
    let attempt = status.attempt.iter();
    let all = attempt.flat_map(|attempt| &attempt.measurements);
    all.map(|one| (one.name.as_str(), one.failures)).collect()
}

fn read_arm(counts: &wire::ArmCounts) -> Arm {
    let at = |place: usize| counts.get(place).copied().unwrap_or(0);
    Arm {
        requests: at(0),
        bad: at(1),
        timed: at(2),
        over: std::array::from_fn(|cut| at(3 + cut)),
    }
}

fn write_arm(arm: &Arm) -> wire::ArmCounts {
    let mut counts = vec![arm.requests, arm.bad, arm.timed];
    counts.extend(arm.over);
    while counts.last() == Some(&0) {
        counts.pop();
    }
    counts
}

/// `time` as it will read back.
pub(super) fn kept(time: Time) -> Time {
    let micros = u64::try_from(time.since_epoch().as_micros()).unwrap_or(u64::MAX);
    Time::from_epoch(Duration::from_micros(micros))
}

pub(super) fn read_time(time: &MicroTime) -> Time {
    let micros = u64::try_from(time.0.as_microsecond()).unwrap_or(0);
    Time::from_epoch(Duration::from_micros(micros))
}

pub(super) fn write_time(time: Time) -> MicroTime {
    let micros = i64::try_from(time.since_epoch().as_micros()).unwrap_or(i64::MAX);
    MicroTime(jiff::Timestamp::from_microsecond(micros).unwrap_or(jiff::Timestamp::MAX))
}

fn phase(phase: wire::Phase) -> Phase {
    match phase {
        wire::Phase::Adopting => Phase::Adopting,
        wire::Phase::Idle => Phase::Idle,
        wire::Phase::Preparing => Phase::Preparing,
        wire::Phase::Mirroring => Phase::Mirroring,
        wire::Phase::Progressing => Phase::Progressing,
        wire::Phase::Paused => Phase::Paused,
        wire::Phase::Holding => Phase::Holding,
        wire::Phase::Promoting => Phase::Promoting,
        wire::Phase::Baking => Phase::Baking,
        wire::Phase::RollingBack => Phase::RollingBack,
        wire::Phase::Failed => Phase::Failed,
        wire::Phase::Releasing => Phase::Releasing,
    }
}

fn wire_phase(phase: Phase) -> wire::Phase {
    match phase {
        Phase::Adopting => wire::Phase::Adopting,
        Phase::Idle => wire::Phase::Idle,
        Phase::Preparing => wire::Phase::Preparing,
        Phase::Mirroring => wire::Phase::Mirroring,
        Phase::Progressing => wire::Phase::Progressing,
        Phase::Paused => wire::Phase::Paused,
        Phase::Holding => wire::Phase::Holding,
        Phase::Promoting => wire::Phase::Promoting,
        Phase::Baking => wire::Phase::Baking,
        Phase::RollingBack => wire::Phase::RollingBack,
        Phase::Failed => wire::Phase::Failed,
        Phase::Releasing => wire::Phase::Releasing,
    }
}

fn ended(result: &str) -> Option<Ended> {
    Ended::ALL
        .into_iter()
        .find(|ended| format!("{ended:?}") == result)
}

fn step(attempt: &Attempt) -> wire::StepStatus {
    wire::StepStatus {
        index: attempt.step,
        weight_bp: attempt.weight,
        acked_bp: attempt.acked.map(|_| attempt.weight),
        started_at: attempt.acked.map(write_time),
    }
}

fn evidence(plan: &Plan, found: &Evidence) -> wire::EvidenceStatus {
    let (need_rollback, need_safe) = match &plan.mode {
        Mode::Sequential(analysis) => (1.0 / analysis.alpha, 1.0 / analysis.beta),
        Mode::Threshold(_) | Mode::None => (0.0, 0.0),
    };
    // To two places: what is kept is read by people, and what nobody can see is not worth a write.
    let short = |number: f64| (number * 100.0).round() / 100.0;
    let cut = |ln: f64| short(ln.exp().clamp(0.0, 1e9));
    let [stable, candidate] = found.requests;
    wire::EvidenceStatus {
        requests: found.requests,
        bad: found.bad,
        pairs: found.pairs,
        e_rollback: cut(found.ln_e),
        need_rollback: short(need_rollback),
        e_safe: cut(found.ln_s),
        need_safe: short(need_safe),
        eta_requests: found.missing,
        bad_at_most_percent: short(found.upper_bound * 100.0),
        strongest: found
            .strongest()
            .map(|term| term.test.name().to_owned())
            .unwrap_or_default(),
        verdict: match found.verdict {
            Verdict::Inconclusive => "Inconclusive",
            Verdict::Safe => "Safe",
            Verdict::Worse => "Worse",
        }
        .to_owned(),
        requests_text: format!("{stable}+{candidate}"),
        text: format!("{:.0}/{need_rollback:.0}", cut(found.ln_e)),
    }
}

/// A weight as a column shows it: `20%`, `0.5%`.
pub(super) fn percent(weight: u32) -> String {
    format!("{}%", f64::from(weight) / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(micros: u64) -> Time {
        Time::from_epoch(Duration::from_micros(1_700_000_000_000_000 + micros))
    }

    /// A status with a value of its own in each field, made from a number.
    fn full(seed: u64) -> Status {
        let small = u32::try_from(seed % 97).unwrap_or(0) + 1;
        let odd = seed % 2 == 1;
        let arm = |base: u64| Arm {
            requests: base + 10,
            bad: base % 3,
            timed: base + 5,
            over: [base % 5, 0, base % 2, 0],
        };
        let mut counters = Counters::default();
        for epoch in 0..2 {
            let row = Row {
                stable: arm(seed),
                candidate: arm(seed + 1),
                direct: Arm::default(),
            };
            counters.insert(epoch, &format!("instance-{seed}"), &row);
        }
        let phases = [
            Phase::Adopting,
            Phase::Idle,
            Phase::Preparing,
            Phase::Mirroring,
            Phase::Progressing,
            Phase::Paused,
            Phase::Holding,
            Phase::Promoting,
            Phase::Baking,
            Phase::RollingBack,
            Phase::Failed,
            Phase::Releasing,
        ];
        let pick = usize::try_from(seed).unwrap_or(0);
        Status {
            phase: phases[pick % phases.len()],
            stable: format!("web-{seed}"),
            adopted: odd,
            in_place: !odd,
            seen: format!("web-{}", seed + 1),
            queued: odd.then(|| "web-q".to_owned()),
            attempt: Some(Attempt {
                uid: format!("{seed}-18c"),
                candidate: format!("web-{}", seed + 1),
                fast: odd,
                started: at(seed),
                step: small,
                weight: small * 100,
                mirroring: !odd,
                epochs: vec![
                    Epoch {
                        weight: 0,
                        mirrored: true,
                    },
                    Epoch {
                        weight: small,
                        mirrored: false,
                    },
                ],
                acked: odd.then(|| at(seed + 2)),
                getting_ready: (!odd).then(|| at(seed + 3)),
                waiting: odd.then(|| at(seed + 4)),
                baking: (!odd).then(|| at(seed + 5)),
                paused: odd,
                skipped: odd.then_some(small),
                passed: (!odd).then_some(small),
                waived: odd,
                confirmed: !odd,
                waits: odd.then(|| Gate::ALL[pick % Gate::ALL.len()]),
                cuts: Cuts([Some(pick % 200), None, Some(3), None]),
                counters,
                ruled_out: small * 1000,
                ticks: Ticks {
                    last: odd.then(|| at(seed + 6)),
                    failed: small,
                    iterations: small + 1,
                },
                result: (!odd).then(|| Ended::ALL[pick % Ended::ALL.len()]),
                why: "because".to_owned(),
            }),
            attempts: seed,
            history: vec!["web-a".to_owned()],
            quarantined: vec!["web-b".to_owned()],
            command: "pause@1.2".to_owned(),
            answer: "paused".to_owned(),
            promoted: odd.then(|| at(seed + 7)),
        }
    }

    fn decision(status: Status) -> Decision {
        Decision {
            status,
            actions: Vec::new(),
            pools: std::collections::BTreeMap::new(),
            synthetic: false,
            asks: None,
            measure: false,
            evidence: None,
            events: Vec::new(),
            reason: "why".to_owned(),
            next: String::new(),
            wake_at: None,
            released: false,
        }
    }

    #[test]
    fn what_is_written_reads_back_as_it_was_also_through_json() {
        for seed in 0..200 {
            let status = full(seed);
            let old = wire::RolloutStatus::default();
            let stamp = Stamp(jiff::Timestamp::UNIX_EPOCH);
            let written = write(
                &old,
                &Plan::default(),
                &decision(status.clone()),
                Some(1),
                &[],
                &stamp,
            );
            assert_eq!(read(&written), status, "{seed}");
            let json = serde_json::to_value(&written).expect("JSON");
            let again: wire::RolloutStatus = serde_json::from_value(json).expect("a status");
            assert_eq!(read(&again), status, "{seed}: through JSON");
        }
    }

    #[test]
    fn the_state_before_the_first_look_is_the_empty_status() {
        assert_eq!(read(&wire::RolloutStatus::default()), Status::default());
    }

    #[test]
    fn what_passes_is_said_while_it_lasts() {
        let kinds = |said: &[Said], old: &wire::RolloutStatus| {
            let stamp = Stamp(jiff::Timestamp::UNIX_EPOCH);
            let new = write(old, &Plan::default(), &decision(full(1)), Some(1), said, &stamp);
            let kinds: Vec<String> = new.conditions.iter().map(|each| each.type_.clone()).collect();
            (kinds, new)
        };
        let conflict = Said {
            kind: REPLICAS_CONFLICT,
            holds: true,
            reason: condition::reason::FOREIGN_MANAGER,
            message: "argocd".to_owned(),
        };
        let (first, status) = kinds(&[conflict], &wire::RolloutStatus::default());
        assert_eq!(
            first,
            ["Ready", "Progressing", "Promoted", "Degraded", "ReplicasConflict"]
        );
        let (then, _) = kinds(&[], &status);
        assert_eq!(then, ["Ready", "Progressing", "Promoted", "Degraded"]);
    }

    #[test]
    fn columns_are_in_percent() {
        assert_eq!(percent(2000), "20%");
        assert_eq!(percent(50), "0.5%");
    }
}
