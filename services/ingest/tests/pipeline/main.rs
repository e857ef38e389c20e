//! Ingest as a whole, on `SQLite` and librdkafka's in-process broker.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on has failed")]

mod accepting;
mod committing;
mod publishing;
mod recording;
mod world;
