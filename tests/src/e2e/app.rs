//! The manifests of a test application: a Deployment of the witness and a Service, as a user would write them.

use std::fmt::Write;

use super::cluster::Cluster;
use super::real::{IMAGE, real};

/// The port of its Service. Above 1024, so that its own address can listen on it without privileges.
pub const SERVICE_PORT: u16 = 8080;

/// A test application.
#[derive(Clone, Debug)]
pub struct App {
    name: String,
    replicas: u32,
    annotations: Vec<(String, String)>,
    environment: Vec<(String, String)>,
    arguments: Vec<String>,
    image: Option<String>,
    probe: Option<String>,
    node_port: bool,
    witnessed: bool,
    token: bool,
}

impl App {
    /// One replica, opted in, asleep after two idle seconds, ready when its port accepts connections.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            replicas: 1,
            annotations: vec![],
            environment: vec![],
            arguments: vec![],
            image: None,
            probe: Some("tcpSocket: {port: 8080}".to_owned()),
            node_port: real(),
            witnessed: true,
            token: true,
        }
        .annotate("scale-to-zero", "true")
        .annotate("keep-alive", "2s")
    }

    /// Its name, which Deployment and Service have.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Sets annotation `dormouse.dev/KEY` on the Service.
    #[must_use]
    pub fn annotate(mut self, key: &str, value: &str) -> Self {
        self.annotations.retain(|(known, _)| known != key);
        self.annotations.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Takes all annotations away: a Service that is not opted in.
    #[must_use]
    pub fn plain(mut self) -> Self {
        self.annotations.clear();
        self
    }

    /// The Deployment's replicas.
    #[must_use]
    pub fn replicas(mut self, replicas: u32) -> Self {
        self.replicas = replicas;
        self
    }

    /// Adds a variable to the container.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Gives the witness arguments.
    #[must_use]
    pub fn arguments(mut self, arguments: &[&str]) -> Self {
        self.arguments = arguments.iter().map(|&word| word.to_owned()).collect();
        self
    }

    /// Runs another image, by its own command.
    #[must_use]
    pub fn image(mut self, image: &str) -> Self {
        self.image = Some(image.to_owned());
        self
    }

    /// The readiness probe's action, as flow YAML.
    #[must_use]
    pub fn probe(mut self, action: &str) -> Self {
        self.probe = Some(action.to_owned());
        self
    }

    /// No NodePort, which a Service has on a real cluster otherwise.
    #[must_use]
    pub fn cluster_only(mut self) -> Self {
        self.node_port = false;
        self
    }

    /// Nothing is written down, so that the pod has no volume for it.
    #[must_use]
    pub fn unwitnessed(mut self) -> Self {
        self.witnessed = false;
        self
    }

    /// No service account's token is mounted.
    #[must_use]
    pub fn tokenless(mut self) -> Self {
        self.token = false;
        self
    }

    /// Both objects.
    #[must_use]
    pub fn yaml(&self, cluster: &Cluster) -> String {
        format!("{}---\n{}", self.deployment(cluster), self.service())
    }

    /// The Deployment alone.
    #[must_use]
    pub fn deployment(&self, cluster: &Cluster) -> String {
        let Self { name, replicas, .. } = self;
        let image = match &self.image {
            Some(image) => format!("        image: {image}\n"),
            None => {
                let mut command = vec![cluster.witness_program()];
                command.extend_from_slice(&self.arguments);
                format!("        image: {IMAGE}\n        command: {command:?}\n")
            }
        };
        let mut environment = String::new();
        // Writing to a String cannot fail.
        for (name, value) in &self.environment {
            let _ = writeln!(environment, "        - {{name: {name}, value: {value:?}}}");
        }
        let (mut pod, mut mounts) = (String::new(), String::new());
        if !self.token {
            pod.push_str("      automountServiceAccountToken: false\n");
        }
        if self.witnessed {
            let folder = cluster.witness_folder();
            let _ = writeln!(
                environment,
                "        - {{name: WITNESS_FILE, value: {folder}/witness}}"
            );
            // The embedded cluster's pods are processes of this machine, and find it without a volume.
            if cluster.is_real() {
                let host = cluster.folder.display();
                let _ = writeln!(pod, "      volumes: [{{name: e2e, hostPath: {{path: {host}}}}}]");
                let _ = writeln!(
                    mounts,
                    "        volumeMounts: [{{name: e2e, mountPath: {folder}}}]"
                );
            }
        }
        let probe = self.probe.as_ref().map(|action| {
            format!("        readinessProbe:\n          periodSeconds: 1\n          {action}\n")
        });
        let probe = probe.unwrap_or_default();
        // A fieldRef is one value: without the version that the API adds, a second applier is in conflict with the first.
        format!(
            "apiVersion: apps/v1
kind: Deployment
metadata:
  name: {name}
  namespace: default
spec:
  replicas: {replicas}
  selector:
    matchLabels: {{app: {name}}}
  template:
    metadata:
      labels: {{app: {name}}}
    spec:
      terminationGracePeriodSeconds: 5
{pod}      containers:
      - name: app
{image}        env:
{environment}        - name: POD_NAME
          valueFrom: {{fieldRef: {{apiVersion: v1, fieldPath: metadata.name}}}}
        - name: POD_IP
          valueFrom: {{fieldRef: {{apiVersion: v1, fieldPath: status.podIP}}}}
        ports:
        - containerPort: 8080
{mounts}{probe}"
        )
    }

    /// The Service alone.
    #[must_use]
    pub fn service(&self) -> String {
        let name = &self.name;
        let mut annotations = String::new();
        for (key, value) in &self.annotations {
            let _ = writeln!(annotations, "    dormouse.dev/{key}: {value:?}");
        }
        if !annotations.is_empty() {
            annotations.insert_str(0, "  annotations:\n");
        }
        let kind = if self.node_port { "  type: NodePort\n" } else { "" };
        format!(
            "apiVersion: v1
kind: Service
metadata:
  name: {name}
  namespace: default
{annotations}spec:
{kind}  selector: {{app: {name}}}
  ports:
  - port: {SERVICE_PORT}
    targetPort: 8080
"
        )
    }
}
