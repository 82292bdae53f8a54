//! Rollouts and Revisions as the cluster shows them. Kept apart from the index: where their definitions are not installed,
//! or may not be read, everything else goes on.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use crds::names::ROLLOUT_LABEL;
use crds::{Revision, Rollout};
use futures::StreamExt;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt};
use parking_lot::RwLock;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::facts::service_of;
use crate::state::RouteKey;

/// Wait after a watch that failed: these kinds may not be installed, and then there is nothing to hurry for.
const AGAIN: Duration = Duration::from_secs(5);

/// All of them.
pub(super) struct Objects {
    tables: RwLock<Tables>,
    news: watch::Sender<u64>,
    listed: watch::Sender<bool>,
}

#[derive(Default)]
struct Tables {
    rollouts: HashMap<RouteKey, Arc<Rollout>>,
    revisions: HashMap<RouteKey, Arc<Revision>>,
}

/// A kind that is kept here.
trait Kept:
    kube::Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static
{
    fn table(tables: &mut Tables) -> &mut HashMap<RouteKey, Arc<Self>>;
}

impl Kept for Rollout {
    fn table(tables: &mut Tables) -> &mut HashMap<RouteKey, Arc<Self>> {
        &mut tables.rollouts
    }
}

impl Kept for Revision {
    fn table(tables: &mut Tables) -> &mut HashMap<RouteKey, Arc<Self>> {
        &mut tables.revisions
    }
}

fn key_of<K: kube::Resource>(object: &K) -> RouteKey {
    RouteKey {
        namespace: object.namespace().unwrap_or_default(),
        name: object.name_any(),
    }
}

impl Objects {
    pub(super) fn new() -> Self {
        Self {
            tables: RwLock::default(),
            news: watch::Sender::new(0),
            listed: watch::Sender::new(false),
        }
    }

    /// Watches until `stop`.
    pub(super) async fn follow(&self, client: Client, namespace: Option<String>, stop: CancellationToken) {
        let (rollouts, mut first) = watch::channel(false);
        let (revisions, mut second) = watch::channel(false);
        let both = async {
            let listed = first.wait_for(|it| *it).await.is_ok() && second.wait_for(|it| *it).await.is_ok();
            self.listed.send_replace(listed);
        };
        tokio::join!(
            self.keep::<Rollout>(client.clone(), namespace.clone(), rollouts, stop.clone()),
            self.keep::<Revision>(client, namespace, revisions, stop.clone()),
            async {
                tokio::select! {
                    () = both => {}
                    () = stop.cancelled() => {}
                }
            },
        );
    }

    async fn keep<K>(
        &self,
        client: Client,
        namespace: Option<String>,
        listed: watch::Sender<bool>,
        stop: CancellationToken,
    ) where
        K: Kept + kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
    {
        let api = match &namespace {
            Some(namespace) => Api::<K>::namespaced(client, namespace),
            None => Api::all(client),
        };
        let kind = K::kind(&());
        let mut events = std::pin::pin!(watcher(api, watcher::Config::default()).default_backoff());
        let (mut fresh, mut told) = (HashMap::new(), false);
        loop {
            let event = tokio::select! {
                () = stop.cancelled() => return,
                event = events.next() => event,
            };
            match event {
                None => return,
                Some(Ok(Event::Init)) => fresh.clear(),
                Some(Ok(Event::InitApply(object))) => {
                    fresh.insert(key_of(&object), Arc::new(object));
                }
                Some(Ok(Event::InitDone)) => {
                    told = false;
                    *K::table(&mut self.tables.write()) = std::mem::take(&mut fresh);
                    listed.send_replace(true);
                    self.changed();
                }
                Some(Ok(Event::Apply(object))) => {
                    K::table(&mut self.tables.write()).insert(key_of(&object), Arc::new(object));
                    self.changed();
                }
                Some(Ok(Event::Delete(object))) => {
                    K::table(&mut self.tables.write()).remove(&key_of(&object));
                    self.changed();
                }
                Some(Err(error)) => {
                    if not_there(&error) {
                        // Without the definition there is none.
                        listed.send_replace(true);
                        tracing::debug!(%kind, "not installed");
                    } else if told {
                        tracing::debug!(%kind, %error, "watch");
                    } else {
                        // Where they may not be read, that is said once.
                        told = true;
                        tracing::warn!(%kind, %error, "watch; rollouts wait for it");
                    }
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = tokio::time::sleep(AGAIN) => {}
                    }
                }
            }
        }
    }

    fn changed(&self) {
        self.news.send_modify(|count| *count += 1);
    }

    /// Counts changes.
    pub(super) fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    /// Whether the first lists are in.
    pub(super) fn listed(&self) -> watch::Receiver<bool> {
        self.listed.subscribe()
    }

    /// All Rollouts.
    pub(super) fn keys(&self) -> Vec<RouteKey> {
        self.tables.read().rollouts.keys().cloned().collect()
    }

    /// A Rollout.
    pub(super) fn rollout(&self, key: &RouteKey) -> Option<Arc<Rollout>> {
        self.tables.read().rollouts.get(key).cloned()
    }

    /// All Services that a Rollout names.
    pub(super) fn services(&self) -> Vec<RouteKey> {
        self.by_service().into_keys().collect()
    }

    /// The Rollout of each Service: of several the one that comes first.
    pub(super) fn by_service(&self) -> BTreeMap<RouteKey, Arc<Rollout>> {
        let tables = self.tables.read();
        let mut found: BTreeMap<RouteKey, Arc<Rollout>> = BTreeMap::new();
        for rollout in tables.rollouts.values() {
            match found.entry(service_of(rollout)) {
                Entry::Occupied(other) if turn(other.get()) <= turn(rollout) => {}
                Entry::Occupied(mut other) => _ = other.insert(Arc::clone(rollout)),
                Entry::Vacant(place) => _ = place.insert(Arc::clone(rollout)),
            }
        }
        found
    }

    /// The Rollout of this Service that comes first, if it is another one than that with this uid.
    pub(super) fn another_has(&self, service: &RouteKey, uid: Option<&str>) -> Option<Arc<Rollout>> {
        let tables = self.tables.read();
        let those = tables
            .rollouts
            .iter()
            .filter(|(key, rollout)| {
                key.namespace == service.namespace && rollout.spec.service_ref.name == service.name
            })
            .map(|(_, rollout)| rollout);
        let first = those.min_by_key(|rollout| turn(rollout))?;
        (first.metadata.uid.as_deref() != uid).then(|| Arc::clone(first))
    }

    /// The Rollout of a Deployment: the one that has begun, else the one that comes first.
    pub(super) fn of_target(&self, namespace: &str, target: &str) -> Option<Arc<Rollout>> {
        let tables = self.tables.read();
        let those = tables
            .rollouts
            .iter()
            .filter(|(key, rollout)| key.namespace == namespace && rollout.spec.target_ref.name == target);
        those
            .map(|(_, rollout)| rollout)
            .min_by_key(|rollout| {
                let begun = rollout
                    .status
                    .as_ref()
                    .is_some_and(crds::rollout::RolloutStatus::has_begun);
                (!begun, turn(rollout))
            })
            .cloned()
    }

    /// The Revisions of a Rollout, by name.
    pub(super) fn revisions(&self, rollout: &RouteKey) -> BTreeMap<String, Arc<Revision>> {
        let tables = self.tables.read();
        let of = |revision: &Revision| revision.labels().get(ROLLOUT_LABEL) == Some(&rollout.name);
        tables
            .revisions
            .iter()
            .filter(|(key, revision)| key.namespace == rollout.namespace && of(revision))
            .map(|(key, revision)| (key.name.clone(), Arc::clone(revision)))
            .collect()
    }
}

/// Of several that want the same, the oldest comes first, and of those of one age the first by name.
fn turn(rollout: &Rollout) -> (Option<jiff::Timestamp>, &str) {
    let metadata = &rollout.metadata;
    let created = metadata.creation_timestamp.as_ref().map(|time| time.0);
    (created, metadata.name.as_deref().unwrap_or_default())
}

fn not_there(error: &watcher::Error) -> bool {
    let of = |error: &kube::Error| matches!(error, kube::Error::Api(status) if status.code == 404);
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => of(error),
        _ => false,
    }
}
