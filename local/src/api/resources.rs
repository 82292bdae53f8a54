//! What kinds there are: built in, and brought by CustomResourceDefinitions.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use k8s_openapi::schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value};

use super::schema::{self, Loader, Schema, Type};

/// One resource in one version.
#[derive(Clone, Debug)]
pub(crate) struct Resource {
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) kind: String,
    pub(crate) list_kind: String,
    pub(crate) plural: String,
    pub(crate) singular: String,
    pub(crate) short_names: Vec<String>,
    pub(crate) categories: Vec<String>,
    pub(crate) namespaced: bool,
    /// Whether there is `/status`.
    pub(crate) status: bool,
    pub(crate) scale: Option<ScalePaths>,
    /// Definition name of a built-in kind, as `io.k8s.api.core.v1.Pod`.
    pub(crate) definition: String,
    pub(crate) schema: Arc<Schema>,
    /// The `openAPIV3Schema` of a custom resource.
    pub(crate) raw_schema: Option<Arc<Value>>,
    /// Under which name objects are stored: versions of one resource share it.
    pub(crate) storage: Arc<str>,
    /// The `apiVersion` in which objects are stored.
    pub(crate) storage_version: String,
    /// Whether it came with a CustomResourceDefinition.
    pub(crate) custom: bool,
    /// `additionalPrinterColumns` of a custom resource.
    pub(crate) columns: Vec<Value>,
    /// `selectableFields` of a custom resource, without the leading dot.
    pub(crate) selectable: Vec<String>,
}

/// Where a custom resource keeps what `/scale` shows.
#[derive(Clone, Debug)]
pub(crate) struct ScalePaths {
    pub(crate) spec: String,
    pub(crate) status: String,
    pub(crate) selector: Option<String>,
}

impl Resource {
    /// `v1`, `apps/v1`.
    pub(crate) fn api_version(&self) -> String {
        group_version(&self.group, &self.version)
    }

    pub(crate) fn is(&self, group: &str, kind: &str) -> bool {
        !self.custom && self.group == group && self.kind == kind
    }

    /// Whether `metadata.generation` counts changes of the spec.
    pub(crate) fn has_generation(&self) -> bool {
        self.custom
            || matches!(
                (self.group.as_str(), self.kind.as_str()),
                ("apps", "Deployment" | "ReplicaSet" | "StatefulSet")
                    | (
                        "policy" | "networking.k8s.io" | "apiextensions.k8s.io" | "discovery.k8s.io",
                        _
                    )
                    | ("", "Pod")
            )
    }

    /// Whether PUT of an object that is not there creates it.
    pub(crate) fn create_on_update(&self) -> bool {
        self.is("coordination.k8s.io", "Lease") || self.is("", "Event") || self.is("events.k8s.io", "Event")
    }
}

/// `v1`, `apps/v1`.
pub(crate) fn group_version(group: &str, version: &str) -> String {
    if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    }
}

/// All resources, by group, version and plural.
#[derive(Clone, Debug, Default)]
pub(crate) struct Registry {
    all: BTreeMap<(String, String, String), Arc<Resource>>,
}

impl Registry {
    pub(crate) fn get(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Resource>> {
        self.all
            .get(&(group.to_owned(), version.to_owned(), plural.to_owned()))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.all.values()
    }

    pub(crate) fn insert(&mut self, resource: Resource) {
        let key = (
            resource.group.clone(),
            resource.version.clone(),
            resource.plural.clone(),
        );
        self.all.insert(key, Arc::new(resource));
    }

    /// Forgets every version of a custom resource.
    pub(crate) fn remove(&mut self, group: &str, plural: &str) {
        self.all
            .retain(|_, it| !(it.custom && it.group == group && it.plural == plural));
    }

    /// The kinds built in; read once in a process.
    pub(crate) fn built_in() -> Self {
        static BUILT_IN: LazyLock<Registry> = LazyLock::new(read_built_in);
        BUILT_IN.clone()
    }
}

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

fn read_built_in() -> Registry {
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

/// The schema of `metadata`, which every kind shares.
pub(crate) fn metadata_schema() -> Arc<Schema> {
    static METADATA: LazyLock<Arc<Schema>> =
        LazyLock::new(|| Loader::new(definitions()).load("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"));
    Arc::clone(&METADATA)
}

/// The resources that a CustomResourceDefinition serves, one for each served version.
pub(crate) fn from_crd(crd: &Value) -> Vec<Resource> {
    let text = |pointer: &str| {
        crd.pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let list = |pointer: &str| -> Vec<String> {
        let all = crd
            .pointer(pointer)
            .and_then(Value::as_array)
            .into_iter()
            .flatten();
        all.filter_map(|it| it.as_str().map(str::to_owned)).collect()
    };
    let (group, kind, plural) = (
        text("/spec/group"),
        text("/spec/names/kind"),
        text("/spec/names/plural"),
    );
    let versions = crd
        .pointer("/spec/versions")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    let flag = |version: &Value, key: &str| version.get(key).and_then(Value::as_bool) == Some(true);
    let stored = versions.iter().find(|version| flag(version, "storage"));
    let stored = stored
        .and_then(|it| it["name"].as_str())
        .unwrap_or_default()
        .to_owned();
    let served = versions.iter().filter(|version| flag(version, "served"));
    served
        .map(|version| Resource {
            version: version["name"].as_str().unwrap_or_default().to_owned(),
            list_kind: match text("/spec/names/listKind") {
                name if name.is_empty() => format!("{kind}List"),
                name => name,
            },
            singular: match text("/spec/names/singular") {
                name if name.is_empty() => kind.to_lowercase(),
                name => name,
            },
            short_names: list("/spec/names/shortNames"),
            categories: list("/spec/names/categories"),
            namespaced: text("/spec/scope") == "Namespaced",
            status: version.pointer("/subresources/status").is_some(),
            scale: version.pointer("/subresources/scale").map(|scale| ScalePaths {
                spec: scale["specReplicasPath"].as_str().unwrap_or_default().to_owned(),
                status: scale["statusReplicasPath"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned(),
                selector: scale["labelSelectorPath"].as_str().map(str::to_owned),
            }),
            definition: String::new(),
            raw_schema: version.pointer("/schema/openAPIV3Schema").cloned().map(Arc::new),
            schema: Arc::new(custom_schema(version.pointer("/schema/openAPIV3Schema"))),
            storage: format!("{group}/{plural}").into(),
            storage_version: group_version(&group, &stored),
            custom: true,
            columns: version["additionalPrinterColumns"]
                .as_array()
                .cloned()
                .unwrap_or_default(),
            selectable: version["selectableFields"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|it| Some(it["jsonPath"].as_str()?.trim_start_matches('.').to_owned()))
                .collect(),
            group: group.clone(),
            kind: kind.clone(),
            plural: plural.clone(),
        })
        .collect()
}

/// A custom resource's schema with what every object has.
fn custom_schema(definition: Option<&Value>) -> Schema {
    let mut schema = definition.map_or_else(Schema::any, schema::custom);
    let string = Arc::new(Schema {
        kind: Type::String,
        preserve_unknown: false,
        ..Schema::any()
    });
    schema.kind = Type::Object;
    schema
        .properties
        .insert("apiVersion".to_owned(), Arc::clone(&string));
    schema.properties.insert("kind".to_owned(), string);
    schema.properties.insert("metadata".to_owned(), metadata_schema());
    schema
}
