//! Laws of the tests, by example and by chance. The error rates over many runs are in `tests/evidence.rs`.

use proptest::prelude::*;

use super::*;

fn analysis() -> Analysis {
    Analysis {
        latency: false,
        ..Analysis::default()
    }
}

fn arm(requests: u64, bad: u64) -> Arm {
    Arm {
        requests,
        bad,
        ..Arm::default()
    }
}

fn row(stable: (u64, u64), candidate: (u64, u64)) -> Row {
    Row {
        stable: arm(stable.0, stable.1),
        candidate: arm(candidate.0, candidate.1),
        direct: Arm::default(),
    }
}

fn at(weight: u32) -> Epoch {
    Epoch {
        weight,
        mirrored: false,
    }
}

#[test]
fn how_many_good_requests_let_a_candidate_in() {
    // Fixed-sample theory needs ln(1/β)/−ln(1−m): 299, 149, 59, 29. Looking all the time costs a little more.
    for (rate, least, most) in [(0.01, 299, 345), (0.02, 149, 172), (0.05, 59, 68), (0.10, 29, 34)] {
        let needed = absolute::requests_missing(rate, 0.05, 0, 0).expect("within reach");
        assert!((least..=most).contains(&needed), "{rate}: {needed}");
        assert_eq!(absolute::requests_missing(rate, 0.05, needed, 0), Some(0));
        assert_eq!(absolute::requests_missing(rate, 0.05, needed - 1, 0), Some(1));
    }
    // Only the bet on half the rate survives many bad ones: (100·ln 2 + ln 5 + ln 20) / ln(0.975 / 0.95) good ones.
    assert_eq!(absolute::requests_missing(0.05, 0.05, 100, 100), Some(2_846));
}

#[test]
fn how_many_mirrored_pairs_convict_a_candidate_that_always_fails() {
    let needed = (0..).find(|bad| {
        let pairs = [Bad {
            weight: FULL / 2,
            candidate: *bad,
            stable: 0,
        }];
        relative::ln_e(1.0, pairs) >= 100_f64.ln()
    });
    assert_eq!(needed, Some(9));
}

#[test]
fn a_hundred_percent_bad_candidate_is_out_after_few_requests() {
    for (weight, most) in [(500, 2), (2_000, 2), (5_000, 2)] {
        let needed = (1..20)
            .find(|bad| {
                let sums = [row((20 * bad, 0), (*bad, *bad))];
                weigh(&analysis(), &Cuts::default(), &[at(weight)], &sums).verdict == Verdict::Worse
            })
            .expect("convicted");
        assert!(needed <= most, "{weight}: {needed}");
    }
}

#[test]
fn nothing_counted_says_nothing() {
    let found = judge(&analysis(), &Cuts::default(), &[], &Counters::default());
    assert_eq!(found.verdict, Verdict::Inconclusive);
    assert!(found.ln_e <= 1e-12 && found.ln_s.abs() < 1e-12, "{found:?}");
    assert!((found.upper_bound - 1.0).abs() < 1e-9);
}

#[test]
fn the_objective_is_no_argument_while_the_stable_revision_breaks_it_too() {
    let epochs = [at(5_000)];
    let judged = |stable| {
        let sums = [row(stable, (300, 15))];
        weigh(&analysis(), &Cuts::default(), &epochs, &sums)
    };
    let (healthy, broken) = (judged((300, 0)), judged((300, 15)));
    let dropped = |evidence: &Evidence| {
        let mut terms = evidence.terms.iter();
        terms.any(|term| term.test == Test::ErrorBudget && term.dropped)
    };
    assert!(!dropped(&healthy) && dropped(&broken));
    assert_eq!(
        (healthy.verdict, broken.verdict),
        (Verdict::Worse, Verdict::Inconclusive)
    );
}

#[test]
fn with_all_traffic_only_what_happens_since_then_is_judged() {
    let epochs = [at(5_000), at(FULL)];
    let before = row((10_000, 0), (10_000, 0));
    let judged = |after| weigh(&analysis(), &Cuts::default(), &epochs, &[before, after]);
    assert_eq!(judged(row((0, 0), (200, 0))).verdict, Verdict::Safe);
    // Ten thousand good requests before do not excuse it.
    assert_eq!(judged(row((0, 0), (20, 20))).verdict, Verdict::Worse);
}

#[test]
fn requests_that_no_coin_assigned_are_not_compared_but_count() {
    let mut sums = [row((100, 0), (0, 0))];
    sums[0].direct = arm(70, 0);
    let found = weigh(&analysis(), &Cuts::default(), &[at(0)], &sums);
    assert_eq!(found.verdict, Verdict::Safe);
    sums[0].direct = arm(3, 3);
    let found = weigh(&analysis(), &Cuts::default(), &[at(0)], &sums);
    assert_eq!(found.strongest().map(|term| term.test), Some(Test::ErrorBudget));
}

#[test]
fn a_slower_candidate_is_found_by_the_stable_revisions_own_quantiles() {
    let mut before = Histogram::default();
    (1..=1_000).for_each(|step| before.record(Duration::from_micros(100 * step)));
    let cuts = Cuts::freeze(&before, Some(Duration::from_millis(500)));
    assert!(cuts.0.iter().all(Option::is_some));
    let sample = |factor: u64| {
        let mut times = Histogram::default();
        (1..=100).for_each(|step| times.record(Duration::from_micros(1_000 * step * factor)));
        ArmSample {
            requests: 100,
            bad: 0,
            times,
        }
    };
    let judged = |factor| {
        let mut counters = Counters::default();
        let sample = Sample {
            instance: "a".to_owned(),
            epoch: 0,
            stable: sample(1),
            candidate: sample(factor),
            direct: ArmSample::default(),
        };
        counters.observe(&sample, &cuts);
        let analysis = Analysis {
            latency_budget: Some((Duration::from_millis(500), 0.01)),
            ..Analysis::default()
        };
        judge(&analysis, &cuts, &[at(5_000)], &counters)
    };
    assert_ne!(judged(1).verdict, Verdict::Worse);
    let slow = judged(3);
    assert_eq!(slow.verdict, Verdict::Worse);
    assert!(matches!(
        slow.strongest().map(|term| term.test),
        Some(Test::Slower(_))
    ));
}

#[test]
fn too_few_times_of_before_give_no_threshold() {
    let mut before = Histogram::default();
    (0..60).for_each(|_| before.record(Duration::from_millis(3)));
    let cuts = Cuts::freeze(&before, None);
    assert_eq!(cuts.0.map(|cut| cut.is_some()), [true, true, false, false]);
}

#[test]
fn huge_counts_and_odd_settings_stay_finite_or_minus_infinite() {
    for requests in [0, 1, u64::MAX / 2, u64::MAX] {
        for bad in [0, 1, requests / 2, requests, u64::MAX] {
            for share in [f64::NAN, -1.0, 0.0, 1e-12, 0.01, 0.5, 1.0, 2.0] {
                let values = [
                    absolute::ln_e(share, requests, bad),
                    absolute::ln_s(share, requests, bad),
                    absolute::upper_bound(share, requests, bad),
                ];
                assert!(
                    values
                        .iter()
                        .all(|value| !value.is_nan() && *value < f64::INFINITY),
                    "{requests} {bad} {share}: {values:?}"
                );
            }
            for weight in [0, 1, 9_999, FULL, u32::MAX] {
                let step = Bad {
                    weight,
                    candidate: bad,
                    stable: requests,
                };
                assert!(!relative::ln_e(1.0, [step]).is_nan());
            }
        }
    }
}

#[test]
fn activators_beyond_the_bound_are_left_out() {
    let mut counters = Counters::default();
    for instance in 0..2 * INSTANCES {
        counters.insert(0, &format!("{instance:03}"), &row((1, 0), (1, 0)));
    }
    assert_eq!(counters.rows().count(), INSTANCES);
    counters.insert(1, "000", &row((1, 0), (1, 0)));
    assert_eq!(counters.rows().count(), INSTANCES + 1, "one that is known is not");
}

fn weight() -> impl Strategy<Value = u32> {
    prop_oneof![Just(100), Just(500), Just(2_000), 1..FULL]
}

/// Whose the bad requests are, one after the other, with the weight of the moment.
fn events() -> impl Strategy<Value = Vec<(u32, bool)>> {
    prop::collection::vec((weight(), any::<bool>()), 0..200)
}

proptest! {
    #[test]
    fn sums_give_what_a_stream_gives(events in events(), tolerance in 1.0_f64..3.0) {
        let mut stream = relative::Stream::new(tolerance);
        let mut sums = std::collections::BTreeMap::new();
        for (weight, candidate) in &events {
            stream.see(*weight, *candidate);
            let sum: &mut Bad = sums.entry(*weight).or_default();
            sum.weight = *weight;
            *if *candidate { &mut sum.candidate } else { &mut sum.stable } += 1;
        }
        let summed = relative::ln_e(tolerance, sums.values().copied());
        prop_assert!((stream.ln_e() - summed).abs() < 1e-6, "{} {summed}", stream.ln_e());
    }

    /// The heart of it: whatever the weight, one bet cannot be expected to gain when the candidate is no worse.
    #[test]
    fn no_bet_can_be_expected_to_gain(weight in weight(), events in events(), tolerance in 1.0_f64..3.0, truth in 0.0_f64..=1.0) {
        let mut stream = relative::Stream::new(tolerance);
        events.iter().for_each(|(weight, candidate)| stream.see(*weight, *candidate));
        let share = f64::from(weight) / f64::from(FULL);
        // Up to `tolerance` times as bad, so with at most this probability is the next bad request the candidate's.
        let ratio = truth * tolerance;
        let hit = share * ratio / (1.0 - share + share * ratio);
        let (mut worse, mut better) = (stream.clone(), stream.clone());
        worse.see(weight, true);
        better.see(weight, false);
        let expected = hit * (worse.ln_e() - stream.ln_e()).exp() + (1.0 - hit) * (better.ln_e() - stream.ln_e()).exp();
        prop_assert!(expected <= 1.0 + 1e-9, "{expected}");
    }

    #[test]
    fn no_bet_on_a_share_can_be_expected_to_gain(
        budget in 0.0005_f64..0.3, requests in 0_u64..2_000, part in 0.0_f64..=1.0, truth in 0.0_f64..=1.0,
    ) {
        let bad = (requests as f64 * part) as u64;
        let mean = |value: &dyn Fn(u64, u64) -> f64, rate: f64| {
            let before = value(requests, bad);
            if before == f64::NEG_INFINITY { return 0.0; }
            rate * (value(requests + 1, bad + 1) - before).exp() + (1.0 - rate) * (value(requests + 1, bad) - before).exp()
        };
        let within = mean(&|requests, bad| absolute::ln_e(budget, requests, bad), budget * truth);
        prop_assert!(within <= 1.0 + 1e-9, "{within}");
        let unfit = budget + (1.0 - budget) * truth;
        let shipped = mean(&|requests, bad| absolute::ln_s(budget, requests, bad), unfit);
        prop_assert!(shipped <= 1.0 + 1e-9, "{shipped}");
    }

    #[test]
    fn evidence_follows_the_counts(requests in 1_u64..5_000, bad in 0_u64..100, rate in 0.001_f64..0.5) {
        let bad = bad.min(requests - 1);
        prop_assert!(absolute::ln_e(rate, requests, bad + 1) >= absolute::ln_e(rate, requests, bad) - 1e-9);
        prop_assert!(absolute::ln_s(rate, requests + 1, bad) >= absolute::ln_s(rate, requests, bad));
        prop_assert!(absolute::ln_s(rate, requests, bad + 1) <= absolute::ln_s(rate, requests, bad));
        let bound = absolute::upper_bound(0.05, requests, bad);
        prop_assert!(bound > bad as f64 / requests as f64);
        prop_assert!(absolute::upper_bound(0.05, requests + 1, bad) <= bound + 1e-12);
        let one = |candidate, stable| relative::ln_e(1.0, [Bad { weight: 2_000, candidate, stable }]);
        prop_assert!(one(bad + 1, 3) >= one(bad, 3) && one(bad, 4) <= one(bad, 3));
    }

    /// Reports are lost, repeated, reordered: what is known is always what each activator has said at some moment, and in
    /// the end all of it.
    #[test]
    fn lost_repeated_and_reordered_reports_change_nothing(
        growth in prop::collection::vec((0_usize..3, 0_u32..4, 0_u64..5, 0_u64..5), 1..40),
        order in prop::collection::vec(any::<prop::sample::Index>(), 0..60),
    ) {
        let mut states: std::collections::BTreeMap<(usize, u32), Row> = Default::default();
        let mut sent = Vec::new();
        for (instance, epoch, requests, bad) in growth {
            let state = states.entry((instance, epoch)).or_default();
            state.stable.add(&arm(requests, bad.min(requests)));
            state.candidate.add(&arm(bad, bad));
            sent.push((instance, epoch, *state));
        }
        let mut truth = Counters::default();
        for ((instance, epoch), row) in &states {
            truth.insert(*epoch, &instance.to_string(), row);
        }
        let mut heard = Counters::default();
        for pick in &order {
            let (instance, epoch, row) = pick.get(&sent);
            heard.insert(*epoch, &instance.to_string(), row);
            for (epoch, instance, row) in heard.rows() {
                let said = sent.iter().any(|(i, e, said)| i.to_string() == instance && *e == epoch && said == row);
                prop_assert!(said, "a state that no activator has ever been in");
            }
        }
        let again = heard.clone();
        heard.merge(&again);
        prop_assert_eq!(&heard, &again);
        let (mut one, mut other) = (heard.clone(), truth.clone());
        one.merge(&truth);
        other.merge(&heard);
        prop_assert_eq!(&one, &truth);
        prop_assert_eq!(&other, &truth);
    }
}
