//! A whole activator and a client that speaks HTTP/1.1, or nearly: whatever it sends, it is answered in HTTP and let go,
//! and the next client is served.
#![no_main]

use dormouse_activator_fuzz::{Front, pieces};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // The other protocol has a target of its own.
    if bytes.starts_with(b"PRI * HTTP/2.0\r\n") {
        return;
    }
    let front = Front::get();
    let answer = front.talk(&pieces(bytes));
    assert!(
        answer.is_empty() || answer.starts_with(b"HTTP/1."),
        "{:?}",
        String::from_utf8_lossy(&answer)
    );
    front.check();
});
