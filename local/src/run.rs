//! Starting and ending the whole.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::core::v1::{Node, Service};
use kube::Client;
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::api::Api;
use crate::cluster::{Cluster, NODE};
use crate::config::{Args, SystemMode};
use crate::controllers;
use crate::kubeconfig::{Folder, random_token};
use crate::manifests::{Manifests, Outcome};
use crate::network::{Directory, Front, Limit, Proxy, Publish};
use crate::pods::{Addresses, Logs, Runner, Settings, Spawner};
use crate::system::{self, Part, System};

/// How long pods may take to end when the cluster does.
const END_GRACE: Duration = Duration::from_secs(5);

/// How a cluster without files, front door and system is started; for tests and other programs.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// A `dormouse` executable that ties processes to ours; `None`: they are started directly.
    pub executable: Option<PathBuf>,
    /// Whether pods' lines go to standard output.
    pub print: bool,
    /// How much later than the API the Services' addresses follow a change.
    pub proxy_delay: Duration,
}

/// A running cluster.
pub struct Running {
    cluster: Arc<Cluster>,
    proxy: Arc<Proxy>,
    limit: Limit,
    addresses: Addresses,
    tasks: JoinSet<()>,
    shutdown: CancellationToken,
}

impl Running {
    /// Ends it: pods get TERM, and KILL after five seconds.
    pub async fn end(mut self) {
        self.shutdown.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

/// Starts controllers, pods and network on an API.
///
/// # Errors
/// When no process can be started, or the API does not answer.
pub async fn start(api: &Api, options: Options, shutdown: CancellationToken) -> anyhow::Result<Running> {
    start_with(api, options, Vec::new(), shutdown).await
}

async fn start_with(
    api: &Api,
    options: Options,
    publish: Vec<Publish>,
    shutdown: CancellationToken,
) -> anyhow::Result<Running> {
    let client = api.client_as("system:node:local");
    let cluster = Cluster::new(api.client_as("system:kube-controller-manager"));
    let kubelet = Cluster::sharing(&cluster, client);
    let logs = Logs::new(options.print);
    let from = logs.clone();
    api.set_log_source(Arc::new(move |request| {
        let answer = from.answer(&request);
        Box::pin(std::future::ready(answer))
    }));
    let first_in_path = options
        .executable
        .as_deref()
        .and_then(Path::parent)
        .map(Path::to_owned);
    let spawner = Spawner::new(options.executable).context("starting the guard of processes")?;
    let settings = Settings {
        spawner,
        logs,
        first_in_path,
    };
    let addresses = Addresses::default();
    let limit = Limit::new();

    let controllers = controllers::prepare(&cluster);
    let runner = Runner::prepare(&kubelet, settings, addresses.clone());
    let proxy = Proxy::prepare(
        &cluster,
        limit.clone(),
        publish,
        options.proxy_delay,
        shutdown.clone(),
    );
    create_node(&kubelet.client).await.context("creating the node")?;
    let mut tasks = JoinSet::new();
    // Pictures, proxy and API outlast the pods: their last writes must still arrive.
    let late = CancellationToken::new();
    cluster.start(&mut tasks, &late).await;
    controllers.start(&mut tasks, &shutdown);
    tasks.spawn(Arc::clone(&proxy).run());
    let stop = shutdown.clone();
    tasks.spawn(async move {
        runner.run(stop, END_GRACE).await;
        late.cancel();
    });
    Ok(Running {
        cluster,
        proxy,
        limit,
        addresses,
        tasks,
        shutdown,
    })
}

async fn create_node(client: &Client) -> Result<(), kube::Error> {
    let node = json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": NODE,
            "labels": { "kubernetes.io/hostname": NODE, "kubernetes.io/os": std::env::consts::OS },
        },
    });
    system::apply(client, &node).await?;
    let now = crate::cluster::now();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let status = json!({ "status": {
        "addresses": [{ "type": "InternalIP", "address": "127.0.0.1" }, { "type": "Hostname", "address": NODE }],
        "capacity": { "cpu": cpus.to_string(), "pods": "5000" },
        "allocatable": { "cpu": cpus.to_string(), "pods": "5000" },
        "conditions": [{
            "type": "Ready", "status": "True", "reason": "KubeletReady",
            "message": "the embedded cluster runs processes", "lastTransitionTime": now, "lastHeartbeatTime": now,
        }],
        "nodeInfo": {
            "kubeletVersion": concat!("v1.35.0-dormouse.", env!("CARGO_PKG_VERSION")),
            "kubeProxyVersion": "", "containerRuntimeVersion": "process://1", "osImage": std::env::consts::OS,
            "kernelVersion": "", "machineID": "", "systemUUID": "", "bootID": "",
            "operatingSystem": std::env::consts::OS, "architecture": std::env::consts::ARCH,
        },
    } });
    let nodes: kube::Api<Node> = kube::Api::all(client.clone());
    nodes
        .patch_status(NODE, &PatchParams::default(), &Patch::Merge(status))
        .await?;
    Ok(())
}

/// Runs `dormouse local` until `shutdown`.
///
/// # Errors
/// When an address is taken, the kubeconfig cannot be written, or a part of the system cannot start. Errors in
/// manifests are printed, and are none.
pub async fn run(args: Args, system: System, shutdown: CancellationToken) -> anyhow::Result<()> {
    let api = Api::new();
    let api_listener = listen(args.api, "--api").await?;
    let front_listener = listen(args.listen, "--listen").await?;
    let api_address = api_listener.local_addr()?;
    let front_address = front_listener.local_addr()?;
    let token = random_token()?;
    api.add_token(token.clone(), "system:admin");
    let mut folder = Folder::open().context("making a folder for the kubeconfig")?;
    let kubeconfig = folder
        .write(
            args.kubeconfig.as_deref(),
            "kubeconfig",
            api_address,
            &token,
            &args.namespace,
        )
        .context("writing the kubeconfig")?;

    let executable = std::env::current_exe().context("finding our own executable")?;
    let options = Options {
        executable: Some(executable),
        print: !args.quiet,
        proxy_delay: args.proxy_delay(),
    };
    let publish = args.publish.iter().map(|it| it.0.clone()).collect();
    let running = start_with(&api, options, publish, shutdown.clone()).await?;
    let serving = CancellationToken::new();
    let server = tokio::spawn(crate::api::serve(api.clone(), api_listener, serving.clone()));

    let client = api.client();
    system::prepare(&client, &system.crds)
        .await
        .context("creating the system's namespace and CRDs")?;
    let parts = start_system(&api, &running, args.system, system, &mut folder, api_address).await?;

    let front = Arc::new(Front {
        cluster: Arc::clone(&running.cluster),
        proxy: Arc::clone(&running.proxy),
        limit: running.limit.clone(),
        address: front_address,
    });
    let front = tokio::spawn(front.serve(front_listener, shutdown.clone()));

    let mut manifests = Manifests::new(
        client.clone(),
        args.files.clone(),
        args.namespace.clone(),
        kubeconfig.clone(),
    );
    let outcome = manifests.apply_all().await;
    banner(&client, front_address, api_address, &kubeconfig).await;
    report(&outcome);
    let ended = if args.no_reload {
        shutdown.cancelled().await;
        Ok(())
    } else {
        manifests.follow(shutdown.clone(), report).await
    };
    if let Err(error) = ended {
        tracing::warn!(%error, "files are not watched: changes need a restart");
        shutdown.cancelled().await;
    }
    end(running, parts, serving, server, front).await
}

async fn listen(address: SocketAddr, flag: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("listening on {address} ({flag} takes another address)"))
}

/// The parts of Dormouse that run in this process.
type Parts = JoinSet<anyhow::Result<()>>;

async fn start_system(
    api: &Api,
    running: &Running,
    mode: SystemMode,
    system: System,
    folder: &mut Folder,
    api_address: SocketAddr,
) -> anyhow::Result<Parts> {
    let mut parts = JoinSet::new();
    match mode {
        SystemMode::None => {}
        SystemMode::InProcess => {
            let address = running.addresses.take_ip();
            system::announce_activator(&api.client(), address)
                .await
                .context("announcing the activator")?;
            if let Some(token) = system.autoscaler_token {
                api.add_token(token, system::account("dormouse-autoscaler").as_str());
            }
            let named: [(&str, Option<Part>); 2] = [
                ("dormouse-activator", system.activator),
                ("dormouse-autoscaler", system.autoscaler),
            ];
            for (name, part) in named {
                if let Some(part) = part {
                    let client = api.client_as(system::account(name).as_str());
                    spawn_part(&mut parts, name, part, client, address, running.shutdown.clone());
                }
            }
        }
        SystemMode::Pods => {
            let (mut paths, mut last_token) = (Vec::new(), String::new());
            for name in ["dormouse-activator", "dormouse-autoscaler"] {
                let token = random_token()?;
                api.add_token(token.clone(), system::account(name).as_str());
                let file = format!("{name}.kubeconfig");
                paths.push(folder.write(None, &file, api_address, &token, crds::names::SYSTEM_NAMESPACE)?);
                last_token = token;
            }
            system::deploy(&api.client(), &paths[0], &paths[1], &last_token)
                .await
                .context("starting the system's pods")?;
        }
    }
    Ok(parts)
}

fn spawn_part(
    parts: &mut Parts,
    name: &'static str,
    part: Part,
    client: Client,
    address: IpAddr,
    shutdown: CancellationToken,
) {
    parts.spawn(async move {
        let result = part(client, address, shutdown).await;
        if let Err(error) = &result {
            tracing::error!(part = name, error = format!("{error:#}"), "ended");
        }
        result.with_context(|| format!("{name} ended"))
    });
}

/// Ends everything, in an order in which nobody needs what is gone already.
async fn end(
    running: Running,
    mut parts: Parts,
    serving: CancellationToken,
    server: tokio::task::JoinHandle<()>,
    front: tokio::task::JoinHandle<()>,
) -> anyhow::Result<()> {
    let mut result = Ok(());
    let in_process = async {
        while let Some(part) = parts.join_next().await {
            if let Ok(Err(error)) = part {
                result = Err(error);
            }
        }
    };
    let bounded = tokio::time::timeout(END_GRACE, in_process);
    let (in_time, ()) = tokio::join!(bounded, running.end());
    if in_time.is_err() {
        tracing::warn!("a part of the system did not end in time");
    }
    serving.cancel();
    let _ = tokio::time::timeout(Duration::from_secs(1), server).await;
    let _ = tokio::time::timeout(Duration::from_secs(1), front).await;
    result
}

/// What a person needs to know first.
async fn banner(client: &Client, front: SocketAddr, api: SocketAddr, kubeconfig: &Path) {
    // From the API, because the picture may not have what was applied in this instant.
    let services: kube::Api<Service> = kube::Api::all(client.clone());
    match services.list(&ListParams::default()).await {
        Ok(services) => {
            let services: Vec<_> = services.items.into_iter().map(Arc::new).collect();
            println!("Services:");
            for line in Directory::new(&services, front).lines() {
                println!("  {line}");
            }
        }
        Err(error) => tracing::warn!(%error, "Services not listed"),
    }
    println!("API:  http://{api}");
    println!("      kubectl --kubeconfig {} get pods", kubeconfig.display());
    println!("Files are applied again when they change. Ctrl-C ends everything.");
}

/// Says what a reading of the files did.
fn report(outcome: &Outcome) {
    for line in &outcome.done {
        println!("{line}");
    }
    for line in &outcome.notes {
        println!("note: {line}");
    }
    for line in &outcome.errors {
        eprintln!("error: {line}");
    }
}
