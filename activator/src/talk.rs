//! Where the talk on an HTTP/1.1 connection stands, and when it is over: the client has gone, or says nothing for too long.
//!
//! A reset is seen at once. The end of what a client sends (FIN) says less: it comes from a client that has closed, and
//! from one that has only finished sending and still waits for its answer. TCP tells the two apart by what they do with
//! bytes: the first resets. So while a request waits, the client is sent an interim answer, `100 Continue`, which every
//! HTTP/1.1 client must be able to skip (RFC 9110 §15.2). Nothing is ever read for this.
//!
//! Stages: `Idle => Head => Asked => Answering => Idle`.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::strict::{Fault, Strict};

/// What a client that may have gone is sent.
const ARE_YOU_THERE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
/// Between the first two questions; each pause is twice the last.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// Longest pause between two questions.
const ASK_AT_LEAST: Duration = Duration::from_secs(30);
/// How long an answer under way may be silent towards a client that has finished sending. In the middle of an answer no
/// question can be asked, and a stream nobody listens to must not keep a pod awake.
const SILENCE: Duration = Duration::from_secs(10);

/// How long a client may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// From the first byte of a head to its last.
    pub(crate) head: Duration,
    /// From the end of an answer to the first byte of the next request.
    pub(crate) idle: Duration,
}

/// Why the connection is to be dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Over {
    /// The client has gone.
    Gone,
    /// The client let its time pass.
    Late,
    /// A limit of the Route passed in the middle of an answer.
    BrokenOff,
}

const IDLE: u8 = 0;
const HEAD: u8 = 1;
/// A request waits for its answer's head, and its client understands interim answers.
const ASKED: u8 = 2;
/// The same, of a client that speaks HTTP/1.0 and does not.
const ASKED_1_0: u8 = 3;
const ANSWERING: u8 = 4;

/// One connection's talk.
#[derive(Debug)]
pub(crate) struct Talk {
    stage: AtomicU8,
    /// When the talk last became idle, or its unfinished head was first seen.
    since: Mutex<Instant>,
    /// hyper has bytes that are not yet in the socket.
    is_writing: AtomicBool,
    /// Counts writes that the socket took.
    writes: AtomicU32,
    /// When the socket was last full after it had taken something, and the count then.
    filled: Mutex<Option<(u32, Instant)>>,
    /// The answer under way is broken off.
    is_broken_off: AtomicBool,
    /// The client has finished sending.
    has_finished: AtomicBool,
    changed: Notify,
    /// Reads what the client sends before hyper does.
    strict: Mutex<Strict>,
    /// What was wrong with it.
    fault: OnceLock<Fault>,
}

impl Talk {
    /// `longest` is that of a request's head, in bytes.
    pub(crate) fn new(longest: usize) -> Self {
        Self {
            stage: AtomicU8::new(HEAD),
            since: Mutex::new(Instant::now()),
            is_writing: AtomicBool::new(false),
            writes: AtomicU32::new(0),
            filled: Mutex::new(None),
            is_broken_off: AtomicBool::new(false),
            has_finished: AtomicBool::new(false),
            changed: Notify::new(),
            strict: Mutex::new(Strict::new(longest)),
            fault: OnceLock::new(),
        }
    }

    /// What is wrong with what the client has sent.
    pub(crate) fn fault(&self) -> Option<Fault> {
        self.fault.get().copied()
    }

    /// The protocol changes: what comes now is not HTTP. Not so when bytes came that should have waited.
    pub(crate) fn switches(&self) -> bool {
        self.strict.lock().switched();
        self.fault().is_none()
    }

    /// Whether nothing of ours is on its way to the client: it can be told something.
    pub(crate) fn may_speak(&self) -> bool {
        !self.is_writing.load(Ordering::Relaxed) && matches!(self.stage(), IDLE | HEAD)
    }

    /// When the socket last took bytes of more than it had room for; `None`: it has always had room. A client that takes
    /// what it is sent, however slowly, moves it.
    pub(crate) fn filled(&self) -> Option<Instant> {
        self.filled.lock().map(|(_, at)| at)
    }

    /// The answer under way ends here, and with it the connection: a client that reads nothing would keep it.
    pub(crate) fn break_off(&self) {
        self.is_broken_off.store(true, Ordering::Relaxed);
        self.changed.notify_one();
    }

    // Everything below but `until_over` runs in the connection's own task, so relaxed order is enough.

    fn stage(&self) -> u8 {
        self.stage.load(Ordering::Relaxed)
    }

    /// Bytes came. Returns how many of them hyper may see: those before the first fault.
    pub(crate) fn heard(&self, bytes: &[u8]) -> usize {
        if self.stage() == IDLE {
            self.stage.store(HEAD, Ordering::Relaxed);
            *self.since.lock() = Instant::now();
        }
        match self.strict.lock().read(bytes) {
            Ok(()) => bytes.len(),
            Err((good, fault)) => {
                self.fault.get_or_init(|| fault);
                good
            }
        }
    }

    /// hyper waits for bytes. In the middle of a head that starts the clock anew.
    pub(crate) fn wants_more(&self) {
        if self.stage() == HEAD {
            self.changed.notify_one();
        }
    }

    /// hyper begins to write.
    pub(crate) fn writes(&self) {
        self.is_writing.store(true, Ordering::Relaxed);
    }

    /// The socket has taken something.
    pub(crate) fn wrote(&self) {
        self.writes.fetch_add(1, Ordering::Relaxed);
    }

    /// The socket takes no more. The clock is read only here, so that an answer for which there is room costs nothing.
    pub(crate) fn is_full(&self) {
        let writes = self.writes.load(Ordering::Relaxed);
        let mut filled = self.filled.lock();
        if filled.is_none_or(|(then, _)| then != writes) {
            *filled = Some((writes, Instant::now()));
        }
    }

    /// Everything is in the socket.
    pub(crate) fn has_written(&self) {
        self.is_writing.store(false, Ordering::Relaxed);
    }

    /// A request has been read and is being served.
    pub(crate) fn asked(&self, is_1_0: bool) {
        let stage = if is_1_0 { ASKED_1_0 } else { ASKED };
        self.enter(stage);
    }

    /// Its answer begins.
    pub(crate) fn answering(&self) {
        self.enter(ANSWERING);
    }

    /// Its answer has ended.
    pub(crate) fn idle(&self) {
        *self.since.lock() = Instant::now();
        self.strict.lock().answered();
        self.enter(IDLE);
    }

    fn enter(&self, stage: u8) {
        self.stage.store(stage, Ordering::Relaxed);
        if self.has_finished.load(Ordering::Relaxed) {
            self.changed.notify_one();
        }
    }

    /// Ends when the connection is to be dropped.
    ///
    /// # Cancel safety
    /// Nothing is lost by dropping it.
    pub(crate) async fn until_over(&self, stream: &TcpStream, patience: Patience) -> Over {
        let mut doubt = Doubt::default();
        loop {
            if self.is_broken_off.load(Ordering::Relaxed) {
                return Over::BrokenOff;
            }
            let has_finished = self.has_finished.load(Ordering::Relaxed);
            let wake = if has_finished {
                match doubt.look(self, stream) {
                    Ok(wake) => wake,
                    Err(over) => return over,
                }
            } else {
                None
            };
            let late = match self.stage() {
                IDLE => Some(*self.since.lock() + patience.idle),
                HEAD => Some(*self.since.lock() + patience.head),
                _ => None,
            };
            if late.is_some_and(|late| late <= Instant::now()) {
                return Over::Late;
            }
            // A talk becomes idle without a word, to spare the usual request a timer: so look again after a while.
            let soon = Instant::now() + patience.head.min(patience.idle);
            let look = match self.stage() {
                IDLE => late.unwrap_or(soon),
                _ => [wake, late].into_iter().flatten().fold(soon, Instant::min),
            };
            // The end of sending is seen beside a body that nobody reads: unlike "readable", it is not true yet.
            let interest = if has_finished {
                Interest::ERROR
            } else {
                Interest::PRIORITY.add(Interest::ERROR)
            };
            tokio::select! {
                ready = stream.ready(interest) => match ready {
                    Ok(ready) if !ready.is_error() => self.has_finished.store(true, Ordering::Relaxed),
                    _ => return Over::Gone,
                },
                () = self.changed.notified() => {}
                () = tokio::time::sleep_until(look) => {}
            }
        }
    }
}

/// What is known of a client that has finished sending.
#[derive(Debug, Default)]
struct Doubt {
    /// The stage it is about.
    stage: Option<u8>,
    /// When to ask again.
    next: Option<Instant>,
    pause: Duration,
    /// Writes when the answer was last seen moving.
    writes: u32,
}

impl Doubt {
    /// Asks if it is time to. Returns when to look again.
    fn look(&mut self, talk: &Talk, stream: &TcpStream) -> Result<Option<Instant>, Over> {
        let now = Instant::now();
        let stage = talk.stage();
        if self.stage != Some(stage) {
            *self = Self {
                stage: Some(stage),
                pause: ASK_AGAIN,
                ..Self::default()
            };
        }
        let is_due = self.next.is_none_or(|next| next <= now);
        match stage {
            ASKED if is_due && !talk.is_writing.load(Ordering::Relaxed) => {
                match stream.try_write(ARE_YOU_THERE) {
                    Ok(written) if written == ARE_YOU_THERE.len() => {}
                    // No room at all: the client has an earlier answer to read first.
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                    // Half a line cannot be taken back.
                    _ => return Err(Over::Gone),
                }
                self.next = Some(now + self.pause);
                self.pause = (self.pause * 2).min(ASK_AT_LEAST);
            }
            ANSWERING => {
                let writes = talk.writes.load(Ordering::Relaxed);
                let moves = writes != self.writes || talk.is_writing.load(Ordering::Relaxed);
                if is_due && self.next.is_some() && !moves {
                    return Err(Over::Gone);
                }
                if is_due || moves {
                    self.writes = writes;
                    self.next = Some(now + SILENCE);
                }
            }
            _ => {}
        }
        Ok(self.next)
    }
}
