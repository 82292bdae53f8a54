//! Objects as they change, until interrupted.

use std::fmt::Debug;
use std::pin::pin;
use std::time::Duration;

use futures::TryStreamExt as _;
use kube::runtime::watcher;
use kube::{Api, Resource};
use serde::de::DeserializeOwned;

use crate::client::Connected;
use crate::failure::Failure;

/// Between a watch that was interrupted and the next.
const PAUSE: Duration = Duration::from_secs(1);

/// A change.
pub(crate) enum Change<K> {
    /// It is so now.
    Now(K),
    /// It is not there any more; how it was.
    Gone(K),
}

/// Hands every object, and then every change of one, to `handle`. `what` is their name in a message: `Routes`.
///
/// # Errors
/// When the objects cannot be listed at all, and what `handle` fails with. A server that is away later is waited for.
pub(crate) async fn follow<K>(
    api: Api<K>,
    config: watcher::Config,
    connected: &Connected,
    what: &str,
    mut handle: impl FnMut(Change<K>) -> Result<(), Failure>,
) -> Result<(), Failure>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut listed = false;
    let mut events = pin!(watcher(api, config));
    loop {
        match events.try_next().await {
            Ok(None) => return Ok(()),
            Ok(Some(watcher::Event::Apply(object) | watcher::Event::InitApply(object))) => {
                handle(Change::Now(object))?;
            }
            Ok(Some(watcher::Event::Delete(object))) => handle(Change::Gone(object))?,
            Ok(Some(watcher::Event::InitDone)) => listed = true,
            Ok(Some(watcher::Event::Init)) => {}
            Err(error) if !listed => {
                return Err(Failure::Api(format!(
                    "cannot watch {what} at {}: {error}",
                    connected.url
                )));
            }
            Err(error) => {
                tracing::warn!(%error, "watch interrupted");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}
