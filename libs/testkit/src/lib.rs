//! A broker, a database, third parties and the real programs, for tests.
//!
//! An [`Environment`] is what tests share: real servers in containers, or embedded parts. A [`Stage`]
//! is what a test has for itself in it: a folder with a `throughline.yaml`, a database, names of its own
//! on the broker, a [`ThirdParty`], and the services, as child processes ([`Program`]) or as containers, which it may
//! start, stop and kill.
//!
//! A [`Collector`] takes what is exported over OTLP. [`Measured`] keeps what a test's metrics came to. A
//! [`new_request`] is what ingest puts into the database.
//!
//! Nothing here sleeps to wait: [`eventually`] looks until it sees what it waits for, and says at its
//! deadline what it saw last.

mod broker;
mod collector;
mod composed;
mod configuration;
mod container;
mod database;
mod embedded_broker;
mod environment;
mod eventually;
mod measured;
mod output;
mod program;
mod programs;
mod records;
mod request;
mod stage;
mod third_party;

pub use broker::Broker;
pub use collector::{Attributes, Collector, Credentials, Export, Link, LogRecord, Metric, Span};
pub use container::Container;
pub use database::Database;
pub use environment::Environment;
pub use eventually::eventually;
pub use measured::{Measured, Number, Point, unmeasured};
pub use output::Output;
pub use program::{Ended, Program};
pub use programs::Programs;
pub use records::{Reader, produce};
pub use request::{lease, leased, new_request};
pub use stage::{Service, Stage};
pub use third_party::{Answer, Call, ThirdParty};
