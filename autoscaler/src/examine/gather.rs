//! Where the facts come from: the index, or a live look at one namespace.

use std::sync::Arc;

use crds::route::{Route, Workload, WorkloadKind};
use crds::{Rollout, Settings};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::api::ListParams;
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;

use super::{Facts, Labels, WorkloadFacts};
use crate::state::RouteKey;
use crate::watch::{Index, Kept};

/// Objects in one page of a list.
const PAGE: u32 = 500;

/// Why the facts of a Service could not be had.
#[derive(Debug, thiserror::Error)]
pub enum GatherError {
    /// There is no such Service.
    #[error("there is no Service {namespace}/{name}")]
    NoService {
        /// Namespace.
        namespace: String,
        /// Name.
        name: String,
    },
    /// The API server did not give the objects of a kind.
    #[error("reading {kind}: {source}")]
    Read {
        /// What was read.
        kind: String,
        /// Why not.
        source: Box<kube::Error>,
    },
}

/// Looks at everything that bears on one Service, live.
///
/// # Errors
/// When the Service does not exist, or something cannot be read; a retry helps in the second case.
///
/// # Cancel safety
/// Only reads.
pub async fn gather(client: &Client, namespace: &str, service: &str) -> Result<Facts, GatherError> {
    let key = RouteKey {
        namespace: namespace.to_owned(),
        name: service.to_owned(),
    };
    let index = Index::new("");
    let all = Api::<Namespace>::all(client.clone());
    if let Some(found) = all.get_opt(namespace).await.map_err(read::<Namespace>)? {
        index.apply(&found);
    }
    fill::<Service>(&index, client, namespace).await?;
    fill::<Deployment>(&index, client, namespace).await?;
    fill::<StatefulSet>(&index, client, namespace).await?;
    fill::<HorizontalPodAutoscaler>(&index, client, namespace).await?;
    fill::<Route>(&index, client, namespace).await?;
    let api = Api::<NetworkPolicy>::namespaced(client.clone(), namespace);
    let policies = api
        .list(&ListParams::default())
        .await
        .map_err(read::<NetworkPolicy>)?
        .items;
    let missing = || GatherError::NoService {
        namespace: key.namespace.clone(),
        name: key.name.clone(),
    };
    let rollouts = rollouts(client, namespace).await?;
    let rolled_out = |workload: &Workload| {
        let mut of = rollouts.iter().filter(|rollout| {
            let (spec, status) = (&rollout.spec, &rollout.status);
            workload.kind == WorkloadKind::Deployment
                && spec.target_ref.name == workload.name
                && spec.service_ref.name != service
                && status
                    .as_ref()
                    .is_some_and(crds::rollout::RolloutStatus::has_begun)
        });
        of.next()
            .map(|rollout| (rollout.spec.service_ref.name.clone(), rollout.name_any()))
    };
    from_index(&index, &key, &policies, |_| None, rolled_out).ok_or_else(missing)
}

async fn rollouts(client: &Client, namespace: &str) -> Result<Vec<Rollout>, GatherError> {
    let api = Api::<Rollout>::namespaced(client.clone(), namespace);
    match api.list(&ListParams::default()).await {
        Ok(list) => Ok(list.items),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(Vec::new()),
        Err(error) => Err(read::<Rollout>(error)),
    }
}

fn read<K: Resource<DynamicType = ()>>(source: kube::Error) -> GatherError {
    GatherError::Read {
        kind: K::plural(&()).into_owned(),
        source: Box::new(source),
    }
}

async fn fill<K>(index: &Arc<Index>, client: &Client, namespace: &str) -> Result<(), GatherError>
where
    K: Kept + Resource<Scope = NamespaceResourceScope> + Clone + DeserializeOwned + std::fmt::Debug,
{
    let api = Api::<K>::namespaced(client.clone(), namespace);
    let mut params = ListParams::default().limit(PAGE);
    loop {
        let page = match api.list(&params).await {
            Ok(page) => page,
            // A kind that is not installed has no objects: Routes before the CRDs are there.
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
            Err(error) => return Err(read::<K>(error)),
        };
        for object in &page.items {
            index.apply(object);
        }
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(()),
        }
    }
}

/// The facts of a Service, from the index. `in_force` gives the settings that another Service runs with, where they are
/// not what its annotations say now.
pub(crate) fn from_index(
    index: &Index,
    key: &RouteKey,
    policies: &[NetworkPolicy],
    in_force: impl Fn(&RouteKey) -> Option<Settings>,
    rolled_out: impl Fn(&Workload) -> Option<(String, String)>,
) -> Option<Facts> {
    let service = index.service(key)?;
    let namespace = index.namespace(&key.namespace);
    let parsed = crds::annotation::parse(&namespace, &service.annotations);
    let workloads = index.workloads_of(key);
    let alive = workloads.iter().filter(|workload| !workload.deleting);
    let workloads: Vec<WorkloadFacts> = alive.map(|workload| WorkloadFacts::clone(workload)).collect();
    let (mut sharers, mut bystanders, mut hpas, mut names) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    if let [workload] = workloads.as_slice() {
        for other in index
            .services_of(workload)
            .into_iter()
            .filter(|other| other != key)
        {
            let Some(facts) = index.service(&other) else {
                continue;
            };
            let parsed = crds::annotation::parse(&namespace, &facts.annotations);
            let last_good = if parsed.invalid.is_empty() {
                None
            } else {
                in_force(&other)
            };
            let settings = last_good.unwrap_or(parsed.settings);
            if settings.enabled {
                sharers.push((other.name, settings));
            } else {
                bystanders.push(other.name);
            }
        }
        // One that is being given back is no longer opted in, and is not beside itself.
        let beside = index
            .bystanders_of(workload)
            .into_iter()
            .filter(|other| other != key);
        bystanders.extend(beside.map(|other| other.name));
        hpas = index
            .hpas_of(&key.namespace, &workload.workload)
            .iter()
            .map(|hpa| hpa.as_ref().clone())
            .collect();
        names = selecting(policies, &workload.template_labels);
    }
    Some(Facts {
        service: service.as_ref().clone(),
        namespace: namespace.as_ref().clone(),
        parsed,
        rolled_out: match workloads.as_slice() {
            [one] => rolled_out(&one.workload),
            _ => None,
        },
        workloads,
        sharers,
        bystanders,
        hpas,
        policies: names,
    })
}

/// Names of the policies that restrict what may reach pods with these labels.
fn selecting(policies: &[NetworkPolicy], labels: &Labels) -> Vec<String> {
    let restricts = |policy: &&NetworkPolicy| {
        let Some(spec) = &policy.spec else { return false };
        let ingress = spec
            .policy_types
            .as_ref()
            .is_none_or(|types| types.iter().any(|kind| kind == "Ingress"));
        ingress
            && spec
                .pod_selector
                .as_ref()
                .is_none_or(|selector| selects(selector, labels))
    };
    policies
        .iter()
        .filter(restricts)
        .filter_map(|policy| policy.metadata.name.clone())
        .collect()
}

/// Label selector semantics of `metav1.LabelSelector`: an empty one selects everything.
fn selects(selector: &LabelSelector, labels: &Labels) -> bool {
    let equal = selector
        .match_labels
        .iter()
        .flatten()
        .all(|(key, value)| labels.get(key) == Some(value));
    equal
        && selector.match_expressions.iter().flatten().all(|expression| {
            let value = labels.get(&expression.key);
            let listed = || {
                expression
                    .values
                    .iter()
                    .flatten()
                    .any(|wanted| Some(wanted) == value)
            };
            match expression.operator.as_str() {
                "In" => listed(),
                "NotIn" => !listed(),
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}
