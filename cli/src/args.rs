//! The commands and their options.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{doctor, explain, get, hello, import, logs, order, rollout, system, uninstall};

/// Scale-to-zero for ordinary Kubernetes Services.
#[derive(Debug, Parser)]
#[command(
    name = "dormouse",
    version,
    propagate_version = true,
    arg_required_else_help = true
)]
pub(crate) struct Line {
    #[command(flatten)]
    pub(crate) logs: logs::Args,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run manifests without Kubernetes: an embedded cluster with Dormouse inside
    Local(local::Args),
    /// Run the data plane: hold, route, limit, retry, count
    Activator(system::Activator),
    /// Run the control plane: capture, scale
    Autoscaler(system::Autoscaler),
    /// Show the Services that Dormouse knows: asleep or awake, and why
    Get(get::Args),
    /// Explain one Service, or the annotations
    Explain(explain::Args),
    /// Look for whatever stands in the way of the installation or a Service
    Doctor(doctor::Args),
    /// Wake a Service now
    Wake(order::Args),
    /// Send a Service to sleep now
    Sleep(order::Args),
    /// Show rollouts, and tell them what to do: promote, abort, retry, undo, pause, resume, restart
    Rollout(rollout::Args),
    /// Turn a Flagger Canary into a Rollout
    Import(import::Args),
    /// Give every Service back, so that Dormouse can be removed
    Uninstall(uninstall::Args),
    /// Print the custom resource definitions as YAML
    Crds,
    /// Print a completion script for a shell
    Completion(Completion),
    /// Serve the example application
    Hello(hello::Args),
}

impl Command {
    /// Whether it runs until it is told to end, and so says what it does as it goes.
    pub(crate) fn is_process(&self) -> bool {
        matches!(
            self,
            Self::Local(_) | Self::Activator(_) | Self::Autoscaler(_) | Self::Hello(_)
        )
    }
}

#[derive(Debug, Args)]
pub(crate) struct Completion {
    /// The shell
    pub(crate) shell: clap_complete::Shell,
}

/// Which cluster.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Cluster {
    /// Kubeconfig file; unset: KUBECONFIG, the pod's own account, a running `dormouse local`, ~/.kube/config
    #[arg(long, value_name = "FILE", help_heading = "Cluster")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Context in the kubeconfig; unset: its current one
    #[arg(long, value_name = "NAME", help_heading = "Cluster")]
    pub(crate) context: Option<String>,
}

/// Which cluster, and where in it.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Scope {
    #[command(flatten)]
    pub(crate) cluster: Cluster,
    /// Namespace; unset: the kubeconfig's
    #[arg(short, long, value_name = "NAME", help_heading = "Cluster")]
    pub(crate) namespace: Option<String>,
}

/// How objects are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// As JSON; of a watch one line for each change.
    Json,
    /// As YAML; of a watch one document for each change.
    Yaml,
    /// The table, with more columns.
    Wide,
}

impl Format {
    /// `None`: for people.
    pub(crate) fn data(self) -> Option<Data> {
        match self {
            Self::Json => Some(Data::Json),
            Self::Yaml => Some(Data::Yaml),
            Self::Wide => None,
        }
    }
}

/// How data is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Data {
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}
