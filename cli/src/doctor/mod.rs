//! `dormouse doctor`: is Dormouse installed and running, and is there anything in the way of a Service? Looked at live,
//! with the same questions that the autoscaler asks.

mod installation;
mod rollout;
mod service;

use crds::names::SYSTEM_NAMESPACE;
use crds::{Rollout, Route};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{Namespace, Service};
use kube::api::ListParams;
use kube::{Api, ResourceExt as _};
use serde::Serialize;

use crate::args::{Data, Scope};
use crate::client::{Connected, connect, failed};
use crate::explain::service_name;
use crate::failure::Failure;
use crate::output::{self, Paint};

/// Services looked at live without being named. Each look reads a namespace; of more, the conditions tell.
const LIVE: usize = 50;
/// Services looked at together.
const AT_ONCE: usize = 4;

/// Options of `dormouse doctor`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Only this Service, and the installation
    service: Option<String>,
    #[command(flatten)]
    scope: Scope,
    /// Services of all namespaces
    #[arg(short = 'A', long, conflicts_with = "service")]
    all_namespaces: bool,
    /// Namespace that Dormouse runs in
    #[arg(long, default_value = SYSTEM_NAMESPACE, value_name = "NAME", help_heading = "Cluster")]
    system_namespace: String,
    /// How to write it
    #[arg(short, long, value_enum)]
    output: Option<Data>,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Mark {
    /// As it should be.
    Good,
    /// Could be better.
    Advice,
    /// Works less well than one may think.
    Warning,
    /// Stops something.
    Stop,
}

/// One finding: one line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Line {
    mark: Mark,
    /// `installation`, or the Service.
    about: String,
    /// One word that stays the same, for programs.
    reason: String,
    /// One sentence with the fix.
    text: String,
}

impl Line {
    fn new(mark: Mark, about: &str, reason: &str, text: impl Into<String>) -> Self {
        Self {
            mark,
            about: about.to_owned(),
            reason: reason.to_owned(),
            text: text.into(),
        }
    }
}

/// # Errors
/// When the cluster cannot be asked, or something is found that stops something.
pub(crate) async fn run(args: Args) -> Result<(), Failure> {
    let connected = connect(&args.scope).await?;
    let mut lines = installation::examine(&connected, &args.system_namespace).await?;
    let services = match &args.service {
        Some(name) => vec![(connected.namespace.clone(), service_name(name).to_owned())],
        None => opted_in(&args, &connected).await?,
    };
    let (live, rest) = services.split_at(services.len().min(LIVE));
    let looks = futures::stream::iter(
        live.iter()
            .map(|(namespace, name)| service::examine(&connected, namespace, name, args.service.is_some())),
    );
    for look in looks.buffered(AT_ONCE).collect::<Vec<_>>().await {
        match look {
            // Deleted since it was listed: that is no answer about the others.
            Err(Failure::No(_)) if args.service.is_none() => {}
            look => lines.extend(look?),
        }
    }
    if !rest.is_empty() {
        lines.extend(service::by_conditions(&connected, rest).await?);
    }
    let rollouts = rollouts(&args, &connected).await;
    lines.extend(rollout::examine(&rollouts, &services));
    if args.service.is_none() {
        lines.extend(rollout::alone(&rollouts, &services));
    }
    by_place(&mut lines);
    let text = match args.output {
        Some(format) => output::data(&lines, format)?,
        None => text(&lines, Paint::stdout()),
    };
    output::print(&text)?;
    if lines.iter().any(|line| line.mark == Mark::Stop) {
        Err(Failure::No(None))
    } else {
        Ok(())
    }
}

/// What is about one thing together, in the order in which things were first met; the worst first.
fn by_place(lines: &mut [Line]) {
    let mut order: Vec<String> = Vec::new();
    for line in lines.iter() {
        if !order.contains(&line.about) {
            order.push(line.about.clone());
        }
    }
    lines.sort_by_key(|line| {
        let place = order.iter().position(|about| *about == line.about);
        let installation = line.about == installation::ABOUT;
        // The installation's lines have an order of their own.
        (place, (!installation).then_some(std::cmp::Reverse(line.mark)))
    });
}

/// The Rollouts that are looked at. Without the definition, or the permission, there are none, which the installation's
/// lines have said.
async fn rollouts(args: &Args, connected: &Connected) -> Vec<Rollout> {
    let api: Api<Rollout> = connected.api(args.all_namespaces);
    let listed = api.list(&ListParams::default()).await;
    listed.map(|list| list.items).unwrap_or_default()
}

/// Namespace and name of every opted-in Service, and of every Route.
async fn opted_in(args: &Args, connected: &Connected) -> Result<Vec<(String, String)>, Failure> {
    let url = &connected.url;
    let services: Api<Service> = connected.api(args.all_namespaces);
    let routes: Api<Route> = connected.api(args.all_namespaces);
    let namespaces: Api<Namespace> = Api::all(connected.client.clone());
    let all = ListParams::default();
    let (services, routes, namespaces) =
        tokio::join!(services.list(&all), routes.list(&all), namespaces.list(&all));
    let services = services.map_err(|error| failed("list Services", url, &error))?;
    // Without the CRDs there are no Routes, which the installation's lines have said.
    let routes = routes.map(|list| list.items).unwrap_or_default();
    let namespaces = namespaces.map(|list| list.items).unwrap_or_default();
    let defaults = |namespace: &str| {
        let found = namespaces.iter().find(|object| object.name_any() == namespace);
        found
            .map(|object| object.annotations().clone())
            .unwrap_or_default()
    };
    let mut found: Vec<(String, String)> = services
        .items
        .iter()
        .filter(|service| {
            let defaults = defaults(&service.namespace().unwrap_or_default());
            crds::annotation::parse(&defaults, service.annotations())
                .settings
                .enabled
        })
        .map(|service| (service.namespace().unwrap_or_default(), service.name_any()))
        .chain(
            routes
                .iter()
                .map(|route| (route.namespace().unwrap_or_default(), route.name_any())),
        )
        .collect();
    found.sort();
    found.dedup();
    Ok(found)
}

/// For people: the installation first, then one Service after the other, each with the worst first.
fn text(lines: &[Line], paint: Paint) -> String {
    let mut out = String::new();
    let mut about = "";
    for line in lines {
        if line.about != about {
            about = &line.about;
            out.push_str(&format!("{}\n", paint.bold(about)));
        }
        let mark = match line.mark {
            Mark::Good => paint.good("✓"),
            Mark::Advice => paint.faint("·"),
            Mark::Warning => paint.warn("!"),
            Mark::Stop => paint.bad("✗"),
        };
        let sentence = line.text.replace('\n', " ");
        out.push_str(&format!("  {mark} {}: {sentence}\n", line.reason));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_finding_is_one_line_under_what_it_is_about() {
        let lines = [
            Line::new(Mark::Good, "installation", "Leader", "a leads"),
            Line::new(Mark::Stop, "shop/web", "Headless", "is\nheadless"),
            Line::new(Mark::Warning, "shop/web", "X", "y"),
            Line::new(Mark::Advice, "shop/web", "Z", "z"),
        ];
        let want =
            "installation\n  ✓ Leader: a leads\nshop/web\n  ✗ Headless: is headless\n  ! X: y\n  · Z: z\n";
        assert_eq!(text(&lines, Paint::never()), want);
    }
}
