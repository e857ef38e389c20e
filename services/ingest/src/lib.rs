//! Ingest: HTTP in, one commit, Kafka out; and back again, outcomes into the database.
//!
//! ```text
//! http ─┐                 ┌─ memory ─┐
//!       ├─ intake ─ writer ┤          ├─ publisher ─ Kafka (routes' topics)
//! adopter ┘               └─ outbox ─┘
//! recorder ◀─ Kafka (outcomes)      sweeper ─ Kafka (retries)
//! ```
//!
//! Each part is a task of its own, supervised. At shut-down they end in the direction of the flow:
//! the server stops taking, the writer commits what is queued, the publisher publishes what is
//! committed, and last the node id is given back.

mod admission;
mod adopter;
mod backoff;
mod error;
mod expired_keys;
mod http;
mod intake;
mod listener;
mod liveness;
mod metrics;
mod node;
mod publisher;
mod recorder;
mod refusals;
mod sampler;
mod start;
mod story;
mod sweeper;
mod topics;
mod writer;

use std::time::Duration;

pub use error::StartError;
pub use start::{Ingest, start};

/// How long a consumer may take to leave its group: the broker's answer to one commit and one leave.
const CLOSE_DEADLINE: Duration = Duration::from_secs(5);

/// What may be asked of the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broker {
    /// It keeps what it has acknowledged.
    Durable,
    /// It is the embedded one, which forgets on exit and keeps some 5 MB a partition. What is
    /// published and not yet ended is bounded, and at start everything unfinished is due at once.
    Forgetful,
}
