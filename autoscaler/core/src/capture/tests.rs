use super::*;

mod model;

fn at(millis: u64) -> Time {
    Time::from_millis(1_700_000_000_000 + millis)
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn listed(activators: &[&str]) -> SliceFact {
    SliceFact::Activators {
        names: names(activators),
        current: true,
    }
}

/// Opted in, nothing of ours there yet, one pod, one activator that does not listen yet.
fn fresh() -> Facts {
    Facts {
        live: names(&["a"]),
        builtin_ready: 1,
        pods_ready: 1,
        ..Facts::untouched()
    }
}

/// Captured.
fn closed() -> Facts {
    Facts {
        private_services: true,
        any_private_service: true,
        route: RouteFact::Current,
        original_recorded: true,
        any_original: true,
        listening: names(&["a"]),
        slice: listed(&["a"]),
        builtin_ready: 0,
        key: true,
        ..fresh()
    }
}

/// One step after another on one state.
struct Run {
    state: State,
    last: Step,
}

impl Run {
    fn new(facts: &Facts) -> Self {
        let last = step(at(0), &Waits::default(), &State::default(), facts);
        Self {
            state: last.state.clone(),
            last,
        }
    }

    fn inherited(facts: &Facts) -> Self {
        let last = step(at(0), &Waits::default(), &State::inherited(facts), facts);
        Self {
            state: last.state.clone(),
            last,
        }
    }

    fn step(&mut self, millis: u64, facts: &Facts) -> &Step {
        self.last = step(at(millis), &Waits::default(), &self.state, facts);
        self.state = self.last.state.clone();
        &self.last
    }

    fn probe(&self) -> u64 {
        match self.last.actions.as_slice() {
            [.., Action::Probe { id }] => *id,
            other => panic!("no probe in {other:?}"),
        }
    }
}

#[test]
fn the_way_in_takes_its_steps_in_order() {
    let mut facts = fresh();
    let mut run = Run::new(&facts);
    assert_eq!(
        run.last.actions,
        [
            Action::RecordOriginal,
            Action::EnsurePrivateServices,
            Action::EnsureRoute
        ]
    );
    assert_eq!(run.last.stage, Stage::Preparing);
    assert!(run.last.holds.is_some(), "its traffic is not seen");
    (facts.private_services, facts.original_recorded, facts.route) = (true, true, RouteFact::Current);
    assert_eq!(run.step(100, &facts).actions, [], "nobody listens yet");
    facts.listening = names(&["a"]);
    assert_eq!(
        run.step(200, &facts).actions,
        [Action::PublishActivators(names(&["a"]))]
    );
    facts.slice = listed(&["a"]);
    assert_eq!(run.step(300, &facts).actions, []);
    assert_eq!(run.last.wake_at, Some(at(2300)), "it settles");
    run.step(2300, &facts);
    facts.probed = Some((run.probe(), Ok(())));
    assert_eq!(run.step(2400, &facts).actions, [Action::AddKey]);
    facts.key = true;
    assert_eq!(
        run.step(2500, &facts).actions,
        [],
        "built-in endpoints have to go"
    );
    facts.builtin_ready = 0;
    assert_eq!(run.step(2600, &facts).actions, []);
    assert_eq!(
        run.step(4500, &facts).actions,
        [],
        "the first probe's answer does not prove the second"
    );
    assert!(run.last.may_sleep.is_err());
    run.step(4600, &facts);
    facts.probed = Some((run.probe(), Ok(())));
    let done = run.step(4700, &facts);
    assert_eq!(
        (done.stage, &done.actions, &done.may_sleep),
        (Stage::Captured, &Vec::new(), &Ok(()))
    );
    assert_eq!(done.condition.kind, ConditionKind::Probed);
    assert_eq!(done.wake_at, None, "a captured Service at rest has no timer");
}

#[test]
fn the_way_out_takes_its_steps_in_order() {
    let why = "the annotation was removed".to_owned();
    let mut facts = Facts {
        wanted: Wanted::Released { why },
        pods_ready: 0,
        original: 2,
        in_flight: 3,
        ..closed()
    };
    let mut run = Run::new(&facts);
    assert_eq!(run.last.actions, [], "pods first");
    assert_eq!(run.last.at_least.as_ref().map(|(replicas, _)| *replicas), Some(2));
    assert!(
        run.last
            .condition
            .message
            .contains("0 of 2 are: the annotation was removed"),
        "{:?}",
        run.last.condition
    );
    facts.pods_ready = 1;
    assert_eq!(run.step(5_000, &facts).actions, [], "all of them, for a while");
    facts.pods_ready = 2;
    run.step(5_500, &facts);
    // A scale-down from just before the release takes one away again.
    facts.pods_ready = 1;
    run.step(5_600, &facts);
    facts.pods_ready = 2;
    assert_eq!(run.step(6_000, &facts).actions, [], "one may be on its way out");
    assert_eq!(run.last.wake_at, Some(at(8_000)));
    assert_eq!(run.step(8_000, &facts).actions, [Action::RemoveKey]);
    facts.key = false;
    assert_eq!(
        run.step(8_100, &facts).actions,
        [],
        "built-in endpoints are not there yet"
    );
    facts.builtin_ready = 2;
    assert_eq!(run.step(8_200, &facts).actions, []);
    assert_eq!(run.step(10_200, &facts).actions, [Action::RemoveSlice]);
    facts.slice = SliceFact::None;
    assert_eq!(run.step(10_300, &facts).actions, []);
    assert_eq!(run.step(12_300, &facts).actions, [], "requests are in flight");
    facts.in_flight = 0;
    let done = run.step(13_300, &facts);
    assert_eq!(
        done.actions,
        [Action::ForgetOriginal, Action::RemoveRoute],
        "activators tell connections to end while the pods are published"
    );
    assert_eq!(done.stage, Stage::Releasing);
    facts.route = RouteFact::Missing;
    facts.any_original = false;
    assert_eq!(run.step(13_400, &facts).actions, []);
    let done = run.step(15_300, &facts);
    assert_eq!(done.actions, [Action::RemovePrivateServices]);
    let kept = done.at_least.as_ref().map(|(replicas, _)| *replicas);
    assert_eq!(
        (done.stage, kept),
        (Stage::Outside, Some(2)),
        "nobody takes it after that"
    );
    let gone = Facts {
        any_private_service: false,
        ..facts
    };
    assert_eq!(run.step(15_400, &gone).actions, []);
}

#[test]
fn a_route_that_somebody_else_deleted_takes_nothing_from_connections_on_the_way_out() {
    let why = "everything is being released".to_owned();
    let mut facts = Facts {
        wanted: Wanted::Released { why },
        route: RouteFact::Missing,
        pods_ready: 1,
        in_flight: 1,
        ..closed()
    };
    let mut run = Run::new(&facts);
    assert_eq!(run.step(2_000, &facts).actions, [Action::RemoveKey]);
    (facts.key, facts.builtin_ready) = (false, 1);
    run.step(2_100, &facts);
    assert_eq!(run.step(4_100, &facts).actions, [Action::RemoveSlice]);
    facts.slice = SliceFact::None;
    assert_eq!(run.step(4_200, &facts).actions, [], "nodes have to know");
    let done = run.step(6_200, &facts);
    assert!(done.actions.contains(&Action::RemovePrivateServices), "{done:?}");
    assert_eq!(done.stage, Stage::Outside);
}

#[test]
fn release_goes_on_without_pods_that_never_become_ready_and_requests_that_never_end() {
    let why = "opted out".to_owned();
    let mut facts = Facts {
        wanted: Wanted::Released { why },
        pods_ready: 0,
        in_flight: 1,
        ..closed()
    };
    let mut run = Run::new(&facts);
    assert_eq!(run.step(299_999, &facts).actions, []);
    assert_eq!(run.step(300_000, &facts).actions, [Action::RemoveKey]);
    facts.key = false;
    assert_eq!(run.step(300_100, &facts).actions, [Action::RemoveSlice]);
    facts.slice = SliceFact::None;
    run.step(300_200, &facts);
    assert_eq!(run.step(420_100, &facts).actions, []);
    assert!(run.step(420_200, &facts).actions.contains(&Action::RemoveRoute));
}

#[test]
fn a_refused_service_ends_with_an_empty_route() {
    let why = "the Service is headless".to_owned();
    let facts = Facts {
        wanted: Wanted::Refused { why },
        ..fresh()
    };
    let mut run = Run::new(&facts);
    assert_eq!(run.last.actions, [Action::EmptyRoute]);
    assert_eq!(run.last.condition.kind, ConditionKind::Refused);
    let empty = Facts {
        route: RouteFact::Empty,
        ..facts
    };
    assert_eq!(run.step(100, &empty).actions, []);
}

/// Somebody takes the key away at `now`; it goes back `wait` later, and is in again 100 ms after that.
fn take(run: &mut Run, facts: &mut Facts, now: u64, wait: u64) -> Step {
    facts.key = false;
    let taken = run.step(now, facts).clone();
    assert!(taken.may_sleep.is_err());
    let conflict = taken.selector_conflict.clone().expect("it is told");
    assert_eq!(conflict.manager.as_deref(), Some("argocd-controller"));
    assert_eq!(conflict.back_at, Some(at(now + wait)));
    if wait == 0 {
        assert_eq!(taken.actions, [Action::AddKey]);
    } else {
        assert_eq!(taken.actions, [], "waits {wait} ms");
        assert_eq!(taken.wake_at, Some(at(now + wait)));
        assert_eq!(run.step(now + wait, facts).actions, [Action::AddKey]);
    }
    facts.key = true;
    run.step(now + wait + 100, facts);
    taken
}

fn closed_by_argocd() -> (Run, Facts) {
    let mut facts = closed();
    facts.selector_manager = Some("argocd-controller".to_owned());
    let mut run = Run::inherited(&facts);
    assert_eq!(run.last.stage, Stage::Captured);
    run.state.reached = true;
    run.step(5_000, &facts);
    (run, facts)
}

#[test]
fn a_key_that_is_taken_away_goes_back_at_once_and_then_later_each_time_and_its_taker_is_named() {
    let (mut run, mut facts) = closed_by_argocd();
    let mut now = 5_000;
    for wait in [0, 0, 0, 0, 0, 1_000, 2_000, 4_000] {
        now += 10_000;
        take(&mut run, &mut facts, now, wait);
    }
    let calm = now + 4_000 + 600_000;
    assert!(
        run.step(calm, &facts).selector_conflict.is_none(),
        "ten calm minutes"
    );
    let again = take(&mut run, &mut facts, calm + 1_000, 0);
    assert_eq!(again.selector_conflict.unwrap().times, 1);
}

#[test]
fn a_key_that_stands_for_a_minute_each_time_always_goes_back_at_once() {
    let (mut run, mut facts) = closed_by_argocd();
    for round in 1..=20_u32 {
        let taken = take(&mut run, &mut facts, 5_000 + u64::from(round) * 61_000, 0);
        assert_eq!(taken.selector_conflict.unwrap().times, round, "and is told");
    }
}

#[test]
fn without_activators_the_pods_are_published_and_with_one_it_goes_back() {
    let mut facts = closed();
    let mut run = Run::inherited(&facts);
    (facts.live, facts.listening) = (names(&[]), names(&[]));
    assert_eq!(
        run.step(1_000, &facts).actions,
        [],
        "for a moment everything stays"
    );
    assert_eq!(run.step(1_700, &facts).actions, [Action::PublishPods]);
    assert_eq!(run.last.stage, Stage::FailOpen);
    assert!(run.last.may_sleep.is_err());
    facts.slice = SliceFact::Pods { current: true };
    assert_eq!(run.step(1_800, &facts).actions, []);
    facts.slice = SliceFact::Pods { current: false };
    assert_eq!(
        run.step(1_900, &facts).actions,
        [Action::PublishPods],
        "pods have changed"
    );
    (facts.live, facts.listening) = (names(&["b"]), names(&["b"]));
    assert_eq!(
        run.step(2_000, &facts).actions,
        [Action::PublishActivators(names(&["b"]))]
    );
    assert_eq!(run.last.stage, Stage::Captured);
}

#[test]
fn without_activators_and_pods_and_before_all_could_report_nothing_changes() {
    let silent = Facts {
        live: names(&[]),
        listening: names(&[]),
        ..closed()
    };
    for facts in [
        Facts {
            pods_ready: 0,
            ..silent.clone()
        },
        Facts {
            complete: false,
            ..silent
        },
    ] {
        let mut run = Run::inherited(&facts);
        assert_eq!(
            run.step(10_000, &facts).actions,
            [],
            "an empty list is no better than this one: {facts:?}"
        );
    }
}

#[test]
fn a_probe_that_misses_is_told_and_tried_again_later_each_time() {
    let mut facts = Facts {
        key: false,
        builtin_ready: 1,
        ..closed()
    };
    let mut run = Run::new(&facts);
    let mut now = 2_000;
    for wait in [500, 1_000, 2_000] {
        run.step(now, &facts);
        let id = run.probe();
        facts.probed = Some((id, Err("it landed on a pod".to_owned())));
        let missed = run.step(now + 100, &facts);
        assert_eq!(missed.condition.kind, ConditionKind::ProbeFailed);
        assert!(missed.condition.message.contains("it landed on a pod"));
        assert_eq!(missed.wake_at, Some(at(now + 100 + wait)));
        now += 100 + wait;
    }
    run.step(now, &facts);
    let id = run.probe();
    assert_eq!(run.step(now + 9_000, &facts).actions, [], "an answer may be late");
    run.step(now + 10_000, &facts);
    assert!(run.probe() > id, "a lost one is tried again");
}

#[test]
fn a_service_that_is_gone_needs_nothing() {
    let step = step(
        at(0),
        &Waits::default(),
        &State::default(),
        &Facts {
            service: false,
            ..closed()
        },
    );
    assert_eq!(
        (step.actions, step.stage, step.wake_at),
        (Vec::new(), Stage::Outside, None)
    );
}
