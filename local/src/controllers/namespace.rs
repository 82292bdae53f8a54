//! Namespaces: a default ServiceAccount in each, and what is in one is deleted with it.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::api::{DeleteParams, DynamicObject, ListParams, PostParams};
use kube::core::ObjectMeta;
use kube::{Api, Resource, ResourceExt};

use super::Start;
use super::gc::namespaced_kinds;
use crate::cluster::{Cluster, is_conflict, is_not_found};
use crate::informer::Key;
use crate::queue::{self, Queue};

/// How long to wait before looking again at a namespace in which something is still ending.
const AGAIN: Duration = Duration::from_millis(100);

/// Adds listeners.
pub(super) fn prepare(cluster: &Arc<Cluster>) -> Start {
    let queue = Queue::new();
    super::replicaset::listen(&queue, &cluster.namespaces);
    let cluster = Arc::clone(cluster);
    Box::new(move |tasks, shutdown| {
        tasks.spawn(queue::work("namespace", queue, 1, shutdown.clone(), move |key| {
            let cluster = Arc::clone(&cluster);
            async move { reconcile(&cluster, &key).await }
        }));
    })
}

async fn reconcile(cluster: &Cluster, key: &Key) -> Result<Option<Duration>, kube::Error> {
    let Some(namespace) = cluster.namespaces.get(key) else {
        return Ok(None);
    };
    if namespace.metadata.deletion_timestamp.is_none() {
        return ensure_account(cluster, &key.name).await;
    }
    if empty(cluster, &key.name).await? {
        finalize(cluster, &namespace).await?;
        return Ok(None);
    }
    Ok(Some(AGAIN))
}

async fn ensure_account(cluster: &Cluster, namespace: &str) -> Result<Option<Duration>, kube::Error> {
    let account = ServiceAccount {
        metadata: ObjectMeta {
            name: Some("default".to_owned()),
            ..Default::default()
        },
        ..Default::default()
    };
    match cluster
        .api::<ServiceAccount>(namespace)
        .create(&PostParams::default(), &account)
        .await
    {
        Err(error) if !is_conflict(&error) => Err(error),
        _ => Ok(None),
    }
}

/// Deletes everything in a namespace; whether nothing is left.
async fn empty(cluster: &Cluster, namespace: &str) -> Result<bool, kube::Error> {
    let mut empty = true;
    for kind in namespaced_kinds(&cluster.client).await? {
        let api: Api<DynamicObject> = Api::namespaced_with(cluster.client.clone(), namespace, &kind);
        let left = match api.list(&ListParams::default()).await {
            Ok(left) => left.items,
            Err(error) if is_not_found(&error) => continue,
            Err(error) => return Err(error),
        };
        for object in left {
            empty = false;
            if object.metadata.deletion_timestamp.is_some() {
                continue;
            }
            match api.delete(&object.name_any(), &DeleteParams::background()).await {
                Err(error) if !is_not_found(&error) && !is_conflict(&error) => return Err(error),
                _ => {}
            }
        }
    }
    Ok(empty)
}

/// Lets an empty namespace go.
async fn finalize(cluster: &Cluster, namespace: &Namespace) -> Result<(), kube::Error> {
    let api: Api<Namespace> = Api::all(cluster.client.clone());
    let name = namespace.name_any();
    let mut fresh = match api.get(&name).await {
        Ok(fresh) => fresh,
        Err(error) if is_not_found(&error) => return Ok(()),
        Err(error) => return Err(error),
    };
    if fresh.meta().uid != namespace.meta().uid {
        return Ok(());
    }
    if let Some(spec) = &mut fresh.spec {
        spec.finalizers = Some(Vec::new());
    }
    let result: Result<Namespace, kube::Error> = api
        .replace_subresource("finalize", &name, &PostParams::default(), &fresh)
        .await;
    match result {
        Err(error) if !is_not_found(&error) => Err(error),
        _ => Ok(()),
    }
}
