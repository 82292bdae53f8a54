//! Objects as they change, until interrupted or until one is as it should be.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::ops::ControlFlow;
use std::pin::pin;
use std::time::Duration;

use futures::TryStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;

use crate::client::Connected;
use crate::failure::Failure;
use crate::output::key;

/// Between a watch that was interrupted and the next.
const PAUSE: Duration = Duration::from_secs(1);

/// A change.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Change<K> {
    /// It is so now; how it was, if it was told before.
    Now(K, Option<K>),
    /// It is not there any more; how it was.
    Gone(K),
    /// All there are have been told: what was not is not there.
    Listed,
}

/// Hands every object, and then every change of one, to `handle`, until that breaks. `what` is their name in a message:
/// `Routes`.
///
/// # Errors
/// When the objects cannot be listed at all, and what `handle` fails with. A server that is away later is waited for.
pub(crate) async fn follow<K, T>(
    api: Api<K>,
    config: watcher::Config,
    connected: &Connected,
    what: &str,
    mut handle: impl FnMut(Change<K>) -> Result<ControlFlow<T>, Failure>,
) -> Result<T, Failure>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    K::DynamicType: Default,
{
    let cannot = |why: &dyn std::fmt::Display| {
        Failure::Api(format!("cannot watch {what} at {}: {why}", connected.url))
    };
    let mut known = Known::default();
    let mut events = pin!(watcher(api, config));
    loop {
        match events.try_next().await {
            Ok(Some(event)) => {
                for change in known.take(event) {
                    if let ControlFlow::Break(end) = handle(change)? {
                        return Ok(end);
                    }
                }
            }
            Ok(None) => return Err(cannot(&"the watch has ended")),
            Err(error) if !known.complete => return Err(cannot(&error)),
            // The watcher goes on where it was, or lists again.
            Err(error) => {
                tracing::warn!(%error, "watch interrupted");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Follows one object until `check` finds in it what it looks for. `None`: it is not there. `what` is its name in a message:
/// `the Route`.
///
/// # Errors
/// When it cannot be watched at all. A server that is away later is waited for.
pub(crate) async fn follow_one<K, T>(
    api: Api<K>,
    name: &str,
    connected: &Connected,
    what: &str,
    mut check: impl FnMut(K) -> Option<T>,
) -> Result<Option<T>, Failure>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    K::DynamicType: Default,
{
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut there = false;
    follow(api, config, connected, what, |change| {
        Ok(match change {
            Change::Now(object, _) => {
                there = true;
                check(object).map_or(ControlFlow::Continue(()), |found| ControlFlow::Break(Some(found)))
            }
            Change::Gone(_) => ControlFlow::Break(None),
            Change::Listed if there => ControlFlow::Continue(()),
            Change::Listed => ControlFlow::Break(None),
        })
    })
    .await
}

/// What was told already, by namespace and name: a list that is read again, because the watch lost its place, tells only what
/// has changed, and also what has gone meanwhile.
struct Known<K> {
    objects: BTreeMap<String, K>,
    /// What of them the list that is being read has, while one is.
    listed: BTreeSet<String>,
    /// Whether a list was read to its end.
    complete: bool,
}

impl<K> Default for Known<K> {
    fn default() -> Self {
        Self {
            objects: BTreeMap::new(),
            listed: BTreeSet::new(),
            complete: false,
        }
    }
}

impl<K: Resource + Clone> Known<K> {
    fn take(&mut self, event: Event<K>) -> Vec<Change<K>> {
        match event {
            Event::Init => {
                self.listed.clear();
                Vec::new()
            }
            Event::InitApply(object) => {
                self.listed.insert(key(&object));
                self.now(object)
            }
            Event::InitDone => {
                self.complete = true;
                let listed = std::mem::take(&mut self.listed);
                let gone = self.objects.extract_if(.., |key, _| !listed.contains(key));
                let gone = gone.map(|(_, object)| Change::Gone(object));
                gone.chain([Change::Listed]).collect()
            }
            Event::Apply(object) => self.now(object),
            Event::Delete(object) => {
                self.objects.remove(&key(&object));
                vec![Change::Gone(object)]
            }
        }
    }

    fn now(&mut self, object: K) -> Vec<Change<K>> {
        let version = object.resource_version();
        let before = self.objects.insert(key(&object), object.clone());
        match before {
            Some(before) if version.is_some() && before.resource_version() == version => Vec::new(),
            before => vec![Change::Now(object, before)],
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crds::Route;
    use hyper::{Request, Response};
    use kube::Client;
    use kube::client::Body;
    use serde_json::{Value, json};

    fn route(name: &str, version: &str) -> Route {
        let mut route = Route::new(name, crds::RouteSpec::default());
        route.metadata.namespace = Some("shop".to_owned());
        route.metadata.resource_version = Some(version.to_owned());
        route
    }

    /// Each change as a word.
    fn told(known: &mut Known<Route>, event: Event<Route>) -> String {
        let changes = known.take(event);
        let words = changes.iter().map(|change| match change {
            Change::Now(route, _) => format!("{} now", route.name_any()),
            Change::Gone(route) => format!("{} gone", route.name_any()),
            Change::Listed => "listed".to_owned(),
        });
        words.collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn a_list_that_is_read_again_tells_what_has_changed_and_gone_meanwhile() {
        let mut known = Known::default();
        for (event, want) in [
            (Event::Init, ""),
            (Event::InitApply(route("a", "1")), "a now"),
            (Event::InitApply(route("b", "2")), "b now"),
            (Event::InitApply(route("c", "3")), "c now"),
            (Event::InitDone, "listed"),
            (Event::Apply(route("a", "4")), "a now"),
            (Event::Delete(route("c", "5")), "c gone"),
            (Event::Init, ""),
            // Interrupted: half a list takes nothing away.
            (Event::Init, ""),
            (Event::InitApply(route("a", "4")), ""),
            (Event::InitApply(route("d", "6")), "d now"),
            (Event::InitDone, "b gone, listed"),
            (Event::Apply(route("b", "7")), "b now"),
        ] {
            let about = format!("{event:?}");
            assert_eq!(told(&mut known, event), want, "{about}");
        }
    }

    /// An API server that gives these answers in turn, or none; then it keeps silent.
    fn scripted(answers: Vec<Result<Value, &'static str>>) -> Connected {
        let answers = Arc::new(Mutex::new(answers.into_iter()));
        let service = tower::service_fn(move |_: Request<Body>| {
            let answer = answers.lock().expect("nobody panics").next();
            async move {
                match answer {
                    Some(Ok(body)) => Ok(Response::new(Body::from(format!("{body}\n").into_bytes()))),
                    Some(Err(why)) => Err(std::io::Error::other(why)),
                    None => std::future::pending().await,
                }
            }
        });
        Connected {
            client: Client::new(service, "shop"),
            namespace: "shop".to_owned(),
            url: "https://api".to_owned(),
        }
    }

    fn list(routes: &[Route]) -> Value {
        let metadata = json!({ "resourceVersion": "9" });
        json!({ "apiVersion": "dormouse.dev/v1alpha1", "kind": "RouteList", "metadata": metadata, "items": routes })
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_waited_for_is_found_after_an_interruption_and_one_that_is_not_there_is_not_waited_for()
     {
        let reset = || Err("connection reset");
        let changed = |kind: &str| Ok(json!({ "type": kind, "object": route("a", "2") }));
        let there = || Ok(list(&[route("a", "1")]));
        type Row = (Vec<Result<Value, &'static str>>, Result<Option<&'static str>, ()>);
        let rows: [Row; 6] = [
            (vec![there(), changed("MODIFIED")], Ok(Some("2"))),
            (
                vec![there(), reset(), reset(), changed("MODIFIED")],
                Ok(Some("2")),
            ),
            (vec![there(), reset(), changed("DELETED")], Ok(None)),
            (vec![Ok(list(&[]))], Ok(None)),
            (vec![there(), Ok(expired()), Ok(list(&[]))], Ok(None)),
            (vec![reset(), there()], Err(())),
        ];
        for (number, (answers, want)) in rows.into_iter().enumerate() {
            let connected = scripted(answers);
            let check = |route: Route| route.resource_version().filter(|version| version == "2");
            let found = follow_one(connected.api(false), "a", &connected, "the Route", check);
            let found = tokio::time::timeout(Duration::from_secs(60), found).await;
            let found = found.expect("it ends").map_err(|_| ());
            assert_eq!(
                found,
                want.map(|version| version.map(str::to_owned)),
                "row {number}"
            );
        }
    }

    /// A watch that has lost its place.
    fn expired() -> Value {
        let status = json!({ "kind": "Status", "status": "Failure", "code": 410, "reason": "Expired", "message": "too old" });
        json!({ "type": "ERROR", "object": status })
    }
}
