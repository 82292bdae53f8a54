//! Against an API of one Lease that checks resourceVersions, in paused time.

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::*;

const DURATION: Duration = Duration::from_secs(5);

/// The one Lease there is, and whether the API answers.
#[derive(Default)]
struct World {
    lease: Option<Value>,
    version: u64,
    down: bool,
}

type Shared = Arc<Mutex<World>>;

fn client(world: &Shared) -> kube::Client {
    let world = Arc::clone(world);
    let service = tower::service_fn(move |request: Request<kube::client::Body>| {
        let world = Arc::clone(&world);
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await?.to_bytes();
            if world.lock().down {
                std::future::pending::<()>().await;
            }
            let (status, answer) = serve(&mut world.lock(), &head.method, &body);
            let mut response = Response::new(Full::new(Bytes::from(answer.to_string())));
            *response.status_mut() = status;
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(response)
        }
    });
    kube::Client::new(service, "default")
}

fn serve(world: &mut World, method: &Method, body: &Bytes) -> (StatusCode, Value) {
    let error = |code: u16, reason: &str| {
        let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": reason});
        (StatusCode::from_u16(code).expect("a status"), status)
    };
    let sent = || serde_json::from_slice::<Value>(body).expect("an object");
    match *method {
        Method::GET => match &world.lease {
            Some(lease) => (StatusCode::OK, lease.clone()),
            None => error(404, "NotFound"),
        },
        Method::POST if world.lease.is_some() => error(409, "AlreadyExists"),
        Method::POST => (StatusCode::CREATED, store(world, sent())),
        Method::PUT => {
            let (sent, held) = (sent(), world.lease.clone().unwrap_or_default());
            if sent["metadata"]["resourceVersion"] != held["metadata"]["resourceVersion"] {
                return error(409, "Conflict");
            }
            (StatusCode::OK, store(world, sent))
        }
        _ => error(405, "MethodNotAllowed"),
    }
}

fn store(world: &mut World, mut lease: Value) -> Value {
    world.version += 1;
    lease["metadata"]["resourceVersion"] = json!(world.version.to_string());
    lease["metadata"]["uid"] = json!("one");
    world.lease = Some(lease.clone());
    lease
}

struct Running {
    leading: watch::Receiver<Leadership>,
    term: Term,
    release_all: watch::Receiver<bool>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

fn start(world: &Shared, name: &str) -> Running {
    let elector = Elector::new(client(world), "dormouse-system", name, DURATION);
    let (leading, release_all) = (elector.leading(), elector.release_all());
    let term = elector.term();
    let stop = CancellationToken::new();
    Running {
        leading,
        term,
        release_all,
        task: tokio::spawn(elector.run(stop.clone())),
        stop,
    }
}

async fn leads(running: &mut Running, want: bool, within: Duration) {
    let waiting = running.leading.wait_for(|now| now.leader == want);
    timeout(within, waiting)
        .await
        .expect("in time")
        .expect("the elector runs");
}

fn holder(world: &Shared) -> String {
    let world = world.lock();
    let lease = world.lease.as_ref().expect("a lease");
    lease["spec"]["holderIdentity"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

#[tokio::test(start_paused = true)]
async fn one_leads_and_the_other_takes_over_at_once_when_it_is_released() {
    let world = Shared::default();
    let mut one = start(&world, "one");
    leads(&mut one, true, Duration::from_secs(1)).await;
    let mut two = start(&world, "two");
    tokio::time::sleep(DURATION * 4).await;
    assert!(one.leading.borrow().leader, "renewals keep it");
    assert!(!two.leading.borrow().leader, "there is one leader");
    let first = one.leading.borrow().epoch_base;

    one.stop.cancel();
    leads(&mut two, true, Duration::from_secs(1)).await;
    one.task.await.expect("it ends");
    assert!(holder(&world).starts_with("two_"));
    assert_eq!(
        two.leading.borrow().epoch_base,
        first + (1 << 32),
        "epochs grow from leader to leader"
    );
}

#[tokio::test(start_paused = true)]
async fn a_silent_leader_is_waited_for_as_long_as_the_lease_lasts() {
    let world = Shared::default();
    let mut one = start(&world, "one");
    leads(&mut one, true, Duration::from_secs(1)).await;
    one.task.abort();
    let killed = Instant::now();
    let mut two = start(&world, "two");
    leads(&mut two, true, DURATION * 2).await;
    let waited = killed.elapsed();
    assert!(
        waited >= DURATION - Duration::from_secs(1),
        "not before it may have stopped: {waited:?}"
    );
    assert!(
        waited <= DURATION + Duration::from_secs(1),
        "soon after: {waited:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_cannot_renew_stops_before_anybody_may_start() {
    let world = Shared::default();
    let mut one = start(&world, "one");
    leads(&mut one, true, Duration::from_secs(1)).await;
    let first = one.leading.borrow().epoch_base;
    world.lock().down = true;
    let cut_off = Instant::now();
    leads(&mut one, false, DURATION).await;
    assert!(cut_off.elapsed() < DURATION, "{:?}", cut_off.elapsed());
    world.lock().down = false;
    leads(&mut one, true, Duration::from_secs(2)).await;
    assert_eq!(
        one.leading.borrow().epoch_base,
        first + (1 << 32),
        "its second term begins above every epoch of its first"
    );
}

#[tokio::test(start_paused = true)]
async fn who_was_stopped_for_a_while_writes_no_more_although_nobody_has_told_it() {
    let world = Shared::default();
    let mut one = start(&world, "one");
    leads(&mut one, true, Duration::from_secs(1)).await;
    tokio::time::sleep(DURATION * 3).await;
    assert!(one.term.lasts(), "renewals make it longer");
    // The clock goes on, and none of the process's tasks runs.
    one.task.abort();
    tokio::time::sleep(DURATION * 4 / 5).await;
    assert!(one.leading.borrow().leader && !one.term.lasts());
}

#[tokio::test(start_paused = true)]
async fn a_lease_taken_by_somebody_else_is_not_fought_for() {
    let world = Shared::default();
    let mut one = start(&world, "one");
    leads(&mut one, true, Duration::from_secs(1)).await;
    let mut lease = world.lock().lease.clone().expect("a lease");
    lease["spec"]["holderIdentity"] = json!("thief");
    store(&mut world.lock(), lease);
    leads(&mut one, false, Duration::from_secs(3)).await;
    assert_eq!(holder(&world), "thief");
}

#[tokio::test(start_paused = true)]
async fn an_annotation_asks_to_release_all_and_costs_no_leadership() {
    let world = Shared::default();
    let mut one = start(&world, "one");
    leads(&mut one, true, Duration::from_secs(1)).await;
    let mut lease = world.lock().lease.clone().expect("a lease");
    lease["metadata"]["annotations"] = json!({RELEASE_ALL_ANNOTATION: "true"});
    store(&mut world.lock(), lease);
    let asked = one.release_all.wait_for(|asked| *asked);
    timeout(Duration::from_secs(3), asked)
        .await
        .expect("in time")
        .expect("it runs");
    tokio::time::sleep(DURATION * 2).await;
    assert!(one.leading.borrow().leader);
    assert!(holder(&world).starts_with("one_"));
}
