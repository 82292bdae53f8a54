//! What the test application saw: every request's id, in a file that outlives its pods.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use loadtest::{ErrorKind, Results};

/// The file that all pods of the test application write to.
#[derive(Clone, Debug)]
pub struct Witness {
    path: PathBuf,
}

/// What is in it.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// How often each id came.
    pub ids: BTreeMap<String, u32>,
    /// The most requests that one process ever had at once.
    pub overlap: u32,
    /// Pods that had a request.
    pub pods: BTreeSet<String>,
    /// How many requests pods had, by the pod.
    pub requests: BTreeMap<String, u64>,
}

impl Seen {
    /// How many requests the pods of a workload had: of a revision, by its name.
    #[must_use]
    pub fn of(&self, workload: &str) -> u64 {
        let pods = self.requests.iter();
        pods.filter(|(pod, _)| is_of(pod, workload))
            .map(|(_, requests)| requests)
            .sum()
    }
}

/// Whether a pod is one of a Deployment's: `DEPLOYMENT-HASH-POD`.
fn is_of(pod: &str, workload: &str) -> bool {
    let rest = pod.strip_prefix(workload).and_then(|rest| rest.strip_prefix('-'));
    rest.is_some_and(|rest| rest.split('-').count() == 2)
}

impl Witness {
    /// The file in `folder`.
    #[must_use]
    pub fn new(folder: &Path) -> Self {
        Self {
            path: folder.join("witness"),
        }
    }

    /// Its path, for `WITNESS_FILE`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the pods saw of ids that begin with `prefix`.
    ///
    /// # Errors
    /// The file cannot be read; one that was never made is empty.
    pub fn seen(&self, prefix: &str) -> Result<Seen> {
        let text = match std::fs::read_to_string(&self.path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            text => text?,
        };
        let mut seen = Seen::default();
        for line in text.lines() {
            let mut words = line.split(' ');
            let (Some(pod), Some(id), Some(overlap)) = (words.next(), words.next(), words.next()) else {
                continue;
            };
            if !id.starts_with(prefix) {
                continue;
            }
            *seen.ids.entry(id.to_owned()).or_default() += 1;
            seen.overlap = seen.overlap.max(overlap.parse().unwrap_or(0));
            seen.pods.insert(pod.to_owned());
            *seen.requests.entry(pod.to_owned()).or_default() += 1;
        }
        Ok(seen)
    }

    /// Checks that of a run nothing failed, nothing was answered twice and nothing was lost, and returns what was seen.
    ///
    /// # Errors
    /// Something was; what, is in the error.
    pub fn proves(&self, prefix: &str, results: &Results) -> Result<Seen> {
        self.proves_but(prefix, results, 0)
    }

    /// As [`Witness::proves`] for a bad release: the application itself may have answered at most `most` requests with an
    /// error, each of them once as well. Nobody else may have.
    ///
    /// # Errors
    /// As [`Witness::proves`].
    pub fn proves_but(&self, prefix: &str, results: &Results, most: u64) -> Result<Seen> {
        ensure!(
            results.failed <= most,
            "{} of {} failed, at most {most} may have: {}",
            results.failed,
            results.sent,
            first_errors(results)
        );
        let others = results
            .errors
            .keys()
            .find(|kind| **kind != ErrorKind::Status(500));
        ensure!(
            others.is_none(),
            "not only the application's own 500: {}",
            first_errors(results)
        );
        let seen = self.seen(prefix)?;
        let twice: Vec<_> = seen.ids.iter().filter(|(_, times)| **times > 1).collect();
        ensure!(twice.is_empty(), "answered more than once: {twice:?}");
        let (answered, asked) = (seen.ids.len() as u64, results.ok + results.failed);
        ensure!(
            answered == asked,
            "{asked} were answered, the application saw {answered}"
        );
        Ok(seen)
    }
}

/// The first failures, a line each.
#[must_use]
pub fn first_errors(results: &Results) -> String {
    let lines = results.first_errors.iter().map(|error| {
        let (at, after) = (error.at.as_millis(), error.after.as_millis());
        format!(
            "\n  at {at} ms, after {after} ms: {} {} {}",
            error.failure.kind, error.id, error.failure.message
        )
    });
    lines.collect()
}
