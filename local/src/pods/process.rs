//! A process group that ends with us, whatever happens to us.
//!
//! Without `unsafe` nothing can run between fork and exec, so the process started is this executable itself
//! (`dormouse __pod run …`): it asks the kernel to be killed with its parent and then becomes the command. That covers
//! the process, not its children; for them a guard process (`dormouse __pod guard`) reads from a pipe which process
//! groups there are, and kills those that are left when the pipe breaks. Both together leave nothing behind a SIGKILL.
//!
//! The kernel's "parent" is the *thread* that forked. So all processes are started by one thread that lives as long
//! as the [`Spawner`].

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io::{BufRead, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::process::{Pid, Signal};
use tokio::sync::oneshot;

/// The hidden subcommand of `dormouse` that ends in [`pod_main`].
const SUBCOMMAND: &str = "__pod";

/// What to start.
#[derive(Debug, Default)]
pub(crate) struct Launch {
    /// Found by [`find_program`].
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<String>,
    /// The whole environment.
    pub(crate) env: Vec<(String, OsString)>,
    /// Working folder; `None`: ours.
    pub(crate) folder: Option<PathBuf>,
}

struct Order {
    launch: Launch,
    reply: oneshot::Sender<std::io::Result<tokio::process::Child>>,
}

/// Starts processes. Dropping the last clone ends the thread; what runs is killed then.
#[derive(Clone)]
pub(crate) struct Spawner {
    orders: std::sync::mpsc::Sender<Order>,
    guard: Arc<Guard>,
}

/// The process that outlives us long enough to kill what we leave.
struct Guard(Mutex<Option<std::process::ChildStdin>>);

impl Guard {
    fn tell(&self, sign: char, group: Pid) {
        if let Some(pipe) = &mut *self.0.lock() {
            // A guard that is gone cannot be helped; the parent-death signal is still there.
            let _ = writeln!(pipe, "{sign}{}", group.as_raw_nonzero());
        }
    }
}

impl Spawner {
    /// `executable` is a `dormouse`, or `None` to start commands directly (then children of a killed pod may remain).
    /// Must be called within a tokio runtime.
    pub(crate) fn new(executable: Option<PathBuf>) -> std::io::Result<Self> {
        let guard = match &executable {
            Some(executable) => Some(start_guard(executable)?),
            None => None,
        };
        let (orders, inbox) = std::sync::mpsc::channel::<Order>();
        let runtime = tokio::runtime::Handle::current();
        std::thread::Builder::new()
            .name("spawner".to_owned())
            .spawn(move || {
                let _entered = runtime.enter();
                while let Ok(order) = inbox.recv() {
                    let child = start(executable.as_deref(), order.launch);
                    // Nobody waits any more: the child dies with the answer (kill on drop).
                    let _ = order.reply.send(child);
                }
            })?;
        Ok(Self {
            orders,
            guard: Arc::new(Guard(Mutex::new(guard))),
        })
    }

    /// Starts a process group.
    pub(crate) async fn spawn(&self, launch: Launch) -> std::io::Result<Process> {
        let gone = || std::io::Error::other("the cluster is ending");
        let (reply, answer) = oneshot::channel();
        self.orders.send(Order { launch, reply }).map_err(|_| gone())?;
        let child = answer.await.map_err(|_| gone())??;
        let pid = child
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .and_then(Pid::from_raw);
        let group = pid.ok_or_else(|| std::io::Error::other("the process ended at once"))?;
        self.guard.tell('+', group);
        Ok(Process {
            child,
            group,
            guard: Arc::clone(&self.guard),
        })
    }
}

fn start_guard(executable: &Path) -> std::io::Result<std::process::ChildStdin> {
    let mut child = std::process::Command::new(executable)
        .args([SUBCOMMAND, "guard"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        // A group of its own: the terminal's Ctrl-C must not reach it before us.
        .process_group(0)
        .spawn()?;
    child
        .stdin
        .take()
        .ok_or_else(|| std::io::Error::other("no pipe to the guard"))
}

fn start(executable: Option<&Path>, launch: Launch) -> std::io::Result<tokio::process::Child> {
    let mut command = match executable {
        Some(executable) => {
            let mut command = tokio::process::Command::new(executable);
            command
                .args([SUBCOMMAND, "run", &std::process::id().to_string(), "--"])
                .arg(&launch.program);
            command
        }
        None => tokio::process::Command::new(&launch.program),
    };
    if let Some(folder) = &launch.folder {
        command.current_dir(folder);
    }
    command
        .args(&launch.args)
        .env_clear()
        .envs(launch.env)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
}

/// A running process and all in its group.
pub(crate) struct Process {
    child: tokio::process::Child,
    group: Pid,
    guard: Arc<Guard>,
}

impl Process {
    /// Its standard output and error; once.
    pub(crate) fn output(
        &mut self,
    ) -> (
        Option<tokio::process::ChildStdout>,
        Option<tokio::process::ChildStderr>,
    ) {
        (self.child.stdout.take(), self.child.stderr.take())
    }

    /// The process id.
    pub(crate) fn id(&self) -> i32 {
        self.group.as_raw_nonzero().get()
    }

    /// Waits for the first process to end. Cancel safe.
    pub(crate) async fn wait(&mut self) -> std::io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Asks all to end.
    pub(crate) fn terminate(&self) {
        let _ = rustix::process::kill_process_group(self.group, Signal::TERM);
    }

    /// Ends all.
    pub(crate) fn kill(&self) {
        let _ = rustix::process::kill_process_group(self.group, Signal::KILL);
    }
}

impl Drop for Process {
    /// What the first process left behind goes with it, as in a container.
    fn drop(&mut self) {
        self.kill();
        self.guard.tell('-', self.group);
    }
}

/// Exit code as Kubernetes shows it: 128 and the signal for a process that was killed.
pub(crate) fn exit_code(status: ExitStatus) -> i32 {
    status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal))
        .unwrap_or(255)
}

/// Finds a program as a shell does: with a slash, from `folder`; else in `path`.
pub(crate) fn find_program(program: &str, path: &OsStr, folder: Option<&Path>) -> Option<PathBuf> {
    let is_program = |path: &Path| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::metadata(path).is_ok_and(|it| it.is_file() && it.permissions().mode() & 0o111 != 0)
    };
    if program.contains('/') {
        let whole = folder.map_or_else(|| PathBuf::from(program), |folder| folder.join(program));
        let whole = std::path::absolute(whole).ok()?;
        return is_program(&whole).then_some(whole);
    }
    std::env::split_paths(path)
        .map(|folder| folder.join(program))
        .find(|it| is_program(it))
}

/// What `dormouse __pod …` does: becomes the command given, tied to its parent's life; or guards process groups.
/// `args` are those after `__pod`. Never returns.
pub fn pod_main(args: impl IntoIterator<Item = OsString>) -> ! {
    let mut args = args.into_iter();
    let code = match args.next().as_deref().map(OsStr::as_bytes) {
        Some(b"guard") => guard(std::io::stdin().lock()),
        Some(b"run") => run(args),
        _ => {
            eprintln!("dormouse {SUBCOMMAND} is started by `dormouse local` only");
            2
        }
    };
    std::process::exit(code)
}

fn run(mut args: impl Iterator<Item = OsString>) -> i32 {
    let parent = args.next().and_then(|it| it.to_str()?.parse::<i32>().ok());
    let separator = args.next();
    let (Some(parent), Some(_), Some(program)) = (parent, separator, args.next()) else {
        return 2;
    };
    #[cfg(target_os = "linux")]
    {
        let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
        // The parent may have died before the line above; then nobody will ever signal us.
        if rustix::process::getppid().map(|it| it.as_raw_nonzero().get()) != Some(parent) {
            return 137;
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = parent;
    let error = std::process::Command::new(&program).args(args).exec();
    eprintln!("{}: {error}", program.to_string_lossy());
    if error.kind() == std::io::ErrorKind::NotFound {
        127
    } else {
        126
    }
}

/// Reads `+GROUP` and `-GROUP` lines until the pipe breaks, then kills the groups that are left.
fn guard(pipe: impl BufRead) -> i32 {
    for group in left_groups(pipe) {
        if let Some(group) = Pid::from_raw(group) {
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
    }
    0
}

fn left_groups(pipe: impl BufRead) -> BTreeSet<i32> {
    let mut groups = BTreeSet::new();
    for line in pipe.lines().map_while(Result::ok) {
        let (sign, number) = line.split_at_checked(1).unwrap_or_default();
        // 0 and 1 would mean ourselves and init.
        let Some(group) = number.parse::<i32>().ok().filter(|it| *it > 1) else {
            continue;
        };
        if sign == "+" {
            groups.insert(group);
        } else {
            groups.remove(&group);
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guard_knows_what_is_left() {
        let lines = "+100\n+200\n-100\n+0\n+1\nnonsense\n\n";
        assert_eq!(left_groups(lines.as_bytes()), BTreeSet::from([200]));
    }

    #[test]
    fn programs_are_found_as_in_a_shell() {
        let path = OsStr::new("/nonexistent:/bin:/usr/bin");
        assert!(find_program("sh", path, None).is_some_and(|it| it.is_absolute()));
        assert_eq!(find_program("no-such-program", path, None), None);
        assert_eq!(
            find_program("./sh", path, Some(Path::new("/bin"))),
            Some(PathBuf::from("/bin/sh"))
        );
        assert_eq!(find_program("/bin", path, None), None);
    }

    #[tokio::test]
    async fn what_a_process_left_behind_goes_with_it() {
        let spawner = Spawner::new(None).expect("a thread");
        let launch = Launch {
            program: "/bin/sh".into(),
            args: vec!["-c".into(), "sleep 1000 & echo $!; exit 3".into()],
            env: vec![("PATH".into(), "/bin:/usr/bin".into())],
            folder: None,
        };
        let mut process = spawner.spawn(launch).await.expect("sh");
        let mut line = String::new();
        let output = process.output().0.expect("stdout");
        tokio::io::AsyncBufReadExt::read_line(&mut tokio::io::BufReader::new(output), &mut line)
            .await
            .expect("a line");
        let status = process.wait().await.expect("an end");
        assert_eq!(exit_code(status), 3);
        drop(process);
        let child = Pid::from_raw(line.trim().parse().expect("a number")).expect("a pid");
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(5);
        while is_running(child) {
            assert!(tokio::time::Instant::now() < deadline, "{child:?} is still there");
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }

    /// Neither gone nor waiting to be reaped by whoever adopted it.
    fn is_running(pid: Pid) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
        stat.is_ok_and(|text| !text.contains(") Z "))
    }
}
