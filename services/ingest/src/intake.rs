//! The path of a request into ingest, from any source: it is checked, queued for the writer and answered.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use throughline_messages::TraceContext;
use throughline_settings::{Ordering, Settings};
use throughline_snowflake::RequestId;
use throughline_store::Adopted;
use throughline_store::idempotency::{Key, Scope};

use crate::admission::{Admission, Refusal, Violation};
use crate::error::StartError;
use crate::writer::{BodyPermit, CommitResult, Queue, Submission};

/// The intakes of all routes, by the route's name.
pub(crate) type Intakes = BTreeMap<String, Arc<Intake>>;

/// The intake of one route.
#[derive(Debug)]
pub(crate) struct Intake {
    route: String,
    destinations: Arc<[String]>,
    keep_headers: Vec<String>,
    keeps_order: bool,
    admission: Admission,
    queue: Queue,
}

/// A request that a source submits.
pub(crate) struct IncomingRequest {
    pub(crate) body: Bytes,
    pub(crate) content_type: String,
    /// The headers that the route keeps.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) trace: Option<TraceContext>,
    /// The name of the client that sent the request, if clients are configured.
    pub(crate) client: Option<String>,
    /// The record from which the request is adopted.
    pub(crate) origin: Option<Adopted>,
    pub(crate) idempotency_key: Option<String>,
    /// The permit for the body's bytes.
    pub(crate) permit: BodyPermit,
}

/// Why a request was not accepted.
#[derive(Debug)]
pub(crate) enum AcceptError {
    /// The body is not JSON.
    NotJson(String),
    /// The body violates the route's schema, or has no valid ordering key.
    Violation(Vec<Violation>),
    /// The idempotency key stands for another body.
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

/// Creates the intakes of all routes and compiles their schemas.
///
/// # Errors
/// If a route's schema does not compile.
pub(crate) fn intakes(settings: &Settings, queue: &Queue) -> Result<Intakes, StartError> {
    let intake = |name: &String, route: &throughline_settings::Route| {
        let intake = Intake {
            route: name.clone(),
            destinations: route.destinations.clone().into(),
            keep_headers: route.keep_headers.clone(),
            keeps_order: route.ordering == Ordering::Strict,
            admission: Admission::new(name, route)?,
            queue: queue.clone(),
        };
        Ok((name.clone(), Arc::new(intake)))
    };
    settings.routes.iter().map(|(name, route)| intake(name, route)).collect()
}

impl Intake {
    /// Returns the names of the headers that the route keeps.
    pub(crate) fn keep_headers(&self) -> &[String] {
        &self.keep_headers
    }

    /// Returns the writer's queue, for callers that reserve the bytes of a body.
    pub(crate) fn queue(&self) -> &Queue {
        &self.queue
    }

    /// Submits a request: once this returns an id, the request is durable.
    ///
    /// # Errors
    /// [`AcceptError`]; only after [`AcceptError::Unavailable`] may the request be stored nevertheless.
    pub(crate) async fn take(&self, incoming: IncomingRequest) -> Result<RequestId, AcceptError> {
        let ordering_key = self.admission.check(&incoming.body).map_err(|refusal| match refusal {
            Refusal::NotJson(detail) => AcceptError::NotJson(detail),
            Refusal::Violation(violations) => AcceptError::Violation(violations),
        })?;
        let scope = scope(&incoming);
        let keyed =
            |key| (Key { route: self.route.clone(), scope, key }, Sha256::digest(&incoming.body).into());
        let submission = Submission {
            route: self.route.clone(),
            destinations: Arc::clone(&self.destinations),
            idempotency: incoming.idempotency_key.map(keyed),
            body: incoming.body,
            content_type: incoming.content_type,
            headers: incoming.headers,
            ordering_key,
            keeps_order: self.keeps_order,
            trace: incoming.trace,
            client: incoming.client,
            origin: incoming.origin,
            permit: incoming.permit,
        };
        match self.queue.submit(submission).await.ok_or(AcceptError::Full)? {
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

/// Returns the scope of the idempotency key of a request.
fn scope(incoming: &IncomingRequest) -> Scope {
    incoming.client.clone().map_or(Scope::Open, Scope::Client)
}
