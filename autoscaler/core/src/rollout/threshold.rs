//! Flagger's rule, to the tick.
//!
//! One look each interval. As in Flagger 1.44's `controller.go`: before anything else it is rolled back if enough looks have
//! failed before, so at the look after the last failure; failures add up over the whole attempt; the first step is taken
//! without a measurement; a failed look takes no step; the weight grows while it is below the maximum, so it may pass it;
//! promotion comes at the look after the last step. Without values a check fails, unless told otherwise. A pool that is not
//! ready for the next weight makes the look pass without being counted.
//!
//! Two things differ on purpose: the time of the last look is kept, so a restart of ours does not look early, and while
//! measurements are still being made the look waits for them.

use super::facts::Check;
use super::status::Ticks;
use super::{FULL, Strategy, Threshold};

/// What a look comes to.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Look {
    /// Enough have failed.
    Rollback,
    /// This one failed, with this sentence.
    Failed(String),
    /// On to this weight.
    Step(u32),
    /// One more good look.
    Iteration,
    /// Everything to the candidate.
    Promote,
}

/// Looks once.
pub(super) fn look(
    rule: &Threshold,
    strategy: &Strategy,
    weight: u32,
    step: u32,
    ticks: &Ticks,
    checks: &[Check],
) -> Look {
    if ticks.failed >= rule.threshold.max(1) {
        return Look::Rollback;
    }
    let begun = weight > 0 || ticks.iterations > 0;
    if let Some(failure) = checks.iter().find_map(failure).filter(|_| begun) {
        return Look::Failed(failure);
    }
    let after = match strategy {
        Strategy::Linear { step, max } => {
            (weight < *max).then(|| weight.saturating_add((*step).max(1)).min(FULL))
        }
        Strategy::Steps(steps) => steps.get(step as usize).map(|step| step.weight.min(FULL)),
        _ if ticks.iterations < rule.iterations.max(1) => return Look::Iteration,
        _ => None,
    };
    after.map_or(Look::Promote, Look::Step)
}

/// What is wrong with a measurement.
#[must_use]
pub fn failure(check: &Check) -> Option<String> {
    let name = &check.name;
    if let Some(against) = &check.against {
        return Some(format!("{name}: {against}"));
    }
    // What is not a number is no value.
    let Some(value) = check.value.filter(|value| !value.is_nan()) else {
        return (!check.ignore_no_data).then(|| format!("no values found for {name}"));
    };
    let below = check.min.filter(|min| value < *min);
    let above = check.max.filter(|max| value > *max);
    match (below, above) {
        (Some(min), _) => Some(format!("{name} {value:.2} is below {min}")),
        (_, Some(max)) => Some(format!("{name} {value:.2} is above {max}")),
        _ => None,
    }
}
