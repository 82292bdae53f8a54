//! Everybody outside of the cluster who is asked or told something.
//!
//! Questions (measurements, webhooks that decide) are asked beside the looks, each at most once at a time, by a [`Caller`]
//! of their Rollout: its own bound keeps one Rollout from taking all places. What is only told (alerts, events) waits in
//! line: with too many waiting, new ones are dropped and counted. Nothing here ever makes a look wait.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use parking_lot::Mutex;
use prometheus::{IntCounterVec, IntGauge, Opts, Registry};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use super::web::{Answer, Failure, Post, Web};
use crate::state::RouteKey;

/// Calls that are under way at once. An answer is at most a mebibyte.
const AT_ONCE: usize = 256;
/// Calls of one Rollout that are under way at once.
const OF_ONE: usize = 8;
/// Calls that only tell something and are under way at once: the others are for questions.
const TELLING: usize = 32;
/// What is told that may wait: a thousand Rollouts' new revisions at once are few, a loop of failures is not.
const WAITING: usize = 512;
/// How long, at the end, what still waits may take.
const LAST: Duration = Duration::from_secs(2);

/// The way out.
pub(crate) struct Outside {
    web: Web,
    slots: Arc<Semaphore>,
    telling: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    told: TaskTracker,
    calls: IntCounterVec,
    under_way: IntGauge,
    /// By Rollout and Secret: why alerts do not go out.
    troubles: Mutex<HashMap<RouteKey, BTreeMap<String, String>>>,
}

impl Outside {
    /// The way out, whose series are in `registry`.
    pub(crate) fn new(registry: &Registry) -> Arc<Self> {
        let options = Opts::new(
            "autoscaler_rollout_calls_total",
            "Calls of rollouts to others, by what for and how they ended: answered, timed_out, failed, dropped.",
        );
        let calls = IntCounterVec::new(options, &["call", "result"]).expect("a valid metric name");
        let under_way = IntGauge::new(
            "autoscaler_rollout_calls_under_way",
            "Calls of rollouts to others that are under way.",
        )
        .expect("a valid metric name");
        // A second one on one registry (tests) counts by itself.
        let _ = registry.register(Box::new(calls.clone()));
        let _ = registry.register(Box::new(under_way.clone()));
        Arc::new(Self {
            web: Web::default(),
            slots: Arc::new(Semaphore::new(AT_ONCE)),
            telling: Arc::new(Semaphore::new(TELLING)),
            waiting: Arc::new(Semaphore::new(WAITING)),
            told: TaskTracker::new(),
            calls,
            under_way,
            troubles: Mutex::default(),
        })
    }

    /// For the questions of one Rollout.
    pub(super) fn caller(self: &Arc<Self>) -> Caller {
        Caller {
            outside: Arc::clone(self),
            slots: Arc::new(Semaphore::new(OF_ONE)),
        }
    }

    /// For what is only told.
    pub(super) fn teller(self: &Arc<Self>) -> Caller {
        Caller {
            outside: Arc::clone(self),
            slots: Arc::clone(&self.telling),
        }
    }

    /// Has something told, when there is room for it to wait.
    pub(super) fn tell(&self, what: &'static str, telling: impl Future<Output = ()> + Send + 'static) {
        match Arc::clone(&self.waiting).try_acquire_owned() {
            Ok(place) => {
                self.told.spawn(async move {
                    telling.await;
                    drop(place);
                });
            }
            Err(_) => self.calls.with_label_values(&[what, "dropped"]).inc(),
        }
    }

    /// Lets what still waits go out, for a short while.
    pub(super) async fn end(&self) {
        self.told.close();
        let _ = timeout(LAST, self.told.wait()).await;
        self.told.reopen();
    }

    /// Notes why the alerts of a Secret do not go out; `None`: they do.
    pub(super) fn trouble(&self, rollout: &RouteKey, secret: &str, why: Option<String>) {
        let mut troubles = self.troubles.lock();
        match why {
            Some(why) => {
                let own = troubles.entry(rollout.clone()).or_default();
                own.insert(secret.to_owned(), why);
            }
            None => {
                if let Some(own) = troubles.get_mut(rollout) {
                    own.remove(secret);
                }
            }
        }
        troubles.retain(|_, own| !own.is_empty());
    }

    /// Why alerts of a Rollout do not go out, by Secret.
    pub(super) fn troubles(&self, rollout: &RouteKey) -> BTreeMap<String, String> {
        self.troubles.lock().get(rollout).cloned().unwrap_or_default()
    }

    /// Forgets a Rollout.
    pub(super) fn forget(&self, rollout: &RouteKey) {
        self.troubles.lock().remove(rollout);
    }

    #[cfg(test)]
    pub(super) fn counted(&self, call: &str, result: &str) -> u64 {
        self.calls.with_label_values(&[call, result]).get()
    }
}

/// Asks for one Rollout.
#[derive(Clone)]
pub(super) struct Caller {
    outside: Arc<Outside>,
    slots: Arc<Semaphore>,
}

impl Caller {
    /// Sends a request, and again after each of `waits` for as long as there is no answer, or one that may be another soon
    /// (429 and 5xx). Each try may take `limit` and is counted as `what`.
    ///
    /// # Errors
    /// As [`Web::post`] at the last try.
    ///
    /// # Cancel safety
    /// Dropping it makes no further try; the last one may have arrived.
    pub(super) async fn post(
        &self,
        what: &'static str,
        post: &Post,
        limit: Duration,
        waits: impl IntoIterator<Item = Duration>,
    ) -> Result<Answer, Failure> {
        let mut answer = self.try_post(what, post, limit).await;
        for wait in waits {
            if !transient(&answer) {
                break;
            }
            tokio::time::sleep(wait).await;
            answer = self.try_post(what, post, limit).await;
        }
        answer
    }

    /// Sends one request when there is room; the wait for it is not part of `limit`.
    async fn try_post(&self, what: &'static str, post: &Post, limit: Duration) -> Result<Answer, Failure> {
        let outside = &self.outside;
        // Neither is ever closed.
        let _own = self.slots.acquire().await;
        let _slot = outside.slots.acquire().await;
        let _counted = UnderWay::new(&outside.under_way);
        let answer = outside.web.post(post.clone(), limit).await;
        let result = match &answer {
            Ok(_) => "answered",
            Err(Failure::TimedOut(_)) => "timed_out",
            Err(Failure::Unreachable(_) | Failure::TooLong) => "failed",
        };
        outside.calls.with_label_values(&[what, result]).inc();
        answer
    }
}

/// Whether trying again may bring another answer.
fn transient(answer: &Result<Answer, Failure>) -> bool {
    match answer {
        Ok(answer) => answer.status.is_server_error() || answer.status == StatusCode::TOO_MANY_REQUESTS,
        Err(failure) => !matches!(failure, Failure::TooLong),
    }
}

/// Counts for as long as it lives.
struct UnderWay<'a>(&'a IntGauge);

impl<'a> UnderWay<'a> {
    fn new(gauge: &'a IntGauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}
