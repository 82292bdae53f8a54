//! The vocabulary of Dormouse: every name that two of its parts, or a part and a user, must agree on.
//!
//! | module | what it holds | who meets it |
//! |---|---|---|
//! | [`names`] | labels, annotations we write, field managers, ports, object names | everyone |
//! | [`annotation`] | the one table of user-facing annotations, and its parser | users, autoscaler, `explain`, docs |
//! | [`route`] | the `Route` custom resource: what an activator needs to serve one Service | autoscaler writes, activators read |
//! | [`condition`] | condition types and reasons on a Route | users, `doctor`, tests |
//! | [`rollout`] | the `Rollout` custom resource: how new revisions are let in, and where the present one stands | users, autoscaler |
//! | [`revision`] | the `Revision` custom resource: one state of a template, immutable | autoscaler |
//! | [`evidence`] | what activators count for a rollout, as it is reported | activator, autoscaler |
//! | [`report`] | the lines of the report stream between activators and autoscalers | activator, autoscaler |
//!
//! The crate is light on purpose: no runtime, no HTTP, no clock.

pub mod annotation;
pub mod condition;
pub mod evidence;
pub mod names;
pub mod report;
pub mod revision;
pub mod rollout;
pub mod route;

pub use annotation::Settings;
pub use revision::{Revision, RevisionSpec, RevisionStatus};
pub use rollout::{Rollout, RolloutSpec, RolloutStatus};
pub use route::{Route, RouteSpec, RouteStatus};
