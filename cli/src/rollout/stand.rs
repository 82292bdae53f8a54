//! Where a rollout stands, and what would help: what `rollout get`, `explain` and `doctor` all say.

use crds::Rollout;
use crds::rollout::{Phase, RolloutStatus};
use kube::ResourceExt as _;
use serde::Serialize;

/// Where a rollout stands.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Stand {
    /// The Rollout's name.
    pub(crate) name: String,
    /// Phase.
    pub(crate) phase: Phase,
    /// The revision that has the traffic when there is no candidate.
    pub(crate) stable: String,
    /// The revision that is being let in; empty: none.
    pub(crate) candidate: String,
    /// The candidate's weight, as `20%`; empty: there is no candidate.
    pub(crate) weight: String,
    /// Why it stands there.
    pub(crate) why: String,
    /// What happens next; empty: nothing is planned.
    pub(crate) next: String,
    /// What a person can do about it; empty: nothing has to be done.
    pub(crate) help: String,
}

impl Stand {
    pub(crate) fn new(rollout: &Rollout) -> Self {
        let status = rollout.status.clone().unwrap_or_default();
        Self {
            name: rollout.name_any(),
            phase: status.phase,
            help: help(rollout, &status),
            stable: status.stable_revision,
            candidate: status.candidate_revision,
            weight: status.weight,
            why: if status.why.is_empty() {
                "no autoscaler has looked at it yet".to_owned()
            } else {
                status.why
            },
            next: status.next,
        }
    }

    /// The phase, and who the candidate is: `Progressing, web-2 at 20%`.
    pub(crate) fn headline(&self) -> String {
        match (self.candidate.as_str(), self.weight.as_str()) {
            ("", _) => format!("{:?}", self.phase),
            (candidate, "") => format!("{:?}, candidate {candidate}", self.phase),
            (candidate, weight) => format!("{:?}, candidate {candidate} at {weight}", self.phase),
        }
    }
}

/// What a person can do about how it stands.
fn help(rollout: &Rollout, status: &RolloutStatus) -> String {
    let command = |word: &str| {
        let namespace = rollout.namespace().unwrap_or_default();
        format!("`dormouse rollout {word} {} -n {namespace}`", rollout.name_any())
    };
    let paused = status.attempt.as_ref().is_some_and(|attempt| attempt.paused);
    match status.phase {
        Phase::Failed => format!(
            "{} lets {} begin again; a new template begins by itself",
            command("retry"),
            status.seen_revision
        ),
        Phase::Paused if rollout.spec.suspend => "it goes on when spec.suspend is false".to_owned(),
        Phase::Paused if paused => format!("{} goes on", command("resume")),
        Phase::Paused => format!(
            "{} goes on now, {} takes the candidate out",
            command("promote"),
            command("abort")
        ),
        Phase::Holding => format!(
            "more requests; or {} ships it unproven, and {} takes it out",
            command("promote"),
            command("abort")
        ),
        Phase::Preparing if !status.next.is_empty() => format!(
            "kubectl describe pods -n {} -l {}={} says why they are not ready",
            rollout.namespace().unwrap_or_default(),
            crds::names::REVISION_LABEL,
            status.candidate_revision
        ),
        // After an undo.
        Phase::Idle if !status.seen_revision.is_empty() && status.seen_revision != status.stable_revision => {
            format!(
                "the template of Deployment {} is still {}, and is let in only when it changes",
                rollout.spec.target_ref.name, status.seen_revision
            )
        }
        Phase::Idle if rollout.spec.suspend => "new templates wait while spec.suspend is true".to_owned(),
        _ => String::new(),
    }
}

/// The Rollout of a Service. Of several only one is carried out: the oldest, and of those of one age the first by name.
pub(crate) fn of_service<'a>(rollouts: &'a [Rollout], service: &str) -> Option<&'a Rollout> {
    let age = |rollout: &&Rollout| {
        let created = rollout.creation_timestamp().map(|time| time.0);
        (created, rollout.name_any())
    };
    rollouts
        .iter()
        .filter(|rollout| rollout.spec.service_ref.name == service)
        .min_by_key(age)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crds::RolloutSpec;
    use crds::rollout::AttemptStatus;

    fn stand(phase: Phase, paused: bool, suspend: bool) -> Stand {
        let mut rollout = Rollout::new("web", RolloutSpec::default());
        rollout.metadata.namespace = Some("shop".to_owned());
        rollout.spec.suspend = suspend;
        rollout.status = Some(RolloutStatus {
            phase,
            stable_revision: "web-1".to_owned(),
            seen_revision: "web-2".to_owned(),
            attempt: Some(AttemptStatus {
                paused,
                ..AttemptStatus::default()
            }),
            ..RolloutStatus::default()
        });
        Stand::new(&rollout)
    }

    #[test]
    fn what_waits_for_a_person_says_what_the_person_can_do() {
        for (phase, paused, suspend, want) in [
            (
                Phase::Failed,
                false,
                false,
                "rollout retry web -n shop` lets web-2 begin again",
            ),
            (Phase::Paused, true, false, "rollout resume web -n shop` goes on"),
            (Phase::Paused, true, true, "spec.suspend is false"),
            (
                Phase::Paused,
                false,
                false,
                "rollout promote web -n shop` goes on now",
            ),
            (Phase::Holding, false, false, "ships it unproven"),
            (Phase::Idle, false, true, "is still web-2"),
        ] {
            let help = stand(phase, paused, suspend).help;
            assert!(help.contains(want), "{phase:?}: {help}");
        }
        for phase in [
            Phase::Adopting,
            Phase::Progressing,
            Phase::Baking,
            Phase::RollingBack,
        ] {
            assert_eq!(stand(phase, false, false).help, "", "{phase:?}");
        }
    }

    #[test]
    fn what_rests_as_it_should_needs_nobody() {
        let mut rollout = Rollout::new("web", RolloutSpec::default());
        rollout.status = Some(RolloutStatus {
            phase: Phase::Idle,
            stable_revision: "web-1".to_owned(),
            seen_revision: "web-1".to_owned(),
            ..RolloutStatus::default()
        });
        assert_eq!(Stand::new(&rollout).help, "");
        rollout.spec.suspend = true;
        assert_eq!(
            Stand::new(&rollout).help,
            "new templates wait while spec.suspend is true"
        );
    }

    #[test]
    fn a_rollout_that_nobody_has_looked_at_says_so() {
        let stand = Stand::new(&Rollout::new("web", RolloutSpec::default()));
        assert_eq!(stand.headline(), "Adopting");
        assert_eq!(stand.why, "no autoscaler has looked at it yet");
    }
}
