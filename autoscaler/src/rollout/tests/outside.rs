//! Rollouts that ask and tell others, over real sockets on the loopback interface. Time is paused: it goes on when everybody
//! waits, and what is sent over loopback arrives before that.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use crds::rollout::{Phase, RolloutStatus};
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, ListParams, PostParams};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::fake::{Asked, Fake, Reply};
use crate::path::tests::world::World;

/// A Prometheus, gates, a tester and a chat room.
struct Others {
    fake: Fake,
    /// What the query says.
    lag: Arc<AtomicU32>,
    /// Which gates are open, and whether somebody calls it off.
    open: Arc<AtomicBool>,
    call_off: Arc<AtomicBool>,
}

impl Others {
    async fn start() -> Self {
        let (lag, open, call_off) = (
            Arc::new(AtomicU32::new(5)),
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicBool::new(false)),
        );
        let (of_lag, of_open, of_call) = (Arc::clone(&lag), Arc::clone(&open), Arc::clone(&call_off));
        let reply = move |asked: &Asked, _| -> Reply {
            let yes = Some((200, String::new()));
            let when = |it: bool| Some((if it { 200 } else { 403 }, String::new()));
            match asked.path.as_str() {
                "/api/v1/query" => {
                    let value = of_lag.load(Ordering::SeqCst).to_string();
                    let result = json!([{ "metric": {}, "value": [1.0, value] }]);
                    let data = json!({ "resultType": "vector", "result": result });
                    Some((200, json!({ "status": "success", "data": data }).to_string()))
                }
                "/silent/api/v1/query" => None,
                "/confirm-rollout" | "/confirm-promotion" => when(of_open.load(Ordering::SeqCst)),
                "/rollback" => when(of_call.load(Ordering::SeqCst)),
                _ => yes,
            }
        };
        Self {
            fake: Fake::start(reply).await,
            lag,
            open,
            call_off,
        }
    }

    fn hook(&self, kind: &str) -> Value {
        json!({ "type": kind, "url": format!("{}/{kind}", self.fake.address), "timeout": "5s" })
    }

    fn metric(&self) -> Value {
        json!({
            "name": "lag", "max": 100, "failureLimit": 2,
            "prometheus": {
                "address": self.fake.address, "interval": "2s",
                "query": "lag{revision=\"{{ candidate }}\",service=\"{{ service }}\"}[{{ interval }}]",
            },
        })
    }
}

const KINDS: [&str; 8] = [
    "confirm-rollout",
    "pre-rollout",
    "rollout",
    "confirm-traffic-increase",
    "confirm-promotion",
    "post-rollout",
    "rollback",
    "event",
];

/// Two weights, then the gate before everything.
fn spec(others: &Others) -> Value {
    json!({
        "strategy": { "steps": [{ "weight": 20 }, { "weight": 50 }], "minStepDuration": "10s" },
        "analysis": {
            "mode": "None", "bake": "0s", "interval": "5s",
            "metrics": [others.metric(), {
                "name": "silent", "max": 1, "dryRun": true,
                "prometheus": { "address": format!("{}/silent", others.fake.address), "query": "up", "interval": "1s" },
            }],
            "webhooks": KINDS.map(|kind| others.hook(kind)),
        },
        "config": { "settle": "1s" },
        "alerts": [
            { "severity": "info", "secretRef": { "name": "chat" } },
            { "severity": "error", "type": "Webhook", "secretRef": { "name": "pager" } },
        ],
    })
}

async fn secret(world: &World, name: &str, address: &str) {
    let secret = json!({ "metadata": { "name": name }, "stringData": { "address": address } });
    let secret: Secret = serde_json::from_value(secret).expect("a Secret");
    let all = Api::<Secret>::default_namespaced(world.client());
    all.create(&PostParams::default(), &secret)
        .await
        .expect("it is created");
}

fn messages(asked: &[Asked], pointer: &str) -> Vec<String> {
    let text = |one: &Asked| {
        one.json()
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    asked.iter().map(text).collect()
}

#[tokio::test(start_paused = true)]
async fn each_webhook_has_its_moment_and_a_metric_over_its_limit_takes_the_candidate_out() {
    let (world, others) = (World::start().await, Others::start().await);
    secret(&world, "chat", &format!("{}/chat\n", others.fake.address)).await;
    secret(&world, "pager", &format!("{}/pager", others.fake.address)).await;
    world.rolled_out(1, spec(&others)).await;
    let first = world.idle().await;
    world.set_image("y").await;

    // Not confirmed: no pod starts.
    world.rest(60).await;
    let status = world.status().await;
    assert_eq!(status.phase, Phase::Preparing, "{}", status.why);
    assert!(
        status.why.contains("confirm-rollout said 403 Forbidden"),
        "{}",
        status.why
    );
    let candidate = status.candidate_revision.clone();
    let replicas = world
        .images()
        .await
        .into_iter()
        .find(|(name, ..)| *name == candidate);
    assert_eq!(replicas.map(|(_, _, replicas)| replicas), Some(0));
    let asked = others.fake.asked("/confirm-rollout");
    assert!(
        (8..=14).contains(&asked.len()),
        "each five seconds: {}",
        asked.len()
    );
    assert_eq!(
        asked[0].json()["checksum"],
        candidate.rsplit('-').next().expect("a hash")
    );
    assert!(others.fake.asked("/pre-rollout").is_empty());

    // Confirmed: two weights, each asked for once, and then it waits again.
    others.open.store(true, Ordering::SeqCst);
    world.until_status("20%", |status| status.weight == "20%").await;
    others.open.store(false, Ordering::SeqCst);
    assert_eq!(others.fake.asked("/pre-rollout").len(), 1);
    world
        .until_status("the last gate", |status| {
            status.why.contains("waits for confirm-promotion")
        })
        .await;
    assert_eq!(others.fake.asked("/confirm-traffic-increase").len(), 2);
    assert!(others.fake.asked("/rollout").len() >= 3, "each five seconds");
    let queries = others.fake.asked("/api/v1/query");
    assert!(queries.len() >= 5);
    assert!(
        queries[0].body.contains(&format!("%22{candidate}%22")) && queries[0].body.ends_with("%5B2s%5D"),
        "{}",
        queries[0].body
    );
    let status = world.status().await;
    let shown = |status: &RolloutStatus, name: &str| {
        let all = status
            .attempt
            .as_ref()
            .map(|attempt| attempt.measurements.clone());
        let found = all.unwrap_or_default().into_iter().find(|one| one.name == name);
        found.unwrap_or_else(|| panic!("{name}: {:#?}", status.attempt))
    };
    assert_eq!(
        (
            shown(&status, "lag").value.as_str(),
            shown(&status, "lag").failures
        ),
        ("5.00", 0)
    );
    // Who never answers is shown, decides nothing, and holds up nobody.
    let silent = shown(&status, "silent");
    assert!(
        silent.dry_run && silent.why.ends_with("no answer within 5 s"),
        "{silent:?}"
    );
    let condition = crds::condition::find(&status.conditions, "MeasurementsAvailable").expect("it is shown");
    assert!(
        condition.status == "False" && condition.message.contains("silent: Prometheus"),
        "{condition:?}"
    );

    // Two failures are fine, the third is not.
    others.lag.store(140, Ordering::SeqCst);
    let failed = world
        .until_status("failed", |status| status.phase == Phase::Failed)
        .await;
    let attempt = failed.attempt.as_ref().expect("there was one");
    assert_eq!(
        attempt.why,
        "lag 140.00 is above 100; 3 of its measurements failed, 2 may"
    );
    assert_eq!(failed.stable_revision, first.stable_revision);
    world.rest(5).await;

    let post = others.fake.asked("/post-rollout");
    assert_eq!(
        (post.len(), post[0].json()["phase"].clone()),
        (1, json!("Failed"))
    );
    let events = others.fake.asked("/event");
    let told = messages(&events, "/metadata/eventMessage");
    let once = |part: &str| told.iter().filter(|text| text.contains(part)).count();
    for part in [
        "scaling up",
        "waits for confirm-rollout",
        "gets 20 %",
        "gets 50 %",
        "waits for confirm-promotion",
        "is out",
    ] {
        assert_eq!(once(part), 1, "{part}: {told:#?}");
    }
    let types = messages(&events, "/metadata/eventType");
    assert!(types.contains(&"Normal".to_owned()) && types.contains(&"Warning".to_owned()));
    let stamp = events[0].json()["metadata"]["timestamp"]
        .as_str()
        .and_then(|text| text.parse::<u64>().ok());
    assert!(
        stamp.is_some_and(|stamp| stamp > 1_600_000_000_000),
        "milliseconds: {stamp:?}"
    );

    let chat = others.fake.asked("/chat");
    let colors = messages(&chat, "/attachments/0/color");
    // Initialized, new revision; twice it waits; taken out.
    assert_eq!(
        colors,
        ["good", "good", "warning", "warning", "danger"],
        "{chat:#?}"
    );
    assert!(
        messages(&chat, "/text")[4].contains("default/web: Taking"),
        "{chat:#?}"
    );
    let pager = others.fake.asked("/pager");
    assert_eq!(pager.len(), 1, "only what failed");
    let page = pager[0].json();
    assert_eq!(
        (page["severity"].clone(), page["event"].clone()),
        (json!("error"), json!("RollingBack"))
    );
    assert_eq!(page["candidate"], json!(candidate));
    assert!(crds::condition::is_true(&failed.conditions, "AlertsDelivered"));

    // Somebody calls the next one off.
    others.lag.store(5, Ordering::SeqCst);
    others.open.store(true, Ordering::SeqCst);
    world.command("retry").await;
    world.until_status("20%", |status| status.weight == "20%").await;
    others.call_off.store(true, Ordering::SeqCst);
    let failed = world
        .until_status("failed", |status| status.phase == Phase::Failed)
        .await;
    let why = failed.attempt.map(|attempt| attempt.why).unwrap_or_default();
    assert_eq!(why, "rollback calls it off");
}

#[tokio::test(start_paused = true)]
async fn failures_are_counted_on_by_the_next_process() {
    let (mut world, others) = (World::start().await, Others::start().await);
    let spec = json!({
        "strategy": { "steps": [{ "weight": 50 }], "minStepDuration": "10m" },
        "analysis": { "mode": "None", "bake": "0s", "metrics": [others.metric()] },
        "config": { "settle": "1s" },
    });
    world.rolled_out(1, spec).await;
    world.idle().await;
    world.set_image("y").await;
    others.lag.store(140, Ordering::SeqCst);
    let failures = |status: &RolloutStatus| {
        let attempt = status.attempt.as_ref();
        attempt.and_then(|attempt| attempt.measurements.first().map(|one| one.failures))
    };
    world
        .until_status("twice", |status| failures(status) == Some(2))
        .await;
    let before = others.fake.asked("/api").len();
    world.take_over().await;
    let failed = world
        .until_status("failed", |status| status.phase == Phase::Failed)
        .await;
    assert_eq!(failures(&failed), Some(3));
    assert_eq!(others.fake.asked("/api").len(), before + 1, "one more, not three");
}

#[tokio::test(start_paused = true)]
async fn an_alert_that_cannot_be_sent_says_what_is_missing() {
    let (world, others) = (World::start().await, Others::start().await);
    let spec = json!({
        "analysis": { "mode": "None", "bake": "0s" },
        "config": { "settle": "1s" },
        "alerts": [{ "secretRef": { "name": "chat" } }],
    });
    world.rolled_out(1, spec).await;
    let wrong = |part: &'static str| {
        move |status: &RolloutStatus| {
            let found = crds::condition::find(&status.conditions, "AlertsDelivered");
            found.is_some_and(|found| found.status == "False" && found.message.contains(part))
        }
    };
    world
        .until_status("missing", wrong("there is no Secret default/chat: create it"))
        .await;
    world.forbid("secrets");
    world.set_image("y").await;
    world
        .until_status(
            "forbidden",
            wrong("grant the verb get on secrets with a Role in default"),
        )
        .await;
    let events = Api::<Event>::default_namespaced(world.client());
    let told = async || {
        let events = events.list(&ListParams::default()).await.expect("Events").items;
        events.iter().any(|event| {
            event.reason.as_deref() == Some("AlertNotSent")
                && event
                    .note
                    .as_deref()
                    .is_some_and(|note| note.contains("grant the verb get on secrets"))
        })
    };
    while !told().await {
        sleep(Duration::from_millis(50)).await;
    }
    // Granted: the next one goes out, and the condition says so.
    world.forbid("");
    secret(&world, "chat", &format!("{}/chat", others.fake.address)).await;
    world.set_image("z").await;
    world
        .until_status("delivered", |status| {
            crds::condition::is_true(&status.conditions, "AlertsDelivered")
        })
        .await;
    assert!(!others.fake.asked("/chat").is_empty());
}
