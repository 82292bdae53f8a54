//! Which activators share the limited pools, in epochs. Pure.
//!
//! Transitions: `Settled --members change--> Unsettled(epoch + 1) --all live streams say this epoch, none foreign--> Settled`.
//! A draining activator is no member any more, but its requests still hold places at pods, so it is waited for as well.

use crds::report::Peer;

/// What one live stream last said.
#[derive(Clone, Debug)]
pub(super) struct Member {
    /// The activator.
    pub(super) peer: Peer,
    /// Whether it takes new connections, and so a share of the pods.
    pub(super) serving: bool,
    /// The epoch by which it divides pods.
    pub(super) epoch: u64,
    /// Requests it has in flight at pods that are not its own by that epoch.
    pub(super) foreign: u32,
}

/// The members of the current epoch.
#[derive(Debug, Default)]
pub(super) struct Membership {
    epoch: u64,
    members: Vec<Peer>,
    settled: bool,
}

impl Membership {
    /// No members yet. The first epoch is `base + 1`.
    pub(super) fn new(base: u64) -> Self {
        Self {
            epoch: base,
            members: Vec::new(),
            settled: false,
        }
    }

    /// Takes in what all live streams last said. Returns whether anything changed.
    ///
    /// While an activator is `awaited` (listed, and its stream only just missing) no epoch settles: it may still have
    /// requests at pods that would be given to others.
    pub(super) fn update(&mut self, live: impl Iterator<Item = Member>, awaited: bool) -> bool {
        let live: Vec<Member> = live.collect();
        let mut members: Vec<Peer> = live
            .iter()
            .filter(|member| member.serving)
            .map(|member| member.peer.clone())
            .collect();
        members.sort();
        members.dedup();
        if members != self.members {
            self.members = members;
            self.epoch += 1;
            self.settled = false;
            return true;
        }
        if self.settled || self.members.is_empty() || awaited {
            return false;
        }
        self.settled = live
            .iter()
            .all(|member| member.epoch == self.epoch && member.foreign == 0);
        self.settled
    }

    /// The current epoch.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The members, sorted.
    pub(super) fn members(&self) -> &[Peer] {
        &self.members
    }

    /// Whether every live activator has acknowledged the epoch with nothing foreign in flight.
    pub(super) fn settled(&self) -> bool {
        self.settled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, serving: bool, epoch: u64, foreign: u32) -> Member {
        Member {
            peer: Peer {
                name: name.into(),
                address: format!("{name}.addr"),
            },
            serving,
            epoch,
            foreign,
        }
    }

    #[test]
    fn an_epoch_settles_once_all_live_streams_say_it_with_nothing_foreign() {
        let mut membership = Membership::new(1 << 32);
        let base = 1 << 32;
        // (what live streams say, changed, epoch after, settled after)
        let rows = [
            (
                "the first activator opens the first epoch",
                vec![member("a", true, 0, 0)],
                true,
                base + 1,
                false,
            ),
            (
                "it has not acknowledged",
                vec![member("a", true, 0, 0)],
                false,
                base + 1,
                false,
            ),
            (
                "it acknowledges",
                vec![member("a", true, base + 1, 0)],
                true,
                base + 1,
                true,
            ),
            (
                "nothing new",
                vec![member("a", true, base + 1, 0)],
                false,
                base + 1,
                true,
            ),
            (
                "a second one joins",
                vec![member("a", true, base + 1, 0), member("b", true, 0, 0)],
                true,
                base + 2,
                false,
            ),
            (
                "one still has foreign requests",
                vec![member("a", true, base + 2, 3), member("b", true, base + 2, 0)],
                false,
                base + 2,
                false,
            ),
            (
                "they have ended",
                vec![member("a", true, base + 2, 0), member("b", true, base + 2, 0)],
                true,
                base + 2,
                true,
            ),
            (
                "one drains and is no member, but its requests are waited for",
                vec![member("a", false, base + 2, 0), member("b", true, base + 2, 0)],
                true,
                base + 3,
                false,
            ),
            (
                "all its requests are foreign now",
                vec![member("a", false, base + 3, 1), member("b", true, base + 3, 0)],
                false,
                base + 3,
                false,
            ),
            (
                "it is gone",
                vec![member("b", true, base + 3, 0)],
                true,
                base + 3,
                true,
            ),
            ("all are gone", vec![], true, base + 4, false),
            ("nobody settles nothing", vec![], false, base + 4, false),
        ];
        for (what, live, changed, epoch, settled) in rows {
            assert_eq!(membership.update(live.into_iter(), false), changed, "{what}");
            assert_eq!(
                (membership.epoch(), membership.settled()),
                (epoch, settled),
                "{what}"
            );
        }
    }

    #[test]
    fn no_epoch_settles_while_an_activator_is_awaited() {
        let mut membership = Membership::new(0);
        assert!(membership.update([member("a", true, 0, 0)].into_iter(), true));
        let live = || [member("a", true, 1, 0)].into_iter();
        assert!(
            !membership.update(live(), true),
            "the other one may still be at work"
        );
        assert!(!membership.settled());
        assert!(membership.update(live(), false));
        assert!(membership.settled());
    }
}
