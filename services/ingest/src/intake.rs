//! The way a request is taken, whoever brings it: checked, queued for the writer, answered.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use throughline_config::{AfterFailure, Settings};
use throughline_messages::TraceContext;
use throughline_snowflake::RequestId;
use throughline_store::Adopted;
use throughline_store::idempotency::{Key, Scope};

use crate::admission::{Admission, Refusal, Violation};
use crate::error::StartError;
use crate::writer::{Queue, Room, Submission, Verdict};

/// The intakes of all routes, by the route's name.
pub(crate) type Intakes = BTreeMap<String, Arc<Intake>>;

/// One route's way in.
#[derive(Debug)]
pub(crate) struct Intake {
    route: String,
    destinations: Arc<[String]>,
    keep_headers: Vec<String>,
    keeps_order: bool,
    admission: Admission,
    queue: Queue,
}

/// What somebody brings.
pub(crate) struct Offer {
    pub(crate) body: Bytes,
    pub(crate) content_type: String,
    /// The headers that the route keeps.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) trace: Option<TraceContext>,
    /// The name of the client that sent it, where clients are configured.
    pub(crate) client: Option<String>,
    /// The record that it is adopted from.
    pub(crate) origin: Option<Adopted>,
    pub(crate) idempotency_key: Option<String>,
    /// The room that the body takes.
    pub(crate) room: Room,
}

/// Why an offer was not taken.
#[derive(Debug)]
pub(crate) enum NotTaken {
    /// The body is not JSON.
    NotJson(String),
    /// The body is not what the route takes.
    Violation(Vec<Violation>),
    /// The idempotency key stands for another body.
    KeyReused,
    /// The first request under the idempotency key is still being committed.
    InFlight,
    /// More requests come than the writer commits.
    Full,
    /// The database cannot be reached; whether the request was kept is not known.
    Unavailable,
    /// The database refuses the request, for a reason that was logged.
    Failed,
    /// The database refuses any request, for a reason that was logged: a right or a table is missing.
    Misconfigured,
}

/// Compiles every route.
///
/// # Errors
/// If a route's schema does not compile.
pub(crate) fn intakes(settings: &Settings, queue: &Queue) -> Result<Intakes, StartError> {
    let intake = |name: &String, route: &throughline_config::Route| {
        let intake = Intake {
            route: name.clone(),
            destinations: route.destinations.clone().into(),
            keep_headers: route.keep_headers.clone(),
            keeps_order: route.after_failure == AfterFailure::Hold,
            admission: Admission::new(name, route)?,
            queue: queue.clone(),
        };
        Ok((name.clone(), Arc::new(intake)))
    };
    settings.routes.iter().map(|(name, route)| intake(name, route)).collect()
}

impl Intake {
    /// Names of the headers that the route keeps.
    pub(crate) fn keep_headers(&self) -> &[String] {
        &self.keep_headers
    }

    /// The writer's queue, for whoever must know whether there is room.
    pub(crate) fn queue(&self) -> &Queue {
        &self.queue
    }

    /// Takes a request: when this returns an id, the request is durable.
    ///
    /// # Errors
    /// [`NotTaken`]; only after [`NotTaken::Unavailable`] may the request have been kept all the same.
    pub(crate) async fn take(&self, offer: Offer) -> Result<RequestId, NotTaken> {
        let ordering_key = self.admission.check(&offer.body).map_err(|refusal| match refusal {
            Refusal::NotJson(detail) => NotTaken::NotJson(detail),
            Refusal::Violation(violations) => NotTaken::Violation(violations),
        })?;
        let scope = scope(&offer);
        let keyed = |key| (Key { route: self.route.clone(), scope, key }, Sha256::digest(&offer.body).into());
        let submission = Submission {
            route: self.route.clone(),
            destinations: Arc::clone(&self.destinations),
            idempotency: offer.idempotency_key.map(keyed),
            body: offer.body,
            content_type: offer.content_type,
            headers: offer.headers,
            ordering_key,
            keeps_order: self.keeps_order,
            trace: offer.trace,
            client: offer.client,
            origin: offer.origin,
            room: offer.room,
        };
        match self.queue.submit(submission).await.ok_or(NotTaken::Full)? {
            Verdict::Accepted(id) | Verdict::Repeated(id) => Ok(id),
            Verdict::KeyReused => Err(NotTaken::KeyReused),
            Verdict::InFlight => Err(NotTaken::InFlight),
            Verdict::Overloaded => Err(NotTaken::Full),
            Verdict::Unavailable => Err(NotTaken::Unavailable),
            Verdict::Failed => Err(NotTaken::Failed),
            Verdict::Misconfigured => Err(NotTaken::Misconfigured),
        }
    }
}

/// Whose idempotency key it is that comes with an offer.
fn scope(offer: &Offer) -> Scope {
    offer.client.clone().map_or(Scope::Open, Scope::Client)
}
