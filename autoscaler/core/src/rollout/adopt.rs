//! How the first revision comes to the traffic: in a pool of its own, or, where the Deployment is paused, in the pods that run.

use std::time::Duration;

use super::{EventKind, FULL, Look, Phase, Time};
use crate::time::earliest;

/// How long requests that are under way in the user's Deployment have to end before it goes to zero.
const DRAIN: Duration = Duration::from_secs(120);

impl Look<'_> {
    /// `Adopting => Idle`.
    pub(super) fn adopt(&mut self) {
        let begun = self.status.has_begun();
        if let Some(latest) = self.facts.latest.as_ref().filter(|_| !begun) {
            let pinned = self.plan.bootstrap.as_ref();
            let first = pinned
                .filter(|pinned| self.facts.revisions.contains(*pinned))
                .unwrap_or(latest);
            // It is acted on as a change, after this, when it is not the first one.
            self.status.stable.clone_from(first);
            self.status.seen.clone_from(first);
        }
        let stable = self.status.stable.clone();
        if stable.is_empty() {
            self.reason = "The template has not settled yet.".to_owned();
            return;
        }
        match self.may_stay() {
            None => {
                self.reason = "The Deployment is paused, and its status is awaited.".to_owned();
                return;
            }
            Some(true) => {
                self.status.in_place = true;
                self.status.phase = Phase::Idle;
                self.reason =
                    format!("Initialized: {stable} has all traffic, in the Deployment, which is paused.");
                self.tell(EventKind::Initialized, self.reason.clone());
                self.wake(self.now);
                return;
            }
            Some(false) => {}
        }
        let (ready, needed) = (self.ready(&stable), self.needed(FULL, &stable).max(1));
        if !self.status.adopted {
            self.reason = format!("The first revision {stable} gets ready: {ready} of {needed} pods.");
            // A pool asleep is woken by the first request, as any other.
            let asleep = self.facts.resting;
            if self.facts.pools.contains_key(&stable) && (ready >= needed || asleep) {
                self.status.adopted = true;
                self.status.promoted = Some(self.now);
                self.wake(self.now);
            }
        } else if !self.settled() {
            self.reason = format!("{stable} gets the traffic.");
        } else if !self.facts.shelled {
            let drains = self.drains_until();
            self.wake_at = earliest(self.wake_at, drains);
            self.reason = match drains {
                Some(_) => format!("{stable} has the traffic; requests in the Deployment's pods end."),
                None => format!("{stable} has the traffic; the Deployment becomes its template."),
            };
        } else {
            self.status.phase = Phase::Idle;
            self.reason = format!("Initialized: {stable} has all traffic.");
            if !std::mem::take(&mut self.status.in_place) {
                self.tell(EventKind::Initialized, self.reason.clone());
            }
            self.wake(self.now);
        }
    }

    /// Whether a revision that is to begin may stay in the user's Deployment. Pods of several templates are no one revision,
    /// and neither are those of another one than somebody has pinned. `None`: not known yet.
    pub(super) fn may_stay(&self) -> Option<bool> {
        let facts = self.facts;
        if !self.plan.pause_target || self.status.has_begun() || facts.resting {
            return Some(false);
        }
        let whole = facts.whole.filter(|_| facts.paused)?;
        Some(whole && facts.latest.as_ref() == Some(&self.status.stable))
    }

    /// Until when requests that are under way in the user's Deployment have time to end. `None`: there are none, or no more time.
    pub(super) fn drains_until(&self) -> Option<Time> {
        let told = self.facts.route.says.weights.contains_key(&self.facts.target);
        let since = self.status.promoted.filter(|_| told && self.facts.draining)?;
        Some(since + DRAIN).filter(|due| self.now < *due)
    }

    /// In the user's Deployment, `Idle => Adopting`. A paused Deployment without pods may start those of any template that it
    /// has had: so the revision leaves before there are none.
    pub(super) fn stay(&mut self) {
        let stable = &self.status.stable;
        let why = if !self.plan.pause_target {
            "it is to be a template at zero"
        } else if !self.facts.paused {
            "somebody has let it go on"
        } else if self.facts.whole == Some(false) {
            "its template has changed"
        } else if self.facts.resting {
            "it is about to sleep"
        } else {
            self.reason = format!("{stable} has all traffic, in the Deployment, which is paused.");
            return;
        };
        self.reason = format!("{stable} moves from the Deployment into a pool of its own: {why}.");
        self.tell(EventKind::Moving, self.reason.clone());
        self.status.phase = Phase::Adopting;
        self.wake(self.now);
    }
}
