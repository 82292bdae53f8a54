//! OpenAPI: enough for `kubectl` to validate, to work out patches, and to explain.
//!
//! `kubectl` looks here whether a PATCH of a kind takes `fieldValidation` and `dryRun` (then it leaves validation to the
//! server), and how lists merge. Version 2 is spoken in JSON only; `kubectl` asks for it in protobuf, is refused, and
//! goes on without.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::resources::{Registry, Resource, definitions, group_version};
use super::router::Reply;
use super::status::ApiError;

/// The version of Kubernetes whose behaviour this API has.
pub(crate) const SPOKEN_VERSION: &str = "v1.35.0";

/// `/openapi/v2`.
pub(crate) fn v2(registry: &Registry, headers: &http::HeaderMap) -> Result<Reply, ApiError> {
    let accept = headers
        .get(http::header::ACCEPT)
        .and_then(|it| it.to_str().ok())
        .unwrap_or("*/*");
    let json = accept.split(',').any(|range| {
        let media = range.split(';').next().unwrap_or_default().trim();
        matches!(media, "application/json" | "*/*" | "application/*")
    });
    if !json {
        return Err(ApiError::not_acceptable("application/json"));
    }
    let mut schemas = Map::new();
    for resource in registry.iter() {
        collect(resource, &mut schemas);
    }
    let text = Value::Object(schemas)
        .to_string()
        .replace("#/components/schemas/", "#/definitions/");
    let definitions: Value = serde_json::from_str(&text).unwrap_or_default();
    Ok(Reply::Json(
        200,
        json!({
            "swagger": "2.0", "info": { "title": "Kubernetes", "version": SPOKEN_VERSION },
            "paths": {}, "definitions": definitions,
        }),
    ))
}

/// `/openapi/v3` and what is below it.
pub(crate) fn v3(registry: &Registry, rest: &[&str]) -> Result<Reply, ApiError> {
    let (group, version) = match rest {
        [] => return Ok(Reply::Json(200, json!({ "paths": index(registry) }))),
        ["api", version] => ("", *version),
        ["apis", group, version] => (*group, *version),
        _ => return Err(ApiError::no_such_path()),
    };
    let mut paths = Map::new();
    let mut schemas = Map::new();
    for resource in registry
        .iter()
        .filter(|it| it.group == group && it.version == version)
    {
        collect(resource, &mut schemas);
        describe(resource, &mut paths);
    }
    if paths.is_empty() {
        return Err(ApiError::no_such_path());
    }
    Ok(Reply::Json(
        200,
        json!({
            "openapi": "3.0.0", "info": { "title": "Kubernetes", "version": SPOKEN_VERSION },
            "paths": paths, "components": { "schemas": schemas },
        }),
    ))
}

fn root(group: &str, version: &str) -> String {
    if group.is_empty() {
        format!("api/{version}")
    } else {
        format!("apis/{group}/{version}")
    }
}

/// Where the document of each group and version is. The hash lets clients keep it until a resource changes.
fn index(registry: &Registry) -> Value {
    let mut all: BTreeMap<String, u64> = BTreeMap::new();
    for resource in registry.iter() {
        let hash = all
            .entry(root(&resource.group, &resource.version))
            .or_insert(0xcbf2_9ce4_8422_2325);
        let raw = resource
            .raw_schema
            .as_ref()
            .map(|raw| raw.to_string())
            .unwrap_or_default();
        // FNV-1a: only to tell one document from the next.
        for byte in resource.plural.bytes().chain(raw.bytes()) {
            *hash = (*hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    all.into_iter()
        .map(|(path, hash)| {
            let url = format!("/openapi/v3/{path}?hash={hash:016X}");
            (path, json!({ "serverRelativeURL": url }))
        })
        .collect::<Map<_, _>>()
        .into()
}

/// The name under which a resource's schema stands.
fn schema_name(resource: &Resource) -> String {
    if !resource.custom {
        return resource.definition.clone();
    }
    let mut parts: Vec<&str> = resource.group.split('.').collect();
    parts.reverse();
    format!("{}.{}.{}", parts.join("."), resource.version, resource.kind)
}

fn kind_of(resource: &Resource) -> Value {
    json!({ "group": resource.group, "version": resource.version, "kind": resource.kind })
}

/// A resource's schema and all that it refers to.
fn collect(resource: &Resource, schemas: &mut Map<String, Value>) {
    const METADATA: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
    let name = schema_name(resource);
    let mut schema = match &resource.raw_schema {
        Some(raw) => {
            let mut schema = (**raw).clone();
            if let Some(map) = schema.as_object_mut() {
                let properties = map.entry("properties").or_insert_with(|| json!({}));
                properties["apiVersion"] = json!({ "type": "string" });
                properties["kind"] = json!({ "type": "string" });
                properties["metadata"] =
                    json!({ "allOf": [{ "$ref": format!("#/components/schemas/{METADATA}") }] });
            }
            schema
        }
        None => definitions().get(&name).cloned().unwrap_or_default(),
    };
    if schema.is_object() {
        schema["x-kubernetes-group-version-kind"] = json!([kind_of(resource)]);
    }
    let mut wanted = BTreeSet::new();
    references(&schema, &mut wanted);
    schemas.insert(name, schema);
    while let Some(next) = wanted.pop_first() {
        if schemas.contains_key(&next) {
            continue;
        }
        if let Some(schema) = definitions().get(&next) {
            references(schema, &mut wanted);
            schemas.insert(next, schema.clone());
        }
    }
}

fn references(schema: &Value, found: &mut BTreeSet<String>) {
    match schema {
        Value::Object(map) => {
            if let Some(name) = map
                .get("$ref")
                .and_then(Value::as_str)
                .and_then(|it| it.rsplit('/').next())
            {
                found.insert(name.to_owned());
            }
            map.values().for_each(|inner| references(inner, found));
        }
        Value::Array(items) => items.iter().for_each(|inner| references(inner, found)),
        _ => {}
    }
}

fn parameters(names: &[&str]) -> Vec<Value> {
    names
        .iter()
        .map(|name| {
            let kind = match *name {
                "force" | "watch" | "allowWatchBookmarks" | "sendInitialEvents" => "boolean",
                "limit" | "timeoutSeconds" | "gracePeriodSeconds" => "integer",
                _ => "string",
            };
            json!({ "name": name, "in": "query", "schema": { "type": kind, "uniqueItems": true } })
        })
        .collect()
}

/// The operations on a resource.
fn describe(resource: &Resource, paths: &mut Map<String, Value>) {
    let root = root(&resource.group, &resource.version);
    let scope = if resource.namespaced {
        "namespaces/{namespace}/"
    } else {
        ""
    };
    let collection = format!("/{root}/{scope}{}", resource.plural);
    let reference = json!({ "$ref": format!("#/components/schemas/{}", schema_name(resource)) });
    let responses = json!({
        "200": { "description": "OK", "content": { "application/json": { "schema": reference } } },
    });
    let operation = |action: &str, names: &[&str]| {
        json!({
            "operationId": format!("{action}{}{}", group_version(&resource.group, &resource.version), resource.kind),
            "parameters": parameters(names), "responses": responses,
            "x-kubernetes-action": action, "x-kubernetes-group-version-kind": kind_of(resource),
        })
    };
    let body = |media: &[&str]| {
        let content: Map<String, Value> = media
            .iter()
            .map(|media| ((*media).to_owned(), json!({ "schema": reference })))
            .collect();
        json!({ "required": true, "content": content })
    };
    const WRITE: &[&str] = &["dryRun", "fieldManager", "fieldValidation"];
    const LIST: &[&str] = &[
        "allowWatchBookmarks",
        "continue",
        "fieldSelector",
        "labelSelector",
        "limit",
        "resourceVersion",
        "resourceVersionMatch",
        "sendInitialEvents",
        "timeoutSeconds",
        "watch",
    ];
    let mut post = operation("post", WRITE);
    post["requestBody"] = body(&["application/json", "application/yaml"]);
    paths.insert(
        collection.clone(),
        json!({ "get": operation("list", LIST), "post": post }),
    );
    let mut put = operation("put", WRITE);
    put["requestBody"] = body(&["application/json", "application/yaml"]);
    let mut patch = operation("patch", &["dryRun", "fieldManager", "fieldValidation", "force"]);
    let mut media = vec![
        "application/json-patch+json",
        "application/merge-patch+json",
        "application/apply-patch+yaml",
    ];
    if !resource.custom {
        media.push("application/strategic-merge-patch+json");
    }
    patch["requestBody"] = body(&media);
    let delete = operation("delete", &["dryRun", "gracePeriodSeconds", "propagationPolicy"]);
    paths.insert(
        format!("{collection}/{{name}}"),
        json!({ "get": operation("get", &[]), "put": put, "patch": patch, "delete": delete }),
    );
}
