//! The binaries under test, built once for each test executable, and the locks by which scenarios take turns.

use std::ffi::OsString;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::real::real;

/// Between two looks for a free place.
const LOOK: Duration = Duration::from_millis(100);

/// The binaries' folder: the one above the test executable's `deps`.
pub(super) fn folder() -> Result<PathBuf> {
    let executable = std::env::current_exe()?;
    let folder = executable.parent().and_then(Path::parent);
    Ok(folder
        .context("the test executable lies in a target folder")?
        .to_owned())
}

/// The path of binary `name`, after building what is under test with the test's own profile and target folder.
///
/// Cargo runs it even when nothing changed, so that a test never passes against a binary of yesterday. On a real cluster
/// `tests/cluster/run` has built everything, images included, and in its network there is no way to a registry.
pub(super) fn binary(name: &str) -> Result<PathBuf> {
    static BUILT: OnceLock<Result<(), String>> = OnceLock::new();
    BUILT
        .get_or_init(|| build().map_err(|error| format!("{error:#}")))
        .clone()
        .map_err(anyhow::Error::msg)?;
    let path = folder()?.join(name);
    ensure!(path.exists(), "{} was not built", path.display());
    Ok(path)
}

fn build() -> Result<()> {
    if real() {
        return Ok(());
    }
    let folder = folder()?;
    let target = folder.parent().context("a target folder")?;
    let mut command = Command::new(env!("CARGO"));
    // As `cargo test --workspace` does: for fewer packages, or without what tests need, libraries have other features.
    command.args(["build", "--quiet", "--workspace", "--bins", "--examples"]);
    if folder.ends_with("release") {
        command.arg("--release");
    }
    // What cargo tells the tests it runs would be news to build scripts that ask for it.
    let told = |name: &OsString| {
        let name = name.to_string_lossy();
        name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
    };
    for name in std::env::vars_os().map(|(name, _)| name).filter(told) {
        command.env_remove(name);
    }
    command
        .env("CARGO_TARGET_DIR", target)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let status = command.status().context("cargo")?;
    ensure!(status.success(), "cargo build: {status}");
    Ok(())
}

/// Waits for one of so many places. Dropped, or at the process's end however it ends, it is the next scenario's.
pub(super) async fn turn(places: usize) -> Result<File> {
    let folder = folder()?;
    let open = |place| {
        let path = folder.join(format!("dormouse-e2e-{place}.lock"));
        File::create(&path).with_context(|| path.display().to_string())
    };
    let files: Vec<File> = (0..places).map(open).collect::<Result<_>>()?;
    loop {
        for file in &files {
            match file.try_lock() {
                Ok(()) => return Ok(file.try_clone()?),
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(error.into()),
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}
