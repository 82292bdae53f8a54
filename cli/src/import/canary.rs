//! One Canary to one Rollout.

use std::collections::BTreeMap;
use std::time::Duration;

use crds::RolloutSpec;
use crds::names::{GROUP, VERSION};
use serde_json::{Map, Value, json};

use super::fields::{Fields, Note};
use super::{matching, measure};

/// The version whose fields are known.
const API_VERSION: &str = "flagger.app/v1beta1";
/// Flagger looks no more often than this, whatever is written.
const SHORTEST_INTERVAL: Duration = Duration::from_secs(10);
/// What an API server adds to an object, and what belongs to Flagger alone.
const OF_THE_SERVER: &[&str] = &[
    "metadata.uid",
    "metadata.resourceVersion",
    "metadata.generation",
    "metadata.creationTimestamp",
    "metadata.managedFields",
    "metadata.selfLink",
    "metadata.finalizers",
    "metadata.ownerReferences",
    "status",
];

/// A Canary as a Rollout.
#[derive(Debug)]
pub(super) struct Imported {
    /// `NAMESPACE/NAME` of the Canary.
    pub(super) name: String,
    /// The Rollout.
    pub(super) rollout: Value,
    /// What has to be known first.
    pub(super) first: Vec<String>,
    /// Why this version cannot carry it out.
    pub(super) obstacle: Option<String>,
    /// What has no equivalent.
    pub(super) notes: Vec<Note>,
}

/// Objects that a Canary names, by kind, namespace and name.
#[derive(Default)]
pub(super) struct Related(BTreeMap<(String, String, String), Value>);

impl Related {
    pub(super) fn of(documents: &[Value]) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let related = documents.iter().map(|document| {
            let metadata = &document["metadata"];
            let key = (
                text(&document["kind"]),
                text(&metadata["namespace"]),
                text(&metadata["name"]),
            );
            (key, document["spec"].clone())
        });
        Self(related.collect())
    }

    /// The spec of an object.
    pub(super) fn spec(&self, kind: &str, namespace: &str, name: &str) -> Option<&Value> {
        self.0
            .get(&(kind.to_owned(), namespace.to_owned(), name.to_owned()))
    }
}

/// What the parts of a Canary say about each other.
pub(super) struct Names {
    pub(super) canary: String,
    /// Empty: not written.
    pub(super) namespace: String,
    pub(super) target: String,
    pub(super) service: String,
    /// The address for queries in the Canary itself.
    pub(super) prometheus: Option<String>,
}

/// Turns a Canary into a Rollout.
///
/// # Errors
/// What of it cannot be a Rollout, and where.
pub(super) fn import(document: &Value, related: &Related) -> Result<Imported, String> {
    let text = |pointer: &str| {
        document
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or_default()
    };
    let mut parts = ["/metadata/namespace", "/metadata/name"].map(text).to_vec();
    parts.retain(|part| !part.is_empty());
    let name = parts.join("/");
    convert(document, related, &name).map_err(|why| format!("Canary {name}: {why}"))
}

fn convert(document: &Value, related: &Related, name: &str) -> Result<Imported, String> {
    let mut fields = Fields::new(document.clone());
    fields.take("kind");
    let version = fields.needed("apiVersion")?;
    if version != API_VERSION {
        return Err(format!("apiVersion is {version}, allowed: {API_VERSION}"));
    }
    for field in OF_THE_SERVER {
        fields.take(field);
    }
    let (names, metadata) = names(&mut fields)?;
    let mut spec = Map::new();
    spec.insert(
        "targetRef".to_owned(),
        json!({ "kind": "Deployment", "name": names.target }),
    );
    spec.insert("serviceRef".to_owned(), json!({ "name": names.service }));
    let deadline = fields.whole("spec.progressDeadlineSeconds")?.unwrap_or(600);
    spec.insert("progressDeadline".to_owned(), json!(format!("{deadline}s")));
    if fields.flag("spec.suspend")? {
        spec.insert("suspend".to_owned(), json!(true));
    }
    let mut first = first(&names);
    let mut notes = analysis(&mut fields, &names, related, &mut spec, &mut first)?;
    if let Some(address) = &names.prometheus
        && !Value::Object(spec.clone()).to_string().contains(address.as_str())
    {
        let advice = "leave it out: activators count; only a query of your own has an address, in its prometheus.address";
        fields.note("spec.metricsServer", &json!(address), advice);
    }
    let mut all = fields.end();
    all.append(&mut notes);
    let rollout = json!({
        "apiVersion": format!("{GROUP}/{VERSION}"),
        "kind": "Rollout",
        "metadata": metadata,
        "spec": spec,
    });
    let read = serde_json::from_value::<RolloutSpec>(rollout["spec"].clone())
        .map_err(|error| format!("it does not fit a Rollout: {error}"))?;
    let obstacle = autoscaler::examine::rollout(&read).err();
    Ok(Imported {
        name: name.to_owned(),
        rollout,
        first,
        obstacle,
        notes: all,
    })
}

fn names(fields: &mut Fields) -> Result<(Names, Map<String, Value>), String> {
    let canary = fields.needed("metadata.name")?;
    let namespace = fields.text("metadata.namespace")?.unwrap_or_default();
    let mut metadata = Map::new();
    metadata.insert("name".to_owned(), json!(canary));
    if !namespace.is_empty() {
        metadata.insert("namespace".to_owned(), json!(namespace));
    }
    if let Some(labels) = fields.take("metadata.labels") {
        metadata.insert("labels".to_owned(), labels);
    }
    // It holds the Canary once more. Its name has dots, so it is taken by hand.
    if let Some(Value::Object(mut annotations)) = fields.take("metadata.annotations") {
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
        if !annotations.is_empty() {
            fields.note(
                "metadata.annotations",
                &Value::Object(annotations),
                "set them on the Rollout if something reads them there",
            );
        }
    }
    let kind = fields
        .text("spec.targetRef.kind")?
        .unwrap_or_else(|| "Deployment".to_owned());
    if kind != "Deployment" {
        return Err(format!("spec.targetRef.kind is {kind}, allowed: Deployment"));
    }
    fields.take("spec.targetRef.apiVersion");
    let target = fields.needed("spec.targetRef.name")?;
    let service = fields
        .text("spec.service.name")?
        .unwrap_or_else(|| target.clone());
    let names = Names {
        canary,
        namespace,
        target,
        service,
        prometheus: fields.text("spec.metricsServer")?,
    };
    Ok((names, metadata))
}

/// What has to be done before it is applied, and what is better than Flagger's rule.
fn first(names: &Names) -> Vec<String> {
    vec![
        format!(
            "Before applying it: delete the Canary and what Flagger made for it; have a Service {} of your own that selects \
             the pods of Deployment {}, annotated with dormouse.dev/scale-to-zero: \"true\" (and dormouse.dev/min-scale: \"1\" \
             where it must not sleep). Take spec.replicas out of the Deployment's manifest.",
            names.service, names.target
        ),
        "mode Threshold is Flagger's rule with Flagger's numbers. Recommended instead: mode Sequential, without interval, \
         threshold, iterations and the two built-in metrics. It compares the candidate with the stable revision on the same \
         traffic, bounds how often it is wrong, and with little traffic it waits instead of rolling back."
            .to_owned(),
    ]
}

/// Strategy, analysis and alerts.
fn analysis(
    fields: &mut Fields,
    names: &Names,
    related: &Related,
    spec: &mut Map<String, Value>,
    first: &mut Vec<String>,
) -> Result<Vec<Note>, String> {
    let (place, part) = match fields.take("spec.analysis") {
        Some(part) => ("spec.analysis", part),
        // The name of before v1beta1, which Flagger still reads.
        None => (
            "spec.canaryAnalysis",
            fields.take("spec.canaryAnalysis").unwrap_or_default(),
        ),
    };
    let skip = fields.flag("spec.skipAnalysis")?;
    if !part.is_object() && !skip {
        return Err("spec.analysis is missing".to_owned());
    }
    let mut analysis = Fields::at(place, part);
    let alerts = measure::alerts(&mut analysis, names, related)?;
    if !alerts.is_empty() {
        spec.insert("alerts".to_owned(), json!(alerts));
    }
    if skip {
        *first = first.drain(..1).collect();
        first.push(
            "skipAnalysis: every new revision gets everything as soon as its pods are ready.".to_owned(),
        );
        spec.insert("strategy".to_owned(), json!({ "type": "Immediate" }));
        spec.insert("analysis".to_owned(), json!({ "mode": "None", "bake": "0s" }));
        let rest = analysis.rest().clone();
        if rest.as_object().is_some_and(|rest| !rest.is_empty()) {
            let advice = "set spec.skipAnalysis to false and import it again to have it: while it is true it decides nothing";
            fields.note(place, &rest, advice);
        }
        return Ok(analysis.noted());
    }
    spec.insert("strategy".to_owned(), Value::Object(strategy(&mut analysis)?));
    let mut rule = rule(&mut analysis)?;
    let metrics = measure::metrics(&mut analysis, names, related)?;
    if !metrics.is_empty() {
        rule.insert("metrics".to_owned(), json!(metrics));
    }
    let webhooks = measure::webhooks(&mut analysis, names)?;
    if !webhooks.is_empty() {
        rule.insert("webhooks".to_owned(), json!(webhooks));
    }
    spec.insert("analysis".to_owned(), Value::Object(rule));
    Ok(analysis.end())
}

/// Flagger's rule.
fn rule(analysis: &mut Fields) -> Result<Map<String, Value>, String> {
    let mut rule = Map::new();
    rule.insert("mode".to_owned(), json!("Threshold"));
    let interval = match analysis.duration("interval")? {
        None => "60s".to_owned(),
        Some((written, interval)) if interval < SHORTEST_INTERVAL => {
            let advice = "10s is what Flagger made of it; smaller ones are allowed here";
            analysis.note("interval", &json!(written), advice);
            "10s".to_owned()
        }
        Some((written, _)) => written,
    };
    rule.insert("interval".to_owned(), json!(interval));
    let threshold = analysis.whole("threshold")?.unwrap_or(1).max(1);
    rule.insert("threshold".to_owned(), json!(threshold));
    if let Some(iterations) = analysis.whole("iterations")?.filter(|iterations| *iterations > 0) {
        rule.insert("iterations".to_owned(), json!(iterations));
    }
    // Flagger watches nothing after promotion.
    rule.insert("bake".to_owned(), json!("0s"));
    Ok(rule)
}

/// As Flagger chooses: iterations before weights, listed weights when there is no step.
fn strategy(analysis: &mut Fields) -> Result<Map<String, Value>, String> {
    let mut strategy = Map::new();
    let iterations = analysis
        .rest()
        .get("iterations")
        .and_then(Value::as_i64)
        .unwrap_or(0);
    if iterations > 0 {
        for field in ["stepWeight", "stepWeights", "maxWeight"] {
            analysis.drop(
                field,
                "leave it out: Flagger takes no steps when iterations are set",
            );
        }
        let had = analysis
            .rest()
            .get("match")
            .and_then(Value::as_array)
            .is_some_and(|all| !all.is_empty());
        let matches = matching::matches(analysis)?;
        let kind = match matches.is_empty() {
            true => "BlueGreen",
            false => "ABTest",
        };
        strategy.insert("type".to_owned(), json!(kind));
        if !matches.is_empty() {
            strategy.insert("match".to_owned(), json!(matches));
        } else if had {
            let advice = "no match is left, so this is type BlueGreen: with one, write type ABTest";
            analysis.note("match", &json!([]), advice);
        }
    } else {
        analysis.drop("match", "leave it out: Flagger matches only with iterations");
        strategy.insert("type".to_owned(), json!("Canary"));
        let (name, steps) = weights(analysis)?;
        strategy.insert(name.to_owned(), steps);
    }
    mirror(analysis, &mut strategy)?;
    affinity(analysis, &mut strategy)?;
    Ok(strategy)
}

fn weights(analysis: &mut Fields) -> Result<(&'static str, Value), String> {
    let max = analysis.percent("maxWeight", 1)?;
    let step = analysis.percent("stepWeight", 0)?.filter(|step| *step > 0);
    if let Some(step) = step {
        analysis.drop(
            "stepWeights",
            "leave it out: Flagger takes stepWeight when both are set",
        );
        return Ok(("linear", json!({ "step": step, "max": max.unwrap_or(100) })));
    }
    let listed = match analysis.take("stepWeights") {
        Some(Value::Array(weights)) if !weights.is_empty() => weights,
        _ => {
            let place = analysis.path("stepWeight");
            return Err(format!(
                "{place}, stepWeights and iterations are all missing: one of them is needed"
            ));
        }
    };
    if let Some(max) = max {
        let advice = "leave it out: the last of stepWeights is the largest";
        analysis.note("maxWeight", &json!(max), advice);
    }
    let mut steps = Vec::new();
    for (number, weight) in listed.iter().enumerate() {
        let weight = weight
            .as_i64()
            .filter(|weight| (0..=100).contains(weight))
            .ok_or_else(|| {
                let place = analysis.path(&format!("stepWeights[{number}]"));
                format!("{place} is {weight}, allowed: 0 to 100")
            })?;
        steps.push(json!({ "weight": weight }));
    }
    Ok(("steps", json!(steps)))
}

fn mirror(analysis: &mut Fields, strategy: &mut Map<String, Value>) -> Result<(), String> {
    let weight = analysis.percent("mirrorWeight", 0)?;
    if !analysis.flag("mirror")? {
        if let Some(weight) = weight {
            analysis.note("mirrorWeight", &json!(weight), "leave it out: mirror is not set");
        }
        return Ok(());
    }
    let advice = "it mirrors GET and HEAD until 200 pairs are in, not for one interval: see methods and requests of \
                  spec.strategy.mirror";
    analysis.note("mirror", &json!(true), advice);
    let percent = weight.filter(|weight| *weight > 0).unwrap_or(100);
    strategy.insert("mirror".to_owned(), json!({ "percent": percent }));
    Ok(())
}

fn affinity(analysis: &mut Fields, strategy: &mut Map<String, Value>) -> Result<(), String> {
    let Some(cookie) = analysis.text("sessionAffinity.cookieName")? else {
        return Ok(());
    };
    let age = analysis.whole("sessionAffinity.maxAge")?.unwrap_or(86_400).max(0);
    strategy.insert(
        "sessionAffinity".to_owned(),
        json!({ "cookie": cookie, "maxAge": format!("{age}s") }),
    );
    Ok(())
}
