//! Waiting for the cluster: by watching it, with a deadline, and with what was seen last in the error.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::Duration;

use anyhow::{Result, anyhow};
use futures::StreamExt;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;

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
    mut check: impl FnMut(&BTreeMap<String, K>) -> Option<T>,
) -> Result<T>
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let mut objects = BTreeMap::new();
    let mut arriving = BTreeMap::new();
    // Half a list, or none yet, is no state of the cluster.
    let mut listed = false;
    let mut trouble = String::new();
    let watching = async {
        let mut events = watcher(api, watcher::Config::default()).default_backoff().boxed();
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Init) => {
                    arriving.clear();
                    listed = false;
                }
                Ok(watcher::Event::InitApply(object)) => drop(arriving.insert(key(&object), object)),
                Ok(watcher::Event::InitDone) => {
                    objects = std::mem::take(&mut arriving);
                    listed = true;
                }
                Ok(watcher::Event::Apply(object)) => drop(objects.insert(key(&object), object)),
                Ok(watcher::Event::Delete(object)) => drop(objects.remove(&key(&object))),
                Err(error) => trouble = error.to_string(),
            }
            if listed && let Some(found) = check(&objects) {
                return Some(found);
            }
        }
        None
    };
    match tokio::time::timeout(limit, watching).await {
        Ok(Some(found)) => Ok(found),
        Ok(None) => Err(anyhow!("{what}: the watch ended: {trouble}")),
        Err(_) => {
            let names: Vec<_> = objects.keys().take(20).collect();
            Err(anyhow!(
                "{what}: not within {limit:?}; {} objects {names:?} {trouble}",
                objects.len()
            ))
        }
    }
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
