//! One look at a Rollout: gather, step, store, act.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crds::condition::{CAPTURED, is_true};
use crds::names::RELEASE_FINALIZER;
use crds::rollout::RolloutStatus;
use crds::{Revision, Rollout, RolloutSpec, Settings};
use dormouse_core::Time;
use dormouse_core::rollout::{Decision, EventKind, Status, step};
use serde_json::Value;
use tokio::time::Instant;

use super::plan::{self, Asked};
use super::revision::{self, Cut};
use super::{ACTIVE, RESTING, Rollouts, facts, objects, status};
use crate::cluster::{Error, Notice, Subject};
use crate::path::Activators;
use crate::state::{Division, RouteKey};
use crate::watch::slim::WorkloadFacts;
use crds::Route;

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
    /// The last spec that could be carried out.
    asked: Option<Arc<Asked>>,
    /// The user's Deployment: its generation, itself, the revision of its template, and since when it is that one.
    target: Option<Target>,
    /// Revisions that were made and may not be shown yet.
    pub(super) made: BTreeMap<String, Arc<Revision>>,
    loads: VecDeque<(Instant, u32)>,
    /// What was last published.
    pub(super) division: Option<Division>,
    /// What users were told last.
    told: String,
}

/// The user's Deployment.
pub(super) struct Target {
    generation: i64,
    pub(super) object: Value,
    pub(super) cut: Cut,
    since: Instant,
    /// It was the first that this process saw: it may have rested for long.
    first: bool,
}

/// Everything that one look sees.
pub(super) struct Seen {
    pub(super) now: Instant,
    pub(super) rollout: Arc<Rollout>,
    pub(super) asked: Arc<Asked>,
    pub(super) service: RouteKey,
    pub(super) settings: Settings,
    pub(super) target_name: String,
    pub(super) target: Option<Arc<WorkloadFacts>>,
    pub(super) revisions: BTreeMap<String, Arc<Revision>>,
    pub(super) latest: Option<String>,
    pub(super) route: Option<Arc<Route>>,
    pub(super) releasing: bool,
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
            if let Some(service) = &unit.service {
                self.let_go(service);
            }
            return None;
        };
        let rollout = unit.newest(shown);
        match self.try_look(key, unit, rollout).await {
            Ok(again) => Some(again),
            // Somebody else has written it, or the index was behind: look again, at what there is then.
            Err(Error::Conflict(what, why)) => {
                tracing::debug!(rollout = %key, what, %why, "look again");
                unit.written = None;
                Some(ACTIVE)
            }
            Err(error) => {
                tracing::warn!(rollout = %key, %error, "look again");
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
        let begun = known.adopted || known.attempt.is_some();
        if let Some(why) = self.obstacle(&rollout, &service, begun) {
            if going {
                return self.end(unit, &rollout, &service).await;
            }
            if unit.division.take().is_some() {
                self.let_go(&service);
            }
            self.complain(unit, &rollout, why).await?;
            return Ok(RESTING);
        }
        let (seen, wrong) = match self.see(key, unit, &rollout, service).await? {
            (Some(seen), wrong) => (seen, wrong),
            (None, wrong) => {
                self.complain(unit, &rollout, wrong.unwrap_or_default()).await?;
                return Ok(RESTING);
            }
        };
        if let Some(wrong) = &wrong {
            self.warn(unit, &rollout, wrong);
        }
        if seen.releasing && !known.adopted && unit.division.is_none() && !self.has_pools(&seen) {
            return self.end(unit, &rollout, &seen.service).await;
        }
        let before = status::read(&known);
        let now = status::kept(Time::from_epoch(self.clock.at(seen.now)));
        let mut seen_facts = self.gather(unit, &seen, &before);
        let mut decision = step(now, &seen.asked.plan, &before, &seen_facts);
        if self.index.service(&seen.service).is_none() {
            // Without a Service nobody is routed anywhere.
            seen_facts.route.says = wanted(&decision).unwrap_or(seen_facts.route.says);
            seen_facts.route.acked = true;
            decision = step(now, &seen.asked.plan, &before, &seen_facts);
        }
        let rollout = self.store(unit, rollout, &seen, &before, &decision).await?;
        self.tell(&rollout, &decision);
        self.publish(unit, &seen, &seen_facts, &decision);
        self.perform(unit, &seen, &seen_facts, &decision).await?;
        if decision.released {
            return self.end(unit, &rollout, &seen.service).await;
        }
        self.tidy(unit, &seen, &decision.status).await?;
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

    /// Why this Rollout cannot do anything yet.
    fn obstacle(&self, rollout: &Rollout, service: &RouteKey, begun: bool) -> Option<String> {
        let own = rollout.metadata.uid.as_deref();
        let first = self.objects.by_service().remove(service);
        if let Some(first) = first.filter(|first| first.metadata.uid.as_deref() != own) {
            let other = first.metadata.name.clone().unwrap_or_default();
            return Some(format!(
                "Service {} has the Rollout {other} already: delete one of the two.",
                service.name
            ));
        }
        if begun {
            return None;
        }
        if self.index.service(service).is_none() {
            return Some(format!(
                "There is no Service {}: create it, or correct spec.serviceRef.",
                service.name
            ));
        }
        let captured = self
            .registry
            .get(service)
            .is_some_and(|entry| is_true(&entry.conditions, CAPTURED));
        (!captured).then(|| {
            format!(
                "Service {} is not captured yet: annotate it with dormouse.dev/scale-to-zero: \"true\", and see its Route.",
                service.name
            )
        })
    }

    /// Looks at everything. What is wrong with the spec is the second: then the last good one counts, and before there was
    /// one, nothing new begins.
    async fn see(
        &self,
        key: &RouteKey,
        unit: &mut Unit,
        rollout: &Arc<Rollout>,
        service: RouteKey,
    ) -> Result<(Option<Seen>, Option<String>), Error> {
        let now = Instant::now();
        let known = rollout.status.clone().unwrap_or_default();
        let wrong = match plan::read(&rollout.spec) {
            Ok(asked) => {
                unit.asked = Some(Arc::new(asked));
                None
            }
            Err(wrong) => Some(format!("{wrong}.")),
        };
        if unit.asked.is_none() && known.adopted {
            let spec = RolloutSpec {
                suspend: true,
                ..RolloutSpec::default()
            };
            unit.asked = plan::read(&spec).ok().map(Arc::new);
        }
        let Some(asked) = unit.asked.clone() else {
            return Ok((None, wrong));
        };
        let target_name = rollout.spec.target_ref.name.clone();
        let target = self
            .index
            .workload(&key.namespace, &facts::deployment(&target_name));
        let target = target.filter(|target| !target.deleting);
        if let Some(target) = &target {
            self.read_target(unit, key, target, now).await?;
        }
        let facts = self.index.service(&service);
        let settings = facts.as_ref().map(|facts| {
            let namespace = self.index.namespace(&key.namespace);
            crds::annotation::parse(&namespace, &facts.annotations)
        });
        let unreadable = |parsed: &crds::annotation::Parsed| {
            parsed
                .invalid
                .iter()
                .any(|invalid| invalid.key.ends_with("/scale-to-zero"))
        };
        let opted = settings
            .as_ref()
            .is_some_and(|parsed| parsed.settings.enabled || unreadable(parsed));
        let releasing = rollout.metadata.deletion_timestamp.is_some() || !opted || *self.release_all.borrow();
        let mut revisions = self.objects.revisions(key);
        unit.made.retain(|name, _| !revisions.contains_key(name));
        revisions.extend(unit.made.clone());
        let mut seen = Seen {
            now,
            rollout: Arc::clone(rollout),
            asked,
            settings: settings.map(|parsed| parsed.settings).unwrap_or_default(),
            target_name,
            target,
            revisions,
            latest: None,
            route: self.index.route(&service),
            releasing,
            service,
        };
        seen.latest = self.latest(unit, &seen, &known).await?;
        Ok((Some(seen), wrong))
    }

    /// Reads the user's Deployment in full when it has changed.
    async fn read_target(
        &self,
        unit: &mut Unit,
        key: &RouteKey,
        target: &WorkloadFacts,
        now: Instant,
    ) -> Result<(), Error> {
        let name = &target.workload.name;
        if unit
            .target
            .as_ref()
            .is_some_and(|known| known.generation >= target.generation)
        {
            return Ok(());
        }
        let object = self.cluster.read_deployment(&key.namespace, name).await?;
        let template = object.pointer("/spec/template").cloned().unwrap_or_default();
        let cut = revision::cut(name, &template);
        let (since, first) = match &unit.target {
            Some(known) if known.cut == cut => (known.since, known.first),
            known => (now, known.is_none()),
        };
        let generation = object.pointer("/metadata/generation").and_then(Value::as_i64);
        unit.target = Some(Target {
            generation: generation.unwrap_or(target.generation),
            object,
            cut,
            since,
            first,
        });
        Ok(())
    }

    /// The revision of the template, once it has rested; made when it is new.
    async fn latest(
        &self,
        unit: &mut Unit,
        seen: &Seen,
        known: &RolloutStatus,
    ) -> Result<Option<String>, Error> {
        let Some(target) = unit.target.as_ref().filter(|_| seen.target.is_some()) else {
            return Ok(None);
        };
        let name = target.cut.name.clone();
        // What an earlier process acted on, or what was there before anything began, has rested.
        let old = known.seen_revision == name || (target.first && known.seen_revision.is_empty());
        if !old && seen.now.duration_since(target.since) < seen.asked.settle {
            return Ok(None);
        }
        if !seen.revisions.contains_key(&name) && !seen.releasing {
            let last = seen
                .revisions
                .values()
                .map(|revision| revision.spec.sequence)
                .max();
            let sequence = last.unwrap_or(0).saturating_add(1);
            let made = objects::revision(&seen.rollout, &target.cut, sequence, &target.object);
            self.cluster.create_revision(&made).await?;
            unit.made.insert(name.clone(), Arc::new(made));
            return Ok(None);
        }
        Ok(Some(name))
    }

    /// Stores what the step has come to, if that is worth it. Nothing is done before it is stored.
    async fn store(
        &self,
        unit: &mut Unit,
        rollout: Arc<Rollout>,
        seen: &Seen,
        before: &Status,
        decision: &Decision,
    ) -> Result<Arc<Rollout>, Error> {
        let mut rollout = rollout;
        let held = rollout
            .metadata
            .finalizers
            .iter()
            .flatten()
            .any(|each| each == RELEASE_FINALIZER);
        if !held && rollout.metadata.deletion_timestamp.is_none() {
            rollout = Arc::new(self.cluster.hold_rollout(&rollout, true).await?);
            unit.written = Some(Arc::clone(&rollout));
        }
        let old = rollout.status.clone().unwrap_or_default();
        let new = status::write(
            &old,
            &seen.asked.plan,
            decision,
            rollout.metadata.generation,
            &self.clock.timestamp(seen.now),
        );
        let matters =
            shape(before) != shape(&decision.status) || old.observed_generation != new.observed_generation;
        let due = unit
            .written_at
            .is_none_or(|at| seen.now.duration_since(at) >= COUNTS_APART);
        if old == new || !(matters || due) {
            return Ok(rollout);
        }
        let wanted = Rollout {
            status: Some(new),
            ..rollout.as_ref().clone()
        };
        let written = Arc::new(self.cluster.write_rollout_status(&wanted).await?);
        unit.written = Some(Arc::clone(&written));
        unit.written_at = Some(seen.now);
        Ok(written)
    }

    fn tell(&self, rollout: &Rollout, decision: &Decision) {
        for event in &decision.events {
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
    async fn complain(&self, unit: &mut Unit, rollout: &Arc<Rollout>, why: String) -> Result<(), Error> {
        let old = rollout.status.clone().unwrap_or_default();
        if old.why == why || rollout.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        self.warn(unit, rollout, &why);
        let wanted = Rollout {
            status: Some(RolloutStatus { why, ..old }),
            ..rollout.as_ref().clone()
        };
        unit.written = Some(Arc::new(self.cluster.write_rollout_status(&wanted).await?));
        Ok(())
    }

    fn warn(&self, unit: &mut Unit, rollout: &Rollout, why: &str) {
        if unit.told == why {
            return;
        }
        why.clone_into(&mut unit.told);
        self.cluster.event(Notice {
            subject: subject(rollout),
            warning: true,
            reason: "InvalidRollout",
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
        self.let_go(service);
        unit.division = None;
        let held = rollout.metadata.finalizers.iter().flatten();
        let mut rollout = Arc::clone(rollout);
        if held.clone().any(|each| each == RELEASE_FINALIZER) {
            // Not only when it is being deleted: we may be on our way out, and it must not wait for us then.
            let deleting = rollout.metadata.deletion_timestamp.is_some();
            rollout = Arc::new(self.cluster.hold_rollout(&rollout, false).await?);
            unit.written = Some(Arc::clone(&rollout)).filter(|_| !deleting);
        }
        if rollout.metadata.deletion_timestamp.is_some() {
            return Ok(RESTING);
        }
        // Opted in again, it begins anew.
        let why = "The Service is not opted in: its Deployment has all traffic.".to_owned();
        let fresh = RolloutStatus {
            why,
            ..RolloutStatus::default()
        };
        if rollout.status.as_ref() != Some(&fresh) {
            let wanted = Rollout {
                status: Some(fresh),
                ..rollout.as_ref().clone()
            };
            unit.written = Some(Arc::new(self.cluster.write_rollout_status(&wanted).await?));
        }
        Ok(RESTING)
    }

    fn let_go(&self, service: &RouteKey) {
        self.divisions.set(service, None);
        self.counts.forget(service);
    }

    fn has_pools(&self, seen: &Seen) -> bool {
        let mut names = seen.revisions.keys();
        names.any(|name| self.revision_pool(seen, name).is_some())
    }
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

fn subject(rollout: &Rollout) -> Subject {
    Subject {
        kind: "Rollout",
        namespace: rollout.metadata.namespace.clone().unwrap_or_default(),
        name: rollout.metadata.name.clone().unwrap_or_default(),
        uid: rollout.metadata.uid.clone().unwrap_or_default(),
    }
}

/// What Kubernetes shows as an Event's reason.
fn reason(kind: EventKind) -> &'static str {
    match kind {
        EventKind::Initialized => "Initialized",
        EventKind::NewRevision => "NewRevision",
        EventKind::CandidateReady => "CandidateReady",
        EventKind::Mirroring => "Mirroring",
        EventKind::WeightAdvanced => "WeightAdvanced",
        EventKind::CheckFailed => "CheckFailed",
        EventKind::Paused => "Paused",
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
