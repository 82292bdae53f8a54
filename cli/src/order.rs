//! `dormouse wake` and `dormouse sleep`: an order written on the Route, and what became of it.

use std::time::Duration;

use crds::names::COMMAND_ANNOTATION;
use crds::route::{Phase, RouteStatus};
use crds::{Route, condition};
use jiff::Timestamp;
use kube::Api;
use serde_json::json;
use tokio::time::Instant;

use crate::args::Scope;
use crate::changes::follow_one;
use crate::client::{Connected, connect, failed, merge};
use crate::explain::service_name;
use crate::failure::Failure;
use crate::{duration, output};

/// How long an order is given again while it is refused. Requests that take longer than this keep it awake anyway.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two of them.
const PAUSE: Duration = Duration::from_millis(250);

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
            "no Route for Service {name} in namespace {namespace}: it is not opted in, or the autoscaler has not seen it; \
             `dormouse explain {name} -n {namespace}` says which"
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
    let mut ask = Ask {
        order,
        connected: &connected,
        api,
        name,
        command: String::new(),
        given: Timestamp::UNIX_EPOCH,
        last: RouteStatus::default(),
    };
    if args.no_wait {
        ask.write().await?;
        return output::print(&format!("{namespace}/{name}: asked to {}\n", order.word()));
    }
    let waited = tokio::time::timeout(args.timeout, ask.until_done()).await;
    let phase = ask
        .last
        .phase
        .map_or_else(|| "unknown".to_owned(), |phase| phase.to_string());
    let (pods, why) = (&ask.last.pods, &ask.last.why);
    match waited {
        Ok(Ok(Done::Yes(how))) => output::print(&format!("{namespace}/{name}: {how}, pods {pods}\n")),
        Ok(Ok(Done::Refused)) => Err(no(format!("{namespace}/{name} does not {}: {why}", order.word()))),
        Ok(Ok(Done::Gone)) => Err(no(format!("{namespace}/{name} is no longer opted in"))),
        Ok(Err(failure)) => Err(failure),
        Err(_) if ask.last.command != ask.command => Err(no(format!(
            "{namespace}/{name}: no autoscaler took the order within {:?}; `dormouse doctor` says whether one runs",
            args.timeout
        ))),
        Err(_) => Err(no(format!(
            "{namespace}/{name}: the order was taken, but after {:?} it is {phase}. {why}",
            args.timeout
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
    /// The autoscaler looked, and says why not.
    Refused,
    Gone,
}

/// One order, given again while it is refused: between two requests there may be a quiet moment.
struct Ask<'a> {
    order: Order,
    connected: &'a Connected,
    api: Api<Route>,
    name: &'a str,
    /// As it stands on the Route.
    command: String,
    /// When it was written.
    given: Timestamp,
    /// What was last seen.
    last: RouteStatus,
}

impl Ask<'_> {
    async fn until_done(&mut self) -> Result<Done, Failure> {
        let patience = Instant::now() + PATIENCE;
        loop {
            self.write().await?;
            match self.wait().await? {
                Done::Refused if Instant::now() < patience => tokio::time::sleep(PAUSE).await,
                done => return Ok(done),
            }
        }
    }

    async fn write(&mut self) -> Result<(), Failure> {
        self.given = Timestamp::now();
        self.command = format!("{}@{:016x}", self.order.word(), nonce(self.given));
        let patch = json!({ "metadata": { "annotations": { COMMAND_ANNOTATION: self.command } } });
        merge(&self.api, self.name, &patch)
            .await
            .map_err(|error| failed("write the order to the Route", &self.connected.url, &error))
    }

    async fn wait(&mut self) -> Result<Done, Failure> {
        let (order, command, given, last) = (self.order, &self.command, self.given, &mut self.last);
        let check = |route: Route| {
            *last = route.status.unwrap_or_default();
            done(order, last, command, given)
        };
        let found = follow_one(self.api.clone(), self.name, self.connected, "the Route", check).await?;
        Ok(found.unwrap_or(Done::Gone))
    }
}

/// Whether the order is carried out, and how it stands. The autoscaler names an order in the status with which it has
/// decided on it.
fn done(order: Order, status: &RouteStatus, command: &str, given: Timestamp) -> Option<Done> {
    if status.command != command {
        return None;
    }
    let woken_since = status
        .wakes
        .iter()
        .any(|wake| wake.at.as_ref().is_some_and(|at| at.0 >= given));
    match (order, status.phase) {
        (Order::Wake, Some(Phase::Awake | Phase::Direct | Phase::FailOpen)) => Some(Done::Yes("awake")),
        (Order::Sleep, Some(Phase::Asleep)) => Some(Done::Yes("asleep")),
        (Order::Sleep, Some(Phase::Waking)) => Some(Done::Yes("slept, and a request is waking it")),
        // It went to zero and back between two statuses.
        (Order::Sleep, Some(_)) if woken_since => Some(Done::Yes("slept, and a request woke it again")),
        (Order::Sleep, Some(_)) => Some(Done::Refused),
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
        let given = Timestamp::from_second(1_000).expect("a time");
        let woken = |second| {
            let at = Some(Time(Timestamp::from_second(second).expect("a time")));
            vec![Wake {
                at,
                ..Wake::default()
            }]
        };
        let waking = Some(Done::Yes("slept, and a request is waking it"));
        let rows = [
            (Order::Wake, "x@1", Phase::Awake, vec![], Some(Done::Yes("awake"))),
            (
                Order::Wake,
                "x@1",
                Phase::FailOpen,
                vec![],
                Some(Done::Yes("awake")),
            ),
            (Order::Wake, "x@0", Phase::Awake, vec![], None),
            (Order::Wake, "x@1", Phase::Waking, vec![], None),
            (Order::Wake, "x@1", Phase::Asleep, vec![], None),
            (
                Order::Sleep,
                "x@1",
                Phase::Asleep,
                vec![],
                Some(Done::Yes("asleep")),
            ),
            (Order::Sleep, "x@0", Phase::Asleep, vec![], None),
            (Order::Sleep, "x@1", Phase::Waking, vec![], waking),
            (Order::Sleep, "x@1", Phase::Awake, vec![], Some(Done::Refused)),
            (Order::Sleep, "x@1", Phase::Awake, woken(999), Some(Done::Refused)),
            (
                Order::Sleep,
                "x@1",
                Phase::Awake,
                woken(1_001),
                Some(Done::Yes("slept, and a request woke it again")),
            ),
            (Order::Sleep, "x@0", Phase::Awake, woken(1_001), None),
        ];
        for (order, command, phase, wakes, want) in rows {
            let status = RouteStatus {
                command: command.to_owned(),
                phase: Some(phase),
                wakes,
                ..RouteStatus::default()
            };
            assert_eq!(
                done(order, &status, "x@1", given),
                want,
                "{order:?} {command} {phase}"
            );
        }
    }
}
