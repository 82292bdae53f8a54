//! What to send, where, and until when: every knob of a run, checked once.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use http::header::{HOST, HeaderName};
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderValue, Method, Uri};

use crate::arrivals::Schedule;

/// The longest run: two hours. Everything here is bounded, the time foremost.
pub const LONGEST_RUN: Duration = Duration::from_secs(2 * 3600);
/// Most targets of one run.
pub const MOST_TARGETS: usize = 10_000;

/// A run. Made by [`Options::new`], changed by field, checked by [`Options::check`] when the run starts.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where requests go: to each in turn, or in a wake run one to each.
    pub targets: Vec<Target>,
    /// Who decides when the next request is sent.
    pub load: Load,
    /// The version of HTTP.
    pub protocol: Protocol,
    /// Whether connections are used again.
    pub connections: Connections,
    /// HTTP/2 connections per target, over which requests are dealt. `1..=1000`.
    pub h2_connections: usize,
    /// Method.
    pub method: Method,
    /// Headers added to each request.
    pub headers: HeaderMap,
    /// Body of each request.
    pub body: Bytes,
    /// Longest from sending to the last byte of the answer, connecting included.
    pub timeout: Duration,
    /// Longest for a connection alone.
    pub connect_timeout: Duration,
    /// Which statuses are a success.
    pub expect: Expect,
    /// Most requests.
    pub requests: Option<u64>,
    /// After this long nothing more is sent; what is in flight is waited for. At most [`LONGEST_RUN`].
    pub duration: Duration,
    /// Header with an id of its own for each request: [`Options::id_prefix`] and a number.
    pub id_header: Option<HeaderName>,
    /// What ids begin with.
    pub id_prefix: String,
    /// Most requests in flight in an open loop. At the limit the loop waits, and what it sends late counts as late.
    pub max_in_flight: usize,
    /// Seed of all chance in the run.
    pub seed: u64,
}

/// Who decides when the next request is sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Load {
    /// The schedule, whatever the server does.
    Open(Schedule),
    /// This many clients, each sending its next request when it has its answer.
    Closed(usize),
    /// One request to each target, all in the same instant.
    Wake,
}

/// The version of HTTP spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 in clear text with prior knowledge.
    H2c,
}

/// Whether connections are used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connections {
    /// Yes.
    Kept,
    /// No: one for each request.
    Fresh,
}

/// Inclusive ranges of statuses that are a success.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expect(Vec<(u16, u16)>);

impl Expect {
    /// Whether `status` is one of them.
    #[must_use]
    pub fn allows(&self, status: u16) -> bool {
        self.0.iter().any(|(low, high)| (*low..=*high).contains(&status))
    }
}

impl Default for Expect {
    /// 200 to 399.
    fn default() -> Self {
        Self(vec![(200, 399)])
    }
}

impl FromStr for Expect {
    type Err = Error;

    /// `200`, `2xx`, or several of these with commas.
    fn from_str(text: &str) -> Result<Self, Error> {
        let one = |part: &str| {
            let wrong = || Error::Expect(part.to_owned());
            let (low, high) = match part.strip_suffix("xx") {
                Some(class) => class.parse::<u16>().map(|class| {
                    (
                        class.saturating_mul(100),
                        class.saturating_mul(100).saturating_add(99),
                    )
                }),
                None => part.parse().map(|code| (code, code)),
            }
            .map_err(|_| wrong())?;
            if (100..=999).contains(&low) {
                Ok((low, high))
            } else {
                Err(wrong())
            }
        };
        text.split(',')
            .map(|part| one(part.trim()))
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

/// Where a request goes.
#[derive(Clone, Debug)]
pub struct Target {
    /// As written.
    pub url: String,
    /// Host and port of the Host header.
    pub authority: Authority,
    /// Path and query.
    pub path: PathAndQuery,
    /// Where to connect, when that is not what the host says.
    pub connect: Option<SocketAddr>,
}

impl Target {
    /// Connects to `address` whatever the URL's host is.
    #[must_use]
    pub fn at(mut self, address: SocketAddr) -> Self {
        self.connect = Some(address);
        self
    }

    /// The port, 80 when the URL has none.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.authority.port_u16().unwrap_or(80)
    }

    /// Finds the address to connect to. Names under `localhost` are this machine (RFC 6761, section 6.3).
    ///
    /// # Errors
    /// The name is not known; trying again helps only if the resolver was at fault.
    pub async fn resolve(&self) -> Result<SocketAddr, Error> {
        if let Some(address) = self.connect {
            return Ok(address);
        }
        let host = self
            .authority
            .host()
            .trim_start_matches('[')
            .trim_end_matches(']');
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok(SocketAddr::new(ip, self.port()));
        }
        let name = host.trim_end_matches('.').to_ascii_lowercase();
        if name == "localhost" || name.ends_with(".localhost") {
            return Ok(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), self.port()));
        }
        let unknown = |why: String| Error::Resolve(host.to_owned(), why);
        let mut found = tokio::net::lookup_host((host, self.port()))
            .await
            .map_err(|error| unknown(error.to_string()))?;
        found.next().ok_or_else(|| unknown("no address".to_owned()))
    }
}

impl FromStr for Target {
    type Err = Error;

    fn from_str(url: &str) -> Result<Self, Error> {
        let wrong = |why: &str| Error::Url(url.to_owned(), why.to_owned());
        let full = if url.contains("://") {
            url.to_owned()
        } else {
            format!("http://{url}")
        };
        let uri: Uri = full
            .parse()
            .map_err(|error: http::uri::InvalidUri| wrong(&error.to_string()))?;
        if uri.scheme_str() != Some("http") {
            return Err(wrong("only http:// is spoken here"));
        }
        let authority = uri.authority().ok_or_else(|| wrong("it has no host"))?.clone();
        if authority.host().is_empty() || authority.as_str().contains('@') {
            return Err(wrong("it needs a host, and no user name"));
        }
        let path = uri
            .path_and_query()
            .cloned()
            .unwrap_or_else(|| PathAndQuery::from_static("/"));
        Ok(Self {
            url: url.to_owned(),
            authority,
            path,
            connect: None,
        })
    }
}

/// What is wrong with the options. The caller's fault, except [`Error::Resolve`].
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A URL cannot be used.
    #[error("URL {0:?}: {1}")]
    Url(String, String),
    /// A host has no address.
    #[error("host {0:?}: {1}")]
    Resolve(String, String),
    /// An expected status cannot be read.
    #[error("status {0:?}: expected a code such as 200, or a class such as 2xx")]
    Expect(String),
    /// A knob is out of its range.
    #[error("{0}")]
    Range(&'static str),
}

impl Options {
    /// A run of 10 seconds with the usual values: HTTP/1.1, kept connections, `GET`, 30 s timeout.
    #[must_use]
    pub fn new(targets: Vec<Target>, load: Load) -> Self {
        Self {
            targets,
            load,
            protocol: Protocol::Http1,
            connections: Connections::Kept,
            h2_connections: 1,
            method: Method::GET,
            headers: HeaderMap::new(),
            body: Bytes::new(),
            timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(5),
            expect: Expect::default(),
            requests: None,
            duration: Duration::from_secs(10),
            id_header: None,
            id_prefix: format!("{:08x}", fastrand::u32(..)),
            max_in_flight: 10_000,
            seed: 0,
        }
    }

    /// Checks every range.
    ///
    /// # Errors
    /// The first knob that is out of its range.
    pub fn check(&self) -> Result<(), Error> {
        let rules = [
            (!self.targets.is_empty(), "at least one URL is needed"),
            (self.targets.len() <= MOST_TARGETS, "at most 10,000 URLs"),
            (self.duration <= LONGEST_RUN, "the duration is at most two hours"),
            (
                !self.timeout.is_zero() && self.timeout <= LONGEST_RUN,
                "the timeout is above 0 and at most 2h",
            ),
            (!self.connect_timeout.is_zero(), "the connect timeout is above 0"),
            (
                (1..=1000).contains(&self.h2_connections),
                "HTTP/2 connections per target: 1 to 1000",
            ),
            (
                (1..=100_000).contains(&self.max_in_flight),
                "requests in flight: 1 to 100,000",
            ),
            (
                HeaderValue::from_str(&self.id_prefix).is_ok(),
                "the id prefix has characters that no header can carry",
            ),
        ];
        if let Some((_, broken)) = rules.iter().find(|(holds, _)| !holds) {
            return Err(Error::Range(broken));
        }
        match self.load {
            Load::Closed(clients) if !(1..=100_000).contains(&clients) => {
                Err(Error::Range("clients: 1 to 100,000"))
            }
            Load::Open(schedule) => check_schedule(schedule),
            Load::Closed(_) | Load::Wake => Ok(()),
        }
    }

    /// The Host header: ours unless one was given.
    pub(crate) fn host(&self, target: &Target) -> HeaderValue {
        let own = || HeaderValue::from_str(target.authority.as_str());
        self.headers
            .get(HOST)
            .cloned()
            .map_or_else(own, Ok)
            .unwrap_or_else(|_| HeaderValue::from_static(""))
    }
}

fn check_schedule(schedule: Schedule) -> Result<(), Error> {
    const FASTEST: f64 = 1_000_000.0;
    let rate = schedule.rate.is_none_or(|rate| {
        let fine = |per_second: f64| (0.0..=FASTEST).contains(&per_second);
        fine(rate.from) && fine(rate.to) && rate.over <= LONGEST_RUN
    });
    let burst = schedule
        .burst
        .is_none_or(|burst| (1..=100_000).contains(&burst.size) && burst.every >= Duration::from_millis(1));
    match (rate, burst, schedule.rate.is_none() && schedule.burst.is_none()) {
        (false, ..) => Err(Error::Range(
            "a rate is 0 to 1,000,000 per second, a ramp at most 2h long",
        )),
        (_, false, _) => Err(Error::Range(
            "a burst has 1 to 100,000 requests, every 1ms or more",
        )),
        (.., true) => Err(Error::Range("an open loop needs a rate or a burst")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_with_and_without_a_scheme() {
        for (url, authority, port, path) in [
            (
                "http://web.localhost:8080/a?b=c",
                "web.localhost:8080",
                8080,
                "/a?b=c",
            ),
            ("127.0.0.1:9/x", "127.0.0.1:9", 9, "/x"),
            ("http://web", "web", 80, "/"),
            ("http://[::1]:81/", "[::1]:81", 81, "/"),
        ] {
            let target: Target = url.parse().expect(url);
            assert_eq!(
                (target.authority.as_str(), target.port()),
                (authority, port),
                "{url}"
            );
            assert_eq!(target.path.as_str(), path, "{url}");
        }
        for url in [
            "https://web",
            "http://",
            "",
            "http://a b",
            "http://user@web/",
            "ftp://x",
        ] {
            assert!(url.parse::<Target>().is_err(), "{url:?}");
        }
    }

    #[tokio::test]
    async fn names_under_localhost_are_this_machine_without_asking_anyone() {
        for (url, address) in [
            ("web.team.localhost:8080", "127.0.0.1:8080"),
            ("LOCALHOST.:1", "127.0.0.1:1"),
            ("127.96.0.3", "127.96.0.3:80"),
            ("http://[::1]:81", "[::1]:81"),
        ] {
            let target: Target = url.parse().expect(url);
            assert_eq!(target.resolve().await.expect(url).to_string(), address);
        }
        let elsewhere = "name.invalid:1"
            .parse::<Target>()
            .expect("url")
            .at(([127, 0, 0, 1], 5).into());
        assert_eq!(elsewhere.resolve().await.expect("given").port(), 5);
    }

    #[test]
    fn statuses_are_codes_and_classes() {
        let expect: Expect = "2xx, 404".parse().expect("reads");
        for (status, allowed) in [(200, true), (299, true), (300, false), (404, true), (503, false)] {
            assert_eq!(expect.allows(status), allowed, "{status}");
        }
        for text in ["", "abc", "20", "0xx", "70000", "999xx"] {
            assert!(text.parse::<Expect>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn every_knob_has_a_range() {
        let good = || Options::new(vec!["localhost:1".parse().expect("url")], Load::Closed(1));
        assert!(good().check().is_ok());
        let bad: [fn(&mut Options); 8] = [
            |o| o.targets.clear(),
            |o| o.duration = LONGEST_RUN * 2,
            |o| o.timeout = Duration::ZERO,
            |o| o.load = Load::Closed(0),
            |o| o.load = Load::Open(Schedule::default()),
            |o| o.load = Load::Open(Schedule::rate(f64::NAN)),
            |o| o.id_prefix = "a\nb".to_owned(),
            |o| o.h2_connections = 0,
        ];
        for (row, change) in bad.iter().enumerate() {
            let mut options = good();
            change(&mut options);
            assert!(options.check().is_err(), "row {row}");
        }
    }
}
