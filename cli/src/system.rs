//! The processes of the system: the activator, the autoscaler, and the embedded cluster with both inside.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::Context as _;
use crds::{Revision, Rollout, Route};
use kube::CustomResourceExt as _;
use tokio_util::sync::CancellationToken;

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
    if let Some(limit) = local::raise_open_files().filter(|limit| *limit < OPEN_FILES) {
        tracing::warn!(
            limit,
            "few files may be open: a Service port needs one, a request in flight two"
        );
    }
    let client = client::process(&args.cluster).await?;
    activator::run(args.args, client, set_log, signals.shutdown, signals.abort)
        .await
        .map_err(process)
}

/// Fewer open files than this are worth a warning: a thousand Services and some thousand connections.
const OPEN_FILES: u64 = 10_000;

/// # Errors
/// When the cluster's configuration makes no sense, or the process cannot go on.
pub(crate) async fn autoscaler(args: Autoscaler, set_log: SetLog) -> Result<(), Failure> {
    let signals = Signals::install()?;
    let client = client::process(&args.cluster).await?;
    autoscaler::run(args.args, client, set_log, signals.shutdown, signals.abort)
        .await
        .map_err(process)
}

/// # Errors
/// When an address is taken, or the cluster cannot go on.
pub(crate) async fn local(args: local::Args, set_log: SetLog) -> Result<(), Failure> {
    let Signals { shutdown, abort } = Signals::install()?;
    let token = local::random_token().context("cannot read random bytes")?;
    let settle = SETTLE + 2 * Duration::from_millis(args.proxy_delay);
    let system = local::System {
        crds: vec![Route::crd(), Rollout::crd(), Revision::crd()],
        activator: Some(activator_part(SetLog::clone(&set_log), abort.clone())),
        autoscaler: Some(autoscaler_part(token.clone(), settle, set_log, abort.clone())),
        autoscaler_token: Some(token),
    };
    tokio::select! {
        ended = local::run(args, system, shutdown) => ended.map_err(Failure::Process),
        () = abort.cancelled() => Err(Failure::No(Some("ended at once, as asked to twice".to_owned()))),
    }
}

/// The embedded cluster's proxy follows at once, or after `--proxy-delay`, which is added twice.
const SETTLE: Duration = Duration::from_millis(250);

/// The port of the autoscaler's admin endpoints where it shares its address with an activator, which has 9000.
const AUTOSCALER_ADMIN_PORT: u16 = 9002;

/// The activator inside `dormouse local`.
fn activator_part(set_log: SetLog, abort: CancellationToken) -> local::Part {
    Box::new(move |client, address: IpAddr, shutdown| {
        let args = activator::Args {
            bind: address,
            name: Some("dormouse-activator-local".to_owned()),
            // There is no other activator to take over, and somebody waits at the keyboard.
            drain_delay: Duration::ZERO,
            drain_timeout: Duration::from_secs(2),
            ..activator::Args::default()
        };
        Box::pin(async move { Ok(activator::run(args, client, set_log, shutdown, abort).await?) })
    })
}

/// The autoscaler inside `dormouse local`.
fn autoscaler_part(
    token: String,
    settle: Duration,
    set_log: SetLog,
    abort: CancellationToken,
) -> local::Part {
    Box::new(move |client, address: IpAddr, shutdown| {
        let args = autoscaler::Args {
            bind: address,
            admin_port: AUTOSCALER_ADMIN_PORT,
            name: "dormouse-autoscaler-local".to_owned(),
            report_token: Some(token),
            settle,
            grace: Duration::from_secs(2),
            ..autoscaler::Args::default()
        };
        Box::pin(async move { Ok(autoscaler::run(args, client, set_log, shutdown, abort).await?) })
    })
}

fn process<E: std::error::Error + Send + Sync + 'static>(error: E) -> Failure {
    Failure::Process(error.into())
}
