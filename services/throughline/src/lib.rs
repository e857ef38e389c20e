//! The `throughline` command.
//!
//! `throughline dev` runs ingest, dispatch and a sandbox third party in one process on embedded
//! parts: `SQLite`, and librdkafka's in-process broker. `throughline migrate` brings a database's
//! schema up to date, and `throughline purge` deletes from it what ended long ago; `throughline config` checks and shows what the services would work with; `throughline
//! explain` and `throughline dead-letters` ask a running ingest.

mod command;
mod dead_letters;
mod dev;
mod explain;
mod purge;
mod remote;

pub use command::Command;
