//! The columns of kinds that have many.

use serde_json::{Value, json};

use super::*;

pub(super) fn or_na(text: &str) -> String {
    if text.is_empty() {
        "N/A".to_owned()
    } else {
        text.to_owned()
    }
}

/// Names and images of containers, for `-o wide`.
pub(super) fn images(pointer: &'static str) -> [Column; 2] {
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

pub(super) fn ready_of(object: &Value, ready: &str) -> String {
    let number = |pointer: &str| object.pointer(pointer).and_then(Value::as_i64).unwrap_or(0);
    format!("{}/{}", number(ready), number("/spec/replicas"))
}

pub(super) fn deployment() -> Vec<Column> {
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

pub(super) fn replica_set() -> Vec<Column> {
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

pub(super) fn pod() -> Vec<Column> {
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

pub(super) fn service() -> Vec<Column> {
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

pub(super) fn endpoints(object: &Value) -> String {
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

pub(super) fn slice() -> Vec<Column> {
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

pub(super) fn node() -> Vec<Column> {
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

pub(super) fn event(about: &'static str, message: &'static str, last: &'static str) -> Vec<Column> {
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

pub(super) fn autoscaler() -> Vec<Column> {
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

pub(super) fn ingress() -> Vec<Column> {
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
