//! End-to-end tests.

pub mod parity;
