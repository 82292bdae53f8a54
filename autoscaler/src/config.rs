//! Every knob of the autoscaler, with its unit and the reason for its default.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

/// Where Kubernetes mounts a pod's own service-account token.
const SERVICE_ACCOUNT_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// Options of `dormouse autoscaler`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// This process's name in leases, reports and logs. In a cluster: its pod's name.
    #[arg(long, env = "POD_NAME", default_value = "dormouse-autoscaler")]
    pub name: String,

    /// Namespace of the Lease and of the Service that lists the activators.
    #[arg(long, env = "POD_NAMESPACE", default_value = crds::names::SYSTEM_NAMESPACE)]
    pub namespace: String,

    /// Look only at this namespace. Default: all namespaces.
    #[arg(long, env = "DORMOUSE_WATCH_NAMESPACE")]
    pub watch_namespace: Option<String>,

    /// Address on which the admin port listens.
    #[arg(long, env = "DORMOUSE_BIND", default_value_t = IpAddr::V4(Ipv4Addr::UNSPECIFIED))]
    pub bind: IpAddr,

    /// Port of /ready, /live, /metrics, /debug and /v1/explain. 0: any free one.
    #[arg(long, env = "DORMOUSE_ADMIN_PORT", default_value_t = 9000)]
    pub admin_port: u16,

    /// How long each step of capture and release stands before the next takes something away. Longer than the
    /// slowest kube-proxy sync (its minSyncPeriod is 1s by default).
    #[arg(long, env = "DORMOUSE_SETTLE", default_value = "2s", value_parser = duration)]
    pub settle: Duration,

    /// How long a leader that has gone silent is waited for. It renews five times as often.
    #[arg(long, env = "DORMOUSE_LEASE_DURATION", default_value = "5s", value_parser = duration)]
    pub lease_duration: Duration,

    /// File with the token shown to activators; read anew for each connection, as Kubernetes rotates it.
    #[arg(long, env = "DORMOUSE_REPORT_TOKEN_FILE", default_value = SERVICE_ACCOUNT_TOKEN)]
    pub report_token_file: PathBuf,

    /// The token itself, in place of the file.
    #[arg(long, env = "DORMOUSE_REPORT_TOKEN", hide_env_values = true)]
    pub report_token: Option<String>,

    /// Name of the Deployment this process belongs to. When it is gone or going as the process is told to end,
    /// every Service is given back first.
    #[arg(long, env = "DORMOUSE_DEPLOYMENT")]
    pub deployment: Option<String>,

    /// Longest time for giving Services back at exit, and for everything else that is done at exit.
    #[arg(long, env = "DORMOUSE_GRACE", default_value = "25s", value_parser = duration)]
    pub grace: Duration,
}

impl Default for Args {
    fn default() -> Self {
        Self {
            name: "dormouse-autoscaler".to_owned(),
            namespace: crds::names::SYSTEM_NAMESPACE.to_owned(),
            watch_namespace: None,
            bind: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            admin_port: 9000,
            settle: Duration::from_secs(2),
            lease_duration: Duration::from_secs(5),
            report_token_file: PathBuf::from(SERVICE_ACCOUNT_TOKEN),
            report_token: None,
            deployment: None,
            grace: Duration::from_secs(25),
        }
    }
}

/// Reads `250ms`, `2s`, `1.5s`, `2m` or `1h`.
///
/// # Errors
/// A sentence with what is allowed.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let allowed = || format!("\"{text}\" is not a duration such as 250ms, 2s, 1.5s, 2m or 1h");
    let split = text.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(allowed)?;
    let (number, unit) = text.split_at(split);
    let scale = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(allowed()),
    };
    let number: f64 = number.parse().map_err(|_| allowed())?;
    Duration::try_from_secs_f64(number * scale).map_err(|_| allowed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_number_and_a_unit() {
        for (text, want) in [
            ("250ms", Some(Duration::from_millis(250))),
            ("2s", Some(Duration::from_secs(2))),
            ("1.5s", Some(Duration::from_millis(1500))),
            ("2m", Some(Duration::from_secs(120))),
            ("1h", Some(Duration::from_secs(3600))),
            ("0s", Some(Duration::ZERO)),
            ("2", None),
            ("s", None),
            ("-1s", None),
            ("1d", None),
            ("", None),
            ("1e300h", None),
        ] {
            assert_eq!(duration(text).ok(), want, "{text}");
        }
    }

    #[test]
    fn the_defaults_of_the_command_line_are_those_of_the_library() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            args: Args,
        }
        let parsed = <Line as clap::Parser>::try_parse_from(["autoscaler"]).map(|line| line.args);
        assert_eq!(
            format!("{:?}", parsed.ok()),
            format!("{:?}", Some(Args::default()))
        );
    }
}
