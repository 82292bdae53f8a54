//! Is this pod answering? Asked every few milliseconds, long before Kubernetes says so: a kubelet looks once a second.
//!
//! Only addresses that Kubernetes has published are dialled, and only while the answer matters: a task for each pod ends
//! when the pod is usable, is gone, or when nobody has waited for it for a while.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crds::route::{Probe, ProbeKind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::forward;
use crate::hub::Hub;
use crate::pool::{Endpoint, Pool};

/// Between the first two tries: a fifth of what is still felt as at once.
const FIRST: Duration = Duration::from_millis(20);
/// Between later tries.
const USUAL: Duration = Duration::from_millis(100);
/// Between tries of a pod that is slow to come, or does not come at all.
const SLOW: Duration = Duration::from_secs(1);
/// From when on a pod is slow.
const SLOW_AFTER: Duration = Duration::from_secs(30);
/// The timeout of a probe that has none.
const TIMEOUT: Duration = Duration::from_secs(1);

/// Probes one pod until it answers or needs no probe any more.
pub(crate) async fn until_it_answers(
    pool: Arc<Pool>,
    hub: Arc<Hub>,
    address: IpAddr,
    endpoint: Arc<Endpoint>,
) {
    let began = hub.now();
    let mut pause = FIRST;
    while let Some(target) = pool.probe_target(address, &endpoint) {
        let is_slow = hub.now().saturating_sub(began) > SLOW_AFTER;
        if is_slow && !target.is_awaited {
            return pool.rest(address, &endpoint);
        }
        let delay = Duration::from_millis(target.probe.initial_delay_ms);
        let left = delay.saturating_sub(hub.now().saturating_sub(target.appeared));
        if !left.is_zero() {
            tokio::time::sleep(left).await;
            continue;
        }
        let answers = ask(SocketAddr::new(address, target.port), &target.probe).await;
        hub.metrics
            .probes
            .with_label_values(&[if answers { "answered" } else { "failed" }])
            .inc();
        pool.probed(address, &endpoint, answers);
        if answers {
            continue;
        }
        tokio::time::sleep(if is_slow { SLOW } else { pause }).await;
        pause = (pause * 5 / 4).min(USUAL);
    }
}

/// One try.
async fn ask(address: SocketAddr, probe: &Probe) -> bool {
    let timeout = if probe.timeout_ms == 0 {
        TIMEOUT
    } else {
        Duration::from_millis(probe.timeout_ms)
    };
    let asking = async {
        let mut stream = forward::dial(address, None, timeout).await.ok()?;
        if probe.kind != ProbeKind::Http {
            return Some(true);
        }
        stream
            .write_all(http_request(address, probe).as_bytes())
            .await
            .ok()?;
        // `HTTP/1.1 200`: only the status matters. Whatever follows is left unread.
        let mut head = [0; 12];
        stream.read_exact(&mut head).await.ok()?;
        let status: u16 = std::str::from_utf8(&head[9..]).ok()?.parse().ok()?;
        Some(head.starts_with(b"HTTP/1.") && (200..400).contains(&status))
    };
    matches!(tokio::time::timeout(timeout, asking).await, Ok(Some(true)))
}

/// The kubelet's request, by its user agent too: applications that know it treat ours alike.
fn http_request(address: SocketAddr, probe: &Probe) -> String {
    let host = if probe.host.is_empty() {
        address.to_string()
    } else {
        probe.host.clone()
    };
    let path = if probe.path.starts_with('/') {
        probe.path.clone()
    } else {
        format!("/{}", probe.path)
    };
    let mut text = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n");
    let mut has_agent = false;
    for header in &probe.headers {
        let is_plain = |text: &str| !text.contains(['\r', '\n']);
        if is_plain(&header.name) && is_plain(&header.value) && !header.name.eq_ignore_ascii_case("host") {
            has_agent |= header.name.eq_ignore_ascii_case("user-agent");
            text.push_str(&format!("{}: {}\r\n", header.name, header.value));
        }
    }
    if !has_agent {
        text.push_str("User-Agent: kube-probe/dormouse\r\n");
    }
    text.push_str("\r\n");
    text
}
