//! Calls on real sockets: what is sent, what is made of the answers, and where patience ends.

use std::collections::BTreeMap;
use std::time::Duration;

use crds::rollout::WebhookKind;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::fake::Fake;
use crate::rollout::outside::{Caller, Outside};
use crate::rollout::web::{Failure, LONGEST, Post, address};
use crate::rollout::webhook::{About, Hook};
use crate::rollout::{prometheus, web};

fn caller() -> (std::sync::Arc<Outside>, Caller) {
    let outside = Outside::new(&::prometheus::Registry::new());
    let caller = outside.caller();
    (outside, caller)
}

async fn query(reply: Value) -> Result<Option<f64>, String> {
    let fake = Fake::saying(200, &reply.to_string()).await;
    let endpoint = prometheus::endpoint(&fake.address).expect("an address");
    prometheus::ask(&caller().1, &endpoint, "up").await
}

fn vector(values: &[&str]) -> Value {
    let sample = |value: &&str| json!({ "metric": {}, "value": [1_700_000_000.5, value] });
    let result: Vec<Value> = values.iter().map(sample).collect();
    json!({ "status": "success", "data": { "resultType": "vector", "result": result } })
}

#[tokio::test]
async fn a_prometheus_is_asked_as_its_api_wants_it() {
    let fake = Fake::saying(200, &vector(&["98.5"]).to_string()).await;
    let endpoint = prometheus::endpoint(&format!("{}/prefix/", fake.address)).expect("an address");
    let names = |name: &str| (name != "what").then(|| format!("the-{name}"));
    let text = prometheus::fill(
        "sum(a{ns=\"{{ namespace }}\",r=~\"{{candidate}}\"}[{{ interval }}]) + 1",
        names,
    );
    let text = text.expect("all are known");
    assert_eq!(
        text,
        "sum(a{ns=\"the-namespace\",r=~\"the-candidate\"}[the-interval]) + 1"
    );
    let (outside, caller) = caller();
    assert_eq!(prometheus::ask(&caller, &endpoint, &text).await, Ok(Some(98.5)));
    let asked = fake.asked("/prefix/api/v1/query");
    assert_eq!(asked.len(), 1);
    assert_eq!(
        asked[0].body,
        "query=sum%28a%7Bns%3D%22the-namespace%22%2Cr%3D~%22the-candidate%22%7D%5Bthe-interval%5D%29%20%2B%201"
    );
    assert_eq!(outside.counted("prometheus", "answered"), 1);
}

#[tokio::test]
async fn an_answer_is_one_number_or_none_or_an_error() {
    let scalar = json!({ "status": "success", "data": { "resultType": "scalar", "result": [1.5, "7"] } });
    for (reply, want) in [
        (vector(&["0.5"]), Ok(Some(0.5))),
        (scalar, Ok(Some(7.0))),
        (vector(&["+Inf"]), Ok(Some(f64::INFINITY))),
        (vector(&["NaN"]), Ok(None)),
        (vector(&[]), Ok(None)),
        (
            vector(&["1", "2"]),
            Err("has 2 results and may have one: aggregate"),
        ),
        (vector(&["seven"]), Err("it answered 200 OK")),
        (
            json!({ "status": "success", "data": { "resultType": "matrix", "result": [] } }),
            Err("a matrix"),
        ),
        (
            json!({ "status": "error", "error": "parse error: unexpected end" }),
            Err("parse error: unexpected end"),
        ),
        (
            json!({ "hello": "world" }),
            Err("it answered 200 OK: {\"hello\":\"world\"}"),
        ),
    ] {
        match (query(reply.clone()).await, want) {
            (Err(why), Err(part)) => {
                assert!(
                    why.contains(part) && why.starts_with("Prometheus 127.0.0.1:"),
                    "{why}"
                );
            }
            (found, Ok(want)) => assert_eq!(found, Ok(want), "{reply}"),
            (found, want) => panic!("{reply}: {found:?}, not {want:?}"),
        }
    }
}

#[tokio::test]
async fn a_prometheus_that_fails_once_is_asked_once_more_and_then_no_more() {
    for (failures, want) in [
        (1, Ok(Some(1.0))),
        (9, Err("it answered 503 Service Unavailable: not now")),
    ] {
        let good = vector(&["1"]).to_string();
        let fake = Fake::start(move |_, before| {
            Some(if before < failures {
                (503, "not now".to_owned())
            } else {
                (200, good.clone())
            })
        })
        .await;
        let endpoint = prometheus::endpoint(&fake.address).expect("an address");
        let found = prometheus::ask(&caller().1, &endpoint, "up").await;
        match want {
            Ok(want) => assert_eq!(found, Ok(want)),
            Err(part) => assert!(found.as_ref().is_err_and(|why| why.contains(part)), "{found:?}"),
        }
        assert_eq!(fake.asked("/").len(), 2);
    }
}

/// Time is paused: it jumps to the limit as soon as nothing else happens.
#[tokio::test(start_paused = true)]
async fn who_does_not_answer_is_given_up_in_time() {
    let fake = Fake::start(|_, _| None).await;
    let endpoint = prometheus::endpoint(&fake.address).expect("an address");
    let (outside, caller) = caller();
    let begun = Instant::now();
    let found = prometheus::ask(&caller, &endpoint, "up").await;
    assert!(
        found
            .as_ref()
            .is_err_and(|why| why.ends_with("no answer within 5 s")),
        "{found:?}"
    );
    assert_eq!(
        begun.elapsed(),
        Duration::from_secs(11),
        "two tries, and a second between"
    );
    assert_eq!(outside.counted("prometheus", "timed_out"), 2);
}

#[tokio::test]
async fn an_answer_without_end_and_a_redirect_are_not_followed() {
    let huge = Fake::saying(200, &"x".repeat(LONGEST + 1)).await;
    let limit = Duration::from_secs(20);
    let post = |to: &str| Post::json(&address(to).expect("an address"), &json!({}));
    let found = caller().1.post("alert", &post(&huge.address), limit, []).await;
    assert!(matches!(found, Err(Failure::TooLong)), "{found:?}");
    let moved = Fake::saying(302, "elsewhere").await;
    let found = caller()
        .1
        .post("alert", &post(&moved.address), limit, [])
        .await
        .expect("an answer");
    assert_eq!((found.status.as_u16(), moved.asked("/").len()), (302, 1));
    let nobody = "http://127.0.0.1:1";
    let found = caller().1.post("alert", &post(nobody), limit, []).await;
    let why = found.expect_err("nobody listens there").to_string();
    assert!(why.contains("refused"), "{why}");
}

fn hook(to: &str, retries: u32) -> Hook {
    Hook {
        kind: WebhookKind::ConfirmPromotion,
        name: "board".to_owned(),
        to: web::address(to).expect("an address"),
        timeout: Duration::from_secs(5),
        retries,
        metadata: [("team".to_owned(), "blue".to_owned())].into(),
    }
}

fn about() -> About {
    About {
        namespace: "default".to_owned(),
        name: "web".to_owned(),
        phase: "Progressing",
        checksum: "68f6ff77cb".to_owned(),
    }
}

#[tokio::test]
async fn a_webhook_gets_flaggers_payload() {
    let fake = Fake::saying(200, "OK").await;
    let hook = hook(&format!("{}/gate?x=1", fake.address), 0);
    let more = BTreeMap::from([("eventType", "Normal".to_owned())]);
    assert_eq!(hook.call(&caller().1, &about(), &more).await, Ok(()));
    let asked = fake.asked("/gate?x=1");
    assert_eq!(
        asked[0].json(),
        json!({
            "name": "web", "namespace": "default", "phase": "Progressing", "checksum": "68f6ff77cb",
            "metadata": { "team": "blue", "eventType": "Normal" },
        })
    );
}

#[tokio::test]
async fn a_webhook_is_tried_again_only_for_what_may_pass() {
    for (statuses, retries, calls, want) in [
        (vec![202], 3, 1, Ok(())),
        // 204 is a success of HTTP, and no agreement of Flagger's.
        (vec![204], 3, 1, Err("board said 204 No Content")),
        (vec![403, 200], 3, 1, Err("board said 403 Forbidden: no")),
        (vec![302, 200], 3, 1, Err("board said 302 Found: no")),
        (vec![429, 200], 1, 2, Ok(())),
        (
            vec![500, 500],
            0,
            1,
            Err("board said 500 Internal Server Error: no"),
        ),
        (
            vec![500, 503, 200],
            1,
            2,
            Err("board said 503 Service Unavailable: no"),
        ),
    ] {
        let named = format!("{statuses:?}");
        let fake = Fake::start(move |_, before| {
            let status = statuses.get(before).copied().unwrap_or(200);
            Some((
                status,
                if status == 204 {
                    String::new()
                } else {
                    "no".to_owned()
                },
            ))
        })
        .await;
        let said = hook(&fake.address, retries)
            .call(&caller().1, &about(), &BTreeMap::new())
            .await;
        assert_eq!(said, want.map_err(str::to_owned), "{named}");
        assert_eq!(fake.asked("/").len(), calls, "{named}");
    }
}

#[tokio::test(start_paused = true)]
async fn waits_between_tries_double_up_to_half_a_minute() {
    let begun = Instant::now();
    // Nobody listens there, so each try ends at once.
    let said = hook("http://127.0.0.1:1", 7)
        .call(&caller().1, &about(), &BTreeMap::new())
        .await;
    assert!(
        said.as_ref().is_err_and(|why| why.starts_with("board: ")),
        "{said:?}"
    );
    let waited = begun.elapsed().as_secs();
    // 1 + 2 + 4 + 8 + 16 + 30 + 30; paused time may also run out for a try.
    assert!((91..=91 + 8 * 5).contains(&waited), "{waited}");
}

#[tokio::test]
async fn one_rollout_has_so_many_calls_under_way_and_no_more() {
    let fake = Fake::start(|_, _| None).await;
    let (outside, caller) = caller();
    let calls: Vec<_> = (0..20)
        .map(|_| {
            let (caller, post) = (
                caller.clone(),
                Post::json(&address(&fake.address).expect("an address"), &json!({})),
            );
            tokio::spawn(async move {
                caller
                    .post("alert", &post, Duration::from_secs(2), [])
                    .await
                    .map(drop)
            })
        })
        .collect();
    // Another Rollout is not kept waiting by them.
    let quick = Fake::saying(200, "").await;
    let post = Post::json(&address(&quick.address).expect("an address"), &json!({}));
    let other = outside
        .caller()
        .post("alert", &post, Duration::from_secs(2), [])
        .await;
    assert!(other.is_ok(), "{other:?}");
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(fake.asked("/").len(), 8);
    calls.iter().for_each(tokio::task::JoinHandle::abort);
}
