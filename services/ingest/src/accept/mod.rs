//! The way into ingest, the same for all [`sources`](crate::sources): authenticate, limit, check, commit.
//!
//! A source finds the [`Acceptor`] of the route, and calls
//! 1. [`Acceptor::admit`] with the API key that the caller sent, before it receives the payload: this authenticates the
//!    client and takes a permit of its rate. A source without callers uses [`Acceptor::admit_verified`];
//! 2. [`Admission::media_type`] and [`Admission::reserve`], for the media type of the payload and the memory that it
//!    takes;
//! 3. [`Admission::submit`], which checks the payload and hands it to the writer. Once this returns an id, the request
//!    is durable.
//!
//! Refusals are [`Denied`], [`UnsupportedMediaType`] and [`AcceptError`]. How to answer them, only the source knows.

mod authenticate;
mod check;
mod limit;

use std::collections::BTreeMap;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use throughline_api::Violation;
use throughline_settings::{Ordering, Settings};
use throughline_snowflake::RequestId;
use throughline_store::idempotency::{Key, Scope};
use tracing::Span;

pub(crate) use self::authenticate::{Access, Authorizer, Clients};
use self::check::Check;
pub(crate) use self::check::{LONGEST_ORDERING_KEY, UnsupportedMediaType};
use self::limit::Limits;
use crate::error::StartError;
pub(crate) use crate::writer::{BodyPermit, Payload};
use crate::writer::{CommitResult, Queue, Route, Submission};

/// The acceptors of all routes, by the route's name.
pub(crate) type Acceptors = BTreeMap<String, Arc<Acceptor>>;

/// Accepts the requests of one route, from all its sources.
#[derive(Debug)]
pub(crate) struct Acceptor {
    route: Arc<Route>,
    /// `None` if no clients are configured: then every caller is admitted.
    authorizer: Option<Authorizer>,
    /// The rate limits of the clients; `None` is unlimited.
    limits: Option<Limits>,
    check: Check,
    queue: Queue,
}

/// The permission to submit a request to a route.
#[derive(Debug)]
pub(crate) struct Admission<'a> {
    acceptor: &'a Acceptor,
    client: Option<&'a str>,
}

/// Why a caller is not admitted.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Denied {
    /// No key was sent, or an unknown one.
    Unauthenticated,
    /// The configuration does not permit this client to use the resource.
    Forbidden { client: String, resource: String },
    /// The rate of the route is exceeded; `retry_after` is the number of seconds until it permits a request again.
    RateExceeded { retry_after: u64 },
}

/// Why a request was not accepted.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum AcceptError {
    /// The payload is not JSON.
    NotJson(String),
    /// The payload violates the route's schema, or has no valid ordering key.
    Violation(Vec<Violation>),
    /// The idempotency key stands for another payload.
    KeyReused,
    /// The first request under the idempotency key is still being committed.
    InFlight,
    /// More requests arrive than the writer commits.
    Full,
    /// The database is unreachable; whether the request is stored is unknown.
    Unavailable,
    /// The database refuses the request, for a logged reason.
    Failed,
    /// The database refuses every request, for a logged reason: a privilege or a table is missing.
    Misconfigured,
}

/// Creates the acceptors of all routes and compiles their schemas.
///
/// # Errors
/// If a route's schema does not compile.
pub(crate) fn acceptors(
    settings: &Settings,
    clients: Option<&Arc<Clients>>,
    queue: &Queue,
) -> Result<Acceptors, StartError> {
    let acceptor = |name: &String, route: &throughline_settings::Route| {
        let acceptor = Acceptor {
            route: Arc::new(Route {
                name: name.clone(),
                destinations: route.destinations.clone(),
                keeps_order: route.ordering == Ordering::Strict,
            }),
            authorizer: clients.map(|clients| clients.authorizer(Access::Route(name.clone()))),
            limits: route.rate.map(|rate| Limits::new(rate, settings)),
            check: Check::new(name, route)?,
            queue: queue.clone(),
        };
        Ok((name.clone(), Arc::new(acceptor)))
    };
    settings.routes.iter().map(|(name, route)| acceptor(name, route)).collect()
}

impl Acceptor {
    /// Admits one request of the caller that sent this API key, or none, before its payload is received.
    ///
    /// # Errors
    /// If the client is unknown, may not use the route, or exceeds its rate.
    pub(crate) fn admit(&self, api_key: Option<&str>) -> Result<Admission<'_>, Denied> {
        let client = self.client(api_key)?;
        if let Some(limits) = &self.limits {
            limits.take(client).map_err(|retry_after| Denied::RateExceeded { retry_after })?;
        }
        Ok(Admission { acceptor: self, client })
    }

    /// Admits a request that the source itself has verified. It belongs to no client, and no rate applies to it.
    pub(crate) fn admit_verified(&self) -> Admission<'_> {
        Admission { acceptor: self, client: None }
    }

    /// Checks that the caller that sent this API key, or none, may use the route.
    ///
    /// # Errors
    /// If the client is unknown or may not use the route.
    pub(crate) fn authenticate(&self, api_key: Option<&str>) -> Result<(), Denied> {
        self.client(api_key).map(drop)
    }

    /// Returns the name of the client with this API key, if clients are configured.
    fn client(&self, api_key: Option<&str>) -> Result<Option<&str>, Denied> {
        self.authorizer.as_ref().map(|authorizer| authorizer.authorize(api_key)).transpose()
    }
}

impl Admission<'_> {
    /// Returns the media type of a payload whose sender declares this one, as declared.
    ///
    /// # Errors
    /// If the route does not accept it.
    pub(crate) fn media_type(&self, declared: Option<&str>) -> Result<String, UnsupportedMediaType> {
        self.acceptor.check.media_type(declared)
    }

    /// Returns the media type of a payload whose sender need not declare it correctly. A default replaces a media type
    /// that is missing, or that no HTTP request could carry to a third party.
    pub(crate) fn media_type_or_default(&self, declared: Option<&str>) -> String {
        self.acceptor.check.media_type_or_default(declared)
    }

    /// Reserves memory for a payload of this many bytes; the permit can grow as the payload arrives. Returns `None` if
    /// the memory for payloads does not suffice now.
    pub(crate) fn reserve(&self, bytes: u64) -> Option<BodyPermit> {
        self.acceptor.queue.reserve(bytes)
    }

    /// Submits a request: once this returns an id, the request is durable. Repeating a request with its idempotency
    /// key returns the first id.
    ///
    /// The request belongs to the trace of the current span; if there is none, to the trace of the payload.
    ///
    /// # Errors
    /// [`AcceptError`]; only after [`AcceptError::Unavailable`] may the request be stored nevertheless.
    pub(crate) async fn submit(
        &self,
        mut payload: Payload,
        idempotency_key: Option<String>,
    ) -> Result<RequestId, AcceptError> {
        let Acceptor { route, check, queue, .. } = self.acceptor;
        let ordering_key = check.payload(&payload.body)?;
        payload.trace = throughline_telemetry::context_of(&Span::current()).or(payload.trace);
        let scope = || self.client.map_or(Scope::Open, |name| Scope::Client(name.to_owned()));
        let keyed = |key| {
            let key = Key { route: route.name.clone(), scope: scope(), key };
            (key, Sha256::digest(&payload.body).into())
        };
        let submission = Submission {
            route: Arc::clone(route),
            client: self.client.map(str::to_owned),
            ordering_key,
            idempotency: idempotency_key.map(keyed),
            payload,
        };
        match queue.submit(submission).await.ok_or(AcceptError::Full)? {
            CommitResult::Accepted(id) | CommitResult::Repeated(id) => Ok(id),
            CommitResult::KeyReused => Err(AcceptError::KeyReused),
            CommitResult::InFlight => Err(AcceptError::InFlight),
            CommitResult::Overloaded => Err(AcceptError::Full),
            CommitResult::Unavailable => Err(AcceptError::Unavailable),
            CommitResult::Failed => Err(AcceptError::Failed),
            CommitResult::Misconfigured => Err(AcceptError::Misconfigured),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: &str = r#"{
        "clients": {"shop": {"key": "the-key-of-the-shop"}, "crm": {"key": "the-key-of-the-crm", "routes": []}},
        "routes": {"one": {"topic": "requests", "destinations": ["three"], "rate": "1/h"}}
    }"#;

    #[tokio::test]
    async fn a_caller_needs_a_key_and_a_permit_of_its_rate_and_a_verified_request_neither() {
        let settings: Settings = serde_json::from_str(SETTINGS).unwrap();
        let (clients, queue) = (Clients::new(&settings), Queue::of_bytes(1));
        let acceptors = acceptors(&settings, clients.as_ref(), &queue).unwrap();
        let acceptor = &acceptors["one"];
        let admitted = |key| acceptor.admit(key).map(|admission| admission.client);
        for _ in 0..2 {
            assert_eq!(admitted(None), Err(Denied::Unauthenticated));
            assert!(matches!(admitted(Some("the-key-of-the-crm")), Err(Denied::Forbidden { .. })));
            assert_eq!(acceptor.authenticate(Some("the-key-of-the-shop")), Ok(()));
        }
        assert_eq!(admitted(Some("the-key-of-the-shop")), Ok(Some("shop")), "the first that counts");
        let exceeded = admitted(Some("the-key-of-the-shop"));
        assert!(matches!(exceeded, Err(Denied::RateExceeded { retry_after: 1.. })), "{exceeded:?}");
        for _ in 0..3 {
            assert_eq!(acceptor.admit_verified().client, None);
        }
    }
}
