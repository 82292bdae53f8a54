//! Tables: the rows and columns that `kubectl get` shows.

use serde_json::{Value, json};

use super::columns::{self, Column};
use super::jsonpath;
use super::read::partial;
use super::request::Request;
use super::resources::Resource;

/// How much of the object comes with its row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Include {
    None,
    Metadata,
    Object,
}

/// What `includeObject` asks for.
pub(crate) fn include(request: &Request<'_>) -> Include {
    match request.query.get("includeObject") {
        Some("None") => Include::None,
        Some("Object") => Include::Object,
        _ => Include::Metadata,
    }
}

/// A table of objects.
pub(crate) fn table(
    resource: &Resource,
    objects: &[&Value],
    version: &str,
    more: &str,
    remaining: Option<u64>,
    with_columns: bool,
    include: Include,
) -> Value {
    let columns = if resource.custom {
        custom(resource)
    } else {
        columns::of(resource)
    };
    let rows: Vec<Value> = objects
        .iter()
        .map(|object| {
            let cells: Vec<Value> = columns.iter().map(|column| (column.cell)(object)).collect();
            let shown = match include {
                Include::None => Value::Null,
                Include::Metadata => partial(object),
                Include::Object => (*object).clone(),
            };
            json!({ "cells": cells, "object": shown })
        })
        .collect();
    let mut metadata = json!({ "resourceVersion": version });
    if !more.is_empty() {
        metadata["continue"] = json!(more);
    }
    if let Some(remaining) = remaining {
        metadata["remainingItemCount"] = json!(remaining);
    }
    let definitions: Vec<Value> = columns
        .iter()
        .map(|column| {
            json!({
                "name": column.name, "type": column.kind, "format": column.format,
                "description": column.name, "priority": column.priority,
            })
        })
        .collect();
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
        "columnDefinitions": if with_columns { json!(definitions) } else { Value::Null },
        "rows": rows,
    })
}

/// A bookmark within a watch of tables.
pub(crate) fn bookmark(object: &Value) -> Value {
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1",
        "metadata": { "resourceVersion": object["metadata"]["resourceVersion"] },
        "columnDefinitions": null,
        "rows": [{ "cells": [], "object": {
            "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"],
        } }],
    })
}

/// The columns of a custom resource: its own, or its age.
fn custom(resource: &Resource) -> Vec<Column> {
    let mut all = vec![columns::name()];
    if resource.columns.is_empty() {
        all.push(columns::age());
    }
    for column in &resource.columns {
        let text = |key: &str| column[key].as_str().unwrap_or_default().to_owned();
        let (path, kind) = (text("jsonPath"), text("type"));
        let cell_kind = kind.clone();
        all.push(Column {
            name: text("name"),
            // Dates are shown as ages, which are texts.
            kind: if kind == "date" { "string".to_owned() } else { kind },
            format: text("format"),
            priority: column["priority"].as_i64().unwrap_or(0),
            cell: Box::new(move |object| {
                let found = jsonpath::find(&path, object);
                match found.as_slice() {
                    [] => Value::Null,
                    [one] if cell_kind == "date" => one
                        .as_str()
                        .map_or(Value::Null, |text| json!(columns::age_of(text))),
                    [one] if cell_kind == "string" && !one.is_string() => json!(one.to_string()),
                    [one] => (*one).clone(),
                    many => {
                        let all: Vec<String> = many
                            .iter()
                            .map(|it| it.as_str().map_or_else(|| it.to_string(), str::to_owned))
                            .collect();
                        json!(all.join(","))
                    }
                }
            }),
        });
    }
    all
}
