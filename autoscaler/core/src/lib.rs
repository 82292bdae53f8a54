//! The decisions of Dormouse: pure functions of time and facts.
//!
//! Nothing here reads a clock, waits, logs or touches a cluster. Every step is total and returns data: the new state, what
//! to do, when to look again, and why. The shell around this crate (`dormouse-autoscaler`) gathers facts, calls a step and
//! carries it out.
//!
//! # The life of a decision
//!
//! 1. [`Time`] comes in with every call.
//! 2. What activators have counted arrives as a [`Sample`] of cumulative totals, at
//!    [`Pool::observe`]; [`window`] keeps the recent past of it.
//! 3. [`policy`] holds the user's knobs, checked once.
//! 4. How many pods the traffic needs is decided by [`kpa`] (Knative's rules, to the digit) or by [`adaptive`] (Little's
//!    law on exact counters).
//! 5. Whether the last pod may go, and what brings the first one back, is the ladder in [`idle`].
//! 6. [`pool`] puts these together with the bounds, a HorizontalPodAutoscaler, commands and [`conflict`]s with foreign
//!    writers into one [`Step`]: replicas to write, a [`Reason`] in one sentence, the next [`Plan`],
//!    and when to look again. An idle pool at zero is never looked at: it costs nothing.
//!
//! Pools that wake and sleep with others are told so by [`group`], between the two halves of a step.
//!
//! A new revision is let in by [`rollout`]: which weight, with which pods, and back when [`evidence`] says that it is worse.
//!
//! Beside that stands the data path: [`capture`] takes a Service's traffic over and gives it back without ever leaving it
//! without endpoints, and [`ports`] gives out the listening ports.

pub mod adaptive;
pub mod capture;
pub mod conflict;
pub mod evidence;
pub mod group;
pub mod idle;
pub mod kpa;
pub mod policy;
pub mod pool;
pub mod ports;
pub mod reason;
pub mod rollout;
pub mod time;
pub mod window;

pub use policy::{Aggregation, Algorithm, Knobs, Metric, Policy};
pub use pool::{Command, Facts, Foreign, Phase, Pool, Sample, Step};
pub use reason::{Cause, Plan, Reason};
pub use time::Time;
