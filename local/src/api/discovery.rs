//! What there is: versions, groups and resources, in the form of old and new clients.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::header::ACCEPT;
use serde_json::{Value, json};

use super::Api;
use super::openapi::SPOKEN_VERSION;
use super::resources::{Registry, Resource, group_version};
use super::router::Reply;
use super::status::ApiError;

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// Reviews are asked, never stored, so the registry does not know them: group, plural, kind, namespaced.
const REVIEWS: &[(&str, &str, &str, bool)] = &[
    ("authentication.k8s.io", "tokenreviews", "TokenReview", false),
    (
        "authentication.k8s.io",
        "selfsubjectreviews",
        "SelfSubjectReview",
        false,
    ),
    (
        "authorization.k8s.io",
        "localsubjectaccessreviews",
        "LocalSubjectAccessReview",
        true,
    ),
    (
        "authorization.k8s.io",
        "selfsubjectaccessreviews",
        "SelfSubjectAccessReview",
        false,
    ),
    (
        "authorization.k8s.io",
        "selfsubjectrulesreviews",
        "SelfSubjectRulesReview",
        false,
    ),
    (
        "authorization.k8s.io",
        "subjectaccessreviews",
        "SubjectAccessReview",
        false,
    ),
];

const VERBS: &[&str] = &[
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];

/// `/version`.
pub(crate) fn version() -> Value {
    json!({
        "major": "1", "minor": "35", "gitVersion": SPOKEN_VERSION, "gitCommit": "", "gitTreeState": "clean",
        "buildDate": "2026-01-01T00:00:00Z", "goVersion": "", "compiler": "rustc", "platform": "embedded/dormouse",
    })
}

/// The answer to a discovery path, if it is one.
pub(crate) fn answer(
    _: &Api,
    registry: &Registry,
    headers: &http::HeaderMap,
    steps: &[&str],
) -> Option<Result<Reply, ApiError>> {
    let accept = headers
        .get(ACCEPT)
        .and_then(|it| it.to_str().ok())
        .unwrap_or_default();
    let aggregated = accept.contains("g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList");
    let value = match steps {
        [] => json!({ "paths": paths(registry) }),
        ["api"] if aggregated => return Some(Ok(list(registry, true))),
        ["apis"] if aggregated => return Some(Ok(list(registry, false))),
        ["api"] => json!({
            "kind": "APIVersions", "versions": ["v1"],
            "serverAddressByClientCIDRs": [{ "clientCIDR": "0.0.0.0/0", "serverAddress": "127.0.0.1" }],
        }),
        ["apis"] => {
            let groups = groups(registry);
            let all: Vec<Value> = groups
                .iter()
                .filter(|it| !it.0.is_empty())
                .map(|(name, versions)| group(name, versions))
                .collect();
            json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": all })
        }
        ["apis", name] => match groups(registry).get(*name) {
            Some(versions) => {
                let mut value = group(name, versions);
                value["kind"] = json!("APIGroup");
                value["apiVersion"] = json!("v1");
                value
            }
            None => return Some(Err(ApiError::no_such_path())),
        },
        ["api", version] => match resources(registry, "", version) {
            Some(value) => value,
            None => return Some(Err(ApiError::no_such_path())),
        },
        ["apis", group, version] => match resources(registry, group, version) {
            Some(value) => value,
            None => return Some(Err(ApiError::no_such_path())),
        },
        _ => return None,
    };
    Some(Ok(Reply::Json(200, value)))
}

/// Each group and its versions, the preferred one first.
fn groups(registry: &Registry) -> BTreeMap<String, Vec<String>> {
    let mut all: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let built_in = registry.iter().map(|it| (it.group.clone(), it.version.clone()));
    let reviews = REVIEWS.iter().map(|it| (it.0.to_owned(), "v1".to_owned()));
    for (group, version) in built_in.chain(reviews) {
        let versions = all.entry(group).or_default();
        if !versions.contains(&version) {
            versions.push(version);
        }
    }
    for versions in all.values_mut() {
        versions.sort_by_key(|version| std::cmp::Reverse(rank(version)));
    }
    all
}

/// v2 before v1 before v1beta2 before v1alpha1, as Kubernetes sorts versions.
fn rank(version: &str) -> (bool, u8, u32, u32) {
    let Some(rest) = version.strip_prefix('v') else {
        return (false, 0, 0, 0);
    };
    let digits = rest.len() - rest.trim_start_matches(|it: char| it.is_ascii_digit()).len();
    let (major, rest) = rest.split_at(digits);
    let (stage, minor) = match (rest.strip_prefix("beta"), rest.strip_prefix("alpha")) {
        _ if rest.is_empty() => (3, ""),
        (Some(minor), _) => (2, minor),
        (_, Some(minor)) => (1, minor),
        _ => return (false, 0, 0, 0),
    };
    (
        true,
        stage,
        major.parse().unwrap_or(0),
        minor.parse().unwrap_or(0),
    )
}

fn group(name: &str, versions: &[String]) -> Value {
    let all: Vec<Value> = versions
        .iter()
        .map(|version| json!({ "groupVersion": group_version(name, version), "version": version }))
        .collect();
    json!({ "name": name, "versions": all, "preferredVersion": all[0] })
}

fn paths(registry: &Registry) -> Vec<String> {
    let mut all = vec!["/api".to_owned(), "/api/v1".to_owned(), "/apis".to_owned()];
    for (group, versions) in groups(registry).iter().filter(|it| !it.0.is_empty()) {
        all.push(format!("/apis/{group}"));
        all.extend(versions.iter().map(|version| format!("/apis/{group}/{version}")));
    }
    all.extend(
        [
            "/healthz",
            "/livez",
            "/openapi/v2",
            "/openapi/v3",
            "/readyz",
            "/version",
        ]
        .map(str::to_owned),
    );
    all
}

/// What a resource has below an object: name, kind (group, version, kind), verbs.
type Subresource<'a> = (&'static str, (&'a str, &'a str, &'a str), &'static [&'static str]);

fn subresources(resource: &Resource) -> Vec<Subresource<'_>> {
    const CHANGE: &[&str] = &["get", "patch", "update"];
    let own = (
        resource.group.as_str(),
        resource.version.as_str(),
        resource.kind.as_str(),
    );
    let mut all = Vec::new();
    if resource.scale.is_some() {
        all.push(("scale", ("autoscaling", "v1", "Scale"), CHANGE));
    }
    if resource.status {
        all.push(("status", own, CHANGE));
    }
    if resource.is("", "Pod") {
        all.push(("binding", ("", "v1", "Binding"), &["create"]));
        all.push(("eviction", ("policy", "v1", "Eviction"), &["create"]));
        all.push(("log", own, &["get"]));
    }
    if resource.is("", "Namespace") {
        all.push(("finalize", own, &["update"]));
    }
    all
}

fn of<'a>(registry: &'a Registry, group: &str, version: &str) -> Vec<&'a Arc<Resource>> {
    registry
        .iter()
        .filter(|it| it.group == group && it.version == version)
        .collect()
}

fn verbs(resource: &Resource) -> Vec<&'static str> {
    // Namespaces are deleted one by one.
    VERBS
        .iter()
        .copied()
        .filter(|verb| !(resource.is("", "Namespace") && *verb == "deletecollection"))
        .collect()
}

/// `APIResourceList` of one group and version.
fn resources(registry: &Registry, group: &str, version: &str) -> Option<Value> {
    let mut all = Vec::new();
    for resource in of(registry, group, version) {
        let mut one = json!({
            "name": resource.plural, "singularName": resource.singular, "namespaced": resource.namespaced,
            "kind": resource.kind, "verbs": verbs(resource), "storageVersionHash": "",
        });
        if !resource.short_names.is_empty() {
            one["shortNames"] = json!(resource.short_names);
        }
        if !resource.categories.is_empty() {
            one["categories"] = json!(resource.categories);
        }
        all.push(one);
        for (name, (group, version, kind), verbs) in subresources(resource) {
            all.push(json!({
                "name": format!("{}/{name}", resource.plural), "singularName": "", "namespaced": resource.namespaced,
                "group": group, "version": version, "kind": kind, "verbs": verbs,
            }));
        }
    }
    for &(_, plural, kind, namespaced) in REVIEWS.iter().filter(|it| it.0 == group && version == "v1") {
        all.push(json!({
            "name": plural, "singularName": kind.to_lowercase(), "namespaced": namespaced, "kind": kind,
            "verbs": ["create"],
        }));
    }
    (!all.is_empty()).then(|| {
        json!({
            "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version(group, version),
            "resources": all,
        })
    })
}

/// Everything in one answer.
fn list(registry: &Registry, core: bool) -> Reply {
    let items: Vec<Value> = groups(registry)
        .iter()
        .filter(|it| it.0.is_empty() == core)
        .map(|(group, versions)| {
            let versions: Vec<Value> = versions
                .iter()
                .map(|version| {
                    json!({
                        "version": version, "freshness": "Current",
                        "resources": aggregated(registry, group, version),
                    })
                })
                .collect();
            json!({ "metadata": { "name": group, "creationTimestamp": null }, "versions": versions })
        })
        .collect();
    let value = json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items,
    });
    Reply::Typed(200, AGGREGATED, value.to_string().into())
}

fn aggregated(registry: &Registry, group: &str, version: &str) -> Vec<Value> {
    let scope = |namespaced: bool| if namespaced { "Namespaced" } else { "Cluster" };
    let kind = |(group, version, kind): (&str, &str, &str)| json!({ "group": group, "version": version, "kind": kind });
    let mut all = Vec::new();
    for resource in of(registry, group, version) {
        let below: Vec<Value> = subresources(resource)
            .into_iter()
            .map(|(name, of, verbs)| json!({ "subresource": name, "responseKind": kind(of), "verbs": verbs }))
            .collect();
        let mut one = json!({
            "resource": resource.plural, "singularResource": resource.singular, "scope": scope(resource.namespaced),
            "responseKind": kind((group, version, &resource.kind)), "verbs": verbs(resource),
        });
        if !below.is_empty() {
            one["subresources"] = json!(below);
        }
        if !resource.short_names.is_empty() {
            one["shortNames"] = json!(resource.short_names);
        }
        if !resource.categories.is_empty() {
            one["categories"] = json!(resource.categories);
        }
        all.push(one);
    }
    for &(_, plural, name, namespaced) in REVIEWS.iter().filter(|it| it.0 == group && version == "v1") {
        all.push(json!({
            "resource": plural, "singularResource": name.to_lowercase(), "scope": scope(namespaced),
            "responseKind": kind((group, version, name)), "verbs": ["create"],
        }));
    }
    all
}
