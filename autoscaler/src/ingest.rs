//! Reports in, directives out: one HTTP/2 stream to each activator.
//!
//! The [`Fleet`] keeps a task per activator endpoint that dials, authenticates, reads report lines and sends directive
//! lines. Whether an activator is used depends on this stream alone: it is *live* from its first line until it breaks or
//! is silent for two seconds. A standby keeps its streams open too, with `leader: false`, so that it can take over warm.
//!
//! A line is handed to the sink in the same turn that read it, and what the sink then put into [`Fleet::set_waking`] goes
//! out before anything else is awaited: an activator learns within a millisecond that its wake was seen.

mod membership;
mod probe;
mod stream;
mod told;
mod waking;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use crds::report::{BrokenAttempt, Directive, Peer, PoolKey, ProbeOrder, ProbeResult, Report, RouteAck};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::lease::Leadership;
use crate::metrics::Metrics;
use crate::state::{Dirty, RouteKey};
use membership::{Member, Membership};
use told::{apply_acks, apply_busy};
use waking::Waking;

pub(crate) use probe::Probe;
pub(crate) use stream::Token;

/// How long a listed activator without a stream is waited for before totals count as complete without it. Its traffic
/// has moved to the others after 2 s; the rest is for requests that it may still have in flight.
const EXPECTED_FOR: Duration = Duration::from_secs(30);

/// How long a listed activator without a stream keeps an epoch from settling: as long as a silent stream may live.
const AWAITED_FOR: Duration = Duration::from_millis(crds::report::SILENCE_MS);

/// Self-probe orders that may wait for one stream to carry them. Capture runs few at once.
const ORDERS: usize = 256;

/// Where an activator's report stream is served.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Endpoint {
    /// Its address, on which it listens for all Routes too.
    pub(crate) address: String,
    /// The port of the report stream.
    pub(crate) port: u16,
    /// The node it runs on, for our slices.
    pub(crate) node: Option<String>,
    /// That node's zone, for our slices.
    pub(crate) zone: Option<String>,
}

/// An activator whose stream is live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Live {
    /// Its name.
    pub(crate) name: String,
    /// The instance: new with each process.
    pub(crate) instance: String,
    /// The address on which it listens for all Routes.
    pub(crate) address: String,
    /// The node it runs on.
    pub(crate) node: Option<String>,
    /// That node's zone.
    pub(crate) zone: Option<String>,
    /// Whether it takes new connections.
    pub(crate) serving: bool,
}

/// What a live activator last said of one Route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ack {
    /// The activator's name.
    pub(crate) activator: String,
    /// The activator's instance.
    pub(crate) instance: String,
    /// Whether the activator takes new connections.
    pub(crate) serving: bool,
    /// The Route object's uid.
    pub(crate) uid: String,
    /// The generation it listens for.
    pub(crate) generation: i64,
    /// Why it cannot listen; empty: it listens.
    pub(crate) error: String,
}

/// What a stream brings.
#[derive(Debug)]
pub(crate) enum Event {
    /// A report line, and when it had been read.
    Line {
        /// The line.
        report: Box<Report>,
        /// When its last byte was read.
        read_at: Instant,
    },
    /// The stream of an instance broke.
    Gone {
        /// The instance.
        instance: String,
    },
}

/// Takes what streams bring, in the task that read it: must not block.
pub(crate) type Sink = Arc<dyn Fn(Event) + Send + Sync>;

/// All report streams.
pub(crate) struct Fleet {
    /// This autoscaler's name.
    name: String,
    metrics: Arc<Metrics>,
    state: Mutex<State>,
    /// Counts changes of what directives say; every stream task watches it.
    directives: watch::Sender<u64>,
    /// Counts changes of [`Fleet::live`].
    changed: watch::Sender<u64>,
    /// Routes whose acknowledgements changed.
    acked: Arc<Dirty<RouteKey>>,
    next_probe: AtomicU64,
}

#[derive(Default)]
struct State {
    leadership: Leadership,
    /// Listed endpoints without a live stream, and since when.
    expected: HashMap<Endpoint, Instant>,
    streams: BTreeMap<Endpoint, Stream>,
    membership: Membership,
    waking: Waking,
    /// The attempts whose candidate is out; at most one for each Rollout.
    broken: BTreeMap<RouteKey, String>,
    probes: HashMap<u64, (Endpoint, oneshot::Sender<ProbeResult>)>,
    last_prober: usize,
}

/// A live stream.
struct Stream {
    live: Live,
    acks: HashMap<RouteKey, RouteAck>,
    epoch: u64,
    foreign: u32,
    /// Requests held and in flight, of pools that have any.
    busy: HashMap<PoolKey, u32>,
    orders: mpsc::Sender<probe::Ordered>,
}

impl Fleet {
    /// A fleet without streams.
    pub(crate) fn new(name: &str, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            name: name.to_owned(),
            metrics,
            state: Mutex::default(),
            directives: watch::Sender::new(0),
            changed: watch::Sender::new(0),
            acked: Dirty::new(),
            next_probe: AtomicU64::new(1),
        })
    }

    /// Keeps a stream to each listed endpoint until `stop`, then closes them all.
    pub(crate) async fn run(
        self: Arc<Self>,
        mut endpoints: watch::Receiver<Arc<Vec<Endpoint>>>,
        mut leadership: watch::Receiver<Leadership>,
        token: Token,
        sink: Sink,
        stop: CancellationToken,
    ) {
        let tasks = TaskTracker::new();
        let mut running: HashMap<Endpoint, CancellationToken> = HashMap::new();
        loop {
            let listed = endpoints.borrow_and_update().clone();
            self.list(&listed);
            running.retain(|endpoint, unlisted| {
                let keep = listed.contains(endpoint);
                if !keep {
                    unlisted.cancel();
                }
                keep
            });
            for endpoint in listed.iter() {
                running.entry(endpoint.clone()).or_insert_with(|| {
                    let unlisted = CancellationToken::new();
                    tasks.spawn(stream::keep(
                        Arc::clone(&self),
                        endpoint.clone(),
                        token.clone(),
                        Arc::clone(&sink),
                        unlisted.clone(),
                        stop.clone(),
                    ));
                    unlisted
                });
            }
            // Not in one expression: nothing is waited for while the channel is being read.
            let leads = *leadership.borrow_and_update();
            self.lead(leads);
            tokio::select! {
                () = stop.cancelled() => break,
                changed = endpoints.changed() => if changed.is_err() { break },
                changed = leadership.changed() => if changed.is_err() { break },
            }
        }
        tasks.close();
        stop.cancelled().await;
        tasks.wait().await;
    }

    /// The activators whose streams are live, by address.
    pub(crate) fn live(&self) -> Vec<Live> {
        self.state
            .lock()
            .streams
            .values()
            .map(|stream| stream.live.clone())
            .collect()
    }

    /// What live activators last said of `route`.
    pub(crate) fn acks(&self, route: &RouteKey) -> Vec<Ack> {
        let state = self.state.lock();
        let of = |stream: &Stream| {
            stream.acks.get(route).map(|ack| Ack {
                activator: stream.live.name.clone(),
                instance: stream.live.instance.clone(),
                serving: stream.live.serving,
                uid: ack.uid.clone(),
                generation: ack.generation,
                error: ack.error.clone(),
            })
        };
        state.streams.values().filter_map(of).collect()
    }

    /// Routes whose acknowledgements changed since they were last taken. For one taker.
    pub(crate) fn acked(&self) -> Arc<Dirty<RouteKey>> {
        Arc::clone(&self.acked)
    }

    /// Counts changes of [`Fleet::live`].
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Addresses of listed activators whose stream is missing and still waited for: without them totals are stale.
    pub(crate) fn missing(&self) -> Vec<String> {
        let state = self.state.lock();
        let waited = |(endpoint, since): (&Endpoint, &Instant)| {
            (since.elapsed() < EXPECTED_FOR).then(|| endpoint.address.clone())
        };
        state.expected.iter().filter_map(waited).collect()
    }

    /// Requests of `pool` held and in flight in all live activators; `None` while one is missing.
    pub(crate) fn busy(&self, pool: &PoolKey) -> Option<u32> {
        if !self.missing().is_empty() {
            return None;
        }
        let state = self.state.lock();
        Some(
            state
                .streams
                .values()
                .filter_map(|stream| stream.busy.get(pool))
                .sum(),
        )
    }

    /// Says in every directive, from now on, whether the wake of `pool` is being carried out.
    pub(crate) fn set_waking(&self, pool: &PoolKey, waking: bool) {
        let mut state = self.state.lock();
        if !waking {
            // No news that an activator waits for: the next heartbeat tells.
            return state.waking.end(pool);
        }
        let began = state.waking.begin(pool);
        drop(state);
        if began {
            self.directives.send_modify(|count| *count += 1);
        }
    }

    /// Says in every directive, from now on, that the candidate of this attempt is out; `None`: no longer.
    pub(crate) fn take_out(&self, route: &RouteKey, attempt: Option<&str>) {
        let mut state = self.state.lock();
        let changed = match attempt {
            None => {
                state.broken.remove(route);
                false
            }
            Some(attempt) => {
                let old = state.broken.insert(route.clone(), attempt.to_owned());
                old.as_deref() != Some(attempt)
            }
        };
        drop(state);
        if changed {
            self.directives.send_modify(|count| *count += 1);
        }
    }

    /// What is known of the streams, for the dump of the admin port.
    pub(crate) fn dump(&self) -> serde_json::Value {
        let state = self.state.lock();
        let streams: Vec<_> = state
            .streams
            .values()
            .map(|stream| {
                serde_json::json!({
                    "activator": stream.live.name,
                    "instance": stream.live.instance,
                    "address": stream.live.address,
                    "serving": stream.live.serving,
                    "epoch": stream.epoch,
                    "foreign": stream.foreign,
                    "routes": stream.acks.len(),
                })
            })
            .collect();
        serde_json::json!({
            "leader": state.leadership.leader,
            "epoch": state.membership.epoch(),
            "settled": state.membership.settled(),
            "streams": streams,
            "expected": state.expected.keys().map(|endpoint| &endpoint.address).collect::<Vec<_>>(),
            "waking": state.waking.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "probes": state.probes.len(),
        })
    }

    fn list(&self, listed: &[Endpoint]) {
        let mut state = self.state.lock();
        let State {
            expected, streams, ..
        } = &mut *state;
        expected.retain(|endpoint, _| listed.contains(endpoint));
        for endpoint in listed {
            if !streams.contains_key(endpoint) {
                expected.entry(endpoint.clone()).or_insert_with(Instant::now);
            }
        }
    }

    fn lead(&self, leadership: Leadership) {
        let mut state = self.state.lock();
        if state.leadership == leadership {
            return;
        }
        state.leadership = leadership;
        state.waking.clear();
        state.broken.clear();
        state.membership = Membership::new(leadership.epoch_base);
        self.update_membership(&mut state);
        drop(state);
        self.directives.send_modify(|count| *count += 1);
    }

    /// Applies the part of a line that is about the activator itself, and then hands it on.
    fn line(
        &self,
        endpoint: &Endpoint,
        orders: &mpsc::Sender<probe::Ordered>,
        mut report: Box<Report>,
        read_at: Instant,
        sink: &Sink,
    ) {
        let mut state = self.state.lock();
        let live = Live {
            name: report.activator.clone(),
            instance: report.instance.clone(),
            address: endpoint.address.clone(),
            node: endpoint.node.clone(),
            zone: endpoint.zone.clone(),
            serving: report.serving,
        };
        state.expected.remove(endpoint);
        let stream = state.streams.entry(endpoint.clone()).or_insert_with(|| Stream {
            live: Live {
                name: String::new(),
                ..live.clone()
            },
            acks: HashMap::new(),
            epoch: 0,
            foreign: 0,
            busy: HashMap::new(),
            orders: orders.clone(),
        });
        let changed = stream.live != live;
        stream.live = live;
        stream.epoch = report.epoch;
        stream.foreign = report.foreign;
        apply_busy(&mut stream.busy, &report);
        let touched = apply_acks(&mut stream.acks, report.full, std::mem::take(&mut report.routes));
        let answered: Vec<_> = report
            .probes
            .drain(..)
            .filter_map(|result| Some((state.probes.remove(&result.id)?.1, result)))
            .collect();
        let directives = self.update_membership(&mut state);
        self.metrics
            .streams_live
            .set(i64::try_from(state.streams.len()).unwrap_or(i64::MAX));
        drop(state);
        for (answer, result) in answered {
            let _ = answer.send(result);
        }
        if changed {
            self.changed.send_modify(|count| *count += 1);
        }
        self.acked.mark(touched);
        sink(Event::Line { report, read_at });
        if directives {
            self.directives.send_modify(|count| *count += 1);
        }
    }

    /// Forgets a broken stream.
    fn gone(&self, endpoint: &Endpoint, still_listed: bool, sink: &Sink) {
        let mut state = self.state.lock();
        let Some(stream) = state.streams.remove(endpoint) else {
            return;
        };
        if still_listed {
            state.expected.insert(endpoint.clone(), Instant::now());
        }
        // Dropping the senders tells those who wait for an answer.
        state.probes.retain(|_, (prober, _)| prober != endpoint);
        let directives = self.update_membership(&mut state);
        self.metrics
            .streams_live
            .set(i64::try_from(state.streams.len()).unwrap_or(i64::MAX));
        drop(state);
        self.changed.send_modify(|count| *count += 1);
        self.acked.mark(stream.acks.into_keys());
        sink(Event::Gone {
            instance: stream.live.instance,
        });
        if directives {
            self.directives.send_modify(|count| *count += 1);
        }
    }

    /// Returns whether directives now say something else.
    fn update_membership(&self, state: &mut State) -> bool {
        if !state.leadership.leader {
            return false;
        }
        let live = state.streams.values().map(|stream| Member {
            peer: Peer {
                name: stream.live.name.clone(),
                address: stream.live.address.clone(),
            },
            serving: stream.live.serving,
            epoch: stream.epoch,
            foreign: stream.foreign,
        });
        let awaited = state.expected.values().any(|since| since.elapsed() < AWAITED_FOR);
        let changed = state.membership.update(live, awaited);
        if changed {
            self.metrics
                .epoch
                .set(i64::try_from(state.membership.epoch()).unwrap_or(i64::MAX));
        }
        changed
    }

    /// What to tell an activator now that knows of the wakes up to `told` (0: of none), and of which it knows then.
    fn directive(&self, probes: Vec<ProbeOrder>, told: u64) -> (Directive, u64) {
        let state = self.state.lock();
        if !state.leadership.leader {
            let standby = Directive {
                autoscaler: self.name.clone(),
                ..Directive::default()
            };
            return (standby, 0);
        }
        let (waking, told) = state.waking.since(told);
        let directive = Directive {
            autoscaler: self.name.clone(),
            leader: true,
            epoch: state.membership.epoch(),
            activators: state.membership.members().to_vec(),
            settled: state.membership.settled(),
            waking,
            probes,
            broken: state.broken.iter().map(broken).collect(),
        };
        (directive, told)
    }
}

fn broken((route, attempt): (&RouteKey, &String)) -> BrokenAttempt {
    BrokenAttempt {
        namespace: route.namespace.clone(),
        route: route.name.clone(),
        attempt: attempt.clone(),
    }
}

#[cfg(test)]
mod tests;
