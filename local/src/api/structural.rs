//! Structure: is each value of the type that its schema says, and does its schema know it?
//!
//! Built-in kinds are decoded as Go does it: a wrong type is 400, unknown fields, nulls and empty optional lists vanish.
//! Custom resources are pruned, defaulted, then validated: a wrong type is 422.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::request::Validation;
use super::resources::{Resource, metadata_schema};
use super::schema::{ListKind, Schema, Type};
use super::status::{ApiError, Cause};

/// Most unknown fields that are named in an answer.
const MOST_UNKNOWN: usize = 50;

/// How deep an object may nest: serde_json's own limit is 128, and each level here is one call.
const MOST_DEPTH: usize = 120;

/// The JSON type of a value, as Go names it.
pub(crate) fn word(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Brings `value` into the resource's structure. The warnings are for the client.
pub(crate) fn check(
    resource: &Resource,
    value: &mut Value,
    validation: Validation,
) -> Result<Vec<String>, ApiError> {
    let mut unknown = Vec::new();
    if resource.custom {
        prune(&resource.schema, value, "", &mut unknown, 0);
        let warnings = report(resource, &unknown, validation)?;
        if let Some(metadata) = value.get_mut("metadata") {
            decode(&metadata_schema(), metadata, "metadata", &mut unknown, 0).map_err(|why| {
                ApiError::bad_request(format!(
                    "{} in version \"{}\" cannot be handled as a {}: {why}",
                    resource.kind, resource.version, resource.kind
                ))
            })?;
        }
        default(&resource.schema, value);
        let mut causes = Vec::new();
        validate(&resource.schema, value, "", &mut causes);
        if !causes.is_empty() {
            let name = value["metadata"]["name"].as_str().unwrap_or_default();
            return Err(ApiError::invalid(&resource.group, &resource.kind, name, &causes));
        }
        return Ok(warnings);
    }
    decode(&resource.schema, value, "", &mut unknown, 0).map_err(|why| {
        ApiError::bad_request(format!(
            "{} in version \"{}\" cannot be handled as a {}: {why}",
            resource.kind, resource.version, resource.kind
        ))
    })?;
    report(resource, &unknown, validation)
}

fn report(resource: &Resource, unknown: &[String], validation: Validation) -> Result<Vec<String>, ApiError> {
    let told = || {
        unknown
            .iter()
            .take(MOST_UNKNOWN)
            .map(|path| format!("unknown field \"{path}\""))
    };
    match validation {
        Validation::Ignore => Ok(Vec::new()),
        Validation::Warn => Ok(told().collect()),
        Validation::Strict if unknown.is_empty() => Ok(Vec::new()),
        Validation::Strict => {
            let told = told().collect::<Vec<_>>().join(", ");
            Err(ApiError::bad_request(if resource.custom {
                format!("strict decoding error: {told}")
            } else {
                format!(
                    "{} in version \"{}\" cannot be handled as a {}: strict decoding error: {told}",
                    resource.kind, resource.version, resource.kind
                )
            }))
        }
    }
}

/// Checks the configuration of a server-side apply, which may name only fields that there are.
pub(crate) fn check_applied(
    resource: &Resource,
    value: &mut Value,
    validation: Validation,
) -> Result<Vec<String>, ApiError> {
    let mut unknown = Vec::new();
    let mut failed = None;
    if resource.custom {
        let mut causes = Vec::new();
        let mut copy = value.clone();
        prune(&resource.schema, &mut copy, "", &mut unknown, 0);
        types(&resource.schema, &copy, "", &mut causes);
        failed = causes
            .first()
            .map(|cause| format!(".{}: {}", cause.field, cause.message));
    } else if let Err(why) = decode(&resource.schema, value, "", &mut unknown, 0) {
        failed = Some(why);
    }
    let undeclared = unknown
        .first()
        .map(|path| format!(".{path}: field not declared in schema"));
    // What is not declared cannot be owned, whatever `fieldValidation` says.
    let _ = validation;
    match failed.or(undeclared) {
        None => Ok(Vec::new()),
        Some(why) => {
            let metadata = &value["metadata"];
            let text = |key: &str| metadata[key].as_str().unwrap_or_default();
            let mut error = ApiError::internal(format!(
                "failed to create typed patch object ({}/{}; {}, Kind={}): {why}",
                text("namespace"),
                text("name"),
                resource.api_version(),
                resource.kind
            ));
            error.reason = "";
            Err(error)
        }
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

/// Decodes a built-in kind.
fn decode(
    schema: &Schema,
    value: &mut Value,
    path: &str,
    unknown: &mut Vec<String>,
    depth: usize,
) -> Result<(), String> {
    if depth > MOST_DEPTH {
        return Err("the object nests too deeply".to_owned());
    }
    let wrong = |value: &Value, wanted: &str| {
        Err(format!(
            "json: cannot unmarshal {} into Go struct field {path} of type {wanted}",
            word(value)
        ))
    };
    match (schema.kind, &mut *value) {
        (Type::Any, _) | (_, Value::Null) => Ok(()),
        (Type::Object, Value::Object(map)) => decode_object(schema, map, path, unknown, depth),
        (Type::Array, Value::Array(items)) => {
            let Some(inner) = &schema.items else { return Ok(()) };
            for (at, item) in items.iter_mut().enumerate() {
                decode(inner, item, &format!("{path}[{at}]"), unknown, depth + 1)?;
            }
            Ok(())
        }
        (Type::String, Value::String(text)) => decode_text(schema, text, path),
        (Type::Integer, Value::Number(number)) => {
            if number.is_i64() || number.is_u64() {
                return Ok(());
            }
            match number.as_f64() {
                Some(float) if float.fract() == 0.0 && float.abs() < 9e15 => {
                    // Checked: whole, and small enough to be exact.
                    #[allow(clippy::cast_possible_truncation)]
                    let whole = float as i64;
                    *value = json!(whole);
                    Ok(())
                }
                _ => Err(format!(
                    "json: cannot unmarshal number {number} into Go struct field {path} of type int64"
                )),
            }
        }
        (Type::Number, Value::Number(_)) | (Type::Boolean, Value::Bool(_)) => Ok(()),
        (Type::IntOrString, Value::Number(number)) => {
            if schema.name.ends_with(".Quantity") {
                *value = Value::String(number.to_string());
            }
            Ok(())
        }
        (Type::IntOrString, Value::String(_)) => Ok(()),
        (Type::Object, other) if schema.is_map() => wrong(other, "map[string]"),
        (Type::Object, other) => wrong(other, schema.name.rsplit('.').next().unwrap_or("object")),
        (Type::Array, other) => wrong(other, "[]"),
        (Type::String, other) => wrong(other, "string"),
        (Type::Integer, other) => wrong(
            other,
            if schema.format == "int64" {
                "int64"
            } else {
                "int32"
            },
        ),
        (Type::Number, other) => wrong(other, "float64"),
        (Type::Boolean, other) => wrong(other, "bool"),
        (Type::IntOrString, other) => wrong(other, "intstr.IntOrString"),
    }
}

fn decode_object(
    schema: &Schema,
    map: &mut Map<String, Value>,
    path: &str,
    unknown: &mut Vec<String>,
    depth: usize,
) -> Result<(), String> {
    if schema.properties.is_empty() && schema.additional.is_none() {
        return Ok(());
    }
    let mut gone = Vec::new();
    for (key, value) in map.iter_mut() {
        let Some(inner) = schema.child(key) else {
            unknown.push(join(path, key));
            gone.push(key.clone());
            continue;
        };
        let below = join(path, key);
        decode(inner, value, &below, unknown, depth + 1)?;
        let is_field = schema.properties.contains_key(key);
        if is_field && (value.is_null() || vanishes(schema, key, inner, value)) {
            gone.push(key.clone());
        } else if !is_field && value.is_null() && inner.kind == Type::String {
            // Go decodes a null in a map of strings as the empty string.
            *value = json!("");
        }
    }
    for key in gone {
        map.remove(&key);
    }
    Ok(())
}

/// Whether Go would leave an empty value out (`omitempty`).
fn vanishes(schema: &Schema, key: &str, inner: &Schema, value: &Value) -> bool {
    if schema.required.iter().any(|it| it == key) {
        return false;
    }
    match value {
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty() && inner.is_map(),
        // An unnamed EndpointSlice port has an empty name, and other pointers to strings are rare.
        Value::String(text) => text.is_empty() && !schema.name.ends_with("discovery.v1.EndpointPort"),
        _ => false,
    }
}

fn decode_text(schema: &Schema, text: &str, path: &str) -> Result<(), String> {
    match schema.format.as_str() {
        "date-time" if text.parse::<jiff::Timestamp>().is_err() => Err(format!(
            "parsing time \"{text}\" as \"2006-01-02T15:04:05Z07:00\": cannot parse \"{text}\" in {path}"
        )),
        "byte" if STANDARD.decode(text).is_err() => {
            Err(format!("illegal base64 data at input byte 0 in {path}"))
        }
        _ => Ok(()),
    }
}

/// Takes out of a custom resource what its schema does not know.
fn prune(schema: &Schema, value: &mut Value, path: &str, unknown: &mut Vec<String>, depth: usize) {
    if depth > MOST_DEPTH {
        return;
    }
    match value {
        Value::Object(map) => {
            let open =
                schema.preserve_unknown || (schema.properties.is_empty() && schema.additional.is_some());
            map.retain(|key, value| match schema.child(key) {
                Some(inner) => {
                    prune(inner, value, &join(path, key), unknown, depth + 1);
                    true
                }
                None if open => true,
                None if schema.embedded && matches!(key.as_str(), "apiVersion" | "kind" | "metadata") => true,
                None if schema.kind != Type::Object => true,
                None => {
                    unknown.push(join(path, key));
                    false
                }
            });
        }
        Value::Array(items) => {
            if let Some(inner) = &schema.items {
                for (at, item) in items.iter_mut().enumerate() {
                    prune(inner, item, &format!("{path}[{at}]"), unknown, depth + 1);
                }
            }
        }
        _ => {}
    }
}

/// Fills in a custom resource's defaults. A null where null is not allowed counts as not set.
fn default(schema: &Schema, value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (key, inner) in &schema.properties {
                let unset = map
                    .get(key)
                    .is_none_or(|value| value.is_null() && !inner.nullable);
                if unset && let Some(value) = &inner.default {
                    map.insert(key.clone(), value.clone());
                }
            }
            for (key, value) in map.iter_mut() {
                if let Some(inner) = schema.child(key) {
                    default(inner, value);
                }
            }
        }
        Value::Array(items) => {
            if let Some(inner) = &schema.items {
                items.iter_mut().for_each(|item| default(inner, item));
            }
        }
        _ => {}
    }
}

fn type_name(schema: &Schema) -> &'static str {
    match schema.kind {
        Type::Object => "object",
        Type::Array => "array",
        Type::String => "string",
        Type::Integer => "integer",
        Type::Number => "number",
        Type::Boolean => "boolean",
        Type::IntOrString => "integer,string",
        Type::Any => "any",
    }
}

fn fits(schema: &Schema, value: &Value) -> bool {
    match (schema.kind, value) {
        (_, Value::Null) => schema.nullable,
        (Type::Any, _)
        | (Type::Object, Value::Object(_))
        | (Type::Array, Value::Array(_))
        | (Type::String | Type::IntOrString, Value::String(_))
        | (Type::Number, Value::Number(_))
        | (Type::Boolean, Value::Bool(_)) => true,
        (Type::Integer | Type::IntOrString, Value::Number(number)) => {
            number.is_i64() || number.is_u64() || number.as_f64().is_some_and(|it| it.fract() == 0.0)
        }
        _ => false,
    }
}

fn wrong_type(schema: &Schema, value: &Value, path: &str) -> Cause {
    let shown = match value {
        Value::Array(_) => "array",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        other => word(other),
    };
    Cause::type_invalid(
        if path.is_empty() { "<nil>" } else { path },
        &format!("\"{shown}\""),
        &format!(
            "{path} in body must be of type {}: \"{shown}\"",
            type_name(schema)
        ),
    )
}

/// Only the types, for a configuration that need not be whole.
fn types(schema: &Schema, value: &Value, path: &str, causes: &mut Vec<Cause>) {
    if !fits(schema, value) {
        causes.push(wrong_type(schema, value, path));
        return;
    }
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                if let Some(inner) = schema.child(key) {
                    types(inner, value, &join(path, key), causes);
                }
            }
        }
        Value::Array(items) => {
            for (at, item) in items.iter().enumerate() {
                if let Some(inner) = &schema.items {
                    types(inner, item, &format!("{path}[{at}]"), causes);
                }
            }
        }
        _ => {}
    }
}

/// Types, required fields and limits of a custom resource.
fn validate(schema: &Schema, value: &Value, path: &str, causes: &mut Vec<Cause>) {
    if !fits(schema, value) {
        causes.push(wrong_type(schema, value, path));
        return;
    }
    limits(schema, value, path, causes);
    match value {
        Value::Object(map) => {
            for key in &schema.required {
                if !map.contains_key(key) {
                    causes.push(Cause::required(join(path, key), ""));
                }
            }
            for (key, value) in map {
                // Metadata has rules of its own.
                if path.is_empty() && key == "metadata" {
                    continue;
                }
                if let Some(inner) = schema.child(key) {
                    validate(inner, value, &join(path, key), causes);
                }
            }
        }
        Value::Array(items) => {
            for (at, item) in items.iter().enumerate() {
                if let Some(inner) = &schema.items {
                    validate(inner, item, &format!("{path}[{at}]"), causes);
                }
            }
            duplicates(schema, items, path, causes);
        }
        _ => {}
    }
}

fn duplicates(schema: &Schema, items: &[Value], path: &str, causes: &mut Vec<Cause>) {
    let keys: &[String] = match &schema.list {
        ListKind::Atomic => return,
        ListKind::Set => &[],
        ListKind::Map(keys) => keys,
    };
    let mut seen = std::collections::BTreeSet::new();
    for (at, item) in items.iter().enumerate() {
        if !seen.insert(super::typed::item_step(keys, item)) {
            let shown: Value = if keys.is_empty() {
                item.clone()
            } else {
                keys.iter()
                    .filter_map(|key| Some((key.clone(), item.get(key)?.clone())))
                    .collect()
            };
            causes.push(Cause::duplicate(format!("{path}[{at}]"), &shown));
        }
    }
}

fn limits(schema: &Schema, value: &Value, path: &str, causes: &mut Vec<Cause>) {
    let Some(limits) = &schema.limits else { return };
    let body = |told: String| Cause::invalid(path, value, &format!("{path} in body {told}"));
    let count = |key: &str| {
        limits
            .get(key)
            .and_then(Value::as_u64)
            .and_then(|it| usize::try_from(it).ok())
    };
    if let Some(allowed) = limits.get("enum").and_then(Value::as_array)
        && !value.is_null()
        && !allowed.contains(value)
    {
        let words: Vec<String> = allowed
            .iter()
            .map(|it| it.as_str().map_or_else(|| it.to_string(), str::to_owned))
            .collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        causes.push(Cause::unsupported(path, value, &words));
    }
    match value {
        Value::Number(number) => {
            let number = number.as_f64().unwrap_or(0.0);
            let bound = |key: &str| limits.get(key).and_then(Value::as_f64);
            let strict = |key: &str| limits.get(key).and_then(Value::as_bool) == Some(true);
            if let Some(least) = bound("minimum") {
                let open = strict("exclusiveMinimum");
                if number < least || open && number <= least {
                    let or_equal = if open { "" } else { " or equal to" };
                    causes.push(body(format!("should be greater than{or_equal} {least}")));
                }
            }
            if let Some(most) = bound("maximum") {
                let open = strict("exclusiveMaximum");
                if number > most || open && number >= most {
                    let or_equal = if open { "" } else { " or equal to" };
                    causes.push(body(format!("should be less than{or_equal} {most}")));
                }
            }
        }
        Value::String(text) => {
            let length = text.chars().count();
            if let Some(least) = count("minLength").filter(|&least| length < least) {
                causes.push(body(format!("should be at least {least} chars long")));
            }
            if let Some(most) = count("maxLength").filter(|&most| length > most) {
                causes.push(Cause::too_long(path, most));
            }
        }
        Value::Array(items) => {
            if let Some(least) = count("minItems").filter(|&least| items.len() < least) {
                causes.push(body(format!("should have at least {least} items")));
            }
            if let Some(most) = count("maxItems").filter(|&most| items.len() > most) {
                causes.push(Cause::too_many(path, items.len(), most));
            }
        }
        Value::Object(map) => {
            if let Some(least) = count("minProperties").filter(|&least| map.len() < least) {
                causes.push(body(format!("should have at least {least} properties")));
            }
            if let Some(most) = count("maxProperties").filter(|&most| map.len() > most) {
                causes.push(Cause::too_many(path, map.len(), most));
            }
        }
        _ => {}
    }
}
