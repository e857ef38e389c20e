//! The guarantees of the library, on a broker: a real one in a container, or the embedded one (see `support`).

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test stops where something is amiss")]

mod clock;
mod consumer;
mod container;
mod group;
mod metrics;
mod nameless;
mod producer;
mod progress;
mod secured;
mod support;
mod topics;
mod unplaced;
