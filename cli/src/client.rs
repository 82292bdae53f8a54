//! How the cluster is found and spoken to.
//!
//! In this order: `--kubeconfig`; `KUBECONFIG`; the pod's own account; a `dormouse local` that is running; the usual
//! `~/.kube/config`. No client-side rate limit stands in the way of a wake: kube has none.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crds::names::CLI_MANAGER;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::api::{Patch, PatchParams};
use kube::client::ConfigExt as _;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Config, Resource};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tower::{BoxError, ServiceBuilder};

use crate::args::{Cluster, Scope};
use crate::failure::Failure;

/// Longest for a connection to the API server. It is near, or down.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest for an answer of a `dormouse local`: it is on this machine.
const LOCAL_TIMEOUT: Duration = Duration::from_secs(1);

/// An idle connection to the API server is asked for a sign of life after this long, and given up after twice that.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// A client, and where it points.
pub(crate) struct Connected {
    pub(crate) client: Client,
    /// The namespace to look at where none is named.
    pub(crate) namespace: String,
    /// The API server's address, for messages.
    pub(crate) url: String,
}

impl Connected {
    /// Objects of all namespaces, or of the one that is looked at.
    pub(crate) fn api<K>(&self, all_namespaces: bool) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        match all_namespaces {
            true => Api::all(self.client.clone()),
            false => Api::namespaced(self.client.clone(), &self.namespace),
        }
    }
}

/// Writes a part of an object, in the name of who typed a command.
///
/// # Errors
/// When the server refuses, or does not answer.
pub(crate) async fn merge<K>(api: &Api<K>, name: &str, part: &Value) -> Result<(), kube::Error>
where
    K: Clone + std::fmt::Debug + DeserializeOwned,
{
    let params = PatchParams {
        field_manager: Some(CLI_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    api.patch(name, &params, &Patch::Merge(part)).await.map(drop)
}

/// Connects for a command that a person typed.
///
/// # Errors
/// When there is no cluster to be found, or its configuration makes no sense.
pub(crate) async fn connect(scope: &Scope) -> Result<Connected, Failure> {
    let config = config(&scope.cluster).await?;
    let url = shown(&config.cluster_url);
    let namespace = scope
        .namespace
        .clone()
        .unwrap_or_else(|| config.default_namespace.clone());
    let client = Client::try_from(config)
        .map_err(|error| Failure::Usage(format!("cannot use the configuration for {url}: {error}")))?;
    Ok(Connected {
        client,
        namespace,
        url,
    })
}

/// Connects for a process of the system.
///
/// kube answers every request on a pooled connection of its own, without any limit of its own, so that a hundred wakes
/// leave at once. A watch that has died silently is found by the kernel's keep-alive.
///
/// # Errors
/// When there is no cluster to be found, or its configuration makes no sense.
pub(crate) async fn process(cluster: &Cluster) -> Result<Client, Failure> {
    let config = config(cluster).await?;
    let url = shown(&config.cluster_url);
    let wrong = |error: &dyn std::fmt::Display| {
        Failure::Usage(format!("cannot use the configuration for {url}: {error}"))
    };
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_connect_timeout(Some(CONNECT_TIMEOUT));
    http.set_keepalive(Some(KEEP_ALIVE));
    http.set_keepalive_interval(Some(KEEP_ALIVE / 3));
    http.set_keepalive_retries(Some(3));
    let https = config
        .rustls_https_connector_with_connector(http)
        .map_err(|error| wrong(&error))?;
    let pool = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(Duration::from_secs(90))
        .build(https);
    let auth = config.auth_layer().map_err(|error| wrong(&error))?;
    let headers = config.extra_headers_layer().map_err(|error| wrong(&error))?;
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .layer(headers)
        .option_layer(auth)
        .map_err(BoxError::from)
        .map_request(autoscaler::hold)
        .service(pool);
    Ok(Client::new(service, config.default_namespace))
}

/// The configuration of the cluster that is meant.
///
/// # Errors
/// When there is none, or it cannot be read.
pub(crate) async fn config(cluster: &Cluster) -> Result<Config, Failure> {
    let mut config = find(cluster).await?;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    // A watch may rightly be silent for minutes.
    config.read_timeout = None;
    Ok(config)
}

/// The address without its path: that of an embedded cluster holds a token.
fn shown(url: &hyper::Uri) -> String {
    let scheme = url.scheme_str().unwrap_or("https");
    format!(
        "{scheme}://{}",
        url.authority().map_or("", |authority| authority.as_str())
    )
}

async fn find(cluster: &Cluster) -> Result<Config, Failure> {
    if let Some(path) = &cluster.kubeconfig {
        return from_file(path, cluster).await;
    }
    if std::env::var_os("KUBECONFIG").is_some_and(|value| !value.is_empty()) {
        return from_environment(cluster).await;
    }
    if cluster.context.is_none() {
        if std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() {
            return Config::incluster()
                .map_err(|error| Failure::Usage(format!("cannot use the pod's own account: {error}")));
        }
        if let Some(path) = running_local().await {
            tracing::debug!(path = %path.display(), "using the embedded cluster");
            return from_file(&path, cluster).await;
        }
    }
    from_environment(cluster).await
}

async fn from_file(path: &Path, cluster: &Cluster) -> Result<Config, Failure> {
    let wrong = |error: &dyn std::fmt::Display| {
        Failure::Usage(format!("cannot use the kubeconfig {}: {error}", path.display()))
    };
    let file = Kubeconfig::read_from(path).map_err(|error| wrong(&error))?;
    Config::from_custom_kubeconfig(file, &options(cluster))
        .await
        .map_err(|error| wrong(&error))
}

async fn from_environment(cluster: &Cluster) -> Result<Config, Failure> {
    Config::from_kubeconfig(&options(cluster)).await.map_err(|error| {
        Failure::Usage(format!(
            "no cluster to talk to: {error}. Name a kubeconfig with --kubeconfig or KUBECONFIG, or start an embedded \
             cluster with `dormouse local FILE…`"
        ))
    })
}

fn options(cluster: &Cluster) -> KubeConfigOptions {
    KubeConfigOptions {
        context: cluster.context.clone(),
        ..Default::default()
    }
}

/// The kubeconfig of a `dormouse local` that answers; of several, the one started last.
async fn running_local() -> Option<PathBuf> {
    for path in local_kubeconfigs() {
        if answers(&path).await {
            return Some(path);
        }
    }
    None
}

/// Kubeconfigs at the places where `dormouse local` leaves one, the newest first. Only files of this user: in a folder
/// that all may write to, anybody could leave one that points elsewhere.
fn local_kubeconfigs() -> Vec<PathBuf> {
    let own = rustix::process::getuid().as_raw();
    let fixed = std::env::var_os("XDG_RUNTIME_DIR").map(|folder| PathBuf::from(folder).join("dormouse"));
    let temporary = std::fs::read_dir(std::env::temp_dir())
        .into_iter()
        .flatten()
        .flatten();
    let temporary = temporary
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("dormouse-"))
        .map(|entry| entry.path());
    let mut found: Vec<_> = fixed
        .into_iter()
        .chain(temporary)
        .filter(|folder| std::fs::symlink_metadata(folder).is_ok_and(|it| it.is_dir() && it.uid() == own))
        .filter_map(|folder| {
            let path = folder.join("kubeconfig");
            let file = std::fs::symlink_metadata(&path)
                .ok()
                .filter(|it| it.is_file() && it.uid() == own)?;
            Some((file.modified().ok()?, path))
        })
        .collect();
    found.sort();
    found.into_iter().rev().map(|(_, path)| path).collect()
}

/// Whether the server of a kubeconfig answers to its token: a `dormouse local` that was killed leaves its file, and
/// somebody else may have its port by now.
async fn answers(path: &Path) -> bool {
    let Ok(file) = Kubeconfig::read_from(path) else {
        return false;
    };
    let Ok(config) = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await else {
        return false;
    };
    let Ok(client) = Client::try_from(config) else {
        return false;
    };
    let asked = tokio::time::timeout(LOCAL_TIMEOUT, client.list_core_api_versions());
    matches!(asked.await, Ok(Ok(_)))
}

/// A sentence for an error of the API: what was being done, where, what to do.
pub(crate) fn failed(what: &str, url: &str, error: &kube::Error) -> Failure {
    let fix = match error {
        kube::Error::Api(status)
            if status.code == 404
                && ["Routes", "Rollouts", "Revisions"]
                    .iter()
                    .any(|kind| what.ends_with(kind)) =>
        {
            ". Are the custom resources installed? `dormouse crds | kubectl apply -f -`"
        }
        kube::Error::Api(status) if status.code == 401 => ". The kubeconfig's credentials are not accepted",
        kube::Error::Api(status) if status.code == 403 => ". Ask for the permission, or use another account",
        kube::Error::Api(_) => "",
        _ => ". Is the API server running, and is this the right kubeconfig?",
    };
    let message = match error {
        kube::Error::Api(status) => status.message.clone(),
        // The outer layers say that a request failed; the innermost says why.
        other => innermost(other).to_string(),
    };
    Failure::Api(format!("cannot {what} at {url}: {message}{fix}"))
}

fn innermost(error: &dyn std::error::Error) -> &dyn std::error::Error {
    let mut inner = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner
}
