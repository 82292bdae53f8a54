//! Bodies on their way through. They stream; nothing is gathered. What a request holds (its place at the pod, its count,
//! its upstream connection) rides on the response's body and is given back with the last byte, or when it is dropped.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
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
pub(crate) struct Download {
    inner: Incoming,
    outcome: Outcome,
    usage: Option<Use>,
    lease: Option<Lease>,
    /// What is told when the answer has ended; `None` with HTTP/2.
    talk: Option<Arc<Talk>>,
    limits: Option<Box<Limits>>,
}

/// The Route's limits on a running response or stream.
#[derive(Debug)]
pub(crate) struct Limits {
    deadline: Option<Pin<Box<Sleep>>>,
    idle: Option<(Duration, Pin<Box<Sleep>>)>,
    activity: Option<Arc<Activity>>,
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
        let mut body = Self {
            inner,
            outcome,
            usage: Some(usage),
            lease,
            talk,
            limits: None,
        };
        if body.inner.is_end_stream() {
            body.complete(outcome);
        }
        body
    }

    /// Whether its last byte has passed.
    pub(crate) fn has_ended(&self) -> bool {
        self.usage.is_none()
    }

    /// Puts the Route's limits on it. `dispatched` is when the request was sent.
    pub(crate) fn limited(
        mut self,
        limits: Timeouts,
        dispatched: Instant,
        activity: Option<Arc<Activity>>,
    ) -> Self {
        if self.usage.is_some() && (limits.request.is_some() || limits.stream_idle.is_some()) {
            self.limits = Some(Box::new(Limits::new(limits, dispatched, activity)));
        }
        self
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
                let until = self.activity.as_ref().map(|activity| activity.last() + *limit);
                match until {
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
        match Pin::new(&mut self.inner).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(activity) = self.limits.as_ref().and_then(|limits| limits.activity.as_ref()) {
                    activity.note();
                }
                if let (Some(trailers), Some(usage)) = (frame.trailers_ref(), &mut self.usage) {
                    usage.trailers(trailers);
                }
                if self.inner.is_end_stream() {
                    let outcome = self.outcome;
                    self.complete(outcome);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                self.complete(Outcome::Failed);
                Poll::Ready(Some(Err(error.into())))
            }
            Poll::Ready(None) => {
                let outcome = self.outcome;
                self.complete(outcome);
                Poll::Ready(None)
            }
            Poll::Pending => {
                if let Some(limits) = &mut self.limits {
                    let what = ready!(limits.poll(cx));
                    if let Some(usage) = &self.usage {
                        usage.aborted(what);
                    }
                    self.complete(Outcome::Failed);
                    return Poll::Ready(Some(Err(BodyError::Timeout(what))));
                }
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        // Dropped before its end: the client has gone. After its end there is nothing left to give back. An HTTP/1.1 client
        // has all when its length has passed, though an HTTP/2 pod has yet to say that this was the end.
        let has_all = self.inner.is_end_stream() || self.inner.size_hint().exact() == Some(0);
        let outcome = if has_all { self.outcome } else { Outcome::Cancelled };
        self.complete(outcome);
    }
}
