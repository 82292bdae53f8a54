//! The waiting page, as browsers and programs meet it.

use std::sync::Mutex;

use super::*;

fn navigation(path: &str) -> http::request::Builder {
    Request::get(path)
        .header("accept", "text/html,application/xhtml+xml,*/*;q=0.8")
        .header("sec-fetch-mode", "navigate")
        .header("user-agent", "Browser/1")
}

fn question(shown: &str) -> http::request::Builder {
    Request::get("/")
        .header("accept", "*/*")
        .header("dormouse-wait", shown)
}

async fn asleep() -> Fixture {
    Fixture::with_route(|spec| spec.waiting_page = "auto".into()).await
}

fn phase(answer: &Answer) -> String {
    let body: serde_json::Value = serde_json::from_str(&answer.body).expect("JSON");
    let phase = body["phase"].as_str().expect("a phase").to_owned();
    assert_eq!(
        (answer.status, &answer.headers["dormouse-wait"]),
        (StatusCode::OK, &phase.parse().expect("a value"))
    );
    phase
}

#[tokio::test]
async fn a_browser_gets_a_page_at_once_and_programs_are_held() {
    let mut fixture = asleep().await;
    let page = fixture.send(navigation("/a?b=c")).await;
    assert_eq!(page.status, StatusCode::SERVICE_UNAVAILABLE);
    for (name, value) in [
        ("content-type", "text/html; charset=utf-8"),
        ("cache-control", "no-store"),
        ("retry-after", "2"),
        ("x-content-type-options", "nosniff"),
    ] {
        assert_eq!(page.headers[name], value, "{name}");
    }
    let policy = page.headers["content-security-policy"].to_str().expect("text");
    let nonce = policy
        .split("'nonce-")
        .nth(1)
        .and_then(|rest| rest.split('\'').next())
        .expect("a nonce");
    assert!(
        policy.starts_with("default-src 'none'; ") && !policy.contains("unsafe"),
        "{policy}"
    );
    assert_eq!(
        page.body.matches(&format!("nonce=\"{nonce}\"")).count(),
        2,
        "{}",
        page.body
    );
    assert!(page.body.contains("<h1>web is waking up</h1>"), "{}", page.body);
    // One waits for all who look, and nothing of it counts as a request.
    fixture.until("held", |counters| counters.held == 1).await;
    let other = fixture.send(navigation("/")).await;
    assert_ne!(
        other.headers["content-security-policy"],
        page.headers["content-security-policy"]
    );
    assert!(fixture.pool().is_waking());
    let counters = fixture.counters();
    assert_eq!(
        (counters.held, counters.arrivals, counters.outcomes.refused),
        (1, 0, 0)
    );
    let mut crowd = Crowd::default();
    crowd.send(&fixture, 3, "/");
    fixture
        .until("programs are held", |counters| counters.held == 4)
        .await;
    let pod = FakePod::new().await;
    fixture.publish_as(&[(pod.address, false, false)]);
    crowd.all_is_well().await;
    fixture.until("all is over", |counters| counters.held == 0).await;
    until("the wake has ended", || !fixture.pool().is_waking()).await;
    assert_eq!(pod.requests(), 3, "the page costs the pod nothing");
    assert_eq!(fixture.send(navigation("/")).await.body, "hello");
}

#[tokio::test]
async fn the_page_is_told_when_the_phase_changes() {
    let mut fixture = asleep().await;
    fixture.send(navigation("/")).await;
    // What it shows already is held.
    let listen = fixture.listen;
    let asking = tokio::spawn(async move { send(listen, question("asleep"), Bytes::new()).await });
    assert_eq!(phase(&fixture.send(question("something else")).await), "asleep");
    let address = SocketAddr::new(fresh_address(), 0);
    let address = SocketAddr::new(address.ip(), free_port(address.ip()).await);
    assert!(!asking.is_finished());
    fixture.publish_as(&[(address, false, false)]);
    let answer = asking.await.expect("answered");
    assert_eq!(phase(&answer), "starting");
    assert!(answer.body.contains("0 of 1 pods are ready"), "{}", answer.body);
    let asking = tokio::spawn(async move { send(listen, question("starting"), Bytes::new()).await });
    let pod = FakePod::on(address).await;
    assert_eq!(phase(&asking.await.expect("answered")), "ready");
    assert_eq!(phase(&fixture.send(question("ready")).await), "ready");
    assert_eq!(pod.requests(), 0, "no question reaches a pod");
}

#[tokio::test]
async fn who_is_no_browser_or_may_not_see_it_is_held() {
    let rows: [(&str, &str, http::request::Builder); 4] = [
        ("off", "off", navigation("/")),
        ("a Route of an older autoscaler", "", navigation("/")),
        ("a form sent", "auto", navigation("/").method("POST")),
        (
            "a program",
            "auto",
            Request::get("/").header("accept", "application/json"),
        ),
    ];
    for (what, page, request) in rows {
        let mut fixture = Fixture::with_route(|spec| spec.waiting_page = page.into()).await;
        let listen = fixture.listen;
        let client = tokio::spawn(async move { send(listen, request, Bytes::new()).await });
        fixture
            .until(what, |counters| (counters.held, counters.arrivals) == (1, 1))
            .await;
        let pod = FakePod::new().await;
        fixture.publish(&[&pod]);
        assert_eq!(client.await.expect("answered").body, "hello", "{what}");
    }
}

#[tokio::test]
async fn a_wake_that_fails_is_told_and_another_try_begins_anew() {
    let fixture = Fixture::with_route(|spec| {
        spec.waiting_page = "auto".into();
        spec.cold_start_timeout_ms = 100;
    })
    .await;
    fixture.send(navigation("/")).await;
    let answer = fixture.send(question("asleep")).await;
    assert_eq!(phase(&answer), "failed");
    assert!(
        answer.body.contains("no pod was ready within 0 s"),
        "{}",
        answer.body
    );
    assert_eq!(fixture.pool().held(), 0);
    assert_eq!(
        phase(&fixture.send(question("failed!")).await),
        "failed",
        "a tab left open wakes nothing"
    );
    fixture.send(navigation("/")).await;
    fixture.until("held again", |counters| counters.held == 1).await;
    assert_eq!(phase(&fixture.send(question("")).await), "asleep");
}

#[tokio::test]
async fn config_maps_that_no_route_names_any_more_leave_room_for_others() {
    let mut fixture = Fixture::with_route(|spec| spec.waiting_page = "dress".into()).await;
    let mut other = a_route("api", 0);
    other.spec.ports.clear();
    other.spec.waiting_page = "dress".into();
    fixture.index.apply_route(&other);
    let key = |name: &str| crate::route::RouteKey {
        namespace: "shop".into(),
        name: name.into(),
    };
    let known = |fixture: &Fixture| -> Vec<String> {
        let dump = fixture.app.hub.themes.dump();
        let mut names: Vec<String> = dump.as_object().expect("a map").keys().cloned().collect();
        names.sort();
        names
    };
    assert_eq!(known(&fixture), ["shop/dress"]);
    fixture.change(|spec| spec.waiting_page = "suit".into());
    assert_eq!(known(&fixture), ["shop/dress", "shop/suit"]);
    fixture.index.delete_route(&key("api"));
    assert_eq!(known(&fixture), ["shop/suit"]);
    fixture.change(|spec| spec.waiting_page = "auto".into());
    assert!(known(&fixture).is_empty());
    // A thousand are kept. One that changes makes room for itself.
    for number in 0..1001 {
        other.metadata.name = Some(format!("api-{number}"));
        other.spec.waiting_page = format!("dress-{number}");
        fixture.index.apply_route(&other);
    }
    let unread = "activator_waiting_pages_unread_total 1\n";
    assert!(metrics(&fixture).await.contains(unread));
    other.metadata.name = Some("api-0".into());
    other.spec.waiting_page = "suit".into();
    fixture.index.apply_route(&other);
    let known = known(&fixture);
    assert!(known.len() == 1000 && known.contains(&"shop/suit".to_owned()));
}

/// An API server that has one ConfigMap, or none.
fn config_maps(data: Arc<Mutex<Option<serde_json::Value>>>) -> kube::Client {
    let service = tower::service_fn(move |request: Request<kube::client::Body>| {
        assert_eq!(request.uri().path(), "/api/v1/namespaces/shop/configmaps/dress");
        let data = data.lock().expect("a value").clone();
        async move {
            let (status, body) = match data {
                Some(data) => (
                    200,
                    serde_json::json!({ "metadata": { "name": "dress" }, "data": data }),
                ),
                None => (
                    404,
                    serde_json::json!({
                        "kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404, "message": "not found",
                    }),
                ),
            };
            let response = Response::builder()
                .status(status)
                .body(Full::<Bytes>::from(body.to_string()));
            Ok::<_, std::convert::Infallible>(response.expect("a response"))
        }
    });
    kube::Client::new(service, "default")
}

#[tokio::test]
async fn a_config_map_dresses_the_page_and_the_last_good_one_stays() {
    let data = Arc::new(Mutex::new(None));
    let client = config_maps(Arc::clone(&data));
    let fixture = Fixture::with(|_| {}, |spec| spec.waiting_page = "dress".into(), Some(client)).await;
    let themes = &fixture.app.hub.themes;
    let read = async |what: &str, wanted: serde_json::Value| {
        themes.want(&fixture.app.hub, "shop", "dress", Duration::ZERO);
        until(what, || themes.dump()["shop/dress"] == wanted).await;
        fixture.send(navigation("/")).await.body
    };
    let page = read(
        "none",
        serde_json::json!({ "used": false, "error": "there is no such ConfigMap" }),
    )
    .await;
    assert!(page.contains("<h1>web is waking up</h1>"), "{page}");
    *data.lock().expect("a value") =
        Some(serde_json::json!({ "title": "Guten Morgen, {service}", "lang": "de" }));
    let page = read("good", serde_json::json!({ "used": true, "error": null })).await;
    assert!(
        page.contains("<h1>Guten Morgen, web</h1>") && page.contains("<html lang=\"de\">"),
        "{page}"
    );
    *data.lock().expect("a value") = Some(serde_json::json!({ "title": "x".repeat(1001) }));
    let error = "title: 1001 bytes are more than 1000";
    let page = read("bad", serde_json::json!({ "used": true, "error": error })).await;
    assert!(page.contains("<h1>Guten Morgen, web</h1>"), "{page}");
}
