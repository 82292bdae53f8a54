use super::*;

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn each_reason_is_one_sentence_with_its_numbers() {
    let rows = [
        (
            0,
            1,
            Cause::FirstRequest { held: 1 },
            "0 to 1: first request held",
        ),
        (
            0,
            2,
            Cause::FirstRequest { held: 12 },
            "0 to 2: first requests held, 12 so far",
        ),
        (
            3,
            7,
            Cause::Queue {
                held: 41,
                rate: 120.0,
                service: millis(80),
                extra: 4,
                drained: millis(600),
            },
            "3 to 7: 41 held, 120.0 req/s x 80 ms, 4 more pods drain the queue in 0.6 s",
        ),
        (
            1,
            2,
            Cause::Queue {
                held: 9,
                rate: 3.5,
                service: millis(1500),
                extra: 1,
                drained: secs(12),
            },
            "1 to 2: 9 held, 3.5 req/s x 1.5 s, 1 more pod drains the queue in 12 s",
        ),
        (
            1,
            3,
            Cause::Load {
                rate: 210.0,
                service: millis(100),
                per_pod: 10.0,
            },
            "1 to 3: 210.0 req/s x 0.1 s, 10 at once per pod",
        ),
        (
            7,
            3,
            Cause::Less {
                calm: secs(20),
                rate: 40.0,
            },
            "7 to 3: fewer have been enough for 20 s, 40.0 req/s now",
        ),
        (
            1,
            5,
            Cause::Window {
                stable: 34.5,
                panic: 50.0,
                target: 7.0,
                panicking: true,
            },
            "1 to 5: averages 34.50 (stable) and 50.00 (panic), 7.00 per pod, panicking",
        ),
        (
            1,
            0,
            Cause::Idle {
                idle: secs(60),
                keep_alive: secs(60),
            },
            "1 to 0: no request for 60 s (keep-alive 60 s)",
        ),
        (
            1,
            1,
            Cause::MayNotSleep {
                why: "not captured yet".into(),
            },
            "stays at 1: not captured yet",
        ),
        (
            3,
            3,
            Cause::Maximum { max: 3, wanted: 9 },
            "stays at 3: max-scale is 3, 9 would be wanted",
        ),
        (
            1,
            0,
            Cause::NeverReady { waited: secs(660) },
            "1 to 0: no pod became ready within 11 min",
        ),
        (
            2,
            1,
            Cause::Conflict {
                manager: "helm".into(),
                flips: 1,
                stopped: false,
            },
            "2 to 1: helm changed replicas 1 time in 10 min",
        ),
        (
            1,
            1,
            Cause::JustWoken {
                ago: millis(500),
                settle: secs(2),
            },
            "stays at 1: woken 0.5 s ago, stays for 2 s at least",
        ),
    ];
    for (from, to, cause, expected) in rows {
        assert_eq!(Reason { from, to, cause }.to_string(), expected);
    }
}

#[test]
fn durations_are_written_as_people_write_them() {
    let rows = [
        (millis(0), "0 ms"),
        (Duration::from_micros(1500), "1.5 ms"),
        (millis(80), "80 ms"),
        (millis(100), "0.1 s"),
        (millis(640), "0.6 s"),
        (secs(2), "2 s"),
        (millis(9_960), "10 s"),
        (secs(42), "42 s"),
        (secs(599), "599 s"),
        (secs(600), "10 min"),
        (secs(36_000), "10 h"),
    ];
    for (duration, expected) in rows {
        assert_eq!(Span(duration).to_string(), expected);
    }
}

#[test]
fn plans_say_when() {
    let rows = [
        (
            Plan::Sleep { after: secs(42) },
            "asleep in 42 s unless a request arrives",
        ),
        (
            Plan::Shrink {
                after: secs(20),
                to: 2,
            },
            "down to 2 in 20 s unless load returns",
        ),
        (
            Plan::Calm { after: secs(600) },
            "replicas are ours again in 10 min if nobody writes",
        ),
    ];
    for (plan, expected) in rows {
        assert_eq!(plan.to_string(), expected);
        assert!(plan.after() > Duration::ZERO);
    }
}
