//! What the library promises, on a broker: the embedded one, or a real one (see `support`).

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "a test stops where something is amiss, and says what it skipped"
)]

mod consumer;
mod group;
mod metrics;
mod producer;
mod progress;
mod secured;
mod support;
mod topics;
