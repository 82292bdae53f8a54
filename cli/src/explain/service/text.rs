//! What is said of a Service, for people.

use std::fmt::Write as _;

use crds::condition;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::super::wakes::{PARTS, Summary};
use super::Explained;
use crate::output::{Paint, age, millis, table};

/// For people.
pub(in crate::explain) fn text(explained: &Explained, now: Timestamp, paint: Paint) -> String {
    let mut out = format!(
        "{}\n",
        paint.bold(&format!("{}/{}", explained.namespace, explained.name))
    );
    // Writing to a String cannot fail.
    for (label, value) in standing(explained, now, paint) {
        let _ = writeln!(out, "  {label:<13} {value}");
    }
    section(&mut out, paint, "Rollout", &rollout(explained));
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

pub(super) fn captured(explained: &Explained, paint: Paint) -> String {
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

/// Where its rollout stands, and what would help.
fn rollout(explained: &Explained) -> String {
    let Some(stand) = &explained.rollout else {
        return String::new();
    };
    let lines = [
        ("phase", stand.headline()),
        ("why", stand.why.clone()),
        ("next", stand.next.clone()),
        ("to do", stand.help.clone()),
        (
            "more",
            format!("dormouse rollout get {} -n {}", stand.name, explained.namespace),
        ),
    ];
    let said = lines.iter().filter(|(_, value)| !value.is_empty());
    said.map(|(label, value)| format!("  {label:<13} {value}\n"))
        .collect()
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
            let status = if good(condition) {
                paint.good(&condition.status)
            } else {
                paint.warn(&condition.status)
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
        | condition::DEPENDENCIES
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
