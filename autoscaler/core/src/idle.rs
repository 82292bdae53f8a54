//! The ladder to zero and back.
