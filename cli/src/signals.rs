//! Signals to tokens: the first SIGTERM or SIGINT asks for a graceful end, the second ends at once.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// What a process is told from outside.
#[derive(Clone, Debug)]
pub(crate) struct Signals {
    /// Finish what is in flight, and end.
    pub(crate) shutdown: CancellationToken,
    /// End now.
    pub(crate) abort: CancellationToken,
}

impl Signals {
    /// Listens from now on.
    ///
    /// # Errors
    /// When the system does not let us listen for signals.
    pub(crate) fn install() -> std::io::Result<Self> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let signals = Self {
            shutdown: CancellationToken::new(),
            abort: CancellationToken::new(),
        };
        let Self { shutdown, abort } = signals.clone();
        tokio::spawn(async move {
            for token in [shutdown, abort] {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                token.cancel();
            }
        });
        Ok(signals)
    }
}
