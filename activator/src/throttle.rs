//! The bounded line in which requests wait for a place at a pod: first come, first served.
//!
//! A plain struct behind its pool's lock; it knows nothing of pods. Whoever calls it says how to find a place, and a
//! place that nobody can take any more is handed back. A waiter that leaves takes its entry with it, so the limit counts
//! only requests that still wait. (Tokio's semaphore was rejected: it cannot shrink below what is held.)

use std::collections::VecDeque;
use std::time::Duration;

use tokio::sync::oneshot;

/// What a request may be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Any place, also one at a peer activator.
    Client,
    /// Only a pod of our own: it comes from a peer activator, or it is a stream of bytes, which cannot be sent on.
    Hop,
}

/// The line.
#[derive(Debug)]
pub(crate) struct Throttle<T> {
    queue: VecDeque<Waiter<T>>,
    /// Entries of `queue` whose waiter is still there.
    waiting: usize,
    /// Of these, how many may be given a peer's place.
    clients: usize,
    next: u64,
}

#[derive(Debug)]
struct Waiter<T> {
    id: u64,
    kind: Kind,
    since: Duration,
    /// `None`: it left or was served; the entry goes when it reaches the front.
    wake: Option<oneshot::Sender<T>>,
}

/// The answer to [`Throttle::admit`].
#[derive(Debug)]
pub(crate) enum Admit<T> {
    /// There is a place, and nobody who came before waits for one.
    Granted(T),
    /// It waits. The place arrives on the receiver; the ticket gives up the place in line.
    Queued(Ticket, oneshot::Receiver<T>),
    /// The line is full.
    Full,
}

/// A place in line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket(u64);

impl<T> Default for Throttle<T> {
    fn default() -> Self {
        Self {
            queue: VecDeque::new(),
            waiting: 0,
            clients: 0,
            next: 0,
        }
    }
}

impl<T> Throttle<T> {
    /// Requests that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Requests that wait and may be given a peer's place.
    pub(crate) fn clients(&self) -> usize {
        self.clients
    }

    /// When the request that has waited longest came.
    pub(crate) fn oldest(&self) -> Option<Duration> {
        self.queue
            .iter()
            .find(|waiter| waiter.wake.is_some())
            .map(|waiter| waiter.since)
    }

    /// A request comes at `now`. It gets a place at once only when nobody waits; at most `limit` wait.
    pub(crate) fn admit(
        &mut self,
        now: Duration,
        kind: Kind,
        limit: usize,
        place: impl FnOnce() -> Option<T>,
    ) -> Admit<T> {
        if self.waiting == 0
            && let Some(place) = place()
        {
            return Admit::Granted(place);
        }
        if self.waiting >= limit {
            return Admit::Full;
        }
        let id = self.next;
        self.next += 1;
        let (wake, place) = oneshot::channel();
        self.queue.push_back(Waiter {
            id,
            kind,
            since: now,
            wake: Some(wake),
        });
        self.count(kind, 1);
        Admit::Queued(Ticket(id), place)
    }

    /// A waiter leaves. Nothing happens when it has been given its place already.
    pub(crate) fn leave(&mut self, ticket: Ticket) {
        // Ids grow along the queue.
        if let Ok(at) = self.queue.binary_search_by_key(&ticket.0, |waiter| waiter.id)
            && self.queue[at].wake.take().is_some()
        {
            self.count(self.queue[at].kind, -1);
        }
        self.tidy();
    }

    fn count(&mut self, kind: Kind, change: isize) {
        self.waiting = self.waiting.saturating_add_signed(change);
        if kind == Kind::Client {
            self.clients = self.clients.saturating_add_signed(change);
        }
    }

    /// Gives out places in order of arrival until there are none or nobody waits. A place that finds its waiter gone goes
    /// to `back`.
    pub(crate) fn dispatch(&mut self, mut place: impl FnMut() -> Option<T>, mut back: impl FnMut(T)) {
        for at in 0..self.queue.len() {
            if self.queue[at].wake.is_none() {
                continue;
            }
            let Some(place) = place() else { break };
            if let Err(place) = self.serve(at, place) {
                back(place);
            }
        }
        self.tidy();
    }

    /// Gives a peer's place to whoever has waited longest and may have it; nobody: it comes back.
    ///
    /// # Errors
    /// The place.
    pub(crate) fn give(&mut self, mut place: T) -> Result<(), T> {
        for at in 0..self.queue.len() {
            let waiter = &self.queue[at];
            if waiter.wake.is_none() || waiter.kind != Kind::Client {
                continue;
            }
            match self.serve(at, place) {
                Ok(()) => {
                    self.tidy();
                    return Ok(());
                }
                Err(back) => place = back,
            }
        }
        self.tidy();
        Err(place)
    }

    /// Serves the waiter at that position, which is there.
    fn serve(&mut self, at: usize, place: T) -> Result<(), T> {
        let waiter = &mut self.queue[at];
        let kind = waiter.kind;
        let Some(wake) = waiter.wake.take() else {
            return Err(place);
        };
        self.count(kind, -1);
        wake.send(place)
    }

    /// Drops entries without a waiter from the front, and from everywhere when they are the most.
    fn tidy(&mut self) {
        while self.queue.front().is_some_and(|waiter| waiter.wake.is_none()) {
            self.queue.pop_front();
        }
        if self.queue.len() > 2 * self.waiting + 16 {
            self.queue.retain(|waiter| waiter.wake.is_some());
        }
        // A burst must not keep its memory for ever; a few entries are kept to save allocations.
        if self.queue.is_empty() && self.queue.capacity() > 64 {
            self.queue = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queued(admit: Admit<u32>) -> (Ticket, oneshot::Receiver<u32>) {
        match admit {
            Admit::Queued(ticket, place) => (ticket, place),
            other => panic!("not queued: {other:?}"),
        }
    }

    fn wait(throttle: &mut Throttle<u32>, kind: Kind) -> (Ticket, oneshot::Receiver<u32>) {
        queued(throttle.admit(Duration::ZERO, kind, 100, || None))
    }

    #[test]
    fn a_free_place_is_granted_at_once() {
        let mut throttle = Throttle::default();
        assert!(matches!(
            throttle.admit(Duration::ZERO, Kind::Client, 1, || Some(7)),
            Admit::Granted(7)
        ));
        assert_eq!(throttle.waiting(), 0);
    }

    #[test]
    fn waiters_are_served_in_order_of_arrival() {
        let mut throttle = Throttle::default();
        let mut lines: Vec<_> = (0..5).map(|_| wait(&mut throttle, Kind::Client).1).collect();
        let mut places = vec![2, 1, 0];
        throttle.dispatch(|| places.pop(), |_| panic!("nobody left"));
        let served: Vec<_> = lines.iter_mut().map(|line| line.try_recv().ok()).collect();
        assert_eq!(served, [Some(0), Some(1), Some(2), None, None]);
        assert_eq!(throttle.waiting(), 2);
    }

    #[test]
    fn nobody_overtakes_those_who_wait() {
        let mut throttle = Throttle::default();
        let _first = wait(&mut throttle, Kind::Client);
        let second = throttle.admit(Duration::ZERO, Kind::Client, 9, || {
            panic!("must not ask for a place")
        });
        queued(second);
    }

    #[test]
    fn the_line_is_bounded_and_leaving_makes_room() {
        let mut throttle = Throttle::default();
        let (first, _line) = queued(throttle.admit(Duration::ZERO, Kind::Client, 1, || None));
        assert!(matches!(
            throttle.admit(Duration::ZERO, Kind::Client, 1, || None),
            Admit::Full
        ));
        throttle.leave(first);
        throttle.leave(first);
        assert_eq!(throttle.waiting(), 0);
        queued(throttle.admit(Duration::ZERO, Kind::Client, 1, || None));
    }

    #[test]
    fn a_limit_of_zero_holds_nobody() {
        let mut throttle: Throttle<u32> = Throttle::default();
        assert!(matches!(
            throttle.admit(Duration::ZERO, Kind::Client, 0, || None),
            Admit::Full
        ));
    }

    #[test]
    fn a_place_whose_waiter_has_gone_comes_back() {
        let mut throttle = Throttle::default();
        drop(wait(&mut throttle, Kind::Client).1);
        let (_ticket, mut line) = wait(&mut throttle, Kind::Client);
        let mut places = vec![2, 1];
        let mut back = Vec::new();
        throttle.dispatch(|| places.pop(), |place| back.push(place));
        assert_eq!((back, line.try_recv()), (vec![1], Ok(2)));
    }

    #[test]
    fn a_place_at_a_peer_goes_to_the_first_who_may_have_it() {
        let mut throttle = Throttle::default();
        let (_, mut hop) = wait(&mut throttle, Kind::Hop);
        drop(wait(&mut throttle, Kind::Client).1);
        let (_, mut client) = wait(&mut throttle, Kind::Client);
        assert_eq!((throttle.waiting(), throttle.clients()), (3, 2));
        assert_eq!(throttle.give(1), Ok(()));
        assert!(hop.try_recv().is_err());
        assert_eq!(client.try_recv(), Ok(1));
        assert_eq!(throttle.give(2), Err(2));
        assert_eq!((throttle.waiting(), throttle.clients()), (1, 0));
    }

    #[test]
    fn the_oldest_is_the_first_who_still_waits() {
        let mut throttle: Throttle<u32> = Throttle::default();
        let tickets: Vec<_> = (1..4)
            .map(|second| queued(throttle.admit(Duration::from_secs(second), Kind::Client, 9, || None)))
            .collect();
        assert_eq!(throttle.oldest(), Some(Duration::from_secs(1)));
        throttle.leave(tickets[1].0);
        throttle.leave(tickets[0].0);
        assert_eq!(throttle.oldest(), Some(Duration::from_secs(3)));
    }

    #[test]
    fn those_who_leave_from_the_middle_leave_no_memory_behind() {
        let mut throttle: Throttle<u32> = Throttle::default();
        let _first = wait(&mut throttle, Kind::Client);
        for _ in 0..10_000 {
            let (ticket, _line) = wait(&mut throttle, Kind::Client);
            throttle.leave(ticket);
        }
        assert!(throttle.queue.len() < 32, "{}", throttle.queue.len());
    }
}
