//! The configuration of a revision: which ConfigMaps and Secrets a template refers to, what they hold, and the same template
//! with copies in their place. Pure.

use std::collections::BTreeMap;

use crds::names::{CONFIG_POLICY_ANNOTATION, ROLLOUT_LABEL, SNAPSHOT_ANNOTATION};
use crds::revision::ConfigDigest;
use crds::rollout::ConfigPolicy;
use crds::{Revision, Rollout};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::revision::{canonical, hex};

/// Most objects that one template's configuration is read from: as many as a Revision has room for. More are not tracked.
pub(super) const MOST: usize = 128;
/// Hex digits of the digest that stand in a copy's name.
const DIGITS: usize = 8;
/// Longest name of a ConfigMap or Secret.
const LONGEST: usize = 253;

/// What holds configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    ConfigMap,
    Secret,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::ConfigMap => "ConfigMap",
            Self::Secret => "Secret",
        }
    }

    /// As paths and roles name it.
    pub(crate) fn plural(self) -> &'static str {
        match self {
            Self::ConfigMap => "configmaps",
            Self::Secret => "secrets",
        }
    }

    fn of(name: &str) -> Option<Self> {
        [Self::ConfigMap, Self::Secret]
            .into_iter()
            .find(|kind| kind.name() == name)
    }
}

/// A ConfigMap or Secret by name, in the template's namespace.
pub(super) type Reference = (Kind, String);

/// What a Rollout asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Policies {
    pub(super) config_maps: ConfigPolicy,
    pub(super) secrets: ConfigPolicy,
}

impl Policies {
    pub(super) fn of(self, kind: Kind) -> ConfigPolicy {
        match kind {
            Kind::ConfigMap => self.config_maps,
            Kind::Secret => self.secrets,
        }
    }
}

/// What a template refers to, and whether its pods start without it. Not what pulls its images: that is no configuration.
pub(super) fn references(template: &Value) -> BTreeMap<Reference, bool> {
    let mut found = BTreeMap::new();
    let mut template = template.clone();
    visit(&mut template, &mut |kind, name, optional| {
        if let Some(name) = name.as_str().filter(|name| !name.is_empty()) {
            let all = found.entry((kind, name.to_owned())).or_insert(true);
            *all &= optional;
        }
    });
    found
}

/// Puts copies in the place of what a template refers to.
pub(super) fn substitute(template: &mut Value, configs: &[ConfigDigest]) {
    let copies: BTreeMap<Reference, &str> = configs
        .iter()
        .filter(|config| !config.snapshot.is_empty())
        .filter_map(|config| {
            Some((
                (Kind::of(&config.kind)?, config.name.clone()),
                config.snapshot.as_str(),
            ))
        })
        .collect();
    if copies.is_empty() {
        return;
    }
    visit(template, &mut |kind, name, _| {
        let reference = name.as_str().map(|name| (kind, name.to_owned()));
        if let Some(copy) = reference.and_then(|reference| copies.get(&reference)) {
            *name = json!(copy);
        }
    });
}

/// Every place of a template in which a ConfigMap or Secret is named: its kind, the name, and whether it is optional there.
fn visit(template: &mut Value, see: &mut dyn FnMut(Kind, &mut Value, bool)) {
    let Some(spec) = template.get_mut("spec") else {
        return;
    };
    for volume in list(spec, "volumes") {
        one(volume.get_mut("configMap"), Kind::ConfigMap, "name", see);
        one(volume.get_mut("secret"), Kind::Secret, "secretName", see);
        for source in volume
            .get_mut("projected")
            .into_iter()
            .flat_map(|it| list(it, "sources"))
        {
            one(source.get_mut("configMap"), Kind::ConfigMap, "name", see);
            one(source.get_mut("secret"), Kind::Secret, "name", see);
        }
    }
    for containers in ["containers", "initContainers", "ephemeralContainers"] {
        for container in list(spec, containers) {
            for source in list(container, "envFrom") {
                one(source.get_mut("configMapRef"), Kind::ConfigMap, "name", see);
                one(source.get_mut("secretRef"), Kind::Secret, "name", see);
            }
            for variable in list(container, "env") {
                let Some(from) = variable.get_mut("valueFrom") else {
                    continue;
                };
                one(from.get_mut("configMapKeyRef"), Kind::ConfigMap, "name", see);
                one(from.get_mut("secretKeyRef"), Kind::Secret, "name", see);
            }
        }
    }
}

fn list<'a>(value: &'a mut Value, field: &str) -> impl Iterator<Item = &'a mut Value> {
    value
        .get_mut(field)
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
}

fn one(source: Option<&mut Value>, kind: Kind, field: &str, see: &mut dyn FnMut(Kind, &mut Value, bool)) {
    let Some(source) = source.filter(|source| source.is_object()) else {
        return;
    };
    let optional = source["optional"].as_bool().unwrap_or(false);
    if let Some(name) = source.get_mut(field) {
        see(kind, name, optional);
    }
}

/// SHA-256 of what a ConfigMap or Secret holds, in hex. What is empty and what is not there are the same.
pub(super) fn digest(object: &Value) -> String {
    let part = |field: &str| {
        let part = object
            .get(field)
            .filter(|part| part.as_object().is_some_and(|all| !all.is_empty()));
        part.cloned().unwrap_or(Value::Null)
    };
    let held = json!({ "binaryData": part("binaryData"), "data": part("data") });
    hex(&Sha256::digest(canonical(&held).to_string()))
}

/// What an object's annotation asks to be done with it.
///
/// # Errors
/// The annotation's value, when it is no policy.
pub(super) fn own_policy(object: &Value) -> Result<Option<ConfigPolicy>, String> {
    let annotations = object.pointer("/metadata/annotations");
    let Some(word) = annotations.and_then(|all| all.get(CONFIG_POLICY_ANNOTATION)?.as_str()) else {
        return Ok(None);
    };
    match word.to_ascii_lowercase().as_str() {
        "snapshot" => Ok(Some(ConfigPolicy::Snapshot)),
        "digest" => Ok(Some(ConfigPolicy::Digest)),
        "ignore" => Ok(Some(ConfigPolicy::Ignore)),
        _ => Err(word.to_owned()),
    }
}

/// What a Revision says of an object; `None`: nothing.
pub(super) fn entry(reference: &Reference, policy: ConfigPolicy, digest: &str) -> Option<ConfigDigest> {
    let (kind, name) = reference;
    let snapshot = match policy {
        ConfigPolicy::Ignore => return None,
        ConfigPolicy::Digest => String::new(),
        ConfigPolicy::Snapshot => copy_name(name, digest),
    };
    Some(ConfigDigest {
        kind: kind.name().to_owned(),
        name: name.clone(),
        digest: digest.to_owned(),
        snapshot,
    })
}

fn copy_name(name: &str, digest: &str) -> String {
    let kept = name.get(..LONGEST - DIGITS - 1).unwrap_or(name);
    format!(
        "{}-{}",
        kept.trim_end_matches(['-', '.']),
        digest.get(..DIGITS).unwrap_or(digest)
    )
}

/// The kind of a Revision's entry.
pub(super) fn kind(config: &ConfigDigest) -> Option<Kind> {
    Kind::of(&config.kind)
}

/// An immutable copy of an object for a Revision, which owns it.
pub(super) fn copy(rollout: &Rollout, revision: &Revision, config: &ConfigDigest, object: &Value) -> Value {
    let mut copy = json!({
        "apiVersion": "v1",
        "kind": config.kind,
        "metadata": {
            "name": config.snapshot,
            "namespace": revision.metadata.namespace,
            "labels": { ROLLOUT_LABEL: rollout.metadata.name },
            "annotations": { SNAPSHOT_ANNOTATION: config.name },
            "ownerReferences": [owner(revision)],
        },
        "immutable": true,
    });
    for field in ["data", "binaryData", "type"] {
        if let Some(value) = object.get(field).filter(|value| !value.is_null()) {
            copy[field] = value.clone();
        }
    }
    copy
}

/// What a copy's owners say of a Revision.
pub(super) fn owner(revision: &Revision) -> Value {
    json!({
        "apiVersion": format!("{}/{}", crds::names::GROUP, crds::names::VERSION),
        "kind": "Revision",
        "name": revision.metadata.name,
        "uid": revision.metadata.uid,
        "controller": false,
        "blockOwnerDeletion": false,
    })
}

/// Whether an object that has a copy's name is that copy.
pub(super) fn is_copy(object: &Value, config: &ConfigDigest) -> bool {
    let annotations = object.pointer("/metadata/annotations");
    let of = annotations.and_then(|all| all.get(SNAPSHOT_ANNOTATION)?.as_str());
    of == Some(&config.name) && object["immutable"] == json!(true) && digest(object) == config.digest
}

/// Whether a Revision is among an object's owners.
pub(super) fn is_owned(object: &Value, revision: &Revision) -> bool {
    let owners = object
        .pointer("/metadata/ownerReferences")
        .and_then(Value::as_array);
    let uid = revision.metadata.uid.as_deref();
    owners
        .into_iter()
        .flatten()
        .any(|owner| owner["uid"].as_str() == uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template() -> Value {
        json!({
            "metadata": { "labels": { "app": "web" } },
            "spec": {
                "imagePullSecrets": [{ "name": "registry" }],
                "volumes": [
                    { "name": "a", "configMap": { "name": "files", "optional": true } },
                    { "name": "b", "secret": { "secretName": "keys" } },
                    { "name": "c", "projected": { "sources": [
                        { "configMap": { "name": "projected" } },
                        { "secret": { "name": "projected", "optional": true } },
                        { "serviceAccountToken": { "path": "x" } },
                    ] } },
                    { "name": "d", "emptyDir": {} },
                ],
                "initContainers": [{ "name": "i", "envFrom": [{ "secretRef": { "name": "init" } }] }],
                "ephemeralContainers": [{ "name": "e", "env": [
                    { "name": "X", "valueFrom": { "secretKeyRef": { "name": "debug", "key": "x" } } },
                ] }],
                "containers": [{
                    "name": "main",
                    "envFrom": [{ "configMapRef": { "name": "env" } }],
                    "env": [
                        { "name": "A", "value": "plain" },
                        { "name": "B", "valueFrom": { "configMapKeyRef": { "name": "files", "key": "b" } } },
                        { "name": "C", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } },
                    ],
                }],
            },
        })
    }

    #[test]
    fn all_places_that_name_configuration_are_found() {
        use Kind::{ConfigMap, Secret};
        let wanted = [
            (ConfigMap, "env", false),
            // Optional in one place, needed in another.
            (ConfigMap, "files", false),
            (ConfigMap, "projected", false),
            (Secret, "debug", false),
            (Secret, "init", false),
            (Secret, "keys", false),
            (Secret, "projected", true),
        ];
        let wanted = wanted.map(|(kind, name, optional)| ((kind, name.to_owned()), optional));
        assert_eq!(references(&template()), wanted.into());
        assert!(references(&json!({ "spec": { "containers": "none" } })).is_empty());
    }

    #[test]
    fn copies_take_the_place_of_what_was_copied_everywhere_and_of_nothing_else() {
        let reference = |kind, name: &str| (kind, name.to_owned());
        let configs = [
            (reference(Kind::ConfigMap, "files"), ConfigPolicy::Snapshot),
            (reference(Kind::ConfigMap, "projected"), ConfigPolicy::Snapshot),
            (reference(Kind::Secret, "keys"), ConfigPolicy::Digest),
        ];
        let entries: Vec<ConfigDigest> = configs
            .iter()
            .filter_map(|(reference, policy)| entry(reference, *policy, "0123456789abcdef"))
            .collect();
        let mut changed = template();
        substitute(&mut changed, &entries);
        let spec = &changed["spec"];
        assert_eq!(spec["volumes"][0]["configMap"]["name"], "files-01234567");
        assert_eq!(spec["volumes"][1]["secret"]["secretName"], "keys");
        let sources = &spec["volumes"][2]["projected"]["sources"];
        assert_eq!(sources[0]["configMap"]["name"], "projected-01234567");
        assert_eq!(sources[1]["secret"]["name"], "projected", "a Secret of that name");
        let main = &spec["containers"][0];
        assert_eq!(
            main["env"][1]["valueFrom"]["configMapKeyRef"]["name"],
            "files-01234567"
        );
        assert_eq!(main["envFrom"][0]["configMapRef"]["name"], "env");
    }

    #[test]
    fn a_digest_is_of_what_is_held_alone() {
        let base = json!({ "metadata": { "name": "a" }, "data": { "a": "1", "b": "2" } });
        let same = json!({ "data": { "b": "2", "a": "1" }, "binaryData": {}, "immutable": true });
        assert_eq!(digest(&base), digest(&same));
        assert_eq!(digest(&base).len(), 64);
        for other in [
            json!({ "data": { "a": "1" } }),
            json!({ "data": { "a": "1", "b": "3" } }),
            json!({ "binaryData": { "a": "1", "b": "2" } }),
            json!({}),
        ] {
            assert_ne!(digest(&base), digest(&other), "{other}");
        }
        assert_eq!(digest(&json!({})), digest(&json!({ "data": null })));
    }

    #[test]
    fn an_object_may_say_for_itself_what_is_done_with_it() {
        for (word, want) in [
            (None, Ok(None)),
            (Some("Ignore"), Ok(Some(ConfigPolicy::Ignore))),
            (Some("digest"), Ok(Some(ConfigPolicy::Digest))),
            (Some("snapshot"), Ok(Some(ConfigPolicy::Snapshot))),
            (Some("no"), Err("no".to_owned())),
        ] {
            let object = json!({ "metadata": { "annotations": { CONFIG_POLICY_ANNOTATION: word } } });
            assert_eq!(own_policy(&object), want, "{word:?}");
        }
    }

    #[test]
    fn copies_have_names_that_fit() {
        let name = copy_name(&format!("{}.-x", "a".repeat(242)), "0123456789");
        assert_eq!(name, format!("{}-01234567", "a".repeat(242)));
        assert_eq!(copy_name("cfg", "ab12cd34ef"), "cfg-ab12cd34");
    }

    #[test]
    fn a_copy_is_known_by_what_it_holds_and_not_by_its_name() {
        let revision = Revision::new("web-1", crds::RevisionSpec::default());
        let object = json!({ "data": { "a": "1" }, "type": "Opaque" });
        let reference = (Kind::Secret, "keys".to_owned());
        let config = entry(&reference, ConfigPolicy::Snapshot, &digest(&object)).expect("tracked");
        let made = copy(&Rollout::default(), &revision, &config, &object);
        assert!(is_copy(&made, &config) && is_owned(&made, &revision));
        for (path, value) in [
            ("/data/a", json!("2")),
            ("/immutable", json!(false)),
            ("/metadata/annotations", json!({})),
        ] {
            let mut other = made.clone();
            *other.pointer_mut(path).expect("it is there") = value;
            assert!(!is_copy(&other, &config), "{path}");
        }
    }
}
