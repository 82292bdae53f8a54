//! Self-probes: connect to a Service's own address as any client would, and see whether an activator answers. That proves
//! that the cluster's network takes our endpoints, and nothing sleeps before.

use std::net::SocketAddr;
use std::time::Duration;

use crds::names::{PROBE_HEADER, PROBE_INSTANCE_HEADER, PROBE_ROUTE_HEADER};
use crds::report::{ProbeOrder, ProbeResult};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

use crate::forward;

/// One connection.
const ONE: Duration = Duration::from_secs(1);
/// All of them: the autoscaler waits ten seconds.
const ALL: Duration = Duration::from_secs(8);
/// Most connections, whatever is ordered.
const MOST: u32 = 64;
/// Most bytes of an answer's head.
const HEAD: usize = 8192;

/// Carries out one order, whose answer nobody waits for after `until`.
pub(crate) async fn run(order: &ProbeOrder, until: Instant) -> ProbeResult {
    let mut result = ProbeResult {
        id: order.id,
        ..ProbeResult::default()
    };
    let Ok(address) = order.address.parse::<SocketAddr>() else {
        result.error = format!("{:?} is not an address and a port", order.address);
        return result;
    };
    let deadline = until.min(Instant::now() + ALL);
    let route = format!("{}/{}", order.namespace, order.route);
    for _ in 0..order.tries.clamp(1, MOST) {
        let asked = tokio::time::timeout_at(deadline.min(Instant::now() + ONE), ask(address, &route)).await;
        match asked {
            Ok(Ok(instance)) => {
                result.landed = Some(instance);
                result.error.clear();
                return result;
            }
            Ok(Err(error)) => result.error = error,
            Err(_) => result.error = "no answer within 1 s".to_owned(),
        }
        if Instant::now() >= deadline {
            break;
        }
    }
    result
}

/// One connection: the instance on which it landed.
async fn ask(address: SocketAddr, route: &str) -> Result<String, String> {
    let mut stream = forward::dial(address, None, ONE)
        .await
        .map_err(|error| format!("cannot connect: {error}"))?;
    stream
        .write_all(request(address).as_bytes())
        .await
        .map_err(|error| error.to_string())?;
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if head.len() > HEAD {
            return Err("landed on something with a very long head".to_owned());
        }
        let read = stream
            .read_buf(&mut head)
            .await
            .map_err(|error| error.to_string())?;
        if read == 0 {
            return Err("landed on something that closed the connection".to_owned());
        }
    }
    landed(&String::from_utf8_lossy(&head), route)
}

/// The probe's header comes first, so that an activator recognises it on a port of bytes without reading on.
fn request(address: SocketAddr) -> String {
    let nonce = fastrand::u64(..);
    format!(
        "GET / HTTP/1.1\r\n{PROBE_HEADER}: {nonce:016x}\r\nHost: {address}\r\nUser-Agent: dormouse-probe\r\nConnection: close\r\n\r\n"
    )
}

/// Reads who answered.
fn landed(head: &str, route: &str) -> Result<String, String> {
    let field = |wanted: &str| {
        head.lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name.eq_ignore_ascii_case(wanted))
            .map(|(_, value)| value.trim().to_owned())
    };
    match (field(PROBE_INSTANCE_HEADER), field(PROBE_ROUTE_HEADER)) {
        (Some(instance), Some(found)) if found == route => Ok(instance),
        (Some(_), Some(found)) => Err(format!("landed on the port of {found}")),
        _ => Err("landed on something that is no activator".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_counts_only_from_the_right_route() {
        for (head, wanted) in [
            (
                "HTTP/1.1 200 OK\r\nDormouse-Instance: abc\r\ndormouse-route: a/b\r\n\r\n",
                Ok("abc"),
            ),
            (
                "HTTP/1.1 200 OK\r\ndormouse-instance: abc\r\ndormouse-route: a/c\r\n\r\n",
                Err("landed on the port of a/c"),
            ),
            (
                "HTTP/1.1 404 Not Found\r\n\r\n",
                Err("landed on something that is no activator"),
            ),
        ] {
            assert_eq!(landed(head, "a/b").as_deref().map_err(String::as_str), wanted);
        }
    }
}
