//! What a revision is: the template as the server holds it, in one canonical form, and a name that is a hash of it.

use std::fmt::Write as _;

use crds::revision::ConfigDigest;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

/// An annotation that `kubectl rollout restart` puts into a template: a wish for new pods, not for a new revision.
pub(super) const RESTARTED: &str = "kubectl.kubernetes.io/restartedAt";
/// Hex digits of the hash that stand in the name.
const DIGITS: usize = 10;
/// Longest name: it is a label's value on every pod of the revision.
const LONGEST: usize = 63;

/// One state of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    /// `TARGET-HASH`.
    pub(super) name: String,
    /// The template as canonical JSON.
    pub(super) template: String,
    /// The configuration that it refers to, in order.
    pub(super) configs: Vec<ConfigDigest>,
}

/// Cuts a revision from a workload's template as the server holds it, and from its configuration.
pub(super) fn cut(target: &str, template: &Value, configs: &[ConfigDigest]) -> Cut {
    let template = canonical(&cleaned(template)).to_string();
    let mut hash = Sha256::new();
    let longest = LONGEST - DIGITS - 1;
    let kept = if target.len() > longest {
        // Two long names with one beginning must not meet.
        hash.update(target.as_bytes());
        target
            .get(..longest)
            .unwrap_or(target)
            .trim_end_matches(['-', '.'])
    } else {
        target
    };
    hash.update(template.as_bytes());
    for config in configs {
        // Neither names nor digests have such a byte in them, and JSON does not begin with one.
        for part in [&config.kind, &config.name, &config.digest] {
            hash.update([0]);
            hash.update(part.as_bytes());
        }
    }
    let digits = hex(&hash.finalize());
    Cut {
        name: format!("{kept}-{}", digits.get(..DIGITS).unwrap_or(&digits)),
        template,
        configs: configs.to_vec(),
    }
}

/// Bytes as hex digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    let mut digits = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        let _ = write!(digits, "{byte:02x}");
    }
    digits
}

/// When the template was last asked to restart its pods.
pub(super) fn restarted(template: &Value) -> Option<&str> {
    template
        .pointer("/metadata/annotations")?
        .get(RESTARTED)?
        .as_str()
}

fn cleaned(template: &Value) -> Value {
    let mut template = template.clone();
    if let Some(metadata) = template.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("creationTimestamp");
        let mut empty = false;
        if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.remove(RESTARTED);
            empty = annotations.is_empty();
        }
        if empty {
            metadata.remove("annotations");
        }
    }
    template
}

/// Keys in order, and what is null left out: unset and absent are the same.
pub(super) fn canonical(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let mut keys: Vec<&String> = fields.keys().filter(|key| !fields[*key].is_null()).collect();
            keys.sort();
            let sorted: Map<String, Value> = keys
                .into_iter()
                .map(|key| (key.clone(), canonical(&fields[key])))
                .collect();
            Value::Object(sorted)
        }
        Value::Array(items) => Value::Array(items.iter().map(canonical).collect()),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn template(image: &str) -> Value {
        json!({
            "metadata": { "labels": { "app": "web" } },
            "spec": { "containers": [{ "name": "main", "image": image, "env": [{ "name": "A" }, { "name": "B" }] }] },
        })
    }

    #[test]
    fn one_state_has_one_name() {
        let base = cut("web", &template("x:1"), &[]);
        assert_eq!(base.name.len(), "web-".len() + DIGITS);
        let mut same = template("x:1");
        same["metadata"]["creationTimestamp"] = Value::Null;
        same["metadata"]["annotations"] = json!({ RESTARTED: "2026-01-01T00:00:00Z" });
        same["spec"]["nodeSelector"] = Value::Null;
        let text = r#"{"spec":{"containers":[{"image":"x:1","env":[{"name":"A"},{"name":"B"}],"name":"main"}]},"metadata":{"labels":{"app":"web"}}}"#;
        let turned: Value = serde_json::from_str(text).expect("JSON");
        for (what, other) in [("restarted, and null", same), ("in another order", turned)] {
            assert_eq!(cut("web", &other, &[]), base, "{what}");
        }
        let mut order = template("x:1");
        order["spec"]["containers"][0]["env"] = json!([{ "name": "B" }, { "name": "A" }]);
        let mut label = template("x:1");
        label["metadata"]["annotations"] = json!({ "a": "b" });
        for (what, other) in [
            ("image", template("x:2")),
            ("order of a list", order),
            ("annotation", label),
        ] {
            assert_ne!(cut("web", &other, &[]).name, base.name, "{what}");
        }
    }

    #[test]
    fn configuration_is_part_of_it() {
        let config = |name: &str, digest: &str, snapshot: &str| ConfigDigest {
            kind: "ConfigMap".into(),
            name: name.into(),
            digest: digest.into(),
            snapshot: snapshot.into(),
        };
        let of = |configs: &[ConfigDigest]| cut("web", &template("x"), configs).name;
        let base = of(&[config("a", "1", "")]);
        assert_eq!(
            of(&[config("a", "1", "a-1")]),
            base,
            "copied or not, it is the same"
        );
        for other in [
            &[][..],
            &[config("a", "2", "")],
            &[config("b", "1", "")],
            &[config("a", "1", ""), config("b", "1", "")],
        ] {
            assert_ne!(of(other), base, "{other:?}");
        }
    }

    #[test]
    fn names_fit_a_label_and_stay_apart() {
        let (one, other) = (format!("{}-a", "w".repeat(60)), format!("{}-b", "w".repeat(60)));
        let names = [&one, &other].map(|name| cut(name, &template("x"), &[]).name);
        assert_ne!(names[0], names[1]);
        assert!(names.iter().all(|name| name.len() <= LONGEST), "{names:?}");
    }

    #[test]
    fn a_restart_is_read() {
        let mut asked = template("x");
        assert_eq!(restarted(&asked), None);
        asked["metadata"]["annotations"] = json!({ RESTARTED: "now" });
        assert_eq!(restarted(&asked), Some("now"));
    }
}
