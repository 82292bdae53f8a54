//! The whole, as a process: front door, files that change, and an end that leaves nothing.

mod support;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};
use support::{executable, get, until};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};

const WEB: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: { name: web }
spec:
  selector: { matchLabels: { app: web } }
  template:
    metadata: { labels: { app: web, version: one } }
    spec:
      containers:
      - name: web
        image: example/web
        command: [embedded-cluster, serve]
        ports: [{ containerPort: 80 }]
---
apiVersion: v1
kind: Service
metadata: { name: web }
spec:
  selector: { app: web }
  ports: [{ port: PORT, targetPort: 80 }]
";

/// `embedded-cluster local` on a folder of its own.
struct Local {
    child: tokio::process::Child,
    folder: PathBuf,
    kubeconfig: PathBuf,
    lines: Arc<Mutex<Vec<String>>>,
    front: String,
}

impl Local {
    async fn start(name: &str, files: &[(&str, &str)]) -> Self {
        let folder = std::env::temp_dir().join(format!("dormouse-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(folder.join("manifests")).expect("a folder");
        for (file, text) in files {
            std::fs::write(folder.join("manifests").join(file), text).expect("a file");
        }
        let kubeconfig = folder.join("kubeconfig");
        let mut child = tokio::process::Command::new(executable())
            .args([
                "local",
                "--listen",
                "127.0.0.1:0",
                "--api",
                "127.0.0.1:0",
                "--kubeconfig",
            ])
            .arg(&kubeconfig)
            .arg(folder.join("manifests"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("a process");
        let lines = Arc::new(Mutex::new(Vec::new()));
        collect(child.stdout.take().expect("stdout"), &lines);
        collect(child.stderr.take().expect("stderr"), &lines);
        let mut local = Self {
            child,
            folder,
            kubeconfig,
            lines,
            front: String::new(),
        };
        let url = local.line(".localhost:").await;
        let port = url
            .rsplit(':')
            .next()
            .unwrap_or_default()
            .trim_end_matches('/')
            .to_owned();
        local.front = format!("127.0.0.1:{port}");
        local
    }

    /// The first line with `text`.
    async fn line(&self, text: &str) -> String {
        let found = || self.lines.lock().iter().find(|line| line.contains(text)).cloned();
        until(
            &format!("a line with {text}; have {:?}", self.lines.lock()),
            || async { found() },
        )
        .await
    }

    fn signal(&self, signal: Signal) {
        let pid = self
            .child
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .and_then(Pid::from_raw)
            .expect("it runs");
        kill_process(pid, signal).expect("sent");
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn collect(output: impl AsyncRead + Unpin + Send + 'static, lines: &Arc<Mutex<Vec<String>>>) {
    let lines = Arc::clone(lines);
    tokio::spawn(async move {
        let mut output = BufReader::new(output).lines();
        while let Ok(Some(line)) = output.next_line().await {
            lines.lock().push(line);
        }
    });
}

fn is_gone(pid: &str) -> bool {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid).join("stat"));
    stat.map_or(true, |text| text.contains(") Z "))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_front_door_leads_to_services_and_names_them_to_those_who_ask_for_others() {
    let local = Local::start("front", &[("web.yaml", &WEB.replace("PORT", "21011"))]).await;
    until("an answer", || async {
        let (status, name) = get(&local.front, "web.localhost", "/").await.ok()?;
        (status == 200 && name.starts_with("web-")).then_some(())
    })
    .await;
    let (status, text) = get(&local.front, "other.localhost", "/")
        .await
        .expect("an answer");
    assert_eq!(status, 404);
    assert!(text.contains("http://web.localhost:"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saved_file_is_applied_and_a_broken_one_changes_nothing() {
    let text = WEB.replace("PORT", "21012");
    let local = Local::start("reload", &[("web.yaml", &text)]).await;
    let first = until("an answer", || async {
        let (status, name) = get(&local.front, "web.localhost", "/").await.ok()?;
        (status == 200).then_some(name)
    })
    .await;
    let file = local.folder.join("manifests/web.yaml");
    std::fs::write(&file, text.replace("kind: Service", "kind: [Service")).expect("written");
    let error = local.line("error: ").await;
    assert!(error.contains("web.yaml:"), "{error}");
    let place = error.rsplit("web.yaml:").next().unwrap_or_default();
    assert!(
        place.starts_with(|it: char| it.is_ascii_digit()),
        "a line number: {error}"
    );
    assert_eq!(
        get(&local.front, "web.localhost", "/")
            .await
            .expect("an answer")
            .1,
        first
    );
    // As editors do: a new file renamed over the old one.
    let fresh = local.folder.join("manifests/.web.swp");
    std::fs::write(&fresh, text.replace("version: one", "version: two")).expect("written");
    std::fs::rename(&fresh, &file).expect("renamed");
    local.line("deployment/web configured").await;
    until("an answer of the new pod", || async {
        let (status, name) = get(&local.front, "web.localhost", "/").await.ok()?;
        (status == 200 && name != first).then_some(())
    })
    .await;
    std::fs::remove_file(&file).expect("removed");
    let note = local.line("is no longer in the files").await;
    assert!(note.contains("kubectl --kubeconfig"), "{note}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_after_the_end_and_nothing_after_a_kill() {
    for (name, signal) in [("end", Signal::TERM), ("kill", Signal::KILL)] {
        // One that ignores TERM, with a child in the background.
        let pod = "
apiVersion: v1
kind: Pod
metadata: { name: tree }
spec:
  containers:
  - name: tree
    image: example/sh
    command: [sh, -c, \"trap '' TERM; sleep 1000 & echo pids $$$$ $!; while :; do sleep 0.05; done\"]
---
apiVersion: v1
kind: Service
metadata: { name: tree }
spec: { selector: { app: none }, ports: [{ port: 21013 }] }
";
        let mut local = Local::start(name, &[("pod.yaml", pod)]).await;
        let line = local.line("pids ").await;
        let pids: Vec<&str> = line
            .rsplit("pids ")
            .next()
            .unwrap_or_default()
            .split(' ')
            .collect();
        assert_eq!(pids.len(), 2, "{line}");
        assert!(pids.iter().all(|pid| !is_gone(pid)));
        assert!(local.kubeconfig.exists());
        local.signal(signal);
        let ended = tokio::time::timeout(std::time::Duration::from_secs(10), local.child.wait()).await;
        assert!(ended.is_ok(), "it ends in time");
        until("all gone", || async {
            pids.iter().all(|pid| is_gone(pid)).then_some(())
        })
        .await;
        assert_eq!(local.kubeconfig.exists(), signal == Signal::KILL);
    }
}
