//! Why pods do not become ready, read from what Kubernetes says of them. Pure.

use crds::condition::reason;
use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod, Probe};

use crate::watch::slim::WorkloadFacts;

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Diagnosis {
    /// One of the reasons of `WorkloadHealthy`.
    pub(crate) reason: &'static str,
    /// One sentence with the facts: container, image, exit code, count, what the scheduler said.
    pub(crate) message: String,
    /// Whether waiting longer will hardly help. Otherwise it only counts once the pods have had some time.
    pub(crate) clear: bool,
}

/// Waiting reasons of a container whose image cannot be had.
const IMAGE: &[&str] = &[
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "RegistryUnavailable",
    "ErrImageInspect",
];

/// Waiting reasons of a container that cannot be created from its specification.
const CONFIGURATION: &[&str] = &[
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
    "PreCreateHookError",
    "StartError",
];

/// Finds the most telling reason why none of these pods is ready; `None`: there is no sign of trouble.
pub(crate) fn diagnose(workload: &WorkloadFacts, pods: &[Pod]) -> Option<Diagnosis> {
    let pods: Vec<&Pod> = pods
        .iter()
        .filter(|pod| pod.metadata.deletion_timestamp.is_none())
        .collect();
    let containers = || pods.iter().flat_map(|pod| statuses(pod));
    None.or_else(|| containers().find_map(crash_loop))
        .or_else(|| containers().find_map(image))
        .or_else(|| containers().find_map(configuration))
        .or_else(|| containers().find_map(crashed))
        .or_else(|| pods.iter().find_map(|pod| unschedulable(pod)))
        .or_else(|| create_failed(workload, pods.is_empty()))
        .or_else(|| pods.iter().find_map(|pod| never_ready(workload, pod)))
}

fn statuses(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    let status = pod.status.as_ref();
    let init = status
        .and_then(|status| status.init_container_statuses.as_ref())
        .into_iter()
        .flatten();
    let main = status
        .and_then(|status| status.container_statuses.as_ref())
        .into_iter()
        .flatten();
    init.chain(main)
}

fn waiting(container: &ContainerStatus) -> Option<(&str, &str)> {
    let waiting = container.state.as_ref()?.waiting.as_ref()?;
    Some((
        waiting.reason.as_deref().unwrap_or_default(),
        waiting.message.as_deref().unwrap_or_default(),
    ))
}

fn crash_loop(container: &ContainerStatus) -> Option<Diagnosis> {
    let (why, _) = waiting(container)?;
    (why == "CrashLoopBackOff").then(|| Diagnosis {
        reason: reason::CRASH_LOOP,
        message: format!("container {} {}", container.name, exits(container)),
        clear: true,
    })
}

/// A container that has failed at least once and is not in back-off this very moment: it may be starting again.
fn crashed(container: &ContainerStatus) -> Option<Diagnosis> {
    let failed = |state: &ContainerState| state.terminated.as_ref().is_some_and(|end| end.exit_code != 0);
    let last = [container.state.as_ref(), container.last_state.as_ref()]
        .into_iter()
        .flatten()
        .any(failed);
    (last && !container.ready).then(|| Diagnosis {
        reason: reason::CRASH_LOOP,
        message: format!("container {} {}", container.name, exits(container)),
        clear: container.restart_count >= 2,
    })
}

/// `exits with code 1 (Error), restarted 4 times`.
fn exits(container: &ContainerStatus) -> String {
    let end = [container.state.as_ref(), container.last_state.as_ref()]
        .into_iter()
        .flatten()
        .find_map(|state| state.terminated.as_ref());
    let times = match container.restart_count {
        0 => "not restarted yet".to_owned(),
        1 => "restarted once".to_owned(),
        count => format!("restarted {count} times"),
    };
    match end {
        None => format!("exits again and again, {times}"),
        Some(end) => {
            let why = end
                .reason
                .as_deref()
                .filter(|why| !why.is_empty() && *why != "Error");
            let why = why.map(|why| format!(" ({why})")).unwrap_or_default();
            match end.signal.filter(|signal| *signal != 0) {
                Some(signal) => format!("ends by signal {signal}{why}, {times}"),
                None => format!("exits with code {}{why}, {times}", end.exit_code),
            }
        }
    }
}

fn image(container: &ContainerStatus) -> Option<Diagnosis> {
    let (why, message) = waiting(container)?;
    IMAGE.contains(&why).then(|| Diagnosis {
        reason: reason::IMAGE_PULL,
        message: with_detail(
            format!(
                "image \"{}\" of container {} cannot be pulled: {why}",
                container.image, container.name
            ),
            message,
        ),
        clear: true,
    })
}

fn configuration(container: &ContainerStatus) -> Option<Diagnosis> {
    let (why, message) = waiting(container)?;
    CONFIGURATION.contains(&why).then(|| Diagnosis {
        reason: reason::CREATE_FAILED,
        message: with_detail(
            format!("container {} cannot be created: {why}", container.name),
            message,
        ),
        clear: true,
    })
}

fn unschedulable(pod: &Pod) -> Option<Diagnosis> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let scheduled = conditions
        .iter()
        .find(|condition| condition.type_ == "PodScheduled")?;
    (scheduled.status == "False").then(|| Diagnosis {
        reason: reason::UNSCHEDULABLE,
        message: with_detail(
            format!(
                "pod {} cannot be scheduled",
                pod.metadata.name.as_deref().unwrap_or_default()
            ),
            scheduled.message.as_deref().unwrap_or_default(),
        ),
        // A cluster autoscaler may be adding a node.
        clear: false,
    })
}

/// Quota, admission, a missing service account: there is no pod to ask, but the workload says so.
fn create_failed(workload: &WorkloadFacts, no_pods: bool) -> Option<Diagnosis> {
    let failing = |[kind, status, ..]: &&[String; 4]| kind == "ReplicaFailure" && status == "True";
    let [_, _, why, message] = workload.conditions.iter().find(failing)?;
    let why = if why.is_empty() { "FailedCreate" } else { why };
    no_pods.then(|| Diagnosis {
        reason: reason::CREATE_FAILED,
        message: with_detail(
            format!("pods of {} cannot be created: {why}", workload.workload),
            message,
        ),
        clear: true,
    })
}

fn never_ready(workload: &WorkloadFacts, pod: &Pod) -> Option<Diagnosis> {
    let container = pod
        .status
        .as_ref()?
        .container_statuses
        .as_ref()?
        .iter()
        .find(|status| !status.ready && status.state.as_ref().is_some_and(|state| state.running.is_some()))?;
    let declared = workload
        .containers
        .iter()
        .find(|declared| declared.name == container.name);
    let (kind, probe) = match declared {
        Some(declared) if container.started == Some(false) => ("startup", declared.startup.as_ref()),
        Some(declared) => ("readiness", declared.readiness.as_ref()),
        None => ("readiness", None),
    };
    let probe = probe.map_or_else(
        || "it has no probe of its own".to_owned(),
        |probe| format!("its {kind} probe {} does not pass", describe(probe)),
    );
    Some(Diagnosis {
        reason: reason::NEVER_READY,
        message: format!("container {} runs but is not ready: {probe}", container.name),
        clear: false,
    })
}

/// `GET /healthz on port 8080`.
fn describe(probe: &Probe) -> String {
    use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
    let port = |port: &IntOrString| match port {
        IntOrString::Int(number) => number.to_string(),
        IntOrString::String(name) => name.clone(),
    };
    if let Some(http) = &probe.http_get {
        return format!(
            "GET {} on port {}",
            http.path.as_deref().unwrap_or("/"),
            port(&http.port)
        );
    }
    if let Some(tcp) = &probe.tcp_socket {
        return format!("TCP on port {}", port(&tcp.port));
    }
    if let Some(grpc) = &probe.grpc {
        return format!("gRPC on port {}", grpc.port);
    }
    match probe
        .exec
        .as_ref()
        .and_then(|exec| exec.command.as_ref()?.first())
    {
        Some(command) => format!("\"{command}\""),
        None => "of unknown kind".to_owned(),
    }
}

/// Messages of runtimes can be long; a condition is one sentence.
fn with_detail(mut sentence: String, detail: &str) -> String {
    const LONGEST: usize = 300;
    let line = detail.lines().next().unwrap_or_default().trim();
    if !line.is_empty() {
        let cut = (0..=LONGEST.min(line.len()))
            .rev()
            .find(|at| line.is_char_boundary(*at))
            .unwrap_or(0);
        sentence.push_str(": ");
        sentence.push_str(&line[..cut]);
    }
    sentence
}

#[cfg(test)]
mod tests {
    use super::*;
    use crds::route::{Workload, WorkloadKind};
    use serde_json::json;

    fn workload() -> WorkloadFacts {
        let mut facts = WorkloadFacts {
            workload: Workload {
                kind: WorkloadKind::Deployment,
                name: "web".into(),
            },
            ..WorkloadFacts::default()
        };
        let container =
            json!({"name": "app", "readinessProbe": {"httpGet": {"path": "/healthz", "port": 8080}}});
        let container: k8s_openapi::api::core::v1::Container =
            serde_json::from_value(container).expect("a container");
        facts.containers = vec![crate::watch::slim::ContainerFacts::from(&container)];
        facts
    }

    fn pod(status: serde_json::Value) -> Pod {
        let pod = json!({"metadata": {"name": "web-1"}, "spec": {"containers": []}, "status": status});
        serde_json::from_value(pod).expect("a pod")
    }

    fn container(rest: serde_json::Value) -> serde_json::Value {
        let mut container = json!({
            "name": "app", "image": "nowhere/none:1", "imageID": "", "ready": false, "restartCount": 0
        });
        for (key, value) in rest.as_object().expect("an object") {
            container[key] = value.clone();
        }
        json!({"containerStatuses": [container]})
    }

    #[test]
    fn each_kind_of_trouble_is_named_with_its_facts() {
        let crash = json!({
            "restartCount": 4,
            "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s"}},
            "lastState": {"terminated": {"exitCode": 3, "reason": "Error"}}
        });
        let once = json!({"restartCount": 1, "state": {"running": {}}, "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}});
        let pull = json!({"state": {"waiting": {"reason": "ErrImagePull", "message": "not found\nmore"}}});
        let config = json!({"state": {"waiting": {"reason": "CreateContainerConfigError", "message": "secret \"x\" not found"}}});
        let starting = json!({"state": {"waiting": {"reason": "ContainerCreating"}}});
        let unready = json!({"state": {"running": {}}, "started": true});
        let pending = json!({"conditions": [{"type": "PodScheduled", "status": "False", "message": "0/1 nodes are available"}]});
        for (what, status, want) in [
            (
                "crash loop",
                container(crash),
                Some((
                    reason::CRASH_LOOP,
                    true,
                    "container app exits with code 3, restarted 4 times",
                )),
            ),
            (
                "one crash",
                container(once),
                Some((
                    reason::CRASH_LOOP,
                    false,
                    "container app exits with code 137 (OOMKilled), restarted once",
                )),
            ),
            (
                "no image",
                container(pull),
                Some((
                    reason::IMAGE_PULL,
                    true,
                    "image \"nowhere/none:1\" of container app cannot be pulled: ErrImagePull: not found",
                )),
            ),
            (
                "bad secret",
                container(config),
                Some((
                    reason::CREATE_FAILED,
                    true,
                    "container app cannot be created: CreateContainerConfigError: secret \"x\" not found",
                )),
            ),
            ("just starting", container(starting), None),
            (
                "never ready",
                container(unready),
                Some((
                    reason::NEVER_READY,
                    false,
                    "container app runs but is not ready: its readiness probe GET /healthz on port 8080 does not pass",
                )),
            ),
            (
                "no node",
                pending,
                Some((
                    reason::UNSCHEDULABLE,
                    false,
                    "pod web-1 cannot be scheduled: 0/1 nodes are available",
                )),
            ),
        ] {
            let got = diagnose(&workload(), &[pod(status)]);
            let got = got
                .as_ref()
                .map(|found| (found.reason, found.clear, found.message.as_str()));
            assert_eq!(got, want, "{what}");
        }
    }

    #[test]
    fn a_quota_is_read_from_the_workload_when_there_is_no_pod() {
        let mut facts = workload();
        facts.conditions =
            vec![["ReplicaFailure", "True", "FailedCreate", "exceeded quota: pods=1"].map(str::to_owned)];
        let found = diagnose(&facts, &[]).expect("a diagnosis");
        assert_eq!(found.reason, reason::CREATE_FAILED);
        assert_eq!(
            found.message,
            "pods of deployment/web cannot be created: FailedCreate: exceeded quota: pods=1"
        );
    }
}
