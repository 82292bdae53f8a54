//! The whole of capture against an API in memory.
