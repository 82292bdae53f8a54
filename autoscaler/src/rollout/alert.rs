//! Alerts: what happened, to whom a Secret's `address` leads.

use std::sync::Arc;
use std::time::Duration;

use crds::rollout::{Alert, AlertKind, Severity};
use dormouse_core::rollout::{Ended, EventKind};
use serde_json::{Value, json};

use super::outside::{Caller, Outside};
use super::web::{self, Post};
use crate::cluster::{Cluster, Error, Notice, Subject};
use crate::state::RouteKey;

/// The Secret's key.
const ADDRESS: &str = "address";
/// How long each try may take.
const LIMIT: Duration = Duration::from_secs(10);
/// Waits before it is tried again: three times, then it is given up and counted.
const AGAIN: [Duration; 3] = [
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(30),
];

/// Something that somebody is alerted of.
#[derive(Clone, Debug)]
pub(super) struct Message {
    pub(super) rollout: RouteKey,
    pub(super) severity: Severity,
    /// The Event's reason.
    pub(super) event: &'static str,
    pub(super) text: String,
    pub(super) stable: String,
    pub(super) candidate: String,
    /// Milliseconds since the Unix epoch.
    pub(super) at_ms: u64,
}

/// How serious an event is. `None`: nobody is alerted of it.
pub(super) fn severity(kind: EventKind, ended: Option<Ended>) -> Option<Severity> {
    Some(match kind {
        EventKind::Initialized | EventKind::Moving | EventKind::NewRevision | EventKind::Promoted => {
            Severity::Info
        }
        EventKind::Waiting | EventKind::InsufficientTraffic | EventKind::Quarantined => Severity::Warn,
        EventKind::RollingBack => match ended {
            Some(Ended::Superseded) => Severity::Info,
            Some(Ended::Aborted) => Severity::Warn,
            _ => Severity::Error,
        },
        _ => return None,
    })
}

/// Whether somebody who wants `least` and more hears of `severity`.
pub(super) fn wanted(least: Severity, severity: Severity) -> bool {
    let rank = |severity: Severity| match severity {
        Severity::Info => 0,
        Severity::Warn => 1,
        Severity::Error => 2,
    };
    rank(severity) >= rank(least)
}

fn word(severity: Severity) -> &'static str {
    match severity {
        Severity::Info => "info",
        Severity::Warn => "warn",
        Severity::Error => "error",
    }
}

/// What is sent.
pub(super) fn payload(kind: AlertKind, message: &Message) -> Value {
    let RouteKey { namespace, name } = &message.rollout;
    match kind {
        AlertKind::Slack => {
            let color = match message.severity {
                Severity::Info => "good",
                Severity::Warn => "warning",
                Severity::Error => "danger",
            };
            let field = |title: &str, value: &str| json!({ "title": title, "value": value, "short": true });
            let fields: Vec<Value> = [("Stable", &message.stable), ("Candidate", &message.candidate)]
                .into_iter()
                .filter(|(_, value)| !value.is_empty())
                .map(|(title, value)| field(title, value))
                .collect();
            json!({
                "text": format!("{namespace}/{name}: {}", message.text),
                "attachments": [{
                    "color": color,
                    "author_name": format!("{name}.{namespace}"),
                    "title": message.event,
                    "text": message.text,
                    "fallback": message.text,
                    "fields": fields,
                }],
            })
        }
        AlertKind::Webhook => json!({
            "namespace": namespace,
            "name": name,
            "severity": word(message.severity),
            "event": message.event,
            "message": message.text,
            "stable": message.stable,
            "candidate": message.candidate,
            "timestamp": message.at_ms.to_string(),
        }),
    }
}

/// Sends one alert, and notes what stands in its way.
pub(super) async fn send(
    outside: Arc<Outside>,
    cluster: Arc<Cluster>,
    caller: Caller,
    subject: Subject,
    alert: Alert,
    message: Message,
) {
    let secret = &alert.secret_ref.name;
    let sent = deliver(&cluster, &caller, &alert, &message).await;
    if let Err(why) = &sent {
        tracing::warn!(rollout = %message.rollout, secret, %why, "an alert");
        cluster.event(Notice {
            subject,
            warning: true,
            reason: "AlertNotSent",
            action: "Alert",
            note: why.clone(),
        });
    }
    outside.trouble(&message.rollout, secret, sent.err());
}

async fn deliver(cluster: &Cluster, caller: &Caller, alert: &Alert, message: &Message) -> Result<(), String> {
    let namespace = &message.rollout.namespace;
    let secret = &alert.secret_ref.name;
    let named = format!("Secret {namespace}/{secret}");
    let read = cluster.read_secret(namespace, secret, ADDRESS).await;
    let address = match read {
        Ok(Some(address)) => address,
        Ok(None) => {
            return Err(format!(
                "{named} has no text under the key {ADDRESS}: put the URL there"
            ));
        }
        Err(Error::Gone(_)) => {
            return Err(format!(
                "there is no {named}: create it, with the URL under the key {ADDRESS}"
            ));
        }
        Err(error) if error.is_forbidden() => {
            return Err(format!(
                "{named} may not be read: grant the verb get on secrets with a Role in {namespace}, as \
                 manifests/components/alerts does"
            ));
        }
        Err(error) => return Err(format!("{named}: {error}")),
    };
    // The address is a credential: it is in no message.
    let to = web::address(&address)
        .map_err(|_| format!("{named} has no http:// or https:// URL under the key {ADDRESS}"))?;
    let post = Post::json(&to, &payload(alert.kind, message));
    match caller.post("alert", &post, LIMIT, AGAIN).await {
        Ok(answer) if answer.status.is_success() => Ok(()),
        Ok(answer) => Err(format!("the address in {named} said {}", answer.shown())),
        Err(failure) => Err(format!("the address in {named}: {failure}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_is_an_error_what_waits_a_warning_and_steps_are_nobodys() {
        for (kind, ended, want) in [
            (EventKind::NewRevision, None, Some(Severity::Info)),
            (
                EventKind::Promoted,
                Some(Ended::FastPromoted),
                Some(Severity::Info),
            ),
            (EventKind::Waiting, None, Some(Severity::Warn)),
            (EventKind::InsufficientTraffic, None, Some(Severity::Warn)),
            (
                EventKind::Quarantined,
                Some(Ended::RolledBack),
                Some(Severity::Warn),
            ),
            (
                EventKind::RollingBack,
                Some(Ended::RolledBack),
                Some(Severity::Error),
            ),
            (
                EventKind::RollingBack,
                Some(Ended::Expired),
                Some(Severity::Error),
            ),
            (EventKind::RollingBack, Some(Ended::Aborted), Some(Severity::Warn)),
            (
                EventKind::RollingBack,
                Some(Ended::Superseded),
                Some(Severity::Info),
            ),
            (EventKind::RolledBack, Some(Ended::RolledBack), None),
            (EventKind::WeightAdvanced, None, None),
            (EventKind::CheckFailed, None, None),
            (EventKind::Paused, None, None),
        ] {
            assert_eq!(severity(kind, ended), want, "{kind:?} {ended:?}");
        }
    }

    #[test]
    fn a_severity_is_a_floor() {
        use Severity::{Error, Info, Warn};
        for (least, heard) in [
            (Info, [true, true, true]),
            (Warn, [false, true, true]),
            (Error, [false, false, true]),
        ] {
            assert_eq!(
                [Info, Warn, Error].map(|severity| wanted(least, severity)),
                heard,
                "{least:?}"
            );
        }
    }
}
