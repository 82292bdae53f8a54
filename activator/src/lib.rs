//! The data plane of Dormouse.

pub mod config;

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

pub use config::{Args, Config, ConfigError, ReportAuth};

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
        address: std::net::SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// A worker thread could not be started.
    #[error("cannot start a worker thread: {0}")]
    Worker(std::io::Error),
}

/// Serves all Routes until `shutdown`, then drains. `abort` ends it at once.
///
/// # Errors
/// When the flags are out of range, or the report or admin port is taken.
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
    drop((client, set_log));
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = abort.cancelled() => {}
    }
    Ok(())
}
