//! The embedded cluster alone, without Dormouse, for this crate's tests; and an application to run in its pods.
//!
//! - `embedded-cluster local …`: what `dormouse local` does, without a system;
//! - `embedded-cluster __pod …`: what `dormouse __pod` does;
//! - `embedded-cluster serve [MS]`: HTTP on `$PORT`, from `MS` milliseconds after the start; `/` answers the pod's
//!   name, `/broken` 500, `/break` makes `/ready` answer 500 from then on, `/exit` ends it with code 7.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Parser;
use dormouse_local as local;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

/// Flags of the embedded cluster.
#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: local::Args,
}

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args_os();
    let program = args.next().unwrap_or_default();
    let mode = args.next().unwrap_or_default();
    match mode.to_string_lossy().as_ref() {
        "__pod" => local::pod_main(args),
        "serve" => serve(args.next().and_then(|it| it.to_str()?.parse().ok()).unwrap_or(0)),
        _ => cluster(Line::parse_from(std::iter::once(program).chain(args)).args),
    }
}

#[tokio::main]
async fn cluster(args: local::Args) -> anyhow::Result<()> {
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    tokio::spawn(async move {
        let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            result = tokio::signal::ctrl_c() => result?,
            _ = term.recv() => {}
        }
        stop.cancel();
        std::io::Result::Ok(())
    });
    local::run(args, local::System::default(), shutdown).await
}

#[tokio::main(flavor = "current_thread")]
async fn serve(delay: u64) -> anyhow::Result<()> {
    tokio::time::sleep(Duration::from_millis(delay)).await;
    let port: u16 = std::env::var("PORT")?.parse()?;
    let name = std::env::var("POD_NAME").unwrap_or_default();
    let listener = tokio::net::TcpListener::bind(("0.0.0.0", port)).await?;
    println!("{name} listens");
    let broken = Arc::new(AtomicBool::new(false));
    loop {
        let (mut client, _) = listener.accept().await?;
        let (name, broken) = (name.clone(), Arc::clone(&broken));
        tokio::spawn(async move {
            let mut head = Vec::new();
            while !head.windows(4).any(|it| it == b"\r\n\r\n") {
                if client.read_buf(&mut head).await? == 0 {
                    return std::io::Result::Ok(());
                }
            }
            let head = String::from_utf8_lossy(&head);
            let path = head.split(' ').nth(1).unwrap_or_default();
            if path == "/exit" {
                std::process::exit(7);
            }
            if path == "/break" {
                broken.store(true, Ordering::SeqCst);
            }
            let bad = path == "/broken" || (path == "/ready" && broken.load(Ordering::SeqCst));
            let status = if bad {
                "500 Internal Server Error"
            } else {
                "200 OK"
            };
            let length = name.len();
            let answer =
                format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{name}");
            client.write_all(answer.as_bytes()).await?;
            client.shutdown().await
        });
    }
}
