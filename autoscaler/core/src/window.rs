//! The recent past in one-second buckets.
