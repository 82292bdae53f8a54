//! The columns of the built-in kinds, as Kubernetes' printers have them.

mod kinds;

use serde_json::{Value, json};

use super::resources::Resource;
use super::scale::selector_text;

type Cell = Box<dyn Fn(&Value) -> Value + Send + Sync>;

/// One column.
pub(crate) struct Column {
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) format: String,
    /// 0: always shown; more: only with `-o wide`.
    pub(crate) priority: i64,
    pub(crate) cell: Cell,
}

fn column(
    name: &str,
    kind: &str,
    priority: i64,
    cell: impl Fn(&Value) -> Value + Send + Sync + 'static,
) -> Column {
    Column {
        name: name.to_owned(),
        kind: kind.to_owned(),
        format: if name == "Name" {
            "name".to_owned()
        } else {
            String::new()
        },
        priority,
        cell: Box::new(cell),
    }
}

fn text(name: &str, cell: impl Fn(&Value) -> String + Send + Sync + 'static) -> Column {
    column(name, "string", 0, move |object| json!(cell(object)))
}

fn wide(name: &str, cell: impl Fn(&Value) -> String + Send + Sync + 'static) -> Column {
    column(name, "string", 1, move |object| json!(cell(object)))
}

fn count(name: &str, pointer: &'static str) -> Column {
    column(name, "integer", 0, move |object| {
        json!(object.pointer(pointer).and_then(Value::as_i64).unwrap_or(0))
    })
}

pub(crate) fn name() -> Column {
    text("Name", |object| at(object, "/metadata/name"))
}

pub(crate) fn age() -> Column {
    text("Age", |object| age_of(&at(object, "/metadata/creationTimestamp")))
}

fn at(object: &Value, pointer: &str) -> String {
    match object.pointer(pointer) {
        Some(Value::String(text)) => text.clone(),
        None | Some(Value::Null) => String::new(),
        Some(other) => other.to_string(),
    }
}

fn or_none(text: String) -> String {
    if text.is_empty() {
        "<none>".to_owned()
    } else {
        text
    }
}

fn items<'a>(object: &'a Value, pointer: &str) -> Vec<&'a Value> {
    object
        .pointer(pointer)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .collect()
}

fn size(object: &Value, key: &str) -> usize {
    object[key].as_object().map_or(0, serde_json::Map::len)
}

/// How long ago that was, as `kubectl` says it.
pub(crate) fn age_of(timestamp: &str) -> String {
    match timestamp.parse::<jiff::Timestamp>() {
        Ok(then) => kubectl_age(jiff::Timestamp::now().duration_since(then).as_secs()),
        Err(_) => "<unknown>".to_owned(),
    }
}

/// So many seconds, as `kubectl` says ages: `3h20m`.
#[must_use]
pub fn kubectl_age(seconds: i64) -> String {
    let pair = |big: i64, big_unit: &str, small: i64, small_unit: &str| {
        if small == 0 {
            format!("{big}{big_unit}")
        } else {
            format!("{big}{big_unit}{small}{small_unit}")
        }
    };
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    match seconds {
        i64::MIN..=-2 => "<invalid>".to_owned(),
        -1..=0 => "0s".to_owned(),
        1..120 => format!("{seconds}s"),
        120..600 => pair(minutes, "m", seconds % 60, "s"),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => pair(hours, "h", minutes % 60, "m"),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => pair(days, "d", hours % 24, "h"),
        691_200..63_072_000 => format!("{days}d"),
        63_072_000..252_288_000 => pair(days / 365, "y", days % 365, "d"),
        _ => format!("{}y", days / 365),
    }
}

/// The columns of a built-in kind.
pub(crate) fn of(resource: &Resource) -> Vec<Column> {
    let mut all = vec![name()];
    match (resource.group.as_str(), resource.kind.as_str()) {
        ("", "Pod") => all.extend(kinds::pod()),
        ("", "Service") => all.extend(kinds::service()),
        ("", "Endpoints") => all.extend([text("Endpoints", kinds::endpoints), age()]),
        ("", "Namespace") => all.extend([text("Status", |it| at(it, "/status/phase")), age()]),
        ("", "ConfigMap") => {
            all.push(column("Data", "integer", 0, |it| {
                json!(size(it, "data") + size(it, "binaryData"))
            }));
            all.push(age());
        }
        ("", "Secret") => {
            all.push(text("Type", |it| at(it, "/type")));
            all.push(column("Data", "integer", 0, |it| json!(size(it, "data"))));
            all.push(age());
        }
        ("", "ServiceAccount") => {
            all.push(column("Secrets", "integer", 0, |it| {
                json!(items(it, "/secrets").len())
            }));
            all.push(age());
        }
        ("", "Node") => all.extend(kinds::node()),
        ("", "Event") => all = kinds::event("/involvedObject", "/message", "/lastTimestamp"),
        ("events.k8s.io", "Event") => all = kinds::event("/regarding", "/note", "/deprecatedLastTimestamp"),
        ("apps", "Deployment") => all.extend(kinds::deployment()),
        ("apps", "ReplicaSet") => all.extend(kinds::replica_set()),
        ("apps", "StatefulSet") => {
            all.push(text("Ready", |it| kinds::ready_of(it, "/status/readyReplicas")));
            all.push(age());
            all.extend(kinds::images("/spec/template/spec/containers"));
        }
        ("apps", "ControllerRevision") => all.extend([
            text("Controller", |it| {
                let owners = items(it, "/metadata/ownerReferences");
                let owner = owners.iter().find(|owner| owner["controller"] == true);
                or_none(owner.map_or_else(String::new, |owner| {
                    format!(
                        "{}.apps/{}",
                        at(owner, "/kind").to_lowercase(),
                        at(owner, "/name")
                    )
                }))
            }),
            count("Revision", "/revision"),
            age(),
        ]),
        ("discovery.k8s.io", "EndpointSlice") => all.extend(kinds::slice()),
        ("coordination.k8s.io", "Lease") => {
            all.extend([text("Holder", |it| at(it, "/spec/holderIdentity")), age()])
        }
        ("autoscaling", "HorizontalPodAutoscaler") => all.extend(kinds::autoscaler()),
        ("policy", "PodDisruptionBudget") => all.extend([
            text("Min Available", |it| kinds::or_na(&at(it, "/spec/minAvailable"))),
            text("Max Unavailable", |it| {
                kinds::or_na(&at(it, "/spec/maxUnavailable"))
            }),
            count("Allowed Disruptions", "/status/disruptionsAllowed"),
            age(),
        ]),
        ("networking.k8s.io", "Ingress") => all.extend(kinds::ingress()),
        ("networking.k8s.io", "NetworkPolicy") => {
            all.extend([
                text("Pod-Selector", |it| {
                    or_none(selector_text(&it["spec"]["podSelector"]))
                }),
                age(),
            ]);
        }
        ("apiextensions.k8s.io", "CustomResourceDefinition") => {
            all.push(text("Created At", |it| at(it, "/metadata/creationTimestamp")));
        }
        ("rbac.authorization.k8s.io", "Role" | "ClusterRole") => {
            all.push(text("Created At", |it| at(it, "/metadata/creationTimestamp")));
        }
        ("rbac.authorization.k8s.io", _) => all.extend([
            text("Role", |it| {
                format!("{}/{}", at(it, "/roleRef/kind"), at(it, "/roleRef/name"))
            }),
            age(),
        ]),
        _ => all.push(age()),
    }
    all
}

#[cfg(test)]
mod tests {
    use super::kubectl_age;

    #[test]
    fn ages_read_as_kubectl_writes_them() {
        for (seconds, expected) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (150, "2m30s"),
            (600, "10m"),
            (7_260, "121m"),
            (10_800, "3h"),
            (12_000, "3h20m"),
            (30_000, "8h"),
            (180_000, "2d2h"),
            (864_000, "10d"),
            (-5, "<invalid>"),
        ] {
            assert_eq!(kubectl_age(seconds), expected, "{seconds}");
        }
    }
}
