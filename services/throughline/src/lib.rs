//! The `throughline` command.
//!
//! `throughline dev` runs ingest, dispatch and a sandbox third party in one process on embedded parts: `SQLite`, and
//! librdkafka's in-process broker. `throughline migrate` upgrades a database's schema, and `throughline purge`
//! deletes requests that ended long ago. `throughline config` checks and shows the configuration of the services.
//! `throughline explain` and `throughline dead-letters` call a running ingest.

mod command;
mod dead_letters;
mod dev;
mod explain;
mod purge;
mod remote;

pub use command::Command;
