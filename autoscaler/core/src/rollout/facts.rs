//! What a step is told, and what it answers.

use std::collections::{BTreeMap, BTreeSet};

use super::{Status, status::Phase};
use crate::Time;
use crate::evidence::{Evidence, Histogram, Sample};

/// What the cluster and the activators show.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// The revision of the user's template, once it has settled. `None`: not yet.
    pub latest: Option<String>,
    /// Revisions that exist as objects, so that a pool can be made of them.
    pub revisions: BTreeSet<String>,
    /// Pools that exist, by name: of revisions by the revision's name, and the user's own Deployment by [`Self::target`].
    pub pools: BTreeMap<String, PoolFact>,
    /// The pool name of the user's own Deployment.
    pub target: String,
    /// Whether the user's Deployment stands at zero, as a template.
    pub shelled: bool,
    /// Whether requests are under way in the pods of the user's Deployment.
    pub draining: bool,
    /// Whether the user's Deployment is paused.
    pub paused: bool,
    /// Whether we have paused it.
    pub held: bool,
    /// Whether all pods of the user's Deployment run its template. `None`: it has none, or what it says of them is old.
    pub whole: Option<bool>,
    /// Whether the user's Deployment has no pods, or would have none but for the rollout.
    pub resting: bool,
    /// Whether requests may reach pods past the activators: those that are ready have to stay.
    pub direct: bool,
    /// The Route, as read.
    pub route: RouteFact,
    /// Requests in flight and held in the whole Service, over a recent window.
    pub load: f64,
    /// Requests that one pod is meant to carry at once; more than 0.
    pub per_pod: f64,
    /// What activators report of the current attempt. Any part of it may be missing or repeated.
    pub samples: Vec<Sample>,
    /// The attempt that the samples are of.
    pub samples_of: String,
    /// What requests of the stable revision took, before: thresholds are frozen from it when an attempt begins.
    pub stable_times: Histogram,
    /// Activators whose breaker has dropped the candidate of the current attempt.
    pub broken: BTreeSet<String>,
    /// The measurements of Flagger's rule. `None`: not made yet, and the look waits for them.
    pub checks: Option<Vec<Check>>,
    /// A hook or a metric outside of the rule says to roll back: which, and why.
    pub vetoed: Option<String>,
    /// What was said at the gates, of the present attempt and step. A gate that is missing has not been answered at.
    pub gates: BTreeMap<Gate, Answer>,
    /// The command on the object.
    pub command: Option<Command>,
    /// The rollout is being deleted: the user's Deployment gets everything back.
    pub releasing: bool,
}

/// A pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolFact {
    /// Pods that answer.
    pub ready: u32,
    /// Most pods it may have; 0: no limit.
    pub max: u32,
}

/// The Route.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteFact {
    /// What it says.
    pub says: RouteWanted,
    /// Whether at least one activator lives, and every one that lives has acknowledged exactly this.
    pub acked: bool,
}

/// What the Route has to say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteWanted {
    /// Weights by pool, in basis points, adding up to 10,000. A pool with 0 stands by.
    pub weights: BTreeMap<String, u32>,
    /// Under which attempt and epoch activators count. `None`: they need not.
    pub count: Option<(String, u32)>,
    /// The pool that the counts, the match and the mirror are for.
    pub candidate: Option<String>,
    /// Share of the requests that are mirrored to the candidate, in percent; 0: none.
    pub mirror: u32,
    /// Whether requests that match go to the candidate.
    pub matching: bool,
    /// Whether activators take the candidate out by themselves when their own counts are overwhelming.
    pub breaker: bool,
}

/// A measurement of Flagger's rule.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Check {
    /// Its name.
    pub name: String,
    /// What was measured. `None`: there were no values.
    pub value: Option<f64>,
    /// Smallest value that is fine.
    pub min: Option<f64>,
    /// Largest value that is fine.
    pub max: Option<f64>,
    /// Without values it does not fail.
    pub ignore_no_data: bool,
    /// Why it has failed, whatever was measured: it could not be measured, or somebody who was asked is against it.
    pub against: Option<String>,
}

/// A place where somebody outside has to agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Gate {
    /// Before the candidate's pods start.
    Rollout,
    /// Before the first weight, with pods that are ready. Here a no is a failure, not a wish to wait.
    First,
    /// Before each weight.
    Increase,
    /// Before everything goes over.
    Promotion,
}

impl Gate {
    /// Each of them.
    pub const ALL: [Self; 4] = [Self::Rollout, Self::First, Self::Increase, Self::Promotion];
}

impl std::fmt::Display for Gate {
    /// As users name the hook.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Rollout => "confirm-rollout",
            Self::First => "pre-rollout",
            Self::Increase => "confirm-traffic-increase",
            Self::Promotion => "confirm-promotion",
        })
    }
}

/// What was said at a gate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// When.
    pub at: Time,
    /// Who does not agree, and why. `None`: all agree, and that holds for the step.
    pub no: Option<String>,
}

/// A question at a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Where.
    pub gate: Gate,
    /// After how many weights.
    pub step: u32,
    /// A no that is older says nothing.
    pub after: Time,
}

/// A command, as it was written to the object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Command {
    /// All of it: looked at once.
    pub text: String,
    /// The attempt it is meant for; empty for one given before the first.
    pub attempt: String,
    /// What to do.
    pub verb: Verb,
}

/// What can be commanded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Verb {
    /// Past the gate, the pause, the rest of the step or the missing evidence.
    Promote,
    /// Everything to the candidate, without analysis or bake.
    PromoteFull,
    /// The candidate is taken out.
    Abort,
    /// The revision that failed begins again.
    Retry,
    /// No weight is raised.
    #[default]
    Pause,
    /// Goes on.
    Resume,
    /// A revision that was stable comes back; `None`: the last one.
    Undo(Option<String>),
}

/// What follows.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// What has to be stored before anything is done. Storing fails: nothing is done.
    pub status: Status,
    /// What to do then, in this order. Doing it twice does no harm.
    pub actions: Vec<Action>,
    /// How many pods each pool needs at least, and why. Pools that are not named may sleep.
    pub pools: BTreeMap<String, (u32, &'static str)>,
    /// Whether requests of our own have to be sent to the candidate.
    pub synthetic: bool,
    /// A gate at which it stands: somebody has to be asked, or asked again.
    pub asks: Option<Ask>,
    /// Whether the measurements of Flagger's rule are wanted now.
    pub measure: bool,
    /// The evidence, when there is an attempt that is judged by it.
    pub evidence: Option<Evidence>,
    /// What happened, for people. Told once at most: a crash may lose it, the status does not.
    pub events: Vec<Event>,
    /// Where it stands and why, in one sentence.
    pub reason: String,
    /// What happens next, in one sentence; empty: nothing is planned.
    pub next: String,
    /// When to look again if no fact changes before.
    pub wake_at: Option<Time>,
    /// Everything has been given back.
    pub released: bool,
}

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make the pool of a revision.
    EnsurePool(String),
    /// Write the Route.
    WriteRoute(RouteWanted),
    /// Turn the user's Deployment into a template at zero.
    ShellTarget,
    /// Pause the user's Deployment.
    PauseTarget,
    /// Let the user's Deployment go on.
    ResumeTarget,
    /// Give the user's Deployment the template of this revision, let it go on, and give it its pods.
    RestoreTarget(String),
    /// Remove the pool of this revision, which has no traffic.
    RemovePool(String),
    /// Remove all pools of revisions.
    RemovePools,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Typed reason.
    pub kind: EventKind,
    /// One sentence.
    pub text: String,
}

/// Typed reasons of events. The text of [`std::fmt::Debug`] is what Kubernetes shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// The first revision has the traffic.
    Initialized,
    /// The first revision moves from the user's Deployment into a pool of its own.
    Moving,
    /// A new revision begins.
    NewRevision,
    /// The candidate's pods are ready.
    CandidateReady,
    /// Requests are mirrored.
    Mirroring,
    /// The candidate's weight has grown.
    WeightAdvanced,
    /// A look of Flagger's rule failed.
    CheckFailed,
    /// It waits for a person or for the end of a pause.
    Paused,
    /// It waits for somebody to agree.
    Waiting,
    /// It goes on.
    Resumed,
    /// Only evidence is missing.
    InsufficientTraffic,
    /// The candidate gets everything.
    Promoting,
    /// The candidate has everything and is watched.
    Baking,
    /// The candidate is stable.
    Promoted,
    /// The candidate is being taken out.
    RollingBack,
    /// It has been taken out.
    RolledBack,
    /// A command was obeyed.
    CommandObeyed,
    /// A command was not obeyed.
    CommandIgnored,
    /// The template's revision failed before.
    Quarantined,
    /// The user's Deployment has everything back.
    Released,
}

impl EventKind {
    /// Whether it is a Warning.
    #[must_use]
    pub fn warns(self) -> bool {
        matches!(
            self,
            Self::CheckFailed
                | Self::Waiting
                | Self::InsufficientTraffic
                | Self::RollingBack
                | Self::RolledBack
                | Self::CommandIgnored
                | Self::Quarantined
        )
    }
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self:?}")
    }
}
