//! Listeners and threads: a listener for each Route port, opened and closed live, and worker threads that carry what
//! they accept.
//!
//! Each worker is a single-threaded runtime of its own, so a connection and everything it uses stay on one core. An
//! accepted connection goes to the worker with the fewest. `SO_REUSEPORT` was rejected: it deals connections by hash, and
//! Service traffic is few, long connections, which hashes spread unevenly.

mod carry;

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crds::report::RouteAck;
use crds::route::{Protocol, RoutePort};
use parking_lot::{Mutex, RwLock};
use tokio::net::TcpListener;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use crate::hub::Hub;
use crate::route::{RouteKey, Target};

/// Connections that the kernel keeps until they are accepted: a burst of a thousand clients is not refused.
const BACKLOG: i32 = 4096;
/// Accepted connections that wait for one worker to take them.
const HANDED_OVER: usize = 1024;
/// How long to wait after an error of `accept`, which is nearly always too many open files.
const PAUSE: Duration = Duration::from_millis(50);

/// One listening port.
#[derive(Debug)]
pub(crate) struct Listening {
    pub(crate) port: u16,
    /// What is served on it; `None`: nothing any more.
    served: RwLock<Option<(Arc<Target>, RoutePort)>>,
    /// It closes soon: clients are told with each answer to connect anew, which by then leads them elsewhere. Closing an
    /// idle connection without a word would meet requests that are on their way.
    is_leaving: AtomicBool,
    left: Notify,
    /// Cancelled when it closes: connections finish what they do.
    closing: CancellationToken,
}

impl Listening {
    fn leave(&self) {
        self.is_leaving.store(true, Ordering::Release);
        self.left.notify_waiters();
    }

    fn is_leaving(&self) -> bool {
        self.is_leaving.load(Ordering::Acquire)
    }

    /// Waits until it leaves or closes.
    async fn leaves(&self) {
        // Made before the look: who is notified in between is not missed.
        let left = self.left.notified();
        if self.is_leaving() {
            return;
        }
        tokio::select! {
            () = left => {}
            () = self.closing.cancelled() => {}
        }
    }

    /// Waits until it closes.
    pub(crate) async fn closes(&self) {
        self.closing.cancelled().await;
    }

    /// Whose port it is, and whether the pods speak HTTP/2 on it.
    pub(crate) fn target(&self) -> Option<(Arc<Target>, bool)> {
        self.served
            .read()
            .as_ref()
            .map(|(target, port)| (Arc::clone(target), port.h2c))
    }

    fn protocol(&self) -> Protocol {
        self.served
            .read()
            .as_ref()
            .map_or(Protocol::Http, |(_, port)| port.protocol)
    }
}

/// All listeners and workers.
#[derive(Debug)]
pub(crate) struct Server {
    hub: Arc<Hub>,
    workers: Arc<[Worker]>,
    open: Mutex<HashMap<u16, Arc<Listening>>>,
    /// Routes whose ports could not all be opened.
    failed: Mutex<BTreeMap<RouteKey, Arc<Target>>>,
    room: Arc<Semaphore>,
    is_leaving: AtomicBool,
    /// Cancelled when no new connection is accepted any more.
    closing: CancellationToken,
    /// Cancelled when the workers must end.
    stop: CancellationToken,
}

/// A worker thread, seen from outside.
#[derive(Debug)]
struct Worker {
    queue: mpsc::Sender<Accepted>,
    /// Its connections.
    load: Arc<AtomicUsize>,
    runtime: tokio::runtime::Handle,
}

/// A connection on its way to a worker.
struct Accepted {
    stream: std::net::TcpStream,
    from: IpAddr,
    listening: Arc<Listening>,
    room: Room,
}

/// A connection's place, among all and among its worker's.
struct Room {
    load: Arc<AtomicUsize>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Room {
    fn drop(&mut self) {
        self.load.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Server {
    /// Starts the workers.
    ///
    /// # Errors
    /// When the system gives no more threads.
    pub(crate) fn start(hub: &Arc<Hub>) -> std::io::Result<Arc<Self>> {
        let stop = CancellationToken::new();
        let workers = (0..hub.config.workers)
            .map(|number| start_worker(number, Arc::clone(hub), stop.clone()))
            .collect::<std::io::Result<_>>()?;
        Ok(Arc::new(Self {
            hub: Arc::clone(hub),
            workers,
            open: Mutex::default(),
            failed: Mutex::default(),
            room: Arc::new(Semaphore::new(hub.config.max_connections)),
            is_leaving: AtomicBool::new(false),
            closing: CancellationToken::new(),
            stop,
        }))
    }

    /// Opens what the new Route needs and closes what only the old one needed. Returns the acknowledgement.
    pub(crate) fn serve(self: &Arc<Self>, old: Option<&Arc<Target>>, new: Arc<Target>) -> RouteAck {
        for port in old.iter().flat_map(|old| &old.ports) {
            if new.ports.iter().all(|new| new.listen != port.listen) {
                self.close(port.listen, &new.key);
            }
        }
        let errors: Vec<String> = new
            .ports
            .iter()
            .filter_map(|port| self.open(&new, port).err())
            .collect();
        let ack = ack(&new, errors.join("; "));
        let mut failed = self.failed.lock();
        if errors.is_empty() {
            failed.remove(&new.key);
        } else {
            tracing::warn!(route = new.title, error = ack.error, "cannot listen");
            failed.insert(new.key.clone(), new);
        }
        ack
    }

    /// Closes all ports of a Route.
    pub(crate) fn forget(&self, old: &Arc<Target>) {
        for port in &old.ports {
            self.close(port.listen, &old.key);
        }
        self.failed.lock().remove(&old.key);
    }

    /// Routes that should be tried again.
    pub(crate) fn failed(&self) -> Vec<Arc<Target>> {
        self.failed.lock().values().cloned().collect()
    }

    /// An open port.
    pub(crate) fn listening(&self, port: u16) -> Option<Arc<Listening>> {
        self.open.lock().get(&port).cloned()
    }

    /// Open ports.
    pub(crate) fn ports(&self) -> usize {
        self.open.lock().len()
    }

    /// Client connections.
    pub(crate) fn connections(&self) -> usize {
        self.workers
            .iter()
            .map(|worker| worker.load.load(Ordering::Relaxed))
            .sum()
    }

    /// Tells the clients of a Route to connect anew. Everything is served on until its ports close.
    pub(crate) fn leave(&self, target: &Target) {
        let open = self.open.lock();
        let ports = target.ports.iter().filter_map(|port| open.get(&port.listen));
        ports.for_each(|listening| listening.leave());
    }

    /// Tells all clients to connect anew.
    pub(crate) fn leave_all(&self) {
        self.is_leaving.store(true, Ordering::Release);
        self.open.lock().values().for_each(|listening| listening.leave());
    }

    /// Accepts no more connections, and lets those there are finish what they do.
    pub(crate) fn close_all(&self) {
        self.closing.cancel();
    }

    /// Ends the workers, and with them whatever still runs on them.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }

    fn open(self: &Arc<Self>, target: &Arc<Target>, port: &RoutePort) -> Result<(), String> {
        let mut open = self.open.lock();
        if let Some(listening) = open.get(&port.listen) {
            let mut served = listening.served.write();
            if let Some((other, _)) = served.as_ref().filter(|(other, _)| other.key != target.key) {
                return Err(format!("port {} belongs to {}", port.listen, other.title));
            }
            *served = Some((Arc::clone(target), port.clone()));
            // A Route that was deleted is back.
            let is_leaving = self.is_leaving.load(Ordering::Acquire);
            listening.is_leaving.store(is_leaving, Ordering::Release);
            return Ok(());
        }
        let address = SocketAddr::new(self.hub.config.bind, port.listen);
        let listener = listen(address).map_err(|error| format!("cannot listen on {address}: {error}"))?;
        let listening = Arc::new(Listening {
            port: port.listen,
            served: RwLock::new(Some((Arc::clone(target), port.clone()))),
            is_leaving: AtomicBool::new(self.is_leaving.load(Ordering::Acquire)),
            left: Notify::new(),
            closing: self.closing.child_token(),
        });
        open.insert(port.listen, Arc::clone(&listening));
        self.hub
            .control
            .spawn(accept(Arc::clone(self), listener, listening));
        Ok(())
    }

    fn close(&self, port: u16, key: &RouteKey) {
        let mut open = self.open.lock();
        let is_theirs = |listening: &Arc<Listening>| {
            listening
                .served
                .read()
                .as_ref()
                .is_some_and(|(target, _)| target.key == *key)
        };
        if open.get(&port).is_some_and(is_theirs)
            && let Some(listening) = open.remove(&port)
        {
            *listening.served.write() = None;
            listening.closing.cancel();
        }
    }

    /// Async tasks that have not ended: those of the workers and of the runtime that asks.
    pub(crate) fn tasks(&self) -> usize {
        let asking = tokio::runtime::Handle::current();
        let workers = self.workers.iter().map(|worker| &worker.runtime);
        let all = workers.chain([&asking]);
        all.map(|runtime| runtime.metrics().num_alive_tasks()).sum()
    }

    /// The worker with the fewest connections.
    fn least_busy(&self) -> &Worker {
        let least = self
            .workers
            .iter()
            .min_by_key(|worker| worker.load.load(Ordering::Relaxed));
        least.unwrap_or(&self.workers[0])
    }
}

fn ack(target: &Target, error: String) -> RouteAck {
    RouteAck {
        namespace: target.key.namespace.clone(),
        name: target.key.name.clone(),
        uid: target.uid.clone(),
        generation: target.generation,
        error,
        gone: false,
    }
}

/// A listening socket. Also used for the report and admin ports.
///
/// # Errors
/// As the system says: the port is taken, or the address is not ours.
pub(crate) fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let domain = if address.is_ipv4() {
        socket2::Domain::IPV4
    } else {
        socket2::Domain::IPV6
    };
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, Some(socket2::Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // `::` takes both families, whatever the host's default: clients of a dual-stack Service come by either.
        socket.set_only_v6(false)?;
    }
    // Accepted sockets inherit both: small answers go at once, and peers that vanished are noticed.
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&socket2::TcpKeepalive::new().with_time(Duration::from_secs(60)))?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Accepts until the port closes.
async fn accept(server: Arc<Server>, listener: TcpListener, listening: Arc<Listening>) {
    let accepting = async {
        loop {
            match listener
                .accept()
                .await
                .and_then(|(stream, from)| Ok((stream.into_std()?, from)))
            {
                Ok((stream, from)) => {
                    // The room only now: a port that nobody connects to must not keep one. So one connection a port may
                    // wait here; the others wait in the backlog.
                    let Ok(permit) = Arc::clone(&server.room).acquire_owned().await else {
                        return;
                    };
                    let worker = server.least_busy();
                    worker.load.fetch_add(1, Ordering::Relaxed);
                    let room = Room {
                        load: Arc::clone(&worker.load),
                        _permit: permit,
                    };
                    let listening = Arc::clone(&listening);
                    let accepted = Accepted {
                        stream,
                        from: from.ip().to_canonical(),
                        listening,
                        room,
                    };
                    server.hub.metrics.connections.inc();
                    if worker.queue.send(accepted).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    server.hub.metrics.accept_errors.inc();
                    tracing::debug!(%error, port = listening.port, "accept failed");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    };
    tokio::select! {
        () = accepting => {}
        () = listening.closing.cancelled() => {}
    }
}

fn start_worker(number: usize, hub: Arc<Hub>, stop: CancellationToken) -> std::io::Result<Worker> {
    let (queue, mut accepted) = mpsc::channel::<Accepted>(HANDED_OVER);
    let load = Arc::new(AtomicUsize::new(0));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let handle = runtime.handle().clone();
    std::thread::Builder::new()
        .name(format!("worker-{number}"))
        .spawn(move || {
            runtime.block_on(async {
                loop {
                    tokio::select! {
                        next = accepted.recv() => match next {
                            Some(accepted) => {
                                tokio::spawn(carry::carry(Arc::clone(&hub), number, accepted));
                            }
                            None => return,
                        },
                        () = stop.cancelled() => return,
                    }
                }
            });
            // Whatever still runs is dropped here, and its guards give everything back.
            runtime.shutdown_background();
        })?;
    Ok(Worker {
        queue,
        load,
        runtime: handle,
    })
}
