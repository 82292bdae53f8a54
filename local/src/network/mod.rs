//! The network of the embedded cluster: kube-proxy's part, and a front door for people.

mod front;
mod service;
mod splice;

pub(crate) use front::{Front, is_shown, url};
pub(crate) use service::{Proxy, Publish};
pub(crate) use splice::Limit;
