//! How a command ends: 0 done, 1 the answer is no, 2 it could not be asked.

use std::process::ExitCode;

/// Why a command did not end well.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It was asked in a way that makes no sense: exit code 2.
    Usage(String),
    /// The cluster could not be asked, or refused to answer: exit code 2.
    Api(String),
    /// The answer is no, and has been printed, or is this sentence: exit code 1.
    No(Option<String>),
    /// A process could not run: exit code 1.
    Process(anyhow::Error),
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Process(error.into())
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Process(error)
    }
}

impl Failure {
    /// Prints it, and says how the process exits.
    pub(crate) fn report(self) -> ExitCode {
        let (text, code) = match self {
            Self::Usage(text) | Self::Api(text) => (Some(text), 2),
            Self::No(text) => (text, 1),
            Self::Process(error) => (Some(format!("{error:#}")), 1),
        };
        if let Some(text) = text {
            eprintln!("error: {text}");
        }
        ExitCode::from(code)
    }
}
