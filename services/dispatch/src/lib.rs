//! Kafka in, third-party APIs out.
//!
//! Dispatch takes requests from the routes' topics and from the retries topic, calls the
//! destinations, and reports every attempt on the outcomes topic. It has no database: what it knows
//! comes with a record, and what it found out goes back to Kafka. A record's offset is finished only
//! once Kafka has acknowledged everything that there was to say of the record, so a crash repeats
//! calls and loses none; the third party recognises a repeated call by its `Idempotency-Key`.
//!
//! In here: `app` puts the parts together; `work` says what a record asks for, with `routing`, and `processor` sees to
//! it; a `delivery` is attempted at one `destination`, unless it was `recent`ly, after its `admission`: its `lanes` keep the order of each key, and
//! it has a share of the `room` that all have together. Its `gate` (breaker and `limits`) lets a call through; the `pulse`
//! tells a destination that is slow from a dispatch that is short of processor time. For a call
//! `credentials` must be good; `call` makes it and `classify` judges how it ended, or `no_call` says why there is none;
//! `reporter` tells Kafka, and `metrics` count along. What cannot be called now is deferred: it waits in the database, not here.

mod admission;
mod app;
mod call;
mod caught;
mod cause;
mod classify;
mod credentials;
mod delivery;
mod destination;
mod error;
mod excerpt;
mod gate;
mod health;
mod lanes;
mod limits;
mod metrics;
mod no_call;
mod policy;
mod processor;
mod pulse;
mod recent;
mod reporter;
mod room;
mod routing;
mod start;
mod work;

pub use app::{Dispatch, start};
pub use error::StartError;

/// What a filter holds of memory is bounded, and read off this.
#[global_allocator]
static ALLOCATOR: throughline_transform::Allocator = throughline_transform::Allocator;
