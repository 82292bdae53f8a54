//! The status of Revisions: how each one's pool stands, for people and for what watches them.

use std::collections::BTreeMap;
use std::time::Duration;

use crds::condition;
use crds::revision::RevisionStatus;
use dormouse_core::rollout::{Facts, Status};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time as Stamp};
use tokio::time::Instant;

use super::look::Unit;
use super::see::Seen;
use super::{Rollouts, status};
use crate::path::Activators;

/// One Revision's status is written this often at most: what changes faster is the Route's to show.
const APART: Duration = Duration::from_secs(2);
/// So many of them in one look: a look must not wait for the status of revisions that have no traffic.
const AT_ONCE: usize = 2;
/// When a revision last had a request is told to this precision, so that traffic alone is no write each second.
const PRECISION: Duration = Duration::from_secs(30);
/// Wait after a write that failed: a permission that is missing, most likely.
const AGAIN: Duration = Duration::from_secs(60);
/// What was written is shown within this.
const SHOWN: Duration = Duration::from_secs(10);

/// What was written of each Revision.
#[derive(Debug, Default)]
pub(super) struct Standings(BTreeMap<String, Written>);

#[derive(Debug)]
struct Written {
    at: Instant,
    status: RevisionStatus,
    /// Nothing is written before.
    not_before: Instant,
}

/// How a pool stands.
#[derive(Clone, Debug, Default)]
struct Standing {
    /// The workload whose pods they are.
    pool: String,
    /// Pods wanted; `None`: there is no pool.
    replicas: Option<u32>,
    ready: u32,
    /// In basis points.
    weight: u32,
    is_stable: bool,
    is_quarantined: bool,
    active_at: Option<jiff::Timestamp>,
}

impl<A: Activators> Rollouts<A> {
    /// Writes what has changed. Failures are no reason not to roll out: they are logged, and tried again later.
    pub(super) async fn show_revisions(&self, unit: &mut Unit, seen: &Seen, facts: &Facts, known: &Status) {
        let stamp = self.clock.timestamp(seen.now);
        unit.standings
            .0
            .retain(|name, _| seen.revisions.contains_key(name));
        let mut written = 0;
        for (name, revision) in &seen.revisions {
            let last = unit.standings.0.get(name);
            // One that was just made is not shown yet: it has no resource version.
            let is_shown = revision.metadata.resource_version.is_some();
            if !is_shown || last.is_some_and(|last| seen.now < last.not_before) {
                continue;
            }
            let fresh = last.filter(|last| seen.now.duration_since(last.at) < SHOWN);
            let old = fresh
                .map(|last| last.status.clone())
                .or_else(|| revision.status.clone())
                .unwrap_or_default();
            let standing = self.standing(seen, facts, known, name);
            let generation = revision.metadata.generation;
            let Some(new) = status_of(&old, &standing, generation, &stamp) else {
                continue;
            };
            let namespace = &seen.service.namespace;
            let done = self.cluster.write_revision_status(namespace, name, &new).await;
            let wait = if done.is_ok() { APART } else { AGAIN };
            if let Err(error) = done {
                tracing::warn!(revision = name, %error, "its status is not written");
            }
            let now = Instant::now();
            let entry = Written {
                at: now,
                status: new,
                not_before: now + wait,
            };
            unit.standings.0.insert(name.clone(), entry);
            written += 1;
            if written == AT_ONCE {
                return;
            }
        }
    }

    fn standing(&self, seen: &Seen, facts: &Facts, known: &Status, name: &str) -> Standing {
        let in_place = known.serves_in_place() && known.stable == name;
        let (pool, workload) = match in_place {
            true => (seen.target_name.as_str(), seen.target.clone()),
            false => (name, self.revision_pool(&seen.service.namespace, name)),
        };
        let flow = (self.traffic)(&seen.pool(pool));
        let active_at = flow.last_request.map(|at| self.clock.timestamp(at).0);
        Standing {
            pool: pool.to_owned(),
            replicas: workload.map(|workload| workload.replicas),
            ready: facts.pools.get(pool).map_or(0, |pool| pool.ready),
            weight: facts.route.says.weights.get(pool).copied().unwrap_or(0),
            is_stable: known.stable == name,
            is_quarantined: known.quarantined.iter().any(|failed| failed == name),
            active_at,
        }
    }
}

/// What a status has to say; `None`: what it says.
fn status_of(
    old: &RevisionStatus,
    standing: &Standing,
    generation: Option<i64>,
    stamp: &Stamp,
) -> Option<RevisionStatus> {
    let mut conditions = old.conditions.clone();
    for (kind, holds, reason, message) in conditions_of(standing) {
        let new = condition::condition(kind, holds, reason, message, generation, stamp.clone());
        condition::set(&mut conditions, new);
    }
    let new = RevisionStatus {
        pool: standing
            .replicas
            .map(|_| standing.pool.clone())
            .unwrap_or_default(),
        replicas: standing.replicas.unwrap_or(0),
        ready_replicas: standing.ready,
        weight: status::percent(standing.weight),
        last_active: last_active(old.last_active.as_ref(), standing.active_at),
        conditions,
    };
    (new != *old).then_some(new)
}

/// Never earlier than it says: a new leader may know less.
fn last_active(old: Option<&MicroTime>, seen: Option<jiff::Timestamp>) -> Option<MicroTime> {
    let Some(seen) = seen else { return old.cloned() };
    match old {
        Some(old)
            if seen.duration_since(old.0) < jiff::SignedDuration::try_from(PRECISION).unwrap_or_default() =>
        {
            Some(old.clone())
        }
        _ => Some(MicroTime(seen)),
    }
}

type Said = (&'static str, bool, &'static str, String);

fn conditions_of(standing: &Standing) -> [Said; 4] {
    let ready = match (standing.replicas, standing.ready) {
        (None, _) => (
            false,
            "NoPool",
            "It has no pool now; one is made when it is needed.".to_owned(),
        ),
        (Some(0), _) => (true, "ScaledToZero", String::new()),
        (Some(wanted), 0) => (false, "NoPodReady", format!("0 of {wanted} pods answer.")),
        (Some(_), _) => (true, "PodsReady", String::new()),
    };
    let active = match (standing.weight, standing.is_stable) {
        (0, _) => (false, "NoTraffic"),
        (_, true) => (true, "Stable"),
        (_, false) => (true, "Candidate"),
    };
    let asleep = standing.replicas == Some(0);
    let quarantined = match standing.is_quarantined {
        true => (
            "RolloutFailed",
            "Its rollout failed; it begins again on the command retry.".to_owned(),
        ),
        false => (condition::reason::OK, String::new()),
    };
    [
        ("Ready", ready.0, ready.1, ready.2),
        ("Active", active.0, active.1, String::new()),
        (
            "ScaledToZero",
            asleep,
            if asleep { "NoPods" } else { "HasPods" },
            String::new(),
        ),
        (
            "Quarantined",
            standing.is_quarantined,
            quarantined.0,
            quarantined.1,
        ),
    ]
}

/// Ready, Active, ScaledToZero, Quarantined of a list, for a test's eye.
#[cfg(test)]
pub(super) fn letters(conditions: &[k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition]) -> String {
    ["Ready", "Active", "ScaledToZero", "Quarantined"]
        .iter()
        .map(|kind| match condition::is_true(conditions, kind) {
            true => kind.chars().next().unwrap_or('?'),
            false => '-',
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> jiff::Timestamp {
        jiff::Timestamp::from_second(1_700_000_000 + second).expect("a time")
    }

    #[test]
    fn a_status_says_how_the_pool_stands_and_is_written_when_that_changes() {
        let serving = Standing {
            replicas: Some(2),
            ready: 2,
            weight: 10_000,
            is_stable: true,
            active_at: Some(at(0)),
            ..Standing::default()
        };
        let rows = [
            ("no pool", Standing::default(), "----", "0%"),
            ("stable", serving.clone(), "RA--", "100%"),
            (
                "a candidate whose pods start",
                Standing {
                    ready: 0,
                    weight: 50,
                    is_stable: false,
                    ..serving.clone()
                },
                "-A--",
                "0.5%",
            ),
            (
                "asleep",
                Standing {
                    replicas: Some(0),
                    ready: 0,
                    ..serving.clone()
                },
                "RAS-",
                "100%",
            ),
            (
                "failed",
                Standing {
                    replicas: Some(0),
                    weight: 0,
                    is_quarantined: true,
                    ..Standing::default()
                },
                "R-SQ",
                "0%",
            ),
        ];
        for (what, standing, shown, weight) in rows {
            let stamp = Stamp(at(0));
            let new = status_of(&RevisionStatus::default(), &standing, Some(1), &stamp);
            let new = new.expect("it says something now");
            assert_eq!(
                (letters(&new.conditions).as_str(), new.weight.as_str()),
                (shown, weight),
                "{what}"
            );
            let later = Stamp(at(60));
            assert_eq!(status_of(&new, &standing, Some(1), &later), None, "{what}");
        }
    }

    #[test]
    fn the_last_request_is_told_coarsely_and_never_goes_back() {
        let old = MicroTime(at(100));
        for (seen, said) in [
            (None, 100),
            (Some(90), 100),
            (Some(129), 100),
            (Some(130), 130),
            (Some(500), 500),
        ] {
            let said = Some(MicroTime(at(said)));
            assert_eq!(last_active(Some(&old), seen.map(at)), said, "{seen:?}");
        }
        assert_eq!(last_active(None, Some(at(3))), Some(MicroTime(at(3))));
        assert_eq!(last_active(None, None), None);
    }
}
