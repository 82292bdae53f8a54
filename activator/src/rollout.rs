//! A candidate beside a stable pool: which of the two a request goes to, and what is counted of it.
//!
//! A request is *assigned* once, when it arrives: by a match (always the candidate), by the cookie of a session, or by a
//! coin with the pools' weights. The assignment fixes pool and epoch for all of its tries. What it comes to is counted
//! when it ends, in the [`Attempt`], which outlives the Routes that name it: late ends count where they were assigned.
//!
//! In reading order: `matching`, `session` (cookies), `ticket` (one request's part in the counting), `attempt` (the
//! counts), `breaker` (what a candidate is taken out for without the autoscaler).

mod attempt;
mod breaker;
mod matching;
mod session;
mod ticket;

use std::sync::Arc;
use std::time::Duration;

use crds::route::{BadAnswers, RouteRollout};
use http::{HeaderMap, Method, StatusCode};

use crate::balance;
use crate::pool::Pool;
use crate::route::Choice;
use crate::synthetic::Synthetic;

pub(crate) use attempt::{Attempt, News};
pub(crate) use ticket::Ticket;

use breaker::Breaker;
use matching::Matches;
use session::{Affinity, Session};
use ticket::Role;

/// Which pool's requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arm {
    /// The stable pool's.
    Stable,
    /// The candidate's.
    Candidate,
}

/// What a Route says of its candidate, ready for use. Immutable; a changed Route brings another.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Places of the two among the Route's pools.
    stable: usize,
    candidate: usize,
    /// Their names, in this order.
    names: [String; 2],
    /// Where it is counted; `None`: nowhere.
    attempt: Option<Arc<Attempt>>,
    epoch: u32,
    /// The candidate's share of what goes to one of the two, `0..=1`.
    share: f64,
    bad: BadAnswers,
    warmup: Warmup,
    matches: Matches,
    affinity: Option<Affinity>,
    breaker: Option<Breaker>,
    /// Each request that is counted goes to both.
    mirror: Option<Mirror>,
    /// Requests of our own to the candidate.
    synthetic: Option<Synthetic>,
}

/// Which requests are copied.
#[derive(Debug)]
struct Mirror {
    percent: u32,
    /// Upper case; none: all that are safe.
    methods: Vec<String>,
}

/// Until when a pod's times are not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Warmup {
    /// The first so many requests of a pod.
    pub(crate) requests: u32,
    /// For so long after it was first seen answering.
    pub(crate) period: Duration,
}

impl Plan {
    /// Reads it from a Route with these pools. `attempt` is where it is counted. What else cannot be followed is left out,
    /// with a sentence in `wrong`: a candidate that was taken out must stay out, whatever else is said of it.
    ///
    /// # Errors
    /// A sentence, when there are no two pools to choose from; then the weights alone decide.
    pub(crate) fn of(
        rollout: &RouteRollout,
        pools: &[(u32, Arc<Pool>)],
        attempt: Option<Arc<Attempt>>,
        wrong: &mut Vec<String>,
    ) -> Result<Self, String> {
        let place = |name: &str| {
            let found = pools.iter().position(|(_, pool)| pool.key.pool == name);
            found.ok_or_else(|| format!("rollout names the pool \"{name}\", which is not among spec.pools"))
        };
        let (stable, candidate) = (place(&rollout.stable)?, place(&rollout.candidate)?);
        if stable == candidate {
            return Err(format!(
                "rollout names \"{}\" as the stable pool and as the candidate",
                rollout.stable
            ));
        }
        let (ours, theirs) = (pools[candidate].0, pools[stable].0);
        let share = f64::from(ours) / (f64::from(ours) + f64::from(theirs)).max(1.0);
        if let Some(attempt) = &attempt {
            attempt.begin(rollout.epoch, share);
        }
        let asked = rollout.affinity.as_ref().zip(attempt.as_ref());
        let affinity = asked.map(|(affinity, attempt)| Affinity::of(affinity, &attempt.uid));
        let affinity = affinity.and_then(|read| read.map_err(|why| wrong.push(why)).ok());
        let synthetic = rollout.synthetic.as_ref().filter(|_| attempt.is_some());
        let synthetic = synthetic.map(Synthetic::of);
        let synthetic = synthetic.and_then(|read| read.map_err(|why| wrong.push(why)).ok());
        let matches = Matches::of(&rollout.matches).map_err(|why| wrong.push(why));
        Ok(Self {
            stable,
            candidate,
            names: [rollout.stable.clone(), rollout.candidate.clone()],
            attempt,
            epoch: rollout.epoch,
            share,
            bad: rollout.bad.clone(),
            warmup: Warmup {
                requests: rollout.warmup_requests,
                period: Duration::from_millis(rollout.warmup_ms),
            },
            matches: matches.unwrap_or_default(),
            affinity,
            breaker: rollout.breaker.as_ref().map(Breaker::of),
            mirror: rollout.mirror.as_ref().map(|mirror| Mirror {
                percent: mirror.percent,
                methods: mirror
                    .methods
                    .iter()
                    .map(|method| method.to_ascii_uppercase())
                    .collect(),
            }),
            synthetic,
        })
    }

    /// Assigns a request. `headers` are its fields; a connection of bytes has none.
    pub(crate) fn choose<'a>(
        self: &Arc<Self>,
        pools: &'a [(u32, Arc<Pool>)],
        headers: Option<&HeaderMap>,
        random: &mut impl FnMut(u32) -> u32,
    ) -> Option<Choice<'a>> {
        if headers.is_some_and(|headers| self.matches.has(headers)) {
            return Some(Choice {
                pool: &pools[self.candidate].1,
                ticket: self.ticket(self.epoch, Role::Direct),
            });
        }
        let is_broken = self.is_broken();
        if let Some((at, session)) = headers.and_then(|headers| self.session(pools, headers, is_broken)) {
            let epoch = session.epoch;
            let role = Role::Session(self.arm(at)?, session);
            return Some(Choice {
                pool: &pools[at].1,
                ticket: self.ticket(epoch, role),
            });
        }
        let point = random(crds::route::FULL_WEIGHT);
        let mut at = balance::by_weight(pools.iter().map(|(weight, _)| *weight), point)?;
        if at == self.candidate && is_broken {
            at = self.stable;
        }
        // The coin is another one than the epoch's while the breaker holds; of a mirrored epoch, pairs are counted.
        let role = self
            .arm(at)
            .filter(|_| !is_broken && self.mirror.is_none())
            .map(|arm| match &self.affinity {
                Some(_) if headers.is_some() => Role::Session(arm, Session::new(self.epoch)),
                _ => Role::Coin(arm),
            });
        Some(Choice {
            pool: &pools[at].1,
            ticket: role.and_then(|role| self.ticket(self.epoch, role)),
        })
    }

    /// Where the session of a request goes on, if it has one that can.
    fn session(
        &self,
        pools: &[(u32, Arc<Pool>)],
        headers: &HeaderMap,
        is_broken: bool,
    ) -> Option<(usize, Session)> {
        if self.mirror.is_some() {
            return None;
        }
        let (session, pool) = self.affinity.as_ref()?.read(headers)?;
        let is = |at: usize| pools[at].1.key.pool == pool;
        // A client of the candidate's keeps it; the stable pool's are assigned anew in each epoch.
        let at = if is(self.candidate) && session.epoch <= self.epoch && !is_broken {
            self.candidate
        } else if is(self.stable) && session.epoch == self.epoch {
            self.stable
        } else {
            return None;
        };
        (pools[at].0 > 0).then_some((at, session))
    }

    /// The candidate's pool, if it gets a copy of a request of that method that goes to `pool`: of the stable pool's a
    /// share, and only what has no effect (RFC 9110 §9.2.1).
    pub(crate) fn mirror<'a>(
        &self,
        pools: &'a [(u32, Arc<Pool>)],
        pool: &Arc<Pool>,
        method: &Method,
        random: &mut impl FnMut(u32) -> u32,
    ) -> Option<&'a Arc<Pool>> {
        let mirror = self.mirror.as_ref()?;
        let is_safe = matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS);
        let is_listed =
            mirror.methods.is_empty() || mirror.methods.iter().any(|listed| listed == method.as_str());
        let is_stable = Arc::ptr_eq(&pools[self.stable].1, pool);
        let wanted = is_safe && is_listed && is_stable && !self.is_broken() && random(100) < mirror.percent;
        wanted.then_some(&pools[self.candidate].1)
    }

    /// How a request that goes to both is counted, at the stable pool and at the candidate.
    pub(crate) fn pair(self: &Arc<Self>) -> Option<[Box<Ticket>; 2]> {
        let pair = Arc::default();
        let half = |arm| self.ticket(self.epoch, Role::Half(arm, Arc::clone(&pair)));
        Some([half(Arm::Stable)?, half(Arm::Candidate)?])
    }

    /// The requests of our own that the Route wants; none once the candidate is out.
    pub(crate) fn synthetic(&self) -> Option<&Synthetic> {
        self.synthetic.as_ref().filter(|_| !self.is_broken())
    }

    /// The candidate's pool, for a request of our own, and how that is counted: as one that was sent there.
    pub(crate) fn direct<'a>(
        self: &Arc<Self>,
        pools: &'a [(u32, Arc<Pool>)],
    ) -> Option<(&'a Arc<Pool>, Box<Ticket>)> {
        let ticket = self.ticket(self.epoch, Role::Direct)?;
        Some((&pools[self.candidate].1, ticket))
    }

    /// The name of the candidate's pool.
    pub(crate) fn candidate(&self) -> &str {
        &self.names[1]
    }

    fn is_broken(&self) -> bool {
        self.attempt.as_ref().is_some_and(|attempt| attempt.is_broken())
    }

    fn arm(&self, at: usize) -> Option<Arm> {
        if at == self.candidate {
            Some(Arm::Candidate)
        } else {
            (at == self.stable).then_some(Arm::Stable)
        }
    }

    fn ticket(self: &Arc<Self>, epoch: u32, role: Role) -> Option<Box<Ticket>> {
        let attempt = Arc::clone(self.attempt.as_ref()?);
        Some(Box::new(Ticket::new(Arc::clone(self), attempt, epoch, role)))
    }
}

/// Whether a status is among the bad ones.
fn is_bad_status(bad: &BadAnswers, status: StatusCode) -> bool {
    let code = status.as_u16();
    bad.codes
        .iter()
        .any(|range| (range.first..=range.last).contains(&code))
}

/// Whether a head or trailers carry a gRPC status that is among the bad ones. One that is no number is as bad as UNKNOWN,
/// which is what clients make of it.
fn is_bad_grpc(bad: &BadAnswers, fields: &HeaderMap) -> bool {
    const UNKNOWN: u32 = 2;
    if bad.grpc.is_empty() {
        return false;
    }
    fields.get("grpc-status").is_some_and(|status| {
        let code = status.to_str().ok().and_then(|status| status.trim().parse().ok());
        bad.grpc.contains(&code.unwrap_or(UNKNOWN))
    })
}

#[cfg(test)]
mod tests;
