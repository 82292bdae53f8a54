//! Copies of requests to a candidate that has no share yet. The client gets the stable pool's answer and waits for nothing
//! else; the copy's answer is judged beside it, and thrown away.
//!
//! Only what is safe to ask twice is copied: GET, HEAD and OPTIONS without a body. A copy wakes nothing, and none is made
//! while too many are under way.

use std::sync::Arc;
use std::time::Duration;

use http::Request;
use http_body_util::BodyExt;
use tokio::sync::OwnedSemaphorePermit;

use crate::account::{Counts, Use};
use crate::body::{Download, Upload};
use crate::forward;
use crate::pool::Pool;
use crate::request::{self, Call, Connection, Done};
use crate::rollout::Ticket;
use crate::route::Target;
use crate::throttle::Kind;

/// Most copies at the same time, of all Routes: what a candidate that hangs can keep of this activator.
pub(crate) const COPIES: usize = 256;

/// When a copy is given up: longer than clients usually wait.
const LONGEST: Duration = Duration::from_secs(30);

/// A copy on its way out.
struct Copy {
    connection: Arc<Connection>,
    target: Arc<Target>,
    pool: Arc<Pool>,
    request: Box<Request<Upload>>,
    ticket: Box<Ticket>,
    h2c: bool,
    _room: OwnedSemaphorePermit,
}

/// Sends a copy of a request that goes to `pool` to the candidate, if the Route wants one. Returns how the request itself
/// is counted then.
pub(crate) fn copy(
    connection: &Arc<Connection>,
    target: &Arc<Target>,
    pool: &Arc<Pool>,
    request: &Request<Upload>,
    h2c: bool,
) -> Option<Box<Ticket>> {
    let plan = target.rollout.as_ref()?;
    let candidate = plan.mirror(&target.pools, pool, request.method(), &mut |below| {
        fastrand::u32(..below)
    })?;
    let request = forward::without_body(request)?;
    let hub = &connection.hub;
    let count = |result| hub.metrics.mirrored.with_label_values(&[result]).inc();
    if candidate.ready() == 0 {
        count("asleep");
        return None;
    }
    let Ok(room) = Arc::clone(&hub.copies).try_acquire_owned() else {
        count("too_many");
        return None;
    };
    let [ours, theirs] = plan.pair()?;
    count("sent");
    let copy = Copy {
        connection: Arc::clone(connection),
        target: Arc::clone(target),
        pool: Arc::clone(candidate),
        request: Box::new(request),
        ticket: theirs,
        h2c,
        _room: room,
    };
    tokio::spawn(copy.send());
    Some(ours)
}

impl Copy {
    /// Sends it and reads the answer to its end.
    async fn send(self) {
        let hub = &self.connection.hub;
        let started = hub.now();
        let deadline = hub.instant(started + LONGEST);
        let mut usage = Use::begin(hub, &self.pool, self.connection.worker, Counts::Copy, started);
        usage.enrol(Some(self.ticket));
        let call = Call {
            connection: &self.connection,
            target: &self.target,
            pool: &self.pool,
            kind: Kind::Client,
            counts: Counts::Copy,
            h2c: self.h2c,
            started,
        };
        let trying = Box::pin(request::attempt(&call, &mut usage, self.request, None, false));
        let given_up = || hub.metrics.mirrored.with_label_values(&["given_up"]).inc();
        match tokio::time::timeout_at(deadline, trying).await {
            Ok(Ok(done)) => {
                let mut body = answer(&call, usage, done);
                let reading = async { while let Some(Ok(_)) = body.frame().await {} };
                if tokio::time::timeout_at(deadline, reading).await.is_err() {
                    given_up();
                }
            }
            Ok(Err(reject)) => usage.refuse(&reject),
            Err(_) => {
                given_up();
                usage.give_up();
            }
        }
    }
}

/// The copy's answer, which closes its books when it has been read.
fn answer(call: &Call<'_>, mut usage: Use, done: Done) -> Download {
    let hub = &call.connection.hub;
    let (parts, body) = done.answer.response.into_parts();
    // A cookie would be the client's.
    drop(usage.head(parts.status, &parts.headers, done.sent));
    let outcome = request::outcome(parts.status);
    let body = Download::new(body, outcome, usage, done.answer.lease, None);
    body.limited(call.target.timeouts, hub.instant(done.begun), None)
}
