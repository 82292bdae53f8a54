//! Scripts of requests and answers.
