//! What the system's processes tell at `/metrics`, read as a Prometheus would.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use super::cluster::{Cluster, SOON};
use super::load::answer;

/// The series of some processes, each as it was told.
#[derive(Clone, Debug, Default)]
pub struct Scrape {
    samples: Vec<Sample>,
}

#[derive(Clone, Debug)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Cluster {
    /// Reads the metrics of the system's processes whose pods' names begin with `name`.
    ///
    /// # Errors
    /// One of them does not answer.
    pub async fn scrape(&self, name: &str) -> Result<Scrape> {
        let mut all = Scrape::default();
        for pod in self.system_api::<Pod>().list(&Default::default()).await? {
            let status = pod.status.as_ref();
            let ip = status.and_then(|status| status.pod_ip.clone());
            let Some(ip) = ip.filter(|_| pod.name_any().starts_with(name)) else {
                continue;
            };
            let text = answer(&format!("http://{ip}:9000/metrics"), SOON).await;
            all.read(&text.with_context(|| pod.name_any())?);
        }
        Ok(all)
    }
}

impl Scrape {
    /// Adds what one process told, in Prometheus' text format. Lines that are no samples are passed over.
    pub fn read(&mut self, text: &str) {
        self.samples.extend(text.lines().filter_map(sample));
    }

    /// The values of the series of this name that have all these labels, one for each series of each process.
    #[must_use]
    pub fn each(&self, name: &str, labels: &[(&str, &str)]) -> Vec<f64> {
        self.those(name, labels).map(|sample| sample.value).collect()
    }

    /// Their sum.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.those(name, labels).map(|sample| sample.value).sum()
    }

    /// A quantile, `0..=1`, of a histogram of durations over all processes, as PromQL's `histogram_quantile` finds it: within
    /// a bucket by interpolation, and never beyond the last bound. `None`: nothing was observed.
    #[must_use]
    pub fn quantile(&self, name: &str, labels: &[(&str, &str)], quantile: f64) -> Option<Duration> {
        let mut buckets: Vec<(f64, f64)> = Vec::new();
        for sample in self.those(&format!("{name}_bucket"), labels) {
            let bound: f64 = sample.labels.get("le")?.parse().ok()?;
            match buckets.iter_mut().find(|(known, _)| *known == bound) {
                Some((_, count)) => *count += sample.value,
                None => buckets.push((bound, sample.value)),
            }
        }
        buckets.sort_by(|one, other| one.0.total_cmp(&other.0));
        let rank = quantile * buckets.last().filter(|(_, all)| *all > 0.0)?.1;
        let at = buckets.iter().position(|(_, up_to)| *up_to >= rank)?;
        let (from, below) = at.checked_sub(1).map_or((0.0, 0.0), |before| buckets[before]);
        let (to, up_to) = buckets[at];
        let seconds = if to.is_finite() {
            from + (to - from) * ((rank - below) / (up_to - below).max(1.0))
        } else {
            from
        };
        Some(Duration::from_secs_f64(seconds))
    }

    /// Names of the histograms that have observed anything.
    #[must_use]
    pub fn histograms(&self) -> BTreeSet<&str> {
        let observed = self.samples.iter().filter(|sample| sample.value > 0.0);
        observed
            .filter_map(|sample| sample.name.strip_suffix("_count"))
            .collect()
    }

    fn those(&self, name: &str, labels: &[(&str, &str)]) -> impl Iterator<Item = &Sample> {
        self.samples.iter().filter(move |sample| {
            let has = |(key, value): &(&str, &str)| sample.labels.get(*key).is_some_and(|own| own == value);
            sample.name == name && labels.iter().all(has)
        })
    }
}

/// Reads one line. Label values here are names of objects and words of closed sets: none has a quote or a comma.
fn sample(line: &str) -> Option<Sample> {
    let (series, value) = line.rsplit_once(' ').filter(|_| !line.starts_with('#'))?;
    let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
    let labels = labels.strip_suffix('}')?.split(',').filter(|it| !it.is_empty());
    let pair = |label: &str| {
        let (key, value) = label.split_once('=')?;
        Some((key.to_owned(), value.trim_matches('"').to_owned()))
    };
    Some(Sample {
        name: name.to_owned(),
        labels: labels.map(pair).collect::<Option<_>>()?,
        value: value.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "# HELP x_seconds Times
# TYPE x_seconds histogram
x_seconds_bucket{pool=\"a\",le=\"0.01\"} 0
x_seconds_bucket{pool=\"a\",le=\"0.02\"} 5
x_seconds_bucket{pool=\"a\",le=\"+Inf\"} 10
x_seconds_count{pool=\"a\"} 10
x_seconds_sum{pool=\"a\"} 3.5
up 1
";

    #[test]
    fn series_of_several_processes_are_found_by_their_labels_and_added_up() {
        let mut all = Scrape::default();
        all.read(ONE);
        all.read(&ONE.replace("\"a\"", "\"b\""));
        assert_eq!(all.each("up", &[]), [1.0, 1.0]);
        assert_eq!(all.sum("x_seconds_sum", &[]), 7.0);
        assert_eq!(all.sum("x_seconds_sum", &[("pool", "b")]), 3.5);
        assert_eq!(all.sum("x_seconds_sum", &[("pool", "c")]), 0.0);
        assert_eq!(all.histograms(), ["x_seconds"].into());
    }

    #[test]
    fn a_quantile_lies_within_its_bucket_and_not_beyond_the_last_bound() {
        let mut all = Scrape::default();
        assert_eq!(all.quantile("x_seconds", &[], 0.5), None);
        all.read(ONE);
        all.read(ONE);
        for (quantile, millis) in [(0.1, 12), (0.25, 15), (0.5, 20), (0.99, 20)] {
            let found = all.quantile("x_seconds", &[("pool", "a")], quantile);
            assert_eq!(found, Some(Duration::from_millis(millis)), "{quantile}");
        }
        assert_eq!(all.quantile("x_seconds", &[("pool", "b")], 0.5), None);
    }
}
