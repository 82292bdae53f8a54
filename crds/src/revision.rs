//! The `Revision`: one state of a workload's template and of the configuration it was made with. It never changes.
//!
//! Its name is `WORKLOAD-HASH`, the first ten digits of a SHA-256 of what it holds, so the same state is always the same
//! object. It is also the name of its pool, the Deployment that runs it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a revision runs.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "dormouse.dev",
    version = "v1alpha1",
    kind = "Revision",
    namespaced,
    status = "RevisionStatus",
    category = "dormouse",
    shortname = "rev",
    derive = "PartialEq",
    derive = "Default",
    printcolumn = r#"{"name":"Sequence","type":"integer","jsonPath":".spec.sequence"}"#,
    printcolumn = r#"{"name":"Pods","type":"integer","jsonPath":".status.readyReplicas"}"#,
    printcolumn = r#"{"name":"Weight","type":"string","jsonPath":".status.weight"}"#,
    printcolumn = r#"{"name":"Last-Active","type":"date","jsonPath":".status.lastActive"}"#,
    printcolumn = r#"{"name":"Changed-By","type":"string","jsonPath":".spec.source.manager","priority":1}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#,
    doc = "One state of a workload's template and its configuration. Made and owned by Dormouse; immutable.",
    validation = Rule::new("self.spec == oldSelf.spec").message("the spec of a Revision never changes")
)]
#[serde(rename_all = "camelCase")]
pub struct RevisionSpec {
    /// Counts the revisions of one Rollout from 1, for people.
    #[schemars(range(min = 1))]
    pub sequence: i64,
    /// The pod template as canonical JSON: what the name is a hash of. A string, because the API server cannot compare
    /// what it has no schema for, and would let it be changed.
    #[schemars(length(max = 262_144))]
    pub template: String,
    /// The configuration it was made with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128))]
    pub configs: Vec<ConfigDigest>,
    /// Where it came from.
    #[serde(default)]
    pub source: RevisionSource,
    /// Bounds of its pool, as they were.
    #[serde(default)]
    pub scale: RevisionScale,
}

/// A ConfigMap or Secret that a template refers to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConfigDigest {
    /// `ConfigMap` or `Secret`.
    #[schemars(length(max = 16))]
    pub kind: String,
    /// Its name.
    #[schemars(length(max = 253))]
    pub name: String,
    /// Hex digits of a SHA-256 of its data and binaryData.
    #[schemars(length(max = 64))]
    pub digest: String,
    /// The immutable copy that the pool uses in its place; empty: none was made.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 253))]
    pub snapshot: String,
}

/// Where a revision came from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RevisionSource {
    /// Generation of the workload.
    #[serde(default)]
    pub generation: i64,
    /// The field manager that last wrote the template.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 256))]
    pub manager: String,
}

/// Bounds of a pool, in pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RevisionScale {
    /// Least pods.
    #[serde(default)]
    pub min: u32,
    /// Most pods; 0: no limit.
    #[serde(default)]
    pub max: u32,
}

/// How a revision's pool stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RevisionStatus {
    /// Name of its pool.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub pool: String,
    /// Pods wanted.
    #[serde(default)]
    pub replicas: u32,
    /// Pods ready.
    #[serde(default)]
    pub ready_replicas: u32,
    /// Its share of the requests, in percent, as `20%`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub weight: String,
    /// When it last had a request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_active: Option<MicroTime>,
    /// `Ready`, `Active`, `ScaledToZero`, `Quarantined` (failed; begins again only on `retry`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}
