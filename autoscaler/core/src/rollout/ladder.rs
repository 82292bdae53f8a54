//! Which weight comes next.

use std::time::Duration;

use super::status::Attempt;
use super::{FULL, Mode, Plan, Strategy};
use crate::Time;

/// A weight grows by at least this factor at a time when evidence paces it: a ramp has few epochs.
const LEAST_GROWTH: f64 = 1.25;
/// A ladder has at most a hundred steps, so that the epochs of an attempt are bounded.
const LEAST_STEP: u32 = FULL / 100;
const MOST_STEPS: usize = 100;
/// Parts in which a share is kept.
pub(super) const MILLION: u32 = 1_000_000;

/// What comes after the present weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// This weight, once `gate` is passed.
    To { weight: u32, gate: bool },
    /// The same weight until this moment.
    At(Time),
    /// More evidence has to allow it.
    Evidence,
    /// Everything, once the evidence allows it and `gate` is passed.
    Top { gate: bool },
}

/// What comes next, after the present weight has stood for its least time.
pub(super) fn next(now: Time, plan: &Plan, attempt: &Attempt) -> Next {
    let at_the_end = Next::Top { gate: false };
    let weight = attempt.weight;
    let to = |weight: u32| Next::To { weight, gate: false };
    let found = match &plan.strategy {
        Strategy::Risk { budget, most } => risk(*budget, *most, attempt),
        Strategy::Linear { max, .. } if weight >= *max => at_the_end,
        Strategy::Linear { step, .. } => to(weight.saturating_add((*step).max(LEAST_STEP)).min(FULL)),
        Strategy::Steps(steps) => match steps.iter().take(MOST_STEPS).nth(attempt.step as usize) {
            Some(step) => Next::To {
                weight: step.weight.min(FULL),
                gate: step.gate,
            },
            None => at_the_end,
        },
        Strategy::Time { duration } => timed(now, plan, *duration, attempt),
        Strategy::BlueGreen { gate } => Next::Top { gate: *gate },
        Strategy::Match | Strategy::Immediate => at_the_end,
    };
    match found {
        // Flagger's ladder may stand at all traffic and look once more; evidence must come before it.
        Next::To { weight: FULL, gate } if !matches!(plan.mode, Mode::Threshold(_)) => Next::Top { gate },
        found => found,
    }
}

fn risk(budget: u32, most: u32, attempt: &Attempt) -> Next {
    let most = most.clamp(1, FULL);
    let known = f64::from(attempt.ruled_out.max(1)) / f64::from(MILLION);
    let allowed = (f64::from(budget.max(1)) / known).min(f64::from(most)) as u32;
    if attempt.weight >= most {
        Next::Top { gate: false }
    } else if allowed == most || f64::from(allowed) >= f64::from(attempt.weight) * LEAST_GROWTH {
        Next::To {
            weight: allowed.max(1),
            gate: false,
        }
    } else {
        Next::Evidence
    }
}

fn timed(now: Time, plan: &Plan, duration: Duration, attempt: &Attempt) -> Next {
    let first = FULL / 100;
    if attempt.step == 0 {
        return Next::To {
            weight: first,
            gate: false,
        };
    }
    let every = plan.min_step.max(Duration::from_secs(1));
    let steps = (duration.as_millis() / every.as_millis()).clamp(1, 99) as u32;
    let size = (FULL - first).div_ceil(steps);
    // Steps are as long as it takes, so that their number stays bounded.
    let long = duration / steps;
    match attempt.acked.map(|acked| acked + long) {
        Some(due) if now < due => Next::At(due),
        _ => Next::To {
            weight: (attempt.weight + size).min(FULL),
            gate: false,
        },
    }
}

/// How long a weight has to stand.
pub(super) fn dwell(plan: &Plan, attempt: &Attempt) -> Duration {
    if attempt.step == 0 {
        return Duration::ZERO;
    }
    plan.min_step + pause(plan, attempt)
}

/// The pause that is listed for the present step.
pub(super) fn pause(plan: &Plan, attempt: &Attempt) -> Duration {
    match &plan.strategy {
        Strategy::Steps(steps) if attempt.step > 0 => steps
            .get(attempt.step as usize - 1)
            .map_or(Duration::ZERO, |step| step.pause),
        _ => Duration::ZERO,
    }
}
