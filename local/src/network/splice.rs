//! Bytes between two connections, both ways, half-close kept.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Longest wait for an endpoint to accept: on loopback it does so at once or never.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// How many connections may be open at once. Clones share one limit.
#[derive(Clone)]
pub(crate) struct Limit(Arc<Semaphore>);

impl Limit {
    /// Half of the file descriptors that this process may have beyond what it needs itself: a connection takes two.
    pub(crate) fn new() -> Self {
        const OURS: u64 = 4096;
        // No limit at all is more than enough.
        let most = crate::raise_open_files().unwrap_or(u64::MAX);
        let connections = usize::try_from(most.saturating_sub(OURS) / 2).unwrap_or(usize::MAX);
        // Fewer than this would be noticed; more than this no machine of a developer serves.
        Self(Arc::new(Semaphore::new(connections.clamp(256, 100_000))))
    }

    /// Waits until one more connection may be open.
    pub(crate) async fn one(&self) -> Option<OwnedSemaphorePermit> {
        // Never closed.
        Arc::clone(&self.0).acquire_owned().await.ok()
    }
}

/// Connects a client to an endpoint until both have ended. `first` is what was already read from the client.
pub(crate) async fn splice(mut client: TcpStream, first: &[u8], endpoint: SocketAddr) {
    let connected = tokio::time::timeout(CONNECT_LIMIT, TcpStream::connect(endpoint)).await;
    let Ok(Ok(mut server)) = connected else {
        // The client of a real Service would see a refused connection: a reset is as near as an accepted one gets.
        reset(&client);
        return;
    };
    let _ = client.set_nodelay(true);
    let _ = server.set_nodelay(true);
    if !first.is_empty() && server.write_all(first).await.is_err() {
        reset(&client);
        return;
    }
    if tokio::io::copy_bidirectional(&mut client, &mut server)
        .await
        .is_err()
    {
        // One side was reset: so is the other.
        reset(&client);
        reset(&server);
    }
}

/// Has the connection end with a reset when it is dropped.
pub(crate) fn reset(stream: &TcpStream) {
    let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
}
