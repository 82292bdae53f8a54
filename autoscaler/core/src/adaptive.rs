//! Reactive sizing without windows.
