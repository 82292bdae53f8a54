//! What an autoscaler sends on the report stream: a line that cannot be read ends the stream, one that can be is obeyed, and
//! clients are served all the while.
#![no_main]

use std::convert::Infallible;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crds::report::Directive;
use dormouse_activator_fuzz::{Front, pieces};
use http::Request;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Bytes, Frame};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use libfuzzer_sys::fuzz_target;
use tokio::sync::Mutex;

type Body = StreamBody<futures::stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, Infallible>>>>;

fuzz_target!(|bytes: &[u8]| {
    let front = Front::get();
    let body = at_home(bytes);
    front.runtime.block_on(send(front, &body));
    front.check();
});

/// One stream with these bytes, to the end of what comes back.
async fn send(front: &Front, bytes: &[u8]) {
    static SENDER: OnceLock<Mutex<Option<SendRequest<Body>>>> = OnceLock::new();
    let mut kept = SENDER.get_or_init(Mutex::default).lock().await;
    let mut sender = match kept.take().filter(|sender| !sender.is_closed()) {
        Some(sender) => sender,
        None => connect(front).await,
    };
    let frames: Vec<Result<_, Infallible>> = pieces(bytes)
        .into_iter()
        .map(|piece| Ok(Frame::data(Bytes::copy_from_slice(piece))))
        .collect();
    let request = Request::post(format!("http://{}{}", front.report, crds::names::REPORT_PATH))
        .body(StreamBody::new(futures::stream::iter(frames)))
        .expect("a request");
    sender.ready().await.expect("ready");
    let answer = sender.send_request(request).await.expect("an answer");
    assert_eq!(answer.status(), 200);
    // The end of the directives ends the stream.
    let mut answer = answer.into_body();
    let reading = async { while let Some(Ok(_)) = answer.frame().await {} };
    tokio::time::timeout(Duration::from_secs(10), reading)
        .await
        .expect("the stream ends with what the autoscaler sends");
    *kept = Some(sender);
}

async fn connect(front: &Front) -> SendRequest<Body> {
    let stream = tokio::net::TcpStream::connect(front.report)
        .await
        .expect("connects");
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .expect("HTTP/2");
    tokio::spawn(connection);
    sender
}

/// Epochs only grow: those of one input are within this many, and above those of the inputs before.
const EPOCHS: u64 = 64;
static EPOCH: AtomicU64 = AtomicU64::new(0);

/// The same lines, with every address on this machine: an activator connects to those that it is told to probe.
fn at_home(bytes: &[u8]) -> Vec<u8> {
    let mut lines = Vec::new();
    let epoch = EPOCH.fetch_add(EPOCHS, Ordering::Relaxed);
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        match serde_json::from_slice::<Directive>(line) {
            Ok(mut directive) => {
                directive.epoch = epoch + directive.epoch % EPOCHS;
                for order in &mut directive.probes {
                    order.address = "127.0.0.1:9".into();
                    order.tries = order.tries.min(3);
                }
                for peer in &mut directive.activators {
                    peer.address = "127.0.0.3".into();
                }
                lines.extend(serde_json::to_vec(&directive).expect("JSON"));
                lines.push(b'\n');
            }
            Err(_) => lines.extend_from_slice(line),
        }
    }
    lines
}
