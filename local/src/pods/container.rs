//! One container's life: prepared, started, probed, started again with growing pauses, stopped.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::env::{self, Facts};
use super::pod::{PodRun, Slot};
use super::probe::{self, Finding, Kind, Target};
use super::process::{Launch, Process, exit_code, find_program};
use super::status::{Ended, State};
use crate::cluster::{FOLDER_ANNOTATION, now, seconds};

/// First pause between two starts; doubled for each further one. The first start after an end comes at once. As the kubelet.
const FIRST_PAUSE: Duration = Duration::from_secs(10);

/// Longest pause between two starts. As the kubelet.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// After a run of this length, or this long without a failure, pauses begin anew. As the kubelet.
const FORGIVEN_AFTER: Duration = Duration::from_secs(600);

/// How long before a ConfigMap or Secret that was missing is looked for again.
const CONFIG_PAUSE: Duration = Duration::from_secs(2);

/// Findings waiting for the container's task: it handles each at once, and there are three probes.
const WAITING_FINDINGS: usize = 16;

/// Pauses between starts.
#[derive(Debug, Default)]
struct BackOff {
    next: Duration,
}

impl BackOff {
    /// How long to wait after a run that lasted `ran`.
    fn after(&mut self, ran: Duration) -> Duration {
        if ran >= FORGIVEN_AFTER {
            self.next = Duration::ZERO;
        }
        let pause = self.next;
        self.next = if pause.is_zero() {
            FIRST_PAUSE
        } else {
            (pause * 2).min(LONGEST_PAUSE)
        };
        pause
    }
}

/// How a run of a container came to an end.
enum End {
    /// By itself, or by a probe.
    Exited(i32),
    /// Because the pod is stopped.
    Stopped,
}

/// Runs a container until it is done for good (its exit code) or the pod is stopped (`None`).
pub(super) async fn run(run: Arc<PodRun>, slot: Slot) -> Option<i32> {
    let container = Arc::new(run.container(slot).clone());
    let mut backoff = BackOff::default();
    loop {
        let (target, launch) = tokio::select! {
            () = run.stopping() => return None,
            prepared = prepare(&run, slot, &container) => prepared,
        };
        let began = Instant::now();
        let code = match start(&run, slot, &container, target, launch).await {
            End::Exited(code) => code,
            End::Stopped => return None,
        };
        if !restarts(&run, slot, &container, code) {
            run.update(slot, |view| view.done = true);
            return Some(code);
        }
        let pause = backoff.after(began.elapsed());
        if !wait(&run, slot, &container, pause).await {
            return None;
        }
        run.update(slot, |view| view.restarts += 1);
    }
}

/// Whether a container that ended with `code` is started again.
fn restarts(run: &PodRun, slot: Slot, container: &Container, code: i32) -> bool {
    let policy = run
        .pod
        .spec
        .as_ref()
        .and_then(|spec| spec.restart_policy.as_deref())
        .unwrap_or("Always");
    let is_sidecar = container.restart_policy.as_deref() == Some("Always");
    match (slot, policy) {
        _ if is_sidecar => true,
        (_, "Never") => false,
        // An init container that succeeded has done its work, whatever the policy.
        (Slot::Init(_), _) | (_, "OnFailure") => code != 0,
        _ => true,
    }
}

/// Waits out a pause between two starts; whether the pod is still wanted.
async fn wait(run: &PodRun, slot: Slot, container: &Container, pause: Duration) -> bool {
    if pause.is_zero() {
        return !run.is_stopping();
    }
    let name = run.pod.metadata.name.as_deref().unwrap_or_default();
    let message = format!(
        "back-off {}s restarting failed container={} pod={name}",
        pause.as_secs(),
        container.name
    );
    run.update(slot, |view| {
        if let State::Ended(ended) = &view.state {
            view.last = Some(ended.clone());
        }
        view.state = State::Waiting {
            reason: "CrashLoopBackOff".to_owned(),
            message: Some(message.clone()),
        };
    });
    run.event(
        true,
        "BackOff",
        &format!("Back-off restarting failed container {}", container.name),
    )
    .await;
    tokio::select! {
        () = tokio::time::sleep(pause) => true,
        () = run.stopping() => false,
    }
}

/// Makes everything ready for a start; as long as something is missing, says so and looks again.
async fn prepare(run: &PodRun, slot: Slot, container: &Arc<Container>) -> (Target, Launch) {
    loop {
        match try_prepare(run, container).await {
            Ok(ready) => return ready,
            Err(problem) => {
                let waits = State::Waiting {
                    reason: problem.reason.to_owned(),
                    message: Some(problem.message.clone()),
                };
                if run.update(slot, |view| view.state = waits.clone()) {
                    run.event(true, problem.event, &format!("Error: {}", problem.message))
                        .await;
                }
                match problem.again {
                    Some(pause) => tokio::time::sleep(pause).await,
                    // Nothing that could change without a new pod.
                    None => std::future::pending().await,
                }
            }
        }
    }
}

/// Why a container cannot be started.
struct Problem {
    reason: &'static str,
    event: &'static str,
    message: String,
    again: Option<Duration>,
}

async fn try_prepare(run: &PodRun, container: &Arc<Container>) -> Result<(Target, Launch), Problem> {
    let words = container.command.clone().unwrap_or_default();
    if words.is_empty() {
        let image = container.image.as_deref().unwrap_or_default();
        let message = format!(
            "image \"{image}\" cannot run here: give the container a `command` (containers are processes of this machine)"
        );
        return Err(Problem {
            reason: "ErrImagePull",
            event: "Failed",
            message,
            again: None,
        });
    }
    let config = |message: String| Problem {
        reason: "CreateContainerConfigError",
        event: "Failed",
        message,
        again: Some(CONFIG_PAUSE),
    };
    let sources = env::sources(&run.cluster, &run.namespace, container)
        .await
        .map_err(|error| config(error.to_string()))?;
    let facts = Facts {
        pod: &run.pod,
        ip: run.address.ip,
        port: run.address.port,
    };
    let services = run.cluster.services.in_namespace(&run.namespace);
    let env = env::environment(&facts, container, &sources, &services)
        .map_err(|error| config(error.to_string()))?;
    let get = |name: &str| env.get(name).cloned();
    let mut words = words
        .into_iter()
        .chain(container.args.clone().unwrap_or_default());
    let program = words.next().map(|it| env::expand(&it, get)).unwrap_or_default();
    let args: Vec<String> = words.map(|it| env::expand(&it, get)).collect();
    let whole = env::whole(&env, run.settings.first_in_path.as_deref());
    let folder = folder(run, container);
    if let Some(folder) = folder.as_ref().filter(|it| !it.is_dir()) {
        return Err(config(format!("workingDir {} does not exist", folder.display())));
    }
    let path = whole
        .iter()
        .find(|(name, _)| name == "PATH")
        .map(|(_, it)| it.clone())
        .unwrap_or_default();
    // A program that is not found fails at the start, as in a container.
    let program = find_program(&program, &path, folder.as_deref()).unwrap_or_else(|| PathBuf::from(program));
    let target = Target {
        pod: Arc::clone(&run.pod),
        ip: run.address.ip,
        container: Arc::clone(container),
        spawner: run.settings.spawner.clone(),
        env: whole.clone(),
        folder: folder.clone(),
    };
    Ok((
        target,
        Launch {
            program,
            args,
            env: whole,
            folder,
        },
    ))
}

/// `workingDir`, from the manifest's folder when relative.
fn folder(run: &PodRun, container: &Container) -> Option<PathBuf> {
    let base = run
        .pod
        .metadata
        .annotations
        .as_ref()
        .and_then(|it| it.get(FOLDER_ANNOTATION))
        .map(PathBuf::from);
    match (container.working_dir.as_deref().filter(|it| !it.is_empty()), base) {
        (Some(folder), Some(base)) => Some(base.join(folder)),
        (Some(folder), None) => Some(folder.into()),
        (None, base) => base,
    }
}

/// One run, from start to end.
async fn start(run: &Arc<PodRun>, slot: Slot, container: &Container, target: Target, launch: Launch) -> End {
    let pod_name = run.pod.metadata.name.clone().unwrap_or_default();
    if !launch.program.is_absolute() {
        let program = launch.program.display();
        let message = format!("exec: \"{program}\": executable file not found in $PATH");
        return failed_to_start(run, slot, container, message).await;
    }
    let mut process = match run.settings.spawner.spawn(launch).await {
        Ok(process) => process,
        Err(error) => return failed_to_start(run, slot, container, error.to_string()).await,
    };
    run.settings
        .logs
        .begin(&run.namespace, &pod_name, &container.name);
    let alone = run
        .pod
        .spec
        .as_ref()
        .is_some_and(|spec| spec.containers.len() == 1);
    let (output, errors) = process.output();
    let mut readers = tokio::task::JoinSet::new();
    for stream in [output.map(Either::Out), errors.map(Either::Err)]
        .into_iter()
        .flatten()
    {
        let (run, pod, name) = (Arc::clone(run), pod_name.clone(), container.name.clone());
        readers.spawn(async move {
            let logs = &run.settings.logs;
            match stream {
                Either::Out(stream) => logs.copy(&run.namespace, &pod, &name, alone, stream).await,
                Either::Err(stream) => logs.copy(&run.namespace, &pod, &name, alone, stream).await,
            }
        });
    }
    let started = now();
    run.update(slot, |view| {
        if let State::Ended(ended) = &view.state {
            view.last = Some(ended.clone());
        }
        view.state = State::Running {
            since: started.clone(),
            id: process.id(),
        };
        view.started = container.startup_probe.is_none();
        view.ready = view.started && container.readiness_probe.is_none();
    });
    let end = attend(run, slot, &mut process, target).await;
    // What the process left behind may hold its output open: end it, then read what was written.
    process.kill();
    let _ = tokio::time::timeout(Duration::from_secs(1), async {
        while readers.join_next().await.is_some() {}
    })
    .await;
    run.settings.logs.end(&run.namespace, &pod_name, &container.name);
    let (code, end) = match end {
        (code, false) => (code, End::Exited(code)),
        (code, true) => (code, End::Stopped),
    };
    let reason = if code == 0 { "Completed" } else { "Error" };
    let ended = Ended {
        code,
        reason: reason.to_owned(),
        message: None,
        started: Some(started),
        finished: now(),
    };
    run.update(slot, |view| {
        view.ready = false;
        view.started = false;
        view.state = State::Ended(ended.clone());
        view.done = matches!(end, End::Stopped);
    });
    end
}

enum Either {
    Out(tokio::process::ChildStdout),
    Err(tokio::process::ChildStderr),
}

async fn failed_to_start(run: &PodRun, slot: Slot, container: &Container, message: String) -> End {
    run.event(
        true,
        "Failed",
        &format!(
            "Error: failed to start container \"{}\": {message}",
            container.name
        ),
    )
    .await;
    let ended = Ended {
        code: 128,
        reason: "StartError".to_owned(),
        message: Some(message),
        started: None,
        finished: now(),
    };
    run.update(slot, |view| {
        view.ready = false;
        view.state = State::Ended(ended.clone());
    });
    End::Exited(128)
}

/// Follows a running process: its probes, its end, the pod's stop. Exit code, and whether the pod was stopped.
async fn attend(run: &PodRun, slot: Slot, process: &mut Process, target: Target) -> (i32, bool) {
    let (sender, mut findings) = mpsc::channel(WAITING_FINDINGS);
    let mut probes = tokio::task::JoinSet::new();
    if matches!(slot, Slot::Main(_)) {
        probes.spawn(probe::run(target.clone(), sender));
    }
    loop {
        tokio::select! {
            status = process.wait() => return (status.map_or(255, exit_code), false),
            () = run.stopping() => {
                let code = stop(run, process, &target, run.stop_deadline()).await;
                return (code, true);
            }
            Some(finding) = findings.recv() => match finding {
                Finding::Started => { run.update(slot, |view| view.started = true); }
                Finding::Ready(ready) => { run.update(slot, |view| view.ready = ready); }
                Finding::Failed(_, message) => run.event(true, "Unhealthy", &message).await,
                Finding::Unhealthy(kind, _) => {
                    let code = unhealthy(run, slot, process, &target, kind).await;
                    return (code, run.is_stopping());
                }
            },
        }
    }
}

/// A liveness or startup probe failed too often: the process is stopped, to be started anew.
async fn unhealthy(run: &PodRun, slot: Slot, process: &mut Process, target: &Target, kind: Kind) -> i32 {
    let probe = match kind {
        Kind::Startup => target.container.startup_probe.as_ref(),
        _ => target.container.liveness_probe.as_ref(),
    };
    let name = if kind == Kind::Startup {
        "startup"
    } else {
        "liveness"
    };
    let message = format!(
        "Container {} failed {name} probe, will be restarted",
        target.container.name
    );
    run.event(false, "Killing", &message).await;
    run.update(slot, |view| view.ready = false);
    let own = probe.and_then(|probe| probe.termination_grace_period_seconds);
    let grace = seconds(own.unwrap_or_else(|| run.grace_seconds()));
    stop(run, process, target, Instant::now() + grace).await
}

/// preStop, TERM, and KILL at the deadline; the exit code.
async fn stop(run: &PodRun, process: &mut Process, target: &Target, deadline: Instant) -> i32 {
    let hook = target
        .container
        .lifecycle
        .as_ref()
        .and_then(|it| it.pre_stop.as_ref());
    if let Some(hook) = hook {
        // The hook's time counts towards the grace period; when that is over, it is cut short.
        tokio::select! {
            result = pre_stop(target, hook) => {
                if let Err(message) = result {
                    run.event(true, "FailedPreStopHook", &format!("PreStopHook failed: {message}")).await;
                }
            }
            () = run.past(deadline) => {}
            status = process.wait() => return status.map_or(255, exit_code),
        }
    }
    process.terminate();
    tokio::select! {
        status = process.wait() => return status.map_or(255, exit_code),
        () = run.past(deadline) => {}
    }
    process.kill();
    process.wait().await.map_or(255, exit_code)
}

async fn pre_stop(target: &Target, hook: &LifecycleHandler) -> Result<(), String> {
    if let Some(exec) = &hook.exec {
        return probe::execute(target, exec).await;
    }
    if let Some(get) = &hook.http_get {
        return probe::get(target, get).await;
    }
    if let Some(sleep) = &hook.sleep {
        tokio::time::sleep(seconds(sleep.seconds)).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_begin_at_once_double_to_five_minutes_and_are_forgiven() {
        let mut backoff = BackOff::default();
        let short = Duration::from_secs(1);
        let pauses: Vec<u64> = (0..8).map(|_| backoff.after(short).as_secs()).collect();
        assert_eq!(pauses, [0, 10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(backoff.after(FORGIVEN_AFTER), Duration::ZERO);
        assert_eq!(backoff.after(short).as_secs(), 10);
    }
}
