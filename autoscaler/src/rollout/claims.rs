//! Whose a Deployment is: what keeps a Rollout from beginning, and other Services from being captured.

use crds::Rollout;
use crds::condition::{CAPTURED, is_true};
use crds::route::Workload;

use super::{Rollouts, facts};
use crate::path::Activators;
use crate::state::{Claim, RouteKey};

/// What keeps a Rollout from beginning, in a sentence.
pub(super) enum Obstacle {
    /// Somebody has to do something.
    Stands(String),
    /// It passes without anybody's doing.
    Passes(String),
}

impl<A: Activators> Rollouts<A> {
    /// Whether a Service is opted in and on its way into the data path.
    fn is_being_captured(&self, service: &RouteKey) -> bool {
        match self.registry.get(service) {
            Some(entry) => {
                let refused = entry.pools.is_empty();
                entry.settings.enabled && !refused && !is_true(&entry.conditions, CAPTURED)
            }
            // Capture has not looked at it yet.
            None => self
                .asked_of(service)
                .is_some_and(|parsed| parsed.settings.enabled),
        }
    }

    /// Why this Rollout cannot do anything yet.
    pub(super) fn obstacle(&self, rollout: &Rollout, service: &RouteKey, begun: bool) -> Option<Obstacle> {
        let own = rollout.metadata.uid.as_deref();
        if let Some(first) = self.objects.another_has(service, own) {
            let other = first.metadata.name.clone().unwrap_or_default();
            return Some(Obstacle::Stands(format!(
                "Service {} has the Rollout {other} already: delete one of the two.",
                service.name
            )));
        }
        let target = facts::deployment(&rollout.spec.target_ref.name);
        let owner = self.objects.of_target(&service.namespace, &target.name);
        if let Some(owner) = owner.filter(|owner| owner.metadata.uid.as_deref() != own) {
            let (other, its) = (
                owner.metadata.name.clone().unwrap_or_default(),
                &owner.spec.service_ref.name,
            );
            return Some(Obstacle::Stands(format!(
                "{target} is rolled out by the Rollout {other} for Service {its} already: delete one of the two.",
            )));
        }
        let captured = self
            .registry
            .get(service)
            .is_some_and(|entry| is_true(&entry.conditions, CAPTURED));
        let claim = (begun || captured).then(|| Claim {
            target: target.clone(),
            rollout: rollout.metadata.name.clone().unwrap_or_default(),
        });
        self.claim(service, claim);
        if begun {
            return None;
        }
        if self.index.service(service).is_none() {
            return Some(Obstacle::Stands(format!(
                "There is no Service {}: create it, or correct spec.serviceRef.",
                service.name
            )));
        }
        if self.is_being_captured(service) {
            return Some(Obstacle::Passes(format!(
                "Service {} is being captured: it begins after that. See its Route.",
                service.name
            )));
        }
        if !captured {
            return Some(Obstacle::Stands(format!(
                "Service {} is not captured yet: annotate it with dormouse.dev/scale-to-zero: \"true\", and see its Route.",
                service.name
            )));
        }
        // It leads to the Deployment, which is about to have no pods.
        let led = |other: &RouteKey| {
            let route = self.index.route(other);
            route.is_some_and(|route| !route.spec.ports.is_empty())
        };
        let other = self.others_on(service, &target).into_iter().find(led)?;
        Some(Obstacle::Stands(format!(
            "Service {} leads to {target} too, and cannot be captured while it is rolled out for Service {}: waits until it is \
             given back.",
            other.name, service.name
        )))
    }

    /// Opted-in or captured Services on the Deployment besides this one.
    pub(super) fn others_on(&self, service: &RouteKey, target: &Workload) -> Vec<RouteKey> {
        let there = self.index.workload(&service.namespace, target);
        let all = there
            .map(|there| self.index.services_of(&there))
            .unwrap_or_default();
        all.into_iter().filter(|other| other != service).collect()
    }

    /// Says that the Deployment is rolled out for the Service, or no longer; the others on it are looked at anew.
    pub(super) fn claim(&self, service: &RouteKey, claim: Option<Claim>) {
        let target = claim.as_ref().map(|claim| claim.target.clone());
        let old = self.divisions.claim(service, claim);
        if old == target {
            return;
        }
        for target in old.iter().chain(&target) {
            self.divisions.dirty().mark(self.others_on(service, target));
        }
    }
}
