//! What the fuzz targets in `activator/fuzz` need of the inside. Not an interface: it changes without notice.

use std::net::SocketAddr;

use crds::Route;
use k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::config::Args;
use crate::route::RouteKey;
use crate::watch::Index;
use crate::{App, Config, Error, SetLog};

/// The strict reader of what HTTP/1.1 clients send.
#[derive(Debug)]
pub struct Strict(crate::strict::Strict);

impl Strict {
    /// `longest` head in bytes.
    #[must_use]
    pub fn new(longest: usize) -> Self {
        Self(crate::strict::Strict::new(longest))
    }

    /// Reads on.
    ///
    /// # Errors
    /// How many of the bytes come before the fault, and the fault.
    pub fn read(&mut self, bytes: &[u8]) -> Result<(), (usize, &'static str)> {
        self.0.read(bytes)
    }
}

/// The PROXY header of a connection that came `from` a client `to` us.
#[must_use]
pub fn proxy_header(from: Option<SocketAddr>, to: Option<SocketAddr>) -> Vec<u8> {
    crate::proxy_header::header(from, to)
}

/// An activator whose Routes and pods are applied by hand.
pub struct Activator {
    app: App,
    index: Index,
}

impl std::fmt::Debug for Activator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Activator")
            .field("ports", &self.app.server.ports())
            .finish_non_exhaustive()
    }
}

impl Activator {
    /// Starts it, in a runtime.
    ///
    /// # Errors
    /// As [`crate::run`].
    pub fn start(args: Args) -> Result<Self, Error> {
        let set_log: SetLog = std::sync::Arc::new(|_| Ok(String::new()));
        let app = App::start(Config::try_from(args)?, None, set_log)?;
        let index = app.index();
        Ok(Self { app, index })
    }

    /// A Route is there, or has changed.
    pub fn apply_route(&mut self, route: &Route) {
        self.index.apply_route(route);
    }

    /// A Route has gone.
    pub fn delete_route(&mut self, namespace: &str, name: &str) {
        self.index.delete_route(&RouteKey {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        });
    }

    /// A slice is there, or has changed.
    pub fn apply_slice(&mut self, slice: &EndpointSlice) {
        self.index.apply_slice(slice);
    }

    /// A slice has gone.
    pub fn delete_slice(&mut self, namespace: &str, name: &str) {
        self.index.delete_slice(namespace, name);
    }

    /// Open ports.
    #[must_use]
    pub fn ports(&self) -> usize {
        self.app.server.ports()
    }
}
