use super::*;
use crate::Knobs;

fn at(seconds: u64) -> Time {
    Time::from_secs(1_700_000_000 + seconds)
}

fn policy(change: impl Fn(&mut Knobs)) -> Policy {
    let mut knobs = Knobs::default();
    change(&mut knobs);
    Policy::new(knobs).unwrap()
}

#[test]
fn v34_knatives_gate_to_zero() {
    use Activity::{Activating, Active, Inactive};
    let since = at(0);
    let none = Duration::ZERO;
    let long = Duration::from_secs(30);
    let plain = policy(|_| ());
    let retained = policy(|knobs| knobs.retention = Duration::from_secs(45));
    let short_retained = policy(|knobs| knobs.retention = Duration::from_secs(10));
    let two = policy(|knobs| knobs.min_scale = 2);
    let no_burst = policy(|knobs| knobs.target_burst_capacity = -1.0);
    let gated = |activity, proxied, probed, reachable| Gate {
        activity,
        proxied,
        probed,
        reachable,
    };
    // (name, second, policy, how it stands, verdict)
    let rows = [
        (
            "active for less than the window: one",
            59,
            &plain,
            gated(Active { since }, none, true, true),
            Verdict::Scale(1, Some(at(60))),
        ),
        (
            "active for the window: stays, marked inactive",
            60,
            &plain,
            gated(Active { since }, none, true, true),
            Verdict::MarkInactive,
        ),
        (
            "inactive for less than the grace period: stays",
            20,
            &plain,
            gated(Inactive { since }, none, true, true),
            Verdict::Keep(Some(at(30))),
        ),
        (
            "… and looks again when the path has stood long enough",
            20,
            &plain,
            gated(Inactive { since }, Duration::from_secs(25), true, true),
            Verdict::Keep(Some(at(25))),
        ),
        (
            "… unless proxied for the grace period: zero",
            1,
            &plain,
            gated(Inactive { since }, long, true, true),
            Verdict::Scale(0, None),
        ),
        (
            "inactive for the grace period: zero",
            30,
            &plain,
            gated(Inactive { since }, none, true, true),
            Verdict::Scale(0, None),
        ),
        (
            "retention longer than the grace period: waits",
            40,
            &retained,
            gated(Inactive { since }, long, true, true),
            Verdict::Keep(Some(at(45))),
        ),
        (
            "… until it is over",
            45,
            &retained,
            gated(Inactive { since }, long, true, true),
            Verdict::Scale(0, None),
        ),
        (
            "retention of an unreachable one does not count",
            30,
            &retained,
            gated(Inactive { since }, none, true, false),
            Verdict::Scale(0, None),
        ),
        (
            "a short retention is kept on the short way, too",
            5,
            &short_retained,
            gated(Inactive { since }, long, true, true),
            Verdict::Keep(Some(at(10))),
        ),
        (
            "the probe fails: stays",
            100,
            &plain,
            gated(Inactive { since }, long, false, true),
            Verdict::Keep(None),
        ),
        (
            "unlimited burst: no probe",
            100,
            &no_burst,
            gated(Inactive { since }, long, false, true),
            Verdict::Scale(0, None),
        ),
        (
            "activating: stays",
            629,
            &plain,
            gated(Activating { since }, none, true, true),
            Verdict::Keep(Some(at(630))),
        ),
        (
            "activating past deadline and buffer: zero",
            630,
            &plain,
            gated(Activating { since }, none, true, true),
            Verdict::Scale(0, None),
        ),
        (
            "min 2, reachable: two",
            630,
            &two,
            gated(Inactive { since }, long, true, true),
            Verdict::Scale(2, None),
        ),
        (
            "min 2, unreachable: zero",
            630,
            &two,
            gated(Inactive { since }, long, true, false),
            Verdict::Scale(0, None),
        ),
    ];
    for (name, second, policy, facts, verdict) in rows {
        assert_eq!(gate(at(second), policy, &facts), verdict, "V34, {name}");
    }
}

const FREE: Result<(), String> = Ok(());

/// Idle since second 0, and free to go.
fn resting() -> Rest<'static> {
    Rest {
        busy: false,
        used: at(0),
        kept: Time::EPOCH,
        woken: None,
        min: 0,
        reachable: true,
        may_sleep: &FREE,
        stale: false,
        asked: false,
    }
}

fn label(ladder: &Ladder) -> &'static str {
    match ladder {
        Ladder::Go(_) => "go",
        Ladder::Stay { cause, .. } => crate::Reason {
            from: 1,
            to: 1,
            cause: cause.clone(),
        }
        .label(),
    }
}

#[test]
fn each_rung_holds_and_the_first_is_named() {
    let uncaptured = Err("not captured yet".to_owned());
    let plain = policy(|_| ());
    let rows: Vec<(u64, Rest, &str, Option<u64>)> = vec![
        (59, resting(), "steady", Some(60)),
        (60, resting(), "go", None),
        (
            999,
            Rest {
                busy: true,
                min: 1,
                ..resting()
            },
            "steady",
            None,
        ),
        (
            999,
            Rest {
                min: 1,
                may_sleep: &uncaptured,
                ..resting()
            },
            "minimum",
            None,
        ),
        (
            99,
            Rest {
                kept: at(50),
                ..resting()
            },
            "steady",
            Some(110),
        ),
        (
            59,
            Rest {
                may_sleep: &uncaptured,
                ..resting()
            },
            "steady",
            Some(60),
        ),
        (
            60,
            Rest {
                may_sleep: &uncaptured,
                stale: true,
                ..resting()
            },
            "may_not_sleep",
            None,
        ),
        (
            60,
            Rest {
                stale: true,
                ..resting()
            },
            "stale",
            None,
        ),
        (
            60,
            Rest {
                woken: Some(at(59)),
                ..resting()
            },
            "just_woken",
            Some(61),
        ),
        (
            61,
            Rest {
                woken: Some(at(59)),
                ..resting()
            },
            "go",
            None,
        ),
        (
            1,
            Rest {
                asked: true,
                ..resting()
            },
            "go",
            None,
        ),
        (
            1,
            Rest {
                asked: true,
                woken: Some(at(0)),
                ..resting()
            },
            "go",
            None,
        ),
        (
            1,
            Rest {
                asked: true,
                stale: true,
                ..resting()
            },
            "stale",
            None,
        ),
        (
            1,
            Rest {
                asked: true,
                may_sleep: &uncaptured,
                ..resting()
            },
            "may_not_sleep",
            None,
        ),
        (
            1,
            Rest {
                asked: true,
                min: 2,
                ..resting()
            },
            "minimum",
            None,
        ),
    ];
    for (index, (second, facts, expected, until)) in rows.into_iter().enumerate() {
        let ladder = rest(at(second), &plain, &facts);
        assert_eq!(label(&ladder), expected, "row {index}: {ladder:?}");
        if let Ladder::Stay { until: found, .. } = ladder {
            assert_eq!(found, until.map(at), "row {index}");
        }
    }
}

#[test]
fn the_longest_of_keep_alive_retention_and_delay_holds_the_last_pod() {
    let secs = Duration::from_secs;
    let rows = [
        (None, secs(0), secs(0), 60, 0),
        (Some(secs(5)), secs(0), secs(0), 5, 5),
        (Some(secs(5)), secs(90), secs(0), 90, 5),
        (Some(secs(5)), secs(9), secs(300), 300, 5),
        (Some(secs(0)), secs(0), secs(0), 0, 0),
    ];
    for (keep, retention, delay, reachable, unreachable) in rows {
        let policy = policy(|knobs| {
            (knobs.keep_alive, knobs.retention, knobs.scale_down_delay) = (keep, retention, delay);
        });
        assert_eq!(
            keep_alive(&policy, true),
            secs(reachable),
            "{keep:?} {retention:?} {delay:?}"
        );
        assert_eq!(
            keep_alive(&policy, false),
            secs(unreachable),
            "{keep:?} {retention:?} {delay:?}"
        );
    }
}
