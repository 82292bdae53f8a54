//! Work queues: which objects a controller has to look at, each at most once at a time.
//!
//! A key that is added while it is worked on is worked on once more afterwards. The queue holds at most one entry for
//! each object, so the number of objects bounds it.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::informer::Key;

/// First pause after a failure; doubled for each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(10);

/// Longest pause after a failure.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Keys waiting for their turn.
#[derive(Default)]
pub(crate) struct Queue {
    inner: Mutex<Inner>,
    added: Notify,
}

#[derive(Default)]
struct Inner {
    ready: VecDeque<Key>,
    queued: HashSet<Key>,
    running: HashSet<Key>,
    /// Added while running.
    again: HashSet<Key>,
    delayed: BinaryHeap<Reverse<(Instant, Key)>>,
    failures: HashMap<Key, u32>,
}

impl Queue {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Asks for a look at `key`.
    pub(crate) fn add(&self, key: Key) {
        {
            let mut inner = self.inner.lock();
            if !inner.push(key) {
                return;
            }
        }
        self.added.notify_one();
    }

    /// Asks for a look at `key` after `pause`.
    pub(crate) fn add_after(&self, key: Key, pause: Duration) {
        self.inner
            .lock()
            .delayed
            .push(Reverse((Instant::now() + pause, key)));
        self.added.notify_one();
    }

    async fn next(&self) -> Key {
        loop {
            let due = {
                let mut inner = self.inner.lock();
                let now = Instant::now();
                while inner.delayed.peek().is_some_and(|Reverse((at, _))| *at <= now) {
                    if let Some(Reverse((_, key))) = inner.delayed.pop() {
                        inner.push(key);
                    }
                }
                if let Some(key) = inner.ready.pop_front() {
                    inner.queued.remove(&key);
                    inner.running.insert(key.clone());
                    // Two additions at once leave one permit: the next worker is woken by this one.
                    if !inner.ready.is_empty() {
                        self.added.notify_one();
                    }
                    return key;
                }
                inner.delayed.peek().map(|Reverse((at, _))| *at)
            };
            match due {
                Some(at) => {
                    tokio::select! {
                        () = tokio::time::sleep_until(at) => {}
                        () = self.added.notified() => {}
                    }
                }
                None => self.added.notified().await,
            }
        }
    }

    /// Ends the work on `key`; `Err` counts a failure and has it looked at again after a pause.
    fn done(&self, key: Key, result: Result<Option<Duration>, ()>) {
        let again = {
            let mut inner = self.inner.lock();
            inner.running.remove(&key);
            match result {
                Ok(after) => {
                    inner.failures.remove(&key);
                    if let Some(after) = after {
                        inner.delayed.push(Reverse((Instant::now() + after, key.clone())));
                    }
                }
                Err(()) => {
                    let failures = inner.failures.entry(key.clone()).or_default();
                    let pause = FIRST_PAUSE
                        .saturating_mul(1 << (*failures).min(10))
                        .min(LONGEST_PAUSE);
                    *failures += 1;
                    inner.delayed.push(Reverse((Instant::now() + pause, key.clone())));
                }
            }
            if inner.again.remove(&key) {
                inner.push(key)
            } else {
                false
            }
        };
        if again {
            self.added.notify_one();
        }
    }
}

impl Inner {
    /// Whether `key` is newly ready.
    fn push(&mut self, key: Key) -> bool {
        if self.running.contains(&key) {
            self.again.insert(key);
            return false;
        }
        if !self.queued.insert(key.clone()) {
            return false;
        }
        self.ready.push_back(key);
        true
    }
}

/// Calls `reconcile` for each key until `shutdown`, `workers` at a time. It says when to look again.
pub(crate) async fn work<F, W>(
    name: &'static str,
    queue: Arc<Queue>,
    workers: usize,
    shutdown: CancellationToken,
    reconcile: F,
) where
    F: Fn(Key) -> W + Clone + Send + Sync + 'static,
    W: Future<Output = Result<Option<Duration>, kube::Error>> + Send + 'static,
{
    let mut tasks = JoinSet::new();
    for _ in 0..workers {
        let (queue, shutdown, reconcile) = (Arc::clone(&queue), shutdown.clone(), reconcile.clone());
        tasks.spawn(async move {
            loop {
                let key = tokio::select! {
                    () = shutdown.cancelled() => return,
                    key = queue.next() => key,
                };
                let result = tokio::select! {
                    () = shutdown.cancelled() => return,
                    result = reconcile(key.clone()) => result,
                };
                let result = result
                    .map_err(|error| tracing::debug!(controller = name, %key, %error, "will try again"));
                queue.done(key, result);
            }
        });
    }
    while tasks.join_next().await.is_some() {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_key_added_twice_is_worked_on_once_and_again_when_added_meanwhile() {
        let queue = Queue::new();
        let key = Key::new("default", "a");
        queue.add(key.clone());
        queue.add(key.clone());
        assert_eq!(queue.next().await, key);
        queue.add(key.clone());
        assert!(
            tokio::time::timeout(Duration::from_secs(1), queue.next())
                .await
                .is_err()
        );
        queue.done(key.clone(), Ok(None));
        assert_eq!(queue.next().await, key);
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_double_and_end_with_a_success() {
        let queue = Queue::new();
        let key = Key::new("default", "a");
        queue.add(key.clone());
        for pause in [10, 20, 40] {
            queue.next().await;
            let before = Instant::now();
            queue.done(key.clone(), Err(()));
            queue.next().await;
            assert_eq!(before.elapsed(), Duration::from_millis(pause));
            queue.inner.lock().running.remove(&key);
            queue.add(key.clone());
        }
        queue.next().await;
        queue.done(key.clone(), Ok(None));
        assert!(queue.inner.lock().failures.is_empty());
    }
}
