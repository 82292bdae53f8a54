//! Which pod, and whose pod.
//!
//! *Pick*: least requests in flight, ties at random. *Share*: a hard limit per pod holds over all activators together
//! because each pod of a limited pool belongs to exactly one of them. The owner is found by rendezvous hashing of the
//! pod's address with each activator's name: everybody computes the same, and when one joins or leaves only its own pods
//! change hands. A central counter was rejected: it would put a round trip into every request.

use std::net::IpAddr;

/// Chooses the least loaded of `loads` that is below `limit` (0: no limit); ties at random. Returns its position.
pub(crate) fn pick(
    loads: impl Iterator<Item = u32>,
    limit: u32,
    random: &mut impl FnMut(u32) -> u32,
) -> Option<usize> {
    let mut best: Option<(usize, u32)> = None;
    let mut ties = 1;
    for (at, load) in loads.enumerate() {
        if limit > 0 && load >= limit {
            continue;
        }
        match best {
            Some((_, least)) if load > least => {}
            Some((_, least)) if load == least => {
                // Reservoir sampling: the k-th tie replaces the choice with probability 1/k.
                ties += 1;
                if random(ties) == 0 {
                    best = Some((at, load));
                }
            }
            _ => {
                best = Some((at, load));
                ties = 1;
            }
        }
    }
    best.map(|(at, _)| at)
}

/// Chooses by weight: `point` is in `0..10_000`, `weights` are basis points that sum to 10,000.
pub(crate) fn by_weight(weights: impl Iterator<Item = u32>, point: u32) -> Option<usize> {
    let mut below = 0;
    for (at, weight) in weights.enumerate() {
        below = weight.saturating_add(below);
        if point < below {
            return Some(at);
        }
    }
    None
}

/// The activators among which pods are divided, as told by the leading autoscaler.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shares {
    me: String,
    epoch: u64,
    /// Who shares by this epoch. Empty: nobody ever said, so everything is ours.
    current: Vec<String>,
    /// Who shared by the last epoch that was settled; `None`: we have seen none, so others may use what is ours now.
    settled: Option<Vec<String>>,
    is_settled: bool,
    /// Epochs may have been settled that we have not heard of.
    was_away: bool,
}

impl Shares {
    /// Alone until told otherwise.
    pub(crate) fn new(me: &str) -> Self {
        Self {
            me: me.to_owned(),
            is_settled: true,
            ..Self::default()
        }
    }

    /// The epoch in force; 0 before any.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Whether all activators follow the epoch in force.
    pub(crate) fn is_settled(&self) -> bool {
        self.is_settled
    }

    /// Whether the epoch in force names another activator.
    pub(crate) fn has_others(&self) -> bool {
        self.current.iter().any(|name| *name != self.me)
    }

    /// How many share by the epoch in force; `None`: we are not among them.
    pub(crate) fn members(&self) -> Option<usize> {
        self.current.contains(&self.me).then_some(self.current.len())
    }

    /// No leader was heard for so long that epochs may have been settled without us.
    pub(crate) fn was_away(&mut self) {
        self.was_away = true;
    }

    /// Takes over what a leader says. Returns whether anything changed; an epoch of the past changes nothing.
    pub(crate) fn update(&mut self, epoch: u64, activators: Vec<String>, settled: bool) -> bool {
        if epoch < self.epoch {
            return false;
        }
        let before = (self.epoch, self.is_settled);
        if epoch > self.epoch {
            self.current = activators;
            self.epoch = epoch;
            self.is_settled = false;
            if std::mem::take(&mut self.was_away) {
                // What was ours when we left may have been another's meanwhile, and be in use.
                self.settled = None;
            }
        }
        if settled && !self.is_settled {
            self.settled = Some(self.current.clone());
            self.is_settled = true;
        }
        before != (self.epoch, self.is_settled)
    }

    /// Who owns the pod by the epoch in force; `None`: everything is ours.
    pub(crate) fn owner(&self, pod: IpAddr) -> Option<&str> {
        owner(&self.current, pod)
    }

    /// Whether the pod is ours by the epoch in force.
    pub(crate) fn is_mine_now(&self, pod: IpAddr) -> bool {
        self.owner(pod).is_none_or(|owner| owner == self.me)
    }

    /// Whether new requests may go to the pod: ours by the epoch in force and, until all have followed, by the last
    /// settled one too. Two activators never both hold this for one pod.
    pub(crate) fn may_use(&self, pod: IpAddr) -> bool {
        let was_mine = |settled: &Vec<String>| owner(settled, pod).is_none_or(|owner| owner == self.me);
        self.is_mine_now(pod) && (self.is_settled || self.settled.as_ref().is_some_and(was_mine))
    }
}

/// The activator with the highest hash wins the pod.
fn owner(activators: &[String], pod: IpAddr) -> Option<&str> {
    activators
        .iter()
        .max_by_key(|name| (rank(name, pod), name.as_str()))
        .map(String::as_str)
}

/// FNV-1a over name and address, then the finaliser of splitmix64, because FNV alone leaves the high bits of short
/// inputs too much alike to compare by.
fn rank(name: &str, pod: IpAddr) -> u64 {
    let address = match pod {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    };
    let hash = name
        .bytes()
        .chain([0])
        .chain(address.to_be_bytes())
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    let hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pod(number: u32) -> IpAddr {
        IpAddr::from(u32::to_be_bytes(0x0a00_0000 + number))
    }

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|number| format!("activator-{number}")).collect()
    }

    #[test]
    fn the_least_loaded_below_the_limit_is_picked() {
        let cases: [(&[u32], u32, Option<usize>); 6] = [
            (&[], 0, None),
            (&[3, 1, 2], 0, Some(1)),
            (&[3, 1, 2], 2, Some(1)),
            (&[2, 2], 2, None),
            (&[2, 1, 2], 2, Some(1)),
            (&[9], 0, Some(0)),
        ];
        for (loads, limit, wanted) in cases {
            assert_eq!(
                pick(loads.iter().copied(), limit, &mut |_| 1),
                wanted,
                "{loads:?} limit {limit}"
            );
        }
    }

    #[test]
    fn ties_are_broken_evenly() {
        let mut random = fastrand::Rng::with_seed(7);
        let mut hits = [0; 3];
        for _ in 0..3000 {
            let at = pick([1, 1, 1].into_iter(), 0, &mut |below| random.u32(..below)).expect("one");
            hits[at] += 1;
        }
        assert!(hits.iter().all(|hits| (900..1100).contains(hits)), "{hits:?}");
    }

    #[test]
    fn weights_are_exact_at_their_edges() {
        let weights = [0, 1, 9_999, 0];
        for (point, wanted) in [(0, Some(1)), (1, Some(2)), (9_999, Some(2)), (10_000, None)] {
            assert_eq!(by_weight(weights.into_iter(), point), wanted, "{point}");
        }
    }

    #[test]
    fn alone_everything_is_ours() {
        let shares = Shares::new("a");
        assert!(shares.may_use(pod(1)));
        assert_eq!((shares.epoch(), shares.owner(pod(1))), (0, None));
    }

    #[test]
    fn pods_are_divided_about_evenly() {
        let activators = names(4);
        let mut counts = [0; 4];
        for number in 0..4000 {
            let owner = owner(&activators, pod(number)).expect("someone");
            counts[activators
                .iter()
                .position(|name| name == owner)
                .expect("one of them")] += 1;
        }
        assert!(
            counts.iter().all(|count| (850..1150).contains(count)),
            "{counts:?}"
        );
    }

    #[test]
    fn a_newcomer_waits_until_its_first_epoch_is_settled() {
        let mut shares = Shares::new("a");
        shares.update(5, vec!["a".into()], false);
        assert!(shares.is_mine_now(pod(1)) && !shares.may_use(pod(1)));
        shares.update(5, vec!["a".into()], true);
        assert!(shares.may_use(pod(1)));
    }

    #[test]
    fn who_comes_back_waits_like_a_newcomer() {
        let mut shares = Shares::new("a");
        shares.update(5, vec!["a".into()], true);
        shares.was_away();
        assert!(shares.may_use(pod(1)), "while no other epoch is heard of");
        shares.update(9, vec!["a".into()], false);
        assert!(!shares.may_use(pod(1)), "in epoch 8 it may have been another's");
        shares.update(9, vec!["a".into()], true);
        assert!(shares.may_use(pod(1)));
    }

    #[test]
    fn an_epoch_of_the_past_changes_nothing() {
        let mut shares = Shares::new("a");
        assert!(shares.update(5, vec!["a".into()], true));
        let before = shares.clone();
        assert!(!shares.update(4, vec!["b".into()], true));
        assert!(!shares.update(5, vec!["b".into()], true));
        assert_eq!(shares, before);
    }

    proptest! {
        /// Activators hear of each epoch at different times, and of its settling only after all have heard of it; some
        /// are new and know no history. No pod is ever open to new requests in two of them.
        #[test]
        fn no_pod_ever_has_two_owners(
            memberships in prop::collection::vec(prop::collection::vec(any::<bool>(), 4), 1..6),
            lag in prop::collection::vec(any::<bool>(), 32),
        ) {
            let all = names(4);
            let mut lags = lag.into_iter().cycle();
            // Who takes part. Before it hears of its first epoch an activator has no traffic.
            let mut fleet: Vec<Shares> = Vec::new();
            for (epoch, members) in (1_u64..).zip(&memberships) {
                let now: Vec<String> =
                    all.iter().zip(members).filter(|(_, is_in)| **is_in).map(|(name, _)| name.clone()).collect();
                if now.is_empty() {
                    continue;
                }
                fleet.retain(|share| now.contains(&share.me));
                for share in &mut fleet {
                    if lags.next() == Some(true) {
                        share.update(epoch, now.clone(), false);
                    }
                }
                one_owner(&fleet)?;
                for name in &now {
                    if fleet.iter().all(|share| share.me != *name) {
                        fleet.push(Shares::new(name));
                    }
                }
                for at in 0..fleet.len() {
                    fleet[at].update(epoch, now.clone(), false);
                    let heard: Vec<_> = fleet.iter().filter(|share| share.epoch() > 0).cloned().collect();
                    one_owner(&heard)?;
                }
                for at in 0..fleet.len() {
                    fleet[at].update(epoch, now.clone(), true);
                    one_owner(&fleet)?;
                }
            }
        }

        #[test]
        fn only_the_pods_of_who_leaves_change_hands(count in 2_usize..6, gone in 0_usize..6, pods in 1_u32..200) {
            let before = names(count);
            let gone = gone % count;
            let after: Vec<String> = before.iter().enumerate().filter(|(at, _)| *at != gone).map(|(_, name)| name.clone()).collect();
            for number in 0..pods {
                let old = owner(&before, pod(number));
                if old != Some(before[gone].as_str()) {
                    prop_assert_eq!(owner(&after, pod(number)), old);
                }
            }
        }
    }

    fn one_owner(shares: &[Shares]) -> Result<(), TestCaseError> {
        for number in 0..50 {
            let owners = shares.iter().filter(|share| share.may_use(pod(number))).count();
            prop_assert!(owners <= 1, "pod {} has {} owners", number, owners);
        }
        Ok(())
    }
}
