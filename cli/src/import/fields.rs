//! A document of which fields are taken one by one. Whatever is left at the end is named, so that nothing is lost unseen.

use std::fmt;
use std::time::Duration;

use serde_json::Value;

/// Longest text of a value in a note.
const SHOWN: usize = 60;

/// What to do about fields without an equivalent, by path. An index stands as `[]`; a path stands for all below it.
const ADVICE: &[(&str, &str)] = &[
    (
        "metadata.annotations",
        "set it on the Rollout if something reads it there",
    ),
    (
        "spec.provider",
        "leave it out: activators divide the traffic, request by request, without a mesh or an ingress",
    ),
    (
        "spec.metricsServer",
        "leave it out: activators count; only a query of your own has an address, in its prometheus.address",
    ),
    (
        "spec.autoscalerRef",
        "take the autoscaler off the Deployment: each revision is scaled by measured concurrency; its bounds are \
         dormouse.dev/min-scale and dormouse.dev/max-scale on the Service",
    ),
    (
        "spec.ingressRef",
        "leave it out: the Ingress goes on pointing to the Service",
    ),
    (
        "spec.routeRef",
        "leave it out: the route goes on pointing to the Service",
    ),
    (
        "spec.upstreamRef",
        "leave it out: the upstream goes on pointing to the Service",
    ),
    (
        "spec.revertOnDeletion",
        "leave it out: deleting a Rollout always gives the Deployment its pods and its traffic back",
    ),
    (
        "spec.service.timeout",
        "set dormouse.dev/request-timeout on the Service",
    ),
    (
        "spec.service.backendTimeout",
        "set dormouse.dev/request-timeout on the Service",
    ),
    (
        "spec.service.retries",
        "leave it out: what may be repeated is sent to another pod when a connection breaks, within a budget",
    ),
    (
        "spec.service.port",
        "give the Service this port: it is your own, not generated",
    ),
    ("spec.service.portName", "name the Service's port so"),
    (
        "spec.service.targetPort",
        "give the Service's port this targetPort",
    ),
    (
        "spec.service.appProtocol",
        "give the Service's port this appProtocol",
    ),
    (
        "spec.service.portDiscovery",
        "list the ports in the Service: all of them are divided",
    ),
    (
        "spec.service.headless",
        "give the Service a cluster IP: clients of a headless one go past the activators",
    ),
    ("spec.service.trafficDistribution", "set it on the Service"),
    (
        "spec.service.apex",
        "set it on the Service: there is only the one",
    ),
    ("spec.service.primary", "leave it out: no Service is generated"),
    ("spec.service.canary", "leave it out: no Service is generated"),
    (
        "spec.service.unmanagedMetadata",
        "leave it out: the Service's metadata is left alone",
    ),
    (
        "spec.service",
        "keep it where it takes effect, in your gateway, mesh or Ingress, pointing to the Service",
    ),
    (
        "spec.analysis.stepWeightPromotion",
        "leave it out: the candidate's own pods become the stable ones, so promotion moves no traffic back",
    ),
    (
        "spec.analysis.primaryReadyThreshold",
        "leave it out: a weight is raised when all pods that it needs are ready",
    ),
    (
        "spec.analysis.canaryReadyThreshold",
        "leave it out: a weight is raised when all pods that it needs are ready",
    ),
    (
        "spec.analysis.sessionAffinity.primaryCookieName",
        "leave it out: one cookie names the revision, whichever it is",
    ),
    (
        "spec.analysis.sessionAffinity",
        "leave it out: the cookie is set with Path=/, HttpOnly and SameSite=Lax",
    ),
    (
        "spec.analysis.metrics[].interval",
        "leave it out: activators count every request",
    ),
    (
        "spec.analysis.webhooks[].muteAlert",
        "leave it out: calls send no alerts",
    ),
    (
        "spec.analysis.webhooks[].disableTLS",
        "give the address a certificate that can be verified, or use http",
    ),
    (
        "spec.analysis.alerts[].name",
        "leave it out: an alert has no name",
    ),
];

/// A field without an equivalent, or not the same one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Note {
    path: String,
    value: String,
    advice: String,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} - {}", self.path, self.value, self.advice)
    }
}

/// A document, or a part of one.
pub(super) struct Fields {
    /// Where it stands in the whole.
    place: String,
    left: Value,
    notes: Vec<Note>,
}

impl Fields {
    pub(super) fn new(document: Value) -> Self {
        Self::at("", document)
    }

    pub(super) fn at(place: &str, part: Value) -> Self {
        Self {
            place: place.to_owned(),
            left: part,
            notes: Vec::new(),
        }
    }

    /// The whole path of a field.
    pub(super) fn path(&self, field: &str) -> String {
        match self.place.as_str() {
            "" => field.to_owned(),
            place => format!("{place}.{field}"),
        }
    }

    /// What is left.
    pub(super) fn rest(&self) -> &Value {
        &self.left
    }

    /// Takes a field out, if it is set. `field`: names joined by dots.
    pub(super) fn take(&mut self, field: &str) -> Option<Value> {
        let (parent, name) = match field.rsplit_once('.') {
            Some((parent, name)) => (format!("/{}", parent.replace('.', "/")), name),
            None => (String::new(), field),
        };
        let value = self.left.pointer_mut(&parent)?.as_object_mut()?.remove(name)?;
        (!value.is_null()).then_some(value)
    }

    /// Takes a field out and says that it has no equivalent.
    pub(super) fn drop(&mut self, field: &str, advice: &str) {
        if let Some(value) = self.take(field) {
            self.note(field, &value, advice);
        }
    }

    pub(super) fn note(&mut self, field: &str, value: &Value, advice: &str) {
        self.notes.push(note(self.path(field), value, advice));
    }

    fn wrong(&self, field: &str, value: &Value, allowed: &str) -> String {
        format!("{} is {}, allowed: {allowed}", self.path(field), short(value))
    }

    pub(super) fn text(&mut self, field: &str) -> Result<Option<String>, String> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text).filter(|text| !text.is_empty())),
            Some(other) => Err(self.wrong(field, &other, "text")),
        }
    }

    pub(super) fn needed(&mut self, field: &str) -> Result<String, String> {
        self.text(field)?
            .ok_or_else(|| format!("{} is missing", self.path(field)))
    }

    pub(super) fn flag(&mut self, field: &str) -> Result<bool, String> {
        match self.take(field) {
            None => Ok(false),
            Some(Value::Bool(set)) => Ok(set),
            Some(other) => Err(self.wrong(field, &other, "true or false")),
        }
    }

    /// A whole number.
    pub(super) fn whole(&mut self, field: &str) -> Result<Option<i64>, String> {
        match self.take(field) {
            None => Ok(None),
            Some(value) => value
                .as_i64()
                .map(Some)
                .ok_or_else(|| self.wrong(field, &value, "a whole number")),
        }
    }

    pub(super) fn number(&mut self, field: &str) -> Result<Option<f64>, String> {
        match self.take(field) {
            None => Ok(None),
            Some(value) => value
                .as_f64()
                .map(Some)
                .ok_or_else(|| self.wrong(field, &value, "a number")),
        }
    }

    /// A percentage, `least..=100`.
    pub(super) fn percent(&mut self, field: &str, least: i64) -> Result<Option<i64>, String> {
        match self.whole(field)? {
            Some(number) if !(least..=100).contains(&number) => {
                Err(self.wrong(field, &number.into(), &format!("{least} to 100")))
            }
            number => Ok(number),
        }
    }

    /// A duration, as it is written and as it is.
    pub(super) fn duration(&mut self, field: &str) -> Result<Option<(String, Duration)>, String> {
        let Some(text) = self.text(field)? else {
            return Ok(None);
        };
        match crds::annotation::read_duration(&text) {
            Ok(duration) => Ok(Some((text, duration))),
            Err(_) => Err(self.wrong(field, &text.into(), "a duration such as 30s, 10m, 1h30m")),
        }
    }

    /// A list, each item of it as a part of its own.
    pub(super) fn items(&mut self, field: &str) -> Result<Vec<Self>, String> {
        let place = self.path(field);
        let part = |(number, item)| Self::at(&format!("{place}[{number}]"), item);
        match self.take(field) {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) => Ok(items.into_iter().enumerate().map(part).collect()),
            Some(other) => Err(self.wrong(field, &other, "a list")),
        }
    }

    /// Takes over what was noted of a part, and what is left of it.
    pub(super) fn absorb(&mut self, part: Self) {
        self.notes.extend(part.end());
    }

    /// What was noted, and nothing of what is left.
    pub(super) fn noted(self) -> Vec<Note> {
        self.notes
    }

    /// What was noted, and everything that nobody has taken.
    pub(super) fn end(mut self) -> Vec<Note> {
        let left = std::mem::take(&mut self.left);
        leave(&self.place, &left, &mut self.notes);
        self.notes
    }
}

/// Notes what is left of a value: field by field where the table knows some of them, else as one.
fn leave(path: &str, value: &Value, notes: &mut Vec<Note>) {
    match value {
        Value::Null => {}
        Value::Object(fields) if fields.is_empty() => {}
        Value::Object(fields) if path.is_empty() || deeper(path) => {
            for (name, value) in fields {
                let below = match path {
                    "" => name.clone(),
                    path => format!("{path}.{name}"),
                };
                leave(&below, value, notes);
            }
        }
        value => notes.push(note(path.to_owned(), value, advice(path))),
    }
}

/// Whether the table has advice for fields below.
fn deeper(path: &str) -> bool {
    let below = format!("{}.", pattern(path));
    ADVICE.iter().any(|(known, _)| known.starts_with(&below))
}

/// The advice of the path, or of the nearest above.
fn advice(path: &str) -> &'static str {
    let pattern = pattern(path);
    let above = |known: &str| {
        let rest = pattern.strip_prefix(known);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    };
    ADVICE
        .iter()
        .filter(|(known, _)| above(known))
        .max_by_key(|(known, _)| known.len())
        .map_or("leave it out: a Rollout has nothing like it", |(_, advice)| {
            advice
        })
}

/// A path with its indices left out, `a[3].b` as `a[].b`, and under the name of today.
fn pattern(path: &str) -> String {
    let mut pattern = String::new();
    let mut inside = false;
    let path = path.replacen("spec.canaryAnalysis", "spec.analysis", 1);
    for letter in path.chars() {
        match letter {
            '[' => inside = true,
            ']' => inside = false,
            _ if inside => continue,
            _ => {}
        }
        pattern.push(letter);
    }
    pattern
}

fn note(path: String, value: &Value, advice: &str) -> Note {
    Note {
        path,
        value: short(value),
        advice: advice.to_owned(),
    }
}

/// A value in one line.
fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_taken_is_not_left_and_the_rest_is_named() {
        let mut fields = Fields::new(json!({ "spec": {
            "provider": "istio",
            "suspend": true,
            "nothing": null,
            "empty": {},
            "service": { "port": 80, "retries": { "attempts": 3 }, "hosts": ["a", "b"] },
            "colour": { "sky": "blue" },
        }}));
        assert_eq!(fields.flag("spec.suspend"), Ok(true));
        assert_eq!(fields.take("spec.nothing"), None);
        let left: Vec<String> = fields
            .end()
            .iter()
            .map(|note| format!("{}: {}", note.path, note.value))
            .collect();
        assert_eq!(
            left,
            [
                "spec.colour: {\"sky\":\"blue\"}",
                "spec.provider: \"istio\"",
                "spec.service.hosts: [\"a\",\"b\"]",
                "spec.service.port: 80",
                "spec.service.retries: {\"attempts\":3}",
            ]
        );
    }

    #[test]
    fn advice_is_that_of_the_nearest_path() {
        for (path, want) in [
            ("spec.service.hosts", "gateway"),
            ("spec.analysis.webhooks[12].muteAlert", "no alerts"),
            ("spec.colour", "nothing like it"),
            ("spec.providers", "nothing like it"),
        ] {
            let mut notes = Vec::new();
            leave(path, &json!(1), &mut notes);
            assert!(notes[0].advice.contains(want), "{}", notes[0]);
        }
    }

    #[test]
    fn a_wrong_value_is_named_with_what_is_allowed() {
        let mut fields = Fields::at(
            "spec.analysis",
            json!({ "interval": "soon", "stepWeight": 150, "metrics": {} }),
        );
        assert_eq!(
            fields.duration("interval"),
            Err("spec.analysis.interval is \"soon\", allowed: a duration such as 30s, 10m, 1h30m".to_owned())
        );
        assert_eq!(
            fields.percent("stepWeight", 1),
            Err("spec.analysis.stepWeight is 150, allowed: 1 to 100".to_owned())
        );
        assert!(fields.items("metrics").is_err());
        assert_eq!(
            fields.needed("name"),
            Err("spec.analysis.name is missing".to_owned())
        );
    }
}
