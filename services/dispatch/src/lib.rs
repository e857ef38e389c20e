//! Kafka in, third-party APIs out.
//!
//! Dispatch consumes requests from the routes' topics and from the retries topic, calls the destinations, and reports
//! every attempt on the outcomes topic. It has no database: its input arrives with each record, and its results go
//! back to Kafka. A record's offset is finished only once Kafka has acknowledged every outcome and dead letter of the
//! record, so a crash repeats calls and loses none; the third party recognises a repeated call by its
//! `Idempotency-Key`.
//!
//! The modules: `app` wires the parts together. `work` decodes a record, with `routing`, and `processor` does the
//! work. A `delivery` is attempted at one `destination`, unless `recent` remembers the same attempt. `admission`
//! comes first: `key_queues` keep the order of each key, and `fair_share` limits the deliveries and bytes of all
//! destinations together. The `gate` (breaker and `limits`) lets each call through; the `pulse` tells a slow
//! destination from a dispatch that is short of processor time. The destination's kind, a module of
//! `throughline_destination`, makes the call, and `policy` decides how the delivery continues; if there is no call,
//! `not_attempted` holds the reason. `reporter` publishes the results to Kafka, and `metrics` count them. A delivery
//! that cannot be called now is deferred: it waits in the database, not here.

mod admission;
mod app;
mod caught;
mod delivery;
mod destination;
mod error;
mod fair_share;
mod gate;
mod health;
mod key_queues;
mod limits;
mod metrics;
mod not_attempted;
mod policy;
mod processor;
mod pulse;
mod recent;
mod reporter;
mod routing;
mod start;
mod work;

pub use app::{Dispatch, start};
pub use error::StartError;
