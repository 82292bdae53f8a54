//! The front door: `http://NAME.localhost:8080` for people and browsers.
//!
//! The first request of a connection says where the connection goes: `NAME.localhost` (namespace `default`),
//! `NAME.NAMESPACE.localhost`, or `PORT.NAME.NAMESPACE.localhost` with a port's name or number. From then on bytes
//! are passed on unread, so WebSockets and streams work. HTTP/2 without TLS names its host in compressed form: use the
//! Service's own address, or `--publish`, for it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Service, ServicePort};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::directory::Directory;
use super::service::{Proxy, pick, tcp_ports};
use super::splice::{Limit, splice};
use crate::cluster::Cluster;
use crate::informer::Key;

/// Most bytes of a request's head that are read to find its host.
const MOST_HEAD: usize = 32 * 1024;

/// Longest wait for a whole head.
const HEAD_LIMIT: Duration = Duration::from_secs(10);

/// The front door.
pub(crate) struct Front {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) limit: Limit,
    /// Where it listens, for the addresses it shows.
    pub(crate) address: SocketAddr,
}

/// What a request asks for.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    /// A Service, and one of its ports by name or number.
    Service(Key, Option<String>),
    /// Another host.
    Other(String),
}

impl Front {
    /// Serves until `shutdown`.
    pub(crate) async fn serve(self: Arc<Self>, listener: TcpListener, shutdown: CancellationToken) {
        loop {
            let accepting = async {
                let (client, _) = listener.accept().await?;
                Ok::<_, std::io::Error>((client, self.limit.one().await))
            };
            let accepted = tokio::select! {
                () = shutdown.cancelled() => return,
                accepted = accepting => accepted,
            };
            match accepted {
                Ok((client, permit)) => {
                    let front = Arc::clone(&self);
                    let shutdown = shutdown.clone();
                    tokio::spawn(async move {
                        tokio::select! {
                            () = shutdown.cancelled() => {}
                            () = front.connection(client) => {}
                        }
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::debug!(%error, "not accepted");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
        }
    }

    async fn connection(&self, mut client: TcpStream) {
        let Ok(Some(head)) = tokio::time::timeout(HEAD_LIMIT, read_head(&mut client)).await else {
            // Nothing, too much, or too slow: there is nobody to explain it to.
            return;
        };
        let Some(host) = host_of(&head) else {
            let text = "no Host header of HTTP/1.1 in the first request";
            return refuse(&mut client, "400 Bad Request", "text/plain", text).await;
        };
        let wants_page = header(&head, "accept").is_some_and(|it| it.contains("text/html"));
        match asked(host) {
            Asked::Service(key, port) => match self.find(&key, port.as_deref()) {
                Ok(endpoint) => splice(client, &head, endpoint).await,
                Err(Missing::Service) => self.not_found(&mut client, host, wants_page).await,
                Err(Missing::Endpoints) => {
                    let text = format!("Service {key} has no ready endpoints\n");
                    refuse(
                        &mut client,
                        "503 Service Unavailable\r\nretry-after: 1",
                        "text/plain",
                        &text,
                    )
                    .await;
                }
            },
            Asked::Other(host) => self.not_found(&mut client, &host, wants_page).await,
        }
    }

    fn find(&self, key: &Key, port: Option<&str>) -> Result<SocketAddr, Missing> {
        let service = self.cluster.services.get(key).ok_or(Missing::Service)?;
        let port = match port {
            Some(port) => port.to_owned(),
            None => http_port(&service)
                .ok_or(Missing::Service)?
                .name
                .clone()
                .unwrap_or_default(),
        };
        let endpoints = self.proxy.endpoints(key, &port).ok_or(Missing::Service)?;
        pick(&endpoints).ok_or(Missing::Endpoints)
    }

    /// Says which Services there are.
    async fn not_found(&self, client: &mut TcpStream, host: &str, page: bool) {
        let directory = Directory::new(&self.cluster.services.all(), self.address);
        if page {
            // Nothing on the page comes from elsewhere or runs.
            let kind = "text/html; charset=utf-8\r\n\
                        content-security-policy: default-src 'none'; style-src 'unsafe-inline'";
            return refuse(client, "404 Not Found", kind, &directory.page(host)).await;
        }
        refuse(client, "404 Not Found", "application/json", &directory.json(host)).await;
    }
}

enum Missing {
    Service,
    Endpoints,
}

/// The Service's first port that is most likely HTTP: by `appProtocol`, by name, by number; else its first TCP port.
pub(super) fn http_port(service: &Service) -> Option<&ServicePort> {
    let tcp = tcp_ports(service);
    let ports = || {
        let all = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
        all.filter(|port| tcp.contains_key(port.name.as_deref().unwrap_or_default()))
    };
    let by_protocol = |port: &&ServicePort| {
        matches!(
            port.app_protocol.as_deref(),
            Some("http" | "kubernetes.io/ws" | "kubernetes.io/h2c")
        )
    };
    let by_name = |port: &&ServicePort| {
        let name = port.name.as_deref().unwrap_or_default();
        name == "http" || name == "web" || name.starts_with("http-")
    };
    let by_number = |port: &&ServicePort| matches!(port.port, 80 | 8080);
    ports()
        .find(by_protocol)
        .or_else(|| ports().find(by_name))
        .or_else(|| ports().find(by_number))
        .or_else(|| ports().next())
}

/// Reads until the end of the first head; `None`: the connection ended, or the head is too long.
async fn read_head(client: &mut TcpStream) -> Option<Vec<u8>> {
    let mut head = Vec::with_capacity(1024);
    loop {
        let before = head.len();
        if before >= MOST_HEAD {
            return None;
        }
        if client.read_buf(&mut head).await.ok()? == 0 {
            return None;
        }
        // HTTP/2 begins with a line that no HTTP/1.1 request has; more will not come before we answer.
        let from = before.saturating_sub(3);
        if head[from..].windows(4).any(|it| it == b"\r\n\r\n")
            || head[from..].windows(2).any(|it| it == b"\n\n")
        {
            return Some(head);
        }
    }
}

fn header<'a>(head: &'a [u8], wanted: &str) -> Option<&'a str> {
    let end = head
        .windows(4)
        .position(|it| it == b"\r\n\r\n")
        .unwrap_or(head.len());
    let lines = head[..end].split(|byte| *byte == b'\n').skip(1);
    lines
        .filter_map(|line| std::str::from_utf8(line).ok()?.split_once(':'))
        .find(|(name, _)| name.trim().eq_ignore_ascii_case(wanted))
        .map(|(_, value)| value.trim())
}

/// The host without its port.
fn host_of(head: &[u8]) -> Option<&str> {
    let host = header(head, "host")?;
    let host = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    (!host.is_empty()).then_some(host)
}

fn asked(host: &str) -> Asked {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let Some(name) = host.strip_suffix(".localhost") else {
        return Asked::Other(host);
    };
    match name.split('.').collect::<Vec<_>>().as_slice() {
        [name] => Asked::Service(Key::new("default", *name), None),
        [name, namespace] => Asked::Service(Key::new(*namespace, *name), None),
        [port, name, namespace] => Asked::Service(Key::new(*namespace, *name), Some((*port).to_owned())),
        _ => Asked::Other(host),
    }
}

async fn refuse(client: &mut TcpStream, status: &str, kind: &str, text: &str) {
    let response = format!(
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{text}",
        text.len()
    );
    let _ = client.write_all(response.as_bytes()).await;
    let _ = client.shutdown().await;
    // Closing with unread bytes would reset the connection and may take the answer with it.
    let mut rest = [0; 1024];
    let _ = tokio::time::timeout(Duration::from_secs(1), async {
        while matches!(client.read(&mut rest).await, Ok(1..)) {}
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_name_services() {
        let service = |namespace: &str, name: &str, port: Option<&str>| {
            Asked::Service(Key::new(namespace, name), port.map(str::to_owned))
        };
        for (host, expected) in [
            ("hello.localhost", service("default", "hello", None)),
            ("Hello.LOCALHOST.", service("default", "hello", None)),
            ("api.shop.localhost", service("shop", "api", None)),
            ("grpc.api.shop.localhost", service("shop", "api", Some("grpc"))),
            ("localhost", Asked::Other("localhost".into())),
            ("a.b.c.d.localhost", Asked::Other("a.b.c.d.localhost".into())),
            ("127.0.0.1", Asked::Other("127.0.0.1".into())),
        ] {
            assert_eq!(asked(host), expected, "{host}");
        }
    }

    #[test]
    fn the_host_is_found_in_a_head() {
        for (head, expected) in [
            (
                "GET / HTTP/1.1\r\nHost: a.localhost:8080\r\n\r\nbody\nhost: no",
                Some("a.localhost"),
            ),
            (
                "GET / HTTP/1.1\r\nx: y\r\nhOsT:  a.localhost \r\n\r\n",
                Some("a.localhost"),
            ),
            ("GET / HTTP/1.0\r\n\r\nhost: no\r\n\r\n", None),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", None),
            ("GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", Some("[::1]")),
            ("GET / HTTP/1.1\r\nHost:\r\n\r\n", None),
        ] {
            assert_eq!(host_of(head.as_bytes()), expected, "{head}");
        }
    }

    #[test]
    fn the_http_port_is_the_likeliest_one() {
        for (ports, expected) in [
            ("[{ port: 5432 }]", 5432),
            ("[{ name: grpc, port: 9 }, { name: http, port: 1 }]", 1),
            ("[{ name: a, port: 9 }, { name: b, port: 80 }]", 80),
            (
                "[{ name: http, port: 9 }, { name: b, port: 7, appProtocol: http }]",
                7,
            ),
            (
                "[{ name: dns, port: 53, protocol: UDP }, { name: x, port: 54 }]",
                54,
            ),
        ] {
            let service: Service =
                serde_saphyr::from_str(&format!("spec: {{ ports: {ports} }}")).expect("a Service");
            assert_eq!(
                http_port(&service).map(|port| port.port),
                Some(expected),
                "{ports}"
            );
        }
    }
}
