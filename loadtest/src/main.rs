//! The `dormouse-loadtest` binary.
fn main() {}
