//! Who wakes and sleeps with whom: `group` and `depends-on`, in one namespace.
//!
//! Members are pools. A [`Graph`] knows how they hang together; [`Graph::step`] says what that means for each of them now:
//!
//! ```text
//! wanted by itself  => wakes its group and what it depends on, and theirs (the closure)
//! in the closure    => has a pod; one that depends on others rises when these have a ready pod, or after PATIENCE
//! left the closure  => sleeps; what others depend on, after these
//! ```
//!
//! "Wanted by itself" (traffic, keep-alive, `min-scale`, a command) never depends on the company, so nothing here can keep
//! itself awake. A circle of dependencies has no order: its members wake and sleep together, and a [`Trouble`] names it.
//!
//! Members of one group without `depends-on` rise at once. Who writes `depends-on` says that a start without the other
//! fails, and pays for it with the sum of both starts: raising all at once would be sooner only for those that need no order.

mod graph;

use std::collections::BTreeMap;
use std::time::Duration;

use crate::Time;
use crate::reason::Span;

/// How long a member waits for what it depends on, counted from when it was itself wanted: a third of the default
/// `cold-start-timeout`, so that a request held for the last of a chain still has the other two for that one's own start.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// What users have written for one member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Declared {
    /// What it is called, the shown name first: its Services, or its workload when it has none.
    pub names: Vec<String>,
    /// Its group.
    pub group: Option<String>,
    /// Names of members that it depends on.
    pub depends_on: Vec<String>,
    /// Requests can arrive at it, and wake it. Not so for a worker.
    pub reachable: bool,
}

/// How one member stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// It would have pods if it were alone.
    pub wanted: bool,
    /// Pods it is set to have.
    pub replicas: u32,
    /// Pods that answer.
    pub ready: u32,
}

impl Standing {
    /// Whether the two mean the same to others.
    #[must_use]
    pub fn is_like(&self, other: &Self) -> bool {
        let shape = |it: &Self| (it.wanted, it.replicas > 0, it.ready > 0);
        shape(self) == shape(other)
    }
}

/// What the others mean for a member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Company {
    /// Nothing: it decides alone.
    #[default]
    Free,
    /// It rises by its own wish, now that what it depends on is ready or has been waited for.
    Follows {
        /// How the wait ended.
        note: String,
    },
    /// It is not woken, but keeps its last pod.
    Kept {
        /// Why.
        why: String,
    },
    /// It has a pod, for others.
    Awake {
        /// For whom.
        why: String,
    },
    /// It is to rise, but others come first.
    Waits {
        /// For whom it rises, and for whom it waits.
        why: String,
        /// When it rises all the same.
        until: Time,
    },
}

/// What is wrong with a declaration. It stops nothing: what can be understood of it is obeyed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Trouble {
    /// No member has this name.
    Missing {
        /// The name.
        name: String,
    },
    /// It depends on itself through these, in order; there is no order of start among them.
    Circle {
        /// Shown names, beginning and ending with the member itself.
        path: Vec<String>,
    },
    /// It depends on a member of another group, and so wakes all of that.
    OtherGroup {
        /// The name.
        name: String,
        /// The other's group.
        theirs: String,
        /// Its own.
        ours: String,
    },
}

/// Since when members have been wanted that have no pod yet, by shown name.
pub type Waiting = BTreeMap<String, Time>;

/// How the members of a namespace hang together.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    members: Vec<Node>,
    /// The members of each group, and its name.
    groups: Vec<(String, Vec<usize>)>,
    troubles: Vec<(usize, Trouble)>,
}

#[derive(Clone, Debug, Default)]
struct Node {
    name: String,
    group: Option<usize>,
    needs: Vec<usize>,
    /// Those of `needs` that come before it: not the ones in a circle with it.
    first: Vec<usize>,
    /// Those that come after it.
    after: Vec<usize>,
    /// Some request can wake it.
    wakeable: bool,
}

/// Why a member is in the closure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Label {
    /// The member that is wanted by itself.
    seed: usize,
    /// The one on the way from there; `None`: through the group.
    through: Option<usize>,
}

impl Graph {
    /// What is wrong, by member.
    #[must_use]
    pub fn troubles(&self) -> &[(usize, Trouble)] {
        &self.troubles
    }

    /// All members of a member's group, itself included.
    pub fn group_of(&self, member: usize) -> impl Iterator<Item = usize> + '_ {
        let group = self.members.get(member).and_then(|node| node.group);
        let mates = group.and_then(|group| self.groups.get(group));
        let alone = if mates.is_none() { Some(member) } else { None };
        alone
            .into_iter()
            .chain(mates.into_iter().flat_map(|(_, members)| members.iter().copied()))
    }

    /// What the others mean for each member now. `standing` has one entry for each, in the order of the declarations.
    pub fn step(&self, now: Time, standing: &[Standing], waiting: &mut Waiting) -> Vec<Company> {
        let stands = |member: usize| standing.get(member).copied().unwrap_or_default();
        let labels = self.closure(|member| stands(member).wanted);
        let mut companies = Vec::with_capacity(self.members.len());
        for (member, node) in self.members.iter().enumerate() {
            let other = labels[member].iter().find(|label| label.seed != member);
            let awake = stands(member).wanted || other.is_some();
            let rises = awake && stands(member).replicas == 0;
            if !rises {
                waiting.remove(&node.name);
            }
            companies.push(if rises {
                let since = *waiting.entry(node.name.clone()).or_insert(now);
                self.rising(now, since, member, other, stands)
            } else if let Some(label) = other {
                Company::Awake {
                    why: self.why(member, label, false),
                }
            } else {
                self.kept(member, stands)
            });
        }
        companies
    }

    /// What a member without pods is to do that should have some.
    fn rising(
        &self,
        now: Time,
        since: Time,
        member: usize,
        other: Option<&Label>,
        stands: impl Fn(usize) -> Standing,
    ) -> Company {
        let node = &self.members[member];
        let woken = other.map(|label| self.why(member, label, true));
        let missing: Vec<String> = node
            .first
            .iter()
            .filter(|need| stands(**need).ready == 0)
            .map(|need| {
                let asked = stands(*need).replicas.max(1);
                format!("{} (0 of {asked} ready)", self.members[*need].name)
            })
            .collect();
        let until = since + PATIENCE;
        let note = match missing.as_slice() {
            [] if node.first.is_empty() || now.since(since).is_zero() => None,
            [] => Some(format!(
                "waited {} for what it depends on",
                Span(now.since(since))
            )),
            missing if now < until => {
                let waits = format!("waits for {}", missing.join(", "));
                let why = woken.map_or(waits.clone(), |woken| format!("{woken}; {waits}"));
                return Company::Waits { why, until };
            }
            missing => Some(format!(
                "waited {} in vain for {}",
                Span(PATIENCE),
                missing.join(", ")
            )),
        };
        match (woken, note) {
            (Some(woken), Some(note)) => Company::Awake {
                why: format!("{woken}; {note}"),
            },
            (Some(why), None) => Company::Awake { why },
            (None, Some(note)) => Company::Follows { note },
            (None, None) => Company::Free,
        }
    }

    /// Whether a member that nobody wants keeps its last pod all the same.
    fn kept(&self, member: usize, stands: impl Fn(usize) -> Standing) -> Company {
        let node = &self.members[member];
        if let Some(after) = node.after.iter().find(|after| stands(**after).replicas > 0) {
            return Company::Kept {
                why: format!("{} depends on it and still has pods", self.members[*after].name),
            };
        }
        if !node.wakeable {
            let why = match node.group.and_then(|group| self.groups.get(group)) {
                Some((group, _)) => format!("group {group} has no Service that could wake it"),
                None => "no Service that could wake it depends on it".to_owned(),
            };
            return Company::Kept { why };
        }
        Company::Free
    }

    fn why(&self, member: usize, label: &Label, woken: bool) -> String {
        let seed = &self.members[label.seed].name;
        let way = match label.through {
            Some(through) if through == label.seed => ", which depends on it".to_owned(),
            Some(through) => format!(", through {}, which depends on it", self.members[through].name),
            None => {
                let group = self.members[member]
                    .group
                    .and_then(|group| self.groups.get(group));
                group.map_or_else(String::new, |(name, _)| format!(" of group {name}"))
            }
        };
        if woken {
            format!("woken for {seed}{way}")
        } else {
            format!("awake for {seed}{way}")
        }
    }
}

#[cfg(test)]
mod tests;
