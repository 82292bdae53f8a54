//! The ConfigMaps that dress waiting pages, as last read.
//!
//! A ConfigMap is read when a Route that names it comes or changes, and again when its page is shown and what is known is
//! older than a few seconds: a page that nobody opens costs nothing. One that cannot be read or used changes nothing: the
//! last good one stays, or ours, and the error is logged once, counted, and shown in the state dump. What no Route names any
//! more is forgotten.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::theme::Theme;
use crate::hub::Hub;
use crate::route::WaitingPage;

/// How old what is known may be when a page is shown.
const FRESH: Duration = Duration::from_secs(10);
/// Most ConfigMaps that are kept; the pages of more are ours.
const MOST: usize = 1_000;

/// `(namespace, name)`.
type Key = (String, String);

/// What is known of the ConfigMaps.
#[derive(Debug, Default)]
pub(crate) struct Themes {
    ours: Arc<Theme>,
    known: Mutex<HashMap<Key, Known>>,
}

#[derive(Debug, Default)]
struct Known {
    /// `None`: never a good one.
    theme: Option<Arc<Theme>>,
    /// What was wrong with it last.
    error: Option<String>,
    /// When it was last asked for.
    asked: Option<Duration>,
}

impl Themes {
    /// How a page looks. What is known too long is read again, for the next one.
    pub(crate) fn get(&self, hub: &Arc<Hub>, namespace: &str, page: &WaitingPage) -> Arc<Theme> {
        let WaitingPage::ConfigMap(name) = page else {
            return Arc::clone(&self.ours);
        };
        self.want(hub, namespace, name, FRESH);
        let key = (namespace.to_owned(), name.clone());
        let known = self.known.lock();
        let theme = known.get(&key).and_then(|known| known.theme.as_ref());
        Arc::clone(theme.unwrap_or(&self.ours))
    }

    /// Reads a ConfigMap, unless that was done less than `age` ago.
    pub(crate) fn want(&self, hub: &Arc<Hub>, namespace: &str, name: &str, age: Duration) {
        let now = hub.now();
        let key = (namespace.to_owned(), name.to_owned());
        {
            let mut all = self.known.lock();
            if all.len() >= MOST && !all.contains_key(&key) {
                return hub.metrics.waiting_pages_unread.inc();
            }
            let known = all.entry(key.clone()).or_default();
            if known.asked.is_some_and(|asked| now.saturating_sub(asked) < age) {
                return;
            }
            known.asked = Some(now);
        }
        let reader = Arc::clone(hub);
        hub.control.spawn(async move {
            let read = reader.cluster.config_map(&key.0, &key.1).await;
            let result = match read {
                Ok(Some(data)) => Theme::read(&data).map_err(|error| error.to_string()),
                Ok(None) => Err("there is no such ConfigMap".to_owned()),
                Err(error) => Err(format!("cannot be read: {error}")),
            };
            reader.themes.learn(&reader, &key, result);
        });
    }

    /// No Route names a ConfigMap any more.
    pub(crate) fn forget(&self, namespace: &str, name: &str) {
        self.known.lock().remove(&(namespace.to_owned(), name.to_owned()));
    }

    fn learn(&self, hub: &Hub, key: &Key, result: Result<Theme, String>) {
        let mut all = self.known.lock();
        // Forgotten while it was read.
        let Some(known) = all.get_mut(key) else { return };
        let before = known.error.take();
        match result {
            Ok(theme) => known.theme = Some(Arc::new(theme)),
            Err(error) => {
                if before.as_ref() != Some(&error) {
                    let (namespace, name) = key;
                    tracing::warn!(
                        namespace,
                        name,
                        error,
                        "a waiting page's ConfigMap cannot be used; the last good page stays"
                    );
                }
                hub.metrics.waiting_page_errors.inc();
                known.error = Some(error);
            }
        }
    }

    /// For the state dump: the error of each ConfigMap, or nothing.
    pub(crate) fn dump(&self) -> serde_json::Value {
        let all = self.known.lock();
        let each = all.iter().map(|((namespace, name), known)| {
            let state = serde_json::json!({ "used": known.theme.is_some(), "error": known.error });
            (format!("{namespace}/{name}"), state)
        });
        serde_json::Value::Object(each.collect())
    }
}
