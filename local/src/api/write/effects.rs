//! What a write or a deletion brings about beside itself: custom resources are served, addresses come free.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::api::resources::{Resource, from_crd};
use crate::api::{Api, defaults, names, read};

impl Api {
    /// What a write brings about beside itself.
    pub(crate) fn written(&self, resource: &Resource, value: &Value) {
        if !resource.is("apiextensions.k8s.io", "CustomResourceDefinition") {
            return;
        }
        let plural = value
            .pointer("/spec/names/plural")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let group = value
            .pointer("/spec/group")
            .and_then(Value::as_str)
            .unwrap_or_default();
        {
            let mut registry = self.0.registry.write();
            let mut next = (**registry).clone();
            next.remove(group, plural);
            for resource in from_crd(value) {
                next.insert(resource);
            }
            *registry = Arc::new(next);
        }
        self.establish(resource, value);
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
            let plural = value
                .pointer("/spec/names/plural")
                .and_then(Value::as_str)
                .unwrap_or_default();
            let group = value
                .pointer("/spec/group")
                .and_then(Value::as_str)
                .unwrap_or_default();
            let storage: Arc<str> = format!("{group}/{plural}").into();
            for object in self.0.store.list(&storage, None).0 {
                let key = read::key_of(&object.value);
                drop(self.0.store.delete(&storage, &key, &object, object.value.clone()));
            }
            let mut registry = self.0.registry.write();
            let mut next = (**registry).clone();
            next.remove(group, plural);
            *registry = Arc::new(next);
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
