//! `GET /v1/requests/{id}`: a request, its deliveries, their attempts.

use axum::Json;
use axum::extract::{Path, State};
use chrono::{DateTime, Utc};
use serde::Serialize;
use throughline_messages::TraceContext;
use throughline_snowflake::RequestId;
use throughline_store::deliveries::DeliveryState;
use throughline_store::{Store, StoredAttempt, StoredDelivery, StoredStatus, requests};

use super::problem::Problem;

const AWAY: &str = "The database does not answer.";

#[derive(Serialize)]
pub(super) struct Status {
    request_id: RequestId,
    route: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    ordering_key: Option<String>,
    accepted_at: DateTime<Utc>,
    content_type: String,
    headers: Vec<(String, String)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<String>,
    deliveries: Vec<Delivery>,
}

#[derive(Serialize)]
struct Delivery {
    destination: String,
    state: DeliveryState,
    #[serde(skip_serializing_if = "Option::is_none")]
    due_at: Option<DateTime<Utc>>,
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

#[derive(Serialize)]
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
}

pub(super) async fn request(
    State(store): State<Store>,
    Path(id): Path<String>,
) -> Result<Json<Status>, Problem> {
    let Ok(request_id) = id.parse::<RequestId>() else { return Err(Problem::RequestIdInvalid(id)) };
    match requests::find(store.connection(), request_id).await {
        Ok(Some(status)) => Ok(Json(status.into())),
        Ok(None) => Err(Problem::RequestUnknown(id)),
        Err(error) if error.is_unavailable() => Err(Problem::Unavailable(AWAY)),
        Err(error) => {
            tracing::error!(%error, %request_id, "a request cannot be read");
            Err(Problem::Internal)
        }
    }
}

impl From<StoredStatus> for Status {
    fn from(StoredStatus { request, deliveries }: StoredStatus) -> Self {
        Self {
            request_id: request.id,
            route: request.route,
            ordering_key: request.ordering_key,
            accepted_at: request.accepted_at,
            content_type: request.content_type,
            headers: request.headers,
            trace_id: request.trace.as_ref().and_then(TraceContext::trace_id).map(str::to_owned),
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
        }
    }
}
