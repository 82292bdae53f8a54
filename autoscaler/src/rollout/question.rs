//! A question to somebody outside: asked beside the looks, by at most one call at a time.

use std::future::Future;

use dormouse_core::Time;
use futures::FutureExt;
use tokio_util::task::AbortOnDropHandle;

/// A question, and what was answered last. Dropping it gives the call up.
#[derive(Debug)]
pub(super) struct Question<T> {
    call: Option<AbortOnDropHandle<T>>,
    last: Option<(Time, T)>,
}

impl<T> Default for Question<T> {
    fn default() -> Self {
        Self {
            call: None,
            last: None,
        }
    }
}

impl<T: Send + 'static> Question<T> {
    /// Asks, unless an answer is awaited already.
    pub(super) fn ask(&mut self, call: impl Future<Output = T> + Send + 'static) {
        if self.call.is_none() {
            self.call = Some(AbortOnDropHandle::new(tokio::spawn(call)));
        }
    }

    /// Whether an answer is awaited.
    pub(super) fn open(&self) -> bool {
        self.call.is_some()
    }

    /// Takes the answer in, if it is there. Returns whether it was.
    pub(super) fn hear(&mut self, now: Time) -> bool {
        let Some(call) = self.call.take_if(|call| call.is_finished()) else {
            return false;
        };
        match call.now_or_never() {
            Some(Ok(answer)) => {
                self.last = Some((now, answer));
                true
            }
            failed => {
                // A panic is a defect; the question is asked again.
                tracing::error!(ended = failed.is_some(), "a question to somebody outside failed");
                false
            }
        }
    }

    /// The last answer, and when it was heard.
    pub(super) fn last(&self) -> Option<&(Time, T)> {
        self.last.as_ref()
    }
}
