//! What else decides, and who is told: metrics, webhooks, alerts.

use serde_json::{Map, Value, json};

use super::canary::{Names, Related};
use super::fields::Fields;

/// Measured by Flagger's own queries there, and by activators here.
const BUILT_IN: [&str; 2] = ["request-success-rate", "request-duration"];
/// Flagger's types, which are ours.
const WEBHOOKS: [&str; 8] = [
    "confirm-rollout",
    "pre-rollout",
    "rollout",
    "confirm-traffic-increase",
    "confirm-promotion",
    "post-rollout",
    "rollback",
    "event",
];
/// Most repetitions of a call.
const MOST_RETRIES: i64 = 10;

/// What becomes of an entry.
enum Made {
    /// This.
    As(Value),
    /// Nothing, and this is what to do about it.
    Not(String),
}

/// `metrics`.
pub(super) fn metrics(analysis: &mut Fields, names: &Names, related: &Related) -> Result<Vec<Value>, String> {
    all(analysis, "metrics", |each| metric(each, names, related))
}

/// What each entry of a list becomes; what one cannot be is noted.
fn all(
    analysis: &mut Fields,
    list: &str,
    mut make: impl FnMut(&mut Fields) -> Result<Made, String>,
) -> Result<Vec<Value>, String> {
    let mut found = Vec::new();
    for (number, mut each) in analysis.items(list)?.into_iter().enumerate() {
        let whole = each.rest().clone();
        match make(&mut each)? {
            Made::As(made) => {
                found.push(made);
                analysis.absorb(each);
            }
            Made::Not(advice) => analysis.note(&format!("{list}[{number}]"), &whole, &advice),
        }
    }
    Ok(found)
}

/// One metric, or what to do because it cannot be one.
fn metric(each: &mut Fields, names: &Names, related: &Related) -> Result<Made, String> {
    let name = each.needed("name")?;
    let mut metric = Map::new();
    metric.insert("name".to_owned(), json!(name));
    let (mut min, mut max) = (
        each.number("thresholdRange.min")?,
        each.number("thresholdRange.max")?,
    );
    if let Some(threshold) = each.number("threshold")? {
        match name == BUILT_IN[0] {
            true => min = min.or(Some(threshold)),
            false => max = max.or(Some(threshold)),
        }
    }
    let source = source(each, &name, names, related)?;
    if let Source::None(advice) = source {
        return Ok(Made::Not(advice));
    }
    if let Source::Prometheus { address, query } = source {
        let interval = each
            .duration("interval")?
            .map_or_else(|| "1m".to_owned(), |(written, _)| written);
        let query = filled(each, &query, &interval, names);
        let asked = json!({ "address": address, "query": query, "interval": interval });
        metric.insert("prometheus".to_owned(), asked);
    }
    for (bound, value) in [("min", min), ("max", max)] {
        if let Some(value) = value {
            metric.insert(bound.to_owned(), json!(value));
        }
    }
    if min.is_none() && max.is_none() {
        each.note(
            "thresholdRange",
            &Value::Null,
            "set min or max: without either it decides nothing",
        );
    }
    Ok(Made::As(Value::Object(metric)))
}

/// Where a metric comes from.
enum Source {
    /// Activators measure it.
    BuiltIn,
    /// A Prometheus is asked.
    Prometheus { address: String, query: String },
    /// Nowhere, and this is what to do about it.
    None(String),
}

fn source(each: &mut Fields, name: &str, names: &Names, related: &Related) -> Result<Source, String> {
    let write = "write it with prometheus: {address, query}";
    let query = each.text("query")?;
    if query.is_some()
        && let Some(template) = each.take("templateRef")
    {
        let advice = "make it a metric of its own: Flagger asks both, and only query is taken";
        each.note("templateRef", &template, advice);
    }
    Ok(match (query, each.text("templateRef.name")?) {
        (Some(query), _) => match names.prometheus.clone() {
            Some(address) => Source::Prometheus { address, query },
            None => Source::None(format!("{write}: the address was Flagger's own flag")),
        },
        (None, Some(template)) => {
            let namespace = each.text("templateRef.namespace")?;
            let namespace = namespace.unwrap_or_else(|| names.namespace.clone());
            let about = format!("MetricTemplate {namespace}/{template}");
            match related.spec("MetricTemplate", &namespace, &template) {
                Some(spec) => from_template(spec, &about),
                None => Source::None(format!(
                    "put {about} into the same file and import it again, or {write}"
                )),
            }
        }
        (None, None) if BUILT_IN.contains(&name) => Source::BuiltIn,
        (None, None) => Source::None(format!("{write}: only {} are built in", BUILT_IN.join(" and "))),
    })
}

/// What a MetricTemplate asks.
fn from_template(spec: &Value, about: &str) -> Source {
    let text = |pointer: &str| {
        spec.pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let instead = "have a webhook of type rollout look at it";
    let kind = text("/provider/type");
    if kind != "prometheus" {
        return Source::None(format!(
            "{about} asks {kind}: only a Prometheus can be asked; {instead}"
        ));
    }
    if spec.pointer("/provider/secretRef").is_some() {
        return Source::None(format!(
            "{about} has a secretRef: a Prometheus is asked without credentials; {instead}"
        ));
    }
    let (address, query) = (text("/provider/address"), text("/query"));
    Source::Prometheus { address, query }
}

/// A query with what is known now put in the place of Flagger's variables.
fn filled(each: &mut Fields, query: &str, interval: &str, names: &Names) -> String {
    let variables = each.take("templateVariables").unwrap_or_else(|| json!({}));
    let known = |name: &str| match name {
        "name" => Some(names.canary.clone()),
        "namespace" => Some(names.namespace.clone()).filter(|namespace| !namespace.is_empty()),
        "target" => Some(names.target.clone()),
        "service" => Some(names.service.clone()),
        "interval" => Some(interval.to_owned()),
        name => {
            let own = name.strip_prefix("variables.").and_then(|own| variables.get(own));
            own.and_then(Value::as_str).map(str::to_owned)
        }
    };
    let (mut text, mut rest) = (String::new(), query);
    while let Some((before, after)) = rest.split_once("{{")
        && let Some((inside, after)) = after.split_once("}}")
    {
        text.push_str(before);
        rest = after;
        let name = inside.trim();
        match known(name) {
            Some(value) => text.push_str(&value),
            None => {
                text.push_str(&format!("{{{{{inside}}}}}"));
                let advice = format!("put a value in the place of {{{{ {name} }}}}: it is not known here");
                each.note("query", &json!(query), &advice);
            }
        }
    }
    text.push_str(rest);
    let generated = [
        format!("{}-primary", names.target),
        format!("{}-canary", names.service),
    ];
    if query.contains("target") || generated.iter().any(|name| text.contains(name.as_str())) {
        let advice = format!(
            "look at the query: the pods of a candidate are those of Deployment {}-HASH, labelled {}",
            names.target,
            crds::names::REVISION_LABEL
        );
        each.note("query", &json!(query), &advice);
    }
    text
}

/// `webhooks`.
pub(super) fn webhooks(analysis: &mut Fields, names: &Names) -> Result<Vec<Value>, String> {
    all(analysis, "webhooks", |each| webhook(each, names).map(Made::As))
}

fn webhook(each: &mut Fields, names: &Names) -> Result<Value, String> {
    let kind = each.text("type")?.unwrap_or_else(|| "rollout".to_owned());
    if !WEBHOOKS.contains(&kind.as_str()) {
        return Err(format!(
            "{} is {kind}, allowed: {}",
            each.path("type"),
            WEBHOOKS.join(", ")
        ));
    }
    let mut webhook = Map::new();
    webhook.insert("type".to_owned(), json!(kind));
    if let Some(name) = each.text("name")? {
        webhook.insert("name".to_owned(), json!(name));
    }
    webhook.insert("url".to_owned(), json!(each.needed("url")?));
    // Flagger's own default; ours is longer.
    let timeout = each
        .duration("timeout")?
        .map_or_else(|| "10s".to_owned(), |(written, _)| written);
    webhook.insert("timeout".to_owned(), json!(timeout));
    if let Some(retries) = each.whole("retries")?.filter(|retries| *retries > 0) {
        if retries > MOST_RETRIES {
            each.note("retries", &json!(retries), "10 is the most");
        }
        webhook.insert("retries".to_owned(), json!(retries.min(MOST_RETRIES)));
    }
    if let Some(metadata) = each.take("metadata") {
        let text = metadata.to_string();
        for gone in [
            format!("{}-canary", names.service),
            format!("{}-primary", names.service),
        ] {
            if text.contains(&gone) {
                let advice = format!(
                    "there is no Service {gone}: send requests to {}, and a match to the candidate alone",
                    names.service
                );
                each.note("metadata", &metadata, &advice);
            }
        }
        webhook.insert("metadata".to_owned(), texts(metadata));
    }
    Ok(Value::Object(webhook))
}

/// Numbers and truth values of a metadata block as the text that they are.
fn texts(metadata: Value) -> Value {
    match metadata {
        Value::Object(fields) => {
            let text = |value: Value| match value {
                Value::String(text) => Value::String(text),
                other => Value::String(other.to_string()),
            };
            fields
                .into_iter()
                .map(|(name, value)| (name, text(value)))
                .collect()
        }
        other => other,
    }
}

/// `alerts`.
pub(super) fn alerts(analysis: &mut Fields, names: &Names, related: &Related) -> Result<Vec<Value>, String> {
    all(analysis, "alerts", |each| alert(each, names, related))
}

fn alert(each: &mut Fields, names: &Names, related: &Related) -> Result<Made, String> {
    let severity = each.text("severity")?.unwrap_or_else(|| "info".to_owned());
    if !["info", "warn", "error"].contains(&severity.as_str()) {
        return Err(format!(
            "{} is {severity}, allowed: info, warn, error",
            each.path("severity")
        ));
    }
    let name = each.needed("providerRef.name")?;
    let namespace = each
        .text("providerRef.namespace")?
        .unwrap_or_else(|| names.namespace.clone());
    let Some(spec) = related.spec("AlertProvider", &namespace, &name) else {
        return Ok(Made::Not(format!(
            "put AlertProvider {namespace}/{name} into the same file and import it again, or make a Secret whose key address \
             is a URL that takes Slack's messages, and write alerts: [{{severity: {severity}, secretRef: {{name: …}}}}]"
        )));
    };
    let text = |pointer: &str| spec.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let (kind, secret) = (text("/type"), text("/secretRef/name"));
    if !["slack", ""].contains(&kind) {
        return Ok(Made::Not(format!(
            "AlertProvider {namespace}/{name} is of type {kind}: messages are Slack's; have a webhook of type event tell it"
        )));
    }
    if secret.is_empty() || namespace != names.namespace {
        return Ok(Made::Not(format!(
            "make a Secret in the Rollout's namespace whose key address is the URL of AlertProvider {namespace}/{name}, and \
             write alerts: [{{severity: {severity}, secretRef: {{name: …}}}}]"
        )));
    }
    Ok(Made::As(
        json!({ "severity": severity, "secretRef": { "name": secret } }),
    ))
}
