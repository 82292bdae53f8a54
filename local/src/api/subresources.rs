//! Subresources that are neither `/status` nor `/scale`: a pod's log, eviction and binding, a namespace's finalizers.

use bytes::Bytes;
use futures::StreamExt as _;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use serde_json::{Value, json};

use super::apply::Operation;
use super::request::Request;
use super::router::{Answer, Reply};
use super::status::{ApiError, Cause};
use super::write::{self, Failed, Intent};
use super::{LogRequest, codec, delete};

pub(crate) async fn handle(request: &Request<'_>) -> Result<Answer, ApiError> {
    let resource = &request.resource;
    match (request.subresource.as_str(), request.method.as_str()) {
        ("log", "GET") if resource.is("", "Pod") => log(request).await,
        ("eviction", "POST") if resource.is("", "Pod") => evict(request),
        ("binding", "POST") if resource.is("", "Pod") => bind(request),
        ("finalize", "PUT") if resource.is("", "Namespace") => write::update(request),
        ("log" | "eviction" | "binding", _) if resource.is("", "Pod") => Err(ApiError::method_not_allowed()),
        (asked @ ("exec" | "attach" | "portforward" | "proxy" | "ephemeralcontainers"), _)
            if resource.is("", "Pod") =>
        {
            Err(ApiError::not_served(&format!("pods/{asked}")))
        }
        _ => Err(ApiError::no_such_path()),
    }
}

/// `kubectl logs`.
async fn log(request: &Request<'_>) -> Result<Answer, ApiError> {
    let pod = request.api.0.store.get(&request.resource.storage, &request.key());
    let pod = pod.ok_or_else(|| request.not_found())?;
    let names: Vec<&str> = pod.value["spec"]["containers"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|container| container["name"].as_str())
        .collect();
    let container = match request.query.get("container") {
        Some(name) if names.contains(&name) => name,
        Some(name) => {
            return Err(ApiError::bad_request(format!(
                "container {name} is not valid for pod {}",
                request.name
            )));
        }
        None if names.len() > 1 => {
            return Err(ApiError::bad_request(format!(
                "a container name must be specified for pod {}, choose one of: [{}]",
                request.name,
                names.join(" ")
            )));
        }
        None => names.first().copied().unwrap_or_default(),
    };
    let asked = LogRequest {
        namespace: request.namespace.clone(),
        pod: request.name.clone(),
        container: container.to_owned(),
        follow: request.query.flag("follow"),
        tail_lines: request.query.number("tailLines")?,
        since_seconds: request.query.number("sinceSeconds")?,
        limit_bytes: request.query.number("limitBytes")?,
        timestamps: request.query.flag("timestamps"),
        previous: request.query.flag("previous"),
    };
    let source = request.api.0.logs.read().clone();
    let source = source.ok_or_else(|| ApiError::internal("nothing runs pods on this API"))?;
    let limit = asked.limit_bytes;
    let stream = source(asked).await.map_err(ApiError::bad_request)?;
    let end = request.api.stream_token();
    let mut left = limit
        .and_then(|limit| usize::try_from(limit).ok())
        .unwrap_or(usize::MAX);
    let pieces = stream
        .take_until(async move { end.cancelled().await })
        .map(move |piece: Bytes| {
            let kept = piece.slice(..piece.len().min(left));
            left -= kept.len();
            kept
        })
        .take_while(|piece| futures::future::ready(!piece.is_empty()))
        .map(|piece| Ok::<_, std::io::Error>(Frame::data(piece)));
    Ok(Reply::Stream("text/plain", StreamBody::new(pieces).boxed_unsync()).into())
}

/// Deletes a pod unless a PodDisruptionBudget says that too few would stay.
fn evict(request: &Request<'_>) -> Result<Answer, ApiError> {
    let eviction = if request.body.is_empty() {
        json!({})
    } else {
        codec::read(request)?
    };
    let store = &request.api.0.store;
    let pod = store
        .get(&request.resource.storage, &request.key())
        .ok_or_else(|| request.not_found())?;
    let running = !matches!(
        pod.value["status"]["phase"].as_str(),
        Some("Succeeded" | "Failed" | "Pending")
    ) && pod.value["metadata"].get("deletionTimestamp").is_none();
    let budgets = store
        .list(&"policy/poddisruptionbudgets".into(), Some(&request.namespace))
        .0;
    let budgets: Vec<_> = budgets
        .into_iter()
        .filter(|budget| super::validate::selector_matches(&budget.value["spec"]["selector"], &pod.value))
        .collect();
    if running && budgets.len() > 1 {
        return Err(ApiError::internal(
            "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
        ));
    }
    if let Some(budget) = budgets.first().filter(|_| running) {
        let status = &budget.value["status"];
        let observed =
            status["observedGeneration"].as_i64() >= budget.value["metadata"]["generation"].as_i64();
        if !observed || status["disruptionsAllowed"].as_i64().unwrap_or(0) <= 0 {
            let name = budget.value["metadata"]["name"].as_str().unwrap_or_default();
            let told = format!(
                "The disruption budget {name} needs {} healthy pods and has {} currently",
                status["desiredHealthy"].as_i64().unwrap_or(0),
                status["currentHealthy"].as_i64().unwrap_or(0)
            );
            return Err(ApiError::too_many_requests(
                "Cannot evict pod as it would violate the pod's disruption budget.",
                Some(("DisruptionBudget", &told)),
            ));
        }
    }
    let options = eviction
        .get("deleteOptions")
        .cloned()
        .unwrap_or_else(|| json!({}));
    let inner = Request {
        api: request.api,
        user: request.user,
        method: http::Method::DELETE,
        resource: request.resource.clone(),
        namespace: request.namespace.clone(),
        name: request.name.clone(),
        subresource: String::new(),
        query: request.query.clone(),
        headers: request.headers,
        body: options.to_string().into(),
    };
    delete::one(&inner)?;
    Ok(write::reply_json(
        201,
        json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201 }),
    ))
}

/// Gives a pod to a node.
fn bind(request: &Request<'_>) -> Result<Answer, ApiError> {
    let binding = codec::read(request)?;
    let node = binding["target"]["name"].as_str().unwrap_or_default().to_owned();
    if node.is_empty() {
        return Err(ApiError::invalid(
            "",
            "Binding",
            &request.name,
            &[Cause::required("target.name", "")],
        ));
    }
    let intent = Intent::of(request, Operation::Update)?;
    for _ in 0..5 {
        let live = request.api.0.store.get(&request.resource.storage, &request.key());
        let live = live.ok_or_else(|| request.not_found())?;
        let held = live.value["spec"]["nodeName"].as_str().unwrap_or_default();
        if !held.is_empty() {
            let why = format!("pod {} is already assigned to node \"{held}\"", request.name);
            return Err(ApiError::conflict("", "pods/binding", &request.name, &why));
        }
        let mut next = live.value.clone();
        next["spec"]["nodeName"] = json!(node);
        let scheduled = json!({
            "type": "PodScheduled", "status": "True", "lastProbeTime": null,
            "lastTransitionTime": super::names::now(),
        });
        set_condition(&mut next, scheduled);
        match write::commit(request, &live, next, &intent) {
            Ok(_) => {
                let status = json!({
                    "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201,
                });
                return Ok(write::reply_json(201, status));
            }
            Err(Failed::Raced) => {}
            Err(Failed::Because(error)) => return Err(error),
        }
    }
    Err(ApiError::stale("", "pods", &request.name))
}

/// Puts a condition in the place of the one of its type.
fn set_condition(pod: &mut Value, condition: Value) {
    let mut all = pod["status"]["conditions"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    all.retain(|it| it["type"] != condition["type"]);
    all.push(condition);
    pod["status"]["conditions"] = Value::Array(all);
}
