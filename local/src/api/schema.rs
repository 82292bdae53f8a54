//! One small schema for built-in kinds and custom resources alike.
//!
//! Built-in schemas come from the OpenAPI descriptions that `k8s-openapi` carries; those say nothing about how lists
//! and maps merge, so [`MERGE_KEYS`] and [`ATOMIC`] add it. Custom resources say it themselves (`x-kubernetes-…`).

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value};

/// What a value may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Type {
    Object,
    Array,
    String,
    Integer,
    Number,
    Boolean,
    IntOrString,
    /// Not described: anything goes, and it is one indivisible field for server-side apply.
    Any,
}

/// How a list merges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ListKind {
    Atomic,
    Set,
    Map(Vec<String>),
}

/// The schema of one value.
#[derive(Clone, Debug)]
pub(crate) struct Schema {
    /// Definition name of a built-in type, else empty.
    pub(crate) name: String,
    pub(crate) kind: Type,
    pub(crate) properties: BTreeMap<String, Arc<Schema>>,
    /// Schema of the values under keys that `properties` does not name.
    pub(crate) additional: Option<Arc<Schema>>,
    pub(crate) items: Option<Arc<Schema>>,
    pub(crate) required: Vec<String>,
    pub(crate) list: ListKind,
    /// A map or struct that merges as one value.
    pub(crate) atomic: bool,
    pub(crate) preserve_unknown: bool,
    pub(crate) embedded: bool,
    pub(crate) nullable: bool,
    pub(crate) default: Option<Value>,
    pub(crate) format: String,
    /// Limits of a custom resource's schema, as written there.
    pub(crate) limits: Option<Arc<Map<String, Value>>>,
}

impl Schema {
    pub(crate) fn any() -> Self {
        Self {
            name: String::new(),
            kind: Type::Any,
            properties: BTreeMap::new(),
            additional: None,
            items: None,
            required: Vec::new(),
            list: ListKind::Atomic,
            atomic: false,
            preserve_unknown: true,
            embedded: false,
            nullable: true,
            default: None,
            format: String::new(),
            limits: None,
        }
    }

    /// The schema of the value under `key`, if there may be one.
    pub(crate) fn child(&self, key: &str) -> Option<&Arc<Schema>> {
        self.properties.get(key).or(self.additional.as_ref())
    }

    /// A map from strings, rather than a struct.
    pub(crate) fn is_map(&self) -> bool {
        self.kind == Type::Object && self.properties.is_empty() && self.additional.is_some()
    }
}

/// Lists that merge by key or as a set: (definition, property, keys); no key means a set.
/// The first key is also the strategic merge patch's key.
const MERGE_KEYS: &[(&str, &str, &[&str])] = &[
    ("ObjectMeta", "ownerReferences", &["uid"]),
    ("ObjectMeta", "finalizers", &[]),
    ("PodSpec", "containers", &["name"]),
    ("PodSpec", "initContainers", &["name"]),
    ("PodSpec", "ephemeralContainers", &["name"]),
    ("PodSpec", "hostAliases", &["ip"]),
    ("PodSpec", "imagePullSecrets", &["name"]),
    ("PodSpec", "resourceClaims", &["name"]),
    ("PodSpec", "schedulingGates", &["name"]),
    (
        "PodSpec",
        "topologySpreadConstraints",
        &["topologyKey", "whenUnsatisfiable"],
    ),
    ("PodSpec", "volumes", &["name"]),
    ("Container", "env", &["name"]),
    ("Container", "ports", &["containerPort", "protocol"]),
    ("Container", "volumeDevices", &["devicePath"]),
    ("Container", "volumeMounts", &["mountPath"]),
    ("EphemeralContainer", "env", &["name"]),
    ("EphemeralContainer", "ports", &["containerPort", "protocol"]),
    ("EphemeralContainer", "volumeDevices", &["devicePath"]),
    ("EphemeralContainer", "volumeMounts", &["mountPath"]),
    ("ResourceRequirements", "claims", &["name"]),
    ("ContainerStatus", "volumeMounts", &["mountPath"]),
    ("PodStatus", "conditions", &["type"]),
    ("PodStatus", "podIPs", &["ip"]),
    ("PodStatus", "resourceClaimStatuses", &["name"]),
    ("ServiceSpec", "ports", &["port", "protocol"]),
    ("ServiceStatus", "conditions", &["type"]),
    ("ServiceAccount", "secrets", &["name"]),
    ("NamespaceStatus", "conditions", &["type"]),
    ("NodeSpec", "podCIDRs", &[]),
    ("NodeStatus", "addresses", &["type"]),
    ("NodeStatus", "conditions", &["type"]),
    ("DeploymentStatus", "conditions", &["type"]),
    ("ReplicaSetStatus", "conditions", &["type"]),
    ("StatefulSetStatus", "conditions", &["type"]),
    ("HorizontalPodAutoscalerStatus", "conditions", &["type"]),
    ("PodDisruptionBudgetStatus", "conditions", &["type"]),
    ("Endpoint", "addresses", &[]),
    ("CustomResourceDefinitionStatus", "conditions", &["type"]),
];

/// Maps and structs that are one value to server-side apply: (definition, property), or a whole definition.
const ATOMIC: &[(&str, &str)] = &[
    ("ServiceSpec", "selector"),
    ("PodSpec", "nodeSelector"),
    ("LabelSelector", ""),
    ("LocalObjectReference", ""),
    ("ObjectReference", ""),
    ("OwnerReference", ""),
    ("TypedLocalObjectReference", ""),
    ("ConfigMapKeySelector", ""),
    ("SecretKeySelector", ""),
    ("SecretReference", ""),
    ("ObjectFieldSelector", ""),
    ("ResourceFieldSelector", ""),
    ("NodeSelector", ""),
    ("NodeSelectorTerm", ""),
    ("EndpointPort", ""),
    ("RoleRef", ""),
    ("Subject", ""),
];

/// Writes [`MERGE_KEYS`] and [`ATOMIC`] into the definitions, for clients that work out patches themselves.
pub(crate) fn describe_merging(definitions: &mut Map<String, Value>) {
    for (name, definition) in definitions.iter_mut() {
        let short = name.rsplit('.').next().unwrap_or(name);
        for (_, property, keys) in MERGE_KEYS.iter().filter(|row| row.0 == short) {
            let Some(list) = definition.pointer_mut(&format!("/properties/{property}")) else {
                continue;
            };
            let Some(list) = list.as_object_mut() else {
                continue;
            };
            list.insert("x-kubernetes-patch-strategy".to_owned(), "merge".into());
            list.insert(
                "x-kubernetes-list-type".to_owned(),
                if keys.is_empty() { "set" } else { "map" }.into(),
            );
            if let Some(first) = keys.first() {
                list.insert("x-kubernetes-list-map-keys".to_owned(), keys.to_vec().into());
                list.insert("x-kubernetes-patch-merge-key".to_owned(), (*first).into());
            }
        }
        for (_, property) in ATOMIC.iter().filter(|row| row.0 == short) {
            let pointer = if property.is_empty() {
                String::new()
            } else {
                format!("/properties/{property}")
            };
            if let Some(map) = definition.pointer_mut(&pointer).and_then(Value::as_object_mut) {
                map.insert("x-kubernetes-map-type".to_owned(), "atomic".into());
            }
        }
    }
}

/// Reads built-in definitions, once each.
pub(crate) struct Loader<'a> {
    definitions: &'a Map<String, Value>,
    done: BTreeMap<String, Arc<Schema>>,
}

impl<'a> Loader<'a> {
    pub(crate) fn new(definitions: &'a Map<String, Value>) -> Self {
        Self {
            definitions,
            done: BTreeMap::new(),
        }
    }

    /// The schema of the definition `name`, as `io.k8s.api.core.v1.Pod`.
    pub(crate) fn load(&mut self, name: &str) -> Arc<Schema> {
        if let Some(schema) = self.done.get(name) {
            return Arc::clone(schema);
        }
        // The only definition that contains itself; what is in it is checked when the CRD is read.
        let schema = if name.ends_with("JSONSchemaProps") {
            Schema::any()
        } else {
            match self.definitions.get(name) {
                Some(definition) => self.read(definition, name),
                None => Schema::any(),
            }
        };
        let schema = Arc::new(schema);
        self.done.insert(name.to_owned(), Arc::clone(&schema));
        schema
    }

    fn read(&mut self, definition: &Value, name: &str) -> Schema {
        let mut schema = leaf(definition);
        name.clone_into(&mut schema.name);
        let short = name.rsplit('.').next().unwrap_or(name);
        if ATOMIC.contains(&(short, "")) {
            schema.atomic = true;
        }
        if let Some(properties) = definition.get("properties").and_then(Value::as_object) {
            for (key, property) in properties {
                let child = self.property(property, short, key);
                schema.properties.insert(key.clone(), child);
            }
        }
        if let Some(additional) = definition.get("additionalProperties").filter(|it| it.is_object()) {
            schema.additional = Some(self.property(additional, "", ""));
        }
        if let Some(items) = definition.get("items") {
            schema.items = Some(self.property(items, "", ""));
        }
        schema
    }

    fn property(&mut self, property: &Value, owner: &str, key: &str) -> Arc<Schema> {
        if let Some(name) = reference(property) {
            return self.load(&name);
        }
        let mut schema = self.read(property, "");
        if let Some((_, _, keys)) = MERGE_KEYS.iter().find(|row| row.0 == owner && row.1 == key) {
            schema.list = if keys.is_empty() {
                ListKind::Set
            } else {
                ListKind::Map(keys.iter().map(|&key| key.to_owned()).collect())
            };
        }
        schema.atomic = ATOMIC.contains(&(owner, key));
        Arc::new(schema)
    }
}

/// The definition that a schema refers to.
fn reference(schema: &Value) -> Option<String> {
    let target = schema.get("$ref").and_then(Value::as_str).or_else(|| {
        schema
            .get("allOf")
            .and_then(Value::as_array)
            .and_then(|all| all.first()?.get("$ref")?.as_str())
    })?;
    target.rsplit('/').next().map(str::to_owned)
}

/// Everything of a schema that is not another schema.
fn leaf(definition: &Value) -> Schema {
    let flag = |key: &str| definition.get(key).and_then(Value::as_bool).unwrap_or(false);
    let text = |key: &str| definition.get(key).and_then(Value::as_str).unwrap_or_default();
    let kind = match text("type") {
        _ if flag("x-kubernetes-int-or-string") => Type::IntOrString,
        "object" => Type::Object,
        "array" => Type::Array,
        "string" => Type::String,
        "integer" => Type::Integer,
        "number" => Type::Number,
        "boolean" => Type::Boolean,
        _ if definition.get("properties").is_some() => Type::Object,
        _ => Type::Any,
    };
    let words = |key: &str| -> Vec<String> {
        definition
            .get(key)
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(|word| word.as_str().map(str::to_owned))
            .collect()
    };
    let list = match text("x-kubernetes-list-type") {
        "map" => ListKind::Map(words("x-kubernetes-list-map-keys")),
        "set" => ListKind::Set,
        _ => ListKind::Atomic,
    };
    Schema {
        kind,
        required: words("required"),
        list,
        atomic: text("x-kubernetes-map-type") == "atomic",
        preserve_unknown: flag("x-kubernetes-preserve-unknown-fields") || kind == Type::Any,
        embedded: flag("x-kubernetes-embedded-resource"),
        nullable: flag("nullable") || kind == Type::Any,
        default: definition.get("default").cloned(),
        format: text("format").to_owned(),
        ..Schema::any()
    }
}

/// The schema of a custom resource's `openAPIV3Schema`.
pub(crate) fn custom(definition: &Value) -> Schema {
    let mut schema = leaf(definition);
    if let Some(properties) = definition.get("properties").and_then(Value::as_object) {
        for (key, property) in properties {
            schema.properties.insert(key.clone(), Arc::new(custom(property)));
        }
    }
    match definition.get("additionalProperties") {
        Some(Value::Bool(true)) => schema.additional = Some(Arc::new(Schema::any())),
        Some(additional) if additional.is_object() => schema.additional = Some(Arc::new(custom(additional))),
        _ => {}
    }
    if let Some(items) = definition.get("items") {
        schema.items = Some(Arc::new(custom(items)));
    }
    schema.limits = definition.as_object().map(|map| {
        const KEPT: &[&str] = &[
            "enum",
            "minimum",
            "maximum",
            "exclusiveMinimum",
            "exclusiveMaximum",
            "minLength",
            "maxLength",
            "minItems",
            "maxItems",
            "minProperties",
            "maxProperties",
            "multipleOf",
        ];
        Arc::new(
            map.iter()
                .filter(|(key, _)| KEPT.contains(&key.as_str()))
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect::<Map<_, _>>(),
        )
    });
    schema.limits = schema.limits.filter(|limits| !limits.is_empty());
    schema
}
