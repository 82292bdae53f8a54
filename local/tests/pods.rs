//! Pods as processes: probes, restarts, ends, environment.

mod support;

use k8s_openapi::api::core::v1::{ConfigMap, ContainerStatus, Pod};
use kube::api::{DeleteParams, LogParams};
use parking_lot::Mutex;
use serde_json::json;
use support::{Cluster, get, is_ready, shell, until};

fn status(pod: &Pod) -> ContainerStatus {
    pod.status
        .as_ref()
        .and_then(|it| it.container_statuses.as_ref()?.first().cloned())
        .unwrap_or_default()
}

/// Waits until the pod's only container satisfies `check`.
async fn container(
    cluster: &Cluster,
    name: &str,
    what: &str,
    check: impl Fn(&ContainerStatus) -> bool,
) -> Pod {
    until(what, || async {
        let pod = cluster.of::<Pod>().get(name).await.expect("the pod");
        check(&status(&pod)).then_some(pod)
    })
    .await
}

fn waits(status: &ContainerStatus, reason: &str) -> bool {
    let waiting = status.state.as_ref().and_then(|it| it.waiting.as_ref());
    waiting.and_then(|it| it.reason.as_deref()) == Some(reason)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_fails_is_started_again_at_once_and_then_backed_off() {
    let cluster = Cluster::start().await;
    cluster.create::<Pod>(shell("crash", "echo going; exit 7")).await;
    let pod = container(&cluster, "crash", "CrashLoopBackOff", |it| {
        waits(it, "CrashLoopBackOff")
    })
    .await;
    let seen = status(&pod);
    assert_eq!(seen.restart_count, 1);
    let last = seen.last_state.and_then(|it| it.terminated).expect("a last end");
    assert_eq!((last.exit_code, last.reason.as_deref()), (7, Some("Error")));
    let previous = LogParams {
        previous: true,
        ..Default::default()
    };
    assert_eq!(
        cluster.of::<Pod>().logs("crash", &previous).await.expect("a log"),
        "going\n"
    );
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn restart_policies_decide_and_phases_follow() {
    let cluster = Cluster::start().await;
    for (name, policy, script, phase) in [
        ("done", "Never", "exit 0", "Succeeded"),
        ("failed", "Never", "exit 1", "Failed"),
        ("enough", "OnFailure", "exit 0", "Succeeded"),
    ] {
        let mut pod = shell(name, script);
        pod["spec"]["restartPolicy"] = json!(policy);
        cluster.create::<Pod>(pod).await;
        until(&format!("{name} to be {phase}"), || async {
            let pod = cluster.of::<Pod>().get(name).await.expect("the pod");
            (pod.status?.phase.as_deref() == Some(phase)).then_some(())
        })
        .await;
    }
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_start_says_why_and_starts_when_it_can() {
    let cluster = Cluster::start().await;
    let mut image = shell("image", "");
    image["spec"]["containers"][0]["command"] = json!(null);
    cluster.create::<Pod>(image).await;
    let pod = container(&cluster, "image", "ErrImagePull", |it| waits(it, "ErrImagePull")).await;
    let message = status(&pod)
        .state
        .and_then(|it| it.waiting)
        .and_then(|it| it.message)
        .unwrap_or_default();
    assert!(message.contains("command"), "{message}");

    let mut missing = shell("missing", "exit 0");
    missing["spec"]["containers"][0]["command"] = json!(["no-such-program"]);
    missing["spec"]["restartPolicy"] = json!("Never");
    cluster.create::<Pod>(missing).await;
    let pod = container(&cluster, "missing", "StartError", |it| {
        it.state.as_ref().is_some_and(|it| it.terminated.is_some())
    })
    .await;
    let ended = status(&pod).state.and_then(|it| it.terminated).expect("an end");
    assert_eq!(
        (ended.exit_code, ended.reason.as_deref()),
        (128, Some("StartError"))
    );

    let mut config = shell("config", "echo $KEY; sleep 1000");
    config["spec"]["containers"][0]["env"] =
        json!([{ "name": "KEY", "valueFrom": { "configMapKeyRef": { "name": "map", "key": "key" } } }]);
    cluster.create::<Pod>(config).await;
    container(&cluster, "config", "the missing map", |it| {
        waits(it, "CreateContainerConfigError")
    })
    .await;
    cluster
        .create::<ConfigMap>(json!({ "metadata": { "name": "map" }, "data": { "key": "found" } }))
        .await;
    container(&cluster, "config", "a start", |it| {
        it.state.as_ref().is_some_and(|it| it.running.is_some())
    })
    .await;
    until("its line", || async {
        let log = cluster
            .of::<Pod>()
            .logs("config", &LogParams::default())
            .await
            .ok()?;
        (log == "found\n").then_some(())
    })
    .await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_comes_and_goes_and_liveness_starts_anew() {
    let cluster = Cluster::start().await;
    let mut web = shell("web", "");
    web["spec"]["containers"][0] = json!({
        "name": "main", "image": "example/web", "command": ["embedded-cluster", "serve"],
        "ports": [{ "containerPort": 80 }],
        "readinessProbe": { "httpGet": { "path": "/ready", "port": 80 }, "periodSeconds": 1, "failureThreshold": 1 },
        "livenessProbe": { "httpGet": { "path": "/ready", "port": 80 }, "periodSeconds": 1, "failureThreshold": 3 },
        "startupProbe": { "tcpSocket": { "port": 80 }, "periodSeconds": 1 },
    });
    cluster.create::<Pod>(web).await;
    let pod = container(&cluster, "web", "readiness", |it| it.ready).await;
    assert!(is_ready(&pod));
    let ip = pod.status.and_then(|it| it.pod_ip).expect("an address");
    let port = pod
        .metadata
        .annotations
        .and_then(|it| it.get("dormouse.dev/port").cloned())
        .expect("a port");
    get(&format!("{ip}:{port}"), "web", "/break")
        .await
        .expect("an answer");
    container(&cluster, "web", "unreadiness", |it| {
        !it.ready && it.restart_count == 0
    })
    .await;
    let pod = container(&cluster, "web", "a new start", |it| {
        it.restart_count == 1 && it.ready
    })
    .await;
    let last = status(&pod)
        .last_state
        .and_then(|it| it.terminated)
        .expect("a last end");
    assert_eq!(last.exit_code, 143, "stopped with TERM");
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn init_containers_run_in_order_before_the_others() {
    let cluster = Cluster::start().await;
    let folder = std::env::temp_dir().join(format!("dormouse-init-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let file = folder.join("order");
    let step = |name: &str| {
        let script = format!("sleep 0.1; echo {name} >> {}", file.display());
        json!({ "name": name, "image": "example/sh", "command": ["sh", "-c", script] })
    };
    let mut pod = shell("ordered", &format!("cat {}; sleep 1000", file.display()));
    pod["spec"]["initContainers"] = json!([step("one"), step("two")]);
    cluster.create::<Pod>(pod).await;
    let log = until("its lines", || async {
        let logs = LogParams {
            container: Some("main".to_owned()),
            ..Default::default()
        };
        cluster
            .of::<Pod>()
            .logs("ordered", &logs)
            .await
            .ok()
            .filter(|it| it.lines().count() == 2)
    })
    .await;
    assert_eq!(log, "one\ntwo\n");
    cluster.end().await;
    std::fs::remove_dir_all(&folder).expect("the folder");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_pod_has_its_hook_its_grace_and_then_is_killed() {
    let cluster = Cluster::start().await;
    let mut stubborn = shell(
        "stubborn",
        "trap 'echo term' TERM; echo up; while :; do sleep 0.05; done",
    );
    stubborn["spec"]["terminationGracePeriodSeconds"] = json!(2);
    stubborn["spec"]["containers"][0]["lifecycle"] = json!({ "preStop": { "sleep": { "seconds": 1 } } });
    cluster.create::<Pod>(stubborn).await;
    until("its first line", || async {
        let log = cluster
            .of::<Pod>()
            .logs("stubborn", &LogParams::default())
            .await
            .ok()?;
        log.contains("up").then_some(())
    })
    .await;
    let before = tokio::time::Instant::now();
    cluster
        .of::<Pod>()
        .delete("stubborn", &DeleteParams::default())
        .await
        .expect("deleted");
    let termed_after = Mutex::new(None);
    until("its end", || async {
        if let Ok(log) = cluster.of::<Pod>().logs("stubborn", &LogParams::default()).await
            && log.contains("term")
        {
            termed_after.lock().get_or_insert(before.elapsed());
        }
        cluster
            .of::<Pod>()
            .get_opt("stubborn")
            .await
            .expect("an answer")
            .is_none()
            .then_some(())
    })
    .await;
    let took = before.elapsed();
    let termed_after = *termed_after.lock();
    assert!(
        termed_after.is_some_and(|it| it.as_millis() >= 1000),
        "TERM comes after the hook: {termed_after:?}"
    );
    assert!(
        (2000..5000).contains(&took.as_millis()),
        "killed after the grace period: {took:?}"
    );
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_deleted_by_force_is_gone_and_its_process_too() {
    let cluster = Cluster::start().await;
    cluster
        .create::<Pod>(shell(
            "gone",
            "echo $$$$; trap '' TERM; while :; do sleep 0.05; done",
        ))
        .await;
    let pid = until("its number", || async {
        let log = cluster
            .of::<Pod>()
            .logs("gone", &LogParams::default())
            .await
            .ok()?;
        log.trim().parse::<i32>().ok()
    })
    .await;
    let force = DeleteParams::default().grace_period(0);
    cluster.of::<Pod>().delete("gone", &force).await.expect("deleted");
    until("its process gone", || async move {
        (!std::path::Path::new(&format!("/proc/{pid}")).exists()).then_some(())
    })
    .await;
    cluster.end().await;
}
