//! Writes for rollouts: statuses, revisions, and the Deployments that are their pools.

use crds::names::{AUTOSCALER_MANAGER, PAUSED_ANNOTATION, RELEASE_FINALIZER};
use crds::revision::RevisionStatus;
use crds::{Revision, Rollout};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Secret;
use kube::api::PostParams;
use kube::{Api, Resource};
use serde_json::{Value, json};

use super::{Cluster, Error, JSON, MERGE, answered};
use crate::state::RouteKey;

impl Cluster {
    /// Writes the status of a Rollout that is still as it was read, and returns the Rollout as it now is.
    ///
    /// # Errors
    /// [`Error::Conflict`] when somebody has written it meanwhile: look again.
    pub(crate) async fn write_rollout_status(&self, rollout: &Rollout) -> Result<Rollout, Error> {
        let namespace = rollout.metadata.namespace.as_deref().unwrap_or_default();
        let name = rollout.metadata.name.as_deref().unwrap_or_default();
        let api = Api::<Rollout>::namespaced(self.client.clone(), namespace);
        let params = PostParams {
            field_manager: Some(AUTOSCALER_MANAGER.to_owned()),
            ..PostParams::default()
        };
        self.gate("rollout_status", api.replace_status(name, &params, rollout))
            .await
    }

    /// Puts our finalizer on a Rollout, or takes it off, if it is still as it was read.
    pub(crate) async fn hold_rollout(&self, rollout: &Rollout, hold: bool) -> Result<Rollout, Error> {
        let mut finalizers = rollout.metadata.finalizers.clone().unwrap_or_default();
        finalizers.retain(|each| each != RELEASE_FINALIZER);
        if hold {
            finalizers.push(RELEASE_FINALIZER.to_owned());
        }
        let body = json!({ "metadata": {
            "resourceVersion": rollout.metadata.resource_version,
            "finalizers": finalizers,
        }});
        let namespace = rollout.metadata.namespace.as_deref().unwrap_or_default();
        let name = rollout.metadata.name.as_deref().unwrap_or_default();
        let path = format!("{}/{name}", Rollout::url_path(&(), Some(namespace)));
        self.patch::<Rollout>("rollout_finalizer", &path, AUTOSCALER_MANAGER, MERGE, &body)
            .await
    }

    /// Creates or updates the Rollout that an annotation asks for.
    pub(crate) async fn apply_rollout(&self, key: &RouteKey, body: &Value) -> Result<(), Error> {
        self.apply::<Rollout>("rollout", &key.namespace, &key.name, body)
            .await
            .map(drop)
    }

    /// Deletes a Rollout, if it still is the one with this uid.
    pub(crate) async fn delete_rollout(&self, key: &RouteKey, uid: &str) -> Result<(), Error> {
        self.delete::<Rollout>("rollout_delete", &key.namespace, &key.name, Some(uid))
            .await
    }

    /// Creates a Revision, unless it is there: its name says what it holds.
    pub(crate) async fn create_revision(&self, revision: &Revision) -> Result<(), Error> {
        let namespace = revision.metadata.namespace.as_deref().unwrap_or_default();
        let api = Api::<Revision>::namespaced(self.client.clone(), namespace);
        self.create("revision", &api, revision).await
    }

    /// Writes the status of a Revision: all that we write there, so that what is empty is cleared.
    pub(crate) async fn write_revision_status(
        &self,
        namespace: &str,
        name: &str,
        status: &RevisionStatus,
    ) -> Result<(), Error> {
        let mut body = json!({ "status": status });
        body["status"]["pool"] = json!(status.pool);
        let path = format!("{}/{name}/status", Revision::url_path(&(), Some(namespace)));
        self.patch::<Value>("revision_status", &path, AUTOSCALER_MANAGER, MERGE, &body)
            .await
            .map(drop)
    }

    /// Deletes a Revision.
    pub(crate) async fn delete_revision(&self, namespace: &str, name: &str) -> Result<(), Error> {
        self.delete::<Revision>("revision_delete", namespace, name, None)
            .await
    }

    /// A Deployment with all its fields, those included that this version does not know.
    pub(crate) async fn read_deployment(&self, namespace: &str, name: &str) -> Result<Value, Error> {
        self.get("deployment_read", deployment_path(namespace, name))
            .await
    }

    /// A ConfigMap or Secret, by the name that paths give its kind; `None`: there is none.
    pub(crate) async fn read_config(
        &self,
        plural: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Value>, Error> {
        let path = format!("{}/{name}", config_path(plural, namespace));
        match self.get("config_read", path).await {
            Ok(object) => Ok(Some(object)),
            Err(Error::Gone(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Creates a copy of a ConfigMap or Secret.
    ///
    /// # Errors
    /// [`Error::Conflict`] when something of that name is there.
    pub(crate) async fn create_config(
        &self,
        plural: &str,
        namespace: &str,
        copy: &Value,
    ) -> Result<(), Error> {
        let what = "config_copy";
        let path = config_path(plural, namespace);
        let request = http::Request::post(format!("{path}?fieldManager={AUTOSCALER_MANAGER}"))
            .header(http::header::ACCEPT, "application/json")
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(copy.to_string().into_bytes())
            .map_err(|error| unbuilt(what, error))?;
        self.gate(what, self.client.request::<Value>(request))
            .await
            .map(drop)
    }

    /// Adds an owner to a copy that is still as it was read.
    pub(crate) async fn share_config(
        &self,
        plural: &str,
        namespace: &str,
        copy: &Value,
        owner: &Value,
    ) -> Result<(), Error> {
        let mut owners = copy
            .pointer("/metadata/ownerReferences")
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default();
        owners.push(owner.clone());
        let version = copy.pointer("/metadata/resourceVersion");
        let body = json!({ "metadata": { "resourceVersion": version, "ownerReferences": owners } });
        let name = copy
            .pointer("/metadata/name")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let path = format!("{}/{name}", config_path(plural, namespace));
        self.patch::<Value>("config_share", &path, AUTOSCALER_MANAGER, MERGE, &body)
            .await
            .map(drop)
    }

    /// The text under a key of a Secret, without white space around it. `None`: there is no text under it.
    ///
    /// # Errors
    /// [`Error::is_forbidden`] where nobody has granted it: we may not read Secrets by default.
    pub(crate) async fn read_secret(
        &self,
        namespace: &str,
        name: &str,
        key: &str,
    ) -> Result<Option<String>, Error> {
        let api = Api::<Secret>::namespaced(self.client.clone(), namespace);
        let secret = answered("secret_read", api.get(name)).await?;
        let value = secret.data.and_then(|mut data| data.remove(key));
        let text = value.and_then(|value| String::from_utf8(value.0).ok());
        Ok(text.map(|text| text.trim().to_owned()))
    }

    /// Creates the pool of a revision, unless it is there.
    pub(crate) async fn create_pool(&self, namespace: &str, pool: &Deployment) -> Result<(), Error> {
        let api = Api::<Deployment>::namespaced(self.client.clone(), namespace);
        self.create("pool", &api, pool).await
    }

    /// Deletes the pool of a revision.
    pub(crate) async fn delete_pool(&self, namespace: &str, name: &str) -> Result<(), Error> {
        self.delete::<Deployment>("pool_delete", namespace, name, None)
            .await
    }

    /// Gives a Deployment this template, if it still is the one with this uid.
    pub(crate) async fn replace_template(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
        template: &Value,
    ) -> Result<(), Error> {
        let body = json!([
            { "op": "test", "path": "/metadata/uid", "value": uid },
            { "op": "replace", "path": "/spec/template", "value": template },
        ]);
        let path = deployment_path(namespace, name);
        self.patch::<Value>("template", &path, AUTOSCALER_MANAGER, JSON, &body)
            .await
            .map(drop)
    }

    /// Pauses a Deployment and notes that it was us, or lets it go on.
    pub(crate) async fn pause(&self, namespace: &str, name: &str, pause: bool) -> Result<(), Error> {
        let (paused, note) = match pause {
            true => (json!(true), json!("true")),
            false => (Value::Null, Value::Null),
        };
        let body = json!({
            "metadata": { "annotations": { PAUSED_ANNOTATION: note } },
            "spec": { "paused": paused },
        });
        let path = deployment_path(namespace, name);
        self.patch::<Value>("pause", &path, AUTOSCALER_MANAGER, MERGE, &body)
            .await
            .map(drop)
    }

    /// Has the pods of a Deployment made anew, as `kubectl rollout restart` does.
    pub(crate) async fn restart(&self, namespace: &str, name: &str, at: &str) -> Result<(), Error> {
        let annotations = json!({ "kubectl.kubernetes.io/restartedAt": at });
        let body = json!({ "spec": { "template": { "metadata": { "annotations": annotations } } } });
        let path = deployment_path(namespace, name);
        self.patch::<Value>("restart", &path, AUTOSCALER_MANAGER, MERGE, &body)
            .await
            .map(drop)
    }

    /// An object with all its fields, whatever this version knows of them.
    async fn get(&self, what: &'static str, path: String) -> Result<Value, Error> {
        let request = http::Request::get(path)
            .header(http::header::ACCEPT, "application/json")
            .body(Vec::new())
            .map_err(|error| unbuilt(what, error))?;
        answered(what, self.client.request::<Value>(request)).await
    }

    async fn create<K>(&self, what: &'static str, api: &Api<K>, object: &K) -> Result<(), Error>
    where
        K: Clone + serde::Serialize + serde::de::DeserializeOwned + std::fmt::Debug,
    {
        let params = PostParams {
            field_manager: Some(AUTOSCALER_MANAGER.to_owned()),
            ..PostParams::default()
        };
        let created = async {
            match api.create(&params, object).await {
                // Only this one says that it is there: a quota that two requests wrote at once is a conflict as well.
                Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => Ok(()),
                created => created.map(drop),
            }
        };
        self.gate(what, created).await
    }
}

fn unbuilt(what: &'static str, error: http::Error) -> Error {
    let error = kube::core::request::Error::BuildRequest(error);
    super::failed(what, kube::Error::BuildRequest(error))
}

fn config_path(plural: &str, namespace: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/{plural}")
}

fn deployment_path(namespace: &str, name: &str) -> String {
    format!("{}/{name}", Deployment::url_path(&(), Some(namespace)))
}
