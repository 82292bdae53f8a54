//! Requests of our own to a candidate that gets too few. Each activator sends its share of the rate that the Route names, to
//! the candidate's pods alone; they are counted as `direct`, beside what the coin compares.
//!
//! They are no use: they wake nothing, keep nothing awake, and wait for no pod. Without a leader that says how many
//! activators there are, none is sent, so that all together never send more than the Route says.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crds::route::{Protocol, RouteSynthetic};
use http::header::{ACCEPT, HOST, USER_AGENT};
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Request, Uri};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::account::Counts;
use crate::body::Upload;
use crate::directory::Directory;
use crate::hub::Hub;
use crate::request::Connection;
use crate::route::{RouteKey, Target};
use crate::server::Server;
use crate::throttle::Kind;
use crate::unasked::Unasked;

/// Most of them under way here at the same time, of all Routes: what candidates that hang can keep of this activator.
const AT_ONCE: usize = 64;
/// Between two looks at what is due. Several may be sent at a look.
const TICK: Duration = Duration::from_millis(50);
/// What was not sent in so many ticks is not made up for: a burst is no steady rate.
const KEPT_TICKS: f64 = 2.0;
/// Highest rate that is followed, a second.
const MOST: f64 = 100.0;

/// What is sent, as a Route says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Synthetic {
    path: PathAndQuery,
    /// A second, by all activators together.
    rps: f64,
}

impl Synthetic {
    /// Reads it.
    ///
    /// # Errors
    /// Says what cannot be sent.
    pub(crate) fn of(asked: &RouteSynthetic) -> Result<Self, String> {
        let (path, rps) = (&asked.path, asked.rps);
        let read = PathAndQuery::try_from(path.as_str());
        let read = read.ok().filter(|_| path.starts_with('/'));
        let read = read.ok_or_else(|| format!("rollout.synthetic.path is \"{path}\", which is no path"))?;
        if !(rps.is_finite() && rps > 0.0) {
            return Err(format!("rollout.synthetic.rps is {rps}, which is no rate"));
        }
        Ok(Self {
            path: read,
            rps: rps.min(MOST),
        })
    }
}

/// How many are due of each Route.
#[derive(Debug, Default)]
struct Pace(BTreeMap<RouteKey, f64>);

impl Pace {
    /// So much time has passed, in which `share` of a Route's rate was ours. Returns how many are due.
    fn due(&mut self, route: &RouteKey, rate: f64, passed: Duration) -> u32 {
        // It begins with nothing due, so that a Route that is written again and again is not sent one each time.
        let credit = self.0.entry(route.clone()).or_default();
        let most = 1.0 + rate * TICK.as_secs_f64() * KEPT_TICKS;
        *credit = (*credit + rate * passed.as_secs_f64()).min(most);
        let due = credit.floor();
        *credit -= due;
        due as u32
    }
}

/// Sends what is due, for ever.
pub(crate) async fn run(hub: Arc<Hub>, directory: Arc<Directory>, server: Arc<Server>) {
    let room = Arc::new(Semaphore::new(AT_ONCE));
    let mut pace = Pace::default();
    let mut last = Instant::now();
    loop {
        let targets = directory.synthetic();
        if targets.is_empty() {
            pace.0.clear();
            directory.synthetic_changed().await;
            last = Instant::now();
            continue;
        }
        tokio::time::sleep(TICK).await;
        let passed = last.elapsed();
        last = Instant::now();
        pace.0
            .retain(|route, _| targets.iter().any(|target| target.key == *route));
        let Some(activators) = hub.activators() else {
            continue;
        };
        for target in &targets {
            let Some(synthetic) = target.rollout.as_ref().and_then(|plan| plan.synthetic()) else {
                continue;
            };
            let rate = synthetic.rps / activators as f64;
            for _ in 0..pace.due(&target.key, rate, passed) {
                send(&hub, &server, target, synthetic, &room);
            }
        }
    }
}

/// Sends one, if the candidate can take it now.
fn send(hub: &Arc<Hub>, server: &Server, target: &Arc<Target>, synthetic: &Synthetic, room: &Arc<Semaphore>) {
    let count = |result| hub.metrics.synthetic.with_label_values(&[result]).inc();
    let port = target.ports.iter().find(|port| port.protocol == Protocol::Http);
    let listening = port.and_then(|port| Some((server.listening(port.listen)?, port.h2c)));
    let chosen = target
        .rollout
        .as_ref()
        .and_then(|plan| plan.direct(&target.pools));
    let (Some((listening, h2c)), Some((pool, ticket))) = (listening, chosen) else {
        return count("nowhere");
    };
    if pool.ready() == 0 {
        return count("asleep");
    }
    // It may not wait: a line here says how much clients send, or that the pods are another activator's, and neither is
    // the candidate's fault.
    if !pool.has_room() {
        return count("busy");
    }
    let Ok(room) = Arc::clone(room).try_acquire_owned() else {
        return count("too_many");
    };
    count("sent");
    let connection = Connection {
        hub: Arc::clone(hub),
        listening,
        // No worker's: its connections live on the thread of this task.
        worker: hub.config.workers,
        from: HeaderValue::from_static("127.0.0.1"),
        is_peer: false,
        talk: None,
    };
    let one = Unasked {
        connection: Arc::new(connection),
        target: Arc::clone(target),
        pool: Arc::clone(pool),
        request: Box::new(request(target, synthetic)),
        ticket,
        counts: Counts::Synthetic,
        // To the candidate's pods, and through no other activator.
        kind: Kind::Hop,
        h2c,
        room,
    };
    tokio::spawn(one.send());
}

fn request(target: &Target, synthetic: &Synthetic) -> Request<Upload> {
    let mut request = Request::new(Upload::default());
    *request.method_mut() = Method::GET;
    *request.uri_mut() = Uri::from(synthetic.path.clone());
    let headers = request.headers_mut();
    let host = format!("{}.{}", target.key.name, target.key.namespace);
    if let Ok(host) = HeaderValue::try_from(host) {
        headers.insert(HOST, host);
    }
    headers.insert(USER_AGENT, HeaderValue::from_static("dormouse-synthetic"));
    headers.insert(ACCEPT, HeaderValue::from_static("*/*"));
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(path: &str, rps: f64) -> RouteSynthetic {
        RouteSynthetic {
            path: path.to_owned(),
            rps,
        }
    }

    #[test]
    fn what_cannot_be_sent_is_named() {
        for (path, rps, named) in [
            ("healthz", 1.0, "\"healthz\""),
            ("/a b", 1.0, "\"/a b\""),
            ("", 1.0, "\"\""),
            ("/", 0.0, "rps is 0"),
            ("/", -1.0, "rps is -1"),
            ("/", f64::NAN, "rps is NaN"),
        ] {
            let error = Synthetic::of(&asked(path, rps)).expect_err("refused");
            assert!(error.contains(named), "{error}");
        }
        let most = Synthetic::of(&asked("/a?b=c", 1e9)).expect("a rate");
        assert_eq!((most.path.as_str(), most.rps), ("/a?b=c", MOST));
    }

    #[test]
    fn a_rate_is_kept_however_long_a_tick_takes_and_never_exceeded() {
        let route = RouteKey {
            namespace: "shop".into(),
            name: "web".into(),
        };
        for (rate, millis, ticks, least, most) in [
            (0.5, 50, 200, 4, 5),
            (2.0, 50, 200, 19, 20),
            (33.3, 50, 200, 332, 333),
            (100.0, 70, 100, 699, 700),
            // A machine that sleeps does not make up for it.
            (10.0, 5_000, 10, 10, 20),
        ] {
            let mut pace = Pace::default();
            let passed = Duration::from_millis(millis);
            let sent: u32 = (0..ticks).map(|_| pace.due(&route, rate, passed)).sum();
            assert!((least..=most).contains(&sent), "{rate}: {sent}");
        }
    }
}
