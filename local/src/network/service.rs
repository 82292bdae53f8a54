//! Every Service port answers on its ClusterIP (Linux), and on addresses published with `--publish`.
//!
//! As kube-proxy: an endpoint is chosen at random for each connection among the ready ones of all slices of the
//! Service; when there is none, among those that still serve while they terminate; when there is none either, the
//! connection is refused. No endpoint is tried twice: an endpoint that is gone costs the client its connection.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::splice::{Limit, reset, splice};
use crate::cluster::Cluster;
use crate::controllers::service_of;
use crate::informer::Key;
use crate::queue::{self, Queue};

/// How long before an address that could not be bound is tried again.
const BIND_PAUSE: Duration = Duration::from_secs(1);

/// Connections waiting to be accepted. Bursts of a thousand clients are what Dormouse is tested with.
const BACKLOG: u32 = 4096;

/// Where a Service port's connections may go.
type Endpoints = Arc<Vec<SocketAddr>>;

/// `--publish SERVICE[.NAMESPACE]:PORT=ADDRESS`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Publish {
    pub(crate) service: Key,
    /// Name or number of the Service's port.
    pub(crate) port: String,
    pub(crate) address: SocketAddr,
}

impl FromStr for Publish {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let shape = "expected SERVICE[.NAMESPACE]:PORT=ADDRESS, as web:http=127.0.0.1:9000";
        let (from, address) = text.split_once('=').ok_or(shape)?;
        let (service, port) = from.split_once(':').ok_or(shape)?;
        let (name, namespace) = service.split_once('.').unwrap_or((service, "default"));
        if name.is_empty() || namespace.is_empty() || port.is_empty() {
            return Err(shape.to_owned());
        }
        let address = address.parse().map_err(|error| format!("{address}: {error}"))?;
        Ok(Self {
            service: Key::new(namespace, name),
            port: port.to_owned(),
            address,
        })
    }
}

/// Listeners of all Services.
pub(crate) struct Proxy {
    cluster: Arc<Cluster>,
    queue: Arc<Queue>,
    limit: Limit,
    /// Which endpoints each Service port has, by the port's name.
    ports: Mutex<HashMap<Key, BTreeMap<String, PortEntry>>>,
    publish: Vec<Publish>,
    tasks: Mutex<JoinSet<()>>,
    shutdown: CancellationToken,
}

/// One Service port.
struct PortEntry {
    number: i32,
    endpoints: watch::Sender<Endpoints>,
    /// Ends the listeners; with the addresses they listen on.
    listeners: Vec<(SocketAddr, CancellationToken)>,
}

impl Drop for PortEntry {
    fn drop(&mut self) {
        for (_, token) in &self.listeners {
            token.cancel();
        }
    }
}

impl Proxy {
    /// Adds listeners of changes. `delay` is how much later than the API's the picture is, as kube-proxy's may be.
    pub(crate) fn prepare(
        cluster: &Arc<Cluster>,
        limit: Limit,
        publish: Vec<Publish>,
        delay: Duration,
        shutdown: CancellationToken,
    ) -> Arc<Self> {
        let queue = Queue::new();
        let add = move |queue: &Queue, key: Key| {
            if delay.is_zero() {
                queue.add(key)
            } else {
                queue.add_after(key, delay)
            }
        };
        let for_services = Arc::clone(&queue);
        cluster.services.listen(move |old, new| {
            if let Some(service) = new.or(old) {
                add(&for_services, Key::of(service));
            }
        });
        let for_slices = Arc::clone(&queue);
        cluster.slices.listen(move |old, new| {
            for slice in [old, new].into_iter().flatten() {
                if let Some(service) = service_of(slice) {
                    add(
                        &for_slices,
                        Key::new(slice.metadata.namespace.clone().unwrap_or_default(), service),
                    );
                }
            }
        });
        Arc::new(Self {
            cluster: Arc::clone(cluster),
            queue,
            limit,
            ports: Mutex::default(),
            publish,
            tasks: Mutex::default(),
            shutdown,
        })
    }

    /// Follows changes until the shutdown.
    pub(crate) async fn run(self: Arc<Self>) {
        let proxy = Arc::clone(&self);
        let (queue, shutdown) = (Arc::clone(&self.queue), self.shutdown.clone());
        queue::work("proxy", queue, 1, shutdown, move |key| {
            proxy.look(&key);
            std::future::ready(Ok(None))
        })
        .await;
        self.tasks.lock().abort_all();
    }

    fn look(self: &Arc<Self>, key: &Key) {
        let service = self.cluster.services.get(key);
        let Some(service) = service else {
            self.ports.lock().remove(key);
            return;
        };
        let slices: Vec<Arc<EndpointSlice>> = self
            .cluster
            .slices
            .in_namespace(&key.namespace)
            .into_iter()
            .filter(|slice| service_of(slice) == Some(&key.name))
            .collect();
        let mut ports = self.ports.lock();
        let entries = ports.entry(key.clone()).or_default();
        let wanted = tcp_ports(&service);
        entries.retain(|name, entry| wanted.get(name) == Some(&entry.number));
        for (name, number) in wanted {
            let endpoints = Arc::new(endpoints(&slices, &name));
            let addresses = self.addresses(key, &service, &name, number);
            let entry = entries.entry(name).or_insert_with(|| PortEntry {
                number,
                endpoints: watch::Sender::new(Arc::new(Vec::new())),
                listeners: Vec::new(),
            });
            entry.endpoints.send_if_modified(|old| {
                let changed = *old != endpoints;
                if changed {
                    *old = endpoints;
                }
                changed
            });
            self.listen(entry, &addresses);
        }
    }

    /// Where a Service port is reached.
    fn addresses(&self, key: &Key, service: &Service, name: &str, number: i32) -> Vec<SocketAddr> {
        let mut addresses = Vec::new();
        let ip = service
            .spec
            .as_ref()
            .and_then(|spec| spec.cluster_ip.as_deref())
            .and_then(|it| it.parse::<IpAddr>().ok());
        if let (Some(ip), Ok(port), true) = (ip, u16::try_from(number), cfg!(target_os = "linux")) {
            addresses.push((ip, port).into());
        }
        let published = self.publish.iter().filter(|it| it.service == *key);
        addresses.extend(
            published
                .filter(|it| it.port == name || it.port == number.to_string())
                .map(|it| it.address),
        );
        addresses
    }

    fn listen(&self, entry: &mut PortEntry, addresses: &[SocketAddr]) {
        entry.listeners.retain(|(address, token)| {
            let stays = addresses.contains(address);
            if !stays {
                token.cancel();
            }
            stays
        });
        for address in addresses {
            if entry.listeners.iter().any(|(it, _)| it == address) {
                continue;
            }
            let token = self.shutdown.child_token();
            entry.listeners.push((*address, token.clone()));
            let listener = Listener {
                address: *address,
                endpoints: entry.endpoints.subscribe(),
                limit: self.limit.clone(),
            };
            let mut tasks = self.tasks.lock();
            // Ended tasks are taken out as new ones come, so the set holds little more than what runs.
            while tasks.try_join_next().is_some() {}
            tasks.spawn(async move {
                tokio::select! {
                    () = token.cancelled() => {}
                    () = listener.run() => {}
                }
            });
        }
    }

    /// Where a connection to a Service port may go now. `None`: there is no such Service or port.
    pub(crate) fn endpoints(&self, key: &Key, port: &str) -> Option<Endpoints> {
        let ports = self.ports.lock();
        let entries = ports.get(key)?;
        let entry = entries
            .get(port)
            .or_else(|| entries.values().find(|it| it.number.to_string() == port))?;
        Some(Arc::clone(&entry.endpoints.borrow()))
    }
}

/// A Service's TCP ports by name.
pub(super) fn tcp_ports(service: &Service) -> BTreeMap<String, i32> {
    let Some(spec) = &service.spec else {
        return BTreeMap::new();
    };
    if spec.type_.as_deref() == Some("ExternalName") {
        return BTreeMap::new();
    }
    let ports = spec
        .ports
        .iter()
        .flatten()
        .filter(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP");
    ports
        .map(|port| (port.name.clone().unwrap_or_default(), port.port))
        .collect()
}

/// The endpoints of the port of that name, in every slice under the slice's own number.
fn endpoints(slices: &[Arc<EndpointSlice>], port: &str) -> Vec<SocketAddr> {
    let mut ready = Vec::new();
    let mut ending = Vec::new();
    for slice in slices {
        let found = slice.ports.iter().flatten().find(|it| {
            it.name.as_deref().unwrap_or_default() == port && it.protocol.as_deref().unwrap_or("TCP") == "TCP"
        });
        let Some(number) = found.and_then(|it| it.port).and_then(|it| u16::try_from(it).ok()) else {
            continue;
        };
        for endpoint in &slice.endpoints {
            let conditions = endpoint.conditions.clone().unwrap_or_default();
            // Unknown means ready; unknown serving means as ready.
            let is_ready = conditions.ready.unwrap_or(true);
            let ends = conditions.terminating.unwrap_or(false);
            let serves = conditions.serving.unwrap_or(is_ready);
            // As kube-proxy: only the first address counts.
            let Some(ip) = endpoint
                .addresses
                .first()
                .and_then(|it| it.parse::<IpAddr>().ok())
            else {
                continue;
            };
            if is_ready {
                ready.push(SocketAddr::new(ip, number));
            } else if serves && ends {
                ending.push(SocketAddr::new(ip, number));
            }
        }
    }
    let mut chosen = if ready.is_empty() { ending } else { ready };
    chosen.sort_unstable();
    chosen.dedup();
    chosen
}

/// One address of a Service port.
struct Listener {
    address: SocketAddr,
    endpoints: watch::Receiver<Endpoints>,
    limit: Limit,
}

impl Listener {
    /// Listens while there are endpoints; without any, connections are refused.
    async fn run(mut self) {
        let mut complained = false;
        loop {
            let Ok(last) = self
                .endpoints
                .wait_for(|it| !it.is_empty())
                .await
                .map(|it| Arc::clone(&it))
            else {
                return;
            };
            let listener = match bind(self.address) {
                Ok(listener) => listener,
                Err(error) => {
                    if !complained {
                        tracing::warn!(address = %self.address, %error, "Service address not available; trying on");
                        complained = true;
                    }
                    tokio::time::sleep(BIND_PAUSE).await;
                    continue;
                }
            };
            complained = false;
            self.serve(&listener, last).await;
        }
    }

    /// Serves until there are no endpoints.
    async fn serve(&mut self, listener: &TcpListener, mut last: Endpoints) {
        loop {
            let accepted = tokio::select! {
                // Changes first: a connection must not be sent where the last look already said that nobody is.
                biased;
                changed = self.endpoints.changed() => {
                    let now = Arc::clone(&self.endpoints.borrow());
                    if changed.is_err() || now.is_empty() {
                        // Whoever is already connected was let in while there were endpoints; kube-proxy would have
                        // sent them there.
                        self.let_in_waiting(listener, &last).await;
                        return;
                    }
                    last = now;
                    continue;
                }
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((client, _)) => {
                    // The permit only now: a port that nobody connects to must not keep one.
                    let (Some(endpoint), Some(permit)) = (pick(&last), self.limit.one().await) else {
                        continue;
                    };
                    tokio::spawn(async move {
                        splice(client, &[], endpoint).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::debug!(address = %self.address, %error, "not accepted");
                    // Most likely out of descriptors: a pause lets some come back.
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
        }
    }

    async fn let_in_waiting(&self, listener: &TcpListener, last: &Endpoints) {
        use futures::FutureExt;
        while let Some(Ok((client, _))) = listener.accept().now_or_never() {
            let (Some(endpoint), Some(permit)) = (pick(last), self.limit.one().await) else {
                reset(&client);
                continue;
            };
            tokio::spawn(async move {
                splice(client, &[], endpoint).await;
                drop(permit);
            });
        }
    }
}

/// One of the endpoints, all equally likely.
pub(super) fn pick(endpoints: &[SocketAddr]) -> Option<SocketAddr> {
    fastrand::choice(endpoints).copied()
}

fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    // A Service that comes back must not wait for the connections of its first life to be forgotten.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(yaml: &str) -> Arc<EndpointSlice> {
        let yaml = format!("addressType: IPv4\n{yaml}");
        Arc::new(serde_saphyr::from_str(&yaml).expect("a slice"))
    }

    #[test]
    fn connections_go_to_ready_endpoints_of_all_slices_under_their_own_numbers() {
        let slices = [
            slice("ports: [{ name: http, port: 61001 }]\nendpoints: [{ addresses: [127.64.0.1] }]"),
            slice(
                "ports: [{ name: http, port: 61002 }, { name: x, port: 1 }]\nendpoints: [{ addresses: [127.64.0.2], conditions: { ready: true } }, { addresses: [127.64.0.3], conditions: { ready: false } }]",
            ),
        ];
        let found = endpoints(&slices, "http");
        assert_eq!(
            found,
            [
                "127.64.0.1:61001".parse().expect("a"),
                "127.64.0.2:61002".parse().expect("b")
            ]
        );
    }

    #[test]
    fn when_all_are_ending_those_that_still_serve_are_used() {
        let slices = [slice(
            "ports: [{ name: '', port: 1 }]\nendpoints: [{ addresses: [127.64.0.1], conditions: { ready: false, serving: true, terminating: true } }, { addresses: [127.64.0.2], conditions: { ready: false, serving: false, terminating: true } }]",
        )];
        assert_eq!(
            endpoints(&slices, ""),
            ["127.64.0.1:1".parse().expect("an address")]
        );
        assert!(endpoints(&slices, "other").is_empty());
    }

    #[test]
    fn publish_is_read_or_explained() {
        let read: Publish = "db.shop:5432=127.0.0.1:15432".parse().expect("good");
        assert_eq!(
            (read.service, read.port.as_str()),
            (Key::new("shop", "db"), "5432")
        );
        for bad in ["", "db", "db:1", "db=1", ":1=127.0.0.1:1", "db:1=nowhere"] {
            assert!(bad.parse::<Publish>().is_err(), "{bad}");
        }
    }
}
