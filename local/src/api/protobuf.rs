//! Kubernetes' protobuf, as far as `kubectl create KIND` speaks it: read into JSON, never written.
//!
//! `kubectl` sends what it makes up itself (`create configmap`, `run`, `auth can-i`) in protobuf only. The numbers below
//! are those of Kubernetes' `generated.proto` files. A message with a field that is not listed is refused with 415
//! rather than stored without it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

/// What a field holds.
#[derive(Clone, Copy)]
enum Kind {
    Text,
    Bytes,
    Number,
    Flag,
    /// `IntOrString`.
    Either,
    /// `Quantity`: its text in a message.
    Quantity,
    Message(&'static [Field]),
    /// A map from text to text, or to bytes.
    Texts,
    BytesMap,
    /// Read and dropped: empty on everything that is about to be created.
    Dropped,
}

use Kind::{Bytes, BytesMap, Dropped, Either, Flag, Message, Number, Quantity, Text, Texts};

/// Number, name, kind, repeated.
type Field = (u32, &'static str, Kind, bool);

const METADATA: &[Field] = &[
    (1, "name", Text, false),
    (2, "generateName", Text, false),
    (3, "namespace", Text, false),
    (4, "selfLink", Dropped, false),
    (5, "uid", Text, false),
    (6, "resourceVersion", Text, false),
    (7, "generation", Dropped, false),
    (8, "creationTimestamp", Dropped, false),
    (11, "labels", Texts, false),
    (12, "annotations", Texts, false),
    (14, "finalizers", Text, true),
];

const SELECTOR: &[Field] = &[
    (1, "matchLabels", Texts, false),
    (
        2,
        "matchExpressions",
        Message(&[
            (1, "key", Text, false),
            (2, "operator", Text, false),
            (3, "values", Text, true),
        ]),
        true,
    ),
];

const ENV: &[Field] = &[(1, "name", Text, false), (2, "value", Text, false)];

const CONTAINER_PORT: &[Field] = &[
    (1, "name", Text, false),
    (2, "hostPort", Number, false),
    (3, "containerPort", Number, false),
    (4, "protocol", Text, false),
    (5, "hostIP", Text, false),
];

const CONTAINER: &[Field] = &[
    (1, "name", Text, false),
    (2, "image", Text, false),
    (3, "command", Text, true),
    (4, "args", Text, true),
    (5, "workingDir", Text, false),
    (6, "ports", Message(CONTAINER_PORT), true),
    (7, "env", Message(ENV), true),
    (8, "resources", Message(&[]), false),
    (13, "terminationMessagePath", Text, false),
    (14, "imagePullPolicy", Text, false),
    (16, "stdin", Flag, false),
    (17, "stdinOnce", Flag, false),
    (18, "tty", Flag, false),
    (20, "terminationMessagePolicy", Text, false),
];

const POD_SPEC: &[Field] = &[
    (2, "containers", Message(CONTAINER), true),
    (3, "restartPolicy", Text, false),
    (4, "terminationGracePeriodSeconds", Number, false),
    (6, "dnsPolicy", Text, false),
    (7, "nodeSelector", Texts, false),
    (8, "serviceAccountName", Text, false),
    (9, "serviceAccount", Text, false),
    (10, "nodeName", Text, false),
    (11, "hostNetwork", Flag, false),
    (12, "hostPID", Flag, false),
    (13, "hostIPC", Flag, false),
    (14, "securityContext", Message(&[]), false),
    (16, "hostname", Text, false),
    (17, "subdomain", Text, false),
    (19, "schedulerName", Text, false),
    (24, "priorityClassName", Text, false),
];

const TEMPLATE: &[Field] = &[
    (1, "metadata", Message(METADATA), false),
    (2, "spec", Message(POD_SPEC), false),
];

const DEPLOYMENT_SPEC: &[Field] = &[
    (1, "replicas", Number, false),
    (2, "selector", Message(SELECTOR), false),
    (3, "template", Message(TEMPLATE), false),
    (4, "strategy", Message(&[(1, "type", Text, false)]), false),
    (5, "minReadySeconds", Number, false),
    (6, "revisionHistoryLimit", Number, false),
    (7, "paused", Flag, false),
    (9, "progressDeadlineSeconds", Number, false),
];

const SERVICE_PORT: &[Field] = &[
    (1, "name", Text, false),
    (2, "protocol", Text, false),
    (3, "port", Number, false),
    (4, "targetPort", Either, false),
    (5, "nodePort", Number, false),
    (6, "appProtocol", Text, false),
];

const SERVICE_SPEC: &[Field] = &[
    (1, "ports", Message(SERVICE_PORT), true),
    (2, "selector", Texts, false),
    (3, "clusterIP", Text, false),
    (4, "type", Text, false),
    (5, "externalIPs", Text, true),
    (7, "sessionAffinity", Text, false),
    (8, "loadBalancerIP", Text, false),
    (10, "externalName", Text, false),
    (11, "externalTrafficPolicy", Text, false),
    (12, "healthCheckNodePort", Number, false),
    (13, "publishNotReadyAddresses", Flag, false),
    (18, "clusterIPs", Text, true),
];

const ACCESS: &[Field] = &[
    (1, "namespace", Text, false),
    (2, "verb", Text, false),
    (3, "group", Text, false),
    (4, "version", Text, false),
    (5, "resource", Text, false),
    (6, "subresource", Text, false),
    (7, "name", Text, false),
];

const ACCESS_SPEC: &[Field] = &[
    (1, "resourceAttributes", Message(ACCESS), false),
    (
        2,
        "nonResourceAttributes",
        Message(&[(1, "path", Text, false), (2, "verb", Text, false)]),
        false,
    ),
];

/// autoscaling/v1.
const AUTOSCALER_SPEC_V1: &[Field] = &[
    (1, "scaleTargetRef", Message(SCALE_TARGET), false),
    (2, "minReplicas", Number, false),
    (3, "maxReplicas", Number, false),
    (4, "targetCPUUtilizationPercentage", Number, false),
];

const SCALE_TARGET: &[Field] = &[
    (1, "kind", Text, false),
    (2, "name", Text, false),
    (3, "apiVersion", Text, false),
];

/// autoscaling/v2, with the metrics that `kubectl autoscale` can name.
const AUTOSCALER_SPEC: &[Field] = &[
    (1, "scaleTargetRef", Message(SCALE_TARGET), false),
    (2, "minReplicas", Number, false),
    (3, "maxReplicas", Number, false),
    (4, "metrics", Message(METRIC), true),
];

const METRIC: &[Field] = &[
    (1, "type", Text, false),
    (
        4,
        "resource",
        Message(&[
            (1, "name", Text, false),
            (2, "target", Message(METRIC_TARGET), false),
        ]),
        false,
    ),
];

const METRIC_TARGET: &[Field] = &[
    (1, "type", Text, false),
    (2, "value", Quantity, false),
    (3, "averageValue", Quantity, false),
    (4, "averageUtilization", Number, false),
];

const BUDGET_SPEC: &[Field] = &[
    (1, "minAvailable", Either, false),
    (2, "selector", Message(SELECTOR), false),
    (3, "maxUnavailable", Either, false),
    (4, "unhealthyPodEvictionPolicy", Text, false),
];

const RULES_SPEC: &[Field] = &[(1, "namespace", Text, false)];

const DELETE_OPTIONS: &[Field] = &[
    (1, "gracePeriodSeconds", Number, false),
    (
        2,
        "preconditions",
        Message(&[(1, "uid", Text, false), (2, "resourceVersion", Text, false)]),
        false,
    ),
    (3, "orphanDependents", Flag, false),
    (4, "propagationPolicy", Text, false),
    (5, "dryRun", Text, true),
];

const METADATA_FIELD: Field = (1, "metadata", Message(METADATA), false);
const STATUS_FIELD: Field = (3, "status", Dropped, false);

/// The fields of a kind; none: it is not read.
fn kind_fields(api_version: &str, kind: &str) -> Option<&'static [Field]> {
    Some(match kind {
        "Namespace" => &[
            METADATA_FIELD,
            (2, "spec", Message(&[(1, "finalizers", Text, true)]), false),
            STATUS_FIELD,
        ],
        "ConfigMap" => &[
            METADATA_FIELD,
            (2, "data", Texts, false),
            (3, "binaryData", BytesMap, false),
            (4, "immutable", Flag, false),
        ],
        "Secret" => &[
            METADATA_FIELD,
            (2, "data", BytesMap, false),
            (3, "type", Text, false),
            (4, "stringData", Texts, false),
            (5, "immutable", Flag, false),
        ],
        "ServiceAccount" => &[METADATA_FIELD],
        "Pod" => &[
            METADATA_FIELD,
            (2, "spec", Message(POD_SPEC), false),
            STATUS_FIELD,
        ],
        "Deployment" => &[
            METADATA_FIELD,
            (2, "spec", Message(DEPLOYMENT_SPEC), false),
            STATUS_FIELD,
        ],
        "Service" => &[
            METADATA_FIELD,
            (2, "spec", Message(SERVICE_SPEC), false),
            STATUS_FIELD,
        ],
        "SelfSubjectAccessReview" => &[
            METADATA_FIELD,
            (2, "spec", Message(ACCESS_SPEC), false),
            STATUS_FIELD,
        ],
        "HorizontalPodAutoscaler" if api_version == "autoscaling/v1" => &[
            METADATA_FIELD,
            (2, "spec", Message(AUTOSCALER_SPEC_V1), false),
            STATUS_FIELD,
        ],
        "HorizontalPodAutoscaler" => &[
            METADATA_FIELD,
            (2, "spec", Message(AUTOSCALER_SPEC), false),
            STATUS_FIELD,
        ],
        "PodDisruptionBudget" => &[
            METADATA_FIELD,
            (2, "spec", Message(BUDGET_SPEC), false),
            STATUS_FIELD,
        ],
        "SelfSubjectRulesReview" => &[
            METADATA_FIELD,
            (2, "spec", Message(RULES_SPEC), false),
            STATUS_FIELD,
        ],
        "SelfSubjectReview" => &[METADATA_FIELD, (2, "status", Dropped, false)],
        "DeleteOptions" => DELETE_OPTIONS,
        _ => return None,
    })
}

/// The object in a body of `application/vnd.kubernetes.protobuf`; none: it is damaged, or holds something not listed.
pub(crate) fn read(body: &[u8]) -> Option<Value> {
    let body = body.strip_prefix(b"k8s\0")?;
    let (mut kind, mut api_version, mut raw): (String, String, &[u8]) = Default::default();
    for field in Fields(body) {
        match field? {
            (1, Wire::Bytes(bytes)) => {
                for part in Fields(bytes) {
                    match part? {
                        (1, Wire::Bytes(text)) => api_version = std::str::from_utf8(text).ok()?.to_owned(),
                        (2, Wire::Bytes(text)) => kind = std::str::from_utf8(text).ok()?.to_owned(),
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    let mut object = message(kind_fields(&api_version, &kind)?, raw, 0)?;
    object.insert("kind".to_owned(), json!(kind));
    object.insert("apiVersion".to_owned(), json!(api_version));
    Some(Value::Object(object))
}

fn message(fields: &[Field], bytes: &[u8], depth: usize) -> Option<Map<String, Value>> {
    // The tables above nest less deep; a message that does not is not one of theirs.
    if depth > 16 {
        return None;
    }
    let mut map = Map::new();
    for field in Fields(bytes) {
        let (number, wire) = field?;
        let Some((_, name, kind, repeated)) = fields.iter().find(|it| it.0 == number) else {
            // Go writes empty messages and zeros of fields that it does not leave out; those say nothing.
            if matches!(wire, Wire::Number(0)) || matches!(wire, Wire::Bytes(bytes) if bytes.is_empty()) {
                continue;
            }
            return None;
        };
        let value = match (kind, wire) {
            (Dropped, _) => continue,
            (Text, Wire::Bytes(text)) => json!(std::str::from_utf8(text).ok()?),
            (Bytes, Wire::Bytes(bytes)) => json!(STANDARD.encode(bytes)),
            // Negative numbers are written as 64-bit two's complement.
            (Number, Wire::Number(number)) => json!(i64::from_ne_bytes(number.to_ne_bytes())),
            (Flag, Wire::Number(number)) => json!(number != 0),
            (Either, Wire::Bytes(bytes)) => either(bytes)?,
            (Quantity, Wire::Bytes(bytes)) => {
                let inner = message(&[(1, "string", Text, false)], bytes, depth + 1)?;
                inner.get("string").cloned().unwrap_or_else(|| json!("0"))
            }
            (Message(inner), Wire::Bytes(bytes)) => Value::Object(message(inner, bytes, depth + 1)?),
            (Texts | BytesMap, Wire::Bytes(bytes)) => {
                let held = if matches!(kind, Texts) { Text } else { Bytes };
                let entry = message(
                    &[(1, "key", Text, false), (2, "value", held, false)],
                    bytes,
                    depth + 1,
                )?;
                let key = entry
                    .get("key")
                    .and_then(Value::as_str)
                    .unwrap_or_default()
                    .to_owned();
                let all = map.entry((*name).to_owned()).or_insert_with(|| json!({}));
                all[key] = entry.get("value").cloned().unwrap_or_else(|| json!(""));
                continue;
            }
            _ => return None,
        };
        if *repeated {
            let all = map.entry((*name).to_owned()).or_insert_with(|| json!([]));
            all.as_array_mut()?.push(value);
        } else if value != json!("") && !(value == json!(0) && *name == "targetPort") {
            map.insert((*name).to_owned(), value);
        }
    }
    // Go writes the number 0 and false of fields that JSON leaves out.
    for zero in ["hostPort", "nodePort", "healthCheckNodePort", "minReadySeconds"] {
        if map.get(zero) == Some(&json!(0)) {
            map.remove(zero);
        }
    }
    map.retain(|_, value| *value != json!(false));
    Some(map)
}

fn either(bytes: &[u8]) -> Option<Value> {
    let (mut is_text, mut number, mut text) = (false, 0, String::new());
    for field in Fields(bytes) {
        match field? {
            (1, Wire::Number(kind)) => is_text = kind == 1,
            (2, Wire::Number(value)) => number = i64::from_ne_bytes(value.to_ne_bytes()),
            (3, Wire::Bytes(value)) => std::str::from_utf8(value).ok()?.clone_into(&mut text),
            _ => {}
        }
    }
    Some(if is_text { json!(text) } else { json!(number) })
}

/// What the wire holds.
#[derive(Clone, Copy)]
enum Wire<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message; none: it is damaged.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Option<(u32, Wire<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field)
    }
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Option<(u32, Wire<'a>)> {
        let key = self.varint()?;
        let number = u32::try_from(key >> 3).ok()?;
        let wire = match key & 7 {
            0 => Wire::Number(self.varint()?),
            1 => Wire::Bytes(self.take(8)?),
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                Wire::Bytes(self.take(length)?)
            }
            5 => Wire::Bytes(self.take(4)?),
            _ => return None,
        };
        Some((number, wire))
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = *self.take(1)?.first()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::read;

    fn tagged(number: u8, bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![number << 3 | 2, u8::try_from(bytes.len()).unwrap()];
        out.extend_from_slice(bytes);
        out
    }

    #[test]
    fn a_config_map_is_read_and_damage_is_refused() {
        let type_meta = [tagged(1, b"v1"), tagged(2, b"ConfigMap")].concat();
        let entry = [tagged(1, b"k"), tagged(2, b"v")].concat();
        let map = [tagged(1, &tagged(1, b"cm")), tagged(2, &entry)].concat();
        let body = [b"k8s\0".to_vec(), tagged(1, &type_meta), tagged(2, &map)].concat();
        assert_eq!(
            read(&body),
            Some(json!({
                "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "cm" }, "data": { "k": "v" },
            }))
        );
        for end in 5..body.len() {
            // Whatever comes of it, no panic.
            let _ = read(&body[..end]);
        }
        assert_eq!(read(b"{}"), None);
    }
}
