//! Copies of requests to a candidate that has no share yet. The client gets the stable pool's answer and waits for nothing
//! else; the copy's answer is judged beside it, and thrown away.
//!
//! Only what is safe to ask twice is copied: GET, HEAD and OPTIONS without a body. A copy wakes nothing, and none is made
//! while too many are under way.

use std::sync::Arc;

use http::Request;

use crate::account::Counts;
use crate::body::Upload;
use crate::forward;
use crate::pool::Pool;
use crate::request::Connection;
use crate::rollout::Ticket;
use crate::route::Target;
use crate::throttle::Kind;
use crate::unasked::Unasked;

/// Most copies at the same time, of all Routes: what a candidate that hangs can keep of this activator.
pub(crate) const COPIES: usize = 256;

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
    let copy = Unasked {
        connection: Arc::clone(connection),
        target: Arc::clone(target),
        pool: Arc::clone(candidate),
        request: Box::new(request),
        ticket: theirs,
        counts: Counts::Copy,
        kind: Kind::Client,
        h2c,
        room,
    };
    let given_up = hub.metrics.mirrored.with_label_values(&["given_up"]);
    tokio::spawn(async move {
        if !copy.send().await {
            given_up.inc();
        }
    });
    Some(ours)
}
