//! A client's socket as hyper reads and writes it, shared with the watch over its client (`talk`).
//!
//! hyper owns what it reads from, and while a request waits it reads nothing: its body, and whatever the client sends
//! after it, stay in the kernel. So somebody else must see the client leave, on the same socket and without reading.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::talk::Talk;
use crate::wire;

/// Reads and writes a shared stream, and tells the talk what passed.
#[derive(Debug)]
pub(crate) struct Socket {
    stream: Arc<TcpStream>,
    talk: Arc<Talk>,
}

impl Socket {
    pub(crate) fn new(stream: Arc<TcpStream>, talk: Arc<Talk>) -> Self {
        Self { stream, talk }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            if let Some(fault) = self.talk.fault() {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, fault)));
            }
            match self.stream.poll_read_ready(cx) {
                Poll::Ready(ready) => ready?,
                Poll::Pending => {
                    self.talk.wants_more();
                    return Poll::Pending;
                }
            }
            match wire::read_some(&self.stream, buf) {
                Ok(read) => {
                    let filled = buf.filled().len();
                    let good = self.talk.heard(&buf.filled()[filled - read..]);
                    buf.set_filled(filled - read + good);
                    // Nothing at all would mean the end of what the client sends.
                    if good > 0 || read == 0 {
                        return Poll::Ready(Ok(()));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl Socket {
    fn poll_send(
        &self,
        cx: &mut Context<'_>,
        send: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        self.talk.writes();
        let sent = wire::poll_send(&self.stream, cx, send);
        match sent {
            Poll::Ready(_) => self.talk.wrote(),
            Poll::Pending => self.talk.is_full(),
        }
        sent
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_send(cx, |stream| stream.try_write(buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_send(cx, |stream| stream.try_write_vectored(bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// hyper flushes its socket only when it has nothing left to write.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.talk.has_written();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.talk.fault().is_some() {
            // It is still to be told what was wrong.
            return Poll::Ready(Ok(()));
        }
        Poll::Ready(wire::finish(&self.stream))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::time::Instant;

    use super::*;

    #[tokio::test]
    async fn a_client_that_reads_slowly_is_told_from_one_that_does_not_read() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("bound");
        let mut client = TcpStream::connect(address).await.expect("connects");
        let (stream, _) = listener.accept().await.expect("accepts");
        let talk = Arc::new(Talk::new(1024));
        let mut socket = Socket::new(Arc::new(stream), Arc::clone(&talk));
        socket.write_all(b"hello").await.expect("writes");
        assert_eq!(talk.filled(), None, "there was room");

        let writing = tokio::spawn(async move {
            let piece = vec![0; 64 * 1024];
            while socket.write_all(&piece).await.is_ok() {}
        });
        // What fills both kernels' buffers takes a moment, and then nothing moves.
        let mut last = None;
        while talk.filled().is_none() || talk.filled() != last {
            last = talk.filled();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let before = Instant::now();
        let mut read = vec![0; 64 * 1024];
        while talk.filled() == last {
            client.read_exact(&mut read).await.expect("reads");
            tokio::task::yield_now().await;
        }
        assert!(talk.filled().is_some_and(|at| at >= before));
        writing.abort();
    }
}
