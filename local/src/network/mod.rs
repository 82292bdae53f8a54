//! The network of the embedded cluster: kube-proxy's part, and a front door for people.

mod directory;
mod front;
mod service;
mod splice;

pub(crate) use directory::Directory;
pub(crate) use front::Front;
pub(crate) use service::{Proxy, Publish};
pub(crate) use splice::Limit;
