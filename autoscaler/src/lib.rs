//! The control plane.

mod admin;
mod clock;
mod cluster;
mod config;
pub mod examine;
mod ingest;
mod lease;
mod ledger;
mod metrics;
mod path;
mod scale;
mod state;
mod status;
mod watch;

use std::sync::Arc;

pub use config::Args;

/// Reads (`None`) or changes the log filter; returns the filter now in force, or what is wrong with the given one.
pub type SetLog = Arc<dyn Fn(Option<&str>) -> Result<String, String> + Send + Sync>;
