//! A command to a rollout: written as an annotation for the attempt that was seen, answered in the status.

use std::fmt;

use crds::names::{COMMAND_ANNOTATION, ROLLOUT_LABEL};
use crds::rollout::RolloutStatus;
use crds::{Revision, Rollout};
use jiff::Timestamp;
use kube::api::ListParams;
use kube::{Api, ResourceExt as _};
use serde_json::json;

use super::{Order, lookup, no};
use crate::changes::follow_one;
use crate::client::{Connected, connect, failed, merge};
use crate::failure::Failure;
use crate::output;

/// What can be commanded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Promote,
    PromoteFull,
    Abort,
    Retry,
    Pause,
    Resume,
    /// To this revision; `None`: to the one before.
    Undo(Option<String>),
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Promote => write!(f, "promote"),
            Self::PromoteFull => write!(f, "promote-full"),
            Self::Abort => write!(f, "abort"),
            Self::Retry => write!(f, "retry"),
            Self::Pause => write!(f, "pause"),
            Self::Resume => write!(f, "resume"),
            Self::Undo(None) => write!(f, "undo"),
            Self::Undo(Some(revision)) => write!(f, "undo={revision}"),
        }
    }
}

/// # Errors
/// When the cluster cannot be asked, nobody answers in time, or the command was ignored.
pub(super) async fn run(verb: Verb, order: Order) -> Result<(), Failure> {
    let connected = connect(&order.scope).await?;
    let rollout = lookup(&connected, &order.name).await?;
    let about = format!("{}/{}", connected.namespace, rollout.name_any());
    let verb = match verb {
        Verb::Undo(Some(revision)) => Verb::Undo(Some(named(&connected, &rollout, &revision).await?)),
        verb => verb,
    };
    let text = text(&verb, rollout.status.as_ref(), Timestamp::now());
    let api: Api<Rollout> = Api::namespaced(connected.client.clone(), &connected.namespace);
    let name = rollout.name_any();
    let patch = json!({ "metadata": { "annotations": { COMMAND_ANNOTATION: text } } });
    merge(&api, &name, &patch)
        .await
        .map_err(|error| failed("write the command to the Rollout", &connected.url, &error))?;
    if order.no_wait {
        return output::print(&format!("{about}: asked to {verb}\n"));
    }
    let mut last = rollout.status.unwrap_or_default();
    // Waits until the status names the command.
    let answered = follow_one(api, &name, &connected, "the Rollout", |rollout| {
        last = rollout.status.unwrap_or_default();
        read(&last, &text)
    });
    let waited = tokio::time::timeout(order.timeout, answered).await;
    match waited {
        Ok(Ok(Some(Answer::Obeyed(answer)))) => output::print(&format!("{about}: {answer}\n")),
        Ok(Ok(Some(Answer::Ignored(why)))) => Err(no(format!("{about}: {verb} is ignored: {why}"))),
        Ok(Ok(None)) => Err(no(format!("{about}: the Rollout is gone"))),
        Ok(Err(failure)) => Err(failure),
        Err(_) => {
            let why = if last.why.is_empty() {
                String::new()
            } else {
                format!(" It says: {}", last.why)
            };
            Err(no(format!(
                "{about}: nobody has taken the command within {:?}; `dormouse doctor` says whether an autoscaler runs.{why}",
                order.timeout
            )))
        }
    }
}

/// `VERB@ATTEMPT.NONCE`. It names the attempt that was seen: one that has begun meanwhile is not what was meant.
fn text(verb: &Verb, status: Option<&RolloutStatus>, now: Timestamp) -> String {
    let attempt = status.and_then(|status| status.attempt.as_ref());
    let uid = attempt.map(|attempt| attempt.uid.as_str()).unwrap_or_default();
    format!("{verb}@{uid}.{:x}", now.as_nanosecond())
}

/// A revision by name, or by its number.
async fn named(connected: &Connected, rollout: &Rollout, revision: &str) -> Result<String, Failure> {
    let Ok(sequence) = revision.parse::<i64>() else {
        return Ok(revision.to_owned());
    };
    let revisions = revisions(connected, rollout).await?;
    let found = revisions
        .iter()
        .find(|revision| revision.spec.sequence == sequence);
    found.map(kube::ResourceExt::name_any).ok_or_else(|| {
        let mut there: Vec<i64> = revisions.iter().map(|revision| revision.spec.sequence).collect();
        there.sort_unstable();
        let there: Vec<String> = there.iter().map(i64::to_string).collect();
        no(format!(
            "{}/{} has no revision {sequence}: there are {}",
            connected.namespace,
            rollout.name_any(),
            there.join(", ")
        ))
    })
}

/// The Revisions of a Rollout.
pub(super) async fn revisions(connected: &Connected, rollout: &Rollout) -> Result<Vec<Revision>, Failure> {
    let namespace = rollout.namespace().unwrap_or_default();
    let api: Api<Revision> = Api::namespaced(connected.client.clone(), &namespace);
    let own = ListParams::default().labels(&format!("{ROLLOUT_LABEL}={}", rollout.name_any()));
    let listed = api.list(&own).await;
    listed
        .map(|list| list.items)
        .map_err(|error| failed("list Revisions", &connected.url, &error))
}

/// What became of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer {
    /// It was obeyed: how.
    Obeyed(String),
    /// It was not: why.
    Ignored(String),
}

/// The answer to this very command, if there is one: `TEXT: done.` or `TEXT is ignored: why.`
fn read(status: &RolloutStatus, text: &str) -> Option<Answer> {
    if status.last_command != text {
        return None;
    }
    let answer = status.last_command_answer.as_str();
    let about = answer.strip_prefix(text).unwrap_or(answer);
    Some(match about.strip_prefix(" is ignored: ") {
        Some(why) => Answer::Ignored(why.to_owned()),
        None => Answer::Obeyed(about.trim_start_matches(": ").to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crds::rollout::AttemptStatus;

    #[test]
    fn a_command_names_the_attempt_that_was_seen() {
        let now = Timestamp::from_nanosecond(0x1f).expect("a time");
        assert_eq!(text(&Verb::Undo(None), None, now), "undo@.1f");
        let status = RolloutStatus {
            attempt: Some(AttemptStatus {
                uid: "3-19a".to_owned(),
                ..AttemptStatus::default()
            }),
            ..RolloutStatus::default()
        };
        let verb = Verb::Undo(Some("web-1".to_owned()));
        assert_eq!(text(&verb, Some(&status), now), "undo=web-1@3-19a.1f");
        assert_eq!(
            text(&Verb::PromoteFull, Some(&status), now),
            "promote-full@3-19a.1f"
        );
    }

    #[test]
    fn only_the_answer_to_this_very_command_counts() {
        let status = |command: &str, answer: &str| RolloutStatus {
            last_command: command.to_owned(),
            last_command_answer: answer.to_owned(),
            ..RolloutStatus::default()
        };
        for (status, want) in [
            (status("", ""), None),
            (status("pause@1.0", "pause@1.0: paused."), None),
            (
                status("pause@1.a", "pause@1.a: paused."),
                Some(Answer::Obeyed("paused.".to_owned())),
            ),
            (
                status(
                    "pause@1.a",
                    "pause@1.a is ignored: there is no candidate in phase Idle.",
                ),
                Some(Answer::Ignored("there is no candidate in phase Idle.".to_owned())),
            ),
        ] {
            assert_eq!(read(&status, "pause@1.a"), want);
        }
    }
}
