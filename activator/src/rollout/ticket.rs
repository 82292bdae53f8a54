//! One request's part in the counting: what it was assigned by, what its answer was, and at the end one entry.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, StatusCode};
use parking_lot::Mutex;

use super::attempt::{Unit, Verdict};
use super::session::Session;
use super::{Arm, Attempt, News, Plan, Warmup, is_bad_grpc, is_bad_status};
use crate::meter::Outcome;

/// By what a request came to its pool.
#[derive(Clone, Debug)]
pub(super) enum Role {
    /// The coin.
    Coin(Arm),
    /// The coin once, for the whole session.
    Session(Arm, Session),
    /// A match.
    Direct,
    /// It went to both; this is one of the two.
    Half(Arm, Arc<Pair>),
}

/// Both answers to one request.
#[derive(Debug, Default)]
pub(super) struct Pair {
    answers: Mutex<[Option<Verdict>; 2]>,
}

/// Held by a request that is counted; nothing is counted before its end.
#[derive(Debug)]
pub(crate) struct Ticket {
    plan: Arc<Plan>,
    attempt: Arc<Attempt>,
    /// In which it was assigned.
    epoch: u32,
    role: Role,
    is_bad: bool,
    time: Option<Duration>,
    /// What follows is a stream of bytes, which ends as it ends.
    is_settled: bool,
    /// Its pool had no pod that answers, for as long as it may wait.
    is_unreached: bool,
}

impl Ticket {
    pub(super) fn new(plan: Arc<Plan>, attempt: Arc<Attempt>, epoch: u32, role: Role) -> Self {
        Self {
            plan,
            attempt,
            epoch,
            role,
            is_bad: false,
            time: None,
            is_settled: false,
            is_unreached: false,
        }
    }

    /// Until when a pod's times are not counted.
    pub(crate) fn warmup(&self) -> Warmup {
        self.plan.warmup
    }

    /// An answer begins, `time` after the request was sent to who answers. `None`: that is not counted.
    pub(crate) fn head(&mut self, status: StatusCode, headers: &HeaderMap, time: Option<Duration>) {
        self.time = time;
        self.is_bad = is_bad_status(&self.plan.bad, status) || is_bad_grpc(&self.plan.bad, headers);
    }

    /// Its trailers.
    pub(crate) fn trailers(&mut self, trailers: &HeaderMap) {
        self.is_bad |= is_bad_grpc(&self.plan.bad, trailers);
    }

    /// The pod has taken a stream of bytes: from now on either side ends it as it likes.
    pub(crate) fn settle(&mut self) {
        self.is_settled = true;
    }

    /// Its pool could not be reached: no pod of it answered in time.
    pub(crate) fn unreached(&mut self) {
        self.is_unreached = true;
    }

    /// The field that tells the client its session, when that is news to it.
    pub(crate) fn cookie(&self) -> Option<HeaderValue> {
        let Role::Session(arm, session) = &self.role else {
            return None;
        };
        if !session.is_new && (session.was_bad || !self.is_bad) {
            return None;
        }
        let pool = match arm {
            Arm::Stable => &self.plan.names[0],
            Arm::Candidate => &self.plan.names[1],
        };
        self.plan.affinity.as_ref()?.write(session, pool, self.is_bad)
    }

    /// Whether the client has its answer from the other pool already.
    pub(crate) fn is_overtaken(&self) -> bool {
        matches!(&self.role, Role::Half(_, pair) if pair.answers.lock().iter().any(Option::is_some))
    }

    /// It has ended. Returns where something was counted, and what follows from it.
    pub(crate) fn end(self, outcome: Outcome) -> Option<(Arc<Attempt>, News)> {
        let is_bad = self.verdict(outcome)?;
        let verdict = Verdict {
            is_bad,
            time: self.time,
        };
        let (epoch, breaker) = (self.epoch, self.plan.breaker);
        let unit = match self.role {
            Role::Coin(arm) => Unit::Coin(arm, self.plan.share),
            Role::Session(arm, session) => Unit::Session {
                arm,
                id: session.id,
                is_new: session.is_new,
                was_bad: session.was_bad,
            },
            Role::Direct => Unit::Direct,
            Role::Half(arm, pair) => {
                let both = pair.put(arm, verdict)?;
                let news = self.attempt.count_pair(epoch, both, breaker);
                return Some((self.attempt, news));
            }
        };
        let news = self.attempt.count(epoch, unit, verdict, breaker);
        Some((self.attempt, news))
    }

    /// Whether it ended badly; `None`: it does not count.
    fn verdict(&self, outcome: Outcome) -> Option<bool> {
        match outcome {
            _ if self.is_settled => Some(self.is_bad),
            // Who leaves after a bad head has got its answer.
            Outcome::Cancelled => self.is_bad.then_some(true),
            Outcome::Refused if !self.is_unreached => None,
            Outcome::Refused | Outcome::Failed => Some(self.is_bad || self.plan.bad.timeouts),
            Outcome::Ok | Outcome::ServerError => Some(self.is_bad),
        }
    }
}

impl Pair {
    /// One answer is in. Returns both when it is the second.
    fn put(&self, arm: Arm, verdict: Verdict) -> Option<[Verdict; 2]> {
        let mut answers = self.answers.lock();
        let at = match arm {
            Arm::Stable => 0,
            Arm::Candidate => 1,
        };
        answers[at] = Some(verdict);
        match *answers {
            [Some(stable), Some(candidate)] => Some([stable, candidate]),
            _ => None,
        }
    }
}
