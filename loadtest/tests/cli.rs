//! The binary: exit codes, and JSON that a program can read.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Output};
use std::thread;

/// A server that answers every request on every connection with `status`, until the test ends.
fn server(status: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let address = listener.local_addr().expect("address");
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut stream = stream;
                let mut head = [0; 4096];
                while stream.read(&mut head).is_ok_and(|read| read > 0) {
                    let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 2\r\n\r\nok");
                    if stream.write_all(answer.as_bytes()).is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

fn loadtest(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_dormouse-loadtest"))
        .args(arguments)
        .output()
        .expect("runs")
}

#[test]
fn the_exit_code_says_whether_all_some_or_nothing_went_well() {
    let (good, bad) = (
        format!("http://{}/", server("200 OK")),
        format!("http://{}/", server("503 Busy")),
    );
    for (arguments, code) in [
        (vec![good.as_str(), "-n", "20", "-c", "2"], 0),
        (vec![bad.as_str(), "-n", "5"], 1),
        (vec![bad.as_str(), "-n", "5", "--expect", "503"], 0),
        (vec![], 2),
        (vec!["http://name.invalid/"], 2),
        (vec![good.as_str(), "--rate", "fast"], 2),
    ] {
        let output = loadtest(&arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {output:?}");
        assert_eq!(output.stdout.is_empty(), code == 2, "{arguments:?}");
    }
}

#[test]
fn json_goes_to_standard_output_alone_and_urls_may_come_from_a_file() {
    let file = std::env::temp_dir().join(format!("dormouse-loadtest-{}.urls", std::process::id()));
    let port = server("200 OK").port();
    let urls: String = (0..20)
        .map(|n| format!("http://s{n}.localhost:{port}/\n"))
        .collect();
    std::fs::write(&file, format!("# woken at once\n\n{urls}")).expect("writes");
    let path = file.to_string_lossy();
    let output = loadtest(&[
        "--urls-file",
        &path,
        "--wake",
        "--id-header",
        "x-id",
        "--output",
        "json",
    ]);
    std::fs::remove_file(&file).expect("removes");
    assert!(output.status.success(), "{output:?}");
    // Progress is for terminals, and standard error is none here.
    assert!(output.stderr.is_empty(), "{output:?}");
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(json["schema"], "dormouse-loadtest/v1");
    assert_eq!(
        (json["ok"].as_u64(), json["failed"].as_u64()),
        (Some(20), Some(0))
    );
    assert_eq!(json["targets"].as_array().map(Vec::len), Some(20));
}
