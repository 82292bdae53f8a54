//! Telling the protocols apart: the preface, in whatever pieces, is HTTP/2; everything else is HTTP/1.1.
#![no_main]

use dormouse_activator_fuzz::{Front, pieces};
use libfuzzer_sys::fuzz_target;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

fuzz_target!(|bytes: &[u8]| {
    let answer = Front::get().talk(&pieces(bytes));
    if bytes.starts_with(PREFACE) {
        assert!(
            answer.is_empty() || answer.get(3) == Some(&4),
            "not SETTINGS: {answer:?}"
        );
    } else {
        assert!(
            answer.is_empty() || answer.starts_with(b"HTTP/1."),
            "not HTTP/1.1: {answer:?}"
        );
    }
});
