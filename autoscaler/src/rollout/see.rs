//! What one look sees: the spec, the user's Deployment, the revisions, and which of them the template is.

use std::collections::BTreeMap;
use std::sync::Arc;

use crds::annotation::Parsed;
use crds::revision::ConfigDigest;
use crds::rollout::RolloutStatus;
use crds::{Revision, Rollout, RolloutSpec, Route, Settings};
use serde_json::Value;
use tokio::time::Instant;

use super::look::{Unit, is_held};
use super::plan::{self, Asked};
use super::revision::{self, Cut};
use super::{Rollouts, config, facts, objects};
use crate::cluster::Error;
use crate::path::Activators;
use crate::state::RouteKey;
use crate::watch::slim::WorkloadFacts;

/// The user's Deployment.
pub(super) struct Target {
    uid: String,
    generation: i64,
    pub(super) object: Value,
    /// The revision that its template is; `None`: its configuration is not known.
    cut: Option<Cut>,
    /// It has been read since it was cut.
    uncut: bool,
    since: Instant,
    /// It was the first that this process saw: it may have rested for long.
    first: bool,
}

impl Target {
    /// Whether it says what this revision is.
    pub(super) fn is(&self, revision: &str) -> bool {
        self.cut.as_ref().is_some_and(|cut| cut.name == revision)
    }

    /// Whether this is still what is there.
    fn is_newest(&self, there: &WorkloadFacts) -> bool {
        self.uid == there.uid && self.generation >= there.generation
    }

    /// Cuts the template with this configuration, unless that is what was cut last.
    fn cut(&mut self, configs: &[ConfigDigest], now: Instant) {
        let same = |cut: &Cut| cut.configs == configs;
        if !self.uncut && self.cut.as_ref().is_some_and(same) {
            return;
        }
        self.uncut = false;
        let name = self.object.pointer("/metadata/name").and_then(Value::as_str);
        let template = self.object.pointer("/spec/template").unwrap_or(&Value::Null);
        let cut = revision::cut(name.unwrap_or_default(), template, configs);
        if self.cut.as_ref() == Some(&cut) {
            return;
        }
        if self.cut.replace(cut).is_some() {
            (self.since, self.first) = (now, false);
        }
    }
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

impl<A: Activators> Rollouts<A> {
    /// Looks at everything. What is wrong with the spec is the second: then the last good one counts, and before there was
    /// one, nothing new begins.
    pub(super) async fn see(
        &self,
        key: &RouteKey,
        unit: &mut Unit,
        rollout: &Arc<Rollout>,
        service: RouteKey,
        annotated: Option<Parsed>,
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
        // What a new process cannot read is no reason to keep anybody waiting who deletes it.
        let leaves = rollout.metadata.deletion_timestamp.is_some() && is_held(rollout);
        if unit.asked.is_none() && (known.has_begun() || leaves) {
            let spec = RolloutSpec {
                suspend: true,
                target_mode: rollout.spec.target_mode,
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
            unit.configs
                .look(&self.cluster, &key.namespace, asked.configs, now);
            if let (Some(target), Some(entries)) = (&mut unit.target, unit.configs.entries(asked.configs)) {
                target.cut(&entries, now);
            }
        }
        let releasing = self.is_releasing(rollout, annotated.as_ref());
        let mut revisions = self.objects.revisions(key);
        unit.made.retain(|name, _| !revisions.contains_key(name));
        revisions.extend(unit.made.clone());
        let mut seen = Seen {
            now,
            rollout: Arc::clone(rollout),
            asked,
            settings: annotated.map(|parsed| parsed.settings).unwrap_or_default(),
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

    /// What is asked of the Service, if it is there.
    pub(super) fn asked_of(&self, service: &RouteKey) -> Option<Parsed> {
        let facts = self.index.service(service)?;
        let namespace = self.index.namespace(&service.namespace);
        Some(crds::annotation::parse(&namespace, &facts.annotations))
    }

    /// Whether everything is to go back to the user's Deployment.
    pub(super) fn is_releasing(&self, rollout: &Rollout, annotated: Option<&Parsed>) -> bool {
        let unreadable = |parsed: &Parsed| {
            let mut invalid = parsed.invalid.iter();
            invalid.any(|invalid| invalid.key.ends_with("/scale-to-zero"))
        };
        let opted = annotated.is_some_and(|parsed| parsed.settings.enabled || unreadable(parsed));
        rollout.metadata.deletion_timestamp.is_some() || !opted || *self.release_all.borrow()
    }

    /// Reads the user's Deployment in full when it has changed, or is another.
    async fn read_target(
        &self,
        unit: &mut Unit,
        key: &RouteKey,
        target: &WorkloadFacts,
        now: Instant,
    ) -> Result<(), Error> {
        let name = &target.workload.name;
        if unit.target.as_ref().is_some_and(|known| known.is_newest(target)) {
            return Ok(());
        }
        let object = self.cluster.read_deployment(&key.namespace, name).await?;
        let template = object.pointer("/spec/template");
        unit.configs
            .refer(template.map(config::references).unwrap_or_default(), now);
        let uid = object.pointer("/metadata/uid").and_then(Value::as_str);
        let generation = object.pointer("/metadata/generation").and_then(Value::as_i64);
        let known = unit.target.take();
        unit.target = Some(Target {
            uid: uid.unwrap_or(&target.uid).to_owned(),
            generation: generation.unwrap_or(target.generation),
            object,
            since: known.as_ref().map_or(now, |known| known.since),
            first: known.as_ref().is_none_or(|known| known.first),
            // Until the configuration is known, it is the revision that it was.
            cut: known.and_then(|known| known.cut),
            uncut: true,
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
        let Some(cut) = target.cut.clone() else {
            return Ok(None);
        };
        // It was known, and something is missing now.
        if unit.configs.entries(seen.asked.configs).as_ref() != Some(&cut.configs) {
            return Ok(None);
        }
        let name = cut.name.clone();
        // What an earlier process acted on, or what was there before anything began, has rested.
        let old = known.seen_revision == name || (target.first && known.seen_revision.is_empty());
        let rested = target.since + seen.asked.settle;
        if !old && (seen.now < rested || !unit.configs.is_read_after(rested, seen.asked.configs, seen.now)) {
            return Ok(None);
        }
        let Some(revision) = seen.revisions.get(&name).filter(|_| !seen.releasing) else {
            if seen.releasing {
                return Ok(Some(name));
            }
            let last = seen
                .revisions
                .values()
                .map(|revision| revision.spec.sequence)
                .max();
            let sequence = last.unwrap_or(0).saturating_add(1);
            let made = objects::revision(&seen.rollout, &cut, sequence, &target.object);
            self.cluster.create_revision(&made).await?;
            unit.made.insert(name.clone(), Arc::new(made));
            return Ok(None);
        };
        // Its copies are there before anything of it begins. Whatever is wrong with them, what is under way goes on.
        let copied = self.copy_configs(unit, seen, revision).await;
        let copied = copied.unwrap_or_else(|error| {
            tracing::warn!(service = %seen.service, revision = name, %error, "the copies of its configuration");
            false
        });
        Ok(copied.then_some(name))
    }
}
