//! Decodes the work that a record asks for.

use chrono::{DateTime, Utc};
use http::HeaderValue;
use throughline_kafka::Record;
use throughline_messages::{
    DeadReason, ErrorClass, Failure, Identity, Keys, Kind, Malformed, RequestRecord, RetryRecord,
    RouteRecord, name,
};

use crate::routing::{RouteTarget, Routing};

/// The work on one record.
pub(crate) enum Work {
    /// Deliver a request.
    Deliver(Box<Deliveries>),
    /// Hand a foreign record to ingest.
    Adopt { route: String },
    /// End the deliveries of one of our own records that cannot be processed.
    End(Box<Undeliverable>),
    /// Keep the record as a dead letter for an operator: it names no delivery to report on.
    DeadLetter { reason: DeadReason, error: String },
}

/// One request and the destinations to deliver it to.
pub(crate) struct Deliveries {
    pub(crate) request: RequestRecord,
    pub(crate) content_type: HeaderValue,
    pub(crate) targets: Vec<RouteTarget>,
    pub(crate) progress: Progress,
}

/// Deliveries that end dead without an attempt.
pub(crate) struct Undeliverable {
    /// The request, its destinations, and the number of the attempt that is not made.
    pub(crate) identity: Identity,
    pub(crate) reason: DeadReason,
    pub(crate) failure: Failure,
}

/// The progress of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Progress {
    /// The number of the next attempt, from 1.
    pub(crate) attempt: u32,
    /// How many earlier attempts counted.
    pub(crate) counted_attempts: u32,
    /// When the delivery's window began.
    pub(crate) window_started_at: DateTime<Utc>,
}

impl Work {
    /// Decodes a record of the retries topic, to which only ingest produces.
    pub(crate) fn of_retry(record: &Record, routing: &Routing, keys: &Keys) -> Self {
        if !keys.have_signed(Kind::Retry, &record.headers, &record.payload) {
            return Self::malformed(&Malformed::unsigned());
        }
        RetryRecord::from_headers(&record.headers)
            .and_then(|retry| {
                let RetryRecord { request, destination, attempt, counted_attempts, window_started_at } =
                    retry;
                let targets = vec![routing.target(&destination)];
                Deliveries::new(request, targets, Progress { attempt, counted_attempts, window_started_at })
            })
            .map_or_else(|error| Self::of_unreadable(record, &error), Self::deliver)
    }

    /// Decodes a record of a route's topic, to which others may produce too. A record without our signature is
    /// foreign, whatever its headers say.
    ///
    /// The destinations named by a record are called, whether or not its route is configured.
    pub(crate) fn of_request(record: &Record, routing: &Routing, keys: &Keys) -> Self {
        if !keys.have_signed(Kind::Request, &record.headers, &record.payload) {
            return match routing.route_of(&record.topic) {
                Some(route) => Self::Adopt { route: route.to_owned() },
                None => Self::unroutable(format!(
                    "the configuration has no route with the topic {}",
                    record.topic
                )),
            };
        }
        RouteRecord::from_headers(&record.headers)
            .and_then(|RouteRecord { request, destinations }| {
                let targets = destinations.iter().map(|destination| routing.target(destination)).collect();
                let progress =
                    Progress { attempt: 1, counted_attempts: 0, window_started_at: request.accepted_at };
                Deliveries::new(request, targets, progress)
            })
            .map_or_else(|error| Self::of_unreadable(record, &error), Self::deliver)
    }

    /// Returns the work that remains for a record on which dispatch panicked twice: a signed record ends the deliveries
    /// that it names, any other is kept for an operator.
    pub(crate) fn given_up(record: &Record, kind: Kind, keys: &Keys, error: String) -> Self {
        let reason = DeadReason::Internal;
        if keys.have_signed(kind, &record.headers, &record.payload) {
            Self::end(record, reason, Failure { class: ErrorClass::Internal, error })
        } else {
            Self::DeadLetter { reason, error }
        }
    }

    fn of_unreadable(record: &Record, error: &Malformed) -> Self {
        let failure = Failure { class: ErrorClass::Record, error: error.to_string() };
        Self::end(record, DeadReason::Malformed, failure)
    }

    /// Ends the deliveries that one of our own records names. If it names none, there is no delivery to end.
    fn end(record: &Record, reason: DeadReason, failure: Failure) -> Self {
        match Identity::from_headers(&record.headers) {
            Some(identity) if !identity.destinations.is_empty() => {
                Self::End(Box::new(Undeliverable { identity, reason, failure }))
            }
            _ => Self::DeadLetter { reason, error: failure.error },
        }
    }

    fn deliver(deliveries: Deliveries) -> Self {
        Self::Deliver(Box::new(deliveries))
    }

    fn malformed(error: &Malformed) -> Self {
        Self::DeadLetter { reason: DeadReason::Malformed, error: error.to_string() }
    }

    fn unroutable(error: String) -> Self {
        Self::DeadLetter { reason: DeadReason::Unroutable, error }
    }
}

impl Deliveries {
    fn new(request: RequestRecord, targets: Vec<RouteTarget>, progress: Progress) -> Result<Self, Malformed> {
        let content_type = HeaderValue::from_str(&request.content_type).map_err(|_| Malformed {
            header: name::CONTENT_TYPE,
            problem: "is not a valid HTTP header value".to_owned(),
        })?;
        Ok(Self { request, content_type, targets, progress })
    }
}
