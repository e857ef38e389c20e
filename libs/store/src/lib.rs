//! The database: PostgreSQL, or `SQLite` when embedded.
//!
//! [`Store`] connects, migrates and begins transactions. What is kept is read and written by functions
//! over `&impl` [`Session`], so that a pool and a transaction both serve, and whoever calls them owns the
//! transaction. They work on many rows at once in a few statements: a batch costs the
//! same number of round trips as one row.
//!
//! | module | what it keeps |
//! |---|---|
//! | [`requests`] | bodies as they came, and what a client asks about them |
//! | [`idempotency`] | the requests that idempotency keys stand for |
//! | [`outbox`] | what is committed and not yet acknowledged by the broker |
//! | [`deliveries`] | the state of a request at a destination, and when to act on it |
//! | [`claims`] | deliveries that one ingest is publishing |
//! | [`outcomes`] | what became of attempts |
//! | [`order`] | deliveries that are made one after the other |
//! | [`holds`] | destinations that cannot take all that waits for them |
//! | [`dead_letters`] | deliveries that ended without success |
//! | [`replays`] | many of them on their way back |
//! | [`backlog`] | how much of all that waits |
//! | [`retention`] | what ended long ago, deleted |
//! | [`nodes`] | who may make ids under which node id |
//!
//! Measured are these functions, each as an operation of its own, and the connections.
//!
//! Bodies come back byte for byte, times to the microsecond.

pub mod backlog;
pub mod claims;
pub mod dead_letters;
pub mod deliveries;
pub mod holds;
pub mod idempotency;
pub mod nodes;
pub mod order;
pub mod outbox;
pub mod outcomes;
pub mod replays;
pub mod requests;
pub mod retention;

mod bounds;
mod connect;
mod connection;
mod dialect;
mod entity;
mod error;
mod life;
mod migrations;
mod operation;
mod pool;
mod postgres;
mod rows;
mod store;
mod transaction;
mod waits;

pub use sea_orm::ConnectionTrait;

pub use claims::{Claim, Due, DueDelivery};
pub use connection::Connection;
pub use deliveries::{Cancelled, DeliveryState, Ended, Refusal};
pub use error::StoreError;
pub use operation::{Operations, Session};
pub use outbox::OutboxRequest;
pub use requests::{Adopted, NewRequest, StoredAttempt, StoredDelivery, StoredRequest, StoredStatus};
pub use store::Store;
pub use transaction::Transaction;
