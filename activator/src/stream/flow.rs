//! One direction of a joined stream.
//!
//! Bytes are read into room that all streams of a thread share, and written from there at once. So a stream at rest has no
//! buffer at all, and a busy one moves much at a time: of what its reader does not take only the rest is kept, and until
//! that is gone nothing more is read.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Read at once from who has so much: it costs one system call in place of eight, and stays in the processor's cache.
const MOST: usize = 64 * 1024;
/// Read at once at first, and of what a slow reader may have to be kept: this is what each such stream may cost.
const LEAST: usize = 8 * 1024;

thread_local! {
    /// The room, while nobody reads into it.
    static ROOM: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// From one side to the other.
#[derive(Debug)]
pub(super) struct Flow {
    /// Read, and not yet written.
    kept: Vec<u8>,
    /// How much of it is written.
    written: usize,
    /// How much to read next.
    piece: usize,
    unflushed: bool,
    ended: bool,
    finished: bool,
}

impl Flow {
    pub(super) fn new() -> Self {
        Self {
            kept: Vec::new(),
            written: 0,
            piece: LEAST,
            unflushed: false,
            ended: false,
            finished: false,
        }
    }

    /// Carries what there is. Ready: `from` has ended, and `to` has been told.
    ///
    /// # Errors
    /// Those of either side.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
    ) -> Poll<io::Result<()>> {
        loop {
            while self.written < self.kept.len() {
                self.written += ready!(write(cx, to, &self.kept[self.written..]))?;
            }
            // Given back, not cleared: at rest it costs nothing.
            (self.kept, self.written) = (Vec::new(), 0);
            if self.finished {
                return Poll::Ready(Ok(()));
            }
            if self.ended {
                ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                self.finished = true;
                return Poll::Ready(Ok(()));
            }
            if self.poll_piece(cx, from, to)?.is_pending() {
                if self.unflushed {
                    ready!(Pin::new(&mut *to).poll_flush(cx))?;
                    self.unflushed = false;
                }
                return Poll::Pending;
            }
        }
    }

    /// Reads one piece and writes of it what is taken.
    fn poll_piece(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
    ) -> Poll<io::Result<()>> {
        let mut room = ROOM.take();
        room.resize(MOST, 0);
        let mut buf = ReadBuf::new(&mut room[..self.piece]);
        let read = Pin::new(from).poll_read(cx, &mut buf);
        let filled = buf.filled();
        let carried = match read {
            Poll::Ready(Ok(())) => self.carry(cx, filled, to),
            other => other,
        };
        ROOM.set(room);
        carried
    }

    fn carry(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
        to: &mut (impl AsyncWrite + Unpin),
    ) -> Poll<io::Result<()>> {
        self.ended = bytes.is_empty();
        self.unflushed |= !self.ended;
        let mut sent = 0;
        while sent < bytes.len() {
            match write(cx, to, &bytes[sent..])? {
                Poll::Ready(more) => sent += more,
                Poll::Pending => {
                    self.kept = bytes[sent..].to_vec();
                    self.piece = LEAST;
                    return Poll::Ready(Ok(()));
                }
            }
        }
        if bytes.len() == self.piece {
            self.piece = MOST.min(self.piece * 2);
        }
        Poll::Ready(Ok(()))
    }
}

/// Writes some of the bytes.
fn write(cx: &mut Context<'_>, to: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> Poll<io::Result<usize>> {
    match ready!(Pin::new(to).poll_write(cx, bytes))? {
        0 => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
        written => Poll::Ready(Ok(written)),
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::time::timeout;

    use super::*;

    /// Bytes that tell where they stand.
    fn bytes(length: usize) -> Vec<u8> {
        (0..length)
            .map(|place| u8::try_from(place % 251).unwrap_or(0))
            .collect()
    }

    #[tokio::test]
    async fn everything_arrives_in_order_and_then_the_end_whatever_the_sizes_of_both_sides() {
        for (source, sink, length) in [
            (1, 1, 10),
            (7, 100_000, 5_000),
            (100_000, 7, 5_000),
            (1 << 20, 1 << 16, 1 << 20),
        ] {
            let (mut theirs, mut from) = duplex(source);
            let (mut to, mut reader) = duplex(sink);
            let sent = bytes(length);
            let copy = sent.clone();
            tokio::spawn(async move {
                theirs.write_all(&copy).await.expect("carried");
            });
            let carrying = tokio::spawn(async move {
                let mut flow = Flow::new();
                poll_fn(|cx| flow.poll(cx, &mut from, &mut to)).await
            });
            let mut got = Vec::new();
            reader.read_to_end(&mut got).await.expect("ends");
            assert!(got == sent, "{source} {sink}: {} of {length}", got.len());
            carrying.await.expect("no panic").expect("no error");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_takes_nothing_stops_the_reading_and_a_stream_at_rest_keeps_nothing() {
        let (mut theirs, mut from) = duplex(1 << 20);
        let (mut to, mut reader) = duplex(1000);
        theirs.write_all(&bytes(1 << 20)).await.expect("carried");
        let mut flow = Flow::new();
        let stuck = timeout(
            Duration::from_secs(1),
            poll_fn(|cx| flow.poll(cx, &mut from, &mut to)),
        );
        stuck.await.expect_err("nobody reads");
        assert!((1..=LEAST).contains(&flow.kept.len()), "{}", flow.kept.len());
        let mut got = vec![0; 1 << 20];
        let reading = reader.read_exact(&mut got);
        let carrying = timeout(
            Duration::from_secs(1),
            poll_fn(|cx| flow.poll(cx, &mut from, &mut to)),
        );
        let (read, rest) = tokio::join!(reading, carrying);
        read.expect("all of it");
        rest.expect_err("no end yet");
        assert!(got == bytes(1 << 20));
        assert_eq!(flow.kept.capacity(), 0);
    }

    #[tokio::test]
    async fn an_error_of_either_side_ends_it() {
        let (theirs, mut from) = duplex(10);
        let (mut to, reader) = duplex(10);
        drop(reader);
        let mut theirs = theirs;
        theirs.write_all(b"x").await.expect("carried");
        let mut flow = Flow::new();
        let error = poll_fn(|cx| flow.poll(cx, &mut from, &mut to))
            .await
            .expect_err("nobody is there");
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
