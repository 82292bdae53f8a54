//! Logs go to standard error: for people, or as JSON lines. The filter can be changed while running.

use std::io::IsTerminal as _;
use std::sync::Arc;

use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, fmt, reload};

/// Options of logging, for every command.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// What is logged: `info`, or `warn,dormouse_activator=debug`
    #[arg(
        long,
        env = "DORMOUSE_LOG",
        global = true,
        value_name = "FILTER",
        help_heading = "Logs"
    )]
    log: Option<String>,
    /// How logs are written
    #[arg(
        long,
        env = "DORMOUSE_LOG_FORMAT",
        global = true,
        value_enum,
        default_value = "human",
        help_heading = "Logs"
    )]
    log_format: Format,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Format {
    /// One line for people, in colour on a terminal.
    Human,
    /// One JSON object per line.
    Json,
}

/// Reads (`None`) or changes the log filter, and returns the one now in force.
pub(crate) type SetLog = Arc<dyn Fn(Option<&str>) -> Result<String, String> + Send + Sync>;

/// Starts logging with `default` where no filter is given, and returns how the filter is changed.
///
/// # Errors
/// A sentence when the filter cannot be read.
pub(crate) fn start(args: &Args, default: &str) -> Result<SetLog, String> {
    let filter = read(args.log.as_deref().unwrap_or(default))?;
    let (filter, handle) = reload::Layer::new(filter);
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let lines = match args.log_format {
        Format::Human => fmt::layer()
            .with_writer(std::io::stderr)
            .with_ansi(colour)
            .boxed(),
        Format::Json => fmt::layer()
            .json()
            .flatten_event(true)
            .with_writer(std::io::stderr)
            .boxed(),
    };
    tracing_subscriber::registry()
        .with(lines.with_filter(filter))
        .try_init()
        .map_err(|error| error.to_string())?;
    Ok(Arc::new(move |text| {
        if let Some(text) = text {
            handle.reload(read(text)?).map_err(|error| error.to_string())?;
        }
        handle
            .with_current(ToString::to_string)
            .map_err(|error| error.to_string())
    }))
}

fn read(text: &str) -> Result<EnvFilter, String> {
    EnvFilter::builder().parse(text).map_err(|error| {
        format!("`{text}` is not a log filter, such as `info` or `warn,dormouse_activator=debug`: {error}")
    })
}
