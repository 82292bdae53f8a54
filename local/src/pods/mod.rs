//! Pods as processes: the kubelet's part, and the scheduler's.
//!
//! ```text
//! pod appears ─▶ address ─▶ bound ─▶ init containers, in order ─▶ containers, each with its probes ─▶ status
//! deleted ─▶ preStop ─▶ TERM to the process group ─▶ grace ─▶ KILL ─▶ object deleted
//! ```
//!
//! Each pod gets a loopback address of its own (Linux) and a port of its own. The container that declares the pod's
//! first port gets that port in `PORT` and is expected to listen on it; EndpointSlices and probes use it in place of
//! the declared one. Other declared ports are used as they are, on the pod's address. A pod annotated
//! `dormouse.dev/ports: as-declared` keeps all its declared ports.
//!
//! | module | what it holds |
//! |---|---|
//! | `address` | addresses and ports |
//! | `runner` | which pods there are; binding; the end of all |
//! | `pod` | one pod's life |
//! | `container` | one container's life: start, restart with back-off, stop |
//! | `env` | environment and `$(VAR)` |
//! | `process` | a process group that ends with us |
//! | `probe` | startup, readiness, liveness |
//! | `status` | what `kubectl get pod` shows |
//! | `logs` | lines on the terminal and for `kubectl logs` |

mod address;
mod container;
mod env;
mod logs;
mod pod;
mod probe;
mod process;
mod runner;
mod status;

pub(crate) use address::Addresses;
pub(crate) use logs::Logs;
pub(crate) use pod::Settings;
pub(crate) use process::Spawner;
pub use process::pod_main;
pub(crate) use runner::Runner;
