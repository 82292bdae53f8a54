//! The `dormouse` binary: parse, build, run, report. Everything else is in the modules.
//!
//! | module | what it does |
//! |---|---|
//! | [`args`] | the commands and their options |
//! | [`signals`], [`logs`], [`client`] | what every process needs, once |
//! | [`system`] | runs the activator, the autoscaler and the embedded cluster |
//! | [`get`], [`explain`], [`doctor`], [`rollout`], [`order`], [`uninstall`] | commands that look at a cluster, or ask something of it |
//! | [`changes`] | objects as they change |
//! | [`import`] | other people's manifests as ours |
//! | [`hello`] | the application of the examples and tests |
//! | [`duration`] | durations as people write them |
//! | [`output`], [`failure`] | tables, JSON, YAML; how a command ends |

mod args;
mod changes;
mod client;
mod doctor;
mod duration;
mod explain;
mod failure;
mod get;
mod hello;
mod import;
mod logs;
mod order;
mod output;
mod rollout;
mod signals;
mod system;
mod uninstall;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};
use kube::CustomResourceExt as _;
use tikv_jemallocator::Jemalloc;

use args::{Command, Line};
use failure::Failure;

/// What a command logs besides its answer. The client's own lines would repeat the error that ends the command.
const COMMAND_FILTER: &str = "warn,kube_client=off";

/// How `dormouse local` starts a pod's process: before anything else here, as it becomes the pod's program.
const POD: &str = "__pod";

/// Gives back to the system, within ten seconds, the memory that a rush took. The system's own keeps most of it for good.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|word| word == POD) {
        local::pod_main(std::env::args_os().skip(2));
    }
    // Wrong flags end here, with exit code 2.
    let line = Line::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Failure::Process(error.into()).report(),
    };
    match runtime.block_on(run(line)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

async fn run(line: Line) -> Result<(), Failure> {
    let default_filter = if line.command.is_process() {
        "info"
    } else {
        COMMAND_FILTER
    };
    let set_log = logs::start(&line.logs, default_filter).map_err(Failure::Usage)?;
    match line.command {
        Command::Local(args) => system::local(args, set_log).await,
        Command::Activator(args) => system::activator(args, set_log).await,
        Command::Autoscaler(args) => system::autoscaler(args, set_log).await,
        Command::Get(args) => get::run(args).await,
        Command::Explain(args) => explain::run(args).await,
        Command::Doctor(args) => doctor::run(args).await,
        Command::Wake(args) => order::run(order::Order::Wake, args).await,
        Command::Sleep(args) => order::run(order::Order::Sleep, args).await,
        Command::Rollout(args) => rollout::run(args).await,
        Command::Import(args) => import::run(&args),
        Command::Uninstall(args) => uninstall::run(args).await,
        Command::Crds => output::print(&crds_yaml()?),
        Command::Completion(args) => {
            let mut text = Vec::new();
            clap_complete::generate(args.shell, &mut Line::command(), "dormouse", &mut text);
            output::print(&String::from_utf8_lossy(&text))
        }
        Command::Hello(args) => {
            let signals = signals::Signals::install()?;
            hello::run(args, signals.shutdown, signals.abort)
                .await
                .map_err(Failure::Process)
        }
    }
}

/// All custom resource definitions, as one YAML stream.
fn crds_yaml() -> Result<String, Failure> {
    [crds::Route::crd(), crds::Rollout::crd(), crds::Revision::crd()]
        .iter()
        .map(|crd| output::yaml(crd).map(|text| format!("---\n{text}")))
        .collect()
}
