//! A load generator for HTTP/1.1 and clear-text HTTP/2.
//!
//! ```text
//! args ─▶ options ─▶ run ─▶ arrivals (when is the next request due?)
//!                     │
//!                     └───▶ client (one request) ─▶ results ─▶ summary (text, JSON)
//! ```
//!
//! In an open loop latency counts from when a request was *due*, decided in advance: a server that stalls cannot slow
//! the questions down and look better for it, and neither can a generator that falls behind. How late the generator
//! itself was is a result like any other. Nothing is retried that may have been seen by a server. Every run is bounded.
//!
//! The library can be driven from a test: [`run()`] to the end, or [`Run`] with a look in between.

pub mod args;
pub mod arrivals;
mod client;
pub mod histogram;
pub mod options;
pub mod results;
mod run;
pub mod summary;

pub use arrivals::{Burst, Rate, Schedule};
pub use histogram::Histogram;
pub use options::{Connections, Error, Expect, Load, Options, Protocol, Target};
pub use results::{Answer, ErrorKind, Failure, Outcome, Results};
pub use run::{Progress, Run, Watch, run};
pub use summary::Summary;
