//! Which pods of a pool want a probe, and what its result changes.

use std::sync::Arc;
use std::time::Duration;

use crds::route::Probe;

use super::{Endpoint, Pool, State};

/// How to probe one pod now.
#[derive(Clone, Debug)]
pub(crate) struct ProbeTarget {
    pub(crate) port: u16,
    pub(crate) probe: Probe,
    pub(crate) appeared: Duration,
    /// Whether somebody waits, or nothing else would ever bring the pod back: Kubernetes may have seen nothing of what put
    /// it on probation, and while other pods serve, no request waits for this one.
    pub(crate) is_awaited: bool,
}

impl Pool {
    /// Starts a task for each pod that a probe could make usable and that has none.
    pub(super) fn start_probes(self: &Arc<Self>, state: &mut State) {
        let kind = self.settings.load().probe.kind;
        for pod in state.pods.values_mut() {
            if !pod.is_probed && pod.wants_probe(kind) {
                pod.is_probed = true;
                let endpoint = Arc::clone(&pod.endpoint);
                let task = crate::probe::until_it_answers(Arc::clone(self), Arc::clone(&self.hub), endpoint);
                self.hub.control.spawn(task);
            }
        }
    }

    /// What to probe next; `None`: the pod needs no probe any more, and its task ends.
    pub(crate) fn probe_target(&self, endpoint: &Arc<Endpoint>) -> Option<ProbeTarget> {
        let probe = self.settings.load().probe.clone();
        let mut state = self.state.lock();
        let is_awaited = state.throttle.waiting() > 0;
        let pod = state.pod_of(endpoint)?;
        let port = pod
            .published
            .probe_port
            .or(pod.published.ports.first().map(|(_, port)| *port));
        match port {
            Some(port) if pod.wants_probe(probe.kind) => Some(ProbeTarget {
                port,
                probe,
                appeared: pod.appeared,
                is_awaited: is_awaited || pod.on_probation,
            }),
            _ => {
                pod.is_probed = false;
                None
            }
        }
    }

    /// The pod's task ends; the next held request starts another.
    pub(crate) fn rest(&self, endpoint: &Arc<Endpoint>) {
        let mut state = self.state.lock();
        if let Some(pod) = state.pod_of(endpoint) {
            pod.is_probed = false;
        }
    }

    /// The pod answered (or not) a probe that was sent at `asked`.
    pub(crate) fn probed(self: &Arc<Self>, endpoint: &Arc<Endpoint>, asked: Duration, answers: bool) {
        let mut state = self.state.lock();
        let Some(pod) = state.pod_of(endpoint) else {
            return;
        };
        if !answers {
            pod.failed = Some(asked);
            return;
        }
        pod.answers = true;
        if std::mem::take(&mut pod.on_probation) {
            pod.record.back(self.hub.now());
            tracing::info!(pool = %self.key, address = %endpoint.address, "a pod that was passed over is used again");
        }
        // The first pod that answers is the one whose waiting counts; a pod that never failed answered when asked.
        let failed = pod.failed.take().unwrap_or(asked);
        if let Some(clock) = &mut state.waking {
            clock.failed(failed);
        }
        self.refresh(&mut state);
        drop(state);
        self.touch(true);
    }
}
