//! The data plane of Dormouse: holds, routes, limits, retries, counts.
//!
//! # Life of a request
//! ```text
//! client ─▶ server ─▶ request ─▶ route ─▶ pool (throttle, balance) ─▶ forward ─▶ pod
//!                        │                   ▲              ▲
//!                        ▼                   └── watch ─────┴── probe
//!                     account ─▶ meter ─▶ report ─▶ autoscaler
//! ```
//! 1. `server` accepts it on the port that stands for its Service, and a worker thread reads its head.
//! 2. `request` resolves the port to a Target (`route`) and, by weight, to a `pool`.
//!    Where a candidate is being let in, `rollout` decides which pool and counts what comes of it, and `mirror` may send a copy;
//!    `synthetic` sends it requests of our own, when it gets too few; both go by `unasked`.
//! 3. The pool admits it: at once, or it waits in line (`throttle`). The first that waits for a sleeping pool makes a
//!    `report` line go out, and the autoscaler wakes it; when none does, `cluster` does.
//! 4. The pool picks the least loaded pod that answers (`balance`, `probe`); with a hard limit only among its share.
//! 5. `forward` sends it. What broke before an answer may be sent again, within a `budget`.
//! 6. `body` carries the answer, and with it everything the request holds, until the last byte; `account` closes the
//!    books, in a `meter`.
//!
//! A refusal at any step is a `reject` and nothing else chooses a status. Cancelling is dropping: a client that goes
//! gives back whatever it holds. Everything that is read on the way is an immutable snapshot made by `watch`.

mod account;
mod admin;
mod balance;
mod body;
mod budget;
mod cluster;
pub mod config;
mod directory;
mod forward;
mod frames;
#[doc(hidden)]
pub mod fuzzing;
mod headers;
mod hold;
mod hub;
mod meter;
mod metrics;
mod mirror;
mod noise;
mod page;
mod places;
mod pool;
mod probe;
mod proxy_header;
mod reject;
mod report;
mod request;
mod rollout;
mod route;
mod selfprobe;
mod server;
mod shutdown;
mod socket;
mod stream;
mod strict;
mod synthetic;
mod talk;
mod tcp;
#[cfg(test)]
mod tests;
mod throttle;
mod unasked;
mod wake;
mod watch;
mod wire;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use config::{Args, Config, ConfigError, ReportAuth};

use admin::Admin;
use cluster::Cluster;
use directory::Directory;
use hub::Hub;
use report::Reporter;
use server::Server;
use shutdown::Phases;
use watch::Index;

/// Reads (`None`) or changes the log filter, and returns the one now in force.
pub type SetLog = Arc<dyn Fn(Option<&str>) -> Result<String, String> + Send + Sync>;

/// Why the activator could not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A flag is out of its range.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The report or admin port cannot be listened on.
    #[error("cannot listen on {address} for the {what}: {source}")]
    Listen {
        /// `report stream` or `admin endpoints`.
        what: &'static str,
        /// Address and port.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// A worker thread could not be started.
    #[error("cannot start a worker thread: {0}")]
    Worker(std::io::Error),
}

/// Serves all Routes until `shutdown`, then drains. `abort` ends it at once.
///
/// Traffic is carried by threads of its own; everything else runs on the caller's runtime.
///
/// # Errors
/// When the flags are out of range, the report or admin port is taken, or there are no more threads.
///
/// # Cancel safety
/// Dropping the future aborts.
pub async fn run(
    args: Args,
    client: kube::Client,
    set_log: SetLog,
    shutdown: CancellationToken,
    abort: CancellationToken,
) -> Result<(), Error> {
    let config = Config::try_from(args)?;
    tracing::info!(?config, "activator starts");
    let app = App::start(config, Some(client.clone()), set_log)?;
    app.spawn(watch::run(client, app.index()));
    tokio::select! {
        biased;
        () = abort.cancelled() => {}
        () = async {
            shutdown.cancelled().await;
            app.drain().await;
        } => {}
    }
    Ok(())
}

/// One activator, put together. Dropping it ends all it has started.
struct App {
    hub: Arc<Hub>,
    directory: Arc<Directory>,
    server: Arc<Server>,
    reporter: Arc<Reporter>,
    phases: Phases,
    tasks: parking_lot::Mutex<tokio::task::JoinSet<()>>,
    #[cfg(test)]
    report_address: SocketAddr,
    #[cfg(test)]
    admin_address: SocketAddr,
}

impl App {
    /// Starts workers, reports and admin endpoints. Routes and pods come from [`App::index`].
    fn start(config: Config, client: Option<kube::Client>, set_log: SetLog) -> Result<Self, Error> {
        let (report, report_address) = listen(&config, config.report_port, "report stream")?;
        let (admin, admin_address) = listen(&config, config.admin_port, "admin endpoints")?;
        tracing::info!(%report_address, %admin_address, "listens");
        let hub = Hub::new(config, Cluster { client });
        let directory = Arc::new(Directory::default());
        hub.metrics.observe(&hub, &directory);
        let server = Server::start(&hub).map_err(Error::Worker)?;
        let reporter = Reporter::new(Arc::clone(&hub), Arc::clone(&directory));
        let phases = Phases::default();
        let endpoints = Arc::new(Admin {
            hub: Arc::clone(&hub),
            directory: Arc::clone(&directory),
            server: Arc::clone(&server),
            phases: phases.clone(),
            set_log,
        });
        let app = Self {
            hub,
            directory,
            server,
            reporter,
            phases,
            tasks: parking_lot::Mutex::default(),
            #[cfg(test)]
            report_address,
            #[cfg(test)]
            admin_address,
        };
        app.spawn(Arc::clone(&app.reporter).collect());
        app.spawn(Arc::clone(&app.reporter).serve(report));
        app.spawn(endpoints.serve(admin));
        app.spawn(forward::close_unused(
            Arc::clone(&app.hub),
            Arc::clone(&app.directory),
        ));
        app.spawn(synthetic::run(
            Arc::clone(&app.hub),
            Arc::clone(&app.directory),
            Arc::clone(&app.server),
        ));
        Ok(app)
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.lock().spawn(task);
    }

    /// Where Routes and pods are applied.
    fn index(&self) -> Index {
        Index::new(
            Arc::clone(&self.hub),
            Arc::clone(&self.server),
            Arc::clone(&self.directory),
        )
    }

    async fn drain(&self) {
        shutdown::drain(&self.hub, &self.server, &self.reporter, &self.phases).await;
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.hub.give_up.cancel();
        self.server.close_all();
        self.server.stop();
    }
}

/// Listens for a port of our own; 0 takes any.
fn listen(config: &Config, port: u16, what: &'static str) -> Result<(TcpListener, SocketAddr), Error> {
    let address = SocketAddr::new(config.bind, port);
    let listener = server::listen(address).map_err(|source| Error::Listen {
        what,
        address,
        source,
    })?;
    let address = listener.local_addr().unwrap_or(address);
    Ok((listener, address))
}
