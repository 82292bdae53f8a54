//! The rules of each kind that users meet.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{labels, port_number, port_reference, protocol};
use crate::api::names;
use crate::api::status::Cause;

pub(super) fn service(object: &Value, causes: &mut Vec<Cause>) {
    let spec = &object["spec"];
    let kind = spec["type"].as_str().unwrap_or_default();
    let ports: Vec<&Value> = spec["ports"].as_array().into_iter().flatten().collect();
    match kind {
        "ClusterIP" | "NodePort" | "LoadBalancer" => {
            let headless = spec["clusterIP"] == "None";
            if ports.is_empty() && !headless {
                causes.push(Cause::required("spec.ports", ""));
            }
            if headless && kind != "ClusterIP" {
                causes.push(Cause::invalid(
                    "spec.clusterIPs[0]",
                    &json!("None"),
                    &format!("may not be set to 'None' for {kind} services"),
                ));
            }
        }
        "ExternalName" => {
            if spec["externalName"].as_str().is_none_or(str::is_empty) {
                causes.push(Cause::required("spec.externalName", ""));
            }
        }
        _ => causes.push(Cause::unsupported(
            "spec.type",
            &spec["type"],
            &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"],
        )),
    }
    if !matches!(spec["sessionAffinity"].as_str(), Some("None" | "ClientIP")) {
        causes.push(Cause::unsupported(
            "spec.sessionAffinity",
            &spec["sessionAffinity"],
            &["ClientIP", "None"],
        ));
    }
    for key in ["internalTrafficPolicy", "externalTrafficPolicy"] {
        if spec.get(key).is_some() && !matches!(spec[key].as_str(), Some("Cluster" | "Local")) {
            causes.push(Cause::unsupported(
                format!("spec.{key}"),
                &spec[key],
                &["Cluster", "Local"],
            ));
        }
    }
    labels(&spec["selector"], "spec.selector", causes);
    let (mut seen_names, mut seen_ports) = (BTreeSet::new(), BTreeSet::new());
    for (at, port) in ports.iter().enumerate() {
        let field = format!("spec.ports[{at}]");
        let name = port["name"].as_str().unwrap_or_default();
        if name.is_empty() {
            if ports.len() > 1 {
                causes.push(Cause::required(format!("{field}.name"), ""));
            }
        } else if let Some(why) = names::label_error(name) {
            causes.push(Cause::invalid(format!("{field}.name"), &port["name"], &why));
        } else if !seen_names.insert(name) {
            causes.push(Cause::duplicate(format!("{field}.name"), &port["name"]));
        }
        port_number(&port["port"], format!("{field}.port"), causes);
        protocol(&port["protocol"], format!("{field}.protocol"), causes);
        if port.get("targetPort").is_some() {
            port_reference(&port["targetPort"], format!("{field}.targetPort"), causes);
        }
        if !seen_ports.insert((port["port"].as_i64(), port["protocol"].as_str())) {
            let shown = json!({ "port": port["port"], "protocol": port["protocol"] });
            causes.push(Cause::duplicate(field, &shown));
        }
    }
}

pub(super) fn data(object: &Value, causes: &mut Vec<Cause>) {
    let mut bytes = 0;
    for map in ["data", "binaryData", "stringData"] {
        for (key, value) in object[map].as_object().into_iter().flatten() {
            bytes += value.as_str().map_or(0, str::len);
            let good = key.len() <= 253
                && !matches!(key.as_str(), "." | "..")
                && key
                    .bytes()
                    .all(|it| it.is_ascii_alphanumeric() || matches!(it, b'-' | b'_' | b'.'));
            if !good || key.is_empty() {
                causes.push(Cause::invalid(
                    format!("{map}[{key}]"),
                    &json!(key),
                    "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')",
                ));
            }
        }
    }
    if bytes > 1 << 20 {
        causes.push(Cause::too_long("", 1 << 20));
    }
}

pub(super) fn slice(object: &Value, causes: &mut Vec<Cause>) {
    let kind = object["addressType"].as_str().unwrap_or_default();
    if kind.is_empty() {
        causes.push(Cause::required("addressType", ""));
    } else if !matches!(kind, "IPv4" | "IPv6" | "FQDN") {
        causes.push(Cause::unsupported(
            "addressType",
            &object["addressType"],
            &["FQDN", "IPv4", "IPv6"],
        ));
    }
    let endpoints: Vec<&Value> = object["endpoints"].as_array().into_iter().flatten().collect();
    if endpoints.len() > 1_000 {
        causes.push(Cause::too_many("endpoints", endpoints.len(), 1_000));
        return;
    }
    for (at, endpoint) in endpoints.iter().enumerate() {
        let addresses: Vec<&Value> = endpoint["addresses"].as_array().into_iter().flatten().collect();
        let field = format!("endpoints[{at}].addresses");
        if addresses.is_empty() {
            causes.push(Cause::required(field.clone(), "must contain at least 1 address"));
        } else if addresses.len() > 100 {
            causes.push(Cause::too_many(field.clone(), addresses.len(), 100));
        }
        for (place, address) in addresses.iter().enumerate() {
            let text = address.as_str().unwrap_or_default();
            let good = match kind {
                "IPv4" => text.parse::<std::net::Ipv4Addr>().is_ok(),
                "IPv6" => text.parse::<std::net::Ipv6Addr>().is_ok(),
                "FQDN" => names::subdomain_error(text).is_none(),
                _ => true,
            };
            if !good {
                let why = if kind == "FQDN" {
                    "should be a domain name".to_owned()
                } else {
                    format!("must be an {kind} address")
                };
                causes.push(Cause::invalid(format!("{field}[{place}]"), address, &why));
            }
        }
    }
    let ports: Vec<&Value> = object["ports"].as_array().into_iter().flatten().collect();
    if ports.len() > 100 {
        causes.push(Cause::too_many("ports", ports.len(), 100));
        return;
    }
    let mut seen = BTreeSet::new();
    for (at, port) in ports.iter().enumerate() {
        let name = port["name"].as_str().unwrap_or_default();
        let field = format!("ports[{at}].name");
        if !seen.insert(name) {
            causes.push(Cause::duplicate(field, &json!(name)));
        } else if let Some(why) = (!name.is_empty()).then(|| names::label_error(name)).flatten() {
            causes.push(Cause::invalid(field, &json!(name), &why));
        }
        protocol(&port["protocol"], format!("ports[{at}].protocol"), causes);
        port_number(&port["port"], format!("ports[{at}].port"), causes);
    }
}

pub(super) fn lease(object: &Value, causes: &mut Vec<Cause>) {
    let spec = &object["spec"];
    if spec["leaseDurationSeconds"]
        .as_i64()
        .is_some_and(|seconds| seconds <= 0)
    {
        causes.push(Cause::invalid(
            "spec.leaseDurationSeconds",
            &spec["leaseDurationSeconds"],
            "must be greater than 0",
        ));
    }
    if spec["leaseTransitions"].as_i64().is_some_and(|count| count < 0) {
        causes.push(Cause::invalid(
            "spec.leaseTransitions",
            &spec["leaseTransitions"],
            "must be greater than or equal to 0",
        ));
    }
}

pub(super) fn autoscaler(object: &Value, causes: &mut Vec<Cause>) {
    let spec = &object["spec"];
    if let Some(most) = spec["maxReplicas"].as_i64() {
        if most < 1 {
            causes.push(Cause::invalid(
                "spec.maxReplicas",
                &spec["maxReplicas"],
                "must be greater than 0",
            ));
        }
        let least = spec["minReplicas"].as_i64().unwrap_or(1);
        if least < 1 {
            causes.push(Cause::invalid(
                "spec.minReplicas",
                &json!(least),
                "must be greater than or equal to 1",
            ));
        }
        if most < least {
            causes.push(Cause::invalid(
                "spec.maxReplicas",
                &json!(most),
                "must be greater than or equal to `minReplicas`",
            ));
        }
    }
}

pub(super) fn definition(object: &Value, causes: &mut Vec<Cause>) {
    let spec = &object["spec"];
    let text = |pointer: &str| spec.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let (group, plural) = (text("/group"), text("/names/plural"));
    let expected = format!("{plural}.{group}");
    if object["metadata"]["name"] != expected.as_str() {
        causes.push(Cause::invalid(
            "metadata.name",
            &object["metadata"]["name"],
            "must be spec.names.plural+\".\"+spec.group",
        ));
    }
    if !matches!(text("/scope"), "Namespaced" | "Cluster") {
        causes.push(Cause::unsupported(
            "spec.scope",
            &spec["scope"],
            &["Cluster", "Namespaced"],
        ));
    }
    let versions: Vec<&Value> = spec["versions"].as_array().into_iter().flatten().collect();
    if versions.is_empty() {
        causes.push(Cause::required("spec.versions", ""));
    }
    if versions.iter().filter(|it| it["storage"] == true).count() != 1 {
        causes.push(Cause::invalid(
            "spec.versions",
            &spec["versions"],
            "must have exactly one version marked as storage version",
        ));
    }
    for (at, version) in versions.iter().enumerate() {
        if version.pointer("/schema/openAPIV3Schema").is_none() {
            causes.push(Cause::required(
                format!("spec.versions[{at}].schema.openAPIV3Schema"),
                "schemas are required",
            ));
        }
    }
}
