//! Garbage collection by ownerReferences, over every kind there is, custom ones included.
//!
//! A graph of all objects (metadata only) is kept by watching each kind. An object whose owners are all gone is
//! deleted; an owner that is deleted in the foreground waits for what blocks it; an owner that is deleted as
//! `Orphan` is taken out of its dependents first. An owner that the graph does not know is asked for before anything
//! is deleted on its account.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, Preconditions, PropagationPolicy,
};
use kube::core::ObjectMeta;
use kube::discovery::{Discovery, Scope, verbs};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::Start;
use crate::cluster::{Cluster, is_conflict, is_not_found};
use crate::informer::Key;
use crate::queue::{self, Queue};

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";

/// Kinds that are many, short-lived and never owned: as in Kubernetes, not worth watching.
const IGNORED: &[&str] = &["Event"];

/// The API may have new kinds after a change of a CustomResourceDefinition; it needs a moment to serve them.
const AFTER_NEW_KIND: Duration = Duration::from_millis(50);

/// One object in the graph.
#[derive(Clone, Debug)]
struct Node {
    kind: ApiResource,
    key: Key,
    owners: Vec<OwnerReference>,
    deleting: bool,
    finalizers: Vec<String>,
}

/// Objects by uid, and who depends on whom.
#[derive(Default)]
struct Graph {
    nodes: HashMap<String, Node>,
    dependents: HashMap<String, HashSet<String>>,
}

impl Graph {
    fn insert(&mut self, uid: String, node: Node) {
        self.remove_edges(&uid);
        for owner in &node.owners {
            self.dependents
                .entry(owner.uid.clone())
                .or_default()
                .insert(uid.clone());
        }
        self.nodes.insert(uid, node);
    }

    fn remove(&mut self, uid: &str) {
        self.remove_edges(uid);
        self.nodes.remove(uid);
    }

    fn remove_edges(&mut self, uid: &str) {
        let Some(node) = self.nodes.get(uid) else { return };
        for owner in &node.owners {
            if let Some(of_owner) = self.dependents.get_mut(&owner.uid) {
                of_owner.remove(uid);
                if of_owner.is_empty() {
                    self.dependents.remove(&owner.uid);
                }
            }
        }
    }

    fn dependents_of(&self, uid: &str) -> Vec<(String, Node)> {
        let uids = self.dependents.get(uid).into_iter().flatten();
        uids.filter_map(|uid| Some((uid.clone(), self.nodes.get(uid)?.clone())))
            .collect()
    }
}

struct Collector {
    client: Client,
    graph: Mutex<Graph>,
    queue: Arc<Queue>,
    kinds_changed: Notify,
    /// Every kind, as last read.
    kinds: Mutex<Arc<Vec<(ApiResource, Scope)>>>,
}

/// Adds nothing to the shared pictures: the graph has its own watches, of every kind.
pub(super) fn prepare(cluster: &Arc<Cluster>) -> Start {
    let collector = Arc::new(Collector {
        client: cluster.client.clone(),
        graph: Mutex::default(),
        queue: Queue::new(),
        kinds_changed: Notify::new(),
        kinds: Mutex::default(),
    });
    Box::new(move |tasks, shutdown| {
        tasks.spawn(Arc::clone(&collector).follow_kinds(shutdown.clone()));
        let queue = Arc::clone(&collector.queue);
        tasks.spawn(queue::work("gc", queue, 4, shutdown.clone(), move |key| {
            let collector = Arc::clone(&collector);
            // The key's name is a uid.
            async move { collector.look(&key.name).await }
        }));
    })
}

/// Every kind that can be listed, watched and deleted.
async fn kinds(client: &Client) -> Result<Vec<(ApiResource, Scope)>, kube::Error> {
    let discovery = Discovery::new(client.clone()).run().await?;
    let mut kinds = Vec::new();
    for group in discovery.groups() {
        for (kind, capabilities) in group.recommended_resources() {
            let usable = [verbs::LIST, verbs::WATCH, verbs::DELETE];
            if usable.iter().all(|verb| capabilities.supports_operation(verb)) {
                kinds.push((kind, capabilities.scope));
            }
        }
    }
    Ok(kinds)
}

/// Every kind that lives in namespaces.
pub(super) async fn namespaced_kinds(client: &Client) -> Result<Vec<ApiResource>, kube::Error> {
    let kinds = kinds(client).await?;
    Ok(kinds
        .into_iter()
        .filter(|(_, scope)| *scope == Scope::Namespaced)
        .map(|(kind, _)| kind)
        .collect())
}

impl Collector {
    /// Watches every kind, and kinds that appear later.
    async fn follow_kinds(self: Arc<Self>, shutdown: CancellationToken) {
        let mut followed: HashMap<(String, String), CancellationToken> = HashMap::new();
        let mut tasks = tokio::task::JoinSet::new();
        loop {
            let pause = match kinds(&self.client).await {
                Ok(kinds) => {
                    *self.kinds.lock() = Arc::new(kinds.clone());
                    let present: HashSet<(String, String)> = kinds
                        .iter()
                        .map(|(kind, _)| (kind.group.clone(), kind.kind.clone()))
                        .collect();
                    followed.retain(|kind, token| {
                        let stays = present.contains(kind);
                        if !stays {
                            token.cancel();
                        }
                        stays
                    });
                    for (kind, _) in kinds {
                        let id = (kind.group.clone(), kind.kind.clone());
                        if IGNORED.contains(&kind.kind.as_str()) || followed.contains_key(&id) {
                            continue;
                        }
                        let token = shutdown.child_token();
                        followed.insert(id, token.clone());
                        tasks.spawn(Arc::clone(&self).follow(kind, token));
                    }
                    None
                }
                Err(error) => {
                    tracing::debug!(%error, "kinds not read");
                    Some(Duration::from_secs(1))
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = self.kinds_changed.notified() => tokio::time::sleep(AFTER_NEW_KIND).await,
                () = async { match pause {
                    Some(pause) => tokio::time::sleep(pause).await,
                    None => std::future::pending().await,
                } } => {}
            }
        }
        while tasks.join_next().await.is_some() {}
    }

    async fn follow(self: Arc<Self>, kind: ApiResource, shutdown: CancellationToken) {
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &kind);
        let mut events = watcher(api, watcher::Config::default()).default_backoff().boxed();
        let mut listed = HashSet::new();
        loop {
            let event = tokio::select! {
                () = shutdown.cancelled() => return,
                event = events.next() => event,
            };
            match event {
                Some(Ok(watcher::Event::Init)) => listed.clear(),
                Some(Ok(watcher::Event::InitApply(object))) => {
                    listed.extend(object.metadata.uid.clone());
                    self.take(&kind, &object.metadata);
                }
                Some(Ok(watcher::Event::InitDone)) => self.forget_unlisted(&kind, &listed),
                Some(Ok(watcher::Event::Apply(object))) => self.take(&kind, &object.metadata),
                Some(Ok(watcher::Event::Delete(object))) => {
                    self.forget(object.metadata.uid.as_deref().unwrap_or_default());
                    self.note_kind(&kind);
                }
                Some(Err(error)) => tracing::debug!(%error, kind = kind.kind, "watch interrupted"),
                None => return,
            }
        }
    }

    fn note_kind(&self, kind: &ApiResource) {
        if kind.kind == "CustomResourceDefinition" {
            self.kinds_changed.notify_one();
        }
    }

    fn take(&self, kind: &ApiResource, meta: &ObjectMeta) {
        self.note_kind(kind);
        let Some(uid) = meta.uid.clone() else { return };
        let node = Node {
            kind: kind.clone(),
            key: Key::new(
                meta.namespace.clone().unwrap_or_default(),
                meta.name.clone().unwrap_or_default(),
            ),
            owners: meta.owner_references.clone().unwrap_or_default(),
            deleting: meta.deletion_timestamp.is_some(),
            finalizers: meta.finalizers.clone().unwrap_or_default(),
        };
        let interesting = !node.owners.is_empty() || node.deleting;
        let owners: Vec<String> = node.owners.iter().map(|owner| owner.uid.clone()).collect();
        self.graph.lock().insert(uid.clone(), node);
        if interesting {
            self.queue.add(Key::new("", uid));
        }
        // A dependent that no longer blocks may let its owner go.
        for owner in owners {
            let waits = self.graph.lock().nodes.get(&owner).is_some_and(|it| it.deleting);
            if waits {
                self.queue.add(Key::new("", owner));
            }
        }
    }

    fn forget(&self, uid: &str) {
        let concerned: Vec<String> = {
            let mut graph = self.graph.lock();
            let owners = graph
                .nodes
                .get(uid)
                .map(|node| node.owners.clone())
                .unwrap_or_default();
            graph.remove(uid);
            let dependents = graph.dependents.get(uid).into_iter().flatten().cloned();
            dependents
                .chain(owners.into_iter().map(|owner| owner.uid))
                .collect()
        };
        for uid in concerned {
            self.queue.add(Key::new("", uid));
        }
    }

    fn forget_unlisted(&self, kind: &ApiResource, listed: &HashSet<String>) {
        let gone: Vec<String> = {
            let graph = self.graph.lock();
            let of_kind = graph.nodes.iter().filter(|(_, node)| node.kind == *kind);
            of_kind
                .filter(|(uid, _)| !listed.contains(*uid))
                .map(|(uid, _)| uid.clone())
                .collect()
        };
        for uid in gone {
            self.forget(&uid);
        }
    }

    async fn look(&self, uid: &str) -> Result<Option<Duration>, kube::Error> {
        let Some(node) = self.graph.lock().nodes.get(uid).cloned() else {
            return Ok(None);
        };
        if node.deleting {
            if node.finalizers.iter().any(|it| it == ORPHAN) {
                self.orphan(uid, &node).await?;
            } else if node.finalizers.iter().any(|it| it == FOREGROUND) {
                self.delete_dependents(uid, &node).await?;
            }
            return Ok(None);
        }
        if node.owners.is_empty() {
            return Ok(None);
        }
        self.collect(uid, &node).await?;
        Ok(None)
    }

    /// Deletes an object whose owners are all gone; drops references to the gone ones of an object that has others.
    async fn collect(&self, uid: &str, node: &Node) -> Result<(), kube::Error> {
        let mut solid = Vec::new();
        let mut waiting = false;
        for owner in &node.owners {
            match self.owner_state(node, owner).await? {
                OwnerState::Gone => {}
                OwnerState::Solid => solid.push(owner.clone()),
                OwnerState::WaitingForDependents => waiting = true,
            }
        }
        if !solid.is_empty() {
            if solid.len() < node.owners.len() {
                return self.write_owners(uid, node, &solid).await;
            }
            return Ok(());
        }
        // The owner waits: this object's own dependents that block must go before it, too.
        let policy = if waiting && self.has_blocking_dependents(uid) {
            PropagationPolicy::Foreground
        } else {
            PropagationPolicy::Background
        };
        self.delete(uid, node, policy).await
    }

    async fn owner_state(&self, node: &Node, owner: &OwnerReference) -> Result<OwnerState, kube::Error> {
        if let Some(known) = self.graph.lock().nodes.get(&owner.uid) {
            let waits = known.deleting && known.finalizers.iter().any(|it| it == FOREGROUND);
            return Ok(if waits {
                OwnerState::WaitingForDependents
            } else {
                OwnerState::Solid
            });
        }
        // Not in the graph: it may be newer than our picture of its kind, so ask.
        let (group, version) = owner
            .api_version
            .split_once('/')
            .unwrap_or(("", &owner.api_version));
        let kinds = Arc::clone(&self.kinds.lock());
        let Some((kind, scope)) = kinds
            .iter()
            .find(|(kind, _)| kind.group == group && kind.kind == owner.kind)
        else {
            tracing::debug!(
                group,
                version,
                kind = owner.kind,
                "owner of an unknown kind; its dependents stay"
            );
            return Ok(OwnerState::Solid);
        };
        let api: Api<DynamicObject> = match scope {
            // Nothing cluster-wide can be owned from within a namespace; Kubernetes leaves such an object alone.
            Scope::Namespaced if node.key.namespace.is_empty() => return Ok(OwnerState::Solid),
            Scope::Namespaced => Api::namespaced_with(self.client.clone(), &node.key.namespace, kind),
            Scope::Cluster => Api::all_with(self.client.clone(), kind),
        };
        match api.get(&owner.name).await {
            Ok(found) if found.meta().uid.as_deref() == Some(&owner.uid) => Ok(OwnerState::Solid),
            Ok(_) => Ok(OwnerState::Gone),
            Err(error) if is_not_found(&error) => Ok(OwnerState::Gone),
            Err(error) => Err(error),
        }
    }

    fn has_blocking_dependents(&self, uid: &str) -> bool {
        let dependents = self.graph.lock().dependents_of(uid);
        dependents.iter().any(|(_, it)| blocks(it, uid))
    }

    /// An owner deleted in the foreground: its dependents first.
    async fn delete_dependents(&self, uid: &str, node: &Node) -> Result<(), kube::Error> {
        let dependents = self.graph.lock().dependents_of(uid);
        for (uid, _) in &dependents {
            self.queue.add(Key::new("", uid.clone()));
        }
        if dependents.iter().any(|(_, it)| blocks(it, uid)) {
            return Ok(());
        }
        self.remove_finalizer(uid, node, FOREGROUND).await
    }

    /// An owner deleted as `Orphan`: its dependents forget it.
    async fn orphan(&self, uid: &str, node: &Node) -> Result<(), kube::Error> {
        let dependents = self.graph.lock().dependents_of(uid);
        for (dependent, it) in dependents {
            let rest: Vec<OwnerReference> = it
                .owners
                .iter()
                .filter(|owner| owner.uid != uid)
                .cloned()
                .collect();
            self.write_owners(&dependent, &it, &rest).await?;
        }
        self.remove_finalizer(uid, node, ORPHAN).await
    }

    fn api(&self, node: &Node) -> Api<DynamicObject> {
        if node.key.namespace.is_empty() {
            return Api::all_with(self.client.clone(), &node.kind);
        }
        Api::namespaced_with(self.client.clone(), &node.key.namespace, &node.kind)
    }

    async fn delete(&self, uid: &str, node: &Node, policy: PropagationPolicy) -> Result<(), kube::Error> {
        let params = DeleteParams {
            propagation_policy: Some(policy),
            preconditions: Some(Preconditions {
                uid: Some(uid.to_owned()),
                resource_version: None,
            }),
            ..Default::default()
        };
        match self.api(node).delete(&node.key.name, &params).await {
            // A conflict says that the name now belongs to another object.
            Err(error) if !is_not_found(&error) && !is_conflict(&error) => Err(error),
            _ => Ok(()),
        }
    }

    async fn write_owners(
        &self,
        uid: &str,
        node: &Node,
        owners: &[OwnerReference],
    ) -> Result<(), kube::Error> {
        let owners = if owners.is_empty() {
            serde_json::Value::Null
        } else {
            json!(owners)
        };
        let patch = json!({ "metadata": { "uid": uid, "ownerReferences": owners } });
        match self
            .api(node)
            .patch(&node.key.name, &PatchParams::default(), &Patch::Merge(patch))
            .await
        {
            Err(error) if !is_not_found(&error) && !is_conflict(&error) => Err(error),
            _ => Ok(()),
        }
    }

    async fn remove_finalizer(&self, uid: &str, node: &Node, finalizer: &str) -> Result<(), kube::Error> {
        // Read first: others may have added finalizers since.
        let api = self.api(node);
        let fresh = match api.get_metadata(&node.key.name).await {
            Ok(fresh) => fresh.metadata,
            Err(error) if is_not_found(&error) => return Ok(()),
            Err(error) => return Err(error),
        };
        if fresh.uid.as_deref() != Some(uid) {
            return Ok(());
        }
        let mut finalizers = fresh.finalizers.unwrap_or_default();
        finalizers.retain(|it| it != finalizer);
        let patch = json!({ "metadata": {
            "uid": uid, "resourceVersion": fresh.resource_version, "finalizers": finalizers,
        } });
        match api
            .patch(&node.key.name, &PatchParams::default(), &Patch::Merge(patch))
            .await
        {
            Err(error) if !is_not_found(&error) => Err(error),
            _ => Ok(()),
        }
    }
}

/// What a reference points to.
enum OwnerState {
    Gone,
    Solid,
    WaitingForDependents,
}

/// Whether a dependent keeps its owner, deleted in the foreground, from going.
fn blocks(dependent: &Node, owner: &str) -> bool {
    dependent
        .owners
        .iter()
        .any(|it| it.uid == owner && it.block_owner_deletion == Some(true))
}
