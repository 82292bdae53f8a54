//! What a write or a deletion brings about beside itself: custom resources are served, addresses come free.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::api::resources::{Resource, from_crd, names_of_crd};
use crate::api::{Api, defaults, names, read};

impl Api {
    /// What a write brings about beside itself.
    pub(crate) fn written(&self, resource: &Resource, value: &Value) {
        if !resource.is("apiextensions.k8s.io", "CustomResourceDefinition") {
            return;
        }
        self.serve(value, from_crd(value));
        self.establish(resource, value);
    }

    /// Serves `resources`, and nothing else, as the kind that a definition names.
    fn serve(&self, definition: &Value, resources: Vec<Resource>) {
        let (group, plural) = names_of_crd(definition);
        let mut registry = self.0.registry.write();
        let mut next = (**registry).clone();
        next.remove(group, plural);
        for resource in resources {
            next.insert(resource);
        }
        *registry = Arc::new(next);
    }

    /// Says that the custom resource is served from now on.
    fn establish(&self, resource: &Resource, value: &Value) {
        let key = read::key_of(value);
        let Some(live) = self.0.store.get(&resource.storage, &key) else {
            return;
        };
        let mut next = live.value.clone();
        next["status"] = defaults::crd_status(&live.value);
        if next["status"] != live.value["status"] {
            // Whoever wrote in between has established it as well.
            drop(self.0.store.update(&resource.storage, &key, &live, next));
        }
    }

    /// What a deletion brings about beside itself.
    pub(crate) fn deleted(&self, resource: &Resource, value: &Value) {
        self.0.addresses.lock().free(resource, value);
        if resource.is("apiextensions.k8s.io", "CustomResourceDefinition") {
            let (group, plural) = names_of_crd(value);
            let storage: Arc<str> = format!("{group}/{plural}").into();
            for object in self.0.store.list(&storage, None).0 {
                let key = read::key_of(&object.value);
                drop(self.0.store.delete(&storage, &key, &object, object.value.clone()));
            }
            self.serve(value, Vec::new());
        }
    }

    /// `default` and `kube-system`, which every cluster has.
    pub(crate) fn create_first_namespaces(&self) {
        let storage: Arc<str> = "/namespaces".into();
        for name in ["default", "kube-system"] {
            let namespace = json!({
                "apiVersion": "v1", "kind": "Namespace",
                "metadata": {
                    "name": name, "uid": names::uid(), "creationTimestamp": names::now(),
                    "labels": { "kubernetes.io/metadata.name": name },
                },
                "spec": { "finalizers": ["kubernetes"] },
                "status": { "phase": "Active" },
            });
            drop(
                self.0
                    .store
                    .create(&storage, (String::new(), name.to_owned()), namespace),
            );
        }
    }
}
