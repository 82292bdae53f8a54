//! The in-memory Kubernetes API of the embedded cluster.
//!
//! A request travels `server` (HTTP, tokens, Host) → `router` (path → verb and resource) → `read`, `write`, `delete` or
//! a subresource → `store`. A write is a function from the stored object to the next one (`patch`, `apply`,
//! `defaults`, `validate`), committed only if nobody wrote in between. Everything answers as kube-apiserver 1.35 would,
//! or refuses; it is never kinder. Known differences, all refused or documented rather than guessed:
//!
//! - CEL rules and `pattern` of custom resources are not evaluated, and versions of one are converted by name only;
//! - authorisation: every known user may do everything;
//! - EndpointSlices may hold loopback addresses, because here pods have no others.

mod addresses;
mod apply;
mod codec;
mod columns;
mod convert;
mod defaults;
mod delete;
mod discovery;
mod families;
mod fieldset;
mod jsonpath;
mod names;
mod openapi;
mod outage;
mod patch;
mod protobuf;
mod read;
mod request;
mod resources;
mod reviews;
mod router;
mod scale;
mod schema;
mod selector;
mod server;
mod status;
mod store;
mod structural;
mod subresources;
mod table;
mod typed;
mod validate;
mod watch;
mod workloads;
mod write;

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Limited};
use parking_lot::{Mutex, RwLock};
use tokio_util::sync::CancellationToken;

use self::addresses::Addresses;
pub use self::columns::kubectl_age;
use self::resources::Registry;
pub use self::server::{path_of, serve};
use self::store::Store;
pub use self::store::StoreStats;

/// Most bytes of a request's body, as in Kubernetes.
pub const MOST_BODY_BYTES: usize = 3 * 1024 * 1024;

/// A response's body; watches and followed logs go on until the client, the API or a timeout ends them.
pub type ApiBody = UnsyncBoxBody<Bytes, std::io::Error>;

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// As `system:serviceaccount:dormouse-system:dormouse-autoscaler`.
    pub name: String,
    /// As `system:masters`.
    pub groups: Vec<String>,
}

impl User {
    /// A user of that name, in the groups that Kubernetes gives to such a name.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        let name = name.into();
        let mut groups = vec!["system:authenticated".to_owned()];
        if let Some(account) = name.strip_prefix("system:serviceaccount:") {
            groups.push("system:serviceaccounts".to_owned());
            if let Some((namespace, _)) = account.split_once(':') {
                groups.push(format!("system:serviceaccounts:{namespace}"));
            }
        }
        if name == "system:admin" {
            groups.push("system:masters".to_owned());
        }
        Self { name, groups }
    }

    /// `system:admin`.
    #[must_use]
    pub fn admin() -> Self {
        Self::new("system:admin")
    }
}

impl From<&str> for User {
    fn from(name: &str) -> Self {
        Self::new(name)
    }
}

/// What `kubectl logs` asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogRequest {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod.
    pub pod: String,
    /// The container; empty: the only one.
    pub container: String,
    /// Go on with what is written from now on.
    pub follow: bool,
    /// Only the last lines.
    pub tail_lines: Option<u64>,
    /// Only what was written in the last seconds.
    pub since_seconds: Option<u64>,
    /// At most so many bytes.
    pub limit_bytes: Option<u64>,
    /// With the time before each line.
    pub timestamps: bool,
    /// Of the container's previous run.
    pub previous: bool,
}

/// A pod's log, piece by piece, or the sentence that says why there is none.
pub type LogAnswer = Result<Pin<Box<dyn futures::Stream<Item = Bytes> + Send>>, String>;

/// Where logs come from.
pub type LogSource = Arc<dyn Fn(LogRequest) -> Pin<Box<dyn Future<Output = LogAnswer> + Send>> + Send + Sync>;

/// Counters and sizes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Requests answered, watches included.
    pub requests: u64,
    /// Watches that are open now.
    pub watches: u64,
    /// Watches that were closed with 410 because they fell behind the history.
    pub watches_expired: u64,
    /// What is stored.
    pub store: StoreStats,
}

#[derive(Default)]
pub(crate) struct Counters {
    requests: AtomicU64,
    watches: AtomicU64,
    watches_expired: AtomicU64,
}

pub(crate) struct Shared {
    pub(crate) store: Store,
    pub(crate) registry: RwLock<Arc<Registry>>,
    pub(crate) tokens: RwLock<HashMap<String, User>>,
    pub(crate) logs: RwLock<Option<LogSource>>,
    pub(crate) addresses: Mutex<Addresses>,
    /// Ends all streams that were begun under it. Cancelled while the API is away, so that nothing begins either.
    streams: Mutex<CancellationToken>,
    pub(crate) outage: outage::Pending,
    pub(crate) counters: Counters,
}

/// The API. Clones are handles to the same one.
#[derive(Clone)]
pub struct Api(pub(crate) Arc<Shared>);

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api").field("stats", &self.stats()).finish()
    }
}

impl Default for Api {
    fn default() -> Self {
        Self::new()
    }
}

impl Api {
    /// An API with the namespaces `default` and `kube-system`, and nothing else.
    #[must_use]
    pub fn new() -> Self {
        let api = Self(Arc::new(Shared {
            store: Store::new(),
            registry: RwLock::new(Arc::new(Registry::built_in())),
            tokens: RwLock::default(),
            logs: RwLock::default(),
            addresses: Mutex::default(),
            streams: Mutex::default(),
            outage: outage::Pending::default(),
            counters: Counters::default(),
        }));
        api.create_first_namespaces();
        api
    }

    /// A client that acts as `system:admin`. Must be called within a tokio runtime.
    #[must_use]
    pub fn client(&self) -> kube::Client {
        self.client_as(User::admin())
    }

    /// A client that acts as `user`. Must be called within a tokio runtime.
    #[must_use]
    pub fn client_as(&self, user: impl Into<User>) -> kube::Client {
        kube::Client::new(
            InProcess {
                api: self.clone(),
                user: user.into(),
            },
            "default",
        )
    }

    /// Lets whoever shows `token` act as `user`.
    pub fn add_token(&self, token: impl Into<String>, user: impl Into<User>) {
        self.0.tokens.write().insert(token.into(), user.into());
    }

    /// The user that a token stands for.
    #[must_use]
    pub fn user_of(&self, token: &str) -> Option<User> {
        self.0.tokens.read().get(token).cloned()
    }

    /// Says where `kubectl logs` gets its lines.
    pub fn set_log_source(&self, source: LogSource) {
        *self.0.logs.write() = Some(source);
    }

    /// Ends every open watch and log, and over HTTP every connection, as a restart of an API server does.
    pub fn disconnect_all(&self) {
        let mut streams = self.0.streams.lock();
        if !streams.is_cancelled() {
            std::mem::take(&mut *streams).cancel();
        }
    }

    /// Refuses every request with 503 (over HTTP: closes the connection), and ends every open stream; or serves again.
    pub fn set_available(&self, available: bool) {
        let mut streams = self.0.streams.lock();
        if !available {
            streams.cancel();
        } else if streams.is_cancelled() {
            *streams = CancellationToken::new();
        }
    }

    /// Whether requests are served.
    #[must_use]
    pub fn is_available(&self) -> bool {
        !self.0.streams.lock().is_cancelled()
    }

    /// Forgets all history: watches and continued lists from before now get 410.
    pub fn compact(&self) {
        self.0.store.compact();
    }

    /// Counters and sizes.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let counters = &self.0.counters;
        Stats {
            requests: counters.requests.load(Ordering::Relaxed),
            watches: counters.watches.load(Ordering::Relaxed),
            watches_expired: counters.watches_expired.load(Ordering::Relaxed),
            store: self.0.store.stats(),
        }
    }

    /// Answers one request. Cancel safe: a write that has begun is done whole or not at all.
    pub async fn handle<B>(&self, user: &User, request: http::Request<B>) -> http::Response<ApiBody>
    where
        B: hyper::body::Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        self.0.counters.requests.fetch_add(1, Ordering::Relaxed);
        let (parts, body) = request.into_parts();
        let body = match Limited::new(body, MOST_BODY_BYTES).collect().await {
            Ok(body) => body.to_bytes(),
            Err(_) => return router::refusal(&status::ApiError::too_large(MOST_BODY_BYTES)),
        };
        if !self.is_available() {
            return router::refusal(&status::ApiError::unavailable());
        }
        router::route(self, user, &parts, body).await
    }

    pub(crate) fn registry(&self) -> Arc<Registry> {
        Arc::clone(&self.0.registry.read())
    }

    /// Cancelled when all streams are to end.
    pub(crate) fn stream_token(&self) -> CancellationToken {
        self.0.streams.lock().clone()
    }
}

/// The API as `system:admin`.
impl<B> tower::Service<http::Request<B>> for Api
where
    B: hyper::body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Response = http::Response<ApiBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let api = self.clone();
        Box::pin(async move { Ok(api.handle(&User::admin(), request).await) })
    }
}

/// The API as one user.
struct InProcess {
    api: Api,
    user: User,
}

impl<B> tower::Service<http::Request<B>> for InProcess
where
    B: hyper::body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Response = http::Response<ApiBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let (api, user) = (self.api.clone(), self.user.clone());
        Box::pin(async move { Ok(api.handle(&user, request).await) })
    }
}
