//! What an HTTP/2 client sends, counted frame by frame before hyper reads it. Pure but for the clock; nothing is copied.
//!
//! hyper and h2 bound what a client can make them keep (reset streams, CONTINUATION frames, unanswered pings), and end the
//! connection beyond it. They do not bound how fast a client that reads its answers may ask for work that is none of a
//! request's: pings, settings, resets, priorities, empty data. So that is bounded here.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::hub::Hub;

/// Frames that ask for work without a request, in one second of one connection. A gRPC client that measures a fast link
/// by pings sends some thousands; at a microsecond each this is a hundredth of a core.
const MOST: u32 = 10_000;
const SECOND: Duration = Duration::from_secs(1);

const PREFACE: u32 = 24;
const HEAD: usize = 9;

/// Frames that are counted, by the name in metrics.
const CAUSES: [&str; 6] = [
    "ping_flood",
    "settings_flood",
    "reset_flood",
    "priority_flood",
    "empty_data_flood",
    "unknown_frame_flood",
];

/// Why we ended a connection, by its name in metrics: a closed set. `None`: its client did.
pub(crate) fn cause(error: &hyper::Error, seen: &Seen) -> Option<&'static str> {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        if text.contains("keep-alive timed out") {
            return Some("no_pong");
        }
        if let Some(flood) = CAUSES.iter().find(|cause| text.contains(**cause)) {
            return Some(flood);
        }
        let ours = error
            .downcast_ref::<h2::Error>()
            .filter(|error| error.is_library());
        if let Some(reason) = ours.and_then(h2::Error::reason) {
            return Some(match reason {
                h2::Reason::PROTOCOL_ERROR => "protocol_error",
                h2::Reason::FLOW_CONTROL_ERROR => "flow_control_error",
                h2::Reason::FRAME_SIZE_ERROR => "frame_size_error",
                h2::Reason::COMPRESSION_ERROR => "compression_error",
                h2::Reason::STREAM_CLOSED => "stream_closed",
                h2::Reason::ENHANCE_YOUR_CALM => seen.excess(),
                _ => "other",
            });
        }
        next = error.source();
    }
    None
}

/// What there was of the frames that the library bounds. It says only that there were too many of some.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    resets: AtomicU32,
    continuations: AtomicU32,
}

impl Seen {
    /// Of what there were too many.
    fn excess(&self) -> &'static str {
        let resets = self.resets.load(Ordering::Relaxed);
        let continuations = self.continuations.load(Ordering::Relaxed);
        match resets.max(continuations) {
            0 => "enhance_your_calm",
            most if most == resets => "rapid_reset",
            _ => "continuation_flood",
        }
    }
}

/// A reader of one connection's frame heads.
#[derive(Debug)]
struct Frames {
    head: [u8; HEAD],
    /// Bytes of `head` that have come.
    has: usize,
    /// Bytes before the next head.
    skip: u32,
    /// Bytes of the header block under way.
    block: usize,
    longest_block: usize,
    /// Since when is counted.
    since: Instant,
    counts: [u32; CAUSES.len()],
    seen: Arc<Seen>,
}

impl Frames {
    fn new(longest_block: usize, now: Instant) -> Self {
        Self {
            seen: Arc::default(),
            head: [0; HEAD],
            has: 0,
            skip: PREFACE,
            block: 0,
            longest_block,
            since: now,
            counts: [0; CAUSES.len()],
        }
    }

    /// Reads on. Returns how many header blocks became longer than allowed; those are refused by the library.
    ///
    /// # Errors
    /// The cause for which the connection is to end.
    fn read(&mut self, mut bytes: &[u8], now: impl Fn() -> Instant) -> Result<u64, &'static str> {
        let mut long = 0;
        while !bytes.is_empty() {
            if self.skip > 0 {
                let skipped = bytes.len().min(self.skip as usize);
                bytes = &bytes[skipped..];
                self.skip -= u32::try_from(skipped).unwrap_or(self.skip);
                continue;
            }
            let taken = bytes.len().min(HEAD - self.has);
            self.head[self.has..self.has + taken].copy_from_slice(&bytes[..taken]);
            self.has += taken;
            bytes = &bytes[taken..];
            if self.has == HEAD {
                self.has = 0;
                self.skip = u32::from_be_bytes([0, self.head[0], self.head[1], self.head[2]]);
                long += u64::from(self.frame(&now)?);
            }
        }
        Ok(long)
    }

    /// Judges the frame whose head has come. Returns whether its header block has just become too long.
    fn frame(&mut self, now: &impl Fn() -> Instant) -> Result<bool, &'static str> {
        const END_STREAM: u8 = 1;
        let (length, kind, flags) = (self.skip as usize, self.head[3], self.head[4]);
        let counted = match kind {
            0 if length > 0 || flags & END_STREAM != 0 => None,
            0 => Some(4),
            1 | 9 => {
                let before = if kind == 1 { 0 } else { self.block };
                self.block = before.saturating_add(length);
                if kind == 9 {
                    self.seen.continuations.fetch_add(1, Ordering::Relaxed);
                }
                return Ok(before <= self.longest_block && self.block > self.longest_block);
            }
            2 => Some(3),
            3 => {
                self.seen.resets.fetch_add(1, Ordering::Relaxed);
                Some(2)
            }
            4 => Some(1),
            6 => Some(0),
            // PUSH_PROMISE and GOAWAY are judged by the library; windows open as fast as data is read.
            5 | 7 | 8 => None,
            _ => Some(5),
        };
        let Some(counted) = counted else { return Ok(false) };
        let now = now();
        if now.saturating_duration_since(self.since) >= SECOND {
            self.since = now;
            self.counts = [0; CAUSES.len()];
        }
        self.counts[counted] += 1;
        if self.counts.iter().sum::<u32>() <= MOST {
            return Ok(false);
        }
        let most = self.counts.iter().zip(CAUSES).max_by_key(|(count, _)| **count);
        Err(most.map_or(CAUSES[counted], |(_, cause)| cause))
    }
}

/// A client's socket whose frames are counted.
pub(crate) struct Watched {
    stream: TcpStream,
    frames: Frames,
    hub: Arc<Hub>,
}

impl Watched {
    pub(crate) fn new(stream: TcpStream, hub: Arc<Hub>) -> Self {
        let frames = Frames::new(hub.config.max_header_bytes, Instant::now());
        Self { stream, frames, hub }
    }

    /// What there is of it, for who is left when it has ended.
    pub(crate) fn seen(&self) -> Arc<Seen> {
        Arc::clone(&self.frames.seen)
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        match self.frames.read(&buf.filled()[before..], Instant::now) {
            Ok(0) => {}
            Ok(long) => {
                let faults = &self.hub.metrics.h2_faults;
                faults.with_label_values(&["header_list"]).inc_by(long);
            }
            Err(cause) => return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, cause))),
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, flags: u8, length: usize) -> Vec<u8> {
        let mut frame = u32::try_from(length).expect("short").to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags, 0, 0, 0, 0]);
        frame.resize(HEAD + length, 0xff);
        frame
    }

    fn connection(frames: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        bytes.extend(frames.concat());
        bytes
    }

    #[test]
    fn frames_that_ask_for_nothing_are_bounded_by_the_second() {
        let many = MOST as usize + 1;
        type Row<'a> = (&'a str, Vec<Vec<u8>>, Result<u64, &'static str>);
        let rows: [Row<'_>; 9] = [
            ("pings", vec![frame(6, 0, 8); many], Err("ping_flood")),
            ("settings", vec![frame(4, 0, 6); many], Err("settings_flood")),
            ("resets", vec![frame(3, 0, 4); many], Err("reset_flood")),
            ("priorities", vec![frame(2, 0, 5); many], Err("priority_flood")),
            ("empty data", vec![frame(0, 0, 0); many], Err("empty_data_flood")),
            (
                "frames nobody knows",
                vec![frame(99, 0, 1); many],
                Err("unknown_frame_flood"),
            ),
            ("as many pings as allowed", vec![frame(6, 0, 8); many - 1], Ok(0)),
            ("requests", vec![frame(1, 5, 30); many], Ok(0)),
            (
                "data and windows",
                [vec![frame(0, 0, 10); many], vec![frame(8, 0, 4); many]].concat(),
                Ok(0),
            ),
        ];
        for (what, frames, wanted) in rows {
            let start = Instant::now();
            let mut reader = Frames::new(1000, start);
            assert_eq!(reader.read(&connection(&frames), || start), wanted, "{what}");
        }
    }

    #[test]
    fn a_second_later_all_is_forgotten() {
        let start = Instant::now();
        let mut reader = Frames::new(1000, start);
        let pings = frame(6, 0, 8).repeat(MOST as usize);
        assert_eq!(reader.read(&connection(&[]), || start), Ok(0));
        for second in 0..3 {
            assert_eq!(
                reader.read(&pings, || start + SECOND * second),
                Ok(0),
                "second {second}"
            );
        }
        assert!(reader.read(&pings, || start + SECOND * 2).is_err());
    }

    #[test]
    fn a_header_block_that_becomes_too_long_counts_once() {
        let rows = [
            (vec![frame(1, 0, 900), frame(9, 0, 90), frame(9, 4, 10)], 0),
            (vec![frame(1, 0, 900), frame(9, 0, 101), frame(9, 4, 500)], 1),
            (vec![frame(1, 5, 1001), frame(1, 5, 1001), frame(1, 5, 5)], 2),
        ];
        for (frames, wanted) in rows {
            let mut reader = Frames::new(1000, Instant::now());
            assert_eq!(reader.read(&connection(&frames), Instant::now), Ok(wanted));
        }
    }

    proptest! {
        /// However the bytes are cut into reads, the same is counted, and no bytes panic.
        #[test]
        fn cuts_change_nothing(
            bytes in prop::collection::vec(any::<u8>(), 0..400),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let start = Instant::now();
            let mut whole = Frames::new(100, start);
            let wanted = whole.read(&bytes, || start);
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let mut pieces = Frames::new(100, start);
            let mut sum = Ok(0);
            for pair in cuts.windows(2) {
                sum = sum.and_then(|sum: u64| Ok(sum + pieces.read(&bytes[pair[0]..pair[1]], || start)?));
            }
            prop_assert_eq!(sum, wanted);
            prop_assert_eq!((pieces.counts, pieces.skip, pieces.has), (whole.counts, whole.skip, whole.has));
        }
    }
}
