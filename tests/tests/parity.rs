//! The parity cases against the embedded API: in process, and through its HTTP server.

use dormouse_tests::parity;
use local::api::{Api, serve};
use tokio_util::sync::CancellationToken;

/// Runs the cases of one group; the names of those that fail are in the panic.
async fn group(client: kube::Client, group: &str) {
    let mut failed = Vec::new();
    let mut count = 0;
    for case in parity::cases().iter().filter(|case| case.group == group) {
        count += 1;
        if let Err(error) = parity::run(client.clone(), case).await {
            failed.push(format!("{error:#}"));
        }
    }
    assert!(count > 0, "no cases in {group}");
    assert!(
        failed.is_empty(),
        "{} of {count} failed:\n{}",
        failed.len(),
        failed.join("\n")
    );
}

macro_rules! groups {
    ($($name:ident),+) => {$(
        #[tokio::test]
        async fn $name() {
            group(Api::new().client(), stringify!($name)).await;
        }
    )+};
}

groups!(
    objects,
    list_watch,
    patches,
    apply,
    delete,
    subresources,
    crds,
    validation
);

#[test]
fn there_are_enough_cases_and_their_names_are_unique() {
    let mut names: Vec<_> = parity::cases().iter().map(|case| case.name).collect();
    assert!(names.len() >= 60, "{}", names.len());
    names.sort_unstable();
    let count = names.len();
    names.dedup();
    assert_eq!(names.len(), count);
}

#[tokio::test]
async fn all_cases_hold_over_http() {
    let api = Api::new();
    api.add_token("secret", "system:admin");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let server = tokio::spawn(serve(api, listener, stop.clone()));
    let mut config = kube::Config::new(format!("http://{address}").parse().unwrap());
    config.auth_info.token = Some("secret".to_owned().into());
    // A refusal is what some cases are after; retrying it for minutes proves nothing.
    config.default_retry = false;
    let client = kube::Client::try_from(config).unwrap();
    for name in [
        "objects",
        "list_watch",
        "patches",
        "apply",
        "delete",
        "subresources",
        "crds",
        "validation",
    ] {
        group(client.clone(), name).await;
    }
    stop.cancel();
    server.await.unwrap();
}

/// What `kubectl` is asked, in order: arguments, standard input, what its output must contain.
const KUBECTL: &[(&str, &str, &str)] = &[
    ("get ns", "", "kube-system"),
    ("create ns kube", "", "namespace/kube created"),
    (
        "-n kube create configmap cm --from-literal=a=b",
        "",
        "configmap/cm created",
    ),
    ("-n kube get cm cm -o jsonpath={.data.a}", "", "b"),
    ("-n kube apply -f -", WEB, "deployment.apps/web created"),
    ("-n kube apply -f -", WEB, "deployment.apps/web unchanged"),
    (
        "-n kube apply --server-side --force-conflicts -f -",
        WEB,
        "deployment.apps/web serverside-applied",
    ),
    (
        "-n kube scale deployment web --replicas 3",
        "",
        "deployment.apps/web scaled",
    ),
    (
        "-n kube wait deployment/web --for=jsonpath={.spec.replicas}=3 --timeout=5s",
        "",
        "condition met",
    ),
    (
        "-n kube annotate deployment web a.b/c=d",
        "",
        "deployment.apps/web annotated",
    ),
    (
        "-n kube label deployment web x=y",
        "",
        "deployment.apps/web labeled",
    ),
    (
        "-n kube patch deployment web -p {\"spec\":{\"minReadySeconds\":3}}",
        "",
        "deployment.apps/web patched",
    ),
    (
        "-n kube get deployment web -o wide",
        "",
        "registry.invalid/none:1",
    ),
    (
        "-n kube describe deployment web",
        "",
        "25% max unavailable, 25% max surge",
    ),
    ("-n kube explain deployment.spec.strategy", "", "rollingUpdate"),
    ("-n kube auth can-i get pods", "", "yes"),
    (
        "-n kube delete deployment web",
        "",
        "deployment.apps \"web\" deleted",
    ),
    ("delete ns kube --wait=false", "", "namespace \"kube\" deleted"),
];

const WEB: &str = r#"{
    "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "web" },
    "spec": {
        "replicas": 0, "selector": { "matchLabels": { "app": "web" } },
        "template": {
            "metadata": { "labels": { "app": "web" } },
            "spec": { "containers": [{ "name": "web", "image": "registry.invalid/none:1" }] }
        }
    }
}"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain_kubectl_works() {
    use std::io::Write as _;
    use std::process::{Command, Stdio};
    if Command::new("kubectl")
        .args(["version", "--client"])
        .output()
        .is_err()
    {
        println!("skipped: there is no kubectl on PATH");
        return;
    }
    let api = Api::new();
    api.add_token("secret", "system:admin");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = format!(
        "http://{}{}",
        listener.local_addr().unwrap(),
        local::api::path_of("secret")
    );
    let stop = CancellationToken::new();
    let serving = tokio::spawn(serve(api, listener, stop.clone()));
    let home = std::env::temp_dir().join(format!("dormouse-kubectl-{}", std::process::id()));
    std::fs::create_dir_all(&home).unwrap();
    let folder = home.clone();
    let failed = tokio::task::spawn_blocking(move || {
        let mut failed = Vec::new();
        for (arguments, input, expected) in KUBECTL {
            let mut child = Command::new("kubectl")
                .args(["--server", &server, "--request-timeout", "20s"])
                .args(arguments.split(' '))
                .env("HOME", &folder)
                .env("KUBECONFIG", folder.join("none"))
                .env("KUBECACHEDIR", folder.join("cache"))
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
            let output = child.wait_with_output().unwrap();
            let told = String::from_utf8_lossy(&output.stdout).into_owned();
            if !output.status.success() || !told.contains(expected) {
                failed.push(format!(
                    "{arguments}: {told}{}",
                    String::from_utf8_lossy(&output.stderr)
                ));
            }
        }
        failed
    })
    .await
    .unwrap();
    stop.cancel();
    serving.await.unwrap();
    std::fs::remove_dir_all(home).unwrap();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
