//! `dormouse rollout get` and `watch`: all of them in a table, one as a picture, or each change as a line.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use crds::Rollout;
use crds::names::ROLLOUT_LABEL;
use crds::rollout::EvidenceStatus;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use kube::api::ListParams;
use kube::runtime::watcher;
use kube::{Api, ResourceExt as _};

use super::picture::{self, Picture, Pods};
use super::{Stand, command, lookup};
use crate::args::{Format, Scope};
use crate::changes::{Change, follow};
use crate::client::{Connected, connect, failed};
use crate::failure::Failure;
use crate::output::{self, Paint};

/// Options of `dormouse rollout get` and `watch`.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// Only this Rollout, or that of this Service (of that name: service/NAME)
    #[arg(conflicts_with = "all_namespaces")]
    name: Option<String>,
    #[command(flatten)]
    scope: Scope,
    /// Rollouts of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// How to write it
    #[arg(short, long, value_enum)]
    output: Option<Format>,
}

/// # Errors
/// When the cluster cannot be asked, or there is no such rollout.
pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let connected = connect(&args.scope).await?;
    let data = args.output.and_then(Format::data);
    if let Some(name) = &args.name {
        let mut rollout = lookup(&connected, name).await?;
        rollout.managed_fields_mut().clear();
        return match (data, args.output) {
            (Some(data), _) => output::print(&output::data(&rollout, data)?),
            (None, Some(_)) => table(&args, &[rollout]),
            (None, None) => output::print(&draw(&connected, &rollout).await?),
        };
    }
    let api: Api<Rollout> = connected.api(args.all_namespaces);
    let mut rollouts = api
        .list(&ListParams::default())
        .await
        .map_err(|error| failed("list Rollouts", &connected.url, &error))?
        .items;
    rollouts.sort_by_key(|rollout| (rollout.namespace(), rollout.name_any()));
    for rollout in &mut rollouts {
        rollout.managed_fields_mut().clear();
    }
    if let Some(data) = data {
        return output::print(&output::data(&output::list(&rollouts), data)?);
    }
    if rollouts.is_empty() {
        let place = match args.all_namespaces {
            true => "any namespace".to_owned(),
            false => format!("namespace {}", connected.namespace),
        };
        eprintln!("There is no Rollout in {place}: annotate a Service with dormouse.dev/rollout: canary.");
        return Ok(());
    }
    table(&args, &rollouts)
}

fn table(args: &Args, rollouts: &[Rollout]) -> Result<(), Failure> {
    let columns = Columns::of(args);
    let now = Timestamp::now();
    let mut rows = vec![columns.head()];
    rows.extend(rollouts.iter().map(|rollout| columns.row(rollout, now)));
    output::print(&output::table(&rows))
}

/// All about one.
async fn draw(connected: &Connected, rollout: &Rollout) -> Result<String, Failure> {
    let namespace = rollout.namespace().unwrap_or_default();
    let deployments: Api<Deployment> = Api::namespaced(connected.client.clone(), &namespace);
    let own = ListParams::default().labels(&format!("{ROLLOUT_LABEL}={}", rollout.name_any()));
    let (revisions, pools) = tokio::join!(command::revisions(connected, rollout), deployments.list(&own));
    // An account may see Rollouts and no Deployments: then the pods are not shown.
    let pools = pools.map(|list| list.items).unwrap_or_default();
    let mut pods: BTreeMap<String, Pods> = pools
        .iter()
        .map(|pool| (pool.name_any(), pods_of(pool)))
        .collect();
    let status = rollout.status.clone().unwrap_or_default();
    if status.in_place && !status.adopted {
        // Its own pool waits at zero: its pods are those of the Deployment.
        let place = deployments.get_opt(&rollout.spec.target_ref.name).await;
        let place = place.ok().flatten();
        pods.extend(place.map(|place| (status.stable_revision, pods_of(&place))));
    }
    let picture = Picture {
        rollout,
        revisions: &revisions?,
        pods: &pods,
    };
    Ok(picture::text(&picture, Timestamp::now(), Paint::stdout()))
}

fn pods_of(pool: &Deployment) -> Pods {
    Pods {
        ready: pool
            .status
            .as_ref()
            .and_then(|status| status.ready_replicas)
            .unwrap_or(0),
        wanted: pool.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1),
    }
}

/// # Errors
/// When the cluster cannot be asked, or there is no such rollout.
pub(super) async fn watch(args: Args) -> Result<(), Failure> {
    let connected = connect(&args.scope).await?;
    let mut config = watcher::Config::default();
    if let Some(name) = &args.name {
        let name = lookup(&connected, name).await?.name_any();
        config = config.fields(&format!("metadata.name={name}"));
    }
    let columns = Columns::of(&args);
    let data = args.output.and_then(Format::data);
    if data.is_none() {
        output::print(&columns.watch_line("TIME", &columns.head()))?;
    }
    let shown = |rollout: &Rollout| shown(rollout, args.output == Some(Format::Wide));
    let api: Api<Rollout> = connected.api(args.all_namespaces);
    follow(api, config, &connected, "Rollouts", |change| {
        let text = match change {
            Change::Now(mut rollout, before) => {
                rollout.managed_fields_mut().clear();
                match data {
                    Some(data) => output::change(&rollout, data)?,
                    None if before.is_some_and(|before| shown(&before) == shown(&rollout)) => String::new(),
                    None => {
                        columns.watch_line(&output::time_of_day(), &columns.row(&rollout, Timestamp::now()))
                    }
                }
            }
            Change::Gone(rollout) if data.is_none() => {
                let cells = output::gone(&rollout, columns.namespace);
                columns.watch_line(&output::time_of_day(), &cells)
            }
            Change::Gone(_) | Change::Listed => String::new(),
        };
        output::print(&text)?;
        Ok(ControlFlow::Continue(()))
    })
    .await
}

/// What makes a new line. The sentence counts without its numbers, unless all of it is wanted: it says how many seconds and
/// requests are left.
fn shown(rollout: &Rollout, all: bool) -> Vec<String> {
    let status = rollout.status.clone().unwrap_or_default();
    let evidence = status.evidence.unwrap_or_default();
    let words = |text: &str| text.replace(|letter: char| letter.is_ascii_digit(), "");
    let mut shown = vec![
        format!("{:?}", status.phase),
        status.weight,
        status.stable_revision,
        status.candidate_revision,
        status.last_command_answer,
        evidence.verdict,
    ];
    if all {
        shown.extend([status.why, status.next, evidence.requests_text, evidence.text]);
    } else {
        shown.push(words(&status.why));
    }
    shown
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
        let mut head = vec!["NAME", "PHASE", "WEIGHT", "STABLE", "CANDIDATE", "VERDICT", "AGE"];
        if self.namespace {
            head.insert(0, "NAMESPACE");
        }
        if self.wide {
            head.extend(["SERVICE", "REQUESTS", "BAD", "AGAINST", "FOR"]);
        }
        head.push("WHY");
        head.into_iter().map(str::to_owned).collect()
    }

    fn row(self, rollout: &Rollout, now: Timestamp) -> Vec<String> {
        let stand = Stand::new(rollout);
        let active = !stand.candidate.is_empty();
        let evidence = rollout.status.as_ref().and_then(|status| status.evidence.clone());
        let evidence = evidence.filter(|_| active).unwrap_or_default();
        let mut row = vec![
            rollout.name_any(),
            format!("{:?}", stand.phase),
            output::or_dash(stand.weight),
            output::or_dash(stand.stable),
            output::or_dash(stand.candidate),
            output::or_dash(evidence.verdict.clone()),
            output::age(rollout.creation_timestamp().as_ref(), now),
        ];
        if self.namespace {
            row.insert(0, rollout.namespace().unwrap_or_default());
        }
        if self.wide {
            row.push(rollout.spec.service_ref.name.clone());
            row.extend(numbers(&evidence).map(output::or_dash));
        }
        row.push(stand.why);
        row
    }

    fn watch_line(self, time: &str, cells: &[String]) -> String {
        let mut widths = vec![20, 11, 6, 24, 24, 12, 6];
        if self.namespace {
            widths.insert(0, 16);
        }
        if self.wide {
            widths.extend([20, 12, 8, 12, 12]);
        }
        widths.push(0);
        output::watch_line(time, cells, &widths)
    }
}

/// Requests and bad ones, stable revision and candidate; evidence against the candidate and for it, of what is needed.
fn numbers(evidence: &EvidenceStatus) -> [String; 4] {
    if evidence.verdict.is_empty() {
        return Default::default();
    }
    let ([stable, candidate], [stable_bad, candidate_bad]) = (evidence.requests, evidence.bad);
    let of = |found: f64, needed: f64| format!("{}/{}", picture::number(found), picture::number(needed));
    [
        format!("{stable}+{candidate}"),
        format!("{stable_bad}+{candidate_bad}"),
        of(evidence.e_rollback, evidence.need_rollback),
        of(evidence.e_safe, evidence.need_safe),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crds::RolloutSpec;
    use crds::rollout::{Phase, RolloutStatus};

    fn rollout() -> Rollout {
        let mut rollout = Rollout::new("web", RolloutSpec::default());
        rollout.metadata.namespace = Some("shop".to_owned());
        rollout.spec.service_ref.name = "front".to_owned();
        rollout.status = Some(RolloutStatus {
            phase: Phase::Progressing,
            weight: "20%".to_owned(),
            why: "web-2 has 20 % for 12s at least.".to_owned(),
            stable_revision: "web-1".to_owned(),
            candidate_revision: "web-2".to_owned(),
            evidence: Some(EvidenceStatus {
                requests: [812, 203],
                bad: [1, 4],
                e_rollback: 38.2,
                need_rollback: 100.0,
                e_safe: 2.1,
                need_safe: 20.0,
                verdict: "Inconclusive".to_owned(),
                ..EvidenceStatus::default()
            }),
            ..RolloutStatus::default()
        });
        rollout
    }

    #[test]
    fn a_row_has_a_cell_for_each_column() {
        let now = Timestamp::now();
        for (namespace, wide) in [(false, false), (true, false), (false, true), (true, true)] {
            let columns = Columns { namespace, wide };
            for rollout in [rollout(), Rollout::new("new", RolloutSpec::default())] {
                assert_eq!(columns.row(&rollout, now).len(), columns.head().len());
            }
        }
        let columns = Columns {
            namespace: true,
            wide: true,
        };
        assert_eq!(
            columns.row(&rollout(), now),
            [
                "shop",
                "web",
                "Progressing",
                "20%",
                "web-1",
                "web-2",
                "Inconclusive",
                "-",
                "front",
                "812+203",
                "1+4",
                "38.2/100",
                "2.1/20",
                "web-2 has 20 % for 12s at least."
            ]
        );
    }

    #[test]
    fn numbers_alone_make_no_new_line_unless_all_is_wanted() {
        let (before, mut after) = (rollout(), rollout());
        let status = after.status.as_mut().expect("a status");
        status.why = "web-2 has 20 % for 9s at least.".to_owned();
        assert_eq!(shown(&before, false), shown(&after, false));
        assert_ne!(shown(&before, true), shown(&after, true));
        after.status.as_mut().expect("a status").weight = "50%".to_owned();
        assert_ne!(shown(&before, false), shown(&after, false));
    }
}
