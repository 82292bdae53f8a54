//! `dormouse uninstall`: gives every Service back, awake and as it was, and says what can be deleted then.

use std::collections::BTreeSet;
use std::io::{IsTerminal as _, Write as _};
use std::ops::ControlFlow;
use std::time::Duration;

use crds::names::{LEASE, RELEASE_ALL_ANNOTATION, SYSTEM_NAMESPACE};
use crds::{Revision, Rollout, Route};
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::ListParams;
use kube::runtime::watcher;
use kube::{Api, CustomResourceExt as _};
use serde_json::json;

use crate::args::{Cluster, Scope};
use crate::changes::{Change, follow};
use crate::client::{Connected, connect, failed, merge};
use crate::failure::Failure;
use crate::{duration, output};

/// Options of `dormouse uninstall`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    cluster: Cluster,
    /// Namespace that Dormouse runs in
    #[arg(long, default_value = SYSTEM_NAMESPACE, value_name = "NAME", help_heading = "Cluster")]
    system_namespace: String,
    /// The namespace that the autoscaler is limited to with the same flag; unset: all
    #[arg(long, value_name = "NAME", help_heading = "Cluster")]
    watch_namespace: Option<String>,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// How long to wait
    #[arg(long, default_value = "5m", value_parser = duration::parse)]
    timeout: Duration,
}

/// # Errors
/// When the cluster cannot be asked, or Services are left.
pub(crate) async fn run(args: Args) -> Result<(), Failure> {
    let scope = Scope {
        cluster: args.cluster.clone(),
        namespace: Some(args.system_namespace.clone()),
    };
    let connected = connect(&scope).await?;
    let routes: Api<Route> = match &args.watch_namespace {
        Some(namespace) => Api::namespaced(connected.client.clone(), namespace),
        None => Api::all(connected.client.clone()),
    };
    let found = match routes.list(&ListParams::default()).await {
        Ok(list) => list.items,
        // Without the CRDs nothing is captured.
        Err(kube::Error::Api(status)) if status.code == 404 => Vec::new(),
        Err(error) => return Err(failed("list Routes", &connected.url, &error)),
    };
    let left: BTreeSet<String> = found.iter().map(output::key).collect();
    if !left.is_empty() {
        confirm(&args, left.len(), &connected.url)?;
    }
    ask(&args, &connected, left.is_empty()).await?;
    release(&args, routes, left, &connected).await?;
    output::print(&last_words(&args.system_namespace))
}

fn confirm(args: &Args, count: usize, url: &str) -> Result<(), Failure> {
    if args.yes {
        return Ok(());
    }
    let question =
        format!("Give back {count} Services at {url}: each is woken and gets its traffic directly.");
    if !std::io::stdin().is_terminal() {
        return Err(Failure::Usage(format!("{question} Say --yes to go on")));
    }
    eprint!("{question} Go on? [y/N] ");
    let _ = std::io::stderr().flush();
    let mut answer = String::new();
    let read = std::io::stdin().read_line(&mut answer);
    match answer.trim() {
        "y" | "Y" | "yes" if read.is_ok() => Ok(()),
        _ => Err(Failure::No(Some("nothing was changed".to_owned()))),
    }
}

/// Tells the autoscaler, through its Lease, so that it also captures nothing new meanwhile.
async fn ask(args: &Args, connected: &Connected, nothing_left: bool) -> Result<(), Failure> {
    let leases: Api<Lease> = Api::namespaced(connected.client.clone(), &args.system_namespace);
    let patch = json!({ "metadata": { "annotations": { RELEASE_ALL_ANNOTATION: "true" } } });
    match merge(&leases, LEASE, &patch).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 && nothing_left => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Err(Failure::No(Some(format!(
            "there is no Lease {LEASE} in namespace {}: no autoscaler has run there, so nobody can give the Services \
             back; start one, or name its namespace with --system-namespace",
            args.system_namespace
        )))),
        Err(error) => Err(failed(
            "write to the Lease of the autoscaler",
            &connected.url,
            &error,
        )),
    }
}

/// Waits until no Route is left, and tells of each that goes.
async fn release(
    args: &Args,
    routes: Api<Route>,
    mut left: BTreeSet<String>,
    connected: &Connected,
) -> Result<(), Failure> {
    if left.is_empty() {
        return output::print("No Service is opted in.\n");
    }
    let all = left.len();
    let mut there = BTreeSet::new();
    let watch = follow(
        routes,
        watcher::Config::default(),
        connected,
        "Routes",
        |change| {
            match change {
                Change::Now(route, _) => {
                    there.insert(output::key(&route));
                    left.insert(output::key(&route));
                }
                Change::Gone(route) => {
                    there.remove(&output::key(&route));
                    given_back(&mut left, &output::key(&route));
                }
                // Some may have gone between our list and the watch's.
                Change::Listed => {
                    let gone: Vec<_> = left.difference(&there).cloned().collect();
                    gone.iter().for_each(|name| given_back(&mut left, name));
                }
            }
            Ok(match left.is_empty() {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            })
        },
    );
    match tokio::time::timeout(args.timeout, watch).await {
        Ok(Ok(())) => output::print(&format!("Given back: {all}.\n")),
        Ok(Err(failure)) => Err(failure),
        Err(_) => Err(Failure::No(Some(format!(
            "after {:?} these are not given back: {}. `dormouse get -A` says why; the autoscaler goes on",
            args.timeout,
            left.into_iter().collect::<Vec<_>>().join(", ")
        )))),
    }
}

fn given_back(left: &mut BTreeSet<String>, name: &str) {
    if left.remove(name) {
        // A reader that has gone away must not stop the release.
        let _ = output::print(&format!("given back: {name}\n"));
    }
}

fn last_words(namespace: &str) -> String {
    let definitions = [Route::crd_name(), Rollout::crd_name(), Revision::crd_name()].join(" ");
    format!(
        "Nothing is captured any more, and the autoscaler captures nothing new. To remove the rest:
  kubectl delete namespace {namespace}
  kubectl delete customresourcedefinitions {definitions}
The annotations on your Services do nothing without Dormouse. To take the Services back instead:
  kubectl annotate lease {LEASE} -n {namespace} {RELEASE_ALL_ANNOTATION}-
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_definition_that_was_installed_is_named() {
        let words = last_words("dormouse-system");
        let wanted = "delete customresourcedefinitions routes.dormouse.dev rollouts.dormouse.dev revisions.dormouse.dev\n";
        assert!(words.contains(wanted), "{words}");
    }
}
