//! Who leads: one Lease, held by at most one autoscaler.
//!
//! Transitions: `Standby => Leader` when the Lease is free, released, or has not changed for its duration as measured by
//! our own clock from when we saw the last change (clocks of two machines are never compared); `Leader => Standby` when
//! somebody else holds it, or when no renewal has succeeded for four fifths of the duration, so that we stop before
//! anybody may start. Writers ask the clock too ([`Term`]). Every write carries the resourceVersion it was decided on. At exit
//! the Lease is released, and the other autoscaler takes it at its next look.
//!
//! The Lease also carries `dormouse uninstall`'s request to give every Service back.

use std::sync::Arc;
use std::time::Duration;

use crds::names::{AUTOSCALER_MANAGER, LEASE, RELEASE_ALL_ANNOTATION};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{Api, ObjectMeta, PostParams};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

/// Shortest time given to one request.
const SHORTEST_REQUEST: Duration = Duration::from_millis(100);

/// Whether this process leads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Leadership {
    /// Whether it leads.
    pub(crate) leader: bool,
    /// The Lease's transitions × 2³²: where this leader's membership epochs start.
    pub(crate) epoch_base: u64,
}

/// Until when this process may write. It ends by the clock: a process that was stopped for a while, or whose tasks wait for a
/// processor, is told by nobody that its time is over.
#[derive(Clone, Debug, Default)]
pub(crate) struct Term(Arc<Mutex<Option<Instant>>>);

impl Term {
    /// Whether it may still write.
    pub(crate) fn lasts(&self) -> bool {
        self.left().is_some_and(|left| !left.is_zero())
    }

    /// How long it may still write: nothing while it does not lead, and zero when a renewal is overdue.
    fn left(&self) -> Option<Duration> {
        let end = *self.0.lock();
        Some(end?.saturating_duration_since(Instant::now()))
    }

    /// One that does not end.
    #[cfg(test)]
    pub(crate) fn endless() -> Self {
        let term = Self::default();
        term.set(Some(Instant::now() + Duration::from_secs(86_400 * 365)));
        term
    }

    fn set(&self, end: Option<Instant>) {
        *self.0.lock() = end;
    }
}

/// Takes, renews and releases the Lease.
pub(crate) struct Elector {
    api: Api<Lease>,
    /// Unique to this process: a name, as a restarted process has it again, is not enough.
    identity: String,
    duration: Duration,
    leading: watch::Sender<Leadership>,
    term: Term,
    release_all: watch::Sender<bool>,
    /// The Lease as last seen, and since when it has looked like that.
    seen: Option<(Lease, Instant)>,
    /// Highest transitions ever seen: a Lease deleted and made anew must not count from the beginning.
    transitions: i32,
}

impl Elector {
    /// A standby with a name of its own.
    pub(crate) fn new(client: kube::Client, namespace: &str, name: &str, duration: Duration) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            identity: format!("{name}_{:08x}", fastrand::u32(..)),
            duration,
            leading: watch::Sender::new(Leadership::default()),
            term: Term::default(),
            release_all: watch::Sender::new(false),
            seen: None,
            transitions: -1,
        }
    }

    /// Whether this process leads.
    pub(crate) fn leading(&self) -> watch::Receiver<Leadership> {
        self.leading.subscribe()
    }

    /// Until when this process may write.
    pub(crate) fn term(&self) -> Term {
        self.term.clone()
    }

    /// Whether every Service is asked to be given back.
    pub(crate) fn release_all(&self) -> watch::Receiver<bool> {
        self.release_all.subscribe()
    }

    /// Holds or waits for the Lease until `stop`, then releases it.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let period = self.duration / 5;
        loop {
            let round = self.round();
            let (result, patience) = tokio::select! {
                () = stop.cancelled() => break,
                done = round => done,
            };
            if let Err(error) = result {
                tracing::warn!(%error, leading = self.leads(), "lease");
            }
            self.give_up_if_late();
            tokio::select! {
                () = stop.cancelled() => break,
                // A standby looks twice as often, to take over a released Lease at once.
                () = tokio::time::sleep(if self.leads() { period } else { period / 2 }.min(patience)) => {}
            }
        }
        self.release().await;
    }

    /// One look at the Lease, and one write when there is something to write. Also returns how long may pass at most
    /// until the next look.
    async fn round(&mut self) -> (Result<(), Error>, Duration) {
        let limit = self
            .term
            .left()
            .unwrap_or(self.duration)
            .min(self.duration * 2 / 5)
            .max(SHORTEST_REQUEST);
        let result = match timeout(limit, self.attempt()).await {
            Ok(result) => result,
            Err(_) => Err(Error::Timeout(limit)),
        };
        // After a failure, soon again: a leader has only a few tries.
        let patience = if result.is_err() {
            self.duration / 20
        } else {
            self.duration
        };
        (result, patience)
    }

    async fn attempt(&mut self) -> Result<(), Error> {
        let started = Instant::now();
        if !self.leads() || self.seen.is_none() {
            match self.api.get_opt(LEASE).await.map_err(Error::Read)? {
                None => return self.create(started).await,
                Some(lease) => self.look(lease),
            }
        }
        let Some((lease, since)) = self.seen.clone() else {
            return Ok(());
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        let ours = holder == self.identity;
        // A longer duration than ours, written by the holder, is honoured.
        let written =
            Duration::from_secs(u64::try_from(spec.lease_duration_seconds.unwrap_or(0)).unwrap_or(0));
        let expired = since.elapsed() >= self.duration.max(written);
        if !ours && !holder.is_empty() && !expired {
            self.follow();
            return Ok(());
        }
        self.write(lease, ours, started).await
    }

    /// Renews or takes the Lease as we saw it.
    async fn write(&mut self, mut lease: Lease, ours: bool, started: Instant) -> Result<(), Error> {
        let old = lease.spec.take().unwrap_or_default();
        // Who has stopped leading begins a new term, also under its own name: activators obey no epoch below the highest
        // that they know, and the epochs of a term count from its beginning.
        let renews = ours && self.leads();
        let transitions = if renews {
            old.lease_transitions.unwrap_or(0)
        } else {
            old.lease_transitions
                .unwrap_or(0)
                .max(self.transitions)
                .saturating_add(1)
        };
        let acquired = if renews { old.acquire_time } else { None };
        lease.spec = Some(self.spec(transitions, acquired));
        lease.metadata.managed_fields = None;
        match self.api.replace(LEASE, &params(), &lease).await {
            Ok(lease) => {
                self.look(lease);
                self.lead(transitions, started);
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.code == 409 || status.code == 404 => {
                // Somebody else wrote: perhaps only an annotation, perhaps its name. Look again at once.
                match self.api.get_opt(LEASE).await.map_err(Error::Read)? {
                    Some(lease) => self.look(lease),
                    None => self.seen = None,
                }
                if ours && self.holds() {
                    return Err(Error::Conflict);
                }
                self.follow_unless_held();
                Ok(())
            }
            Err(error) => Err(Error::Write(error)),
        }
    }

    async fn create(&mut self, started: Instant) -> Result<(), Error> {
        let transitions = self.transitions.saturating_add(1);
        let lease = Lease {
            metadata: ObjectMeta {
                name: Some(LEASE.to_owned()),
                ..ObjectMeta::default()
            },
            spec: Some(self.spec(transitions, None)),
        };
        match self.api.create(&params(), &lease).await {
            Ok(lease) => {
                self.look(lease);
                self.lead(transitions, started);
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            Err(error) => Err(Error::Write(error)),
        }
    }

    fn spec(&self, transitions: i32, acquired: Option<MicroTime>) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            // Rounded up: the field has whole seconds, and a reader must never think it shorter than it is.
            lease_duration_seconds: Some(
                i32::try_from(self.duration.as_millis().div_ceil(1000)).unwrap_or(i32::MAX),
            ),
            acquire_time: Some(acquired.unwrap_or_else(|| now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        }
    }

    /// Takes in what the API showed.
    fn look(&mut self, lease: Lease) {
        let asked = lease
            .metadata
            .annotations
            .as_ref()
            .and_then(|all| all.get(RELEASE_ALL_ANNOTATION));
        let asked = asked.is_some_and(|value| value == "true");
        self.release_all
            .send_if_modified(|now| std::mem::replace(now, asked) != asked);
        let transitions = lease
            .spec
            .as_ref()
            .and_then(|spec| spec.lease_transitions)
            .unwrap_or(0);
        self.transitions = self.transitions.max(transitions);
        // Only a renewal counts as a sign of life, not somebody's annotation.
        let life = |lease: &Lease| {
            let spec = lease.spec.clone().unwrap_or_default();
            (lease.metadata.uid.clone(), spec.holder_identity, spec.renew_time)
        };
        let since = match &self.seen {
            Some((old, since)) if life(old) == life(&lease) => *since,
            _ => Instant::now(),
        };
        self.seen = Some((lease, since));
    }

    /// Whether the Lease as last seen names us.
    fn holds(&self) -> bool {
        let holder = self
            .seen
            .as_ref()
            .and_then(|(lease, _)| lease.spec.as_ref()?.holder_identity.as_deref());
        holder == Some(self.identity.as_str())
    }

    fn lead(&mut self, transitions: i32, started: Instant) {
        // From when the request was sent, and a fifth early: nobody else may start before we have stopped.
        self.term.set(Some(started + self.duration * 4 / 5));
        let epoch_base = u64::try_from(transitions).unwrap_or(0) << 32;
        let now = Leadership {
            leader: true,
            epoch_base,
        };
        if self
            .leading
            .send_if_modified(|old| std::mem::replace(old, now) != now)
        {
            tracing::info!(identity = self.identity, transitions, "leading");
        }
    }

    fn follow(&mut self) {
        self.term.set(None);
        if self.leading.send_if_modified(|old| std::mem::take(old).leader) {
            tracing::warn!(identity = self.identity, "no longer leading");
        }
    }

    fn follow_unless_held(&mut self) {
        if !self.holds() {
            self.follow();
        }
    }

    /// Whether it has a term, over or not.
    fn leads(&self) -> bool {
        self.term.left().is_some()
    }

    fn give_up_if_late(&mut self) {
        if self.term.left() == Some(Duration::ZERO) {
            self.follow();
        }
    }

    /// Lets the other autoscaler take over at once. Bounded by a fifth of the duration: after that it would expire soon anyway.
    async fn release(mut self) {
        if !self.leading.borrow().leader {
            return;
        }
        self.leading.send_replace(Leadership::default());
        self.term.set(None);
        let Some((mut lease, _)) = self.seen.take() else {
            return;
        };
        let transitions = lease.spec.as_ref().and_then(|spec| spec.lease_transitions);
        lease.spec = Some(LeaseSpec {
            // Absent, as client-go does it: the API server refuses an empty one.
            holder_identity: None,
            renew_time: Some(MicroTime(Timestamp::now())),
            lease_transitions: transitions,
            ..lease.spec.take().unwrap_or_default()
        });
        lease.metadata.managed_fields = None;
        match timeout(self.duration / 5, self.api.replace(LEASE, &params(), &lease)).await {
            Ok(Ok(_)) => tracing::info!(identity = self.identity, "lease released"),
            Ok(Err(error)) => tracing::warn!(%error, "lease not released"),
            Err(_) => tracing::warn!("lease not released in time"),
        }
    }
}

fn params() -> PostParams {
    PostParams {
        dry_run: false,
        field_manager: Some(AUTOSCALER_MANAGER.to_owned()),
    }
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("reading the Lease: {0}")]
    Read(#[source] kube::Error),
    #[error("writing the Lease: {0}")]
    Write(#[source] kube::Error),
    #[error("the Lease changed while it was renewed")]
    Conflict,
    #[error("no answer for the Lease within {} ms", .0.as_millis())]
    Timeout(Duration),
}

#[cfg(test)]
mod tests;
