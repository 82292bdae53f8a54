//! The controllers of the embedded cluster: kube-controller-manager's part.
//!
//! Each looks at one object at a time, compares what is with what should be, writes the difference, and is called
//! again when something it looked at changes.

mod deployment;
mod endpointslice;
mod gc;
mod namespace;
mod pods_of;
mod replicaset;
mod statefulset;

pub(crate) use endpointslice::{given_port, service_of};

use std::sync::Arc;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::cluster::Cluster;

/// Adds every controller's listeners, and returns what starts them once the pictures are complete.
pub(crate) fn prepare(cluster: &Arc<Cluster>) -> Starter {
    let mut starter = Starter(Vec::new());
    starter.add(deployment::prepare(cluster));
    starter.add(replicaset::prepare(cluster));
    starter.add(statefulset::prepare(cluster));
    starter.add(endpointslice::prepare(cluster));
    starter.add(namespace::prepare(cluster));
    starter.add(gc::prepare(cluster));
    starter
}

/// Something to start with the shutdown token.
pub(crate) type Start = Box<dyn FnOnce(&mut JoinSet<()>, &CancellationToken) + Send>;

/// Prepared controllers.
pub(crate) struct Starter(Vec<Start>);

impl Starter {
    fn add(&mut self, start: Start) {
        self.0.push(start);
    }

    /// Starts them.
    pub(crate) fn start(self, tasks: &mut JoinSet<()>, shutdown: &CancellationToken) {
        for start in self.0 {
            start(tasks, shutdown);
        }
    }
}
