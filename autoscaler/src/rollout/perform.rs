//! What follows from a step: the division of the traffic, pools, the user's Deployment.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use dormouse_core::Time;
use dormouse_core::rollout::{Action, Decision, Facts, Status};
use serde_json::Value;

use super::look::{Unit, wanted};
use super::see::Seen;
use super::{Rollouts, facts, objects, revision, status};
use crate::cluster::Error;
use crate::path::Activators;
use crate::state::Division;

/// Why a paused Deployment keeps its last pod.
const STAYS: &str = "its revision moves into a pool of its own, which sleeps";

impl<A: Activators> Rollouts<A> {
    /// Says how the traffic is divided, and how many pods each pool needs.
    pub(super) fn publish(&self, unit: &mut Unit, seen: &Seen, facts: &Facts, decision: &Decision) {
        let says = wanted(decision).unwrap_or_else(|| facts.route.says.clone());
        if says.weights.is_empty() {
            // The Route is not there (yet, or any more): what was said last stands.
            if let Some(division) = &unit.division {
                self.divisions.set(&seen.service, Some(division.clone()));
            }
            return;
        }
        let mut needs: BTreeMap<String, (u32, String)> = decision
            .pools
            .iter()
            .filter(|(name, _)| facts.pools.contains_key(*name))
            .map(|(name, (pods, why))| (name.clone(), (*pods, (*why).to_owned())))
            .collect();
        let target = facts::deployment(&seen.target_name);
        let others = self.others_on(&seen.service, &target);
        let serves = says.weights.iter().max_by_key(|(_, weight)| **weight);
        if let (Some(other), Some((serves, _))) = (others.first(), serves)
            && *serves != seen.target_name
        {
            let why = format!(
                "Service {} leads to its pods too, and is not captured",
                other.name
            );
            needs.entry(serves.clone()).or_insert((1, why));
        }
        let idle = facts
            .pools
            .keys()
            .filter(|name| !says.weights.contains_key(*name) && **name != facts.target);
        let others: BTreeSet<String> = idle.cloned().collect();
        let status = &decision.status;
        let division = Division {
            target,
            rollout: facts::words(
                &says,
                &decision.status.stable,
                &seen.asked.wording,
                decision.synthetic,
            ),
            weights: says.weights,
            needs,
            stays: status
                .serves_in_place()
                .then(|| (seen.target_name.clone(), STAYS.to_owned())),
            others,
        };
        unit.division = Some(division.clone());
        self.divisions.set(&seen.service, Some(division));
    }

    /// Does what the step says, in its order. The Route is written by capture, from the division.
    pub(super) async fn perform(
        &self,
        unit: &mut Unit,
        seen: &Seen,
        facts: &Facts,
        decision: &Decision,
    ) -> Result<(), Error> {
        let namespace = &seen.service.namespace;
        let now = status::kept(Time::from_epoch(self.clock.at(seen.now)));
        for action in &decision.actions {
            tracing::debug!(service = %seen.service, ?action, "rollout");
            match action {
                Action::EnsurePool(name) => self.ensure_pool(unit, seen, name).await?,
                Action::WriteRoute(_) => {}
                Action::ShellTarget if unit.shell.is_left(now) => {}
                Action::ShellTarget => {
                    let target = facts::deployment(&seen.target_name);
                    self.cluster.scale(namespace, &target, 0).await?;
                }
                Action::PauseTarget => self.cluster.pause(namespace, &seen.target_name, true).await?,
                Action::ResumeTarget => self.cluster.pause(namespace, &seen.target_name, false).await?,
                Action::RestoreTarget(name) => self.restore_target(unit, seen, facts, name).await?,
                Action::RemovePool(name) => self.cluster.delete_pool(namespace, name).await?,
                Action::RemovePools => {
                    for name in seen.revisions.keys() {
                        if self.revision_pool(namespace, name).is_some() {
                            self.cluster.delete_pool(namespace, name).await?;
                        }
                    }
                }
            }
        }
        if seen.target.as_ref().is_some_and(|target| target.we_own_spec) {
            let target = facts::deployment(&seen.target_name);
            self.cluster.disown_spec(namespace, &target).await?;
        }
        self.restart(unit, seen, &decision.status).await
    }

    async fn ensure_pool(&self, unit: &Unit, seen: &Seen, name: &str) -> Result<(), Error> {
        let Some(revision) = seen.revisions.get(name) else {
            tracing::warn!(service = %seen.service, revision = name, "it is gone, and so its pool cannot be made");
            return Ok(());
        };
        let target = unit.target();
        let object = target.map(|target| target.object.clone()).unwrap_or_default();
        let pool = match objects::pool(&seen.rollout, revision, &object) {
            Ok(mut pool) => {
                // What was restarted before is not restarted by being a pool.
                let own = target.filter(|target| target.is(name));
                let template = own.and_then(|target| target.object.pointer("/spec/template"));
                if let Some(at) = template.and_then(revision::restarted) {
                    let spec = pool.spec.get_or_insert_default();
                    let metadata = spec.template.metadata.get_or_insert_default();
                    let annotations = metadata.annotations.get_or_insert_default();
                    annotations.insert(revision::RESTARTED.to_owned(), at.to_owned());
                }
                pool
            }
            Err(why) => {
                tracing::warn!(service = %seen.service, "{why}");
                return Ok(());
            }
        };
        self.cluster.create_pool(&seen.service.namespace, &pool).await
    }

    /// The user's Deployment gets the template of the stable revision, and pods enough for all traffic.
    async fn restore_target(&self, unit: &Unit, seen: &Seen, facts: &Facts, name: &str) -> Result<(), Error> {
        let (Some(target), Some(there)) = (unit.target(), &seen.target) else {
            return Ok(());
        };
        let namespace = &seen.service.namespace;
        if !target.is(name)
            && let Some(revision) = seen.revisions.get(name)
            && let Ok(template) = serde_json::from_str::<Value>(&revision.spec.template)
        {
            self.cluster
                .replace_template(namespace, &seen.target_name, &there.uid, &template)
                .await?;
        }
        // Its pods are of the template from here on. One that the user has paused and that has pods stays as it is.
        if there.is_held() || (there.paused && there.replicas == 0) {
            self.cluster.pause(namespace, &seen.target_name, false).await?;
        }
        let load = (facts.load / facts.per_pod.max(1.0)).ceil() as u32;
        let pods = there.original_replicas.unwrap_or(1).max(1).max(load);
        if there.replicas < pods {
            let target = facts::deployment(&seen.target_name);
            self.cluster.scale(namespace, &target, pods).await?;
        }
        Ok(())
    }

    /// `kubectl rollout restart` of the template is a restart of the pool that runs it.
    async fn restart(&self, unit: &Unit, seen: &Seen, status: &Status) -> Result<(), Error> {
        let Some(target) = unit.target().filter(|target| target.is(&status.stable)) else {
            return Ok(());
        };
        let template = target.object.pointer("/spec/template");
        let Some(at) = template.and_then(revision::restarted).filter(|_| !seen.releasing) else {
            return Ok(());
        };
        let Some(pool) = self.revision_pool(&seen.service.namespace, &status.stable) else {
            return Ok(());
        };
        if pool.restarted_at.as_deref() == Some(at) {
            return Ok(());
        }
        self.cluster
            .restart(&seen.service.namespace, &status.stable, at)
            .await
    }

    /// Old revisions go, with their pools.
    pub(super) async fn tidy(&self, unit: &mut Unit, seen: &Seen, status: &Status) -> Result<(), Error> {
        let now = jiff::Timestamp::try_from(SystemTime::UNIX_EPOCH + self.clock.at(seen.now))
            .unwrap_or(jiff::Timestamp::UNIX_EPOCH);
        let min_age = seen.asked.min_age;
        let old_enough = |revision: &crds::Revision| {
            let created = revision.metadata.creation_timestamp.as_ref();
            let age = created.map(|created| now.duration_since(created.0));
            age.is_some_and(|age| age.unsigned_abs() >= min_age && age.is_positive())
        };
        for name in facts::superfluous(seen, status, seen.asked.history, old_enough) {
            let namespace = &seen.service.namespace;
            if self.revision_pool(namespace, &name).is_some() {
                self.cluster.delete_pool(namespace, &name).await?;
            }
            self.cluster.delete_revision(namespace, &name).await?;
            unit.made.remove(&name);
        }
        Ok(())
    }
}
