//! The embedded cluster: the same manifests as on Kubernetes, without Kubernetes.
//!
//! ```text
//! files ─▶ manifests ─▶ api ─▶ controllers ─▶ pods ─▶ processes
//!                        ▲         │            │
//!            kubectl ────┘         ▼            ▼
//!                            EndpointSlices ─▶ network ◀── front door, ClusterIPs
//! ```
//!
//! | module | what it holds |
//! |---|---|
//! | [`api`] | the Kubernetes API in memory |
//! | `config`, `system` | the flags; Dormouse itself on the cluster |
//! | `files` | how many files a process may have open |
//! | `manifests`, `kubeconfig` | files in; the way in for `kubectl` |
//! | `informer`, `queue`, `cluster` | how controllers see and are called |
//! | `controllers` | Deployment, ReplicaSet, StatefulSet, EndpointSlice, Namespace, garbage collection |
//! | `pods` | the kubelet's part: containers as processes |
//! | `network` | kube-proxy's part, and the front door |
//!
//! Everything reaches the cluster through a `kube::Client`, as on Kubernetes; nothing looks into the API's memory.

pub mod api;
mod cluster;
mod config;
mod controllers;
mod files;
mod informer;
mod kubeconfig;
mod manifests;
mod network;
mod pods;
mod queue;
mod run;
mod system;

pub use api::kubectl_age;
pub use cluster::{FOLDER_ANNOTATION, NODE, PORT_ANNOTATION, PORTS_ANNOTATION};
pub use config::{Args, PublishArg, SystemMode};
pub use files::raise_open_files;
pub use kubeconfig::random_token;
pub use pods::pod_main;
pub use run::{Options, Running, run, start};
pub use system::{Part, System};
