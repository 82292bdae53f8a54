//! Is there anything in the way of a rollout?

use crds::Rollout;
use crds::rollout::Phase;
use kube::ResourceExt as _;

use super::{Line, Mark};
use crate::rollout::{Stand, of_service};

/// The rollouts of these Services, by namespace and name.
pub(super) fn examine(rollouts: &[Rollout], services: &[(String, String)]) -> Vec<Line> {
    let mut lines = Vec::new();
    for (namespace, service) in services {
        let here: Vec<Rollout> = rollouts
            .iter()
            .filter(|rollout| rollout.namespace().as_ref() == Some(namespace))
            .cloned()
            .collect();
        let Some(first) = of_service(&here, service) else {
            continue;
        };
        let about = format!("{namespace}/{service}");
        lines.push(line(&about, first));
        let others = here
            .iter()
            .filter(|other| other.spec.service_ref.name == *service && other.name_any() != first.name_any());
        lines.extend(others.map(|other| {
            let text = format!(
                "Rollout {} is for this Service too, and is not carried out: delete it or {}",
                other.name_any(),
                first.name_any()
            );
            Line::new(Mark::Warning, &about, "RolloutTwice", text)
        }));
    }
    lines
}

/// The rollouts of Services that are none of these: nobody looks at them because of their Service.
pub(super) fn alone(rollouts: &[Rollout], services: &[(String, String)]) -> Vec<Line> {
    let mut lines = Vec::new();
    for rollout in rollouts {
        let namespace = rollout.namespace().unwrap_or_default();
        let service = rollout.spec.service_ref.name.clone();
        let about = format!("{namespace}/{service}");
        if services.contains(&(namespace, service)) {
            continue;
        }
        let found = line(&about, rollout);
        let text = format!(
            "Rollout {} is for Service {}, which is not there or not opted in; {}",
            rollout.name_any(),
            rollout.spec.service_ref.name,
            found.text
        );
        let mark = found.mark.max(Mark::Warning);
        lines.push(Line::new(mark, &about, &found.reason, text));
    }
    lines
}

fn line(about: &str, rollout: &Rollout) -> Line {
    let stand = Stand::new(rollout);
    let adopted = rollout.status.as_ref().is_some_and(|status| status.adopted);
    let invalid = autoscaler::examine::rollout(&rollout.spec).err();
    if let Some(wrong) = invalid {
        return Line::new(Mark::Warning, about, "InvalidRollout", wrong);
    }
    let mark = match stand.phase {
        Phase::Adopting if !adopted => Mark::Warning,
        Phase::Failed | Phase::Holding | Phase::Paused | Phase::RollingBack => Mark::Warning,
        _ => Mark::Good,
    };
    let mut text = format!("{}: {}", stand.headline(), stand.why);
    for more in [stand.next, stand.help] {
        if !more.is_empty() {
            text = format!("{}; {more}", text.trim_end_matches('.'));
        }
    }
    Line::new(mark, about, "Rollout", text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crds::{RolloutSpec, RolloutStatus};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    fn rollout(name: &str, phase: Phase) -> Rollout {
        let mut rollout = Rollout::new(name, RolloutSpec::default());
        rollout.metadata.namespace = Some("shop".to_owned());
        rollout.metadata.creation_timestamp = Some(Time(jiff::Timestamp::UNIX_EPOCH));
        rollout.spec.service_ref.name = "web".to_owned();
        rollout.status = Some(RolloutStatus {
            phase,
            adopted: phase != Phase::Adopting,
            why: "It stands.".to_owned(),
            stable_revision: "web-2".to_owned(),
            seen_revision: "web-2".to_owned(),
            ..RolloutStatus::default()
        });
        rollout
    }

    fn web() -> Vec<(String, String)> {
        vec![("shop".to_owned(), "web".to_owned())]
    }

    #[test]
    fn each_phase_is_marked_by_whether_it_needs_somebody() {
        for (phase, mark, said) in [
            (Phase::Idle, Mark::Good, "Idle: It stands."),
            (Phase::Progressing, Mark::Good, "Progressing: It stands."),
            (Phase::Adopting, Mark::Warning, "Adopting: It stands."),
            (Phase::Holding, Mark::Warning, "Holding: It stands; more requests"),
            (Phase::Failed, Mark::Warning, "lets web-2 begin again"),
        ] {
            let lines = examine(&[rollout("web", phase)], &web());
            assert_eq!((lines.len(), lines[0].mark), (1, mark), "{phase:?}");
            assert!(lines[0].text.contains(said), "{}", lines[0].text);
        }
        let elsewhere = [("other".to_owned(), "web".to_owned())];
        assert_eq!(examine(&[rollout("web", Phase::Idle)], &elsewhere), []);
    }

    #[test]
    fn a_rollout_whose_service_is_not_looked_at_is_a_warning() {
        let mut typo = rollout("api", Phase::Idle);
        typo.spec.service_ref.name = "apj".to_owned();
        let rollouts = [rollout("web", Phase::Idle), typo];
        let lines = alone(&rollouts, &web());
        assert_eq!((lines.len(), lines[0].mark), (1, Mark::Warning));
        assert_eq!(lines[0].about, "shop/apj");
        assert_eq!(
            lines[0].text,
            "Rollout api is for Service apj, which is not there or not opted in; Idle: It stands."
        );
        assert_eq!(alone(&rollouts, &[]).len(), 2);
    }

    #[test]
    fn what_cannot_be_carried_out_and_what_is_there_twice_is_said() {
        let mut wrong = rollout("web", Phase::Idle);
        wrong.spec.analysis.alpha = 7.0;
        let lines = examine(&[wrong, rollout("web-too", Phase::Idle)], &web());
        let reasons: Vec<&str> = lines.iter().map(|line| line.reason.as_str()).collect();
        assert_eq!(reasons, ["InvalidRollout", "RolloutTwice"]);
        assert!(
            lines[0].text.contains("spec.analysis.alpha is 7"),
            "{}",
            lines[0].text
        );
        assert!(lines[1].text.contains("delete it or web"), "{}", lines[1].text);
    }
}
