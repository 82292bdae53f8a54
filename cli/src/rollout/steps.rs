//! The steps of a rollout: which are done, and which are to come.

use crds::RolloutSpec;
use crds::rollout::{AnalysisMode, Gate, Phase, RolloutStatus, StepSpec, StrategyKind};

use super::active;
use crate::output::Paint;

/// All traffic, in basis points.
const FULL: u32 = 10_000;
/// A ladder has at most so many steps.
const MOST_STEPS: usize = 100;

/// A weight as people write it: `20%`, `0.5%`.
pub(super) fn percent(weight_bp: u32) -> String {
    format!("{}%", f64::from(weight_bp) / 100.0)
}

/// The strategy in words.
pub(super) fn strategy(spec: &RolloutSpec) -> String {
    let strategy = &spec.strategy;
    let mut text = match strategy.kind {
        StrategyKind::BlueGreen => "blue/green: everything at once, when its pods are ready".to_owned(),
        StrategyKind::AbTest => "A/B: the requests that match, then everything".to_owned(),
        StrategyKind::Immediate => "immediate: everything at once".to_owned(),
        StrategyKind::Canary => match (&strategy.steps, &strategy.linear, &strategy.time) {
            (Some(steps), ..) => format!("canary by {} listed steps", steps.len()),
            (_, Some(linear), _) => format!("canary in steps of {}% up to {}%", linear.step, linear.max),
            (.., Some(time)) => format!("canary by time, over {}", time.duration),
            _ => {
                let risk = strategy.risk.clone().unwrap_or_default();
                format!(
                    "canary by risk: at most {} of all requests bad because of it, at most {} before the verdict",
                    risk.budget, risk.max_before_verdict
                )
            }
        },
    };
    if strategy.gate == Gate::Manual && strategy.kind == StrategyKind::BlueGreen {
        text.push_str(", after the command promote");
    }
    if let Some(mirror) = &strategy.mirror {
        text.push_str(&format!(", {} mirrored pairs first", mirror.requests));
    }
    if let Some(affinity) = &strategy.session_affinity {
        text.push_str(&format!(", clients stay by the cookie {}", affinity.cookie));
    }
    text
}

/// One line: what is done, what stands, what is to come. Empty: there is no attempt under way.
pub(super) fn text(spec: &RolloutSpec, status: &RolloutStatus, paint: Paint) -> String {
    let Some(attempt) = status.attempt.as_ref().filter(|_| active(status)) else {
        return String::new();
    };
    if status.phase == Phase::RollingBack {
        return String::new();
    }
    let mut words: Vec<String> = Vec::new();
    let last = attempt.epochs.len().saturating_sub(1);
    for (place, epoch) in attempt.epochs.iter().enumerate() {
        let what = match (epoch.mirrored, epoch.weight_bp) {
            (true, _) => "mirror".to_owned(),
            (false, 0) => "matching".to_owned(),
            (false, weight) => percent(weight),
        };
        let done = place < last || status.phase == Phase::Baking;
        words.push(match done {
            true => paint.good(&format!("✓ {what}")),
            false => paint.bold(&format!("▶ {what}")),
        });
    }
    let weight = status.step.as_ref().map_or(0, |step| step.weight_bp);
    let taken = status.step.as_ref().map_or(0, |step| step.index) as usize;
    let mirrored = attempt.mirroring || attempt.epochs.iter().any(|epoch| epoch.mirrored);
    let mut rest: Vec<String> = Vec::new();
    if status.phase == Phase::Preparing && spec.strategy.mirror.is_some() && !mirrored && !attempt.fast {
        rest.push("mirror".to_owned());
    }
    rest.extend(to_come(spec, weight, taken, attempt.fast));
    words.extend(rest.into_iter().map(|what| paint.faint(&format!("· {what}"))));
    if status.phase == Phase::Baking {
        words.push(paint.bold(&format!("▶ watched for {}", spec.analysis.bake)));
    } else if !attempt.fast && !none(&spec.analysis.bake) {
        words.push(paint.faint(&format!("· watched for {}", spec.analysis.bake)));
    }
    format!("  {}\n", words.join("  "))
}

/// Whether a duration is nothing.
fn none(duration: &str) -> bool {
    crds::annotation::read_duration(duration).is_ok_and(|duration| duration.is_zero())
}

/// The weights after the present one, as planned.
fn to_come(spec: &RolloutSpec, weight: u32, taken: usize, fast: bool) -> Vec<String> {
    if weight >= FULL {
        return Vec::new();
    }
    let strategy = &spec.strategy;
    let everything = match strategy.gate {
        Gate::Manual if strategy.kind == StrategyKind::BlueGreen => "100% (waits for promote)",
        _ => "100%",
    };
    if fast || strategy.kind != StrategyKind::Canary {
        return vec![everything.to_owned()];
    }
    let mut rest = Vec::new();
    let mut full = false;
    if let Some(steps) = &strategy.steps {
        rest.extend(steps.iter().skip(taken).map(step));
        full = steps.last().is_some_and(|step| step.weight >= 100.0);
    } else if let Some(linear) = &strategy.linear {
        let mut next = f64::from(weight) / 100.0;
        while next < linear.max && rest.len() < MOST_STEPS {
            next = (next + linear.step.max(1.0)).min(100.0);
            rest.push(format!("{next}%"));
        }
        full = next >= 100.0;
    } else if let Some(time) = &strategy.time {
        return vec![format!("100% within {}", time.duration)];
    } else if spec.analysis.mode == AnalysisMode::Sequential {
        let most = strategy.risk.clone().unwrap_or_default().max_before_verdict;
        let reached = most
            .strip_suffix('%')
            .and_then(|most| most.parse::<f64>().ok())
            .is_some_and(|most| f64::from(weight) / 100.0 >= most);
        if !reached {
            rest.push(format!("up to {most} as evidence allows"));
        }
    }
    if !full {
        rest.push("100%".to_owned());
    }
    rest
}

fn step(step: &StepSpec) -> String {
    let mut text = format!("{}%", step.weight);
    if step.gate == Gate::Manual {
        text.push_str(" (waits for promote)");
    }
    if !step.pause.is_empty() {
        text.push_str(&format!(" for {}", step.pause));
    }
    text
}
