//! What a record asks for.

use chrono::{DateTime, Utc};
use http::HeaderValue;
use throughline_kafka::Record;
use throughline_messages::{
    DeadReason, ErrorClass, Failure, Identity, Keys, Kind, Malformed, RequestRecord, RetryRecord, name,
};
use throughline_snowflake::RequestId;

use crate::routing::{Routing, Target};

/// What is to be done with a record.
pub(crate) enum Work {
    /// Deliver a request.
    Deliver(Box<Deliveries>),
    /// Hand a foreign record to ingest.
    Adopt { route: String },
    /// End the deliveries of a record of ours that cannot be used.
    End(Box<Undeliverable>),
    /// Leave a request to ingest, which knows its destinations: once the delivery has been silent for
    /// `ingest.patience`, it publishes a record for each of them.
    Leave { id: RequestId, error: String },
    /// There is no delivery to report on: keep the record for a person to look at.
    Bury { reason: DeadReason, error: String },
}

/// One request on its way to one or more destinations.
pub(crate) struct Deliveries {
    pub(crate) request: RequestRecord,
    pub(crate) content_type: HeaderValue,
    pub(crate) targets: Vec<Target>,
    pub(crate) standing: Standing,
}

/// Deliveries that end dead without an attempt.
pub(crate) struct Undeliverable {
    pub(crate) id: RequestId,
    pub(crate) destinations: Vec<String>,
    /// The number of the attempt that is not made, and how many before it counted.
    pub(crate) attempt: u32,
    pub(crate) spent: u32,
    pub(crate) reason: DeadReason,
    pub(crate) failure: Failure,
}

/// How far a delivery has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Standing {
    /// The number of the attempt to make, from 1.
    pub(crate) attempt: u32,
    /// How many of those before it counted.
    pub(crate) spent: u32,
    /// When its time began.
    pub(crate) since: DateTime<Utc>,
}

impl Work {
    /// Reads a record of the retries topic, where only ingest produces.
    ///
    /// The destination alone says where it goes: what was accepted for it is delivered there, even
    /// if the route is gone by now.
    pub(crate) fn of_retry(record: &Record, routing: &Routing, keys: &Keys) -> Self {
        if !keys.have_signed(Kind::Retry, &record.headers, &record.payload) {
            return Self::malformed(&Malformed::unsigned());
        }
        RetryRecord::from_headers(&record.headers)
            .and_then(|retry| {
                let RetryRecord { request, destination, attempt, spent, since } = retry;
                let targets = vec![routing.target(&destination)];
                Deliveries::new(request, targets, Standing { attempt, spent, since })
            })
            .map_or_else(
                |error| match Identity::from_headers(&record.headers) {
                    Some(Identity { destination: Some(destination), id, attempt, spent, .. }) => {
                        Self::end(id, vec![destination], attempt, spent, &error)
                    }
                    _ => Self::malformed(&error),
                },
                Self::deliver,
            )
    }

    /// Reads a record of a route's topic, where others may produce too: without a signature of ours, whatever it
    /// says of itself, it is foreign.
    pub(crate) fn of_request(record: &Record, routing: &Routing, keys: &Keys) -> Self {
        if !keys.have_signed(Kind::Request, &record.headers, &record.payload) {
            return match routing.route_of(&record.topic) {
                Some(route) => Self::Adopt { route: route.to_owned() },
                None => Self::unroutable(format!("no route has the topic {}", record.topic)),
            };
        }
        match RequestRecord::from_headers(&record.headers) {
            Ok(request) => Self::of_route(request, routing),
            Err(error) => match Identity::from_headers(&record.headers) {
                Some(identity) => Self::of_unreadable(identity, routing, &error),
                None => Self::malformed(&error),
            },
        }
    }

    fn of_route(request: RequestRecord, routing: &Routing) -> Self {
        let Some(targets) = routing.targets_of(&request.route) else {
            return Self::Leave { id: request.id, error: format!("no route is called {:?}", request.route) };
        };
        let standing = Standing { attempt: 1, spent: 0, since: request.accepted_at };
        let is_held = |target: &Target| request.held.iter().any(|held| held == target.name());
        let targets: Vec<_> = targets.iter().filter(|target| !is_held(target)).cloned().collect();
        let (id, names) = (request.id, targets.iter().map(|target| target.name().to_owned()).collect());
        Deliveries::new(request, targets, standing)
            .map_or_else(|error| Self::end(id, names, 1, 0, &error), Self::deliver)
    }

    fn of_unreadable(identity: Identity, routing: &Routing, error: &Malformed) -> Self {
        let Identity { id, route, held, attempt, spent, .. } = identity;
        let Some(targets) = route.and_then(|route| routing.targets_of(&route)) else {
            return Self::Leave { id, error: error.to_string() };
        };
        let names = targets.iter().map(|target| target.name().to_owned());
        Self::end(id, names.filter(|name| !held.contains(name)).collect(), attempt, spent, error)
    }

    fn deliver(deliveries: Deliveries) -> Self {
        Self::Deliver(Box::new(deliveries))
    }

    fn end(id: RequestId, destinations: Vec<String>, attempt: u32, spent: u32, error: &Malformed) -> Self {
        let failure = Failure { class: ErrorClass::Record, error: error.to_string() };
        let reason = DeadReason::Malformed;
        Self::End(Box::new(Undeliverable { id, destinations, attempt, spent, reason, failure }))
    }

    fn malformed(error: &Malformed) -> Self {
        Self::Bury { reason: DeadReason::Malformed, error: error.to_string() }
    }

    fn unroutable(error: String) -> Self {
        Self::Bury { reason: DeadReason::Unroutable, error }
    }
}

impl Deliveries {
    fn new(request: RequestRecord, targets: Vec<Target>, standing: Standing) -> Result<Self, Malformed> {
        let content_type = HeaderValue::from_str(&request.content_type).map_err(|_| Malformed {
            header: name::CONTENT_TYPE,
            problem: "cannot be the value of an HTTP header".to_owned(),
        })?;
        Ok(Self { request, content_type, targets, standing })
    }
}
