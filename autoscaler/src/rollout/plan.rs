//! What a Rollout's spec asks for: read once, checked, and put in the state machine's terms and in the Route's.

use std::time::Duration;

use crds::rollout::{
    AnalysisMode, Gate, Insufficient as Wish, OnNewRevision, RolloutSpec, StepSpec, StrategyKind, TargetMode,
};
use crds::route::{
    BadAnswers, CodeRange, RouteAffinity, RouteBreaker, RouteMatch, RouteMirror, RouteSynthetic,
};
use dormouse_core::evidence::Analysis;
use dormouse_core::rollout::{FULL, Insufficient, Mirror, Mode, OnNew, Plan, StepPlan, Strategy, Threshold};

use super::config::Policies;
use super::outward::{self, Outward};

/// A candidate is taken out by an activator alone at so much evidence: a hundred times what the autoscaler needs by default,
/// because each activator looks by itself and cannot ask anybody.
const BREAKER: f64 = 1e4;

/// A spec that can be carried out.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Asked {
    pub(super) plan: Plan,
    /// How long a template has to rest before it is a revision.
    pub(super) settle: Duration,
    pub(super) configs: Policies,
    pub(super) history: usize,
    pub(super) min_age: Duration,
    pub(super) wording: Wording,
    /// What is asked of others, and who is told.
    pub(super) outward: Outward,
}

/// What a Route says word for word while there is a candidate.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Wording {
    pub(super) bad: BadAnswers,
    pub(super) warmup_requests: u32,
    pub(super) warmup_ms: u64,
    pub(super) methods: Vec<String>,
    pub(super) matches: Vec<RouteMatch>,
    pub(super) affinity: Option<RouteAffinity>,
    pub(super) breaker: RouteBreaker,
    pub(super) synthetic: Option<RouteSynthetic>,
}

impl Wording {
    /// The mirror with this share.
    pub(super) fn mirror(&self, percent: u32) -> Option<RouteMirror> {
        (percent > 0).then(|| RouteMirror {
            percent,
            methods: self.methods.clone(),
        })
    }
}

/// Reads a spec.
///
/// # Errors
/// The first field that cannot be carried out, its value and what is allowed.
pub(super) fn read(spec: &RolloutSpec) -> Result<Asked, String> {
    let analysis = &spec.analysis;
    let matches = spec.strategy.matches.clone().unwrap_or_default();
    if spec.strategy.kind == StrategyKind::AbTest && matches.is_empty() {
        return Err(
            "spec.strategy.type is ABTest and spec.strategy.match is empty: say which requests".to_owned(),
        );
    }
    let sessions = spec.strategy.session_affinity.is_some();
    let outward = outward::read(spec)?;
    let plan = Plan {
        strategy: strategy(spec)?,
        mode: mode(spec, sessions)?,
        min_step: duration("spec.strategy.minStepDuration", &spec.strategy.min_step_duration)?,
        mirror: spec.strategy.mirror.as_ref().map(|mirror| Mirror {
            percent: mirror.percent.clamp(1, 100),
            pairs: mirror.requests,
        }),
        matching: !matches.is_empty(),
        gates: outward.gates(),
        bake: duration("spec.analysis.bake", &analysis.bake)?,
        progress_deadline: duration("spec.progressDeadline", &spec.progress_deadline)?,
        insufficient: insufficient(spec)?,
        keep_warm: duration("spec.rollback.keepWarm", &spec.rollback.keep_warm)?,
        window: usize::try_from(spec.rollback.window).unwrap_or(usize::MAX),
        gradual: spec.rollback.gradual,
        on_new: match spec.on_new_revision {
            OnNewRevision::Supersede => OnNew::Supersede,
            OnNewRevision::Queue => OnNew::Queue,
        },
        suspend: spec.suspend,
        pause_target: spec.target_mode == TargetMode::Paused,
        bootstrap: Some(spec.bootstrap_revision.clone()).filter(|name| !name.is_empty()),
    };
    Ok(Asked {
        plan,
        settle: duration("spec.config.settle", &spec.config.settle)?,
        configs: Policies {
            config_maps: spec.config.config_maps,
            secrets: spec.config.secrets,
        },
        history: usize::try_from(spec.revisions.history_limit).unwrap_or(usize::MAX),
        min_age: duration("spec.revisions.minAge", &spec.revisions.min_age)?,
        wording: wording(spec, matches)?,
        outward,
    })
}

fn strategy(spec: &RolloutSpec) -> Result<Strategy, String> {
    let asked = &spec.strategy;
    Ok(match asked.kind {
        StrategyKind::BlueGreen => Strategy::BlueGreen {
            gate: asked.gate == Gate::Manual,
        },
        StrategyKind::AbTest => Strategy::Match,
        StrategyKind::Immediate => Strategy::Immediate,
        StrategyKind::Canary => {
            if let Some(steps) = &asked.steps {
                Strategy::Steps(steps.iter().map(step).collect::<Result<_, _>>()?)
            } else if let Some(linear) = &asked.linear {
                Strategy::Linear {
                    step: weight("spec.strategy.linear.step", linear.step)?,
                    max: weight("spec.strategy.linear.max", linear.max)?,
                }
            } else if let Some(time) = &asked.time {
                Strategy::Time {
                    duration: duration("spec.strategy.time.duration", &time.duration)?,
                }
            } else {
                let risk = asked.risk.clone().unwrap_or_default();
                Strategy::Risk {
                    budget: basis_points("spec.strategy.risk.budget", &risk.budget)?,
                    most: basis_points("spec.strategy.risk.maxBeforeVerdict", &risk.max_before_verdict)?,
                }
            }
        }
    })
}

fn step(step: &StepSpec) -> Result<StepPlan, String> {
    Ok(StepPlan {
        weight: weight("spec.strategy.steps[].weight", step.weight)?,
        pause: match step.pause.as_str() {
            "" => Duration::ZERO,
            pause => duration("spec.strategy.steps[].pause", pause)?,
        },
        gate: step.gate == Gate::Manual,
    })
}

fn mode(spec: &RolloutSpec, sessions: bool) -> Result<Mode, String> {
    let analysis = &spec.analysis;
    Ok(match analysis.mode {
        AnalysisMode::None => Mode::None,
        AnalysisMode::Threshold => Mode::Threshold(Threshold {
            interval: duration("spec.analysis.interval", &analysis.interval)?,
            threshold: analysis.threshold,
            iterations: analysis.iterations,
        }),
        AnalysisMode::Sequential => {
            let latency = &analysis.outcomes.latency;
            let slo = analysis.outcomes.errors.slo.as_str();
            Mode::Sequential(Analysis {
                alpha: between("spec.analysis.alpha", analysis.alpha, 1e-6, 0.5)?,
                beta: between("spec.analysis.beta", analysis.beta, 1e-6, 0.5)?,
                max_bad_rate: share("spec.analysis.maxBadRate", &analysis.max_bad_rate)?,
                tolerance: between("spec.analysis.tolerance", analysis.tolerance, 1.0, 100.0)?,
                budget: match slo {
                    "" => None,
                    slo => Some(1.0 - share("spec.analysis.outcomes.errors.slo", slo)?),
                },
                latency: latency.relative,
                latency_budget: match latency.p99.as_str() {
                    "" => None,
                    p99 => Some((duration("spec.analysis.outcomes.latency.p99", p99)?, 0.01)),
                },
                sessions,
            })
        }
    })
}

fn insufficient(spec: &RolloutSpec) -> Result<Option<(Duration, Insufficient)>, String> {
    let asked = &spec.analysis.on_insufficient_traffic;
    let field = "spec.analysis.onInsufficientTraffic.after";
    let (after, wish) = match (asked.policy, asked.after.as_str()) {
        (Wish::Hold, "") => return Ok(None),
        (Wish::Hold, after) => (duration(field, after)?, asked.then),
        (policy, "") => (Duration::ZERO, policy),
        (policy, after) => (duration(field, after)?, policy),
    };
    let then = match wish {
        Wish::Hold => return Ok(None),
        Wish::Promote => Insufficient::Promote,
        Wish::Rollback => Insufficient::Rollback,
        Wish::Synthetic if spec.analysis.synthetic.is_none() => {
            return Err(
                "spec.analysis.onInsufficientTraffic wants Synthetic, and spec.analysis.synthetic is not set: say the path"
                    .to_owned(),
            );
        }
        Wish::Synthetic => Insufficient::Synthetic,
    };
    Ok(Some((after, then)))
}

fn wording(spec: &RolloutSpec, matches: Vec<RouteMatch>) -> Result<Wording, String> {
    let (errors, warmup) = (&spec.analysis.outcomes.errors, &spec.analysis.warmup);
    let codes = errors
        .codes
        .iter()
        .map(|code| codes(code))
        .collect::<Result<_, _>>()?;
    let grpc = errors
        .grpc
        .iter()
        .map(|name| grpc(name))
        .collect::<Result<_, _>>()?;
    let affinity = spec.strategy.session_affinity.as_ref();
    let affinity = affinity
        .map(|asked| {
            Ok::<_, String>(RouteAffinity {
                cookie: asked.cookie.clone(),
                max_age_seconds: duration("spec.strategy.sessionAffinity.maxAge", &asked.max_age)?.as_secs(),
            })
        })
        .transpose()?;
    Ok(Wording {
        bad: BadAnswers {
            codes,
            grpc,
            timeouts: errors.timeouts,
        },
        warmup_requests: warmup.per_pod_requests,
        warmup_ms: u64::try_from(duration("spec.analysis.warmup.perPod", &warmup.per_pod)?.as_millis())
            .unwrap_or(u64::MAX),
        methods: spec
            .strategy
            .mirror
            .as_ref()
            .map(|mirror| mirror.methods.clone())
            .unwrap_or_default(),
        matches,
        affinity,
        breaker: RouteBreaker {
            evidence: BREAKER,
            tolerance: spec.analysis.tolerance.max(1.0),
        },
        synthetic: spec.analysis.synthetic.as_ref().map(|asked| RouteSynthetic {
            path: asked.path.clone(),
            rps: asked.rps,
        }),
    })
}

/// `5xx` or `429`.
fn codes(text: &str) -> Result<CodeRange, String> {
    let wrong = || {
        format!(
            "spec.analysis.outcomes.errors.codes has {text}: allowed are codes such as 429 and classes such as 5xx"
        )
    };
    let (first, last) = match text.strip_suffix("xx") {
        Some(class) => {
            let class: u16 = class.parse().map_err(|_| wrong())?;
            (
                class.saturating_mul(100),
                class.saturating_mul(100).saturating_add(99),
            )
        }
        None => {
            let code: u16 = text.parse().map_err(|_| wrong())?;
            (code, code)
        }
    };
    if !(100..=599).contains(&first) {
        return Err(wrong());
    }
    Ok(CodeRange { first, last })
}

/// The code of a gRPC status, by the name that gRPC's own list gives it.
fn grpc(name: &str) -> Result<u32, String> {
    const NAMES: [&str; 17] = [
        "OK",
        "Cancelled",
        "Unknown",
        "InvalidArgument",
        "DeadlineExceeded",
        "NotFound",
        "AlreadyExists",
        "PermissionDenied",
        "ResourceExhausted",
        "FailedPrecondition",
        "Aborted",
        "OutOfRange",
        "Unimplemented",
        "Internal",
        "Unavailable",
        "DataLoss",
        "Unauthenticated",
    ];
    let plain = |text: &str| text.replace('_', "").to_ascii_lowercase();
    let found = NAMES.iter().position(|known| plain(known) == plain(name));
    let code = found.and_then(|place| u32::try_from(place).ok());
    code.ok_or_else(|| {
        format!(
            "spec.analysis.outcomes.errors.grpc has {name}: allowed are {}",
            NAMES.join(", ")
        )
    })
}

pub(super) fn duration(field: &str, text: &str) -> Result<Duration, String> {
    crds::annotation::read_duration(text)
        .map_err(|why| format!("{field} is \"{text}\", allowed: a duration such as 30s, 10m, 1h30m. {why}"))
}

/// `5%` as 0.05.
pub(super) fn share(field: &str, text: &str) -> Result<f64, String> {
    let number = text
        .strip_suffix('%')
        .and_then(|number| number.parse::<f64>().ok());
    number
        .map(|percent| percent / 100.0)
        .filter(|share| (0.0..=1.0).contains(share))
        .ok_or_else(|| format!("{field} is \"{text}\", allowed: 0% to 100%"))
}

fn basis_points(field: &str, text: &str) -> Result<u32, String> {
    Ok((share(field, text)? * f64::from(FULL)).round() as u32)
}

fn weight(field: &str, percent: f64) -> Result<u32, String> {
    Ok((between(field, percent, 0.0, 100.0)? * 100.0).round() as u32)
}

fn between(field: &str, value: f64, least: f64, most: f64) -> Result<f64, String> {
    if (least..=most).contains(&value) {
        return Ok(value);
    }
    Err(format!("{field} is {value}, allowed: {least} to {most}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn spec(change: Value) -> RolloutSpec {
        let mut short = json!({ "targetRef": { "name": "web" }, "serviceRef": { "name": "web" } });
        for (key, value) in change.as_object().into_iter().flatten() {
            short[key] = value.clone();
        }
        serde_json::from_value(short).expect("a spec")
    }

    #[test]
    fn a_short_spec_is_the_state_machines_default_plan() {
        let asked = read(&spec(json!({}))).expect("it can be carried out");
        assert_eq!(
            asked.plan,
            Plan {
                mode: Mode::Sequential(Analysis {
                    budget: Some(1.0 - 0.99),
                    ..Analysis::default()
                }),
                ..Plan::default()
            }
        );
        assert_eq!(asked.settle, Duration::from_secs(5));
        assert_eq!(
            asked.wording.bad.codes,
            [CodeRange {
                first: 500,
                last: 599
            }]
        );
        assert_eq!(asked.wording.bad.grpc, [2, 13, 14]);
    }

    #[test]
    fn each_strategy_is_read() {
        for (strategy, want) in [
            (
                json!({ "linear": { "step": 20, "max": 70 } }),
                Strategy::Linear {
                    step: 2000,
                    max: 7000,
                },
            ),
            (
                json!({ "time": { "duration": "10m" } }),
                Strategy::Time {
                    duration: Duration::from_secs(600),
                },
            ),
            (
                json!({ "type": "BlueGreen", "gate": "Manual" }),
                Strategy::BlueGreen { gate: true },
            ),
            (json!({ "type": "Immediate" }), Strategy::Immediate),
            (
                json!({ "risk": { "budget": "1%" } }),
                Strategy::Risk {
                    budget: 100,
                    most: 5000,
                },
            ),
            (
                json!({ "steps": [{ "weight": 2.5 }, { "weight": 50, "pause": "1m", "gate": "Manual" }] }),
                Strategy::Steps(vec![
                    StepPlan {
                        weight: 250,
                        ..StepPlan::default()
                    },
                    StepPlan {
                        weight: 5000,
                        pause: Duration::from_secs(60),
                        gate: true,
                    },
                ]),
            ),
        ] {
            let asked = read(&spec(json!({ "strategy": strategy }))).expect("it can be carried out");
            assert_eq!(asked.plan.strategy, want);
        }
    }

    #[test]
    fn what_cannot_be_carried_out_is_named_with_its_value_and_range() {
        for (change, parts) in [
            (
                json!({ "progressDeadline": "soon" }),
                ["spec.progressDeadline is \"soon\"", "30s"],
            ),
            (
                json!({ "analysis": { "alpha": 0.9 } }),
                ["spec.analysis.alpha is 0.9", "0.5"],
            ),
            (
                json!({ "analysis": { "maxBadRate": "5" } }),
                ["maxBadRate is \"5\"", "0% to 100%"],
            ),
            (
                json!({ "analysis": { "outcomes": { "errors": { "codes": ["6xx"] } } } }),
                ["has 6xx", "5xx"],
            ),
            (
                json!({ "analysis": { "outcomes": { "errors": { "grpc": ["Bad"] } } } }),
                ["has Bad", "Unavailable"],
            ),
            (json!({ "strategy": { "type": "ABTest" } }), ["ABTest", "match"]),
            (
                json!({ "analysis": { "webhooks": [{ "type": "rollout", "url": "x" }] } }),
                ["webhooks[rollout].url is \"x\"", "http://HOST"],
            ),
        ] {
            let error = read(&spec(change)).expect_err("it cannot be carried out");
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        }
    }
}
