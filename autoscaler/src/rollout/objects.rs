//! The objects of a rollout: Revisions, their pools, and the Rollout that an annotation asks for. Pure.

use crds::names::{GROUP, REVISION_LABEL, ROLLOUT_LABEL, SERVICE_LABEL, VERSION};
use crds::revision::{RevisionScale, RevisionSource, RevisionSpec};
use crds::{Revision, Rollout};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde_json::{Value, json};

use super::config;
use super::revision::Cut;
use crate::watch::slim::ServiceFacts;

/// A Revision of a Rollout, cut from a Deployment.
pub(super) fn revision(rollout: &Rollout, cut: &Cut, sequence: i64, deployment: &Value) -> Revision {
    let labels = [
        (ROLLOUT_LABEL, rollout.metadata.name.clone().unwrap_or_default()),
        (REVISION_LABEL, cut.name.clone()),
    ];
    Revision {
        metadata: ObjectMeta {
            name: Some(cut.name.clone()),
            namespace: rollout.metadata.namespace.clone(),
            labels: Some(labels.map(|(key, value)| (key.to_owned(), value)).into()),
            owner_references: Some(vec![owner(rollout)]),
            ..ObjectMeta::default()
        },
        spec: RevisionSpec {
            sequence,
            template: cut.template.clone(),
            configs: cut.configs.clone(),
            source: RevisionSource {
                generation: deployment
                    .pointer("/metadata/generation")
                    .and_then(Value::as_i64)
                    .unwrap_or(0),
                manager: template_manager(deployment),
            },
            scale: RevisionScale::default(),
        },
        status: None,
    }
}

/// The field manager that last wrote the template.
fn template_manager(deployment: &Value) -> String {
    let entries = deployment
        .pointer("/metadata/managedFields")
        .and_then(Value::as_array);
    let owns = |entry: &&Value| entry.pointer("/fieldsV1/f:spec/f:template").is_some();
    let time = |entry: &Value| entry["time"].as_str().unwrap_or_default().to_owned();
    let last = entries
        .into_iter()
        .flatten()
        .filter(owns)
        .max_by_key(|entry| time(entry));
    let manager = last.and_then(|entry| entry["manager"].as_str());
    manager.unwrap_or_default().to_owned()
}

/// The pool of a revision: a Deployment at zero. Its pods have the user's labels and the revision's, so that everything that
/// selects the user's pods selects these too. What a Deployment says beside its template is taken from the user's own.
///
/// # Errors
/// When the template or the Deployment is not one.
pub(super) fn pool(rollout: &Rollout, revision: &Revision, target: &Value) -> Result<Deployment, String> {
    let name = revision.metadata.name.clone().unwrap_or_default();
    let mut template: Value = serde_json::from_str(&revision.spec.template)
        .map_err(|error| format!("the template of {name} cannot be read: {error}"))?;
    let mut labels = template
        .pointer("/metadata/labels")
        .cloned()
        .unwrap_or_else(|| json!({}));
    labels[REVISION_LABEL] = json!(name);
    config::substitute(&mut template, &revision.spec.configs);
    if !template["metadata"].is_object() {
        template["metadata"] = json!({});
    }
    template["metadata"]["labels"] = labels;
    let mut spec = json!({ "replicas": 0, "template": template });
    for field in ["minReadySeconds", "progressDeadlineSeconds", "strategy"] {
        if let Some(value) = target
            .pointer(&format!("/spec/{field}"))
            .filter(|value| !value.is_null())
        {
            spec[field] = value.clone();
        }
    }
    let mut selector = target
        .pointer("/spec/selector")
        .cloned()
        .unwrap_or_else(|| json!({}));
    if !selector["matchLabels"].is_object() {
        selector["matchLabels"] = json!({});
    }
    selector["matchLabels"][REVISION_LABEL] = json!(name);
    spec["selector"] = selector;
    let body = json!({
        "metadata": {
            "name": name,
            "namespace": rollout.metadata.namespace,
            "labels": { REVISION_LABEL: name, ROLLOUT_LABEL: rollout.metadata.name },
            "ownerReferences": [owner(rollout)],
        },
        "spec": spec,
    });
    serde_json::from_value(body).map_err(|error| format!("the pool of {name} cannot be made: {error}"))
}

/// The Rollout for a Service whose annotation `dormouse.dev/rollout` names a strategy and no Rollout.
pub(super) fn annotated(service: &ServiceFacts, deployment: &str, wish: &str) -> Value {
    let kind = if wish == "blue-green" {
        "BlueGreen"
    } else {
        "Canary"
    };
    json!({
        "apiVersion": format!("{GROUP}/{VERSION}"),
        "kind": "Rollout",
        "metadata": {
            "name": service.name,
            "namespace": service.namespace,
            "labels": { SERVICE_LABEL: service.name },
            "ownerReferences": [{
                "apiVersion": "v1", "kind": "Service", "name": service.name, "uid": service.uid,
                "controller": false, "blockOwnerDeletion": false,
            }],
        },
        "spec": {
            "targetRef": { "kind": "Deployment", "name": deployment },
            "serviceRef": { "name": service.name },
            "strategy": { "type": kind },
        },
    })
}

fn owner(rollout: &Rollout) -> OwnerReference {
    OwnerReference {
        api_version: format!("{GROUP}/{VERSION}"),
        kind: "Rollout".to_owned(),
        name: rollout.metadata.name.clone().unwrap_or_default(),
        uid: rollout.metadata.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(false),
    }
}
