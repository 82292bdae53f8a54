//! The control plane.

mod cluster;
mod config;
mod examine;
mod ingest;
mod lease;
mod ledger;
mod metrics;
mod path;
mod scale;
mod state;
mod watch;

pub use config::Args;
