//! End-to-end tests.
//!
//! [`e2e`] starts the real binary with real processes and is what the files in `tests/` use, one scenario each.
//! [`parity`] is the set of API cases that any Kubernetes must answer alike.

pub mod e2e;
pub mod parity;
