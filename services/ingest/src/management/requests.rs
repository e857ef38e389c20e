//! `GET /v1/requests/{id}`: a request, its deliveries and their attempts; and the cancellation of deliveries.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::HeaderName;
use http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use throughline_api::{Cancellation, Delivery, Request, RequestPath};
use throughline_messages::TraceContext;
use throughline_snowflake::RequestId;
use throughline_store::deliveries::{self, Cancelled};
use throughline_store::{Store, StoreError, StoredDelivery, StoredStatus, requests};

use crate::http::extract::{NoMore, Path, Query};
use crate::http::openapi::{Operation, Output};
use crate::http::{Problem, Resource};
use crate::sweeper::Operations;

pub(super) const NO_ANSWER: &str = "The database does not answer.";

/// Returns the resources.
pub(super) fn resources() -> [Resource<Operations>; 3] {
    let get = Operation::management(
        "get-request",
        "Get a request, its deliveries and their attempts",
        "The request.",
    )
    .problems(&[404]);
    let get_body = Operation::management(
        "get-request-body",
        "Get the body of a request",
        "The body, byte for byte as received, with its media type.",
    )
    .problems(&[404]);
    let cancel_request = Operation::management(
        "cancel-request",
        "Cancel the deliveries that have not ended; a call in progress is recorded when it ends",
        "The request after the cancellation.",
    )
    .problems(&[404, 409]);
    [
        Resource::at("/v1/requests/{id}").get(request, get),
        Resource::at("/v1/requests/{id}/body").get(body, get_body),
        Resource::at("/v1/requests/{id}/cancel").post(cancel, cancel_request),
    ]
}

async fn request(
    State(operations): State<Operations>,
    Path(RequestPath { id }): Path<RequestPath>,
) -> Result<Json<Request>, Problem> {
    find(&operations.store, id).await
}

/// A browser runs no script of a body, which may be of any media type and from any client.
const INERT: [(HeaderName, &str); 2] =
    [(CONTENT_SECURITY_POLICY, "default-src 'none'; sandbox"), (X_CONTENT_TYPE_OPTIONS, "nosniff")];

/// The body of a request, byte for byte as it arrived, with its media type.
struct StoredBody(String, Bytes);

impl IntoResponse for StoredBody {
    fn into_response(self) -> Response {
        let Self(content_type, body) = self;
        (INERT, [(CONTENT_TYPE, content_type)], body).into_response()
    }
}

impl Output for StoredBody {
    fn describe(operation: &mut Operation) {
        operation.content::<serde_json::Value>("*/*");
    }
}

/// `GET /v1/requests/{id}/body`.
async fn body(
    State(operations): State<Operations>,
    Path(RequestPath { id }): Path<RequestPath>,
) -> Result<StoredBody, Problem> {
    let found =
        requests::body(operations.store.connection(), id).await.map_err(|error| failed(&error, id))?;
    let (content_type, body) = found.ok_or(Problem::RequestUnknown(id))?;
    Ok(StoredBody(content_type, body))
}

/// `POST /v1/requests/{id}/cancel`: cancels the deliveries that have not ended, and returns the request's status.
async fn cancel(
    State(operations): State<Operations>,
    Path(RequestPath { id }): Path<RequestPath>,
    Query(Cancellation { destination }, NoMore {}): Query<Cancellation>,
) -> Result<Json<Request>, Problem> {
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
            find(&operations.store, id).await
        }
        Cancelled::AllEnded => Err(Problem::HasEnded(id)),
        Cancelled::Unknown => Err(Problem::RequestUnknown(id)),
    }
}

pub(super) async fn find(store: &Store, id: RequestId) -> Result<Json<Request>, Problem> {
    let found = requests::find(store.connection(), id).await.map_err(|error| failed(&error, id))?;
    found.map(|status| Json(to_request(status))).ok_or(Problem::RequestUnknown(id))
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

fn to_request(StoredStatus { request, deliveries }: StoredStatus) -> Request {
    Request {
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
        deliveries: deliveries.into_iter().map(to_delivery).collect(),
    }
}

fn to_delivery(stored: StoredDelivery) -> Delivery {
    Delivery {
        destination: stored.destination,
        state: stored.state,
        due_at: stored.due_at,
        deferred_by: stored.deferred_by,
        updated_at: stored.updated_at,
        reason: stored.reason,
        last_status: stored.last_status,
        last_error_class: stored.last_error_class,
        last_error: stored.last_error,
        attempts: stored.attempts,
    }
}
