//! The control plane: captures Services, and scales their workloads from and to zero.
//!
//! # Life of a decision
//!
//! ```text
//! activators ─▶ ingest ─▶ ledger ─▶ scale ─▶ core: Pool::step ─▶ cluster ─▶ /scale      status ─▶ Route status
//! Kubernetes ─▶ watch ──▶ path ───▶ core: capture::step ───────▶ cluster ─▶ Routes, slices, selector keys
//! ```
//!
//! 1. [`ingest`] keeps one stream to each activator. A report line is read, and in the same turn:
//! 2. [`ledger`] sums its cumulative counters into totals of each pool, over activators and their restarts.
//! 3. [`scale`] gathers facts (totals, the workload and its pods from [`watch`], what capture asks for from [`state`]) and
//!    asks the pure core for a step: replicas, a reason, what comes next, and when to look again.
//! 4. [`cluster`] writes `/scale`; the stream already carries the acknowledgement. The reason becomes an Event, a metric
//!    label, a log line, and by [`status`] the Route's `WHY`.
//! 5. [`rollout`] lets new revisions of a workload in, and says how a Service's traffic is divided among their pools.
//! 6. [`path`] is the second, slower machine: it puts activators into a Service's data path and takes them out again,
//!    each step only when the one before is proven. [`examine`] says what stands in the way.
//!
//! [`lease`] lets one process do this while another stands by with warm streams. [`config`] has the knobs, [`clock`] the
//! only clock, [`admin`], [`metrics`] and [`shutdown`] what every process has.

mod admin;
mod clock;
mod cluster;
mod config;
pub mod examine;
mod farewell;
mod ingest;
mod lease;
mod ledger;
mod metrics;
mod path;
mod rollout;
mod scale;
mod shutdown;
mod state;
mod status;
mod watch;

use std::net::SocketAddr;
use std::sync::Arc;

use crds::report::PoolKey;
use tokio::sync::watch as cell;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::cluster::Cluster;
use crate::ingest::{Fleet, Token};
use crate::lease::Elector;
use crate::metrics::Metrics;
use crate::path::Capture;
use crate::rollout::Rollouts;
use crate::rollout::counts::Counts;
use crate::rollout::outside::Outside;
use crate::scale::Scaler;
use crate::shutdown::Phases;
use crate::state::{Divisions, Registry};
use crate::status::Publisher;
use crate::watch::{Index, Scope};

pub use config::Args;
pub use farewell::{HeldBody, hold};

/// Reads (`None`) or changes the log filter; returns the filter now in force, or what is wrong with the given one.
pub type SetLog = Arc<dyn Fn(Option<&str>) -> Result<String, String> + Send + Sync>;

/// Why the autoscaler could not run, or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The admin port cannot be had.
    #[error("the admin port {address} cannot be listened on: {source}")]
    Admin {
        /// Where it should listen.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// A part that must run for ever has ended: a defect. Ending lets Kubernetes start anew.
    #[error("{0} has ended")]
    Ended(&'static str),
}

/// Runs until `shutdown`, then gives back what it holds, within the grace period; `abort` ends it at once.
///
/// It may share its process with an activator: nothing here is global.
///
/// # Errors
/// When the admin port cannot be had, or a part of it ends unexpectedly. Starting anew helps if the cause is gone.
///
/// # Cancel safety
/// Dropping it is like `abort`: the Lease is left to expire.
pub async fn run(
    args: Args,
    client: kube::Client,
    set_log: SetLog,
    shutdown: CancellationToken,
    abort: CancellationToken,
) -> Result<(), Error> {
    let address = SocketAddr::new(args.bind, args.admin_port);
    let listener = admin::bind(address)
        .await
        .map_err(|source| Error::Admin { address, source })?;
    // All but the secret.
    let shown = Args {
        report_token: args.report_token.as_ref().map(|_| "(hidden)".to_owned()),
        ..args.clone()
    };
    tracing::info!(args = ?shown, address = ?listener.local_addr().ok(), "autoscaler starts");
    let app = App::new(&args, client);
    tokio::select! {
        biased;
        () = abort.cancelled() => Ok(()),
        ended = app.run(args, listener, set_log, shutdown) => ended,
    }
}

/// All parts, wired.
struct App {
    client: kube::Client,
    metrics: Arc<Metrics>,
    index: Arc<Index>,
    fleet: Arc<Fleet>,
    capture: Arc<Capture<Fleet>>,
    rollouts: Arc<Rollouts<Fleet>>,
    counts: Arc<Counts>,
    /// Whether every Service is to be given back: asked for on the Lease, or by our own removal.
    release_all: cell::Sender<bool>,
    cluster: Arc<Cluster>,
    events: cluster::EventWriter,
    scaler: Arc<Scaler>,
    elector: Elector,
}

impl App {
    fn new(args: &Args, client: kube::Client) -> Self {
        let metrics = Metrics::new();
        let elector = Elector::new(client.clone(), &args.namespace, &args.name, args.lease_duration);
        let index = Index::new(&args.namespace);
        let fleet = Fleet::new(&args.name, Arc::clone(&metrics));
        let registry = Registry::new();
        let (cluster, events) = Cluster::new(client.clone(), elector.term(), &args.name, metrics.registry());
        let cluster = Arc::new(cluster);
        let clock = Clock::new();
        let release_all = cell::Sender::new(false);
        let streams = Arc::clone(&fleet);
        // While a stream is missing there may be a request that nobody tells of.
        let busy = Arc::new(move |pool: &PoolKey| streams.busy(pool).unwrap_or(1));
        let (divisions, counts) = (Divisions::new(), Arc::new(Counts::default()));
        let capture = Capture::new(
            clock,
            args.settle,
            Arc::clone(&index),
            Arc::clone(&cluster),
            Arc::clone(&fleet),
            Arc::clone(&registry),
            busy,
            release_all.subscribe(),
            Arc::clone(&divisions),
        );
        let scaler = Scaler::new(
            clock,
            Arc::clone(&index),
            Arc::clone(&cluster),
            Arc::clone(&registry),
            Arc::clone(&fleet),
            Arc::clone(&metrics),
            release_all.subscribe(),
        );
        let traffic = Arc::clone(&scaler);
        let rollouts = Rollouts::new(
            clock,
            Arc::clone(&index),
            Arc::clone(&cluster),
            Arc::clone(&fleet),
            registry,
            divisions,
            Arc::clone(&counts),
            Arc::new(move |pool: &PoolKey| traffic.traffic(pool)),
            release_all.subscribe(),
            Outside::new(metrics.registry()),
        );
        Self {
            client,
            metrics,
            index,
            fleet,
            capture,
            rollouts,
            counts,
            release_all,
            cluster,
            events,
            scaler,
            elector,
        }
    }

    async fn run(
        self,
        args: Args,
        listener: tokio::net::TcpListener,
        set_log: SetLog,
        shutdown: CancellationToken,
    ) -> Result<(), Error> {
        let mut phases = Phases::new();
        let pages = self.pages(set_log);
        let leading = self.elector.leading();
        phases.last("the admin port", |stop| admin::serve(listener, pages, stop));
        let scope = Scope {
            namespace: args.watch_namespace.clone(),
            system: args.namespace.clone(),
        };
        phases.last("the watches", |stop| {
            watch::run(Arc::clone(&self.index), self.client.clone(), scope, stop)
        });
        phases.last("the Events", |stop| self.events.run(stop));
        let token = args
            .report_token
            .clone()
            .map_or_else(|| Token::File(args.report_token_file.clone()), Token::Text);
        phases.last("the report streams", |stop| {
            let (scaled, counts) = (self.scaler.sink(), Arc::clone(&self.counts));
            let sink: ingest::Sink = Arc::new(move |event| {
                if let ingest::Event::Line { report, .. } = &event {
                    counts.line(report);
                }
                scaled(event);
            });
            Arc::clone(&self.fleet).run(self.index.activators(), leading.clone(), token, sink, stop)
        });
        let (mut asked, asks) = (self.elector.release_all(), self.release_all.clone());
        phases.last("the request to give everything back", |stop| async move {
            while !stop.is_cancelled() {
                let now = *asked.borrow_and_update();
                asks.send_if_modified(|old| std::mem::replace(old, now) != now);
                tokio::select! {
                    () = stop.cancelled() => return,
                    changed = asked.changed() => if changed.is_err() { stop.cancelled().await },
                }
            }
        });
        let mut synced = self.index.synced();
        phases.second("the Lease", |stop| async move {
            // Who cannot read yet must not lead.
            let first = tokio::select! {
                () = stop.cancelled() => false,
                waited = synced.wait_for(|synced| *synced) => waited.is_ok(),
            };
            if first {
                self.elector.run(stop).await;
            }
        });
        let view = {
            let scaler = Arc::clone(&self.scaler);
            Arc::new(move |key: &state::RouteKey, old: &crds::RouteStatus| scaler.view(key, old))
        };
        let publisher = Publisher::new(
            Arc::clone(&self.cluster),
            Arc::clone(&self.index),
            Arc::clone(&self.metrics),
            view,
        );
        phases.first("capture", |stop| {
            Arc::clone(&self.capture).run(leading.clone(), stop)
        });
        phases.first("rollouts", |stop| {
            let namespace = args.watch_namespace.clone();
            Arc::clone(&self.rollouts).run(self.client.clone(), namespace, leading.clone(), stop)
        });
        phases.first("status", |stop| {
            publisher.run(self.scaler.shown(), leading.clone(), stop)
        });
        phases.first("the scaler", |stop| {
            Arc::clone(&self.scaler).run(leading.clone(), stop)
        });
        let ended = phases.until(&shutdown).await;
        tracing::info!("autoscaler ends");
        let started = Instant::now();
        let removed = ended.is_none() && shutdown::removed(&self.index, &args);
        if removed {
            // The standby too: it takes over if the leader does not get to the end.
            tracing::info!("the autoscaler is being removed: every Service is given back");
            self.capture.hurry();
            self.release_all.send_replace(true);
            shutdown::all_given_back(&self.index, args.grace / 5 * 4).await;
        }
        phases.end(args.grace.saturating_sub(started.elapsed())).await;
        if removed && let Some(name) = &args.deployment {
            farewell::let_go(&self.client, &args.namespace, name).await;
        }
        ended.map_or(Ok(()), |part| Err(Error::Ended(part)))
    }

    fn pages(&self, log: SetLog) -> admin::Pages {
        let synced = self.index.synced();
        let (metrics, for_metrics) = (Arc::clone(&self.metrics), Arc::clone(&self.scaler));
        let (scaler, fleet, index) = (
            Arc::clone(&self.scaler),
            Arc::clone(&self.fleet),
            Arc::clone(&self.index),
        );
        let explainer = Arc::clone(&self.scaler);
        admin::Pages {
            ready: Box::new(move || {
                if *synced.borrow() {
                    Ok(())
                } else {
                    Err("the first lists are not in yet".to_owned())
                }
            }),
            metrics: Box::new(move || {
                metrics.show_phases(&for_metrics.phases());
                metrics.text()
            }),
            state: Box::new(move || {
                serde_json::json!({
                    "scaler": scaler.dump(),
                    "fleet": fleet.dump(),
                    "index": index.sizes(),
                })
            }),
            explain: Box::new(move |namespace, name| explainer.explain(namespace, name)),
            log,
        }
    }
}
