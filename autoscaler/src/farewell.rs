//! The last word of an autoscaler that is being removed: its own permissions may go.
//!
//! Whoever deletes an installation deletes the permissions in the same moment as the processes. Giving Services back needs
//! them for some seconds more, so the shipped ServiceAccount, roles and bindings carry a finalizer: their deletion waits for
//! this. Rejected: a finalizer on Routes, which would hold up the deletion of users' own namespaces when we are gone.

mod together;

use std::time::Duration;

use crds::names::{AUTOSCALER_MANAGER, LEASE, RELEASE_FINALIZER};
use futures::future::join_all;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use kube::api::DeleteParams;
use kube::core::request::Error as RequestError;
use kube::{Api, Client, Resource as _};
use serde_json::{Value, json};
use tokio::time::timeout;

use together::Gate;
pub use together::{HeldBody, hold};

/// Longest time for all of it.
const LIMIT: Duration = Duration::from_secs(3);

/// Lets go of the objects that carry the Deployment's name, and deletes the Lease: an installation of tomorrow must not find
/// today's request to release everything. Repeating it is harmless, and so is a second process that does it.
pub(crate) async fn let_go(client: &Client, namespace: &str, name: &str) {
    let leases = Api::<Lease>::namespaced(client.clone(), namespace);
    match timeout(LIMIT, leases.delete(LEASE, &DeleteParams::default())).await {
        Ok(Ok(_)) => {}
        Ok(Err(kube::Error::Api(status))) if status.code == 404 => {}
        Ok(Err(error)) => tracing::warn!(%error, "the Lease is not deleted"),
        Err(_) => tracing::warn!("the Lease is not deleted: no answer in time"),
    }
    // Each of them is needed for changing the others: all are authorized, and then carried out.
    let inside = Some(namespace);
    let all = [
        Role::url_path(&(), inside),
        RoleBinding::url_path(&(), inside),
        ServiceAccount::url_path(&(), inside),
        ClusterRole::url_path(&(), None),
        ClusterRoleBinding::url_path(&(), None),
    ]
    .map(|base| format!("{base}/{name}"));
    let gate = Gate::new(all.len());
    let all = all.into_iter().map(|path| free(client, path, &gate));
    match timeout(LIMIT, join_all(all)).await {
        Ok(results) => results.into_iter().filter_map(Result::err).for_each(|error| {
            tracing::warn!(%error, "a permission keeps its finalizer {RELEASE_FINALIZER}");
        }),
        Err(_) => {
            tracing::warn!("permissions may keep their finalizer {RELEASE_FINALIZER}: no answer in time")
        }
    }
}

/// Takes our finalizer off an object. Ours alone: the test fails when another one stands first.
async fn free(client: &Client, path: String, gate: &Gate) -> Result<(), kube::Error> {
    // No read first: that would need one more permission. Merging `null` would take other people's finalizers as well.
    let body = json!([
        { "op": "test", "path": "/metadata/finalizers/0", "value": RELEASE_FINALIZER },
        { "op": "remove", "path": "/metadata/finalizers/0" },
    ]);
    let mut request = http::Request::patch(format!("{path}?fieldManager={AUTOSCALER_MANAGER}"))
        .header(http::header::CONTENT_TYPE, "application/json-patch+json")
        .body(body.to_string().into_bytes())
        .map_err(|error| kube::Error::BuildRequest(RequestError::BuildRequest(error)))?;
    let head = gate.keep(&mut request);
    let answer = client.request::<Value>(request).await;
    head.answered();
    match answer {
        Ok(_) => Ok(()),
        // 422: it carries no finalizer, or another one first.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 422) => Ok(()),
        Err(error) => Err(error),
    }
}
