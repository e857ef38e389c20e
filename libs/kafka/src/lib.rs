//! Kafka as the services use it: a producer that keeps records in order through an outage, and a consumer that
//! processes many records at once and commits only finished ones.
//!
//! - [`Producer`] is idempotent and waits for all in-sync replicas. It distinguishes a record that will never be
//!   accepted ([`SendError::is_refusal`]) from one that a retry may deliver.
//! - [`Consumer`] hands out records with a [`Receipt`] each. It commits the contiguous prefix of finished records
//!   and, with it, which records beyond the prefix are finished, so that a crash repeats only records in progress and
//!   those of the last tenth of a second, and never skips one. A partition that goes to another member is held, for a
//!   while, until its records in progress are finished.
//! - [`Pool`] runs a handler over a consumer: many records at once.
//! - [`ensure_topics`] creates missing topics, or names them.
//! - [`Progress`] reports how far another group has come.
//! - [`EmbeddedBroker`] is a broker inside the process.
//!
//! The metrics of producers and consumers follow OpenTelemetry's conventions for messaging. Our own metrics add how
//! far a consumer is behind, in records and in seconds, and the statistics that librdkafka reports every five
//! seconds. From these statistics, a producer or consumer also notices that its client no longer knows any broker,
//! and replaces the client.
//!
//! No other part of the project uses rdkafka. Properties under `kafka.properties` override the properties that are
//! set here, except those on which the guarantees above depend: these are refused when a client is created.

mod assignment;
mod broker_error;
mod client;
mod consumer;
mod embedded;
mod error;
mod finished;
mod lag;
mod log;
mod metrics;
mod offsets;
mod partition;
mod pool;
mod producer;
mod progress;
mod record;
mod settings;
mod stalled;
mod stuck_client;
mod topics;

pub use consumer::{Bounds, Claim, Consumer, Receipt, Received};
pub use embedded::EmbeddedBroker;
pub use error::{Cause, KafkaError, SendError};
pub use pool::{Handled, Pool};
pub use producer::{Acknowledgement, Producer, QueueLimits};
pub use progress::{Mark, Progress};
pub use record::{Outgoing, Position, Record};
pub use settings::{Compression, DEVELOPMENT_KEY, Settings, Topics, is_topic_name};
pub use topics::ensure_topics;
