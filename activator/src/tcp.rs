//! The same five steps for a stream of bytes: resolve, admit, pick, forward, account. A connection counts as one request.
//! Nothing is read from the client before a pod has accepted, so a pod that could not be reached costs no byte.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::TcpStream;

use crate::account::{Counts, Use};
use crate::forward;
use crate::hold;
use crate::hub::Hub;
use crate::meter::Outcome;
use crate::pool::{Endpoint, Enter, Failure, Pool, Slot};
use crate::proxy_header;
use crate::reject::Reject;
use crate::route::Choice;
use crate::server::Listening;
use crate::stream::{self, End};
use crate::throttle::Kind;

/// The self-probe's first bytes, as `report::probe_request` writes them.
const SELF_PROBE: &[u8] = b"GET / HTTP/1.1\r\ndormouse-probe: ";

/// Carries one client connection to its end.
pub(crate) async fn carry(hub: &Arc<Hub>, worker: usize, mut client: TcpStream, listening: &Listening) {
    let started = hub.now();
    // 1. Resolve.
    let Some((target, _)) = listening.target() else {
        return;
    };
    if is_self_probe(&client).await {
        let answer = format!(
            "HTTP/1.1 200 OK\r\n{}: {}\r\n{}: {}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
            crds::names::PROBE_INSTANCE_HEADER,
            hub.instance,
            crds::names::PROBE_ROUTE_HEADER,
            target.title
        );
        drop(client.write_all(answer.as_bytes()).await);
        // What was peeked is read, or closing would reset the connection before the answer is read.
        drop(client.read(&mut [0; 1024]).await);
        return;
    }
    let Some(Choice { pool, ticket }) = target.choose(None, &mut |below| fastrand::u32(..below)) else {
        return;
    };
    let mut usage = Use::begin(hub, pool, worker, Counts::Use, started);
    usage.enrol(ticket);
    let mut failed: Option<Arc<Endpoint>> = None;
    let mut error = String::new();
    for _ in 0..forward::MOST_TRIES {
        // 2. Admit and 3. pick.
        let slot = match admit(hub, pool, &mut usage, started, failed.as_deref(), &client).await {
            Ok(slot) => slot,
            Err(reject) => return refuse(hub, usage, &reject),
        };
        let endpoint = Arc::clone(&slot.endpoint);
        usage.sent(slot, hub.now());
        // 4. Forward.
        let Some(port) = endpoint.port(listening.port) else {
            error = forward::UNPUBLISHED.to_owned();
            usage.back(hub.now());
            tokio::time::sleep(forward::PAUSE).await;
            continue;
        };
        let address = SocketAddr::new(endpoint.address, port);
        let header = target
            .proxy_protocol
            .then(|| proxy_header::header(client.peer_addr().ok(), client.local_addr().ok()));
        match dial(address, hub.config.connect_timeout, header).await {
            Ok(mut pod) => {
                pool.answered(hub.now());
                usage.settle();
                let begun = tokio::time::Instant::now();
                let end = stream::join(&mut client, &mut pod, target.timeouts, begun, &hub.give_up).await;
                // 5. Account. A stream that one side resets has ended as its owner wanted.
                return match end {
                    End::Theirs => usage.finish(Outcome::Ok),
                    End::Ours => usage.finish(Outcome::Failed),
                    End::Limit(limit) => {
                        usage.aborted(limit);
                        usage.finish(Outcome::Failed);
                    }
                };
            }
            Err(why) => {
                tracing::debug!(error = %why, %address, "try failed");
                error = why.to_string();
                pool.failed(&endpoint, Failure::Refused);
                failed = Some(Arc::clone(&endpoint));
                hub.metrics.retries.with_label_values(&["connect"]).inc();
                usage.back(hub.now());
            }
        }
    }
    let pool = pool.describe();
    refuse(hub, usage, &Reject::Connect { pool, error });
}

/// Counts a refusal, of which the client hears only that its connection ends.
fn refuse(hub: &Hub, usage: Use, reject: &Reject) {
    hub.metrics.rejections.with_label_values(&[reject.label()]).inc();
    tracing::debug!(reason = reject.label(), sentence = reject.sentence(), "refused");
    usage.refuse(reject);
}

/// Connects to a pod. A `header` is in the socket before any byte of the client's.
async fn dial(address: SocketAddr, timeout: Duration, header: Option<Vec<u8>>) -> std::io::Result<TcpStream> {
    let mut pod = forward::dial(address, None, timeout).await?;
    if let Some(header) = header {
        pod.write_all(&header).await?;
    }
    Ok(pod)
}

/// Waits for a place, for the client to go, or for the Route's limit.
async fn admit(
    hub: &Arc<Hub>,
    pool: &Arc<Pool>,
    usage: &mut Use,
    started: Duration,
    avoid: Option<&Endpoint>,
    client: &TcpStream,
) -> Result<Slot, Reject> {
    let who = Some(|| "TCP".to_owned());
    let held = match pool.enter(
        Kind::Hop,
        hub.now(),
        &mut |below| fastrand::u32(..below),
        avoid,
        who,
    ) {
        Enter::Granted(slot) => return Ok(slot),
        Enter::Full => {
            return Err(Reject::QueueFull {
                pool: pool.describe(),
                limit: pool.settings().queue_limit,
            });
        }
        Enter::Queued(held) => held,
    };
    hold::wait(hub, pool, usage, held, started, gone(client)).await
}

/// Ends when the client has gone: reset, or closed without having sent anything. One that has sent and then finished
/// sending may still wait for an answer.
async fn gone(client: &TcpStream) {
    match client.ready(Interest::PRIORITY.add(Interest::ERROR)).await {
        Ok(ready) if !ready.is_error() => {}
        _ => return,
    }
    if matches!(client.try_io(Interest::READABLE, || peek(client)), Ok(1..)) {
        drop(client.ready(Interest::ERROR).await);
    }
}

/// Bytes to be read, up to one, without waiting.
fn peek(client: &TcpStream) -> std::io::Result<usize> {
    socket2::SockRef::from(client).peek(&mut [std::mem::MaybeUninit::uninit()])
}

/// Whether an activator's self-probe is at the other end. Protocols in which the server speaks first are not kept
/// waiting: what has not arrived within a few milliseconds is no self-probe.
async fn is_self_probe(client: &TcpStream) -> bool {
    let mut start = [0; SELF_PROBE.len()];
    let peeked = tokio::time::timeout(Duration::from_millis(5), client.peek(&mut start)).await;
    matches!(peeked, Ok(Ok(length)) if start[..length] == *SELF_PROBE)
}
