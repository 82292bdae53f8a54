//! The counts of one attempt: cumulative, by epoch, for as long as its Route names no other attempt.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crds::evidence::{ArmReport, EPOCHS, EpochReport, service_time_bucket};
use parking_lot::Mutex;

use super::Arm;
use super::breaker::{Breaker, Evidence};
use crate::route::RouteKey;

/// Most sessions with a bad answer that are remembered for one epoch. Beyond it none is counted as bad, but as uncounted: by
/// then the verdict is clear.
pub(super) const BAD_SESSIONS: usize = 10_000;

/// One attempt of one Route.
#[derive(Debug)]
pub(crate) struct Attempt {
    pub(crate) route: RouteKey,
    pub(crate) uid: String,
    /// The candidate gets no more requests here. Never taken back.
    is_broken: AtomicBool,
    /// Whether it is in the list of attempts that changed.
    is_dirty: AtomicBool,
    books: Mutex<Books>,
}

#[derive(Debug, Default)]
struct Books {
    epochs: BTreeMap<u32, Epoch>,
    evidence: Evidence,
    broken: Option<Broken>,
    /// What was left out, because of a bound.
    uncounted: u64,
}

#[derive(Debug, Default)]
struct Epoch {
    /// The candidate's share, as the Route last said for this epoch.
    share: Option<f64>,
    stable: Counts,
    candidate: Counts,
    direct: Counts,
    bad_sessions: HashSet<u64>,
    /// No line has carried its last change.
    is_dirty: bool,
}

/// The counts of one pool's requests.
#[derive(Debug, Default)]
struct Counts {
    requests: u64,
    bad: u64,
    /// By bucket of service time; buckets beyond the end are empty.
    times: Vec<u64>,
}

/// What a request came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) is_bad: bool,
    /// From dispatch to the answer's head, outside of the pod's warm-up.
    pub(super) time: Option<Duration>,
}

/// The unit that is counted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Unit {
    /// A request that was assigned by the coin, when the candidate had this share.
    Coin(Arm, f64),
    /// A request of a session.
    Session {
        /// Whose it is.
        arm: Arm,
        /// Which session.
        id: u64,
        /// It is the session's first.
        is_new: bool,
        /// The session has been counted as bad already.
        was_bad: bool,
    },
    /// A request that a match has sent to the candidate.
    Direct,
}

/// What a counted request leads to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct News {
    /// The attempt must be put into the list of those that changed.
    pub(crate) is_first: bool,
    /// The breaker took the candidate out just now.
    pub(crate) broken: Option<Broken>,
}

/// Why the breaker took the candidate out.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Broken {
    pub(crate) evidence: f64,
    /// Bad answers of the candidate, and all of its requests, over all epochs.
    pub(crate) candidate: (u64, u64),
    /// The stable pool's.
    pub(crate) stable: (u64, u64),
}

impl Attempt {
    pub(crate) fn new(route: RouteKey, uid: String) -> Self {
        Self {
            route,
            uid,
            is_broken: AtomicBool::new(false),
            is_dirty: AtomicBool::new(false),
            books: Mutex::default(),
        }
    }

    /// Whether the breaker has taken the candidate out.
    pub(crate) fn is_broken(&self) -> bool {
        self.is_broken.load(Ordering::Acquire)
    }

    /// Another activator's breaker has taken the candidate out. Returns what follows, unless it is out already.
    pub(crate) fn take_out(&self) -> Option<News> {
        let mut books = self.books.lock();
        if books.broken.is_some() {
            return None;
        }
        // Not by the counts of this one.
        books.take_out(0.0);
        self.is_broken.store(true, Ordering::Release);
        Some(self.news(None))
    }

    /// The candidate has this share in an epoch.
    pub(super) fn begin(&self, epoch: u32, share: f64) {
        if epoch < EPOCHS {
            self.books.lock().epochs.entry(epoch).or_default().share = Some(share);
        }
    }

    /// A request has ended.
    pub(super) fn count(&self, epoch: u32, unit: Unit, verdict: Verdict, breaker: Option<Breaker>) -> News {
        let mut books = self.books.lock();
        let Some(found) = books.epoch(epoch) else {
            return self.news(None);
        };
        let mut is_bad = verdict.is_bad;
        let mut adds = 1;
        let mut left_out = 0;
        let (compared, share) = match unit {
            Unit::Coin(arm, share) => (Some(arm), Some(share)),
            Unit::Direct => (None, None),
            Unit::Session {
                arm,
                id,
                is_new,
                was_bad,
            } => {
                adds = u64::from(is_new);
                // A session is remembered with its first bad answer, not before.
                if is_bad && !was_bad {
                    let is_known = found.bad_sessions.contains(&id);
                    let has_room = found.bad_sessions.len() < BAD_SESSIONS;
                    is_bad = !is_known && has_room && found.bad_sessions.insert(id);
                    left_out = u64::from(!is_known && !has_room);
                } else {
                    is_bad = false;
                }
                (Some(arm), found.share)
            }
        };
        let counts = match compared {
            Some(Arm::Stable) => &mut found.stable,
            Some(Arm::Candidate) => &mut found.candidate,
            None => &mut found.direct,
        };
        counts.requests += adds;
        counts.bad += u64::from(is_bad);
        counts.time(verdict.time);
        books.uncounted += left_out;
        let bet = compared.zip(share).filter(|_| is_bad);
        let broken = bet.and_then(|(arm, share)| books.bet(breaker?, share, arm));
        self.after(broken)
    }

    /// Both answers to a mirrored request are in.
    pub(super) fn count_pair(
        &self,
        epoch: u32,
        [stable, candidate]: [Verdict; 2],
        breaker: Option<Breaker>,
    ) -> News {
        let mut books = self.books.lock();
        let Some(found) = books.epoch(epoch) else {
            return self.news(None);
        };
        let worse = match (stable.is_bad, candidate.is_bad) {
            (true, false) => Some(Arm::Stable),
            (false, true) => Some(Arm::Candidate),
            _ => None,
        };
        for (counts, verdict, arm) in [
            (&mut found.stable, stable, Arm::Stable),
            (&mut found.candidate, candidate, Arm::Candidate),
        ] {
            counts.requests += 1;
            counts.bad += u64::from(worse == Some(arm));
            counts.time(verdict.time);
        }
        // Each answered the same request: an even coin.
        let broken = worse.and_then(|arm| books.bet(breaker?, 0.5, arm));
        self.after(broken)
    }

    fn after(&self, broken: Option<Broken>) -> News {
        if broken.is_some() {
            self.is_broken.store(true, Ordering::Release);
        }
        self.news(broken)
    }

    fn news(&self, broken: Option<Broken>) -> News {
        News {
            is_first: !self.is_dirty.swap(true, Ordering::AcqRel),
            broken,
        }
    }

    /// Epochs that changed since the last call.
    pub(crate) fn take_changed(&self) -> Vec<EpochReport> {
        // Before the counts are read: what changes after is reported again.
        self.is_dirty.store(false, Ordering::Release);
        let mut books = self.books.lock();
        let broken = books.broken;
        let changed = books.epochs.iter_mut();
        changed
            .filter_map(|(number, epoch)| {
                std::mem::take(&mut epoch.is_dirty).then(|| self.line(*number, epoch, broken.as_ref()))
            })
            .collect()
    }

    /// All epochs in which something was counted.
    pub(crate) fn all(&self) -> Vec<EpochReport> {
        let books = self.books.lock();
        // That the candidate is out is said even if nothing was counted.
        let last = books.epochs.keys().next_back().filter(|_| books.broken.is_some());
        let epochs = books.epochs.iter();
        epochs
            .filter(|(number, epoch)| epoch.has_any() || Some(*number) == last)
            .map(|(number, epoch)| self.line(*number, epoch, books.broken.as_ref()))
            .collect()
    }

    fn line(&self, number: u32, epoch: &Epoch, broken: Option<&Broken>) -> EpochReport {
        EpochReport {
            namespace: self.route.namespace.clone(),
            route: self.route.name.clone(),
            attempt: self.uid.clone(),
            epoch: number,
            stable: epoch.stable.report(),
            candidate: epoch.candidate.report(),
            direct: epoch.direct.report(),
            broken: broken.is_some(),
            // `as` keeps within bounds: what is beyond them is the largest number.
            evidence: broken.map_or(0, |broken| broken.evidence as u64),
        }
    }

    /// Sums over all epochs, for metrics: name of the arm, good, bad.
    pub(crate) fn sums(&self) -> [(&'static str, u64, u64); 3] {
        let books = self.books.lock();
        let sum = |name, of: fn(&Epoch) -> &Counts| {
            let (bad, requests) = books.sum(of);
            (name, requests.saturating_sub(bad), bad)
        };
        [
            sum("stable", |epoch| &epoch.stable),
            sum("candidate", |epoch| &epoch.candidate),
            sum("direct", |epoch| &epoch.direct),
        ]
    }

    /// What a bound has left out.
    pub(crate) fn uncounted(&self) -> u64 {
        self.books.lock().uncounted
    }

    /// Everything, for the state dump.
    pub(crate) fn dump(&self) -> serde_json::Value {
        let books = self.books.lock();
        let counts = |counts: &Counts| serde_json::json!({ "requests": counts.requests, "bad": counts.bad });
        let epochs = books.epochs.iter().map(|(number, epoch)| {
            serde_json::json!({
                "epoch": number,
                "candidateShare": epoch.share,
                "stable": counts(&epoch.stable),
                "candidate": counts(&epoch.candidate),
                "direct": counts(&epoch.direct),
            })
        });
        let broken = books.broken.map(|broken| {
            serde_json::json!({
                "evidence": finite(broken.evidence),
                "candidateBad": broken.candidate.0,
                "candidateRequests": broken.candidate.1,
                "stableBad": broken.stable.0,
                "stableRequests": broken.stable.1,
            })
        });
        serde_json::json!({
            "attempt": self.uid,
            "evidence": finite(books.evidence.e()),
            "broken": broken,
            "uncounted": books.uncounted,
            "epochs": epochs.collect::<Vec<_>>(),
        })
    }
}

impl Books {
    /// The epoch of that number, about to change. `None`: beyond the bound.
    fn epoch(&mut self, number: u32) -> Option<&mut Epoch> {
        if number >= EPOCHS {
            self.uncounted += 1;
            return None;
        }
        let epoch = self.epochs.entry(number).or_default();
        epoch.is_dirty = true;
        Some(epoch)
    }

    /// Bets on whose the bad answer was. Returns why the candidate goes, when that is enough.
    fn bet(&mut self, breaker: Breaker, share: f64, arm: Arm) -> Option<Broken> {
        self.evidence.see(breaker.tolerance, share, arm == Arm::Candidate);
        let evidence = self.evidence.e();
        if self.broken.is_some() || evidence < breaker.evidence {
            return None;
        }
        self.take_out(evidence);
        self.broken
    }

    fn take_out(&mut self, evidence: f64) {
        self.broken = Some(Broken {
            evidence,
            candidate: self.sum(|epoch| &epoch.candidate),
            stable: self.sum(|epoch| &epoch.stable),
        });
        // Every line says so from now on, and there is one in any case.
        self.epochs
            .values_mut()
            .for_each(|epoch| epoch.is_dirty |= epoch.has_any());
        let last = self.epochs.keys().next_back().copied().unwrap_or(0);
        self.epochs.entry(last).or_default().is_dirty = true;
    }

    /// Bad requests and all requests over all epochs.
    fn sum(&self, of: impl Fn(&Epoch) -> &Counts) -> (u64, u64) {
        self.epochs
            .values()
            .map(of)
            .fold((0, 0), |(bad, requests), counts| {
                (bad + counts.bad, requests + counts.requests)
            })
    }
}

impl Epoch {
    fn has_any(&self) -> bool {
        [&self.stable, &self.candidate, &self.direct]
            .iter()
            .any(|counts| counts.requests > 0 || counts.bad > 0)
    }
}

impl Counts {
    fn time(&mut self, time: Option<Duration>) {
        let Some(time) = time else { return };
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let bucket = usize::from(service_time_bucket(micros));
        if self.times.len() <= bucket {
            self.times.resize(bucket + 1, 0);
        }
        self.times[bucket] += 1;
    }

    fn report(&self) -> ArmReport {
        let times = (0_u16..).zip(&self.times).filter(|(_, count)| **count > 0);
        ArmReport {
            requests: self.requests,
            bad: self.bad,
            times: times.map(|(bucket, count)| (bucket, *count)).collect(),
        }
    }
}

/// JSON knows no infinity.
fn finite(evidence: f64) -> f64 {
    evidence.min(f64::MAX)
}
