//! `dormouse get`: the Services that Dormouse knows, once or as they change.

use std::collections::HashMap;
use std::pin::pin;

use clap::ValueEnum;
use crds::Route;
use crds::condition;
use futures::TryStreamExt as _;
use jiff::Timestamp;
use kube::api::ListParams;
use kube::runtime::watcher;
use kube::{Api, ResourceExt as _};

use crate::args::{Data, Scope};
use crate::client::{Connected, connect, failed};
use crate::failure::Failure;
use crate::output;

/// Options of `dormouse get`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Only this Service
    name: Option<String>,
    #[command(flatten)]
    scope: Scope,
    /// Services of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Print a line for each change, until interrupted
    #[arg(short, long)]
    watch: bool,
    /// How to write it
    #[arg(short, long, value_enum)]
    output: Option<Format>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// The Routes as JSON; with --watch one line for each change.
    Json,
    /// The Routes as YAML; with --watch one document for each change.
    Yaml,
    /// The table, with more columns.
    Wide,
}

/// # Errors
/// When the cluster cannot be asked, or the named Service is not known.
pub(crate) async fn run(args: Args) -> Result<(), Failure> {
    let connected = connect(&args.scope).await?;
    let api: Api<Route> = if args.all_namespaces {
        Api::all(connected.client.clone())
    } else {
        Api::namespaced(connected.client.clone(), &connected.namespace)
    };
    if args.watch {
        watch(&args, api, &connected).await
    } else {
        once(&args, &api, &connected).await
    }
}

async fn once(args: &Args, api: &Api<Route>, connected: &Connected) -> Result<(), Failure> {
    let mut params = ListParams::default();
    if let Some(name) = &args.name {
        params = params.fields(&format!("metadata.name={name}"));
    }
    let mut routes = api
        .list(&params)
        .await
        .map_err(|error| failed("list Routes", &connected.url, &error))?
        .items;
    routes.sort_by_key(|route| (route.namespace(), route.name_any()));
    for route in &mut routes {
        route.managed_fields_mut().clear();
    }
    let place = if args.all_namespaces {
        "any namespace".to_owned()
    } else {
        format!("namespace {}", connected.namespace)
    };
    match (&args.name, args.output) {
        (Some(name), _) if routes.is_empty() => Err(Failure::No(Some(format!(
            "no Route for Service {name} in {place}: it is not opted in, or the autoscaler has not seen it; `dormouse \
             explain {name}` says which"
        )))),
        (Some(_), Some(Format::Json)) if !args.all_namespaces => {
            output::print(&output::data(&routes[0], Data::Json)?)
        }
        (Some(_), Some(Format::Yaml)) if !args.all_namespaces => {
            output::print(&output::data(&routes[0], Data::Yaml)?)
        }
        (_, Some(Format::Json)) => output::print(&output::data(&list(&routes), Data::Json)?),
        (_, Some(Format::Yaml)) => output::print(&output::data(&list(&routes), Data::Yaml)?),
        (_, format) => {
            if routes.is_empty() {
                eprintln!("No Service in {place} is opted in with dormouse.dev/scale-to-zero: \"true\".");
                return Ok(());
            }
            let columns = Columns {
                namespace: args.all_namespaces,
                wide: format == Some(Format::Wide),
            };
            let now = Timestamp::now();
            let mut rows = vec![columns.head()];
            rows.extend(routes.iter().map(|route| columns.row(route, now)));
            output::print(&output::table(&rows))
        }
    }
}

fn list(routes: &[Route]) -> serde_json::Value {
    serde_json::json!({ "apiVersion": "v1", "kind": "List", "items": routes })
}

/// What a watcher of phases wants to see change: not each new time of the last request.
type Shown = (String, String, String);

async fn watch(args: &Args, api: Api<Route>, connected: &Connected) -> Result<(), Failure> {
    let mut config = watcher::Config::default();
    if let Some(name) = &args.name {
        config = config.fields(&format!("metadata.name={name}"));
    }
    let columns = Columns {
        namespace: args.all_namespaces,
        wide: args.output == Some(Format::Wide),
    };
    if matches!(args.output, None | Some(Format::Wide)) {
        output::print(&columns.watch_line("TIME", &columns.head()))?;
    }
    let mut seen: HashMap<String, Shown> = HashMap::new();
    let mut events = pin!(watcher(api, config));
    loop {
        let event = match events.try_next().await {
            Ok(Some(event)) => event,
            Ok(None) => return Ok(()),
            // The server is away for a moment: the watcher tries again. From the start on: tell.
            Err(error) if seen.is_empty() => {
                return Err(Failure::Api(format!(
                    "cannot watch Routes at {}: {error}",
                    connected.url
                )));
            }
            Err(error) => {
                tracing::warn!(%error, "watch interrupted");
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                continue;
            }
        };
        match event {
            watcher::Event::Apply(route) | watcher::Event::InitApply(route) => {
                let now = shown(&route);
                if seen.insert(key(&route), now.clone()) != Some(now) {
                    output::print(&change(args.output, columns, route)?)?;
                }
            }
            watcher::Event::Delete(route) => {
                seen.remove(&key(&route));
                if matches!(args.output, None | Some(Format::Wide)) {
                    let line = columns.gone(&route);
                    output::print(&columns.watch_line(&time(), &line))?;
                }
            }
            watcher::Event::Init | watcher::Event::InitDone => {}
        }
    }
}

fn change(format: Option<Format>, columns: Columns, mut route: Route) -> Result<String, Failure> {
    route.managed_fields_mut().clear();
    match format {
        Some(Format::Json) => serde_json::to_string(&route)
            .map(|line| line + "\n")
            .map_err(|error| Failure::Process(error.into())),
        Some(Format::Yaml) => Ok(format!("---\n{}", output::yaml(&route)?)),
        None | Some(Format::Wide) => Ok(columns.watch_line(&time(), &columns.row(&route, Timestamp::now()))),
    }
}

fn key(route: &Route) -> String {
    format!("{}/{}", route.namespace().unwrap_or_default(), route.name_any())
}

fn shown(route: &Route) -> Shown {
    let status = route.status.clone().unwrap_or_default();
    (
        status.phase.map(|phase| phase.to_string()).unwrap_or_default(),
        status.pods,
        status.why,
    )
}

/// The time of day, here.
fn time() -> String {
    jiff::Zoned::now().strftime("%H:%M:%S").to_string()
}

#[derive(Clone, Copy, Debug)]
struct Columns {
    namespace: bool,
    wide: bool,
}

impl Columns {
    fn head(self) -> Vec<String> {
        let mut head = vec!["NAME", "PHASE", "PODS", "WEIGHTS", "WHY", "LAST-REQUEST", "AGE"];
        if self.namespace {
            head.insert(0, "NAMESPACE");
        }
        if self.wide {
            head.extend(["CAPTURED", "LISTENING", "NEXT"]);
        }
        head.into_iter().map(str::to_owned).collect()
    }

    fn row(self, route: &Route, now: Timestamp) -> Vec<String> {
        let status = route.status.clone().unwrap_or_default();
        let or_dash = |text: String| if text.is_empty() { "-".to_owned() } else { text };
        let mut row = vec![
            route.name_any(),
            or_dash(status.phase.map(|phase| phase.to_string()).unwrap_or_default()),
            or_dash(status.pods),
            or_dash(status.weights),
            or_dash(status.why),
            output::age(status.last_request.as_ref(), now),
            output::age(route.creation_timestamp().as_ref(), now),
        ];
        if self.namespace {
            row.insert(0, route.namespace().unwrap_or_default());
        }
        if self.wide {
            let captured = condition::find(&status.conditions, condition::CAPTURED)
                .map_or_else(String::new, |condition| condition.reason.clone());
            row.extend([
                or_dash(captured),
                or_dash(status.listening.join(",")),
                or_dash(status.next),
            ]);
        }
        row
    }

    /// The line of a Service that is no longer opted in.
    fn gone(self, route: &Route) -> Vec<String> {
        let mut row = vec![route.name_any(), "Gone".to_owned()];
        if self.namespace {
            row.insert(0, route.namespace().unwrap_or_default());
        }
        row
    }

    /// A line that can be printed before the next is known: columns of a fixed width, so that most of them line up.
    fn watch_line(self, time: &str, cells: &[String]) -> String {
        let mut widths = vec![24, 8, 7, 12, 60, 12, 6, 20, 24, 0];
        if self.namespace {
            widths.insert(0, 16);
        }
        let mut line = format!("{time:<8}");
        for (cell, width) in cells.iter().zip(widths) {
            line.push_str(&format!("  {cell:<width$}"));
        }
        line.truncate(line.trim_end().len());
        line.push('\n');
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crds::route::{Phase, RouteStatus};

    fn route() -> Route {
        let mut route = Route::new("web", crds::RouteSpec::default());
        route.metadata.namespace = Some("shop".to_owned());
        route.status = Some(RouteStatus {
            phase: Some(Phase::Awake),
            pods: "2/3".to_owned(),
            weights: "web=100".to_owned(),
            why: "21 requests in flight need 3 pods".to_owned(),
            next: "sleeps in 60s".to_owned(),
            ..RouteStatus::default()
        });
        route
    }

    #[test]
    fn a_row_has_a_cell_for_each_column() {
        for (namespace, wide) in [(false, false), (true, false), (false, true), (true, true)] {
            let columns = Columns { namespace, wide };
            let row = columns.row(&route(), Timestamp::now());
            assert_eq!(row.len(), columns.head().len());
        }
        let row = Columns {
            namespace: true,
            wide: false,
        }
        .row(&route(), Timestamp::now());
        assert_eq!(
            row,
            [
                "shop",
                "web",
                "Awake",
                "2/3",
                "web=100",
                "21 requests in flight need 3 pods",
                "-",
                "-"
            ]
        );
    }

    #[test]
    fn a_route_without_status_is_a_row_of_dashes() {
        let row = Columns {
            namespace: false,
            wide: true,
        }
        .row(&Route::new("web", crds::RouteSpec::default()), Timestamp::now());
        assert_eq!(row, ["web", "-", "-", "-", "-", "-", "-", "-", "-", "-"]);
    }

    #[test]
    fn only_phase_pods_and_reason_make_a_new_line() {
        let (a, mut b) = (route(), route());
        let status = b.status.as_mut().expect("a status");
        status.last_request = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
            Timestamp::now(),
        ));
        assert_eq!(shown(&a), shown(&b));
        b.status.as_mut().expect("a status").pods = "3/3".to_owned();
        assert_ne!(shown(&a), shown(&b));
    }
}
