//! Kubernetes Events: bounded, written behind everything else, repeats counted in one object.
//!
//! Told only while we lead, and written even if we do so no more then: what they tell of has happened. One that the API server
//! does not take because it is away or busy is tried again a few times.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::{Event, EventSeries};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use prometheus::IntCounterVec;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Error, answered};
use crate::lease::Term;

/// Notices that may wait: a start-up of 1,000 Services with one each fits.
const WAITING: usize = 1024;
/// How long a repeat is counted into the Event it repeats, as the API server's own aggregation does.
const SAME_FOR: Duration = Duration::from_secs(600);
/// A repeat is written at most this often: its count is for reading, not for counting.
const REPEAT_EVERY: Duration = Duration::from_secs(60);
/// Events remembered; beyond it the expired go, then all.
const REMEMBERED: usize = 4096;
/// Waits before an Event is tried again that may pass later. Those behind it wait in the queue.
const AGAIN: [Duration; 3] = [
    Duration::from_millis(200),
    Duration::from_secs(1),
    Duration::from_secs(5),
];
/// Longest note that the API accepts, in bytes.
const LONGEST_NOTE: usize = 1024;

/// What an Event is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Subject {
    /// `Service`, `Deployment`, `StatefulSet`, `Route` or `Rollout`.
    pub(crate) kind: &'static str,
    /// Namespace.
    pub(crate) namespace: String,
    /// Name.
    pub(crate) name: String,
    /// uid.
    pub(crate) uid: String,
}

/// Something to tell users.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Notice {
    /// What it is about.
    pub(crate) subject: Subject,
    /// `Warning`, else `Normal`.
    pub(crate) warning: bool,
    /// One word in CamelCase.
    pub(crate) reason: &'static str,
    /// What was done or tried, one word in CamelCase.
    pub(crate) action: &'static str,
    /// One sentence.
    pub(crate) note: String,
}

#[derive(Clone)]
pub(super) struct Sender {
    queue: mpsc::Sender<Notice>,
    term: Term,
    results: IntCounterVec,
}

impl Sender {
    pub(super) fn send(&self, notice: Notice) {
        if !self.term.lasts() || self.queue.try_send(notice).is_err() {
            self.results.with_label_values(&["dropped"]).inc();
        }
    }
}

/// Writes Events, one at a time.
pub(crate) struct EventWriter {
    client: Client,
    name: String,
    queue: mpsc::Receiver<Notice>,
    results: IntCounterVec,
    known: HashMap<Notice, Known>,
}

struct Known {
    name: String,
    count: i32,
    seen: Instant,
    written: Instant,
}

pub(super) fn channel(
    client: Client,
    term: Term,
    name: &str,
    results: IntCounterVec,
) -> (Sender, EventWriter) {
    let (queue, receiver) = mpsc::channel(WAITING);
    let writer = EventWriter {
        client,
        name: name.to_owned(),
        queue: receiver,
        results: results.clone(),
        known: HashMap::new(),
    };
    let sender = Sender { queue, term, results };
    (sender, writer)
}

impl EventWriter {
    /// Writes what comes until `stop`, and then what still waits.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                notice = self.queue.recv() => match notice {
                    Some(notice) => self.write(notice).await,
                    None => return,
                },
            }
        }
        while let Ok(notice) = self.queue.try_recv() {
            self.write(notice).await;
        }
    }

    async fn write(&mut self, mut notice: Notice) {
        cut(&mut notice.note, LONGEST_NOTE);
        self.forget(&notice);
        let result = match self.known.get_mut(&notice) {
            Some(known) => {
                known.count = known.count.saturating_add(1);
                known.seen = Instant::now();
                if known.written.elapsed() < REPEAT_EVERY {
                    self.results.with_label_values(&["repeated"]).inc();
                    return;
                }
                known.written = Instant::now();
                repeat(&self.client, &notice, known).await
            }
            None => self.create(notice).await,
        };
        let label = match result {
            Ok(()) => "written",
            Err(error) => {
                tracing::debug!(%error, "event");
                "failed"
            }
        };
        self.results.with_label_values(&[label]).inc();
    }

    fn forget(&mut self, notice: &Notice) {
        if self
            .known
            .get(notice)
            .is_some_and(|known| known.seen.elapsed() >= SAME_FOR)
        {
            self.known.remove(notice);
        }
        if self.known.len() >= REMEMBERED {
            self.known.retain(|_, known| known.seen.elapsed() < SAME_FOR);
        }
        if self.known.len() >= REMEMBERED {
            self.known.clear();
        }
    }

    async fn create(&mut self, notice: Notice) -> Result<(), Error> {
        let event = event(&notice, &self.name);
        let api = Api::<Event>::namespaced(self.client.clone(), &notice.subject.namespace);
        let mut again = AGAIN.into_iter();
        let mut may_be_there = false;
        loop {
            let error = match answered("event_create", api.create(&PostParams::default(), &event)).await {
                Ok(_) => break,
                // An earlier try has arrived after all: nobody else's has this name.
                Err(Error::Conflict(..)) if may_be_there => break,
                Err(error) => error,
            };
            may_be_there = true;
            match again.next().filter(|_| error.may_pass()) {
                Some(wait) => tokio::time::sleep(wait).await,
                None => return Err(error),
            }
            self.results.with_label_values(&["retried"]).inc();
        }
        let at = Instant::now();
        self.known.insert(
            notice,
            Known {
                name: event.metadata.name.unwrap_or_default(),
                count: 1,
                seen: at,
                written: at,
            },
        );
        Ok(())
    }
}

/// As the API has it. It is named after the moment, to the nanosecond.
fn event(notice: &Notice, instance: &str) -> Event {
    let now = Timestamp::now();
    let subject = &notice.subject;
    let api_version = match subject.kind {
        "Route" | "Rollout" => "dormouse.dev/v1alpha1",
        "Service" => "v1",
        _ => "apps/v1",
    };
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{}.{:x}", subject.name, now.as_nanosecond())),
            namespace: Some(subject.namespace.clone()),
            ..ObjectMeta::default()
        },
        action: Some(notice.action.to_owned()),
        reason: Some(notice.reason.to_owned()),
        note: Some(notice.note.clone()),
        type_: Some(if notice.warning { "Warning" } else { "Normal" }.to_owned()),
        event_time: Some(MicroTime(now)),
        regarding: Some(ObjectReference {
            api_version: Some(api_version.to_owned()),
            kind: Some(subject.kind.to_owned()),
            namespace: Some(subject.namespace.clone()),
            name: Some(subject.name.clone()),
            uid: Some(subject.uid.clone()),
            ..ObjectReference::default()
        }),
        reporting_controller: Some("dormouse.dev/autoscaler".to_owned()),
        reporting_instance: Some(instance.to_owned()),
        ..Event::default()
    }
}

async fn repeat(client: &Client, notice: &Notice, known: &Known) -> Result<(), Error> {
    let series = EventSeries {
        count: known.count,
        last_observed_time: MicroTime(Timestamp::now()),
    };
    let api = Api::<Event>::namespaced(client.clone(), &notice.subject.namespace);
    let patch = Patch::Merge(json!({ "series": series }));
    let params = PatchParams::default();
    answered("event_repeat", api.patch(&known.name, &params, &patch))
        .await
        .map(drop)
}

/// Cuts a text at a character's edge.
fn cut(text: &mut String, longest: usize) {
    if text.len() > longest {
        let end = (0..=longest)
            .rev()
            .find(|at| text.is_char_boundary(*at))
            .unwrap_or(0);
        text.truncate(end);
    }
}
