//! Manifests on disk: read, applied, and applied again when they change.
//!
//! A document that did not change since it was last applied is not applied again. An error in one document is printed
//! with file, line and column, and keeps none of the others back. A document that is gone from the files does not
//! delete its object: a slip of an editor would stop what runs; the command that deletes it is printed instead.

mod files;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kube::Client;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::discovery::{Discovery, Scope};
use notify::{RecursiveMode, Watcher};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::files::{Document, list_files, note_folder, read};
use crate::system::MANAGER;

/// How long files must rest before they are read: editors write in several steps.
const REST: Duration = Duration::from_millis(200);

/// What names an object: kind's apiVersion and kind, namespace, name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Id {
    version: String,
    kind: String,
    namespace: String,
    name: String,
}

/// The files, and what was applied of them.
pub(crate) struct Manifests {
    client: Client,
    paths: Vec<PathBuf>,
    namespace: String,
    applied: BTreeMap<Id, Value>,
    /// Objects that are gone from the files, and were said to be.
    missed: Vec<Id>,
    kubeconfig: PathBuf,
    kinds: Option<Discovery>,
}

/// What a reading of the files did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// As `deployment/web configured`.
    pub(crate) done: Vec<String>,
    /// As `web.yaml:3:5: …`.
    pub(crate) errors: Vec<String>,
    /// Remarks that are no errors.
    pub(crate) notes: Vec<String>,
}

impl Manifests {
    pub(crate) fn new(client: Client, paths: Vec<PathBuf>, namespace: String, kubeconfig: PathBuf) -> Self {
        Self {
            client,
            paths,
            namespace,
            applied: BTreeMap::new(),
            missed: Vec::new(),
            kubeconfig,
            kinds: None,
        }
    }

    /// Reads all files and applies what changed.
    pub(crate) async fn apply_all(&mut self) -> Outcome {
        let mut outcome = Outcome::default();
        let (files, errors) = list_files(&self.paths);
        outcome.errors.extend(errors);
        let mut documents = Vec::new();
        let mut complete = outcome.errors.is_empty();
        for file in files {
            match read(&file) {
                Ok(read) => {
                    complete &= read.errors.is_empty();
                    outcome.errors.extend(read.errors);
                    documents.extend(read.documents);
                }
                Err(error) => {
                    complete = false;
                    outcome.errors.push(format!("{}: {error}", file.display()));
                }
            }
        }
        // What others refer to comes first, so that pods start with all they need.
        documents.sort_by_key(|document| rank(&document.object));
        let mut present = BTreeMap::new();
        for document in documents {
            let id = self.id_of(&document.object);
            if let Some(other) = present.insert(id.clone(), document.file.clone()) {
                let also = if other == document.file {
                    "twice".to_owned()
                } else {
                    format!("also in {}", other.display())
                };
                outcome.errors.push(format!(
                    "{}: {id} is {also}; the last one counts",
                    document.file.display()
                ));
            }
            self.apply(document, id, &mut outcome).await;
        }
        if complete {
            self.note_missing(&present, &mut outcome);
        }
        outcome
    }

    fn id_of(&self, object: &Value) -> Id {
        let text = |pointer: &str| {
            object
                .pointer(pointer)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        Id {
            version: text("/apiVersion"),
            kind: text("/kind"),
            namespace: text("/metadata/namespace"),
            name: text("/metadata/name"),
        }
    }

    async fn apply(&mut self, document: Document, id: Id, outcome: &mut Outcome) {
        if self.applied.get(&id) == Some(&document.object) {
            return;
        }
        let known = self.applied.contains_key(&id);
        match self.send(&id, &document).await {
            Ok(notes) => {
                outcome.notes.extend(notes);
                outcome
                    .done
                    .push(format!("{id} {}", if known { "configured" } else { "applied" }));
                self.missed.retain(|it| *it != id);
                self.applied.insert(id, document.object);
            }
            Err(error) => outcome
                .errors
                .push(format!("{}: {id}: {error}", document.file.display())),
        }
    }

    async fn send(&mut self, id: &Id, document: &Document) -> Result<Vec<String>, String> {
        let (api, namespaced) = self.api_of(id).await?;
        let mut object = document.object.clone();
        if namespaced && id.namespace.is_empty() {
            object["metadata"]["namespace"] = json!(self.namespace);
        }
        note_folder(&mut object, &document.file);
        let params = PatchParams::apply(MANAGER);
        let first = api.patch(&id.name, &params, &Patch::Apply(&object)).await;
        let Err(conflict) = first else {
            return Ok(Vec::new());
        };
        if !is_apply_conflict(&conflict) {
            return Err(message_of(&conflict));
        }
        // Somebody else has changed fields that the document names. One that did not change in the document is left
        // to them (an autoscaler's replicas, most often), as with `kubectl apply`.
        let mut notes = Vec::new();
        if self.replicas_unchanged(id, &object)
            && let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut)
            && spec.remove("replicas").is_some()
            && api.patch(&id.name, &params, &Patch::Apply(&object)).await.is_ok()
        {
            notes.push(format!("{id}: replicas are left to whoever changed them"));
            return Ok(notes);
        }
        let mut whole = document.object.clone();
        if namespaced && id.namespace.is_empty() {
            whole["metadata"]["namespace"] = json!(self.namespace);
        }
        note_folder(&mut whole, &document.file);
        let forced = params.force();
        api.patch(&id.name, &forced, &Patch::Apply(&whole))
            .await
            .map_err(|error| message_of(&error))?;
        notes.push(format!("{id}: taken back from others: {}", message_of(&conflict)));
        Ok(notes)
    }

    fn replicas_unchanged(&self, id: &Id, object: &Value) -> bool {
        let before = self.applied.get(id).and_then(|it| it.pointer("/spec/replicas"));
        before.is_some() && before == object.pointer("/spec/replicas")
    }

    /// The API of a kind; kinds are asked for once, and again when one is not known.
    async fn api_of(&mut self, id: &Id) -> Result<(Api<DynamicObject>, bool), String> {
        let (group, version) = id.version.split_once('/').unwrap_or(("", &id.version));
        let kind = kube::core::GroupVersionKind::gvk(group, version, &id.kind);
        for fresh in [false, true] {
            if fresh || self.kinds.is_none() {
                let read = Discovery::new(self.client.clone()).run().await;
                self.kinds = Some(read.map_err(|error| message_of(&error))?);
            }
            let found = self.kinds.as_ref().and_then(|kinds| kinds.resolve_gvk(&kind));
            let Some((resource, capabilities)) = found else {
                continue;
            };
            if capabilities.scope == Scope::Cluster {
                return Ok((Api::all_with(self.client.clone(), &resource), false));
            }
            let namespace = if id.namespace.is_empty() {
                &self.namespace
            } else {
                &id.namespace
            };
            return Ok((
                Api::namespaced_with(self.client.clone(), namespace, &resource),
                true,
            ));
        }
        Err(format!("there is no kind {} in {}", id.kind, id.version))
    }

    fn note_missing(&mut self, present: &BTreeMap<Id, PathBuf>, outcome: &mut Outcome) {
        let gone: Vec<Id> = self
            .applied
            .keys()
            .filter(|id| !present.contains_key(id))
            .cloned()
            .collect();
        for id in gone {
            let namespace = if id.namespace.is_empty() {
                &self.namespace
            } else {
                &id.namespace
            };
            if !self.missed.contains(&id) {
                outcome.notes.push(format!(
                    "{id} is no longer in the files and runs on; to delete it: kubectl --kubeconfig {} delete {} {} -n {namespace}",
                    self.kubeconfig.display(),
                    id.kind.to_lowercase(),
                    id.name,
                ));
                self.missed.push(id.clone());
            }
            // When it comes back it is applied again.
            self.applied.remove(&id);
        }
    }

    /// Applies again whenever files change, and reports each time, until `shutdown`.
    pub(crate) async fn follow(
        mut self,
        shutdown: CancellationToken,
        report: impl Fn(&Outcome),
    ) -> notify::Result<()> {
        // One event is enough to know: more are dropped.
        let (changed, mut changes) = mpsc::channel::<()>(1);
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Reading the files is no change of them.
            if event.is_ok_and(|event| !event.kind.is_access()) {
                let _ = changed.try_send(());
            }
        })?;
        for path in &self.paths {
            // The folder, not the file: editors replace files by renaming new ones over them.
            let (folder, mode) = if path.is_dir() {
                (path.as_path(), RecursiveMode::Recursive)
            } else {
                let parent = path.parent().filter(|it| !it.as_os_str().is_empty());
                (parent.unwrap_or(Path::new(".")), RecursiveMode::NonRecursive)
            };
            watcher.watch(folder, mode)?;
        }
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                Some(()) = changes.recv() => {}
            }
            loop {
                tokio::select! {
                    () = shutdown.cancelled() => return Ok(()),
                    () = tokio::time::sleep(REST) => break,
                    Some(()) = changes.recv() => {}
                }
            }
            let outcome = self.apply_all().await;
            report(&outcome);
        }
    }
}

impl std::fmt::Display for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.kind.to_lowercase(), self.name)?;
        if !self.namespace.is_empty() {
            write!(f, " in {}", self.namespace)?;
        }
        Ok(())
    }
}

/// Order in which kinds are applied.
fn rank(object: &Value) -> u8 {
    match object.get("kind").and_then(Value::as_str).unwrap_or_default() {
        "Namespace" => 0,
        "CustomResourceDefinition" => 1,
        "ServiceAccount" | "ConfigMap" | "Secret" => 2,
        "Service" => 3,
        "Deployment" | "StatefulSet" | "ReplicaSet" | "Pod" => 4,
        _ => 5,
    }
}

fn is_apply_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}

fn message_of(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_refer_to_comes_first() {
        let mut kinds = [
            "Route",
            "Deployment",
            "Service",
            "ConfigMap",
            "CustomResourceDefinition",
            "Namespace",
        ];
        kinds.sort_by_key(|kind| rank(&json!({ "kind": kind })));
        assert_eq!(
            kinds,
            [
                "Namespace",
                "CustomResourceDefinition",
                "ConfigMap",
                "Service",
                "Deployment",
                "Route"
            ]
        );
    }
}
