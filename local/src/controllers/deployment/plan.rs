//! How many pods each ReplicaSet of a Deployment should have: kube-controller-manager's arithmetic, without effects.
//!
//! As `pkg/controller/deployment` of Kubernetes: a rolling update never has more than `replicas + maxSurge` pods, and
//! never takes an available pod away when that would leave fewer than `replicas - maxUnavailable`.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// One ReplicaSet as the arithmetic sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Set {
    /// Pods wanted.
    pub(super) replicas: i32,
    /// Pods available.
    pub(super) available: i32,
    /// Pods that were allowed in all when it was last scaled; `None`: never.
    pub(super) max_replicas: Option<i32>,
}

/// A Deployment as the arithmetic sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wish {
    /// Pods wanted.
    pub(super) replicas: i32,
    /// Pods more than wanted, at most.
    pub(super) surge: i32,
    /// Pods fewer than wanted, at most.
    pub(super) unavailable: i32,
}

impl Wish {
    /// Resolves percentages: surge is rounded up, unavailable down, and both being nothing would allow no step.
    pub(super) fn new(replicas: i32, surge: Option<&IntOrString>, unavailable: Option<&IntOrString>) -> Self {
        let surge = resolve(surge, replicas, true);
        let mut unavailable = resolve(unavailable, replicas, false);
        if surge == 0 && unavailable == 0 {
            unavailable = 1;
        }
        Self {
            replicas,
            surge,
            unavailable: unavailable.min(replicas),
        }
    }
}

fn resolve(value: Option<&IntOrString>, of: i32, up: bool) -> i32 {
    let percent = match value {
        Some(IntOrString::Int(number)) => return (*number).max(0),
        Some(IntOrString::String(text)) => text.trim_end_matches('%').parse::<i64>().unwrap_or(25),
        None => 25,
    };
    let product = percent.clamp(0, 1_000_000) * i64::from(of.max(0));
    i32::try_from(if up { (product + 99) / 100 } else { product / 100 }).unwrap_or(i32::MAX)
}

/// How many pods the newest ReplicaSet may have, given those of all together.
pub(super) fn grow(wish: Wish, new: i32, all: i32) -> i32 {
    if new >= wish.replicas {
        return wish.replicas;
    }
    let room = wish.replicas.saturating_add(wish.surge) - all;
    if room <= 0 {
        new
    } else {
        new + room.min(wish.replicas - new)
    }
}

/// How many pods each older ReplicaSet, oldest first, keeps during a rolling update.
pub(super) fn shrink(wish: Wish, new: &Set, old: &[Set]) -> Vec<i32> {
    let mut kept: Vec<i32> = old.iter().map(|set| set.replicas).collect();
    let all: i32 = kept.iter().sum::<i32>() + new.replicas;
    let least = wish.replicas - wish.unavailable;
    let mut may_go = all - least - (new.replicas - new.available).max(0);
    if may_go <= 0 || kept.iter().all(|it| *it == 0) {
        return kept;
    }
    // Pods that are not available serve nobody: they go first.
    for (kept, set) in kept.iter_mut().zip(old) {
        let go = (*kept - set.available).clamp(0, may_go.max(0));
        *kept -= go;
        may_go -= go;
    }
    let available: i32 = new.available + old.iter().map(|set| set.available).sum::<i32>();
    let mut may_go = available - least;
    for kept in &mut kept {
        let go = (*kept).clamp(0, may_go.max(0));
        *kept -= go;
        may_go -= go;
    }
    kept
}

/// Shares a change of the Deployment's replicas among ReplicaSets in the middle of an update. `sets` holds the active
/// ones, in the order in which they get what is left over by rounding (the first gets it).
pub(super) fn share(wish: Wish, sets: &[Set], status_replicas: i32) -> Vec<i32> {
    let all: i32 = sets.iter().map(|set| set.replicas).sum();
    let allowed = if wish.replicas > 0 {
        wish.replicas + wish.surge
    } else {
        0
    };
    let change = allowed - all;
    let mut given = 0;
    let mut sizes = Vec::with_capacity(sets.len());
    for set in sets {
        let mut size = set.replicas;
        if change != 0 && size != 0 {
            let part = fraction(wish, set, status_replicas);
            let left = change - given;
            let part = if change > 0 {
                part.min(left)
            } else {
                part.max(left)
            };
            size += part;
            given += part;
        }
        sizes.push(size.max(0));
    }
    if let Some(first) = sizes.first_mut() {
        *first = (*first + change - given).max(0);
    }
    sizes
}

fn fraction(wish: Wish, set: &Set, status_replicas: i32) -> i32 {
    if wish.replicas == 0 {
        return -set.replicas;
    }
    let before = set.max_replicas.filter(|it| *it > 0).unwrap_or(status_replicas);
    if before <= 0 {
        return 0;
    }
    let (size, now, before) = (
        i64::from(set.replicas),
        i64::from(wish.replicas + wish.surge),
        i64::from(before),
    );
    // Rounded half up, in integers.
    let new = (size * now * 2 + before) / (before * 2);
    i32::try_from(new - size).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(value: &str) -> IntOrString {
        IntOrString::String(value.into())
    }

    #[test]
    fn percentages_are_rounded_in_favour_of_availability() {
        for (replicas, surge, unavailable, expected) in [
            (10, text("25%"), text("25%"), (3, 2)),
            (1, text("25%"), text("25%"), (1, 0)),
            (1, IntOrString::Int(0), text("25%"), (0, 1)),
            (4, IntOrString::Int(2), IntOrString::Int(9), (2, 4)),
            (0, text("25%"), text("25%"), (0, 0)),
        ] {
            let wish = Wish::new(replicas, Some(&surge), Some(&unavailable));
            assert_eq!(
                (wish.surge, wish.unavailable),
                expected,
                "{replicas} {surge:?} {unavailable:?}"
            );
        }
    }

    /// Plays an update in which pods become available one at a time, and checks both bounds at every step.
    #[test]
    fn an_update_never_breaks_its_bounds_and_ends() {
        for (replicas, surge, unavailable) in
            [(1, 1, 0), (3, 1, 0), (10, 3, 2), (10, 0, 1), (7, 0, 7), (4, 4, 0)]
        {
            let wish = Wish {
                replicas,
                surge,
                unavailable,
            };
            let mut new = Set::default();
            let mut old = vec![Set {
                replicas,
                available: replicas,
                max_replicas: None,
            }];
            for _ in 0..200 {
                let all = new.replicas + old[0].replicas;
                new.replicas = grow(wish, new.replicas, all);
                let kept = shrink(wish, &new, &old)[0];
                old[0] = Set {
                    replicas: kept,
                    available: old[0].available.min(kept),
                    max_replicas: None,
                };
                assert!(new.replicas + old[0].replicas <= replicas + surge, "{wish:?}");
                assert!(
                    new.available + old[0].available >= replicas - unavailable,
                    "{wish:?}"
                );
                if new.available < new.replicas {
                    new.available += 1;
                }
            }
            assert_eq!((new.available, old[0].replicas), (replicas, 0), "{wish:?}");
        }
    }

    #[test]
    fn pods_that_never_became_available_go_first_and_the_good_ones_stay() {
        let wish = Wish {
            replicas: 3,
            surge: 1,
            unavailable: 0,
        };
        let good = Set {
            replicas: 3,
            available: 3,
            max_replicas: None,
        };
        let bad = Set {
            replicas: 1,
            available: 0,
            max_replicas: None,
        };
        let new = Set::default();
        assert_eq!(shrink(wish, &new, &[good, bad]), [3, 0]);
    }

    #[test]
    fn a_change_of_size_in_the_middle_of_an_update_is_shared_by_size() {
        let wish = Wish {
            replicas: 20,
            surge: 0,
            unavailable: 5,
        };
        let sets = [
            Set {
                replicas: 8,
                available: 8,
                max_replicas: Some(10),
            },
            Set {
                replicas: 2,
                available: 0,
                max_replicas: Some(10),
            },
        ];
        assert_eq!(share(wish, &sets, 10), [16, 4]);
        let none = Wish {
            replicas: 0,
            surge: 0,
            unavailable: 0,
        };
        assert_eq!(share(none, &sets, 10), [0, 0]);
    }
}
