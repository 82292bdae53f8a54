//! What Kubernetes says of a pool, and what follows from it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crds::route::ProbeKind;

use super::endpoint::Ports;
use super::outlier::Record;
use super::{Endpoint, Pool, Settings, State, View};

/// What Kubernetes publishes of one pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Published {
    /// The pod's ports.
    pub(crate) ports: Ports,
    /// The readiness probe's port, when it has one of its own.
    pub(crate) probe_port: Option<u16>,
    /// Kubernetes says that it is ready.
    pub(crate) serving: bool,
    /// It is being deleted.
    pub(crate) terminating: bool,
}

/// One pod.
#[derive(Debug)]
pub(super) struct Pod {
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) published: Published,
    /// Kubernetes has said once that it serves: from then on its word counts.
    was_serving: bool,
    /// Its probe has succeeded.
    pub(super) answers: bool,
    /// A connection failed: it must answer a probe before it is used again.
    pub(super) on_probation: bool,
    /// It fails requests: not even probed until then.
    pub(super) ejected_until: Option<Duration>,
    /// How often it failed.
    pub(super) record: Record,
    /// A task probes it.
    pub(super) is_probed: bool,
    /// When its last probe that failed was sent.
    pub(super) failed: Option<Duration>,
    pub(super) appeared: Duration,
}

impl Pod {
    pub(super) fn is_usable(&self) -> bool {
        !self.published.terminating
            && !self.on_probation
            && if self.was_serving {
                self.published.serving
            } else {
                self.answers
            }
    }

    /// Whether it is passed over for a time.
    pub(super) fn is_ejected(&self) -> bool {
        self.ejected_until.is_some()
    }

    /// Whether a probe could make it usable.
    pub(super) fn wants_probe(&self, kind: ProbeKind) -> bool {
        let waits_for_kubernetes = if self.was_serving {
            !self.published.serving
        } else {
            kind == ProbeKind::Kubernetes
        };
        !self.is_usable() && !self.published.terminating && !self.is_ejected() && !waits_for_kubernetes
    }
}

impl Pool {
    /// Takes over settings from a Route.
    pub(crate) fn configure(self: &Arc<Self>, settings: Settings) {
        if **self.settings.load() == settings {
            return;
        }
        let mut state = self.state.lock();
        self.settings.store(Arc::new(settings));
        self.refresh(&mut state);
    }

    /// Takes over what Kubernetes publishes: all pods of the pool.
    pub(crate) fn publish(self: &Arc<Self>, mut published: BTreeMap<IpAddr, Published>) {
        let now = self.hub.now();
        let mut state = self.state.lock();
        state.pods.retain(|address, pod| {
            let stays = published.contains_key(address);
            if !stays {
                pod.endpoint.leave(true);
            }
            stays
        });
        for (address, pod) in &mut state.pods {
            let Some(new) = published.remove(address) else {
                continue;
            };
            if let Some(ports) = &pod.endpoint.ports
                && pod.published.ports != new.ports
            {
                *ports.write() = new.ports.clone();
            }
            pod.was_serving |= new.serving;
            if pod.published.terminating != new.terminating {
                pod.endpoint.leave(new.terminating);
            }
            pod.published = new;
        }
        for (address, new) in published {
            let endpoint = Endpoint::pod(address, new.ports.clone(), self.hub.config.workers);
            let pod = Pod {
                endpoint: Arc::new(endpoint),
                was_serving: new.serving,
                published: new,
                answers: false,
                on_probation: false,
                ejected_until: None,
                record: Record::default(),
                is_probed: false,
                failed: None,
                appeared: now,
            };
            state.pods.insert(address, pod);
        }
        let any = state.pods.values().any(|pod| !pod.published.terminating);
        if let Some(clock) = state.waking.as_mut().filter(|_| any) {
            clock.address(now);
        }
        self.refresh(&mut state);
        drop(state);
        self.touch(false);
    }

    /// The division of pods among activators has changed.
    pub(crate) fn reshare(self: &Arc<Self>) {
        if self.view.load().limit > 0 {
            self.refresh(&mut self.state.lock());
        }
    }

    /// Makes the view anew, gives out what became free, and sees to it that pods that should be probed are.
    pub(super) fn refresh(self: &Arc<Self>, state: &mut State) {
        let limit = self.settings.load().limit;
        let now = self.hub.now();
        let (was_ready, ready_since) = {
            let view = self.view.load();
            (view.ready, view.ready_since)
        };
        let usable: Vec<_> = state
            .pods
            .values()
            .filter(|pod| pod.is_usable())
            .map(|pod| &pod.endpoint)
            .inspect(|endpoint| endpoint.answers(now))
            .collect();
        let mut view = View {
            limit,
            ready: usable.len(),
            ready_since: (!usable.is_empty()).then(|| ready_since.unwrap_or(now)),
            ..View::default()
        };
        view.known = state
            .pods
            .values()
            .filter(|pod| !pod.published.terminating)
            .count();
        view.ejected = state
            .pods
            .values()
            .filter(|pod| !pod.published.terminating && pod.is_ejected())
            .count();
        view.door = usable.iter().find_map(|pod| pod.door());
        let mut peers = std::mem::take(&mut state.peers);
        if limit == 0 {
            view.pods = usable.into_iter().cloned().collect();
        } else {
            self.hub.shares(|shares| {
                let mut owners: BTreeMap<&str, u32> = BTreeMap::new();
                for pod in usable {
                    if shares.may_use(pod.address) {
                        view.pods.push(Arc::clone(pod));
                    } else if let Some(owner) = shares.owner(pod.address) {
                        *owners.entry(owner).or_default() += 1;
                    }
                }
                // A pod that is ours, but not yet, has no peer by our name: it is waited for.
                view.peers = owners
                    .into_iter()
                    .filter_map(|(name, pods)| Some((self.peer(&mut peers, name)?, pods)))
                    .collect();
            });
        }
        let ready = view.ready;
        self.view.store(Arc::new(view));
        if ready == 0 {
            state.forget_wake();
        }
        // Kept are those in the view and those that requests are under way to.
        peers.retain(|_, peer| Arc::strong_count(peer) > 1);
        state.peers = peers;
        if ready > 0 && was_ready == 0 {
            self.became_ready.notify_waiters();
            let held = self.held();
            if let Some(clock) = &mut state.waking {
                clock.listening(now, held);
            }
        }
        self.dispatch(state);
        self.start_probes(state);
    }
}
