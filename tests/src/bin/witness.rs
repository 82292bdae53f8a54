//! The application of the end-to-end tests: it bears witness of every request that reaches it.
//!
//! Before it answers, it appends a line `POD ID OVERLAP` to the file `WITNESS_FILE`, if there is one, which all its pods
//! share and which outlives them: the pod's name, the request's `x-id`, and how many requests this process then had at
//! once, this one included. `/delay/MS` answers after that time, `/body/MS` sends its head at once and its body after that
//! time, `/status/CODE` with that status. Header `x-listening` of each answer is when it began to listen, in microseconds
//! of Unix time, and `x-version` is what `VERSION` says. `BOOT_DELAY_MS` delays listening. On SIGTERM it finishes what it
//! has. With argument `crash` it fails at once.
//!
//! It can be a bad release. `FAIL_PERCENT` of the requests with an id are answered with 500, chosen by a hash of the id, so
//! that two runs with the same ids fail alike; with `FAIL_WHILE` only while that file exists, as when something it needs is
//! down. `EXTRA_DELAY_MS` is added to each answer. Readiness probes carry no id and are answered as before: what is bad here
//! is found by its answers only.

use std::convert::Infallible;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use http_body_util::StreamBody;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::signal::unix::{SignalKind, signal};

struct Witness {
    pod: String,
    file: Option<File>,
    /// Microseconds of Unix time; a header's value.
    listening: String,
    /// A header's value.
    version: String,
    faults: Faults,
    now: AtomicUsize,
}

/// What is wrong with this version.
#[derive(Default)]
struct Faults {
    /// Share of the requests that fail, `0..=100`.
    percent: u64,
    /// They fail only while this file exists.
    only_while: Option<PathBuf>,
    delay: Duration,
}

impl Faults {
    fn read() -> Result<Self> {
        let number = |name: &str| match std::env::var(name) {
            Ok(text) => text.parse::<u64>().with_context(|| format!("{name} is {text:?}")),
            Err(_) => Ok(0),
        };
        let percent = number("FAIL_PERCENT")?;
        anyhow::ensure!(percent <= 100, "FAIL_PERCENT is {percent}, allowed: 0 to 100");
        Ok(Self {
            percent,
            only_while: std::env::var_os("FAIL_WHILE").map(PathBuf::from),
            delay: Duration::from_millis(number("EXTRA_DELAY_MS")?),
        })
    }

    fn hits(&self, id: &str) -> bool {
        if self.percent == 0 || self.only_while.as_ref().is_some_and(|file| !file.exists()) {
            return false;
        }
        // FNV-1a, and a last turn, because ids that follow each other differ in their last bytes only.
        let hash = id.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let turned = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        (turned >> 33) % 100 < self.percent
    }
}

/// One request being answered; its end is its drop, so that a client that goes away ends it too.
struct Present {
    witness: Arc<Witness>,
    overlap: usize,
}

impl Present {
    fn new(witness: &Arc<Witness>) -> Self {
        let overlap = witness.now.fetch_add(1, Ordering::SeqCst) + 1;
        Self {
            witness: witness.clone(),
            overlap,
        }
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        self.witness.now.fetch_sub(1, Ordering::SeqCst);
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    anyhow::ensure!(
        std::env::args().nth(1).is_none_or(|word| word != "crash"),
        "it crashes, as it was told to"
    );
    let env = |name: &str| std::env::var(name).with_context(|| format!("{name} is not set"));
    let mut terminate = signal(SignalKind::terminate())?;
    let open = |path| OpenOptions::new().create(true).append(true).open(path);
    let file = match env("WITNESS_FILE") {
        Ok(path) => Some(open(&path).with_context(|| path.clone())?),
        Err(_) => None,
    };
    let pod = env("POD_NAME").unwrap_or_else(|_| format!("pid-{}", std::process::id()));
    if let Ok(delay) = env("BOOT_DELAY_MS") {
        tokio::time::sleep(Duration::from_millis(delay.parse()?)).await;
    }
    let address = format!(
        "{}:{}",
        env("POD_IP").unwrap_or_else(|_| "127.0.0.1".to_owned()),
        env("PORT").unwrap_or_else(|_| "8080".to_owned())
    );
    let listener = tokio::net::TcpListener::bind(&address)
        .await
        .with_context(|| address.clone())?;
    let witness = Arc::new(Witness {
        pod,
        file,
        listening: SystemTime::now()
            .duration_since(UNIX_EPOCH)?
            .as_micros()
            .to_string(),
        version: env("VERSION").unwrap_or_default(),
        faults: Faults::read()?,
        now: AtomicUsize::new(0),
    });
    let (server, graceful) = (Builder::new(TokioExecutor::new()), GracefulShutdown::new());
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => accepted?.0,
            _ = terminate.recv() => break,
        };
        stream.set_nodelay(true)?;
        let witness = witness.clone();
        let service = service_fn(move |request| answer(witness.clone(), request));
        let connection = server
            .serve_connection(TokioIo::new(stream), service)
            .into_owned();
        let connection = graceful.watch(connection);
        // A connection that breaks is the other side's matter.
        tokio::spawn(async move { drop(connection.await) });
    }
    drop(listener);
    graceful.shutdown().await;
    Ok(())
}

async fn answer(
    witness: Arc<Witness>,
    request: Request<Incoming>,
) -> Result<Response<BoxBody<Bytes, Infallible>>, Infallible> {
    // Readiness probes carry no id, and are nobody's overlap.
    let id = request.headers().get("x-id").and_then(|id| id.to_str().ok());
    let present = id.map(|_| Present::new(&witness));
    if let (Some(id), Some(Present { overlap, .. })) = (id, &present) {
        // One write of a short line to a file opened for appending: lines of several processes do not mix.
        let line = format!("{} {id} {overlap}\n", witness.pod);
        if let Some(mut file) = witness.file.as_ref()
            && let Err(error) = file.write_all(line.as_bytes())
        {
            eprintln!("witness: {error}");
        }
    }
    let failing = id.is_some_and(|id| witness.faults.hits(id));
    if id.is_some() && !witness.faults.delay.is_zero() {
        tokio::time::sleep(witness.faults.delay).await;
    }
    let path = request.uri().path();
    let number = |prefix| {
        path.strip_prefix(prefix)
            .and_then(|rest| rest.parse::<u64>().ok())
    };
    let text = Bytes::from(format!("{}\n", witness.pod));
    if let Some(delay) = number("/body/") {
        let body = futures::stream::once(async move {
            tokio::time::sleep(Duration::from_millis(delay)).await;
            drop(present);
            Ok(Frame::data(text))
        });
        return Ok(Response::new(BodyExt::boxed(StreamBody::new(body))));
    }
    if let Some(delay) = number("/delay/") {
        tokio::time::sleep(Duration::from_millis(delay)).await;
    }
    let status = number("/status/").and_then(|code| StatusCode::from_u16(u16::try_from(code).ok()?).ok());
    let status = status.filter(|_| !failing);
    let mut response = Response::new(Full::new(text).boxed());
    *response.status_mut() = status.unwrap_or(match failing {
        true => StatusCode::INTERNAL_SERVER_ERROR,
        false => StatusCode::OK,
    });
    if !witness.version.is_empty()
        && let Ok(version) = witness.version.parse()
    {
        response.headers_mut().insert("x-version", version);
    }
    if let Ok(listening) = witness.listening.parse() {
        response.headers_mut().insert("x-listening", listening);
    }
    drop(present);
    Ok(response)
}
