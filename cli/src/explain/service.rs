//! One Service: is it captured, why is it asleep or awake, what happens next, what is set, how its wakes went.

mod text;

use std::collections::BTreeMap;

use crds::annotation::{self, Parsed};
use crds::condition;
use crds::route::Phase;
use crds::{Rollout, Route};
use k8s_openapi::api::core::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::ResourceExt as _;
use serde::Serialize;

pub(crate) use text::good;
pub(super) use text::text;

use super::wakes::{PARTS, Split, Summary, summary};
use crate::rollout::Stand;

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
    /// How new revisions are let in, if they are.
    rollout: Option<Stand>,
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
        rollout: Option<&Rollout>,
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
                rollout.map(Rollout::name_any).as_deref(),
                pools.iter().map(|pool| pool.workload.name.as_str()),
            ),
            rollout: rollout.map(Stand::new),
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

/// The newest Events on the Service, its Route, its Rollout and its workloads; the oldest of them first.
fn relevant<'a>(
    events: &[Event],
    namespace: &str,
    name: &str,
    rollout: Option<&str>,
    workloads: impl Iterator<Item = &'a str>,
) -> Vec<Said> {
    let workloads: Vec<&str> = workloads.collect();
    let about = |event: &Event| {
        let object = &event.involved_object;
        let named = object.name.as_deref().unwrap_or_default();
        let here = object.namespace.as_deref() == Some(namespace);
        here && match object.kind.as_deref() {
            Some("Service" | "Route") => named == name,
            Some("Rollout") => rollout == Some(named),
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

#[cfg(test)]
mod tests;
