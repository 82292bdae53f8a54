//! What processes write: on our terminal, each line behind its pod's name, and in a ring for `kubectl logs`.

use std::collections::{BTreeMap, VecDeque};
use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};

use bytes::Bytes;
use futures::stream;
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::broadcast;

use crate::api::{LogAnswer, LogRequest};

/// Most bytes kept of one container's run, what a line takes besides its text counted: some thousand lines, enough to see
/// why it failed.
const KEPT_BYTES: usize = 256 * 1024;

/// Longest line; longer ones are cut in two, as container runtimes do.
const LONGEST_LINE: usize = 16 * 1024;

/// Lines waiting for a slow terminal, and for a slow follower. More are dropped and counted: a process must not stand
/// still because somebody pressed Ctrl-S.
const WAITING_LINES: usize = 1024;

/// Pod's namespace, pod, container.
type Id = (String, String, String);

/// All logs. A clone is a handle.
#[derive(Clone)]
pub(crate) struct Logs {
    books: Arc<Mutex<BTreeMap<Id, Book>>>,
    terminal: Option<SyncSender<String>>,
    dropped: Arc<AtomicU64>,
    colour: bool,
}

/// The runs of one container: this one and the one before.
#[derive(Default)]
struct Book {
    now: Run,
    before: Option<Run>,
}

struct Run {
    lines: VecDeque<Line>,
    bytes: usize,
    /// Closed when the run has ended.
    follow: Option<broadcast::Sender<Line>>,
}

#[derive(Clone)]
struct Line {
    at: Timestamp,
    text: Bytes,
}

impl Line {
    /// What it costs to keep it, in bytes. An empty line is not free.
    fn size(&self) -> usize {
        self.text.len() + size_of::<Self>()
    }
}

impl Default for Run {
    fn default() -> Self {
        Self {
            lines: VecDeque::new(),
            bytes: 0,
            follow: Some(broadcast::Sender::new(WAITING_LINES)),
        }
    }
}

impl Logs {
    /// With `print`, lines also go to standard output.
    pub(crate) fn new(print: bool) -> Self {
        let terminal = print.then(|| {
            let (sender, lines) = sync_channel::<String>(WAITING_LINES);
            std::thread::spawn(move || {
                while let Ok(line) = lines.recv() {
                    // A terminal that is gone is no reason to stop the pods.
                    let _ = std::io::stdout().lock().write_all(line.as_bytes());
                }
            });
            sender
        });
        let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self {
            books: Arc::default(),
            terminal,
            dropped: Arc::default(),
            colour,
        }
    }

    /// A container starts anew: its present log becomes the previous one.
    pub(super) fn begin(&self, namespace: &str, pod: &str, container: &str) {
        let id = (namespace.to_owned(), pod.to_owned(), container.to_owned());
        let mut books = self.books.lock();
        match books.get_mut(&id) {
            Some(book) => book.before = Some(std::mem::take(&mut book.now)),
            None => drop(books.insert(id, Book::default())),
        }
    }

    /// A container's run has ended: followers end.
    pub(super) fn end(&self, namespace: &str, pod: &str, container: &str) {
        let id = (namespace.to_owned(), pod.to_owned(), container.to_owned());
        if let Some(book) = self.books.lock().get_mut(&id) {
            book.now.follow = None;
        }
    }

    /// A pod is gone, and its logs with it.
    pub(super) fn forget(&self, namespace: &str, pod: &str) {
        self.books
            .lock()
            .retain(|(in_namespace, of_pod, _), _| in_namespace != namespace || of_pod != pod);
    }

    /// Reads one output of a container to its end.
    pub(super) async fn copy(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        alone: bool,
        mut output: impl AsyncRead + Unpin,
    ) {
        let id = (namespace.to_owned(), pod.to_owned(), container.to_owned());
        let prefix = self.prefix(namespace, pod, container, alone);
        let mut buffer = vec![0; 8192];
        let mut line = Vec::new();
        while let Ok(count @ 1..) = output.read(&mut buffer).await {
            for part in buffer[..count].split_inclusive(|byte| *byte == b'\n') {
                line.extend_from_slice(part);
                while line.len() > LONGEST_LINE {
                    let rest = line.split_off(LONGEST_LINE);
                    self.write(&id, &prefix, &line);
                    line = rest;
                }
                if line.last() == Some(&b'\n') {
                    line.pop();
                    self.write(&id, &prefix, &line);
                    line.clear();
                }
            }
        }
        if !line.is_empty() {
            self.write(&id, &prefix, &line);
        }
    }

    fn prefix(&self, namespace: &str, pod: &str, container: &str, alone: bool) -> String {
        let mut name = if namespace == "default" {
            pod.to_owned()
        } else {
            format!("{namespace}/{pod}")
        };
        if !alone {
            name = format!("{name}/{container}");
        }
        if !self.colour {
            return format!("{name} | ");
        }
        // Six colours that are legible on dark and light; the same pod always has the same one.
        let colour = 31
            + pod.bytes().fold(0_u32, |sum, byte| {
                sum.wrapping_mul(31).wrapping_add(u32::from(byte))
            }) % 6;
        format!("\x1b[{colour}m{name} |\x1b[0m ")
    }

    fn write(&self, id: &Id, prefix: &str, text: &[u8]) {
        let line = Line {
            at: Timestamp::now(),
            text: Bytes::copy_from_slice(text),
        };
        if let Some(book) = self.books.lock().get_mut(id) {
            let run = &mut book.now;
            run.bytes += line.size();
            run.lines.push_back(line.clone());
            while run.bytes > KEPT_BYTES {
                let Some(oldest) = run.lines.pop_front() else {
                    break;
                };
                run.bytes -= oldest.size();
            }
            if let Some(follow) = &run.follow {
                let _ = follow.send(line);
            }
        }
        let Some(terminal) = &self.terminal else { return };
        let mut shown = format!("{prefix}{}\n", String::from_utf8_lossy(text));
        let missed = self.dropped.swap(0, Ordering::Relaxed);
        if missed > 0 {
            shown = format!("({missed} lines not shown: the terminal is too slow)\n{shown}");
        }
        if let Err(TrySendError::Full(_)) = terminal.try_send(shown) {
            self.dropped.fetch_add(missed + 1, Ordering::Relaxed);
        }
    }

    /// Answers `kubectl logs`.
    pub(crate) fn answer(&self, request: &LogRequest) -> LogAnswer {
        let books = self.books.lock();
        let of_pod: Vec<&Id> = books
            .keys()
            .filter(|(namespace, pod, _)| *namespace == request.namespace && *pod == request.pod)
            .collect();
        let container = match (request.container.as_str(), of_pod.as_slice()) {
            ("", [only]) => only.2.clone(),
            ("", _) => {
                return Err(format!(
                    "container is waiting to start: pod {} has no log yet",
                    request.pod
                ));
            }
            (name, _) => name.to_owned(),
        };
        let id = (request.namespace.clone(), request.pod.clone(), container.clone());
        let Some(book) = books.get(&id) else {
            return Err(format!(
                "container \"{container}\" in pod \"{}\" is waiting to start",
                request.pod
            ));
        };
        let run = if request.previous {
            let none = || {
                format!(
                    "previous terminated container \"{container}\" in pod \"{}\" not found",
                    request.pod
                )
            };
            book.before.as_ref().ok_or_else(none)?
        } else {
            &book.now
        };
        let first = select(run, request);
        let follow = if request.follow {
            run.follow.as_ref().map(broadcast::Sender::subscribe)
        } else {
            None
        };
        Ok(Box::pin(limited(
            first,
            follow,
            request.timestamps,
            request.limit_bytes,
        )))
    }
}

/// The lines of the past that are asked for.
fn select(run: &Run, request: &LogRequest) -> Vec<Line> {
    let since = request
        .since_seconds
        .and_then(|it| i64::try_from(it).ok())
        .and_then(|it| {
            Timestamp::now()
                .checked_sub(jiff::SignedDuration::from_secs(it))
                .ok()
        });
    let young = run
        .lines
        .iter()
        .filter(|line| since.is_none_or(|since| line.at >= since));
    let mut lines: Vec<Line> = young.cloned().collect();
    if let Some(tail) = request.tail_lines {
        let tail = usize::try_from(tail).unwrap_or(usize::MAX);
        lines.drain(..lines.len().saturating_sub(tail));
    }
    lines
}

/// Lines as bytes, then those to come, up to a number of bytes.
fn limited(
    lines: Vec<Line>,
    follow: Option<broadcast::Receiver<Line>>,
    timestamps: bool,
    limit: Option<u64>,
) -> impl futures::Stream<Item = Bytes> + Send {
    let left = limit.map_or(usize::MAX, |it| usize::try_from(it).unwrap_or(usize::MAX));
    stream::unfold(
        (lines.into_iter(), follow, left),
        move |(mut lines, mut follow, left)| async move {
            if left == 0 {
                return None;
            }
            let mut bytes = match lines.next() {
                Some(line) => written(&line, timestamps),
                None => match follow.as_mut()?.recv().await {
                    Ok(line) => written(&line, timestamps),
                    Err(broadcast::error::RecvError::Lagged(missed)) => {
                        Bytes::from(format!("({missed} lines not shown: they came too fast)\n"))
                    }
                    Err(broadcast::error::RecvError::Closed) => return None,
                },
            };
            bytes.truncate(left);
            let left = left - bytes.len();
            Some((bytes, (lines, follow, left)))
        },
    )
}

fn written(line: &Line, timestamps: bool) -> Bytes {
    let mut bytes = if timestamps {
        format!("{:.9} ", line.at).into_bytes()
    } else {
        Vec::new()
    };
    bytes.extend_from_slice(&line.text);
    bytes.push(b'\n');
    bytes.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt;

    async fn read(logs: &Logs, request: LogRequest) -> String {
        let request = LogRequest {
            namespace: "default".into(),
            pod: "a".into(),
            ..request
        };
        let stream = logs.answer(&request).expect("a log");
        let parts: Vec<Bytes> = stream.collect().await;
        String::from_utf8(parts.concat()).expect("text")
    }

    #[tokio::test]
    async fn lines_are_kept_and_cut_as_asked() {
        let logs = Logs::new(false);
        logs.begin("default", "a", "c");
        logs.copy("default", "a", "c", true, &b"one\ntwo\nthree"[..])
            .await;
        assert_eq!(read(&logs, LogRequest::default()).await, "one\ntwo\nthree\n");
        assert_eq!(
            read(
                &logs,
                LogRequest {
                    tail_lines: Some(1),
                    ..Default::default()
                }
            )
            .await,
            "three\n"
        );
        assert_eq!(
            read(
                &logs,
                LogRequest {
                    limit_bytes: Some(5),
                    ..Default::default()
                }
            )
            .await,
            "one\nt"
        );
        logs.begin("default", "a", "c");
        assert_eq!(read(&logs, LogRequest::default()).await, "");
        assert_eq!(
            read(
                &logs,
                LogRequest {
                    previous: true,
                    ..Default::default()
                }
            )
            .await,
            "one\ntwo\nthree\n"
        );
        logs.forget("default", "a");
        assert!(
            logs.answer(&LogRequest {
                pod: "a".into(),
                ..Default::default()
            })
            .is_err()
        );
    }

    #[tokio::test]
    async fn a_follower_sees_what_comes_and_ends_with_the_container() {
        let logs = Logs::new(false);
        logs.begin("default", "a", "c");
        let reader = {
            let logs = logs.clone();
            let request = LogRequest {
                namespace: "default".into(),
                pod: "a".into(),
                follow: true,
                ..Default::default()
            };
            let stream = logs.answer(&request).expect("a log");
            tokio::spawn(stream.collect::<Vec<Bytes>>())
        };
        logs.copy("default", "a", "c", true, &b"late\n"[..]).await;
        logs.end("default", "a", "c");
        assert_eq!(reader.await.expect("an end").concat(), b"late\n");
    }

    #[tokio::test]
    async fn memory_is_bounded_and_long_lines_are_cut() {
        let logs = Logs::new(false);
        logs.begin("default", "a", "c");
        let much = vec![b'x'; KEPT_BYTES * 3];
        for output in [&much[..], &b"\n".repeat(1_000_000)] {
            logs.copy("default", "a", "c", true, output).await;
            let books = logs.books.lock();
            let run = &books.values().next().expect("a book").now;
            let kept: usize = run.lines.iter().map(Line::size).sum();
            assert!(kept == run.bytes && kept <= KEPT_BYTES, "{kept} bytes");
            assert!(run.lines.len() <= KEPT_BYTES / size_of::<Line>());
            assert!(run.lines.iter().all(|line| line.text.len() <= LONGEST_LINE));
        }
    }
}
