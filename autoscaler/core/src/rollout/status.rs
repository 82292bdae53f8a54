//! What is known of a rollout between steps: all of it. A process that reads it back goes on as if it had never ended.

use super::facts::Gate;
use crate::Time;
use crate::evidence::{Counters, Cuts, Epoch};

/// How many previous stable revisions are remembered.
pub const HISTORY: usize = 10;
/// How many failed revisions are remembered; the oldest is forgiven first.
pub const QUARANTINED: usize = 20;

/// Where a rollout stands.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Status {
    /// Phase.
    pub phase: Phase,
    /// The revision that has the traffic when there is no candidate. Empty: none yet.
    pub stable: String,
    /// Whether the traffic goes to pools of revisions, not to the user's own Deployment.
    pub adopted: bool,
    /// Whether the stable revision's pods are those of the user's Deployment, which is paused, or it is moving out of it.
    pub in_place: bool,
    /// The revision of the template that was last acted on. Empty: the next look acts on whatever there is.
    pub seen: String,
    /// To be begun as soon as the present candidate is out, whatever the template says.
    pub queued: Option<String>,
    /// The attempt that is under way, or the last one.
    pub attempt: Option<Attempt>,
    /// How many attempts there have been.
    pub attempts: u64,
    /// Previous stable revisions, newest first.
    pub history: Vec<String>,
    /// Revisions that failed, newest first. They begin again only when told to.
    pub quarantined: Vec<String>,
    /// The last command that was looked at, whole.
    pub command: String,
    /// What became of it.
    pub answer: String,
    /// When the stable revision became stable.
    pub promoted: Option<Time>,
}

impl Status {
    /// Whether a first revision serves, in a pool of its own or in the user's Deployment.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.adopted || self.in_place
    }

    /// Whether the stable revision's pods are those of the user's Deployment now.
    #[must_use]
    pub fn serves_in_place(&self) -> bool {
        self.in_place && !self.adopted
    }

    /// The attempt under way.
    #[must_use]
    pub fn active(&self) -> Option<&Attempt> {
        self.attempt.as_ref().filter(|_| self.phase.active())
    }
}

/// Phases, in the order in which a rollout meets them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Phase {
    /// The first revision's pool is made, and gets the traffic of the user's Deployment; or that is paused, and stays.
    /// `=> Idle`
    #[default]
    Adopting,
    /// One revision, all traffic. `=> Preparing`, and `=> Adopting` when it leaves the user's Deployment.
    Idle,
    /// The candidate's pods start. `=> Mirroring | Progressing | RollingBack`
    Preparing,
    /// Requests are copied to the candidate. `=> Progressing | RollingBack`
    Mirroring,
    /// The candidate's weight grows. `=> Paused | Holding | Promoting | RollingBack`
    Progressing,
    /// Waits for a person, or for a pause to end. `=> Progressing | Promoting | RollingBack`
    Paused,
    /// Only evidence is missing. `=> Promoting | RollingBack`
    Holding,
    /// The candidate gets everything. `=> Baking | Idle | RollingBack`
    Promoting,
    /// The candidate has everything and is watched. `=> Idle | RollingBack`
    Baking,
    /// The stable revision gets everything back. `=> Failed | Idle`
    RollingBack,
    /// The template's revision is not the one that serves. `=> Preparing | Idle`
    Failed,
    /// The user's Deployment gets everything back, and the pools go.
    Releasing,
}

impl Phase {
    /// Whether there is a candidate.
    #[must_use]
    pub fn active(self) -> bool {
        !matches!(self, Self::Adopting | Self::Idle | Self::Failed | Self::Releasing)
    }

    /// Whether the candidate may still get more.
    #[must_use]
    pub fn forward(self) -> bool {
        self.active() && self != Self::RollingBack
    }
}

/// One try to let one revision in.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Attempt {
    /// Unique: counts and commands name it.
    pub uid: String,
    /// The revision.
    pub candidate: String,
    /// Without an analysis: it has been stable before, or somebody has said so.
    pub fast: bool,
    /// When it began.
    pub started: Time,
    /// How many weights it has had.
    pub step: u32,
    /// The candidate's weight, in basis points.
    pub weight: u32,
    /// Whether requests are mirrored.
    pub mirroring: bool,
    /// Weights since the beginning; the last one stands. Numbers of epochs are places in this list.
    pub epochs: Vec<Epoch>,
    /// Since when every activator has what stands.
    pub acked: Option<Time>,
    /// Since when it has been getting ready for what comes next.
    pub getting_ready: Option<Time>,
    /// Since when only evidence has been missing.
    pub waiting: Option<Time>,
    /// Since when the candidate has had everything.
    pub baking: Option<Time>,
    /// Somebody has paused it.
    pub paused: bool,
    /// Somebody has ended what stands after this many weights: the step and its pause, the mirroring, the bake.
    pub skipped: Option<u32>,
    /// Somebody has opened the gate that stands after this many weights.
    pub passed: Option<u32>,
    /// Somebody has said to promote over missing evidence.
    pub waived: bool,
    /// Its pods may start: whoever has to confirm that has.
    pub confirmed: bool,
    /// The gate at which it waits, once that has been told.
    pub waits: Option<Gate>,
    /// Thresholds of service time.
    pub cuts: Cuts,
    /// What activators have counted.
    pub counters: Counters,
    /// The lowest share of bad requests that was ruled out so far, in parts of a million; starts at a million. Ruled out is
    /// ruled out: the bounds hold at every look at once.
    pub ruled_out: u32,
    /// Flagger's rule.
    pub ticks: Ticks,
    /// How it ended, or is about to.
    pub result: Option<Ended>,
    /// Why it ended so, in one sentence.
    pub why: String,
}

/// Where Flagger's rule stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ticks {
    /// When it last looked.
    pub last: Option<Time>,
    /// Looks that failed, of this attempt. A good one takes none away.
    pub failed: u32,
    /// Good looks that count instead of weights.
    pub iterations: u32,
}

/// How an attempt ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It is stable, by evidence and bake.
    Promoted,
    /// It is stable, without.
    FastPromoted,
    /// Evidence or a check was against it.
    RolledBack,
    /// Somebody ended it.
    Aborted,
    /// The template changed again.
    Superseded,
    /// It took too long.
    Expired,
}

impl Ended {
    /// Each way.
    pub const ALL: [Self; 6] = [
        Self::Promoted,
        Self::FastPromoted,
        Self::RolledBack,
        Self::Aborted,
        Self::Superseded,
        Self::Expired,
    ];
}
