//! Watches: what a client has not seen yet, as one JSON line each.
//!
//! States of one watch: `initial objects` (when asked for) ⇒ `history` ⇒ (`bookmark` each minute while idle) ⇒ `end`
//! (timeout, or the API ends its streams) | `410` (behind what is kept).

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures::StreamExt as _;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::read::{View, bytes_in, partial, value_in};
use super::request::Request;
use super::resources::Resource;
use super::router::Reply;
use super::selector::{Fields, Labels};
use super::status::{ApiError, Cause};
use super::store::{Change, Cursor, Stored};
use super::{Api, convert, table};

/// How often an idle watch that allows it is told the newest version, as in Kubernetes about once a minute.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);

/// How long a watch lasts that names no timeout: Kubernetes chooses 30 to 60 minutes.
const LONGEST: Duration = Duration::from_secs(3_600);

/// The annotation on the bookmark that ends the initial objects.
const INITIAL_END: &str = "k8s.io/initial-events-end";

/// Counts an open watch for as long as it lives.
struct Open(Api);

impl Open {
    fn new(api: &Api) -> Self {
        api.0.counters.watches.fetch_add(1, Ordering::Relaxed);
        Self(api.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.0.counters.watches.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Watch {
    open: Open,
    resource: Arc<Resource>,
    namespace: String,
    labels: Labels,
    fields: Fields,
    view: View,
    rows: table::Include,
    bookmarks: bool,
    cursor: Cursor,
    /// Lines to send before the history goes on.
    ready: VecDeque<Bytes>,
    /// Tables name their columns once.
    columns_sent: bool,
    deadline: Instant,
    next_bookmark: Instant,
    end: CancellationToken,
    over: bool,
}

/// Whether the objects that there are come first, if `request` says.
fn initial_events(request: &Request<'_>) -> Result<Option<bool>, ApiError> {
    let matching = request.query.get("resourceVersionMatch");
    let wrong = match (request.query.get("sendInitialEvents"), matching) {
        (None, None) => return Ok(None),
        (Some(text), Some("NotOlderThan")) => return Ok(Some(text == "true")),
        (Some(_), _) => "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        (None, Some(_)) => "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
    };
    let cause = Cause::forbidden("resourceVersionMatch", wrong);
    Err(ApiError::invalid("meta.k8s.io", "ListOptions", "", &[cause]))
}

/// How long the watch goes on.
fn lasts(request: &Request<'_>) -> Result<Duration, ApiError> {
    let seconds = request.query.number("timeoutSeconds")?;
    let asked = seconds.filter(|&seconds| seconds > 0).map(Duration::from_secs);
    Ok(asked.map_or(LONGEST, |asked| asked.min(LONGEST)))
}

/// Starts the watch that `request` asks for.
pub(crate) fn start(request: &Request<'_>) -> Result<Reply, ApiError> {
    let store = &request.api.0.store;
    let resource = &request.resource;
    let (labels, fields) = (request.labels()?, request.fields()?);
    let bookmarks = request.query.flag("allowWatchBookmarks");
    let version = request.query.number("resourceVersion")?;
    let streaming = initial_events(request)?;
    let from_now = streaming.unwrap_or(matches!(version, None | Some(0)));
    let namespace = (!request.namespace.is_empty()).then_some(request.namespace.as_str());
    let (initial, cursor) = if from_now {
        let (objects, version) = store.list(&resource.storage, namespace);
        (objects, store.watch(&resource.storage, version))
    } else {
        (Vec::new(), store.watch(&resource.storage, version.unwrap_or(0)))
    };
    let now = Instant::now();
    let mut watch = Watch {
        open: Open::new(request.api),
        resource: Arc::clone(resource),
        namespace: request.namespace.clone(),
        labels,
        fields,
        view: View::of(request)?,
        rows: table::include(request),
        bookmarks,
        cursor,
        ready: VecDeque::new(),
        columns_sent: false,
        deadline: now + lasts(request)?,
        next_bookmark: now + BOOKMARK_EVERY,
        end: request.api.stream_token(),
        over: false,
    };
    watch.begin(initial, streaming == Some(true));
    let lines = futures::stream::unfold(watch, |mut watch| async move {
        let line = watch.next().await?;
        Some((Ok::<_, std::io::Error>(Frame::data(line)), watch))
    });
    Ok(Reply::Stream(
        "application/json",
        StreamBody::new(lines.boxed()).boxed_unsync(),
    ))
}

impl Watch {
    fn wants(&self, value: &Value) -> bool {
        (self.namespace.is_empty() || value["metadata"]["namespace"] == self.namespace.as_str())
            && self.labels.matches(value)
            && (self.fields.is_empty() || self.fields.matches(&convert::shown(&self.resource, value)))
    }

    /// Makes what there is at first ready, and with `marked` a bookmark behind it.
    fn begin(&mut self, initial: Vec<Arc<Stored>>, marked: bool) {
        for stored in initial {
            if self.wants(&stored.value) {
                let line = self.line("ADDED", &stored);
                self.ready.push_back(line);
            }
        }
        if marked && self.bookmarks {
            let line = self.bookmark(true);
            self.ready.push_back(line);
        }
    }

    /// The next lines; none: the watch is over.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if self.end.is_cancelled() {
                return None;
            }
            if let Some(lines) = self.take_ready() {
                return Some(lines);
            }
            if self.over {
                return None;
            }
            match self.cursor.read(&self.open.0.0.store) {
                Err(error) => {
                    self.open
                        .0
                        .0
                        .counters
                        .watches_expired
                        .fetch_add(1, Ordering::Relaxed);
                    self.over = true;
                    let line = json!({ "type": "ERROR", "object": error.to_status() });
                    return Some(Bytes::from(format!("{line}\n")));
                }
                Ok(changes) if changes.is_empty() => {
                    let (end, deadline, bookmark) = (self.end.clone(), self.deadline, self.next_bookmark);
                    tokio::select! {
                        () = self.cursor.changed() => {}
                        () = end.cancelled() => return None,
                        () = tokio::time::sleep_until(deadline) => {
                            // The last word says how far the client has got.
                            self.over = true;
                            if self.bookmarks {
                                return Some(self.bookmark(false));
                            }
                            return None;
                        }
                        () = tokio::time::sleep_until(bookmark) => {
                            self.next_bookmark += BOOKMARK_EVERY;
                            if self.bookmarks {
                                return Some(self.bookmark(false));
                            }
                        }
                    }
                }
                Ok(changes) => {
                    for change in changes {
                        if let Some(line) = self.change(&change) {
                            self.ready.push_back(line);
                        }
                    }
                    if Instant::now() >= self.deadline {
                        self.over = true;
                    }
                }
            }
        }
    }

    /// All lines that are ready, up to 64 KiB, as one piece.
    fn take_ready(&mut self) -> Option<Bytes> {
        const PIECE: usize = 64 << 10;
        let first = self.ready.pop_front()?;
        if self.ready.is_empty() {
            return Some(first);
        }
        let mut piece = BytesMut::from(first.as_ref());
        while let Some(line) = self.ready.front() {
            if piece.len() + line.len() > PIECE {
                break;
            }
            piece.put_slice(line);
            self.ready.pop_front();
        }
        Some(piece.freeze())
    }

    /// What a change means to a watcher that sees only some objects.
    fn change(&mut self, change: &Change) -> Option<Bytes> {
        if !self.namespace.is_empty() && change.key.0 != self.namespace {
            return None;
        }
        let before = change
            .before
            .as_ref()
            .is_some_and(|stored| self.wants(&stored.value));
        let after = !change.deleted && self.wants(&change.after.value);
        Some(match (before, after) {
            (false, false) => return None,
            (false, true) => self.line("ADDED", &change.after),
            (true, true) => self.line("MODIFIED", &change.after),
            (true, false) if change.deleted => self.line("DELETED", &change.after),
            (true, false) => {
                // It left the selection: its last state in it, under the version of the change.
                let last = Stored::new(change.before.as_ref()?.value.clone(), change.version);
                self.line("DELETED", &last)
            }
        })
    }

    fn line(&mut self, event: &str, stored: &Stored) -> Bytes {
        let object = match self.view {
            View::Plain => bytes_in(&self.resource, stored),
            View::Partial => Bytes::from(partial(&stored.value).to_string()),
            View::Table => {
                let value = value_in(&self.resource, stored);
                let version = stored.version.to_string();
                let columns = !std::mem::replace(&mut self.columns_sent, true);
                let table = table::table(&self.resource, &[&value], &version, "", None, columns, self.rows);
                Bytes::from(table.to_string())
            }
        };
        wrap(event, &object)
    }

    fn bookmark(&self, initial_end: bool) -> Bytes {
        let version = self.cursor.version().to_string();
        let mut metadata = json!({ "resourceVersion": version, "creationTimestamp": null });
        if initial_end {
            metadata["annotations"] = json!({ INITIAL_END: "true" });
        }
        let mut object = json!({
            "kind": self.resource.kind, "apiVersion": self.resource.api_version(), "metadata": metadata,
        });
        if self.view == View::Table {
            // A table's bookmark carries the object in its one row.
            object = table::bookmark(&object);
        } else if self.view == View::Partial {
            object["kind"] = json!("PartialObjectMetadata");
            object["apiVersion"] = json!("meta.k8s.io/v1");
        }
        wrap("BOOKMARK", object.to_string().as_bytes())
    }
}

fn wrap(event: &str, object: &[u8]) -> Bytes {
    let mut line = BytesMut::with_capacity(object.len() + 40);
    line.put_slice(b"{\"type\":\"");
    line.put_slice(event.as_bytes());
    line.put_slice(b"\",\"object\":");
    line.put_slice(object);
    line.put_slice(b"}\n");
    line.freeze()
}
