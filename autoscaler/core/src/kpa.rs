//! Knative's pod autoscaler, to the digit.
