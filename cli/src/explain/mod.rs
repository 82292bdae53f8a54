//! `dormouse explain`: one Service in words, or the annotations.

mod annotations;
mod service;
mod wakes;

use clap::ValueEnum;
use crds::{Rollout, Route, annotation};
use k8s_openapi::api::core::v1::{Event, Namespace, Service};
use kube::Api;
use kube::api::ListParams;

use crate::args::{Data, Scope};
use crate::client::{connect, failed};
use crate::failure::Failure;
use crate::output::{self, Paint};
use crate::rollout::of_service;

pub(crate) use service::good;

/// Options of `dormouse explain`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// A Service's name, or `annotations` for every key a Service can carry (a Service of that name: service/annotations)
    #[arg(value_name = "SERVICE|annotations")]
    name: String,
    #[command(flatten)]
    scope: Scope,
    /// How to write it
    #[arg(short, long, value_enum)]
    output: Option<Format>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// JSON.
    Json,
    /// YAML.
    Yaml,
    /// The documentation page; only for `annotations`.
    Markdown,
}

/// # Errors
/// When the cluster cannot be asked, or there is no such Service.
pub(crate) async fn run(args: Args) -> Result<(), Failure> {
    if args.name == "annotations" {
        return annotations::run(args.output);
    }
    let name = service_name(&args.name);
    let explained = gather(name, &args.scope).await?;
    let text = match args.output {
        Some(Format::Json) => output::data(&explained, Data::Json)?,
        Some(Format::Yaml) => output::data(&explained, Data::Yaml)?,
        Some(Format::Markdown) => {
            return Err(Failure::Usage(
                "-o markdown is only for `dormouse explain annotations`".to_owned(),
            ));
        }
        None => service::text(&explained, jiff::Timestamp::now(), Paint::stdout()),
    };
    output::print(&text)
}

/// `web`, also when written `service/web` or `svc/web`.
pub(crate) fn service_name(text: &str) -> &str {
    ["service/", "services/", "svc/"]
        .iter()
        .find_map(|prefix| text.strip_prefix(prefix))
        .unwrap_or(text)
}

async fn gather(name: &str, scope: &Scope) -> Result<service::Explained, Failure> {
    let connected = connect(scope).await?;
    let (client, namespace, url) = (&connected.client, &connected.namespace, &connected.url);
    let services: Api<Service> = Api::namespaced(client.clone(), namespace);
    let routes: Api<Route> = Api::namespaced(client.clone(), namespace);
    let rollouts: Api<Rollout> = Api::namespaced(client.clone(), namespace);
    let events: Api<Event> = Api::namespaced(client.clone(), namespace);
    let all = ListParams::default();
    let (service, route, rollouts, events) = tokio::join!(
        services.get_opt(name),
        routes.get_opt(name),
        rollouts.list(&all),
        events.list(&all)
    );
    let service = service.map_err(|error| failed("read the Service", url, &error))?;
    let service = service
        .ok_or_else(|| Failure::No(Some(format!("there is no Service {namespace}/{name} at {url}"))))?;
    let route = route.map_err(|error| failed("read Routes", url, &error))?;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    // An account may be allowed to see its namespace's contents only: then the defaults on it are not shown.
    let defaults = namespaces.get_opt(namespace).await.ok().flatten();
    let defaults = defaults
        .and_then(|namespace| namespace.metadata.annotations)
        .unwrap_or_default();
    let own = service.metadata.annotations.clone().unwrap_or_default();
    let parsed = annotation::parse(&defaults, &own);
    // Rollouts and Events are a courtesy: without them the rest is still worth printing.
    let rollouts = rollouts.map(|list| list.items).unwrap_or_default();
    let events = events.map(|list| list.items).unwrap_or_default();
    Ok(service::Explained::new(
        namespace,
        name,
        route.as_ref(),
        of_service(&rollouts, name),
        &parsed,
        &events,
    ))
}
