//! The way out: `Serving → Unready → Draining → Drained`, at the first signal; the second ends it at once.
//!
//! - `Serving => Unready`: reports say so, and autoscalers take this activator out of all slices. Each answer tells its client
//!   to connect anew (`Connection: close`, GOAWAY). Nothing else changes.
//! - `Unready => Draining`, after `--drain-delay`: the cluster has followed. While Routes lead here and no other activator
//!   serves, up to `--drain-alone` later: an uninstallation gives Services back meanwhile. Listeners close, connections are told to go
//!   (`Connection: close`, GOAWAY), requests in flight and held ones go on.
//! - `Draining => Drained`, when none is left or after `--drain-timeout`: what still waits gets 503.
//!
//! Reports and admin endpoints live longest: what ended during the drain is reported too.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::hub::Hub;
use crate::report::Reporter;
use crate::server::Server;

/// How often is looked whether requests are left. Only while draining.
const LOOK: Duration = Duration::from_millis(20);
/// How long refusals may take to be written at the end.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// How long the last report may take to be written.
const FLUSH: Duration = Duration::from_millis(300);

/// Where the activator is on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// All is open.
    Serving,
    /// It says that it leaves.
    Unready,
    /// It accepts nothing new.
    Draining,
    /// Nothing is left.
    Drained,
}

/// The phase, readable by all.
#[derive(Clone, Debug)]
pub(crate) struct Phases(Arc<watch::Sender<Phase>>);

impl Default for Phases {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(Phase::Serving)))
    }
}

impl Phases {
    /// The phase now.
    pub(crate) fn now(&self) -> Phase {
        *self.0.borrow()
    }

    fn enter(&self, phase: Phase) {
        tracing::info!(?phase, "shutdown");
        self.0.send_replace(phase);
    }
}

/// Goes all the way. To be called once, after the signal.
pub(crate) async fn drain(hub: &Hub, server: &Server, reporter: &Reporter, phases: &Phases) {
    phases.enter(Phase::Unready);
    reporter.stop_serving();
    server.leave_all();
    tokio::time::sleep(hub.config.drain_delay).await;
    let latest = Instant::now() + hub.config.drain_alone;
    while server.ports() > 0 && !hub.others_serve() && Instant::now() < latest {
        tokio::time::sleep(LOOK).await;
    }

    phases.enter(Phase::Draining);
    server.close_all();
    let deadline = Instant::now() + hub.config.drain_timeout;
    while is_busy(hub, server) && Instant::now() < deadline {
        tokio::time::sleep(LOOK).await;
    }
    let left = hub.active.load(Ordering::Acquire);
    if left > 0 {
        tracing::warn!(left, "requests are given up");
        hub.give_up.cancel();
        tokio::time::sleep(LAST_WORDS).await;
    }
    server.stop();

    phases.enter(Phase::Drained);
    hub.changed(None, true);
    tokio::time::sleep(FLUSH).await;
}

/// Requests are in flight, or a connection has yet to write what it was given.
fn is_busy(hub: &Hub, server: &Server) -> bool {
    hub.active.load(Ordering::Acquire) > 0 || server.connections() > 0
}
