//! Ingest as a whole, on `SQLite` and librdkafka's in-process broker.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on has failed")]

mod accepting;
mod clients;
mod committing;
mod dead_letters;
mod describing;
mod publishing;
mod recording;
mod world;
