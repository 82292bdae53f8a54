//! Objects, their history, and the one counter that orders all writes.
//!
//! A watch is a cursor into the history, not a queue: events are kept once however many watch, and a watcher that
//! falls behind what is kept gets 410 like one that starts too late. Nothing here knows what a kind means.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::status::ApiError;

/// Events kept of one kind. A client that lists 3,000 objects and then watches must find all that happened meanwhile.
const MOST_EVENTS: usize = 10_000;

/// Bytes of events kept of one kind: bounds memory when objects are large.
const MOST_EVENT_BYTES: usize = 32 << 20;

/// Events handed to a watcher at once: bounds how long the lock is held.
const BATCH: usize = 256;

/// Namespace (empty for cluster-wide kinds) and name.
pub(crate) type Key = (String, String);

/// An object as stored. `bytes` is `value` in JSON.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) value: Value,
    pub(crate) bytes: Bytes,
    pub(crate) version: u64,
}

impl Stored {
    /// Sets `metadata.resourceVersion` and serialises.
    pub(crate) fn new(mut value: Value, version: u64) -> Arc<Self> {
        value["metadata"]["resourceVersion"] = json!(version.to_string());
        let bytes = Bytes::from(value.to_string());
        Arc::new(Self {
            value,
            bytes,
            version,
        })
    }
}

/// One change of one object. Created: no `before`; deleted: `after` is its last state under the version of the deletion.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) version: u64,
    pub(crate) key: Key,
    pub(crate) before: Option<Arc<Stored>>,
    pub(crate) after: Arc<Stored>,
    pub(crate) deleted: bool,
}

#[derive(Debug)]
struct Kind {
    objects: BTreeMap<Key, Arc<Stored>>,
    history: VecDeque<Arc<Change>>,
    history_bytes: usize,
    /// Changes up to and including this version are forgotten.
    floor: u64,
    /// Told the version of each change.
    news: watch::Sender<u64>,
}

impl Kind {
    fn new(floor: u64) -> Self {
        Self {
            objects: BTreeMap::new(),
            history: VecDeque::new(),
            history_bytes: 0,
            floor,
            news: watch::channel(0).0,
        }
    }

    /// The object, when it is still as it was read.
    fn unchanged(&self, key: &Key, read: &Stored) -> Result<Arc<Stored>, Refused> {
        let found = self.objects.get(key).filter(|it| it.version == read.version);
        found.cloned().ok_or(Refused::Changed)
    }

    fn record(&mut self, change: Change) {
        let version = change.version;
        self.history_bytes += change.after.bytes.len();
        self.history.push_back(Arc::new(change));
        while self.history.len() > MOST_EVENTS || self.history_bytes > MOST_EVENT_BYTES {
            let Some(old) = self.history.pop_front() else {
                break;
            };
            self.history_bytes -= old.after.bytes.len();
            self.floor = old.version;
        }
        self.news.send_replace(version);
    }
}

#[derive(Debug, Default)]
struct Inner {
    version: u64,
    compacted: u64,
    kinds: HashMap<Arc<str>, Kind>,
}

impl Inner {
    fn kind(&mut self, storage: &Arc<str>) -> &mut Kind {
        let floor = self.compacted;
        self.kinds
            .entry(Arc::clone(storage))
            .or_insert_with(|| Kind::new(floor))
    }
}

/// Why a write did not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// There is such an object already.
    Exists,
    /// The object changed since it was read, or is gone.
    Changed,
}

/// What is in the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreStats {
    /// Objects of all kinds.
    pub objects: usize,
    /// Bytes of their JSON.
    pub object_bytes: usize,
    /// Changes kept for watches.
    pub events: usize,
    /// Bytes of their JSON.
    pub event_bytes: usize,
    /// The newest resourceVersion.
    pub version: u64,
}

/// All objects.
#[derive(Debug)]
pub(crate) struct Store(Mutex<Inner>);

impl Store {
    pub(crate) fn new() -> Self {
        // Not 0, which means "any" to clients.
        Self(Mutex::new(Inner {
            version: 1,
            ..Inner::default()
        }))
    }

    pub(crate) fn get(&self, storage: &Arc<str>, key: &Key) -> Option<Arc<Stored>> {
        self.0.lock().kinds.get(storage)?.objects.get(key).cloned()
    }

    /// The objects of a kind (of one namespace) and the version at which this is true.
    pub(crate) fn list(&self, storage: &Arc<str>, namespace: Option<&str>) -> (Vec<Arc<Stored>>, u64) {
        let inner = self.0.lock();
        let version = inner.version;
        let Some(kind) = inner.kinds.get(storage) else {
            return (Vec::new(), version);
        };
        let objects = match namespace {
            None => kind.objects.values().cloned().collect(),
            Some(namespace) => kind
                .objects
                .range((namespace.to_owned(), String::new())..)
                .take_while(|(key, _)| key.0 == namespace)
                .map(|(_, object)| Arc::clone(object))
                .collect(),
        };
        (objects, version)
    }

    /// The objects of a kind as they were at `version`: the later changes taken back. Err: that is forgotten.
    pub(crate) fn list_at(
        &self,
        storage: &Arc<str>,
        namespace: Option<&str>,
        version: u64,
    ) -> Result<Vec<(Key, Arc<Stored>)>, ApiError> {
        let mut inner = self.0.lock();
        if version > inner.version {
            return Err(too_new(version, inner.version));
        }
        let kind = inner.kind(storage);
        if version < kind.floor {
            return Err(ApiError::expired(
                "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter.",
            ));
        }
        let mut objects = kind.objects.clone();
        for change in kind
            .history
            .iter()
            .rev()
            .take_while(|change| change.version > version)
        {
            match &change.before {
                Some(before) => objects.insert(change.key.clone(), Arc::clone(before)),
                None => objects.remove(&change.key),
            };
        }
        Ok(objects
            .into_iter()
            .filter(|(key, _)| namespace.is_none_or(|it| it == key.0))
            .collect())
    }

    pub(crate) fn version(&self) -> u64 {
        self.0.lock().version
    }

    /// Creates an object. `value` gets its resourceVersion.
    pub(crate) fn create(&self, storage: &Arc<str>, key: Key, value: Value) -> Result<Arc<Stored>, Refused> {
        let mut inner = self.0.lock();
        let version = inner.version + 1;
        let kind = inner.kind(storage);
        if kind.objects.contains_key(&key) {
            return Err(Refused::Exists);
        }
        let stored = Stored::new(value, version);
        kind.objects.insert(key.clone(), Arc::clone(&stored));
        kind.record(Change {
            version,
            key,
            before: None,
            after: Arc::clone(&stored),
            deleted: false,
        });
        inner.version = version;
        Ok(stored)
    }

    /// Replaces an object that is still as it was read.
    pub(crate) fn update(
        &self,
        storage: &Arc<str>,
        key: &Key,
        read: &Stored,
        value: Value,
    ) -> Result<Arc<Stored>, Refused> {
        let mut inner = self.0.lock();
        let version = inner.version + 1;
        let kind = inner.kind(storage);
        let before = kind.unchanged(key, read)?;
        let stored = Stored::new(value, version);
        kind.objects.insert(key.clone(), Arc::clone(&stored));
        kind.record(Change {
            version,
            key: key.clone(),
            before: Some(before),
            after: Arc::clone(&stored),
            deleted: false,
        });
        inner.version = version;
        Ok(stored)
    }

    /// Deletes an object that is still as it was read; returns its last state, `value`, under the new version.
    pub(crate) fn delete(
        &self,
        storage: &Arc<str>,
        key: &Key,
        read: &Stored,
        value: Value,
    ) -> Result<Arc<Stored>, Refused> {
        let mut inner = self.0.lock();
        let version = inner.version + 1;
        let kind = inner.kind(storage);
        let before = kind.unchanged(key, read)?;
        kind.objects.remove(key);
        let after = Stored::new(value, version);
        kind.record(Change {
            version,
            key: key.clone(),
            before: Some(before),
            after: Arc::clone(&after),
            deleted: true,
        });
        inner.version = version;
        Ok(after)
    }

    /// Forgets all history: watches and continued lists from before now get 410.
    pub(crate) fn compact(&self) {
        let mut inner = self.0.lock();
        let version = inner.version;
        inner.compacted = version;
        for kind in inner.kinds.values_mut() {
            kind.history.clear();
            kind.history_bytes = 0;
            kind.floor = version;
            // Watchers that had not read all of it must learn that they cannot.
            kind.news.send_replace(version);
        }
    }

    /// A cursor behind `version`. That the changes after it are forgotten is told by its first read.
    pub(crate) fn watch(&self, storage: &Arc<str>, version: u64) -> Cursor {
        let news = self.0.lock().kind(storage).news.subscribe();
        Cursor {
            storage: Arc::clone(storage),
            version,
            news,
        }
    }

    pub(crate) fn stats(&self) -> StoreStats {
        let inner = self.0.lock();
        let mut stats = StoreStats {
            version: inner.version,
            ..StoreStats::default()
        };
        for kind in inner.kinds.values() {
            stats.objects += kind.objects.len();
            stats.object_bytes += kind.objects.values().map(|it| it.bytes.len()).sum::<usize>();
            stats.events += kind.history.len();
            stats.event_bytes += kind.history_bytes;
        }
        stats
    }
}

fn too_old(version: u64, floor: u64) -> ApiError {
    ApiError::expired(format!("too old resource version: {version} ({floor})"))
}

fn too_new(version: u64, newest: u64) -> ApiError {
    let mut error = ApiError::internal(format!(
        "Too large resource version: {version}, current: {newest}"
    ));
    error.code = 504;
    error.reason = "Timeout";
    error.details = Some(json!({
        "causes": [{ "reason": "ResourceVersionTooLarge", "message": "Too large resource version" }],
        "retryAfterSeconds": 1,
    }));
    error
}

/// A watcher's place in the history of one kind.
#[derive(Debug)]
pub(crate) struct Cursor {
    storage: Arc<str>,
    version: u64,
    news: watch::Receiver<u64>,
}

impl Cursor {
    /// The newest version up to which everything has been read.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// The next changes; none: all is read, and the cursor stands at the newest version of the store.
    pub(crate) fn read(&mut self, store: &Store) -> Result<Vec<Arc<Change>>, ApiError> {
        let mut inner = store.0.lock();
        let newest = inner.version;
        let kind = inner.kind(&self.storage);
        if self.version < kind.floor {
            return Err(too_old(self.version, kind.floor));
        }
        self.news.mark_unchanged();
        let start = kind
            .history
            .partition_point(|change| change.version <= self.version);
        let batch: Vec<_> = kind.history.range(start..).take(BATCH).cloned().collect();
        self.version = batch
            .last()
            .map_or(newest.max(self.version), |change| change.version);
        Ok(batch)
    }

    /// Waits until there may be something to read. Cancel safe.
    pub(crate) async fn changed(&mut self) {
        if self.news.changed().await.is_err() {
            // The store is gone; nothing will ever come.
            std::future::pending::<()>().await;
        }
    }
}
