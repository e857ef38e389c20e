//! Provides a broker, a database, third parties and the real programs for tests.
//!
//! Tests share an [`Environment`]: real servers in containers, or embedded ones. Within it, each test has a [`Stage`]
//! of its own: a folder with a `throughline.yaml`, a database, its own names on the broker, a [`ThirdParty`], and the
//! services, as child processes ([`Program`]) or as containers, which the test may start, stop and kill.
//!
//! A [`Collector`] receives OTLP exports. [`Measured`] keeps the metrics of a test. A [`new_request`] is a request as
//! ingest writes it to the database.
//!
//! No code here sleeps for a fixed time: [`eventually`] polls until a condition holds, and at its deadline reports
//! the last state.

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
mod store;
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
pub use request::new_request;
pub use stage::{Service, Stage};
pub use store::{lease, leased, sqlite};
pub use third_party::{Answer, Call, ThirdParty};
