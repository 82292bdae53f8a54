//! Ending in order: those who write first, then the Lease, then what they stood on.
//!
//! `First` (scaler, capture, status) finish the writes under way while they still lead; `Second` (the Lease) lets the
//! standby take over at once; `Last` (streams, watches, Events, the admin port) end when nobody needs them any more, so
//! that a probe sees 503 and never a refused connection. Each phase has a bounded time.

use std::future::Future;
use std::time::Duration;

use crds::route::{Workload, WorkloadKind};
use tokio::task::{Id, JoinSet};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::config::Args;
use crate::watch::Index;

/// Longest time for one phase after the first.
const EACH: Duration = Duration::from_secs(2);

/// The parts of the process, by when they end.
pub(crate) struct Phases {
    groups: [Group; 3],
}

#[derive(Default)]
struct Group {
    stop: CancellationToken,
    tasks: JoinSet<()>,
    names: Vec<(Id, &'static str)>,
}

impl Group {
    fn spawn<F: Future<Output = ()> + Send + 'static>(
        &mut self,
        name: &'static str,
        part: impl FnOnce(CancellationToken) -> F,
    ) {
        let handle = self.tasks.spawn(part(self.stop.clone()));
        self.names.push((handle.id(), name));
    }

    /// Waits until a part has ended; for ever when there is none.
    async fn ended(&mut self) -> &'static str {
        let id = match self.tasks.join_next_with_id().await {
            None => std::future::pending().await,
            Some(Ok((id, ()))) => id,
            Some(Err(error)) => {
                tracing::error!(%error, "a part has panicked");
                error.id()
            }
        };
        self.names
            .iter()
            .find(|(known, _)| *known == id)
            .map_or("a part", |(_, name)| name)
    }
}

impl Phases {
    /// No parts yet.
    pub(crate) fn new() -> Self {
        Self {
            groups: Default::default(),
        }
    }

    /// Starts a part that ends first: it writes to the cluster.
    pub(crate) fn first<F: Future<Output = ()> + Send + 'static>(
        &mut self,
        name: &'static str,
        part: impl FnOnce(CancellationToken) -> F,
    ) {
        self.groups[0].spawn(name, part);
    }

    /// Starts a part that ends when no writer is left.
    pub(crate) fn second<F: Future<Output = ()> + Send + 'static>(
        &mut self,
        name: &'static str,
        part: impl FnOnce(CancellationToken) -> F,
    ) {
        self.groups[1].spawn(name, part);
    }

    /// Starts a part that ends last.
    pub(crate) fn last<F: Future<Output = ()> + Send + 'static>(
        &mut self,
        name: &'static str,
        part: impl FnOnce(CancellationToken) -> F,
    ) {
        self.groups[2].spawn(name, part);
    }

    /// Waits for `shutdown`, or for a part that should not have ended, which it names.
    pub(crate) async fn until(&mut self, shutdown: &CancellationToken) -> Option<&'static str> {
        let [first, second, last] = &mut self.groups;
        tokio::select! {
            () = shutdown.cancelled() => None,
            name = first.ended() => Some(name),
            name = second.ended() => Some(name),
            name = last.ended() => Some(name),
        }
    }

    /// Ends all parts in order. The first phase has `grace`, less what the others may need.
    pub(crate) async fn end(mut self, grace: Duration) {
        let mut limit = grace.saturating_sub(EACH * 2).max(EACH);
        for group in &mut self.groups {
            group.stop.cancel();
            let deadline = Instant::now() + limit;
            while let Ok(Some(_)) = timeout_at(deadline, group.tasks.join_next()).await {}
            if !group.tasks.is_empty() {
                tracing::warn!(left = group.tasks.len(), "not ended in time");
                group.tasks.abort_all();
            }
            limit = EACH;
        }
    }
}

/// Whether the Deployment that this process belongs to, or its namespace, is gone or going: then nobody will be here to serve
/// Services.
pub(crate) fn removed(index: &Index, args: &Args) -> bool {
    let Some(name) = &args.deployment else {
        return false;
    };
    // What is not watched cannot be told from what is not there.
    let watched = args
        .watch_namespace
        .as_ref()
        .is_none_or(|only| *only == args.namespace);
    let workload = Workload {
        kind: WorkloadKind::Deployment,
        name: name.clone(),
    };
    watched
        && index
            .workload(&args.namespace, &workload)
            .is_none_or(|deployment| deployment.deleting || index.is_system_going())
}

/// Waits until nothing of ours stands in users' namespaces, at most for `limit`.
pub(crate) async fn all_given_back(index: &Index, limit: Duration) {
    let deadline = Instant::now() + limit;
    while index.holds() > 0 {
        if Instant::now() >= deadline {
            let services: Vec<String> = index.relevant().iter().map(ToString::to_string).collect();
            tracing::error!(?services, "not all Services were given back in time");
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;
    use std::sync::Arc;

    #[tokio::test(start_paused = true)]
    async fn parts_end_in_their_order_and_a_stuck_one_does_not_hold_up_the_rest() {
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut phases = Phases::new();
        let part = |name: &'static str, takes: u64| {
            let order = Arc::clone(&order);
            move |stop: CancellationToken| async move {
                stop.cancelled().await;
                tokio::time::sleep(Duration::from_secs(takes)).await;
                order.lock().push(name);
            }
        };
        phases.last("last", part("last", 0));
        phases.second("second", part("second", 1));
        phases.first("first", part("first", 3));
        phases.first("stuck", part("stuck", 10_000));
        let shutdown = CancellationToken::new();
        shutdown.cancel();
        assert_eq!(phases.until(&shutdown).await, None);
        let started = Instant::now();
        phases.end(Duration::from_secs(25)).await;
        assert_eq!(*order.lock(), ["first", "second", "last"]);
        assert!(
            started.elapsed() <= Duration::from_secs(25),
            "{:?}",
            started.elapsed()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_part_that_ends_by_itself_is_named() {
        let mut phases = Phases::new();
        phases.last("steady", |stop| async move { stop.cancelled().await });
        phases.first("broken", |_| async { panic!("a defect") });
        assert_eq!(phases.until(&CancellationToken::new()).await, Some("broken"));
    }
}
