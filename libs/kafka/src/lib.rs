//! Kafka as the services use it: a producer that keeps records in order through an outage, and a
//! consumer that works on many records at once and commits only what is finished.
//!
//! - [`Producer`] is idempotent and waits for all replicas in sync. It tells a record that will never
//!   be taken ([`SendError::is_refusal`]) from one that may go through another time.
//! - [`Consumer`] hands out records with a [`Receipt`] each. What is committed is the contiguous
//!   prefix of finished records, and with it which records beyond are finished, so that a crash repeats
//!   only records in progress and those of the last tenth of a second, and never skips one. A partition
//!   that goes to another member is held, for a while, until its records in progress are finished.
//! - [`Pool`] runs a handler over a consumer: many records at once.
//! - [`ensure_topics`] creates missing topics, or names them.
//! - [`Progress`] says how far another group has come.
//! - [`EmbeddedBroker`] is a broker inside the process.
//!
//! Producers and consumers are measured by OpenTelemetry's conventions for messaging, and in numbers of our own:
//! how far a consumer is behind, in records and in seconds, and how librdkafka does, which says so every five
//! seconds. By that they also notice that it has lost its way, and begin anew.
//!
//! Nothing else in the project knows rdkafka. What people set under `kafka.properties` overrides what
//! is set here, except for what the promises above rest on: that is refused when a client is created.

mod assignment;
mod client;
mod consumer;
mod embedded;
mod error;
mod finished;
mod lag;
mod log;
mod lost;
mod metrics;
mod offsets;
mod partition;
mod pool;
mod producer;
mod progress;
mod record;
mod topics;
mod trouble;

pub use consumer::{Bounds, Claim, Consumer, Receipt, Received};
pub use embedded::EmbeddedBroker;
pub use error::{Cause, KafkaError, SendError};
pub use pool::{Handled, Pool};
pub use producer::{Acknowledgement, Producer, QueueLimits};
pub use progress::{Mark, Progress};
pub use record::{Outgoing, Position, Record};
pub use topics::ensure_topics;
