//! The real binary: what it prints, and how it exits.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

const DORMOUSE: &str = env!("CARGO_BIN_EXE_dormouse");

/// Runs it with nothing in the environment that could lead it to a cluster.
fn dormouse(arguments: &[&str]) -> Output {
    Command::new(DORMOUSE)
        .args(arguments)
        .env_clear()
        .env("HOME", "/nonexistent")
        .env("TMPDIR", "/nonexistent")
        .output()
        .expect("the binary runs")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn file(path: &str) -> String {
    let path = format!("{}/../{path}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[test]
fn the_manifest_of_the_crds_is_what_the_binary_prints() {
    let printed = dormouse(&["crds"]);
    assert_eq!(printed.status.code(), Some(0));
    let files = ["routes", "rollouts", "revisions"]
        .map(|plural| file(&format!("manifests/crds/{plural}.dormouse.dev.yaml")));
    assert!(
        stdout(&printed) == files.concat(),
        "manifests/crds is not current: each document of `cargo run -- crds` is the file of its name"
    );
}

#[test]
fn the_crds_are_yaml_that_reads_back_with_their_rules() {
    let printed = stdout(&dormouse(&["crds"]));
    let read: Vec<serde_json::Value> = printed
        .split("---\n")
        .filter(|document| !document.is_empty())
        .map(|document| serde_saphyr::from_str(document).expect("YAML"))
        .collect();
    let names: Vec<&str> = read
        .iter()
        .filter_map(|crd| crd["metadata"]["name"].as_str())
        .collect();
    assert_eq!(
        names,
        [
            "routes.dormouse.dev",
            "rollouts.dormouse.dev",
            "revisions.dormouse.dev"
        ]
    );
    for (crd, rule) in [
        (&read[1], "self.spec.targetRef == oldSelf.spec.targetRef && "),
        (&read[2], "self.spec == oldSelf.spec"),
    ] {
        let rules = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["x-kubernetes-validations"];
        let said = rules[0]["rule"].as_str().unwrap_or_default();
        assert!(said.starts_with(rule), "{rules}");
    }
    let read = &read[0];
    let schema = &read["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    let rules: Vec<&str> = schema["x-kubernetes-validations"]
        .as_array()
        .expect("rules")
        .iter()
        .map(|rule| {
            assert!(
                rule["message"].as_str().is_some_and(|text| !text.is_empty()),
                "{rule} has a message"
            );
            rule["rule"].as_str().expect("a rule")
        })
        .collect();
    for part in ["== 10000", "q.listen == p.listen", "q.name == p.name"] {
        assert!(rules.iter().any(|rule| rule.contains(part)), "{part}: {rules:?}");
    }
    // The cost of a rule over a list is bounded only if the list is.
    for list in ["ports", "pools"] {
        assert!(
            schema["properties"]["spec"]["properties"][list]["maxItems"].is_number(),
            "{list}"
        );
    }
}

#[test]
fn explain_annotations_is_the_docs_page_and_data() {
    let page = dormouse(&["explain", "annotations", "-o", "markdown"]);
    assert_eq!(stdout(&page), file("docs/annotations.md"));
    let json = dormouse(&["explain", "annotations", "-o", "json"]);
    let json: Vec<serde_json::Value> = serde_json::from_slice(&json.stdout).expect("JSON");
    let yaml = stdout(&dormouse(&["explain", "annotations", "-o", "yaml"]));
    let yaml: Vec<serde_json::Value> = serde_saphyr::from_str(&yaml).expect("YAML");
    assert_eq!(json, yaml);
    let window = json
        .iter()
        .find(|key| key["key"] == "dormouse.dev/window")
        .expect("the key");
    assert_eq!(
        window["knative"],
        serde_json::json!(["autoscaling.knative.dev/window"])
    );
    let text = stdout(&dormouse(&["explain", "annotations"]));
    assert!(
        text.contains("scale-to-zero") && !text.contains('\x1b'),
        "no colour into a pipe"
    );
}

#[test]
fn every_shell_gets_a_completion_that_knows_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let script = dormouse(&["completion", shell]);
        assert_eq!(script.status.code(), Some(0), "{shell}");
        let text = stdout(&script);
        for word in [
            "autoscaler",
            "uninstall",
            "explain",
            "kubeconfig",
            "rollout",
            "promote",
            "import",
        ] {
            assert!(text.contains(word), "{shell}: {word}");
        }
        assert!(!text.contains("__pod"), "{shell}");
    }
    assert_eq!(dormouse(&["completion", "tcsh"]).status.code(), Some(2));
}

#[test]
fn what_makes_no_sense_exits_with_2_and_says_what_does() {
    let rows: &[(&[&str], &str)] = &[
        (&["frobnicate"], "unrecognized subcommand 'frobnicate'"),
        (&["get", "--colour"], "unexpected argument '--colour'"),
        (&["get", "-o", "xml"], "[possible values: json, yaml, wide]"),
        (&["wake"], "<SERVICE>"),
        (
            &["wake", "web", "--timeout", "90"],
            "`90` has no unit: write `90s`",
        ),
        (
            &["hello", "--boot-delay", "soon"],
            "a duration is written as `250ms`",
        ),
        (&["doctor", "web", "-A"], "cannot be used with"),
        (&["rollout"], "promote"),
        (&["rollout", "promote"], "<NAME>"),
        (
            &["rollout", "abort", "web", "--full"],
            "unexpected argument '--full'",
        ),
        (&["rollout", "get", "web", "-A"], "cannot be used with"),
        (
            &["rollout", "watch", "-o", "markdown"],
            "[possible values: json, yaml, wide]",
        ),
        (&["rollout", "pause", "web", "--timeout", "1"], "`1` has no unit"),
        (&["rollout", "get"], "no cluster to talk to"),
        (
            &["import", "/nonexistent/canary.yaml"],
            "cannot read /nonexistent/canary.yaml",
        ),
        (&["import", "-o", "wide"], "[possible values: json, yaml]"),
        (&["crds", "--log", "what=is=this"], "is not a log filter"),
        (&["get"], "no cluster to talk to"),
        (
            &["get", "--kubeconfig", "/nonexistent/config"],
            "cannot use the kubeconfig /nonexistent/config",
        ),
        (&["activator", "--bind", "here"], "invalid value 'here'"),
        (&["autoscaler", "--settle", "2"], "--settle"),
        (&["__pod"], "dormouse local"),
    ];
    for (arguments, said) in rows {
        let output = dormouse(arguments);
        assert_eq!(
            output.status.code(),
            Some(2),
            "{arguments:?}: {}",
            stderr(&output)
        );
        assert!(
            stderr(&output).contains(said),
            "{arguments:?}: {}",
            stderr(&output)
        );
        assert_eq!(stdout(&output), "", "{arguments:?}");
    }
    let wrong_format = dormouse(&["explain", "web", "-o", "markdown"]);
    assert_eq!(wrong_format.status.code(), Some(2));
}

/// Standard input goes to it, and it has to read all of it.
fn with_input(arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(DORMOUSE)
        .args(arguments)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(input.as_bytes()).expect("it reads");
    drop(stdin);
    child.wait_with_output().expect("it ends")
}

const CANARY: &str = "\
apiVersion: flagger.app/v1beta1
kind: Canary
metadata: {name: podinfo, namespace: test}
spec:
  provider: istio
  targetRef: {apiVersion: apps/v1, kind: Deployment, name: podinfo}
  analysis: {interval: 30s, threshold: 5, maxWeight: 50, stepWeight: 10}
";

#[test]
fn a_canary_is_imported_from_a_file_and_from_standard_input() {
    let piped = with_input(&["import"], CANARY);
    assert_eq!(piped.status.code(), Some(0), "{}", stderr(&piped));
    let note = "spec.provider: \"istio\" - leave it out";
    assert!(stderr(&piped).contains(note), "{}", stderr(&piped));
    assert!(
        stdout(&piped).contains(&format!("#   {note}")),
        "{}",
        stdout(&piped)
    );
    let rollout: serde_json::Value =
        serde_saphyr::from_str(stdout(&piped).trim_start_matches("---\n")).expect("YAML");
    assert_eq!(rollout["kind"], "Rollout");

    let path = std::env::temp_dir().join(format!("dormouse-test-{}.canary.yaml", std::process::id()));
    std::fs::write(&path, CANARY).expect("a file");
    let path_text = path.to_string_lossy().into_owned();
    let json = dormouse(&["import", &path_text, "-o", "json"]);
    let read: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert_eq!(read, rollout);

    std::fs::write(&path, CANARY.replace("stepWeight: 10", "stepWeight: ten")).expect("a file");
    let wrong = dormouse(&["import", &path_text]);
    assert_eq!((wrong.status.code(), stdout(&wrong).as_str()), (Some(2), ""));
    let said = format!("error: {path_text}: Canary test/podinfo: spec.analysis.stepWeight is \"ten\"");
    assert!(stderr(&wrong).starts_with(&said), "{}", stderr(&wrong));
    let broken = with_input(&["import", "-"], "kind: [Canary");
    assert!(
        stderr(&broken).starts_with("error: standard input: "),
        "{}",
        stderr(&broken)
    );
    let _ = std::fs::remove_file(path);
}

#[test]
fn an_api_server_that_is_not_there_is_named() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    drop(listener);
    let path = std::env::temp_dir().join(format!("dormouse-test-{}.kubeconfig", std::process::id()));
    let config = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "a", "cluster": { "server": format!("http://{address}") } }],
        "users": [{ "name": "a", "user": {} }],
        "contexts": [{ "name": "a", "context": { "cluster": "a", "user": "a" } }],
        "current-context": "a",
    });
    std::fs::write(&path, config.to_string()).expect("a file");
    let path_text = path.to_string_lossy().into_owned();
    for command in [
        &["get"][..],
        &["explain", "web"],
        &["doctor"],
        &["sleep", "web"],
        &["rollout", "get"],
        &["rollout", "get", "web"],
        &["rollout", "watch", "web"],
        &["rollout", "promote", "web"],
        &["rollout", "restart", "web"],
        &["uninstall", "--yes"],
    ] {
        let output = dormouse(&[command, &["--kubeconfig", &path_text]].concat());
        assert_eq!(output.status.code(), Some(2), "{command:?}");
        let text = stderr(&output);
        assert!(
            text.contains(&address.to_string()) && text.contains("Is the API server running"),
            "{command:?}: {text}"
        );
        assert_eq!(text.lines().count(), 1, "one sentence: {text}");
    }
    let _ = std::fs::remove_file(path);
}
