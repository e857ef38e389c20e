//! Ingest: requests in, one commit, Kafka out; and outcomes from Kafka back into the database.
//!
//! ```text
//! sources
//! http ─────┐                 ┌─ memory ─┐
//! adoption ─┴ accept ─ writer ┤          ├─ publisher ─ Kafka (routes' topics)
//!                             └─ outbox ─┘
//! recorder ◀─ Kafka (outcomes)      sweeper ─ Kafka (retries)
//! ```
//!
//! Each part is a supervised task of its own. At shutdown, the parts end in the direction of the flow: the sources stop
//! accepting, the writer commits the queued requests, the publisher publishes the committed ones, and finally the node
//! id is released.

mod accept;
mod backoff;
mod error;
mod expired_keys;
mod http;
mod liveness;
mod loss_detector;
mod management;
mod metrics;
mod node;
mod parts;
mod publisher;
mod recorder;
mod refusals;
mod sampler;
mod sources;
mod start;
mod sweeper;
mod topics;
mod writer;

use std::time::Duration;

pub use error::StartError;
pub use start::{Ingest, start};

/// How long a consumer may take to leave its group: the broker answers one commit and one leave.
const CLOSE_DEADLINE: Duration = Duration::from_secs(5);

/// The guarantees of the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broker {
    /// The broker keeps every record that it has acknowledged.
    Durable,
    /// The embedded broker, which loses its records on exit and keeps some 5 MB per partition. The number of requests
    /// that are published and not yet ended is limited, and at start everything unfinished is due immediately.
    Forgetful,
}
