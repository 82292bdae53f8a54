//! Carrying out: one await for each action.

use std::net::IpAddr;
use std::sync::Arc;

use crds::names::{AUTOSCALER_MANAGER, SCALE_MANAGER};
use crds::report::PoolKey;
use crds::route::RouteSpec;
use dormouse_core::Time;
use dormouse_core::capture::{Action, SliceFact, Step};

use super::gather::{Seen, earliest};
use super::want::{is_private, is_slice};
use super::{Activators, Capture, Unit};
use crate::cluster::{Error, SliceSpec};
use crate::ingest::Probe;
use crate::state::RouteKey;
use crate::watch::SliceFacts;

/// How many settle times a pool that a Route has left stays: activators are told, and what they dispatched ends.
const LEFT_SETTLES: u32 = 15;

impl<A: Activators> Capture<A> {
    /// Does what the step says, in its order; the first failure ends it, and the next look starts from what stands then.
    pub(super) async fn carry_out(
        self: &Arc<Self>,
        key: &RouteKey,
        unit: &mut Unit,
        seen: &Seen,
        step: &Step,
    ) -> Result<(), Error> {
        if seen.service.we_own_selector {
            // Left behind by a write that was cut short.
            self.cluster
                .disown_selector(&key.namespace, &key.name, Some(AUTOSCALER_MANAGER))
                .await?;
        }
        for action in &step.actions {
            tracing::debug!(route = %key, ?action, stage = ?step.stage, "capture");
            self.perform(key, unit, seen, action).await?;
        }
        self.withdraw_pods(unit, seen).await?;
        self.leave(key, unit, seen).await?;
        self.disown(key, seen).await
    }

    /// Sees to it that nothing which the user applies belongs to anybody because of us.
    async fn disown(&self, key: &RouteKey, seen: &Seen) -> Result<(), Error> {
        let service = &seen.service;
        if service.has_key() && !service.selector_managers.is_empty() {
            // Whoever applied through the admission policy owns a selector with our key: a second one would differ from it.
            self.cluster
                .disown_selector(&key.namespace, &key.name, None)
                .await?;
        }
        if let Some(workload) = &seen.workload
            && workload
                .replicas_managers
                .iter()
                .any(|name| name == SCALE_MANAGER)
        {
            // A change from one number to another, neither of them zero, has made them ours.
            self.cluster
                .disown_replicas(&key.namespace, &workload.workload)
                .await?;
        }
        Ok(())
    }

    async fn perform(
        self: &Arc<Self>,
        key: &RouteKey,
        unit: &mut Unit,
        seen: &Seen,
        action: &Action,
    ) -> Result<(), Error> {
        let cluster = &self.cluster;
        match action {
            Action::EnsurePrivateServices => {
                for wanted in &seen.private {
                    let there = self.index.private_service(&wanted.pool);
                    if !there.is_some_and(|there| is_private(&there, wanted)) {
                        cluster.apply_private_service(wanted).await?;
                    }
                }
                Ok(())
            }
            Action::EnsureRoute => {
                cluster
                    .apply_route(&seen.service, &seen.spec, &seen.last_good)
                    .await?;
                let names: Vec<&str> = seen.spec.ports.iter().map(|port| port.name.as_str()).collect();
                self.free_ports(key, &names);
                Ok(())
            }
            Action::RecordOriginal => match &seen.workload {
                Some(workload) => {
                    let replicas = Some(workload.replicas);
                    cluster
                        .note_original(&key.namespace, &workload.workload, replicas)
                        .await
                }
                None => Ok(()),
            },
            Action::PublishActivators(_) => self.list(&seen.ours.activators, &seen.activators).await,
            // Of a Route that was never seen nothing can be said of its pods: no list is better than an empty one.
            Action::PublishPods if seen.pods.is_empty() => Ok(()),
            Action::PublishPods => {
                self.list(&seen.ours.pods, &seen.pods).await?;
                self.list(&seen.ours.activators, &[]).await
            }
            Action::Probe { id } => {
                self.probe(key, unit, seen, *id);
                Ok(())
            }
            Action::AddKey => cluster.add_key(&seen.service).await,
            Action::RemoveKey => cluster.remove_key(&seen.service).await,
            Action::RemoveSlice => {
                self.list(&seen.ours.activators, &[]).await?;
                self.list(&seen.ours.pods, &[]).await
            }
            Action::ForgetOriginal => self.restore(key, seen).await,
            Action::EmptyRoute => {
                let empty = RouteSpec::default();
                cluster
                    .apply_route(&seen.service, &empty, &seen.last_good)
                    .await?;
                self.free_ports(key, &[]);
                Ok(())
            }
            Action::RemoveRoute => match seen
                .route
                .as_ref()
                .and_then(|route| route.metadata.uid.as_deref())
            {
                Some(uid) => cluster.delete_route(key, uid).await,
                None => Ok(()),
            },
            Action::RemovePrivateServices => self.remove_private(seen).await,
        }
    }

    /// After a failure: pods stay listed beside the activators until every node knows those.
    async fn withdraw_pods(&self, unit: &mut Unit, seen: &Seen) -> Result<(), Error> {
        let both = seen.wanted
            && !seen.ours.pods.is_empty()
            && matches!(seen.facts.slice, SliceFact::Activators { current: true, .. });
        if !both {
            unit.returned = None;
            return Ok(());
        }
        let now = self.now();
        let since = *unit.returned.get_or_insert(now);
        if now.since(since) < self.waits.settle {
            return Ok(());
        }
        self.list(&seen.ours.pods, &[]).await
    }

    /// Makes the slices of one sort what they should be: what is new first, then what is too much.
    async fn list(&self, there: &[Arc<SliceFacts>], wanted: &[SliceSpec]) -> Result<(), Error> {
        for slice in wanted {
            if !there.iter().any(|old| is_slice(old, slice)) {
                self.cluster.apply_slice(slice).await?;
            }
        }
        for old in there {
            if !wanted.iter().any(|slice| slice.name == old.name) {
                self.cluster.delete_slice(&old.namespace, &old.name).await?;
            }
        }
        Ok(())
    }

    /// Starts a self-probe; its end marks the Service for a look.
    fn probe(self: &Arc<Self>, key: &RouteKey, unit: &Unit, seen: &Seen, id: u64) {
        let address = address(seen);
        // Beside built-in endpoints most connections may rightly land on a pod: enough tries that a miss is no accident.
        let listening = u32::try_from(seen.facts.listening.len()).unwrap_or(1).max(1);
        let shares = 1 + seen.facts.builtin_ready / listening;
        let tries = shares.saturating_mul(12).clamp(4, 96);
        let (this, key, outcome) = (Arc::clone(self), key.clone(), Arc::clone(&unit.probe));
        tokio::spawn(async move {
            let result = match address {
                None => Err("the Service has no ClusterIP yet".to_owned()),
                Some(address) => match this.fleet.probe(&key, &address, tries).await {
                    Probe::Landed { .. } => Ok(()),
                    Probe::Missed(why) => Err(why),
                },
            };
            *outcome.lock() = Some((id, result));
            this.again.mark([key]);
        });
    }

    /// The workload as it was before capture, and no note any more.
    async fn restore(&self, key: &RouteKey, seen: &Seen) -> Result<(), Error> {
        let Some(workload) = &seen.workload else {
            return Ok(());
        };
        // With a HorizontalPodAutoscaler the number above zero is its own.
        if workload.replicas != seen.facts.original && seen.hpa.is_none() {
            self.cluster
                .scale(&key.namespace, &workload.workload, seen.facts.original)
                .await?;
        }
        self.cluster
            .note_original(&key.namespace, &workload.workload, None)
            .await
    }

    async fn remove_private(&self, seen: &Seen) -> Result<(), Error> {
        for wanted in &seen.private {
            if seen.shared {
                self.cluster.apply_private_service(wanted).await?;
            } else {
                let PoolKey { namespace, pool } = &wanted.pool;
                self.cluster.delete_private_service(namespace, pool).await?;
            }
        }
        Ok(())
    }

    /// Private Services of pools that the Route has left, some time after.
    async fn leave(&self, key: &RouteKey, unit: &mut Unit, seen: &Seen) -> Result<(), Error> {
        let now = self.now();
        for pool in &seen.left_pools {
            unit.left.entry(pool.clone()).or_insert(now);
        }
        let rest = self.waits.settle * LEFT_SETTLES;
        let due: Vec<_> = unit
            .left
            .iter()
            .filter(|(_, since)| now.since(**since) >= rest)
            .map(|(pool, _)| pool.clone())
            .collect();
        for pool in due {
            let used = self.index.routes().iter().any(|(other, route)| {
                other.namespace == key.namespace && route.spec.pools.iter().any(|each| each.name == pool.pool)
            });
            if !used {
                self.cluster
                    .delete_private_service(&pool.namespace, &pool.pool)
                    .await?;
            }
            unit.left.remove(&pool);
        }
        Ok(())
    }

    /// When something that was left behind may go.
    pub(super) fn tidy_at(&self, unit: &Unit) -> Option<Time> {
        let left = unit
            .left
            .values()
            .min()
            .map(|since| *since + self.waits.settle * LEFT_SETTLES);
        earliest(left, unit.returned.map(|since| since + self.waits.settle))
    }
}

/// The Service's own address and first port.
fn address(seen: &Seen) -> Option<String> {
    let address: IpAddr = seen.service.cluster_ip.parse().ok()?;
    let port = seen.service.ports.first()?.port;
    Some(std::net::SocketAddr::new(address, port).to_string())
}
