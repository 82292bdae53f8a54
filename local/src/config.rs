//! The flags of `dormouse local`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, ValueEnum};

use crate::network::Publish;

/// Flags of `dormouse local`.
#[derive(Clone, Debug, ClapArgs)]
pub struct Args {
    /// Manifests: YAML or JSON files, or folders that are read with all below them. None: an empty cluster, for kubectl.
    #[arg(value_name = "FILE|DIR")]
    pub files: Vec<PathBuf>,

    /// Where the front door listens: `http://SERVICE.localhost:PORT`, `http://SERVICE.NAMESPACE.localhost:PORT`.
    #[arg(
        long,
        value_name = "ADDRESS",
        default_value = "127.0.0.1:8080",
        env = "DORMOUSE_LISTEN"
    )]
    pub listen: SocketAddr,

    /// Where the Kubernetes API listens. It can start programs: give it a loopback address.
    ///
    /// To see how an application behaves while the API is away, take it away for some seconds (0 to 300):
    /// `curl -X POST "SERVER/local/outage?seconds=5"`, where SERVER is the server's URL in the kubeconfig.
    #[arg(
        long,
        value_name = "ADDRESS",
        default_value = "127.0.0.1:8001",
        env = "DORMOUSE_API"
    )]
    pub api: SocketAddr,

    /// A port of a Service to be reached on an address of this machine, for what is not HTTP. Repeatable.
    #[arg(long, value_name = "SERVICE[.NAMESPACE]:PORT=ADDRESS", value_parser = parse_publish)]
    pub publish: Vec<PublishArg>,

    /// How Dormouse itself runs: in this process, as pods of the cluster (two of each), or not at all.
    #[arg(long, value_enum, default_value_t = SystemMode::InProcess)]
    pub system: SystemMode,

    /// Where the kubeconfig is written; removed at the end [default: in $XDG_RUNTIME_DIR/dormouse, else a temporary folder].
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// Namespace of objects that name none.
    #[arg(long, short, default_value = "default")]
    pub namespace: String,

    /// How much later than the API the Services' addresses follow a change, as kube-proxy's do, in milliseconds.
    #[arg(long, value_name = "MS", default_value = "0", value_parser = clap::value_parser!(u64).range(0..=60_000))]
    pub proxy_delay: u64,

    /// Do not apply files again when they change.
    #[arg(long)]
    pub no_reload: bool,

    /// Do not show what pods write.
    #[arg(long, short)]
    pub quiet: bool,
}

impl Args {
    /// `--proxy-delay`.
    pub(crate) fn proxy_delay(&self) -> Duration {
        Duration::from_millis(self.proxy_delay)
    }
}

/// A value of `--publish`, checked.
#[derive(Clone, Debug)]
pub struct PublishArg(pub(crate) Publish);

fn parse_publish(text: &str) -> Result<PublishArg, String> {
    text.parse().map(PublishArg)
}

/// How Dormouse itself runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SystemMode {
    /// Activator and autoscaler in this process.
    InProcess,
    /// Two activators and two autoscalers, each a process.
    Pods,
    /// Neither: a plain cluster, for those who start them by hand.
    None,
}
