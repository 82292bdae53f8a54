use crds::rollout::{
    AttemptStatus, Counts, EpochStatus, Gate, LinearSpec, MirrorSpec, StepSpec, StepStatus, StrategyKind,
    TickStatus, TimeSpec,
};
use crds::{RevisionSpec, RolloutSpec};

use super::*;

fn at(second: i64) -> jiff::Timestamp {
    jiff::Timestamp::from_second(second).expect("a time")
}

fn epoch(weight_bp: u32, mirrored: bool) -> EpochStatus {
    EpochStatus { weight_bp, mirrored }
}

/// A candidate at 20 %, after mirroring and 5 %.
fn rollout() -> Rollout {
    let mut rollout = Rollout::new("web", RolloutSpec::default());
    rollout.metadata.namespace = Some("shop".to_owned());
    rollout.spec.target_ref.name = "web".to_owned();
    rollout.spec.service_ref.name = "front".to_owned();
    rollout.spec.strategy.steps = Some(vec![
        step(5.0, "", Gate::None),
        step(20.0, "", Gate::None),
        step(50.0, "10m", Gate::Manual),
    ]);
    rollout.spec.strategy.mirror = Some(MirrorSpec::default());
    rollout.status = Some(RolloutStatus {
        phase: Phase::Progressing,
        weight: "20%".to_owned(),
        why: "web-2 has 20 % for 12s at least.".to_owned(),
        next: "goes on in 12s".to_owned(),
        stable_revision: "web-1".to_owned(),
        candidate_revision: "web-2".to_owned(),
        seen_revision: "web-2".to_owned(),
        adopted: true,
        attempts: 3,
        attempt: Some(AttemptStatus {
            uid: "3-19a".to_owned(),
            candidate: "web-2".to_owned(),
            started_at: Some(MicroTime(at(700))),
            epochs: vec![epoch(0, true), epoch(500, false), epoch(2000, false)],
            counts: vec![
                counts(0, &[200], &[200, 1], &[]),
                counts(1, &[500, 1], &[25], &[]),
                counts(2, &[312], &[178, 4], &[7, 1]),
            ],
            ..AttemptStatus::default()
        }),
        step: Some(StepStatus {
            index: 2,
            weight_bp: 2000,
            ..StepStatus::default()
        }),
        evidence: Some(EvidenceStatus {
            requests: [812, 203],
            bad: [1, 4],
            pairs: 200,
            e_rollback: 38.24,
            need_rollback: 100.0,
            e_safe: 2.1,
            need_safe: 20.0,
            eta_requests: Some(140),
            bad_at_most_percent: 7.25,
            strongest: "errors".to_owned(),
            verdict: "Inconclusive".to_owned(),
            ..EvidenceStatus::default()
        }),
        history: vec!["web-0".to_owned()],
        quarantined: vec!["web-x".to_owned()],
        last_command: "resume@3-19a.1f".to_owned(),
        last_command_answer: "resume@3-19a.1f: resumed.".to_owned(),
        ..RolloutStatus::default()
    });
    rollout
}

fn step(weight: f64, pause: &str, gate: Gate) -> StepSpec {
    StepSpec {
        weight,
        pause: pause.to_owned(),
        gate,
    }
}

fn counts(epoch: u32, stable: &[u64], candidate: &[u64], direct: &[u64]) -> Counts {
    Counts {
        epoch,
        instance: "a".to_owned(),
        stable: stable.to_vec(),
        candidate: candidate.to_vec(),
        direct: direct.to_vec(),
    }
}

fn revision(name: &str, sequence: i64, born: i64) -> Revision {
    let mut revision = Revision::new(
        name,
        RevisionSpec {
            sequence,
            ..RevisionSpec::default()
        },
    );
    revision.spec.source.manager = "kubectl-set".to_owned();
    revision.metadata.creation_timestamp = Some(Time(at(born)));
    revision
}

fn drawn(rollout: &Rollout) -> String {
    let revisions = [
        revision("web-0", 1, 10),
        revision("web-x", 2, 20),
        revision("web-1", 3, 500),
        revision("web-2", 4, 690),
    ];
    let pods = [("web-1", (2, 2)), ("web-2", (1, 2)), ("web-0", (0, 0))];
    let pods = pods.map(|(name, (ready, wanted))| (name.to_owned(), Pods { ready, wanted }));
    let picture = Picture {
        rollout,
        revisions: &revisions,
        pods: &pods.into(),
    };
    text(&picture, at(1_000), Paint::never())
}

#[test]
fn a_rollout_under_way_says_everything() {
    let want = "\
shop/web
  phase        Progressing, candidate web-2 at 20%
  why          web-2 has 20 % for 12s at least.
  next         goes on in 12s
  of           service/front, deployment/web
  strategy     canary by 3 listed steps, 200 mirrored pairs first
  judged by    evidence: a candidate that is not worse is taken out at most 1 % of the time, one with 5% bad requests is shipped at most 5 % of the time
  attempt      number 3, began 5m ago
  command      resume: resumed.

Traffic
              REVISION   WEIGHT   PODS   REQUESTS   BAD
  stable      web-1      80%      2/2    812        1 (0.12 %)
  candidate   web-2      20%      1/2    203        4 (1.97 %)
    matched   web-2      -        1/2    7          1 (14.3 %)

Evidence
  verdict      Inconclusive
  against it   38.2 of 100 to take it out, mostly errors
  for it       2.1 of 20 to promote it, 140 more good requests would do
  bad at most  7.25 % of its requests, with confidence 95 %
  mirrored     200 pairs

Steps
  ✓ mirror  ✓ 5%  ▶ 20%  · 50% (waits for promote) for 10m  · 100%  · watched for 10m

Revisions
  NUMBER   REVISION   AGE     PODS   CHANGED-BY    STATE
  4        web-2      5m10s   1/2    kubectl-set   candidate
  3        web-1      8m20s   2/2    kubectl-set   stable
  2        web-x      16m     -      kubectl-set   failed
  1        web-0      16m     0/0    kubectl-set   stable before
";
    assert_eq!(drawn(&rollout()), want);
}

#[test]
fn after_the_end_the_evidence_of_it_stays_to_be_read() {
    let mut failed = rollout();
    let status = failed.status.as_mut().expect("a status");
    status.phase = Phase::Failed;
    status.candidate_revision = String::new();
    status.weight = String::new();
    status.next = String::new();
    status.why = "web-1 has all traffic; web-2 failed: 9 of 40 requests were bad.".to_owned();
    let attempt = status.attempt.as_mut().expect("an attempt");
    attempt.result = "RolledBack".to_owned();
    attempt.why = "9 of 40 requests were bad".to_owned();
    status.evidence.as_mut().expect("evidence").verdict = "Worse".to_owned();
    let text = drawn(&failed);
    for said in [
        "  phase        Failed\n",
        "  to do        `dormouse rollout retry web -n shop` lets web-2 begin again",
        "  attempt      the last, of web-2, began 5m ago: RolledBack\n",
        "  stable   web-1      100%     2/2\n",
        "Evidence of the last attempt\n  verdict      Worse\n",
        "38.2 of 100 to take it out, mostly errors\n  for it       2.1 of 20 to promote it\n",
    ] {
        assert!(text.contains(said), "{said}\n{text}");
    }
    assert!(!text.contains("Steps"), "{text}");
}

#[test]
fn looks_are_counted_when_a_threshold_decides() {
    let mut ticking = rollout();
    ticking.spec.analysis.mode = AnalysisMode::Threshold;
    ticking.spec.analysis.iterations = 10;
    let status = ticking.status.as_mut().expect("a status");
    status.evidence = None;
    status.attempt.as_mut().expect("an attempt").ticks = TickStatus {
        last_at: Some(MicroTime(at(988))),
        failed_checks: 2,
        iterations: 3,
    };
    let text = drawn(&ticking);
    let want = "Evidence\n  failed       2 of 5 looks, the last 12s ago\n  good         3 of 10 looks\n";
    assert!(text.contains(want), "{text}");
    assert!(
        text.contains("judged by    a look each 60s, rolled back after 5 failed ones"),
        "{text}"
    );
    let status = ticking.status.as_mut().expect("a status");
    status.attempt.as_mut().expect("an attempt").ticks = TickStatus::default();
    let text = drawn(&ticking);
    assert!(text.contains("failed       0 of 5 looks, none yet\n"), "{text}");
}

/// The line of steps at 20 %, after one weight, without mirror and bake.
fn steps_of(change: impl Fn(&mut Rollout)) -> String {
    let mut rollout = rollout();
    rollout.spec.strategy.steps = None;
    rollout.spec.strategy.mirror = None;
    rollout.spec.analysis.bake = "0s".to_owned();
    let status = rollout.status.as_mut().expect("a status");
    status.attempt.as_mut().expect("an attempt").epochs = vec![epoch(2000, false)];
    status.step.as_mut().expect("a step").index = 1;
    change(&mut rollout);
    let status = rollout.status.clone().unwrap_or_default();
    steps::text(&rollout.spec, &status, Paint::never())
}

#[test]
fn steps_to_come_are_those_of_the_strategy() {
    let kind = |kind| move |rollout: &mut Rollout| rollout.spec.strategy.kind = kind;
    let phase = |rollout: &mut Rollout, phase| rollout.status.as_mut().expect("a status").phase = phase;
    let rows: [(&str, String); 7] = [
        ("▶ 20%  · up to 50% as evidence allows  · 100%", steps_of(|_| {})),
        (
            "▶ 20%  · 50%  · 80%  · 100%",
            steps_of(|rollout| {
                rollout.spec.strategy.linear = Some(LinearSpec {
                    step: 30.0,
                    max: 70.0,
                })
            }),
        ),
        (
            "▶ 20%  · 100% within 1h",
            steps_of(|rollout| {
                rollout.spec.strategy.time = Some(TimeSpec {
                    duration: "1h".to_owned(),
                });
            }),
        ),
        ("▶ 20%  · 100%", steps_of(kind(StrategyKind::Immediate))),
        (
            "▶ 20%  · 100% (waits for promote)",
            steps_of(|rollout| {
                rollout.spec.strategy.kind = StrategyKind::BlueGreen;
                rollout.spec.strategy.gate = Gate::Manual;
            }),
        ),
        (
            "▶ 20%  · 100%",
            steps_of(|rollout| {
                rollout
                    .status
                    .as_mut()
                    .and_then(|it| it.attempt.as_mut())
                    .expect("one")
                    .fast = true
            }),
        ),
        ("", steps_of(|rollout| phase(rollout, Phase::RollingBack))),
    ];
    for (want, found) in rows {
        assert_eq!(found.trim(), want);
    }
}

#[test]
fn numbers_have_the_digits_that_matter() {
    for (value, want) in [
        (0.0, "0"),
        (0.123, "0.12"),
        (1.0, "1"),
        (38.24, "38.2"),
        (100.0, "100"),
        (812.4, "812"),
        (1e9, "1.0e9"),
    ] {
        assert_eq!(number(value), want);
    }
}

#[test]
fn of_many_old_revisions_the_newest_are_shown_and_those_in_use() {
    let rollout = rollout();
    let mut revisions: Vec<Revision> = (10..30).map(|n| revision(&format!("web-n{n}"), n, 1)).collect();
    revisions.push(revision("web-1", 1, 1));
    let picture = Picture {
        rollout: &rollout,
        revisions: &revisions,
        pods: &BTreeMap::new(),
    };
    let text = text(&picture, at(1_000), Paint::never());
    let shown = revisions
        .iter()
        .filter(|each| text.contains(&format!("{} ", each.name_any())));
    assert_eq!(shown.count(), REVISIONS + 1);
    assert!(
        text.contains("web-n29") && text.ends_with("  and 12 older\n"),
        "{text}"
    );
}
