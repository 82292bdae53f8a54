//! The command line, and its way into [`Options`].

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};
use http::header::{HeaderName, HeaderValue};

use crate::arrivals::{Burst, Rate, Schedule};
use crate::options::{Connections, Expect, LONGEST_RUN, Load, Options, Protocol, Target};
use crate::results::Results;
use crate::run::Run;
use crate::summary::Summary;

/// An HTTP load generator: open loop (latency counts from when a request was due), closed loop, bursts, and wake runs.
///
/// Exit code 0: every request was answered as expected. 1: some were not. 2: nothing was run.
#[derive(Clone, Debug, Parser)]
#[command(name = "dormouse-loadtest", version)]
pub struct Args {
    /// Where to send: as http://HOST:PORT/PATH. Several are asked in turn. Names under .localhost are this machine.
    pub urls: Vec<Target>,
    /// More URLs, one a line; empty lines and lines from # are skipped.
    #[arg(long, value_name = "FILE")]
    pub urls_file: Option<PathBuf>,
    /// Connect here, whatever the URLs' hosts are.
    #[arg(long, value_name = "IP:PORT")]
    pub connect: Option<SocketAddr>,

    /// Closed loop: this many clients, each sending when it has its answer. The default, with 10.
    #[arg(long, short = 'c', help_heading = "Load", conflicts_with_all = ["rate", "burst", "wake"])]
    pub clients: Option<usize>,
    /// Open loop: requests per second, 50, or a ramp, 10..200.
    #[arg(long, short = 'r', help_heading = "Load", value_parser = parse_rate, conflicts_with = "wake")]
    pub rate: Option<(f64, f64)>,
    /// How long a ramp takes; then its last rate stays.
    #[arg(long, help_heading = "Load", value_parser = parse_duration, requires = "rate")]
    pub over: Option<Duration>,
    /// Arrivals of --rate by chance (a Poisson process, see --seed) instead of evenly spaced.
    #[arg(long, help_heading = "Load", requires = "rate")]
    pub poisson: bool,
    /// Open loop: this many requests at once, again and again; may be combined with --rate.
    #[arg(long, help_heading = "Load", requires = "every", conflicts_with = "wake")]
    pub burst: Option<u32>,
    /// From one burst to the next.
    #[arg(long, help_heading = "Load", value_parser = parse_duration, requires = "burst")]
    pub every: Option<Duration>,
    /// One request to each URL, all in the same instant.
    #[arg(long, help_heading = "Load")]
    pub wake: bool,
    /// Most requests. Without --duration the run takes at most two hours.
    #[arg(long, short = 'n', help_heading = "Load")]
    pub requests: Option<u64>,
    /// After this long nothing more is sent. 10s unless --requests is given; at most 2h.
    #[arg(long, short = 'd', help_heading = "Load", value_parser = parse_duration)]
    pub duration: Option<Duration>,
    /// Most requests in flight in an open loop. At the limit the loop waits, and says how late it was.
    #[arg(long, help_heading = "Load", default_value_t = 10_000)]
    pub max_in_flight: usize,
    /// Seed of all chance.
    #[arg(long, help_heading = "Load", default_value_t = 0)]
    pub seed: u64,

    /// Method.
    #[arg(long, short = 'X', help_heading = "Request")]
    pub method: Option<http::Method>,
    /// A header, NAME: VALUE. May be repeated.
    #[arg(long = "header", short = 'H', help_heading = "Request", value_parser = parse_header)]
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Body as text.
    #[arg(long, help_heading = "Request", conflicts_with = "body_size")]
    pub body: Option<String>,
    /// Body of this many bytes, up to 64 MiB.
    #[arg(long, help_heading = "Request", value_parser = clap::value_parser!(u32).range(0..=67_108_864))]
    pub body_size: Option<u32>,
    /// Header with an id of its own for each request, so that a server can tell whether one came twice.
    #[arg(long, help_heading = "Request", value_name = "NAME")]
    pub id_header: Option<HeaderName>,
    /// Statuses that are a success, as 200 or 2xx, with commas. 200 to 399 by default.
    #[arg(long, help_heading = "Request")]
    pub expect: Option<Expect>,
    /// Longest from sending to the last byte of the answer.
    #[arg(long, help_heading = "Request", default_value = "30s", value_parser = parse_duration)]
    pub timeout: Duration,
    /// Longest for a connection alone.
    #[arg(long, help_heading = "Request", default_value = "5s", value_parser = parse_duration)]
    pub connect_timeout: Duration,

    /// Whether connections are used again.
    #[arg(long, help_heading = "Connections", value_enum, default_value = "kept")]
    pub connections: ConnectionsArg,
    /// Speak HTTP/2 in clear text with prior knowledge instead of HTTP/1.1.
    #[arg(long, help_heading = "Connections")]
    pub h2c: bool,
    /// HTTP/2 connections per URL.
    #[arg(long, help_heading = "Connections", default_value_t = 1)]
    pub h2_connections: usize,

    /// How the results are printed.
    #[arg(
        long,
        short = 'o',
        help_heading = "Output",
        value_enum,
        default_value = "text"
    )]
    pub output: OutputArg,
}

/// `--connections`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ConnectionsArg {
    /// Used again.
    Kept,
    /// One for each request.
    Fresh,
}

/// `--output`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OutputArg {
    /// For people.
    Text,
    /// For programs; the schema is named in it.
    Json,
}

impl Args {
    /// Runs as told, shows progress on a terminal, prints the results, and says whether every request was answered.
    ///
    /// # Errors
    /// The arguments do not fit together or a host has no address: nothing was run.
    pub async fn execute(self) -> Result<bool> {
        let output = self.output;
        let options = self.options()?;
        let run = Run::start(options.clone()).await?;
        let results = watch(run).await;
        let summary = Summary::new(&options, &results);
        match output {
            OutputArg::Text => print!("{summary}"),
            OutputArg::Json => println!("{}", serde_json::to_string_pretty(&summary)?),
        }
        Ok(results.failed == 0 && results.sent > 0)
    }

    /// The options that the arguments mean.
    ///
    /// # Errors
    /// As [`Args::execute`].
    pub fn options(self) -> Result<Options> {
        let load = self.load()?;
        let mut targets = self.urls;
        if let Some(file) = &self.urls_file {
            targets.extend(read_urls(file)?);
        }
        if let Some(address) = self.connect {
            targets = targets.into_iter().map(|target| target.at(address)).collect();
        }
        let mut options = Options::new(targets, load);
        options.protocol = if self.h2c { Protocol::H2c } else { Protocol::Http1 };
        options.connections = match self.connections {
            ConnectionsArg::Kept => Connections::Kept,
            ConnectionsArg::Fresh => Connections::Fresh,
        };
        options.h2_connections = self.h2_connections;
        options.method = self.method.unwrap_or_default();
        options.headers = self.headers.into_iter().collect();
        options.body = match (self.body, self.body_size) {
            (Some(text), _) => text.into(),
            (None, Some(size)) => vec![b'x'; size as usize].into(),
            (None, None) => bytes::Bytes::new(),
        };
        options.timeout = self.timeout;
        options.connect_timeout = self.connect_timeout;
        options.expect = self.expect.unwrap_or_default();
        options.requests = self.requests;
        let until = if self.requests.is_some() {
            LONGEST_RUN
        } else {
            Duration::from_secs(10)
        };
        options.duration = self.duration.unwrap_or(until);
        options.id_header = self.id_header;
        options.max_in_flight = self.max_in_flight;
        options.seed = self.seed;
        options.check()?;
        Ok(options)
    }

    fn load(&self) -> Result<Load> {
        if self.wake {
            return Ok(Load::Wake);
        }
        let rate = match (self.rate, self.over) {
            (Some((from, to)), None) if from != to => {
                bail!("--rate {from}..{to} is a ramp: --over says how long")
            }
            (Some((from, to)), over) => Some(Rate {
                from,
                to,
                over: over.unwrap_or_default(),
            }),
            (None, _) => None,
        };
        let burst = self
            .burst
            .zip(self.every)
            .map(|(size, every)| Burst { size, every });
        if rate.is_some() || burst.is_some() {
            return Ok(Load::Open(Schedule {
                rate,
                poisson: self.poisson,
                burst,
            }));
        }
        Ok(Load::Closed(self.clients.unwrap_or(10)))
    }
}

/// Waits for the run; Ctrl-C ends it early, with results. Five times a second is enough for an eye.
async fn watch(run: Run) -> Results {
    const REDRAW: Duration = Duration::from_millis(200);
    let terminal = std::io::stderr().is_terminal();
    let progress = run.watch();
    let finish = run.finish();
    tokio::pin!(finish);
    loop {
        tokio::select! {
            results = &mut finish => {
                if terminal {
                    eprint!("\r\x1b[K");
                }
                return results;
            }
            _ = tokio::signal::ctrl_c() => progress.stop(),
            () = tokio::time::sleep(REDRAW), if terminal => eprint!("\r\x1b[K{progress}"),
        }
    }
}

fn read_urls(file: &PathBuf) -> Result<Vec<Target>> {
    let text = std::fs::read_to_string(file).with_context(|| format!("--urls-file {}", file.display()))?;
    let lines = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| Ok(line.parse()?)).collect()
}

fn parse_rate(text: &str) -> Result<(f64, f64), String> {
    let number = |text: &str| {
        text.trim()
            .parse::<f64>()
            .map_err(|_| format!("{text:?} is not a number"))
    };
    match text.split_once("..") {
        Some((from, to)) => Ok((number(from)?, number(to)?)),
        None => number(text).map(|rate| (rate, rate)),
    }
}

/// `500ms`, `30s`, `2m`, `1h`, with fractions.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?}: expected a duration such as 500ms, 30s, 2m or 1h");
    let (number, unit) = text.split_at(text.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(wrong)?);
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let unit = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(wrong()),
    };
    Duration::try_from_secs_f64(number * unit).map_err(|_| wrong())
}

fn parse_header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text
        .split_once(':')
        .ok_or_else(|| format!("{text:?}: expected NAME: VALUE"))?;
    let name = name
        .trim()
        .parse()
        .map_err(|error| format!("{name:?}: {error}"))?;
    let value = value
        .trim()
        .parse()
        .map_err(|error| format!("{value:?}: {error}"))?;
    Ok((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(line: &str) -> Result<Options> {
        let words = std::iter::once("dormouse-loadtest").chain(line.split_whitespace());
        Args::try_parse_from(words)?.options()
    }

    #[test]
    fn each_kind_of_load_has_its_flags() {
        let seconds = Duration::from_secs;
        let ramp = Rate {
            from: 10.0,
            to: 200.0,
            over: seconds(30),
        };
        let burst = Burst {
            size: 100,
            every: seconds(10),
        };
        for (line, load) in [
            ("localhost", Load::Closed(10)),
            ("localhost -c 300", Load::Closed(300)),
            ("localhost --rate 20", Load::Open(Schedule::rate(20.0))),
            (
                "localhost --rate 10..200 --over 30s",
                Load::Open(Schedule {
                    rate: Some(ramp),
                    ..Schedule::default()
                }),
            ),
            (
                "localhost --rate 5 --poisson",
                Load::Open(Schedule {
                    poisson: true,
                    ..Schedule::rate(5.0)
                }),
            ),
            (
                "localhost --burst 100 --every 10s",
                Load::Open(Schedule {
                    burst: Some(burst),
                    ..Schedule::default()
                }),
            ),
            ("localhost web.localhost --wake", Load::Wake),
        ] {
            assert_eq!(options(line).expect(line).load, load, "{line}");
        }
    }

    #[test]
    fn a_run_is_always_bounded() {
        for (line, requests, duration) in [
            ("localhost", None, Duration::from_secs(10)),
            ("localhost -n 5", Some(5), LONGEST_RUN),
            ("localhost -n 5 -d 1.5s", Some(5), Duration::from_millis(1500)),
        ] {
            let options = options(line).expect(line);
            assert_eq!(
                (options.requests, options.duration),
                (requests, duration),
                "{line}"
            );
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for line in [
            "",
            "localhost -d 3h",
            "localhost -d 3",
            "localhost -d ms",
            "localhost --rate x",
            "localhost --rate 1..2",
            "localhost --rate -1",
            "localhost --burst 3",
            "localhost --wake --rate 3",
            "localhost --clients 2 --rate 3",
            "localhost --clients 0",
            "localhost --header nonsense",
            "localhost --expect maybe",
            "https://localhost",
            "localhost --urls-file /nonexistent/urls",
        ] {
            assert!(options(line).is_err(), "{line:?}");
        }
    }
}
