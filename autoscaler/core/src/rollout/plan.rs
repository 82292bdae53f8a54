//! What the user asks of a rollout, checked by the caller.

use std::collections::BTreeSet;
use std::time::Duration;

use super::FULL;
use super::facts::Gate;
use crate::evidence::Analysis;

/// How a new revision is let in.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Which weights, in which order.
    pub strategy: Strategy,
    /// What decides whether it goes on.
    pub mode: Mode,
    /// A weight stands for at least so long, counted from when every activator has it.
    pub min_step: Duration,
    /// Copies requests to the candidate before the first weight.
    pub mirror: Option<Mirror>,
    /// Whether requests that match go to the candidate from its first weight on.
    pub matching: bool,
    /// Where somebody outside has to agree.
    pub gates: BTreeSet<Gate>,
    /// After all traffic has gone over, the candidate is watched for so long and undone by itself. Zero: not at all.
    pub bake: Duration,
    /// So long may the candidate's pods take to be ready for the next weight.
    pub progress_deadline: Duration,
    /// What to do when evidence has been all that is missing for so long. `None`: hold.
    pub insufficient: Option<(Duration, Insufficient)>,
    /// For so long after promotion the previous revision keeps pods enough to take everything back.
    pub keep_warm: Duration,
    /// This many previous stable revisions come back without an analysis.
    pub window: usize,
    /// Whether an abort takes the weight back in halves. Evidence always takes it back at once.
    pub gradual: bool,
    /// What happens to a candidate when the template changes again.
    pub on_new: OnNew,
    /// Nothing new begins, and no weight is raised.
    pub suspend: bool,
    /// The user's Deployment is paused, and stays the first revision's pool until it sleeps or its template changes.
    pub pause_target: bool,
    /// The revision that is stable when nothing is known, for a cluster built anew from manifests.
    pub bootstrap: Option<String>,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            strategy: Strategy::default(),
            mode: Mode::Sequential(Analysis::default()),
            min_step: Duration::from_secs(30),
            mirror: None,
            matching: false,
            gates: BTreeSet::new(),
            bake: Duration::from_secs(600),
            progress_deadline: Duration::from_secs(600),
            insufficient: None,
            keep_warm: Duration::from_secs(900),
            window: 3,
            gradual: false,
            on_new: OnNew::Supersede,
            suspend: false,
            pause_target: false,
            bootstrap: None,
        }
    }
}

/// Which weights a candidate gets, in basis points.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// As much as risks at most `budget` of bad requests among all, by what is known of the candidate; at most `most`
    /// before it is known to be safe.
    Risk {
        /// Share of all requests that may be bad because of the candidate.
        budget: u32,
        /// Largest weight before the verdict: with fewer stable requests beside them, bad ones say less.
        most: u32,
    },
    /// `step` more each time, until `max` is reached or passed: Flagger's ladder.
    Linear {
        /// How much more each time.
        step: u32,
        /// The last weight is the first that is not below.
        max: u32,
    },
    /// One after the other.
    Steps(Vec<StepPlan>),
    /// One percent at once, then equal steps until `duration` is over: Knative's ramp.
    Time {
        /// From the first weight to all traffic.
        duration: Duration,
    },
    /// Nothing, then everything.
    BlueGreen {
        /// Whether somebody has to promote first.
        gate: bool,
    },
    /// Requests that match go to the candidate, all others to the stable revision; everything once it is safe.
    Match,
    /// Everything at once.
    Immediate,
}

impl Default for Strategy {
    fn default() -> Self {
        Self::Risk {
            budget: 500,
            most: FULL / 2,
        }
    }
}

/// One listed step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepPlan {
    /// The candidate's weight, in basis points.
    pub weight: u32,
    /// How long it stands after `min_step`, before the next step.
    pub pause: Duration,
    /// Whether somebody has to promote before it is taken.
    pub gate: bool,
}

/// What decides.
#[derive(Clone, Debug, PartialEq)]
pub enum Mode {
    /// Sequential tests on what activators count.
    Sequential(Analysis),
    /// Flagger's rule on measurements at an interval.
    Threshold(Threshold),
    /// Time alone.
    None,
}

/// Flagger's rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Threshold {
    /// From one look to the next.
    pub interval: Duration,
    /// Rolled back at the look after so many failed ones, in all.
    pub threshold: u32,
    /// So many good looks instead of weights, for [`Strategy::BlueGreen`] and [`Strategy::Match`].
    pub iterations: u32,
}

/// Mirrored requests before the first weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// Share of the requests that are mirrored, in percent.
    pub percent: u32,
    /// After so many pairs it goes on.
    pub pairs: u64,
}

/// What to do without enough traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Insufficient {
    /// Ship it. Gives up the bound on shipping a bad one.
    Promote,
    /// Take it out.
    Rollback,
    /// Send requests of our own to the candidate.
    Synthetic,
}

/// What happens to a candidate when the template changes again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnNew {
    /// It is taken out, and the new one begins.
    #[default]
    Supersede,
    /// The new one waits until it is decided.
    Queue,
}
