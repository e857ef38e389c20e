//! Dispatch as a whole, between a real broker client and third parties that answer over HTTP.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod clock_steps;
mod deliveries;
mod failures;
mod holding;
mod measuring;
mod panics;
mod real_kafka;
mod records;
mod restarts;
mod retrying;
mod third_party;
mod topics;
mod world;

/// Filters run under a memory limit, which this allocator measures.
#[global_allocator]
static ALLOCATOR: throughline_transform::Allocator = throughline_transform::Allocator;
