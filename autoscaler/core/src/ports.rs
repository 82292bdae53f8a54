//! Which activator port stands for which (Service, port): unique in the cluster, stable while the Route lives.
//!
//! Ports are given out next-fit, and a freed one is not given out again for a while: clients' connections and nodes'
//! tables may still lead to it. Nothing is stored but the Routes themselves; after a restart [`Ports::adopt`] rebuilds the
//! table from them, and where two Routes hold one port the older keeps it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::Time;

/// A port that a Route holds, as read from the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held<K> {
    /// Who holds it.
    pub key: K,
    /// The port.
    pub port: u16,
    /// When the Route was created: the older keeps a port that two hold.
    pub created: Time,
}

/// No port is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exhausted {
    /// Ports in use.
    pub used: usize,
    /// Ports freed a short while ago.
    pub quarantined: usize,
}

impl std::fmt::Display for Exhausted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { used, quarantined } = self;
        write!(
            f,
            "no listening port is left: {used} are in use, {quarantined} were freed a short while ago"
        )
    }
}

impl std::error::Error for Exhausted {}

/// The listening ports of a cluster. `K` names a (Service, port).
#[derive(Clone, Debug)]
pub struct Ports<K> {
    first: u16,
    last: u16,
    quarantine: Duration,
    used: BTreeMap<u16, K>,
    of: BTreeMap<K, u16>,
    /// Freed ports with the time they may be used again, oldest first: bounded by the range.
    freed: VecDeque<(Time, u16)>,
    resting: BTreeSet<u16>,
    next: u16,
}

impl<K: Ord + Clone> Ports<K> {
    /// An empty table of the ports `first..=last`; a freed port rests for `quarantine`.
    #[must_use]
    pub fn new(first: u16, last: u16, quarantine: Duration) -> Self {
        Self {
            first,
            last: last.max(first),
            quarantine,
            used: BTreeMap::new(),
            of: BTreeMap::new(),
            freed: VecDeque::new(),
            resting: BTreeSet::new(),
            next: first,
        }
    }

    /// Takes in what Routes hold, the oldest Route first whatever the order given. Returns the keys that lost their port
    /// to an older Route, or hold one out of range: they need another.
    pub fn adopt(&mut self, held: impl IntoIterator<Item = Held<K>>) -> Vec<K> {
        let mut held: Vec<_> = held.into_iter().collect();
        held.sort_by(|a, b| (a.created, &a.key, a.port).cmp(&(b.created, &b.key, b.port)));
        let mut losers = Vec::new();
        for Held { key, port, .. } in held {
            if self.of.get(&key) == Some(&port) {
                continue;
            }
            let free = (self.first..=self.last).contains(&port)
                && !self.used.contains_key(&port)
                && !self.of.contains_key(&key);
            if free {
                self.take(key, port);
                // Next-fit goes on behind what is there, so that a port freed before a restart rests as well.
                self.next = self.next.max(self.following(port));
            } else if !self.of.contains_key(&key) {
                losers.push(key);
            }
        }
        losers
    }

    /// The port of `key`: the one it has, or a new one.
    ///
    /// # Errors
    /// When all ports are in use or resting. Trying again later helps when some rest.
    pub fn allocate(&mut self, now: Time, key: &K) -> Result<u16, Exhausted> {
        if let Some(port) = self.of.get(key) {
            return Ok(*port);
        }
        self.expire(now);
        let from = self.next;
        let after = (from..=self.last).chain(self.first..from);
        let free = |port: &u16| !self.used.contains_key(port) && !self.resting.contains(port);
        let Some(port) = after.into_iter().find(free) else {
            return Err(Exhausted {
                used: self.used.len(),
                quarantined: self.resting.len(),
            });
        };
        self.take(key.clone(), port);
        self.next = self.following(port);
        Ok(port)
    }

    /// Frees the port of `key`, which then rests.
    pub fn release(&mut self, now: Time, key: &K) {
        if let Some(port) = self.of.remove(key) {
            self.used.remove(&port);
            self.freed.push_back((now + self.quarantine, port));
            self.resting.insert(port);
        }
    }

    /// The port of `key`, if it has one.
    #[must_use]
    pub fn get(&self, key: &K) -> Option<u16> {
        self.of.get(key).copied()
    }

    /// Who has `port`.
    #[must_use]
    pub fn holder(&self, port: u16) -> Option<&K> {
        self.used.get(&port)
    }

    /// All keys that have a port, in order.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.of.keys()
    }

    fn take(&mut self, key: K, port: u16) {
        self.resting.remove(&port);
        self.freed.retain(|(_, freed)| *freed != port);
        self.used.insert(port, key.clone());
        self.of.insert(key, port);
    }

    fn following(&self, port: u16) -> u16 {
        if port >= self.last { self.first } else { port + 1 }
    }

    fn expire(&mut self, now: Time) {
        while let Some((until, port)) = self.freed.front().copied() {
            if until > now {
                break;
            }
            self.freed.pop_front();
            self.resting.remove(&port);
        }
    }
}

#[cfg(test)]
mod tests;
