//! API cases that any Kubernetes API must answer alike.
