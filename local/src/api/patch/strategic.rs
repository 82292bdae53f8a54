//! Strategic merge patch: a merge patch that knows which lists have keys.
//!
//! Directives: `$patch: replace | delete | merge`, `$retainKeys`, `$deleteFromPrimitiveList/F`, `$setElementOrder/F`.

use serde_json::{Map, Value};

use super::super::schema::{ListKind, Schema};
use super::super::status::ApiError;

const PATCH: &str = "$patch";
const RETAIN: &str = "$retainKeys";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";
const ORDER: &str = "$setElementOrder/";

pub(super) fn apply(before: &Value, patch: &Value, schema: &Schema) -> Result<Value, ApiError> {
    let any = Schema::any();
    let empty = Map::new();
    let before = before.as_object().unwrap_or(&empty);
    let Some(patch) = patch.as_object() else {
        return Err(ApiError::bad_request("a strategic merge patch is an object"));
    };
    Ok(Value::Object(object(before, patch, schema, &any)?))
}

fn object(
    before: &Map<String, Value>,
    patch: &Map<String, Value>,
    schema: &Schema,
    any: &Schema,
) -> Result<Map<String, Value>, ApiError> {
    match patch.get(PATCH).and_then(Value::as_str) {
        Some("replace") => {
            let mut whole = patch.clone();
            whole.remove(PATCH);
            return Ok(whole);
        }
        Some("delete") => return Ok(Map::new()),
        None | Some("merge") => {}
        Some(other) => {
            return Err(ApiError::bad_request(format!(
                "Unknown patch type: {other}: must be replace, delete or merge"
            )));
        }
    }
    let mut result = before.clone();
    if let Some(kept) = patch.get(RETAIN).and_then(Value::as_array) {
        result.retain(|key, _| kept.iter().any(|it| it == key.as_str()));
    }
    for (key, change) in patch.iter().filter(|(key, _)| !key.starts_with('$')) {
        let inner = schema.child(key).map_or(any, |it| it);
        match change {
            Value::Null => {
                result.remove(key);
            }
            Value::Object(change) => {
                let empty = Map::new();
                let before = result.get(key).and_then(Value::as_object).unwrap_or(&empty);
                let deleted = change.get(PATCH).is_some_and(|it| it == "delete");
                let merged = object(before, change, inner, any)?;
                if deleted {
                    result.remove(key);
                } else {
                    result.insert(key.clone(), Value::Object(merged));
                }
            }
            Value::Array(items) => {
                let none = Vec::new();
                let before = result.get(key).and_then(Value::as_array).unwrap_or(&none);
                let order = patch.get(&format!("{ORDER}{key}")).and_then(Value::as_array);
                let merged = list(before, items, order.map(Vec::as_slice), inner, any)?;
                result.insert(key.clone(), Value::Array(merged));
            }
            other => {
                result.insert(key.clone(), other.clone());
            }
        }
    }
    for (key, gone) in patch {
        if let (Some(field), Some(gone)) = (key.strip_prefix(DELETE_FROM), gone.as_array())
            && let Some(items) = result.get_mut(field).and_then(Value::as_array_mut)
        {
            items.retain(|item| !gone.contains(item));
        }
        // An order without changes only orders.
        if let (Some(field), Some(order)) = (key.strip_prefix(ORDER), gone.as_array())
            && !patch.contains_key(field)
            && let Some(items) = result.get(field).and_then(Value::as_array)
        {
            let inner = schema.child(field).map_or(any, |it| it);
            let sorted = sort(items.clone(), items, order, merge_key(inner));
            result.insert(field.to_owned(), Value::Array(sorted));
        }
    }
    Ok(result)
}

fn merge_key(schema: &Schema) -> Option<&str> {
    match &schema.list {
        ListKind::Map(keys) => keys.first().map(String::as_str),
        _ => None,
    }
}

fn list(
    before: &[Value],
    patch: &[Value],
    order: Option<&[Value]>,
    schema: &Schema,
    any: &Schema,
) -> Result<Vec<Value>, ApiError> {
    let replace = patch
        .iter()
        .any(|item| item.get(PATCH).is_some_and(|it| it == "replace"));
    if schema.list == ListKind::Atomic || replace {
        return Ok(patch
            .iter()
            .filter(|item| item.get(PATCH).is_none())
            .cloned()
            .collect());
    }
    let Some(key) = merge_key(schema) else {
        let mut result = before.to_vec();
        for item in patch {
            if !result.contains(item) {
                result.push(item.clone());
            }
        }
        return Ok(match order {
            Some(order) => sort(result, before, order, None),
            None => result,
        });
    };
    let inner = schema.items.as_deref().unwrap_or(any);
    let mut result = before.to_vec();
    for item in patch {
        let Some(change) = item.as_object() else {
            return Err(ApiError::bad_request(
                "a list with merge key holds something that is no object",
            ));
        };
        let Some(value) = change.get(key) else {
            return Err(ApiError::bad_request(format!(
                "map: {item} does not contain declared merge key: {key}"
            )));
        };
        let at = result.iter().position(|it| it.get(key) == Some(value));
        match (change.get(PATCH).and_then(Value::as_str), at) {
            (Some("delete"), _) => result.retain(|it| it.get(key) != Some(value)),
            (_, Some(at)) => {
                let empty = Map::new();
                let before = result[at].as_object().unwrap_or(&empty);
                result[at] = Value::Object(object(before, change, inner, any)?);
            }
            (_, None) => result.push(Value::Object(object(&Map::new(), change, inner, any)?)),
        }
    }
    Ok(match order {
        Some(order) => sort(result, before, order, Some(key)),
        None => result,
    })
}

/// Orders items as `order` says; those it does not name stay behind the item that preceded them.
fn sort(items: Vec<Value>, before: &[Value], order: &[Value], key: Option<&str>) -> Vec<Value> {
    let name =
        |item: &Value| key.map_or_else(|| item.clone(), |key| item.get(key).cloned().unwrap_or_default());
    let rank = |item: &Value| order.iter().position(|it| name(it) == name(item));
    let (mut named, others): (Vec<Value>, Vec<Value>) = items.into_iter().partition(|it| rank(it).is_some());
    named.sort_by_key(|item| rank(item));
    for item in others {
        let own = before
            .iter()
            .position(|it| name(it) == name(&item))
            .unwrap_or(usize::MAX);
        // Before the first named item that used to follow it.
        let place = named.iter().position(|it| {
            before
                .iter()
                .position(|old| name(old) == name(it))
                .is_some_and(|at| at > own)
        });
        named.insert(place.unwrap_or(named.len()), item);
    }
    named
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::super::resources::Registry;
    use super::*;

    fn on_pod_spec(before: Value, patch: Value) -> Value {
        let registry = Registry::built_in();
        let schema = &registry.get("", "v1", "pods").unwrap().schema;
        let (before, patch) = (json!({ "spec": before }), json!({ "spec": patch }));
        apply(&before, &patch, schema).unwrap()["spec"].clone()
    }

    #[test]
    fn lists_with_keys_merge_by_key() {
        let before =
            json!({"containers": [{"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}]}]});
        let after = on_pod_spec(
            before.clone(),
            json!({"containers": [{"name": "a", "env": [{"name": "Y", "value": "2"}]}, {"name": "b"}]}),
        );
        assert_eq!(
            after["containers"],
            json!([
                {"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}, {"name": "Y", "value": "2"}]},
                {"name": "b"}
            ])
        );
        let gone = on_pod_spec(
            before.clone(),
            json!({"containers": [{"name": "a", "$patch": "delete"}]}),
        );
        assert_eq!(gone["containers"], json!([]));
        let replaced = on_pod_spec(
            before,
            json!({"containers": [{"name": "z"}, {"$patch": "replace"}]}),
        );
        assert_eq!(replaced["containers"], json!([{"name": "z"}]));
    }

    #[test]
    fn atomic_lists_are_replaced() {
        let before = json!({"tolerations": [{"key": "a"}]});
        let after = on_pod_spec(before, json!({"tolerations": [{"key": "b"}]}));
        assert_eq!(after["tolerations"], json!([{"key": "b"}]));
    }

    #[test]
    fn element_order_is_kept() {
        let before = json!({"containers": [{"name": "a"}, {"name": "b"}, {"name": "c"}]});
        let after = on_pod_spec(
            before,
            json!({
                "$setElementOrder/containers": [{"name": "c"}, {"name": "a"}],
                "containers": [{"name": "a", "image": "x"}],
            }),
        );
        assert_eq!(
            after["containers"],
            json!([{"name": "b"}, {"name": "c"}, {"name": "a", "image": "x"}])
        );
    }

    #[test]
    fn retained_keys_are_all_that_stays() {
        let before = json!({"volumes": [{"name": "v", "emptyDir": {}}]});
        let after = on_pod_spec(
            before,
            json!({"volumes": [{"name": "v", "$retainKeys": ["name", "configMap"], "configMap": {"name": "m"}}]}),
        );
        assert_eq!(
            after["volumes"],
            json!([{"name": "v", "configMap": {"name": "m"}}])
        );
    }
}
