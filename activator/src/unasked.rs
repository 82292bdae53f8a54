//! Requests that no client waits for: copies for a candidate without a share, and synthetic ones. Their answers are judged and
//! thrown away.

use std::sync::Arc;
use std::time::Duration;

use http::Request;
use http_body_util::BodyExt;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout_at;

use crate::account::{Counts, Use};
use crate::body::{Download, Upload};
use crate::pool::Pool;
use crate::request::{self, Call, Connection, Done};
use crate::rollout::Ticket;
use crate::route::Target;
use crate::throttle::Kind;

/// When one is given up: longer than clients usually wait.
const LONGEST: Duration = Duration::from_secs(30);

/// One on its way out.
pub(crate) struct Unasked {
    pub(crate) connection: Arc<Connection>,
    pub(crate) target: Arc<Target>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) request: Box<Request<Upload>>,
    pub(crate) ticket: Box<Ticket>,
    /// [`Counts::Copy`] or [`Counts::Synthetic`].
    pub(crate) counts: Counts,
    pub(crate) kind: Kind,
    pub(crate) h2c: bool,
    /// Its place among those that are under way.
    pub(crate) room: OwnedSemaphorePermit,
}

impl Unasked {
    /// Sends it and reads the answer to its end. Returns whether that came in time.
    pub(crate) async fn send(self) -> bool {
        let hub = &self.connection.hub;
        let started = hub.now();
        let deadline = hub.instant(started + LONGEST);
        let mut usage = Use::begin(hub, &self.pool, self.connection.worker, self.counts, started);
        usage.enrol(Some(self.ticket));
        let call = Call {
            connection: &self.connection,
            target: &self.target,
            pool: &self.pool,
            kind: self.kind,
            counts: self.counts,
            h2c: self.h2c,
            started,
        };
        let trying = Box::pin(request::attempt(&call, &mut usage, self.request, None, false));
        let in_time = match timeout_at(deadline, trying).await {
            Ok(Ok(done)) => {
                let mut body = answer(&call, usage, done);
                let reading = async { while let Some(Ok(_)) = body.frame().await {} };
                // Its head was judged: a body that does not end is given up like one that a client leaves.
                timeout_at(deadline, reading).await.is_ok()
            }
            Ok(Err(reject)) => {
                usage.refuse(&reject);
                true
            }
            Err(_) => {
                usage.give_up();
                false
            }
        };
        drop(self.room);
        in_time
    }
}

/// The answer, which closes its books when it has been read.
fn answer(call: &Call<'_>, mut usage: Use, done: Done) -> Download {
    let (parts, body) = done.answer.response.into_parts();
    // A cookie would be a client's.
    drop(usage.head(parts.status, &parts.headers, done.sent));
    let outcome = request::outcome(parts.status);
    let body = Download::new(body, outcome, usage, done.answer.lease, None);
    body.limited(
        call.target.timeouts,
        call.connection.hub.instant(done.begun),
        None,
    )
}
