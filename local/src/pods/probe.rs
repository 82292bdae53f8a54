//! Startup, readiness and liveness probes: the kubelet's rules.
//!
//! The first try comes at once after the initial delay, the next ones a period apart. A startup probe keeps the other
//! two back until it has succeeded. HTTPS and gRPC probes cannot be run here: they fail and say so.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, ExecAction, HTTPGetAction, Pod, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::process::{Launch, Spawner, exit_code};
use crate::cluster::seconds;
use crate::controllers::given_port;

/// How long what a command has written is waited for after its end.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// Which probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Startup,
    Readiness,
    Liveness,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Readiness => "Readiness",
            Self::Liveness => "Liveness",
        }
    }
}

/// What a probe found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Finding {
    /// The startup probe succeeded, or there is none.
    Started,
    /// Readiness changed.
    Ready(bool),
    /// A try failed; worth an Event.
    Failed(Kind, String),
    /// Too many tries failed: the container must be started anew.
    Unhealthy(Kind, String),
}

/// What a try needs to know.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) pod: Arc<Pod>,
    pub(super) ip: IpAddr,
    pub(super) container: Arc<Container>,
    pub(super) spawner: Spawner,
    /// As the container's own process, without program and arguments.
    pub(super) env: Vec<(String, std::ffi::OsString)>,
    pub(super) folder: Option<std::path::PathBuf>,
}

/// Runs all probes of a container until dropped.
pub(super) async fn run(target: Target, findings: mpsc::Sender<Finding>) {
    let container = Arc::clone(&target.container);
    if let Some(probe) = &container.startup_probe {
        watch(&target, probe, Kind::Startup, &findings).await;
    }
    let _ = findings.send(Finding::Started).await;
    let readiness = async {
        match &container.readiness_probe {
            Some(probe) => watch(&target, probe, Kind::Readiness, &findings).await,
            None => drop(findings.send(Finding::Ready(true)).await),
        }
    };
    let liveness = async {
        if let Some(probe) = &container.liveness_probe {
            watch(&target, probe, Kind::Liveness, &findings).await;
        }
    };
    tokio::join!(readiness, liveness);
}

/// Runs one probe: a startup probe until it succeeds, the others for ever.
async fn watch(target: &Target, probe: &Probe, kind: Kind, findings: &mpsc::Sender<Finding>) {
    let at_least = |value: Option<i32>, default: i32| value.filter(|it| *it > 0).unwrap_or(default);
    tokio::time::sleep(seconds(i64::from(probe.initial_delay_seconds.unwrap_or(0)))).await;
    let mut period = tokio::time::interval(seconds(i64::from(at_least(probe.period_seconds, 10))));
    period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut good, mut bad) = (0, 0);
    let mut ready = false;
    loop {
        period.tick().await;
        match attempt(target, probe).await {
            Ok(()) => {
                (good, bad) = (good + 1, 0);
                if good < at_least(probe.success_threshold, 1) {
                    continue;
                }
                match kind {
                    Kind::Startup => return,
                    Kind::Readiness if !ready => {
                        ready = true;
                        let _ = findings.send(Finding::Ready(true)).await;
                    }
                    Kind::Readiness | Kind::Liveness => {}
                }
            }
            Err(reason) => {
                (good, bad) = (0, bad + 1);
                let message = format!("{} probe failed: {reason}", kind.name());
                let _ = findings.send(Finding::Failed(kind, message.clone())).await;
                if bad < at_least(probe.failure_threshold, 3) {
                    continue;
                }
                if kind != Kind::Readiness {
                    let _ = findings.send(Finding::Unhealthy(kind, message)).await;
                    return std::future::pending().await;
                }
                if ready {
                    ready = false;
                    let _ = findings.send(Finding::Ready(false)).await;
                }
            }
        }
    }
}

/// One try.
async fn attempt(target: &Target, probe: &Probe) -> Result<(), String> {
    let limit = seconds(i64::from(probe.timeout_seconds.filter(|it| *it > 0).unwrap_or(1)));
    let tried = async {
        if let Some(http) = &probe.http_get {
            get(target, http).await
        } else if let Some(tcp) = &probe.tcp_socket {
            let address = address(target, tcp.host.as_deref(), &tcp.port).await?;
            TcpStream::connect(address)
                .await
                .map(drop)
                .map_err(|error| format!("dial tcp {address}: {error}"))
        } else if let Some(exec) = &probe.exec {
            execute(target, exec).await
        } else {
            Err("gRPC probes are not run by the embedded cluster".to_owned())
        }
    };
    tokio::time::timeout(limit, tried)
        .await
        .unwrap_or_else(|_| Err(format!("timed out after {limit:?}")))
}

/// The port that a probe or hook means, on this machine.
pub(super) fn port(target: &Target, port: &IntOrString) -> Result<u16, String> {
    let declared = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let named = target
                .container
                .ports
                .iter()
                .flatten()
                .find(|it| it.name.as_deref() == Some(name));
            match (named, name.parse()) {
                (Some(port), _) => port.container_port,
                (None, Ok(number)) => number,
                (None, Err(_)) => return Err(format!("the container has no port named {name}")),
            }
        }
    };
    u16::try_from(given_port(&target.pod, declared)).map_err(|_| format!("{declared} is no port"))
}

async fn address(target: &Target, host: Option<&str>, to: &IntOrString) -> Result<SocketAddr, String> {
    let port = port(target, to)?;
    let Some(host) = host.filter(|it| !it.is_empty()) else {
        return Ok((target.ip, port).into());
    };
    let mut found = tokio::net::lookup_host((host, port))
        .await
        .map_err(|error| format!("{host}: {error}"))?;
    found.next().ok_or_else(|| format!("{host} has no address"))
}

/// `GET`; 200 to 399 is a success. Also what `lifecycle` hooks use.
pub(super) async fn get(target: &Target, action: &HTTPGetAction) -> Result<(), String> {
    if action.scheme.as_deref() == Some("HTTPS") {
        return Err("HTTPS probes are not run by the embedded cluster".to_owned());
    }
    let address = address(target, action.host.as_deref(), &action.port).await?;
    let path = action.path.as_deref().filter(|it| !it.is_empty()).unwrap_or("/");
    let path = if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("/{path}")
    };
    let url = format!("Get \"http://{address}{path}\"");
    let say = |error: &dyn std::fmt::Display| format!("{url}: {error}");
    let stream = TcpStream::connect(address)
        .await
        .map_err(|error| format!("{url}: dial tcp {address}: {error}"))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| say(&error))?;
    let mut request = http::Request::get(&path);
    let has = |name: &str| {
        action
            .http_headers
            .iter()
            .flatten()
            .any(|it| it.name.eq_ignore_ascii_case(name))
    };
    for header in action.http_headers.iter().flatten() {
        request = request.header(&header.name, &header.value);
    }
    for (name, value) in [
        ("host", address.to_string()),
        ("user-agent", "kube-probe/1.35".to_owned()),
        ("accept", "*/*".to_owned()),
    ] {
        if !has(name) {
            request = request.header(name, value);
        }
    }
    let request = request
        .header("connection", "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| say(&error))?;
    // Polled beside the request, not raced with it: a connection that closes after its answer has answered.
    let _connection = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(connection));
    let response = sender.send_request(request).await.map_err(|error| say(&error))?;
    match response.status().as_u16() {
        200..=399 => Ok(()),
        code => Err(format!("HTTP probe failed with statuscode: {code}")),
    }
}

/// Runs a command; exit code 0 is a success. Also what `lifecycle` hooks use.
pub(super) async fn execute(target: &Target, action: &ExecAction) -> Result<(), String> {
    let mut words = action.command.iter().flatten().cloned();
    let program = words.next().ok_or("the command is empty")?;
    let path = target
        .env
        .iter()
        .find(|(name, _)| name == "PATH")
        .map(|(_, it)| it.clone())
        .unwrap_or_default();
    let program = super::process::find_program(&program, &path, target.folder.as_deref())
        .ok_or_else(|| format!("exec: \"{program}\": executable file not found in $PATH"))?;
    let launch = Launch {
        program,
        args: words.collect(),
        env: target.env.clone(),
        folder: target.folder.clone(),
    };
    let mut process = target
        .spawner
        .spawn(launch)
        .await
        .map_err(|error| error.to_string())?;
    let (output, errors) = process.output();
    let reading = async { tokio::join!(first_bytes(output), first_bytes(errors)) };
    tokio::pin!(reading);
    let mut read = None;
    let status = loop {
        tokio::select! {
            status = process.wait() => break status.map_err(|error| error.to_string())?,
            both = &mut reading, if read.is_none() => read = Some(both),
        }
    };
    if status.success() {
        return Ok(());
    }
    // Whoever the command left in the background may hold its output open.
    process.kill();
    let (said, complained) = match read {
        Some(both) => both,
        None => tokio::time::timeout(LAST_WORDS, reading)
            .await
            .unwrap_or_default(),
    };
    let text = [said, complained].concat();
    Err(format!(
        "command exited with {}: {}",
        exit_code(status),
        text.trim()
    ))
}

/// The beginning of an output, for the Event; the rest is read and dropped, so that the command does not block.
async fn first_bytes(output: Option<impl tokio::io::AsyncRead + Unpin>) -> String {
    use tokio::io::AsyncReadExt;
    let mut text = Vec::new();
    let Some(mut output) = output else {
        return String::new();
    };
    let mut buffer = [0; 1024];
    while let Ok(count @ 1..) = output.read(&mut buffer).await {
        let room = 1024_usize.saturating_sub(text.len());
        text.extend_from_slice(&buffer[..count.min(room)]);
    }
    String::from_utf8_lossy(&text).into_owned()
}
