//! Ingest as a whole, on `SQLite` and librdkafka's in-process broker; on real parts where only those can fail in this
//! way.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on has failed")]

mod accepting;
mod adopting;
mod clients;
mod clock_steps;
mod committing;
mod dead_letters;
mod describing;
mod expiring;
mod explaining;
mod flooding;
mod full_disk;
mod managing;
mod measuring;
mod permissions;
mod publishing;
mod recording;
mod world;
