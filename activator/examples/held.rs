//! What an activator costs: memory for each idle Route and each held request with its connection, and CPU when idle.
//!
//! `cargo run --release -p dormouse-activator --example held -- measure ROUTES HELD` starts an activator as a process of
//! its own, with so many Routes to sleeping pools, opens so many connections with one request each, and prints what
//! `/proc` says. `-- serve ROUTES PORT [POD]` only serves: the first Route on PORT, with a pod at POD (`ADDRESS:PORT`).

use std::convert::Infallible;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dormouse_activator as activator;
use futures::StreamExt;
use http::{Request, Response};
use http_body_util::{BodyExt, Either, Full, StreamBody};
use serde_json::{Value, json};
use tikv_jemallocator::Jemalloc;
use tokio_util::sync::CancellationToken;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// As in `dormouse`.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["serve", routes, port] => serve(routes.parse()?, port.parse()?, None),
        ["serve", routes, port, pod] => serve(routes.parse()?, port.parse()?, Some(pod.parse()?)),
        ["measure", routes, held] => measure(routes.parse()?, held.parse()?),
        _ => Err("measure ROUTES HELD | serve ROUTES PORT [POD]".into()),
    }
}

// === the activator ===

fn serve(routes: u16, port: u16, pod: Option<SocketAddr>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async move {
        let args = activator::Args {
            bind: IpAddr::from([127, 0, 0, 1]),
            report_port: 0,
            admin_port: 0,
            workers: Some(2),
            max_connections: 200_000,
            name: Some("one".into()),
            report_auth: activator::ReportAuth::Off,
            ..activator::Args::default()
        };
        let (shutdown, abort) = (CancellationToken::new(), CancellationToken::new());
        let ended = shutdown.clone();
        std::thread::spawn(move || {
            println!("ready");
            // Ends with who started it.
            drop(std::io::stdin().read_line(&mut String::new()));
            ended.cancel();
        });
        let set_log: activator::SetLog = Arc::new(|_| Ok(String::new()));
        activator::run(args, cluster(routes, port, pod), set_log, shutdown, abort).await?;
        Ok(())
    })
}

/// An API server that lists Routes and slices, and in which nothing ever changes.
fn cluster(routes: u16, port: u16, pod: Option<SocketAddr>) -> kube::Client {
    let service = tower::service_fn(move |request: Request<kube::client::Body>| async move {
        let uri = request.uri().to_string();
        let items: Vec<Value> = if uri.contains("/routes") {
            (0..routes).map(|number| route(number, port + number)).collect()
        } else {
            pod.iter().map(|pod| slice(port, *pod)).collect()
        };
        let kind = if uri.contains("/routes") {
            ("dormouse.dev/v1alpha1", "RouteList")
        } else {
            ("discovery.k8s.io/v1", "EndpointSliceList")
        };
        let body = if uri.contains("watch=true") {
            Either::Right(StreamBody::new(
                futures::stream::pending::<Result<_, Infallible>>().boxed(),
            ))
        } else {
            let list = json!({
                "apiVersion": kind.0, "kind": kind.1,
                "metadata": { "resourceVersion": "1" }, "items": items,
            });
            Either::Left(Full::<Bytes>::from(list.to_string()).map_err(|never| match never {}))
        };
        Ok::<_, Infallible>(Response::new(body))
    });
    kube::Client::new(service, "default")
}

fn route(number: u16, listen: u16) -> Value {
    json!({
        "apiVersion": "dormouse.dev/v1alpha1", "kind": "Route",
        "metadata": {
            "name": format!("service-{number}"), "namespace": "default", "uid": format!("uid-{number}"),
            "generation": 1, "resourceVersion": "1",
        },
        "spec": {
            "ports": [{ "port": 80, "listen": listen }],
            "pools": [{
                "name": format!("service-{number}"), "weight": 10_000,
                "workload": { "kind": "Deployment", "name": format!("service-{number}") },
                "probe": { "kind": "Tcp" },
            }],
            "queueLimit": 1_000_000, "coldStartTimeoutMs": 600_000,
        },
    })
}

fn slice(listen: u16, pod: SocketAddr) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "name": "service-0-x", "namespace": "default", "resourceVersion": "1",
            "labels": { crds::names::POOL_LABEL: "service-0" },
        },
        "endpoints": [{ "addresses": [pod.ip()], "conditions": { "ready": true, "serving": true } }],
        "ports": [{ "name": crds::names::pool_port_name(listen), "port": pod.port() }],
    })
}

// === who measures ===

#[allow(
    clippy::disallowed_methods,
    reason = "who measures has no runtime that a sleep could block"
)]
fn measure(routes: u16, held: usize) -> Result<(), Failure> {
    const PORT: u16 = 21_000;
    let mut server = Command::new(std::env::current_exe()?)
        .args(["serve", &routes.to_string(), &PORT.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    BufReader::new(server.stdout.take().ok_or("no output")?).read_line(&mut line)?;
    // The last Route is opened last.
    let last = SocketAddr::from(([127, 0, 0, 1], PORT + routes - 1));
    while TcpStream::connect(last).is_err() {
        std::thread::sleep(Duration::from_millis(50));
    }
    std::thread::sleep(Duration::from_secs(1));
    let (idle, cpu) = (rss(server.id())?, ticks(server.id())?);
    std::thread::sleep(Duration::from_secs(5));
    let cpu = (ticks(server.id())? - cpu) * 10 / 5;
    println!("{routes} Routes: {idle} KiB resident, {cpu} ms CPU per second when idle");
    let mut clients = Vec::with_capacity(held);
    for number in 0..held {
        // From several addresses: one has too few ports for many connections.
        let source = IpAddr::from([127, 0, 1, u8::try_from(1 + number / 20_000)?]);
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        socket.bind(&SocketAddr::new(source, 0).into())?;
        socket.connect(&SocketAddr::from(([127, 0, 0, 1], PORT)).into())?;
        let mut client = TcpStream::from(socket);
        client.write_all(
            b"GET /some/path?query=1 HTTP/1.1\r\nhost: service.default\r\nuser-agent: measure/1\r\n\
              accept: application/json\r\naccept-encoding: gzip, deflate, br\r\n\r\n",
        )?;
        clients.push(client);
    }
    std::thread::sleep(Duration::from_secs(3));
    let full = rss(server.id())?;
    let each = (full - idle) * 1024 / held.max(1) as u64;
    println!("{held} held requests: {full} KiB resident, {each} bytes each with its connection");
    drop(clients);
    server.kill()?;
    server.wait()?;
    Ok(())
}

/// Resident memory in KiB.
fn rss(process: u32) -> Result<u64, Failure> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    Ok(line
        .and_then(|line| line.split_whitespace().next())
        .ok_or("no VmRSS")?
        .parse()?)
}

/// CPU time in hundredths of a second.
fn ticks(process: u32) -> Result<u64, Failure> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .ok_or("no stat")?
        .split_whitespace()
        .collect();
    Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
}
