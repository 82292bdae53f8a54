//! Typed objects in, reads and marks out.
