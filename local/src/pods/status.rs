//! What a pod's status says, made from what its containers do. Without effects.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus, HostIP, Pod, PodCondition, PodIP, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// What one container does.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct View {
    pub(super) name: String,
    image: String,
    pub(super) state: State,
    pub(super) last: Option<Ended>,
    pub(super) restarts: i32,
    pub(super) ready: bool,
    pub(super) started: bool,
    /// It will not be started again.
    pub(super) done: bool,
}

/// The state of a container.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum State {
    Waiting { reason: String, message: Option<String> },
    Running { since: Time, id: i32 },
    Ended(Ended),
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Ended {
    pub(super) code: i32,
    pub(super) reason: String,
    pub(super) message: Option<String>,
    pub(super) started: Option<Time>,
    pub(super) finished: Time,
}

impl View {
    pub(super) fn new(container: &Container, reason: &str) -> Self {
        Self {
            name: container.name.clone(),
            image: container.image.clone().unwrap_or_default(),
            state: State::Waiting {
                reason: reason.to_owned(),
                message: None,
            },
            last: None,
            restarts: 0,
            ready: false,
            started: false,
            done: false,
        }
    }

    fn succeeded(&self) -> bool {
        matches!(&self.state, State::Ended(ended) if ended.code == 0)
    }

    fn write(&self) -> ContainerStatus {
        let mut state = ContainerState::default();
        match &self.state {
            State::Waiting { reason, message } => {
                state.waiting = Some(ContainerStateWaiting {
                    reason: Some(reason.clone()),
                    message: message.clone(),
                });
            }
            State::Running { since, .. } => {
                state.running = Some(ContainerStateRunning {
                    started_at: Some(since.clone()),
                });
            }
            State::Ended(ended) => state.terminated = Some(ended.write()),
        }
        let id = match &self.state {
            State::Running { id, .. } => Some(format!("process://{id}")),
            _ => None,
        };
        ContainerStatus {
            name: self.name.clone(),
            image: self.image.clone(),
            image_id: String::new(),
            container_id: id,
            state: Some(state),
            // Empty, not absent: in a merge patch only the former takes an old state away.
            last_state: Some(ContainerState {
                terminated: self.last.as_ref().map(Ended::write),
                ..Default::default()
            }),
            ready: self.ready,
            started: Some(self.started),
            restart_count: self.restarts,
            ..Default::default()
        }
    }
}

impl Ended {
    fn write(&self) -> ContainerStateTerminated {
        ContainerStateTerminated {
            exit_code: self.code,
            reason: Some(self.reason.clone()),
            message: self.message.clone(),
            started_at: self.started.clone(),
            finished_at: Some(self.finished.clone()),
            ..Default::default()
        }
    }
}

/// All that a pod's containers do.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Views {
    pub(super) init: Vec<View>,
    pub(super) main: Vec<View>,
}

impl Views {
    pub(super) fn new(pod: &Pod) -> Self {
        let spec = pod.spec.as_ref();
        let init = spec
            .and_then(|spec| spec.init_containers.as_deref())
            .unwrap_or_default();
        let main = spec.map(|spec| spec.containers.as_slice()).unwrap_or_default();
        let waits = if init.is_empty() {
            "ContainerCreating"
        } else {
            "PodInitializing"
        };
        Self {
            init: init
                .iter()
                .map(|container| View::new(container, "PodInitializing"))
                .collect(),
            main: main.iter().map(|container| View::new(container, waits)).collect(),
        }
    }

    fn initialized(&self) -> bool {
        self.init.iter().all(View::succeeded)
    }

    fn phase(&self) -> &'static str {
        if self.init.iter().any(|it| it.done && !it.succeeded()) {
            return "Failed";
        }
        let over = self
            .main
            .iter()
            .all(|it| it.done && matches!(it.state, State::Ended(_)));
        if over && !self.main.is_empty() {
            return if self.main.iter().all(View::succeeded) {
                "Succeeded"
            } else {
                "Failed"
            };
        }
        let never = |it: &View| matches!(it.state, State::Waiting { .. }) && it.last.is_none();
        if !self.initialized() || self.main.iter().any(never) {
            "Pending"
        } else {
            "Running"
        }
    }

    fn unready(&self) -> Vec<&str> {
        self.main
            .iter()
            .filter(|it| !it.ready)
            .map(|it| it.name.as_str())
            .collect()
    }
}

/// The status, with the times of conditions that did not change taken from the one before.
pub(super) fn compose(pod: &Pod, views: &Views, ip: IpAddr, started: &Time, now: &Time) -> PodStatus {
    let before = pod.status.clone().unwrap_or_default();
    let phase = views.phase();
    let conditions = conditions(pod, views, phase, now);
    let write = |views: &[View]| views.iter().map(View::write).collect::<Vec<_>>();
    PodStatus {
        phase: Some(phase.to_owned()),
        conditions: Some(conditions),
        container_statuses: Some(write(&views.main)),
        init_container_statuses: (!views.init.is_empty()).then(|| write(&views.init)),
        host_ip: Some("127.0.0.1".to_owned()),
        host_ips: Some(vec![HostIP {
            ip: "127.0.0.1".to_owned(),
        }]),
        pod_ip: Some(ip.to_string()),
        pod_ips: Some(vec![PodIP { ip: ip.to_string() }]),
        start_time: before.start_time.or_else(|| Some(started.clone())),
        qos_class: before.qos_class.or_else(|| Some("BestEffort".to_owned())),
        observed_generation: pod.metadata.generation,
        ..Default::default()
    }
}

fn conditions(pod: &Pod, views: &Views, phase: &str, now: &Time) -> Vec<PodCondition> {
    let old = pod
        .status
        .as_ref()
        .and_then(|status| status.conditions.clone())
        .unwrap_or_default();
    let over = matches!(phase, "Succeeded" | "Failed");
    let unready = views.unready();
    let containers = if over {
        Some(("PodCompleted".to_owned(), None))
    } else if unready.is_empty() {
        None
    } else {
        let message = format!("containers with unready status: [{}]", unready.join(" "));
        Some(("ContainersNotReady".to_owned(), Some(message)))
    };
    let closed_gate = pod
        .spec
        .iter()
        .flat_map(|spec| spec.readiness_gates.iter().flatten())
        .find(|gate| {
            !old.iter()
                .any(|it| it.type_ == gate.condition_type && it.status == "True")
        });
    let ready = containers.clone().or_else(|| {
        let gate = closed_gate?;
        let message = format!(
            "corresponding condition of pod readiness gate \"{}\" is not True",
            gate.condition_type
        );
        Some(("ReadinessGatesNotReady".to_owned(), Some(message)))
    });
    let initialized = match views
        .init
        .iter()
        .filter(|it| !it.succeeded())
        .map(|it| it.name.as_str())
        .collect::<Vec<_>>()
    {
        waiting if waiting.is_empty() => None,
        waiting => {
            let message = format!("containers with incomplete status: [{}]", waiting.join(" "));
            Some(("ContainersNotInitialized".to_owned(), Some(message)))
        }
    };
    let ours = [
        ("PodReadyToStartContainers", None),
        ("Initialized", initialized),
        ("Ready", ready),
        ("ContainersReady", containers),
        ("PodScheduled", None),
    ];
    let foreign = old
        .iter()
        .filter(|it| !ours.iter().any(|(kind, _)| *kind == it.type_))
        .cloned();
    let mut conditions: Vec<PodCondition> = Vec::new();
    for (kind, problem) in ours.clone() {
        let status = if problem.is_none() { "True" } else { "False" };
        let (reason, message) = problem.map_or((None, None), |(reason, message)| (Some(reason), message));
        let same = old.iter().find(|it| it.type_ == kind && it.status == status);
        conditions.push(PodCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason,
            message,
            last_transition_time: same
                .map_or_else(|| Some(now.clone()), |it| it.last_transition_time.clone()),
            observed_generation: pod.metadata.generation,
            ..Default::default()
        });
    }
    conditions.extend(foreign);
    conditions
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> Pod {
        serde_saphyr::from_str(
            "spec: { initContainers: [{ name: i }], containers: [{ name: a }, { name: b }] }",
        )
        .expect("a pod")
    }

    fn at(second: i64) -> Time {
        Time(jiff::Timestamp::from_second(second).expect("a time"))
    }

    fn ended(code: i32) -> State {
        State::Ended(Ended {
            code,
            reason: "Completed".into(),
            message: None,
            started: None,
            finished: at(1),
        })
    }

    #[test]
    fn the_phase_follows_the_containers() {
        let running = || State::Running { since: at(1), id: 1 };
        let waiting = || State::Waiting {
            reason: "x".into(),
            message: None,
        };
        for (init, a, b, done, expected) in [
            (waiting(), waiting(), waiting(), false, "Pending"),
            (running(), waiting(), waiting(), false, "Pending"),
            (ended(0), running(), waiting(), false, "Pending"),
            (ended(0), running(), running(), false, "Running"),
            (ended(0), ended(1), running(), false, "Running"),
            (ended(0), ended(0), ended(0), true, "Succeeded"),
            (ended(0), ended(0), ended(1), true, "Failed"),
            (ended(0), ended(0), ended(1), false, "Running"),
            (ended(1), waiting(), waiting(), true, "Failed"),
        ] {
            let mut views = Views::new(&pod());
            views.init[0].state = init.clone();
            views.main[0].state = a.clone();
            views.main[1].state = b.clone();
            for view in views.init.iter_mut().chain(&mut views.main) {
                view.done = done;
            }
            assert_eq!(views.phase(), expected, "{init:?} {a:?} {b:?}");
        }
    }

    #[test]
    fn a_condition_keeps_its_time_until_its_status_changes() {
        let mut pod = pod();
        let mut views = Views::new(&pod);
        let ip = "127.64.0.1".parse().expect("an address");
        pod.status = Some(compose(&pod, &views, ip, &at(1), &at(1)));
        views.init[0].state = ended(0);
        for view in &mut views.main {
            view.state = State::Running { since: at(2), id: 1 };
            view.ready = true;
        }
        let status = compose(&pod, &views, ip, &at(2), &at(2));
        let since = |kind: &str| {
            let found = status
                .conditions
                .iter()
                .flatten()
                .find(|it| it.type_ == kind)
                .expect(kind);
            (found.status.clone(), found.last_transition_time.clone())
        };
        assert_eq!(since("PodScheduled"), ("True".into(), Some(at(1))));
        assert_eq!(since("Ready"), ("True".into(), Some(at(2))));
        assert_eq!(status.start_time, Some(at(1)));
    }
}
