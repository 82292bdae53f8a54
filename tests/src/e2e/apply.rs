//! Manifests into the cluster: as text, through server-side apply or the real `kubectl`.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use kube::api::{DynamicObject, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::{Api, Client, ResourceExt};
use tokio::io::AsyncWriteExt;

/// Applies each document of `yaml` on the server's side, as manager `e2e`, into namespace `default` unless it names one.
///
/// # Errors
/// A document is no Kubernetes object, or the server refuses it.
pub async fn apply(client: &Client, yaml: &str) -> Result<()> {
    apply_as(client, yaml, "e2e", false).await
}

/// As [`apply`], as another manager, and with or without force.
///
/// # Errors
/// As [`apply`]; without force also a conflict.
pub async fn apply_as(client: &Client, yaml: &str, manager: &str, force: bool) -> Result<()> {
    for document in yaml
        .split("\n---\n")
        .map(str::trim)
        .filter(|text| !text.is_empty())
    {
        let object: DynamicObject = serde_saphyr::from_str(document).with_context(|| document.to_owned())?;
        let types = object.types.clone().context("apiVersion and kind")?;
        let kind = GroupVersionKind::try_from(&types)?;
        let (resource, capabilities) = kube::discovery::pinned_kind(client, &kind).await?;
        let name = object.name_any();
        let api: Api<DynamicObject> = if capabilities.scope == kube::discovery::Scope::Namespaced {
            let namespace = object.namespace().unwrap_or_else(|| "default".to_owned());
            Api::namespaced_with(client.clone(), &namespace, &resource)
        } else {
            Api::all_with(client.clone(), &resource)
        };
        let mut parameters = PatchParams::apply(manager);
        parameters.force = force;
        let patched = api.patch(&name, &parameters, &Patch::Apply(&object)).await;
        patched.with_context(|| format!("apply {} {name} as {manager}", types.kind))?;
    }
    Ok(())
}

/// Runs `kubectl` with `input` as its standard input and returns what it printed. `None`: it is not on this machine.
///
/// # Errors
/// It failed; its words are in the error.
pub async fn kubectl(kubeconfig: &Path, arguments: &[&str], input: &str) -> Result<Option<String>> {
    let mut command = tokio::process::Command::new("kubectl");
    command
        .arg("--kubeconfig")
        .arg(kubeconfig)
        .args(arguments)
        .kill_on_drop(true);
    // Its cache of what an API offers is by address, and ours come and go on the same ones.
    command.arg("--cache-dir").arg(kubeconfig.with_extension("cache"));
    let spawned = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match spawned {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        spawned => spawned.context("kubectl")?,
    };
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).await?;
    }
    let output = child.wait_with_output().await?;
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(
        output.status.success(),
        "kubectl {}: {words}",
        arguments.join(" ")
    );
    Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned()))
}
