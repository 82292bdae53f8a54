//! The facts of one Rollout, in the state machine's terms.

use std::collections::{BTreeMap, BTreeSet};

use crds::names::COMMAND_ANNOTATION;
use crds::route::{RoutePool, RouteRollout, RouteSpec, Workload, WorkloadKind};
use crds::{Rollout, Settings};
use dormouse_core::evidence::Histogram;
use dormouse_core::rollout::{Command, Facts, Phase, PoolFact, RouteFact, RouteWanted, Status, Verb};

use super::Rollouts;
use super::look::Unit;
use super::plan::Wording;
use super::see::Seen;
use crate::path::Activators;
use crate::state::RouteKey;
use crate::watch::slim::WorkloadFacts;
use crds::report::PoolKey;

/// A Deployment by name.
pub(super) fn deployment(name: &str) -> Workload {
    Workload {
        kind: WorkloadKind::Deployment,
        name: name.to_owned(),
    }
}

impl<A: Activators> Rollouts<A> {
    /// What the cluster and the activators show. `status`: what is known so far.
    pub(super) fn gather(&self, unit: &mut Unit, seen: &Seen, status: &Status) -> Facts {
        let pools = self.pools(seen, status);
        let (mut held, mut names) = (0_u32, BTreeSet::new());
        names.extend(pools.keys().cloned());
        for name in &names {
            held = held.saturating_add((self.traffic)(&seen.pool(name)).load);
        }
        let (samples, broken) = match &status.attempt {
            Some(attempt) => self.counts.of(&seen.service, &attempt.uid),
            None => Default::default(),
        };
        let target = seen.target.as_deref();
        let target_flow = (self.traffic)(&seen.pool(&seen.target_name));
        Facts {
            latest: seen.latest.clone(),
            revisions: seen.revisions.keys().cloned().collect(),
            shelled: target.is_none_or(|target| target.replicas == 0),
            draining: target_flow.load > 0,
            paused: target.is_some_and(|target| target.paused),
            held: target.is_some_and(WorkloadFacts::is_held),
            whole: target.and_then(whole),
            resting: target.is_none_or(|target| target.replicas == 0) || target_flow.rests,
            direct: self
                .registry
                .get(&seen.service)
                .is_none_or(|entry| entry.holds.is_some()),
            target: seen.target_name.clone(),
            route: self.route_fact(seen),
            load: f64::from(unit.load(held, seen.now)),
            per_pod: per_pod(&seen.settings),
            samples,
            samples_of: status
                .attempt
                .as_ref()
                .map(|attempt| attempt.uid.clone())
                .unwrap_or_default(),
            stable_times: self.stable_times(seen, status),
            broken,
            checks: None,
            vetoed: None,
            gates: BTreeMap::new(),
            command: command(&seen.rollout),
            releasing: seen.releasing,
            pools,
        }
    }

    fn pools(&self, seen: &Seen, status: &Status) -> BTreeMap<String, PoolFact> {
        let mut pools = BTreeMap::new();
        let mut strangers = 0;
        let max = seen.settings.max_scale;
        for name in seen.revisions.keys() {
            let Some(facts) = self.revision_pool(&seen.service.namespace, name) else {
                continue;
            };
            if *name != status.stable {
                strangers += facts.current_replicas.max(facts.replicas);
            }
            let ready = self.ready(seen, name, &facts);
            pools.insert(name.clone(), PoolFact { ready, max });
        }
        if let Some(target) = &seen.target {
            // The user's own selector selects the pods of every revision: it gets traffic again when only those are left
            // that run what it runs.
            let mixed = seen.releasing && strangers > 0 && status.adopted;
            let ready = if mixed {
                0
            } else {
                self.ready(seen, &seen.target_name, target)
            };
            pools.insert(seen.target_name.clone(), PoolFact { ready, max });
        }
        pools
    }

    /// The Deployment of a revision, if it is there and is that revision's.
    pub(super) fn revision_pool(&self, namespace: &str, name: &str) -> Option<std::sync::Arc<WorkloadFacts>> {
        let facts = self.index.workload(namespace, &deployment(name))?;
        (facts.revision.as_deref() == Some(name) && !facts.deleting).then_some(facts)
    }

    /// Pods that somebody sees answering. Those of a Deployment on its way down are about to go.
    fn ready(&self, seen: &Seen, name: &str, facts: &WorkloadFacts) -> u32 {
        let pool = seen.pool(name);
        let ready = self.index.ready_pods(&pool).max((self.traffic)(&pool).ready);
        ready.max(facts.ready_replicas).min(facts.replicas)
    }

    fn route_fact(&self, seen: &Seen) -> RouteFact {
        let Some(route) = &seen.route else {
            return RouteFact::default();
        };
        let uid = route.metadata.uid.as_deref().unwrap_or_default();
        let generation = route.metadata.generation.unwrap_or(0);
        let acks = self.fleet.acks(&seen.service);
        let live: Vec<_> = self
            .fleet
            .live()
            .into_iter()
            .filter(|live| live.serving)
            .collect();
        let has = |instance: &String| {
            acks.iter().any(|ack| {
                ack.instance == *instance
                    && ack.uid == uid
                    && ack.generation == generation
                    && ack.error.is_empty()
            })
        };
        RouteFact {
            says: says(&route.spec),
            acked: !live.is_empty() && live.iter().all(|live| has(&live.instance)),
        }
    }

    /// What the stable revision's requests took in the attempt before: nothing is counted between attempts.
    fn stable_times(&self, seen: &Seen, status: &Status) -> Histogram {
        let Some(last) = status.attempt.as_ref().filter(|_| !status.phase.active()) else {
            return Histogram::default();
        };
        let promoted = last.candidate == status.stable;
        self.counts.times(&seen.service, &last.uid, promoted)
    }
}

/// Whether all pods of a Deployment run its template. `None`: it has none, or its controller has not looked at it since.
fn whole(target: &WorkloadFacts) -> Option<bool> {
    let told = target.observed_generation >= target.generation && target.current_replicas > 0;
    told.then_some(target.updated_replicas == target.current_replicas)
}

/// What one pod is meant to carry at once.
fn per_pod(settings: &Settings) -> f64 {
    let target = settings.target.unwrap_or(100.0) * settings.target_utilization_percentage / 100.0;
    match settings.container_concurrency {
        0 => target.max(1.0),
        limit => target.min(f64::from(limit)).max(1.0),
    }
}

/// What a Route says, in the state machine's words.
pub(super) fn says(spec: &RouteSpec) -> RouteWanted {
    let weight = |pool: &RoutePool| (pool.name.clone(), pool.weight);
    let rollout = spec.rollout.as_ref();
    RouteWanted {
        weights: spec.pools.iter().map(weight).collect(),
        count: rollout
            .filter(|rollout| !rollout.attempt.is_empty())
            .map(|rollout| (rollout.attempt.clone(), rollout.epoch)),
        candidate: rollout.map(|rollout| rollout.candidate.clone()),
        mirror: rollout
            .and_then(|rollout| rollout.mirror.as_ref())
            .map_or(0, |mirror| mirror.percent),
        matching: rollout.is_some_and(|rollout| !rollout.matches.is_empty()),
        breaker: rollout.is_some_and(|rollout| rollout.breaker.is_some()),
    }
}

/// What a Route has to say of the candidate: the other way round.
pub(super) fn words(
    wanted: &RouteWanted,
    stable: &str,
    wording: &Wording,
    synthetic: bool,
) -> Option<RouteRollout> {
    let candidate = wanted.candidate.clone()?;
    let (attempt, epoch) = wanted.count.clone().unwrap_or_default();
    let counted = wanted.count.is_some();
    Some(RouteRollout {
        stable: stable.to_owned(),
        candidate,
        attempt,
        epoch,
        bad: wording.bad.clone(),
        warmup_requests: wording.warmup_requests,
        warmup_ms: wording.warmup_ms,
        mirror: wording.mirror(wanted.mirror),
        matches: if wanted.matching {
            wording.matches.clone()
        } else {
            Vec::new()
        },
        affinity: wording.affinity.clone().filter(|_| counted),
        breaker: wanted.breaker.then(|| wording.breaker.clone()),
        synthetic: wording.synthetic.clone().filter(|_| synthetic),
    })
}

/// The command on a Rollout: `VERB@ATTEMPT.NONCE`, where `undo` may name a revision as `undo=REVISION`.
fn command(rollout: &Rollout) -> Option<Command> {
    let text = rollout.metadata.annotations.as_ref()?.get(COMMAND_ANNOTATION)?;
    let (order, scope) = text.split_once('@')?;
    let attempt = scope.rsplit_once('.').map_or(scope, |(attempt, _)| attempt);
    let (word, argument) = match order.split_once('=') {
        Some((word, argument)) => (word, Some(argument.to_owned())),
        None => (order, None),
    };
    let verb = match (word, argument) {
        ("undo", revision) => Verb::Undo(revision),
        ("promote", None) => Verb::Promote,
        ("promote-full", None) => Verb::PromoteFull,
        ("abort", None) => Verb::Abort,
        ("retry", None) => Verb::Retry,
        ("pause", None) => Verb::Pause,
        ("resume", None) => Verb::Resume,
        _ => return None,
    };
    Some(Command {
        text: text.clone(),
        attempt: attempt.to_owned(),
        verb,
    })
}

/// Revisions that may go: in no use, beyond the newest `keep`, and old enough.
pub(super) fn superfluous(
    seen: &Seen,
    status: &Status,
    keep: usize,
    old_enough: impl Fn(&crds::Revision) -> bool,
) -> Vec<String> {
    if !matches!(status.phase, Phase::Idle | Phase::Failed) {
        return Vec::new();
    }
    let used = |name: &String| {
        *name == status.stable
            || status.history.first() == Some(name)
            || status.queued.as_ref() == Some(name)
            || seen.latest.as_ref() == Some(name)
            || status.seen == *name
    };
    let mut others: Vec<_> = seen.revisions.iter().filter(|(name, _)| !used(name)).collect();
    others.sort_by_key(|(_, revision)| std::cmp::Reverse(revision.spec.sequence));
    others
        .into_iter()
        .skip(keep)
        .filter(|(_, revision)| old_enough(revision))
        .map(|(name, _)| name.clone())
        .collect()
}

impl Seen {
    /// A pool of the Rollout's namespace.
    pub(super) fn pool(&self, name: &str) -> PoolKey {
        PoolKey {
            namespace: self.service.namespace.clone(),
            pool: name.to_owned(),
        }
    }
}

/// The Service that a Rollout names.
pub(super) fn service_of(rollout: &Rollout) -> RouteKey {
    RouteKey {
        namespace: rollout.metadata.namespace.clone().unwrap_or_default(),
        name: rollout.spec.service_ref.name.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(text: &str) -> Rollout {
        let mut rollout = Rollout::default();
        let annotation = (COMMAND_ANNOTATION.to_owned(), text.to_owned());
        rollout.metadata.annotations = Some([annotation].into());
        rollout
    }

    #[test]
    fn commands_are_a_verb_an_attempt_and_a_nonce() {
        for (text, want) in [
            ("promote@1-18c.7", Some((Verb::Promote, "1-18c"))),
            ("promote-full@1-18c.7", Some((Verb::PromoteFull, "1-18c"))),
            ("undo@2-a.x", Some((Verb::Undo(None), "2-a"))),
            ("undo=web-1@.x", Some((Verb::Undo(Some("web-1".into())), ""))),
            ("abort@1", Some((Verb::Abort, "1"))),
            ("dance@1.2", None),
            ("promote=now@1.2", None),
            ("promote", None),
        ] {
            let read = command(&with(text));
            let read = read
                .as_ref()
                .map(|read| (read.verb.clone(), read.attempt.as_str()));
            assert_eq!(read, want, "{text}");
        }
    }

    #[test]
    fn what_a_route_says_is_what_was_wanted() {
        let wording = Wording {
            matches: vec![crds::route::RouteMatch::default()],
            methods: vec!["GET".into()],
            ..Wording::default()
        };
        for bits in 0..16_u32 {
            let on = |bit: u32| bits & (1 << bit) != 0;
            let wanted = RouteWanted {
                weights: [("web-1".to_owned(), 8000), ("web-2".to_owned(), 2000)].into(),
                count: on(0).then(|| ("1-a".to_owned(), 3)),
                candidate: Some("web-2".into()),
                mirror: if on(1) { 50 } else { 0 },
                matching: on(2),
                breaker: on(3),
            };
            let pool = |(name, weight): (&String, &u32)| RoutePool {
                name: name.clone(),
                weight: *weight,
                ..RoutePool::default()
            };
            let spec = RouteSpec {
                pools: wanted.weights.iter().map(pool).collect(),
                rollout: words(&wanted, "web-1", &wording, false),
                ..RouteSpec::default()
            };
            assert_eq!(says(&spec), wanted, "{bits:04b}");
        }
    }
}
