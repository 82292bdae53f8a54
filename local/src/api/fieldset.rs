//! Sets of fields: who owns what, in memory and as `fieldsV1`.
//!
//! A path is in the set when the node at its end is a member; `{"f:a":{".":{},"f:b":{}}}` holds `a` and `a.b`.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::schema::Schema;

/// One step of a path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    /// A key of a map or a field of a struct.
    Field(String),
    /// An item of a list with keys: the JSON object of its keys.
    Key(String),
    /// An item of a set: its JSON.
    Value(String),
    /// An item of a list by place. Read from others, never written by us.
    Index(u64),
}

impl Step {
    fn encode(&self) -> String {
        match self {
            Self::Field(name) => format!("f:{name}"),
            Self::Key(keys) => format!("k:{keys}"),
            Self::Value(value) => format!("v:{value}"),
            Self::Index(at) => format!("i:{at}"),
        }
    }

    fn decode(text: &str) -> Option<Self> {
        let (kind, rest) = text.split_once(':')?;
        let json = || {
            serde_json::from_str::<Value>(rest)
                .ok()
                .map(|value| canonical(&value))
        };
        match kind {
            "f" => Some(Self::Field(rest.to_owned())),
            "k" => json().map(Self::Key),
            "v" => json().map(Self::Value),
            "i" => rest.parse().ok().map(Self::Index),
            _ => None,
        }
    }

    /// As in `.spec.containers[name="web"]`.
    fn show(&self) -> String {
        match self {
            Self::Field(name) => format!(".{name}"),
            Self::Key(keys) => {
                let keys: Map<String, Value> = serde_json::from_str(keys).unwrap_or_default();
                let keys: BTreeMap<_, _> = keys.iter().collect();
                let shown: Vec<String> = keys.iter().map(|(key, value)| format!("{key}={value}")).collect();
                format!("[{}]", shown.join(","))
            }
            Self::Value(value) => format!("[={value}]"),
            Self::Index(at) => format!("[{at}]"),
        }
    }
}

/// JSON with sorted keys, so that equal values are equal texts.
pub(crate) fn canonical(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let sorted: BTreeMap<_, _> = map.iter().collect();
            serde_json::to_string(&sorted).unwrap_or_default()
        }
        other => other.to_string(),
    }
}

/// A set of paths.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FieldSet {
    pub(crate) member: bool,
    pub(crate) children: BTreeMap<Step, FieldSet>,
}

impl FieldSet {
    pub(crate) fn is_empty(&self) -> bool {
        !self.member && self.children.is_empty()
    }

    pub(crate) fn insert(&mut self, path: &[Step]) {
        let mut at = self;
        for step in path {
            at = at.children.entry(step.clone()).or_default();
        }
        at.member = true;
    }

    pub(crate) fn child(&self, step: &Step) -> Option<&FieldSet> {
        self.children.get(step)
    }

    pub(crate) fn union(mut self, other: &Self) -> Self {
        self.add(other);
        self
    }

    fn add(&mut self, other: &Self) {
        self.member |= other.member;
        for (step, child) in &other.children {
            self.children.entry(step.clone()).or_default().add(child);
        }
    }

    /// What is in this set and not in the other.
    pub(crate) fn difference(&self, other: &Self) -> Self {
        let mut result = Self {
            member: self.member && !other.member,
            children: BTreeMap::new(),
        };
        for (step, child) in &self.children {
            let left = match other.children.get(step) {
                Some(theirs) => child.difference(theirs),
                None => child.clone(),
            };
            if !left.is_empty() {
                result.children.insert(step.clone(), left);
            }
        }
        result
    }

    pub(crate) fn intersection(&self, other: &Self) -> Self {
        let mut result = Self {
            member: self.member && other.member,
            children: BTreeMap::new(),
        };
        for (step, child) in &self.children {
            if let Some(theirs) = other.children.get(step) {
                let both = child.intersection(theirs);
                if !both.is_empty() {
                    result.children.insert(step.clone(), both);
                }
            }
        }
        result
    }

    /// Forgets a path and all below it.
    pub(crate) fn forget(&mut self, path: &[&str]) {
        let Some((first, rest)) = path.split_first() else {
            return;
        };
        let step = Step::Field((*first).to_owned());
        if rest.is_empty() {
            self.children.remove(&step);
        } else if let Some(child) = self.children.get_mut(&step) {
            child.forget(rest);
            if child.is_empty() {
                self.children.remove(&step);
            }
        }
    }

    /// Adds the fields that a schema names and that lead to a member. Owning `a.b.c` then means owning the field `a`.
    pub(crate) fn with_named_fields(&self, schema: &Schema) -> Self {
        let mut result = Self {
            member: self.member,
            children: BTreeMap::new(),
        };
        for (step, child) in &self.children {
            let (below, named) = match step {
                Step::Field(name) => (schema.child(name).cloned(), schema.properties.contains_key(name)),
                _ => (schema.items.clone(), false),
            };
            let mut next = match below {
                Some(below) => child.with_named_fields(&below),
                None => child.clone(),
            };
            next.member |= named;
            result.children.insert(step.clone(), next);
        }
        result
    }

    /// Every path that leads to a member, too.
    pub(crate) fn with_prefixes(&self) -> Self {
        Self {
            member: !self.is_empty(),
            children: self
                .children
                .iter()
                .map(|(step, child)| (step.clone(), child.with_prefixes()))
                .collect(),
        }
    }

    /// The paths as Kubernetes writes them in conflicts.
    pub(crate) fn paths(&self) -> Vec<String> {
        fn walk(set: &FieldSet, prefix: &str, all: &mut Vec<String>) {
            if set.member {
                all.push(prefix.to_owned());
            }
            for (step, child) in &set.children {
                walk(child, &format!("{prefix}{}", step.show()), all);
            }
        }
        let mut all = Vec::new();
        walk(self, "", &mut all);
        all
    }

    /// As `fieldsV1`.
    pub(crate) fn encode(&self) -> Value {
        let mut map = Map::new();
        for (step, child) in &self.children {
            let mut inner = child.encode();
            if child.member
                && !child.children.is_empty()
                && let Some(inner) = inner.as_object_mut()
            {
                inner.insert(".".to_owned(), Value::Object(Map::new()));
            }
            map.insert(step.encode(), inner);
        }
        Value::Object(map)
    }

    /// From `fieldsV1`; none: it is not that.
    pub(crate) fn decode(value: &Value) -> Option<Self> {
        let mut set = Self::default();
        for (key, inner) in value.as_object()? {
            if key == "." {
                set.member = true;
                continue;
            }
            let mut child = Self::decode(inner)?;
            if child.children.is_empty() {
                child.member = true;
            }
            set.children.insert(Step::decode(key)?, child);
        }
        Some(set)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn sets_survive_the_wire() {
        let wire = json!({
            "f:metadata": { "f:labels": { ".": {}, "f:a": {} } },
            "f:spec": { "f:ports": { "k:{\"port\":80,\"protocol\":\"TCP\"}": { ".": {}, "f:port": {} } } },
            "f:list": { "v:\"x\"": {} },
        });
        let set = FieldSet::decode(&wire).unwrap();
        assert_eq!(set.encode(), wire);
        assert_eq!(
            set.paths(),
            [
                ".list[=\"x\"]",
                ".metadata.labels",
                ".metadata.labels.a",
                ".spec.ports[port=80,protocol=\"TCP\"]",
                ".spec.ports[port=80,protocol=\"TCP\"].port",
            ]
        );
        assert!(FieldSet::decode(&json!({"x": {}})).is_none());
    }

    #[test]
    fn set_operations_are_exact() {
        let set = |wire: Value| FieldSet::decode(&wire).unwrap();
        let left = set(json!({"f:a": {".": {}, "f:b": {}, "f:c": {}}}));
        let right = set(json!({"f:a": {"f:b": {}}}));
        assert_eq!(left.difference(&right), set(json!({"f:a": {".": {}, "f:c": {}}})));
        assert_eq!(left.intersection(&right), right);
        assert_eq!(right.clone().union(&left), left);
        assert!(right.difference(&left).is_empty());
    }
}
