//! The explanation of a request in words: its events, in order, and the condition that each of its deliveries waits
//! for.
//!
//! [`find`] queries the database; [`explain`] is a pure function of the result.

mod events;
mod facts;
mod format;
mod state;
#[cfg(test)]
mod tests;

use chrono::{DateTime, Utc};
use throughline_api::DeliveryState;
use throughline_snowflake::RequestId;

pub(crate) use self::facts::{Facts, find};

/// The history of a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct RequestHistory {
    pub(crate) request_id: RequestId,
    /// In the order in which they happened.
    pub(crate) events: Vec<Event>,
    /// By destination.
    pub(crate) states: Vec<CurrentState>,
}

/// An event in the history.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) at: DateTime<Utc>,
    /// `None` if the event concerns the request as a whole.
    pub(crate) destination: Option<String>,
    pub(crate) text: String,
    /// The trace that shows the event.
    pub(crate) trace_id: Option<String>,
}

/// The current state of a delivery: the condition that it waits for, until when, and what would advance it; or how it
/// ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct CurrentState {
    pub(crate) destination: String,
    pub(crate) state: DeliveryState,
    pub(crate) text: String,
}

/// Explains a request: its history, and its state at `now`.
pub(crate) fn explain(facts: &Facts, now: DateTime<Utc>) -> RequestHistory {
    let deliveries = facts.status.deliveries.iter();
    RequestHistory {
        request_id: facts.status.request.id,
        events: events::events(&facts.status),
        states: deliveries.map(|delivery| state::state(facts, delivery, now)).collect(),
    }
}
