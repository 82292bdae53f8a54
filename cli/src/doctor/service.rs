//! Is there anything in the way of one Service?

use autoscaler::examine::{self, Finding, GatherError, Severity};
use crds::condition::{self, reason};
use crds::{Route, RouteStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::ListParams;
use kube::{Api, ResourceExt as _};

use super::{Line, Mark};
use crate::client::{Connected, failed};
use crate::explain::good;
use crate::failure::Failure;

/// Conditions that only the running autoscaler can know; the others are looked at live.
const ONLY_SEEN: &[&str] = &[
    condition::WORKLOAD_HEALTHY,
    condition::DEPENDENCIES,
    condition::SELECTOR_CONFLICT,
    condition::REPLICAS_CONFLICT,
    condition::FAIL_OPEN,
    condition::SCALED_BY_HPA,
];

/// Looks at one Service live. Unless `thorough`, nothing is said of advice.
///
/// # Errors
/// When the cluster cannot be asked, or there is no such Service.
pub(super) async fn examine(
    connected: &Connected,
    namespace: &str,
    name: &str,
    thorough: bool,
) -> Result<Vec<Line>, Failure> {
    let (client, url) = (&connected.client, &connected.url);
    let facts = match examine::gather(client, namespace, name).await {
        Ok(facts) => facts,
        Err(error @ GatherError::NoService { .. }) => {
            return Err(Failure::No(Some(format!("{error} at {url}"))));
        }
        Err(GatherError::Read { kind, source }) => return Err(failed(&format!("read {kind}"), url, &source)),
    };
    let routes: Api<Route> = Api::namespaced(client.clone(), namespace);
    let route = match routes.get_opt(name).await {
        Ok(route) => route,
        Err(error) => return Err(failed("read Routes", url, &error)),
    };
    let about = format!("{namespace}/{name}");
    let findings = examine::examine(&facts);
    let mut lines = lines(&about, facts.parsed.settings.enabled, route.as_ref(), &findings);
    if !thorough {
        lines.retain(|line| line.mark != Mark::Advice);
    }
    Ok(lines)
}

/// What the conditions of many Services say, without looking at each.
///
/// # Errors
/// When the cluster cannot be asked.
pub(super) async fn by_conditions(
    connected: &Connected,
    services: &[(String, String)],
) -> Result<Vec<Line>, Failure> {
    let routes: Api<Route> = Api::all(connected.client.clone());
    let routes = routes
        .list(&ListParams::default())
        .await
        .map_err(|error| failed("list Routes", &connected.url, &error))?;
    let mut lines = Vec::new();
    for (namespace, name) in services {
        let route = routes
            .items
            .iter()
            .find(|route| route.namespace().as_ref() == Some(namespace) && route.name_any() == *name);
        let about = format!("{namespace}/{name}");
        lines.extend(self::lines(&about, true, route, &[]));
        let conditions = route
            .and_then(|route| route.status.as_ref())
            .map(|status| status.conditions.as_slice());
        for kind in [
            condition::CONFIGURATION_VALID,
            condition::FULLY_ACTIVE,
            condition::WARNING,
        ] {
            let found = conditions
                .and_then(|list| condition::find(list, kind))
                .filter(|found| !good(found));
            lines.extend(found.map(|found| Line::new(Mark::Warning, &about, &found.reason, &found.message)));
        }
    }
    Ok(lines)
}

/// Everything about one Service, the worst first.
fn lines(about: &str, opted_in: bool, route: Option<&Route>, findings: &[Finding]) -> Vec<Line> {
    let status = route.and_then(|route| route.status.clone()).unwrap_or_default();
    let mut lines: Vec<Line> = findings.iter().map(|finding| found(about, finding)).collect();
    let refused = findings
        .iter()
        .any(|finding| finding.severity == Severity::Refusal);
    if !refused {
        lines.push(captured(about, opted_in, route.is_some(), &status));
    }
    let seen = status
        .conditions
        .iter()
        .filter(|seen| ONLY_SEEN.contains(&seen.type_.as_str()));
    for condition in seen {
        let said = lines
            .iter()
            .any(|line| line.reason == condition.reason && line.mark != Mark::Good);
        // What was found live is newer than the condition.
        let live = findings
            .iter()
            .any(|finding| finding.condition == condition.type_);
        if !said && !live && (!good(condition) || condition.type_ == condition::SCALED_BY_HPA) {
            lines.extend(seen_line(about, condition));
        }
    }
    lines.sort_by_key(|line| std::cmp::Reverse(line.mark));
    lines
}

fn found(about: &str, finding: &Finding) -> Line {
    let mark = match finding.severity {
        Severity::Refusal => Mark::Stop,
        Severity::Warning => Mark::Warning,
        Severity::Advice => Mark::Advice,
    };
    Line::new(mark, about, finding.reason, &finding.message)
}

fn seen_line(about: &str, found: &Condition) -> Option<Line> {
    let mark = match found.type_.as_str() {
        condition::WORKLOAD_HEALTHY => Mark::Stop,
        condition::SCALED_BY_HPA if found.status == "True" => Mark::Good,
        condition::SCALED_BY_HPA => return None,
        _ => Mark::Warning,
    };
    Some(Line::new(mark, about, &found.reason, &found.message))
}

/// Whether its traffic goes through the activators.
fn captured(about: &str, opted_in: bool, known: bool, status: &RouteStatus) -> Line {
    let found = condition::find(&status.conditions, condition::CAPTURED);
    match found {
        Some(found) if found.status == "True" => {
            Line::new(Mark::Good, about, condition::CAPTURED, &found.message)
        }
        Some(found) => {
            let under_way = [reason::CAPTURING, reason::RELEASING].contains(&found.reason.as_str());
            let mark = if under_way { Mark::Warning } else { Mark::Stop };
            Line::new(mark, about, &found.reason, &found.message)
        }
        None if !opted_in => Line::new(
            Mark::Warning,
            about,
            "NotOptedIn",
            "nothing was asked for; annotate it with dormouse.dev/scale-to-zero: \"true\"",
        ),
        None if known => Line::new(
            Mark::Warning,
            about,
            reason::CAPTURING,
            "the autoscaler has not come to it yet",
        ),
        None => Line::new(
            Mark::Stop,
            about,
            "NotSeen",
            "it is opted in, but no autoscaler has seen it: see the installation above",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    fn route(conditions: &[(&str, bool, &str)]) -> Route {
        let mut route = Route::new("web", crds::RouteSpec::default());
        let now = || Time(Timestamp::UNIX_EPOCH);
        let conditions = conditions
            .iter()
            .map(|(kind, status, reason)| {
                condition::condition(kind, *status, reason, format!("{kind} says"), None, now())
            })
            .collect();
        route.status = Some(RouteStatus {
            conditions,
            ..RouteStatus::default()
        });
        route
    }

    fn finding(severity: Severity, condition: &'static str, reason: &'static str) -> Finding {
        Finding {
            severity,
            condition,
            reason,
            message: "found".to_owned(),
        }
    }

    #[test]
    fn what_is_found_live_and_what_was_seen_come_together() {
        type Row = (Option<Route>, Vec<Finding>, Vec<(Mark, &'static str)>);
        let healthy = [(condition::CAPTURED, true, reason::PROBED)];
        let rows: Vec<Row> = vec![
            (Some(route(&healthy)), vec![], vec![(Mark::Good, "Captured")]),
            (
                Some(route(&[
                    (condition::CAPTURED, true, reason::PROBED),
                    (condition::DEPENDENCIES, true, reason::OK),
                ])),
                vec![],
                vec![(Mark::Good, "Captured")],
            ),
            (None, vec![], vec![(Mark::Stop, "NotSeen")]),
            (Some(route(&[])), vec![], vec![(Mark::Warning, "Capturing")]),
            (
                Some(route(&[(condition::CAPTURED, false, reason::HEADLESS)])),
                vec![finding(Severity::Refusal, condition::CAPTURED, reason::HEADLESS)],
                vec![(Mark::Stop, "Headless")],
            ),
            (
                Some(route(&[(condition::CAPTURED, false, reason::PROBE_FAILED)])),
                vec![finding(Severity::Advice, condition::WARNING, "Slow")],
                vec![(Mark::Stop, "SelfProbeFailed"), (Mark::Advice, "Slow")],
            ),
            (
                Some(route(&[
                    (condition::CAPTURED, true, reason::PROBED),
                    (condition::WORKLOAD_HEALTHY, false, reason::CRASH_LOOP),
                    (condition::FAIL_OPEN, false, reason::OK),
                    (condition::SCALED_BY_HPA, true, reason::HPA),
                    (condition::DEPENDENCIES, false, reason::DEPENDENCY_NOT_FOUND),
                    (condition::REPLICAS_CONFLICT, true, reason::FOREIGN_MANAGER),
                ])),
                vec![finding(
                    Severity::Warning,
                    condition::REPLICAS_CONFLICT,
                    reason::FOREIGN_MANAGER,
                )],
                vec![
                    (Mark::Stop, "CrashLoopBackOff"),
                    (Mark::Warning, "ForeignManager"),
                    (Mark::Warning, "DependencyNotFound"),
                    (Mark::Good, "Captured"),
                    (Mark::Good, "HorizontalPodAutoscaler"),
                ],
            ),
        ];
        for (route, findings, want) in rows {
            let lines = lines("shop/web", true, route.as_ref(), &findings);
            let got: Vec<_> = lines
                .iter()
                .map(|line| (line.mark, line.reason.as_str()))
                .collect();
            assert_eq!(got, want);
        }
        let asked_nothing = lines("shop/web", false, None, &[]);
        assert_eq!(
            (asked_nothing[0].mark, asked_nothing[0].reason.as_str()),
            (Mark::Warning, "NotOptedIn")
        );
    }
}
