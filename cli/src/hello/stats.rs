//! What the application saw. A request is in flight until the last byte of its answer is handed over.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tokio::time::Instant;

/// Counters of one process.
#[derive(Debug)]
pub(super) struct Stats {
    started: Instant,
    begun: AtomicU64,
    served: AtomicU64,
    in_flight: AtomicU64,
    most_in_flight: AtomicU64,
}

/// One request in flight; dropped with its answer.
#[derive(Debug)]
pub(super) struct InFlight {
    stats: Arc<Stats>,
    /// How many were in flight as it began, itself included.
    pub(super) together: u64,
}

impl Stats {
    pub(super) fn new(started: Instant) -> Arc<Self> {
        Arc::new(Self {
            started,
            begun: AtomicU64::new(0),
            served: AtomicU64::new(0),
            in_flight: AtomicU64::new(0),
            most_in_flight: AtomicU64::new(0),
        })
    }

    pub(super) fn begin(self: &Arc<Self>) -> InFlight {
        self.begun.fetch_add(1, Relaxed);
        let together = self.in_flight.fetch_add(1, Relaxed) + 1;
        self.most_in_flight.fetch_max(together, Relaxed);
        InFlight {
            stats: Arc::clone(self),
            together,
        }
    }

    pub(super) fn json(&self, name: &str) -> serde_json::Value {
        serde_json::json!({
            "name": name,
            "begun": self.begun.load(Relaxed),
            "served": self.served.load(Relaxed),
            "inFlight": self.in_flight.load(Relaxed),
            "maxInFlight": self.most_in_flight.load(Relaxed),
            "uptimeMs": u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
        })
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.stats.in_flight.fetch_sub(1, Relaxed);
        self.stats.served.fetch_add(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_at_once_is_remembered() {
        let stats = Stats::new(Instant::now());
        let (a, b) = (stats.begin(), stats.begin());
        assert_eq!((a.together, b.together), (1, 2));
        drop(a);
        let c = stats.begin();
        assert_eq!(c.together, 2);
        drop((b, c));
        let json = stats.json("pod");
        assert_eq!(
            (&json["served"], &json["inFlight"], &json["maxInFlight"]),
            (&3.into(), &0.into(), &2.into())
        );
    }
}
