//! The messages between the services: topics, record headers, outcomes.
//!
//! Ingest and dispatch share nothing else. A request travels on its route's topic with the headers of the [CloudEvents
//! Kafka binding](https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/kafka-protocol-binding.md) in
//! binary mode; its body is unchanged, byte for byte.

mod dead_letter;
mod foreign;
mod headers;
mod outcome;
mod request;
mod signature;
mod topics;
mod trace;
mod unknown;

pub use dead_letter::{DeadLetter, DeadReason, LastAttempt};
pub use foreign::{Adoption, Origin};
pub use headers::{Headers, Malformed, name};
pub use outcome::{AttemptReport, DeferralCause, ErrorClass, Failure, Outcome};
pub use request::{Identity, RequestRecord, RetryRecord, RouteRecord};
pub use signature::{Keys, Kind};
pub use topics::Topics;
pub use trace::TraceContext;
pub use unknown::{InvalidName, Unknown};
