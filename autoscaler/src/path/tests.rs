//! The whole of capture against an API in memory, with the activators' streams and the built-in controllers played.

mod order;
pub(crate) mod world;

use std::time::Duration;

use crds::condition::{self, reason};
use crds::route::{Phase, Protocol, Route};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use serde_json::json;

use world::{OPTED, World, key};

#[tokio::test(start_paused = true)]
async fn a_write_that_fails_is_not_tried_again_without_a_pause() {
    let now = tokio::time::Instant::now() + Duration::from_secs(60);
    let after = |planned: i64| match planned {
        late if late < 0 => now - Duration::from_secs(late.unsigned_abs()),
        soon => now + Duration::from_secs(soon.unsigned_abs()),
    };
    for (planned, looks_in) in [
        (None, 4),
        (Some(-30), 4),
        (Some(0), 4),
        (Some(1), 1),
        (Some(9), 4),
    ] {
        let found = super::after_failure(planned.map(after), Duration::from_secs(4), now);
        assert_eq!(found - now, Duration::from_secs(looks_in), "{planned:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_is_captured_and_given_back_in_order_and_is_never_without_endpoints() {
    let world = World::start().await;
    let entry = world.captured("web", 2).await;
    assert!(condition::is_true(&entry.conditions, condition::CAPTURED));
    assert_eq!((entry.phase, entry.at_least.clone()), (None, None));
    assert_eq!(world.selector_keys("web").await, 2);
    assert!(
        world.managers_of_selector("web").await.is_empty(),
        "nobody is in the way of a later apply"
    );
    assert_eq!(world.original("web").await.as_deref(), Some("2"));
    let listed = world
        .slice("web-dm-activators-ipv4")
        .await
        .expect("it is published");
    assert_eq!(listed.endpoints.len(), 2);
    assert!(
        listed
            .endpoints
            .iter()
            .all(|endpoint| endpoint.target_ref.is_none())
    );

    world.annotate("web", json!({ OPTED: null })).await;
    world.until_gone("web").await;
    assert_eq!(world.selector_keys("web").await, 1);
    assert_eq!(world.original("web").await, None);
    assert_eq!(world.replicas("web").await, 2);
    assert!(world.slice("web-dm-activators-ipv4").await.is_none());
    order::check(
        &world.writes(),
        &[
            "note web",
            "private web-dm",
            "route web",
            "slice web-dm-activators-ipv4",
            "probe",
            "key + web",
            "probe",
            "key - web",
            "delete slice web-dm-activators-ipv4",
            "forget web",
            "delete route web",
            "delete private web-dm",
        ],
    );
    world.settled_between("slice web-dm-activators-ipv4", "key + web");
    world.settled_between("key - web", "delete slice web-dm-activators-ipv4");
    world.settled_between("delete slice web-dm-activators-ipv4", "delete route web");
}

#[tokio::test(start_paused = true)]
async fn an_annotation_that_changes_while_a_service_is_being_captured_holds_nothing_up() {
    let world = World::start().await;
    world.deploy("web", 1).await;
    world.service("web", json!({ OPTED: "true" })).await;
    world
        .until("web", |entry| {
            let captured = condition::find(&entry.conditions, condition::CAPTURED);
            captured.is_some_and(|captured| captured.message.contains("waiting until every node"))
        })
        .await;
    // Kept on the Route, but no part of its spec: its generation stays.
    world
        .annotate("web", json!({ "dormouse.dev/keep-alive": "7m" }))
        .await;
    world.until("web", |entry| entry.may_sleep.is_ok()).await;
}

#[tokio::test(start_paused = true)]
async fn a_sleeping_service_is_woken_before_it_is_given_back() {
    let world = World::start().await;
    world.captured("web", 2).await;
    world.scale("web", 0).await;
    world.annotate("web", json!({ OPTED: "false" })).await;
    let entry = world.until("web", |entry| entry.at_least.is_some()).await;
    assert_eq!(entry.at_least.as_ref().map(|(replicas, _)| *replicas), Some(2));
    world.rest(5).await;
    assert_eq!(world.selector_keys("web").await, 2);
    // The scale side does what the entry says.
    world.scale("web", 2).await;
    world.until_gone("web").await;
    assert_eq!(world.replicas("web").await, 2);
}

#[tokio::test(start_paused = true)]
async fn another_managers_apply_never_conflicts_and_the_key_it_takes_comes_back() {
    let world = World::start().await;
    world.captured("web", 1).await;
    for round in 1..=3 {
        world
            .apply_as("flux", "web", json!({ OPTED: "true" }))
            .await
            .expect("no conflict, and no force");
        world.until("web", |entry| entry.may_sleep.is_err()).await;
        let entry = world.until("web", |entry| entry.may_sleep.is_ok()).await;
        let conflict = condition::find(&entry.conditions, condition::SELECTOR_CONFLICT).expect("it is shown");
        assert!(
            conflict.message.contains("flux") && conflict.message.contains(&format!("{round} times")),
            "{conflict:?}"
        );
    }
    // Ten minutes of calm, and the condition goes.
    world.rest(601).await;
    let entry = world.entry("web").expect("it is captured");
    assert!(condition::find(&entry.conditions, condition::SELECTOR_CONFLICT).is_none());
}

#[tokio::test(start_paused = true)]
async fn replicas_that_we_have_changed_are_nobodys_and_in_nobodys_way() {
    let world = World::start().await;
    world.captured("web", 1).await;
    world.scale("web", 3).await;
    world.rest(2).await;
    assert_eq!(world.replicas("web").await, 3);
    assert!(world.managers_of_replicas("web").await.is_empty());
    let disowned = "disown replicas of web".to_owned();
    assert!(world.writes().contains(&disowned), "{:?}", world.writes());
}

#[tokio::test(start_paused = true)]
async fn a_refused_service_has_a_route_without_ports_and_is_captured_once_it_can_be() {
    let world = World::start().await;
    world.service("web", json!({ OPTED: "true" })).await;
    let entry = world
        .until("web", |entry| entry.phase == Some(Phase::Refused))
        .await;
    let captured = condition::find(&entry.conditions, condition::CAPTURED).expect("it is said");
    assert_eq!(
        (captured.status.as_str(), captured.reason.as_str()),
        ("False", reason::WORKLOAD_NOT_FOUND)
    );
    let route = world.route_when("web", |route| route.spec.ports.is_empty()).await;
    assert!(route.spec.pools.is_empty());
    world.deploy("web", 1).await;
    world.until("web", |entry| entry.may_sleep.is_ok()).await;
    assert_eq!(world.route_when("web", |_| true).await.spec.ports.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_that_appears_while_captured_releases_in_order() {
    let world = World::start().await;
    world.captured("web", 1).await;
    world.keda("web").await;
    let entry = world
        .until("web", |entry| entry.phase == Some(Phase::Refused))
        .await;
    let captured = condition::find(&entry.conditions, condition::CAPTURED).expect("it is said");
    assert_eq!(captured.reason, reason::SCALED_OBJECT);
    world.route_when("web", |route| route.spec.ports.is_empty()).await;
    assert_eq!(world.selector_keys("web").await, 1);
    order::check(
        &world.writes(),
        &[
            "key + web",
            "key - web",
            "delete slice web-dm-activators-ipv4",
            "forget web",
            "delete private web-dm",
            "route web",
        ],
    );
}

#[tokio::test(start_paused = true)]
async fn without_activators_the_pods_are_published_and_they_go_when_activators_are_back() {
    let world = World::start().await;
    world.captured("web", 2).await;
    world.rest(10).await;
    let gone = tokio::time::Instant::now();
    world.fleet.set_live(0);
    let entry = world
        .until("web", |entry| entry.phase == Some(Phase::FailOpen))
        .await;
    assert!(entry.may_sleep.is_err());
    assert!(condition::is_true(&entry.conditions, condition::FAIL_OPEN));
    let pods = world.slice_when("web-dm-pods0-ipv4").await;
    assert!(gone.elapsed().as_millis() <= 1100, "{:?}", gone.elapsed());
    assert_eq!(pods.endpoints.len(), 2);
    assert_eq!(pods.ports.unwrap_or_default()[0].port, Some(8080));
    world.rest(1).await;
    assert!(
        world.slice("web-dm-activators-ipv4").await.is_none(),
        "dead activators are not listed"
    );

    world.fleet.set_live(1);
    world.until("web", |entry| entry.may_sleep.is_ok()).await;
    world.rest(5).await;
    assert!(world.slice("web-dm-pods0-ipv4").await.is_none());
    assert_eq!(
        world.slice_when("web-dm-activators-ipv4").await.endpoints.len(),
        1
    );
    order::check(
        &world.writes(),
        &[
            "slice web-dm-pods0-ipv4",
            "delete slice web-dm-activators-ipv4",
            "slice web-dm-activators-ipv4",
            "delete slice web-dm-pods0-ipv4",
        ],
    );
    world.settled_between_last("slice web-dm-activators-ipv4", "delete slice web-dm-pods0-ipv4");
}

#[tokio::test(start_paused = true)]
async fn a_self_probe_that_misses_keeps_the_service_out_and_says_so() {
    let world = World::start().await;
    world.fleet.miss(true);
    world.deploy("web", 1).await;
    world.service("web", json!({ OPTED: "true" })).await;
    let missed = |entry: &crate::state::Entry| {
        condition::find(&entry.conditions, condition::CAPTURED)
            .is_some_and(|said| said.reason == reason::PROBE_FAILED)
    };
    let entry = world.until("web", missed).await;
    assert!(entry.may_sleep.is_err());
    assert!(!world.writes().iter().any(|write| write.starts_with("key")));
    world.fleet.miss(false);
    world.until("web", |entry| entry.may_sleep.is_ok()).await;
}

#[tokio::test(start_paused = true)]
async fn a_new_leader_continues_without_touching_what_stands() {
    let mut world = World::start().await;
    world.deploy("web", 1).await;
    world
        .service("web", json!({ OPTED: "true", "dormouse.dev/queue-limit": "7" }))
        .await;
    world.until("web", |entry| entry.may_sleep.is_ok()).await;
    world.write_status("web").await;
    // Invalid from now on: the last good value outlives the leader.
    world
        .annotate("web", json!({ "dormouse.dev/queue-limit": "many" }))
        .await;
    world.rest(5).await;
    world.scale("web", 0).await;
    world.forget_writes();
    world.take_over().await;
    let entry = world.until("web", |entry| entry.may_sleep.is_ok()).await;
    assert_eq!(entry.settings.queue_limit, 7);
    assert!(!condition::is_true(
        &entry.conditions,
        condition::CONFIGURATION_VALID
    ));
    world.rest(30).await;
    assert_eq!(world.writes(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn services_of_equal_configuration_share_a_pool_and_leave_it_one_by_one() {
    let world = World::start().await;
    world.deploy("web", 1).await;
    world.service("web", json!({ OPTED: "true" })).await;
    world.service_on("admin", "web", json!({ OPTED: "true" })).await;
    world.until("web", |entry| entry.may_sleep.is_ok()).await;
    world.until("admin", |entry| entry.may_sleep.is_ok()).await;
    world.rest(3).await;
    let ports = |service: &k8s_openapi::api::core::v1::Service| {
        service
            .spec
            .as_ref()
            .and_then(|spec| spec.ports.as_ref())
            .map_or(0, Vec::len)
    };
    assert_eq!(ports(&world.read_service("web-dm").await), 2);
    world.annotate("admin", json!({ OPTED: null })).await;
    world.until_gone("admin").await;
    world.rest(5).await;
    assert!(world.entry("web").is_some_and(|entry| entry.may_sleep.is_ok()));
    assert_eq!(ports(&world.read_service("web-dm").await), 1);
    assert_eq!(world.original("web").await.as_deref(), Some("1"));
    // A different configuration is refused for both: neither may sleep under the other.
    world
        .annotate("admin", json!({ OPTED: "true", "dormouse.dev/max-scale": "3" }))
        .await;
    for name in ["web", "admin"] {
        let entry = world
            .until(name, |entry| entry.phase == Some(Phase::Refused))
            .await;
        let captured = condition::find(&entry.conditions, condition::CAPTURED).expect("it is said");
        assert_eq!(captured.reason, reason::WORKLOAD_SHARED, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_deleted_without_its_dependents_leaves_none_of_them() {
    let world = World::start().await;
    world.captured("web", 1).await;
    // What `kubectl delete --cascade=orphan` does: while the Service is going, its dependents forget it.
    let hold = Patch::Merge(json!({ "metadata": { "finalizers": ["example.com/hold"] } }));
    let free = Patch::Merge(json!({ "metadata": { "finalizers": null } }));
    let orphan = Patch::Merge(json!({ "metadata": { "ownerReferences": null } }));
    let params = PatchParams::default();
    let routes: Api<Route> = Api::namespaced(world.client(), "default");
    let slices: Api<EndpointSlice> = Api::namespaced(world.client(), "default");
    let services: Api<Service> = Api::namespaced(world.client(), "default");
    let ours = world.slice_when("web-dm-activators-ipv4").await.name_any();
    services.patch("web", &params, &hold).await.expect("patches");
    let deleted = services.delete("web", &DeleteParams::default()).await;
    deleted.expect("deletes");
    services.patch("web-dm", &params, &orphan).await.expect("patches");
    slices.patch(&ours, &params, &orphan).await.expect("patches");
    services.patch("web", &params, &free).await.expect("patches");
    world.rest(20).await;
    assert!(routes.get_opt("web").await.expect("an answer").is_none());
    assert!(services.get_opt("web-dm").await.expect("an answer").is_none());
    assert!(slices.get_opt(&ours).await.expect("an answer").is_none());
}

#[tokio::test(start_paused = true)]
async fn a_port_that_is_added_or_renumbered_changes_the_route_in_place() {
    let world = World::start().await;
    world.captured("web", 1).await;
    let before = world.route_when("web", |_| true).await.spec.ports[0].clone();
    world
        .set_ports(
            "web",
            json!([
                { "name": "http", "port": 81, "targetPort": 8080 },
                { "name": "grpc", "port": 9000, "targetPort": 8080, "appProtocol": "kubernetes.io/h2c" },
            ]),
        )
        .await;
    let route = world.route_when("web", |route| route.spec.ports.len() == 2).await;
    assert_eq!(
        route.spec.ports[0].listen, before.listen,
        "the name keeps its listening port"
    );
    assert_eq!((route.spec.ports[0].port, route.spec.ports[1].h2c), (81, true));
    assert_eq!(route.spec.ports[1].protocol, Protocol::Http);
    world.rest(3).await;
    assert_eq!(
        world
            .slice_when("web-dm-activators-ipv4")
            .await
            .ports
            .unwrap_or_default()
            .len(),
        2
    );
    assert!(world.entry("web").is_some_and(|entry| entry.may_sleep.is_ok()));
}

#[tokio::test(start_paused = true)]
async fn many_services_are_captured_side_by_side() {
    const MANY: usize = 40;
    let world = World::start().await;
    let started = tokio::time::Instant::now();
    for number in 0..MANY {
        let name = format!("s{number}");
        world.deploy(&name, 1).await;
        world.service(&name, json!({ OPTED: "true" })).await;
    }
    let mut listens = std::collections::BTreeSet::new();
    for number in 0..MANY {
        let name = format!("s{number}");
        world.until(&name, |entry| entry.may_sleep.is_ok()).await;
        listens.insert(world.route_when(&name, |_| true).await.spec.ports[0].listen);
    }
    assert_eq!(listens.len(), MANY, "a listening port is one Route's alone");
    assert!(started.elapsed().as_secs() < 30, "{:?}", started.elapsed());
    assert!(world.entry(&key("s0").name).is_some());
}
