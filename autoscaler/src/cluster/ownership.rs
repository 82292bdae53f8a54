//! Giving up ownership of a field: the edit of `managedFields` after a change of ours.
//!
//! Whoever changes a field owns it, and the owner's name is in the way of every later server-side apply without force. So
//! we change it and then take our entry away again: from `spec.selector` (an atomic map: one key of it is all of it), from
//! `spec.replicas`, and from a Deployment's `spec.template` and `spec.paused`. The edit is bound to the resourceVersion that
//! it was made from.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, ObjectMeta};
use serde_json::{Value, json};

/// `spec.selector`, as field sets name it.
pub(crate) const SELECTOR: &str = "f:selector";
/// `spec.replicas`.
pub(crate) const REPLICAS: &str = "f:replicas";
/// What we change of a Deployment that is rolled out.
pub(crate) const ROLLED_OUT: [&str; 2] = ["f:template", "f:paused"];

/// The JSON patch that takes `wanted` fields of the spec out of all that `manager` (`None`: anybody) owns; `None` when it owns
/// none of them.
pub(super) fn disown(metadata: &ObjectMeta, manager: Option<&str>, wanted: &[&str]) -> Option<Value> {
    let old = metadata.managed_fields.as_ref()?;
    let mut new: Vec<ManagedFieldsEntry> = Vec::with_capacity(old.len());
    let mut found = false;
    for entry in old {
        let mut entry = entry.clone();
        if (manager.is_none() || entry.manager.as_deref() == manager)
            && let Some(fields) = entry.fields_v1.as_mut().map(|fields| &mut fields.0)
            && take(fields, wanted)
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

/// Takes `wanted` fields of `f:spec` out of a field set, and `f:spec` when nothing else is in it. Returns whether one was there.
fn take(fields: &mut Value, wanted: &[&str]) -> bool {
    let Some(all) = fields.as_object_mut() else {
        return false;
    };
    let Some(spec) = all.get_mut("f:spec").and_then(Value::as_object_mut) else {
        return false;
    };
    let before = spec.len();
    spec.retain(|field, _| !wanted.contains(&field.as_str()));
    let found = spec.len() < before;
    // `.` alone says that the struct itself is owned: nothing is left of it.
    let empty = spec.keys().all(|key| key == ".");
    if found && empty {
        all.remove("f:spec");
    }
    found
}

#[cfg(test)]
mod tests {
    use crds::names::{AUTOSCALER_MANAGER, SCALE_MANAGER};

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
            let patch = disown(&metadata(managed), Some(AUTOSCALER_MANAGER), &[SELECTOR]);
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

    #[test]
    fn a_field_is_taken_from_whom_it_is_meant_for() {
        let all = json!([
            entry("kubectl", json!({ "f:spec": { "f:selector": {} } })),
            entry(SCALE_MANAGER, json!({ "f:spec": { "f:replicas": {} } })),
        ]);
        for (manager, field, left) in [
            (Some(SCALE_MANAGER), REPLICAS, Some("kubectl")),
            (Some(AUTOSCALER_MANAGER), REPLICAS, None),
            (Some(SCALE_MANAGER), SELECTOR, None),
            (None, SELECTOR, Some(SCALE_MANAGER)),
        ] {
            let patch = disown(&metadata(all.clone()), manager, &[field]);
            let kept = patch.as_ref().map(|patch| {
                let entries = patch[1]["value"].as_array().expect("a list");
                assert_eq!(entries.len(), 1, "{manager:?} {field}");
                entries[0]["manager"].as_str().expect("a name")
            });
            assert_eq!(kept, left, "{manager:?} {field}");
        }
    }
}
