//! The table as a page: `docs/annotations.md`, written by `dormouse explain annotations -o markdown`.

use std::fmt::Write;

use super::{Active, Key, TABLE};

const HEAD: &str = "# Annotations

<!-- Made from the table in crds/src/annotation/table.rs by: dormouse explain annotations -o markdown -->

On a Service, or on a Namespace as the default for its Services. A key on the Service wins over one on the Namespace, and
on one object ours wins over Knative's. Every key starts with `dormouse.dev/`; Knative's, listed with each, start with
`autoscaling.knative.dev/` and mean the same.

A value that is not allowed never changes what runs: the last good configuration stays, and the condition
`ConfigurationValid` of the Service's Route and a Warning Event name the key, the value and what is allowed. A key marked
*not yet* is read and checked, and listed in the condition `FullyActive`.

Durations are written with units: `90s`, `1m30s`, `250ms`, `1.5h`. All ranges include both ends. `max-scale` is at least
`min-scale`, and `activation-scale` lies between the two.

| key | allowed | default | meaning |
|---|---|---|---|
";

/// The documentation page of all keys.
#[must_use]
pub fn markdown() -> String {
    let mut page = HEAD.to_owned();
    for key in TABLE {
        // Writing to a String cannot fail.
        let _ = writeln!(page, "{}", row(key));
    }
    page
}

fn row(key: &Key) -> String {
    let mut meaning = key.meaning.to_owned();
    if !key.on_namespace {
        meaning.push_str(" On a Service only.");
    }
    if let Some(note) = activity(key) {
        let _ = write!(meaning, " *{note}*");
    }
    if !key.knative.is_empty() {
        let names: Vec<_> = key
            .knative
            .iter()
            .map(|name| format!("`{}`", tail(name)))
            .collect();
        let _ = write!(meaning, " Knative: {}.", names.join(", "));
    }
    let default = if key.default.starts_with('(') {
        key.default.to_owned()
    } else {
        format!("`{}`", key.default)
    };
    format!(
        "| `{}` | {} | {default} | {meaning} |",
        key.name,
        key.kind.allowed()
    )
}

/// What of the key is not yet active, as a sentence; `None`: all of it is active.
#[must_use]
pub fn activity(key: &Key) -> Option<String> {
    let list = |values: &[&str]| {
        values
            .iter()
            .map(|v| format!("`{v}`"))
            .collect::<Vec<_>>()
            .join(", ")
    };
    match key.active {
        Active::Yes => None,
        Active::No => Some("Not yet active.".to_owned()),
        Active::Except(values) => Some(format!("Not yet active: {}.", list(values))),
        Active::Only(values) => Some(format!("Not yet active, but for {}.", list(values))),
    }
}

fn tail(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}
