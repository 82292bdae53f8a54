//! A whole activator and a client whose frames are anything: it is let go, and the next client is served.
#![no_main]

use dormouse_activator_fuzz::{Front, pieces};
use libfuzzer_sys::fuzz_target;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

fuzz_target!(|bytes: &[u8]| {
    let front = Front::get();
    let all = [PREFACE, bytes].concat();
    let answer = front.talk(&pieces(&all));
    // The first frame of a server is SETTINGS, on stream 0 (RFC 9113 §3.4); a reset may have taken it away.
    assert!(
        answer.is_empty() || (answer.len() >= 9 && answer[3] == 4 && answer[5..9] == [0; 4]),
        "{answer:?}"
    );
    front.check();
});
