//! What a record asks for.

use bytes::Bytes;
use http::HeaderValue;
use throughline_messages::{DeadReason, Malformed, RequestRecord, RetryRecord, name};

use crate::routing::Routing;

/// What is to be done with a record.
#[derive(Debug)]
pub(crate) enum Work {
    /// Deliver a request to these destinations.
    Deliver(Deliveries),
    /// Hand a foreign record to ingest.
    Adopt { route: String },
    /// There is no delivery to report on: keep the record for a person to look at.
    Bury { reason: DeadReason, error: String },
}

/// One request on its way to one or more destinations.
#[derive(Debug)]
pub(crate) struct Deliveries {
    pub(crate) request: RequestRecord,
    pub(crate) content_type: HeaderValue,
    pub(crate) destinations: Vec<String>,
    pub(crate) attempt: u32,
}

impl Work {
    /// Reads a record of the retries topic.
    ///
    /// The destination alone says where it goes: what was accepted for it is delivered there, even
    /// if the route is gone by now.
    pub(crate) fn of_retry(headers: &[(String, Bytes)]) -> Self {
        RetryRecord::from_headers(headers)
            .and_then(|retry| Deliveries::new(retry.request, vec![retry.destination], retry.attempt))
            .map_or_else(|error| Self::malformed(&error), Self::Deliver)
    }

    /// Reads a record of a route's topic.
    pub(crate) fn of_request(topic: &str, headers: &[(String, Bytes)], routing: &Routing) -> Self {
        match RequestRecord::from_headers(headers) {
            Ok(Some(request)) => match routing.destinations_of(&request.route) {
                Some(destinations) => Deliveries::new(request, destinations.to_vec(), 1)
                    .map_or_else(|error| Self::malformed(&error), Self::Deliver),
                None => Self::unroutable(format!("no route is called {:?}", request.route)),
            },
            Ok(None) => match routing.route_of(topic) {
                Some(route) => Self::Adopt { route: route.to_owned() },
                None => Self::unroutable(format!("no route has the topic {topic}")),
            },
            Err(error) => Self::malformed(&error),
        }
    }

    fn malformed(error: &Malformed) -> Self {
        Self::Bury { reason: DeadReason::Malformed, error: error.to_string() }
    }

    fn unroutable(error: String) -> Self {
        Self::Bury { reason: DeadReason::Unroutable, error }
    }
}

impl Deliveries {
    fn new(request: RequestRecord, destinations: Vec<String>, attempt: u32) -> Result<Self, Malformed> {
        let content_type = HeaderValue::from_str(&request.content_type).map_err(|_| Malformed {
            header: name::CONTENT_TYPE,
            problem: "cannot be the value of an HTTP header".to_owned(),
        })?;
        Ok(Self { request, content_type, destinations, attempt })
    }
}
