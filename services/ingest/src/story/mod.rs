//! The story of a request in words: what happened, in order, and what each of its deliveries waits for.
//!
//! [`find`] asks the database; [`tell`] is a pure function of what was found.

mod events;
mod found;
mod standing;
#[cfg(test)]
mod tests;
mod words;

use chrono::{DateTime, Utc};
use throughline_snowflake::RequestId;
use throughline_store::DeliveryState;

pub(crate) use self::found::{Found, find};

/// What became of a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Story {
    pub(crate) request_id: RequestId,
    /// In the order in which they happened.
    pub(crate) events: Vec<Event>,
    /// By destination.
    pub(crate) standings: Vec<Standing>,
}

/// Something that happened.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) at: DateTime<Utc>,
    /// None if it is about the request as a whole.
    pub(crate) destination: Option<String>,
    pub(crate) text: String,
    /// The trace that shows it.
    pub(crate) trace_id: Option<String>,
}

/// Where a delivery stands: what it waits for, until when, and what would make it move; or how it ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) destination: String,
    pub(crate) state: DeliveryState,
    pub(crate) text: String,
}

/// Tells what was found, as it is now.
pub(crate) fn tell(found: &Found, now: DateTime<Utc>) -> Story {
    let deliveries = found.status.deliveries.iter();
    Story {
        request_id: found.status.request.id,
        events: events::events(&found.status),
        standings: deliveries.map(|delivery| standing::standing(found, delivery, now)).collect(),
    }
}
