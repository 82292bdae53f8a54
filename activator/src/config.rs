//! Every knob of the activator, with its unit, range and reason. [`Args`] is what a person writes, [`Config`] is what the
//! rest of the crate reads: checked once, here.

use std::net::IpAddr;
use std::time::Duration;

/// The longest duration that a flag takes: a day. Longer ones are typing errors.
const LONGEST: Duration = Duration::from_secs(86_400);

/// Command-line flags of the activator. Each can also be given in the environment.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Address on which Routes, the report stream and the admin endpoints are served
    #[arg(long, env = "POD_IP", default_value = "0.0.0.0", help_heading = "Listening")]
    pub bind: IpAddr,
    /// Port of the report stream, which autoscalers dial
    #[arg(
        long,
        env = "DORMOUSE_REPORT_PORT",
        default_value_t = 9001,
        help_heading = "Listening"
    )]
    pub report_port: u16,
    /// Port of the admin endpoints: /ready, /live, /metrics, /debug/state, /debug/log
    #[arg(
        long,
        env = "DORMOUSE_ADMIN_PORT",
        default_value_t = 9000,
        help_heading = "Listening"
    )]
    pub admin_port: u16,
    /// Threads that carry traffic, 1 to 256; unset: one for each core
    #[arg(long, env = "DORMOUSE_WORKERS", help_heading = "Listening")]
    pub workers: Option<usize>,
    /// Most client connections at once over all ports; more wait in the kernel's backlog
    #[arg(
        long,
        env = "DORMOUSE_MAX_CONNECTIONS",
        default_value_t = 65_536,
        help_heading = "Listening"
    )]
    pub max_connections: usize,

    /// This activator's name, unique among activators; unset: POD_NAME, else the host's name
    #[arg(long, env = "POD_NAME", help_heading = "Cluster")]
    pub name: Option<String>,
    /// Serve only the Routes of this namespace; unset: of all namespaces
    #[arg(long, env = "DORMOUSE_NAMESPACE", help_heading = "Cluster")]
    pub namespace: Option<String>,
    /// How the callers of the report stream are checked
    #[arg(
        long,
        env = "DORMOUSE_REPORT_AUTH",
        value_enum,
        default_value = "token-review",
        help_heading = "Cluster"
    )]
    pub report_auth: ReportAuth,
    /// User names that may open the report stream
    #[arg(
        long,
        env = "DORMOUSE_REPORT_USERS",
        value_delimiter = ',',
        default_value = "system:serviceaccount:dormouse-system:dormouse-autoscaler",
        help_heading = "Cluster"
    )]
    pub report_users: Vec<String>,
    /// How long an autoscaler has to acknowledge a wake before the activator raises 0 to 1 itself
    #[arg(long, env = "DORMOUSE_WAKE_AFTER", value_parser = duration, default_value = "1s", help_heading = "Cluster")]
    pub wake_after: Duration,

    /// Longest a client may take to send a request's head, from its first byte; on a new connection from its beginning
    #[arg(long, env = "DORMOUSE_HEADER_TIMEOUT", value_parser = duration, default_value = "30s", help_heading = "Limits")]
    pub header_timeout: Duration,
    /// How long a client's HTTP/1.1 connection may stay open without a request; more than the load balancer before us
    /// keeps its own, or requests meet a closed connection
    #[arg(long, env = "DORMOUSE_KEEP_ALIVE_TIMEOUT", value_parser = duration, default_value = "75s", help_heading = "Limits")]
    pub keep_alive_timeout: Duration,
    /// Most bytes of a request's head, 8192 to 1048576
    #[arg(
        long,
        env = "DORMOUSE_MAX_HEADER_BYTES",
        default_value_t = 65_536,
        help_heading = "Limits"
    )]
    pub max_header_bytes: usize,
    /// Most concurrent streams of one HTTP/2 connection, 1 to 10000
    #[arg(
        long,
        env = "DORMOUSE_MAX_STREAMS",
        default_value_t = 250,
        help_heading = "Limits"
    )]
    pub max_streams: u32,
    /// Longest a connection to a pod may take to be accepted
    #[arg(long, env = "DORMOUSE_CONNECT_TIMEOUT", value_parser = duration, default_value = "2s", help_heading = "Limits")]
    pub connect_timeout: Duration,

    /// From SIGTERM, how long new connections are still accepted while the others learn that this activator leaves
    #[arg(long, env = "DORMOUSE_DRAIN_DELAY", value_parser = duration, default_value = "5s", help_heading = "Shutdown")]
    pub drain_delay: Duration,
    /// How much longer they are, at most, while Routes lead here and no other activator serves: as all are removed
    /// together, sleeping Services are woken and given back meanwhile
    #[arg(long, env = "DORMOUSE_DRAIN_ALONE", value_parser = duration, default_value = "0", help_heading = "Shutdown")]
    pub drain_alone: Duration,
    /// After that, how long requests in flight may take to finish
    #[arg(long, env = "DORMOUSE_DRAIN_TIMEOUT", value_parser = duration, default_value = "30s", help_heading = "Shutdown")]
    pub drain_timeout: Duration,
}

impl Default for Args {
    /// As when no flag is given, whatever the environment says.
    fn default() -> Self {
        Self {
            bind: IpAddr::from([0, 0, 0, 0]),
            report_port: 9001,
            admin_port: 9000,
            workers: None,
            max_connections: 65_536,
            name: None,
            namespace: None,
            report_auth: ReportAuth::TokenReview,
            report_users: vec!["system:serviceaccount:dormouse-system:dormouse-autoscaler".to_owned()],
            wake_after: Duration::from_secs(1),
            header_timeout: Duration::from_secs(30),
            keep_alive_timeout: Duration::from_secs(75),
            max_header_bytes: 65_536,
            max_streams: 250,
            connect_timeout: Duration::from_secs(2),
            drain_delay: Duration::from_secs(5),
            drain_alone: Duration::ZERO,
            drain_timeout: Duration::from_secs(30),
        }
    }
}

/// How the callers of the report stream are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ReportAuth {
    /// Not at all: for tests and for networks that only autoscalers can reach.
    Off,
    /// The bearer token is shown to the API server, and its user must be one of `--report-users`.
    TokenReview,
}

/// Checked and resolved settings.
#[derive(Clone, Debug)]
pub struct Config {
    pub(crate) bind: IpAddr,
    pub(crate) report_port: u16,
    pub(crate) admin_port: u16,
    pub(crate) workers: usize,
    pub(crate) max_connections: usize,
    pub(crate) name: String,
    pub(crate) namespace: Option<String>,
    pub(crate) report_auth: ReportAuth,
    pub(crate) report_users: Vec<String>,
    pub(crate) wake_after: Duration,
    pub(crate) header_timeout: Duration,
    pub(crate) keep_alive_timeout: Duration,
    pub(crate) max_header_bytes: usize,
    pub(crate) max_streams: u32,
    pub(crate) connect_timeout: Duration,
    pub(crate) drain_delay: Duration,
    pub(crate) drain_alone: Duration,
    pub(crate) drain_timeout: Duration,
}

/// A flag whose value is out of its range.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("--{flag} {value}: {wanted}")]
pub struct ConfigError {
    flag: &'static str,
    value: String,
    wanted: &'static str,
}

impl TryFrom<Args> for Config {
    type Error = ConfigError;

    /// # Errors
    /// Names the first flag that is out of range, its value, and the range.
    fn try_from(args: Args) -> Result<Self, ConfigError> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let workers = args.workers.unwrap_or(cores);
        within("workers", workers, 1, 256, "1 to 256")?;
        within(
            "max-connections",
            args.max_connections,
            1,
            1_000_000,
            "1 to 1000000",
        )?;
        within(
            "max-header-bytes",
            args.max_header_bytes,
            8_192,
            1_048_576,
            "8192 to 1048576",
        )?;
        within("max-streams", args.max_streams as usize, 1, 10_000, "1 to 10000")?;
        for (flag, value) in [
            ("wake-after", args.wake_after),
            ("header-timeout", args.header_timeout),
            ("keep-alive-timeout", args.keep_alive_timeout),
            ("connect-timeout", args.connect_timeout),
        ] {
            if value.is_zero() {
                return Err(ConfigError {
                    flag,
                    value: "0".to_owned(),
                    wanted: "must be longer than zero",
                });
            }
        }
        let name = args
            .name
            .filter(|name| !name.is_empty())
            .unwrap_or_else(host_name);
        Ok(Self {
            bind: args.bind,
            report_port: args.report_port,
            admin_port: args.admin_port,
            workers,
            max_connections: args.max_connections,
            name,
            namespace: args.namespace.filter(|namespace| !namespace.is_empty()),
            report_auth: args.report_auth,
            report_users: args.report_users,
            wake_after: args.wake_after,
            header_timeout: args.header_timeout,
            keep_alive_timeout: args.keep_alive_timeout,
            max_header_bytes: args.max_header_bytes,
            max_streams: args.max_streams,
            connect_timeout: args.connect_timeout,
            drain_delay: args.drain_delay,
            drain_alone: args.drain_alone,
            drain_timeout: args.drain_timeout,
        })
    }
}

fn within(
    flag: &'static str,
    value: usize,
    least: usize,
    most: usize,
    wanted: &'static str,
) -> Result<(), ConfigError> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(ConfigError {
        flag,
        value: value.to_string(),
        wanted,
    })
}

/// The host's name, which is the pod's name in Kubernetes.
fn host_name() -> String {
    std::env::var("HOSTNAME")
        .ok()
        .or_else(|| std::fs::read_to_string("/proc/sys/kernel/hostname").ok())
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "activator".to_owned())
}

/// Reads `500ms`, `30s`, `2m`, `1h` or `0`.
fn duration(text: &str) -> Result<Duration, String> {
    const WANTED: &str = "a duration such as 500ms, 30s, 2m or 1h, at most 24h";
    let number = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit = match &text[number.len()..] {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        "" if number == "0" => 1.0,
        _ => return Err(WANTED.to_owned()),
    };
    let number: f64 = number.parse().map_err(|_| WANTED.to_owned())?;
    Duration::try_from_secs_f64(number * unit)
        .ok()
        .filter(|duration| *duration <= LONGEST)
        .ok_or_else(|| WANTED.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn durations_are_read_with_their_unit() {
        for (text, wanted) in [
            ("500ms", Some(Duration::from_millis(500))),
            ("1.5s", Some(Duration::from_millis(1500))),
            ("2m", Some(Duration::from_secs(120))),
            ("1h", Some(Duration::from_secs(3600))),
            ("0", Some(Duration::ZERO)),
            ("30", None),
            ("s", None),
            ("-1s", None),
            ("25h", None),
            ("1d", None),
            ("", None),
        ] {
            assert_eq!(duration(text).ok(), wanted, "{text:?}");
        }
    }

    #[test]
    fn a_wrong_flag_is_named_with_its_value() {
        use clap::Parser;
        let error = Cli::try_parse_from(["x", "--drain-delay", "soon"])
            .err()
            .expect("refused")
            .to_string();
        assert!(
            error.contains("--drain-delay") && error.contains("soon"),
            "{error}"
        );
        let args = Args {
            workers: Some(0),
            ..Args::default()
        };
        assert_eq!(
            Config::try_from(args).expect_err("refused").to_string(),
            "--workers 0: 1 to 256"
        );
        let args = Args {
            wake_after: Duration::ZERO,
            ..Args::default()
        };
        assert!(
            Config::try_from(args)
                .expect_err("refused")
                .to_string()
                .starts_with("--wake-after 0")
        );
    }

    #[test]
    fn the_defaults_of_flags_and_of_the_struct_are_the_same() {
        use clap::Parser;
        let parsed = Cli::try_parse_from(["x", "--bind", "0.0.0.0", "--name", ""])
            .expect("parses")
            .args;
        let default = Args {
            name: Some(String::new()),
            ..Args::default()
        };
        assert_eq!(format!("{parsed:?}"), format!("{default:?}"));
    }
}
