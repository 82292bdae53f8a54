//! Traffic: the load generator in this process, with an id in every request.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use loadtest::{Connections, Options, Results, Run, Schedule, Target};

use super::wait::eventually;

/// The header with each request's id.
pub const ID_HEADER: &str = "x-id";

/// A load that goes on until it is stopped.
pub struct Load {
    run: Run,
    prefix: String,
}

impl Load {
    /// Starts `options` with ids that begin with `prefix`.
    ///
    /// # Errors
    /// The options are out of range.
    pub async fn start(prefix: &str, mut options: Options) -> Result<Self> {
        options.id_header = Some(ID_HEADER.parse()?);
        options.id_prefix = prefix.to_owned();
        Ok(Self {
            run: Run::start(options).await?,
            prefix: prefix.to_owned(),
        })
    }

    /// What its ids begin with.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// How many requests have failed so far.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.run.watch().progress().failed
    }

    /// How many have been answered so far.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.run.watch().progress().ok
    }

    /// How long it has run: what the times in its results count from.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.run.watch().progress().elapsed
    }

    /// Waits until so many more have been answered.
    ///
    /// # Errors
    /// They are not within `limit`.
    pub async fn goes_on(&self, more: u64, limit: Duration) -> Result<()> {
        let wanted = self.answered() + more;
        let enough = async || (self.answered() >= wanted).then_some(());
        eventually(&format!("{more} more answers"), limit, enough).await
    }

    /// Sends nothing more, waits for what is in flight, and returns everything.
    pub async fn stop(self) -> Results {
        self.run.stop();
        self.run.finish().await
    }

    /// Waits for its own end.
    pub async fn finish(self) -> Results {
        self.run.finish().await
    }
}

/// A steady rate to `url`, each request on a connection of its own, until it is stopped.
///
/// A new connection each time is what meets every change of endpoints; kept ones would stay where they are.
///
/// # Errors
/// The URL cannot be read.
pub fn steady(url: &str, per_second: f64) -> Result<Options> {
    steady_over(&[url.to_owned()], per_second)
}

/// As [`steady`], to each of `urls` in turn.
///
/// # Errors
/// A URL cannot be read.
pub fn steady_over(urls: &[String], per_second: f64) -> Result<Options> {
    let targets = urls.iter().map(|url| target(url)).collect::<Result<_>>()?;
    let mut options = Options::new(targets, loadtest::Load::Open(Schedule::rate(per_second)));
    options.connections = Connections::Fresh;
    options.duration = Duration::from_secs(3600);
    Ok(options)
}

/// One request to each of `urls`, all in the same instant.
///
/// # Errors
/// A URL cannot be read.
pub fn wake(urls: &[String]) -> Result<Options> {
    let targets = urls.iter().map(|url| target(url)).collect::<Result<_>>()?;
    Ok(Options::new(targets, loadtest::Load::Wake))
}

fn target(url: &str) -> Result<Target> {
    url.parse().with_context(|| url.to_owned())
}

/// One `GET`: status and body, whatever the status.
///
/// # Errors
/// There was no complete answer within `limit`.
pub async fn get(url: &str, limit: Duration) -> Result<(u16, String)> {
    let response = fetch(url, limit).await?;
    Ok((response.status().as_u16(), response.into_body()))
}

/// As [`get`], with the headers of the answer.
///
/// # Errors
/// As [`get`].
pub async fn fetch(url: &str, limit: Duration) -> Result<http::Response<String>> {
    ask(url, &[], limit).await
}

/// As [`fetch`], with these headers in the request.
///
/// # Errors
/// As [`get`]; a header is none.
pub async fn ask(url: &str, headers: &[(&str, &str)], limit: Duration) -> Result<http::Response<String>> {
    let target = target(url)?;
    let address = target.resolve().await?;
    tokio::time::timeout(limit, exchange(&target, address, headers))
        .await
        .with_context(|| format!("{url}: {limit:?}"))?
}

/// The body of one `GET` that must be answered with 200.
///
/// # Errors
/// It was not.
pub async fn answer(url: &str, limit: Duration) -> Result<String> {
    let (status, body) = get(url, limit).await?;
    anyhow::ensure!(status == 200, "{url}: {status} {body}");
    Ok(body)
}

async fn exchange(
    target: &Target,
    address: SocketAddr,
    headers: &[(&str, &str)],
) -> Result<http::Response<String>> {
    let stream = tokio::net::TcpStream::connect(address)
        .await
        .with_context(|| address.to_string())?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move { drop(connection.await) });
    let mut request =
        hyper::Request::get(target.path.as_str()).header(http::header::HOST, target.authority.as_str());
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let (head, body) = response.into_parts();
    let body = body.collect().await?.to_bytes();
    let text = String::from_utf8_lossy(&body).into_owned();
    Ok(http::Response::from_parts(head, text))
}
