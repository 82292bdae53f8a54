//! Durations on the command line: as in annotations.

use std::time::Duration;

/// Reads `250ms`, `2s`, `1m30s` or `1h`.
///
/// # Errors
/// A sentence with what is allowed.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    crds::annotation::read_duration(text).map_err(|detail| match detail.as_str() {
        "" => "a duration is written as `250ms`, `2s`, `1m30s` or `1h`".to_owned(),
        detail => detail.to_owned(),
    })
}
