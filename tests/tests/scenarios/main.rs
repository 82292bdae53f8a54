//! What must be seen working, one file a scenario: real processes, real sockets. `s` are those of waking and sleeping, `r`
//! those of rollouts.
//!
//! `cargo test -p dormouse-tests --test scenarios s03` runs one of them; `DORMOUSE_E2E=full` runs them at full size;
//! `tests/cluster/run s03` runs it on a real Kubernetes.

mod r01_first_release;
mod r02_bad_release;
mod r03_partly_bad_release;
mod r04_no_traffic;
mod r05_breaker;
mod r06_revisions_asleep;
mod r07_fixed_thresholds;
mod r08_mirror_and_match;
mod r09_paused_in_place;
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
mod s14_rollout_commands;
