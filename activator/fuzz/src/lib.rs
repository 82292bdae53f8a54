//! What the targets share: a whole activator in this process before a pod that answers everything, and clients that send
//! it bytes. A panic on any of its threads ends the run: libFuzzer's hook makes it an abort.

use std::convert::Infallible;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use activator::fuzzing::Activator;
use activator::{Args, ReportAuth};
use bytes::Bytes;
use crds::Route;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use kube::api::ObjectMeta;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

/// Longest from a client's end to the end of its connection: a request to this pod takes well under a millisecond.
const PATIENCE: Duration = Duration::from_secs(10);

/// The activator, its pod, and what runs them.
pub struct Front {
    pub runtime: Runtime,
    pub activator: Mutex<Activator>,
    /// Where its one Route listens.
    pub listen: SocketAddr,
    pub report: SocketAddr,
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("an ephemeral port");
    listener.local_addr().expect("bound").port()
}

impl Front {
    /// The one of this process.
    pub fn get() -> &'static Self {
        static FRONT: OnceLock<Front> = OnceLock::new();
        FRONT.get_or_init(|| {
            let front = Self::start();
            front.check();
            front
        })
    }

    /// An activator without any Route.
    pub fn empty() -> Self {
        std::thread::spawn(watch_for_deadlocks);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let report = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let args = Args {
            bind: IpAddr::from(Ipv4Addr::LOCALHOST),
            report_port: report.port(),
            admin_port: 0,
            workers: Some(1),
            name: Some("one".into()),
            report_auth: ReportAuth::Off,
            ..Args::default()
        };
        let entered = runtime.enter();
        // A Rust program ignores SIGPIPE from before its `main` on, which a target does not have: a handler, which stays, makes
        // a write to somebody who has gone an error here too.
        drop(signal(SignalKind::pipe()).expect("a handler"));
        let activator = Activator::start(args).expect("starts");
        drop(entered);
        Self {
            runtime,
            activator: Mutex::new(activator),
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, free_port())),
            report,
        }
    }

    fn start() -> Self {
        let front = Self::empty();
        let pod = front.runtime.block_on(pod());
        let listen = front.listen.port();
        let entered = front.runtime.enter();
        {
            let mut activator = front.activator.lock().expect("not poisoned");
            activator.apply_route(&route("web", listen));
            activator.apply_slice(&slice("web", "web-x", listen, pod));
        }
        drop(entered);
        front
    }

    /// Sends the pieces one after the other, says that this was all, and reads to the end.
    ///
    /// # Panics
    /// When the connection does not end: a client that has finished must be let go.
    pub fn talk(&self, pieces: &[&[u8]]) -> Vec<u8> {
        let mut stream = TcpStream::connect(self.listen).expect("connects");
        stream.set_nodelay(true).expect("a socket");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        stream.set_write_timeout(Some(PATIENCE)).expect("a socket");
        for (number, piece) in pieces.iter().enumerate() {
            if number > 0 {
                std::thread::yield_now();
            }
            // Whoever is refused in the middle of what it sends is cut off: then the answer is what counts.
            if stream.write_all(piece).is_err() {
                break;
            }
        }
        drop(stream.shutdown(Shutdown::Write));
        let mut answer = Vec::new();
        if let Err(error) = stream.read_to_end(&mut answer) {
            let is_cut_off = error.kind() == std::io::ErrorKind::ConnectionReset;
            assert!(
                is_cut_off,
                "not over {PATIENCE:?} after the client's end: {error}"
            );
        }
        answer
    }

    /// Another client is still served.
    ///
    /// # Panics
    /// When it is not.
    pub fn check(&self) {
        let answer = self.talk(&[b"GET / HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n"]);
        let mut rest = answer.as_slice();
        // A client that has finished sending is asked in this way whether it is still there.
        while let Some(after) = rest.strip_prefix(b"HTTP/1.1 100 Continue\r\n\r\n") {
            rest = after;
        }
        assert!(
            rest.starts_with(b"HTTP/1.1 200 "),
            "{:?}",
            String::from_utf8_lossy(&answer)
        );
    }
}

/// Ends the run when threads wait for each other, and says where each of them does.
fn watch_for_deadlocks() {
    loop {
        std::thread::sleep(Duration::from_secs(1));
        let found = parking_lot::deadlock::check_deadlock();
        for thread in found.iter().flatten() {
            eprintln!("a thread of a deadlock: {:?}", thread.backtrace());
        }
        assert!(found.is_empty(), "a deadlock");
    }
}

/// A pod that reads whatever it is sent and says `ok`.
async fn pod() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::new(127, 0, 0, 2), 0))
        .await
        .expect("an ephemeral port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                continue;
            };
            tokio::spawn(async move {
                let service = hyper::service::service_fn(|request: Request<Incoming>| async {
                    drop(request.into_body().collect().await);
                    Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"ok\n"))))
                });
                let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                drop(server.serve_connection(TokioIo::new(stream), service).await);
            });
        }
    });
    address
}

/// A Route with one port and one pool of its own name.
pub fn route(name: &str, listen: u16) -> Route {
    let mut route = Route::new(name, Default::default());
    route.metadata.namespace = Some("shop".into());
    route.metadata.uid = Some(format!("uid-{name}"));
    route.metadata.generation = Some(1);
    let spec = &mut route.spec;
    spec.queue_limit = 100;
    spec.cold_start_timeout_ms = 5_000;
    spec.ports = vec![crds::route::RoutePort {
        port: 80,
        listen,
        ..Default::default()
    }];
    spec.pools = vec![crds::route::RoutePool {
        name: name.into(),
        workload: crds::route::Workload {
            name: name.into(),
            ..Default::default()
        },
        weight: crds::route::FULL_WEIGHT,
        ..Default::default()
    }];
    route
}

/// A slice with one pod that answers.
pub fn slice(pool: &str, name: &str, listen: u16, pod: SocketAddr) -> EndpointSlice {
    EndpointSlice {
        metadata: ObjectMeta {
            name: Some(name.into()),
            namespace: Some("shop".into()),
            labels: Some([(crds::names::POOL_LABEL.to_owned(), pool.to_owned())].into()),
            ..ObjectMeta::default()
        },
        address_type: "IPv4".into(),
        endpoints: vec![Endpoint {
            addresses: vec![pod.ip().to_string()],
            conditions: Some(EndpointConditions {
                ready: Some(true),
                serving: Some(true),
                terminating: Some(false),
            }),
            ..Endpoint::default()
        }],
        ports: Some(vec![EndpointPort {
            name: Some(crds::names::pool_port_name(listen)),
            port: Some(i32::from(pod.port())),
            ..EndpointPort::default()
        }]),
    }
}

/// Cuts bytes into up to eight pieces, at places that the bytes decide: the same input is always cut the same way.
pub fn pieces(bytes: &[u8]) -> Vec<&[u8]> {
    // FNV-1a, enough to spread the places.
    let mut hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    });
    let mut places: Vec<usize> = (0..hash % 8)
        .map(|_| {
            hash = hash.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (hash >> 33) as usize % (bytes.len() + 1)
        })
        .collect();
    places.sort_unstable();
    let mut pieces = Vec::new();
    let mut from = 0;
    for place in places.into_iter().chain([bytes.len()]) {
        if place > from {
            pieces.push(&bytes[from..place]);
            from = place;
        }
    }
    pieces
}
