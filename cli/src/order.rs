//! `dormouse wake` and `dormouse sleep`: an order written on the Route, and what became of it.

use std::time::Duration;

use crds::names::{CLI_MANAGER, COMMAND_ANNOTATION};
use crds::route::{Phase, RouteStatus};
use crds::{Route, condition};
use futures::TryStreamExt as _;
use jiff::Timestamp;
use kube::Api;
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher::watch_object;
use serde_json::json;

use crate::args::Scope;
use crate::client::{connect, failed};
use crate::explain::service_name;
use crate::failure::Failure;
use crate::{duration, output};

/// Options of `dormouse wake` and `dormouse sleep`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// The Service
    service: String,
    #[command(flatten)]
    scope: Scope,
    /// Do not wait until it is done
    #[arg(long)]
    no_wait: bool,
    /// How long to wait
    #[arg(long, default_value = "2m", value_parser = duration::parse)]
    timeout: Duration,
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// At least one pod, now.
    Wake,
    /// No pods, now. A request wakes it again.
    Sleep,
}

impl Order {
    fn word(self) -> &'static str {
        match self {
            Self::Wake => "wake",
            Self::Sleep => "sleep",
        }
    }
}

/// # Errors
/// When the cluster cannot be asked, or the order was not carried out.
pub(crate) async fn run(order: Order, args: Args) -> Result<(), Failure> {
    let connected = connect(&args.scope).await?;
    let (namespace, url) = (&connected.namespace, &connected.url);
    let name = service_name(&args.service);
    let api: Api<Route> = Api::namespaced(connected.client.clone(), namespace);
    let route = api
        .get_opt(name)
        .await
        .map_err(|error| failed("read Routes", url, &error))?;
    let route = route.ok_or_else(|| {
        no(format!(
            "Service {namespace}/{name} has no Route: it is not opted in; `dormouse explain {name}` says more"
        ))
    })?;
    let captured =
        condition::find(&route.status.unwrap_or_default().conditions, condition::CAPTURED).cloned();
    if let Some(captured) = captured.filter(|found| found.status != "True" && order == Order::Sleep) {
        return Err(no(format!(
            "{namespace}/{name} cannot sleep while it is not captured: {}",
            captured.message
        )));
    }
    let begun = Timestamp::now();
    let command = format!("{}@{:016x}", order.word(), nonce(begun));
    let patch = json!({ "metadata": { "annotations": { COMMAND_ANNOTATION: command } } });
    let params = PatchParams {
        field_manager: Some(CLI_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    api.patch(name, &params, &Patch::Merge(&patch))
        .await
        .map_err(|error| failed("write the order to the Route", url, &error))?;
    if args.no_wait {
        return output::print(&format!("{namespace}/{name}: asked to {}\n", order.word()));
    }
    let mut last = RouteStatus::default();
    let waited =
        tokio::time::timeout(args.timeout, wait(order, &api, name, &command, begun, &mut last)).await;
    let phase = last
        .phase
        .map_or_else(|| "unknown".to_owned(), |phase| phase.to_string());
    match waited {
        Ok(Ok(Done::Yes(how))) => output::print(&format!(
            "{namespace}/{name}: {how}, pods {}. {}\n",
            last.pods, last.why
        )),
        Ok(Ok(Done::Gone)) => Err(no(format!("{namespace}/{name} is no longer opted in"))),
        Ok(Err(error)) => Err(Failure::Api(format!("cannot watch the Route at {url}: {error}"))),
        Err(_) if last.command != command => Err(no(format!(
            "{namespace}/{name}: no autoscaler took the order within {:?}; `dormouse doctor` says whether one runs",
            args.timeout
        ))),
        Err(_) => Err(no(format!(
            "{namespace}/{name}: the order was taken, but after {:?} it is {phase}. {}",
            args.timeout, last.why
        ))),
    }
}

fn no(text: String) -> Failure {
    Failure::No(Some(text))
}

/// Tells orders of one Service apart.
fn nonce(now: Timestamp) -> u64 {
    // The low 64 bits: nanoseconds of some 580 years.
    now.as_nanosecond() as u64
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Done {
    Yes(&'static str),
    Gone,
}

async fn wait(
    order: Order,
    api: &Api<Route>,
    name: &str,
    command: &str,
    begun: Timestamp,
    last: &mut RouteStatus,
) -> Result<Done, kube::runtime::watcher::Error> {
    let mut changes = std::pin::pin!(watch_object(api.clone(), name));
    while let Some(route) = changes.try_next().await? {
        let Some(route) = route else { return Ok(Done::Gone) };
        *last = route.status.unwrap_or_default();
        if let Some(how) = done(order, last, command, begun) {
            return Ok(Done::Yes(how));
        }
    }
    Ok(Done::Gone)
}

/// Whether the order is carried out, and how it stands.
fn done(order: Order, status: &RouteStatus, command: &str, begun: Timestamp) -> Option<&'static str> {
    if status.command != command {
        return None;
    }
    // Wakes say when they began by the autoscaler's clock, which may be a little behind ours.
    let slack = jiff::SignedDuration::from_secs(1);
    let woken_since = status
        .wakes
        .iter()
        .any(|wake| wake.at.as_ref().is_some_and(|at| at.0 >= begun - slack));
    match (order, status.phase) {
        (Order::Wake, Some(Phase::Awake | Phase::Direct | Phase::FailOpen)) => Some("awake"),
        (Order::Sleep, Some(Phase::Asleep)) => Some("asleep"),
        (Order::Sleep, Some(Phase::Waking)) => Some("slept, and a request is waking it"),
        (Order::Sleep, Some(_)) if woken_since => Some("slept, and a request woke it again"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crds::route::Wake;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    #[test]
    fn an_order_is_done_when_the_status_names_it_and_shows_it() {
        let begun = Timestamp::from_second(1_000).expect("a time");
        let woken = |second| {
            let at = Some(Time(Timestamp::from_second(second).expect("a time")));
            vec![Wake {
                at,
                ..Wake::default()
            }]
        };
        let rows = [
            (Order::Wake, "x@1", Phase::Awake, vec![], Some("awake")),
            (Order::Wake, "x@0", Phase::Awake, vec![], None),
            (Order::Wake, "x@1", Phase::Waking, vec![], None),
            (Order::Wake, "x@1", Phase::Asleep, vec![], None),
            (Order::Sleep, "x@1", Phase::Asleep, vec![], Some("asleep")),
            (Order::Sleep, "x@0", Phase::Asleep, vec![], None),
            (
                Order::Sleep,
                "x@1",
                Phase::Waking,
                vec![],
                Some("slept, and a request is waking it"),
            ),
            (Order::Sleep, "x@1", Phase::Awake, vec![], None),
            (Order::Sleep, "x@1", Phase::Awake, woken(900), None),
            (
                Order::Sleep,
                "x@1",
                Phase::Awake,
                woken(1_001),
                Some("slept, and a request woke it again"),
            ),
        ];
        for (order, command, phase, wakes, want) in rows {
            let status = RouteStatus {
                command: command.to_owned(),
                phase: Some(phase),
                wakes,
                ..RouteStatus::default()
            };
            assert_eq!(
                done(order, &status, "x@1", begun),
                want,
                "{order:?} {command} {phase}"
            );
        }
    }
}
