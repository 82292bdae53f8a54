//! `dormouse get`: the Services that Dormouse knows, once or as they change.

use std::ops::ControlFlow;

use crds::Route;
use crds::condition;
use jiff::Timestamp;
use kube::api::ListParams;
use kube::runtime::watcher;
use kube::{Api, ResourceExt as _};

use crate::args::{Format, Scope};
use crate::changes::{Change, follow};
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

/// # Errors
/// When the cluster cannot be asked, or the named Service is not known.
pub(crate) async fn run(args: Args) -> Result<(), Failure> {
    let connected = connect(&args.scope).await?;
    let api: Api<Route> = connected.api(args.all_namespaces);
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
    match (&args.name, args.output.and_then(Format::data)) {
        (Some(name), _) if routes.is_empty() => Err(Failure::No(Some(format!(
            "no Route for Service {name} in {place}: it is not opted in, or the autoscaler has not seen it; `dormouse \
             explain {name}` says which"
        )))),
        (Some(_), Some(data)) if !args.all_namespaces => output::print(&output::data(&routes[0], data)?),
        (_, Some(data)) => output::print(&output::data(&output::list(&routes), data)?),
        (_, None) => {
            if routes.is_empty() {
                eprintln!("No Service in {place} is opted in with dormouse.dev/scale-to-zero: \"true\".");
                return Ok(());
            }
            let columns = Columns::of(args);
            let now = Timestamp::now();
            let mut rows = vec![columns.head()];
            rows.extend(routes.iter().map(|route| columns.row(route, now)));
            output::print(&output::table(&rows))
        }
    }
}

/// What a watcher of phases wants to see change: not each new time of the last request.
type Shown = [String; 4];

async fn watch(args: &Args, api: Api<Route>, connected: &Connected) -> Result<(), Failure> {
    let mut config = watcher::Config::default();
    if let Some(name) = &args.name {
        config = config.fields(&format!("metadata.name={name}"));
    }
    let columns = Columns::of(args);
    let data = args.output.and_then(Format::data);
    if data.is_none() {
        output::print(&columns.watch_line("TIME", &columns.head()))?;
    }
    follow(api, config, connected, "Routes", |change| {
        let text = match change {
            Change::Now(mut route, before) => {
                route.managed_fields_mut().clear();
                match data {
                    Some(data) => output::change(&route, data)?,
                    None if before.is_some_and(|before| shown(&before) == shown(&route)) => String::new(),
                    None => {
                        columns.watch_line(&output::time_of_day(), &columns.row(&route, Timestamp::now()))
                    }
                }
            }
            Change::Gone(route) if data.is_none() => {
                let cells = output::gone(&route, columns.namespace);
                columns.watch_line(&output::time_of_day(), &cells)
            }
            Change::Gone(_) | Change::Listed => String::new(),
        };
        output::print(&text)?;
        Ok(ControlFlow::Continue(()))
    })
    .await
}

fn shown(route: &Route) -> Shown {
    let status = route.status.clone().unwrap_or_default();
    [
        status.phase.map(|phase| phase.to_string()).unwrap_or_default(),
        status.pods,
        status.weights,
        status.why,
    ]
}

#[derive(Clone, Copy, Debug)]
struct Columns {
    namespace: bool,
    wide: bool,
}

impl Columns {
    fn of(args: &Args) -> Self {
        Self {
            namespace: args.all_namespaces,
            wide: args.output == Some(Format::Wide),
        }
    }

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
        let mut row = vec![
            route.name_any(),
            output::or_dash(status.phase.map(|phase| phase.to_string()).unwrap_or_default()),
            output::or_dash(status.pods),
            output::or_dash(status.weights),
            output::or_dash(status.why),
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
                output::or_dash(captured),
                output::or_dash(status.listening.join(",")),
                output::or_dash(status.next),
            ]);
        }
        row
    }

    /// A line that can be printed before the next is known: columns of a fixed width, so that most of them line up.
    fn watch_line(self, time: &str, cells: &[String]) -> String {
        let mut widths = vec![24, 8, 7, 12, 60, 12, 6, 20, 24, 0];
        if self.namespace {
            widths.insert(0, 16);
        }
        output::watch_line(time, cells, &widths)
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
    fn what_the_table_says_makes_a_new_line_but_not_the_time_of_a_request() {
        let (a, mut b) = (route(), route());
        let status = b.status.as_mut().expect("a status");
        status.last_request = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
            Timestamp::now(),
        ));
        assert_eq!(shown(&a), shown(&b));
        let changes: [fn(&mut RouteStatus); 4] = [
            |status| status.phase = Some(Phase::Asleep),
            |status| status.pods = "3/3".to_owned(),
            |status| status.weights = "web=95,web-2=5".to_owned(),
            |status| status.why = "no requests".to_owned(),
        ];
        for change in changes {
            let mut b = route();
            change(b.status.as_mut().expect("a status"));
            assert_ne!(shown(&a), shown(&b));
        }
    }
}
