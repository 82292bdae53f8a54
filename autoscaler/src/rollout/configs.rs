//! Reads the configuration that a template refers to, now and then, and keeps copies of it for revisions.
//!
//! Just the objects that are referred to are read, one `get` each, of rolled-out Deployments alone: no watch of all
//! ConfigMaps or Secrets, and no permission to list them. Reading goes on beside the looks, which never wait for it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crds::Revision;
use crds::condition::{CONFIG_TRACKED, reason};
use crds::names::{AUTOSCALER_MANAGER, CONFIG_POLICY_ANNOTATION, SYSTEM_NAMESPACE};
use crds::revision::ConfigDigest;
use crds::rollout::ConfigPolicy;
use futures::{FutureExt, StreamExt};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::config::{self, Kind, MOST, Policies, Reference};
use super::look::Unit;
use super::see::Seen;
use super::{Rollouts, Said};
use crate::cluster::{Cluster, Error};
use crate::path::Activators;

/// How often all of a template's objects are read: a change alone becomes a revision after this, and `settle`, at most.
const EVERY: Duration = Duration::from_secs(10);
/// So long after a template has changed: what is applied with it has arrived then.
const SOON: Duration = Duration::from_secs(1);
/// How often an object is tried that may not be read.
const FORBIDDEN_FOR: Duration = Duration::from_secs(60);
/// Reads of one Rollout at the same time.
const AT_ONCE: usize = 8;

/// What is known of a template's configuration.
#[derive(Default)]
pub(super) struct Configs {
    /// What the template refers to, and whether it does without; at most [`MOST`].
    wanted: BTreeMap<Reference, bool>,
    /// How many more there are.
    beyond: usize,
    found: BTreeMap<Reference, Found>,
    reading: Option<Reading>,
    due: Option<Instant>,
    /// When the last reading began that has read everything.
    read_at: Option<Instant>,
    /// Revisions whose copies are there.
    copied: BTreeSet<String>,
    /// Why copies cannot be made.
    uncopied: Option<String>,
}

struct Reading {
    began: Instant,
    task: AbortOnDropHandle<Vec<(Reference, Option<Found>)>>,
}

#[derive(Clone, Debug, PartialEq)]
enum Found {
    Holds {
        digest: String,
        /// What its annotation asks for, or the value that is no policy.
        own: Result<Option<ConfigPolicy>, String>,
    },
    Missing,
    Forbidden {
        until: Instant,
    },
}

impl Configs {
    /// The template now refers to these.
    pub(super) fn refer(&mut self, references: BTreeMap<Reference, bool>, now: Instant) {
        self.beyond = references.len().saturating_sub(MOST);
        let wanted: BTreeMap<Reference, bool> = references.into_iter().take(MOST).collect();
        if self.wanted != wanted {
            // What is under way is not about all of it.
            self.reading = None;
            self.found.retain(|reference, _| wanted.contains_key(reference));
        }
        let known = wanted.keys().all(|reference| self.found.contains_key(reference));
        let due = if known { now + SOON } else { now };
        self.due = self.due.map(|earlier| earlier.min(due));
        self.wanted = wanted;
    }

    /// Takes in what has been read, and reads when it is time to.
    pub(super) fn look(&mut self, cluster: &Arc<Cluster>, namespace: &str, policies: Policies, now: Instant) {
        if let Some(reading) = self.reading.take_if(|reading| reading.task.is_finished()) {
            let read = reading
                .task
                .now_or_never()
                .and_then(Result::ok)
                .unwrap_or_default();
            self.take_in(reading.began, read);
        }
        if self.reading.is_some() || self.due.is_some_and(|due| now < due) {
            return;
        }
        self.due = Some(now + EVERY);
        let wanted: Vec<Reference> = self
            .tracked(policies)
            .filter(|(reference, _)| {
                !matches!(self.found.get(*reference), Some(Found::Forbidden { until }) if now < *until)
            })
            .map(|(reference, _)| reference.clone())
            .collect();
        if wanted.is_empty() {
            self.read_at = Some(now);
            return;
        }
        let task = read_all(Arc::clone(cluster), namespace.to_owned(), wanted);
        self.reading = Some(Reading {
            began: now,
            task: AbortOnDropHandle::new(tokio::spawn(task)),
        });
    }

    /// What could not be read is as it was.
    fn take_in(&mut self, began: Instant, read: Vec<(Reference, Option<Found>)>) {
        let complete = !read.is_empty() && read.iter().all(|(_, found)| found.is_some());
        for (reference, found) in read {
            if let Some(found) = found.filter(|_| self.wanted.contains_key(&reference)) {
                self.found.insert(reference, found);
            }
        }
        if complete {
            self.read_at = Some(began);
        }
    }

    /// Whether everything was read after `moment`; if not, it is read at the next look.
    pub(super) fn is_read_after(&mut self, moment: Instant, policies: Policies, now: Instant) -> bool {
        if self.tracked(policies).next().is_none() || self.read_at.is_some_and(|at| at >= moment) {
            return true;
        }
        self.due = self.due.map(|due| due.min(now));
        false
    }

    fn tracked(&self, policies: Policies) -> impl Iterator<Item = (&Reference, &bool)> {
        let tracks = move |kind: Kind| policies.of(kind) != ConfigPolicy::Ignore;
        self.wanted.iter().filter(move |((kind, _), _)| tracks(*kind))
    }

    /// What belongs to the revision; `None`: that is not known yet, or pods could not start with it.
    pub(super) fn entries(&self, policies: Policies) -> Option<Vec<ConfigDigest>> {
        let mut entries = Vec::new();
        for (reference, optional) in self.tracked(policies) {
            match self.found.get(reference)? {
                Found::Holds { digest, own } => {
                    let own = own.as_ref().ok().copied().flatten();
                    let policy = own.unwrap_or(policies.of(reference.0));
                    entries.extend(config::entry(reference, policy, digest));
                }
                Found::Missing if !optional => return None,
                Found::Missing | Found::Forbidden { .. } => {}
            }
        }
        Some(entries)
    }

    /// What there is to say of it; `None`: there is no configuration.
    pub(super) fn said(&self, policies: Policies, namespace: &str) -> Option<Said> {
        self.tracked(policies).next()?;
        let mut troubles = Vec::new();
        let mut why = None;
        let mut trouble = |reason: &'static str, message: String| {
            why.get_or_insert(reason);
            troubles.push(message);
        };
        if let Some(uncopied) = &self.uncopied {
            trouble(reason::CONFIG_NOT_COPIED, uncopied.clone());
        }
        let missing: Vec<String> = self
            .tracked(policies)
            .filter(|(reference, optional)| {
                !**optional && self.found.get(*reference) == Some(&Found::Missing)
            })
            .map(|((kind, name), _)| format!("{} {name}", kind.name()))
            .collect();
        if !missing.is_empty() {
            let missing = missing.join(", ");
            let text = format!(
                "{missing}: not there, and pods cannot start without; no new revision begins before."
            );
            trouble(reason::CONFIG_MISSING, text);
        }
        let kinds = [Kind::ConfigMap, Kind::Secret];
        for kind in kinds
            .into_iter()
            .filter(|kind| policies.of(*kind) != ConfigPolicy::Ignore)
        {
            let forbidden: Vec<&str> = self
                .found
                .iter()
                .filter(|((of, _), found)| *of == kind && matches!(found, Found::Forbidden { .. }))
                .map(|((_, name), _)| name.as_str())
                .collect();
            if !forbidden.is_empty() {
                trouble(
                    reason::CONFIG_FORBIDDEN,
                    forbidden_text(kind, namespace, &forbidden),
                );
            }
        }
        for ((kind, name), found) in &self.found {
            if let Found::Holds { own: Err(word), .. } = found {
                let kind = kind.name();
                let text = format!(
                    "{kind} {name} has {CONFIG_POLICY_ANNOTATION}: {word}, which is none of Ignore, Digest, Snapshot; the Rollout's own policy holds."
                );
                trouble(reason::INVALID_VALUE, text);
            }
        }
        if self.beyond > 0 {
            let text = format!(
                "The template refers to {} more objects than the {MOST} that are tracked.",
                self.beyond
            );
            trouble(reason::CONFIG_TOO_MUCH, text);
        }
        Some(Said {
            kind: CONFIG_TRACKED,
            holds: why.is_none(),
            reason: why.unwrap_or(reason::OK),
            message: troubles.join(" "),
        })
    }
}

/// Which permission is missing, and how to give it.
fn forbidden_text(kind: Kind, namespace: &str, names: &[&str]) -> String {
    let plural = kind.plural();
    let flags: Vec<String> = names
        .iter()
        .map(|name| format!("--resource-name={name}"))
        .collect();
    format!(
        "{} {} may not be read, so a change of it makes no new revision. Either set spec.config.{} to Ignore, or grant it: \
         kubectl -n {namespace} create role dormouse-config-{plural} --verb=get --resource={plural} {}; \
         kubectl -n {namespace} create rolebinding dormouse-config-{plural} --role=dormouse-config-{plural} \
         --serviceaccount={SYSTEM_NAMESPACE}:{AUTOSCALER_MANAGER}.",
        kind.name(),
        names.join(", "),
        match kind {
            Kind::ConfigMap => "configMaps",
            Kind::Secret => "secrets",
        },
        flags.join(" "),
    )
}

async fn read_all(
    cluster: Arc<Cluster>,
    namespace: String,
    wanted: Vec<Reference>,
) -> Vec<(Reference, Option<Found>)> {
    let (cluster, namespace) = (&cluster, namespace.as_str());
    let reads = wanted.into_iter().map(|reference| async move {
        let (kind, name) = &reference;
        let found = match cluster.read_config(kind.plural(), namespace, name).await {
            Ok(Some(object)) => Some(Found::Holds {
                digest: config::digest(&object),
                own: config::own_policy(&object),
            }),
            Ok(None) => Some(Found::Missing),
            Err(error) if error.is_forbidden() => Some(Found::Forbidden {
                until: Instant::now() + FORBIDDEN_FOR,
            }),
            Err(error) => {
                tracing::debug!(kind = kind.name(), namespace, name, %error, "is as it was");
                None
            }
        };
        (reference, found)
    });
    futures::stream::iter(reads)
        .buffer_unordered(AT_ONCE)
        .collect()
        .await
}

impl<A: Activators> Rollouts<A> {
    /// Makes the copies that a Revision names, unless they are there. Returns whether all are.
    pub(super) async fn copy_configs(
        &self,
        unit: &mut Unit,
        seen: &Seen,
        revision: &Revision,
    ) -> Result<bool, Error> {
        let name = revision.metadata.name.clone().unwrap_or_default();
        unit.configs.uncopied = None;
        if unit.configs.copied.contains(&name) {
            return Ok(true);
        }
        for config in revision
            .spec
            .configs
            .iter()
            .filter(|config| !config.snapshot.is_empty())
        {
            if !self.copy_config(unit, seen, revision, config).await? {
                return Ok(false);
            }
        }
        unit.configs
            .copied
            .retain(|known| seen.revisions.contains_key(known));
        unit.configs.copied.insert(name);
        Ok(true)
    }

    async fn copy_config(
        &self,
        unit: &mut Unit,
        seen: &Seen,
        revision: &Revision,
        config: &ConfigDigest,
    ) -> Result<bool, Error> {
        let (namespace, kind) = (&seen.service.namespace, config::kind(config));
        let Some(plural) = kind.map(Kind::plural) else {
            return Ok(true);
        };
        let copy = &config.snapshot;
        let shown = format!("{} {copy}", config.kind);
        match self.cluster.read_config(plural, namespace, copy).await? {
            Some(there) if !config::is_copy(&there, config) => {
                let why = format!(
                    "{shown} is in the way of a copy of {}: delete it, or rename it.",
                    config.name
                );
                unit.configs.uncopied = Some(why);
                return Ok(false);
            }
            Some(there) if config::is_owned(&there, revision) => return Ok(true),
            Some(there) => {
                let owner = config::owner(revision);
                return self
                    .cluster
                    .share_config(plural, namespace, &there, &owner)
                    .await
                    .map(|()| true);
            }
            None => {}
        }
        let original = self.cluster.read_config(plural, namespace, &config.name).await?;
        let Some(original) = original.filter(|original| config::digest(original) == config.digest) else {
            // It has changed meanwhile: the next reading finds that.
            unit.configs.due = None;
            return Ok(false);
        };
        let body = config::copy(&seen.rollout, revision, config, &original);
        match self.cluster.create_config(plural, namespace, &body).await {
            Err(error) if error.is_forbidden() => {
                let why = format!(
                    "{shown} may not be created ({error}), so no new revision begins: let Dormouse create {plural}, or set the policy to Digest."
                );
                unit.configs.uncopied = Some(why);
                Ok(false)
            }
            created => created.map(|()| true),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: Policies = Policies {
        config_maps: ConfigPolicy::Snapshot,
        secrets: ConfigPolicy::Digest,
    };

    fn holds(digest: &str) -> Option<Found> {
        Some(Found::Holds {
            digest: digest.to_owned(),
            own: Ok(None),
        })
    }

    fn reference(kind: Kind, name: &str) -> Reference {
        (kind, name.to_owned())
    }

    #[tokio::test(start_paused = true)]
    async fn what_belongs_to_a_revision_is_known_when_everything_has_been_read() {
        let now = Instant::now();
        let until = now + FORBIDDEN_FOR;
        let (cfg, keys) = (reference(Kind::ConfigMap, "cfg"), reference(Kind::Secret, "keys"));
        let maybe = reference(Kind::ConfigMap, "maybe");
        let mut configs = Configs::default();
        configs.refer(
            [(cfg.clone(), false), (keys.clone(), false), (maybe.clone(), true)].into(),
            now,
        );
        assert_eq!(configs.entries(BOTH), None, "nothing is read");
        configs.take_in(
            now,
            vec![(cfg.clone(), holds("1234567890")), (keys.clone(), None)],
        );
        assert_eq!(configs.entries(BOTH), None, "not everything is");
        assert!(!configs.is_read_after(now, BOTH, now));
        let read = [
            (keys.clone(), Some(Found::Forbidden { until })),
            (maybe.clone(), Some(Found::Missing)),
        ];
        configs.take_in(now, read.into());
        assert!(configs.is_read_after(now, BOTH, now));
        let entries = configs.entries(BOTH).expect("known");
        assert_eq!(
            entries.len(),
            1,
            "what may not be read is left out, and so is what is not there"
        );
        assert_eq!(entries[0].snapshot, "cfg-12345678");
        let said = configs.said(BOTH, "shop").expect("there is configuration");
        assert_eq!((said.holds, said.reason), (false, reason::CONFIG_FORBIDDEN));
        for part in [
            "Secret keys",
            "--resource-name=keys",
            "-n shop",
            "dormouse-system:dormouse-autoscaler",
        ] {
            assert!(said.message.contains(part), "{part}: {}", said.message);
        }
        // A read that fails changes nothing, and one that finds nothing holds the next revision up.
        configs.take_in(now, vec![(cfg.clone(), None)]);
        assert_eq!(configs.entries(BOTH).as_deref(), Some(&entries[..]));
        configs.take_in(now, vec![(cfg, Some(Found::Missing))]);
        assert_eq!(configs.entries(BOTH), None);
        let said = configs.said(BOTH, "shop").expect("there is configuration");
        assert_eq!((said.holds, said.reason), (false, reason::CONFIG_MISSING));
        let none = Policies {
            config_maps: ConfigPolicy::Ignore,
            secrets: ConfigPolicy::Ignore,
        };
        assert_eq!(configs.entries(none), Some(Vec::new()));
        assert!(configs.said(none, "shop").is_none() && configs.is_read_after(until, none, now));
    }

    #[tokio::test(start_paused = true)]
    async fn an_object_that_opts_out_is_no_part_of_it() {
        let now = Instant::now();
        let hot = reference(Kind::ConfigMap, "hot");
        for (own, left, fine) in [
            (Ok(Some(ConfigPolicy::Ignore)), 0, true),
            (Ok(None), 1, true),
            (Err("no".to_owned()), 1, false),
        ] {
            let mut configs = Configs::default();
            configs.refer([(hot.clone(), false)].into(), now);
            let digest = "1234567890".to_owned();
            configs.take_in(now, vec![(hot.clone(), Some(Found::Holds { digest, own }))]);
            assert_eq!(configs.entries(BOTH).map(|entries| entries.len()), Some(left));
            assert_eq!(configs.said(BOTH, "shop").map(|said| said.holds), Some(fine));
        }
    }
}
