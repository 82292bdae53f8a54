//! The embedded cluster: `dormouse local` as a process. The only place that knows how it is started.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use rustix::process::Signal;
use tokio::process::{Child, Command};

use super::binaries;
use super::cluster::{SOON, System};
use super::process::{alive, descendants, kill};
use super::wait::eventually;

/// A running `dormouse local`.
pub(super) struct Embedded {
    /// Where the front door listens.
    pub(super) front: SocketAddr,
    /// The process that all others descend from.
    pub(super) pid: u32,
    /// What `kubectl --kubeconfig` takes.
    pub(super) kubeconfig: PathBuf,
    /// The test application's program.
    pub(super) witness: PathBuf,
    log: PathBuf,
    child: Child,
}

impl Embedded {
    /// Starts it in `folder`. Its API does not answer yet.
    pub(super) async fn start(folder: &Path, system: System) -> Result<Self> {
        let dormouse = tokio::task::spawn_blocking(|| binaries::binary("dormouse")).await??;
        let witness = binaries::binary("witness")?;
        let (api, front) = (free_port()?, free_port()?);
        let (kubeconfig, log) = (folder.join("kubeconfig"), folder.join("local.log"));
        let output = File::create(&log)?;
        let system = match system {
            System::Pods => "pods",
            System::InProcess => "in-process",
        };
        let child = Command::new(&dormouse)
            .arg("local")
            .args(["--api", &api.to_string(), "--listen", &front.to_string()])
            .args(["--system", system])
            .arg("--kubeconfig")
            .arg(&kubeconfig)
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| dormouse.display().to_string())?;
        Ok(Self {
            front,
            pid: child.id().context("it runs")?,
            kubeconfig,
            witness,
            log,
            child,
        })
    }

    /// The last `lines` lines of what it and its pods printed.
    pub(super) fn log(&self, lines: usize) -> String {
        let text = std::fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default();
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// Ends it in order, and returns what of its processes still runs.
    pub(super) async fn stop(mut self) -> Vec<u32> {
        let processes = descendants(self.pid);
        // Already gone is gone too.
        let _ = kill(self.pid, Signal::TERM);
        if tokio::time::timeout(SOON, self.child.wait()).await.is_err() {
            let _ = self.child.kill().await;
        }
        let gone = async || processes.iter().all(|pid| !alive(*pid)).then_some(());
        let _ = eventually("all processes gone", Duration::from_secs(5), gone).await;
        let left: Vec<u32> = processes.into_iter().filter(|pid| alive(*pid)).collect();
        for pid in &left {
            let _ = kill(*pid, Signal::KILL);
        }
        left
    }
}

/// A port that nobody has at this moment. Scenarios take turns, so it stays free long enough.
fn free_port() -> Result<SocketAddr> {
    let listener =
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(|error| anyhow!("a free port: {error}"))?;
    Ok(listener.local_addr()?)
}
