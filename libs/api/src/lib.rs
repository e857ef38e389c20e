//! The types of the management API (`/v1`): what ingest answers, and the parameters that it takes.
//!
//! Ingest, its description in `/openapi.json` and the client of the feature `client` use the same types, so they cannot
//! disagree. A client ignores fields that it does not know, and keeps the names of states, reasons and errors that only
//! a later version knows.

#[cfg(feature = "client")]
pub mod client;

mod dead_letter;
mod explanation;
mod problem;
mod replay;
mod request;
mod text;

pub use dead_letter::{DeadLetter, DeadLetterFilter, DeadLetters, MOST_DEAD_LETTERS, Page, Position, Purged};
pub use explanation::{DeliveryExplanation, Event, Explanation};
pub use problem::{Problem, Violation};
pub use replay::{NewReplay, Replay, ReplayPath, ReplayState};
pub use request::{
    Accepted, Attempt, AttemptOutcome, Cancellation, Delivery, DeliveryPath, DeliveryState, Request,
    RequestPath,
};
