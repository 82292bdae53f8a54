//! Giving up ownership of a field: the edit of `managedFields` after our key went into or out of a selector.
//!
//! `spec.selector` is an atomic map: whoever changes one key of it owns all of it, and the owner's name is in the way of
//! every later server-side apply without force. So we change it and then take our entry away again. The edit is bound to
//! the resourceVersion that it was made from.

use crds::names::AUTOSCALER_MANAGER;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, ObjectMeta};
use serde_json::{Value, json};

/// The JSON patch that takes `spec.selector` out of all that we own; `None` when we do not own it.
pub(super) fn disown(metadata: &ObjectMeta) -> Option<Value> {
    let old = metadata.managed_fields.as_ref()?;
    let mut new: Vec<ManagedFieldsEntry> = Vec::with_capacity(old.len());
    let mut found = false;
    for entry in old {
        let mut entry = entry.clone();
        if entry.manager.as_deref() == Some(AUTOSCALER_MANAGER)
            && let Some(fields) = entry.fields_v1.as_mut().map(|fields| &mut fields.0)
            && take_selector(fields)
        {
            found = true;
            if fields.as_object().is_none_or(serde_json::Map::is_empty) {
                continue;
            }
        }
        new.push(entry);
    }
    if !found {
        return None;
    }
    // An empty list is read as "not said"; a list of one empty entry as "nobody owns anything".
    let value = if new.is_empty() { json!([{}]) } else { json!(new) };
    let mut patch = vec![json!({ "op": "replace", "path": "/metadata/managedFields", "value": value })];
    if let Some(version) = &metadata.resource_version {
        patch.insert(
            0,
            json!({ "op": "test", "path": "/metadata/resourceVersion", "value": version }),
        );
    }
    Some(Value::Array(patch))
}

/// Takes `f:spec` / `f:selector` out of a field set, and `f:spec` when nothing else is in it. Returns whether it was there.
fn take_selector(fields: &mut Value) -> bool {
    let Some(all) = fields.as_object_mut() else {
        return false;
    };
    let Some(spec) = all.get_mut("f:spec").and_then(Value::as_object_mut) else {
        return false;
    };
    let found = spec.remove("f:selector").is_some();
    // `.` alone says that the struct itself is owned: nothing is left of it.
    let empty = spec.keys().all(|key| key == ".");
    if found && empty {
        all.remove("f:spec");
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(managed: Value) -> ObjectMeta {
        serde_json::from_value(json!({ "resourceVersion": "7", "managedFields": managed })).expect("metadata")
    }

    fn entry(manager: &str, fields: Value) -> Value {
        json!({ "manager": manager, "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": fields })
    }

    #[test]
    fn only_our_ownership_of_the_selector_is_given_up() {
        let user = entry(
            "kubectl",
            json!({ "f:spec": { "f:selector": {}, "f:ports": {} } }),
        );
        let selector = json!({ "f:spec": { "f:selector": {} } });
        let mixed = json!({ "f:spec": { "f:selector": {}, "f:type": {} } });
        let rest = json!({ "f:spec": { "f:type": {} } });
        for (name, managed, want) in [
            ("nobody", json!([]), None),
            ("the user alone", json!([user]), None),
            (
                "we and the user",
                json!([user, entry(AUTOSCALER_MANAGER, selector.clone())]),
                Some(json!([user])),
            ),
            (
                "we alone",
                json!([entry(AUTOSCALER_MANAGER, selector)]),
                Some(json!([{}])),
            ),
            (
                "we own more",
                json!([entry(AUTOSCALER_MANAGER, mixed)]),
                Some(json!([entry(AUTOSCALER_MANAGER, rest)])),
            ),
        ] {
            let patch = disown(&metadata(managed));
            assert_eq!(
                patch.as_ref().map(|patch| &patch[1]["value"]),
                want.as_ref(),
                "{name}"
            );
            if let Some(patch) = patch {
                assert_eq!(
                    patch[0],
                    json!({ "op": "test", "path": "/metadata/resourceVersion", "value": "7" })
                );
            }
        }
    }
}
