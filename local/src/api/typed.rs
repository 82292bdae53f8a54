//! Values seen through their schema: which fields they set, how two of them differ, and how one merges into another.
//!
//! As Kubernetes' structured-merge-diff: a leaf is a scalar or anything atomic; lists with keys are maps in disguise.

use serde_json::{Map, Value};

use super::fieldset::{FieldSet, Step, canonical};
use super::schema::{ListKind, Schema, Type};

/// How a value is walked.
enum Node<'a> {
    Leaf,
    /// A map or a struct, field by field.
    Fields,
    /// A list whose items are told apart by these keys; none: by their value.
    Items(&'a [String]),
}

fn node<'a>(schema: &'a Schema, value: &Value) -> Node<'a> {
    match (schema.kind, value) {
        (Type::Object, Value::Object(_)) if !schema.atomic => Node::Fields,
        // Undescribed parts of custom resources are walked as what they look like; those of built-in kinds are atomic.
        (Type::Any, Value::Object(_)) if schema.name.is_empty() && !schema.atomic => Node::Fields,
        (Type::Array, Value::Array(_)) => match &schema.list {
            ListKind::Atomic => Node::Leaf,
            ListKind::Set => Node::Items(&[]),
            ListKind::Map(keys) => Node::Items(keys),
        },
        _ => Node::Leaf,
    }
}

fn child<'a>(schema: &'a Schema, key: &str, any: &'a Schema) -> &'a Schema {
    schema.child(key).map_or(any, |it| it)
}

/// The step that leads to an item of a list.
pub(crate) fn item_step(keys: &[String], item: &Value) -> Step {
    if keys.is_empty() {
        return Step::Value(canonical(item));
    }
    let mut map = Map::new();
    for key in keys {
        match item.get(key) {
            Some(value) => {
                map.insert(key.clone(), value.clone());
            }
            // The only key with a default in Kubernetes' own schemas.
            None if key == "protocol" => {
                map.insert(key.clone(), "TCP".into());
            }
            None => {}
        }
    }
    Step::Key(canonical(&Value::Object(map)))
}

/// The fields that a value sets.
pub(crate) fn fields_of(schema: &Schema, value: &Value) -> FieldSet {
    let any = Schema::any();
    let mut set = FieldSet::default();
    walk(schema, value, &any, &mut set);
    set
}

fn walk(schema: &Schema, value: &Value, any: &Schema, set: &mut FieldSet) {
    match (node(schema, value), value) {
        (Node::Fields, Value::Object(map)) => {
            for (key, value) in map {
                let below = set.children.entry(Step::Field(key.clone())).or_default();
                walk(child(schema, key, any), value, any, below);
                let empty = value.is_null() || value.as_object().is_some_and(Map::is_empty);
                if empty || !schema.properties.contains_key(key) {
                    below.member = true;
                }
                if below.is_empty() {
                    set.children.remove(&Step::Field(key.clone()));
                }
            }
        }
        (Node::Items(keys), Value::Array(items)) => {
            let schema = schema.items.as_deref().unwrap_or(any);
            for item in items {
                let below = set.children.entry(item_step(keys, item)).or_default();
                if !keys.is_empty() {
                    walk(schema, item, any, below);
                }
                below.member = true;
            }
        }
        _ => set.member = true,
    }
}

/// How two values differ.
#[derive(Clone, Debug, Default)]
pub(crate) struct Comparison {
    pub(crate) added: FieldSet,
    pub(crate) modified: FieldSet,
    pub(crate) removed: FieldSet,
}

impl Comparison {
    pub(crate) fn changed(&self) -> FieldSet {
        self.added.clone().union(&self.modified)
    }
}

/// Compares two values of one schema.
pub(crate) fn compare(schema: &Schema, before: &Value, after: &Value) -> Comparison {
    let any = Schema::any();
    let mut comparison = Comparison::default();
    diff(
        schema,
        Some(before),
        Some(after),
        &any,
        &mut Vec::new(),
        &mut comparison,
    );
    comparison
}

fn diff(
    schema: &Schema,
    before: Option<&Value>,
    after: Option<&Value>,
    any: &Schema,
    path: &mut Vec<Step>,
    out: &mut Comparison,
) {
    let Some(shape) = after.filter(|it| !it.is_null()).or(before).or(after) else {
        return;
    };
    let empty = |value: Option<&Value>| {
        value.is_none_or(|value| match value {
            Value::Null => true,
            Value::Array(items) => items.is_empty(),
            Value::Object(map) => map.is_empty(),
            _ => false,
        })
    };
    let comparable = match (before, after) {
        (Some(before), Some(after)) => std::mem::discriminant(before) == std::mem::discriminant(after),
        _ => true,
    };
    let kind = node(schema, shape);
    if matches!(kind, Node::Leaf) || !comparable || (empty(before) && empty(after)) {
        match (before, after) {
            (None, _) => out.added.insert(path),
            (_, None) => out.removed.insert(path),
            (Some(before), Some(after)) if before != after => out.modified.insert(path),
            _ => {}
        }
        return;
    }
    if before == after {
        return;
    }
    let mut go = |step: Step, schema: &Schema, before: Option<&Value>, after: Option<&Value>| {
        path.push(step);
        diff(schema, before, after, any, path, out);
        path.pop();
    };
    match kind {
        Node::Fields => {
            let none = Map::new();
            let left = before.and_then(Value::as_object).unwrap_or(&none);
            let right = after.and_then(Value::as_object).unwrap_or(&none);
            for (key, value) in left {
                go(
                    Step::Field(key.clone()),
                    child(schema, key, any),
                    Some(value),
                    right.get(key),
                );
            }
            for (key, value) in right.iter().filter(|(key, _)| !left.contains_key(*key)) {
                go(
                    Step::Field(key.clone()),
                    child(schema, key, any),
                    None,
                    Some(value),
                );
            }
        }
        Node::Items(keys) => {
            let items = |value: Option<&Value>| -> Vec<(Step, Value)> {
                let all = value.and_then(Value::as_array).into_iter().flatten();
                all.map(|item| (item_step(keys, item), item.clone())).collect()
            };
            let (left, right) = (items(before), items(after));
            let schema = schema.items.as_deref().unwrap_or(any);
            let find = |all: &[(Step, Value)], step: &Step| {
                all.iter().find(|it| it.0 == *step).map(|it| it.1.clone())
            };
            for (step, value) in &left {
                go(step.clone(), schema, Some(value), find(&right, step).as_ref());
            }
            for (step, value) in right.iter().filter(|it| find(&left, &it.0).is_none()) {
                go(step.clone(), schema, None, Some(value));
            }
        }
        Node::Leaf => {}
    }
    if before.is_none() {
        out.added.insert(path);
    } else if after.is_none() {
        out.removed.insert(path);
    }
}

/// `config` merged into `live`: what it names is as it says, the rest stays.
pub(crate) fn merge(schema: &Schema, live: Option<&Value>, config: &Value) -> Value {
    let any = Schema::any();
    merge_in(schema, live, config, &any)
}

fn merge_in(schema: &Schema, live: Option<&Value>, config: &Value, any: &Schema) -> Value {
    match (node(schema, config), config, live) {
        (Node::Fields, Value::Object(config), live) => {
            let mut result = live.and_then(Value::as_object).cloned().unwrap_or_default();
            for (key, value) in config {
                let merged = merge_in(child(schema, key, any), result.get(key), value, any);
                result.insert(key.clone(), merged);
            }
            Value::Object(result)
        }
        (Node::Items(keys), Value::Array(config), Some(Value::Array(live))) => {
            let schema = schema.items.as_deref().unwrap_or(any);
            Value::Array(merge_items(schema, keys, live, config, any))
        }
        (Node::Items(keys), Value::Array(config), _) => {
            let schema = schema.items.as_deref().unwrap_or(any);
            Value::Array(merge_items(schema, keys, &[], config, any))
        }
        _ => config.clone(),
    }
}

/// Items keep the order of `config`; items only in `live` stay where they were among them.
fn merge_items(
    schema: &Schema,
    keys: &[String],
    live: &[Value],
    config: &[Value],
    any: &Schema,
) -> Vec<Value> {
    let left: Vec<(Step, &Value)> = live.iter().map(|item| (item_step(keys, item), item)).collect();
    let right: Vec<(Step, &Value)> = config.iter().map(|item| (item_step(keys, item), item)).collect();
    let in_left = |step: &Step| left.iter().find(|it| it.0 == *step).map(|it| it.1);
    let in_right = |step: &Step| right.iter().any(|it| it.0 == *step);
    let mut shared = right
        .iter()
        .map(|it| &it.0)
        .filter(|step| in_left(step).is_some());
    let mut next_shared = shared.next();
    let mut merged: Vec<&Step> = Vec::new();
    let mut out = Vec::new();
    let (mut l, mut r) = (0, 0);
    while l < left.len() || r < right.len() {
        if l < left.len() && r < right.len() {
            let (step, item) = &left[l];
            if *step == right[r].0 {
                merged.push(step);
                out.push(merge_in(schema, Some(item), right[r].1, any));
                l += 1;
                r += 1;
                next_shared = shared.next();
                continue;
            }
            if in_right(step) && next_shared.is_some_and(|next| next != step) {
                // Shared, but not its turn.
                l += 1;
                continue;
            }
        }
        if l < left.len() {
            let (step, item) = &left[l];
            if !in_right(step) {
                out.push((*item).clone());
                l += 1;
                continue;
            }
            if merged.contains(&step) {
                l += 1;
            }
        }
        if r < right.len() {
            let (step, item) = &right[r];
            merged.push(step);
            out.push(merge_in(schema, in_left(step), item, any));
            r += 1;
            if next_shared == Some(step) {
                next_shared = shared.next();
            }
        }
    }
    out
}

/// The value without the fields in `set`; a container that loses its last field goes, too.
pub(crate) fn remove(schema: &Schema, value: &mut Value, set: &FieldSet) {
    let any = Schema::any();
    remove_in(schema, value, set, &any);
}

fn remove_in(schema: &Schema, value: &mut Value, set: &FieldSet, any: &Schema) {
    let kind = node(schema, value);
    match (kind, value) {
        (Node::Fields, Value::Object(map)) => {
            for (step, below) in &set.children {
                let Step::Field(key) = step else { continue };
                if below.member {
                    map.remove(key);
                } else if let Some(inner) = map.get_mut(key) {
                    remove_in(child(schema, key, any), inner, below, any);
                    if is_empty(inner) {
                        map.remove(key);
                    }
                }
            }
        }
        (Node::Items(keys), Value::Array(items)) => {
            let schema = schema.items.as_deref().unwrap_or(any);
            items.retain_mut(|item| match set.child(&item_step(keys, item)) {
                None => true,
                Some(below) if below.member => false,
                Some(below) => {
                    remove_in(schema, item, below, any);
                    true
                }
            });
        }
        _ => {}
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}
