//! The kinds that a CustomResourceDefinition brings.

use std::sync::Arc;

use serde_json::Value;

use super::{Resource, ScalePaths, group_version, metadata_schema};
use crate::api::schema::{self, Schema, Type};

/// The group and the plural name of the kind that a CustomResourceDefinition brings.
pub(crate) fn names_of_crd(crd: &Value) -> (&str, &str) {
    let text = |pointer: &str| crd.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    (text("/spec/group"), text("/spec/names/plural"))
}

/// The resources that a CustomResourceDefinition serves, one for each served version.
pub(crate) fn from_crd(crd: &Value) -> Vec<Resource> {
    let text = |pointer: &str| {
        crd.pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let list = |pointer: &str| -> Vec<String> {
        let all = crd
            .pointer(pointer)
            .and_then(Value::as_array)
            .into_iter()
            .flatten();
        all.filter_map(|it| it.as_str().map(str::to_owned)).collect()
    };
    let (group, plural) = names_of_crd(crd);
    let kind = text("/spec/names/kind");
    let versions = crd
        .pointer("/spec/versions")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    let flag = |version: &Value, key: &str| version.get(key).and_then(Value::as_bool) == Some(true);
    let stored = versions.iter().find(|version| flag(version, "storage"));
    let stored = stored
        .and_then(|it| it["name"].as_str())
        .unwrap_or_default()
        .to_owned();
    let served = versions.iter().filter(|version| flag(version, "served"));
    served
        .map(|version| Resource {
            version: version["name"].as_str().unwrap_or_default().to_owned(),
            list_kind: match text("/spec/names/listKind") {
                name if name.is_empty() => format!("{kind}List"),
                name => name,
            },
            singular: match text("/spec/names/singular") {
                name if name.is_empty() => kind.to_lowercase(),
                name => name,
            },
            short_names: list("/spec/names/shortNames"),
            categories: list("/spec/names/categories"),
            namespaced: text("/spec/scope") == "Namespaced",
            status: version.pointer("/subresources/status").is_some(),
            scale: version.pointer("/subresources/scale").map(|scale| ScalePaths {
                spec: scale["specReplicasPath"].as_str().unwrap_or_default().to_owned(),
                status: scale["statusReplicasPath"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned(),
                selector: scale["labelSelectorPath"].as_str().map(str::to_owned),
            }),
            definition: String::new(),
            raw_schema: version.pointer("/schema/openAPIV3Schema").cloned().map(Arc::new),
            schema: Arc::new(custom_schema(version.pointer("/schema/openAPIV3Schema"))),
            storage: format!("{group}/{plural}").into(),
            storage_version: group_version(group, &stored),
            custom: true,
            columns: version["additionalPrinterColumns"]
                .as_array()
                .cloned()
                .unwrap_or_default(),
            selectable: version["selectableFields"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|it| Some(it["jsonPath"].as_str()?.trim_start_matches('.').to_owned()))
                .collect(),
            group: group.to_owned(),
            kind: kind.clone(),
            plural: plural.to_owned(),
        })
        .collect()
}

/// A custom resource's schema with what every object has.
fn custom_schema(definition: Option<&Value>) -> Schema {
    let mut schema = definition.map_or_else(Schema::any, schema::custom);
    let string = Arc::new(Schema {
        kind: Type::String,
        preserve_unknown: false,
        ..Schema::any()
    });
    schema.kind = Type::Object;
    schema
        .properties
        .insert("apiVersion".to_owned(), Arc::clone(&string));
    schema.properties.insert("kind".to_owned(), string);
    schema.properties.insert("metadata".to_owned(), metadata_schema());
    schema
}
