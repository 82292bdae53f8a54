//! The processes of the system: the activator, the autoscaler.

use crate::args::Cluster;
use crate::client;
use crate::failure::Failure;
use crate::logs::SetLog;
use crate::signals::Signals;

/// Options of `dormouse activator`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Activator {
    #[command(flatten)]
    cluster: Cluster,
    #[command(flatten)]
    args: activator::Args,
}

/// Options of `dormouse autoscaler`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Autoscaler {
    #[command(flatten)]
    cluster: Cluster,
    #[command(flatten)]
    args: autoscaler::Args,
}

/// # Errors
/// When the cluster's configuration or a flag makes no sense, or the process cannot go on.
pub(crate) async fn activator(args: Activator, set_log: SetLog) -> Result<(), Failure> {
    let signals = Signals::install()?;
    let client = client::process(&args.cluster).await?;
    activator::run(args.args, client, set_log, signals.shutdown, signals.abort).await.map_err(process)
}

/// # Errors
/// When the cluster's configuration makes no sense, or the process cannot go on.
pub(crate) async fn autoscaler(args: Autoscaler, set_log: SetLog) -> Result<(), Failure> {
    let signals = Signals::install()?;
    let client = client::process(&args.cluster).await?;
    autoscaler::run(args.args, client, set_log, signals.shutdown, signals.abort).await.map_err(process)
}

fn process<E: std::error::Error + Send + Sync + 'static>(error: E) -> Failure {
    Failure::Process(error.into())
}
