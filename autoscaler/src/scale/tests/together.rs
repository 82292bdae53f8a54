//! Groups, `depends-on` and workers, in paused time.

use crds::condition::{DEPENDENCIES, reason};

use super::*;

const SECOND: Duration = Duration::from_secs(1);

impl Bench {
    /// A captured Service asleep, with a group and what it depends on.
    async fn join(&self, name: &str, group: Option<&str>, needs: &[&str]) {
        self.workload(name, 0, 0);
        self.annotate(name, None);
        self.registry
            .set(&route(name), Some(self.joined(name, group, needs)));
        self.settle().await;
    }

    fn joined(&self, name: &str, group: Option<&str>, needs: &[&str]) -> Entry {
        let settings = Settings {
            group: group.map(str::to_owned),
            depends_on: needs.iter().map(|need| (*need).to_owned()).collect(),
            ..self.settings.clone()
        };
        Entry {
            settings: Arc::new(settings),
            ..self.entry(name)
        }
    }

    /// A Deployment without a Service; `original`: its replicas have been noted.
    fn worker(&self, name: &str, replicas: u32, annotations: &Value, original: Option<u32>) {
        let mut annotations = annotations.clone();
        if let Some(original) = original {
            annotations[crds::names::ORIGINAL_REPLICAS_ANNOTATION] = json!(original.to_string());
        }
        let object = json!({
            "metadata": {"namespace": "d", "name": name, "uid": name, "annotations": annotations},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": {"app": name}},
                "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "app"}]}}
            },
            "status": {"replicas": replicas, "readyReplicas": replicas}
        });
        let object: Deployment = serde_json::from_value(object).expect("a Deployment");
        self.index.apply(&object);
    }

    /// The writes of all pools in their order, as `name=replicas`.
    fn order(&self) -> Vec<String> {
        let all = self.world.scaled.lock();
        let name = |path: &str| path.rsplit('/').nth(1).unwrap_or_default().to_owned();
        all.iter()
            .map(|(path, replicas, _)| format!("{}={replicas}", name(path)))
            .collect()
    }

    /// Has every pool the pods that were last asked for, ready at once.
    async fn follow(&self, names: &[&str]) {
        tokio::time::sleep(WRITE + Duration::from_millis(5)).await;
        for name in names {
            if let Some(last) = self.scaled(name).last() {
                let last = u32::try_from(*last).expect("few");
                self.workload(name, last, last);
            }
        }
        self.settle().await;
    }
}

const CHAIN: [&str; 3] = ["web", "api", "db"];

#[tokio::test(start_paused = true)]
async fn a_request_to_web_wakes_db_then_api_then_web_and_they_sleep_the_other_way_round() {
    let bench = bench();
    bench.join("web", None, &["api"]).await;
    bench.join("api", None, &["db"]).await;
    bench.join("db", None, &[]).await;
    // To have just been met counts as use.
    tokio::time::sleep(70 * SECOND).await;
    bench.line("web", 1, 0, 1, 0);
    assert!(
        bench.waking().contains(&"d/web".to_owned()),
        "no activator has to wake it itself"
    );
    bench.settle().await;
    assert_eq!(bench.order(), ["db=1"]);
    let status = bench.status("web");
    assert_eq!((status.phase, status.pods.as_str()), (Some(Phase::Waking), "0/1"));
    assert_eq!(status.why, "stays at 0: waits for api (0 of 1 ready)");
    assert_eq!(
        bench.status("api").why,
        "stays at 0: woken for web, which depends on it; waits for db (0 of 1 ready)"
    );
    assert_eq!(
        bench.status("db").why,
        "0 to 1: woken for web, through api, which depends on it"
    );
    tokio::time::sleep(SECOND).await;
    bench.follow(&CHAIN).await;
    assert_eq!(bench.order(), ["db=1", "api=1"]);
    bench.follow(&CHAIN).await;
    assert_eq!(bench.order(), ["db=1", "api=1", "web=1"]);
    assert!(
        bench.status("web").why.contains("; waited 1."),
        "{}",
        bench.status("web").why
    );
    bench.follow(&CHAIN).await;
    bench.line("web", 1, 1, 0, 1);
    tokio::time::sleep(50 * SECOND).await;
    assert_eq!(bench.order().len(), 3, "kept for a while");
    assert_eq!(
        bench.status("db").why,
        "stays at 1: awake for web, through api, which depends on it"
    );
    tokio::time::sleep(15 * SECOND).await;
    assert_eq!(
        bench.order()[3..],
        ["web=0", "api=0", "db=0"],
        "{:#}",
        bench.scaler.dump()
    );
}

#[tokio::test(start_paused = true)]
async fn a_group_rises_at_once_and_none_sleeps_until_all_may() {
    let bench = bench();
    for name in CHAIN {
        bench.join(name, Some("preview"), &[]).await;
    }
    bench.join("other", None, &[]).await;
    bench.line("api", 1, 0, 1, 0);
    bench.settle().await;
    let mut order = bench.order();
    order.sort();
    assert_eq!(
        order,
        ["api=1", "db=1", "web=1"],
        "in the turn that read the line"
    );
    bench.follow(&CHAIN).await;
    bench.line("api", 1, 1, 0, 1);
    tokio::time::sleep(40 * SECOND).await;
    bench.line("web", 1, 1, 0, 1);
    tokio::time::sleep(40 * SECOND).await;
    assert_eq!(bench.order().len(), 3, "web was used 40 s ago");
    assert_eq!(
        bench.status("api").why,
        "stays at 1: awake for web of group preview"
    );
    assert_eq!(bench.status("api").next, "", "no time is promised");
    assert!(!bench.status("web").next.is_empty());
    tokio::time::sleep(25 * SECOND).await;
    let mut order = bench.order().split_off(3);
    order.sort();
    assert_eq!(order, ["api=0", "db=0", "web=0"], "{:#}", bench.scaler.dump());
    bench.follow(&CHAIN).await;
    tokio::time::sleep(60 * SECOND).await;
    assert_eq!(bench.scaler.dump()["timers"], 0, "asleep costs nothing");
}

#[tokio::test(start_paused = true)]
async fn a_dependency_that_never_becomes_ready_holds_nobody_up_for_long() {
    let bench = bench();
    bench.join("web", None, &["db"]).await;
    bench.join("db", None, &[]).await;
    bench.line("web", 1, 0, 1, 0);
    tokio::time::sleep(WRITE * 2).await;
    bench.workload("db", 1, 0);
    tokio::time::sleep(19 * SECOND).await;
    assert_eq!(bench.order(), ["db=1"]);
    tokio::time::sleep(SECOND).await;
    assert_eq!(bench.order(), ["db=1", "web=1"]);
    assert_eq!(
        bench.status("web").why,
        "0 to 1: first request held; waited 20 s in vain for db (0 of 1 ready)"
    );
}

#[tokio::test(start_paused = true)]
async fn to_put_one_of_a_group_to_sleep_puts_all_to_sleep() {
    let bench = bench();
    for name in CHAIN {
        bench.join(name, Some("preview"), &[]).await;
    }
    bench.line("web", 1, 0, 1, 0);
    bench.follow(&CHAIN).await;
    bench.line("web", 1, 1, 0, 1);
    bench.line("api", 1, 1, 0, 1);
    tokio::time::sleep(2 * SECOND).await;
    bench.annotate("web", Some("sleep@1"));
    bench.settle().await;
    let mut order = bench.order().split_off(3);
    order.sort();
    assert_eq!(order, ["api=0", "db=0", "web=0"]);
    bench.follow(&CHAIN).await;
    tokio::time::sleep(5 * SECOND).await;
    assert_eq!(bench.order().len(), 6, "and they stay asleep");
}

#[tokio::test(start_paused = true)]
async fn a_worker_sleeps_and_wakes_with_its_group_and_is_given_back() {
    let bench = bench();
    bench.index.set_synced();
    bench.join("web", Some("preview"), &[]).await;
    let opted = json!({"dormouse.dev/scale-to-zero": "true", "dormouse.dev/group": "preview"});
    bench.worker("mailer", 2, &opted, None);
    tokio::time::sleep(3 * SECOND).await;
    assert!(
        bench.world.other.load(Ordering::Relaxed) > 0,
        "its replicas are noted"
    );
    assert!(bench.scaled("mailer").is_empty(), "not before that is seen");
    bench.worker("mailer", 2, &opted, Some(2));
    tokio::time::sleep(15 * SECOND).await;
    assert_eq!(
        bench.scaled("mailer"),
        [0],
        "nobody of its group is awake: {:#}",
        bench.scaler.dump()
    );
    bench.worker("mailer", 0, &opted, Some(2));
    bench.line("web", 1, 0, 1, 0);
    bench.settle().await;
    assert_eq!(
        (bench.scaled("web"), bench.scaled("mailer")),
        (vec![1], vec![0, 2]),
        "all that it had"
    );
    tokio::time::sleep(WRITE * 2).await;
    bench.workload("web", 1, 1);
    bench.worker("mailer", 2, &opted, Some(2));
    bench.line("web", 1, 1, 0, 1);
    tokio::time::sleep(50 * SECOND).await;
    assert_eq!(bench.scaled("mailer"), [0, 2]);
    tokio::time::sleep(15 * SECOND).await;
    assert_eq!(
        (bench.scaled("web"), bench.scaled("mailer")),
        (vec![1, 0], vec![0, 2, 0])
    );
    bench.workload("web", 0, 0);
    bench.worker("mailer", 0, &json!({}), Some(2));
    tokio::time::sleep(4 * SECOND).await;
    assert_eq!(bench.scaled("mailer").last(), Some(&2), "what it had");
}

#[tokio::test(start_paused = true)]
async fn workers_are_given_back_when_everything_is() {
    let bench = bench();
    bench.index.set_synced();
    bench.join("web", Some("preview"), &[]).await;
    let opted = json!({"dormouse.dev/scale-to-zero": "true", "dormouse.dev/group": "preview"});
    bench.worker("mailer", 0, &opted, Some(3));
    tokio::time::sleep(5 * SECOND).await;
    assert!(bench.scaled("mailer").is_empty(), "it is nobody's orphan");
    bench.release_all.send_replace(true);
    tokio::time::sleep(4 * SECOND).await;
    assert_eq!(bench.scaled("mailer"), [3]);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_nothing_could_wake_is_not_put_to_sleep() {
    let bench = bench();
    bench.index.set_synced();
    let opted = json!({"dormouse.dev/scale-to-zero": "true", "dormouse.dev/group": "preview"});
    bench.worker("mailer", 1, &opted, Some(1));
    bench.worker(
        "alone",
        1,
        &json!({"dormouse.dev/scale-to-zero": "true"}),
        Some(1),
    );
    tokio::time::sleep(300 * SECOND).await;
    assert!(bench.order().is_empty(), "{:#}", bench.scaler.dump());
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_obeyed_of_depends_on_is_said_with_the_fix() {
    let bench = bench();
    bench.index.set_synced();
    bench.join("web", Some("a"), &["db", "cache"]).await;
    bench.join("cache", Some("b"), &["web"]).await;
    let told = || {
        find(&bench.status("web").conditions, DEPENDENCIES)
            .cloned()
            .expect("it is said")
    };
    assert_eq!(told().status, "True", "what is missing may be on its way");
    tokio::time::sleep(5 * SECOND).await;
    let condition = told();
    assert_eq!(
        (condition.status.as_str(), condition.reason.as_str()),
        ("False", reason::DEPENDENCY_NOT_FOUND)
    );
    for part in [
        "no Service or worker of that name",
        "web to cache to web",
        "group b and not in a",
    ] {
        assert!(condition.message.contains(part), "{}", condition.message);
    }
    bench.workload("db", 1, 1);
    assert_eq!(told().reason, reason::DEPENDENCY_NOT_CAPTURED);
    bench.join("db", None, &[]).await;
    bench.join("cache", Some("a"), &[]).await;
    tokio::time::sleep(2 * SECOND).await;
    assert_eq!(told().status, "True", "{:?}", told());
}
