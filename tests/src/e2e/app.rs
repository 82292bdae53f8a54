//! The manifests of a test application: a Deployment of the witness and a Service, as a user would write them.

use std::fmt::Write;

use super::cluster::Cluster;

/// The port of its Service. Above 1024, so that its own address can listen on it without privileges.
pub const SERVICE_PORT: u16 = 8080;

/// A test application.
#[derive(Clone, Debug)]
pub struct App {
    name: String,
    replicas: u32,
    annotations: Vec<(String, String)>,
    environment: Vec<(String, String)>,
    command: Option<Vec<String>>,
    probe: String,
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
            command: None,
            probe: "tcpSocket: {port: 8080}".to_owned(),
        }
        .annotate("scale-to-zero", "true")
        .annotate("keep-alive", "2s")
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

    /// Runs something else than the witness. Empty: the image decides, and there is none.
    #[must_use]
    pub fn command(mut self, command: &[&str]) -> Self {
        self.command = Some(command.iter().map(|&word| word.to_owned()).collect());
        self
    }

    /// The readiness probe's action, as flow YAML.
    #[must_use]
    pub fn probe(mut self, action: &str) -> Self {
        action.clone_into(&mut self.probe);
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
        let Self {
            name,
            replicas,
            probe,
            ..
        } = self;
        let witness = vec![cluster.witness_binary().display().to_string()];
        let command = self.command.as_ref().unwrap_or(&witness);
        let command = if command.is_empty() {
            String::new()
        } else {
            format!("        command: {command:?}\n")
        };
        let file = cluster.witness().path().display().to_string();
        let mut environment = format!("        - {{name: WITNESS_FILE, value: {file:?}}}\n");
        for (name, value) in &self.environment {
            // Writing to a String cannot fail.
            let _ = writeln!(environment, "        - {{name: {name}, value: {value:?}}}");
        }
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
      containers:
      - name: app
        image: dormouse.test/witness:1
{command}        env:
{environment}        - name: POD_NAME
          valueFrom: {{fieldRef: {{fieldPath: metadata.name}}}}
        - name: POD_IP
          valueFrom: {{fieldRef: {{fieldPath: status.podIP}}}}
        ports:
        - containerPort: 8080
        readinessProbe:
          periodSeconds: 1
          {probe}
"
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
        format!(
            "apiVersion: v1
kind: Service
metadata:
  name: {name}
  namespace: default
{annotations}spec:
  selector: {{app: {name}}}
  ports:
  - port: {SERVICE_PORT}
    targetPort: 8080
"
        )
    }
}
