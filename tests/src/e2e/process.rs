//! Processes by their id: who descends from whom, who is alive, and how one is ended.

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

/// Sends `signal` to process `pid`.
///
/// # Errors
/// There is no such process, or it is not ours.
pub fn kill(pid: u32, signal: Signal) -> Result<()> {
    let process = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .context("a process id")?;
    kill_process(process, signal).with_context(|| format!("{signal:?} to process {pid}"))
}

/// Whether process `pid` runs. One that has ended but was not waited for does not.
#[must_use]
pub fn alive(pid: u32) -> bool {
    let exists = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .is_some_and(|pid| test_kill_process(pid).is_ok());
    exists && stat(pid).is_some_and(|(state, _)| state != 'Z' && state != 'X')
}

/// All processes that process `pid` started, directly or not.
#[must_use]
pub fn descendants(pid: u32) -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let all: Vec<(u32, u32)> = entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, stat(pid)?.1)))
        .collect();
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        found.extend(
            all.iter()
                .filter(|(_, of)| *of == parent)
                .map(|(child, _)| *child),
        );
        next += 1;
    }
    found.split_off(1)
}

/// Resident memory of process `pid` in bytes.
#[must_use]
pub fn resident_bytes(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim()
        .trim_end_matches("kB")
        .trim()
        .parse::<u64>()
        .ok()
        .map(|kilobytes| kilobytes * 1024)
}

/// Processor time that process `pid` has used, in seconds, to a hundredth.
#[must_use]
pub fn cpu_seconds(pid: u32) -> Option<f64> {
    let line = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = line.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?;
    // USER_HZ is 100 on every Linux that we run on.
    Some(ticks / 100.0)
}

/// The value of variable `name` in the environment that process `pid` was started with.
#[must_use]
pub(super) fn variable(pid: u32, name: &str) -> Option<String> {
    let environment = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
    let entries = environment.split(|byte| *byte == 0).map(String::from_utf8_lossy);
    entries
        .filter_map(|entry| entry.strip_prefix(name)?.strip_prefix('=').map(str::to_owned))
        .next()
}

/// State and parent of a process: after the name, which is in brackets and may hold anything.
fn stat(pid: u32) -> Option<(char, u32)> {
    let line = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = line.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}
