//! A socket to a pod as hyper reads and writes it, shared with whoever wants to look at it first.
//!
//! hyper owns what it reads from, and it is told of a connection's end by the event loop, which may come a moment later
//! than the end itself. A request that must not be sent twice is worth a look of our own: one system call.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

/// Reads and writes a shared stream.
#[derive(Debug)]
pub(crate) struct Wire(Arc<TcpStream>);

impl Wire {
    pub(crate) fn new(stream: Arc<TcpStream>) -> Self {
        Self(stream)
    }
}

/// Whether nothing has come, and the other side has not ended either. Nothing is read.
pub(crate) fn is_silent(stream: &TcpStream) -> bool {
    let peeked = socket2::SockRef::from(stream).peek(&mut [std::mem::MaybeUninit::uninit()]);
    matches!(peeked, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

/// Reads what is there, and remembers when that was all: it saves the call that would only find nothing. New bytes are a
/// new edge, which comes through this thread's own event loop, so none is missed.
pub(crate) fn read_some(stream: &TcpStream, buf: &mut ReadBuf<'_>) -> io::Result<usize> {
    let room = buf.remaining();
    let read = stream.try_read_buf(buf)?;
    if (1..room).contains(&read) {
        let nothing = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
        drop(stream.try_io(Interest::READABLE, nothing));
    }
    Ok(read)
}

/// Writes as soon as there is room.
pub(crate) fn poll_send(
    stream: &TcpStream,
    cx: &mut Context<'_>,
    send: impl Fn(&TcpStream) -> io::Result<usize>,
) -> Poll<io::Result<usize>> {
    loop {
        ready!(stream.poll_write_ready(cx))?;
        match send(stream) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            result => return Poll::Ready(result),
        }
    }
}

/// Ends the sending half. A peer that has gone needs no farewell.
pub(crate) fn finish(stream: &TcpStream) -> io::Result<()> {
    match socket2::SockRef::from(stream).shutdown(std::net::Shutdown::Write) {
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
        result => result,
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(cx))?;
            match read_some(&self.0, buf) {
                Ok(_) => return Poll::Ready(Ok(())),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        poll_send(&self.0, cx, |stream| stream.try_write(buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        poll_send(&self.0, cx, |stream| stream.try_write_vectored(bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(finish(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_socket_is_silent_until_something_comes_even_if_nobody_was_told() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("bound");
        for ends in [false, true] {
            let ours = TcpStream::connect(address).await.expect("connects");
            let (mut theirs, _) = listener.accept().await.expect("accepts");
            assert!(is_silent(&ours));
            if ends {
                drop(theirs);
            } else {
                theirs.write_all(b"x").await.expect("writes");
            }
            // On loopback what was sent has arrived; no event loop has run since.
            assert!(!is_silent(&ours), "ends: {ends}");
        }
    }
}
