//! The harness of the scenarios: real processes, and everything gone afterwards.
//!
//! [`scenario`] does all of it: it waits for the machine (two embedded clusters at a time, for they mostly wait; locks on
//! files make them take turns, also between test executables), starts `dormouse local` or goes to the real cluster that
//! `tests/cluster/run` has started, hands the [`Cluster`] to the scenario, prints its line of figures or, if it failed, what
//! the cluster looked like, and takes all down. Waiting is watching, with a deadline; nothing sleeps for luck. Where the two
//! clusters put things is known in `embedded.rs` and `real.rs` only.

mod app;
mod apply;
mod binaries;
mod cluster;
mod control;
mod embedded;
mod load;
mod process;
mod real;
mod receiver;
mod rollout;
mod scrape;
mod wait;
mod witness;

use std::fmt::Display;
use std::io::Write;
use std::time::Duration;

pub use app::{App, SERVICE_PORT};
pub use apply::{apply, apply_as, kubectl};
pub use cluster::{Cluster, SOON, System, ready};
pub use control::Control;
pub use load::{ID_HEADER, Load, answer, ask, fetch, get, steady, steady_over, wake};
pub use process::{alive, cpu_seconds, descendants, kill, resident_bytes};
pub use real::real;
pub use receiver::Receiver;
pub use rollout::{PodsSeen, rollout};
pub use rustix::process::Signal;
pub use scrape::Scrape;
pub use wait::{eventually, wait_for};
pub use witness::{Seen, Witness, first_errors};

/// So many embedded clusters at a time. They do not meet: the addresses of each begin at random ones.
const PLACES: usize = 2;

/// Longest that a scenario may take, its full size included. One that hangs fails instead.
const LONGEST: Duration = Duration::from_secs(600);

/// Whether scenarios run at the size that the figures in the docs were measured at: `DORMOUSE_E2E=full`.
#[must_use]
pub fn full() -> bool {
    std::env::var("DORMOUSE_E2E").is_ok_and(|size| size == "full")
}

/// `small` in an ordinary test run, `large` in a full one.
#[must_use]
pub fn size<T>(small: T, large: T) -> T {
    if full() { large } else { small }
}

/// Prints a line that is seen also when the test passes: the test runner keeps back only what its macros print.
pub fn say(line: &str) {
    // Nobody to tell is no reason to fail.
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Runs scenario `number` (`r03` is a rollout's) on a cluster of its own. The body returns its line of figures.
///
/// # Panics
/// The scenario failed; what the cluster looked like has been printed.
pub fn scenario<F>(number: impl Display, system: System, body: F)
where
    F: AsyncFnOnce(&mut Cluster) -> anyhow::Result<String>,
{
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let runtime = runtime.expect("a runtime starts");
    let turn = runtime.block_on(binaries::turn(if real() { 1 } else { PLACES }));
    let turn = turn.expect("the machine's locks");
    let begun = tokio::time::Instant::now();
    let failure = runtime.block_on(async {
        let mut cluster = match Cluster::start(&format!("scenario-{number}"), system).await {
            Ok(cluster) => cluster,
            Err(error) => return Some(format!("{error:#}")),
        };
        let result = tokio::time::timeout(LONGEST, body(&mut cluster)).await;
        let failure = match result {
            Ok(Ok(figures)) => {
                let took = begun.elapsed().as_secs();
                say(&format!("scenario {number}: {figures}; {took} s in all"));
                None
            }
            Ok(Err(error)) => Some(format!("{error:#}")),
            Err(_) => Some(format!("took longer than {LONGEST:?}")),
        };
        if let Some(failure) = &failure {
            eprintln!("scenario {number} failed: {failure}");
            eprintln!("{}", cluster.describe().await);
        }
        let left = cluster.stop().await;
        failure.or_else(|| (!left.is_empty()).then(|| format!("left behind: {left:?}")))
    });
    drop(turn);
    if let Some(failure) = failure {
        panic!("scenario {number}: {failure}");
    }
}
