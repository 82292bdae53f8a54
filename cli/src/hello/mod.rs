//! `dormouse hello`: the application of the examples and tests. It says what it saw, and misbehaves when asked to.
//!
//! | path | answer |
//! |---|---|
//! | `/` and anything else | a greeting with the pod's name |
//! | `/delay/MS` | the same after MS milliseconds |
//! | `/status/CODE` | that status |
//! | `/stream/N?ms=M` | N lines, one each M milliseconds (100) |
//! | `/echo` | the request's body |
//! | `/exit/CODE` | none: the process ends |
//! | `/stats` | what it has served, as JSON; not counted itself |
//! | `/healthz` | 200 once ready, 503 before; not counted |
//!
//! Every counted answer says in `hello-in-flight` how many were in flight as it began, itself included.

mod answer;
mod stats;

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::duration;
use answer::{App, Fails};
use stats::Stats;

/// Options of `dormouse hello`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Address to listen on
    #[arg(long, env = "HELLO_BIND", default_value_t = IpAddr::V4(Ipv4Addr::UNSPECIFIED))]
    bind: IpAddr,
    /// Port to listen on; 0: any free one
    #[arg(long, env = "PORT", default_value_t = 8080)]
    port: u16,
    /// How long after the start /healthz says 503
    #[arg(long, env = "HELLO_BOOT_DELAY", default_value = "0s", value_parser = duration::parse)]
    boot_delay: Duration,
    /// How long after the start the port is opened
    #[arg(long, env = "HELLO_LISTEN_AFTER", default_value = "0s", value_parser = duration::parse)]
    listen_after: Duration,
    /// Whether it ever becomes ready
    #[arg(long, env = "HELLO_READY", default_value_t = true, action = clap::ArgAction::Set)]
    ready: bool,
    /// How long after the start the process exits with 1
    #[arg(long, env = "HELLO_CRASH_AFTER", value_parser = duration::parse)]
    crash_after: Option<Duration>,
    /// Share of the greetings that are answered with 500 instead, in percent: a bad release
    #[arg(long, env = "HELLO_FAIL_PERCENT", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=100))]
    fail_percent: u8,
    /// Name in the greeting
    #[arg(long, env = "POD_NAME", default_value = "hello")]
    name: String,
}

/// Serves until `shutdown`, then finishes what is in flight; `abort` ends it at once.
///
/// # Errors
/// When the port cannot be opened.
pub(crate) async fn run(
    args: Args,
    shutdown: CancellationToken,
    abort: CancellationToken,
) -> anyhow::Result<()> {
    let started = Instant::now();
    let crash = crash(args.crash_after, started);
    tokio::select! {
        () = abort.cancelled() => Ok(()),
        () = crash => std::process::exit(1),
        served = serve(args, started, shutdown) => served,
    }
}

/// Ends at the time of the crash; never without one.
async fn crash(after: Option<Duration>, started: Instant) {
    match after {
        Some(after) => {
            tokio::time::sleep_until(started + after).await;
            tracing::error!("crashing, as asked to");
        }
        None => std::future::pending().await,
    }
}

async fn serve(args: Args, started: Instant, shutdown: CancellationToken) -> anyhow::Result<()> {
    tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        () = tokio::time::sleep_until(started + args.listen_after) => {}
    }
    let address = SocketAddr::new(args.bind, args.port);
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}"))?;
    tracing::info!(address = %listener.local_addr()?, name = args.name, "listening");
    let ready_at = args.ready.then_some(started + args.boot_delay);
    let app = Arc::new(App {
        name: args.name,
        ready_at,
        fails: Fails::new(args.fail_percent),
        stats: Stats::new(started),
    });

    let graceful = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            // Out of file descriptors, most likely: give others time to close some.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        // Small answers must not wait for the client's acknowledgement of earlier ones.
        let _ = stream.set_nodelay(true);
        let app = Arc::clone(&app);
        let service = service_fn(move |request| {
            let app = Arc::clone(&app);
            async move { Ok::<_, Infallible>(app.answer(request).await) }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new());
        builder.http2().timer(TokioTimer::new());
        let connection = builder
            .serve_connection(TokioIo::new(stream), service)
            .into_owned();
        let watched = graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = watched.await {
                tracing::debug!(%error, "connection ended");
            }
        });
    }
    drop(listener);
    tracing::info!("finishing what is in flight");
    graceful.shutdown().await;
    Ok(())
}
