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
            Self::Process(error) => (Some(chain(&error)), 1),
        };
        if let Some(text) = text {
            eprintln!("error: {text}");
        }
        ExitCode::from(code)
    }
}

/// An error and its causes, but for those that it already names.
fn chain(error: &anyhow::Error) -> String {
    error
        .chain()
        .map(ToString::to_string)
        .fold(String::new(), |text, cause| {
            if text.is_empty() {
                cause
            } else if text.ends_with(&cause) {
                text
            } else {
                format!("{text}: {cause}")
            }
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_named_once() {
        let cause = || anyhow::anyhow!("address in use");
        assert_eq!(
            chain(&cause().context("cannot listen")),
            "cannot listen: address in use"
        );
        assert_eq!(
            chain(&cause().context("cannot listen: address in use")),
            "cannot listen: address in use"
        );
    }
}
