//! One pool as the scaler knows it: who uses it, what was last written, what is starting, what is wrong. No effects.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crds::Settings;
use crds::names::ACTIVATOR_MANAGER;
use crds::report::PoolKey;
use crds::route::{Phase, RouteStatus, Wake, Workload};
use tokio::time::Instant;

use super::core::Decider;
use super::health::Diagnosis;
use crate::state::{Entry, RouteKey};
use crate::watch::slim::WorkloadFacts;

/// How long the index may take to show what we wrote. After that what it shows is what is there.
const SHOWN_WITHIN: Duration = Duration::from_secs(5);
/// First wait after a write that failed. Doubles up to [`LONGEST_BACK_OFF`].
const FIRST_BACK_OFF: Duration = Duration::from_millis(100);
/// Longest wait after a write that failed.
const LONGEST_BACK_OFF: Duration = Duration::from_secs(5);
/// Pods without one ready are looked at this long after the first was wanted: clear signs of trouble come early.
const FIRST_LOOK: Duration = Duration::from_secs(2);
/// And then this often.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Signs that may pass by themselves count after this long.
const UNHEALTHY_AFTER: Duration = Duration::from_secs(10);
/// Pods that are remembered as starting; more of them tell nothing new about how long a start takes.
const STARTING: usize = 256;

/// A pool.
pub(super) struct Unit {
    pub(super) key: PoolKey,
    pub(super) workload: Workload,
    /// The Services that use it.
    pub(super) routes: BTreeMap<RouteKey, Arc<Entry>>,
    /// What we wrote and the index may not show yet.
    written: Option<(u32, Instant)>,
    /// What the index showed last, with our own writes in place of what it is late to show.
    pub(super) replicas: Option<u32>,
    /// A write of `/scale` is under way.
    pub(super) writing: Option<u32>,
    failures: u32,
    retry_at: Option<Instant>,
    /// When each pod that is not ready yet was asked for, oldest first.
    starting: VecDeque<Instant>,
    ready: u32,
    /// Whether activators are told that the wake is being carried out.
    pub(super) waking: bool,
    /// What the last decision wants.
    pub(super) want: u32,
    /// At the last decision nothing but its rollout kept it from sleeping.
    pub(super) rests: bool,
    /// The sentence of the last change.
    pub(super) why: String,
    /// The sentence that says why nothing changes, when that says more.
    pub(super) stays: Option<String>,
    /// Who else writes the replicas, as a sentence.
    pub(super) conflict: Option<String>,
    pub(super) decider: Option<Decider>,
    /// Its Service has never been captured before, as far as its Route says.
    pub(super) fresh: bool,
    /// What comes next.
    pub(super) next: String,
    /// First byte to `/scale` request sent, of the last wake, in milliseconds.
    pub(super) signal_ms: Option<f64>,
    /// The last wakes, newest first.
    pub(super) wakes: VecDeque<Wake>,
    /// When a request that counts was last seen.
    pub(super) last_request: Option<Instant>,
    pub(super) health: Health,
    /// When this pool is to be decided on again.
    pub(super) timer: Option<Instant>,
}

/// Whether pods become ready.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// Since when pods are wanted and none is ready.
    unready_since: Option<Instant>,
    look_at: Option<Instant>,
    /// Pods are being read.
    pub(super) looking: bool,
    /// What was found and counts.
    pub(super) found: Option<Diagnosis>,
}

/// How the replicas in the index came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// As we left them, or as they were when we first looked.
    Ours,
    /// Somebody changed them, from this many.
    Foreign {
        /// What we had left.
        from: u32,
    },
}

impl Unit {
    /// A pool that was just met; `status` is what a Route of it says from earlier.
    pub(super) fn new(key: PoolKey, workload: Workload, status: Option<&RouteStatus>) -> Self {
        let wakes = status.map(|status| status.wakes.clone()).unwrap_or_default();
        Self {
            key,
            workload,
            routes: BTreeMap::new(),
            written: None,
            replicas: None,
            writing: None,
            failures: 0,
            retry_at: None,
            starting: VecDeque::new(),
            ready: 0,
            waking: false,
            want: 0,
            rests: false,
            why: status
                .map(|status| status.why.clone())
                .filter(|why| led_to(why).is_some())
                .unwrap_or_default(),
            stays: None,
            conflict: None,
            decider: None,
            fresh: !matches!(
                status.and_then(|status| status.phase),
                Some(Phase::Asleep | Phase::Waking | Phase::Awake | Phase::FailOpen)
            ),
            next: String::new(),
            signal_ms: None,
            wakes: wakes.into(),
            last_request: None,
            health: Health::default(),
            timer: None,
        }
    }

    /// The settings; Services that share a pool have the same.
    pub(super) fn settings(&self) -> Option<&Arc<Settings>> {
        self.routes.values().next().map(|entry| &entry.settings)
    }

    /// Why the pool may not go to zero, if it may not.
    pub(super) fn kept_awake(&self) -> Option<&str> {
        let mut entries = self.routes.values();
        let by_capture = entries.find_map(|entry| entry.may_sleep.as_ref().err());
        by_capture.map(String::as_str).or_else(|| self.kept_in_place())
    }

    /// What its rollout has against its going to zero.
    pub(super) fn kept_in_place(&self) -> Option<&str> {
        let mut stays = self.routes.values().filter_map(|entry| entry.stays.as_ref());
        stays
            .find(|(pool, _)| *pool == self.key)
            .map(|(_, why)| why.as_str())
    }

    /// Replicas to keep at least, and why.
    pub(super) fn at_least(&self) -> Option<(u32, &str)> {
        let present = self.replicas.filter(|replicas| *replicas > 0);
        let asked = self.routes.values().flat_map(|entry| {
            let holds = entry.holds.as_deref().and_then(|why| Some((present?, why)));
            let others = entry.at_least.iter().chain(entry.needs.get(&self.key));
            holds
                .into_iter()
                .chain(others.map(|(replicas, why)| (*replicas, why.as_str())))
        });
        asked.max_by_key(|(replicas, _)| *replicas)
    }

    /// Whether no request can come to it now: it is a revision's that has no traffic.
    pub(super) fn is_idle(&self) -> bool {
        let mut entries = self.routes.values();
        !self.routes.is_empty() && entries.all(|entry| entry.idle.contains(&self.key))
    }

    /// The HorizontalPodAutoscaler that scales 1→N.
    pub(super) fn scaled_by(&self) -> Option<&str> {
        self.routes.values().find_map(|entry| entry.scaled_by.as_deref())
    }

    /// Takes in the workload as the index shows it. `ready`: pods that somebody has seen answering.
    /// Returns how the replicas came about, and how long pods that have just become ready took to start.
    pub(super) fn observe(
        &mut self,
        workload: &WorkloadFacts,
        ready: u32,
        now: Instant,
    ) -> (Seen, Vec<Duration>) {
        let mut seen = Seen::Ours;
        match self.written {
            Some((written, _)) if written == workload.replicas => self.written = None,
            Some((written, at)) if now.duration_since(at) < SHOWN_WITHIN => {
                self.replicas = Some(written);
                return (seen, self.started(ready, now));
            }
            _ => self.written = None,
        }
        if let Some(from) = self.replicas.filter(|from| *from != workload.replicas) {
            seen = Seen::Foreign { from };
            self.asked_for(from, workload.replicas, now);
        }
        self.replicas = Some(workload.replicas);
        (seen, self.started(ready, now))
    }

    /// Drops a sentence that does not lead to the replicas there are; an activator that woke the pool itself gets its own.
    pub(super) fn correct_why(&mut self, workload: &WorkloadFacts) {
        let Some(replicas) = self.replicas.filter(|_| self.writing.is_none()) else {
            return;
        };
        if led_to(&self.why).is_none_or(|to| to == replicas) {
            return;
        }
        let by_activator = workload
            .replicas_managers
            .first()
            .is_some_and(|name| name == ACTIVATOR_MANAGER);
        self.why = match by_activator && replicas > 0 {
            true => {
                format!("0 to {replicas}: woken by an activator itself, as no autoscaler answered in time")
            }
            false => String::new(),
        };
    }

    /// Notes pods asked for, or given up, by a change of replicas.
    fn asked_for(&mut self, from: u32, to: u32, now: Instant) {
        for _ in from..to.min(from.saturating_add(u32::try_from(STARTING).unwrap_or(u32::MAX))) {
            if self.starting.len() < STARTING {
                self.starting.push_back(now);
            }
        }
        // Kubernetes gives up pods that are not ready first, the youngest before others.
        for _ in to..from {
            self.starting.pop_back();
        }
    }

    /// Pairs pods that became ready with the oldest that were asked for.
    fn started(&mut self, ready: u32, now: Instant) -> Vec<Duration> {
        let risen = ready.saturating_sub(self.ready);
        self.ready = ready;
        let count = usize::try_from(risen).unwrap_or(0).min(self.starting.len());
        let took = self
            .starting
            .drain(..count)
            .map(|asked| now.duration_since(asked))
            .collect();
        let not_ready = self.replicas.unwrap_or(0).saturating_sub(ready);
        self.starting.truncate(usize::try_from(not_ready).unwrap_or(0));
        took
    }

    /// Ages of pods that are starting, oldest first.
    pub(super) fn starting(&self, now: Instant) -> impl Iterator<Item = Duration> + '_ {
        self.starting.iter().map(move |asked| now.duration_since(*asked))
    }

    /// Pods ready when last looked at.
    pub(super) fn ready(&self) -> u32 {
        self.ready
    }

    /// Whether replicas may be written now; otherwise when.
    pub(super) fn may_write(&self, now: Instant) -> Result<(), Option<Instant>> {
        match (self.writing, self.retry_at) {
            (Some(_), _) => Err(None),
            (None, Some(at)) if at > now => Err(Some(at)),
            _ => Ok(()),
        }
    }

    /// A write has begun.
    pub(super) fn write(&mut self, to: u32) {
        self.writing = Some(to);
    }

    /// A write has succeeded.
    pub(super) fn wrote(&mut self, to: u32, now: Instant) {
        self.writing = None;
        self.failures = 0;
        self.retry_at = None;
        let from = self.replicas.unwrap_or(0);
        self.asked_for(from, to, now);
        self.written = Some((to, now));
        self.replicas = Some(to);
    }

    /// A write has failed, or may have.
    pub(super) fn not_written(&mut self, now: Instant) {
        self.writing = None;
        let back_off = FIRST_BACK_OFF
            .saturating_mul(1 << self.failures.min(10))
            .min(LONGEST_BACK_OFF);
        self.failures = self.failures.saturating_add(1);
        self.retry_at = Some(now + back_off);
    }

    /// Takes in finished wakes, oldest first.
    pub(super) fn woke(&mut self, wakes: &[Wake]) {
        for wake in wakes {
            let mut wake = wake.clone();
            wake.pool.clone_from(&self.key.pool);
            // The activator only knows when it was acknowledged; we know when the request to scale was sent.
            wake.signal_ms = self.signal_ms.take().or(wake.signal_ms);
            self.wakes.push_front(wake);
        }
        self.wakes.truncate(RouteStatus::KEPT_WAKES);
    }
}

/// The replicas to which a sentence of ours on a change (`0 to 1: …`) says it led; `None`: it is no such sentence.
fn led_to(why: &str) -> Option<u32> {
    let (from, rest) = why.split_once(" to ")?;
    from.parse::<u32>().ok()?;
    rest.split_once(':')?.0.parse().ok()
}

impl Health {
    /// Takes in whether pods are wanted and none is ready. Returns whether a diagnosis has been withdrawn.
    pub(super) fn observe(&mut self, waiting: bool, now: Instant) -> bool {
        if waiting {
            if self.unready_since.is_none() {
                self.unready_since = Some(now);
                self.look_at = Some(now + FIRST_LOOK);
            }
            return false;
        }
        self.unready_since = None;
        self.look_at = None;
        self.found.take().is_some()
    }

    /// When pods are to be read next.
    pub(super) fn look_at(&self) -> Option<Instant> {
        self.look_at.filter(|_| !self.looking)
    }

    /// Whether pods are to be read now; if so, they are being read from now on.
    pub(super) fn look(&mut self, now: Instant) -> bool {
        let due = self.look_at().is_some_and(|at| at <= now);
        if due {
            self.looking = true;
            self.look_at = Some(now + LOOK_EVERY);
        }
        due
    }

    /// Takes in what the pods said. Returns the diagnosis if it is news.
    pub(super) fn looked(&mut self, diagnosis: Option<Diagnosis>, now: Instant) -> Option<Diagnosis> {
        self.looking = false;
        let since = self.unready_since?;
        let counts = now.duration_since(since) >= UNHEALTHY_AFTER;
        let diagnosis = diagnosis.filter(|found| found.clear || counts)?;
        let news = self
            .found
            .as_ref()
            .is_none_or(|known| known.reason != diagnosis.reason);
        self.found = Some(diagnosis.clone());
        news.then_some(diagnosis)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crds::condition::reason;

    fn unit() -> Unit {
        let key = PoolKey {
            namespace: "d".into(),
            pool: "web".into(),
        };
        Unit::new(
            key,
            Workload {
                name: "web".into(),
                ..Workload::default()
            },
            None,
        )
    }

    fn facts(replicas: u32) -> WorkloadFacts {
        WorkloadFacts {
            replicas,
            ..WorkloadFacts::default()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_index_is_not_mistaken_for_a_foreign_writer() {
        let mut unit = unit();
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(
            unit.observe(&facts(0), 0, start).0,
            Seen::Ours,
            "what we found is nobody's change"
        );
        unit.write(3);
        unit.wrote(3, start);
        assert_eq!(
            unit.observe(&facts(0), 0, after(1)).0,
            Seen::Ours,
            "the index is late"
        );
        assert_eq!(unit.replicas, Some(3), "we believe our own write meanwhile");
        assert_eq!(
            unit.observe(&facts(3), 0, after(2)).0,
            Seen::Ours,
            "it shows our write"
        );
        assert_eq!(unit.observe(&facts(5), 0, after(3)).0, Seen::Foreign { from: 3 });
        assert_eq!(unit.observe(&facts(5), 0, after(4)).0, Seen::Ours, "told once");
        unit.write(2);
        unit.wrote(2, after(5));
        assert_eq!(
            unit.observe(&facts(5), 0, after(11)).0,
            Seen::Foreign { from: 2 },
            "never shown: overwritten"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn starts_are_timed_from_the_request_for_a_pod_to_its_readiness() {
        let mut unit = unit();
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        unit.observe(&facts(0), 0, start);
        unit.wrote(1, start);
        unit.wrote(3, after(1));
        assert_eq!(
            unit.starting(after(2))
                .map(|age| age.as_secs())
                .collect::<Vec<_>>(),
            [2, 1, 1]
        );
        assert_eq!(unit.observe(&facts(3), 1, after(4)).1, [Duration::from_secs(4)]);
        assert_eq!(
            unit.observe(&facts(3), 3, after(6)).1,
            [Duration::from_secs(5); 2]
        );
        assert_eq!(unit.starting(after(6)).count(), 0);
        unit.wrote(5, after(7));
        unit.wrote(3, after(8));
        assert_eq!(unit.starting(after(8)).count(), 0, "those given up do not start");
    }

    #[tokio::test(start_paused = true)]
    async fn a_sentence_that_no_longer_fits_is_replaced() {
        let with = |replicas, manager: &str| WorkloadFacts {
            replicas,
            replicas_managers: vec![manager.to_owned()],
            ..WorkloadFacts::default()
        };
        for (what, why, workload, want) in [
            (
                "it fits",
                "1 to 0: no request",
                with(0, "dormouse-scale"),
                "1 to 0: no request",
            ),
            ("nothing was said", "", with(1, ACTIVATOR_MANAGER), ""),
            ("somebody else", "1 to 0: no request", with(2, "kubectl"), ""),
            (
                "an activator",
                "1 to 0: no request",
                with(1, ACTIVATOR_MANAGER),
                "0 to 1: woken by an activator itself, as no autoscaler answered in time",
            ),
        ] {
            let mut unit = unit();
            unit.why = why.to_owned();
            unit.observe(&workload, 0, Instant::now());
            unit.correct_why(&workload);
            assert_eq!(unit.why, want, "{what}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn failed_writes_back_off_and_a_good_one_starts_anew() {
        let mut unit = unit();
        let now = Instant::now();
        for wait in [100, 200, 400] {
            unit.write(1);
            assert_eq!(unit.may_write(now), Err(None), "one at a time");
            unit.not_written(now);
            assert_eq!(unit.may_write(now), Err(Some(now + Duration::from_millis(wait))));
        }
        for _ in 0..40 {
            unit.not_written(now);
        }
        assert_eq!(unit.may_write(now), Err(Some(now + LONGEST_BACK_OFF)));
        unit.wrote(1, now);
        assert_eq!(unit.may_write(now), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn clear_trouble_counts_at_once_and_other_after_a_while() {
        let mut health = Health::default();
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let found = |clear| {
            Some(Diagnosis {
                reason: reason::NEVER_READY,
                message: "m".into(),
                clear,
            })
        };
        assert!(!health.look(start), "nothing is waited for");
        health.observe(true, start);
        assert!(!health.look(after(1)));
        assert!(health.look(after(2)));
        assert!(!health.look(after(20)), "not while reading");
        assert_eq!(health.looked(found(false), after(3)), None, "too early");
        assert!(health.look(after(12)));
        assert!(health.looked(found(false), after(12)).is_some());
        assert!(health.look(after(17)));
        assert_eq!(health.looked(found(false), after(17)), None, "no news");
        assert!(health.observe(false, after(18)), "withdrawn once ready");
        health.observe(true, after(30));
        assert!(health.look(after(32)));
        assert!(health.looked(found(true), after(32)).is_some(), "clear: at once");
    }
}
