//! The order of writes.

/// Checks that `wanted` is a subsequence of `writes`.
pub(super) fn check(writes: &[String], wanted: &[&str]) {
    let mut rest = writes.iter();
    for want in wanted {
        assert!(
            rest.any(|write| write == want),
            "{want} is missing, or comes too early, in {writes:#?}"
        );
    }
}
