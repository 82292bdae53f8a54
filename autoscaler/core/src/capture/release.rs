//! The way out: what traffic still depends on goes, one after the other.

use std::time::Duration;

use super::{Action, ConditionKind, Look, MISSING, Probe, RouteFact, SliceFact, Stage, Standing};
use crate::Time;

/// How long release waits for all pods when some are ready already.
const ALL_PODS: Duration = Duration::from_secs(30);
/// How long release waits for requests in flight through activators.
const DRAIN: Duration = Duration::from_secs(120);
/// Requests in flight are looked at this often meanwhile.
const DRAIN_LOOK: Duration = Duration::from_secs(1);

impl Look<'_> {
    /// `* => Releasing => Outside`.
    pub(super) fn outward(&mut self, why: &str, refused: bool) -> Standing {
        let facts = self.facts;
        let id = self.state.probe.id;
        self.state.probe = Probe {
            id,
            ..Probe::default()
        };
        (self.state.reached, self.state.proven) = (false, false);
        let since = Some(*self.state.releasing.get_or_insert(self.now));
        let kind = match refused {
            true => ConditionKind::Refused,
            false => ConditionKind::Releasing,
        };
        if let Some(message) = self.give_back(since) {
            return (Stage::Releasing, kind, format!("{message}: {why}."));
        }
        if facts.any_original {
            self.act(Action::ForgetOriginal);
        }
        if facts.route != RouteFact::Missing && !refused {
            // Activators tell the connections of a Route that was deleted to end, and serve them while its pods are published.
            self.act(Action::RemoveRoute);
            self.state.unrouted = Some(self.now);
            let message = "Connections through the activators are told to end";
            return (Stage::Releasing, kind, format!("{message}: {why}."));
        }
        if facts.any_private_service && self.state.unrouted.is_some() && !self.settled(self.state.unrouted) {
            let message = "Connections through the activators are ending";
            return (Stage::Releasing, kind, format!("{message}: {why}."));
        }
        if facts.any_private_service {
            self.act(Action::RemovePrivateServices);
        }
        if refused && facts.route != RouteFact::Empty {
            self.act(Action::EmptyRoute);
        }
        (self.state.releasing, self.state.unrouted) = (None, None);
        (Stage::Outside, kind, why.to_owned())
    }

    /// What traffic still depends on goes, one after the other. `None`: it depends on nothing of ours.
    fn give_back(&mut self, since: Option<Time>) -> Option<String> {
        let facts = self.facts;
        let served = matches!(facts.route, RouteFact::Outdated | RouteFact::Current);
        if facts.key {
            self.keep_true();
            let wanted = facts.original.max(1);
            let ready = self.settled(self.state.ready)
                || (facts.pods_ready > 0 && self.stood(since, ALL_PODS))
                || self.stood(since, self.waits.patience);
            if !ready {
                return Some(match facts.pods_ready {
                    ready if ready < wanted => {
                        format!("Pods have to be ready before traffic goes to them, {ready} of {wanted} are")
                    }
                    ready => format!("{ready} pods are ready; whether they stay so takes a moment to see"),
                });
            }
            self.act(Action::RemoveKey);
            return Some("The selector key goes out".to_owned());
        }
        if facts.slice != SliceFact::None {
            // Pods that do not become ready must not keep it for ever.
            let filled = self.settled(self.state.filled);
            if filled || (facts.builtin_ready == 0 && self.stood(since, self.waits.patience)) {
                self.act(Action::RemoveSlice);
            } else {
                self.keep_true();
            }
            return Some("The built-in endpoints have to stand before ours go".to_owned());
        }
        // Somebody else may have deleted the Route; connections go through the activators all the same.
        if (served || facts.any_private_service) && !self.settled(self.state.withdrawn) {
            return Some("Every node has to know that our endpoints are gone".to_owned());
        }
        if served {
            let patience = DRAIN.min(self.waits.patience);
            if facts.in_flight > 0 && !self.stood(self.state.withdrawn, patience) {
                let again = self.now + DRAIN_LOOK;
                self.wake(again);
                return Some(format!(
                    "{} requests through the activators have to end",
                    facts.in_flight
                ));
            }
        }
        None
    }

    /// While activators carry traffic on the way out, the slice that lists them stays true.
    fn keep_true(&mut self) {
        if !self.facts.listening.is_empty() {
            self.publish();
        } else if self.facts.pods_ready > 0
            && self.facts.complete
            && self.stood(self.state.unserved, MISSING)
            && self.facts.slice != (SliceFact::Pods { current: true })
        {
            self.act(Action::PublishPods);
        }
    }
}
