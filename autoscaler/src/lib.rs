//! The control plane.

mod cluster;
mod examine;
mod ingest;
mod path;
mod scale;
mod state;
mod watch;
