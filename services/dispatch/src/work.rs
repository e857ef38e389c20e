//! What a record asks for.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use http::HeaderValue;
use throughline_messages::{DeadReason, Malformed, RequestRecord, RetryRecord, name};

use crate::routing::{Routing, Target};

/// What is to be done with a record.
pub(crate) enum Work {
    /// Deliver a request.
    Deliver(Box<Deliveries>),
    /// Hand a foreign record to ingest.
    Adopt { route: String },
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
    /// Reads a record of the retries topic.
    ///
    /// The destination alone says where it goes: what was accepted for it is delivered there, even
    /// if the route is gone by now.
    pub(crate) fn of_retry(headers: &[(String, Bytes)], routing: &Routing) -> Self {
        RetryRecord::from_headers(headers)
            .and_then(|retry| {
                let RetryRecord { request, destination, attempt, spent, since } = retry;
                let targets = vec![routing.target(&destination)];
                Deliveries::new(request, targets, Standing { attempt, spent, since })
            })
            .map_or_else(|error| Self::malformed(&error), Self::deliver)
    }

    /// Reads a record of a route's topic.
    pub(crate) fn of_request(topic: &str, headers: &[(String, Bytes)], routing: &Routing) -> Self {
        match RequestRecord::from_headers(headers) {
            Ok(Some(request)) => match routing.targets_of(&request.route) {
                Some(targets) => {
                    let standing = Standing { attempt: 1, spent: 0, since: request.accepted_at };
                    let is_held = |target: &Target| request.held.iter().any(|held| held == target.name());
                    let targets = targets.iter().filter(|target| !is_held(target)).cloned().collect();
                    Deliveries::new(request, targets, standing)
                        .map_or_else(|error| Self::malformed(&error), Self::deliver)
                }
                None => Self::unroutable(format!("no route is called {:?}", request.route)),
            },
            Ok(None) => match routing.route_of(topic) {
                Some(route) => Self::Adopt { route: route.to_owned() },
                None => Self::unroutable(format!("no route has the topic {topic}")),
            },
            Err(error) => Self::malformed(&error),
        }
    }

    fn deliver(deliveries: Deliveries) -> Self {
        Self::Deliver(Box::new(deliveries))
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
