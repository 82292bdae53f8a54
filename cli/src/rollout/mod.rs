//! `dormouse rollout`: what a rollout does and why, and what it is told to do.

mod command;
mod get;
mod picture;
mod restart;
mod stand;
mod steps;

use std::time::Duration;

use crds::Rollout;
use crds::rollout::RolloutStatus;
use kube::api::ListParams;
use kube::{Api, ResourceExt as _};

use crate::args::Scope;
use crate::client::{Connected, failed};
use crate::duration;
use crate::failure::Failure;

pub(crate) use stand::{Stand, of_service};

/// Options of `dormouse rollout`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Command {
    /// Show rollouts; with a name where it stands, why, what comes next, the evidence and the revisions
    Get(get::Args),
    /// Print a line for each change, until interrupted; with `-o wide` also when only numbers have changed
    Watch(get::Args),
    /// Go on now: past the gate, the pause, the rest of the step or the missing evidence
    Promote {
        #[command(flatten)]
        order: Order,
        /// Everything to the candidate, without analysis or bake
        #[arg(long)]
        full: bool,
    },
    /// Take the candidate out
    Abort(Order),
    /// Let the revision that failed begin again
    Retry(Order),
    /// Go back to a revision that was stable, without analysis
    Undo {
        #[command(flatten)]
        order: Order,
        /// The revision, by name or by its number; unset: the one before
        revision: Option<String>,
    },
    /// Raise no weight until `resume`
    Pause(Order),
    /// Go on after `pause`
    Resume(Order),
    /// Make the stable revision's pods anew, as `kubectl rollout restart` does
    Restart(Order),
}

/// To whom, and for how long one waits.
#[derive(Clone, Debug, clap::Args)]
struct Order {
    /// A Rollout, or the Service that it is of (of that name: service/NAME)
    name: String,
    #[command(flatten)]
    scope: Scope,
    /// Do not wait for the answer
    #[arg(long)]
    no_wait: bool,
    /// How long to wait for it
    #[arg(long, default_value = "10s", value_parser = duration::parse)]
    timeout: Duration,
}

/// # Errors
/// When the cluster cannot be asked, there is no such rollout, or a command was ignored.
pub(crate) async fn run(args: Args) -> Result<(), Failure> {
    use command::Verb;
    match args.command {
        Command::Get(args) => get::run(args).await,
        Command::Watch(args) => get::watch(args).await,
        Command::Promote { order, full: false } => command::run(Verb::Promote, order).await,
        Command::Promote { order, full: true } => command::run(Verb::PromoteFull, order).await,
        Command::Abort(order) => command::run(Verb::Abort, order).await,
        Command::Retry(order) => command::run(Verb::Retry, order).await,
        Command::Undo { order, revision } => command::run(Verb::Undo(revision), order).await,
        Command::Pause(order) => command::run(Verb::Pause, order).await,
        Command::Resume(order) => command::run(Verb::Resume, order).await,
        Command::Restart(order) => restart::run(order).await,
    }
}

/// The Rollout that is meant by a name, in the namespace that is looked at.
///
/// # Errors
/// When the cluster cannot be asked, or there is none.
async fn lookup(connected: &Connected, name: &str) -> Result<Rollout, Failure> {
    let namespace = &connected.namespace;
    let api: Api<Rollout> = Api::namespaced(connected.client.clone(), namespace);
    let rollouts = api
        .list(&ListParams::default())
        .await
        .map_err(|error| failed("list Rollouts", &connected.url, &error))?
        .items;
    find(&rollouts, name).cloned().ok_or_else(|| {
        Failure::No(Some(format!(
            "there is no Rollout {name} in namespace {namespace}, and none of a Service {name}: annotate the Service with \
             dormouse.dev/rollout: canary, or write a Rollout"
        )))
    })
}

/// The Rollout of that name, or else the one of the Service of that name. `rollout/NAME` and `service/NAME` say which.
fn find<'a>(rollouts: &'a [Rollout], name: &str) -> Option<&'a Rollout> {
    let by_name = |name: &str| rollouts.iter().find(|rollout| rollout.name_any() == name);
    match name.split_once('/') {
        Some(("service" | "services" | "svc", service)) => of_service(rollouts, service),
        Some(("rollout" | "rollouts" | "rol", name)) => by_name(name),
        Some(_) => None,
        None => by_name(name).or_else(|| of_service(rollouts, name)),
    }
}

/// Whether there is a candidate.
fn active(status: &RolloutStatus) -> bool {
    !status.candidate_revision.is_empty()
}

fn no(text: String) -> Failure {
    Failure::No(Some(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crds::RolloutSpec;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    fn rollout(name: &str, service: &str, born: i64) -> Rollout {
        let mut rollout = Rollout::new(name, RolloutSpec::default());
        rollout.spec.service_ref.name = service.to_owned();
        rollout.metadata.creation_timestamp = Some(Time(jiff::Timestamp::from_second(born).expect("a time")));
        rollout
    }

    #[test]
    fn a_rollout_is_found_by_its_name_or_its_services() {
        let all = [
            rollout("web", "front", 3),
            rollout("late", "web", 2),
            rollout("early", "web", 1),
        ];
        for (name, want) in [
            ("web", Some("web")),
            ("rollout/web", Some("web")),
            ("service/web", Some("early")),
            ("front", Some("web")),
            ("rol/front", None),
            ("svc/late", None),
            ("deployment/web", None),
            ("nobody", None),
        ] {
            let found = find(&all, name).map(kube::ResourceExt::name_any);
            assert_eq!(found.as_deref(), want, "{name}");
        }
    }
}
