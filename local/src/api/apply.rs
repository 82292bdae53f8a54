//! Managed fields: who last said what, server-side apply, and its conflicts.
//!
//! Every write is tracked. An update owns what it changed and takes it from all others; an apply owns exactly what it
//! sends, loses what it no longer sends, and must not change what others own unless it is forced.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::fieldset::{FieldSet, Step};
use super::names;
use super::resources::Resource;
use super::status::{ApiError, Cause};
use super::typed;

/// Most entries of updates, as in Kubernetes; the oldest are merged into one.
const MOST_UPDATES: usize = 10;

/// The entry into which they are merged.
const ANCIENT: &str = "ancient-changes";

/// How a manager came to own its fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Operation {
    Apply,
    Update,
}

/// Who writes, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Manager {
    pub(crate) name: String,
    pub(crate) operation: Operation,
    pub(crate) api_version: String,
    pub(crate) subresource: String,
}

#[derive(Clone, Debug, PartialEq)]
struct Entry {
    manager: Manager,
    time: String,
    set: FieldSet,
}

impl Entry {
    fn is_of(&self, manager: &Manager) -> bool {
        let mine = &self.manager;
        mine.name == manager.name
            && mine.operation == manager.operation
            && mine.subresource == manager.subresource
            && (mine.operation == Operation::Apply || mine.api_version == manager.api_version)
    }

    fn decode(value: &Value) -> Option<Self> {
        let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
        let operation = match value["operation"].as_str()? {
            "Apply" => Operation::Apply,
            "Update" => Operation::Update,
            _ => return None,
        };
        Some(Self {
            manager: Manager {
                name: text("manager"),
                operation,
                api_version: text("apiVersion"),
                subresource: text("subresource"),
            },
            time: text("time"),
            set: FieldSet::decode(value.get("fieldsV1")?)?,
        })
    }

    fn encode(&self) -> Value {
        let mut entry = json!({
            "manager": self.manager.name,
            "operation": if self.manager.operation == Operation::Apply { "Apply" } else { "Update" },
            "apiVersion": self.manager.api_version,
            "time": self.time,
            "fieldsType": "FieldsV1",
            "fieldsV1": self.set.encode(),
        });
        if !self.manager.subresource.is_empty() {
            entry["subresource"] = json!(self.manager.subresource);
        }
        if self.time.is_empty()
            && let Some(map) = entry.as_object_mut()
        {
            map.remove("time");
        }
        entry
    }

    /// As in conflicts: `"name"`, `"name" with subresource "scale" using apps/v1`.
    fn show(&self) -> String {
        let manager = &self.manager;
        let mut text = format!("\"{}\"", manager.name);
        if !manager.subresource.is_empty() {
            text.push_str(&format!(" with subresource \"{}\"", manager.subresource));
        }
        if manager.operation == Operation::Update {
            text.push_str(&format!(" using {}", manager.api_version));
        }
        text
    }
}

/// The entries of an object; none: it has none, or none that can be read.
fn entries(value: &Value) -> Option<Vec<Entry>> {
    let all = value.pointer("/metadata/managedFields")?.as_array()?;
    if all.is_empty() {
        return None;
    }
    if let [only] = all.as_slice()
        && only.as_object().is_some_and(Map::is_empty)
    {
        // The documented way to clear them.
        return Some(Vec::new());
    }
    all.iter().map(Entry::decode).collect()
}

fn encode(entries: &[Entry]) -> Vec<Value> {
    entries.iter().map(Entry::encode).collect()
}

/// Sets an object's managed fields.
pub(crate) fn set_entries(object: &mut Value, fields: Vec<Value>) {
    let Some(metadata) = object["metadata"].as_object_mut() else {
        return;
    };
    if fields.is_empty() {
        metadata.remove("managedFields");
    } else {
        metadata.insert("managedFields".to_owned(), Value::Array(fields));
    }
}

fn without_entries(value: &Value) -> Value {
    let mut value = value.clone();
    if let Some(metadata) = value["metadata"].as_object_mut() {
        metadata.remove("managedFields");
    }
    value
}

/// What nobody owns: identity, what the server sets, and the half that the endpoint does not write.
fn strip(resource: &Resource, subresource: &str, mut set: FieldSet) -> FieldSet {
    const NEVER: &[&[&str]] = &[
        &["apiVersion"],
        &["kind"],
        &["metadata", "name"],
        &["metadata", "namespace"],
        &["metadata", "creationTimestamp"],
        &["metadata", "deletionTimestamp"],
        &["metadata", "deletionGracePeriodSeconds"],
        &["metadata", "selfLink"],
        &["metadata", "uid"],
        &["metadata", "generation"],
        &["metadata", "managedFields"],
        &["metadata", "resourceVersion"],
    ];
    for path in NEVER {
        set.forget(path);
    }
    if let Some(metadata) = set.children.get_mut(&Step::Field("metadata".to_owned())) {
        metadata.member = false;
        if metadata.is_empty() {
            set.children.remove(&Step::Field("metadata".to_owned()));
        }
    }
    if subresource == "status" {
        set.forget(&["spec"]);
    } else if resource.status {
        set.forget(&["status"]);
    }
    set
}

/// The fields that an applied configuration owns.
pub(crate) fn owned_by_config(resource: &Resource, config: &Value, subresource: &str) -> FieldSet {
    strip(
        resource,
        subresource,
        typed::fields_of(&resource.schema, &without_entries(config)),
    )
}

/// Tracks a write that has been worked out otherwise: create, update, patch. `applied` is what an apply that creates
/// its object owns.
pub(crate) fn track(
    resource: &Resource,
    live: Option<&Value>,
    next: &mut Value,
    manager: &Manager,
    applied: Option<&FieldSet>,
) {
    // Whoever writes the object may edit its managed fields, to give up or hand over fields.
    let given = if manager.subresource.is_empty() {
        entries(next)
    } else {
        None
    };
    let mut all = given.or_else(|| entries(live?)).unwrap_or_default();
    let before = live.map(without_entries).unwrap_or_else(|| json!({}));
    let after = without_entries(next);
    let comparison = typed::compare(&resource.schema, &before, &after);
    let scaled = manager.subresource == "scale" && manager.operation == Operation::Update;
    let untold = scaled && !scale_is_told(&all, next);
    let clean = |set: &FieldSet| strip(resource, &manager.subresource, set.clone());
    let (changed, removed) = (clean(&comparison.changed()), clean(&comparison.removed));
    for entry in all.iter_mut().filter(|entry| !entry.is_of(manager)) {
        entry.set = entry.set.difference(&changed).difference(&removed);
    }
    let had = all
        .iter()
        .find(|entry| entry.is_of(manager))
        .map(|entry| entry.set.clone());
    let mut set = match applied {
        Some(applied) => applied.clone(),
        None => had
            .clone()
            .unwrap_or_default()
            .difference(&removed)
            .union(&changed),
    };
    if untold {
        set = FieldSet::default();
    }
    if manager.operation == Operation::Apply && manager.subresource == "scale" {
        set.insert(&[Step::Field("spec".to_owned()), Step::Field("replicas".to_owned())]);
    }
    own(&mut all, manager, set, had.as_ref());
    finish(&mut all);
    set_entries(next, encode(&all));
}

/// Whether Kubernetes notes who writes `/scale`. It tracks the fields of the Scale and not of the object: 0 replicas are
/// left out of it and so are nobody's, and a Scale of which nobody owns a field is not tracked at all.
fn scale_is_told(all: &[Entry], next: &Value) -> bool {
    let step = |name: &str| Step::Field(name.to_owned());
    let owns = |entry: &Entry| {
        let spec = entry.set.child(&step("spec"));
        spec.is_some_and(|spec| spec.child(&step("replicas")).is_some())
    };
    next["spec"]["replicas"].as_i64().unwrap_or(0) > 0 && all.iter().any(owns)
}

/// Gives `manager` exactly `set`.
fn own(all: &mut Vec<Entry>, manager: &Manager, set: FieldSet, had: Option<&FieldSet>) {
    if had == Some(&set) {
        // Nothing new is owned, so the time stays.
        if let Some(entry) = all.iter_mut().find(|entry| entry.is_of(manager)) {
            entry.manager.api_version.clone_from(&manager.api_version);
        }
        return;
    }
    all.retain(|entry| !entry.is_of(manager));
    if !set.is_empty() {
        all.push(Entry {
            manager: manager.clone(),
            time: names::now(),
            set,
        });
    }
}

/// Drops empty entries, merges too many, and sorts as Kubernetes does.
fn finish(all: &mut Vec<Entry>) {
    all.retain(|entry| !entry.set.is_empty());
    all.sort_by(|a, b| {
        let key = |entry: &Entry| {
            let manager = &entry.manager;
            (
                manager.operation,
                entry.time.clone(),
                manager.name.clone(),
                manager.api_version.clone(),
                manager.subresource.clone(),
            )
        };
        key(a).cmp(&key(b))
    });
    let mut updates = all
        .iter()
        .filter(|entry| entry.manager.operation == Operation::Update)
        .count();
    while updates > MOST_UPDATES {
        let oldest: Vec<usize> = all
            .iter()
            .enumerate()
            .filter(|(_, entry)| entry.manager.operation == Operation::Update)
            .map(|(at, _)| at)
            .take(2)
            .collect();
        let [first, second] = oldest.as_slice() else { break };
        let newer = all.remove(*second);
        let merged = &mut all[*first];
        merged.set = std::mem::take(&mut merged.set).union(&newer.set);
        merged.time = newer.time;
        ANCIENT.clone_into(&mut merged.manager.name);
        updates -= 1;
    }
}

/// Applies `config` to `live`, both in the resource's version: the next object and its managed fields.
pub(crate) fn apply(
    resource: &Resource,
    live: &Value,
    config: &Value,
    manager: &Manager,
    force: bool,
) -> Result<(Value, Vec<Value>), ApiError> {
    if config
        .pointer("/metadata/managedFields")
        .and_then(Value::as_array)
        .is_some_and(|all| !all.is_empty())
    {
        return Err(ApiError::bad_request("metadata.managedFields must be nil"));
    }
    let schema = &resource.schema;
    let clean = |set: FieldSet| strip(resource, &manager.subresource, set);
    let before = without_entries(live);
    let mut all = entries(live).unwrap_or_else(|| {
        // Nobody has been tracked: what is there belongs to those who were before.
        vec![Entry {
            manager: Manager {
                name: "before-first-apply".to_owned(),
                operation: Operation::Update,
                api_version: manager.api_version.clone(),
                subresource: String::new(),
            },
            time: names::now(),
            set: clean(typed::fields_of(schema, &before)),
        }]
    });
    let config = without_entries(config);
    let set = owned_by_config(resource, &config, &manager.subresource);
    let had = all
        .iter()
        .find(|entry| entry.is_of(manager))
        .map(|entry| entry.set.clone());
    let mut next = typed::merge(schema, Some(&before), &config);
    if let Some(had) = &had {
        let kept = all
            .iter()
            .filter(|entry| !entry.is_of(manager))
            .fold(set.clone(), |kept, entry| kept.union(&entry.set))
            .with_prefixes();
        let dropped = had.with_named_fields(schema).difference(&kept);
        typed::remove(schema, &mut next, &dropped);
    }
    let comparison = typed::compare(schema, &before, &next);
    let (changed, removed) = (clean(comparison.changed()), clean(comparison.removed));
    let conflicts: Vec<(String, FieldSet)> = all
        .iter()
        .filter(|entry| !entry.is_of(manager))
        .map(|entry| (entry.show(), entry.set.intersection(&changed)))
        .filter(|(_, set)| !set.is_empty())
        .collect();
    if !conflicts.is_empty() && !force {
        return Err(conflict(&conflicts));
    }
    for entry in all.iter_mut().filter(|entry| !entry.is_of(manager)) {
        entry.set = entry.set.difference(&changed).difference(&removed);
    }
    own(&mut all, manager, set, had.as_ref());
    finish(&mut all);
    Ok((next, encode(&all)))
}

fn conflict(conflicts: &[(String, FieldSet)]) -> ApiError {
    let mut causes = Vec::new();
    let mut by_manager: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (manager, set) in conflicts {
        for path in set.paths() {
            causes.push((format!("conflict with {manager}"), path.clone()));
            by_manager.entry(manager).or_default().push(path);
        }
    }
    let message = match causes.as_slice() {
        [(told, path)] => format!("Apply failed with 1 conflict: {told}: {path}"),
        all => {
            let parts: Vec<String> = by_manager
                .iter()
                .map(|(manager, paths)| {
                    let lines: Vec<String> = paths.iter().map(|path| format!("- {path}")).collect();
                    format!("conflicts with {manager}:\n{}", lines.join("\n"))
                })
                .collect();
            format!("Apply failed with {} conflicts: {}", all.len(), parts.join("\n"))
        }
    };
    ApiError::apply_conflict(message, &causes)
}

/// Refuses an apply of `/scale` that would change replicas that others own.
pub(crate) fn check_replicas(
    live: &Value,
    path: &[&str],
    manager: &Manager,
    force: bool,
) -> Result<(), ApiError> {
    if force {
        return Ok(());
    }
    let mut wanted = FieldSet::default();
    let steps: Vec<Step> = path.iter().map(|step| Step::Field((*step).to_owned())).collect();
    wanted.insert(&steps);
    let conflicts: Vec<(String, FieldSet)> = entries(live)
        .unwrap_or_default()
        .iter()
        .filter(|entry| !entry.is_of(manager))
        .map(|entry| (entry.show(), entry.set.intersection(&wanted)))
        .filter(|(_, set)| !set.is_empty())
        .collect();
    if conflicts.is_empty() {
        Ok(())
    } else {
        Err(conflict(&conflicts))
    }
}

/// What is wrong with managed fields that a client sends.
pub(crate) fn check_entries(value: &Value) -> Vec<Cause> {
    let all = value.pointer("/metadata/managedFields").and_then(Value::as_array);
    let mut causes = Vec::new();
    for (at, entry) in all.into_iter().flatten().enumerate() {
        if entry.as_object().is_some_and(Map::is_empty) {
            continue;
        }
        let field = format!("metadata.managedFields[{at}]");
        if !matches!(entry["operation"].as_str(), Some("Apply" | "Update")) {
            causes.push(Cause::invalid(
                format!("{field}.operation"),
                &entry["operation"],
                "must be `Apply` or `Update`",
            ));
        }
        if entry["manager"].as_str().is_some_and(|name| name.len() > 128) {
            causes.push(Cause::too_long(format!("{field}.manager"), 128));
        }
    }
    causes
}
