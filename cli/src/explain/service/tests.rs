use super::text::{captured, good};
use super::*;
use crate::output::Paint;
use crds::RouteSpec;
use crds::condition::reason;
use crds::route::{RoutePool, RouteStatus, Wake, Workload};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;

fn at(second: i64) -> Time {
    Time(Timestamp::from_second(second).expect("a time"))
}

fn parsed(pairs: &[(&str, &str)]) -> Parsed {
    let service = pairs
        .iter()
        .map(|(k, v)| (format!("dormouse.dev/{k}"), (*v).to_owned()))
        .collect();
    annotation::parse(&BTreeMap::new(), &service)
}

fn route() -> Route {
    let pool = RoutePool {
        name: "web".to_owned(),
        workload: Workload {
            name: "web".to_owned(),
            ..Workload::default()
        },
        weight: 10_000,
        ..RoutePool::default()
    };
    let mut route = Route::new(
        "web",
        RouteSpec {
            pools: vec![pool],
            ..RouteSpec::default()
        },
    );
    let captured = condition::condition(
        condition::CAPTURED,
        true,
        reason::PROBED,
        "a probe through 10.0.0.1:80 landed on activator a-1",
        Some(1),
        at(0),
    );
    route.status = Some(RouteStatus {
        phase: Some(Phase::Awake),
        pods: "1/1".to_owned(),
        why: "a request woke it".to_owned(),
        next: "sleeps at 12:00:00 without a request".to_owned(),
        listening: vec!["a-1".to_owned()],
        last_request: Some(at(90)),
        wakes: vec![Wake {
            at: Some(at(60)),
            signal_ms: Some(1.5),
            address_ms: Some(10.0),
            listening_ms: Some(250.0),
            answered_ms: Some(253.0),
            forward_ms: Some(3.0),
            held: 2,
            woken_by: "GET / curl".to_owned(),
            ..Wake::default()
        }],
        conditions: vec![captured],
        ..RouteStatus::default()
    });
    route
}

fn event(kind: &str, name: &str, second: i64) -> Event {
    Event {
        involved_object: ObjectReference {
            kind: Some(kind.to_owned()),
            name: Some(name.to_owned()),
            namespace: Some("shop".to_owned()),
            ..ObjectReference::default()
        },
        reason: Some("Woken".to_owned()),
        message: Some(format!("{kind} {name}")),
        last_timestamp: Some(at(second)),
        ..Event::default()
    }
}

#[test]
fn an_awake_service_says_everything() {
    let events = [
        event("Service", "web", 61),
        event("Service", "other", 62),
        event("Deployment", "web", 60),
    ];
    let parsed = parsed(&[
        ("scale-to-zero", "true"),
        ("keep-alive", "30s"),
        ("min-scal", "1"),
        ("burst", "x"),
    ]);
    let explained = Explained::new("shop", "web", Some(&route()), None, &parsed, &events);
    let text = text(&explained, at(100).0, Paint::never());
    let want = "\
shop/web
  captured      yes, a probe through 10.0.0.1:80 landed on activator a-1
  phase         Awake, pods 1/1 (ready/wanted)
  why           a request woke it
  next          sleeps at 12:00:00 without a request
  workload      deployment/web
  scaled by     Dormouse, policy adaptive
  listening     a-1
  last request  10s ago

Settings that are not the default
  dormouse.dev/keep-alive   30s   on the Service, default adaptive
  ! dormouse.dev/burst: `x` on the Service is not allowed: a whole number of requests from 0 to 1000000
  ! dormouse.dev/min-scal is not a key; did you mean dormouse.dev/min-scale?

Wakes
  AGO   SIGNAL   SCHEDULE   START    FORWARD   ANSWERED   HELD   WOKEN BY
  40s   1.5 ms   8.5 ms     240 ms   3.0 ms    253 ms     2      GET / curl
  p50   1.5 ms   8.5 ms     240 ms   3.0 ms    253 ms
  max   1.5 ms   8.5 ms     240 ms   3.0 ms    253 ms

Conditions
  Captured   True   SelfProbeLanded   a probe through 10.0.0.1:80 landed on activator a-1

Events
  40s   deployment/web   Woken   Deployment web
  39s   service/web      Woken   Service web
";
    assert_eq!(text, want);
}

#[test]
fn a_service_that_is_not_opted_in_says_how() {
    let explained = Explained::new("shop", "web", None, None, &parsed(&[]), &[]);
    let text = text(&explained, at(0).0, Paint::never());
    assert!(
        text.contains("no, it is not opted in: kubectl annotate service web -n shop"),
        "{text}"
    );
    let explained = Explained::new(
        "shop",
        "web",
        None,
        None,
        &parsed(&[("scale-to-zero", "true")]),
        &[],
    );
    assert!(captured(&explained, Paint::never()).contains("the autoscaler has not seen it"));
}

#[test]
fn a_refused_service_says_why() {
    let mut route = route();
    let status = route.status.as_mut().expect("a status");
    status.conditions = vec![condition::condition(
        condition::CAPTURED,
        false,
        reason::HEADLESS,
        "The Service is headless.",
        None,
        at(0),
    )];
    let explained = Explained::new("shop", "web", Some(&route), None, &parsed(&[]), &[]);
    assert_eq!(
        captured(&explained, Paint::never()),
        "no, Headless: The Service is headless."
    );
}

#[test]
fn its_rollout_and_what_would_help_are_said() {
    let mut rollout = Rollout::new("web", crds::RolloutSpec::default());
    rollout.metadata.namespace = Some("shop".to_owned());
    rollout.status = Some(crds::RolloutStatus {
        phase: crds::rollout::Phase::Failed,
        why: "web-1 has all traffic; web-2 failed: 9 of 40 requests were bad.".to_owned(),
        seen_revision: "web-2".to_owned(),
        ..crds::RolloutStatus::default()
    });
    let events = [event("Rollout", "web", 1), event("Rollout", "other", 2)];
    let explained = Explained::new(
        "shop",
        "web",
        Some(&route()),
        Some(&rollout),
        &parsed(&[]),
        &events,
    );
    let text = text(&explained, at(100).0, Paint::never());
    let want = "
Rollout
  phase         Failed
  why           web-1 has all traffic; web-2 failed: 9 of 40 requests were bad.
  to do         `dormouse rollout retry web -n shop` lets web-2 begin again; a new template begins by itself
  more          dormouse rollout get web -n shop
";
    assert!(text.contains(want), "{text}");
    assert!(
        text.contains("rollout/web") && !text.contains("rollout/other"),
        "{text}"
    );
}

#[test]
fn only_the_newest_events_are_shown() {
    let events: Vec<Event> = (0..20).map(|second| event("Route", "web", second)).collect();
    let found = relevant(&events, "shop", "web", None, std::iter::empty());
    let times: Vec<_> = found.iter().map(|said| said.at.clone()).collect();
    assert_eq!(times, (12..20).map(|second| Some(at(second))).collect::<Vec<_>>());
}

#[test]
fn each_condition_is_good_as_its_user_wants_it() {
    for (kind, wanted) in [
        (condition::CAPTURED, true),
        (condition::DEPENDENCIES, true),
        (condition::WORKLOAD_HEALTHY, true),
        (condition::FAIL_OPEN, false),
        (condition::REPLICAS_CONFLICT, false),
    ] {
        for status in [true, false] {
            let found = condition::condition(kind, status, reason::OK, "", None, at(0));
            assert_eq!(good(&found), status == wanted, "{kind} {status}");
        }
    }
}
