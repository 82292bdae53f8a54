//! One Service: is it captured, why is it asleep or awake, what happens next, what is set, how its wakes went.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crds::Route;
use crds::annotation::{self, Parsed};
use crds::condition;
use crds::route::Phase;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::ResourceExt as _;
use serde::Serialize;

use super::wakes::{PARTS, Split, Summary, summary};
use crate::output::{Paint, age, millis, table};

/// Events shown, the newest.
const EVENTS: usize = 8;

/// Everything that is said of a Service.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Explained {
    namespace: String,
    name: String,
    opted_in: bool,
    /// Whether the autoscaler has seen it.
    known: bool,
    captured: bool,
    phase: Option<Phase>,
    pods: String,
    weights: String,
    why: String,
    next: String,
    workloads: Vec<String>,
    scaled_by: String,
    listening: Vec<String>,
    last_request: Option<Time>,
    settings: Vec<Setting>,
    invalid: Vec<String>,
    inactive: Vec<String>,
    unknown: Vec<String>,
    wakes: Vec<Split>,
    /// By part: signal, schedule, start, forward, answered.
    wake_summary: BTreeMap<&'static str, Summary>,
    conditions: Vec<Condition>,
    events: Vec<Said>,
}

/// A setting that is not the default.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Setting {
    key: String,
    value: String,
    default: &'static str,
    /// `Service` or `Namespace`.
    place: &'static str,
}

/// An Event.
#[derive(Debug, PartialEq, Serialize)]
struct Said {
    at: Option<Time>,
    warning: bool,
    about: String,
    reason: String,
    message: String,
    count: i32,
}

impl Explained {
    pub(super) fn new(
        namespace: &str,
        name: &str,
        route: Option<&Route>,
        parsed: &Parsed,
        events: &[Event],
    ) -> Self {
        let status = route.and_then(|route| route.status.clone()).unwrap_or_default();
        let pools = route.map(|route| route.spec.pools.as_slice()).unwrap_or_default();
        let workloads: Vec<String> = pools.iter().map(|pool| pool.workload.to_string()).collect();
        let wakes: Vec<Split> = status.wakes.iter().map(Split::new).collect();
        let wake_summary = PARTS
            .iter()
            .enumerate()
            .filter_map(|(part, name)| Some((*name, summary(&wakes, part)?)))
            .collect();
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            opted_in: parsed.settings.enabled,
            known: route.is_some(),
            captured: condition::is_true(&status.conditions, condition::CAPTURED),
            phase: status.phase,
            scaled_by: scaled_by(&status.conditions, parsed),
            events: relevant(
                events,
                namespace,
                name,
                pools.iter().map(|pool| pool.workload.name.as_str()),
            ),
            workloads,
            pods: status.pods,
            weights: status.weights,
            why: status.why,
            next: status.next,
            listening: status.listening,
            last_request: status.last_request,
            settings: parsed.written.iter().filter_map(setting).collect(),
            invalid: parsed.invalid.iter().map(ToString::to_string).collect(),
            inactive: parsed.inactive.clone(),
            unknown: parsed.unknown.iter().map(unknown).collect(),
            wakes,
            wake_summary,
            conditions: status.conditions,
        }
    }
}

/// What is written and not the default. `scale-to-zero` is said elsewhere.
fn setting(written: &annotation::Written) -> Option<Setting> {
    let key = annotation::find(written.name)?;
    let same = written.value.trim() == key.default;
    (!same && written.name != "scale-to-zero").then(|| Setting {
        key: written.key.clone(),
        value: written.value.clone(),
        default: key.default,
        place: written.place,
    })
}

fn unknown((key, nearest): &(String, Option<&'static str>)) -> String {
    match nearest {
        Some(name) => format!("{key} is not a key; did you mean {}{name}?", annotation::PREFIX),
        None => format!("{key} is not a key"),
    }
}

/// Who decides how many pods there are above zero.
fn scaled_by(conditions: &[Condition], parsed: &Parsed) -> String {
    let hpa = condition::find(conditions, condition::SCALED_BY_HPA).filter(|found| found.status == "True");
    match (hpa, parsed.settings.policy) {
        (Some(hpa), _) => hpa.message.clone(),
        (None, annotation::PolicyKind::Adaptive) => "Dormouse, policy adaptive".to_owned(),
        (None, annotation::PolicyKind::Kpa) => "Dormouse, policy kpa".to_owned(),
    }
}

/// The newest Events on the Service, its Route and its workloads; the oldest of them first.
fn relevant<'a>(
    events: &[Event],
    namespace: &str,
    name: &str,
    workloads: impl Iterator<Item = &'a str>,
) -> Vec<Said> {
    let workloads: Vec<&str> = workloads.collect();
    let about = |event: &Event| {
        let object = &event.involved_object;
        let named = object.name.as_deref().unwrap_or_default();
        let here = object.namespace.as_deref() == Some(namespace);
        here && match object.kind.as_deref() {
            Some("Service" | "Route") => named == name,
            Some("Deployment" | "StatefulSet") => workloads.contains(&named),
            _ => false,
        }
    };
    let mut found: Vec<Said> = events
        .iter()
        .filter(|event| about(event))
        .map(Said::new)
        .collect();
    found.sort_by(|a, b| a.at.cmp(&b.at));
    found.split_off(found.len().saturating_sub(EVENTS))
}

impl Said {
    fn new(event: &Event) -> Self {
        let series = event.series.as_ref();
        let last = series
            .and_then(|series| series.last_observed_time.clone())
            .or_else(|| event.event_time.clone());
        let object = &event.involved_object;
        Self {
            at: event
                .last_timestamp
                .clone()
                .or_else(|| last.map(|time| Time(time.0)))
                .or_else(|| event.creation_timestamp()),
            warning: event.type_.as_deref() == Some("Warning"),
            about: format!(
                "{}/{}",
                object.kind.as_deref().unwrap_or_default().to_lowercase(),
                object.name.as_deref().unwrap_or_default()
            ),
            reason: event.reason.clone().unwrap_or_default(),
            message: event.message.clone().unwrap_or_default(),
            count: series
                .and_then(|series| series.count)
                .or(event.count)
                .unwrap_or(1)
                .max(1),
        }
    }
}

/// For people.
pub(super) fn text(explained: &Explained, now: Timestamp, paint: Paint) -> String {
    let mut out = format!(
        "{}\n",
        paint.bold(&format!("{}/{}", explained.namespace, explained.name))
    );
    // Writing to a String cannot fail.
    for (label, value) in standing(explained, now, paint) {
        let _ = writeln!(out, "  {label:<13} {value}");
    }
    section(
        &mut out,
        paint,
        "Settings that are not the default",
        &settings(explained, paint),
    );
    section(&mut out, paint, "Wakes", &wakes(explained, now));
    section(&mut out, paint, "Conditions", &conditions(explained, paint));
    section(&mut out, paint, "Events", &events(explained, now, paint));
    out
}

fn section(out: &mut String, paint: Paint, title: &str, body: &str) {
    if !body.is_empty() {
        let _ = write!(out, "\n{}\n{body}", paint.bold(title));
    }
}

/// Label and sentence.
fn standing(explained: &Explained, now: Timestamp, paint: Paint) -> Vec<(&'static str, String)> {
    let mut lines = vec![("captured", captured(explained, paint))];
    if let Some(phase) = explained.phase {
        let pods = if explained.pods.is_empty() {
            String::new()
        } else {
            format!(", pods {}", explained.pods)
        };
        lines.push(("phase", format!("{phase}{pods} (ready/wanted)")));
    }
    let mut add = |label, value: &str| {
        if !value.is_empty() {
            lines.push((label, value.to_owned()));
        }
    };
    add("why", &explained.why);
    add("next", &explained.next);
    add("workload", &explained.workloads.join(", "));
    if explained.known {
        add("scaled by", &explained.scaled_by);
        let listening = match explained.listening.as_slice() {
            [] => "no activator".to_owned(),
            names => names.join(", "),
        };
        add("listening", &listening);
    }
    if explained.workloads.len() > 1 {
        add("weights", &explained.weights);
    }
    if explained.last_request.is_some() {
        add(
            "last request",
            &format!("{} ago", age(explained.last_request.as_ref(), now)),
        );
    }
    lines
}

fn captured(explained: &Explained, paint: Paint) -> String {
    let found = condition::find(&explained.conditions, condition::CAPTURED);
    match (explained.opted_in, explained.known, found) {
        (_, _, Some(found)) if found.status == "True" => format!("{}, {}", paint.good("yes"), found.message),
        (_, _, Some(found)) => format!("{}, {}: {}", paint.bad("no"), found.reason, found.message),
        (false, false, None) => {
            format!(
                "{}, it is not opted in: kubectl annotate service {} -n {} dormouse.dev/scale-to-zero=true",
                paint.bad("no"),
                explained.name,
                explained.namespace
            )
        }
        (true, false, None) => {
            format!(
                "{}, the autoscaler has not seen it: `dormouse doctor` says whether it runs",
                paint.bad("no")
            )
        }
        (_, true, None) => format!("{}, the autoscaler has not come to it yet", paint.bad("not yet")),
    }
}

fn settings(explained: &Explained, paint: Paint) -> String {
    let rows: Vec<Vec<String>> = explained
        .settings
        .iter()
        .map(|setting| {
            let note = if explained.inactive.contains(&setting.key) {
                ", not yet active"
            } else {
                ""
            };
            vec![
                format!("  {}", setting.key),
                setting.value.clone(),
                format!("on the {}, default {}{note}", setting.place, setting.default),
            ]
        })
        .collect();
    let mut text = table(&rows);
    for line in explained.invalid.iter().chain(&explained.unknown) {
        let _ = writeln!(text, "  {} {line}", paint.warn("!"));
    }
    text
}

fn wakes(explained: &Explained, now: Timestamp) -> String {
    if explained.wakes.is_empty() {
        return String::new();
    }
    let cell = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), millis);
    let mut rows = vec![{
        let mut head = vec!["  AGO".to_owned()];
        head.extend(PARTS.iter().map(|part| part.to_uppercase()));
        head.extend(["HELD".to_owned(), "WOKEN BY".to_owned()]);
        head
    }];
    for wake in &explained.wakes {
        let mut row = vec![format!("  {}", age(wake.at.as_ref(), now))];
        row.extend(wake.parts().map(cell));
        row.extend([wake.held.to_string(), wake.woken_by.clone()]);
        rows.push(row);
    }
    type Of = fn(&Summary) -> f64;
    let of: [(&str, Of); 2] = [("  p50", |summary| summary.p50), ("  max", |summary| summary.max)];
    for (label, of) in of {
        let mut row = vec![label.to_owned()];
        row.extend(
            PARTS
                .iter()
                .map(|part| cell(explained.wake_summary.get(part).map(of))),
        );
        rows.push(row);
    }
    table(&rows)
}

fn conditions(explained: &Explained, paint: Paint) -> String {
    let rows: Vec<Vec<String>> = explained
        .conditions
        .iter()
        .map(|condition| {
            let status = format!("{:<7}", condition.status);
            let status = if good(condition) {
                paint.good(&status)
            } else {
                paint.warn(&status)
            };
            vec![
                format!("  {}", condition.type_),
                status,
                condition.reason.clone(),
                condition.message.clone(),
            ]
        })
        .collect();
    table(&rows)
}

/// Whether a condition is as its user wants it.
pub(crate) fn good(found: &Condition) -> bool {
    let wanted = match found.type_.as_str() {
        condition::CAPTURED
        | condition::CONFIGURATION_VALID
        | condition::FULLY_ACTIVE
        | condition::WORKLOAD_HEALTHY => "True",
        // That an HPA scales is neither good nor bad.
        condition::SCALED_BY_HPA => return true,
        _ => "False",
    };
    found.status == wanted
}

fn events(explained: &Explained, now: Timestamp, paint: Paint) -> String {
    let rows: Vec<Vec<String>> = explained
        .events
        .iter()
        .map(|event| {
            let times = if event.count > 1 {
                format!(" ({} times)", event.count)
            } else {
                String::new()
            };
            let reason = if event.warning {
                paint.warn(&event.reason)
            } else {
                event.reason.clone()
            };
            vec![
                format!("  {}", age(event.at.as_ref(), now)),
                event.about.clone(),
                reason,
                format!("{}{times}", event.message),
            ]
        })
        .collect();
    table(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crds::RouteSpec;
    use crds::condition::reason;
    use crds::route::{RoutePool, RouteStatus, Wake, Workload};
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
        let explained = Explained::new("shop", "web", Some(&route()), &parsed, &events);
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
  Captured   True      SelfProbeLanded   a probe through 10.0.0.1:80 landed on activator a-1

Events
  40s   deployment/web   Woken   Deployment web
  39s   service/web      Woken   Service web
";
        assert_eq!(text, want);
    }

    #[test]
    fn a_service_that_is_not_opted_in_says_how() {
        let explained = Explained::new("shop", "web", None, &parsed(&[]), &[]);
        let text = text(&explained, at(0).0, Paint::never());
        assert!(
            text.contains("no, it is not opted in: kubectl annotate service web -n shop"),
            "{text}"
        );
        let explained = Explained::new("shop", "web", None, &parsed(&[("scale-to-zero", "true")]), &[]);
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
        let explained = Explained::new("shop", "web", Some(&route), &parsed(&[]), &[]);
        assert_eq!(
            captured(&explained, Paint::never()),
            "no, Headless: The Service is headless."
        );
    }

    #[test]
    fn only_the_newest_events_are_shown() {
        let events: Vec<Event> = (0..20).map(|second| event("Route", "web", second)).collect();
        let found = relevant(&events, "shop", "web", std::iter::empty());
        let times: Vec<_> = found.iter().map(|said| said.at.clone()).collect();
        assert_eq!(times, (12..20).map(|second| Some(at(second))).collect::<Vec<_>>());
    }
}
