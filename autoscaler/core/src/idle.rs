//! The ladder to zero and back: may the last pod go, and when.
//!
//! ```text
//! in use                      => stays
//! the decider still wants one => stays
//! min-scale, at least N       => stays
//! keep-alive is running       => stays, and says until when
//! not captured, rollout, …    => stays, and says why
//! reports are missing         => stays
//! woken within the settle time => stays
//! otherwise                   => to zero
//! ```
//!
//! For policy `kpa` the keep-alive step is Knative's gate (`pkg/reconciler/autoscaling/kpa/scaler.go`), in [`gate`]: active
//! for a stable window, then marked inactive, then a grace period unless the activators have been in the path for that
//! long already. They always are here, so a captured pool takes the short way, as Knative does.

use std::time::Duration;

use crate::reason::Cause;
use crate::{Policy, Time};

/// How a Knative revision stands: the PodAutoscaler's condition `Active`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// `Unknown`: pods are wanted and none is ready yet.
    Activating {
        /// Since when.
        since: Time,
    },
    /// `True`.
    Active {
        /// Since when.
        since: Time,
    },
    /// `False`.
    Inactive {
        /// Since when.
        since: Time,
    },
}

/// What Knative's gate looks at when no pod is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gate {
    /// How the revision stands.
    pub activity: Activity,
    /// How long activators have been in the path.
    pub proxied: Duration,
    /// Whether a probe through the Service found an activator. Not asked when the target burst capacity is -1.
    pub probed: bool,
    /// Whether traffic can reach the revision.
    pub reachable: bool,
}

/// What Knative's gate says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// So many pods, now; look again then, if that is not the end.
    Scale(u32, Option<Time>),
    /// Keep what there is, and mark it inactive.
    MarkInactive,
    /// Keep what there is; look again then.
    Keep(Option<Time>),
}

/// Added to the progress deadline before a revision that does not become ready is given up; Knative's constant.
const ACTIVATION_BUFFER: Duration = Duration::from_secs(30);

/// Knative's scale-to-zero gate, for a decision of zero pods.
#[must_use]
pub fn gate(now: Time, policy: &Policy, facts: &Gate) -> Verdict {
    let knobs = policy.knobs();
    if facts.reachable && knobs.min_scale > 0 {
        return Verdict::Scale(knobs.min_scale, None);
    }
    // The last pod's retention is the user's wish for a Service in use.
    let retention = if facts.reachable {
        knobs.retention
    } else {
        Duration::ZERO
    };
    match facts.activity {
        Activity::Activating { since } => {
            let deadline = since + knobs.progress_deadline + ACTIVATION_BUFFER;
            match now >= deadline {
                true => Verdict::Scale(0, None),
                false => Verdict::Keep(Some(deadline)),
            }
        }
        Activity::Active { since } => {
            let end = since + knobs.window;
            match now >= end {
                true => Verdict::MarkInactive,
                false => Verdict::Scale(1, Some(end)),
            }
        }
        Activity::Inactive { since } => {
            if knobs.target_burst_capacity >= 0.0 && !facts.probed {
                return Verdict::Keep(None);
            }
            let end = since + knobs.grace.max(retention);
            if now >= end {
                return Verdict::Scale(0, None);
            }
            if retention > knobs.grace {
                return Verdict::Keep(Some(end));
            }
            match knobs.grace.checked_sub(facts.proxied) {
                None | Some(Duration::ZERO) if since + retention <= now => Verdict::Scale(0, None),
                None | Some(Duration::ZERO) => Verdict::Keep(Some(since + retention)),
                Some(left) => Verdict::Keep(Some((now + left).min(end))),
            }
        }
    }
}

/// What the ladder looks at.
#[derive(Clone, Copy, Debug)]
pub struct Rest<'a> {
    /// Requests in flight or held.
    pub busy: bool,
    /// When a request that counts, a wake, or a wake by somebody else was last seen.
    pub used: Time,
    /// Until when somebody asked for its pods because of traffic to come: the keep-alive counts from the later of the two.
    pub kept: Time,
    /// When the pool last left zero.
    pub woken: Option<Time>,
    /// Replicas that the bounds ask for at least.
    pub min: u32,
    /// Whether traffic can reach it.
    pub reachable: bool,
    /// Whether it may sleep at all; else why not.
    pub may_sleep: &'a Result<(), String>,
    /// Reports are missing.
    pub stale: bool,
    /// The user asks for it now: keep-alive and settle time do not count.
    pub asked: bool,
}

/// What the ladder says.
#[derive(Clone, Debug, PartialEq)]
pub enum Ladder {
    /// To zero.
    Go(Cause),
    /// It stays because of this, until then if nothing happens before. With `sleeps`, it goes to zero then.
    Stay {
        /// Why.
        cause: Cause,
        /// Until when, if time alone may change it.
        until: Option<Time>,
        /// Whether it goes to zero then, as far as is known now.
        sleeps: bool,
    },
}

/// How long the last pod stays: the keep-alive, the retention and the scale-down delay of a pool that traffic can reach.
#[must_use]
pub fn keep_alive(policy: &Policy, reachable: bool) -> Duration {
    let knobs = policy.knobs();
    match reachable {
        true => policy.keep_alive().max(knobs.scale_down_delay),
        false => knobs.keep_alive.unwrap_or_default(),
    }
}

/// Climbs the ladder, from the first rung that holds it.
#[must_use]
pub fn rest(now: Time, policy: &Policy, facts: &Rest) -> Ladder {
    let stay = |cause, until| Ladder::Stay {
        cause,
        until,
        sleeps: false,
    };
    let keep_alive = keep_alive(policy, facts.reachable);
    let idle = now.since(facts.used);
    if facts.busy {
        return stay(Cause::Steady, None);
    }
    if facts.min > 0 {
        return stay(Cause::Minimum { min: facts.min }, None);
    }
    let ends = facts.used.max(facts.kept) + keep_alive;
    if now < ends && !facts.asked {
        let sleeps = facts.may_sleep.is_ok() && !facts.stale;
        return Ladder::Stay {
            cause: Cause::Steady,
            until: Some(ends),
            sleeps,
        };
    }
    if let Err(why) = facts.may_sleep {
        return stay(Cause::MayNotSleep { why: why.clone() }, None);
    }
    if facts.stale {
        return stay(Cause::Stale, None);
    }
    let settle = policy.knobs().settle;
    if let Some(woken) = facts.woken.filter(|woken| now < *woken + settle && !facts.asked) {
        let cause = Cause::JustWoken {
            ago: now.since(woken),
            settle,
        };
        return Ladder::Stay {
            cause,
            until: Some(woken + settle),
            sleeps: true,
        };
    }
    Ladder::Go(match facts.asked {
        true => Cause::Sleep,
        false => Cause::Idle { idle, keep_alive },
    })
}

#[cfg(test)]
mod tests;
