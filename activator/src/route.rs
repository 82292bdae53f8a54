//! From a listening port to a pool. Pure: the port is the route, so nothing of the request is needed but, among several
//! pools, a random number, and where a candidate is being let in, its fields.

use std::sync::Arc;
use std::time::Duration;

use crds::route::{FULL_WEIGHT, Ignore, RoutePort, RouteSpec};
use http::HeaderMap;

use crate::balance;
use crate::pool::Pool;
use crate::rollout::{Plan, Ticket};

/// A Route's identity.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct RouteKey {
    /// Namespace.
    pub(crate) namespace: String,
    /// Name, which is the Service's.
    pub(crate) name: String,
}

impl std::fmt::Display for RouteKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A Route as requests see it; replaced as a whole when the Route changes.
#[derive(Debug)]
pub(crate) struct Target {
    /// Whose it is.
    pub(crate) key: RouteKey,
    /// `namespace/name`, made once for messages and the self-probe's answer.
    pub(crate) title: String,
    /// The Route object's uid.
    pub(crate) uid: String,
    /// The generation of the spec.
    pub(crate) generation: i64,
    /// All ports.
    pub(crate) ports: Vec<RoutePort>,
    /// Pools with their weights in basis points.
    pub(crate) pools: Vec<(u32, Arc<Pool>)>,
    /// What is not use.
    pub(crate) ignore: Ignore,
    /// Limits of time.
    pub(crate) timeouts: Timeouts,
    /// Connections to TCP ports begin with a PROXY protocol header.
    pub(crate) proxy_protocol: bool,
    /// What a browser gets while the Service sleeps; `None`: it is held.
    pub(crate) waiting_page: Option<WaitingPage>,
    /// A candidate that is being let in.
    pub(crate) rollout: Option<Arc<Plan>>,
}

/// Where a request goes, and how it is counted for a candidate.
#[derive(Debug)]
pub(crate) struct Choice<'a> {
    pub(crate) pool: &'a Arc<Pool>,
    pub(crate) ticket: Option<Box<Ticket>>,
}

/// Limits of time; `None`: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Timeouts {
    /// Dispatch to the response's head.
    pub(crate) response_start: Option<Duration>,
    /// Dispatch to the response's end.
    pub(crate) request: Option<Duration>,
    /// Between two bytes, in either direction.
    pub(crate) stream_idle: Option<Duration>,
}

impl Timeouts {
    /// Reads them from a Route, where 0 means no limit.
    pub(crate) fn of(spec: &RouteSpec) -> Self {
        let limit = |ms: u64| (ms > 0).then(|| Duration::from_millis(ms));
        Self {
            response_start: limit(spec.response_start_timeout_ms),
            request: limit(spec.request_timeout_ms),
            stream_idle: limit(spec.stream_idle_timeout_ms),
        }
    }
}

/// What a browser gets that opens a sleeping Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum WaitingPage {
    /// Ours.
    BuiltIn,
    /// Ours, dressed by a ConfigMap of that name in the Service's namespace.
    ConfigMap(String),
}

impl WaitingPage {
    /// Reads it from a Route, where nothing means that browsers are held: an autoscaler that knows no page writes none.
    pub(crate) fn of(spec: &RouteSpec) -> Option<Self> {
        match spec.waiting_page.as_str() {
            "" | "off" => None,
            "auto" => Some(Self::BuiltIn),
            name => Some(Self::ConfigMap(name.to_owned())),
        }
    }
}

impl Target {
    /// The pool of that name.
    pub(crate) fn pool(&self, name: &str) -> Option<&Arc<Pool>> {
        self.pools
            .iter()
            .map(|(_, pool)| pool)
            .find(|pool| pool.key.pool == name)
    }

    /// What a pool is in a rollout: `candidate` while one is being let in, and `stable` otherwise.
    pub(crate) fn role(&self, pool: &str) -> &'static str {
        let candidate = self.rollout.as_ref().map(|plan| plan.candidate());
        if candidate == Some(pool) {
            "candidate"
        } else {
            "stable"
        }
    }

    /// The pool for one request: by weight, unless the Route says more. `headers` are its fields; a connection of bytes
    /// has none.
    pub(crate) fn choose(
        &self,
        headers: Option<&HeaderMap>,
        random: &mut impl FnMut(u32) -> u32,
    ) -> Option<Choice<'_>> {
        if let Some(plan) = &self.rollout {
            return plan.choose(&self.pools, headers, random);
        }
        let pool = match self.pools.as_slice() {
            [] => None,
            // The usual case needs no dice. A weight of zero is obeyed even then.
            [(weight, pool)] => (*weight > 0).then_some(pool),
            pools => {
                let point = random(FULL_WEIGHT);
                let at = balance::by_weight(pools.iter().map(|(weight, _)| *weight), point)?;
                Some(&pools[at].1)
            }
        }?;
        Some(Choice { pool, ticket: None })
    }
}
