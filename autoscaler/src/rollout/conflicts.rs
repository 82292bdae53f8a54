//! Who else scales what a rollout needs at a certain size: told by name, and not fought for ever.

use std::collections::BTreeSet;

use crds::condition::{AUTOSCALER_CONFLICT, REPLICAS_CONFLICT, reason};
use crds::names::{ACTIVATOR_MANAGER, AUTOSCALER_MANAGER, CLI_MANAGER, SCALE_MANAGER};
use dormouse_core::Time;
use dormouse_core::conflict::Conflict;
use dormouse_core::rollout::Status;

use super::look::Unit;
use super::see::Seen;
use super::{Rollouts, Said, facts};
use crate::path::Activators;
use crate::watch::slim::WorkloadFacts;

/// The user's Deployment, which is to stand at zero as a template.
#[derive(Debug, Default)]
pub(super) struct Shell {
    /// It was seen at zero since it was made a template.
    stood: bool,
    conflict: Conflict,
}

impl Shell {
    /// Takes in how it stands. `ours`: whether it is a template now.
    fn observe(&mut self, now: Time, target: &WorkloadFacts, ours: bool) {
        if !ours {
            self.stood = false;
        } else if target.replicas == 0 {
            self.stood = true;
        } else if self.stood {
            // Once for each time that it was zero: until it is again, it is the same change.
            self.stood = false;
            let foreign = |manager: &&String| {
                ![SCALE_MANAGER, ACTIVATOR_MANAGER, AUTOSCALER_MANAGER, CLI_MANAGER]
                    .contains(&manager.as_str())
            };
            let manager = target.replicas_managers.iter().find(foreign);
            self.conflict
                .flipped(now, manager.map_or("an unknown field manager", String::as_str));
        }
    }

    /// Whether it is left as it is: somebody wants it otherwise, and would go on.
    pub(super) fn is_left(&self, now: Time) -> bool {
        self.conflict.stopped(now)
    }

    fn said(&self, now: Time, target: &WorkloadFacts) -> Option<Said> {
        let (times, manager) = self.conflict.with(now)?;
        let name = &target.workload;
        let times = if times == 1 {
            "once".to_owned()
        } else {
            format!("{times} times")
        };
        let end = if self.is_left(now) {
            "It is left as it is until nobody has touched it for 10 min: its pods get no requests, and may do other work."
        } else {
            "It is put back to zero."
        };
        Some(Said {
            kind: REPLICAS_CONFLICT,
            holds: true,
            reason: reason::FOREIGN_MANAGER,
            message: format!(
                "{manager} has set the replicas of {name}, which is only a template while its revisions are rolled out, {times} \
                 in 10 min. {end} Have {manager} leave spec.replicas alone, or say 0."
            ),
        })
    }
}

impl<A: Activators> Rollouts<A> {
    /// Notes who else scales the Deployment or its pools, and what there is to say of it.
    pub(super) fn conflicts(&self, unit: &mut Unit, seen: &Seen, now: Time, known: &Status) -> Vec<Said> {
        let Some(target) = &seen.target else {
            return Vec::new();
        };
        unit.shell.observe(now, target, known.adopted && !seen.releasing);
        let mut said: Vec<Said> = unit.shell.said(now, target).into_iter().collect();
        said.extend(self.autoscalers(seen, known));
        said
    }

    fn autoscalers(&self, seen: &Seen, known: &Status) -> Option<Said> {
        if !known.adopted || seen.releasing {
            return None;
        }
        let pools = seen
            .revisions
            .keys()
            .filter(|name| self.revision_pool(&seen.service.namespace, name).is_some());
        let mut found = BTreeSet::new();
        let (mut by_object, mut on_pool) = (false, false);
        for name in std::iter::once(&seen.target_name).chain(pools) {
            for hpa in self
                .index
                .hpas_of(&seen.service.namespace, &facts::deployment(name))
            {
                let by = match &hpa.scaled_object {
                    Some(object) => format!("ScaledObject {object}"),
                    None => format!("HorizontalPodAutoscaler {}", hpa.name),
                };
                by_object |= hpa.scaled_object.is_some();
                on_pool |= *name != seen.target_name;
                found.insert(format!("{by} scales deployment/{name}"));
            }
        }
        if found.is_empty() {
            return None;
        }
        let end = if on_pool {
            "A revision's pool that it scales above one pod is not scaled by Dormouse: delete it, for pools come and go."
        } else {
            "The Deployment is only a template at zero now, and Dormouse scales the pools of its revisions: delete it, and set \
             dormouse.dev/min-scale and max-scale on the Service instead."
        };
        let found: Vec<String> = found.into_iter().collect();
        Some(Said {
            kind: AUTOSCALER_CONFLICT,
            holds: true,
            reason: if by_object {
                reason::SCALED_OBJECT
            } else {
                reason::HPA
            },
            message: format!("{}. {end}", found.join(", ")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_put_back_twice_and_then_left_for_a_while() {
        let mut shell = Shell::default();
        let target = |replicas| WorkloadFacts {
            replicas,
            replicas_managers: vec![SCALE_MANAGER.to_owned(), "argocd-controller".to_owned()],
            ..WorkloadFacts::default()
        };
        let at = Time::from_secs;
        // On its way to zero for the first time nobody has done anything.
        shell.observe(at(0), &target(2), true);
        assert_eq!(shell.said(at(0), &target(2)), None);
        for (second, flips, left) in [(10, "once", false), (20, "2 times", false), (30, "3 times", true)] {
            shell.observe(at(second - 1), &target(0), true);
            // It takes a while until it is at zero again: one change.
            shell.observe(at(second), &target(2), true);
            shell.observe(at(second), &target(2), true);
            assert_eq!(shell.is_left(at(second)), left, "{second}");
            let said = shell.said(at(second), &target(2)).expect("said");
            assert!(said.message.contains("argocd-controller"), "{}", said.message);
            assert!(said.message.contains(flips), "{}", said.message);
        }
        assert!(shell.is_left(at(629)));
        assert!(!shell.is_left(at(630)), "then it is tried again");
        assert_eq!(shell.said(at(630), &target(2)), None);
        // What is given back has the replicas that it is to have.
        shell.observe(at(700), &target(0), true);
        shell.observe(at(701), &target(2), false);
        assert_eq!(shell.said(at(701), &target(2)), None);
    }
}
