//! The columns of the built-in kinds, as Kubernetes' printers have them.

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
        Ok(then) => human(jiff::Timestamp::now().duration_since(then).as_secs()),
        Err(_) => "<unknown>".to_owned(),
    }
}

fn human(seconds: i64) -> String {
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
        ("", "Pod") => all.extend(pod()),
        ("", "Service") => all.extend(service()),
        ("", "Endpoints") => all.extend([text("Endpoints", endpoints), age()]),
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
        ("", "Node") => all.extend(node()),
        ("", "Event") => all = event("/involvedObject", "/message", "/lastTimestamp"),
        ("events.k8s.io", "Event") => all = event("/regarding", "/note", "/deprecatedLastTimestamp"),
        ("apps", "Deployment") => all.extend(deployment()),
        ("apps", "ReplicaSet") => all.extend(replica_set()),
        ("apps", "StatefulSet") => {
            all.push(text("Ready", |it| ready_of(it, "/status/readyReplicas")));
            all.push(age());
            all.extend(images("/spec/template/spec/containers"));
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
        ("discovery.k8s.io", "EndpointSlice") => all.extend(slice()),
        ("coordination.k8s.io", "Lease") => {
            all.extend([text("Holder", |it| at(it, "/spec/holderIdentity")), age()])
        }
        ("autoscaling", "HorizontalPodAutoscaler") => all.extend(autoscaler()),
        ("policy", "PodDisruptionBudget") => all.extend([
            text("Min Available", |it| or_na(&at(it, "/spec/minAvailable"))),
            text("Max Unavailable", |it| or_na(&at(it, "/spec/maxUnavailable"))),
            count("Allowed Disruptions", "/status/disruptionsAllowed"),
            age(),
        ]),
        ("networking.k8s.io", "Ingress") => all.extend(ingress()),
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

fn or_na(text: &str) -> String {
    if text.is_empty() {
        "N/A".to_owned()
    } else {
        text.to_owned()
    }
}

/// Names and images of containers, for `-o wide`.
fn images(pointer: &'static str) -> [Column; 2] {
    let join = move |key: &'static str| {
        move |object: &Value| {
            let all: Vec<String> = items(object, pointer)
                .iter()
                .map(|it| at(it, &format!("/{key}")))
                .collect();
            all.join(",")
        }
    };
    [wide("Containers", join("name")), wide("Images", join("image"))]
}

fn ready_of(object: &Value, ready: &str) -> String {
    let number = |pointer: &str| object.pointer(pointer).and_then(Value::as_i64).unwrap_or(0);
    format!("{}/{}", number(ready), number("/spec/replicas"))
}

fn deployment() -> Vec<Column> {
    let mut all = vec![
        text("Ready", |it| ready_of(it, "/status/readyReplicas")),
        count("Up-to-date", "/status/updatedReplicas"),
        count("Available", "/status/availableReplicas"),
        age(),
    ];
    all.extend(images("/spec/template/spec/containers"));
    all.push(wide("Selector", |it| selector_text(&it["spec"]["selector"])));
    all
}

fn replica_set() -> Vec<Column> {
    let mut all = vec![
        count("Desired", "/spec/replicas"),
        count("Current", "/status/replicas"),
        count("Ready", "/status/readyReplicas"),
        age(),
    ];
    all.extend(images("/spec/template/spec/containers"));
    all.push(wide("Selector", |it| selector_text(&it["spec"]["selector"])));
    all
}

fn pod() -> Vec<Column> {
    vec![
        text("Ready", |pod| {
            let statuses = items(pod, "/status/containerStatuses");
            let ready = statuses.iter().filter(|it| it["ready"] == true).count();
            format!("{ready}/{}", items(pod, "/spec/containers").len())
        }),
        text("Status", pod_status),
        text("Restarts", |pod| {
            let statuses = items(pod, "/status/containerStatuses");
            let count: i64 = statuses.iter().filter_map(|it| it["restartCount"].as_i64()).sum();
            let last = statuses
                .iter()
                .map(|it| at(it, "/lastState/terminated/finishedAt"))
                .max();
            match last.filter(|last| count > 0 && !last.is_empty()) {
                Some(last) => format!("{count} ({} ago)", age_of(&last)),
                None => count.to_string(),
            }
        }),
        age(),
        wide("IP", |pod| or_none(at(pod, "/status/podIP"))),
        wide("Node", |pod| or_none(at(pod, "/spec/nodeName"))),
        wide("Nominated Node", |pod| {
            or_none(at(pod, "/status/nominatedNodeName"))
        }),
        wide("Readiness Gates", |pod| {
            let gates = items(pod, "/spec/readinessGates");
            let met = |gate: &&&Value| {
                items(pod, "/status/conditions")
                    .iter()
                    .any(|it| it["type"] == gate["conditionType"] && it["status"] == "True")
            };
            let count = gates.iter().filter(met).count();
            if gates.is_empty() {
                "<none>".to_owned()
            } else {
                format!("{count}/{}", gates.len())
            }
        }),
    ]
}

/// What `kubectl get pods` says of a pod, in the order in which Kubernetes looks.
fn pod_status(pod: &Value) -> String {
    let mut reason = at(pod, "/status/reason");
    if reason.is_empty() {
        reason = at(pod, "/status/phase");
    }
    let statuses = items(pod, "/status/containerStatuses");
    let mut running = false;
    for status in statuses.iter().rev() {
        let waiting = at(status, "/state/waiting/reason");
        let ended = &status["state"]["terminated"];
        if !waiting.is_empty() {
            reason = waiting;
        } else if ended.is_object() {
            let why = at(ended, "/reason");
            reason = match (why.is_empty(), ended["signal"].as_i64().unwrap_or(0)) {
                (false, _) => why,
                (true, 0) => format!("ExitCode:{}", at(ended, "/exitCode")),
                (true, signal) => format!("Signal:{signal}"),
            };
        } else if status["ready"] == true && status["state"]["running"].is_object() {
            running = true;
        }
    }
    if reason == "Completed" && running {
        let ready = items(pod, "/status/conditions")
            .iter()
            .any(|it| it["type"] == "Ready" && it["status"] == "True");
        reason = if ready {
            "Running".to_owned()
        } else {
            "NotReady".to_owned()
        };
    }
    if pod["metadata"].get("deletionTimestamp").is_some() {
        reason = "Terminating".to_owned();
    }
    reason
}

fn service() -> Vec<Column> {
    vec![
        text("Type", |it| at(it, "/spec/type")),
        text("Cluster-IP", |it| or_none(at(it, "/spec/clusterIP"))),
        text("External-IP", |it| match at(it, "/spec/type").as_str() {
            "ExternalName" => at(it, "/spec/externalName"),
            "LoadBalancer" => {
                let all: Vec<String> = items(it, "/status/loadBalancer/ingress")
                    .iter()
                    .map(|it| at(it, "/ip"))
                    .collect();
                if all.is_empty() {
                    "<pending>".to_owned()
                } else {
                    all.join(",")
                }
            }
            _ => {
                let all: Vec<&str> = items(it, "/spec/externalIPs")
                    .iter()
                    .filter_map(|it| it.as_str())
                    .collect();
                or_none(all.join(","))
            }
        }),
        text("Port(s)", |it| {
            let all: Vec<String> = items(it, "/spec/ports")
                .iter()
                .map(|port| {
                    let (number, node, protocol) =
                        (at(port, "/port"), at(port, "/nodePort"), at(port, "/protocol"));
                    if node.is_empty() {
                        format!("{number}/{protocol}")
                    } else {
                        format!("{number}:{node}/{protocol}")
                    }
                })
                .collect();
            or_none(all.join(","))
        }),
        age(),
        wide("Selector", |it| {
            or_none(selector_text(&json!({ "matchLabels": it["spec"]["selector"] })))
        }),
    ]
}

fn endpoints(object: &Value) -> String {
    let mut all = Vec::new();
    for subset in items(object, "/subsets") {
        for address in items(subset, "/addresses") {
            for port in items(subset, "/ports") {
                all.push(format!("{}:{}", at(address, "/ip"), at(port, "/port")));
            }
        }
    }
    few(&all)
}

/// The first three, and how many more.
fn few(all: &[String]) -> String {
    match all.len() {
        0 => "<none>".to_owned(),
        1..=3 => all.join(","),
        more => format!("{} + {} more...", all[..3].join(","), more - 3),
    }
}

fn slice() -> Vec<Column> {
    vec![
        text("AddressType", |it| at(it, "/addressType")),
        text("Ports", |it| {
            let all: Vec<String> = items(it, "/ports").iter().map(|port| at(port, "/port")).collect();
            if all.is_empty() {
                "<unset>".to_owned()
            } else {
                few(&all)
            }
        }),
        text("Endpoints", |it| {
            let mut all = Vec::new();
            for endpoint in items(it, "/endpoints") {
                all.extend(
                    items(endpoint, "/addresses")
                        .iter()
                        .filter_map(|it| it.as_str().map(str::to_owned)),
                );
            }
            if all.is_empty() {
                "<unset>".to_owned()
            } else {
                few(&all)
            }
        }),
        age(),
    ]
}

fn node() -> Vec<Column> {
    vec![
        text("Status", |node| {
            let ready = items(node, "/status/conditions")
                .iter()
                .any(|it| it["type"] == "Ready" && it["status"] == "True");
            let mut status = if ready { "Ready" } else { "NotReady" }.to_owned();
            if node["spec"]["unschedulable"] == true {
                status.push_str(",SchedulingDisabled");
            }
            status
        }),
        text("Roles", |node| {
            let labels = node["metadata"]["labels"].as_object();
            let roles: Vec<&str> = labels
                .into_iter()
                .flatten()
                .filter_map(|(key, _)| key.strip_prefix("node-role.kubernetes.io/"))
                .collect();
            or_none(roles.join(","))
        }),
        age(),
        text("Version", |node| at(node, "/status/nodeInfo/kubeletVersion")),
        wide("Internal-IP", |node| {
            let all = items(node, "/status/addresses");
            or_none(
                all.iter()
                    .find(|it| it["type"] == "InternalIP")
                    .map_or_else(String::new, |it| at(it, "/address")),
            )
        }),
        wide("OS-Image", |node| at(node, "/status/nodeInfo/osImage")),
    ]
}

fn event(about: &'static str, message: &'static str, last: &'static str) -> Vec<Column> {
    vec![
        text("Last Seen", move |event| {
            let seen = [
                last,
                "/series/lastObservedTime",
                "/eventTime",
                "/metadata/creationTimestamp",
            ];
            let seen = seen
                .iter()
                .map(|pointer| at(event, pointer))
                .find(|it| !it.is_empty());
            age_of(&seen.unwrap_or_default())
        }),
        text("Type", |event| at(event, "/type")),
        text("Reason", |event| at(event, "/reason")),
        text("Object", move |event| {
            let kind = at(event, &format!("{about}/kind")).to_lowercase();
            format!("{kind}/{}", at(event, &format!("{about}/name")))
        }),
        wide("Subobject", move |event| at(event, &format!("{about}/fieldPath"))),
        wide("Source", |event| or_none(at(event, "/source/component"))),
        text("Message", move |event| at(event, message).trim().to_owned()),
        column("Name", "string", 1, |event| json!(at(event, "/metadata/name"))),
    ]
}

fn autoscaler() -> Vec<Column> {
    vec![
        text("Reference", |it| {
            format!(
                "{}/{}",
                at(it, "/spec/scaleTargetRef/kind"),
                at(it, "/spec/scaleTargetRef/name")
            )
        }),
        text("Targets", |it| {
            let metrics = items(it, "/spec/metrics");
            let mut all: Vec<String> = metrics
                .iter()
                .map(|metric| {
                    let name = at(metric, "/resource/name");
                    let target = at(metric, "/resource/target/averageUtilization");
                    if target.is_empty() {
                        "<unknown>".to_owned()
                    } else {
                        format!("{name}: <unknown>/{target}%")
                    }
                })
                .collect();
            if let Some(target) = it["spec"]["targetCPUUtilizationPercentage"].as_i64() {
                all.push(format!("cpu: <unknown>/{target}%"));
            }
            or_none(all.join(", "))
        }),
        text("MinPods", |it| at(it, "/spec/minReplicas")),
        count("MaxPods", "/spec/maxReplicas"),
        count("Replicas", "/status/currentReplicas"),
        age(),
    ]
}

fn ingress() -> Vec<Column> {
    vec![
        text("Class", |it| or_none(at(it, "/spec/ingressClassName"))),
        text("Hosts", |it| {
            let all: Vec<String> = items(it, "/spec/rules")
                .iter()
                .map(|rule| at(rule, "/host"))
                .collect();
            if all.iter().all(String::is_empty) {
                "*".to_owned()
            } else {
                all.join(",")
            }
        }),
        text("Address", |it| {
            let all: Vec<String> = items(it, "/status/loadBalancer/ingress")
                .iter()
                .map(|it| at(it, "/ip"))
                .collect();
            all.join(",")
        }),
        text("Ports", |it| {
            if items(it, "/spec/tls").is_empty() {
                "80"
            } else {
                "80, 443"
            }
            .to_owned()
        }),
        age(),
    ]
}

#[cfg(test)]
mod tests {
    use super::human;

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
            assert_eq!(human(seconds), expected, "{seconds}");
        }
    }
}
