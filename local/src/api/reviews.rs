//! TokenReview, the reviews of access, SelfSubjectReview: asked, answered, never stored.

use serde_json::{Value, json};

use super::router::Answer;
use super::status::ApiError;
use super::{Api, User, codec, write};

/// The answer to a POST of a review, if this is one.
pub(crate) fn review(
    api: &Api,
    user: &User,
    group: &str,
    rest: &[&str],
    media: &str,
    body: &[u8],
) -> Option<Result<Answer, ApiError>> {
    let kind = match (group, rest) {
        ("authentication.k8s.io", ["v1", "tokenreviews"]) => "TokenReview",
        ("authentication.k8s.io", ["v1", "selfsubjectreviews"]) => "SelfSubjectReview",
        ("authorization.k8s.io", ["v1", "subjectaccessreviews"]) => "SubjectAccessReview",
        ("authorization.k8s.io", ["v1", "selfsubjectaccessreviews"]) => "SelfSubjectAccessReview",
        ("authorization.k8s.io", ["v1", "selfsubjectrulesreviews"]) => "SelfSubjectRulesReview",
        ("authorization.k8s.io", ["v1", "namespaces", _, "localsubjectaccessreviews"]) => {
            "LocalSubjectAccessReview"
        }
        _ => return None,
    };
    Some(
        codec::body(media, body)
            .map(|review| write::reply_json(201, decide(api, user, group, kind, &review))),
    )
}

fn decide(api: &Api, user: &User, group: &str, kind: &str, review: &Value) -> Value {
    let info = |user: &User| json!({ "username": user.name, "groups": user.groups });
    let status = match kind {
        "TokenReview" => {
            match review["spec"]["token"]
                .as_str()
                .and_then(|token| api.user_of(token))
            {
                Some(user) => json!({ "authenticated": true, "user": info(&user) }),
                None => json!({ "user": {}, "error": "invalid bearer token" }),
            }
        }
        "SelfSubjectReview" => json!({ "userInfo": info(user) }),
        "SelfSubjectRulesReview" => json!({
            "resourceRules": [{ "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"] }],
            "nonResourceRules": [{ "verbs": ["*"], "nonResourceURLs": ["*"] }],
            "incomplete": false,
        }),
        _ => json!({ "allowed": true, "reason": "the embedded cluster allows every known user everything" }),
    };
    let mut metadata = review["metadata"].clone();
    if !metadata.is_object() {
        metadata = json!({});
    }
    if metadata.get("creationTimestamp").is_none() {
        metadata["creationTimestamp"] = Value::Null;
    }
    json!({
        "kind": kind, "apiVersion": format!("{group}/v1"), "metadata": metadata,
        "spec": review["spec"], "status": status,
    })
}
