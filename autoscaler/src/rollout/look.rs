//! One look at a Rollout: gather, step, store, act.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crds::names::RELEASE_FINALIZER;
use crds::rollout::RolloutStatus;
use crds::{Revision, Rollout};
use dormouse_core::Time;
use dormouse_core::rollout::{Decision, EventKind, Status, step};
use tokio::time::Instant;

use super::claims::Obstacle;
use super::configs::Configs;
use super::conflicts::Shell;
use super::inquiry::Inquiry;
use super::plan::Asked;
use super::see::{Seen, Target};
use super::standing::Standings;
use super::{ACTIVE, RESTING, Rollouts, Said, facts, status};
use crate::cluster::{Error, Notice, Subject};
use crate::path::Activators;
use crate::state::{Division, RouteKey};

/// The reason of an Event about a spec, or about what keeps a Rollout from beginning.
const INVALID: &str = "InvalidRollout";
/// A status in which only counts and sentences have changed is written this often.
const COUNTS_APART: Duration = Duration::from_secs(2);
/// The load of a Service is the most that was seen for so long: capacity for a weight is there when load comes back.
const LOAD_OVER: Duration = Duration::from_secs(10);

/// What is remembered of a Rollout from look to look. All of it can be had again.
#[derive(Default)]
pub(super) struct Unit {
    /// The Service that it names.
    service: Option<RouteKey>,
    /// The Rollout as it was last written by us.
    written: Option<Arc<Rollout>>,
    written_at: Option<Instant>,
    /// A status whose write got no answer, and what is to be told if it was stored all the same.
    untold: Option<(RolloutStatus, Decision)>,
    /// The last spec that could be carried out.
    pub(super) asked: Option<Arc<Asked>>,
    /// The user's Deployment: its generation, itself, the revision of its template, and since when it is that one.
    pub(super) target: Option<Target>,
    /// Revisions that were made and may not be shown yet.
    pub(super) made: BTreeMap<String, Arc<Revision>>,
    loads: VecDeque<(Instant, u32)>,
    /// What was last published.
    pub(super) division: Option<Division>,
    /// What users were told last.
    told: String,
    /// The configuration that the template refers to.
    pub(super) configs: Configs,
    /// Whether the user's Deployment stays a template.
    pub(super) shell: Shell,
    /// What was written of the Revisions' statuses.
    pub(super) standings: Standings,
    /// A look has come to its end: what it published stands.
    pub(super) has_looked: bool,
    /// What others are asked.
    pub(super) inquiry: Inquiry,
}

impl Unit {
    /// The Rollout: as the cluster shows it, or as we wrote it when that is later.
    fn newest(&mut self, shown: Arc<Rollout>) -> Arc<Rollout> {
        let version = |rollout: &Rollout| {
            let text = rollout.metadata.resource_version.as_ref();
            text.and_then(|text| text.parse::<u64>().ok())
        };
        match &self.written {
            Some(written)
                if written.metadata.uid == shown.metadata.uid && version(written) > version(&shown) =>
            {
                Arc::clone(written)
            }
            _ => {
                self.written = None;
                shown
            }
        }
    }

    /// The most of the last seconds.
    pub(super) fn load(&mut self, now_in: u32, now: Instant) -> u32 {
        self.loads.push_back((now, now_in));
        while self
            .loads
            .front()
            .is_some_and(|(at, _)| now.duration_since(*at) > LOAD_OVER)
        {
            self.loads.pop_front();
        }
        self.loads.iter().map(|(_, load)| *load).max().unwrap_or(0)
    }

    pub(super) fn target(&self) -> Option<&Target> {
        self.target.as_ref()
    }
}

impl<A: Activators> Rollouts<A> {
    /// One look. Returns when to look again if nothing is heard before; `None`: it is gone.
    pub(super) async fn look(&self, key: &RouteKey, unit: &mut Unit) -> Option<Duration> {
        let Some(shown) = self.objects.rollout(key) else {
            self.outside.forget(key);
            if let Some(service) = unit.service.take() {
                self.let_go(unit, &service, None);
            }
            return None;
        };
        let rollout = unit.newest(shown);
        match self.try_look(key, unit, Arc::clone(&rollout)).await {
            Ok(again) => {
                unit.has_looked = true;
                Some(again)
            }
            // Somebody else has written it, or the index was behind: look again, at what there is then.
            Err(Error::Conflict(what, why)) => {
                tracing::debug!(rollout = %key, what, %why, "look again");
                unit.written = None;
                Some(ACTIVE)
            }
            Err(error) => {
                tracing::warn!(rollout = %key, %error, "look again");
                if error.refusal().is_some() {
                    self.warn(
                        unit,
                        &rollout,
                        "RequestRefused",
                        &format!("It goes no further: {error}."),
                    );
                }
                Some(RESTING)
            }
        }
    }

    async fn try_look(
        &self,
        key: &RouteKey,
        unit: &mut Unit,
        rollout: Arc<Rollout>,
    ) -> Result<Duration, Error> {
        let service = facts::service_of(&rollout);
        unit.service = Some(service.clone());
        let known = rollout.status.clone().unwrap_or_default();
        let going = rollout.metadata.deletion_timestamp.is_some();
        let annotated = self.asked_of(&service);
        let releasing = self.is_releasing(&rollout, annotated.as_ref());
        // Pools that are left go in order too, whatever this process knows of its Service yet.
        let begun = known.has_begun() || known.attempt.is_some() || (releasing && self.has_pools(key, unit));
        if let Some(obstacle) = self.obstacle(&rollout, &service, begun) {
            // What an earlier process has not ended.
            let unended = is_held(&rollout) || known != only_why(&known.why);
            if going || (releasing && unended) {
                return self.end(unit, &rollout, &service).await;
            }
            if unit.division.is_some() {
                self.let_go(unit, &service, rollout.metadata.uid.as_deref());
            }
            let (why, warns) = match obstacle {
                Obstacle::Stands(why) => (why, true),
                Obstacle::Passes(why) => (why, false),
            };
            self.complain(unit, &rollout, why, warns).await?;
            return Ok(RESTING);
        }
        let (seen, wrong) = match self.see(key, unit, &rollout, service, annotated).await? {
            (Some(seen), wrong) => (seen, wrong),
            (None, wrong) => {
                self.complain(unit, &rollout, wrong.unwrap_or_default(), true)
                    .await?;
                return Ok(RESTING);
            }
        };
        if let Some(wrong) = &wrong {
            self.warn(unit, &rollout, INVALID, wrong);
        }
        let is_stored = |(status, _): &mut (RolloutStatus, Decision)| rollout.status.as_ref() == Some(status);
        if let Some((_, decision)) = unit.untold.take_if(is_stored) {
            self.tell(&rollout, &seen, &decision);
        }
        if seen.releasing && !known.has_begun() && unit.division.is_none() && !self.has_pools(key, unit) {
            return self.end(unit, &rollout, &seen.service).await;
        }
        let before = status::read(&known);
        let now = status::kept(Time::from_epoch(self.clock.at(seen.now)));
        let mut seen_facts = self.gather(unit, &seen, &before);
        // Before anything is stored: while the API server is away, other activators remember what one of them found.
        let broken = before.active().filter(|_| !seen_facts.broken.is_empty());
        self.fleet
            .take_out(&seen.service, broken.map(|attempt| attempt.uid.as_str()));
        self.listen(unit, &seen, &before, now, &mut seen_facts);
        let mut decision = step(now, &seen.asked.plan, &before, &seen_facts);
        if self.index.service(&seen.service).is_none() {
            // Without a Service nobody is routed anywhere.
            seen_facts.route.says = wanted(&decision).unwrap_or(seen_facts.route.says);
            seen_facts.route.acked = true;
            decision = step(now, &seen.asked.plan, &before, &seen_facts);
        }
        let mut said = self.conflicts(unit, &seen, now, &before);
        said.extend(unit.configs.said(seen.asked.configs, &key.namespace));
        let rollout = self
            .store(unit, rollout, &seen, &before, &decision, &said)
            .await?;
        self.tell(&rollout, &seen, &decision);
        self.inquire(unit, &seen, &decision, now);
        self.publish(unit, &seen, &seen_facts, &decision);
        self.perform(unit, &seen, &seen_facts, &decision).await?;
        if decision.released {
            return self.end(unit, &rollout, &seen.service).await;
        }
        self.tidy(unit, &seen, &decision.status).await?;
        self.show_revisions(unit, &seen, &seen_facts, &decision.status)
            .await;
        let planned = decision.wake_at.map(|at| {
            let at = self.clock.instant(at.since_epoch());
            at.saturating_duration_since(Instant::now())
        });
        let usual = match decision.status.phase.active() || !decision.actions.is_empty() {
            true => ACTIVE,
            false => RESTING,
        };
        Ok(planned.map_or(usual, |planned| planned.min(usual)))
    }

    /// Stores what the step has come to, if that is worth it. Nothing is done before it is stored.
    async fn store(
        &self,
        unit: &mut Unit,
        rollout: Arc<Rollout>,
        seen: &Seen,
        before: &Status,
        decision: &Decision,
        said: &[Said],
    ) -> Result<Arc<Rollout>, Error> {
        let mut rollout = rollout;
        if !is_held(&rollout) && rollout.metadata.deletion_timestamp.is_none() {
            rollout = Arc::new(self.cluster.hold_rollout(&rollout, true).await?);
            unit.written = Some(Arc::clone(&rollout));
        }
        let old = rollout.status.clone().unwrap_or_default();
        let (generation, stamp) = (rollout.metadata.generation, self.clock.timestamp(seen.now));
        let mut new = status::write(&old, &seen.asked.plan, decision, generation, said, &stamp);
        self.show_outside(unit, seen, &mut new, generation, &stamp);
        let matters = shape(before) != shape(&decision.status)
            || old.observed_generation != new.observed_generation
            || status::failures(&old) != status::failures(&new);
        let due = unit
            .written_at
            .is_none_or(|at| seen.now.duration_since(at) >= COUNTS_APART);
        if old == new || !(matters || due) {
            return Ok(rollout);
        }
        let mut wanted = Rollout::clone(&rollout);
        wanted.status = Some(new);
        let written = self.cluster.write_rollout_status(&wanted).await;
        match &written {
            Err(error) if error.may_have_happened() => {
                unit.untold = wanted.status.map(|status| (status, decision.clone()));
            }
            Err(_) => {}
            // It would have been refused if an earlier one had been stored.
            Ok(_) => unit.untold = None,
        }
        let written = Arc::new(written?);
        unit.written = Some(Arc::clone(&written));
        unit.written_at = Some(seen.now);
        Ok(written)
    }

    fn tell(&self, rollout: &Rollout, seen: &Seen, decision: &Decision) {
        for event in &decision.events {
            self.announce(seen, &decision.status, event);
            tracing::info!(
                rollout = rollout.metadata.name,
                reason = reason(event.kind),
                "{}",
                event.text
            );
            self.cluster.event(Notice {
                subject: subject(rollout),
                warning: event.kind.warns(),
                reason: reason(event.kind),
                action: "Rollout",
                note: event.text.clone(),
            });
        }
    }

    /// Says in the status why nothing happens, once.
    async fn complain(
        &self,
        unit: &mut Unit,
        rollout: &Arc<Rollout>,
        why: String,
        warns: bool,
    ) -> Result<(), Error> {
        let old = rollout.status.clone().unwrap_or_default();
        if old.why == why || rollout.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        if warns {
            self.warn(unit, rollout, INVALID, &why);
        }
        let wanted = Rollout {
            status: Some(RolloutStatus { why, ..old }),
            ..rollout.as_ref().clone()
        };
        unit.written = Some(Arc::new(self.cluster.write_rollout_status(&wanted).await?));
        Ok(())
    }

    fn warn(&self, unit: &mut Unit, rollout: &Rollout, reason: &'static str, why: &str) {
        if unit.told == why {
            return;
        }
        why.clone_into(&mut unit.told);
        self.cluster.event(Notice {
            subject: subject(rollout),
            warning: true,
            reason,
            action: "Rollout",
            note: why.to_owned(),
        });
    }

    /// Everything has been given back: nothing of it is held any more.
    async fn end(
        &self,
        unit: &mut Unit,
        rollout: &Arc<Rollout>,
        service: &RouteKey,
    ) -> Result<Duration, Error> {
        self.let_go(unit, service, rollout.metadata.uid.as_deref());
        let mut rollout = Arc::clone(rollout);
        if is_held(&rollout) {
            // Not only when it is being deleted: we may be on our way out, and it must not wait for us then.
            let deleting = rollout.metadata.deletion_timestamp.is_some();
            rollout = Arc::new(self.cluster.hold_rollout(&rollout, false).await?);
            unit.written = Some(Arc::clone(&rollout)).filter(|_| !deleting);
        }
        if rollout.metadata.deletion_timestamp.is_some() {
            return Ok(RESTING);
        }
        // Opted in again, it begins anew.
        let fresh = only_why("The Service is not opted in: its Deployment has all traffic.");
        if rollout.status.as_ref() != Some(&fresh) {
            let wanted = Rollout {
                status: Some(fresh),
                ..rollout.as_ref().clone()
            };
            unit.written = Some(Arc::new(self.cluster.write_rollout_status(&wanted).await?));
        }
        Ok(RESTING)
    }

    /// The Service's traffic is no longer divided, unless it is another Rollout than the one with this uid that divides it.
    fn let_go(&self, unit: &mut Unit, service: &RouteKey, uid: Option<&str>) {
        let has_divided = unit.division.take().is_some();
        if !has_divided && self.objects.another_has(service, uid).is_some() {
            return;
        }
        self.fleet.take_out(service, None);
        self.claim(service, None);
        self.divisions.set(service, None);
        self.counts.forget(service);
    }

    /// Whether a Deployment of one of its revisions is there.
    fn has_pools(&self, key: &RouteKey, unit: &Unit) -> bool {
        let revisions = self.objects.revisions(key);
        let mut names = revisions.keys().chain(unit.made.keys());
        names.any(|name| self.revision_pool(&key.namespace, name).is_some())
    }
}

/// The status of one that has not begun.
pub(super) fn only_why(why: &str) -> RolloutStatus {
    RolloutStatus {
        why: why.to_owned(),
        ..RolloutStatus::default()
    }
}

/// Whether it cannot be gone before everything is given back.
pub(super) fn is_held(rollout: &Rollout) -> bool {
    let mut all = rollout.metadata.finalizers.iter().flatten();
    all.any(|each| each == RELEASE_FINALIZER)
}

/// What a step wants of the Route, if that is not what it says.
pub(super) fn wanted(decision: &Decision) -> Option<dormouse_core::rollout::RouteWanted> {
    decision.actions.iter().find_map(|action| match action {
        dormouse_core::rollout::Action::WriteRoute(wanted) => Some(wanted.clone()),
        _ => None,
    })
}

/// A status without what only grows: counts can be had again from the activators.
fn shape(status: &Status) -> Status {
    let mut shape = status.clone();
    if let Some(attempt) = &mut shape.attempt {
        attempt.counters = dormouse_core::evidence::Counters::default();
        attempt.ruled_out = 0;
    }
    shape
}

pub(super) fn subject(rollout: &Rollout) -> Subject {
    Subject {
        kind: "Rollout",
        namespace: rollout.metadata.namespace.clone().unwrap_or_default(),
        name: rollout.metadata.name.clone().unwrap_or_default(),
        uid: rollout.metadata.uid.clone().unwrap_or_default(),
    }
}

/// What Kubernetes shows as an Event's reason.
pub(super) fn reason(kind: EventKind) -> &'static str {
    match kind {
        EventKind::Initialized => "Initialized",
        EventKind::Moving => "Moving",
        EventKind::NewRevision => "NewRevision",
        EventKind::CandidateReady => "CandidateReady",
        EventKind::Mirroring => "Mirroring",
        EventKind::WeightAdvanced => "WeightAdvanced",
        EventKind::CheckFailed => "CheckFailed",
        EventKind::Paused => "Paused",
        EventKind::Waiting => "Waiting",
        EventKind::Resumed => "Resumed",
        EventKind::InsufficientTraffic => "InsufficientTraffic",
        EventKind::Promoting => "Promoting",
        EventKind::Baking => "Baking",
        EventKind::Promoted => "Promoted",
        EventKind::RollingBack => "RollingBack",
        EventKind::RolledBack => "RolledBack",
        EventKind::CommandObeyed => "CommandObeyed",
        EventKind::CommandIgnored => "CommandIgnored",
        EventKind::Quarantined => "Quarantined",
        EventKind::Released => "Released",
    }
}
