//! What must be seen working, one file a scenario: real processes, real sockets, one cluster at a time.
//!
//! `cargo test -p dormouse-tests --test scenarios s03` runs one of them; `DORMOUSE_E2E=full` runs them at full size;
//! `tests/cluster/run s03` runs it on a real Kubernetes.

mod s01_first_request;
mod s02_from_zero;
mod s03_cycles;
mod s04_capture_release;
mod s05_many_at_once;
mod s06_lone_wake;
mod s07_concurrency;
mod s08_kills;
mod s09_fail_open;
mod s10_foreign_writers;
mod s11_refusals;
mod s12_idle_cost;
mod s13_cold_start;
