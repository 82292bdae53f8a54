//! The loops: who sends the next request, when, and what stops it.
//!
//! All three share one way of sending. The open loop's due times are kept by a thread of its own, because a runtime's
//! timer is a millisecond coarse and that would be counted as the server's latency.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::arrivals::Schedule;
use crate::client::Client;
use crate::options::{Error, Load, Options};
use crate::results::{ErrorKind, Failure, Outcome, Results, TargetResult};

/// Parts of the results, so that senders on several threads seldom wait for one lock.
const SHARDS: usize = 8;
/// Due times that may wait for the loop to take them: enough for a burst while it is busy, and it blocks no one else.
const DUE_AHEAD: usize = 1024;

/// A run under way. Dropped, it sends nothing more and its results are lost.
pub struct Run {
    shared: Arc<Shared>,
    work: Option<JoinHandle<()>>,
}

/// A look at a run from elsewhere, and a hand on its brake. Printed, it is a line of progress.
#[derive(Clone)]
pub struct Watch(Arc<Shared>);

/// How far a run has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Requests sent.
    pub sent: u64,
    /// Complete answers.
    pub ok: u64,
    /// Failures.
    pub failed: u64,
    /// Since the start.
    pub elapsed: Duration,
}

struct Shared {
    options: Options,
    clients: Vec<Client>,
    start: Instant,
    stop: CancellationToken,
    shards: Vec<Mutex<Results>>,
    sent: AtomicU64,
    ok: AtomicU64,
    failed: AtomicU64,
}

/// Runs to the end.
///
/// # Errors
/// The options are out of range, or a host has no address. Failed requests are results, not errors.
///
/// # Cancel safety
/// Dropping the future stops the run.
pub async fn run(options: Options) -> Result<Results, Error> {
    Ok(Run::start(options).await?.finish().await)
}

impl Run {
    /// Checks the options, finds all addresses, and starts.
    ///
    /// # Errors
    /// As [`run`].
    pub async fn start(options: Options) -> Result<Self, Error> {
        options.check()?;
        let mut clients = Vec::with_capacity(options.targets.len());
        for target in &options.targets {
            let address = target.resolve().await?;
            let client = Client::new(&options, target, address)
                .map_err(|error| Error::Url(target.url.clone(), error.to_string()))?;
            clients.push(client);
        }
        let shared = Arc::new(Shared {
            clients,
            start: Instant::now(),
            stop: CancellationToken::new(),
            shards: (0..SHARDS).map(|_| Mutex::new(Results::default())).collect(),
            sent: AtomicU64::new(0),
            ok: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            options,
        });
        let work = tokio::spawn(drive(shared.clone()));
        Ok(Self {
            shared,
            work: Some(work),
        })
    }

    /// A look at it that outlives [`Run::finish`]'s taking it.
    #[must_use]
    pub fn watch(&self) -> Watch {
        Watch(self.shared.clone())
    }

    /// Sends nothing more. What is in flight goes on to its end.
    pub fn stop(&self) {
        self.shared.stop.cancel();
    }

    /// Waits for the end, which comes at the latest one timeout after the duration.
    ///
    /// # Cancel safety
    /// Dropping the future stops the run.
    pub async fn finish(mut self) -> Results {
        if let Some(work) = self.work.as_mut() {
            // It ends by itself; a panic in it would have been printed, and what was counted still counts.
            drop(work.await);
        }
        self.watch().results()
    }
}

impl Watch {
    /// Sends nothing more. What is in flight goes on to its end.
    pub fn stop(&self) {
        self.0.stop.cancel();
    }

    /// How far it has come.
    #[must_use]
    pub fn progress(&self) -> Progress {
        Progress {
            sent: self.0.sent.load(Ordering::Relaxed),
            ok: self.0.ok.load(Ordering::Relaxed),
            failed: self.0.failed.load(Ordering::Relaxed),
            elapsed: self.0.start.elapsed(),
        }
    }

    /// The results up to now.
    #[must_use]
    pub fn results(&self) -> Results {
        let mut all = Results::default();
        self.0
            .shards
            .iter()
            .for_each(|shard| all.merge(shard.lock().clone()));
        all
    }

    /// The part of the run that is over by its own limits, `0.0..=1.0`.
    fn part(&self) -> f64 {
        let Progress { sent, elapsed, .. } = self.progress();
        let most = match self.0.options.load {
            Load::Wake => Some(self.0.clients.len() as u64),
            Load::Open(_) | Load::Closed(_) => self.0.options.requests,
        };
        let requests = most.map_or(0.0, |most| sent as f64 / most.max(1) as f64);
        let time = elapsed.as_secs_f64() / self.0.options.duration.as_secs_f64().max(0.001);
        requests.max(time).min(1.0)
    }
}

impl fmt::Display for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const WIDTH: usize = 30;
        let Progress {
            sent,
            ok,
            failed,
            elapsed,
        } = self.progress();
        let done = (self.part() * WIDTH as f64) as usize;
        let seconds = elapsed.as_secs_f64();
        let (full, empty) = ("#".repeat(done), " ".repeat(WIDTH - done));
        let in_flight = sent.saturating_sub(ok + failed);
        write!(
            f,
            "[{full}{empty}] {seconds:.0} s  {ok} ok  {failed} failed  {in_flight} in flight"
        )
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.shared.stop.cancel();
        if let Some(work) = self.work.take() {
            work.abort();
        }
    }
}

async fn drive(shared: Arc<Shared>) {
    match shared.options.load {
        Load::Open(schedule) => open(&shared, schedule).await,
        Load::Closed(clients) => closed(&shared, clients).await,
        Load::Wake => wake(&shared).await,
    }
}

async fn open(shared: &Arc<Shared>, schedule: Schedule) {
    let in_flight = Arc::new(Semaphore::new(shared.options.max_in_flight));
    // What waits for room when the run is over is not sent any more: the run must end.
    let over = shared.start + shared.options.duration + shared.options.timeout;
    let tracker = TaskTracker::new();
    let mut due_times = keep_time(shared, schedule);
    let mut number = 0;
    while let Some(due) = due_times.recv().await {
        let room = tokio::select! {
            biased; // A free place is taken even if the run ends at this moment: the request was due before.
            room = in_flight.clone().acquire_owned() => room.ok(),
            () = shared.stop.cancelled() => None,
            () = tokio::time::sleep_until(over) => None,
        };
        number += 1;
        match room {
            Some(room) => {
                let shared = shared.clone();
                tracker.spawn(async move {
                    shared.send(number, due).await;
                    drop(room);
                });
            }
            None => shared.not_sent(number, due),
        }
    }
    tracker.close();
    tracker.wait().await;
}

/// Starts the thread that hands out due times at their time, in order, until the run's limits.
fn keep_time(shared: &Arc<Shared>, schedule: Schedule) -> mpsc::Receiver<Duration> {
    let (sender, receiver) = mpsc::channel(DUE_AHEAD);
    let (start, stop) = (shared.start, shared.stop.clone());
    let (most, until) = (
        shared.options.requests.unwrap_or(u64::MAX),
        shared.options.duration,
    );
    let arrivals = schedule.arrivals(fastrand::Rng::with_seed(shared.options.seed));
    std::thread::spawn(move || {
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        for due in arrivals.take(most).take_while(|due| *due < until) {
            loop {
                let wait = (start + due).saturating_duration_since(Instant::now());
                if wait.is_zero() || stop.is_cancelled() {
                    break;
                }
                // Parked rather than asleep in the runtime: exact to some 50 µs. In slices, so that a stop is noticed.
                std::thread::park_timeout(wait.min(Duration::from_millis(50)));
            }
            if stop.is_cancelled() || sender.blocking_send(due).is_err() {
                return;
            }
        }
    });
    receiver
}

async fn closed(shared: &Arc<Shared>, clients: usize) {
    let tracker = TaskTracker::new();
    let next = Arc::new(AtomicU64::new(0));
    for _ in 0..clients {
        let (shared, next) = (shared.clone(), next.clone());
        tracker.spawn(async move {
            let most = shared.options.requests.unwrap_or(u64::MAX);
            loop {
                let due = shared.start.elapsed();
                if shared.stop.is_cancelled() || due >= shared.options.duration {
                    return;
                }
                let number = next.fetch_add(1, Ordering::Relaxed) + 1;
                if number > most {
                    return;
                }
                shared.send(number, due).await;
            }
        });
    }
    tracker.close();
    tracker.wait().await;
}

async fn wake(shared: &Arc<Shared>) {
    let tracker = TaskTracker::new();
    let targets = shared.clients.len();
    let (go, started) = tokio::sync::watch::channel(None);
    for target in 0..targets {
        let (shared, mut started) = (shared.clone(), started.clone());
        tracker.spawn(async move {
            let due = match started.wait_for(Option::is_some).await {
                Ok(due) => due.unwrap_or_default(),
                Err(_) => return,
            };
            // Numbers count from one, and the first goes to the first target.
            shared.send(target as u64 + 1, due).await;
        });
    }
    tracker.close();
    go.send_replace(Some(shared.start.elapsed()));
    tracker.wait().await;
}

impl Shared {
    /// Sends request `number`, which goes to the targets in turn, and counts it.
    async fn send(&self, number: u64, due: Duration) {
        let target = self.target(number);
        let id = self.id(number);
        let started = self.start.elapsed();
        self.sent.fetch_add(1, Ordering::Relaxed);
        let (connected, result) = self.clients[target].send(&self.options, &id).await;
        let ended = self.start.elapsed();
        self.count(
            number,
            Outcome {
                target,
                id,
                due,
                started,
                ended,
                connected,
                result,
            },
        );
    }

    fn not_sent(&self, number: u64, due: Duration) {
        let (target, id, ended) = (self.target(number), self.id(number), self.start.elapsed());
        let failure = Failure {
            kind: ErrorKind::NotSent,
            message: "too many requests in flight".to_owned(),
        };
        let (started, connected) = (ended, false);
        self.count(
            number,
            Outcome {
                target,
                id,
                due,
                started,
                ended,
                connected,
                result: Err(failure),
            },
        );
    }

    fn target(&self, number: u64) -> usize {
        ((number - 1) % self.clients.len() as u64) as usize
    }

    fn id(&self, number: u64) -> String {
        match self.options.id_header {
            Some(_) => format!("{}-{number}", self.options.id_prefix),
            None => String::new(),
        }
    }

    fn count(&self, number: u64, outcome: Outcome) {
        let counter = if outcome.result.is_ok() {
            &self.ok
        } else {
            &self.failed
        };
        counter.fetch_add(1, Ordering::Relaxed);
        let mut results = self.shards[(number % SHARDS as u64) as usize].lock();
        if self.options.load == Load::Wake {
            let latency = outcome.ended.saturating_sub(outcome.due);
            let error = outcome.result.as_ref().err().map(|failure| failure.kind);
            results.targets.push(TargetResult {
                target: outcome.target,
                latency,
                error,
            });
        }
        results.push(outcome);
    }
}
