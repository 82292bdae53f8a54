//! The control: the same client, as long and as fast, against a Service that nothing happens to.
//!
//! A machine, a kernel and a kube-proxy lose connections of their own. What fails here fails without Dormouse, so a
//! scenario's failures mean something only beside these.

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use loadtest::{Options, Results};

use super::app::App;
use super::apply::apply;
use super::cluster::{Cluster, SOON, ready};
use super::load::{Load, answer};
use super::real::CONTROL_NAMESPACE;
use super::wait::{eventually, wait_for};
use super::witness::first_errors;

/// A control that runs beside a scenario's load. On the embedded cluster there is none: its proxy is our own.
pub struct Control {
    urls: Vec<String>,
    load: Option<Load>,
}

impl Control {
    /// Makes the Service and waits until it answers.
    ///
    /// # Errors
    /// It does not.
    pub async fn prepare(cluster: &Cluster, pods: u32) -> Result<Self> {
        let mut urls = vec![];
        if cluster.is_real() {
            let yaml = App::new("control").plain().replicas(pods).yaml(cluster);
            let yaml = yaml.replace("namespace: default", &format!("namespace: {CONTROL_NAMESPACE}"));
            apply(&cluster.client, &yaml).await?;
            let api: Api<Pod> = Api::namespaced(cluster.client.clone(), CONTROL_NAMESPACE);
            wait_for(api, "the control's pods", SOON, |all| {
                (all.values().filter(|pod| ready(pod)).count() == pods as usize).then_some(())
            })
            .await?;
            urls = cluster.urls_in(CONTROL_NAMESPACE, "control").await?;
            for url in &urls {
                let answers = async || answer(url, SOON).await.ok();
                eventually("the control answers", SOON, answers).await?;
            }
        }
        Ok(Self { urls, load: None })
    }

    /// Starts the load that `options` makes of its addresses.
    ///
    /// # Errors
    /// The options are out of range.
    pub async fn start(&mut self, options: impl FnOnce(&[String]) -> Result<Options>) -> Result<()> {
        if !self.urls.is_empty() {
            self.load = Some(Load::start("control", options(&self.urls)?).await?);
        }
        Ok(())
    }

    /// Ends it, and says in words how many failed.
    ///
    /// # Errors
    /// It was never started.
    pub async fn stop(self) -> Result<String> {
        if self.urls.is_empty() {
            return Ok(String::new());
        }
        Ok(words(&self.load.context("a control that runs")?.stop().await))
    }

    /// Waits for the end of a load that ends by itself, and says in words how many failed.
    ///
    /// # Errors
    /// It was never started.
    pub async fn finish(self) -> Result<String> {
        if self.urls.is_empty() {
            return Ok(String::new());
        }
        Ok(words(&self.load.context("a control that runs")?.finish().await))
    }
}

fn words(results: &Results) -> String {
    format!(
        "; control {} requests, {} failed{}, p50 {:?} max {:?}",
        results.sent,
        results.failed,
        first_errors(results),
        results.latency.percentile(50.0),
        results.latency.max()
    )
}
