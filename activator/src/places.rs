//! How activators ask each other for places at pods of a limited pool: what is said, in one header field.
//!
//! A request is sent to a peer only when the peer keeps a free place for it, so it never waits in two lines:
//! - `ask POOL`: waits at the peer for a place, in line with the peer's own requests. The answer has the place's number.
//! - `take POOL NUMBER`: on a request that is sent on: it goes to the place that was kept.
//! - `give POOL NUMBER`: the place is not needed any more.
//!
//! A place that nobody takes or gives within [`KEPT`] is free again; who takes it later waits in line.

use std::time::Duration;

use http::{HeaderName, HeaderValue};

/// The field. It never reaches a pod.
pub(crate) const PLACE_HEADER: HeaderName = HeaderName::from_static("dormouse-place");

/// How long a place is kept for a peer: many times what two activators need to speak.
pub(crate) const KEPT: Duration = Duration::from_millis(200);

/// How long a peer waits in line before it must ask again. Bounds what is forgotten on either side.
pub(crate) const LONGEST: Duration = Duration::from_secs(10);

/// What is said about a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// Wants one.
    Ask,
    /// Uses the one of that number.
    Take(u64),
    /// Returns it.
    Give(u64),
}

/// Reads a field's value: the word and the pool's name.
pub(crate) fn read(value: &HeaderValue) -> Option<(Word, &str)> {
    let mut parts = value.to_str().ok()?.split(' ');
    let (word, pool, number) = (parts.next()?, parts.next()?, parts.next());
    let number = number.map(|number| number.parse().ok());
    let word = match (word, number) {
        ("ask", None) => Word::Ask,
        ("take", Some(Some(number))) => Word::Take(number),
        ("give", Some(Some(number))) => Word::Give(number),
        _ => return None,
    };
    (parts.next().is_none() && !pool.is_empty()).then_some((word, pool))
}

/// Writes a field's value. `None`: the pool's name cannot be a field's value, so it is no pool of Kubernetes.
pub(crate) fn write(word: Word, pool: &str) -> Option<HeaderValue> {
    let text = match word {
        Word::Ask => format!("ask {pool}"),
        Word::Take(number) => format!("take {pool} {number}"),
        Word::Give(number) => format!("give {pool} {number}"),
    };
    HeaderValue::try_from(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_can_be_read() {
        for word in [Word::Ask, Word::Take(0), Word::Give(u64::MAX)] {
            let value = write(word, "web-1").expect("a value");
            assert_eq!(read(&value), Some((word, "web-1")));
        }
    }

    #[test]
    fn nothing_else_can_be_read() {
        for text in [
            "",
            "ask",
            "ask ",
            "ask web 1",
            "take web",
            "take web x",
            "take web -1",
            "give web 1 2",
            "steal web 1",
        ] {
            assert_eq!(read(&HeaderValue::from_static(text)), None, "{text:?}");
        }
    }
}
