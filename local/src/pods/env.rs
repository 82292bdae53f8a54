//! A container's environment, and `$(VAR)` in its command.
//!
//! Order, later ones winning, as in Kubernetes: this machine's few, Service links, `envFrom`, `env`. Then ours: `PORT`,
//! where the process must listen, cannot be overridden; `POD_IP`, `POD_NAME`, `POD_NAMESPACE` are given if not set.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVar, EnvVarSource, Pod, Secret, Service};

use crate::cluster::{Cluster, NODE, PORTS_ANNOTATION, is_not_found};
use crate::controllers::given_port;

/// What of this machine's environment processes see. Not all of it: a container sees none, and secrets live there.
const INHERITED: &[&str] = &[
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "LANG",
    "LC_ALL",
    "TMPDIR",
    "TZ",
    "LD_LIBRARY_PATH",
];

/// Why a container cannot be started as it is; a later try may succeed.
#[derive(Debug, thiserror::Error)]
pub(super) enum EnvError {
    /// A ConfigMap or Secret does not exist, and is not optional.
    #[error("{kind} \"{name}\" not found")]
    NoObject {
        /// `configmap` or `secret`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// A key does not exist, and is not optional.
    #[error("couldn't find key {key} in {kind} {name}")]
    NoKey {
        /// `ConfigMap` or `Secret`.
        kind: &'static str,
        /// Its name.
        name: String,
        /// The key.
        key: String,
    },
    /// Something that this cluster cannot give.
    #[error("{variable}: {what} has no value here")]
    Unsupported {
        /// The variable.
        variable: String,
        /// The field.
        what: String,
    },
    /// The API could not be asked.
    #[error("reading {what}: {source}")]
    Api {
        /// What was asked for.
        what: String,
        /// Why it failed.
        source: kube::Error,
    },
}

/// The pod's own facts.
pub(super) struct Facts<'a> {
    pub(super) pod: &'a Pod,
    pub(super) ip: IpAddr,
    pub(super) port: u16,
}

/// Data of a ConfigMap or Secret.
type Data = BTreeMap<String, String>;

/// ConfigMaps and Secrets that a container refers to; `None`: there is none of this name.
#[derive(Default)]
pub(super) struct Sources {
    maps: BTreeMap<String, Option<Data>>,
    secrets: BTreeMap<String, Option<Data>>,
}

/// Reads what a container refers to.
pub(super) async fn sources(
    cluster: &Cluster,
    namespace: &str,
    container: &Container,
) -> Result<Sources, EnvError> {
    let mut sources = Sources::default();
    let from = container.env_from.iter().flatten();
    let values = || {
        container
            .env
            .iter()
            .flatten()
            .filter_map(|env| env.value_from.as_ref())
    };
    let maps = from
        .clone()
        .filter_map(|it| it.config_map_ref.as_ref())
        .map(|it| &it.name);
    for name in maps.chain(
        values()
            .filter_map(|it| it.config_map_key_ref.as_ref())
            .map(|it| &it.name),
    ) {
        if !sources.maps.contains_key(name) {
            let found = get::<ConfigMap>(cluster, namespace, "configmap", name).await?;
            sources
                .maps
                .insert(name.clone(), found.map(|it| it.data.unwrap_or_default()));
        }
    }
    let secrets = from.filter_map(|it| it.secret_ref.as_ref()).map(|it| &it.name);
    for name in secrets.chain(
        values()
            .filter_map(|it| it.secret_key_ref.as_ref())
            .map(|it| &it.name),
    ) {
        if !sources.secrets.contains_key(name) {
            let found = get::<Secret>(cluster, namespace, "secret", name).await?;
            sources
                .secrets
                .insert(name.clone(), found.map(|it| text_of(it.data.unwrap_or_default())));
        }
    }
    Ok(sources)
}

fn text_of(data: BTreeMap<String, k8s_openapi::ByteString>) -> Data {
    data.into_iter()
        .map(|(key, value)| (key, String::from_utf8_lossy(&value.0).into_owned()))
        .collect()
}

async fn get<K>(cluster: &Cluster, namespace: &str, kind: &str, name: &str) -> Result<Option<K>, EnvError>
where
    K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
        + serde::de::DeserializeOwned
        + Clone
        + std::fmt::Debug,
{
    match cluster.api::<K>(namespace).get(name).await {
        Ok(found) => Ok(Some(found)),
        Err(error) if is_not_found(&error) => Ok(None),
        Err(source) => Err(EnvError::Api {
            what: format!("{kind} {name}"),
            source,
        }),
    }
}

/// The environment of a container.
pub(super) fn environment(
    facts: &Facts<'_>,
    container: &Container,
    sources: &Sources,
    services: &[Arc<Service>],
) -> Result<BTreeMap<String, String>, EnvError> {
    let mut env: BTreeMap<String, String> = BTreeMap::new();
    if facts.pod.spec.as_ref().and_then(|spec| spec.enable_service_links) != Some(false) {
        env.extend(service_links(services));
    }
    add_env_from(&mut env, container, sources)?;
    for variable in container.env.iter().flatten() {
        if let Some(value) = value_of(facts, container, sources, variable, &env)? {
            env.insert(variable.name.clone(), value);
        }
    }
    let meta = &facts.pod.metadata;
    for (name, value) in [
        ("POD_IP", facts.ip.to_string()),
        ("POD_NAME", meta.name.clone().unwrap_or_default()),
        ("POD_NAMESPACE", meta.namespace.clone().unwrap_or_default()),
    ] {
        env.entry(name.to_owned()).or_insert(value);
    }
    if let Some(port) = port_for(facts, container) {
        if is_as_declared(facts.pod) {
            env.entry("PORT".to_owned()).or_insert(port.to_string());
        } else {
            env.insert("PORT".to_owned(), port.to_string());
        }
    }
    Ok(env)
}

fn is_as_declared(pod: &Pod) -> bool {
    pod.metadata
        .annotations
        .as_ref()
        .and_then(|it| it.get(PORTS_ANNOTATION))
        .is_some_and(|it| it == "as-declared")
}

/// `PORT`: for the container that declares the pod's first port; when none declares any, for the first container.
fn port_for(facts: &Facts<'_>, container: &Container) -> Option<u16> {
    let containers = facts.pod.spec.as_ref().map_or(&[][..], |spec| &spec.containers);
    let first = containers
        .iter()
        .find(|it| it.ports.as_ref().is_some_and(|ports| !ports.is_empty()));
    let owner = first.or(containers.first())?;
    if owner.name != container.name {
        return None;
    }
    let declared = owner.ports.iter().flatten().next().map(|it| it.container_port);
    match declared {
        Some(declared) if is_as_declared(facts.pod) => u16::try_from(given_port(facts.pod, declared)).ok(),
        _ => Some(facts.port),
    }
}

/// `NAME_SERVICE_HOST` and `NAME_SERVICE_PORT` of every Service of the namespace: there is no DNS here.
fn service_links(services: &[Arc<Service>]) -> impl Iterator<Item = (String, String)> {
    services.iter().flat_map(|service| {
        let name = service
            .metadata
            .name
            .clone()
            .unwrap_or_default()
            .to_uppercase()
            .replace('-', "_");
        let spec = service.spec.as_ref();
        let address = spec
            .and_then(|spec| spec.cluster_ip.clone())
            .filter(|it| !it.is_empty() && it != "None");
        let ports = spec.and_then(|spec| spec.ports.clone()).unwrap_or_default();
        let mut links = Vec::new();
        if let Some(address) = address {
            links.push((format!("{name}_SERVICE_HOST"), address));
            if let Some(first) = ports.first() {
                links.push((format!("{name}_SERVICE_PORT"), first.port.to_string()));
            }
            for port in ports {
                if let Some(port_name) = port.name {
                    let port_name = port_name.to_uppercase().replace('-', "_");
                    links.push((format!("{name}_SERVICE_PORT_{port_name}"), port.port.to_string()));
                }
            }
        }
        links
    })
}

fn add_env_from(
    env: &mut BTreeMap<String, String>,
    container: &Container,
    sources: &Sources,
) -> Result<(), EnvError> {
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        let (kind, name, optional, found) = if let Some(it) = &from.config_map_ref {
            ("configmap", &it.name, it.optional, sources.maps.get(&it.name))
        } else if let Some(it) = &from.secret_ref {
            ("secret", &it.name, it.optional, sources.secrets.get(&it.name))
        } else {
            continue;
        };
        match found.and_then(Option::as_ref) {
            Some(data) => env.extend(
                data.iter()
                    .map(|(key, value)| (format!("{prefix}{key}"), value.clone())),
            ),
            None if optional == Some(true) => {}
            None => {
                return Err(EnvError::NoObject {
                    kind,
                    name: name.clone(),
                });
            }
        }
    }
    Ok(())
}

fn value_of(
    facts: &Facts<'_>,
    container: &Container,
    sources: &Sources,
    variable: &EnvVar,
    env: &BTreeMap<String, String>,
) -> Result<Option<String>, EnvError> {
    if let Some(from) = &variable.value_from {
        return from_source(facts, sources, &variable.name, from);
    }
    let value = variable.value.as_deref().unwrap_or_default();
    let port = port_for(facts, container).map(|it| it.to_string());
    Ok(Some(expand(value, |name| match name {
        // Already known, though it is added last.
        "PORT" if port.is_some() => port.clone(),
        _ => env.get(name).cloned(),
    })))
}

fn from_source(
    facts: &Facts<'_>,
    sources: &Sources,
    variable: &str,
    from: &EnvVarSource,
) -> Result<Option<String>, EnvError> {
    if let Some(field) = &from.field_ref {
        let unsupported = || EnvError::Unsupported {
            variable: variable.to_owned(),
            what: field.field_path.clone(),
        };
        return field_value(facts, &field.field_path)
            .map(Some)
            .ok_or_else(unsupported);
    }
    if let Some(field) = &from.resource_field_ref {
        let what = format!("resourceFieldRef {} (processes have no limits)", field.resource);
        return Err(EnvError::Unsupported {
            variable: variable.to_owned(),
            what,
        });
    }
    if let Some(key) = &from.config_map_key_ref {
        return keyed(
            "configmap",
            "ConfigMap",
            &key.name,
            &key.key,
            key.optional,
            sources.maps.get(&key.name),
        );
    }
    if let Some(key) = &from.secret_key_ref {
        return keyed(
            "secret",
            "Secret",
            &key.name,
            &key.key,
            key.optional,
            sources.secrets.get(&key.name),
        );
    }
    Err(EnvError::Unsupported {
        variable: variable.to_owned(),
        what: "this kind of valueFrom".to_owned(),
    })
}

fn keyed(
    kind: &'static str,
    title: &'static str,
    name: &str,
    key: &str,
    optional: Option<bool>,
    found: Option<&Option<Data>>,
) -> Result<Option<String>, EnvError> {
    let object = found.and_then(Option::as_ref);
    match object.and_then(|data| data.get(key)) {
        Some(value) => Ok(Some(value.clone())),
        None if optional == Some(true) => Ok(None),
        None if object.is_none() => Err(EnvError::NoObject {
            kind,
            name: name.to_owned(),
        }),
        None => Err(EnvError::NoKey {
            kind: title,
            name: name.to_owned(),
            key: key.to_owned(),
        }),
    }
}

/// The downward API.
fn field_value(facts: &Facts<'_>, path: &str) -> Option<String> {
    let meta = &facts.pod.metadata;
    let keyed = |map: &Option<BTreeMap<String, String>>, key: &str| {
        map.as_ref()
            .and_then(|map| map.get(key))
            .cloned()
            .unwrap_or_default()
    };
    Some(match path {
        "metadata.name" => meta.name.clone().unwrap_or_default(),
        "metadata.namespace" => meta.namespace.clone().unwrap_or_default(),
        "metadata.uid" => meta.uid.clone().unwrap_or_default(),
        "spec.nodeName" => NODE.to_owned(),
        "spec.serviceAccountName" => facts
            .pod
            .spec
            .as_ref()?
            .service_account_name
            .clone()
            .unwrap_or_else(|| "default".to_owned()),
        "status.podIP" | "status.podIPs" => facts.ip.to_string(),
        "status.hostIP" | "status.hostIPs" => "127.0.0.1".to_owned(),
        _ => {
            let (map, key) = path.strip_suffix("']")?.split_once("['")?;
            match map {
                "metadata.labels" => keyed(&meta.labels, key),
                "metadata.annotations" => keyed(&meta.annotations, key),
                _ => return None,
            }
        }
    })
}

/// Replaces `$(NAME)`; `$$` is one dollar; what is not known stays as written, as in Kubernetes.
pub(super) fn expand(text: &str, get: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|it| it.split_once(')')) {
            match get(name) {
                Some(value) => out.push_str(&value),
                None => {
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                }
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

/// The process's whole environment: this machine's few below, `PATH` with our executable's folder first.
pub(super) fn whole(env: &BTreeMap<String, String>, ours_first: Option<&Path>) -> Vec<(String, OsString)> {
    let mut whole: Vec<(String, OsString)> = INHERITED
        .iter()
        .filter(|name| !env.contains_key(**name))
        .filter_map(|name| Some(((*name).to_owned(), std::env::var_os(name)?)))
        .collect();
    let path = env
        .get("PATH")
        .map(OsString::from)
        .or_else(|| std::env::var_os("PATH"))
        .unwrap_or_default();
    let folders = ours_first
        .map(Path::to_owned)
        .into_iter()
        .chain(std::env::split_paths(&path));
    let path = std::env::join_paths(folders).unwrap_or(path);
    whole.extend(
        env.iter()
            .filter(|(name, _)| *name != "PATH")
            .map(|(name, value)| (name.clone(), value.into())),
    );
    whole.push(("PATH".to_owned(), path));
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(yaml: &str) -> Pod {
        serde_saphyr::from_str(yaml).expect("a pod")
    }

    fn env_of(pod: &Pod, container: usize) -> Result<BTreeMap<String, String>, EnvError> {
        let facts = Facts {
            pod,
            ip: "127.64.0.9".parse().expect("an address"),
            port: 61_234,
        };
        let mut sources = Sources::default();
        sources.maps.insert(
            "map".into(),
            Some([("key".to_owned(), "value".to_owned())].into()),
        );
        sources.secrets.insert("none".into(), None);
        let containers = &pod.spec.as_ref().expect("a spec").containers;
        environment(&facts, &containers[container], &sources, &[])
    }

    #[test]
    fn references_are_expanded_as_in_kubernetes() {
        let get = |name: &str| (name == "A").then(|| "1".to_owned());
        for (text, expected) in [
            ("x$(A)y", "x1y"),
            ("$$(A)", "$(A)"),
            ("$(B)", "$(B)"),
            ("$A $", "$A $"),
            ("$(A", "$(A"),
            ("$$$(A)", "$1"),
            ("$()", "$()"),
        ] {
            assert_eq!(expand(text, get), expected, "{text}");
        }
    }

    #[test]
    fn variables_come_from_everywhere_and_the_port_is_ours() {
        let pod = pod("
metadata: { name: web-1, namespace: shop, uid: u, labels: { app: web } }
spec:
  containers:
  - name: web
    ports: [{ containerPort: 8080 }]
    envFrom: [{ prefix: P_, configMapRef: { name: map } }]
    env:
    - { name: PORT, value: \"8080\" }
    - { name: URL, value: \"http://$(IP):$(PORT)/$(P_key)\" , }
    - { name: IP, valueFrom: { fieldRef: { fieldPath: status.podIP } } }
    - { name: LATER, value: \"$(IP)\" }
    - { name: APP, valueFrom: { fieldRef: { fieldPath: \"metadata.labels['app']\" } } }
    - { name: KEY, valueFrom: { configMapKeyRef: { name: map, key: key } } }
    - { name: MAYBE, valueFrom: { secretKeyRef: { name: none, key: x, optional: true } } }
  - name: side
    ports: [{ containerPort: 9090 }]
");
        let env = env_of(&pod, 0).expect("an environment");
        let get = |name: &str| env.get(name).map(String::as_str);
        assert_eq!(get("PORT"), Some("61234"));
        assert_eq!(get("URL"), Some("http://$(IP):61234/value"));
        assert_eq!(get("LATER"), Some("127.64.0.9"));
        assert_eq!(get("APP"), Some("web"));
        assert_eq!(get("KEY"), Some("value"));
        assert_eq!(get("MAYBE"), None);
        assert_eq!(get("POD_NAMESPACE"), Some("shop"));
        assert_eq!(env_of(&pod, 1).expect("an environment").get("PORT"), None);
    }

    #[test]
    fn what_is_missing_is_named() {
        for (env, expected) in [
            (
                "valueFrom: { secretKeyRef: { name: none, key: x } }",
                "secret \"none\" not found",
            ),
            (
                "valueFrom: { configMapKeyRef: { name: map, key: x } }",
                "couldn't find key x in ConfigMap map",
            ),
            (
                "valueFrom: { resourceFieldRef: { resource: limits.cpu } }",
                "V: resourceFieldRef limits.cpu (processes have no limits) has no value here",
            ),
            (
                "valueFrom: { fieldRef: { fieldPath: spec.x } }",
                "V: spec.x has no value here",
            ),
        ] {
            let yaml = format!("spec: {{ containers: [{{ name: a, env: [{{ name: V, {env} }}] }}] }}");
            assert_eq!(
                env_of(&pod(&yaml), 0).expect_err("an error").to_string(),
                expected
            );
        }
    }

    #[test]
    fn declared_ports_stay_when_the_pod_says_so() {
        let pod = pod("
metadata: { annotations: { dormouse.dev/ports: as-declared, dormouse.dev/port: \"61234\" } }
spec: { containers: [{ name: a, ports: [{ containerPort: 9001 }, { containerPort: 9000 }] }] }
");
        assert_eq!(
            env_of(&pod, 0)
                .expect("an environment")
                .get("PORT")
                .map(String::as_str),
            Some("9001")
        );
    }
}
