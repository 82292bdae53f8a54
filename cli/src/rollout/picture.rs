//! One rollout for people: where it stands, who gets what, the evidence, the steps, the revisions.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crds::rollout::{AnalysisMode, ArmCounts, AttemptStatus, EvidenceStatus, Phase, RolloutStatus};
use crds::{Revision, Rollout};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use kube::ResourceExt as _;

use super::{Stand, active, steps};
use crate::output::{Paint, age, table};

/// Revisions shown besides the stable one and the candidate: the newest.
const REVISIONS: usize = 8;

/// What is drawn.
pub(super) struct Picture<'a> {
    pub(super) rollout: &'a Rollout,
    pub(super) revisions: &'a [Revision],
    /// Of each pool that there is, by its revision's name.
    pub(super) pods: &'a BTreeMap<String, Pods>,
}

/// The pods of a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Pods {
    pub(super) ready: i32,
    pub(super) wanted: i32,
}

/// For people.
pub(super) fn text(picture: &Picture<'_>, now: Timestamp, paint: Paint) -> String {
    let rollout = picture.rollout;
    let status = rollout.status.clone().unwrap_or_default();
    let namespace = rollout.namespace().unwrap_or_default();
    let mut out = format!("{}\n", paint.bold(&format!("{namespace}/{}", rollout.name_any())));
    for (label, value) in standing(rollout, &status, now, paint) {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "  {label:<12} {value}");
    }
    let mut section = |title: &str, body: &str| {
        if !body.is_empty() {
            let _ = write!(out, "\n{}\n{body}", paint.bold(title));
        }
    };
    section("Traffic", &traffic(picture, &status));
    let title = if active(&status) {
        "Evidence"
    } else {
        "Evidence of the last attempt"
    };
    section(title, &evidence(rollout, &status, now));
    section("Steps", &steps::text(&rollout.spec, &status, paint));
    section("Revisions", &revisions(picture, &status, now, paint));
    out
}

/// Label and sentence.
fn standing(
    rollout: &Rollout,
    status: &RolloutStatus,
    now: Timestamp,
    paint: Paint,
) -> Vec<(&'static str, String)> {
    let stand = Stand::new(rollout);
    let headline = match stand.phase {
        Phase::Failed | Phase::RollingBack => paint.bad(&stand.headline()),
        Phase::Paused | Phase::Holding => paint.warn(&stand.headline()),
        Phase::Idle => paint.good(&stand.headline()),
        _ => stand.headline(),
    };
    let mut lines = vec![("phase", headline), ("why", stand.why)];
    let mut add = |label, value: String| {
        if !value.is_empty() {
            lines.push((label, value));
        }
    };
    add("next", stand.next);
    add("to do", stand.help);
    let spec = &rollout.spec;
    add(
        "of",
        format!(
            "service/{}, deployment/{}",
            spec.service_ref.name, spec.target_ref.name
        ),
    );
    add("strategy", steps::strategy(spec));
    add("judged by", judged_by(rollout));
    if let Some(attempt) = &status.attempt {
        add("attempt", self::attempt(attempt, status, now));
    }
    if !status.queued_revision.is_empty() {
        add(
            "queued",
            format!("{} begins after this one", status.queued_revision),
        );
    }
    // `VERB@ATTEMPT.NONCE: done.` is for programs up to the verb's end.
    let command = status.last_command.split('@').next().unwrap_or_default();
    let answer = status.last_command_answer.strip_prefix(&status.last_command);
    let answer = answer.unwrap_or(&status.last_command_answer);
    if !command.is_empty() {
        add("command", format!("{command}{answer}"));
    }
    lines
}

/// Which it is, and how it ended.
fn attempt(attempt: &AttemptStatus, status: &RolloutStatus, now: Timestamp) -> String {
    let began = age(attempt.started_at.as_ref().map(time).as_ref(), now);
    let (candidate, why) = (&attempt.candidate, &attempt.why);
    match attempt.result.as_str() {
        "" => format!("number {}, began {began} ago", status.attempts),
        // Mostly the rollout's own sentence says it already.
        result if status.why.contains(why.trim_end_matches('.')) => {
            format!("the last, of {candidate}, began {began} ago: {result}")
        }
        result => format!("the last, of {candidate}, began {began} ago: {result}, {why}"),
    }
}

fn time(time: &MicroTime) -> Time {
    Time(time.0)
}

/// The rule, and its numbers.
fn judged_by(rollout: &Rollout) -> String {
    let analysis = &rollout.spec.analysis;
    match analysis.mode {
        AnalysisMode::Sequential => format!(
            "evidence: a candidate that is not worse is taken out at most {} % of the time, one with {} bad requests is \
             shipped at most {} % of the time",
            number(analysis.alpha * 100.0),
            analysis.max_bad_rate,
            number(analysis.beta * 100.0)
        ),
        AnalysisMode::Threshold => format!(
            "a look each {}, rolled back after {} failed ones",
            analysis.interval, analysis.threshold
        ),
        AnalysisMode::None => "nothing".to_owned(),
    }
}

/// Who gets what, and what came back.
fn traffic(picture: &Picture<'_>, status: &RolloutStatus) -> String {
    if status.stable_revision.is_empty() {
        return String::new();
    }
    let [stable, candidate, matched] = counts(status);
    let weight = status
        .step
        .as_ref()
        .filter(|_| active(status))
        .map_or(0, |step| step.weight_bp);
    let pods = |name: &str| {
        let found = picture.pods.get(name);
        found.map_or_else(
            || "-".to_owned(),
            |pods| format!("{}/{}", pods.ready, pods.wanted),
        )
    };
    let row = |role: &str, name: &str, weight: String, [requests, bad]: [u64; 2]| {
        let bad = match requests {
            0 => "-".to_owned(),
            _ => format!("{bad} ({} %)", number(bad as f64 / requests as f64 * 100.0)),
        };
        let cells = [role, name, &weight, &pods(name), &requests.to_string(), &bad];
        cells.map(str::to_owned).to_vec()
    };
    let head = ["", "REVISION", "WEIGHT", "PODS", "REQUESTS", "BAD"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    let name = &status.stable_revision;
    rows.push(row(
        "stable",
        name,
        steps::percent(10_000 - weight.min(10_000)),
        stable,
    ));
    if active(status) {
        let name = &status.candidate_revision;
        rows.push(row("candidate", name, steps::percent(weight), candidate));
        if matched[0] > 0 {
            rows.push(row("  matched", name, "-".to_owned(), matched));
        }
    } else {
        // Nothing is counted between attempts.
        for row in &mut rows {
            row.truncate(4);
        }
    }
    for row in &mut rows {
        row[0] = format!("  {}", row[0]);
    }
    table(&rows)
}

/// Requests and bad ones of the stable revision, of the candidate by the coin, and of the candidate by match or our own.
fn counts(status: &RolloutStatus) -> [[u64; 2]; 3] {
    let mut sums = [[0_u64; 2]; 3];
    let Some(attempt) = &status.attempt else {
        return sums;
    };
    for counts in &attempt.counts {
        let epoch = usize::try_from(counts.epoch).unwrap_or(usize::MAX);
        // Mirrored pairs are no requests of the candidate's users.
        if attempt.epochs.get(epoch).is_some_and(|epoch| epoch.mirrored) {
            continue;
        }
        let arms: [&ArmCounts; 3] = [&counts.stable, &counts.candidate, &counts.direct];
        for (sum, arm) in sums.iter_mut().zip(arms) {
            for (sum, count) in sum.iter_mut().zip(arm.iter()) {
                *sum = sum.saturating_add(*count);
            }
        }
    }
    sums
}

/// What there is, and what is needed, for each way it can end.
fn evidence(rollout: &Rollout, status: &RolloutStatus, now: Timestamp) -> String {
    let analysis = &rollout.spec.analysis;
    let rows = match (analysis.mode, &status.evidence, &status.attempt) {
        (AnalysisMode::Threshold, _, Some(attempt)) => {
            let ticks = &attempt.ticks;
            let last = match ticks.last_at.as_ref().map(time) {
                Some(at) => format!("the last {} ago", age(Some(&at), now)),
                None => "none yet".to_owned(),
            };
            let failed = format!("{} of {} looks, {last}", ticks.failed_checks, analysis.threshold);
            let mut rows = vec![("failed", failed)];
            if analysis.iterations > 0 {
                rows.push((
                    "good",
                    format!("{} of {} looks", ticks.iterations, analysis.iterations),
                ));
            }
            rows
        }
        (AnalysisMode::Sequential, Some(found), Some(attempt)) if !attempt.fast => {
            sequential(found, analysis.beta)
        }
        _ => Vec::new(),
    };
    let mut text = String::new();
    for (label, value) in rows {
        let _ = writeln!(text, "  {label:<12} {value}");
    }
    text
}

fn sequential(found: &EvidenceStatus, beta: f64) -> Vec<(&'static str, String)> {
    let mostly = match found.strongest.as_str() {
        "" => String::new(),
        test => format!(", mostly {test}"),
    };
    let more = match (found.verdict.as_str(), found.eta_requests) {
        ("Inconclusive", Some(missing)) => format!(", {missing} more good requests would do"),
        ("Inconclusive", None) => ", no number of good requests would do".to_owned(),
        _ => String::new(),
    };
    let mut rows = vec![
        ("verdict", found.verdict.clone()),
        (
            "against it",
            format!(
                "{} of {} to take it out{mostly}",
                number(found.e_rollback),
                number(found.need_rollback)
            ),
        ),
        (
            "for it",
            format!(
                "{} of {} to promote it{more}",
                number(found.e_safe),
                number(found.need_safe)
            ),
        ),
        (
            "bad at most",
            format!(
                "{} % of its requests, with confidence {} %",
                number(found.bad_at_most_percent),
                number((1.0 - beta) * 100.0)
            ),
        ),
    ];
    if found.pairs > 0 {
        rows.push(("mirrored", format!("{} pairs", found.pairs)));
    }
    rows
}

/// A number with as many digits as matter: `0.12`, `38.2`, `812`, `1.0e9`.
pub(super) fn number(number: f64) -> String {
    let text = match number.abs() {
        size if size < 10.0 => format!("{number:.2}"),
        size if size < 100.0 => format!("{number:.1}"),
        size if size < 1e6 => format!("{number:.0}"),
        _ => return format!("{number:.1e}"),
    };
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

fn revisions(picture: &Picture<'_>, status: &RolloutStatus, now: Timestamp, paint: Paint) -> String {
    let mut sorted: Vec<&Revision> = picture.revisions.iter().collect();
    sorted.sort_by_key(|revision| std::cmp::Reverse(revision.spec.sequence));
    let mut rows = vec![
        ["  NUMBER", "REVISION", "AGE", "PODS", "CHANGED-BY", "STATE"]
            .map(str::to_owned)
            .to_vec(),
    ];
    let mut left = REVISIONS;
    for revision in &sorted {
        let name = revision.name_any();
        let (state, keep) = state(&name, status);
        if !keep && left == 0 {
            continue;
        }
        left = left.saturating_sub(usize::from(!keep));
        let pods = picture.pods.get(&name);
        let source = &revision.spec.source.manager;
        rows.push(vec![
            format!("  {}", revision.spec.sequence),
            name,
            age(revision.creation_timestamp().as_ref(), now),
            pods.map_or_else(
                || "-".to_owned(),
                |pods| format!("{}/{}", pods.ready, pods.wanted),
            ),
            if source.is_empty() {
                "-".to_owned()
            } else {
                source.clone()
            },
            state.to_owned(),
        ]);
    }
    let older = (sorted.len() + 1).saturating_sub(rows.len());
    if rows.len() == 1 {
        return String::new();
    }
    let mut text = table(&rows);
    if older > 0 {
        let _ = writeln!(text, "  {}", paint.faint(&format!("and {older} older")));
    }
    text
}

/// How a revision stands, and whether it is shown in any case.
fn state(name: &str, status: &RolloutStatus) -> (&'static str, bool) {
    if name == status.candidate_revision {
        ("candidate", true)
    } else if name == status.stable_revision {
        ("stable", true)
    } else if name == status.queued_revision {
        ("begins next", true)
    } else if status.quarantined.iter().any(|failed| failed == name) {
        ("failed", false)
    } else if status.history.first().is_some_and(|last| last == name) {
        ("stable before", true)
    } else if status.history.iter().any(|old| old == name) {
        ("was stable", false)
    } else {
        ("-", false)
    }
}

#[cfg(test)]
mod tests;
