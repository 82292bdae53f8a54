//! Dormouse itself on the embedded cluster: its namespace, CRDs, and where its processes are found.

use std::net::IpAddr;
use std::path::Path;

use futures::future::BoxFuture;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DynamicObject, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::cluster::NODE;

/// Field manager of what this crate applies.
pub(crate) const MANAGER: &str = "dormouse-local";

/// The port of an activator's report stream.
const REPORT_PORT: u16 = 9001;

/// Runs one part of Dormouse in this process: with a client, the address it is to bind, and the shutdown.
pub type Part =
    Box<dyn FnOnce(Client, IpAddr, CancellationToken) -> BoxFuture<'static, anyhow::Result<()>> + Send>;

/// What the embedded cluster cannot know by itself, because it must not depend on it.
#[derive(Default)]
pub struct System {
    /// CustomResourceDefinitions to create.
    pub crds: Vec<CustomResourceDefinition>,
    /// The activator, for `--system in-process`.
    pub activator: Option<Part>,
    /// The autoscaler, for `--system in-process`.
    pub autoscaler: Option<Part>,
    /// The token with which that autoscaler shows itself to activators: the API knows it as the autoscaler's account.
    pub autoscaler_token: Option<String>,
}

/// Applies an object as ours.
pub(crate) async fn apply(client: &Client, object: &Value) -> Result<DynamicObject, kube::Error> {
    let text = |pointer: &str| {
        object
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let version = text("/apiVersion");
    let (group, version) = version.split_once('/').unwrap_or(("", &version));
    let kind = kube::core::ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &text("/kind")));
    let namespace = text("/metadata/namespace");
    let api: Api<DynamicObject> = if namespace.is_empty() {
        Api::all_with(client.clone(), &kind)
    } else {
        Api::namespaced_with(client.clone(), &namespace, &kind)
    };
    let params = PatchParams::apply(MANAGER).force();
    api.patch(&text("/metadata/name"), &params, &Patch::Apply(object))
        .await
}

/// The namespace of the system and its CRDs.
pub(crate) async fn prepare(client: &Client, crds: &[CustomResourceDefinition]) -> anyhow::Result<()> {
    let namespace = json!({
        "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": crds::names::SYSTEM_NAMESPACE },
    });
    apply(client, &namespace).await?;
    for crd in crds {
        let mut crd = serde_json::to_value(crd)?;
        crd["apiVersion"] = json!("apiextensions.k8s.io/v1");
        crd["kind"] = json!("CustomResourceDefinition");
        apply(client, &crd).await?;
    }
    Ok(())
}

/// How autoscalers find the one activator in this process: a Service without selector, and our own slice for it.
pub(crate) async fn announce_activator(client: &Client, address: IpAddr) -> anyhow::Result<()> {
    let made = apply(client, &activator_service(None)).await?;
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{}-local", crds::names::ACTIVATOR_SERVICE),
            "namespace": crds::names::SYSTEM_NAMESPACE,
            "labels": {
                crds::names::SLICE_SERVICE_LABEL: crds::names::ACTIVATOR_SERVICE,
                crds::names::SLICE_MANAGED_BY_LABEL: MANAGER,
            },
            "ownerReferences": [{
                "apiVersion": "v1", "kind": "Service", "name": crds::names::ACTIVATOR_SERVICE,
                "uid": made.metadata.uid, "controller": true, "blockOwnerDeletion": true,
            }],
        },
        "addressType": "IPv4",
        "endpoints": [{
            "addresses": [address.to_string()],
            "conditions": { "ready": true, "serving": true, "terminating": false },
            "nodeName": NODE,
        }],
        "ports": [{ "name": crds::names::REPORT_PORT_NAME, "port": REPORT_PORT, "protocol": "TCP" }],
    });
    apply(client, &slice).await?;
    Ok(())
}

/// The headless Service whose slices list the activators.
fn activator_service(selector: Option<Value>) -> Value {
    let mut spec = json!({
        "clusterIP": "None",
        "publishNotReadyAddresses": true,
        "ports": [{ "name": crds::names::REPORT_PORT_NAME, "port": REPORT_PORT, "targetPort": REPORT_PORT }],
    });
    if let Some(selector) = selector {
        spec["selector"] = selector;
    }
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": crds::names::ACTIVATOR_SERVICE, "namespace": crds::names::SYSTEM_NAMESPACE },
        "spec": spec,
    })
}

/// The service account's user, as Kubernetes names it.
pub(crate) fn account(name: &str) -> String {
    format!("system:serviceaccount:{}:{name}", crds::names::SYSTEM_NAMESPACE)
}

/// Dormouse as pods: two activators and two autoscalers, each with a kubeconfig of its own account. An autoscaler shows
/// `token` to activators, as it would show the one that Kubernetes mounts.
pub(crate) async fn deploy(
    client: &Client,
    activator: &Path,
    autoscaler: &Path,
    token: &str,
) -> anyhow::Result<()> {
    apply(
        client,
        &activator_service(Some(json!({ "app": crds::names::ACTIVATOR_SERVICE }))),
    )
    .await?;
    let activator_ports = json!([
        { "name": crds::names::REPORT_PORT_NAME, "containerPort": REPORT_PORT },
        { "name": "admin", "containerPort": 9000 },
    ]);
    apply(
        client,
        &deployment(
            "dormouse-activator",
            "activator",
            activator,
            activator_ports,
            None,
        ),
    )
    .await?;
    let autoscaler_ports = json!([{ "name": "admin", "containerPort": 9000 }]);
    apply(
        client,
        &deployment(
            "dormouse-autoscaler",
            "autoscaler",
            autoscaler,
            autoscaler_ports,
            Some(token),
        ),
    )
    .await?;
    Ok(())
}

fn deployment(name: &str, part: &str, kubeconfig: &Path, ports: Value, token: Option<&str>) -> Value {
    let field =
        |name: &str, path: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } });
    let mut env = vec![
        field("POD_NAME", "metadata.name"),
        field("POD_NAMESPACE", "metadata.namespace"),
        field("POD_IP", "status.podIP"),
        // All pods share this machine's network: a port must be taken on the pod's own address.
        field("DORMOUSE_BIND", "status.podIP"),
        json!({ "name": "KUBECONFIG", "value": kubeconfig.to_string_lossy() }),
    ];
    if let Some(token) = token {
        env.push(json!({ "name": "DORMOUSE_REPORT_TOKEN", "value": token }));
    }
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": { "name": name, "namespace": crds::names::SYSTEM_NAMESPACE },
        "spec": {
            "replicas": 2,
            "selector": { "matchLabels": { "app": name } },
            "template": {
                "metadata": {
                    "labels": { "app": name },
                    "annotations": { crate::cluster::PORTS_ANNOTATION: "as-declared" },
                },
                "spec": {
                    "serviceAccountName": name,
                    "containers": [{
                        "name": part,
                        "image": "docker.io/local/dormouse:dev",
                        "command": ["dormouse", part],
                        "ports": ports,
                        "env": env,
                        "readinessProbe": { "httpGet": { "path": "/ready", "port": "admin" }, "periodSeconds": 1 },
                    }],
                },
            },
        },
    })
}
