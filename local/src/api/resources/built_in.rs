//! The kinds that every cluster has here: their table, and their schemas from Kubernetes' own types.

use std::sync::LazyLock;

use k8s_openapi::schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value};

use super::{Registry, Resource, ScalePaths, group_version};
use crate::api::schema::{self, Loader};

/// Definitions of all built-in kinds, for OpenAPI.
pub(crate) fn definitions() -> &'static Map<String, Value> {
    static DEFINITIONS: LazyLock<Map<String, Value>> = LazyLock::new(|| {
        use k8s_openapi::api::{
            apps::v1 as apps, authentication::v1 as authn, authorization::v1 as authz,
            autoscaling::v1 as as1, autoscaling::v2 as as2, coordination::v1 as coordination,
            core::v1 as core, discovery::v1 as discovery, events::v1 as events, networking::v1 as net,
            policy::v1 as policy, rbac::v1 as rbac,
        };
        use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1 as ext;
        let mut generator = SchemaSettings::openapi3().into_generator();
        fn add<T: JsonSchema>(generator: &mut SchemaGenerator) {
            generator.subschema_for::<T>();
        }
        let g = &mut generator;
        add::<core::Namespace>(g);
        add::<core::Service>(g);
        add::<core::Endpoints>(g);
        add::<core::Pod>(g);
        add::<core::ConfigMap>(g);
        add::<core::Secret>(g);
        add::<core::Event>(g);
        add::<core::Node>(g);
        add::<core::ServiceAccount>(g);
        add::<apps::Deployment>(g);
        add::<apps::ReplicaSet>(g);
        add::<apps::StatefulSet>(g);
        add::<apps::ControllerRevision>(g);
        add::<discovery::EndpointSlice>(g);
        add::<as1::HorizontalPodAutoscaler>(g);
        add::<as1::Scale>(g);
        add::<as2::HorizontalPodAutoscaler>(g);
        add::<coordination::Lease>(g);
        add::<events::Event>(g);
        add::<policy::PodDisruptionBudget>(g);
        add::<policy::Eviction>(g);
        add::<net::NetworkPolicy>(g);
        add::<net::Ingress>(g);
        add::<net::IngressClass>(g);
        add::<rbac::Role>(g);
        add::<rbac::RoleBinding>(g);
        add::<rbac::ClusterRole>(g);
        add::<rbac::ClusterRoleBinding>(g);
        add::<ext::CustomResourceDefinition>(g);
        add::<authn::TokenReview>(g);
        add::<authz::SubjectAccessReview>(g);
        add::<authz::SelfSubjectAccessReview>(g);
        let mut definitions = generator.take_definitions(true);
        schema::describe_merging(&mut definitions);
        definitions
    });
    &DEFINITIONS
}

/// Group, version, kind, plural, short names, categories, namespaced, `/status`, `/scale`, definition's package.
type Row = (
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    u8,
    &'static str,
);

const NAMESPACED: u8 = 1;
const STATUS: u8 = 2;
const SCALE: u8 = 4;

const BUILT_IN: &[Row] = &[
    (
        "",
        "v1",
        "Namespace",
        "namespaces",
        "ns",
        "",
        STATUS,
        "api.core.v1",
    ),
    (
        "",
        "v1",
        "Service",
        "services",
        "svc",
        "all",
        NAMESPACED | STATUS,
        "api.core.v1",
    ),
    (
        "",
        "v1",
        "Endpoints",
        "endpoints",
        "ep",
        "",
        NAMESPACED,
        "api.core.v1",
    ),
    (
        "",
        "v1",
        "Pod",
        "pods",
        "po",
        "all",
        NAMESPACED | STATUS,
        "api.core.v1",
    ),
    (
        "",
        "v1",
        "ConfigMap",
        "configmaps",
        "cm",
        "",
        NAMESPACED,
        "api.core.v1",
    ),
    ("", "v1", "Secret", "secrets", "", "", NAMESPACED, "api.core.v1"),
    ("", "v1", "Event", "events", "ev", "", NAMESPACED, "api.core.v1"),
    ("", "v1", "Node", "nodes", "no", "", STATUS, "api.core.v1"),
    (
        "",
        "v1",
        "ServiceAccount",
        "serviceaccounts",
        "sa",
        "",
        NAMESPACED,
        "api.core.v1",
    ),
    (
        "apps",
        "v1",
        "Deployment",
        "deployments",
        "deploy",
        "all",
        NAMESPACED | STATUS | SCALE,
        "api.apps.v1",
    ),
    (
        "apps",
        "v1",
        "ReplicaSet",
        "replicasets",
        "rs",
        "all",
        NAMESPACED | STATUS | SCALE,
        "api.apps.v1",
    ),
    (
        "apps",
        "v1",
        "StatefulSet",
        "statefulsets",
        "sts",
        "all",
        NAMESPACED | STATUS | SCALE,
        "api.apps.v1",
    ),
    (
        "apps",
        "v1",
        "ControllerRevision",
        "controllerrevisions",
        "",
        "",
        NAMESPACED,
        "api.apps.v1",
    ),
    (
        "discovery.k8s.io",
        "v1",
        "EndpointSlice",
        "endpointslices",
        "",
        "",
        NAMESPACED,
        "api.discovery.v1",
    ),
    (
        "autoscaling",
        "v1",
        "HorizontalPodAutoscaler",
        "horizontalpodautoscalers",
        "hpa",
        "all",
        NAMESPACED | STATUS,
        "api.autoscaling.v1",
    ),
    (
        "autoscaling",
        "v2",
        "HorizontalPodAutoscaler",
        "horizontalpodautoscalers",
        "hpa",
        "all",
        NAMESPACED | STATUS,
        "api.autoscaling.v2",
    ),
    (
        "coordination.k8s.io",
        "v1",
        "Lease",
        "leases",
        "",
        "",
        NAMESPACED,
        "api.coordination.v1",
    ),
    (
        "events.k8s.io",
        "v1",
        "Event",
        "events",
        "ev",
        "",
        NAMESPACED,
        "api.events.v1",
    ),
    (
        "policy",
        "v1",
        "PodDisruptionBudget",
        "poddisruptionbudgets",
        "pdb",
        "",
        NAMESPACED | STATUS,
        "api.policy.v1",
    ),
    (
        "networking.k8s.io",
        "v1",
        "NetworkPolicy",
        "networkpolicies",
        "netpol",
        "",
        NAMESPACED,
        "api.networking.v1",
    ),
    (
        "networking.k8s.io",
        "v1",
        "Ingress",
        "ingresses",
        "ing",
        "",
        NAMESPACED | STATUS,
        "api.networking.v1",
    ),
    (
        "networking.k8s.io",
        "v1",
        "IngressClass",
        "ingressclasses",
        "",
        "",
        0,
        "api.networking.v1",
    ),
    (
        "rbac.authorization.k8s.io",
        "v1",
        "Role",
        "roles",
        "",
        "",
        NAMESPACED,
        "api.rbac.v1",
    ),
    (
        "rbac.authorization.k8s.io",
        "v1",
        "RoleBinding",
        "rolebindings",
        "",
        "",
        NAMESPACED,
        "api.rbac.v1",
    ),
    (
        "rbac.authorization.k8s.io",
        "v1",
        "ClusterRole",
        "clusterroles",
        "",
        "",
        0,
        "api.rbac.v1",
    ),
    (
        "rbac.authorization.k8s.io",
        "v1",
        "ClusterRoleBinding",
        "clusterrolebindings",
        "",
        "",
        0,
        "api.rbac.v1",
    ),
    (
        "apiextensions.k8s.io",
        "v1",
        "CustomResourceDefinition",
        "customresourcedefinitions",
        "crd,crds",
        "api-extensions",
        STATUS,
        "apiextensions-apiserver.pkg.apis.apiextensions.v1",
    ),
];

fn words(text: &str) -> Vec<String> {
    text.split(',')
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect()
}

pub(super) fn read() -> Registry {
    let mut loader = Loader::new(definitions());
    let mut registry = Registry::default();
    for &(group, version, kind, plural, short, categories, flags, package) in BUILT_IN {
        let definition = format!("io.k8s.{package}.{kind}");
        // Two names for one store: an Event is the same object in both groups; HPAs are kept as v2.
        let (storage, storage_version) = match (group, kind) {
            ("events.k8s.io", "Event") => ("/events".to_owned(), "v1".to_owned()),
            ("autoscaling", _) => (format!("{group}/{plural}"), "autoscaling/v2".to_owned()),
            _ => (format!("{group}/{plural}"), group_version(group, version)),
        };
        registry.insert(Resource {
            group: group.to_owned(),
            version: version.to_owned(),
            kind: kind.to_owned(),
            list_kind: format!("{kind}List"),
            plural: plural.to_owned(),
            singular: kind.to_lowercase(),
            short_names: words(short),
            categories: words(categories),
            namespaced: flags & NAMESPACED != 0,
            status: flags & STATUS != 0,
            scale: (flags & SCALE != 0).then(|| ScalePaths {
                spec: ".spec.replicas".to_owned(),
                status: ".status.replicas".to_owned(),
                selector: None,
            }),
            schema: loader.load(&definition),
            raw_schema: None,
            definition,
            storage: storage.into(),
            storage_version,
            custom: false,
            columns: Vec::new(),
            selectable: Vec::new(),
        });
    }
    registry
}
