//! What kinds there are: built in, and brought by CustomResourceDefinitions.

mod built_in;
mod custom;

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use serde_json::Value;

pub(crate) use self::built_in::definitions;
pub(crate) use self::custom::{from_crd, names_of_crd};
use super::schema::{Loader, Schema};

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
        static BUILT_IN: LazyLock<Registry> = LazyLock::new(built_in::read);
        BUILT_IN.clone()
    }
}

/// The schema of `metadata`, which every kind shares.
pub(crate) fn metadata_schema() -> Arc<Schema> {
    static METADATA: LazyLock<Arc<Schema>> =
        LazyLock::new(|| Loader::new(definitions()).load("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"));
    Arc::clone(&METADATA)
}
