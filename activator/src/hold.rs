//! Waiting for a place at a pod, and for how long: HTTP requests, connections of bytes and waiting pages alike.
//!
//! Two limits, because they mean two things. While no pod is ready, what is waited for is a cold start, and its limit counts
//! from the request's arrival. While pods are ready and all are busy, it is a line, and its limit counts from when the
//! request joined it, or the pool became ready, whichever was later.

use std::sync::Arc;
use std::time::Duration;

use crate::account::Use;
use crate::hub::Hub;
use crate::pool::{Held, Pool, Settings, Slot};
use crate::reject::Reject;

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum For {
    Pod,
    Place,
}

/// Waits for a place, until a limit passes or the client has `gone`.
///
/// # Errors
/// The limit that passed; the end of the activator; `BadRequest` when the client has gone.
///
/// # Cancel safety
/// Dropping the future leaves the line.
pub(crate) async fn wait(
    hub: &Arc<Hub>,
    pool: &Arc<Pool>,
    usage: &mut Use,
    mut held: Held,
    arrived: Duration,
    gone: impl Future<Output = ()>,
) -> Result<Slot, Reject> {
    let joined = hub.now();
    usage.held(joined, held.wakes);
    if held.wakes {
        tracing::debug!(pool = %pool.key, "first held request");
    }
    let mut gone = std::pin::pin!(gone);
    loop {
        let settings = pool.settings();
        let now = hub.now();
        let (what, limit) = limit(&settings, arrived, joined, pool.ready_since());
        if limit <= now {
            let waited = now.saturating_sub(arrived);
            let pool = pool.describe();
            return Err(match what {
                For::Pod => Reject::ColdStartTimeout { pool, held: waited },
                For::Place => Reject::QueueTimeout { pool, held: waited },
            });
        }
        tokio::select! {
            // A place that came in the last moment is taken.
            biased;
            slot = held.place() => {
                usage.here(hub.now());
                return Ok(slot);
            }
            () = gone.as_mut() => return Err(Reject::BadRequest("the client has gone")),
            () = hub.give_up.cancelled() => return Err(Reject::Draining),
            () = tokio::time::sleep_until(hub.instant(next_look(&settings, now, limit))) => {}
        }
    }
}

/// The limit in force, as an uptime, and of what it is one.
fn limit(
    settings: &Settings,
    arrived: Duration,
    joined: Duration,
    ready_since: Option<Duration>,
) -> (For, Duration) {
    match (ready_since, settings.queue_timeout) {
        (None, _) => (For::Pod, arrived + settings.cold_start_timeout),
        (Some(_), Duration::ZERO) => (For::Place, arrived + settings.cold_start_timeout),
        (Some(since), line) => (For::Place, joined.max(since) + line),
    }
}

/// When the limit may be another: a pool that has become ready puts the limit of the line in place of that of the cold
/// start, no sooner than so long from now.
fn next_look(settings: &Settings, now: Duration, limit: Duration) -> Duration {
    if settings.queue_timeout.is_zero() {
        limit
    } else {
        limit.min(now + settings.queue_timeout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_cold_start_and_a_line_have_a_limit_each() {
        for (what, queue, ready_since, wanted) in [
            ("asleep", 5, None, (For::Pod, at(160))),
            ("ready before it came", 5, Some(at(1)), (For::Place, at(106))),
            ("ready while it waited", 5, Some(at(150)), (For::Place, at(155))),
            (
                "without a limit of the line",
                0,
                Some(at(150)),
                (For::Place, at(160)),
            ),
        ] {
            let settings = Settings {
                cold_start_timeout: at(60),
                queue_timeout: at(queue),
                ..Settings::default()
            };
            // It came at 100 s, and joined the line a second later, after a try that failed.
            assert_eq!(limit(&settings, at(100), at(101), ready_since), wanted, "{what}");
        }
    }
}
