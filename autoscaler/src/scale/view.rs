//! What users see of the scaler's mind: a Route's status, and the longer story for `explain`.

use std::collections::BTreeMap;

use crds::condition::{self, DEPENDENCIES, REPLICAS_CONFLICT, WORKLOAD_HEALTHY};
use crds::route::{FULL_WEIGHT, Phase, Route, RouteStatus};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::unit::Unit;
use super::{Scaler, State, reason};
use crate::state::{Entry, RouteKey};

impl Scaler {
    /// What the status of a Route should say; `old` is what it says.
    pub(crate) fn view(&self, key: &RouteKey, old: &RouteStatus) -> Option<RouteStatus> {
        let entry = self.registry.get(key)?;
        let route = self.index.route(key)?;
        let state = self.state.lock();
        let units = units(&state, &entry);
        // Entered, but not decided on yet: in a moment there is more to say.
        if units.len() < entry.pools.len() {
            return None;
        }
        let now = Instant::now();
        let want: u32 = units.iter().map(|unit| unit.want).sum();
        let ready: u32 = units.iter().map(|unit| unit.ready()).sum();
        let phase = entry.phase.unwrap_or(match (want, ready) {
            (0, _) => Phase::Asleep,
            (_, 0) => Phase::Waking,
            _ => Phase::Awake,
        });
        let refused = phase == Phase::Refused;
        let trouble = units.iter().find_map(|unit| unit.health.found.as_ref());
        let first = units.first();
        let why = match (&entry.why, trouble) {
            (Some(why), _) => why.clone(),
            (None, Some(trouble)) => trouble.message.clone(),
            (None, None) => first
                .map(|unit| unit.stays.as_ref().unwrap_or(&unit.why).clone())
                .unwrap_or_default(),
        };
        let mut status = RouteStatus {
            phase: Some(phase),
            pods: if refused {
                String::new()
            } else {
                format!("{}/{want}", ready.min(want))
            },
            weights: weights(&route),
            why,
            next: first.map(|unit| unit.next.clone()).unwrap_or_default(),
            last_request: last_request(self, &units, old),
            observed_generation: entry.generation,
            listening: entry.listening.clone(),
            wakes: first.map_or_else(|| old.wakes.clone(), |unit| unit.wakes.iter().cloned().collect()),
            command: state
                .commands
                .get(key)
                .cloned()
                .unwrap_or_else(|| old.command.clone()),
            conditions: old.conditions.clone(),
        };
        status.listening.sort();
        let stamp = self.clock.timestamp(now);
        let own = |kind, ok, why: &str, message: String| {
            condition::condition(kind, ok, why, message, entry.generation, stamp.clone())
        };
        let mut conditions: Vec<_> = entry.conditions.clone();
        if !refused {
            conditions.push(match trouble {
                Some(found) => own(WORKLOAD_HEALTHY, false, found.reason, found.message.clone()),
                None => own(WORKLOAD_HEALTHY, true, reason::OK, String::new()),
            });
            let conflict = units.iter().find_map(|unit| unit.conflict.clone());
            if let Some(message) = conflict {
                conditions.push(own(REPLICAS_CONFLICT, true, reason::FOREIGN_MANAGER, message));
            }
            if !entry.settings.depends_on.is_empty() {
                conditions.push(match self.dependencies(&state, &entry) {
                    Some((reason, message)) => own(DEPENDENCIES, false, reason, message),
                    None => own(DEPENDENCIES, true, reason::OK, String::new()),
                });
            }
        }
        status
            .conditions
            .retain(|old| conditions.iter().any(|new| new.type_ == old.type_));
        for new in conditions {
            condition::set(&mut status.conditions, new);
        }
        Some(status)
    }

    /// What cannot be obeyed of a Service's `depends-on`.
    fn dependencies(&self, state: &State, entry: &Entry) -> Option<(&'static str, String)> {
        let (pool, _) = entry.pools.first()?;
        let troubles = state.together.troubles(pool);
        let told = troubles.iter().map(|trouble| self.explain_trouble(pool, trouble));
        let (reasons, sentences): (Vec<&str>, Vec<String>) = told.unzip();
        Some((*reasons.first()?, sentences.join(" ")))
    }

    /// How many Routes are in each phase.
    pub(crate) fn phases(&self) -> BTreeMap<String, i64> {
        let all = [
            Phase::Direct,
            Phase::Asleep,
            Phase::Waking,
            Phase::Awake,
            Phase::FailOpen,
            Phase::Refused,
        ];
        let mut phases: BTreeMap<String, i64> = all.iter().map(|phase| (phase.to_string(), 0)).collect();
        for (_, route) in self.index.routes() {
            if let Some(phase) = route.status.as_ref().and_then(|status| status.phase) {
                *phases.entry(phase.to_string()).or_default() += 1;
            }
        }
        phases
    }

    /// Everything about one Service that a person may want to know; `None`: it is not opted in, or we do not lead.
    pub(crate) fn explain(&self, namespace: &str, name: &str) -> Option<Value> {
        let key = RouteKey {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        let entry = self.registry.get(&key)?;
        let mut state = self.state.lock();
        let now = Instant::now();
        let mut pools = Vec::new();
        for (pool, workload) in &entry.pools {
            let traffic = state.ledger.traffic(pool, now);
            let unit = state.units.get(pool).map(|unit| unit.explain(now));
            pools.push(json!({
                "pool": pool.pool,
                "workload": workload.to_string(),
                "decision": unit,
                "traffic": {
                    "arrivals": traffic.arrivals,
                    "completions": traffic.completions,
                    "inFlightSeconds": traffic.in_flight_seconds,
                    "heldSeconds": traffic.held_seconds,
                    "serviceSeconds": traffic.service_seconds,
                    "inFlight": traffic.in_flight,
                    "held": traffic.held,
                    "ready": traffic.ready,
                    "oldestHeldMs": traffic.oldest_held.map(|at| millis(now, at)),
                    "idleMs": traffic.last_request.map(|at| millis(now, at)),
                },
            }));
        }
        Some(json!({
            "namespace": namespace,
            "name": name,
            "phase": entry.phase.map(|phase| phase.to_string()),
            "maySleep": entry.may_sleep.is_ok(),
            "keptAwake": entry.may_sleep.as_ref().err(),
            "atLeast": entry.at_least.as_ref().map(|(replicas, why)| json!({"replicas": replicas, "why": why})),
            "holds": entry.holds,
            "scaledBy": entry.scaled_by,
            "listening": entry.listening,
            "pools": pools,
        }))
    }

    /// What this process knows, for the dump of the admin port.
    pub(crate) fn dump(&self) -> Value {
        let state = self.state.lock();
        let now = Instant::now();
        let units: BTreeMap<String, Value> = state
            .units
            .values()
            .map(|unit| (unit.key.to_string(), unit.explain(now)))
            .collect();
        json!({
            "leadsForMs": state.leads_since.map(|since| millis(now, since)),
            "activatorInstances": state.ledger.instances(),
            "timers": state.timers.len(),
            "pools": units,
        })
    }
}

impl Unit {
    fn explain(&self, now: Instant) -> Value {
        json!({
            "wanted": self.want,
            "replicas": self.replicas,
            "ready": self.ready(),
            "writing": self.writing,
            "waking": self.waking,
            "why": self.why,
            "stays": self.stays,
            "conflict": self.conflict,
            "next": self.next,
            "startingMs": self.starting(now).map(|age| age.as_millis()).collect::<Vec<_>>(),
            "nextLookMs": self.timer.map(|at| millis(at, now)),
            "lastSignalMs": self.signal_ms,
            "routes": self.routes.keys().map(ToString::to_string).collect::<Vec<_>>(),
            "trouble": self.health.found.as_ref().map(|found| &found.message),
            "numbers": self.numbers(),
        })
    }
}

fn units<'a>(state: &'a State, entry: &Entry) -> Vec<&'a Unit> {
    entry
        .pools
        .iter()
        .filter_map(|(pool, _)| state.units.get(pool))
        .collect()
}

/// The newest of what was seen and what the status says already: a new leader must not turn it back.
fn last_request(
    scaler: &Scaler,
    units: &[&Unit],
    old: &RouteStatus,
) -> Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::Time> {
    let seen = units
        .iter()
        .filter_map(|unit| unit.last_request)
        .max()
        .map(|at| scaler.clock.timestamp(at));
    match (seen, &old.last_request) {
        (Some(seen), Some(old)) if seen.0 < old.0 => Some(old.clone()),
        (seen, old) => seen.or_else(|| old.clone()),
    }
}

/// `web=100`, or `web-1=80,web-2=20`: in percent, with decimals only where needed.
fn weights(route: &Route) -> String {
    let percent = |weight: u32| {
        let share = f64::from(weight) * 100.0 / f64::from(FULL_WEIGHT);
        if share.fract() == 0.0 {
            format!("{share:.0}")
        } else {
            format!("{share}")
        }
    };
    let pools = route
        .spec
        .pools
        .iter()
        .map(|pool| format!("{}={}", pool.name, percent(pool.weight)));
    pools.collect::<Vec<_>>().join(",")
}

fn millis(later: Instant, earlier: Instant) -> u64 {
    u64::try_from(later.saturating_duration_since(earlier).as_millis()).unwrap_or(u64::MAX)
}
