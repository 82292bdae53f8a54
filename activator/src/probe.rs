//! Is this pod answering? Asked every few milliseconds, long before Kubernetes says so: a kubelet looks once a second.
//!
//! Only addresses that Kubernetes has published are dialled, and only while the answer matters: a task for each pod ends
//! when the pod is usable, is gone, or when nobody has waited for it for a while. A pod on probation is asked until then, each
//! second in the end: only an answer takes it back.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crds::route::{Probe, ProbeKind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::forward;
use crate::hub::Hub;
use crate::pool::{Endpoint, Pool};

/// Between tries of a port that refuses: what a pod that begins to listen waits for us, at most. A refused connection costs
/// the pod nothing and us some tens of microseconds.
const REFUSED: Duration = Duration::from_millis(5);
/// How long that goes on; then pauses grow. Boots longer than this are not felt in milliseconds.
const EAGER: Duration = Duration::from_secs(5);
/// Between the first two tries of a pod that listens and is not ready: each costs it an answer.
const LISTENING: Duration = Duration::from_millis(20);
/// Between later tries.
const USUAL: Duration = Duration::from_millis(100);
/// Between tries of a pod that is slow to come, or does not come at all.
const SLOW: Duration = Duration::from_secs(1);
/// From when on a pod is slow.
const SLOW_AFTER: Duration = Duration::from_secs(30);
/// What each pod that is probed adds to the pause of all: 4,000 tries a second in all, about a tenth of a core.
const TURN: Duration = Duration::from_micros(250);
/// The timeout of a probe that has none.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Longest wait for a connection. A pod's address is published before its network is up everywhere, and the kernel sends
/// a lost SYN again only after a second.
const CONNECT: Duration = Duration::from_millis(200);

/// What a try came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    /// The pod is ready.
    Ready,
    /// It listens, and is not ready.
    NotReady,
    /// Nobody listens.
    Nothing,
}

/// How long to wait for the next try. Pure.
#[derive(Debug)]
struct Pace {
    refused: Duration,
    listening: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            refused: REFUSED,
            listening: LISTENING,
        }
    }
}

impl Pace {
    /// After a try that `said` so, `age` after the first, while `probed` pods are.
    fn next(&mut self, said: Said, age: Duration, probed: usize) -> Duration {
        if age > SLOW_AFTER {
            return SLOW;
        }
        let pause = match said {
            Said::Nothing if age <= EAGER => return self.refused.max(crowd(probed)),
            Said::Nothing => &mut self.refused,
            Said::Ready | Said::NotReady => &mut self.listening,
        };
        let now = *pause;
        *pause = (now * 5 / 4).min(USUAL);
        now.max(crowd(probed))
    }
}

/// The least pause while so many pods are probed: all tries together stay below one for each turn.
fn crowd(probed: usize) -> Duration {
    TURN * u32::try_from(probed).unwrap_or(u32::MAX)
}

/// A pod under probes, counted.
struct Probed<'a>(&'a AtomicUsize);

impl<'a> Probed<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Probed<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Probes one pod until it answers or needs no probe any more.
pub(crate) async fn until_it_answers(pool: Arc<Pool>, hub: Arc<Hub>, endpoint: Arc<Endpoint>) {
    let began = hub.now();
    let _probed = Probed::new(&hub.probed);
    let mut pace = Pace::default();
    while let Some(target) = pool.probe_target(&endpoint) {
        if hub.now().saturating_sub(began) > SLOW_AFTER && !target.is_awaited {
            return pool.rest(&endpoint);
        }
        let delay = Duration::from_millis(target.probe.initial_delay_ms);
        let left = delay.saturating_sub(hub.now().saturating_sub(target.appeared));
        if !left.is_zero() {
            tokio::time::sleep(left).await;
            continue;
        }
        let asked = hub.now();
        let said = ask(SocketAddr::new(endpoint.address, target.port), &target.probe).await;
        let label = match said {
            Said::Ready => "answered",
            Said::NotReady => "not_ready",
            Said::Nothing => "failed",
        };
        hub.metrics.probes.with_label_values(&[label]).inc();
        pool.probed(&endpoint, asked, said == Said::Ready);
        if said == Said::Ready {
            continue;
        }
        let age = hub.now().saturating_sub(began);
        tokio::time::sleep(pace.next(said, age, hub.probed.load(Ordering::Relaxed))).await;
    }
}

/// One try.
async fn ask(address: SocketAddr, probe: &Probe) -> Said {
    let timeout = if probe.timeout_ms == 0 {
        TIMEOUT
    } else {
        Duration::from_millis(probe.timeout_ms)
    };
    let Ok(mut stream) = forward::dial(address, None, timeout.min(CONNECT)).await else {
        return Said::Nothing;
    };
    if probe.kind != ProbeKind::Http {
        return Said::Ready;
    }
    let asking = async {
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
    match tokio::time::timeout(timeout, asking).await {
        Ok(Some(true)) => Said::Ready,
        _ => Said::NotReady,
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_port_that_refuses_is_tried_every_five_milliseconds_for_five_seconds_then_more_rarely() {
        let mut pace = Pace::default();
        for (age, wanted) in [
            (ms(0), ms(5)),
            (ms(4_999), ms(5)),
            (ms(5_001), ms(5)),
            (ms(5_010), Duration::from_micros(6_250)),
            (ms(30_001), SLOW),
        ] {
            assert_eq!(pace.next(Said::Nothing, age, 1), wanted, "{age:?}");
        }
        let pauses = (0..100).map(|_| pace.next(Said::Nothing, ms(6_000), 1));
        assert_eq!(pauses.last(), Some(USUAL));
    }

    #[test]
    fn a_pod_that_listens_and_is_not_ready_is_asked_more_rarely() {
        let mut pace = Pace::default();
        let pauses: Vec<_> = (0..20).map(|_| pace.next(Said::NotReady, ms(0), 1)).collect();
        assert_eq!((pauses[0], pauses[1], pauses[19]), (ms(20), ms(25), USUAL));
    }

    #[test]
    fn many_pods_together_cost_no_more_than_a_bounded_number_of_tries() {
        for (probed, wanted) in [(1, ms(5)), (20, ms(5)), (60, ms(15)), (200, ms(50))] {
            let pause = Pace::default().next(Said::Nothing, ms(0), probed);
            assert_eq!(pause, wanted, "{probed} pods");
            assert!(probed as f64 / pause.as_secs_f64() <= 4_000.0);
        }
    }
}
