//! Bodies on their way through. They stream; nothing is gathered. What a request holds (its place at the pod, its count,
//! its upstream connection) rides on the response's body and is given back with the last byte, or when it is dropped.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio::task::AbortHandle;
use tokio::time::{Instant, Sleep};

use crate::account::Use;
use crate::forward::Lease;
use crate::meter::Outcome;
use crate::route::Timeouts;
use crate::talk::Talk;

/// The body of an answer: ours or a pod's.
pub(crate) type ResponseBody = Either<Full<Bytes>, Download>;

/// Why a body broke off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    /// The other side broke off.
    #[error(transparent)]
    Broken(#[from] hyper::Error),
    /// A limit of the Route.
    #[error("{0} exceeded")]
    Timeout(&'static str),
    /// Never: a body of ours cannot fail.
    #[error("impossible")]
    Impossible(#[from] std::convert::Infallible),
}

/// When a byte last passed in either direction, in milliseconds since `start`.
#[derive(Debug)]
pub(crate) struct Activity {
    start: Instant,
    last: AtomicU64,
}

impl Activity {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            start: Instant::now(),
            last: AtomicU64::new(0),
        })
    }

    /// A byte passes.
    pub(crate) fn note(&self) {
        let passed = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(passed, Ordering::Relaxed);
    }

    fn last(&self) -> Instant {
        self.start + Duration::from_millis(self.last.load(Ordering::Relaxed))
    }
}

/// A request's body on its way to the pod.
#[derive(Debug, Default)]
pub(crate) struct Upload {
    /// `None`: there is no body.
    inner: Option<Incoming>,
    activity: Option<Arc<Activity>>,
}

impl Upload {
    pub(crate) fn new(body: Incoming) -> Self {
        Self {
            inner: (!body.is_end_stream()).then_some(body),
            activity: None,
        }
    }

    /// Notes its bytes.
    pub(crate) fn watch(&mut self, activity: Arc<Activity>) {
        self.activity = Some(activity);
    }

    /// Whether there is nothing to send but the head.
    pub(crate) fn is_empty(&self) -> bool {
        self.inner.is_none()
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(inner) = &mut self.inner else {
            return Poll::Ready(None);
        };
        let frame = ready!(Pin::new(inner).poll_frame(cx));
        if let Some(activity) = &self.activity {
            activity.note();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner
            .as_ref()
            .map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

/// A pod's answer on its way to the client.
#[derive(Debug)]
pub(crate) struct Download(Way);

/// Where an answer keeps what its request holds.
#[derive(Debug)]
enum Way {
    /// In itself: nobody else needs it, so there is neither a lock nor an allocation.
    Free(Running),
    /// Where the task that keeps its limits can take it.
    Limited(Limited),
}

/// An answer that runs, and everything that its request holds.
#[derive(Debug)]
struct Running {
    inner: Incoming,
    outcome: Outcome,
    usage: Option<Use>,
    lease: Option<Lease>,
    /// What is told when the answer has ended; `None` with HTTP/2.
    talk: Option<Arc<Talk>>,
}

/// An answer with limits, and the task that keeps them.
///
/// They cannot be kept where the body is polled: nobody polls the body for a client that does not read, and with a client's
/// HTTP/2 window of zero, or an unread answer before this one, nobody ever has. The task is made for every answer with a limit
/// that has a body; of one that has passed in one piece it is gone before it has run, and has set no timer.
#[derive(Debug)]
struct Limited {
    shared: Arc<Mutex<Shared>>,
    activity: Option<Arc<Activity>>,
    task: AbortHandle,
}

/// What the body and the task share.
#[derive(Debug)]
struct Shared {
    /// The limit that passed, once one has.
    running: Result<Running, &'static str>,
    /// Who waits for the pod's next bytes.
    waker: Option<Waker>,
}

/// The Route's limits on a running response or stream.
#[derive(Debug)]
pub(crate) struct Limits {
    deadline: Option<Pin<Box<Sleep>>>,
    idle: Option<(Duration, Pin<Box<Sleep>>)>,
    activity: Option<Arc<Activity>>,
    /// The client's connection, where bytes pass long after they have left the body.
    talk: Option<Arc<Talk>>,
}

impl Download {
    /// `outcome` is how the request will have ended when the body ends well.
    pub(crate) fn new(
        inner: Incoming,
        outcome: Outcome,
        usage: Use,
        lease: Option<Lease>,
        talk: Option<Arc<Talk>>,
    ) -> Self {
        let mut running = Running {
            inner,
            outcome,
            usage: Some(usage),
            lease,
            talk,
        };
        if running.inner.is_end_stream() {
            running.complete(outcome);
        }
        Self(Way::Free(running))
    }

    /// Whether its last byte has passed.
    pub(crate) fn has_ended(&self) -> bool {
        self.look(|running| running.usage.is_none(), true)
    }

    /// Puts the Route's limits on it. `dispatched` is when the request was sent.
    pub(crate) fn limited(
        self,
        limits: Timeouts,
        dispatched: Instant,
        activity: Option<Arc<Activity>>,
    ) -> Self {
        let running = match self.0 {
            Way::Free(running)
                if running.usage.is_some() && (limits.request.is_some() || limits.stream_idle.is_some()) =>
            {
                running
            }
            way => return Self(way),
        };
        let activity = activity.or_else(|| limits.stream_idle.map(|_| Activity::new()));
        let mut limits = Limits::new(limits, dispatched, activity.clone());
        limits.talk.clone_from(&running.talk);
        let shared = Arc::new(Mutex::new(Shared {
            running: Ok(running),
            waker: None,
        }));
        let task = tokio::spawn(keep(limits, Arc::downgrade(&shared))).abort_handle();
        Self(Way::Limited(Limited {
            shared,
            activity,
            task,
        }))
    }

    /// Reads something of it; `over` when a limit has passed.
    fn look<T>(&self, read: impl FnOnce(&Running) -> T, over: T) -> T {
        match &self.0 {
            Way::Free(running) => read(running),
            Way::Limited(limited) => limited.shared.lock().running.as_ref().map_or(over, read),
        }
    }
}

/// Breaks an answer off when one of its limits passes.
async fn keep(mut limits: Limits, shared: Weak<Mutex<Shared>>) {
    let what = poll_fn(|cx| limits.poll(cx)).await;
    // Weak: a body that is dropped gives all back at once, not when this task is next looked at.
    let Some(shared) = shared.upgrade() else {
        return;
    };
    let mut shared = shared.lock();
    if !matches!(&shared.running, Ok(running) if running.usage.is_some()) {
        return;
    }
    let running = std::mem::replace(&mut shared.running, Err(what));
    let waker = shared.waker.take();
    drop(shared);
    if let Ok(running) = running {
        running.break_off(what);
    }
    if let Some(waker) = waker {
        waker.wake();
    }
}

impl Running {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match ready!(Pin::new(&mut self.inner).poll_frame(cx)) {
            Some(Ok(frame)) => {
                if let (Some(trailers), Some(usage)) = (frame.trailers_ref(), &mut self.usage) {
                    usage.trailers(trailers);
                }
                if self.inner.is_end_stream() {
                    self.complete(self.outcome);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                self.complete(Outcome::Failed);
                Poll::Ready(Some(Err(error.into())))
            }
            None => {
                self.complete(self.outcome);
                Poll::Ready(None)
            }
        }
    }

    fn complete(&mut self, outcome: Outcome) {
        if let Some(lease) = self.lease.take()
            && matches!(outcome, Outcome::Ok | Outcome::ServerError)
        {
            lease.give_back();
        }
        if let Some(usage) = self.usage.take() {
            usage.finish(outcome);
        }
        if let Some(talk) = self.talk.take() {
            talk.idle();
        }
    }

    /// A limit of the Route has passed: everything is given back, and the pod is told by the end of its connection or stream.
    fn break_off(mut self, limit: &'static str) {
        if let Some(usage) = &self.usage {
            usage.aborted(limit);
        }
        // Whoever does not read keeps a connection of HTTP/1.1 from its end, too. A stream of HTTP/2 is reset when its body is
        // polled next; until then it is a number, and its connection serves the others.
        if let Some(talk) = self.talk.take() {
            talk.break_off();
        }
        self.complete(Outcome::Failed);
    }
}

impl Limited {
    fn poll_frame(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut shared = self.shared.lock();
        let polled = match &mut shared.running {
            Ok(running) => running.poll_frame(cx),
            Err(what) => return Poll::Ready(Some(Err(BodyError::Timeout(what)))),
        };
        match (&polled, &self.activity) {
            (Poll::Pending, _) => shared.waker = Some(cx.waker().clone()),
            (Poll::Ready(Some(Ok(_))), Some(activity)) => activity.note(),
            _ => {}
        }
        polled
    }
}

impl Limits {
    /// From now on. `begun` is when the request was first sent.
    pub(crate) fn new(limits: Timeouts, begun: Instant, activity: Option<Arc<Activity>>) -> Self {
        Self {
            deadline: limits
                .request
                .map(|limit| Box::pin(tokio::time::sleep_until(begun + limit))),
            idle: limits
                .stream_idle
                .map(|limit| (limit, Box::pin(tokio::time::sleep(limit)))),
            activity,
            talk: None,
        }
    }

    /// Ready when one is exceeded: its name.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<&'static str> {
        if let Some(deadline) = &mut self.deadline
            && deadline.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready("request-timeout");
        }
        if let Some((limit, sleep)) = &mut self.idle {
            while sleep.as_mut().poll(cx).is_ready() {
                let passed = self.activity.as_ref().map(|activity| activity.last());
                let written = self.talk.as_ref().and_then(|talk| talk.filled());
                match passed.max(written).map(|last| last + *limit) {
                    Some(until) if until > Instant::now() => sleep.as_mut().reset(until),
                    _ => return Poll::Ready("stream-idle-timeout"),
                }
            }
        }
        Poll::Pending
    }
}

impl Body for Download {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.0 {
            Way::Free(running) => running.poll_frame(cx),
            Way::Limited(limited) => limited.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.look(|running| running.inner.is_end_stream(), false)
    }

    fn size_hint(&self) -> SizeHint {
        self.look(|running| running.inner.size_hint(), SizeHint::default())
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Dropped before its end: the client has gone. After its end there is nothing left to give back. An HTTP/1.1 client
        // has all when its length has passed, though an HTTP/2 pod has yet to say that this was the end.
        let has_all = self.inner.is_end_stream() || self.inner.size_hint().exact() == Some(0);
        let outcome = if has_all { self.outcome } else { Outcome::Cancelled };
        self.complete(outcome);
    }
}
