//! Is Dormouse installed, current and running?

use crds::names::{ACTIVATOR_SERVICE, LEASE, RELEASE_ALL_ANNOTATION, SLICE_SERVICE_LABEL};
use crds::{Revision, Rollout, Route};
use futures::future::try_join_all;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::ListParams;
use kube::{Api, CustomResourceExt as _};
use serde_json::Value;

use super::{Line, Mark};
use crate::client::{Connected, failed};
use crate::failure::Failure;

pub(super) const ABOUT: &str = "installation";

fn line(mark: Mark, reason: &str, text: impl Into<String>) -> Line {
    Line::new(mark, ABOUT, reason, text)
}

/// # Errors
/// When the cluster cannot be asked.
pub(super) async fn examine(connected: &Connected, namespace: &str) -> Result<Vec<Line>, Failure> {
    let (client, url) = (&connected.client, &connected.url);
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), namespace);
    let leases: Api<Lease> = Api::namespaced(client.clone(), namespace);
    let own = ListParams::default().labels(&format!("{SLICE_SERVICE_LABEL}={ACTIVATOR_SERVICE}"));
    let names = [Route::crd_name(), Rollout::crd_name(), Revision::crd_name()];
    let (definitions, slices, lease) = tokio::join!(
        try_join_all(names.map(|name| definitions.get_opt(name))),
        slices.list(&own),
        leases.get_opt(LEASE)
    );
    let definition = match definitions {
        Ok(found) => self::definitions(&found.into_iter().flatten().collect::<Vec<_>>()),
        // An account without a right to see definitions can still use the rest.
        Err(kube::Error::Api(status)) if status.code == 403 => line(
            Mark::Warning,
            "CustomResources",
            "your account may not read custom resource definitions, so they are not checked",
        ),
        Err(error) => return Err(failed("read custom resource definitions", url, &error)),
    };
    let slices = slices.map_err(|error| failed("list the activators' EndpointSlices", url, &error))?;
    let lease = lease.map_err(|error| failed("read the autoscaler's Lease", url, &error))?;
    let mut lines = vec![definition, activators(&slices.items, namespace)];
    lines.extend(leader(lease.as_ref(), namespace, Timestamp::now()));
    Ok(lines)
}

/// Whether the cluster's definitions are ours.
fn definitions(found: &[CustomResourceDefinition]) -> Line {
    const FIX: &str = "dormouse crds | kubectl apply -f -";
    let reason = "CustomResources";
    let ours = [Route::crd(), Rollout::crd(), Revision::crd()];
    let same_name = |ours: &CustomResourceDefinition| {
        found
            .iter()
            .find(|found| found.metadata.name == ours.metadata.name)
    };
    let name = |ours: &CustomResourceDefinition| ours.metadata.name.clone().unwrap_or_default();
    let names =
        |all: Vec<&CustomResourceDefinition>| all.into_iter().map(name).collect::<Vec<_>>().join(", ");
    let missing: Vec<_> = ours.iter().filter(|ours| same_name(ours).is_none()).collect();
    let other: Vec<_> = ours
        .iter()
        .filter(|ours| same_name(ours).is_some_and(|found| schema(found) != schema(ours)))
        .collect();
    if !missing.is_empty() {
        let text = format!("not installed: {}; {FIX}", names(missing));
        return line(Mark::Stop, reason, text);
    }
    if !other.is_empty() {
        let text = format!(
            "installed in another version than this program's: {}; {FIX}",
            names(other)
        );
        return line(Mark::Warning, reason, text);
    }
    line(
        Mark::Good,
        reason,
        format!("{} are installed and current", names(ours.iter().collect())),
    )
}

/// The schema of our version. The columns are for people, and the status only for us: what others write is the schema.
fn schema(definition: &CustomResourceDefinition) -> Option<Value> {
    let versions = &definition.spec.versions;
    let version = versions
        .iter()
        .find(|version| version.name == crds::names::VERSION)?;
    let schema = serde_json::to_value(version.schema.as_ref()?).ok()?;
    Some(plain(schema))
}

/// With whole numbers as such: an API server gives 1.0 back as 1.
fn plain(value: Value) -> Value {
    match value {
        Value::Number(number) => match number.as_f64() {
            // Beyond this not every whole number has a float of its own.
            Some(float) if float.fract() == 0.0 && float.abs() < 9e15 => Value::from(float as i64),
            _ => Value::Number(number),
        },
        Value::Array(items) => items.into_iter().map(plain).collect(),
        Value::Object(fields) => fields
            .into_iter()
            .map(|(name, field)| (name, plain(field)))
            .collect(),
        other => other,
    }
}

fn activators(slices: &[EndpointSlice], namespace: &str) -> Line {
    let endpoints = slices.iter().flat_map(|slice| &slice.endpoints);
    let (mut ready, mut all) = (0, 0);
    for endpoint in endpoints {
        let conditions = endpoint.conditions.as_ref();
        all += 1;
        // No word about it means ready, by the API's definition.
        ready += usize::from(conditions.and_then(|conditions| conditions.ready).unwrap_or(true));
    }
    let fix = format!(
        "kubectl get pods -n {namespace}; until one is, awake Services are reached directly and asleep ones not at all"
    );
    match (ready, all) {
        (0, 0) => line(
            Mark::Stop,
            "Activators",
            format!("none runs: Service {namespace}/{ACTIVATOR_SERVICE} has no endpoints; {fix}"),
        ),
        (0, all) => line(Mark::Stop, "Activators", format!("none of {all} is ready: {fix}")),
        (1, 1) => line(
            Mark::Good,
            "Activators",
            "1 is ready; a second one would survive its loss",
        ),
        (ready, all) if ready < all => line(
            Mark::Warning,
            "Activators",
            format!("{ready} of {all} are ready: kubectl get pods -n {namespace}"),
        ),
        (ready, _) => line(Mark::Good, "Activators", format!("{ready} are ready")),
    }
}

fn leader(lease: Option<&Lease>, namespace: &str, now: Timestamp) -> Vec<Line> {
    let fix = format!(
        "kubectl get pods -n {namespace}; until one leads, sleeping Services still wake, and nothing else is scaled"
    );
    let Some(lease) = lease else {
        return vec![line(
            Mark::Stop,
            "Leader",
            format!("no autoscaler has ever led: there is no Lease {namespace}/{LEASE}; {fix}"),
        )];
    };
    let spec = lease.spec.clone().unwrap_or_default();
    let holder = spec.holder_identity.filter(|holder| !holder.is_empty());
    let age = spec
        .renew_time
        .map(|renewed| now.duration_since(renewed.0).as_secs().max(0));
    let limit = i64::from(spec.lease_duration_seconds.unwrap_or(5));
    let mut lines = vec![match (holder, age) {
        (Some(holder), Some(age)) if age <= limit => line(
            Mark::Good,
            "Leader",
            format!("{holder} leads, renewed {age}s ago"),
        ),
        (Some(holder), Some(age)) => line(
            Mark::Stop,
            "Leader",
            format!(
                "{holder} led, but has not renewed for {age}s (limit {limit}s), and no other has taken over: {fix}"
            ),
        ),
        _ => line(Mark::Stop, "Leader", format!("no autoscaler leads: {fix}")),
    }];
    let release = lease
        .metadata
        .annotations
        .as_ref()
        .and_then(|all| all.get(RELEASE_ALL_ANNOTATION));
    if release.is_some_and(|value| value == "true") {
        lines.push(line(
            Mark::Stop,
            "Uninstalling",
            format!(
                "every Service is being given back, as `dormouse uninstall` asked; to take it back: kubectl annotate \
                 lease {LEASE} -n {namespace} {RELEASE_ALL_ANNOTATION}-"
            ),
        ));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::coordination::v1::LeaseSpec;
    use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

    fn slice(ready: &[Option<bool>]) -> Vec<EndpointSlice> {
        let endpoint = |ready: &Option<bool>| Endpoint {
            conditions: Some(EndpointConditions {
                ready: *ready,
                ..EndpointConditions::default()
            }),
            ..Endpoint::default()
        };
        let endpoints = ready.iter().map(endpoint).collect();
        vec![EndpointSlice {
            endpoints,
            ..EndpointSlice::default()
        }]
    }

    #[test]
    fn activators_are_counted_by_readiness() {
        let rows: &[(&[Option<bool>], Mark, &str)] = &[
            (&[], Mark::Stop, "none runs"),
            (&[Some(false)], Mark::Stop, "none of 1 is ready"),
            (&[Some(true)], Mark::Good, "1 is ready"),
            (&[Some(true), None], Mark::Good, "2 are ready"),
            (&[Some(true), Some(false)], Mark::Warning, "1 of 2 are ready"),
        ];
        for (ready, mark, text) in rows {
            let found = activators(&slice(ready), "dormouse-system");
            assert_eq!(found.mark, *mark, "{ready:?}");
            assert!(found.text.contains(text), "{}", found.text);
        }
    }

    #[test]
    fn a_leader_is_one_that_renews() {
        let now = Timestamp::from_second(1_000).expect("a time");
        let lease = |holder: &str, renewed: i64| Lease {
            spec: Some(LeaseSpec {
                holder_identity: Some(holder.to_owned()),
                lease_duration_seconds: Some(5),
                renew_time: Some(MicroTime(Timestamp::from_second(renewed).expect("a time"))),
                ..LeaseSpec::default()
            }),
            ..Lease::default()
        };
        let rows = [
            (None, Mark::Stop, "no autoscaler has ever led"),
            (Some(lease("a", 999)), Mark::Good, "a leads, renewed 1s ago"),
            (
                Some(lease("a", 994)),
                Mark::Stop,
                "a led, but has not renewed for 6s (limit 5s)",
            ),
            (Some(lease("", 999)), Mark::Stop, "no autoscaler leads"),
            (Some(Lease::default()), Mark::Stop, "no autoscaler leads"),
        ];
        for (lease, mark, text) in rows {
            let found = leader(lease.as_ref(), "dormouse-system", now);
            assert_eq!(found[0].mark, mark, "{text}");
            assert!(found[0].text.contains(text), "{}", found[0].text);
            assert_eq!(found.len(), 1);
        }
        let mut releasing = lease("a", 999);
        releasing.metadata.annotations = Some(
            [(RELEASE_ALL_ANNOTATION.to_owned(), "true".to_owned())]
                .into_iter()
                .collect(),
        );
        assert_eq!(leader(Some(&releasing), "x", now)[1].mark, Mark::Stop);
    }

    #[test]
    fn a_definition_is_current_when_its_schema_is_ours() {
        let all = || vec![Route::crd(), Rollout::crd(), Revision::crd()];
        let missing = definitions(&[Route::crd()]);
        assert_eq!(missing.mark, Mark::Stop);
        assert!(
            missing
                .text
                .contains("not installed: rollouts.dormouse.dev, revisions.dormouse.dev"),
            "{}",
            missing.text
        );
        assert_eq!(definitions(&all()).mark, Mark::Good);
        // As an API server gives them back.
        let again = |definition| {
            let written = plain(serde_json::to_value(definition).expect("JSON"));
            serde_json::from_value(written).expect("a definition")
        };
        let found: Vec<CustomResourceDefinition> = all().into_iter().map(again).collect();
        assert_eq!(definitions(&found).mark, Mark::Good);
        let mut found = all();
        found[1].spec.versions[0].schema = None;
        let other = definitions(&found);
        assert_eq!(other.mark, Mark::Warning);
        assert!(
            other.text.contains("program's: rollouts.dormouse.dev;"),
            "{}",
            other.text
        );
    }
}
