//! Requests that are not use: probes of kubelets and load balancers, scrapes of metrics, and what a Service lists itself.
//!
//! They neither wake a pool nor keep it awake. While no pod is ready a probe is told that all is well, because a sleeping
//! Service is; a scrape is refused, because there is nothing to measure.

use crds::route::Ignore;
use http::HeaderMap;
use http::header::USER_AGENT;

/// What a request is that is not use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Noise {
    /// Asks whether the Service is healthy.
    Probe,
    /// Asks for metrics.
    Scrape,
}

/// Beginnings of `User-Agent` that are noise for every Service.
const KNOWN: [(&str, Noise); 9] = [
    ("kube-probe/", Noise::Probe),
    ("ELB-HealthChecker/", Noise::Probe),
    ("GoogleHC/", Noise::Probe),
    ("Amazon-Route53-Health-Check-Service", Noise::Probe),
    ("Envoy/HC", Noise::Probe),
    ("Prometheus/", Noise::Scrape),
    ("vm_promscrape", Noise::Scrape),
    ("GrafanaAgent/", Noise::Scrape),
    ("OpenTelemetry Collector", Noise::Scrape),
];

/// Tells noise from use; `None` is use.
pub(crate) fn kind(headers: &HeaderMap, path: &str, ignore: &Ignore) -> Option<Noise> {
    let agent = headers.get(USER_AGENT).map_or(&b""[..], |value| value.as_bytes());
    if let Some((_, noise)) = KNOWN
        .iter()
        .find(|(prefix, _)| agent.starts_with(prefix.as_bytes()))
    {
        return Some(*noise);
    }
    let listed = ignore.paths.iter().any(|listed| listed == path)
        || ignore
            .user_agents
            .iter()
            .any(|prefix| !prefix.is_empty() && agent.starts_with(prefix.as_bytes()));
    listed.then(|| {
        if path.ends_with("/metrics") {
            Noise::Scrape
        } else {
            Noise::Probe
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_told_from_use() {
        let ignore = Ignore {
            user_agents: vec!["Uptime".into(), String::new()],
            paths: vec!["/healthz".into(), "/internal/metrics".into()],
        };
        for (agent, path, wanted) in [
            ("kube-probe/1.35", "/", Some(Noise::Probe)),
            ("Prometheus/3.0", "/metrics", Some(Noise::Scrape)),
            ("GoogleHC/1.0", "/", Some(Noise::Probe)),
            ("ELB-HealthChecker/2.0", "/", Some(Noise::Probe)),
            ("UptimeRobot/2", "/", Some(Noise::Probe)),
            ("curl/8", "/healthz", Some(Noise::Probe)),
            ("curl/8", "/healthz/deep", None),
            ("curl/8", "/internal/metrics", Some(Noise::Scrape)),
            ("curl/8", "/", None),
            ("", "/", None),
            ("my kube-probe/1", "/", None),
        ] {
            let mut headers = HeaderMap::new();
            if !agent.is_empty() {
                headers.insert(USER_AGENT, agent.parse().expect("a header"));
            }
            assert_eq!(kind(&headers, path, &ignore), wanted, "{agent} {path}");
        }
    }
}
