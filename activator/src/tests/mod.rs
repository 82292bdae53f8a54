//! Whole activators in this process, on ephemeral ports, before fake pods.
