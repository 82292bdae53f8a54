//! Waiting for the cluster: by watching it, with a deadline, and with what was seen last in the error.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, anyhow};
use futures::StreamExt;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Resource, ResourceExt};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use super::cluster::SOON;

/// Watches objects until `check` finds among them, by `namespace/name`, what it is looking for.
///
/// A watch that breaks is taken up again: scenarios kill what serves it.
///
/// # Errors
/// It was not found within `limit`.
pub async fn wait_for<K, T>(
    api: Api<K>,
    what: &str,
    limit: Duration,
    check: impl FnMut(&BTreeMap<String, K>) -> Option<T>,
) -> Result<T>
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let mut seen = Seen::default();
    let config = watcher::Config::default();
    match tokio::time::timeout(limit, watch(api, config, &mut seen, check)).await {
        Ok(Some(found)) => Ok(found),
        Ok(None) => Err(anyhow!("{what}: the watch ended: {}", seen.trouble)),
        Err(_) => {
            let names: Vec<_> = seen.objects.keys().take(20).collect();
            Err(anyhow!(
                "{what}: not within {limit:?}; {} objects {names:?} {}",
                seen.objects.len(),
                seen.trouble
            ))
        }
    }
}

/// Notes with `note` what there is, now and after each change, for as long as somebody has the notes. What there is now has
/// been noted when this returns.
///
/// # Errors
/// There was no list of it in time.
pub(super) async fn notes<K, N>(
    api: Api<K>,
    config: watcher::Config,
    mut note: impl FnMut(&mut N, &BTreeMap<String, K>) + Send + 'static,
) -> Result<Arc<Mutex<N>>>
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
    N: Default + Send + 'static,
{
    let notes = Arc::new(Mutex::new(N::default()));
    let theirs = Arc::downgrade(&notes);
    let (first, begun) = oneshot::channel();
    let mut first = Some(first);
    tokio::spawn(async move {
        let take = |objects: &BTreeMap<String, K>| {
            let Some(notes) = theirs.upgrade() else {
                return Some(());
            };
            note(&mut notes.lock(), objects);
            if let Some(first) = first.take() {
                let _ = first.send(());
            }
            None
        };
        watch(api, config, &mut Seen::default(), take).await
    });
    tokio::time::timeout(SOON, begun)
        .await
        .map_err(|_| anyhow!("nothing was listed within {SOON:?}"))??;
    Ok(notes)
}

/// What a watch has seen.
struct Seen<K> {
    objects: BTreeMap<String, K>,
    /// What broke it last.
    trouble: String,
}

impl<K> Default for Seen<K> {
    fn default() -> Self {
        Self {
            objects: BTreeMap::new(),
            trouble: String::new(),
        }
    }
}

/// Watches objects until `check` finds something among them. A watch that breaks is taken up again.
async fn watch<K, T>(
    api: Api<K>,
    config: watcher::Config,
    seen: &mut Seen<K>,
    mut check: impl FnMut(&BTreeMap<String, K>) -> Option<T>,
) -> Option<T>
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let mut arriving = BTreeMap::new();
    // Half a list, or none yet, is no state of the cluster.
    let mut listed = false;
    let mut events = watcher(api, config).default_backoff().boxed();
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::Init) => {
                arriving.clear();
                listed = false;
            }
            Ok(watcher::Event::InitApply(object)) => drop(arriving.insert(key(&object), object)),
            Ok(watcher::Event::InitDone) => {
                seen.objects = std::mem::take(&mut arriving);
                listed = true;
            }
            Ok(watcher::Event::Apply(object)) => drop(seen.objects.insert(key(&object), object)),
            Ok(watcher::Event::Delete(object)) => drop(seen.objects.remove(&key(&object))),
            Err(error) => seen.trouble = error.to_string(),
        }
        if listed && let Some(found) = check(&seen.objects) {
            return Some(found);
        }
    }
    None
}

fn key<K: Resource>(object: &K) -> String {
    format!("{}/{}", object.namespace().unwrap_or_default(), object.name_any())
}

/// Asks again and again, ten times a second, until there is an answer: for what cannot be watched, such as a process's
/// end or a metric.
///
/// # Errors
/// There was none within `limit`.
pub async fn eventually<T>(
    what: &str,
    limit: Duration,
    mut ask: impl AsyncFnMut() -> Option<T>,
) -> Result<T> {
    const PAUSE: Duration = Duration::from_millis(100);
    let asking = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    tokio::time::timeout(limit, asking)
        .await
        .map_err(|_| anyhow!("{what}: not within {limit:?}"))
}
