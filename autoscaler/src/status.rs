//! The only writer of Route status.
//!
//! What a status says is computed elsewhere, on demand; here it is decided when it is worth a write: at once when the
//! phase changes, else at least a second apart for each Route, every half minute when nothing but the time of the last
//! request, or of what comes next, has moved, and never when nothing has. A write is a merge patch of the fields that
//! differ, so it cannot conflict and an unchanged field costs nothing.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use crds::route::RouteStatus;
use serde_json::{Map, Value};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::cluster::Cluster;
use crate::lease::Leadership;
use crate::metrics::Metrics;
use crate::state::{Dirty, RouteKey};
use crate::watch::Index;

/// Shortest time between two writes of one Route's status, unless its phase changes.
const APART: Duration = Duration::from_secs(1);
/// Shortest time between two writes for the sake of `lastRequest` alone.
const LAST_REQUEST_APART: Duration = Duration::from_secs(30);
/// Status writes under way at once. More wait in the set of changed Routes, which is bounded by the Routes there are.
const AT_ONCE: usize = 64;
/// How soon a write that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Computes what a Route's status should say, given what it says; `None`: nothing is known of the Route.
pub(crate) type View = Arc<dyn Fn(&RouteKey, &RouteStatus) -> Option<RouteStatus> + Send + Sync>;

/// Writes statuses that have changed.
pub(crate) struct Publisher {
    cluster: Arc<Cluster>,
    index: Arc<Index>,
    metrics: Arc<Metrics>,
    view: View,
    known: HashMap<RouteKey, Known>,
    /// Routes to look at again, by time.
    due: BTreeSet<(Instant, RouteKey)>,
    writes: JoinSet<(RouteKey, RouteStatus, bool)>,
}

/// What was last written of one Route.
struct Known {
    uid: Option<String>,
    status: RouteStatus,
    written: Option<Instant>,
    /// A write is under way.
    writing: bool,
    /// It changed again meanwhile.
    again: bool,
    /// When it is to be looked at again.
    due: Option<Instant>,
}

impl Publisher {
    /// A publisher that has written nothing yet.
    pub(crate) fn new(cluster: Arc<Cluster>, index: Arc<Index>, metrics: Arc<Metrics>, view: View) -> Self {
        Self {
            cluster,
            index,
            metrics,
            view,
            known: HashMap::new(),
            due: BTreeSet::new(),
            writes: JoinSet::new(),
        }
    }

    /// Writes, while this process leads, the status of each Route that is marked, until `stop`.
    pub(crate) async fn run(
        mut self,
        dirty: Arc<Dirty<RouteKey>>,
        mut leading: watch::Receiver<Leadership>,
        stop: CancellationToken,
    ) {
        loop {
            if !leading.borrow_and_update().leader {
                // Another leader writes: what we knew is out of date when we lead again.
                self.known.clear();
                self.due.clear();
                tokio::select! {
                    () = stop.cancelled() => return,
                    changed = leading.changed() => if changed.is_err() { return },
                }
                continue;
            }
            let next = self.due.first().map(|(at, _)| *at);
            tokio::select! {
                () = stop.cancelled() => break,
                changed = leading.changed() => if changed.is_err() { break },
                Some(done) = self.writes.join_next(), if !self.writes.is_empty() => {
                    if let Ok((key, status, ok)) = done {
                        self.written(key, status, ok);
                    }
                }
                keys = dirty.take(), if self.writes.len() < AT_ONCE => {
                    for key in keys {
                        self.consider(key, Instant::now());
                    }
                }
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() && self.writes.len() < AT_ONCE => {
                    let now = Instant::now();
                    while let Some((at, key)) = self.due.pop_first() {
                        if at > now || self.writes.len() >= AT_ONCE {
                            self.due.insert((at, key));
                            break;
                        }
                        self.consider(key, now);
                    }
                }
            }
        }
        // Writes under way may finish: each is bounded by its own time-out.
        while self.writes.join_next().await.is_some() {}
    }

    fn consider(&mut self, key: RouteKey, now: Instant) {
        let Some(route) = self.index.route(&key) else {
            self.known.remove(&key);
            return;
        };
        let known = self.known.entry(key.clone()).or_insert_with(|| Known {
            uid: route.metadata.uid.clone(),
            status: route.status.clone().unwrap_or_default(),
            written: None,
            writing: false,
            again: false,
            due: None,
        });
        if let Some(at) = known.due.take_if(|at| *at <= now) {
            self.due.remove(&(at, key.clone()));
        }
        if known.writing {
            known.again = true;
            return;
        }
        if known.uid != route.metadata.uid {
            // Deleted and made anew: its status is empty again.
            known.uid = route.metadata.uid.clone();
            known.status = route.status.clone().unwrap_or_default();
        }
        let Some(wanted) = (self.view)(&key, &known.status) else {
            return;
        };
        match worth_writing(
            &known.status,
            &wanted,
            known.written.map(|at| now.duration_since(at)),
        ) {
            When::Never => {}
            When::In(wait) if !wait.is_zero() || self.writes.len() >= AT_ONCE => {
                let at = now + wait;
                if known.due.is_none_or(|due| at < due) {
                    if let Some(later) = known.due.replace(at) {
                        self.due.remove(&(later, key.clone()));
                    }
                    self.due.insert((at, key));
                }
            }
            When::In(_) => {
                known.writing = true;
                known.written = Some(now);
                let patch = patch(&known.status, &wanted);
                let cluster = Arc::clone(&self.cluster);
                self.writes.spawn(async move {
                    let ok = cluster.patch_route_status(&key, patch).await.is_ok();
                    (key, wanted, ok)
                });
            }
        }
    }

    fn written(&mut self, key: RouteKey, status: RouteStatus, ok: bool) {
        self.metrics.status_write(ok);
        let Some(known) = self.known.get_mut(&key) else {
            return;
        };
        known.writing = false;
        let again = std::mem::take(&mut known.again);
        if ok {
            known.status = status;
        }
        let now = Instant::now();
        if !ok {
            let at = now + RETRY;
            if let Some(other) = known.due.replace(at) {
                self.due.remove(&(other, key.clone()));
            }
            self.due.insert((at, key));
        } else if again {
            self.consider(key, now);
        }
    }
}

/// When a changed status is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    /// Nothing differs.
    Never,
    /// After this long.
    In(Duration),
}

/// `since`: how long ago this Route's status was last written, if ever.
fn worth_writing(old: &RouteStatus, new: &RouteStatus, since: Option<Duration>) -> When {
    if old == new {
        return When::Never;
    }
    let apart = if old.phase != new.phase || old.command != new.command {
        Duration::ZERO
    } else if old.next.is_empty() == new.next.is_empty()
        && *old
            == (RouteStatus {
                last_request: old.last_request.clone(),
                next: old.next.clone(),
                ..new.clone()
            })
    {
        LAST_REQUEST_APART
    } else {
        APART
    };
    When::In(since.map_or(Duration::ZERO, |since| apart.saturating_sub(since)))
}

/// The merge patch that turns `old` into `new`: only fields that differ, `null` for those that go.
fn patch(old: &RouteStatus, new: &RouteStatus) -> Value {
    let fields = |status: &RouteStatus| match serde_json::to_value(status) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    };
    let (old, new) = (fields(old), fields(new));
    let mut patch = Map::new();
    for field in old.keys().filter(|field| !new.contains_key(*field)) {
        patch.insert(field.clone(), Value::Null);
    }
    for (field, value) in new {
        if old.get(&field) != Some(&value) {
            patch.insert(field, value);
        }
    }
    Value::Object(patch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crds::route::Phase;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    fn status(phase: Phase, why: &str, request_second: Option<i64>) -> RouteStatus {
        RouteStatus {
            phase: Some(phase),
            why: why.to_owned(),
            last_request: request_second
                .map(|second| Time(jiff::Timestamp::from_second(second).expect("a valid time"))),
            ..RouteStatus::default()
        }
    }

    #[test]
    fn a_status_is_written_as_soon_as_it_is_worth_it() {
        let ms = Duration::from_millis;
        let asleep = status(Phase::Asleep, "quiet", None);
        let waking = status(Phase::Waking, "1 held", None);
        let other = status(Phase::Asleep, "quieter", None);
        let early = status(Phase::Awake, "", Some(10));
        let late = status(Phase::Awake, "", Some(12));
        for (what, old, new, since, want) in [
            ("nothing differs", &asleep, &asleep, Some(ms(60_000)), When::Never),
            (
                "the first write",
                &RouteStatus::default(),
                &asleep,
                None,
                When::In(ms(0)),
            ),
            (
                "a phase, at once",
                &asleep,
                &waking,
                Some(ms(10)),
                When::In(ms(0)),
            ),
            (
                "a sentence, a second apart",
                &asleep,
                &other,
                Some(ms(300)),
                When::In(ms(700)),
            ),
            (
                "a sentence, long after",
                &asleep,
                &other,
                Some(ms(3000)),
                When::In(ms(0)),
            ),
            (
                "only the last request",
                &early,
                &late,
                Some(ms(2000)),
                When::In(ms(28_000)),
            ),
            (
                "only the last request, in time",
                &early,
                &late,
                Some(ms(31_000)),
                When::In(ms(0)),
            ),
        ] {
            assert_eq!(worth_writing(old, new, since), want, "{what}");
        }
    }

    #[test]
    fn a_patch_names_what_differs_and_clears_what_goes() {
        let mut old = status(Phase::Awake, "same", Some(10));
        old.listening = vec!["a".into()];
        old.next = "sleeps".into();
        let mut new = status(Phase::Asleep, "same", Some(10));
        new.pods = "0/0".into();
        assert_eq!(
            patch(&old, &new),
            serde_json::json!({"phase": "Asleep", "pods": "0/0", "listening": null, "next": null})
        );
    }
}
