//! The database: PostgreSQL, or `SQLite` when embedded.
//!
//! [`Store`] connects, migrates and begins transactions. Functions over `&impl` [`Session`] read and write the data, so
//! both a pool and a transaction can be passed, and the caller owns the transaction. They work on many rows at once in
//! a few statements: a batch costs the same number of round trips as one row.
//!
//! | module | contents |
//! |---|---|
//! | [`requests`] | bodies as received, and the status of a request |
//! | [`idempotency`] | the requests that idempotency keys stand for |
//! | [`outbox`] | requests that are committed and not yet acknowledged by the broker |
//! | [`deliveries`] | the state of a request at a destination, and when to act on it |
//! | [`claims`] | deliveries that one ingest is publishing |
//! | [`outcomes`] | reports of attempts |
//! | [`order`] | deliveries that are made one after the other |
//! | [`slow_starts`] | destinations that cannot take all deliveries that wait for them |
//! | [`dead_letters`] | deliveries that ended without success |
//! | [`replays`] | dead letters that are delivered again, many at a time |
//! | [`backlog`] | counts of pending work |
//! | [`retention`] | deletion of requests that ended long ago |
//! | [`nodes`] | leases of node ids, under which request ids are made |
//!
//! Each of these functions is measured as an operation of its own, and the connections are counted.
//!
//! Bodies are read back byte for byte, times to the microsecond.

pub mod backlog;
pub mod claims;
pub mod dead_letters;
pub mod deliveries;
pub mod idempotency;
pub mod nodes;
pub mod order;
pub mod outbox;
pub mod outcomes;
pub mod replays;
pub mod requests;
pub mod retention;
pub mod slow_starts;

mod bounds;
mod connect;
mod connection;
mod delivery_key;
mod dialect;
mod entity;
mod error;
mod index_predicates;
mod migrations;
mod operation;
mod pool;
mod postgres;
mod rows;
mod settings;
mod store;
mod transaction;
mod transition;

pub use sea_orm::ConnectionTrait;

pub use claims::{Claim, Due, DueDelivery};
pub use connection::Connection;
pub use deliveries::{Cancelled, Ended, Refusal};
pub use delivery_key::DeliveryKey;
pub use error::StoreError;
pub use operation::{Operations, Session};
pub use outbox::OutboxRequest;
pub use requests::{Adopted, NewRequest, StoredDelivery, StoredRequest, StoredStatus};
pub use settings::Settings;
pub use store::Store;
pub use transaction::Transaction;
