//! Webhooks with Flagger's payload and rules.
//!
//! `POST {name, namespace, phase, checksum, metadata}`; status 200, 201 and 202 agree, anything else does not. Only what may be
//! otherwise soon is tried again: no answer, 429 and 5xx.

use std::collections::BTreeMap;
use std::time::Duration;

use crds::rollout::WebhookKind;
use http::Uri;
use serde_json::{Value, json};

use super::outside::Caller;
use super::web::Post;

/// Wait before the first try again; it doubles up to [`LONGEST_WAIT`].
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// Longest wait before another try.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// A webhook of a spec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hook {
    pub(super) kind: WebhookKind,
    /// As users named it, or its type.
    pub(super) name: String,
    pub(super) to: Uri,
    /// How long each try may take.
    pub(super) timeout: Duration,
    /// How often it is tried again.
    pub(super) retries: u32,
    pub(super) metadata: BTreeMap<String, String>,
}

/// What every payload of a Rollout says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct About {
    pub(super) namespace: String,
    /// The Rollout.
    pub(super) name: String,
    /// In Flagger's words.
    pub(super) phase: &'static str,
    /// The hash in the candidate's name: what it is, whatever it is called.
    pub(super) checksum: String,
}

/// A type as users write it.
pub(super) fn label(kind: WebhookKind) -> &'static str {
    match kind {
        WebhookKind::ConfirmRollout => "confirm-rollout",
        WebhookKind::PreRollout => "pre-rollout",
        WebhookKind::Rollout => "rollout",
        WebhookKind::ConfirmTrafficIncrease => "confirm-traffic-increase",
        WebhookKind::ConfirmPromotion => "confirm-promotion",
        WebhookKind::PostRollout => "post-rollout",
        WebhookKind::Rollback => "rollback",
        WebhookKind::Event => "event",
    }
}

impl Hook {
    /// Its payload, with `more` in the metadata.
    fn payload(&self, about: &About, more: &BTreeMap<&str, String>) -> Value {
        let mut metadata: BTreeMap<&str, &str> = BTreeMap::new();
        metadata.extend(
            self.metadata
                .iter()
                .map(|(key, value)| (key.as_str(), value.as_str())),
        );
        metadata.extend(more.iter().map(|(key, value)| (*key, value.as_str())));
        json!({
            "name": about.name,
            "namespace": about.namespace,
            "phase": about.phase,
            "checksum": about.checksum,
            "metadata": metadata,
        })
    }

    /// Calls it, as often as it takes and may. Ends after at most `(retries + 1) × (timeout + 30 s)` of trying.
    ///
    /// # Errors
    /// A sentence with its name: it does not agree, or does not answer.
    ///
    /// # Cancel safety
    /// Dropping it makes no further try; the last one may have arrived.
    pub(super) async fn call(
        &self,
        caller: &Caller,
        about: &About,
        more: &BTreeMap<&str, String>,
    ) -> Result<(), String> {
        let post = Post::json(&self.to, &self.payload(about, more));
        let waits = std::iter::successors(Some(FIRST_WAIT), |wait| Some((*wait * 2).min(LONGEST_WAIT)));
        let waits = waits.take(self.retries as usize);
        match caller.post(label(self.kind), &post, self.timeout, waits).await {
            Ok(answer) if matches!(answer.status.as_u16(), 200..=202) => Ok(()),
            Ok(answer) => Err(format!("{} said {}", self.name, answer.shown())),
            Err(failure) => Err(format!("{}: {failure}", self.name)),
        }
    }
}
