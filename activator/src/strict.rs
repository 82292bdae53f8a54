//! What an HTTP/1.1 client sends, read strictly before hyper reads it. Pure; nothing is copied but a line in pieces.
//!
//! hyper is lenient where it is safe for hyper: it takes a line that ends without a carriage return, a length given
//! twice, a length beside chunks, blanks after a chunk's size, and forgets what it saw. Another party on the way may read
//! such a message differently, and then one request hides in another (RFC 9112 §11.2). So whatever has two readings is
//! refused here, before a pod sees it, and the connection with it.
//!
//! Lines are judged whole. States: `Start => Fields => (Start | Length | Size)`, `Size => (Data => DataEnd => Size |
//! Trailers => Start)`; an upgrade leads to `Asked`, where nothing may follow until it is answered.

/// Longest line with a chunk's size, extensions included; nobody sends extensions.
const LONGEST_SIZE: usize = 1024;
const LONG_SIZE: Fault = "a chunk's size in a line of more than 1 KiB";

/// Why a message is refused.
pub(crate) type Fault = &'static str;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Between messages.
    Start,
    Fields,
    /// Bytes of a body of known length that are still to come.
    Length(u64),
    /// A chunk's size comes.
    Size,
    /// Bytes of a chunk that are still to come.
    Data(u64),
    /// The line's end after a chunk.
    DataEnd,
    Trailers,
    /// A request to upgrade waits for its answer.
    Asked,
    /// Not HTTP any more, or hyper's to refuse.
    Blind,
}

/// What a head has said so far.
#[derive(Clone, Copy, Debug, Default)]
struct Head {
    is_1_0: bool,
    hosts: u32,
    length: Option<u64>,
    is_chunked: bool,
    upgrades: bool,
}

/// A reader of one connection.
#[derive(Debug)]
pub(crate) struct Strict {
    state: State,
    head: Head,
    /// The beginning of a line whose end has not come.
    begun: Vec<u8>,
    /// Longest line; a longer one is hyper's to refuse.
    longest: usize,
}

impl Strict {
    /// `longest` is that of a whole head.
    pub(crate) fn new(longest: usize) -> Self {
        Self {
            state: State::Start,
            head: Head::default(),
            begun: Vec::new(),
            longest,
        }
    }

    /// A request has been answered: one that wanted to upgrade has not been.
    pub(crate) fn answered(&mut self) {
        if self.state == State::Asked {
            self.state = State::Start;
        }
    }

    /// The protocol has changed.
    pub(crate) fn switched(&mut self) {
        self.state = State::Blind;
    }

    /// Reads on.
    ///
    /// # Errors
    /// How many of the bytes come before the fault, and the fault.
    pub(crate) fn read(&mut self, bytes: &[u8]) -> Result<(), (usize, Fault)> {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            match self.state {
                State::Blind => return Ok(()),
                State::Asked => return Err((at, "bytes after a request to upgrade, before its answer")),
                State::Length(left) => {
                    let taken = left.min(rest.len() as u64);
                    at += usize::try_from(taken).unwrap_or(rest.len());
                    self.state = match left - taken {
                        0 => self.next(),
                        left => State::Length(left),
                    };
                }
                State::Data(left) => {
                    let taken = left.min(rest.len() as u64);
                    at += usize::try_from(taken).unwrap_or(rest.len());
                    self.state = match left - taken {
                        0 => State::DataEnd,
                        left => State::Data(left),
                    };
                }
                _ => match rest.iter().position(|byte| *byte == b'\n') {
                    None => {
                        self.begin(rest).map_err(|fault| (at, fault))?;
                        return Ok(());
                    }
                    Some(end) => {
                        let fault = if self.begun.is_empty() {
                            self.line(&rest[..end])
                        } else {
                            let mut line = std::mem::take(&mut self.begun);
                            line.extend_from_slice(&rest[..end]);
                            self.line(&line)
                        };
                        fault.map_err(|fault| (at, fault))?;
                        at += end + 1;
                    }
                },
            }
        }
        Ok(())
    }

    /// Keeps the beginning of a line.
    fn begin(&mut self, start: &[u8]) -> Result<(), Fault> {
        let length = self.begun.len() + start.len();
        if self.state == State::Size && length > LONGEST_SIZE {
            return Err(LONG_SIZE);
        }
        if length > self.longest {
            self.state = State::Blind;
            self.begun = Vec::new();
            return Ok(());
        }
        self.begun.extend_from_slice(start);
        Ok(())
    }

    /// Judges one line, without its line feed.
    fn line(&mut self, line: &[u8]) -> Result<(), Fault> {
        let Some(line) = line.strip_suffix(b"\r") else {
            return Err("a line that ends without a carriage return");
        };
        match self.state {
            State::Start if line.is_empty() => {}
            State::Start => {
                self.head = Head {
                    is_1_0: request_line(line)?,
                    ..Head::default()
                };
                self.state = State::Fields;
            }
            State::Fields if line.is_empty() => self.state = self.body()?,
            State::Fields => self.field(line)?,
            State::Size if line.len() > LONGEST_SIZE => return Err(LONG_SIZE),
            State::Size => {
                self.state = match size(line)? {
                    0 => State::Trailers,
                    size => State::Data(size),
                };
            }
            State::DataEnd if line.is_empty() => self.state = State::Size,
            State::DataEnd => return Err("a chunk that is longer than its size"),
            State::Trailers if line.is_empty() => self.state = self.next(),
            State::Trailers => drop(name_and_value(line)?),
            State::Length(_) | State::Data(_) | State::Asked | State::Blind => {}
        }
        Ok(())
    }

    /// What follows the message.
    fn next(&self) -> State {
        if self.head.upgrades {
            State::Asked
        } else {
            State::Start
        }
    }

    /// Reads a field of a head.
    fn field(&mut self, line: &[u8]) -> Result<(), Fault> {
        let (name, value) = name_and_value(line)?;
        let head = &mut self.head;
        if name.eq_ignore_ascii_case(b"host") {
            head.hosts += 1;
            check_host(value)?;
        } else if name.eq_ignore_ascii_case(b"content-length") {
            if head.length.is_some() {
                return Err("Content-Length twice");
            }
            head.length = Some(length(value)?);
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if head.is_chunked {
                return Err("Transfer-Encoding twice");
            }
            if !value.eq_ignore_ascii_case(b"chunked") {
                return Err("a Transfer-Encoding other than chunked");
            }
            head.is_chunked = true;
        } else if name.eq_ignore_ascii_case(b"upgrade") {
            // RFC 9110 §7.8: HTTP/1.0 has no upgrades, so the next request may follow at once.
            head.upgrades = !head.is_1_0;
        }
        Ok(())
    }

    /// The end of a head: what body follows.
    fn body(&self) -> Result<State, Fault> {
        let head = &self.head;
        match (head.hosts, head.is_1_0) {
            (1, _) | (0, true) => {}
            (0, false) => return Err("an HTTP/1.1 request needs a Host field"),
            _ => return Err("Host twice"),
        }
        match (head.length, head.is_chunked) {
            (Some(_), true) => Err("both Content-Length and Transfer-Encoding"),
            (None, true) if head.is_1_0 => Err("Transfer-Encoding in HTTP/1.0"),
            (None, true) => Ok(State::Size),
            (Some(length), false) if length > 0 => Ok(State::Length(length)),
            _ => Ok(self.next()),
        }
    }
}

/// Judges a request line. Returns whether it is of HTTP/1.0.
fn request_line(line: &[u8]) -> Result<bool, Fault> {
    let mut parts = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err("a request line that is not METHOD TARGET VERSION with one space between");
    };
    if method.is_empty() || !method.iter().all(|byte| is_token(*byte)) {
        return Err("a method that is no token");
    }
    check_target(method, target)?;
    match version {
        b"HTTP/1.1" => Ok(false),
        b"HTTP/1.0" => Ok(true),
        _ => Err("a version other than HTTP/1.1 and HTTP/1.0"),
    }
}

/// RFC 9112 §3.2.
fn check_target(method: &[u8], target: &[u8]) -> Result<(), Fault> {
    if !target.iter().all(|byte| (0x21..=0x7e).contains(byte)) {
        return Err("a target with bytes that must be percent-encoded");
    }
    if target.contains(&b'#') {
        return Err("a target with a fragment");
    }
    let absolute = [&b"http://"[..], b"https://"].into_iter().find(|scheme| {
        target
            .get(..scheme.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(scheme))
    });
    match (method, target) {
        // Refused with a sentence of its own, once hyper has read it.
        (b"CONNECT", _) | (_, [b'/', ..]) | (b"OPTIONS", b"*") => Ok(()),
        _ => {
            let Some(scheme) = absolute else {
                return Err("a target that is neither a path nor an http address");
            };
            let authority = target[scheme.len()..]
                .split(|byte| matches!(byte, b'/' | b'?'))
                .next()
                .unwrap_or_default();
            if authority.is_empty() {
                return Err("a target without a host");
            }
            check_host(authority)
        }
    }
}

/// RFC 9110 §7.2: a host and perhaps a port. It may be empty.
pub(crate) fn check_host(host: &[u8]) -> Result<(), Fault> {
    const FAULT: Fault = "a Host that is no host";
    let (name, port) = if let Some(rest) = host.strip_prefix(b"[") {
        let Some(end) = rest.iter().position(|byte| *byte == b']') else {
            return Err(FAULT);
        };
        let (name, port) = (&rest[..end], &rest[end + 1..]);
        let is_address = |byte: &u8| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.');
        if name.is_empty() || !name.iter().all(is_address) {
            return Err(FAULT);
        }
        (&name[..0], port)
    } else {
        let end = host.iter().position(|byte| *byte == b':').unwrap_or(host.len());
        host.split_at(end)
    };
    let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=".contains(byte);
    let is_port = match port {
        [] => true,
        [b':', digits @ ..] => digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    if name.iter().all(is_name) && is_port {
        Ok(())
    } else {
        Err(FAULT)
    }
}

/// Takes a field line apart. RFC 9112 §5.
fn name_and_value(line: &[u8]) -> Result<(&[u8], &[u8]), Fault> {
    if matches!(line.first(), Some(b' ' | b'\t')) {
        return Err("a field that goes on in the next line");
    }
    let Some(end) = line.iter().position(|byte| *byte == b':') else {
        return Err("a field without a colon");
    };
    let (name, value) = (&line[..end], &line[end + 1..]);
    if matches!(name.last(), Some(b' ' | b'\t')) {
        return Err("a blank before a field's colon");
    }
    if name.is_empty() || !name.iter().all(|byte| is_token(*byte)) {
        return Err("a field name that is no token");
    }
    if value
        .iter()
        .any(|byte| (*byte < 0x20 && *byte != b'\t') || *byte == 0x7f)
    {
        return Err("a control character in a field");
    }
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let from = value
        .iter()
        .position(|byte| !is_blank(byte))
        .unwrap_or(value.len());
    let to = value
        .iter()
        .rposition(|byte| !is_blank(byte))
        .map_or(from, |at| at + 1);
    Ok((name, &value[from..to]))
}

/// A body's length: digits, nothing else, up to 2⁶³.
fn length(value: &[u8]) -> Result<u64, Fault> {
    number(value, 10).ok_or("a Content-Length that is no number")
}

/// A chunk's size, before its extensions.
fn size(line: &[u8]) -> Result<u64, Fault> {
    let end = line.iter().position(|byte| *byte == b';').unwrap_or(line.len());
    if line[end..]
        .iter()
        .any(|byte| (*byte < 0x20 && *byte != b'\t') || *byte == 0x7f)
    {
        return Err("a control character in a chunk's extension");
    }
    number(&line[..end], 16).ok_or("a chunk's size that is no number")
}

fn number(digits: &[u8], radix: u32) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    let number = digits.iter().try_fold(0_u64, |number, byte| {
        let digit = char::from(*byte).to_digit(radix)?;
        number
            .checked_mul(u64::from(radix))?
            .checked_add(u64::from(digit))
    });
    number.filter(|number| *number <= u64::MAX / 2)
}

/// RFC 9110 §5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &[&str] = &[
        "GET / HTTP/1.1\r\nhost: web\r\n\r\n",
        "\r\nGET /a?b=%20 HTTP/1.0\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: [::1]:80\r\n\r\n",
        "GET http://web:80/ HTTP/1.1\r\nhost:\t web \r\nx:\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: web\r\ncontent-length: 5\r\n\r\nGET /GET / HTTP/1.1\r\nhost: web\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: web\r\ntransfer-encoding: Chunked\r\n\r\n5;a=b\r\n\r\n\r\n\n\r\n0\r\nx: y\r\n\r\n\
         GET / HTTP/1.1\r\nhost: web\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: web\r\nx: caf\u{e9}\r\n\r\n",
        "GET / HTTP/1.0\r\nconnection: upgrade\r\nupgrade: x\r\n\r\nGET / HTTP/1.0\r\n\r\n",
    ];

    fn whole(bytes: &[u8]) -> Result<State, (usize, Fault)> {
        let mut strict = Strict::new(65_536);
        strict.read(bytes).map(|()| strict.state)
    }

    #[test]
    fn good_messages_pass_one_after_the_other() {
        for text in GOOD {
            assert_eq!(whole(text.as_bytes()), Ok(State::Start), "{text}");
        }
    }

    #[test]
    fn what_follows_an_upgrade_waits_for_the_answer() {
        let upgrade = b"GET / HTTP/1.1\r\nhost: web\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n";
        let mut strict = Strict::new(65_536);
        assert_eq!(strict.read(upgrade), Ok(()));
        assert!(strict.read(b"x").is_err());
        strict.answered();
        assert_eq!(strict.read(GOOD[0].as_bytes()), Ok(()));
        assert_eq!(strict.read(upgrade), Ok(()));
        strict.switched();
        assert_eq!(strict.read(b"\x00\n\n"), Ok(()));
    }

    #[test]
    fn a_line_that_never_ends_is_kept_only_up_to_its_bound() {
        let mut strict = Strict::new(100);
        assert_eq!(strict.read(&[b'x'; 1000]), Ok(()));
        assert_eq!((strict.state, strict.begun.capacity()), (State::Blind, 0));
    }

    proptest! {
        /// However the bytes are cut into reads, the verdict is the same, and no input panics.
        #[test]
        fn cuts_do_not_change_the_verdict(
            good in prop::sample::select(GOOD),
            noise in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let mut bytes = good.as_bytes().to_vec();
            for (at, byte) in noise {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let mut strict = Strict::new(65_536);
            let mut pieces = Ok(());
            for pair in cuts.windows(2) {
                pieces = pieces.and_then(|()| strict.read(&bytes[pair[0]..pair[1]]));
            }
            let wanted = whole(&bytes);
            prop_assert_eq!(pieces.map(|()| strict.state).map_err(|fault| fault.1), wanted.map_err(|fault| fault.1));
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = whole(&bytes);
        }
    }
}
