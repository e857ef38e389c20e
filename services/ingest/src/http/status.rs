//! `GET /v1/requests/{id}`: a request, its deliveries and their attempts; and the cancellation of deliveries.

use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use http::HeaderName;
use http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use schemars::JsonSchema;
use serde::Serialize;
use throughline_messages::TraceContext;
use throughline_snowflake::RequestId;
use throughline_store::deliveries::{self, Cancelled, DeliveryState};
use throughline_store::{Store, StoreError, StoredAttempt, StoredDelivery, StoredStatus, requests};

use super::dead_letters::Parameters;
use super::problem::Problem;
use crate::sweeper::Operations;

pub(super) const NO_ANSWER: &str = "The database does not answer.";

/// A request and its deliveries.
#[derive(Serialize, JsonSchema)]
pub(super) struct Status {
    /// The request's id, 20 digits.
    #[schemars(with = "String")]
    request_id: RequestId,
    route: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    ordering_key: Option<String>,
    accepted_at: DateTime<Utc>,
    content_type: String,
    /// Size of the body, in bytes.
    body_bytes: u64,
    /// The headers that the route keeps, each a name and a value.
    headers: Vec<(String, String)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<String>,
    /// Name of the client that sent the request, if clients are configured.
    #[serde(skip_serializing_if = "Option::is_none")]
    client: Option<String>,
    /// `topic/partition/offset` of the record from which the request was adopted.
    #[serde(skip_serializing_if = "Option::is_none")]
    origin: Option<String>,
    deliveries: Vec<Delivery>,
}

/// The state of the request at one destination.
#[derive(Serialize, JsonSchema)]
struct Delivery {
    destination: String,
    /// `pending` or `retrying`; once it has ended, `delivered`, `dead` or `cancelled`.
    #[schemars(with = "String")]
    state: DeliveryState,
    /// When the next step is due, unless an outcome arrives earlier.
    #[serde(skip_serializing_if = "Option::is_none")]
    due_at: Option<DateTime<Utc>>,
    /// Why the delivery waits without spending an attempt: `breaker_open`, `limit`, `key_busy`, `token_unavailable`,
    /// `token_refused`, `unknown_destination` or `order`.
    #[serde(skip_serializing_if = "Option::is_none")]
    deferred_by: Option<String>,
    updated_at: DateTime<Utc>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_error_class: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_error: Option<String>,
    attempts: Vec<Attempt>,
}

/// One call to the destination.
#[derive(Serialize, JsonSchema)]
struct Attempt {
    number: u32,
    started_at: DateTime<Utc>,
    duration_ms: u64,
    outcome: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_class: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_excerpt: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<String>,
    /// `topic/partition/offset` of the record that caused the attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    origin: Option<String>,
}

pub(super) async fn request(
    State(store): State<Store>,
    Path(id): Path<String>,
) -> Result<Json<Status>, Problem> {
    status(&store, parse(id)?).await
}

/// A browser runs no script of a body, which may be of any media type and from any client.
const INERT: [(HeaderName, &str); 2] =
    [(CONTENT_SECURITY_POLICY, "default-src 'none'; sandbox"), (X_CONTENT_TYPE_OPTIONS, "nosniff")];

/// `GET /v1/requests/{id}/body`: returns the body, byte for byte as it arrived.
pub(super) async fn body(State(store): State<Store>, Path(id): Path<String>) -> Result<Response, Problem> {
    let id = parse(id)?;
    let found = requests::body(store.connection(), id).await.map_err(|error| failed(&error, id))?;
    let (content_type, body) = found.ok_or(Problem::RequestUnknown(id))?;
    Ok((INERT, [(CONTENT_TYPE, content_type)], body).into_response())
}

/// `POST /v1/requests/{id}/cancel`: cancels the deliveries that have not ended, and returns the request's status.
pub(super) async fn cancel(
    State(operations): State<Operations>,
    Path(id): Path<String>,
    mut parameters: Parameters,
) -> Result<Json<Status>, Problem> {
    let id = parse(id)?;
    let destination = parameters.text("destination");
    parameters.finish()?;
    let destination = destination.as_deref();
    let cancelled = async {
        let transaction = operations.store.begin().await?;
        let cancelled = deliveries::cancel(&transaction, id, destination, operations.clock.now()).await?;
        transaction.commit().await?;
        Ok(cancelled)
    };
    match cancelled.await.map_err(|error| failed(&error, id))? {
        Cancelled::Some(destinations) => {
            tracing::info!(
                event = "deliveries.cancelled", request_id = %id, ?destinations,
                "deliveries were cancelled"
            );
            operations.metrics.cancelled(&destinations);
            // The next delivery of the same ordering group may be due now.
            operations.wake_sweeper();
            status(&operations.store, id).await
        }
        Cancelled::AllEnded => Err(Problem::HasEnded(id)),
        Cancelled::Unknown => Err(Problem::RequestUnknown(id)),
    }
}

pub(super) async fn status(store: &Store, id: RequestId) -> Result<Json<Status>, Problem> {
    let found = requests::find(store.connection(), id).await.map_err(|error| failed(&error, id))?;
    found.map(|status| Json(status.into())).ok_or(Problem::RequestUnknown(id))
}

pub(super) fn parse(id: String) -> Result<RequestId, Problem> {
    id.parse().map_err(|_| Problem::RequestIdInvalid(id))
}

pub(super) fn failed(error: &StoreError, request_id: RequestId) -> Problem {
    if error.is_unavailable() {
        return Problem::Unavailable(NO_ANSWER);
    }
    tracing::error!(
        event = "request.access_failed", %error, %request_id,
        "a request cannot be read or changed"
    );
    Problem::Internal
}

impl From<StoredStatus> for Status {
    fn from(StoredStatus { request, deliveries }: StoredStatus) -> Self {
        Self {
            request_id: request.id,
            route: request.route,
            ordering_key: request.ordering_key,
            accepted_at: request.accepted_at,
            content_type: request.content_type,
            body_bytes: request.body_bytes,
            headers: request.headers,
            trace_id: request.trace.as_ref().and_then(TraceContext::trace_id).map(str::to_owned),
            client: request.client,
            origin: request.origin,
            deliveries: deliveries.into_iter().map(Delivery::from).collect(),
        }
    }
}

impl From<StoredDelivery> for Delivery {
    fn from(stored: StoredDelivery) -> Self {
        Self {
            destination: stored.destination,
            state: stored.state,
            due_at: stored.due_at,
            deferred_by: stored.deferred_by,
            updated_at: stored.updated_at,
            reason: stored.reason,
            last_status: stored.last_status,
            last_error_class: stored.last_error_class,
            last_error: stored.last_error,
            attempts: stored.attempts.into_iter().map(Attempt::from).collect(),
        }
    }
}

impl From<StoredAttempt> for Attempt {
    fn from(stored: StoredAttempt) -> Self {
        Self {
            number: stored.number,
            started_at: stored.started_at,
            duration_ms: stored.duration_ms,
            outcome: stored.outcome,
            status: stored.status,
            error_class: stored.error_class,
            error: stored.error,
            response_excerpt: stored.response_excerpt,
            trace_id: stored.trace_id,
            origin: stored.origin,
        }
    }
}
