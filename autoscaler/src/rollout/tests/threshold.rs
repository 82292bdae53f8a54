//! Flagger's rule on the counts of activators, with the clock in hand: the acceptance of its seeds.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crds::evidence::{ArmReport, EpochReport};
use crds::report::Report;
use crds::rollout::{Phase, RolloutStatus};
use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, ListParams};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use super::TICK;
use crate::path::tests::world::World;

/// The seeds' canary: interval 30 s, step 20, max 70, threshold 5.
fn seed() -> Value {
    json!({
        "strategy": { "linear": { "step": 20, "max": 70 } },
        "analysis": {
            "mode": "Threshold", "interval": "30s", "threshold": 5, "bake": "0s",
            "metrics": [
                { "name": "request-success-rate", "min": 99 },
                { "name": "request-duration", "max": 500 },
            ],
        },
        "config": { "settle": "1s" },
    })
}

/// What an activator has counted, epoch by epoch.
#[derive(Default)]
struct Activator {
    attempt: String,
    epochs: Vec<(u64, u64)>,
}

impl Activator {
    /// Counts so many of the candidate's requests in the present epoch, of which all took `bucket`, and reports everything.
    fn serve(&mut self, world: &World, status: &RolloutStatus, requests: u64, bad: u64, bucket: u16) {
        let Some(attempt) = &status.attempt else { return };
        if self.attempt != attempt.uid {
            (self.attempt, self.epochs) = (attempt.uid.clone(), Vec::new());
        }
        self.epochs.resize(attempt.epochs.len(), (0, 0));
        if let Some(now) = self.epochs.last_mut() {
            *now = (now.0 + requests, now.1 + bad);
        }
        let report = |(epoch, (requests, bad)): (usize, &(u64, u64))| EpochReport {
            namespace: "default".into(),
            route: "web".into(),
            attempt: self.attempt.clone(),
            epoch: u32::try_from(epoch).expect("few"),
            candidate: ArmReport {
                requests: *requests,
                bad: *bad,
                times: vec![(bucket, *requests)],
            },
            ..EpochReport::default()
        };
        world.counts.line(&Report {
            activator: "activator-0".into(),
            instance: "instance-0".into(),
            epochs: self.epochs.iter().enumerate().map(report).collect(),
            ..Report::default()
        });
    }
}

/// Serves ten requests a second until `done`; returns each weight, and for how many seconds it stood.
async fn play(
    world: &World,
    activator: &mut Activator,
    bad: u64,
    bucket: u16,
    done: impl Fn(&RolloutStatus) -> bool,
) -> (Vec<(String, u64)>, RolloutStatus) {
    let mut weights: Vec<(String, Instant)> = Vec::new();
    let mut passed = 0_u32;
    let played = timeout(Duration::from_secs(900), async {
        loop {
            let status = world.status().await;
            if weights.last().is_none_or(|(last, _)| *last != status.weight) {
                weights.push((status.weight.clone(), Instant::now()));
            }
            if done(&status) {
                return status;
            }
            passed += 1;
            if passed.is_multiple_of(20) && bucket > 0 {
                activator.serve(world, &status, 10, bad, bucket);
            }
            sleep(TICK).await;
        }
    });
    let Ok(status) = played.await else {
        panic!("{weights:?} {:#?}", world.status().await);
    };
    let ends = weights.iter().skip(1).map(|(_, at)| *at).chain([Instant::now()]);
    let stood = weights.iter().zip(ends);
    let stood = stood.map(|((weight, at), end)| (weight.clone(), (end - *at).as_secs()));
    (stood.filter(|(weight, _)| !weight.is_empty()).collect(), status)
}

/// About 65 ms, and about 700 ms.
const QUICK: u16 = 104;
const SLOW: u16 = 131;

#[tokio::test(start_paused = true)]
async fn a_good_release_goes_by_20_40_60_80_and_is_promoted() {
    let world = World::start().await;
    world.rolled_out(1, seed()).await;
    let first = world.idle().await;
    world.set_image("y").await;
    let promoted = |status: &RolloutStatus| {
        status.phase == Phase::Idle && status.stable_revision != first.stable_revision
    };
    let (weights, status) = play(&world, &mut Activator::default(), 0, QUICK, promoted).await;
    let names: Vec<&str> = weights.iter().map(|(weight, _)| weight.as_str()).collect();
    // Nothing is watched at all traffic here: it may be over before anybody sees it.
    assert_eq!(names[..5], ["0%", "20%", "40%", "60%", "80%"]);
    for (weight, stood) in &weights[1..5] {
        assert!((29..=31).contains(stood), "{weight} stood for {stood} s");
    }
    let attempt = status.attempt.expect("there was one");
    assert_eq!(
        (attempt.ticks.failed_checks, attempt.result.as_str()),
        (0, "Promoted")
    );
    let rate = &attempt.measurements[1];
    assert_eq!(
        (rate.name.as_str(), rate.value.as_str()),
        ("request-success-rate", "100.00")
    );
    assert!(crds::condition::is_true(
        &status.conditions,
        "MeasurementsAvailable"
    ));
}

#[tokio::test(start_paused = true)]
async fn bad_slow_and_absent_requests_fail_five_times_and_roll_back_at_the_next_look() {
    for (what, bad, bucket, why) in [
        ("bad", 1, QUICK, "request-success-rate 90.00 is below 99"),
        ("slow", 0, SLOW, "request-duration 7"),
        ("no traffic", 0, 0, "no values found for request-success-rate"),
    ] {
        let world = World::start().await;
        world.rolled_out(1, seed()).await;
        let first = world.idle().await;
        world.set_image("y").await;
        let failed = |status: &RolloutStatus| status.phase == Phase::Failed;
        let (weights, status) = play(&world, &mut Activator::default(), bad, bucket, failed).await;
        let attempt = status.attempt.expect("there was one");
        assert_eq!(attempt.ticks.failed_checks, 5, "{what}");
        assert_eq!(
            (attempt.result.as_str(), attempt.why.as_str()),
            ("RolledBack", "5 checks failed")
        );
        assert_eq!(status.stable_revision, first.stable_revision);
        let shown = attempt
            .measurements
            .iter()
            .any(|shown| shown.why.starts_with(why));
        assert!(shown, "{what}: {:?}", attempt.measurements);
        let names: Vec<&str> = weights.iter().map(|(weight, _)| weight.as_str()).collect();
        assert_eq!(names, ["0%", "20%", "0%"], "{what}");
        // Five looks that fail, and the next one.
        assert!((179..=182).contains(&weights[1].1), "{what}: {weights:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn each_failed_check_is_told_once_however_many_writes_get_no_answer() {
    let world = World::start().await;
    world.rolled_out(1, seed()).await;
    world.idle().await;
    world.chaos.seed(7);
    world.chaos.lost.store(500, Ordering::SeqCst);
    world.set_image("y").await;
    let failed = |status: &RolloutStatus| status.phase == Phase::Failed;
    play(&world, &mut Activator::default(), 1, QUICK, failed).await;
    world.chaos.lost.store(0, Ordering::SeqCst);
    let told = async || {
        let events = Api::<Event>::default_namespaced(world.client());
        let events = events.list(&ListParams::default()).await.expect("Events").items;
        let failed = events
            .into_iter()
            .filter(|event| event.reason.as_deref() == Some("CheckFailed"));
        let mut notes: Vec<String> = failed.filter_map(|event| event.note).collect();
        notes.sort();
        notes
    };
    let why = "request-success-rate 90.00 is below 99";
    let wanted: Vec<String> = (1..=5)
        .map(|check| format!("Halted at 20 %: {why}; {check} of 5 failed."))
        .collect();
    // They are written beside everything else.
    let all = timeout(Duration::from_secs(60), async {
        while told().await != wanted {
            sleep(TICK).await;
        }
    });
    assert!(all.await.is_ok(), "{:#?}", told().await);
}

#[tokio::test(start_paused = true)]
async fn a_new_process_takes_no_old_request_for_new_and_fails_nothing_by_itself() {
    let mut world = World::start().await;
    world.rolled_out(1, seed()).await;
    world.idle().await;
    world.set_image("y").await;
    let mut activator = Activator::default();
    // At first it is bad: two looks fail.
    let twice = |status: &RolloutStatus| {
        status
            .attempt
            .as_ref()
            .is_some_and(|attempt| attempt.ticks.failed_checks == 2)
    };
    play(&world, &mut activator, 5, QUICK, twice).await;
    world.take_over().await;
    // From here on it is good. What was bad is in the counts that the new process hears of first.
    let promoted = |status: &RolloutStatus| status.phase == Phase::Idle;
    let (_, status) = play(&world, &mut activator, 0, QUICK, promoted).await;
    let attempt = status.attempt.expect("there was one");
    assert_eq!(
        (attempt.ticks.failed_checks, attempt.result.as_str()),
        (2, "Promoted")
    );
}
