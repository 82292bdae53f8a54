//! Where a request can be sent.

use std::net::IpAddr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::RwLock;

use crate::forward::Connections;
use crate::rollout::Warmup;

/// `(listening port here, port there)`, ascending.
pub(super) type Ports = Box<[(u16, u16)]>;

/// Where a request can be sent: a pod or a peer activator.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) address: IpAddr,
    /// A pod's port for each listening port; a peer listens on the listening ports themselves.
    pub(super) ports: Option<RwLock<Ports>>,
    /// Requests sent there and not ended.
    pub(crate) in_flight: AtomicU32,
    /// Resets since its last answer.
    resets: AtomicU32,
    /// When it was first seen answering, as an uptime.
    since: OnceLock<Duration>,
    /// Answers while it warmed up, as far as anybody asked.
    warmed: AtomicU32,
    /// It ends soon: its connections are not kept.
    is_leaving: AtomicBool,
    /// Idle connections, for each worker and then for control tasks. They close when the endpoint is dropped.
    pub(crate) connections: Box<[Connections]>,
}

impl Endpoint {
    pub(super) fn pod(address: IpAddr, ports: Ports, workers: usize) -> Self {
        Self {
            ports: Some(RwLock::new(ports)),
            ..Self::peer(address, workers)
        }
    }

    /// A peer activator.
    pub(crate) fn peer(address: IpAddr, workers: usize) -> Self {
        Self {
            address,
            ports: None,
            in_flight: AtomicU32::new(0),
            resets: AtomicU32::new(0),
            since: OnceLock::new(),
            warmed: AtomicU32::new(0),
            is_leaving: AtomicBool::new(false),
            connections: (0..=workers).map(|_| Connections::default()).collect(),
        }
    }

    /// Whether it is a peer activator.
    pub(crate) fn is_peer(&self) -> bool {
        self.ports.is_none()
    }

    /// It has answered.
    pub(crate) fn answered(&self) {
        // Nearly always zero, and then nothing is written: the line stays shared between cores.
        if self.resets.load(Ordering::Relaxed) > 0 {
            self.resets.store(0, Ordering::Relaxed);
        }
    }

    /// It answers.
    pub(super) fn answers(&self, now: Duration) {
        self.since.get_or_init(|| now);
    }

    /// Whether it had warmed up when a request was sent to it that it now answers; asked once for each request.
    pub(crate) fn is_warm(&self, sent: Duration, warmup: Warmup) -> bool {
        let is_early = self.warmed.load(Ordering::Relaxed) < warmup.requests
            && self.warmed.fetch_add(1, Ordering::Relaxed) < warmup.requests;
        !is_early
            && self
                .since
                .get()
                .is_some_and(|since| *since + warmup.period <= sent)
    }

    /// A request to it was reset. Returns how many were, without an answer in between.
    pub(super) fn was_reset(&self) -> u32 {
        self.resets.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// It ends soon, or not after all. One that ends soon is told so: a server that waits for its clients to close can go
    /// on, and nothing is sent on a connection that it is about to close.
    pub(super) fn leave(&self, is_leaving: bool) {
        self.is_leaving.store(is_leaving, Ordering::Release);
        if is_leaving {
            self.connections.iter().for_each(Connections::close_idle);
        }
    }

    /// Closes connections that nobody has used since the last time. Returns how many.
    pub(super) fn close_unused(&self) -> usize {
        self.connections.iter().map(Connections::close_unused).sum()
    }

    /// Whether it ends soon.
    pub(crate) fn is_leaving(&self) -> bool {
        self.is_leaving.load(Ordering::Acquire)
    }

    /// The port there for what is served here on `listen`.
    pub(crate) fn port(&self, listen: u16) -> Option<u16> {
        match &self.ports {
            None => Some(listen),
            Some(ports) => ports
                .read()
                .iter()
                .find(|(ours, _)| *ours == listen)
                .map(|(_, theirs)| *theirs),
        }
    }

    /// One of our listening ports that lead to it.
    pub(super) fn door(&self) -> Option<u16> {
        let ports = self.ports.as_ref()?.read();
        ports.first().map(|(ours, _)| *ours)
    }
}
