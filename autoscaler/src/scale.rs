//! Replicas: from a report line to a write of `/scale`, and back to sleep.
//!
//! Everything that may change a decision leads to one function, `decide`: a report line, a change of workload or pods, an
//! entry from the capture side, a command, a timer. It gathers facts, asks the pure core for a step and carries the step
//! out. There is no tick over all pools: a pool is looked at when something happened to it or when its own timer is due,
//! and one that is asleep has none.
//!
//! A wake runs through without a wait: the task that read the line decides, starts the write and lets the stream carry the
//! acknowledgement. Writes run side by side, one for each pool, at most [`WRITES`] in all.

mod carry;
mod core;
mod health;
mod orphan;
mod together;
mod unit;
mod view;
mod worker;

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crds::condition::reason;
use crds::names::COMMAND_ANNOTATION;
use crds::report::PoolKey;
use dormouse_core::group::Standing;
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::core::{Command, Situation};
use crate::clock::Clock;
use crate::cluster::Cluster;
use crate::ingest::{Event, Fleet, Sink};
use crate::lease::Leadership;
use crate::ledger::Ledger;
use crate::metrics::Metrics;
use crate::rollout::Flow;
use crate::state::{Dirty, Registry, RouteKey};
use crate::watch::Index;
use together::Together;
use unit::Unit;

/// Writes of `/scale` under way at once. A wake of everything in a large cluster is hundreds; the API server's own limit
/// for requests that change something is 200 at a time by default, so more would only wait there.
const WRITES: usize = 512;

/// Pods of at most this many pools are read at once to tell what is wrong with them.
const LOOKS: usize = 8;

/// A new leader scales nothing down before this: by then the streams it already had have told it everything.
const WARM_UP: Duration = Duration::from_secs(2);

/// Decisions that one decision may lead to in the same turn, through groups and dependencies. More wait for the next turn.
const TURN: usize = 4096;

/// Decides and writes replicas.
pub(crate) struct Scaler {
    clock: Clock,
    index: Arc<Index>,
    cluster: Arc<Cluster>,
    registry: Arc<Registry>,
    fleet: Arc<Fleet>,
    metrics: Arc<Metrics>,
    state: Mutex<State>,
    /// An earlier timer than before.
    timer: Notify,
    /// Routes whose status may say something else.
    shown: Arc<Dirty<RouteKey>>,
    writes: Arc<Semaphore>,
    looks: Arc<Semaphore>,
    tasks: TaskTracker,
    release_all: watch::Receiver<bool>,
}

#[derive(Default)]
struct State {
    /// Since when this process leads; it decides nothing while it does not.
    leads_since: Option<Instant>,
    ledger: Ledger,
    units: HashMap<PoolKey, Unit>,
    pools_of: HashMap<RouteKey, BTreeSet<PoolKey>>,
    together: Together,
    /// The last command carried out, by Route.
    commands: HashMap<RouteKey, String>,
    timers: BinaryHeap<Reverse<(Instant, PoolKey)>>,
}

impl Scaler {
    /// A scaler that knows of no pool yet.
    pub(crate) fn new(
        clock: Clock,
        index: Arc<Index>,
        cluster: Arc<Cluster>,
        registry: Arc<Registry>,
        fleet: Arc<Fleet>,
        metrics: Arc<Metrics>,
        release_all: watch::Receiver<bool>,
    ) -> Arc<Self> {
        Arc::new(Self {
            clock,
            index,
            cluster,
            registry,
            fleet,
            metrics,
            state: Mutex::default(),
            timer: Notify::new(),
            shown: Dirty::new(),
            writes: Arc::new(Semaphore::new(WRITES)),
            looks: Arc::new(Semaphore::new(LOOKS)),
            tasks: TaskTracker::new(),
            release_all,
        })
    }

    /// Where report streams put what they bring.
    pub(crate) fn sink(self: &Arc<Self>) -> Sink {
        let this = Arc::clone(self);
        Arc::new(move |event| this.bring(event))
    }

    /// The traffic of a pool.
    pub(crate) fn traffic(&self, pool: &PoolKey) -> Flow {
        let mut state = self.state.lock();
        let traffic = state.ledger.traffic(pool, Instant::now());
        Flow {
            load: traffic.held.saturating_add(traffic.in_flight),
            ready: traffic.ready,
            rests: state.units.get(pool).is_some_and(|unit| unit.rests),
            last_request: traffic.last_request,
        }
    }

    /// Routes whose status may say something else. For one taker.
    pub(crate) fn shown(&self) -> Arc<Dirty<RouteKey>> {
        Arc::clone(&self.shown)
    }

    /// Decides until `stop`; then waits for the writes under way, each bounded by its own time limit.
    pub(crate) async fn run(
        self: Arc<Self>,
        mut leading: watch::Receiver<Leadership>,
        stop: CancellationToken,
    ) {
        let (entries, pools, routes) = (
            self.registry.dirty(),
            self.index.dirty_pools(),
            self.index.dirty_routes(),
        );
        let mut activators = self.fleet.changes();
        let workers = self
            .tasks
            .spawn(worker::run(Arc::clone(&self), leading.clone(), stop.clone()));
        // Not in one expression: nothing is waited for while the channel is being read.
        let leads = leading.borrow_and_update().leader;
        self.lead(leads);
        loop {
            let next = self.next_timer();
            tokio::select! {
                () = stop.cancelled() => break,
                changed = leading.changed() => match changed {
                    Ok(()) => {
                        let leads = leading.borrow_and_update().leader;
                        self.lead(leads);
                    }
                    Err(_) => break,
                },
                keys = entries.take() => keys.into_iter().for_each(|key| self.enter(&key)),
                keys = pools.take() => self.decide_all(keys),
                keys = routes.take() => keys.into_iter().for_each(|key| self.command(&key)),
                _ = activators.changed() => self.decide_all(self.awake()),
                () = self.timer.notified() => {}
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => self.fire(),
            }
        }
        workers.abort();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Starts over as a leader, or forgets everything but the ledger as a standby.
    fn lead(self: &Arc<Self>, leader: bool) {
        let mut state = self.state.lock();
        if state.leads_since.is_some() == leader {
            return;
        }
        state.leads_since = leader.then(Instant::now);
        state.units.clear();
        state.pools_of.clear();
        state.together = Together::default();
        state.commands.clear();
        state.timers.clear();
        drop(state);
        self.metrics.leader.set(i64::from(leader));
        if leader {
            for (key, _) in self.registry.all() {
                self.enter(&key);
            }
        }
    }

    /// Takes in what a report stream brings.
    fn bring(self: &Arc<Self>, event: Event) {
        let mut state = self.state.lock();
        let touched = match event {
            Event::Line { report, read_at } => {
                for line in report.pools.iter().filter(|line| !line.wakes.is_empty()) {
                    let key = PoolKey {
                        namespace: line.namespace.clone(),
                        pool: line.pool.clone(),
                    };
                    if let Some(unit) = state.units.get_mut(&key) {
                        unit.woke(&line.wakes);
                        self.shown.mark(unit.routes.keys().cloned());
                    }
                }
                state.ledger.line(&report, read_at)
            }
            Event::Gone { instance } => state.ledger.gone(&instance, Instant::now()),
        };
        for key in touched {
            self.decide(&mut state, &key, None);
        }
    }

    /// Takes in what the capture side now says of a Route.
    fn enter(self: &Arc<Self>, route: &RouteKey) {
        let mut state = self.state.lock();
        if state.leads_since.is_none() {
            return;
        }
        let entry = self.registry.get(route);
        let pools: BTreeSet<PoolKey> = entry
            .iter()
            .flat_map(|entry| entry.pools.iter().map(|(pool, _)| pool.clone()))
            .collect();
        let before = state.pools_of.remove(route).unwrap_or_default();
        for gone in before.difference(&pools) {
            if let Some(unit) = state.units.get_mut(gone) {
                unit.routes.remove(route);
                if unit.routes.is_empty() {
                    state.units.remove(gone);
                    self.fleet.set_waking(gone, false);
                }
            }
        }
        let joined = state.together.enter(route, entry.as_deref());
        let Some(entry) = entry else {
            state.commands.remove(route);
            self.decide_each(&mut state, joined);
            self.shown.mark([route.clone()]);
            return;
        };
        let shown = self.index.route(route);
        let status = shown.as_ref().and_then(|route| route.status.as_ref());
        for (pool, workload) in &entry.pools {
            let unit = state.units.entry(pool.clone()).or_insert_with(|| {
                let mut unit = Unit::new(pool.clone(), workload.clone(), status);
                unit.last_request = status
                    .and_then(|status| status.last_request.as_ref())
                    .map(|time| self.clock.read(time));
                unit
            });
            unit.workload = workload.clone();
            unit.routes.insert(route.clone(), Arc::clone(&entry));
        }
        state.pools_of.insert(route.clone(), pools.clone());
        self.decide_each(&mut state, pools.into_iter().chain(joined).collect());
        drop(state);
        self.shown.mark([route.clone()]);
        self.command(route);
    }

    /// Carries out a command that a Route carries, once.
    fn command(self: &Arc<Self>, route: &RouteKey) {
        let mut state = self.state.lock();
        let Some(object) = self
            .index
            .route(route)
            .filter(|_| state.pools_of.contains_key(route))
        else {
            return;
        };
        let annotations = object.metadata.annotations.as_ref();
        let Some(asked) = annotations.and_then(|all| all.get(COMMAND_ANNOTATION)) else {
            return;
        };
        let done = state.commands.get(route).cloned();
        let done = done.or_else(|| object.status.as_ref().map(|status| status.command.clone()));
        if done.as_ref() == Some(asked) {
            return;
        }
        state.commands.insert(route.clone(), asked.clone());
        let mut pools = state.pools_of.get(route).cloned().unwrap_or_default();
        let command = core::command(asked);
        if command == Some(Command::Sleep) {
            // One alone would stay awake for the others.
            pools = pools
                .iter()
                .flat_map(|pool| state.together.group_of(pool))
                .collect();
        }
        match command {
            Some(command) => pools
                .iter()
                .for_each(|pool| self.decide(&mut state, pool, Some(command))),
            None => tracing::warn!(%route, command = asked, "not a command"),
        }
        drop(state);
        self.shown.mark([route.clone()]);
    }

    fn decide_all(self: &Arc<Self>, keys: Vec<PoolKey>) {
        self.decide_each(&mut self.state.lock(), keys);
    }

    fn decide_each(self: &Arc<Self>, state: &mut State, keys: Vec<PoolKey>) {
        for key in keys {
            self.decide(state, &key, None);
        }
    }

    /// Pools that have, or should have, pods.
    fn awake(&self) -> Vec<PoolKey> {
        let state = self.state.lock();
        let awake = |unit: &&Unit| unit.want > 0 || unit.replicas.unwrap_or(0) > 0;
        state
            .units
            .values()
            .filter(awake)
            .map(|unit| unit.key.clone())
            .collect()
    }

    /// Decides on one pool, and on those for which that means something.
    fn decide(self: &Arc<Self>, state: &mut State, key: &PoolKey, command: Option<Command>) {
        let mut concerned = VecDeque::from(self.decide_one(state, key, command));
        for _ in 0..TURN {
            let Some(next) = concerned.pop_front() else { return };
            for key in self.decide_one(state, &next, None) {
                if !concerned.contains(&key) {
                    concerned.push_back(key);
                }
            }
        }
        let now = Instant::now();
        for key in concerned {
            if let Some(unit) = state.units.get_mut(&key) {
                unit.timer = Some(now);
                state.timers.push(Reverse((now, key)));
                self.timer.notify_one();
            }
        }
    }

    /// The one place where replicas are decided. Returns the pools for which others mean something else now.
    fn decide_one(
        self: &Arc<Self>,
        state: &mut State,
        key: &PoolKey,
        command: Option<Command>,
    ) -> Vec<PoolKey> {
        let Some(leads_since) = state.leads_since else {
            return Vec::new();
        };
        let State {
            units,
            ledger,
            timers,
            together,
            ..
        } = state;
        let Some(unit) = units.get_mut(key) else {
            return Vec::new();
        };
        let now = Instant::now();
        let Some(workload) = self.index.workload(&key.namespace, &unit.workload) else {
            unit.next = format!("{} is not there", unit.workload);
            return together.observe(self.time(now), key, Standing::default()).1;
        };
        let mut traffic = ledger.traffic(key, now);
        traffic.last_request = traffic.last_request.max(unit.last_request);
        unit.last_request = traffic.last_request;
        let ready = self
            .index
            .ready_pods(key)
            .max(traffic.ready)
            .max(workload.ready_replicas);
        let before = (unit.want, unit.waking, unit.ready());
        let (seen, started) = unit.observe(&workload, ready, now);
        let warm = leads_since.elapsed() >= WARM_UP && self.fleet.missing().is_empty();
        unit.correct_why(&workload);
        let started_first = started.first().copied();
        let situation = Situation {
            now,
            traffic: &traffic,
            ready,
            foreign: self.foreign(&workload, seen),
            started,
            complete: warm,
            command,
        };
        let replicas = unit.replicas.unwrap_or(0);
        let mut concerned = Vec::new();
        let company = |now, wanted| {
            let standing = Standing {
                wanted,
                replicas,
                ready,
            };
            let (company, others) = together.observe(now, key, standing);
            concerned = others;
            company
        };
        let Some(outcome) = unit.step(&self.clock, situation, company) else {
            return concerned;
        };
        // One that waits for others is on its way up.
        unit.want = outcome.replicas.max(u32::from(outcome.waits));
        if before.2 == 0
            && let Some(took) = started_first
        {
            let note = format!(
                "a pod was ready {:.1} s after it was asked for",
                took.as_secs_f64()
            );
            self.tell(unit, false, "Awake", "Scale", note);
        }
        let waiting = outcome.replicas > 0 && ready == 0;
        let withdrawn = unit.health.observe(waiting, now);
        if withdrawn {
            self.tell(
                unit,
                false,
                "WorkloadReady",
                "Scale",
                "pods become ready again".to_owned(),
            );
        }
        self.look(unit, &workload, now);
        let mut wake_at = outcome.wake_at;
        if outcome.replicas != unit.replicas.unwrap_or(0) {
            match unit.may_write(now) {
                Ok(()) => self.write(unit, &outcome, traffic.oldest_held),
                Err(retry) => wake_at = wake_at.into_iter().chain(retry).min(),
            }
        }
        // Acknowledged while it is carried out: what cannot be written is left to the activator to try.
        let waking = outcome.waits || (waiting && (unit.writing.is_some() || unit.replicas.unwrap_or(0) > 0));
        if waking != unit.waking {
            unit.waking = waking;
            self.fleet.set_waking(key, waking);
        }
        if !warm && outcome.replicas > 0 {
            wake_at = Some(wake_at.map_or(now + WARM_UP, |at| at.min(now + WARM_UP)));
        }
        let wake_at = wake_at.into_iter().chain(unit.health.look_at()).min();
        if let Some(at) = wake_at.filter(|at| unit.timer.is_none_or(|timer| *at < timer)) {
            unit.timer = Some(at);
            timers.push(Reverse((at, key.clone())));
            self.timer.notify_one();
        }
        if outcome.changed || withdrawn || before != (unit.want, unit.waking, unit.ready()) {
            self.shown.mark(unit.routes.keys().cloned());
        }
        concerned
    }

    fn time(&self, now: Instant) -> dormouse_core::Time {
        dormouse_core::Time::from_epoch(self.clock.at(now))
    }

    fn next_timer(&self) -> Option<Instant> {
        self.state.lock().timers.peek().map(|Reverse((at, _))| *at)
    }

    /// Decides on the pools whose timers are due.
    fn fire(self: &Arc<Self>) {
        let mut state = self.state.lock();
        let now = Instant::now();
        while let Some(Reverse((at, _))) = state.timers.peek() {
            if *at > now {
                break;
            }
            let Some(Reverse((at, key))) = state.timers.pop() else {
                break;
            };
            match state.units.get_mut(&key) {
                // An earlier timer took this one's place and has been dealt with.
                Some(unit) if unit.timer != Some(at) => {}
                Some(unit) => {
                    unit.timer = None;
                    self.decide(&mut state, &key, None);
                }
                None => {}
            }
        }
    }
}

#[cfg(test)]
mod tests;
