//! Label and field selectors: parse once, match often.

use serde_json::Value;

use super::status::ApiError;

/// One requirement on a label.
#[derive(Clone, Debug, PartialEq)]
enum Requirement {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Absent(String),
    Greater(String, i64),
    Less(String, i64),
}

/// Requirements on labels, all of which must hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Labels(Vec<Requirement>);

impl Labels {
    /// Reads `a=b,c!=d,e in (f,g),h,!i`.
    pub(crate) fn parse(text: &str) -> Result<Self, ApiError> {
        let mut all = Vec::new();
        for part in split_top(text) {
            let part = part.trim();
            if part.is_empty() {
                if text.trim().is_empty() {
                    break;
                }
                return Err(unreadable(text));
            }
            all.push(requirement(part).ok_or_else(|| unreadable(text))?);
        }
        Ok(Self(all))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn matches(&self, object: &Value) -> bool {
        let labels = object.pointer("/metadata/labels");
        let get = |key: &str| labels.and_then(|labels| labels.get(key)).and_then(Value::as_str);
        let number = |key: &str| get(key).and_then(|text| text.parse::<i64>().ok());
        self.0.iter().all(|requirement| match requirement {
            Requirement::In(key, values) => get(key).is_some_and(|value| values.iter().any(|it| it == value)),
            Requirement::NotIn(key, values) => {
                get(key).is_none_or(|value| values.iter().all(|it| it != value))
            }
            Requirement::Exists(key) => get(key).is_some(),
            Requirement::Absent(key) => get(key).is_none(),
            Requirement::Greater(key, than) => number(key).is_some_and(|value| value > *than),
            Requirement::Less(key, than) => number(key).is_some_and(|value| value < *than),
        })
    }
}

fn unreadable(text: &str) -> ApiError {
    ApiError::bad_request(format!(
        "unable to parse requirement: \"{text}\" is not a selector"
    ))
}

/// Splits at commas that are not in brackets.
fn split_top(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0_i32, 0);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'(' => depth += 1,
            b')' => depth -= 1,
            b',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn requirement(part: &str) -> Option<Requirement> {
    let key_of = |text: &str| {
        let key = text.trim();
        (super::names::label_key_error(key).is_none()).then(|| key.to_owned())
    };
    let value_of = |text: &str| {
        let value = text.trim();
        (super::names::label_value_error(value).is_none()).then(|| value.to_owned())
    };
    if let Some(key) = part.strip_prefix('!') {
        return Some(Requirement::Absent(key_of(key)?));
    }
    if let Some((head, list)) = part.split_once('(') {
        let list = list.trim().strip_suffix(')')?;
        let values = list.split(',').map(value_of).collect::<Option<Vec<_>>>()?;
        let mut words = head.split_whitespace();
        let (key, operator, rest) = (words.next()?, words.next()?, words.next());
        return match (operator, rest) {
            ("in", None) => Some(Requirement::In(key_of(key)?, values)),
            ("notin", None) => Some(Requirement::NotIn(key_of(key)?, values)),
            _ => None,
        };
    }
    if let Some((key, value)) = part.split_once("!=") {
        return Some(Requirement::NotIn(key_of(key)?, vec![value_of(value)?]));
    }
    if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
        return Some(Requirement::In(key_of(key)?, vec![value_of(value)?]));
    }
    if let Some((key, value)) = part.split_once('>') {
        return Some(Requirement::Greater(key_of(key)?, value.trim().parse().ok()?));
    }
    if let Some((key, value)) = part.split_once('<') {
        return Some(Requirement::Less(key_of(key)?, value.trim().parse().ok()?));
    }
    key_of(part).map(Requirement::Exists)
}

/// Requirements on fields, all of which must hold: (field, must be equal, value).
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Fields(Vec<(String, bool, String)>);

/// Fields by which Kubernetes lets objects of a kind be selected, beside `metadata.name` and `metadata.namespace`.
fn selectable(group: &str, kind: &str) -> &'static [&'static str] {
    match (group, kind) {
        ("", "Pod") => &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.podIPs",
            "status.nominatedNodeName",
        ],
        ("", "Event") => &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ],
        ("events.k8s.io", "Event") => &[
            "regarding.kind",
            "regarding.namespace",
            "regarding.name",
            "regarding.uid",
            "regarding.apiVersion",
            "regarding.resourceVersion",
            "regarding.fieldPath",
            "reason",
            "reportingController",
            "type",
        ],
        ("", "Namespace") => &["status.phase"],
        ("", "Node") => &["spec.unschedulable"],
        ("", "Secret") => &["type"],
        ("", "Service") => &["spec.clusterIP", "spec.type"],
        ("apps", "ReplicaSet") => &["status.replicas"],
        _ => &[],
    }
}

impl Fields {
    /// Reads `a=b,c!=d`; 400 for a field that the kind cannot be selected by.
    pub(crate) fn parse(text: &str, group: &str, kind: &str, also: &[String]) -> Result<Self, ApiError> {
        let mut all = Vec::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (field, equal, value) = if let Some((field, value)) = part.split_once("!=") {
                (field, false, value)
            } else if let Some((field, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
                (field, true, value)
            } else {
                return Err(ApiError::bad_request(format!(
                    "invalid selector: '{text}'; can't understand '{part}'"
                )));
            };
            let known = matches!(field, "metadata.name" | "metadata.namespace")
                || selectable(group, kind).contains(&field)
                || also.iter().any(|it| it == field);
            if !known {
                // Kinds without fields of their own have another sentence, as in Kubernetes.
                return Err(ApiError::bad_request(if selectable(group, kind).is_empty() {
                    format!(
                        "\"{field}\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
                    )
                } else {
                    format!("field label not supported: {field}")
                }));
            }
            all.push((field.to_owned(), equal, value.to_owned()));
        }
        Ok(Self(all))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn matches(&self, object: &Value) -> bool {
        self.0
            .iter()
            .all(|(field, equal, value)| (field_text(object, field) == *value) == *equal)
    }
}

/// A field as text; empty when it is not set, as in Kubernetes.
fn field_text(object: &Value, field: &str) -> String {
    let field = match field {
        "source" => "source.component",
        "status.podIPs" => "status.podIP",
        other => other,
    };
    let mut at = object;
    for step in field.split('.') {
        match at.get(step) {
            Some(next) => at = next,
            None if matches!(field, "spec.unschedulable" | "spec.hostNetwork") => return "false".to_owned(),
            None if field == "status.replicas" => return "0".to_owned(),
            None => return String::new(),
        }
    }
    match at {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn label_selectors_match_as_kubectl_writes_them() {
        let object = json!({"metadata": {"labels": {"app": "web", "tier": "front", "n": "5"}}});
        for (text, expected) in [
            ("", true),
            ("app=web", true),
            ("app==web,tier=front", true),
            ("app!=web", false),
            ("other!=web", true),
            ("app in (web, api)", true),
            ("app notin (web)", false),
            ("other notin (x)", true),
            ("tier", true),
            ("!tier", false),
            ("!other,app in (web),tier", true),
            ("n>4", true),
            ("n<5", false),
        ] {
            assert_eq!(Labels::parse(text).unwrap().matches(&object), expected, "{text}");
        }
        for text in ["app in web", "app=web,", "a b", "=x", "app in (x", "app=we b"] {
            assert!(Labels::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn field_selectors_know_what_each_kind_allows() {
        let pod = json!({"metadata": {"name": "a"}, "status": {"phase": "Running"}});
        let parse = |text: &str| Fields::parse(text, "", "Pod", &[]);
        assert!(
            parse("metadata.name=a,status.phase!=Failed")
                .unwrap()
                .matches(&pod)
        );
        assert!(!parse("spec.nodeName=x").unwrap().matches(&pod));
        assert!(parse("spec.nodeName=").unwrap().matches(&pod));
        assert!(parse("spec.priority=1").is_err());
        assert!(Fields::parse("status.phase=x", "", "ConfigMap", &[]).is_err());
    }
}
