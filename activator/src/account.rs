//! One request's entry in the books. Dropping it closes the entry, wherever the request stands.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, StatusCode};

use crate::hub::Hub;
use crate::meter::{Meter, Outcome, Tally};
use crate::pool::{Pool, Slot};
use crate::reject::Reject;
use crate::rollout::Ticket;

/// What a request counts as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Counts {
    /// Use: everything is counted.
    Use,
    /// Sent by a peer activator, which counts its arrival and its end; here only where it stands is counted.
    Hop,
    /// Who looks at a waiting page: it waits and is used, but no request of it arrives or ends. Nobody's answer is lost
    /// with it, so a drain does not wait for it.
    Page,
    /// A copy of a client's request: counted as use, but nobody waits for it, and neither does a drain.
    Copy,
    /// A request of our own to a candidate: the candidate is judged by it, and it is no use. Nobody waits for it.
    Synthetic,
    /// Nothing.
    Noise,
}

impl Counts {
    /// Whether it shows in the meters that decide how many pods there are.
    fn is_metered(self) -> bool {
        !matches!(self, Self::Synthetic | Self::Noise)
    }

    /// Whether a drain waits for it.
    fn is_awaited(self) -> bool {
        !matches!(self, Self::Page | Self::Copy | Self::Synthetic)
    }
}

/// Where the request stands.
#[derive(Debug)]
enum Stage {
    Here,
    Held,
    /// At a pod, since that uptime.
    InFlight(Duration),
    /// At a peer activator, where it is counted.
    Away,
}

/// The entry of one request.
#[derive(Debug)]
pub(crate) struct Use {
    hub: Arc<Hub>,
    pool: Arc<Pool>,
    worker: usize,
    counts: Counts,
    stage: Stage,
    outcome: Outcome,
    /// Whether it was sent, answered or not.
    was_sent: bool,
    /// From its dispatch to its answer's head.
    answered_after: Option<Duration>,
    slot: Option<Slot>,
    /// What it counts as for a candidate.
    ticket: Option<Box<Ticket>>,
}

impl Use {
    /// A request arrives.
    pub(crate) fn begin(
        hub: &Arc<Hub>,
        pool: &Arc<Pool>,
        worker: usize,
        counts: Counts,
        now: Duration,
    ) -> Self {
        if counts.is_awaited() {
            hub.active.fetch_add(1, Ordering::AcqRel);
        }
        let usage = Self {
            hub: Arc::clone(hub),
            pool: Arc::clone(pool),
            worker,
            counts,
            stage: Stage::Here,
            outcome: Outcome::Cancelled,
            was_sent: false,
            answered_after: None,
            slot: None,
            ticket: None,
        };
        match counts {
            Counts::Use | Counts::Copy => usage.meter(|meter| meter.arrive(now)),
            Counts::Page => usage.meter(|meter| meter.used(now)),
            Counts::Hop | Counts::Synthetic | Counts::Noise => {}
        }
        usage
    }

    fn meter(&self, change: impl FnOnce(&mut Meter)) {
        self.tally(|tally| change(&mut tally.meter));
    }

    fn tally(&self, change: impl FnOnce(&mut Tally)) {
        if self.counts.is_metered() {
            change(&mut self.pool.tallies[self.worker].lock());
        }
    }

    /// It waits. `urgent`: it is the one that wakes the pool, and the line must go out at once.
    pub(crate) fn held(&mut self, now: Duration, urgent: bool) {
        self.stage = Stage::Held;
        self.meter(|meter| meter.hold(now));
        self.pool.touch(urgent);
    }

    /// It waits no more.
    pub(crate) fn here(&mut self, now: Duration) {
        match std::mem::replace(&mut self.stage, Stage::Here) {
            Stage::Held => self.meter(|meter| meter.unhold(now)),
            Stage::InFlight(since) => {
                let answered = self.answered_after.take();
                self.tally(|tally| {
                    tally.meter.leave(now, now.saturating_sub(since));
                    if let Some(time) = answered {
                        tally.times.note(time);
                    }
                });
            }
            Stage::Here | Stage::Away => {}
        }
    }

    /// It is sent.
    pub(crate) fn sent(&mut self, slot: Slot, now: Duration) {
        self.here(now);
        self.was_sent = true;
        self.stage = if slot.endpoint.is_peer() {
            Stage::Away
        } else {
            self.meter(|meter| meter.dispatch(now));
            Stage::InFlight(now)
        };
        self.slot = Some(slot);
        if self.counts.is_metered() {
            self.pool.touch(false);
        }
    }

    /// It comes back unanswered, and gives its place back.
    pub(crate) fn back(&mut self, now: Duration) {
        self.here(now);
        self.slot = None;
    }

    /// It is counted for a candidate, too. What is no use is not.
    pub(crate) fn enrol(&mut self, ticket: Option<Box<Ticket>>) {
        let counts = [Counts::Use, Counts::Copy, Counts::Synthetic];
        self.ticket = ticket.filter(|_| counts.contains(&self.counts));
    }

    /// An answer begins. It was sent to who answers at `sent`. Returns a field that the answer must carry.
    pub(crate) fn head(
        &mut self,
        status: StatusCode,
        headers: &HeaderMap,
        sent: Duration,
    ) -> Option<HeaderValue> {
        let time = self.hub.now().saturating_sub(sent);
        self.answered_after = Some(time);
        let ticket = self.ticket.as_mut()?;
        // Whether a peer's pod is warm is not known here.
        let endpoint = self.slot.as_ref().map(|slot| &slot.endpoint);
        let is_warm =
            endpoint.is_some_and(|endpoint| !endpoint.is_peer() && endpoint.is_warm(sent, ticket.warmup()));
        ticket.head(status, headers, is_warm.then_some(time));
        ticket.cookie()
    }

    /// The answer's trailers.
    pub(crate) fn trailers(&mut self, trailers: &HeaderMap) {
        if let Some(ticket) = &mut self.ticket {
            ticket.trailers(trailers);
        }
    }

    /// It has become a stream of bytes: however that ends, the pod did what it was asked for.
    pub(crate) fn settle(&mut self) {
        if let Some(ticket) = &mut self.ticket {
            ticket.settle();
        }
    }

    /// It is broken off in the middle, for a limit of the Route.
    pub(crate) fn aborted(&self, limit: &'static str) {
        self.hub.metrics.aborts.with_label_values(&[limit]).inc();
    }

    /// What no client waits for took too long. A copy has failed only when the request itself was answered meanwhile: half a
    /// pair says nothing. One of our own has failed only when a pod was tried: a line says nothing of the pods.
    pub(crate) fn give_up(self) {
        let has_failed = match self.counts {
            Counts::Synthetic => self.was_sent,
            _ => self.ticket.as_ref().is_some_and(|ticket| ticket.is_overtaken()),
        };
        self.finish(if has_failed {
            Outcome::Failed
        } else {
            Outcome::Cancelled
        });
    }

    /// It is refused.
    pub(crate) fn refuse(mut self, reject: &Reject) {
        // Pods that never come up are as bad as pods that never answer.
        if let (Some(ticket), Reject::ColdStartTimeout { .. }) = (&mut self.ticket, reject) {
            ticket.unreached();
        }
        self.finish(reject.outcome());
    }

    /// It has ended.
    pub(crate) fn finish(mut self, outcome: Outcome) {
        self.outcome = outcome;
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        let now = self.hub.now();
        self.here(now);
        if let Some(ticket) = self.ticket.take()
            && let Some((attempt, news)) = ticket.end(self.outcome)
        {
            self.hub.counted(&attempt, &news);
        }
        match self.counts {
            Counts::Use | Counts::Copy => self.meter(|meter| meter.end(now, self.outcome)),
            Counts::Page => self.meter(|meter| meter.used(now)),
            Counts::Hop | Counts::Synthetic | Counts::Noise => {}
        }
        if self.counts.is_metered() {
            self.pool.touch(false);
        }
        if self.counts.is_awaited() {
            self.hub.active.fetch_sub(1, Ordering::AcqRel);
        }
    }
}
