//! The harness itself: that its proofs can fail, and that it sees and ends the processes it should.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result};
use dormouse_tests::e2e::{self, Load, SOON, Signal, Witness};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};

/// A witness as a child of this process, in a folder of its own.
struct App {
    child: Child,
    folder: PathBuf,
    url: String,
}

impl App {
    async fn start(name: &str) -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("dormouse-harness-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let child = Command::new(env!("CARGO_BIN_EXE_witness"))
            .env("WITNESS_FILE", Witness::new(&folder).path())
            .env("PORT", port.to_string())
            .env("POD_IP", "127.0.0.1")
            .env("POD_NAME", name)
            .spawn()?;
        let url = format!("http://127.0.0.1:{port}");
        let answers = async || e2e::get(&url, SOON).await.ok();
        e2e::eventually("the witness answers", SOON, answers).await?;
        Ok(Self { child, folder, url })
    }

    fn witness(&self) -> Witness {
        Witness::new(&self.folder)
    }
}

impl Drop for App {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

async fn load(app: &App, prefix: &str, path: &str, requests: u64) -> Result<loadtest::Results> {
    let url = format!("{}{path}", app.url);
    let mut options = loadtest::Options::new(vec![url.parse()?], loadtest::Load::Closed(4));
    options.requests = Some(requests);
    Ok(Load::start(prefix, options).await?.finish().await)
}

#[tokio::test]
async fn a_witness_proves_what_was_answered_once_and_tells_twice_lost_and_failed() -> Result<()> {
    let app = App::start("proof").await?;
    let once = load(&app, "a", "/delay/5", 40).await?;
    let seen = app.witness().proves("a-", &once)?;
    assert_eq!((seen.ids.len(), seen.pods.len()), (40, 1));
    assert!((2..=4).contains(&seen.overlap), "{}", seen.overlap);

    load(&app, "a", "/", 3).await?;
    let twice = app
        .witness()
        .proves("a-", &once)
        .err()
        .context("three ids came twice")?;
    assert!(twice.to_string().contains("more than once"), "{twice}");

    let answered = load(&app, "b", "/", 5).await?;
    std::fs::write(app.witness().path(), "pod b-1 1\npod b-2 1\n")?;
    let lost = app
        .witness()
        .proves("b-", &answered)
        .err()
        .context("three were not seen")?;
    assert!(lost.to_string().contains("the application saw 2"), "{lost}");

    let failed = load(&app, "c", "/status/503", 2).await?;
    let failed = app.witness().proves("c-", &failed).err().context("two failed")?;
    assert!(failed.to_string().contains("status-503"), "{failed}");
    Ok(())
}

#[tokio::test]
async fn processes_are_found_by_descent_and_ended_by_id() -> Result<()> {
    let mut app = App::start("descent").await?;
    let pid = app.child.id();
    assert!(e2e::descendants(std::process::id()).contains(&pid));
    assert!(e2e::alive(pid) && e2e::resident_bytes(pid) > Some(0) && e2e::cpu_seconds(pid).is_some());
    e2e::kill(pid, Signal::KILL)?;
    let gone = async || (!e2e::alive(pid)).then_some(());
    e2e::eventually("the process is gone", SOON, gone).await?;
    app.child.wait()?;
    assert!(e2e::kill(pid, Signal::KILL).is_err());
    Ok(())
}

#[tokio::test]
async fn a_witness_finishes_what_it_has_when_it_is_told_to_go() -> Result<()> {
    let app = App::start("grace").await?;
    let url = format!("{}/delay/500", app.url);
    let options = loadtest::Options::new(vec![url.parse()?], loadtest::Load::Wake);
    let running = Load::start("g", options).await?;
    let arrived = async || (!app.witness().seen("g-").ok()?.ids.is_empty()).then_some(());
    e2e::eventually("the request is in the application", SOON, arrived).await?;
    e2e::kill(app.child.id(), Signal::TERM)?;
    let results = tokio::time::timeout(Duration::from_secs(10), running.finish()).await?;
    app.witness().proves("g-", &results)?;
    assert!(Path::new(app.witness().path()).exists());
    Ok(())
}

#[tokio::test]
async fn manifests_are_applied_by_their_kind_and_waiting_sees_the_change_or_says_what_it_saw() -> Result<()> {
    let client = local::api::Api::new().client();
    let map = |value| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: one, namespace: default}}\ndata: {{key: {value}}}\n"
        )
    };
    let yaml = format!(
        "{}---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: team}}\n",
        map("a")
    );
    e2e::apply(&client, &yaml).await?;
    let maps = || kube::Api::<ConfigMap>::default_namespaced(client.clone());
    let value = |maps: &std::collections::BTreeMap<String, ConfigMap>| {
        maps.get("default/one")?.data.as_ref()?.get("key").cloned()
    };
    assert_eq!(e2e::wait_for(maps(), "the map", SOON, value).await?, "a");
    assert!(
        kube::Api::<Namespace>::all(client.clone())
            .get_opt("team")
            .await?
            .is_some()
    );

    let other = e2e::apply_as(&client, &map("b"), "other", false)
        .await
        .err()
        .context("a conflict")?;
    assert!(format!("{other:#}").contains("e2e"), "{other:#}");
    let changed = e2e::wait_for(maps(), "the change", SOON, |maps| {
        value(maps).filter(|value| value == "b")
    });
    let other = map("b");
    let (changed, applied) = tokio::join!(changed, e2e::apply_as(&client, &other, "other", true));
    applied?;
    assert_eq!(changed?, "b");
    let empty = e2e::wait_for(maps(), "none", Duration::from_millis(200), |maps| {
        maps.is_empty().then_some(())
    });
    assert!(
        empty.await.is_err(),
        "before it is listed nothing is known, not even that there is nothing"
    );
    let never = e2e::wait_for(maps(), "a third", Duration::from_millis(200), |maps| {
        maps.get("default/three").cloned()
    });
    let never = never.await.err().context("it never comes")?;
    assert!(
        never.to_string().contains("a third") && never.to_string().contains("default/one"),
        "{never}"
    );
    Ok(())
}
