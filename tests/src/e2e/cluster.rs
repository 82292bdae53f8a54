//! One cluster, embedded or real, and what it is asked for again and again. Where the two differ, it is in here, in
//! `embedded.rs` and in `real.rs`; a scenario is the same function on both.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use crds::condition;
use crds::names;
use crds::route::{Phase, Route};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Event, Pod, Service};
use kube::api::{Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::watcher;
use kube::{Api, Client, Config, ResourceExt};
use parking_lot::Mutex;
use tokio::process::Command;

use super::app::App;
use super::embedded::Embedded;
use super::load::answer;
use super::process::{alive, descendants, variable};
use super::real::{NODE_IP, Real, real};
use super::wait::{eventually, notes, wait_for};
use super::witness::Witness;
use super::{apply, binaries};

/// Longest for anything that takes a cluster a moment. Generous: the machine is shared, and only a defect meets it.
pub const SOON: Duration = Duration::from_secs(30);
/// Longest until a process of the system is back: after a second kill the kubelet waits 10 s, after a third 20 s.
const BACK: Duration = Duration::from_secs(90);

/// How the system itself runs in the embedded cluster. On a real one it is always [`System::Pods`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum System {
    /// One activator and one autoscaler inside `dormouse local`.
    InProcess,
    /// Two of each, as processes of their own against the cluster's HTTP API.
    Pods,
}

/// A running cluster.
pub struct Cluster {
    /// Speaks to its API over HTTP, as any tool would.
    pub client: Client,
    /// The file that `kubectl --kubeconfig` takes.
    pub kubeconfig: PathBuf,
    /// Everything of this scenario is in it; it goes with it, unless the scenario failed.
    pub folder: PathBuf,
    place: Place,
}

enum Place {
    Embedded(Box<Embedded>),
    Real(Real),
}

impl Cluster {
    /// Starts an embedded cluster, or goes to the real one, and waits until its API and the whole system answer.
    ///
    /// # Errors
    /// It did not come up; the end of its log is in the error.
    pub async fn start(name: &str, system: System) -> Result<Self> {
        let (place, folder, system) = if real() {
            let real = Real::attach()?;
            let folder = real.scenario_folder(name);
            std::fs::create_dir_all(&folder)?;
            (Place::Real(real), folder, System::Pods)
        } else {
            let folder = std::env::temp_dir().join(format!("dormouse-e2e-{}-{name}", std::process::id()));
            std::fs::create_dir_all(&folder)?;
            let embedded = Embedded::start(&folder, system).await?;
            (Place::Embedded(Box::new(embedded)), folder, system)
        };
        let kubeconfig = match &place {
            Place::Embedded(embedded) => embedded.kubeconfig.clone(),
            Place::Real(real) => real.kubeconfig.clone(),
        };
        let client = match (connect(&kubeconfig).await, &place) {
            (Ok(client), _) => client,
            (Err(error), Place::Embedded(embedded)) => return Err(error.context(embedded.log(40))),
            (Err(error), Place::Real(_)) => return Err(error),
        };
        let cluster = Self {
            client,
            kubeconfig,
            folder,
            place,
        };
        if let Err(error) = cluster.prepare(system).await {
            return Err(error.context(cluster.log(80).await));
        }
        Ok(cluster)
    }

    /// Whether it is a real Kubernetes.
    #[must_use]
    pub fn is_real(&self) -> bool {
        matches!(self.place, Place::Real(_))
    }

    /// An address of this process that processes of the cluster reach.
    pub(super) fn host(&self) -> IpAddr {
        match &self.place {
            Place::Embedded(_) => Ipv4Addr::LOCALHOST.into(),
            Place::Real(_) => NODE_IP.into(),
        }
    }

    /// The process that everything of the cluster descends from.
    fn root(&self) -> u32 {
        match &self.place {
            Place::Embedded(embedded) => embedded.pid,
            Place::Real(real) => real.pid,
        }
    }

    /// The process of one of Kubernetes' own parts: `kube-apiserver`, `etcd`, `kubelet`, `kube-proxy`. The embedded
    /// cluster has none.
    #[must_use]
    pub fn component(&self, name: &str) -> Option<u32> {
        match &self.place {
            Place::Embedded(_) => None,
            Place::Real(real) => real.component(name),
        }
    }

    /// Objects of a kind in namespace `default`.
    #[must_use]
    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), "default")
    }

    /// Objects of a kind in the system's namespace.
    #[must_use]
    pub fn system_api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), names::SYSTEM_NAMESPACE)
    }

    /// Applies an application's manifests.
    ///
    /// # Errors
    /// The cluster refuses them.
    pub async fn apply(&self, app: &App) -> Result<()> {
        apply(&self.client, &app.yaml(self)).await
    }

    /// The file in which the test application bears witness.
    #[must_use]
    pub fn witness(&self) -> Witness {
        Witness::new(&self.folder)
    }

    /// The test application's program, where its pods find it.
    #[must_use]
    pub fn witness_program(&self) -> String {
        match &self.place {
            Place::Embedded(embedded) => embedded.witness.display().to_string(),
            Place::Real(_) => super::real::PROGRAM.to_owned(),
        }
    }

    /// The folder of this scenario, where pods of the test application find it.
    #[must_use]
    pub fn witness_folder(&self) -> String {
        match &self.place {
            Place::Embedded(_) => self.folder.display().to_string(),
            Place::Real(_) => super::real::MOUNT.to_owned(),
        }
    }

    /// The program under test.
    ///
    /// # Errors
    /// It could not be built.
    pub fn dormouse(&self) -> Result<PathBuf> {
        binaries::binary("dormouse")
    }

    /// Runs `dormouse` with `arguments` against this cluster: exit code, standard output, standard error.
    ///
    /// # Errors
    /// It could not be run, or takes more than [`SOON`].
    pub async fn run(&self, arguments: &[&str]) -> Result<(i32, String, String)> {
        let mut command = Command::new(self.dormouse()?);
        command
            .args(arguments)
            .env("KUBECONFIG", &self.kubeconfig)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let output = tokio::time::timeout(SOON, command.output())
            .await
            .context("dormouse takes too long")??;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok((
            output.status.code().unwrap_or(-1),
            text(&output.stdout),
            text(&output.stderr),
        ))
    }

    /// `http://CLUSTER-IP:PORT`, its first port.
    ///
    /// # Errors
    /// There is no such Service, or it has no address.
    pub async fn url(&self, service: &str) -> Result<String> {
        Ok(self.urls(service).await?.remove(0))
    }

    /// All addresses at which a Service is reached: its ClusterIP, and on a real cluster the NodePort if it has one.
    ///
    /// # Errors
    /// There is no such Service, or it has no address.
    pub async fn urls(&self, service: &str) -> Result<Vec<String>> {
        self.urls_in("default", service).await
    }

    pub(super) async fn urls_in(&self, namespace: &str, service: &str) -> Result<Vec<String>> {
        let services: Api<Service> = Api::namespaced(self.client.clone(), namespace);
        let spec = services.get(service).await?.spec.context("a spec")?;
        let ip = spec.cluster_ip.context("a cluster IP")?;
        let ports = spec.ports.unwrap_or_default();
        let port = ports.first().context("a port")?;
        let mut urls = vec![format!("http://{ip}:{}", port.port)];
        if self.is_real()
            && let Some(port) = port.node_port
        {
            urls.push(format!("http://{NODE_IP}:{port}"));
        }
        Ok(urls)
    }

    /// Waits until a Service has been answered for at each of its addresses: what its slices say takes a moment to reach whoever
    /// routes by them.
    ///
    /// # Errors
    /// It has not in time.
    pub async fn wait_answers(&self, service: &str) -> Result<()> {
        for url in self.urls(service).await? {
            let answers = async || answer(&url, Duration::from_secs(1)).await.ok();
            eventually(&format!("{service} answers"), SOON, answers).await?;
        }
        Ok(())
    }

    /// `http://NAME.localhost:PORT`, through the embedded cluster's front door; a real one has none, and it is the
    /// Service's own address.
    ///
    /// # Errors
    /// As [`Cluster::url`].
    pub async fn front_url(&self, service: &str) -> Result<String> {
        match &self.place {
            Place::Embedded(embedded) => Ok(format!("http://{service}.localhost:{}", embedded.front.port())),
            Place::Real(_) => self.url(service).await,
        }
    }

    /// Waits until the Route of `service` satisfies `check`.
    ///
    /// # Errors
    /// It does not within `limit`; its status is in the error.
    pub async fn wait_route(
        &self,
        service: &str,
        what: &str,
        limit: Duration,
        check: impl Fn(&Route) -> bool,
    ) -> Result<Route> {
        let key = format!("default/{service}");
        let waiting = wait_for(self.api::<Route>(), what, limit, |routes| {
            routes.get(&key).filter(|route| check(route)).cloned()
        });
        match waiting.await {
            Ok(route) => Ok(route),
            Err(error) => {
                let status = self
                    .api::<Route>()
                    .get_opt(service)
                    .await?
                    .and_then(|route| route.status);
                Err(error.context(format!("Route {service}: {status:#?}")))
            }
        }
    }

    /// Waits until `service` is captured and in `phase`.
    ///
    /// # Errors
    /// It is not within `limit`.
    pub async fn wait_phase(&self, service: &str, phase: Phase, limit: Duration) -> Result<Route> {
        let what = format!("{service} {phase}");
        self.wait_route(service, &what, limit, |route| {
            route.status.as_ref().is_some_and(|status| {
                status.phase == Some(phase) && condition::is_true(&status.conditions, condition::CAPTURED)
            })
        })
        .await
    }

    /// Waits until `service` is captured, asleep, and its pods have ended: until then one of them may still answer.
    /// The application of the same name is its workload.
    ///
    /// # Errors
    /// It is not within `limit`.
    pub async fn wait_asleep(&self, service: &str, limit: Duration) -> Result<Route> {
        let label = |pod: &Pod| pod.labels().get("app").is_some_and(|app| app == service);
        wait_for(
            self.api::<Pod>(),
            &format!("no pods of {service}"),
            limit,
            |pods| (!pods.values().any(label)).then_some(()),
        )
        .await?;
        self.wait_phase(service, Phase::Asleep, limit).await
    }

    /// Waits until the Deployment has this many replicas, wanted and existing.
    ///
    /// # Errors
    /// It has not within `limit`.
    pub async fn wait_replicas(&self, deployment: &str, replicas: i32, limit: Duration) -> Result<()> {
        let key = format!("default/{deployment}");
        let what = format!("{deployment} at {replicas} replicas");
        wait_for(self.api::<Deployment>(), &what, limit, |deployments| {
            let deployment = deployments.get(&key)?;
            let wanted = deployment.spec.as_ref()?.replicas.unwrap_or(1);
            let existing = deployment
                .status
                .as_ref()
                .and_then(|status| status.replicas)
                .unwrap_or(0);
            (wanted == replicas && existing == replicas).then_some(())
        })
        .await
    }

    /// Sets annotations of a Service, and removes those without a value.
    ///
    /// # Errors
    /// The cluster refuses.
    pub async fn annotate(&self, service: &str, annotations: &[(&str, Option<&str>)]) -> Result<()> {
        let annotations: serde_json::Map<_, _> = annotations
            .iter()
            .map(|(key, value)| (format!("{}/{key}", names::GROUP), (*value).into()))
            .collect();
        let patch = serde_json::json!({"metadata": {"annotations": annotations}});
        self.api::<Service>()
            .patch(service, &PatchParams::default(), &Patch::Merge(patch))
            .await?;
        Ok(())
    }

    /// Scales a Deployment, as `kubectl scale` does.
    ///
    /// # Errors
    /// The cluster refuses.
    pub async fn scale(&self, namespace: &str, deployment: &str, replicas: u32) -> Result<()> {
        let api = Api::<Deployment>::namespaced(self.client.clone(), namespace);
        let patch = Patch::Merge(serde_json::json!({"spec": {"replicas": replicas}}));
        api.patch_scale(deployment, &PatchParams::default(), &patch)
            .await?;
        Ok(())
    }

    /// The most replicas that a Deployment ever wants from now on, as far as is known when it is read.
    ///
    /// # Errors
    /// The API does not answer.
    pub async fn watch_peak(&self, deployment: &str) -> Result<Arc<Mutex<i32>>> {
        let config = watcher::Config::default().fields(&format!("metadata.name={deployment}"));
        notes(self.api::<Deployment>(), config, |peak: &mut i32, deployments| {
            let wanted = |deployment: &Deployment| deployment.spec.as_ref().and_then(|spec| spec.replicas);
            for deployment in deployments.values() {
                *peak = wanted(deployment).unwrap_or(1).max(*peak);
            }
        })
        .await
    }

    /// Waits until exactly `count` ready pods of the system have names that begin with `name`.
    ///
    /// # Errors
    /// There are not in time.
    pub async fn wait_system(&self, name: &str, count: usize) -> Result<()> {
        let pods = self.system_api::<Pod>();
        wait_for(pods, &format!("{count} {name} pods"), BACK, |pods| {
            let mut ours = pods.values().filter(|pod| pod.name_any().starts_with(name));
            let (all, ready) = (
                ours.clone().count(),
                ours.by_ref().filter(|pod| ready(pod)).count(),
            );
            (all == count && ready == count).then_some(())
        })
        .await
    }

    /// Names of the running pods in `namespace` whose names begin with `prefix`, with their processes.
    ///
    /// # Errors
    /// The API does not answer.
    pub async fn pods(&self, namespace: &str, prefix: &str) -> Result<Vec<(String, u32)>> {
        let pods = Api::<Pod>::namespaced(self.client.clone(), namespace)
            .list(&Default::default())
            .await?;
        let names = pods
            .items
            .iter()
            .map(ResourceExt::name_any)
            .filter(|name| name.starts_with(prefix));
        Ok(names
            .filter_map(|name| Some((name.clone(), self.process_of(&name)?)))
            .collect())
    }

    /// The process of a pod: the first in the cluster's tree that was started with the pod's name.
    #[must_use]
    pub fn process_of(&self, pod: &str) -> Option<u32> {
        descendants(self.root()).into_iter().find(|pid| {
            alive(*pid)
                && ["POD_NAME", "HOSTNAME"]
                    .iter()
                    .any(|name| variable(*pid, name).as_deref() == Some(pod))
        })
    }

    /// The pod of the autoscaler that leads, by the Lease.
    ///
    /// # Errors
    /// None leads.
    pub async fn leader(&self) -> Result<String> {
        let lease: Lease = self.system_api().get(names::LEASE).await?;
        let holder = lease
            .spec
            .and_then(|spec| spec.holder_identity)
            .filter(|holder| !holder.is_empty());
        let holder = holder.context("nobody holds the Lease")?;
        // A pod name and, as a name may come back, something that does not.
        Ok(holder.split('_').next().unwrap_or_default().to_owned())
    }

    /// What is worth knowing when a scenario has failed.
    pub async fn describe(&self) -> String {
        let looking = async {
            let mut text = self.log(120).await;
            for route in self
                .api::<Route>()
                .list(&Default::default())
                .await?
                .items
                .iter()
                .take(10)
            {
                text.push_str(&format!("\nRoute {}: {:#?}", route.name_any(), route.status));
            }
            for event in self
                .api::<Event>()
                .list(&Default::default())
                .await?
                .items
                .iter()
                .rev()
                .take(30)
            {
                let about = event.involved_object.name.clone().unwrap_or_default();
                let reason = event.reason.clone().unwrap_or_default();
                text.push_str(&format!(
                    "\nEvent {about}: {reason}: {}",
                    event.message.clone().unwrap_or_default()
                ));
            }
            anyhow::Ok(text)
        };
        match tokio::time::timeout(Duration::from_secs(5), looking).await {
            Ok(Ok(text)) => text,
            Ok(Err(error)) => format!("{}\nthe API does not answer: {error:#}", self.log(120).await),
            Err(_) => format!("{}\nthe API hangs", self.log(120).await),
        }
    }

    /// The end of what the system printed.
    async fn log(&self, lines: usize) -> String {
        match &self.place {
            Place::Embedded(embedded) => embedded.log(lines),
            Place::Real(_) => {
                let logs = Real::log(&self.client, i64::try_from(lines).unwrap_or(i64::MAX));
                let logs = tokio::time::timeout(Duration::from_secs(3), logs).await;
                logs.unwrap_or_else(|_| "the API hangs".to_owned())
            }
        }
    }

    /// Ends an embedded cluster in order; leaves nothing of the scenario on a real one. Returns what is left all the same.
    pub(super) async fn stop(self) -> Vec<String> {
        let left: Vec<String> = match self.place {
            Place::Embedded(embedded) => {
                let left = embedded.stop().await;
                left.iter().map(|pid| format!("process {pid}")).collect()
            }
            Place::Real(_) => {
                let cleared = Real::clear(&self.client).await;
                cleared.err().iter().map(|error| format!("{error:#}")).collect()
            }
        };
        if left.is_empty() {
            let _ = std::fs::remove_dir_all(&self.folder);
        }
        left
    }

    async fn prepare(&self, system: System) -> Result<()> {
        if self.is_real() {
            Real::clear(&self.client).await?;
            Real::replace_killed(&self.client).await?;
        }
        let what = format!("the system, {system:?}");
        eventually(&what, Duration::from_secs(60), async || self.leader().await.ok()).await?;
        if system == System::Pods {
            for name in [names::ACTIVATOR_SERVICE, names::LEASE] {
                self.wait_system(name, 2).await?;
            }
        }
        Ok(())
    }
}

/// Whether a pod has condition Ready.
#[must_use]
pub fn ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions
        .into_iter()
        .flatten()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

async fn connect(kubeconfig: &std::path::Path) -> Result<Client> {
    eventually("the cluster's API", Duration::from_secs(60), async || {
        let config = Kubeconfig::read_from(kubeconfig).ok()?;
        let mut config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default())
            .await
            .ok()?;
        // A scenario that takes the API away wants to see that it is.
        config.default_retry = false;
        let client = Client::try_from(config).ok()?;
        client.apiserver_version().await.ok().map(|_| client)
    })
    .await
}
