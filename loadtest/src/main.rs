//! `dormouse-loadtest`: an HTTP load generator.

use std::process::ExitCode;

use clap::Parser;
use dormouse_loadtest::args::Args;

#[tokio::main]
async fn main() -> ExitCode {
    match Args::parse().execute().await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("dormouse-loadtest: {error:#}");
            ExitCode::from(2)
        }
    }
}
