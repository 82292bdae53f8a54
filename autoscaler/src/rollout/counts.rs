//! What activators have counted for rollouts, as they report it.
//!
//! Numbers are cumulative in one activator process, so the latest line of each stands, and one that is repeated or late
//! changes nothing.

use std::collections::{BTreeSet, HashMap};

use crds::evidence::{ArmReport, EpochReport};
use crds::report::Report;
use dormouse_core::evidence::{ArmSample, EPOCHS, Histogram, INSTANCES, Sample};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::state::RouteKey;

/// Attempts of one Route that are remembered: the present one, and the last, whose times the next one is compared with.
const ATTEMPTS: usize = 2;

/// All counts.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    routes: Mutex<HashMap<RouteKey, Vec<Attempt>>>,
    /// Counts lines that brought something.
    news: watch::Sender<u64>,
}

/// The counts of one attempt, by epoch and activator process.
#[derive(Debug, Default)]
struct Attempt {
    uid: String,
    rows: HashMap<(u32, String), EpochReport>,
    /// Activators, by name, whose breaker has taken the candidate out.
    broken: BTreeSet<String>,
}

impl Counts {
    /// Takes in a report line.
    pub(crate) fn line(&self, report: &Report) {
        if report.epochs.is_empty() {
            return;
        }
        let mut routes = self.routes.lock();
        for epoch in &report.epochs {
            let key = RouteKey {
                namespace: epoch.namespace.clone(),
                name: epoch.route.clone(),
            };
            let attempts = routes.entry(key).or_default();
            let attempt = match attempts.iter().position(|attempt| attempt.uid == epoch.attempt) {
                Some(place) => &mut attempts[place],
                None => {
                    attempts.insert(
                        0,
                        Attempt {
                            uid: epoch.attempt.clone(),
                            ..Attempt::default()
                        },
                    );
                    attempts.truncate(ATTEMPTS);
                    &mut attempts[0]
                }
            };
            if epoch.broken {
                attempt.broken.insert(report.activator.clone());
            }
            let place = (epoch.epoch, report.instance.clone());
            // More than the state machine keeps would only be counted by nobody.
            if attempt.rows.contains_key(&place) || attempt.rows.len() < EPOCHS * INSTANCES {
                attempt.rows.insert(place, epoch.clone());
            }
        }
        drop(routes);
        self.news.send_modify(|count| *count += 1);
    }

    /// Counts lines that brought something.
    pub(super) fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    /// The samples of an attempt, and the activators whose breaker has taken its candidate out.
    pub(super) fn of(&self, route: &RouteKey, uid: &str) -> (Vec<Sample>, BTreeSet<String>) {
        let routes = self.routes.lock();
        let attempt = routes
            .get(route)
            .and_then(|attempts| attempts.iter().find(|attempt| attempt.uid == uid));
        let Some(attempt) = attempt else {
            return (Vec::new(), BTreeSet::new());
        };
        let mut samples: Vec<Sample> = attempt
            .rows
            .iter()
            .map(|((epoch, instance), row)| Sample {
                instance: instance.clone(),
                epoch: *epoch,
                stable: arm(&row.stable),
                candidate: arm(&row.candidate),
                direct: arm(&row.direct),
            })
            .collect();
        samples.sort_by(|a, b| (a.epoch, &a.instance).cmp(&(b.epoch, &b.instance)));
        (samples, attempt.broken.clone())
    }

    /// What the requests of one side of an attempt took: of its candidate, or of its stable revision.
    pub(super) fn times(&self, route: &RouteKey, uid: &str, of_candidate: bool) -> Histogram {
        let mut times = Histogram::default();
        for sample in self.of(route, uid).0 {
            times.merge(if of_candidate {
                &sample.candidate.times
            } else {
                &sample.stable.times
            });
        }
        times
    }

    /// Forgets a Route.
    pub(super) fn forget(&self, route: &RouteKey) {
        self.routes.lock().remove(route);
    }
}

fn arm(report: &ArmReport) -> ArmSample {
    ArmSample {
        requests: report.requests,
        bad: report.bad,
        times: Histogram::from_counts(
            report
                .times
                .iter()
                .map(|(bucket, count)| (usize::from(*bucket), *count)),
        ),
    }
}
