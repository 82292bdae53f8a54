//! `dormouse hello` over a socket: what it answers, what it saw, how it ends.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Longest for anything that should take a moment, on a busy machine.
const SOON: Duration = Duration::from_secs(20);

struct Hello {
    child: Child,
    address: SocketAddr,
}

impl Hello {
    fn start(arguments: &[&str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        drop(listener);
        let child = Command::new(env!("CARGO_BIN_EXE_dormouse"))
            .arg("hello")
            .args(arguments)
            .env("PORT", address.port().to_string())
            .env("POD_NAME", "pod-1")
            .env("HELLO_BIND", "127.0.0.1")
            .stderr(Stdio::null())
            .spawn()
            .expect("the binary runs");
        Self { child, address }
    }

    /// Started, and taking connections.
    fn listening(arguments: &[&str]) -> Self {
        let hello = Self::start(arguments);
        eventually(|| TcpStream::connect(hello.address).is_ok());
        hello
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("a connection");
        stream.set_read_timeout(Some(SOON)).expect("a timeout");
        stream
    }

    /// The whole answer, as text; the connection is closed after it.
    fn get(&self, path: &str) -> String {
        let mut stream = self.connect();
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: hello\r\nConnection: close\r\n\r\n"
        )
        .expect("a request");
        read_all(stream)
    }

    fn stats(&self) -> serde_json::Value {
        let answer = self.get("/stats");
        let body = answer.split("\r\n\r\n").nth(1).expect("a body");
        serde_json::from_str(body).expect("JSON")
    }

    fn terminate(&self) {
        let pid = i32::try_from(self.child.id())
            .ok()
            .and_then(rustix::process::Pid::from_raw)
            .expect("a pid");
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("a signal");
    }

    /// The exit code, once it has ended.
    fn ended(&mut self) -> Option<i32> {
        let mut code = None;
        eventually(|| match self.child.try_wait() {
            Ok(Some(status)) => {
                code = status.code();
                true
            }
            _ => false,
        });
        code
    }
}

impl Drop for Hello {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read_all(mut stream: TcpStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer");
    text
}

#[track_caller]
fn eventually(mut check: impl FnMut() -> bool) {
    let (tell, told) = std::sync::mpsc::channel::<()>();
    let mut waited = Duration::ZERO;
    let step = Duration::from_millis(10);
    while !check() {
        assert!(waited < SOON, "it did not happen");
        // Nobody tells: a bounded pause between two looks at another process.
        let _ = told.recv_timeout(step);
        waited += step;
    }
    drop(tell);
}

#[test]
fn it_greets_says_its_status_and_echoes() {
    let hello = Hello::listening(&[]);
    let greeting = hello.get("/");
    assert!(greeting.starts_with("HTTP/1.1 200 OK\r\n"), "{greeting}");
    assert!(
        greeting.contains("content-length: 17\r\n") && greeting.ends_with("Hello from pod-1\n"),
        "{greeting}"
    );
    assert!(hello.get("/status/503").starts_with("HTTP/1.1 503 "));
    assert!(hello.get("/status/99").starts_with("HTTP/1.1 400 "));
    let streamed = hello.get("/stream/3?ms=1");
    assert!(
        ["line 1\n", "line 2\n", "line 3\n"]
            .iter()
            .all(|line| streamed.contains(line)),
        "{streamed}"
    );
    let mut stream = hello.connect();
    stream
        .write_all(
            b"POST /echo HTTP/1.1\r\nHost: hello\r\nConnection: close\r\nContent-Length: 5\r\n\r\nabcde",
        )
        .expect("a request");
    let echoed = read_all(stream);
    assert!(
        echoed.starts_with("HTTP/1.1 200 ") && echoed.contains("abcde"),
        "{echoed}"
    );
}

#[test]
fn it_speaks_http2_with_prior_knowledge() {
    let hello = Hello::listening(&[]);
    let mut stream = hello.connect();
    // The preface and an empty SETTINGS frame.
    stream
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
        .expect("a preface");
    let mut head = [0; 9];
    stream.read_exact(&mut head).expect("a frame");
    assert_eq!(head[3], 4, "the server's SETTINGS");
}

#[test]
fn it_remembers_how_many_were_there_at_once() {
    let hello = Hello::listening(&[]);
    let mut streams: Vec<TcpStream> = (0..3).map(|_| hello.connect()).collect();
    for stream in &mut streams {
        stream
            .write_all(b"GET /delay/400 HTTP/1.1\r\nHost: hello\r\nConnection: close\r\n\r\n")
            .expect("a request");
    }
    eventually(|| hello.stats()["inFlight"] == 3);
    let answers: Vec<String> = streams.into_iter().map(read_all).collect();
    assert!(
        answers.iter().all(|answer| answer.contains(" 200 ")),
        "{answers:?}"
    );
    eventually(|| hello.stats()["inFlight"] == 0);
    let stats = hello.stats();
    assert_eq!(
        (&stats["maxInFlight"], &stats["served"], &stats["name"]),
        (&3.into(), &3.into(), &"pod-1".into())
    );
    assert!(hello.get("/").contains("hello-in-flight: 1\r\n"));
}

#[test]
fn it_becomes_ready_late_or_never() {
    let late = Hello::listening(&["--boot-delay", "300ms"]);
    eventually(|| late.get("/healthz").contains(" 200 "));
    let never = Hello::listening(&["--ready", "false"]);
    assert!(never.get("/healthz").contains(" 503 "));
    assert!(never.get("/").contains(" 200 "), "it serves all the same");
}

#[test]
fn it_listens_late_when_asked_to() {
    let hello = Hello::listening(&["--listen-after", "500ms"]);
    // The first connection that was taken came no earlier: its own clock says so.
    assert!(hello.stats()["uptimeMs"].as_u64() >= Some(500));
}

#[test]
fn it_finishes_what_is_in_flight_and_takes_no_more() {
    let mut hello = Hello::listening(&[]);
    let mut busy = hello.connect();
    busy.write_all(b"GET /delay/1000 HTTP/1.1\r\nHost: hello\r\n\r\n")
        .expect("a request");
    eventually(|| hello.stats()["inFlight"] == 1);
    hello.terminate();
    eventually(|| TcpStream::connect(hello.address).is_err());
    let answer = read_all(busy);
    assert!(
        answer.contains("connection: close\r\n") && answer.ends_with("after 1000 ms\n"),
        "{answer}"
    );
    assert_eq!(hello.ended(), Some(0));
}

#[test]
fn it_exits_and_crashes_when_asked_to() {
    let mut exits = Hello::listening(&[]);
    let mut stream = exits.connect();
    stream
        .write_all(b"GET /exit/3 HTTP/1.1\r\nHost: hello\r\n\r\n")
        .expect("a request");
    assert_eq!(exits.ended(), Some(3));
    let mut crashes = Hello::start(&["--crash-after", "100ms"]);
    assert_eq!(crashes.ended(), Some(1));
}
