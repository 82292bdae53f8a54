//! Two connections joined into one: streams of bytes, and what has switched protocols. Half-close is kept; the Route's
//! limits on whole and silent streams hold here too.

mod flow;

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::body::{Activity, Limits};
use crate::route::Timeouts;
use flow::Flow;

/// How a joined stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Both sides finished, or one broke off: that is how such connections end.
    Theirs,
    /// A limit of the Route passed: its name.
    Limit(&'static str),
    /// The activator ends.
    Ours,
}

/// Carries bytes both ways. `begun` is when the whole-request limit began to count. At an end that is ours both sides are
/// told that nothing more comes (FIN), so that neither takes it for a broken network.
///
/// # Cancel safety
/// Dropping the future ends the stream.
pub(crate) async fn join<A, B>(
    client: &mut A,
    pod: &mut B,
    limits: Timeouts,
    begun: Instant,
    give_up: &CancellationToken,
) -> End
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let end = if limits.request.is_none() && limits.stream_idle.is_none() {
        tokio::select! {
            _ = both_ways(client, pod) => End::Theirs,
            () = give_up.cancelled() => End::Ours,
        }
    } else {
        let activity = Activity::new();
        let mut running = Limits::new(limits, begun, Some(Arc::clone(&activity)));
        let mut client = Noted(&mut *client, &activity);
        let mut pod = Noted(&mut *pod, &activity);
        tokio::select! {
            _ = both_ways(&mut client, &mut pod) => End::Theirs,
            what = poll_fn(|cx| running.poll(cx)) => End::Limit(what),
            () = give_up.cancelled() => End::Ours,
        }
    };
    if end != End::Theirs {
        drop(client.shutdown().await);
        drop(pod.shutdown().await);
    }
    end
}

/// Until both sides have ended, or one has broken off.
async fn both_ways(
    client: &mut (impl AsyncRead + AsyncWrite + Unpin),
    pod: &mut (impl AsyncRead + AsyncWrite + Unpin),
) -> io::Result<()> {
    let (mut up, mut down) = (Flow::new(), Flow::new());
    poll_fn(|cx| {
        let up = up.poll(cx, client, pod)?;
        let down = down.poll(cx, pod, client)?;
        if up.is_ready() && down.is_ready() {
            Poll::Ready(Ok(()))
        } else {
            Poll::Pending
        }
    })
    .await
}

/// A side whose bytes are noted as they are read. What is written was read from the other.
struct Noted<'a, S>(&'a mut S, &'a Activity);

impl<S: AsyncRead + Unpin> AsyncRead for Noted<'_, S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let read = ready!(Pin::new(&mut *self.0).poll_read(cx, buf));
        self.1.note();
        Poll::Ready(read)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Noted<'_, S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut *self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut *self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut *self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::AsyncReadExt;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// A joined stream with its two far ends.
    fn joined(
        limits: Timeouts,
        give_up: CancellationToken,
    ) -> (
        tokio::io::DuplexStream,
        tokio::io::DuplexStream,
        tokio::task::JoinHandle<End>,
    ) {
        let (client, mut ours) = tokio::io::duplex(64);
        let (pod, mut theirs) = tokio::io::duplex(64);
        let joining =
            tokio::spawn(async move { join(&mut ours, &mut theirs, limits, Instant::now(), &give_up).await });
        (client, pod, joining)
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_stream_ends_after_its_limit_and_bytes_either_way_keep_it() {
        let limits = Timeouts {
            stream_idle: Some(10 * SECOND),
            ..Timeouts::default()
        };
        let (mut client, mut pod, joining) = joined(limits, CancellationToken::new());
        let start = Instant::now();
        for turn in 0..6 {
            tokio::time::sleep(9 * SECOND).await;
            let (from, to) = if turn % 2 == 0 {
                (&mut client, &mut pod)
            } else {
                (&mut pod, &mut client)
            };
            from.write_all(b"x").await.expect("carried");
            assert_eq!(to.read_u8().await.expect("arrives"), b'x');
        }
        assert_eq!(joining.await.expect("ends"), End::Limit("stream-idle-timeout"));
        assert_eq!(start.elapsed().as_secs(), 6 * 9 + 10);
        // Both are told.
        assert_eq!(client.read(&mut [0]).await.expect("an end"), 0);
        assert_eq!(pod.read(&mut [0]).await.expect("an end"), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_whole_stream_has_a_limit_however_busy_it_is() {
        let limits = Timeouts {
            request: Some(10 * SECOND),
            ..Timeouts::default()
        };
        let (mut client, mut pod, joining) = joined(limits, CancellationToken::new());
        let start = Instant::now();
        let talking = tokio::spawn(async move {
            while client.write_all(b"x").await.is_ok() && pod.read_u8().await.is_ok() {
                tokio::time::sleep(SECOND / 10).await;
            }
        });
        assert_eq!(joining.await.expect("ends"), End::Limit("request-timeout"));
        assert_eq!(start.elapsed().as_secs(), 10);
        talking.await.expect("ends too");
    }

    #[tokio::test(start_paused = true)]
    async fn without_limits_a_stream_lasts_until_it_is_given_up() {
        let give_up = CancellationToken::new();
        let (mut client, _pod, joining) = joined(Timeouts::default(), give_up.clone());
        tokio::time::sleep(SECOND * 86_400).await;
        assert!(!joining.is_finished());
        give_up.cancel();
        assert_eq!(joining.await.expect("ends"), End::Ours);
        assert_eq!(client.read(&mut [0]).await.expect("an end"), 0);
    }
}
