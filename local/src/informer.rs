//! A local picture of all objects of one kind, kept by list and watch.
//!
//! Controllers read the picture and write to the API. What they have just written they [`Informer::observe`] at once,
//! so that the next look sees it (read your own writes) and no object is made twice. An object that is older than the
//! one in the picture, or that was already seen deleted, never comes back.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use kube::runtime::utils::Backoff;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Resource};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Namespace (empty for cluster-wide kinds) and name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl Key {
    pub(crate) fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    pub(crate) fn of<K: Resource>(object: &K) -> Self {
        let meta = object.meta();
        Self::new(
            meta.namespace.clone().unwrap_or_default(),
            meta.name.clone().unwrap_or_default(),
        )
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.namespace.is_empty() {
            return f.write_str(&self.name);
        }
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Called for each change with the object before and after it.
type Listener<K> = Box<dyn Fn(Option<&K>, Option<&K>) + Send + Sync>;

/// How many deleted objects are remembered, so that a late answer cannot revive one: an answer overtakes its watch
/// event by a few others, not by thousands.
const REMEMBERED_GONE: usize = 4096;

/// How long before an interrupted watch is tried again. Always the same, and short: the API is in this process, so trying
/// costs it nothing, and after an outage nothing runs before the controllers see again.
struct Pause;

impl Iterator for Pause {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(Duration::from_millis(250))
    }
}

impl Backoff for Pause {
    fn reset(&mut self) {}
}

/// The picture. Shared as `Arc`.
pub(crate) struct Informer<K> {
    state: Mutex<State<K>>,
    listeners: Mutex<Vec<Listener<K>>>,
    synced: watch::Sender<bool>,
}

struct State<K> {
    objects: BTreeMap<Key, Arc<K>>,
    gone: HashSet<String>,
    gone_order: VecDeque<String>,
    /// The list that is being read, while one is.
    listing: Option<Listing<K>>,
}

struct Listing<K> {
    objects: BTreeMap<Key, Arc<K>>,
    /// What was observed since it began: only that may be newer than the list.
    observed: HashSet<Key>,
}

impl<K> Default for Listing<K> {
    fn default() -> Self {
        Self {
            objects: BTreeMap::new(),
            observed: HashSet::new(),
        }
    }
}

impl<K> Informer<K>
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                objects: BTreeMap::new(),
                gone: HashSet::new(),
                gone_order: VecDeque::new(),
                listing: None,
            }),
            listeners: Mutex::default(),
            synced: watch::Sender::new(false),
        })
    }

    /// Adds a listener. It is called under no lock of the picture, in the order of the changes of one object.
    pub(crate) fn listen(&self, listener: impl Fn(Option<&K>, Option<&K>) + Send + Sync + 'static) {
        self.listeners.lock().push(Box::new(listener));
    }

    /// Follows the API until `shutdown`.
    pub(crate) async fn run(self: Arc<Self>, api: Api<K>, shutdown: CancellationToken) {
        let mut events = watcher(api, watcher::Config::default()).backoff(Pause).boxed();
        loop {
            let event = tokio::select! {
                () = shutdown.cancelled() => return,
                event = events.next() => event,
            };
            match event {
                Some(Ok(event)) => self.take(event),
                // The watcher lists again by itself.
                Some(Err(error)) => tracing::debug!(%error, "watch interrupted"),
                None => return,
            }
        }
    }

    /// Waits until the first list has been read.
    pub(crate) async fn wait_synced(&self) {
        let mut synced = self.synced.subscribe();
        // The sender lives as long as `self`, so this cannot fail.
        let _ = synced.wait_for(|synced| *synced).await;
    }

    pub(crate) fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.state.lock().objects.get(key).cloned()
    }

    /// All objects of one namespace, in order of their names.
    pub(crate) fn in_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        let first = Key::new(namespace, "");
        let state = self.state.lock();
        state
            .objects
            .range(first..)
            .take_while(|(key, _)| key.namespace == namespace)
            .map(|(_, it)| Arc::clone(it))
            .collect()
    }

    pub(crate) fn all(&self) -> Vec<Arc<K>> {
        self.state.lock().objects.values().cloned().collect()
    }

    /// Takes the answer to a write into the picture.
    pub(crate) fn observe(&self, object: K) {
        if let Some(listing) = &mut self.state.lock().listing {
            listing.observed.insert(Key::of(&object));
        }
        self.apply(object);
    }

    fn take(&self, event: watcher::Event<K>) {
        match event {
            watcher::Event::Init => self.state.lock().listing = Some(Listing::default()),
            watcher::Event::InitApply(object) => {
                if let Some(listing) = &mut self.state.lock().listing {
                    listing
                        .objects
                        .insert(Key::of(&object), Arc::new(stripped(object)));
                }
            }
            watcher::Event::InitDone => self.replace(),
            watcher::Event::Apply(object) => self.apply(object),
            watcher::Event::Delete(object) => self.delete(&object),
        }
    }

    fn apply(&self, object: K) {
        let key = Key::of(&object);
        let new = Arc::new(stripped(object));
        let old = {
            let mut state = self.state.lock();
            if new
                .meta()
                .uid
                .as_ref()
                .is_some_and(|uid| state.gone.contains(uid))
            {
                return;
            }
            if state
                .objects
                .get(&key)
                .is_some_and(|old| version(&**old) >= version(&*new))
            {
                return;
            }
            state.objects.insert(key, Arc::clone(&new))
        };
        self.tell(old.as_deref(), Some(&new));
    }

    fn delete(&self, object: &K) {
        let old = {
            let mut state = self.state.lock();
            state.forget(object.meta().uid.as_deref().unwrap_or_default());
            let key = Key::of(object);
            // A new object of the same name may already have been observed.
            match state.objects.get(&key) {
                Some(old) if old.meta().uid == object.meta().uid => state.objects.remove(&key),
                _ => None,
            }
        };
        if let Some(old) = old {
            self.tell(Some(&old), None);
        }
    }

    /// Ends a list: what is in it counts, and what is not in it is gone unless it was observed after the list was read. A list
    /// does not say when that was: after its beginning, and not before the newest of what is in it.
    fn replace(&self) {
        let mut changes = Vec::new();
        {
            let mut state = self.state.lock();
            let Listing {
                objects: listing,
                observed,
            } = state.listing.take().unwrap_or_default();
            let read_at = listing.values().map(|it| version(&**it)).max().unwrap_or(0);
            let absent: Vec<Key> = state
                .objects
                .iter()
                .filter(|(key, old)| {
                    let newer = observed.contains(key) && version(&***old) > read_at;
                    !listing.contains_key(key) && !newer
                })
                .map(|(key, _)| key.clone())
                .collect();
            for key in absent {
                if let Some(old) = state.objects.remove(&key) {
                    // An empty list does not say when it was read: what it lacks may be new, and come with the watch.
                    if read_at > 0 {
                        state.forget(old.meta().uid.as_deref().unwrap_or_default());
                    }
                    changes.push((Some(old), None));
                }
            }
            for (key, new) in listing {
                let old = state.objects.get(&key).cloned();
                if old.as_ref().is_none_or(|old| version(&**old) < version(&*new)) {
                    state.objects.insert(key, Arc::clone(&new));
                    changes.push((old, Some(new)));
                }
            }
        }
        for (old, new) in changes {
            self.tell(old.as_deref(), new.as_deref());
        }
        self.synced.send_replace(true);
    }

    fn tell(&self, old: Option<&K>, new: Option<&K>) {
        for listener in self.listeners.lock().iter() {
            listener(old, new);
        }
    }
}

impl<K> State<K> {
    fn forget(&mut self, uid: &str) {
        if self.gone.insert(uid.to_owned()) {
            self.gone_order.push_back(uid.to_owned());
        }
        if self.gone_order.len() > REMEMBERED_GONE
            && let Some(oldest) = self.gone_order.pop_front()
        {
            self.gone.remove(&oldest);
        }
    }
}

/// Nobody here reads managed fields, and they are most of a small object.
fn stripped<K: Resource>(mut object: K) -> K {
    object.meta_mut().managed_fields = None;
    object
}

/// Resource versions can be compared as numbers: a promise of Kubernetes since 1.35.
pub(crate) fn version<K: Resource>(object: &K) -> u64 {
    object
        .meta()
        .resource_version
        .as_deref()
        .and_then(|text| text.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::core::ObjectMeta;

    fn object(name: &str, uid: &str, version: u64) -> ConfigMap {
        ConfigMap {
            metadata: ObjectMeta {
                name: Some(name.into()),
                namespace: Some("default".into()),
                uid: Some(uid.into()),
                resource_version: Some(version.to_string()),
                ..Default::default()
            },
            ..Default::default()
        }
    }

    fn names(informer: &Informer<ConfigMap>) -> Vec<String> {
        informer
            .all()
            .iter()
            .filter_map(|it| it.metadata.name.clone())
            .collect()
    }

    #[test]
    fn an_answer_that_comes_after_the_deletion_does_not_revive_the_object() {
        let informer = Informer::new();
        informer.take(watcher::Event::Apply(object("a", "1", 5)));
        informer.take(watcher::Event::Delete(object("a", "1", 6)));
        informer.observe(object("a", "1", 5));
        assert!(names(&informer).is_empty());
        informer.observe(object("a", "2", 7));
        assert_eq!(names(&informer), ["a"]);
    }

    #[test]
    fn a_list_read_before_a_write_does_not_hide_it() {
        let informer = Informer::new();
        informer.take(watcher::Event::Init);
        informer.take(watcher::Event::InitApply(object("a", "1", 5)));
        informer.observe(object("b", "2", 9));
        informer.take(watcher::Event::InitDone);
        assert_eq!(names(&informer), ["a", "b"]);
    }

    #[test]
    fn what_was_the_newest_and_is_not_in_a_later_list_is_gone() {
        let informer = Informer::new();
        informer.take(watcher::Event::Apply(object("a", "1", 5)));
        informer.observe(object("b", "2", 9));
        informer.take(watcher::Event::Init);
        informer.take(watcher::Event::InitApply(object("a", "1", 5)));
        informer.take(watcher::Event::InitDone);
        assert_eq!(names(&informer), ["a"]);
    }

    #[test]
    fn an_empty_list_read_before_a_write_does_not_hide_it() {
        let informer = Informer::new();
        informer.take(watcher::Event::Init);
        informer.observe(object("a", "1", 5));
        informer.take(watcher::Event::InitDone);
        assert_eq!(names(&informer), ["a"]);
    }

    #[test]
    fn what_an_empty_list_took_away_may_come_back_with_the_watch() {
        let informer = Informer::new();
        informer.observe(object("a", "1", 5));
        informer.take(watcher::Event::Init);
        informer.take(watcher::Event::InitDone);
        assert!(names(&informer).is_empty());
        informer.take(watcher::Event::Apply(object("a", "1", 5)));
        assert_eq!(names(&informer), ["a"]);
    }

    #[test]
    fn an_older_event_does_not_undo_a_newer_answer() {
        let informer = Informer::new();
        informer.observe(object("a", "1", 9));
        informer.take(watcher::Event::Apply(object("a", "1", 5)));
        assert_eq!(version(&*informer.all()[0]), 9);
    }
}
