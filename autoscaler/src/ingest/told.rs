//! What a stream has told so far, kept by applying its lines. Pure.

use std::collections::{BTreeSet, HashMap};

use crds::report::{PoolKey, Report, RouteAck};

use crate::state::RouteKey;

/// Keeps how much each pool has held and in flight; most have nothing and cost nothing.
pub(super) fn apply_busy(busy: &mut HashMap<PoolKey, u32>, report: &Report) {
    if report.full {
        busy.clear();
    }
    for line in &report.pools {
        let key = PoolKey {
            namespace: line.namespace.clone(),
            pool: line.pool.clone(),
        };
        match line.held.saturating_add(line.in_flight) {
            0 => busy.remove(&key),
            some => busy.insert(key, some),
        };
    }
}

/// Applies Route acknowledgements and returns the Routes they changed. A snapshot takes out what it does not name.
pub(super) fn apply_acks(
    acks: &mut HashMap<RouteKey, RouteAck>,
    full: bool,
    lines: Vec<RouteAck>,
) -> Vec<RouteKey> {
    let mut touched = Vec::new();
    let key = |ack: &RouteAck| RouteKey {
        namespace: ack.namespace.clone(),
        name: ack.name.clone(),
    };
    if full {
        let named: BTreeSet<RouteKey> = lines.iter().map(key).collect();
        acks.retain(|route, _| {
            let keep = named.contains(route);
            if !keep {
                touched.push(route.clone());
            }
            keep
        });
    }
    for ack in lines {
        let route = key(&ack);
        let changed = if ack.gone {
            acks.remove(&route).is_some()
        } else {
            acks.insert(route.clone(), ack.clone()).as_ref() != Some(&ack)
        };
        if changed {
            touched.push(route);
        }
    }
    touched
}
